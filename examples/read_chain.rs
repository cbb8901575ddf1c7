//! Lists a store's epochs, verifies the store, reads the newest epoch and exports its memory. No
//! KVM is needed, and no feature of the library.
//!
//! `cargo run --release --no-default-features --example read_chain DIR [FILE]`

use std::error::Error;
use std::fs::File;

use slackwater::page::{Gfn, PageBytes};
use slackwater::restore::{ExportFormat, PageTarget, Plan, TargetError, export};
use slackwater::store::Chain;
use slackwater::store::verify::{VerifyOptions, verify};

/// Anything that takes pages can be filled. This one counts what the pages hold.
#[derive(Default)]
struct Census {
    pages: u64,
    highest: Gfn,
    bytes_not_zero: usize,
}

impl PageTarget for Census {
    fn write_page(&mut self, gfn: Gfn, page: &PageBytes) -> Result<(), TargetError> {
        self.pages += 1;
        self.highest = self.highest.max(gfn);
        self.bytes_not_zero += page.iter().filter(|byte| **byte != 0).count();
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let store = std::env::args_os().nth(1).ok_or("usage: read_chain DIR")?;
    let chain = Chain::open(&store)?;
    let description = chain.description();
    println!("chain {} by {}, {} vCPUs", description.chain, description.created_by, description.vcpus);
    for epoch in chain.epochs() {
        let commit = epoch?.commit;
        println!(
            "epoch {}: {} pages, {} bytes, {}",
            commit.epoch,
            commit.captured_pages,
            commit.bytes_written,
            commit.trigger.as_str()
        );
    }
    let report = verify(store.as_ref(), &VerifyOptions::default(), &mut |_| {})?;
    for damage in &report.damage {
        println!("damage: {} at offset {}: expected {}, found {}", damage.file, damage.offset, damage.expected, damage.found);
    }
    if !report.is_sound() {
        return Err("the store is damaged".into());
    }
    let plan = Plan::new(&chain, chain.newest())?;
    let mut census = Census::default();
    let filled = plan.fill(&mut census, &mut |_done, _total| {})?;
    println!("at epoch {}: {} pages in {} blocks, the highest is {}", plan.epoch(), census.pages, filled.blocks, census.highest);
    println!("{} bytes that are not zero", census.bytes_not_zero);
    for record in plan.state() {
        println!("state {} {} version {}: {} bytes", record.name, record.index, record.version, record.data.len());
    }
    if let Some(file) = std::env::args_os().nth(2) {
        let file = File::create_new(file)?;
        let exported = export(&chain, plan.epoch(), ExportFormat::Raw, &file, &mut |_, _| {})?;
        println!("exported {} pages, digest {}", exported.pages, exported.memory);
    }
    Ok(())
}
