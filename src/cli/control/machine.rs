//! What the control socket of one process can reach.

use std::sync::{Arc, Mutex};

use super::status::{Guest, Status};
use crate::lock::lock;
use crate::replica::node::Node;
use crate::replica::node_status::Role;
use crate::replica::seed::Keeper;
use crate::replica::witness::manual::Permission;
use crate::vmm::{Handle, Stop};

/// A machine that runs.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) handle: Handle,
    pub(super) keeper: Option<Arc<Keeper>>,
}

/// The machine of this process, once it runs, and its part in a pair.
#[derive(Debug)]
pub(in crate::cli) struct Machine {
    pub(super) node: Option<Arc<Node>>,
    /// Whether this host may decide, where there is no witness.
    permission: Permission,
    pub(super) stop: Stop,
    run: Mutex<Option<Run>>,
}

impl Machine {
    pub(super) fn new(pair: Option<(Arc<Node>, Permission)>, stop: Stop) -> Self {
        let (node, permission) = pair.unzip();
        Self { node, permission: permission.unwrap_or_default(), stop, run: Mutex::default() }
    }

    /// The standby that this is takes over. Returns whether it can.
    pub(super) fn promote(&self) -> bool {
        let Some(node) = self.node.as_ref().filter(|node| matches!(node.role(), Role::Standby(_))) else { return false };
        self.permission.give();
        node.promote()
    }

    /// It runs now.
    pub(in crate::cli) fn runs(&self, handle: Handle, keeper: Option<Arc<Keeper>>) {
        *lock(&self.run) = Some(Run { handle, keeper });
    }

    /// It is about to end.
    pub(super) fn ends(&self) {
        *lock(&self.run) = None;
    }

    pub(super) fn run(&self) -> Option<Run> {
        lock(&self.run).clone()
    }

    pub(super) fn status(&self) -> Status {
        let mut status = Status::alone();
        if let Some(Run { handle, keeper }) = self.run() {
            if let Some(chain) = handle.sinks().first() {
                status = status.with_chain(chain.reached);
            }
            if let Some(report) = handle.report() {
                status.epochs = report.epochs;
                status.bytes_written = report.bytes_written;
                status.pause_us = report.pause_us;
            }
            let guest = handle.guest();
            status.guest = Some(Guest { passes: guest.passes, ok: guest.ok });
            status.released_epoch = handle.released();
            if let Some(keeper) = keeper {
                status = status.with_aim(keeper.aim());
            }
        }
        match &self.node {
            Some(node) => status.with_node(&node.status()),
            None => status,
        }
    }
}
