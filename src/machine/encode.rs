//! State as records and back. Input is not trusted.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2, kvm_fpu, kvm_msr_entry};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::capture::{chip, chip_id};
use super::error::StateError;
use super::msrs::msr_list;
use super::order::{VcpuPiece, VmPiece};
use super::spec::MSRS_MAX;
use super::state::{DeviceState, MachineState, VcpuState};
use crate::epoch::CapturedState;
use crate::format::StateRecord;
use crate::kvm::xsave::{XSAVE_BYTES_MIN, XsaveSize};

/// The version of the layout of all `vcpu.` and `vm.` records.
const VERSION: u16 = 1;
/// What the names of devices' records begin with.
const DEVICE: &str = "device.";
/// Bytes of `vcpu.fpu`.
const FPU_BYTES: usize = 416;
const MSR_BYTES: usize = size_of::<kvm_msr_entry>();
const CPUID_BYTES: usize = size_of::<kvm_cpuid_entry2>();

impl CapturedState for MachineState {
    fn records(&self) -> Vec<StateRecord> {
        self.to_records()
    }
}

impl MachineState {
    /// The state as records: those of the VM, those of each vCPU, those of the devices. Pieces that
    /// are not there have none.
    #[must_use]
    pub fn to_records(&self) -> Vec<StateRecord> {
        let mut records = Vec::with_capacity(VmPiece::ALL.len() + self.vcpus.len() * VcpuPiece::ALL.len() + self.devices.len());
        let mut push = |name: &str, index, data: Option<Vec<u8>>| {
            records.extend(data.map(|data| StateRecord { name: name.to_owned(), index, version: VERSION, data }));
        };
        for piece in VmPiece::ALL {
            let data = match piece {
                VmPiece::Pit2 => bytes_of(&self.vm.pit2),
                VmPiece::PicMaster => bytes_of(&self.vm.pic_master),
                VmPiece::PicSlave => bytes_of(&self.vm.pic_slave),
                VmPiece::IoApic => bytes_of(&self.vm.ioapic),
                VmPiece::Clock => bytes_of(&self.vm.clock),
            };
            push(piece.name(), 0, data);
        }
        for vcpu in &self.vcpus {
            for piece in VcpuPiece::ALL {
                push(piece.name(), vcpu.index, encode(vcpu, *piece));
            }
        }
        for device in &self.devices {
            records.push(StateRecord {
                name: format!("{DEVICE}{}", device.name),
                index: device.index,
                version: device.version,
                data: device.data.clone(),
            });
        }
        records
    }

    /// The state that `records` hold, for a machine with `vcpus` vCPUs. Every record is used, and
    /// nothing is missing.
    ///
    /// # Errors
    /// [`StateError::UnknownRecord`], [`StateError::Duplicate`], [`StateError::Size`],
    /// [`StateError::Malformed`] and [`StateError::Missing`], each naming the record. A record for
    /// a vCPU that the machine doesn't have is unknown.
    pub fn from_records(records: &[StateRecord], vcpus: u32) -> Result<Self, StateError> {
        // Every vCPU has records of its own, so that a wrong count allocates nothing.
        if usize::try_from(vcpus).map_or(true, |vcpus| vcpus > records.len()) {
            return Err(StateError::Missing { piece: VcpuPiece::Regs.name(), vcpu: vcpus.checked_sub(1) });
        }
        let mut sorted: Vec<&StateRecord> = records.iter().collect();
        sorted.sort_by_key(|record| (&record.name, record.index));
        for pair in sorted.windows(2) {
            if let [one, two] = pair
                && (&one.name, one.index) == (&two.name, two.index)
            {
                return Err(StateError::Duplicate { name: one.name.clone(), index: one.index });
            }
        }
        let mut machine = Self::new(vcpus);
        let mut seen = vec![Seen::default(); machine.vcpus.len()];
        for record in records {
            machine.take(record, &mut seen)?;
        }
        machine.whole(&seen)?;
        Ok(machine)
    }

    fn take(&mut self, record: &StateRecord, seen: &mut [Seen]) -> Result<(), StateError> {
        let unknown = || StateError::UnknownRecord { name: record.name.clone(), index: record.index, version: record.version };
        if let Some(name) = record.name.strip_prefix(DEVICE) {
            if name.is_empty() || record.version == 0 {
                return Err(unknown());
            }
            let (name, data) = (name.to_owned(), record.data.clone());
            self.devices.push(DeviceState { name, index: record.index, version: record.version, data });
            return Ok(());
        }
        if record.version != VERSION {
            return Err(unknown());
        }
        if let Some(piece) = VmPiece::from_name(&record.name).filter(|_| record.index == 0) {
            return self.take_vm(record, piece);
        }
        let piece = VcpuPiece::from_name(&record.name).ok_or_else(unknown)?;
        let place = usize::try_from(record.index).unwrap_or(usize::MAX);
        let vcpu = self.vcpus.get_mut(place).ok_or_else(unknown)?;
        decode(record, piece, vcpu)?;
        if let Some(seen) = seen.get_mut(place) {
            seen.insert(piece);
        }
        Ok(())
    }

