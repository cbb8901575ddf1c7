//! Saved CPU, VM and device state: its types, capture and apply, and their order as data.

mod record;

pub use record::StateRecord;
/// placeholder until merge
#[derive(Default, Debug, Clone)]
pub struct MachineState;
impl MachineState {
    /// x
    pub fn to_records(&self) -> Vec<StateRecord> {
        Vec::new()
    }
}
