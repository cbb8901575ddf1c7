//! Cores of a Linux guest, as far as memory that looks like one's shows it: segments, and the
//! VMCOREINFO note.

use std::fs;
use std::path::Path;
use std::process::Command;

use object::LittleEndian as Le;
use object::elf::{FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};
use slackwater::page::{EpochId, Gfn, PageBytes, PageRun};
use slackwater::store::{Chain, NewChain, Writer};

use crate::support::command::run;
use crate::support::copy::checkpoints;
use crate::support::skip;
use crate::support::store::{SEGMENT_EACH, append_pages, new_chain};

const RELEASE: &str = "6.1.0-56-cloud-amd64";

/// A core's segments, address and length, and what its VMCOREINFO note says.
pub(crate) fn segments_and_vmcoreinfo(core: &[u8]) -> (Vec<(u64, u64)>, Option<String>) {
    let header = FileHeader64::<Le>::parse(core).unwrap();
    let (mut segments, mut found) = (Vec::new(), None);
    for segment in header.program_headers(Le, core).unwrap() {
        if segment.p_type(Le) == PT_LOAD {
            segments.push((segment.p_paddr(Le), segment.p_memsz(Le)));
            assert_eq!(segment.data(Le, core).unwrap().len() as u64, segment.p_memsz(Le));
            continue;
        }
        let mut notes = segment.notes(Le, core).unwrap().unwrap();
        while let Some(note) = notes.next().unwrap() {
            assert!(found.is_none(), "a note behind VMCOREINFO");
            if note.name() == b"VMCOREINFO" {
                assert_eq!(note.n_type(Le).0, 0);
                found = Some(String::from_utf8(note.desc().to_vec()).unwrap());
            }
        }
    }
    (segments, found)
}

/// Writes bytes into pages of memory, which rise.
fn put(pages: &mut Vec<(u64, Box<PageBytes>)>, address: usize, bytes: &[u8]) {
    for (at, byte) in (address..).zip(bytes) {
        let gfn = (at / 4096) as u64;
        if pages.last().is_none_or(|(last, _)| *last < gfn) {
            pages.push((gfn, Box::new([0; 4096])));
        }
        let page = pages.iter_mut().find(|(own, _)| *own == gfn).unwrap();
        page.1[at % 4096] = *byte;
    }
}

fn text(names: u64, more: &str) -> String {
    format!(
        "OSRELEASE={RELEASE}\nBUILD-ID=12ab\nPAGESIZE=4096\nSYMBOL(init_uts_ns)={:x}\nNUMBER(phys_base)=-4194304\nKERNELOFFSET=9a00000\n{more}",
        0xffff_ffff_8000_0000_u64 + 0x40_0000 + names
    )
}

fn note(text: &str) -> Vec<u8> {
    let words = [11, u32::try_from(text.len()).unwrap(), 0].map(u32::to_le_bytes);
    [words.as_flattened(), b"VMCOREINFO\0\0", text.as_bytes()].concat()
}

/// A store of a machine with this memory, with the state of a real one.
fn store(dir: &Path, memory: Vec<PageRun>, pages: &[(u64, Box<PageBytes>)]) -> std::path::PathBuf {
    let golden = Chain::open(checkpoints().join("golden/churn")).unwrap();
    let store = dir.join("store");
    let new = NewChain { memory, vcpus: golden.description().vcpus, ..new_chain() };
    let mut writer = Writer::create(&store, &new, SEGMENT_EACH).unwrap();
    append_pages(&mut writer, 1, pages, &golden.state(EpochId(3)).unwrap());
    writer.close(true).unwrap();
    store
}

#[test]
fn a_core_says_what_the_guest_says() {
    let test = "export::linux::a_core_says_what_the_guest_says";
    // A note over the end of a page; before it one of another kernel, and one that is no text; and
    // the names that the right one is about.
    let right = text(0x30_0180, &"SYMBOL(x)=1\n".repeat(30));
    let mut pages = Vec::new();
    put(&mut pages, 0x10_0000, &note(&text(0x7000, "")));
    put(&mut pages, 0x18_0000, &note(&text(0x30_0180, "KEY=\u{7}\n")));
    put(&mut pages, 0x20_0f80, &note(&right));
    put(&mut pages, 0x30_0180, format!("Linux\0{RELEASE}\0#1 SMP\0").as_bytes());
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), vec![PageRun { first: Gfn(0), count: 0x400 }], &pages);
    let core = dir.path().join("core");
    run(&format!("export --store {} --format elf-core --out {}", store.display(), core.display())).expect(0);
    let (segments, vmcoreinfo) = segments_and_vmcoreinfo(&fs::read(&core).unwrap());
    assert_eq!(segments, [(0, 0xa_0000), (0xa_0000, 0x36_0000)]);
    assert_eq!(vmcoreinfo, Some(right));

    match Command::new("readelf").args(["-lnW", core.to_str().unwrap()]).env("LC_ALL", "C").output() {
        Ok(output) => {
            let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            assert!(said.contains("VMCOREINFO") && said.matches("LOAD").count() == 2, "{said}");
            assert!(!said.contains("Warning") && !said.contains("Error"), "{said}");
        }
        Err(error) => skip(test, &format!("readelf: {error}")),
    }
}

/// Memory that ends within the text, and addresses beyond all memory.
#[test]
fn a_guest_that_lies_gets_no_note() {
    let mut pages = Vec::new();
    put(&mut pages, 0x1000, &note(&text(0, &"K=v\n".repeat(400)).replace("PAGESIZE=4096", "PAGESIZE=65536")));
    put(&mut pages, 0x3ff0, &note(&text(0, ""))[..16]);
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), vec![PageRun { first: Gfn(0), count: 4 }], &pages);
    let core = dir.path().join("core");
    run(&format!("export --store {} --format elf-core --out {}", store.display(), core.display())).expect(0);
    let (segments, vmcoreinfo) = segments_and_vmcoreinfo(&fs::read(&core).unwrap());
    assert_eq!((segments, vmcoreinfo), (vec![(0, 0x2000), (0x2000, 0x2000)], None));
}