    fn take_vm(&mut self, record: &StateRecord, piece: VmPiece) -> Result<(), StateError> {
        match piece {
            VmPiece::Pit2 => self.vm.pit2 = Some(exact(record, piece.name())?),
            VmPiece::Clock => self.vm.clock = Some(exact(record, piece.name())?),
            VmPiece::PicMaster | VmPiece::PicSlave | VmPiece::IoApic => {
                let value: kvm_bindings::kvm_irqchip = exact(record, piece.name())?;
                if value.chip_id != chip_id(piece) {
                    return Err(malformed(record, 0, "the number of this chip"));
                }
                *chip(&mut self.vm, piece) = Some(value);
            }
        }
        Ok(())
    }

    /// What must be there: the same pieces for every vCPU, those that every vCPU has, and chips
    /// that come together.
    fn whole(&self, seen: &[Seen]) -> Result<(), StateError> {
        for piece in VcpuPiece::ALL {
            let needed = match piece {
                VcpuPiece::Xcrs | VcpuPiece::TscKhz | VcpuPiece::Fpu => seen.iter().any(|seen| seen.has(*piece)),
                VcpuPiece::Lapic => self.vm.ioapic.is_some() || seen.iter().any(|seen| seen.has(*piece)),
                // Either this or the FPU alone.
                VcpuPiece::Xsave => !seen.iter().any(|seen| seen.has(VcpuPiece::Fpu)) || seen.iter().any(|seen| seen.has(*piece)),
                VcpuPiece::MpState
                | VcpuPiece::Events
                | VcpuPiece::Regs
                | VcpuPiece::Sregs
                | VcpuPiece::DebugRegs
                | VcpuPiece::Msrs
                | VcpuPiece::Cpuid => true,
            };
            let missing = self.vcpus.iter().zip(seen).find(|(_, seen)| needed && !seen.has(*piece));
            if let Some((vcpu, _)) = missing {
                return Err(StateError::Missing { piece: piece.name(), vcpu: Some(vcpu.index) });
            }
        }
        let chips = [
            (VmPiece::PicMaster, self.vm.pic_master.is_some()),
            (VmPiece::PicSlave, self.vm.pic_slave.is_some()),
            (VmPiece::IoApic, self.vm.ioapic.is_some()),
        ];
        match chips.iter().find(|(_, there)| !there) {
            Some((piece, _)) if chips.iter().any(|(_, there)| *there) => {
                Err(StateError::Missing { piece: piece.name(), vcpu: None })
            }
            _ => Ok(()),
        }
    }
}

/// Which of a vCPU's pieces have come.
#[derive(Clone, Copy, Default)]
struct Seen([bool; VcpuPiece::ALL.len()]);

impl Seen {
    fn insert(&mut self, piece: VcpuPiece) {
        for (place, other) in self.0.iter_mut().zip(VcpuPiece::ALL) {
            *place |= *other == piece;
        }
    }

    fn has(&self, piece: VcpuPiece) -> bool {
        self.0.iter().zip(VcpuPiece::ALL).any(|(there, other)| *there && *other == piece)
    }
}

fn encode(vcpu: &VcpuState, piece: VcpuPiece) -> Option<Vec<u8>> {
    match piece {
        VcpuPiece::MpState => Some(vcpu.mp_state.as_bytes().to_vec()),
        VcpuPiece::Events => Some(vcpu.events.as_bytes().to_vec()),
        VcpuPiece::Regs => Some(vcpu.regs.as_bytes().to_vec()),
        VcpuPiece::Sregs => Some(vcpu.sregs.as_bytes().to_vec()),
        VcpuPiece::Fpu => vcpu.fpu.as_ref().map(encode_fpu),
        VcpuPiece::Xsave => (!vcpu.xsave.is_empty()).then(|| vcpu.xsave.clone()),
        VcpuPiece::Xcrs => bytes_of(&vcpu.xcrs),
        VcpuPiece::DebugRegs => Some(vcpu.debugregs.as_bytes().to_vec()),
        VcpuPiece::Msrs => vcpu.msrs.as_ref().map(|msrs| msrs.as_slice().as_bytes().to_vec()),
        VcpuPiece::Lapic => bytes_of(&vcpu.lapic),
        VcpuPiece::TscKhz => vcpu.tsc_khz.map(|khz| khz.to_le_bytes().to_vec()),
        VcpuPiece::Cpuid => vcpu.cpuid.as_ref().map(|cpuid| cpuid.as_slice().as_bytes().to_vec()),
    }
}

