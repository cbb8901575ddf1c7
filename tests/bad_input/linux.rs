//! Linux guests that can't be. Nothing here gets as far as KVM.

use std::fs;

use crate::support::command::{finish, slackwater};

/// A file with the header of a bzImage: protocol 2.15, 64-bit entry, command lines of 255 bytes, 20
/// MiB to start in from 16 MiB on.
pub(crate) fn kernel() -> Vec<u8> {
    let mut bytes = vec![0; 8192];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(0x1f1, &[1]);
    put(0x1fe, &[0x55, 0xaa]);
    put(0x202, b"HdrS");
    put(0x206, &0x20f_u16.to_le_bytes());
    put(0x211, &[1]);
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(0x236, &1_u16.to_le_bytes());
    put(0x238, &255_u32.to_le_bytes());
    put(0x258, &0x100_0000_u64.to_le_bytes());
    put(0x260, &0x140_0000_u32.to_le_bytes());
    bytes
}

#[test]
fn what_can_not_be_booted() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("vmlinuz"), kernel()).unwrap();
    fs::write(path("script"), "#!/bin/sh\n".repeat(500)).unwrap();
    fs::write(path("empty"), "").unwrap();
    // Sparse.
    fs::File::create(path("initrd")).unwrap().set_len(100 << 20).unwrap();
    let (vmlinuz, initrd) = (path("vmlinuz"), path("initrd"));
    let long = "x".repeat(256);
    fs::File::create(path("odd")).unwrap().set_len(1000).unwrap();
    fs::File::create(path("huge")).unwrap().set_len((1 << 40) + 512).unwrap();
    fs::File::create(path("disk")).unwrap().set_len(1 << 20).unwrap();
    let disk = path("disk");
    let eight: Vec<_> = ["--kernel", &vmlinuz].into_iter().chain(["--disk", &disk].repeat(8)).collect();
    let cases: [(&[&str], i32, &[&str]); 15] = [
        (&["--kernel", &path("none")], 1, &["none", "No such file"]),
        (&["--kernel", &path("script")], 2, &["script", "is no Linux kernel", "neither the header"]),
        (&["--kernel", &path("empty")], 2, &["empty", "is no Linux kernel", "too short"]),
        (&["--kernel", &vmlinuz, "--initrd", &path("none")], 1, &["none", "No such file"]),
        (&["--kernel", &vmlinuz, "--initrd", &initrd, "--memory", "64M"], 2, &["initrd", "104857600", "room for 29360128"]),
        (&["--kernel", &vmlinuz, "--memory", "32M"], 2, &["33554432 bytes of memory", "at least 37748736"]),
        (&["--kernel", &vmlinuz, "--vcpus", "255"], 2, &["255 vCPUs", "1 to 254"]),
        (&["--kernel", &vmlinuz, "--vcpus", "0"], 2, &["0 vCPUs", "1 to 254"]),
        (&["--kernel", &vmlinuz, "--cmdline", &long], 2, &["256 bytes", "at most 255"]),
        (&["--kernel", &vmlinuz, "--disk", &path("none")], 1, &["none", "No such file"]),
        (&["--kernel", &vmlinuz, "--disk", dir.path().to_str().unwrap()], 1, &["not a regular file"]),
        (&["--kernel", &vmlinuz, "--disk", &path("odd")], 2, &["odd has 1000 bytes", "whole sectors"]),
        (&["--kernel", &vmlinuz, "--disk", &path("empty")], 2, &["empty has 0 bytes", "whole sectors"]),
        (&["--kernel", &vmlinuz, "--disk", &path("huge")], 2, &["huge has 1099511628288 bytes", "whole sectors"]),
        (&eight, 2, &["8 disks", "at most 7"]),
    ];
    for (args, code, texts) in cases {
        let store = path("store");
        let all = ["checkpoint", "--kvm", "/nonexistent", "--store", &store].into_iter().chain(args.iter().copied());
        finish(&mut slackwater(all)).refused(code, texts);
        assert!(!dir.path().join("store").exists());
    }
    finish(&mut slackwater(["checkpoint", "--store", "x", "--initrd", &initrd])).refused(2, &["--kernel <FILE>"]);
    finish(&mut slackwater(["checkpoint", "--store", "x", "--kernel", &vmlinuz, "--guest", "churn"])).refused(2, &["--guest"]);
}
