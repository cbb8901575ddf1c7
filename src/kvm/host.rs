//! What this machine's KVM can do.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use kvm_ioctls::{Cap, Kvm, VmFd};
use serde::Serialize;

use super::uffd;

/// Where the device usually is.
pub const KVM_PATH: &str = "/dev/kvm";

/// The version of KVM's API that everything since Linux 2.6.22 has.
const API_VERSION: i32 = 12;
/// Bytes of a `struct kvm_dirty_gfn`.
const RING_ENTRY_BYTES: u32 = 16;
const KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: u64 = 168;
const KVM_CAP_DIRTY_LOG_RING: u64 = 192;
const KVM_CAP_DIRTY_LOG_RING_ACQ_REL: u64 = 223;
const KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP: u64 = 225;
const KVM_CAP_EXCEPTION_PAYLOAD: u64 = 164;

/// Why KVM can't be used. [`hint`](Self::hint) says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// The device does not exist.
    #[error("{} does not exist", .path.display())]
    Absent {
        /// Where it should be.
        path: PathBuf,
    },
    /// The device's node exists but no driver is behind it.
    #[error("{} has no driver", .path.display())]
    NoDriver {
        /// Where it is.
        path: PathBuf,
    },
    /// This user may not open it.
    #[error("no permission to open {}", .path.display())]
    Denied {
        /// Where it is.
        path: PathBuf,
    },
    /// It could not be opened for another reason.
    #[error("{} could not be opened", .path.display())]
    Open {
        /// Where it is.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// It is something else.
    #[error("{} is not a KVM device", .path.display())]
    NotKvm {
        /// Where it is.
        path: PathBuf,
    },
    /// It speaks another version of the API.
    #[error("{} has version {found} of the KVM API instead of {API_VERSION}", .path.display())]
    Version {
        /// Where it is.
        path: PathBuf,
        /// Its version.
        found: i32,
    },
    /// A virtual machine could not be made.
    #[error("{} can't make a virtual machine", .path.display())]
    CreateVm {
        /// Where the device is.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The kernel refused a call.
    #[error("{ioctl} failed")]
    Ioctl {
        /// The call's name in the kernel's API.
        ioctl: &'static str,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
}

impl HostError {
    /// What to do about it, in a sentence without a final stop.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Absent { path } if path != Path::new(KVM_PATH) => "give the path of the KVM device, usually /dev/kvm",
            Self::Absent { .. } | Self::NoDriver { .. } => {
                "enable virtualization in the firmware (or nested virtualization in the outer hypervisor), and load kvm_intel or kvm_amd"
            }
            Self::Denied { .. } => "become a member of the group that owns the device (usually kvm), or run as root",
            Self::Open { .. } | Self::NotKvm { .. } => "give the path of the KVM device, usually /dev/kvm",
            Self::Version { .. } => "use a kernel whose KVM has version 12 of the API, as all since 2.6.22 have",
            Self::CreateVm { .. } => "see whether another hypervisor uses the processor, and what the kernel's log says",
            Self::Ioctl { .. } => "see what the kernel's log says",
        }
    }
}

/// Which implementation of KVM this is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Flavour {
    /// Without hardware support, by shadow paging: guest code at CPL 3 is fast, code at CPL 0 is
    /// interpreted.
    Pvm,
    /// Intel's VT-x.
    Vmx,
    /// AMD's SVM.
    Svm,
    /// None of the modules that are known is loaded; KVM may be built into the kernel.
    Unknown,
}

/// The dirty ring as this kernel has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[non_exhaustive]
pub struct RingSupport {
    /// Whether `KVM_CAP_DIRTY_LOG_RING_ACQ_REL` is to be enabled (6.1 and later) rather than
    /// `KVM_CAP_DIRTY_LOG_RING`.
    pub acquire_release: bool,
    /// The largest ring, in entries.
    pub entries_max: u32,
    /// Whether a bitmap can be had beside the ring. x86 needs none.
    pub with_bitmap: bool,
}

