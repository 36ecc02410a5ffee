//! A sandbox in use: wishes about its end, its expiry, its route's lease.

use std::time::Duration;

use hearth_catalog::Error as CatalogError;
use hearth_stdx::chain;
use hearth_store::{Expiry, Sandbox, SandboxState, UpdateSandboxError};
use hearth_types::ExecutionId;
use tokio::sync::watch;
use tokio::time::Instant;

use super::create::route;
use super::end::Ending;
use super::expiry::{LengthUsedUp, Life, Wish, now, time_left};
use super::handle::{Ended, Order, Reply, Unanswered};
use super::owner::Owner;

impl Owner {
    /// Looks after a running sandbox, until its end or the server's.
    pub(super) async fn run(mut self, mut row: Sandbox) {
        // It may be a megabyte, and only the node needed it.
        row.env_vars.clear();
        if let Some(ending) = self.serve(row).await {
            self.end(ending).await;
        }
    }

    /// How the sandbox is to end; `None`: the server goes away, the sandbox stays.
    async fn serve(&mut self, mut row: Sandbox) -> Option<Ending> {
        loop {
            let left = time_left(row.end_at, now());
            // All arms may be dropped at any time: nothing is taken out before an arm is chosen.
            tokio::select! {
                biased;
                () = self.kill.cancelled() => return Some(Ending::of(row)),
                Some(reason) = node_ended(self.ended.clone(), row.execution_id) => {
                    tracing::info!(reason, "the sandbox ended on its node");
                    return Some(Ending::of_ended(row));
                }
                () = self.stop.cancelled() => return None,
                () = tokio::time::sleep_until(Instant::now() + left) => {
                    if self.has_expired(&mut row).await {
                        return Some(Ending::of(row));
                    }
                }
                Some(order) = self.orders.recv() => {
                    if let Some(reply) = self.obey(order, &mut row).await {
                        return Some(Ending::of(row).telling(reply));
                    }
                }
                () = self.confirmed.notified() => self.keep_route(&row).await,
                // The loop looks at the clock.
                () = self.clock.notified() => {}
            }
        }
    }

    /// Writes down that the sandbox has expired, unless somebody moved its end.
    async fn has_expired(&self, row: &mut Sandbox) -> bool {
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
            // It ends all the same: its time is over, whether that can be written down or not.
            Err(error) => tracing::error!(error = %chain(&error), "the expiry of a sandbox could not be written down"),
        }
        tracing::info!("the sandbox expired");
        true
    }

    /// Does what was asked, and answers. Returns the reply when the sandbox is to end at once.
    async fn obey(&self, order: Order, row: &mut Sandbox) -> Option<Reply> {
        let Order { request, wish, length_max, reply } = order;
        let life = Life { started_at: row.started_at, end_at: row.end_at, length_max };
        let answer = match life.end_after(wish, now()) {
            Ok(_) if wish == Wish::EndIn(Duration::ZERO) => return Some(reply),
            Ok(None) => Ok(row.clone()),
            Err(LengthUsedUp) => Err(Unanswered::LengthUsedUp),
            Ok(Some(end_at)) => {
                let store = &self.control.store;
                let written = match wish {
                    Wish::EndIn(_) => {
                        store.set_sandbox_end(&row.sandbox_id, row.execution_id, end_at).await.map(|()| end_at)
                    }
                    Wish::LastAtLeast(_) => store.extend_sandbox_end(&row.sandbox_id, row.execution_id, end_at).await,
                };
                match written {
                    Ok(end_at) => {
                        row.end_at = end_at;
                        Ok(row.clone())
                    }
                    Err(error) => {
                        tracing::error!(error = %chain(&error), ?request, "the end of a sandbox could not be written");
                        self.read_end(&error, row).await;
                        let is_full = matches!(&error, UpdateSandboxError::Store(error) if error.is_full());
                        Err(if is_full { Unanswered::StorageFull } else { Unanswered::Broken })
                    }
                }
            }
        };
        // Who asked may have gone away; what was asked is done.
        let _ = reply.send(answer);
        None
    }

    /// After a write of unknown effect the row decides, so that clients see the end that will happen.
    async fn read_end(&self, error: &UpdateSandboxError, row: &mut Sandbox) {
        if matches!(error, UpdateSandboxError::Store(error) if error.is_effect_unknown())
            && let Ok(Some(found)) = self.control.store.sandbox(&row.sandbox_id).await
        {
            row.end_at = found.end_at;
        }
    }

    /// The node runs it, so its route may live on. Publishes the route if it is not there: after a restart it never
    /// was.
    async fn keep_route(&self, row: &Sandbox) {
        let Some(node) = self.control.nodes.find(&row.node_id) else { return };
        let lease = self.control.config.route_lease;
        let catalog = &self.control.catalog;
        let kept: Result<(), CatalogError> = match catalog.renew(&row.sandbox_id, row.execution_id, lease).await {
            Ok(true) => Ok(()),
            Ok(false) => {
                tracing::info!("the route of a running sandbox is published again");
                catalog.publish(route(&self.control.tokens, row, &node), lease, None).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = kept {
            // The next confirmation tries again, several times before the lease ends.
            tracing::warn!(error = %chain(&error), "the route of a sandbox was not renewed");
        }
    }
}

/// Why a run ended on its node, when it did; `None`: nobody is left who could tell. Cancel safe.
async fn node_ended(mut ended: watch::Receiver<Option<Ended>>, execution_id: ExecutionId) -> Option<String> {
    let is_ours = |ended: &Option<Ended>| ended.as_ref().is_some_and(|ended| ended.execution_id == execution_id);
    let ended = ended.wait_for(is_ours).await.ok()?;
    ended.as_ref().map(|ended| ended.reason.clone())
}
