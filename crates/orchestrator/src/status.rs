//! Status of this node: its identity, sandboxes, hardware and load.
//!
//! One task measures the load every few seconds; watchers of the node then get a new status.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hearth_cluster_api::{Daemon, NodeStatus, Sandboxes};
use hearth_host::machine::{self, Meter};
use hearth_stdx::chain;
use hearth_types::{Load, Machine, NodeId};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::Error;

/// Pause between two measurements. Placement counts sandboxes itself; this is for operators and slow decisions.
const MEASURE_INTERVAL: Duration = Duration::from_secs(5);

/// Monitor of the node's load.
#[derive(Debug)]
pub(crate) struct LoadMonitor {
    node_id: NodeId,
    daemon: Daemon,
    machine: Machine,
    meter: Arc<Mutex<Meter>>,
    load: watch::Sender<Option<Load>>,
}

impl LoadMonitor {
    /// Creates a monitor that reports the file system of `folder`, which contains the sandboxes.
    pub(crate) fn new(node_id: NodeId, version: String, commit: String, folder: &Path) -> Result<Self, Error> {
        let machine = machine::machine().map_err(Error::Machine)?;
        let mut meter = Meter::new(folder).map_err(Error::Machine)?;
        let load = meter.read().map_err(Error::Machine)?;
        let daemon = Daemon { instance_id: uuid::Uuid::new_v4().to_string(), version, commit };
        let meter = Arc::new(Mutex::new(meter));
        Ok(Self { node_id, daemon, machine, meter, load: watch::Sender::new(Some(load)) })
    }

    /// Returns a receiver of the latest and all later measurements; `None` after a failed one.
    pub(crate) fn loads(&self) -> watch::Receiver<Option<Load>> {
        self.load.subscribe()
    }

    /// Returns the status of the node.
    pub(crate) fn status(&self, sandboxes: Sandboxes, load: Option<Load>) -> NodeStatus {
        NodeStatus {
            node_id: self.node_id.clone(),
            daemon: self.daemon.clone(),
            sandboxes,
            machine: self.machine.clone(),
            load,
        }
    }

    /// Measures until `stop`.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(MEASURE_INTERVAL)).await.is_some() {
            let meter = Arc::clone(&self.meter);
            // A file system may be slow to reply.
            let measured =
                tokio::task::spawn_blocking(move || meter.lock().unwrap_or_else(PoisonError::into_inner).read());
            let load = match measured.await {
                Ok(Ok(load)) => Some(load),
                Ok(Err(error)) => {
                    tracing::warn!(error = %chain(&error), "could not measure the load of this machine");
                    None
                }
                // The runtime is shutting down.
                Err(_) => return,
            };
            self.load.send_replace(load);
        }
    }
}
