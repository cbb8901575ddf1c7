//! A Linux guest in memory: kernel, initrd, command line, boot parameters, ACPI tables, page
//! tables.

use std::error::Error;
use std::io::Cursor;
use std::ops::Range;

use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::{BzImage, Cmdline, Elf, KernelLoader, load_cmdline};
use vm_memory::{Bytes, GuestAddress};

use super::error::LinuxError;
use super::image::{Boot, Kind};
use super::layout::{ACPI, ACPI_END, BOOT_PARAMS, COMMAND_LINE, COMMAND_LINE_ROOM, HIGH_BEGIN, LOW_END};
use super::{acpi, registers};
use crate::memory::GuestRam;
use crate::page::{PAGE_SIZE_U64, PageRun};

/// Where a bzImage has its 64-bit entry, from where it is loaded.
const ENTRY_64: u64 = 0x200;
/// A loader that has no number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// What the boot parameters of a kernel that brings no header of its own must have.
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");

/// Puts everything of `boot` into guest memory, which is zero and lies in `regions`, and returns
/// where the kernel is entered. `devices` is how ACPI's tables describe them.
pub(super) fn load(boot: &Boot, ram: &GuestRam, regions: &[PageRun], vcpus: u8, devices: &[u8]) -> Result<u64, LinuxError> {
    let (low_end, memory_bytes) = extent(regions);
    // Before the loader, which only says that it could not read.
    boot.check_fit(low_end, memory_bytes)?;
    let mut file = Cursor::new(&boot.kernel.content);
    let high = Some(GuestAddress(HIGH_BEGIN));
    let loaded = match boot.kind {
        Kind::BzImage(_) => BzImage::load(ram, Some(GuestAddress(HIGH_BEGIN)), &mut file, high),
        Kind::Elf => Elf::load(ram, None, &mut file, high),
    };
    let loaded = loaded.map_err(|source| LinuxError::Load { path: boot.kernel.path.clone(), source })?;
    let kernel_end = loaded.kernel_end.max(boot.kind.end(boot.kernel.content.len() as u64));
    let initrd = boot.initrd_address(kernel_end, low_end, memory_bytes)?;
    if let (Some(address), Some(initrd)) = (initrd, &boot.initrd) {
        put(ram, "the initrd", address, &initrd.content)?;
    }
    let failed = |source| write_failed("the command line", COMMAND_LINE, source);
    let line = Cmdline::try_from(&boot.command_line, COMMAND_LINE_ROOM).map_err(failed)?;
    load_cmdline(ram, GuestAddress(COMMAND_LINE), &line)
        .map_err(|source| write_failed("the command line", COMMAND_LINE, source))?;
    let tables = acpi::tables(u32::try_from(ACPI).unwrap_or(u32::MAX), vcpus, devices);
    put(ram, "the ACPI tables", ACPI, &tables)?;
    for (address, bytes) in registers::tables() {
        put(ram, "descriptors and page tables", address, &bytes)?;
    }
    let header = match (boot.kind, loaded.setup_header) {
        (Kind::BzImage(_), Some(header)) => header,
        _ => setup_header { boot_flag: BOOT_FLAG, header: HEADER_MAGIC, kernel_alignment: 1 << 24, ..Default::default() },
    };
    let params = boot_parameters(boot, header, initrd, regions);
    LinuxBootConfigurator::write_bootparams(&BootParams::new(&params, GuestAddress(BOOT_PARAMS)), ram)
        .map_err(|source| write_failed("the boot parameters", BOOT_PARAMS, source))?;
    Ok(match boot.kind {
        Kind::BzImage(_) => loaded.kernel_load.0 + ENTRY_64,
        Kind::Elf => loaded.kernel_load.0,
    })
}

fn boot_parameters(boot: &Boot, mut header: setup_header, initrd: Option<u64>, regions: &[PageRun]) -> boot_params {
    let low = |address: u64| u32::try_from(address).unwrap_or_default();
    header.type_of_loader = LOADER_UNDEFINED;
    header.cmd_line_ptr = low(COMMAND_LINE);
    header.cmdline_size = u32::try_from(boot.command_line.len()).unwrap_or_default();
    if let (Some(address), Some(initrd)) = (initrd, &boot.initrd) {
        header.ramdisk_image = low(address);
        header.ramdisk_size = low(initrd.content.len() as u64);
    }
    let mut params = boot_params { hdr: header, acpi_rsdp_addr: ACPI, ..Default::default() };
    let map = memory_map(regions);
    params.e820_entries = u8::try_from(map.len()).unwrap_or(u8::MAX);
    let mut table = params.e820_table;
    for (place, (range, kind)) in table.iter_mut().zip(map) {
        *place = boot_e820_entry { addr: range.start, size: range.end - range.start, r#type: kind };
    }
    params.e820_table = table;
    params
}

/// The guest physical addresses of a run.
const fn span(run: &PageRun) -> Range<u64> {
    let first = run.first.0 * PAGE_SIZE_U64;
    first..first + run.count * PAGE_SIZE_U64
}

/// Where the first region ends, which begins at 0, and the bytes of all.
pub(super) fn extent(regions: &[PageRun]) -> (u64, u64) {
    (regions.first().map_or(0, |run| span(run).end), regions.iter().map(|run| run.count * PAGE_SIZE_U64).sum())
}

/// What the guest may use of its memory: guest physical addresses and kinds.
fn memory_map(regions: &[PageRun]) -> Vec<(Range<u64>, u32)> {
    let mut map = vec![(0..LOW_END, E820_RAM), (LOW_END..ACPI_END, E820_RESERVED)];
    for run in regions {
        let bytes = span(run);
        map.push((bytes.start.max(HIGH_BEGIN)..bytes.end, E820_RAM));
    }
    map
}

fn put(ram: &GuestRam, what: &'static str, address: u64, bytes: &[u8]) -> Result<(), LinuxError> {
    ram.write_slice(bytes, GuestAddress(address)).map_err(|source| write_failed(what, address, source))
}

fn write_failed(what: &'static str, address: u64, source: impl Error + Send + Sync + 'static) -> LinuxError {
    LinuxError::Write { what, address, source: Box::new(source) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::memory_regions;

    #[test]
    fn memory_above_4_gib_leaves_the_hole() {
        const GIB: u64 = 1 << 30;
        let ram = |memory| memory_map(&memory_regions(memory)).into_iter().filter(|(_, kind)| *kind == E820_RAM);
        let ranges = |memory| ram(memory).map(|(range, _)| range).collect::<Vec<_>>();
        assert_eq!(ranges(GIB), [0..LOW_END, HIGH_BEGIN..GIB]);
        assert_eq!(ranges(5 * GIB), [0..LOW_END, HIGH_BEGIN..3 * GIB, 4 * GIB..6 * GIB]);
    }
}
