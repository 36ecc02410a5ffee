//! The running state of a sandbox: changes of its end time, its expiry, the lease of its route.

use std::time::Duration;

use hearth_catalog::Error as CatalogError;
use hearth_stdx::chain;
use hearth_store::{Expiry, Sandbox, SandboxState, UpdateSandboxError};
use hearth_types::ExecutionId;
use tokio::sync::watch;
use tokio::time::Instant;

use super::create::route;
use super::expiry::{EndChange, Lifetime, MaxLengthReached, now, time_until};
use super::handle::{Command, ExecutionEnded, Reply, RequestError};
use super::owner::Owner;
use super::teardown::Teardown;

impl Owner {
    /// Manages a running sandbox until it is released or the server stops.
    pub(super) async fn run(mut self, mut row: Sandbox) {
        // Up to a megabyte, and only the node needs it.
        row.env_vars.clear();
        if let Some(teardown) = self.serve(row).await {
            self.tear_down(teardown).await;
        }
    }

    /// Serves the sandbox until it must be torn down. Returns `None` if the server stops; the sandbox then continues.
    async fn serve(&mut self, mut row: Sandbox) -> Option<Teardown> {
        loop {
            let left = time_until(row.end_at, now());
            // All arms are cancel safe: none removes anything from a channel unless it is chosen.
            tokio::select! {
                biased;
                () = self.kill.cancelled() => return Some(Teardown::new(row)),
                Some(reason) = execution_ended(self.ended.clone(), row.execution_id) => {
                    tracing::info!(reason, "sandbox ended on its node");
                    return Some(Teardown::of_ended_execution(row));
                }
                () = self.stop.cancelled() => return None,
                () = tokio::time::sleep_until(Instant::now() + left) => {
                    if self.expire(&mut row).await {
                        return Some(Teardown::new(row));
                    }
                }
                Some(command) = self.commands.recv() => {
                    if let Some(reply) = self.apply(command, &mut row).await {
                        return Some(Teardown::new(row).with_reply(reply));
                    }
                }
                () = self.confirmed.notified() => self.renew_route(&row).await,
                // The next iteration reads the clock.
                () = self.clock.notified() => {}
            }
        }
    }

    /// Marks the sandbox as killing if its end time has passed, and returns true if it expired.
    ///
    /// If the end time in the store is later, takes that over and returns false.
    async fn expire(&self, row: &mut Sandbox) -> bool {
        let now = now();
        if now < row.end_at {
            return false;
        }
        match self.control.store.expire_sandbox(&row.sandbox_id, row.execution_id, now).await {
            Ok(Expiry::NotDue { end_at }) => {
                row.end_at = end_at;
                return false;
            }
            Ok(Expiry::Due) => row.state = SandboxState::Killing,
            // The sandbox expires even if the store cannot record it.
            Err(error) => tracing::error!(error = %chain(&error), "sandbox expiry not written"),
        }
        tracing::info!("sandbox expired");
        true
    }

    /// Applies a command and replies. Returns the reply channel instead if the sandbox must end immediately.
    async fn apply(&self, command: Command, row: &mut Sandbox) -> Option<Reply> {
        let Command { request, change, length_max, reply } = command;
        let lifetime = Lifetime { started_at: row.started_at, end_at: row.end_at, length_max };
        let outcome = match lifetime.end_after(change, now()) {
            Ok(_) if change == EndChange::Set(Duration::ZERO) => return Some(reply),
            Ok(None) => Ok(row.clone()),
            Err(MaxLengthReached) => Err(RequestError::MaxLengthReached),
            Ok(Some(end_at)) => {
                let store = &self.control.store;
                let written = match change {
                    EndChange::Set(_) => {
                        store.set_sandbox_end(&row.sandbox_id, row.execution_id, end_at).await.map(|()| end_at)
                    }
                    EndChange::ExtendTo(_) => store.extend_sandbox_end(&row.sandbox_id, row.execution_id, end_at).await,
                };
                match written {
                    Ok(end_at) => {
                        row.end_at = end_at;
                        Ok(row.clone())
                    }
                    Err(error) => {
                        tracing::error!(error = %chain(&error), ?request, "sandbox end time not written");
                        self.read_end(&error, row).await;
                        let is_full = matches!(&error, UpdateSandboxError::Store(error) if error.is_full());
                        Err(if is_full { RequestError::StorageFull } else { RequestError::Internal })
                    }
                }
            }
        };
        // Sending fails if the client disconnected; the command is applied anyway.
        let _ = reply.send(outcome);
        None
    }

    /// Reads the end time from the store after a write of unknown effect, so that clients see the time that applies.
    async fn read_end(&self, error: &UpdateSandboxError, row: &mut Sandbox) {
        if matches!(error, UpdateSandboxError::Store(error) if error.is_effect_unknown())
            && let Ok(Some(found)) = self.control.store.sandbox(&row.sandbox_id).await
        {
            row.end_at = found.end_at;
        }
    }

    /// Renews the lease of the route after the node confirmed that it runs the sandbox.
    ///
    /// Publishes the route if the catalog does not have it, as after a restart of this server.
    async fn renew_route(&self, row: &Sandbox) {
        let Some(node) = self.control.nodes.find(&row.node_id) else { return };
        let lease = self.control.config.route_lease;
        let catalog = &self.control.catalog;
        let renewed: Result<(), CatalogError> = match catalog.renew(&row.sandbox_id, row.execution_id, lease).await {
            Ok(true) => Ok(()),
            Ok(false) => {
                tracing::info!("route of running sandbox published again");
                catalog.publish(route(&self.control.tokens, row, &node), lease, None).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = renewed {
            // Retried with the next confirmation; several of them fit into a lease.
            tracing::warn!(error = %chain(&error), "route of sandbox not renewed");
        }
    }
}

/// Waits until the execution ends on its node, and returns the reason. `None` if all handles are dropped. Cancel safe.
async fn execution_ended(
    mut ended: watch::Receiver<Option<ExecutionEnded>>,
    execution_id: ExecutionId,
) -> Option<String> {
    let is_current =
        |ended: &Option<ExecutionEnded>| ended.as_ref().is_some_and(|ended| ended.execution_id == execution_id);
    let ended = ended.wait_for(is_current).await.ok()?;
    ended.as_ref().map(|ended| ended.reason.clone())
}
