//! `slackwater advise`: budget and interval for a wanted pause or slowdown, from a store.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::error::CliError;
use super::output;
use super::units::{percent, time_above_zero};
use crate::bench::advise::{Advice, Seen, Sureness, Wanted, advise};
use crate::store::Chain;

/// Propose a budget and an interval, from the epochs that a store holds of your guest.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("wanted").required(true).args(["pause", "slowdown"])))]
pub(super) struct Advise {
    /// The directory of the store.
    #[arg(long, value_name = "DIR")]
    store: PathBuf,
    /// The longest pause that is wanted.
    #[arg(long, value_name = "TIME", value_parser = time_above_zero)]
    pause: Option<Duration>,
    /// The largest share of the guest's time that is wanted, as `5%`.
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    slowdown: Option<f64>,
    /// What the first write to a page in an epoch costs the guest, as `slackwater bench` measures
    /// it; it counts in a slowdown, and the store does not have it.
    #[arg(long, value_name = "TIME", value_parser = time_above_zero, conflicts_with = "pause")]
    fault: Option<Duration>,
    /// Print it as JSON.
    #[arg(long)]
    json: bool,
}

impl Advise {
    pub(super) fn run(self) -> Result<(), CliError> {
        let us = |time: Duration| time.as_secs_f64() * 1e6;
        let wanted = match (self.pause, self.slowdown) {
            (Some(pause), _) => Wanted::Pause(us(pause)),
            (None, Some(slowdown)) => Wanted::Slowdown(slowdown),
            (None, None) => return Err(CliError::Usage("`--pause` or `--slowdown`: one is needed".to_owned())),
        };
        let chain = Chain::open(&self.store)?;
        let commits: Vec<_> = chain.epochs().map(|epoch| epoch.map(|epoch| epoch.commit)).collect::<Result<_, _>>()?;
        if commits.is_empty() {
            // Says why there is none.
            chain.epoch(chain.newest())?;
        }
        let seen = Seen::of(&commits);
        let advice = advise(&seen, wanted, self.fault.map_or(0.0, us))?;
        if self.json { output::json(&advice) } else { self.print(&advice) }
    }

    fn print(&self, advice: &Advice) -> Result<(), CliError> {
        let Advice { epochs, pages_seen, run_us_seen, pause_base_us, kept_by, budget_pages, .. } = advice;
        let by_page = advice.pause_us_per_page.map_or_else(
            || "; what a page adds can't be told, for all epochs have about as many: taken to be in proportion".to_owned(),
            |us| format!(" and {us:.2} us a page"),
        );
        let interval = advice.interval_us.map_or_else(String::new, |us| format!(" --interval {us:.0}us"));
        output::line(format_args!("--budget {budget_pages}{interval}"))?;
        output::line(format_args!(
            "  to be expected  pauses of at most {:.0} us in {:.0} of 100 epochs; {:.2}% of the guest's time",
            advice.expected_pause_us,
            kept_by * 100.0,
            advice.expected_slowdown * 100.0
        ))?;
        output::line(format_args!(
            "  from            {epochs} epochs of {:.0} to {:.0} pages, in which the guest ran {:.0} to {:.0} us",
            pages_seen.0, pages_seen.1, run_us_seen.0, run_us_seen.1
        ))?;
        output::line(format_args!(
            "  a pause         {pause_base_us:.0} us{by_page}; pages grow with the run's length to the power of {:.2}",
            advice.pages_growth
        ))?;
        output::line(match advice.sureness {
            Sureness::Seen => "  sure            as far as the guest goes on as it did: such epochs were seen, and many",
            Sureness::SeenRarely => "  fairly sure     such epochs were seen, but few: a longer run would say more",
            Sureness::Beyond => "  a guess         no such epochs were seen: run with this, and ask again",
        })?;
        if self.slowdown.is_some() && self.fault.is_none() {
            output::line(
                "  not counted     what a page's first write in an epoch costs the guest, which a store does not have: `slackwater bench` measures it, `--fault` takes it",
            )?;
        }
        Ok(())
    }
}
