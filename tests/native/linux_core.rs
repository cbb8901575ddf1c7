//! A core of a Linux guest that ran, for tools of others.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use crate::export::linux::segments_and_vmcoreinfo;
use crate::support::command::run;

/// A file or a disk that is given the core, for tools that are elsewhere.
const OUT: &str = "SLACKWATER_CORE";

/// Exports `epoch` of a guest whose kernel is `release`: the core says what it is.
pub(super) fn says_what_it_is(store: &Path, dir: &Path, epoch: u64, release: &str) {
    let core = dir.join("core");
    run(&format!("export --store {} --epoch {epoch} --format elf-core --out {}", store.display(), core.display())).expect(0);
    let (segments, vmcoreinfo) = segments_and_vmcoreinfo(&fs::read(&core).unwrap());
    assert!(segments.len() >= 2 && segments.iter().any(|(address, _)| *address > 0), "{segments:x?}");
    let text = vmcoreinfo.expect("no VMCOREINFO note");
    for line in [&format!("OSRELEASE={release}"), "PAGESIZE=4096"] {
        assert!(text.lines().any(|own| own == line), "no {line} in {text}");
    }
    for key in ["KERNELOFFSET=", "NUMBER(phys_base)=", "SYMBOL(swapper_pg_dir)=", "SYMBOL(prb)="] {
        assert!(text.lines().any(|line| line.starts_with(key)), "no {key} in {text}");
    }
    if let Some(out) = std::env::var_os(OUT) {
        let mut out = File::options().write(true).open(out).unwrap();
        io::copy(&mut File::open(&core).unwrap(), &mut out).unwrap();
        out.sync_all().unwrap();
    }
    fs::remove_file(core).unwrap();
}
