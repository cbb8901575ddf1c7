//! Random numbers of the built-in guests: a Weyl sequence, mixed as splitmix64 does.

pub(super) const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
pub(super) const MIX_FIRST: u64 = 0xbf58_476d_1ce4_e5b9;
pub(super) const MIX_SECOND: u64 = 0x94d0_49bb_1331_11eb;

/// A random number and the next state. The same sequence as the programs'.
pub(super) const fn random(state: u64) -> (u64, u64) {
    let state = state.wrapping_add(GAMMA);
    let value = (state ^ (state >> 32)).wrapping_mul(MIX_FIRST);
    let value = (value ^ (value >> 29)).wrapping_mul(MIX_SECOND);
    (value ^ (value >> 32), state)
}
