//! States of all templates at the start of the daemon.

use anyhow::Result;
use hearth_api::{Preparation, Preparations};
use hearth_artifact::ArtifactSet;
use hearth_store::Store;
use hearth_types::Platform;

use super::background::Job;
use super::register;

/// A template that the host can prepare.
#[derive(Debug)]
pub(crate) struct Candidate {
    pub(crate) name: &'static str,
    pub(crate) alias: String,
    pub(crate) is_selected: bool,
    /// Its artifact sets, the newest first.
    pub(crate) sets: Vec<ArtifactSet>,
}

/// Templates to make, and the states of all templates until then.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) jobs: Vec<Job>,
    pub(crate) states: Preparations,
}

impl Plan {
    /// Registers the newest build of each template that this platform can restore, and plans to make the selected ones.
    pub(crate) async fn new(candidates: Vec<Candidate>, platform: &Platform, store: &Store) -> Result<Self> {
        let mut plan = Self::default();
        for Candidate { name, alias, is_selected, sets } in candidates {
            let usable = sets.into_iter().find(|set| platform.difference(&set.manifest().platform).is_none());
            if let Some(set) = &usable {
                register(store, &alias, set).await?;
            }
            let has_earlier_build = usable.is_some();
            let state = match (is_selected, has_earlier_build) {
                (true, _) => Preparation::Preparing { percent: 0, has_earlier_build },
                (false, true) => Preparation::Ready,
                (false, false) => Preparation::NotSelected,
            };
            if is_selected {
                plan.jobs.push(Job { name, alias: alias.clone(), has_earlier_build });
            }
            plan.states.insert(alias, state);
        }
        Ok(plan)
    }
}
