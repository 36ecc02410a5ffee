//! Templates that the operator's host prepares by itself, and creates that have to wait for them.
//!
//! ```text
//!   hearth ── watch: name to Preparation ──▶ resolve ──▶ ready build, 503 or 404
//! ```
//!
//! `hearth` serves before all of its templates exist. A create of one that is missing waits for it without a permit of
//! a create, and is then rejected with the progress. A template of a team with the same alias is not affected, because
//! teams' aliases come first. While an earlier build of the template can be used, nothing waits.

use std::collections::BTreeMap;
use std::time::Duration;

use hearth_api_types::ErrorCode;
use hearth_store::{ResolveError, ResolvedTemplate, Team};
use hearth_types::TemplateReference;
use http::StatusCode;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use crate::compared;
use crate::control::Control;
use crate::failure::Failure;

/// Maximum number of creates that wait for a template.
///
/// Each holds one connection and a few KiB. Further ones are rejected without waiting.
const WAITING_CREATES_MAX: usize = 256;
/// `Retry-After` while a template is being prepared. Preparing one takes minutes.
const PREPARING_PAUSE: Duration = Duration::from_secs(60);
/// `Retry-After` after a failed preparation, which is repeated with growing pauses.
const FAILED_PAUSE: Duration = Duration::from_secs(300);

/// State of a template that the host prepares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preparation {
    /// A ready build is registered.
    Ready,
    /// The template is being prepared, or will be once the templates before it are.
    Preparing {
        /// Finished part, below 100.
        percent: u8,
        /// Set if an earlier build can be used meanwhile.
        has_earlier_build: bool,
    },
    /// The last attempt failed.
    Failed {
        /// Set if an earlier build can be used meanwhile.
        has_earlier_build: bool,
    },
    /// The operator did not select the template, and it has no build that can be used.
    NotSelected,
}

impl Preparation {
    /// Returns true if sandboxes can be created.
    fn is_usable(self) -> bool {
        match self {
            Self::Ready => true,
            Self::Preparing { has_earlier_build, .. } | Self::Failed { has_earlier_build } => has_earlier_build,
            Self::NotSelected => false,
        }
    }
}

/// States of the templates that the host can prepare, by global alias.
pub type Preparations = BTreeMap<String, Preparation>;

/// View of the preparation of templates.
#[derive(Debug)]
pub(crate) struct PreparationView {
    states: watch::Receiver<Preparations>,
    /// Permits for creates that wait.
    waiting: Semaphore,
}

impl PreparationView {
    pub(crate) fn new(states: watch::Receiver<Preparations>) -> Self {
        Self { states, waiting: Semaphore::new(WAITING_CREATES_MAX) }
    }

    /// Returns the state of the template with a global alias; `None` if the host does not prepare it.
    fn state(&self, alias: &str) -> Option<Preparation> {
        self.states.borrow().get(alias).copied()
    }

    /// Returns true if the alias belongs to a template that has no usable build yet, but will have one.
    pub(crate) fn reserves(&self, reference: &TemplateReference) -> bool {
        let state = self.state(reference.name()).filter(|_| reference.namespace().is_none());
        matches!(state, Some(Preparation::Preparing { .. } | Preparation::Failed { .. }))
    }

    /// Waits until the template can be used, its preparation has failed, or the deadline. Cancel safe.
    async fn wait(&self, alias: &str, deadline: Instant) -> Preparation {
        let mut states = self.states.clone();
        let is_decided = |states: &Preparations| {
            let state = states.get(alias).copied();
            state.is_none_or(|state| state.is_usable() || !matches!(state, Preparation::Preparing { .. }))
        };
        if let Ok(_permit) = self.waiting.try_acquire() {
            // The result does not matter: the state is read below. The sender is gone only at shutdown.
            let _ = tokio::time::timeout_at(deadline, states.wait_for(is_decided)).await;
        }
        self.state(alias).unwrap_or(Preparation::NotSelected)
    }
}

