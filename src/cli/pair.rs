//! The options of a machine that has a standby, and the threads that keep one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};

use super::control::Control;
use super::error::CliError;
use super::stderr;
use super::units::time_above_zero;
use crate::clock::whole_us;
use crate::format::{Description, Head};
use crate::replica::draw;
use crate::replica::node::Node;
use crate::replica::proto::{EpochKey, Halted, Opening, Primary, PrimaryOptions, Record, Timing, WhenLost, WhyNot, may_open};
use crate::replica::record_file::{read_record, write_record};
use crate::replica::register::{Incarnation, Register};
use crate::replica::seed::Seeds;
use crate::replica::seed::{Keeper, Wanted};
use crate::replica::wire::Tls;
use crate::replica::wire::hello::Followed;
use crate::replica::wishes::Wish;
use crate::replica::witness::manual::Permission;
use crate::replica::witness::{Witness, WitnessSpec};
use crate::vmm::{Handle, Running, Stop, VmmError};

/// A call to the witness ends within this time.
const WITNESS_LIMIT: Duration = Duration::from_millis(500);
/// How long a machine that ends waits for the witness to say that its standby is none.
const RETIRE_LIMIT: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, ValueEnum)]
enum AckName {
    /// When its memory has it.
    Memory,
    /// When its chain has it durable.
    Disk,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum WhenLostName {
    /// Go on alone, once the witness says so.
    Solo,
    /// Halt the guest. The standby may take over.
    Stop,
}

/// A standby.
#[derive(Clone, Debug, Args)]
pub(super) struct PairArgs {
    /// Where a standby listens (`slackwater standby`). It is connected to whenever there is none.
    #[arg(long, value_name = "HOST:PORT", requires = "witness", requires = "tls")]
    standby: Option<String>,
    /// What decides which machine goes on: `file:DIR/NAME`, `etcd:HOST:PORT,.../NAME`,
    /// `s3:BUCKET/KEY` or `exec:PROGRAM`; or `manual`: nothing takes over until `slackwater
    /// promote` says so.
    #[arg(long, value_name = "URL")]
    witness: Option<WitnessSpec>,
    /// A directory with `ca.pem`, `cert.pem` and `key.pem` (`slackwater tls-init` makes some).
    #[arg(long, value_name = "DIR")]
    tls: Option<PathBuf>,
    /// When the standby holds an epoch.
    #[arg(long, value_enum, default_value_t = AckName::Memory)]
    ack: AckName,
    /// What to do when the standby is lost.
    #[arg(long, value_enum, default_value_t = WhenLostName::Solo)]
    when_standby_lost: WhenLostName,
    /// Each end tells the other so often that it is there.
    #[arg(long, value_name = "TIME", default_value = "4ms", value_parser = time_above_zero)]
    heartbeat: Duration,
    /// The other end is taken for dead after this time without a word.
    #[arg(long, value_name = "TIME", default_value = "25ms", value_parser = time_above_zero)]
    timeout: Duration,
}

/// A machine that takes part in a pair.
pub(super) struct Paired {
    pub(super) node: Arc<Node>,
    /// Whether this host may decide, where there is no witness.
    pub(super) permission: Permission,
    tls: Option<Tls>,
    options: PairArgs,
}

/// What a machine of a pair has while it runs.
pub(super) struct Kept {
    node: Arc<Node>,
    keeper: Option<Arc<Keeper>>,
    wishes: JoinHandle<()>,
}

impl PairArgs {
    /// Whether a witness was given.
    pub(super) const fn is_given(&self) -> bool {
        self.witness.is_some()
    }

    fn witness(&self) -> Result<&WitnessSpec, CliError> {
        self.witness.as_ref().ok_or_else(|| CliError::Usage("`--witness` is needed here".to_owned()))
    }

    fn witness_text(&self) -> String {
        self.witness.as_ref().map(ToString::to_string).unwrap_or_default()
    }

