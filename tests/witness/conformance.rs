//! What every witness has to do.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use slackwater::replica::register::{Generation, Holder, Incarnation, Nonce, Register};
use slackwater::replica::witness::{Swapped, Witness, WitnessError};

/// How long a call may take where everything works. Only what hangs takes it.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// How long a test tries before it gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(240);

const THREADS: usize = 8;
const RACES: usize = 50;

/// Opens one more handle to the same register.
pub(crate) type Open<'o> = &'o (dyn Fn() -> Box<dyn Witness> + Sync);

/// A value that was never there, behind `before`.
pub(crate) fn after(before: Option<&Register>) -> Register {
    static DRAWN: AtomicU64 = AtomicU64::new(1);
    let drawn = u128::from(DRAWN.fetch_add(1, Ordering::Relaxed));
    let generation = before.map_or(Generation::NONE, |register| register.generation).next().unwrap();
    let (one, other) = (Incarnation(drawn), Incarnation(u128::MAX - drawn));
    let holder = if drawn.is_multiple_of(2) { Holder::Solo(one) } else { Holder::Paired(one, other) };
    Register { generation, holder, nonce: Nonce(drawn << 64 | 7) }
}

/// All of it, on a register that nobody has written.
pub(crate) fn conforms(open: Open<'_>) {
    let last = one_after_the_other(open);
    let last = race(open, last, RACES, &|_| {});
    assert_eq!(open().read().unwrap(), Some(last));
}

fn one_after_the_other(open: Open<'_>) -> Register {
    let (mut one, mut other) = (open(), open());
    let first = after(None);
    let second = after(Some(&first));
    assert_eq!(one.read().unwrap(), None);
    assert_eq!(one.swap(Some(&first), &second).unwrap(), Swapped::Other(None), "nobody has written it");

    assert_eq!(one.swap(None, &first).unwrap(), Swapped::Won);
    assert_eq!((one.read().unwrap(), other.read().unwrap()), (Some(first), Some(first)));
    assert_eq!(one.swap(None, &first).unwrap(), Swapped::Won, "repeated");
    assert_eq!(other.swap(None, &after(None)).unwrap(), Swapped::Other(Some(first)), "lost");

    assert_eq!(other.swap(Some(&first), &second).unwrap(), Swapped::Won);
    assert_eq!(one.read().unwrap(), Some(second));
    assert_eq!(open().swap(Some(&first), &second).unwrap(), Swapped::Won, "repeated by somebody who knows it");
    assert_eq!(one.swap(Some(&first), &after(Some(&first))).unwrap(), Swapped::Other(Some(second)), "lost");

    let third = after(Some(&second));
    assert_eq!(one.swap(Some(&second), &third).unwrap(), Swapped::Won);
    assert_eq!(other.swap(Some(&first), &second).unwrap(), Swapped::Other(Some(third)), "repeated, superseded");
    assert_eq!(other.swap(None, &first).unwrap(), Swapped::Other(Some(third)), "repeated, long superseded");

    let like_third = Register { nonce: after(None).nonce, ..third };
    let fourth = after(Some(&third));
    assert_eq!(one.swap(Some(&like_third), &fourth).unwrap(), Swapped::Other(Some(third)), "wrong expectation");
    assert_eq!(one.swap(Some(&second), &after(Some(&second))).unwrap(), Swapped::Other(Some(third)));
    for skipped in [after(Some(&fourth)), Register { nonce: fourth.nonce, ..third }] {
        let refused = one.swap(Some(&third), &skipped);
        assert!(matches!(refused, Err(WitnessError::Refused(_))), "{refused:?}");
    }
    assert_eq!(other.read().unwrap(), Some(third));
    third
}

/// All threads swap from the same value to one of their own, and exactly one wins; so many times,
/// each time from what won. Beside each, `disturb` is called.
pub(crate) fn race(open: Open<'_>, from: Register, races: usize, disturb: &dyn Fn(usize)) -> Register {
    let mut handles: Vec<_> = (0..THREADS).map(|_| open()).collect();
    let mut current = from;
    for round in 0..races {
        let (barrier, expected) = (&Barrier::new(THREADS), &current);
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = handles
                .iter_mut()
                .map(|witness| {
                    scope.spawn(move || {
                        let new = after(Some(expected));
                        barrier.wait();
                        (new, settled(witness.as_mut(), expected, &new))
                    })
                })
                .collect();
            disturb(round);
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        current = winner(&outcomes, round);
    }
    current
}

/// The one that won; all others were told so.
fn winner(outcomes: &[(Register, Swapped)], round: usize) -> Register {
    assert_eq!(outcomes.len(), THREADS);
    let won: Vec<_> = outcomes.iter().filter(|(_, swapped)| *swapped == Swapped::Won).map(|(new, _)| *new).collect();
    assert_eq!(won.len(), 1, "race {round}: {outcomes:?}");
    let told = outcomes.iter().filter(|(_, swapped)| *swapped == Swapped::Other(Some(won[0]))).count();
    assert_eq!(told, THREADS - 1, "race {round}: {outcomes:?}");
    won[0]
}

/// Repeats a swap until it is known what it came to.
pub(crate) fn settled(witness: &mut dyn Witness, expected: &Register, new: &Register) -> Swapped {
    let began = Instant::now();
    loop {
        match witness.swap(Some(expected), new) {
            Ok(swapped) => {
                assert_ne!(swapped, Swapped::Other(Some(*expected)), "that says nothing");
                return swapped;
            }
            Err(error) => assert!(began.elapsed() < PATIENCE, "{error}: {:?}", std::error::Error::source(&error)),
        }
    }
}

/// What an error and its causes say.
pub(crate) fn text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// What the witness says, where it has to be [`WitnessError::Unknown`].
pub(crate) fn unknown<T: std::fmt::Debug>(answer: Result<T, WitnessError>) -> String {
    match answer {
        Err(error @ WitnessError::Unknown(_)) => text(&error),
        other => panic!("not unknown: {other:?}"),
    }
}

/// What the witness says, where it has to be [`WitnessError::Refused`].
pub(crate) fn refused<T: std::fmt::Debug>(answer: Result<T, WitnessError>) -> String {
    match answer {
        Err(error @ WitnessError::Refused(_)) => text(&error),
        other => panic!("not refused: {other:?}"),
    }
}
