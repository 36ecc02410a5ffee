//! How this node is: what it tells of itself, and how busy its machine is.
//!
//! One task looks at the machine every few seconds; whoever watches the node is told then.

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

/// Between two looks at the machine. Placement counts sandboxes itself; this is for people and for slow decisions.
const LOOK_PERIOD: Duration = Duration::from_secs(5);

/// Looks at the machine.
#[derive(Debug)]
pub(crate) struct Surveyor {
    node_id: NodeId,
    daemon: Daemon,
    machine: Machine,
    meter: Arc<Mutex<Meter>>,
    load: watch::Sender<Option<Load>>,
}

impl Surveyor {
    /// `folder` is where sandboxes are kept.
    pub(crate) fn new(node_id: NodeId, version: String, commit: String, folder: &Path) -> Result<Self, Error> {
        let machine = machine::machine().map_err(Error::Machine)?;
        let mut meter = Meter::new(folder).map_err(Error::Machine)?;
        let load = meter.read().map_err(Error::Machine)?;
        let daemon = Daemon { instance_id: uuid::Uuid::new_v4().to_string(), version, commit };
        let meter = Arc::new(Mutex::new(meter));
        Ok(Self { node_id, daemon, machine, meter, load: watch::Sender::new(Some(load)) })
    }

    /// The last look at the machine, and those to come.
    pub(crate) fn looks(&self) -> watch::Receiver<Option<Load>> {
        self.load.subscribe()
    }

    /// All that is known of the node.
    pub(crate) fn status(&self, sandboxes: Sandboxes, load: Option<Load>) -> NodeStatus {
        NodeStatus {
            node_id: self.node_id.clone(),
            daemon: self.daemon.clone(),
            sandboxes,
            machine: self.machine.clone(),
            load,
        }
    }

    /// Looks until `stop`.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(LOOK_PERIOD)).await.is_some() {
            let meter = Arc::clone(&self.meter);
            // A file system may take its time to answer.
            let look = tokio::task::spawn_blocking(move || meter.lock().unwrap_or_else(PoisonError::into_inner).read());
            let load = match look.await {
                Ok(Ok(load)) => Some(load),
                Ok(Err(error)) => {
                    tracing::warn!(error = %chain(&error), "how busy this machine is cannot be found out");
                    None
                }
                // The runtime stops.
                Err(_) => return,
            };
            self.load.send_replace(load);
        }
    }
}