    /// The certificates.
    pub(super) fn tls(&self) -> Result<Tls, CliError> {
        let dir = self.tls.as_ref().ok_or_else(|| CliError::Usage("`--tls` is needed here".to_owned()))?;
        Ok(Tls::load(dir)?)
    }

    /// A node that asks the witness, for a machine of `store` that runs here.
    pub(super) fn start(&self, store: &Path) -> Result<Paired, CliError> {
        self.start_after(store, Permission::given(), |_| Ok(())).map(|(paired, ())| paired)
    }

    /// The same, for one that runs elsewhere.
    pub(super) fn start_standby(&self, store: &Path) -> Result<Paired, CliError> {
        self.start_after(store, Permission::default(), |_| Ok(())).map(|(paired, ())| paired)
    }

    /// As [`start`](Self::start), and what the register says before.
    pub(super) fn start_reading(&self, store: &Path) -> Result<(Paired, Option<Register>), CliError> {
        self.start_after(store, Permission::given(), |witness| {
            witness.read().map_err(|source| CliError::NoAnswer { witness: self.witness_text(), source })
        })
    }

    fn start_after<T>(
        &self,
        store: &Path,
        permission: Permission,
        first: impl FnOnce(&mut dyn Witness) -> Result<T, CliError>,
    ) -> Result<(Paired, T), CliError> {
        if self.timeout < self.heartbeat * 2 {
            return Err(CliError::Usage("`--timeout` has to be twice `--heartbeat` or more".to_owned()));
        }
        // What is wrong with them is said before anything is made.
        let tls = if self.tls.is_some() { Some(self.tls()?) } else { None };
        let mut witness = self.witness()?.open(store, &permission, WITNESS_LIMIT)?;
        let done = first(witness.as_mut())?;
        let node = Node::start(witness).map_err(|source| CliError::System { step: "starting a thread", source })?;
        Ok((Paired { node, permission, tls, options: self.clone() }, done))
    }

    /// How this machine behaves as a primary.
    pub(super) fn primary_options(&self) -> PrimaryOptions {
        PrimaryOptions {
            timing: Timing::new(self.heartbeat, self.timeout),
            has_chain: true,
            waits_for_chain: false,
            when_lost: match self.when_standby_lost {
                WhenLostName::Solo => WhenLost::Solo,
                WhenLostName::Stop => WhenLost::Stop,
            },
        }
    }
}

impl Paired {
    /// Waits until the witness lets the new machine of `store` run.
    pub(super) fn open_new(&self, store: &Path, stop: &Stop) -> Result<(), CliError> {
        let me = Incarnation(draw::another());
        self.open(store, me, (None, Record::new(me)), None, stop)
    }

    /// Waits until the witness, whose register has said this, lets the machine of `store`, which
    /// ends at `head`, go on.
    pub(super) fn open_again(
        &self,
        store: &Path,
        register: Option<Register>,
        head: Head,
        accepts_loss: bool,
        stop: &Stop,
    ) -> Result<(), CliError> {
        let witness = self.options.witness_text();
        let record = read_record(store)?;
        let me = Incarnation(draw::another());
        let from = match (may_open(record.as_ref(), register), record) {
            (Opening::GoOn(register), record) => (register, record.map_or_else(|| Record::new(me), |record| record.reopened(me))),
            (Opening::No(WhyNot::Superseded(register) | WhyNot::MayLose(register)), record) if accepts_loss => {
                let record = record.unwrap_or_else(|| Record::new(me));
                (Some(register), record.with_loss_accepted(me, register))
            }
            (Opening::No(why), _) => return Err(CliError::NotRun { store: store.to_owned(), witness, why: Box::new(why) }),
        };
        self.open(store, me, from, Some(head.into()), stop)
    }