/// Resolves the template of a create, and waits if the host is preparing it.
///
/// Returns the resolved build, and the time spent waiting.
pub(crate) async fn resolve(
    control: &Control,
    reference: &TemplateReference,
    team: &Team,
) -> Result<(ResolvedTemplate, Duration), Failure> {
    let start = Instant::now();
    let resolved = control.store.resolve(reference, team).await;
    let Some(alias) = prepared_alias(control, reference, &resolved) else {
        return Ok((resolved.map_err(failure)?, Duration::ZERO));
    };
    let mut state = control.preparations.state(&alias).unwrap_or(Preparation::NotSelected);
    if state.is_usable() && resolved.is_ok() {
        return Ok((resolved.map_err(failure)?, Duration::ZERO));
    }
    if !state.is_usable() {
        state = tokio::select! {
            state = control.preparations.wait(&alias, start + control.config.template_wait_max) => state,
            () = control.stopping.cancelled() => return Err(Failure::stopping()),
        };
    }
    match state {
        // It was registered after the first attempt to resolve it.
        state if state.is_usable() => {
            let resolved = control.store.resolve(reference, team).await.map_err(failure)?;
            Ok((resolved, start.elapsed()))
        }
        state => Err(not_usable(&alias, state)),
    }
}

/// Returns the global alias of the template if the host prepares it.
fn prepared_alias(
    control: &Control,
    reference: &TemplateReference,
    resolved: &Result<ResolvedTemplate, ResolveError>,
) -> Option<String> {
    let alias = match resolved {
        Ok(ResolvedTemplate { template, alias: Some(alias), .. }) if template.team_id.is_none() => alias.as_str(),
        Err(ResolveError::UnknownTemplate { .. }) if reference.namespace().is_none() => reference.name(),
        _ => return None,
    };
    control.preparations.state(alias).map(|_| alias.to_owned())
}

fn failure(error: ResolveError) -> Failure {
    match error {
        // A private template of another team is reported as not found.
        ResolveError::UnknownTemplate { reference } | ResolveError::Private { reference } => {
            Failure::not_found(compared::unknown_template(&reference))
        }
        ResolveError::UnknownTag { reference, tag } => Failure::not_found(compared::unknown_tag(&reference, &tag)),
        ResolveError::Store(error) => Failure::internal("resolving a template", &error),
    }
}

/// Returns the reply to a create of a template that cannot be used.
///
/// SDKs must not retry by themselves: each attempt waits here, and would use up the client's timeout, so its user would
/// see a timeout instead of the message.
fn not_usable(alias: &str, state: Preparation) -> Failure {
    let unavailable =
        |message: String| Failure::new(StatusCode::SERVICE_UNAVAILABLE, message).with_code(ErrorCode::TemplateNotReady);
    match state {
        Preparation::Preparing { percent, .. } => {
            unavailable(format!("template {alias} is being prepared ({percent} %): try again in a few minutes"))
                .not_before(PREPARING_PAUSE)
        }
        Preparation::Failed { .. } => unavailable(format!(
            "template {alias} could not be prepared: the server's log has the reason, and the server tries again"
        ))
        .not_before(FAILED_PAUSE),
        Preparation::NotSelected | Preparation::Ready => Failure::not_found(compared::unprepared_template(alias)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(state: Preparation) -> (watch::Sender<Preparations>, PreparationView) {
        let (sender, states) = watch::channel(Preparations::from([("tools".to_owned(), state)]));
        (sender, PreparationView::new(states))
    }

    const MISSING: Preparation = Preparation::Preparing { percent: 7, has_earlier_build: false };

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_with_the_preparation_or_at_the_deadline() {
        let limit = Duration::from_secs(20);
        let earlier = Preparation::Preparing { percent: 7, has_earlier_build: true };
        let failed = Preparation::Failed { has_earlier_build: false };
        for (state, end) in [
            (MISSING, limit),
            (earlier, Duration::ZERO),
            (failed, Duration::ZERO),
            (Preparation::NotSelected, Duration::ZERO),
        ] {
            let (_sender, view) = view(state);
            let start = Instant::now();
            assert_eq!((view.wait("tools", start + limit).await, start.elapsed()), (state, end), "{state:?}");
        }
        let (sender, view) = view(MISSING);
        let start = Instant::now();
        let change = async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            sender.send_replace(Preparations::from([("tools".to_owned(), Preparation::Ready)]));
        };
        let (state, ()) = tokio::join!(view.wait("tools", start + limit), change);
        assert_eq!((state, start.elapsed()), (Preparation::Ready, Duration::from_secs(3)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_of_waiting_creates_is_limited() {
        let (_sender, view) = view(MISSING);
        let start = Instant::now();
        let _all = view.waiting.try_acquire_many(u32::try_from(WAITING_CREATES_MAX).expect("small")).expect("unused");
        assert_eq!(view.wait("tools", start + Duration::from_secs(20)).await, MISSING);
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