impl RingSupport {
    /// How many entries a ring of `entries` takes before the vCPU leaves the guest, or `None` where
    /// such a ring can't be had. `reserve` is how many the kernel keeps free:
    /// [`ring_reserve`](super::probe::ring_reserve) finds out.
    #[must_use]
    pub const fn soft_limit(&self, entries: u32, reserve: u32) -> Option<u32> {
        let bytes = entries.saturating_mul(RING_ENTRY_BYTES);
        if entries.is_power_of_two() && bytes >= 4096 && entries <= self.entries_max && entries > reserve {
            Some(entries - reserve)
        } else {
            None
        }
    }
}

/// The dirty bitmap as this kernel has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[non_exhaustive]
pub struct BitmapSupport {
    /// `KVM_CLEAR_DIRTY_LOG` can protect pages in parts, after they were reported.
    pub manual_protect: bool,
    /// The bitmap can begin with all pages dirty.
    pub initially_set: bool,
}

/// Which registers can be had through the shared page without a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[non_exhaustive]
pub struct SyncRegs {
    /// General registers.
    pub regs: bool,
    /// Special registers.
    pub sregs: bool,
    /// Events.
    pub events: bool,
}

/// userfaultfd, which restoring on demand needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[non_exhaustive]
pub struct Userfault {
    /// `/dev/userfaultfd` is there and this user may open it.
    pub device: bool,
    /// The system call works for users without privileges, kernel faults (KVM's own accesses)
    /// included.
    pub unprivileged: bool,
    /// This process can serve KVM's faults, by the device or by the system call: restoring on
    /// demand works.
    pub serves_kvm: bool,
    /// This process can serve faults in user mode, which is not enough.
    pub serves_user_mode: bool,
}

/// What this machine's KVM can do. More is added as the library learns to ask for it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[non_exhaustive]
pub struct Host {
    /// The device that was asked.
    pub device: PathBuf,
    /// The kernel's release, for example `6.12.0-amd64`.
    pub kernel: String,
    /// Which implementation of KVM.
    pub flavour: Flavour,
    /// The dirty ring, where there is one (5.11 and later).
    pub ring: Option<RingSupport>,
    /// Whether this kernel's release says that `KVM_RESET_DIRTY_RINGS` returns early when a signal
    /// is pending (6.17 and later); `None` where the release can't be read. Older kernels may have
    /// got the change too.
    pub reset_stops_on_signal: Option<bool>,
    /// The dirty bitmap.
    pub bitmap: BitmapSupport,
    /// Bytes of extended state (XSAVE) of a vCPU.
    pub xsave_bytes: u32,
    /// Whether the kernel has `KVM_GET_XSAVE2` (5.17 and later).
    pub xsave2: bool,
    /// Registers in the shared page.
    pub sync_regs: SyncRegs,
    /// The number of vCPUs in a VM that the kernel recommends at most.
    pub vcpus_recommended: usize,
    /// The number of vCPUs in a VM that the kernel allows.
    pub vcpus_max: usize,
    /// The number of memory slots in a VM that the kernel allows.
    pub memslots_max: usize,
    /// The number of model-specific registers that the kernel lists as state.
    pub msrs: usize,
    /// The number of model-specific registers that describe features.
    pub msr_features: usize,
    /// Guests can run guests.
    pub nested: bool,
    /// `KVM_RUN` can be told to return at once, which completing an exit without running the guest
    /// needs.
    pub immediate_exit: bool,
    /// A guest can be told that it was paused.
    pub kvmclock_ctrl: bool,
    /// The frequency of a vCPU's time stamp counter can be set.
    pub tsc_control: bool,
    /// Pending exceptions can be had with their payload.
    pub exception_payload: bool,
    /// userfaultfd.
    pub userfault: Userfault,
}

