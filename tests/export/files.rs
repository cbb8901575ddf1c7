//! What is in an exported file.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use object::LittleEndian as Le;
use object::elf::{FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};
use slackwater::format::MemoryDigest;
use slackwater::machine::MachineState;
use slackwater::page::{EpochId, Gfn, PageRun};
use slackwater::store::Chain;

use crate::support::chain::{Builder, NewEpoch, Part, noise, sample, sample_of_changes};
use crate::support::command::{number, run};
use crate::support::copy::{checkpoints, write};

/// The digest of pages that begin at `address`.
fn digest_of(address: u64, memory: &[u8]) -> MemoryDigest {
    let mut digest = MemoryDigest::default();
    for (gfn, page) in (address / 4096..).zip(memory.chunks_exact(4096)) {
        digest.add_page(Gfn(gfn), page.try_into().unwrap());
    }
    digest
}

/// The digest of the memory in a core, and its registers `rip` and `rdi` by vCPU.
pub(crate) fn read_core(core: &[u8]) -> (MemoryDigest, Vec<[u64; 2]>) {
    let header = FileHeader64::<Le>::parse(core).unwrap();
    let (mut digest, mut registers) = (MemoryDigest::default(), Vec::new());
    for segment in header.program_headers(Le, core).unwrap() {
        if segment.p_type(Le) == PT_LOAD {
            assert_eq!(segment.p_vaddr(Le), segment.p_paddr(Le));
            digest.add(digest_of(segment.p_paddr(Le), segment.data(Le, core).unwrap()));
            continue;
        }
        let mut notes = segment.notes(Le, core).unwrap().unwrap();
        while let Some(note) = notes.next().unwrap() {
            if note.name() == b"CORE" && note.desc().len() == 336 {
                let register = |place: usize| note.desc()[112 + place * 8..][..8].try_into().unwrap();
                registers.push([16, 14].map(|place| u64::from_le_bytes(register(place))));
            }
        }
    }
    (digest, registers)
}

/// The same of the chain's state.
pub(crate) fn registers(chain: &Chain, epoch: u64) -> Vec<[u64; 2]> {
    let machine = MachineState::from_records(&chain.state(EpochId(epoch)).unwrap(), chain.description().vcpus).unwrap();
    machine.vcpus.iter().map(|vcpu| [vcpu.regs.rip, vcpu.regs.rdi]).collect()
}

#[test]
fn raw_is_memory_as_it_was() {
    for chain in [sample(true), sample_of_changes()] {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store");
        write(&store, &chain.files);
        for (epoch, truth) in &chain.truth {
            let file = dir.path().join(format!("{epoch}.raw"));
            let line = format!("export --store {} --epoch {epoch} --format raw --out {} --json", store.display(), file.display());
            let report = run(&line).expect(0).json();
            let bytes = fs::read(&file).unwrap();
            assert_eq!((bytes.len(), number(&report, "/file_bytes")), (4 << 20, 4 << 20));
            for (gfn, page) in bytes.chunks_exact(4096).enumerate() {
                let expected = truth.memory.get(&(gfn as u64)).map_or(&[0; 4096], |page| &**page);
                assert!(page == expected, "page {gfn} of epoch {epoch}");
            }
            assert_eq!(report["memory"], truth.digest().to_string());
            assert_eq!(number(&report, "/pages"), truth.memory.len() as u64);
            let metadata = file.metadata().unwrap();
            assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
            assert!(metadata.blocks() * 512 <= truth.memory.len() as u64 * 4096 + (64 << 10), "{} blocks", metadata.blocks());
        }
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), chain.truth.len() + 1, "{left:?}");
    }
}

#[test]
fn a_core_has_memory_and_registers_of_each_epoch() {
    let store = checkpoints().join("golden/churn");
    let chain = Chain::open(&store).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("core");
    for epoch in 1..=chain.newest().0 {
        let line = format!("export --store {} --epoch {epoch} --format elf-core --force", store.display());
        let report = run(&format!("{line} --out {} --json", file.display())).expect(0).json();
        let (memory, found) = read_core(&fs::read(&file).unwrap());
        assert_eq!((&report["memory"], found), (&memory.to_string().into(), registers(&chain, epoch)));
        let digest = run(&format!("digest --store {} --epoch {epoch} --json", store.display())).expect(0).json();
        assert_eq!(report["memory"], digest["memory"]);
    }
}

/// Memory of several runs, above 4 GiB and far apart: the file is as long as addresses are high,
/// and takes no space for it.
#[test]
fn memory_with_holes_and_above_4_gib() {
    let run_of = |first, count| PageRun { first: Gfn(first), count };
    let memory = vec![run_of(0, 160), run_of(256, 0xc_0000 - 256), run_of(1 << 20, 1 << 21)];
    let end = (1 << 20) + (1 << 21);
    let mut chain = Builder::new([5; 16], memory, 1, serde_json::Value::Null);
    chain.segment();
    let pages = [159, 256, 0xb_ffff, 1 << 20, end - 1].map(|gfn| (gfn, noise(gfn)));
    let parts = vec![Part::Pages(slackwater::format::Compression::None, pages.to_vec())];
    chain.epoch(&NewEpoch { number: 1, base: true, audited: true, parts, ..NewEpoch::default() });
    chain.close();
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("store"), &chain.files);
    let (store, file) = (dir.path().join("store"), dir.path().join("memory"));
    run(&format!("export --store {} --format raw --out {}", store.display(), file.display())).expect(0);
    let metadata = file.metadata().unwrap();
    assert_eq!(metadata.len(), end * 4096);
    assert!(metadata.blocks() * 512 < 1 << 20, "{} blocks", metadata.blocks());
    for (gfn, page) in pages {
        assert!(read_at(&file, gfn * 4096) == *page, "{gfn:#x}");
        assert!(gfn == end - 1 || read_at(&file, (gfn + 2) * 4096) == [0; 4096], "{gfn:#x}");
    }
}

fn read_at(file: &Path, offset: u64) -> [u8; 4096] {
    use std::os::unix::fs::FileExt;
    let mut page = [0; 4096];
    fs::File::open(file).unwrap().read_exact_at(&mut page, offset).unwrap();
    page
}
