//! A register in memory: what the test itself has to agree with.

use std::sync::{Arc, Mutex};

use slackwater::replica::register::Register;
use slackwater::replica::witness::{Swapped, Witness, WitnessError};

use super::conformance::conforms;

#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Option<Register>>>);

impl Witness for Memory {
    fn read(&mut self) -> Result<Option<Register>, WitnessError> {
        Ok(*self.0.lock().unwrap())
    }

    fn swap(&mut self, expected: Option<&Register>, new: &Register) -> Result<Swapped, WitnessError> {
        let mut register = self.0.lock().unwrap();
        let before = expected.map_or(0, |expected| expected.generation.0);
        if new.generation.0 != before + 1 {
            return Err(WitnessError::Refused("not the next generation".into()));
        }
        if register.as_ref() == expected {
            *register = Some(*new);
        }
        Ok(if *register == Some(*new) { Swapped::Won } else { Swapped::Other(*register) })
    }
}

#[test]
fn it_conforms() {
    let memory = Memory::default();
    conforms(&|| Box::new(memory.clone()));
}