    fn open(
        &self,
        store: &Path,
        me: Incarnation,
        (register, record): (Option<Register>, Record),
        head: Option<EpochKey>,
        stop: &Stop,
    ) -> Result<(), CliError> {
        write_record(store, &record)?;
        let options = self.options.primary_options();
        self.node.become_primary(Some(store.to_owned()), |now| {
            Primary::open(me, options, (register, Some(record)), head, Box::new(draw::another), now)
        });
        let begun = Instant::now();
        let mut is_told = false;
        loop {
            match self.node.wait(Duration::from_millis(50)) {
                Some(Wish::Run) => return Ok(()),
                Some(Wish::Halt(why)) => {
                    return Err(CliError::NotOurs { witness: self.options.witness_text(), why: Box::new(why) });
                }
                _ if stop.is_asked() => {
                    return Err(CliError::Usage("ended before the witness answered".to_owned()));
                }
                _ => {}
            }
            if begun.elapsed() > Duration::from_secs(1) && !std::mem::replace(&mut is_told, true) {
                tracing::warn!("the guest waits for the witness");
            }
        }
    }

    /// Keeps a standby at the machine that runs, and does what the node wants.
    pub(super) fn keep(&self, running: &Running, description: Description, pages_most: u64) -> Result<Kept, CliError> {
        let thread = |source| CliError::System { step: "starting a thread", source };
        let handle = running.handle();
        let PairArgs { standby, heartbeat, timeout, ack, .. } = &self.options;
        let keeper = match self.tls.clone() {
            None => None,
            Some(tls) => {
                let followed = Followed {
                    description,
                    pages_most,
                    holds_on_disk: matches!(ack, AckName::Disk),
                    heartbeat_us: whole_us(*heartbeat),
                    timeout_us: whole_us(*timeout),
                };
                let wanted = Wanted { tls, followed };
                let engine = Arc::new(handle.clone());
                Some(Arc::new(Keeper::start(self.node.clone(), engine, wanted, standby.clone()).map_err(thread)?))
            }
        };
        let (node, of) = (self.node.clone(), keeper.clone());
        let does = move || wishes(&node, of.as_deref(), &handle);
        let wishes = std::thread::Builder::new().name("slackwater-wish".to_owned()).spawn(does).map_err(thread)?;
        Ok(Kept { node: self.node.clone(), keeper, wishes })
    }
}

impl Kept {
    /// The run is over. Where the guest was not halted, its standby is not to take its place. Ends
    /// the threads.
    pub(super) fn finish(self, running: &Running) {
        if !running.is_over() && !self.node.retire(RETIRE_LIMIT) {
            tracing::warn!("the witness did not answer: the standby may take over");
        }
        self.node.end();
        if self.wishes.join().is_err() {
            tracing::error!("the thread that does what the witness says panicked");
        }
        if let Some(keeper) = self.keeper.and_then(Arc::into_inner) {
            keeper.end();
        }
    }
}

/// Lets the guest run to its end. Meanwhile it can be asked and told at its control socket, if it
/// has one.
pub(super) fn supervise(running: &mut Running, control: Option<Control>, kept: Option<&Kept>) {
    if let Some(control) = &control {
        control.machine().runs(running.handle(), kept.and_then(|kept| kept.keeper.clone()));
    }
    running.supervise();
    // No request has the machine any more then.
    drop(control);
}

fn wishes(node: &Node, keeper: Option<&Keeper>, handle: &Handle) {
    let mut is_parked = false;
    while !node.is_over() {
        match node.wait(Duration::from_millis(100)) {
            Some(Wish::Halt(why @ Halted::HandedOver(_))) => {
                stderr::note(why);
                handle.end();
            }
            Some(Wish::Halt(why)) => handle.fail(VmmError::Fenced(Box::new(why))),
            Some(Wish::Drop(who)) => keeper.iter().for_each(|keeper| keeper.drop_standby(who)),
            Some(Wish::Park) => {
                if let Some(last) = handle.park() {
                    is_parked = true;
                    node.parked(last);
                }
            }
            Some(Wish::Run) if std::mem::take(&mut is_parked) => handle.unpark(),
            Some(Wish::Run) | None => {}
        }
    }
    if is_parked && !handle.is_over() {
        tracing::warn!("ended while it was given to the standby: the witness says who goes on");
        handle.end();
    }
}
