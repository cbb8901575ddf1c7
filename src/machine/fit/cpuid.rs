//! What a guest was told of the processor, beside what a host can show.

use super::feature_words::{self, KVM_FEATURES, KVM_LEAF, WORDS, Word};
use super::findings::Findings;
use super::{Finding, Piece, Register, Verdict};
use crate::kvm::offer::{CpuidLeaf, Offer};
use crate::machine::state::VcpuState;

/// The invariant time stamp counter, in EDX of its leaf.
const POWER_LEAF: u32 = 0x8000_0007;
const INVARIANT: u32 = 1 << 8;
const XSAVE_LEAF: u32 = 0xd;
const ADDRESS_LEAF: u32 = 0x8000_0008;
const COUNTERS_LEAF: u32 = 0xa;
/// How a hypervisor's leaves say that they are KVM's: EBX, ECX and EDX.
const KVM_SIGNATURE: [u32; 3] = [0x4b4d_564b, 0x564b_4d56, 0x4d];
/// Where Linux looks for them: what is before is another interface's.
const KVM_BASES: std::ops::Range<u32> = 0x4000_0000..0x4001_0000;
/// Leaves of numbers and formats that code is written for: tracing, enclaves, tiles, vectors. Other
/// ones are no good.
const EXACT: [u32; 6] = [0x12, 0x14, 0x1d, 0x1e, 0x23, 0x24];
/// Leaves that only describe: caches, TLBs, frequencies, power.
const DESCRIBE: [u32; 10] = [2, 5, 0x15, 0x16, 0x1a, 0x8000_0005, 0x8000_0006, 0x8000_0019, 0x8000_001a, 0x8000_001b];

/// What a guest was told, by leaf.
pub(super) struct ToldOf(Vec<CpuidLeaf>);

impl ToldOf {
    pub(super) fn new(vcpu: &VcpuState) -> Self {
        Self(vcpu.cpuid.iter().flat_map(|cpuid| cpuid.as_slice()).map(CpuidLeaf::from).collect())
    }

    pub(super) const fn leaves(&self) -> usize {
        self.0.len()
    }

    /// Whether the guest was shown a counter whose frequency never changes.
    pub(super) fn invariant_counter(&self) -> bool {
        leaf(&self.0, POWER_LEAF, 0).edx & INVARIANT != 0
    }
}

/// The leaf, or zeros where there is none, as KVM answers then.
fn leaf(leaves: &[CpuidLeaf], function: u32, index: u32) -> CpuidLeaf {
    let found = leaves.iter().find(|leaf| (leaf.function, leaf.index) == (function, index));
    found.copied().unwrap_or(CpuidLeaf { function, index, ..CpuidLeaf::default() })
}

const fn register(leaf: &CpuidLeaf, register: Register) -> u32 {
    match register {
        Register::Eax => leaf.eax,
        Register::Ebx => leaf.ebx,
        Register::Ecx => leaf.ecx,
        Register::Edx => leaf.edx,
    }
}

/// The bits of a number that are set.
pub(super) fn bits(number: u64) -> impl Iterator<Item = u8> {
    (0..64).filter(move |bit| number >> bit & 1 != 0)
}

/// Components of extended state that can be enabled in XCR0.
pub(super) fn components(leaves: &[CpuidLeaf]) -> u64 {
    let CpuidLeaf { eax, edx, .. } = leaf(leaves, XSAVE_LEAF, 0);
    u64::from(edx) << 32 | u64::from(eax)
}

/// Those for a kernel, in `IA32_XSS`.
fn supervisor_components(leaves: &[CpuidLeaf]) -> u64 {
    let CpuidLeaf { ecx, edx, .. } = leaf(leaves, XSAVE_LEAF, 1);
    u64::from(edx) << 32 | u64::from(ecx)
}

pub(super) fn lacks_component(component: u8, vcpu: u32, uses: &str) -> Finding {
    Finding {
        piece: Piece::XsaveComponent { component },
        name: Some(feature_words::component(component)),
        vcpu: Some(vcpu),
        captured: "yes".to_owned(),
        host: "no".to_owned(),
        verdict: Verdict::CannotRun,
        reason: format!("{uses}, and the host's KVM does not have it"),
    }
}

/// Compares what vCPU number `vcpu` was told. A guest that was told nothing is not compared: it
/// can't know.
pub(super) fn compare(found: &mut Findings, vcpu: u32, told: &ToldOf, host: &Offer) {
    let told = told.0.as_slice();
    if told.is_empty() {
        return;
    }
    let one = Comparison { vcpu, told, host: &host.cpuid };
    one.names(found);
    for word in WORDS {
        let captured = register(&leaf(told, word.leaf, word.subleaf), word.register);
        let host = register(&leaf(&host.cpuid, word.leaf, word.subleaf), word.register);
        one.word(found, word, captured, host);
    }
    one.extended_state(found);
    one.numbers(found);
    one.hypervisor(found);
    one.descriptions(found);
}

