//! What `GET /metrics` says: the text format of Prometheus.

use std::fmt::Write;

use super::status::Status;

/// Every role that there is.
const ROLES: [&str; 14] = [
    "unpaired",
    "waiting",
    "opening",
    "solo",
    "seeding",
    "paired",
    "suspect",
    "handing",
    "fenced",
    "joining",
    "hot",
    "promoting",
    "promoted",
    "stale",
];

/// One page.
pub(super) fn page(status: &Status) -> String {
    let mut page = Page(String::new());
    let seconds = |us: f64| us / 1e6;
    page.begin("role", "gauge", "What the machine is in its pair: 1 for one of the roles.");
    for role in ROLES {
        page.sample("role", &format!("{{role=\"{role}\"}}"), u64::from(role == status.role));
    }
    page.one("generation", "gauge", "The generation of the witness, as far as it is known.", status.generation.0);
    for (name, help, epoch) in [
        ("complete_epoch", "The newest epoch that is complete.", status.complete_epoch),
        ("durable_epoch", "The newest epoch that is durable in the chain.", status.durable_epoch),
        ("acknowledged_epoch", "The newest epoch that the standby holds.", status.acknowledged_epoch),
        ("released_epoch", "The newest epoch whose outputs may leave.", status.released_epoch),
    ] {
        page.one(name, "gauge", help, epoch.0);
    }
    page.one("epochs_total", "counter", "Epochs in the chain, of this process.", status.epochs);
    page.one("written_bytes_total", "counter", "Bytes in the chain, of this process.", status.bytes_written);
    page.one("realtime", "gauge", "Whether heartbeats have SCHED_FIFO.", u64::from(status.realtime));
    if let Some(lag) = status.lag_epochs {
        page.one("lag_epochs", "gauge", "Epochs that the standby does not hold yet.", lag);
    }
    for (name, help, us) in [
        ("lag_seconds", "From an epoch's end until the standby holds it, the median of the last ones.", status.lag_us),
        ("silence_seconds", "Since the other end was heard.", status.silence_us),
        ("witness_seconds", "How long the witness took to answer.", status.witness_us),
    ] {
        if let Some(us) = us {
            page.one(name, "gauge", help, std::time::Duration::from_micros(us).as_secs_f64());
        }
    }
    page.begin("pause_seconds", "gauge", "How long the guest stood still for an epoch.");
    let pause = status.pause_us;
    for (quantile, us) in [("0.5", pause.p50), ("0.99", pause.p99), ("1", pause.max)] {
        page.sample("pause_seconds", &format!("{{quantile=\"{quantile}\"}}"), seconds(us));
    }
    if let Some(guest) = status.guest {
        page.one("guest_passes_total", "counter", "What a built-in guest counts.", guest.passes);
        page.one("guest_ok", "gauge", "Whether a guest that checks itself found nothing wrong.", u64::from(guest.ok));
    }
    page.0
}

struct Page(String);

impl Page {
    fn begin(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string can't fail.
        let _ = writeln!(self.0, "# HELP slackwater_{name} {help}\n# TYPE slackwater_{name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        let _ = writeln!(self.0, "slackwater_{name}{labels} {value}");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: impl std::fmt::Display) {
        self.begin(name, kind, help);
        self.sample(name, "", value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::control::status::Guest;
    use crate::epoch::Distribution;
    use crate::page::EpochId;
    use crate::replica::register::Generation;

    #[test]
    fn a_page_has_a_type_for_each_name_and_one_role() {
        let status = Status {
            role: "paired".to_owned(),
            generation: Generation(7),
            complete_epoch: EpochId(12),
            lag_epochs: Some(2),
            lag_us: Some(1500),
            pause_us: Distribution { p50: 100.0, p99: 250.5, max: 1000.0 },
            guest: Some(Guest { passes: 3, ok: true }),
            ..Status::alone()
        };
        let page = page(&status);
        for line in [
            "slackwater_role{role=\"paired\"} 1",
            "slackwater_role{role=\"solo\"} 0",
            "slackwater_generation 7",
            "slackwater_complete_epoch 12",
            "slackwater_lag_epochs 2",
            "slackwater_lag_seconds 0.0015",
            "slackwater_pause_seconds{quantile=\"0.99\"} 0.0002505",
            "slackwater_guest_ok 1",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} in\n{page}");
        }
        let names = page.lines().filter(|line| !line.starts_with('#')).map(|line| {
            let name = line.split([' ', '{']).next().unwrap();
            assert!(page.contains(&format!("# TYPE {name} ")), "{name}");
            name
        });
        assert!(names.count() > ROLES.len());
        assert_eq!(page.matches("} 1\n").count(), 1, "one role:\n{page}");
    }
}
