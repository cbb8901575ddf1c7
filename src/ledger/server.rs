//! What the guest `ledger` does, without a machine: by which rules requests are taken and answered.

use super::protocol::{Answer, CLIENTS_MAX, Request, Tally};

/// A server in memory. A clone of it is a snapshot.
#[derive(Clone, Debug, Default)]
pub struct Server {
    tally: Tally,
    /// The last answer to each client, in the order in which they came.
    last: Vec<Answer>,
}

impl Server {
    /// Takes a request, and answers it: one with the number behind the client's last, and a new
    /// client's first. The last one gets the same answer again. `None` for any other, and for a new
    /// client where the table is full.
    pub fn take(&mut self, request: &Request) -> Option<Answer> {
        let (client, number) = (request.client(), request.number());
        let place = self.last.iter().position(|last| last.client == client).unwrap_or(self.last.len());
        let last = self.last.get(place).copied();
        if let Some(last) = last.filter(|last| last.number == number) {
            return Some(last);
        }
        if last.map_or(0, |last| last.number).checked_add(1) != Some(number) {
            return None;
        }
        let after = Tally { count: self.tally.count.wrapping_add(1), hash: request.extend(self.tally.hash) };
        let answer = Answer { client, number, before: self.tally, after };
        match self.last.get_mut(place) {
            Some(last) => *last = answer,
            None if place < CLIENTS_MAX => self.last.push(answer),
            None => return None,
        }
        self.tally = after;
        Some(answer)
    }

    /// Requests taken, and the hash over them.
    #[must_use]
    pub const fn tally(&self) -> Tally {
        self.tally
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(client: u64, number: u64) -> Request {
        Request::new(client, number, 0, vec![1]).unwrap()
    }

    #[test]
    fn a_request_is_taken_once_and_in_its_order() {
        let mut server = Server::default();
        assert_eq!(server.take(&request(5, 2)), None, "a new client begins with 1");
        assert_eq!(server.take(&request(5, 0)), None);
        let first = server.take(&request(5, 1)).unwrap();
        let other = server.take(&request(6, 1)).unwrap();
        assert_eq!(server.take(&request(5, 1)), Some(first), "the last one again");
        assert_eq!(other.before, first.after);
        assert_eq!(server.take(&request(5, 3)), None);
        let second = server.take(&request(5, 2)).unwrap();
        assert_eq!((second.before, second.after), (other.after, server.tally()));
        assert_eq!(server.take(&request(5, 1)), None, "only the last one is kept");
        assert_eq!(server.tally().count, 3);
    }

    #[test]
    fn a_client_for_which_there_is_no_place_is_not_answered() {
        let mut server = Server::default();
        for client in 0..CLIENTS_MAX as u64 {
            assert!(server.take(&request(client, 1)).is_some());
        }
        let tally = server.tally();
        assert_eq!(server.take(&request(64, 1)), None);
        assert_eq!(server.tally(), tally);
        assert!(server.take(&request(63, 2)).is_some());
    }
}
