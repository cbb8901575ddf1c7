//! What a link is: two ends that can be used by two threads, one for each direction.

use std::fmt::Debug;
use std::io;
use std::path::PathBuf;

/// Bytes in front of each frame: virtio's `virtio_net_hdr_v1`.
pub(in crate::vmm) const HEADER_BYTES: usize = 12;
/// Where the header says how many buffers a received packet has. It has one.
const BUFFERS: std::ops::Range<usize> = 10..HEADER_BYTES;

/// Where packets of a guest go.
pub(in crate::vmm) trait LinkSender: Debug + Send {
    /// Sends `packet`: a header, and the frame behind it. Waits until the link has taken it, or
    /// until the link's end was asked for; then the packet is lost. A packet that the link does
    /// not take, for what the guest has put into it, is dropped.
    ///
    /// # Errors
    /// The link is gone.
    fn send(&mut self, packet: &[u8]) -> io::Result<()>;

    /// From here on packets that are received may leave this to the guest.
    ///
    /// # Errors
    /// The link is gone, or can't do it.
    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()>;

    /// How many packets were dropped.
    fn dropped(&self) -> u64 {
        0
    }
}

/// Where packets for a guest come from.
pub(in crate::vmm) trait LinkReceiver: Debug + Send {
    /// Waits for the next packet, and puts it into `buffer`: a header, and the frame behind it.
    /// Returns its length; none once the link's end was asked for. A frame that is larger than the
    /// buffer is dropped.
    ///
    /// # Errors
    /// The link is gone, or the buffer does not even hold a header.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>>;

    /// How many frames were dropped.
    fn dropped(&self) -> u64 {
        0
    }
}

/// What a guest's driver does for packets that it receives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is one feature of virtio")]
pub(in crate::vmm) struct Offloads {
    /// It completes checksums. Nothing of the rest goes without.
    pub(in crate::vmm) checksum: bool,
    /// It takes TCP over IPv4 in pieces larger than a frame,
    pub(in crate::vmm) tso4: bool,
    /// and over IPv6,
    pub(in crate::vmm) tso6: bool,
    /// and both with explicit congestion notification.
    pub(in crate::vmm) ecn: bool,
    /// It takes UDP in pieces larger than a frame.
    pub(in crate::vmm) ufo: bool,
}

/// A connection to a network.
#[derive(Debug)]
pub(in crate::vmm) struct Link {
    /// From the guest.
    pub(in crate::vmm) sender: Box<dyn LinkSender>,
    /// To the guest.
    pub(in crate::vmm) receiver: Box<dyn LinkReceiver>,
    /// The most bytes of a frame behind its Ethernet header, where the link says.
    pub(in crate::vmm) mtu: Option<u16>,
    /// Headers mean something: the guest may leave checksums and segmentation to the host, and the
    /// other way round.
    pub(in crate::vmm) has_offloads: bool,
}

/// Why a link can't be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The kernel has no taps.
    #[error("there is no /dev/net/tun: this kernel or container has no taps")]
    NoTaps(#[source] io::Error),
    /// `/dev/net/tun` can't be opened.
    #[error("/dev/net/tun can't be opened")]
    TapDevice(#[source] io::Error),
    /// No interface has this name.
    #[error("`{name}` is no name of a tap")]
    TapName {
        /// The name.
        name: String,
    },
    /// There is no such tap, and this process can't make one.
    #[error(
        "there is no tap `{name}`, and making one needs CAP_NET_ADMIN: `ip tuntap add dev {name} mode tap user USER` makes one"
    )]
    NoTap {
        /// The name.
        name: String,
    },
    /// The tap is somebody else's.
    #[error("this user may not use the tap `{name}`: `ip tuntap add dev {name} mode tap user USER` says who may")]
    TapPermission {
        /// The name.
        name: String,
    },
    /// Another process, or another network device, has the tap.
    #[error("the tap `{name}` is in use")]
    TapInUse {
        /// The name.
        name: String,
    },
    /// There is an interface of this name which is something else.
    #[error("the interface `{name}` is no tap with one queue")]
    NotATap {
        /// The name.
        name: String,
    },
    /// The kernel refused a step.
    #[error("{step} of the tap `{name}`")]
    Tap {
        /// The name.
        name: String,
        /// What was asked.
        step: &'static str,
        /// Its answer.
        #[source]
        source: io::Error,
    },
    /// A path that can't be the address of a socket.
    #[error("{} has {found} bytes: the path of a socket has at most {most}", path.display())]
    SocketPath {
        /// The path.
        path: PathBuf,
        /// Its bytes.
        found: usize,
        /// The most.
        most: usize,
    },
    /// There is nothing at the path.
    #[error("there is no socket {}", path.display())]
    NoSocket {
        /// The path.
        path: PathBuf,
    },
    /// Nobody listens at the socket, or what is there is no socket.
    #[error("nobody listens at {}", path.display())]
    NobodyListens {
        /// The path.
        path: PathBuf,
    },
    /// As many as may already wait for whoever listens.
    #[error("whoever listens at {} does not accept connections", path.display())]
    NobodyAccepts {
        /// The path.
        path: PathBuf,
    },
    /// The socket may not be used.
    #[error("this user may not connect to {}", path.display())]
    SocketPermission {
        /// The path.
        path: PathBuf,
    },
    /// The socket can't be connected to.
    #[error("connecting to {}", path.display())]
    Socket {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Says in the header of a received packet that it is whole.
pub(super) fn put_buffers(packet: &mut [u8]) {
    if let Some(buffers) = packet.get_mut(BUFFERS) {
        buffers.copy_from_slice(&1_u16.to_le_bytes());
    }
}

/// No header has room in a buffer of so few bytes.
pub(super) fn check_buffer(buffer: &[u8]) -> io::Result<()> {
    if buffer.len() < HEADER_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a buffer without room for a packet's header"));
    }
    Ok(())
}
