//! The sockets' places in the file system: the one that host programs connect to, and those that
//! they listen on.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, socket_with};

use super::error::VsockError;

/// Bytes of a socket's address that a path may take, without the zero behind it.
const ADDRESS_BYTES: usize = 107;
/// The longest path: `_` and the digits of a port have to fit behind it.
pub(super) const PATH_BYTES_MAX: usize = ADDRESS_BYTES - 11;
/// Only the user may connect.
const MODE: u32 = 0o600;
/// Host programs that the system lets wait.
const BACKLOG: i32 = 64;

/// A socket at a path. The file is there as long as this is.
#[derive(Debug)]
pub(super) struct Listener {
    socket: OwnedFd,
    path: PathBuf,
    /// Its device and inode: another's file is left where it is.
    file: (u64, u64),
}

impl Listener {
    /// Listens at `path`. The file of a process that is gone is replaced.
    pub(super) fn bind(path: &Path) -> Result<Self, VsockError> {
        let bytes = path.as_os_str().len();
        if bytes > PATH_BYTES_MAX {
            return Err(VsockError::PathTooLong { path: path.to_owned(), bytes, most: PATH_BYTES_MAX });
        }
        let address = SocketAddrUnix::new(path).map_err(at(path, "making a socket's address"))?;
        let socket = new_socket().map_err(at(path, "making a socket"))?;
        match bind(&socket, &address) {
            Err(Errno::ADDRINUSE) => {
                remove_stale(path, &address)?;
                bind(&socket, &address).map_err(at(path, "binding a socket"))?;
            }
            bound => bound.map_err(at(path, "binding a socket"))?,
        }
        // Nobody can connect before it listens, so nobody does whom the mode keeps out.
        let made = fs::set_permissions(path, fs::Permissions::from_mode(MODE)).and_then(|()| fs::symlink_metadata(path));
        let file = made.map(|made| (made.dev(), made.ino()));
        let file = file.map_err(|error| at(path, "protecting a socket")(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
        let listener = Self { socket, path: path.to_owned(), file };
        listen(&listener.socket, BACKLOG).map_err(at(path, "listening on a socket"))?;
        Ok(listener)
    }

    /// The next host program.
    pub(super) fn accept(&self) -> Result<OwnedFd, Errno> {
        accept_with(&self.socket, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let is_own = fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.file);
        if is_own && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "a socket's file is left behind");
        }
    }
}

/// Connects to the host program that listens for connections to `port`, at `path` with `_PORT`
/// behind it. One that lets others wait refuses.
pub(super) fn connect_to_port(path: &Path, port: u32) -> Result<OwnedFd, Errno> {
    let mut name = OsString::from(path);
    name.push(format!("_{port}"));
    let socket = new_socket()?;
    connect(&socket, &SocketAddrUnix::new(name.as_bytes())?)?;
    Ok(socket)
}

fn new_socket() -> Result<OwnedFd, Errno> {
    socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)
}

/// Removes the socket at `path` if nobody listens on it.
fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), VsockError> {
    if fs::symlink_metadata(path).is_ok_and(|found| !found.file_type().is_socket()) {
        return Err(VsockError::NotASocket { path: path.to_owned() });
    }
    let probe = new_socket().map_err(at(path, "making a socket"))?;
    match connect(&probe, address) {
        Ok(()) | Err(Errno::AGAIN) => Err(VsockError::InUse { path: path.to_owned() }),
        Err(Errno::CONNREFUSED) => match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(at(path, "removing an old socket")(Errno::from_io_error(&error).unwrap_or(Errno::IO)))
            }
            _ => Ok(()),
        },
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(at(path, "looking whether a socket is in use")(error)),
    }
}

/// For `map_err`.
fn at(path: &Path, step: &'static str) -> impl FnOnce(Errno) -> VsockError {
    let path = path.to_owned();
    move |error| match error {
        Errno::ACCESS | Errno::PERM | Errno::ROFS => VsockError::Permission { path, source: error.into() },
        Errno::ADDRINUSE => VsockError::InUse { path },
        error => VsockError::System { step, path, source: error.into() },
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn the_socket_is_the_users_own_and_goes_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("guest");
        let listener = Listener::bind(&path).unwrap();
        let mode = fs::symlink_metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        assert!(matches!(Listener::bind(&path), Err(VsockError::InUse { .. })));
        UnixStream::connect(&path).unwrap();
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_file_that_another_put_there_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("guest");
        let listener = Listener::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let other = UnixListener::bind(&path).unwrap();
        drop(listener);
        assert!(path.exists());
        drop(other);
        // Nobody listens on it now.
        drop(Listener::bind(&path).unwrap());
        assert!(!path.exists());
    }

    #[test]
    fn what_can_be_no_socket_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "mine").unwrap();
        assert!(matches!(Listener::bind(&path), Err(VsockError::NotASocket { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"mine");
        let long = PathBuf::from("x".repeat(PATH_BYTES_MAX + 1));
        assert!(matches!(Listener::bind(&long), Err(VsockError::PathTooLong { bytes: 97, most: 96, .. })));
        let missing = dir.path().join("no/dir");
        assert!(matches!(Listener::bind(&missing), Err(VsockError::System { .. })));
        assert!(matches!(at(&path, "x")(Errno::ACCESS), VsockError::Permission { .. }));
    }

    #[test]
    fn the_longest_path_has_room_for_every_port() {
        let dir = tempfile::tempdir().unwrap();
        let left = PATH_BYTES_MAX - dir.path().as_os_str().len() - 1;
        let path = dir.path().join("x".repeat(left));
        let _listener = Listener::bind(&path).unwrap();
        assert_eq!(connect_to_port(&path, u32::MAX).unwrap_err(), Errno::NOENT);
        let mut name = path.clone().into_os_string();
        name.push("_4294967295");
        let host = UnixListener::bind(&name).unwrap();
        connect_to_port(&path, u32::MAX).unwrap();
        host.accept().unwrap();
    }
}