impl Host {
    /// Asks the device at `kvm_path`, usually [`KVM_PATH`]. Makes a VM and drops it again.
    ///
    /// # Errors
    /// One of [`HostError`]'s kinds for each way in which KVM can be missing.
    pub fn probe(kvm_path: &Path) -> Result<Self, HostError> {
        let kvm = open(kvm_path)?;
        let vm = kvm.create_vm().map_err(|error| HostError::CreateVm { path: kvm_path.to_owned(), source: error.into() })?;
        let ioctl = |ioctl| move |error: kvm_ioctls::Error| HostError::Ioctl { ioctl, source: error.into() };
        let flavour = flavour(Path::new("/sys/module"));
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
        let has = |capability| vm.check_extension_raw(capability) > 0;
        let manual = vm.check_extension_raw(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);
        let xsave2 = u32::try_from(vm.check_extension_int(Cap::Xsave2)).unwrap_or(0);
        let sync = vm.check_extension_int(Cap::SyncRegs);
        let bytes = |capability| u32::try_from(vm.check_extension_raw(capability)).unwrap_or(0);
        let (plain, acquire_release) = (bytes(KVM_CAP_DIRTY_LOG_RING), bytes(KVM_CAP_DIRTY_LOG_RING_ACQ_REL));
        let ring = (plain.max(acquire_release) > 0).then(|| RingSupport {
            acquire_release: acquire_release > 0,
            entries_max: (if acquire_release > 0 { acquire_release } else { plain }) / RING_ENTRY_BYTES,
            with_bitmap: has(KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP),
        });
        Ok(Self {
            device: kvm_path.to_owned(),
            reset_stops_on_signal: release(&kernel).map(|release| release >= (6, 17)),
            kernel,
            flavour,
            ring,
            bitmap: BitmapSupport { manual_protect: manual & 1 != 0, initially_set: manual & 2 != 0 },
            xsave_bytes: xsave2.max(4096),
            xsave2: xsave2 > 0,
            sync_regs: SyncRegs { regs: sync & 1 != 0, sregs: sync & 2 != 0, events: sync & 4 != 0 },
            vcpus_recommended: kvm.get_nr_vcpus(),
            vcpus_max: kvm.get_max_vcpus(),
            memslots_max: kvm.get_nr_memslots(),
            msrs: kvm.get_msr_index_list().map_err(ioctl("KVM_GET_MSR_INDEX_LIST"))?.as_slice().len(),
            // Kernels before 4.17 have no such list.
            msr_features: kvm.get_msr_feature_index_list().map_or(0, |list| list.as_slice().len()),
            nested: vm.check_extension(Cap::NestedState),
            immediate_exit: vm.check_extension(Cap::ImmediateExit),
            kvmclock_ctrl: vm.check_extension(Cap::KvmclockCtrl),
            tsc_control: vm.check_extension(Cap::TscControl),
            exception_payload: has(KVM_CAP_EXCEPTION_PAYLOAD),
            userfault: Userfault {
                device: fs::File::options().read(true).write(true).open(uffd::DEVICE).is_ok(),
                unprivileged: fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").is_ok_and(|value| value.trim() == "1"),
                serves_kvm: uffd::Userfaultfd::open().is_ok(),
                serves_user_mode: uffd::serves_user_mode(),
            },
        })
    }
}

/// Whether VMs of this kernel can have dirty rings.
pub(super) fn has_ring(vm: &VmFd) -> bool {
    [KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL].into_iter().any(|capability| vm.check_extension_raw(capability) > 0)
}

/// Opens the KVM device at `path` and checks that it is one.
///
/// # Errors
/// As [`Host::probe`].
pub fn open(path: &Path) -> Result<Kvm, HostError> {
    let owned = || path.to_owned();
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| HostError::Absent { path: owned() })?;
    // Only a character device is opened: opening anything else can have effects of its own, or
    // wait.
    match fs::metadata(path) {
        Ok(metadata) if !metadata.file_type().is_char_device() => return Err(HostError::NotKvm { path: owned() }),
        Ok(_) => {}
        Err(source) => return Err(cannot_open(path, source)),
    }
    let kvm = Kvm::new_with_path(&name).map_err(|error| cannot_open(path, error.into()))?;
    match kvm.get_api_version() {
        API_VERSION => Ok(kvm),
        found if found < 0 => Err(HostError::NotKvm { path: owned() }),
        found => Err(HostError::Version { path: owned(), found }),
    }
}

fn cannot_open(path: &Path, source: std::io::Error) -> HostError {
    let path = path.to_owned();
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => HostError::Absent { path },
        Some(libc::ENXIO | libc::ENODEV) => HostError::NoDriver { path },
        Some(libc::EACCES | libc::EPERM) => HostError::Denied { path },
        _ => HostError::Open { path, source },
    }
}

/// Which module of `modules` (`/sys/module`) drives KVM.
fn flavour(modules: &Path) -> Flavour {
    let loaded = |name: &str| modules.join(name).is_dir();
    if loaded("kvm_pvm") {
        Flavour::Pvm
    } else if loaded("kvm_intel") {
        Flavour::Vmx
    } else if loaded("kvm_amd") {
        Flavour::Svm
    } else {
        Flavour::Unknown
    }
}