struct Comparison<'a> {
    vcpu: u32,
    told: &'a [CpuidLeaf],
    host: &'a [CpuidLeaf],
}

impl Comparison<'_> {
    fn both(&self, function: u32, index: u32) -> (CpuidLeaf, CpuidLeaf) {
        (leaf(self.told, function, index), leaf(self.host, function, index))
    }

    fn finding(&self, piece: Piece, texts: [String; 2], verdict: Verdict, reason: &str) -> Finding {
        let [captured, host] = texts;
        Finding { piece, name: None, vcpu: Some(self.vcpu), captured, host, verdict, reason: reason.to_owned() }
    }

    /// Vendor, model and brand.
    fn names(&self, found: &mut Findings) {
        let (captured, host) = self.both(0, 0);
        let texts = [captured, host].map(|leaf| text([leaf.ebx, leaf.edx, leaf.ecx]));
        let [one, other] = &texts;
        if one != other {
            let reason =
                "the guest knows another vendor's processor: it has chosen instructions, registers and workarounds by it";
            let piece = Piece::CpuidLeaf { leaf: 0, subleaf: 0 };
            found.add(Finding { name: Some("vendor"), ..self.finding(piece, texts, Verdict::CannotRun, reason) });
        }
        let (captured, host) = self.both(1, 0);
        if captured.eax != host.eax {
            let texts = [captured.eax, host.eax].map(model);
            let reason = "another model: the guest goes on with what it was told of its own";
            let piece = Piece::CpuidLeaf { leaf: 1, subleaf: 0 };
            found.add(Finding { name: Some("model"), ..self.finding(piece, texts, Verdict::Harmless, reason) });
        }
        let brand = |leaves: &[CpuidLeaf]| {
            let parts = [0x8000_0002, 0x8000_0003, 0x8000_0004].map(|function| leaf(leaves, function, 0));
            text(parts.iter().flat_map(|part| [part.eax, part.ebx, part.ecx, part.edx]))
        };
        let texts = [brand(self.told), brand(self.host)];
        if texts.first() != texts.last() {
            let piece = Piece::CpuidLeaf { leaf: 0x8000_0002, subleaf: 0 };
            let reason = "another name, which only people read";
            found.add(Finding { name: Some("brand"), ..self.finding(piece, texts, Verdict::Harmless, reason) });
        }
    }

    fn word(&self, found: &mut Findings, word: &Word, captured: u32, host: u32) {
        for bit in bits((captured & !host & !word.not_compared).into()) {
            let texts = ["yes", "no"].map(str::to_owned);
            let reason = "the guest was told of it, and the host's KVM does not have it";
            let finding = self.finding(word.piece(bit), texts, Verdict::CannotRun, reason);
            found.add(Finding { name: word.name(bit), ..finding });
        }
        let more: Vec<_> = bits((host & !captured & !word.not_compared).into()).collect();
        if !more.is_empty() {
            let names: Vec<_> =
                more.iter().map(|bit| word.name(*bit).map_or_else(|| format!("bit {bit}"), str::to_owned)).collect();
            let reason = format!("the host has more, of which the guest was not told: {}", names.join(", "));
            let piece = Piece::CpuidWord { leaf: word.leaf, subleaf: word.subleaf, register: word.register };
            let texts = [captured, host].map(|bits| format!("{bits:#010x}"));
            found.add(self.finding(piece, texts, Verdict::Harmless, &reason));
        }
    }

    /// Components that the guest was told of are there, and each lies where it was: the guest's own
    /// areas of extended state have them there.
    fn extended_state(&self, found: &mut Findings) {
        let (told, host) = (components(self.told), components(self.host));
        for component in bits(told & !host) {
            found.add(lacks_component(component, self.vcpu, "the guest was told of it"));
        }
        for component in bits(supervisor_components(self.told) & !supervisor_components(self.host)) {
            found.add(lacks_component(component, self.vcpu, "the guest was told of it"));
        }
        for component in bits(told & host & !3) {
            let (captured, host) = self.both(XSAVE_LEAF, component.into());
            if (captured.eax, captured.ebx) != (host.eax, host.ebx) {
                let texts = [captured, host].map(|leaf| format!("{} bytes at {}", leaf.eax, leaf.ebx));
                let reason = "it lies elsewhere in extended state, and the guest keeps its own areas by what it was told";
                let finding = self.finding(Piece::XsaveComponent { component }, texts, Verdict::CannotRun, reason);
                found.add(Finding { name: Some(feature_words::component(component)), ..finding });
            }
        }
    }

    /// Widths of addresses, and counters: the host may have more.
    fn numbers(&self, found: &mut Findings) {
        let (captured, host) = self.both(ADDRESS_LEAF, 0);
        for (shift, name) in [(0, "bits of physical addresses"), (8, "bits of linear addresses")] {
            let [one, other] = [captured.eax, host.eax].map(|eax| eax >> shift & 0xff);
            self.number(found, ADDRESS_LEAF, name, one, other);
        }
        let (captured, host) = self.both(COUNTERS_LEAF, 0);
        let numbers = |leaf: CpuidLeaf| [leaf.eax & 0xff, leaf.eax >> 8 & 0xff, leaf.edx & 0x1f];
        let names = ["version of performance counters", "performance counters", "fixed performance counters"];
        for ((one, other), name) in numbers(captured).into_iter().zip(numbers(host)).zip(names) {
            self.number(found, COUNTERS_LEAF, name, one, other);
        }
    }

    fn number(&self, found: &mut Findings, function: u32, name: &'static str, captured: u32, host: u32) {
        let (verdict, reason) = match captured.cmp(&host) {
            std::cmp::Ordering::Greater => (Verdict::CannotRun, "the guest was told of more than the host has"),
            std::cmp::Ordering::Less => (Verdict::Harmless, "the host has more, of which the guest was not told"),
            std::cmp::Ordering::Equal => return,
        };
        let texts = [captured, host].map(|number| number.to_string());
        let finding = self.finding(Piece::CpuidLeaf { leaf: function, subleaf: 0 }, texts, verdict, reason);
        found.add(Finding { name: Some(name), ..finding });
    }

    /// The hypervisor's own features.
    fn hypervisor(&self, found: &mut Findings) {
        let is_kvm = |leaf: &&CpuidLeaf| KVM_BASES.contains(&leaf.function) && [leaf.ebx, leaf.ecx, leaf.edx] == KVM_SIGNATURE;
        if let Some(base) = self.told.iter().find(is_kvm) {
            let captured = leaf(self.told, base.function.saturating_add(1), 0).eax;
            self.word(found, &KVM_FEATURES, captured, leaf(self.host, KVM_LEAF + 1, 0).eax);
        }
        let another = |leaf: &&CpuidLeaf| leaf.function == KVM_LEAF && leaf.eax != 0 && !is_kvm(leaf);
        if let Some(other) = self.told.iter().find(another) {
            let texts = [text([other.ebx, other.ecx, other.edx]), "not compared".to_owned()];
            let piece = Piece::CpuidLeaf { leaf: KVM_LEAF, subleaf: 0 };
            let reason = "another hypervisor's interface, which is not compared";
            found.add(Finding { name: Some("hypervisor"), ..self.finding(piece, texts, Verdict::Harmless, reason) });
        }
    }

    /// All other leaves that the guest was told of. Topology is the VMM's, and not compared.
    fn descriptions(&self, found: &mut Findings) {
        for captured in self.told {
            let CpuidLeaf { function, index, .. } = *captured;
            let host = leaf(self.host, function, index);
            let (verdict, reason) = if *captured == host || is_zero(captured) {
                continue;
            } else if EXACT.contains(&function) {
                (Verdict::CannotRun, "what the guest was told of it is not what the host has")
            } else if DESCRIBE.contains(&function) {
                (Verdict::Harmless, "it describes the processor, and the guest goes on with what it was told")
            } else {
                continue;
            };
            let show = |leaf: CpuidLeaf| format!("{:08x} {:08x} {:08x} {:08x}", leaf.eax, leaf.ebx, leaf.ecx, leaf.edx);
            let piece = Piece::CpuidLeaf { leaf: function, subleaf: index };
            found.add(self.finding(piece, [show(*captured), show(host)], verdict, reason));
        }
    }
}

const fn is_zero(leaf: &CpuidLeaf) -> bool {
    leaf.eax | leaf.ebx | leaf.ecx | leaf.edx == 0
}

/// The letters of registers.
fn text(registers: impl IntoIterator<Item = u32>) -> String {
    let bytes: Vec<u8> = registers.into_iter().flat_map(u32::to_le_bytes).filter(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).trim().chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect()
}

/// Family, model and stepping, as they are counted.
fn model(eax: u32) -> String {
    let (family, extended) = (eax >> 8 & 0xf, eax >> 20 & 0xff);
    let model = eax >> 4 & 0xf | if family == 6 || family == 15 { eax >> 12 & 0xf0 } else { 0 };
    format!("family {} model {model} stepping {}", if family == 15 { family + extended } else { family }, eax & 0xf)
}
