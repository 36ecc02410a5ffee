//! States and sizes of the templates.

use std::collections::BTreeMap;

use hearth_artifact::{ArtifactSet, ArtifactStore};
use hearth_builder::{BASE, Recipe, stored_sets};
use hearth_host::requirement::{Finding, Need};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::layout::Layout;
use crate::options::Settings;
use crate::setup::running_daemon;
use crate::templates::{Published, Weight, published};

/// Template as it is on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TemplateStatus {
    name: &'static str,
    is_selected: bool,
    /// State in the running daemon; `None` if none runs.
    published: Option<Published>,
    /// Newest artifact set.
    set: Option<ArtifactSet>,
}

/// Reads the state of each template.
pub(super) fn read(settings: &Settings, layout: &Layout) -> Vec<TemplateStatus> {
    // The file of a killed daemon has states of the past.
    let is_running = running_daemon(layout).is_ok_and(|daemon| daemon.is_some());
    let published = if is_running { published(&layout.template_states()) } else { BTreeMap::new() };
    let artifacts = ArtifactStore::open_read_only(layout.artifacts());
    let status = |recipe: &'static Recipe| TemplateStatus {
        name: recipe.name(),
        is_selected: settings.templates.contains(recipe.name()),
        published: published.get(recipe.alias()).copied(),
        set: stored_sets(&layout.guest(), recipe, &artifacts).unwrap_or_default().into_iter().next(),
    };
    Recipe::all().iter().map(status).collect()
}

impl TemplateStatus {
    pub(super) fn is_base(&self) -> bool {
        self.name == BASE
    }

    pub(super) fn is_ready(&self) -> bool {
        self.set.is_some()
    }

    /// Returns the word for the state.
    fn state(&self) -> &'static str {
        match (self.published, &self.set) {
            (Some(Published::Preparing { .. }), _) => "being prepared",
            (Some(Published::Failed), _) => "failed",
            (_, Some(_)) => "ready",
            (_, None) if self.is_selected => "missing",
            (_, None) => "not selected",
        }
    }

    pub(super) fn finding(&self, now: Timestamp) -> Finding {
        let progress = match self.published {
            Some(Published::Preparing { percent }) => format!(" ({percent} %)"),
            _ => String::new(),
        };
        let build = self.set.as_ref().map(|set| {
            let manifest = set.manifest();
            let days = now.duration_since(manifest.created_at).as_hours().max(0) / 24;
            format!(", build {} of {days} days ago on {}, {}", manifest.build_id, manifest.platform, Weight::of(set))
        });
        Finding {
            name: if self.is_base() { "base template" } else { "template" },
            need: Need::Recommended,
            // A template that is not selected is not missing.
            found: self.is_ready() || !self.is_selected,
            detail: format!("{} is {}{progress}{}", self.name, self.state(), build.unwrap_or_default()),
            cost: if self.is_base() {
                "the next `hearth up` makes it first, which takes some minutes"
            } else {
                "its creates wait until `hearth up` has made it in the background, which takes some minutes"
            },
            fix: match self.published {
                Some(Published::Preparing { .. }) => "wait",
                Some(Published::Failed) => "the log of `hearth up` has the reason; it tries again by itself",
                _ => "hearth setup",
            },
        }
    }

    pub(super) fn to_json(&self) -> Value {
        let percent = match self.published {
            Some(Published::Preparing { percent }) => Some(percent),
            _ => None,
        };
        let build = self.set.as_ref().map(|set| {
            let (manifest, Weight { disk_bytes, memory_bytes }) = (set.manifest(), Weight::of(set));
            json!({
                "build_id": manifest.build_id.to_string(), "created_at": manifest.created_at,
                "platform": manifest.platform.to_string(), "disk_bytes": disk_bytes, "memory_bytes": memory_bytes,
            })
        });
        json!({
            "name": self.name, "state": self.state().replace(' ', "_"), "percent": percent,
            "is_selected": self.is_selected, "build": build,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_has_a_word_and_advice() {
        let status = |published, is_selected| TemplateStatus { name: "tools", is_selected, published, set: None };
        let preparing = Published::Preparing { percent: 62 };
        for (published, is_selected, found, detail, fix) in [
            (Some(preparing), true, false, "tools is being prepared (62 %)", "wait"),
            (Some(Published::Failed), true, false, "tools is failed", "the log"),
            (None, true, false, "tools is missing", "hearth setup"),
            (None, false, true, "tools is not selected", "hearth setup"),
        ] {
            let finding = status(published, is_selected).finding(Timestamp::UNIX_EPOCH);
            assert_eq!((finding.found, finding.detail.as_str()), (found, detail));
            assert!(finding.fix.starts_with(fix), "{finding:?}");
        }
        let json = status(Some(preparing), true).to_json();
        assert_eq!(
            (&json["state"], &json["percent"], &json["build"]),
            (&"being_prepared".into(), &62.into(), &Value::Null)
        );
    }
}
