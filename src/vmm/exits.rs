//! What an entry and its exit cost, without anything that this VMM does about them.

use std::time::{Duration, Instant};

use kvm_ioctls::VcpuExit;

use super::error::{VmmError, kvm};
use super::vm::Vm;

/// Runs the first vCPU of `vm` to its next port access, `rounds` times, and returns how long each
/// `KVM_RUN` took. With a guest that does nothing but access a port, that is the least that an exit
/// costs. The machine was loaded and has one vCPU.
///
/// # Errors
/// [`VmmError::Kvm`], and [`VmmError::Exit`] for any exit but to a port.
pub fn exit_times(vm: &mut Vm, rounds: usize) -> Result<Vec<Duration>, VmmError> {
    let mut times = Vec::with_capacity(rounds);
    let Some(vcpu) = vm.vcpus.first_mut() else { return Ok(times) };
    while times.len() < rounds {
        let start = Instant::now();
        match vcpu.run() {
            Ok(VcpuExit::IoOut(..) | VcpuExit::IoIn(..)) => times.push(start.elapsed()),
            Ok(exit) => return Err(VmmError::Exit { vcpu: 0, exit: format!("{exit:?}") }),
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) => return Err(kvm("KVM_RUN")(error)),
        }
    }
    Ok(times)
}
