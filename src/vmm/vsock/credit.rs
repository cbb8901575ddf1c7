//! How many bytes each side of a connection may send: what is sent is never more than what the
//! other side has room for. Counts of bytes are modulo 2^32.

/// Room for the guest's bytes that no host socket took yet, for each connection.
pub(super) const BUFFER_BYTES: u32 = 64 << 10;
/// So many bytes that went to the host are news to the guest.
const NEWS_BYTES: u32 = BUFFER_BYTES / 4;

/// Of one connection.
#[derive(Debug, Default)]
pub(super) struct Credit {
    /// Bytes of the guest that came.
    received: u32,
    /// Those of them that left our room.
    forwarded: u32,
    /// What the guest knows of `forwarded`.
    told: u32,
    /// Bytes that the guest was sent.
    sent: u32,
    guest_room: u32,
    guest_forwarded: u32,
}

impl Credit {
    /// The guest says how much room it has.
    pub(super) const fn note_guest(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        self.guest_room = buf_alloc;
        self.guest_forwarded = fwd_cnt;
    }

    /// Bytes that the guest has room for. A guest that counts more than it got has none.
    pub(super) const fn guest_has_room(&self) -> u32 {
        self.guest_room.saturating_sub(self.sent.wrapping_sub(self.guest_forwarded))
    }

    /// The guest was sent `bytes`, for which it had room.
    pub(super) const fn note_sent(&mut self, bytes: u32) {
        self.sent = self.sent.wrapping_add(bytes);
    }

    /// Bytes of the guest that are in our room: in outputs that wait, or before a socket.
    pub(super) const fn held(&self) -> u32 {
        self.received.wrapping_sub(self.forwarded)
    }

    /// Takes `bytes` of the guest, if there is room.
    pub(super) const fn receive(&mut self, bytes: u32) -> bool {
        let fits = bytes <= BUFFER_BYTES - self.held();
        if fits {
            self.received = self.received.wrapping_add(bytes);
        }
        fits
    }

    /// `bytes` left our room; never more than are there.
    pub(super) fn forward(&mut self, bytes: u32) {
        self.forwarded = self.forwarded.wrapping_add(bytes.min(self.held()));
    }

    /// Whether the guest would like to know what was forwarded.
    pub(super) const fn has_news(&self) -> bool {
        self.forwarded.wrapping_sub(self.told) >= NEWS_BYTES
    }

    /// What a header to the guest says of it, which the guest then knows.
    pub(super) const fn tell(&mut self) -> u32 {
        self.told = self.forwarded;
        self.forwarded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_what_was_forwarded_and_no_more() {
        let mut credit = Credit { received: u32::MAX - 10, forwarded: u32::MAX - 10, ..Credit::default() };
        assert!(credit.receive(BUFFER_BYTES));
        assert!(!credit.receive(1));
        assert!(credit.receive(0));
        credit.forward(5);
        assert!(!credit.receive(6));
        assert!(credit.receive(5));
        credit.forward(u32::MAX);
        assert_eq!(credit.held(), 0);
        assert!(!credit.receive(u32::MAX));
    }

    #[test]
    fn the_guest_is_sent_what_it_has_room_for() {
        let mut credit = Credit { sent: u32::MAX - 1, guest_forwarded: u32::MAX - 1, ..Credit::default() };
        assert_eq!(credit.guest_has_room(), 0);
        credit.note_guest(10, u32::MAX - 1);
        credit.note_sent(4);
        assert_eq!(credit.guest_has_room(), 6);
        credit.note_guest(10, 1);
        assert_eq!(credit.guest_has_room(), 9);
        // Less room than it was sent, and a count of what it never got.
        credit.note_guest(0, 1);
        assert_eq!(credit.guest_has_room(), 0);
        credit.note_guest(u32::MAX, 3);
        assert_eq!(credit.guest_has_room(), 0);
    }

    #[test]
    fn a_guest_without_credit_gets_news() {
        let mut credit = Credit::default();
        assert!(credit.receive(BUFFER_BYTES));
        credit.forward(NEWS_BYTES - 1);
        assert!(!credit.has_news());
        credit.forward(1);
        assert!(credit.has_news());
        assert_eq!(credit.tell(), NEWS_BYTES);
        assert!(!credit.has_news());
    }
}
