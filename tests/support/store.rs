//! Stores that a [`Writer`] makes, with epochs whose times and content are known.

use slackwater::epoch::SinkError;
use slackwater::format::{BLOCK_PAGES, BlockEncoder, Commit, Compression, EpochWriter, Line, Phases, StateRecord, Trigger};
use slackwater::page::{EpochId, Gfn, PageBytes, PageRun};
use slackwater::store::{NewChain, Writer, WriterOptions};

use super::chain::text;

/// Each epoch has a segment of its own.
pub(crate) const SEGMENT_EACH: WriterOptions =
    WriterOptions { segment_bytes: 1, segment_mentions: 1 << 20, preallocate_bytes: 0, retention: None, background: false };

/// 64 pages, and no machine.
pub(crate) fn new_chain() -> NewChain {
    NewChain { memory: vec![PageRun { first: Gfn(0), count: 64 }], device_runs: 0, vcpus: 1, machine: serde_json::Value::Null }
}

/// Appends an epoch that was cut at `minute`, and makes it durable.
pub(crate) fn append(writer: &mut Writer, minute: u64, salt: u64) -> EpochId {
    let epoch = offer(writer, minute, salt).unwrap();
    writer.sync().unwrap();
    epoch
}

/// Offers an epoch that was cut at `minute`: new content in three of its pages, which differs with
/// `salt`.
pub(crate) fn offer(writer: &mut Writer, minute: u64, salt: u64) -> Result<EpochId, SinkError> {
    let epoch = writer.head().epoch.next();
    let gfns = [0, 1 + epoch.0 % 7, 10 + epoch.0 % 40];
    let pages = gfns.map(|gfn| (gfn, text(1000 * salt + 10 * epoch.0 + gfn)));
    let state = StateRecord { name: "test".to_owned(), index: 0, version: 1, data: epoch.0.to_le_bytes().to_vec() };
    offer_pages(writer, minute, &pages, &[state])
}

/// Appends an epoch with these pages, rising, and this state, and makes it durable.
pub(crate) fn append_pages(writer: &mut Writer, minute: u64, pages: &[(u64, Box<PageBytes>)], state: &[StateRecord]) -> EpochId {
    let epoch = offer_pages(writer, minute, pages, state).unwrap();
    writer.sync().unwrap();
    epoch
}

fn offer_pages(
    writer: &mut Writer,
    minute: u64,
    pages: &[(u64, Box<PageBytes>)],
    state: &[StateRecord],
) -> Result<EpochId, SinkError> {
    let (chain, before) = (writer.description().chain, writer.head().epoch);
    let epoch = before.next();
    let mut frames = EpochWriter::new(chain, epoch);
    let mut out = Vec::new();
    for block in pages.chunks(BLOCK_PAGES) {
        let block: Vec<_> = block.iter().map(|(gfn, page)| (Gfn(*gfn), &**page)).collect();
        frames.pages(&mut out, &mut BlockEncoder::new(Compression::Zstd { level: 1 }), &block).unwrap();
    }
    frames.state(&mut out, state).unwrap();
    let totals = frames.totals();
    let commit = Commit {
        epoch,
        parent: EpochId::NONE,
        parent_hash: 0,
        totals,
        time_unix_ns: minute * 60_000_000_000,
        own_ns: 0,
        run_ns: 0,
        phases: Phases::default(),
        captured_pages: totals.stored_pages,
        zero_pages: 0,
        unchanged_pages: 0,
        bytes_written: 0,
        trigger: Trigger::Request,
        base: before == EpochId::NONE,
        recovery: false,
        audit: None,
        rewritten: None,
    };
    writer.complete(&out, &Line::behind(chain, writer.head()).complete(commit))?;
    Ok(epoch)
}

/// Appends an epoch for each of `minutes` and ends in order.
pub(crate) fn append_all(mut writer: Writer, minutes: impl IntoIterator<Item = u64>, salt: u64) {
    for minute in minutes {
        append(&mut writer, minute, salt);
    }
    writer.close(true).unwrap();
}
