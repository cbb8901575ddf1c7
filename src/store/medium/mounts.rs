//! Whether a lock that is held here keeps other hosts away, as far as the kernel tells.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Mutex;

/// Why locks on a file system may not keep everybody away.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Unshared {
    file_system: String,
    place: String,
    /// The option that says so; none where the kernel does not tell.
    option: Option<String>,
}

/// Mounts that were warned of.
static WARNED: Mutex<BTreeSet<u64>> = Mutex::new(BTreeSet::new());

/// Warns, once for each mount, where writers on other hosts or behind other mounts may not see the
/// lock of the store in this directory.
pub(in crate::store) fn warn(directory: &File, dir: &Path) {
    let told = fs::read_to_string(format!("/proc/self/fdinfo/{}", directory.as_raw_fd()))
        .and_then(|fdinfo| Ok((fdinfo, fs::read_to_string("/proc/self/mountinfo")?)));
    let Ok((fdinfo, mountinfo)) = told else {
        // Without /proc nothing is known. What a lock that is not shared can do is found by the
        // checks at each append.
        return;
    };
    let Some(mount) = mount_of(&fdinfo) else { return };
    let Some(Unshared { file_system, place, option }) = unshared(&mountinfo, mount) else { return };
    if !WARNED.lock().is_ok_and(|mut warned| warned.insert(mount)) {
        return;
    }
    let (store, mounted) = (dir.display(), place);
    match option {
        Some(option) => tracing::warn!(
            %store, %file_system, %mounted, %option,
            "locks are not shared with other hosts on this mount: see to it that nobody else writes to the store"
        ),
        None => tracing::warn!(
            %store, %file_system, %mounted,
            "locks may not be shared with others on this file system: see to it that nobody else writes to the store"
        ),
    }
}

/// The number of the mount in what `/proc/self/fdinfo` says.
fn mount_of(fdinfo: &str) -> Option<u64> {
    fdinfo.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok())
}

/// What `/proc/self/mountinfo` says of a mount, where locks on it may not be shared.
fn unshared(mountinfo: &str, mount: u64) -> Option<Unshared> {
    // ID parent device root place options (optional fields) - type source options
    let is_it = |line: &&str| line.split(' ').next().and_then(|id| id.parse().ok()) == Some(mount);
    let mut fields = mountinfo.lines().find(is_it)?.split(' ');
    let place = unescape(fields.nth(4)?);
    let own_options = fields.next()?;
    let mut fields = fields.skip_while(|field| *field != "-").skip(1);
    let file_system = unescape(fields.next()?);
    let options: Vec<String> = own_options.split(',').chain(fields.nth(1)?.split(',')).map(unescape).collect();
    let local: &[&str] = match file_system.split('.').next()? {
        "nfs" | "nfs4" => &["nolock", "local_lock=flock", "local_lock=all"],
        "cifs" | "smb3" | "smbfs" => &["nobrl"],
        "ocfs2" => &["localflocks"],
        "gfs2" => &["localflocks", "lockproto=lock_nolock"],
        "lustre" => &["localflock"],
        // Whether the server takes part in locks is not among the options.
        "fuse" | "fuseblk" | "virtiofs" | "9p" | "beegfs" | "vboxsf" => {
            return Some(Unshared { file_system, place, option: None });
        }
        _ => return None,
    };
    let option = options.into_iter().find(|option| local.contains(&option.as_str()))?;
    Some(Unshared { file_system, place, option: Some(option) })
}

/// Spaces, tabs, line feeds, `#` and backslashes are octal there.
fn unescape(field: &str) -> String {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        let code =
            behind.get(..3).filter(|_| *first == b'\\').filter(|digits| digits.iter().all(|digit| (b'0'..b'8').contains(digit)));
        let code = code.map(|digits| digits.iter().fold(0_u32, |code, digit| code * 8 + u32::from(digit - b'0')));
        match code.and_then(|code| u8::try_from(code).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = behind.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = behind;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MOUNTS: &str = "\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
30 27 0:40 / /nfs rw,relatime shared:2 master:7 - nfs4 srv:/a rw,vers=4.2,local_lock=none,addr=10.0.0.1
31 27 0:41 / /nfs3 rw,relatime - nfs srv:/a rw,vers=3,nolock,local_lock=all
32 27 0:42 / /mnt/with\\040a\\011tab\\134 rw - nfs srv:/b rw,vers=3,local_lock=flock
33 27 0:43 / /posix rw - nfs srv:/c rw,vers=3,local_lock=posix
34 27 0:44 / /smb rw - cifs //srv/a rw,vers=3.1.1,nobrl,actimeo=1
35 27 0:45 / /smb2 rw - smb3 //srv/a\\040b rw,vers=3.1.1
36 27 0:46 / /o2 rw - ocfs2 /dev/sdb rw,localflocks,heartbeat=none
37 27 0:47 / /gfs rw - gfs2 /dev/sdc rw,lockproto=lock_nolock
38 27 0:48 / /ssh rw,nosuid propagate_from:2 - fuse.sshfs me@srv: rw,user_id=0
39 27 0:49 / /shared rw - virtiofs share rw
40 27 0:50 / /nine rw - 9p host rw,trans=virtio
41 27 0:51 / /ovl rw - overlay overlay rw,lowerdir=/a,upperdir=/b,workdir=/c
42 27 0:52 / /lustre rw - lustre mgs:/fs rw,localflock
43 27 0:53 / /tmp rw - tmpfs tmpfs rw
44 27 0:54 / /cut rw
45 27 0:55 / /nolock rw - ext4 /nolock rw
";

    #[test]
    fn mounts_whose_locks_are_not_shared_are_known() {
        let found = |mount| unshared(MOUNTS, mount).map(|found| (found.place, found.option.unwrap_or_else(|| "?".to_owned())));
        let is = |place: &str, option: &str| Some((place.to_owned(), option.to_owned()));
        for (mount, expected) in [
            (22, None),
            (27, None),
            (30, None),
            (31, is("/nfs3", "nolock")),
            (32, is("/mnt/with a\ttab\\", "local_lock=flock")),
            (33, None),
            (34, is("/smb", "nobrl")),
            (35, None),
            (36, is("/o2", "localflocks")),
            (37, is("/gfs", "lockproto=lock_nolock")),
            (38, is("/ssh", "?")),
            (39, is("/shared", "?")),
            (40, is("/nine", "?")),
            (41, None),
            (42, is("/lustre", "localflock")),
            (43, None),
            (44, None),
            (45, None),
            (99, None),
        ] {
            assert_eq!(found(mount), expected, "{mount}");
        }
        assert_eq!(mount_of("pos:\t0\nflags:\t0100000\nmnt_id:\t31\nino:\t5\n"), Some(31));
        assert_eq!(mount_of("pos:\t0\n"), None);
        assert_eq!(unescape("a\\040b\\09\\777\\"), "a b\\09\\777\\");
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "[ -~\n\\\\]{0,200}", mount in 0_u64..50) {
            let _ = (unshared(&text, mount), mount_of(&text), unescape(&text));
        }
    }
}