fn decode(record: &StateRecord, piece: VcpuPiece, vcpu: &mut VcpuState) -> Result<(), StateError> {
    let name = piece.name();
    match piece {
        VcpuPiece::MpState => vcpu.mp_state = exact(record, name)?,
        VcpuPiece::Events => vcpu.events = exact(record, name)?,
        VcpuPiece::Regs => vcpu.regs = exact(record, name)?,
        VcpuPiece::Sregs => vcpu.sregs = exact(record, name)?,
        VcpuPiece::Fpu => vcpu.fpu = Some(decode_fpu(record)?),
        VcpuPiece::Xsave => {
            if !XsaveSize::is_valid(record.data.len()) {
                return Err(StateError::Size { piece: name, expected: XSAVE_BYTES_MIN, found: record.data.len() });
            }
            vcpu.xsave = record.data.clone();
        }
        VcpuPiece::Xcrs => vcpu.xcrs = Some(exact(record, name)?),
        VcpuPiece::DebugRegs => vcpu.debugregs = exact(record, name)?,
        VcpuPiece::Msrs => {
            let entries: Vec<kvm_msr_entry> = list(record, name, MSR_BYTES, MSRS_MAX)?;
            if let Some(place) = entries.iter().position(|msr| msr.reserved != 0) {
                return Err(malformed(record, place * MSR_BYTES + 4, "zero in the reserved field"));
            }
            vcpu.msrs = Some(msr_list(&entries)?);
        }
        VcpuPiece::Lapic => vcpu.lapic = Some(exact(record, name)?),
        VcpuPiece::TscKhz => vcpu.tsc_khz = Some(exact(record, name)?),
        VcpuPiece::Cpuid => {
            let entries: Vec<kvm_cpuid_entry2> = list(record, name, CPUID_BYTES, KVM_MAX_CPUID_ENTRIES)?;
            let too_many =
                |_| StateError::Size { piece: name, expected: KVM_MAX_CPUID_ENTRIES * CPUID_BYTES, found: record.data.len() };
            vcpu.cpuid = Some(CpuId::from_entries(&entries).map_err(too_many)?);
        }
    }
    Ok(())
}

fn bytes_of<T: IntoBytes + Immutable>(value: &Option<T>) -> Option<Vec<u8>> {
    value.as_ref().map(|value| value.as_bytes().to_vec())
}

fn exact<T: FromBytes>(record: &StateRecord, piece: &'static str) -> Result<T, StateError> {
    T::read_from_bytes(&record.data).map_err(|_| StateError::Size { piece, expected: size_of::<T>(), found: record.data.len() })
}

fn list<T: FromBytes>(record: &StateRecord, piece: &'static str, size: usize, max: usize) -> Result<Vec<T>, StateError> {
    let found = record.data.len();
    if found > max * size {
        return Err(StateError::Size { piece, expected: max * size, found });
    }
    let entry = |bytes: &[u8]| {
        T::read_from_bytes(bytes).map_err(|_| StateError::Size { piece, expected: found.next_multiple_of(size), found })
    };
    record.data.chunks(size).map(entry).collect()
}

fn malformed(record: &StateRecord, offset: usize, expected: &'static str) -> StateError {
    StateError::Malformed { name: record.name.clone(), index: record.index, offset, expected }
}

/// The bytes of `struct kvm_fpu`, for which kvm-bindings has no conversion.
fn encode_fpu(fpu: &kvm_fpu) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(FPU_BYTES);
    bytes.extend_from_slice(fpu.fpr.as_flattened());
    bytes.extend_from_slice(&fpu.fcw.to_le_bytes());
    bytes.extend_from_slice(&fpu.fsw.to_le_bytes());
    bytes.extend_from_slice(&[fpu.ftwx, fpu.pad1]);
    bytes.extend_from_slice(&fpu.last_opcode.to_le_bytes());
    bytes.extend_from_slice(&fpu.last_ip.to_le_bytes());
    bytes.extend_from_slice(&fpu.last_dp.to_le_bytes());
    bytes.extend_from_slice(fpu.xmm.as_flattened());
    bytes.extend_from_slice(&fpu.mxcsr.to_le_bytes());
    bytes.extend_from_slice(&fpu.pad2.to_le_bytes());
    bytes
}

fn decode_fpu(record: &StateRecord) -> Result<kvm_fpu, StateError> {
    let mut rest: &[u8] = &record.data;
    if rest.len() != FPU_BYTES {
        return Err(StateError::Size { piece: VcpuPiece::Fpu.name(), expected: FPU_BYTES, found: rest.len() });
    }
    let fpr = next(&mut rest);
    let mut fpu = kvm_fpu { fpr, fcw: next(&mut rest), fsw: next(&mut rest), ..Default::default() };
    (fpu.ftwx, fpu.pad1) = (next(&mut rest), next(&mut rest));
    (fpu.last_opcode, fpu.last_ip, fpu.last_dp) = (next(&mut rest), next(&mut rest), next(&mut rest));
    (fpu.xmm, fpu.mxcsr, fpu.pad2) = (next(&mut rest), next(&mut rest), next(&mut rest));
    Ok(fpu)
}

/// The next field; zeros behind the end, which callers exclude.
fn next<T: FromBytes>(rest: &mut &[u8]) -> T {
    match T::read_from_prefix(rest) {
        Ok((value, behind)) => {
            *rest = behind;
            value
        }
        Err(_) => T::new_zeroed(),
    }
}
