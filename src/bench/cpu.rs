//! Processor time of this process's threads.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// Whose time it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Group {
    Vcpus,
    Encode,
    Write,
    Other,
}

/// The time that each thread has used, by its number.
#[derive(Clone, Debug, Default)]
pub(super) struct Usage(BTreeMap<u64, (Group, Duration)>);

impl Usage {
    /// Of the threads that there are now. Where the kernel does not say, nothing.
    pub(super) fn now() -> Self {
        let Ok(tasks) = fs::read_dir("/proc/self/task") else { return Self::default() };
        Self(tasks.filter_map(|task| task.ok().and_then(|task| read(&task.path()))).collect())
    }

    /// The time since `before`, by group.
    pub(super) fn since(&self, before: &Self) -> BTreeMap<Group, Duration> {
        let mut times = BTreeMap::new();
        for (thread, (group, time)) in &self.0 {
            let earlier = before.0.get(thread).map_or(Duration::ZERO, |(_, time)| *time);
            *times.entry(*group).or_default() += time.saturating_sub(earlier);
        }
        times
    }
}

fn read(task: &Path) -> Option<(u64, (Group, Duration))> {
    let thread = task.file_name()?.to_str()?.parse().ok()?;
    let name = fs::read_to_string(task.join("comm")).ok()?;
    let schedstat = fs::read_to_string(task.join("schedstat")).ok()?;
    Some((thread, (group(name.trim()), Duration::from_nanos(schedstat.split(' ').next()?.parse().ok()?))))
}

/// By the thread's name, of which the kernel keeps 15 letters.
fn group(name: &str) -> Group {
    match name {
        _ if name.starts_with("vcpu-") => Group::Vcpus,
        "slackwater-enco" => Group::Encode,
        "slackwater-writ" => Group::Write,
        _ => Group::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_apart_by_thread() {
        for (name, wanted) in [("vcpu-0", Group::Vcpus), ("slackwater-enco", Group::Encode), ("slackwater", Group::Other)] {
            assert_eq!(group(name), wanted);
        }
        let at = |ms| (Group::Encode, Duration::from_millis(ms));
        let before = Usage(BTreeMap::from([(1, at(5)), (2, at(7))]));
        let after = Usage(BTreeMap::from([(1, at(8)), (3, at(4)), (4, (Group::Write, Duration::ZERO))]));
        let expected = BTreeMap::from([(Group::Encode, Duration::from_millis(7)), (Group::Write, Duration::ZERO)]);
        assert_eq!(after.since(&before), expected);
    }
}
