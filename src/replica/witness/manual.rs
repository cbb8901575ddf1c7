//! No witness but a person: nothing takes over by itself.
//!
//! Each host keeps a register of its own beside its store. That of the primary decides as long as
//! the primary lives. A standby asks nobody, and has the machine when a person says so, who vouches
//! that it runs nowhere else. If it does, there are two of it from then on: nothing here can find
//! that out.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::fault::WitnessFault;
use super::file::FileWitness;
use super::{Swapped, Witness, WitnessError};
use crate::replica::register::{Generation, Register};

/// Whether this host may decide by itself. It is never taken back.
#[derive(Clone, Debug, Default)]
pub struct Permission(Arc<AtomicBool>);

impl Permission {
    /// One that is given from the beginning.
    #[must_use]
    pub fn given() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }

    /// It may.
    pub fn give(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn is_given(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// See the module.
#[derive(Debug)]
pub struct ManualWitness {
    register: FileWitness,
    permission: Permission,
}

impl ManualWitness {
    /// The register beside `store`, named `STORE.register.N`.
    ///
    /// # Errors
    /// As [`FileWitness::open`].
    pub fn open(store: &Path, permission: Permission, limit: Duration) -> Result<Self, WitnessFault> {
        let absolute =
            std::path::absolute(store).map_err(|source| WitnessFault::Io { action: "name", path: store.to_owned(), source })?;
        let name = absolute.file_name().map(|name| format!("{}.register", name.to_string_lossy())).unwrap_or_default();
        let dir = absolute.parent().unwrap_or(&absolute);
        Ok(Self { register: FileWitness::open(dir, &name, limit)?, permission })
    }

    fn check(&self) -> Result<(), WitnessError> {
        if self.permission.is_given() { Ok(()) } else { Err(WitnessFault::NotPromoted.refused()) }
    }
}

impl Witness for ManualWitness {
    fn read(&mut self) -> Result<Option<Register>, WitnessError> {
        self.check()?;
        self.register.read()
    }

    fn swap(&mut self, expected: Option<&Register>, new: &Register) -> Result<Swapped, WitnessError> {
        self.check()?;
        let generation = |register: Option<&Register>| register.map_or(Generation::NONE, |register| register.generation);
        let own = self.register.read()?;
        if generation(own.as_ref()) < generation(expected) {
            // It was the other host's until now.
            return self.register.follow(own, new);
        }
        self.register.swap(expected, new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::register::{Holder, Incarnation, Nonce};

    #[test]
    fn a_standby_has_the_machine_when_a_person_says_so_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let register = |generation, nonce| Register {
            generation: Generation(generation),
            holder: Holder::Solo(Incarnation(nonce)),
            nonce: Nonce(nonce),
        };
        let permission = Permission::default();
        let mut witness = ManualWitness::open(&dir.path().join("store"), permission.clone(), Duration::from_secs(10)).unwrap();
        let (theirs, ours) = (register(7, 1), register(8, 2));
        assert!(matches!(witness.swap(Some(&theirs), &ours), Err(WitnessError::Refused(_))));
        assert!(matches!(witness.read(), Err(WitnessError::Refused(_))));
        permission.give();
        assert_eq!(witness.read().unwrap(), None);
        assert_eq!(witness.swap(Some(&theirs), &ours).unwrap(), Swapped::Won);
        assert_eq!(witness.swap(Some(&theirs), &ours).unwrap(), Swapped::Won, "the same one again");
        assert_eq!(witness.read().unwrap(), Some(ours));
        // From now on it is as any other.
        let (next, other) = (register(9, 3), register(9, 4));
        assert_eq!(witness.swap(Some(&ours), &next).unwrap(), Swapped::Won);
        assert_eq!(witness.swap(Some(&ours), &other).unwrap(), Swapped::Other(Some(next)));
    }
}