/// The first two numbers of a kernel's release.
fn release(kernel: &str) -> Option<(u32, u32)> {
    let mut numbers = kernel.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::io::Write as _;

    use super::*;

    #[test]
    fn what_is_not_kvm_is_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("kvm");
        assert!(matches!(Host::probe(&file), Err(HostError::Absent { .. })));
        assert!(matches!(Host::probe(Path::new("/dev/k\0vm")), Err(HostError::Absent { .. })));
        fs::write(&file, "").unwrap();
        assert!(matches!(Host::probe(&file), Err(HostError::NotKvm { .. })));
        assert!(matches!(Host::probe(&file.join("under")), Err(HostError::Absent { .. })));
        assert!(matches!(Host::probe(directory.path()), Err(HostError::NotKvm { .. })));
        assert!(matches!(Host::probe(Path::new("/dev/null")), Err(HostError::NotKvm { .. })));
        let path = Path::new("/dev/kvm");
        for (errno, text) in [
            (libc::ENOENT, "/dev/kvm does not exist"),
            (libc::EACCES, "no permission to open /dev/kvm"),
            (libc::EPERM, "no permission to open /dev/kvm"),
            (libc::ENXIO, "/dev/kvm has no driver"),
            (libc::ENODEV, "/dev/kvm has no driver"),
            (libc::EMFILE, "/dev/kvm could not be opened"),
        ] {
            let error = cannot_open(path, std::io::Error::from_raw_os_error(errno));
            assert_eq!(error.to_string(), text);
            assert!(!error.hint().is_empty());
        }
    }

    #[test]
    fn modules_say_the_flavour() {
        let modules = tempfile::tempdir().unwrap();
        let root = modules.path();
        assert_eq!(flavour(root), Flavour::Unknown);
        fs::create_dir_all(root.join("kvm_amd")).unwrap();
        assert_eq!(flavour(root), Flavour::Svm);
        fs::create_dir_all(root.join("kvm_intel")).unwrap();
        assert_eq!(flavour(root), Flavour::Vmx);
        fs::create_dir_all(root.join("kvm_pvm")).unwrap();
        assert_eq!(flavour(root), Flavour::Pvm);
    }

    #[test]
    fn soft_limits_are_those_of_the_kernel() {
        let ring = RingSupport { acquire_release: true, entries_max: 65_536, with_bitmap: false };
        let soft = |entries| ring.soft_limit(entries, 64);
        assert_eq!([256, 512, 1024, 4096].map(soft), [Some(192), Some(448), Some(960), Some(4032)]);
        assert_eq!([0, 128, 300, 131_072, 1 << 31].map(soft), [None; 5]);
        assert_eq!([256, 512, 1024].map(|entries| ring.soft_limit(entries, 576)), [None, None, Some(448)]);
    }

    #[test]
    fn releases_are_read() {
        assert_eq!(release("6.18.44-fc"), Some((6, 18)));
        assert_eq!(release("6.1.0-37-cloud-amd64"), Some((6, 1)));
        assert_eq!(release("7.0-rc1"), Some((7, 0)));
        assert_eq!([release(""), release("six"), release("6")], [None; 3]);
    }

    #[test]
    fn this_host_is_probed_natively() {
        let host = match Host::probe(Path::new(KVM_PATH)) {
            Ok(host) => host,
            Err(error) => {
                assert!(std::env::var_os("SLACKWATER_REQUIRE_KVM").is_none(), "{error}");
                // Not eprintln!, which the harness hides.
                let _ = writeln!(std::io::stderr(), "SKIP this_host_is_probed_natively: no /dev/kvm ({error})");
                return;
            }
        };
        println!("{}", serde_json::to_string_pretty(&host).unwrap());
        assert!(host.vcpus_max >= host.vcpus_recommended && host.vcpus_recommended > 0);
        assert!(host.memslots_max > 1 && host.msrs > 0 && host.xsave_bytes >= 4096 && host.immediate_exit);
        if let Some(ring) = host.ring {
            assert!(ring.entries_max.is_power_of_two() && ring.soft_limit(ring.entries_max, 576).is_some());
        }
    }
}
