//! States of the templates, for the API and, in a file, for `hearth doctor`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::{fs, io};

use hearth_api::{Preparation, Preparations};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// Current states. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct States {
    sender: watch::Sender<Preparations>,
    file: Arc<PathBuf>,
    /// Held while the file is written, so that readers of the states do not wait for the disk.
    turn: Arc<Mutex<()>>,
}

/// State of a template in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(crate) enum Published {
    Ready,
    Preparing { percent: u8 },
    Failed,
    NotSelected,
}

impl States {
    /// Publishes the first states in a file.
    pub(crate) fn publish(file: PathBuf, states: Preparations) -> Self {
        let published =
            Self { sender: watch::Sender::new(Preparations::new()), file: Arc::new(file), turn: Arc::default() };
        published.write(&states);
        published.sender.send_replace(states);
        published
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Preparations> {
        self.sender.subscribe()
    }

    /// Changes the state of a template. Subscribers see it once it is in the file.
    pub(crate) fn set(&self, alias: &str, state: Preparation) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut states = self.sender.borrow().clone();
        if states.insert(alias.to_owned(), state) != Some(state) {
            self.write(&states);
            self.sender.send_replace(states);
        }
    }

    fn write(&self, states: &Preparations) {
        let states: BTreeMap<String, Published> =
            states.iter().map(|(alias, state)| (alias.clone(), (*state).into())).collect();
        let fresh = self.file.with_extension("new");
        let text = serde_json::to_vec(&states).expect("strings and numbers can be serialized");
        // Only `hearth doctor` reads it, so a failure does not matter to users.
        if let Err(error) = fs::write(&fresh, text).and_then(|()| fs::rename(&fresh, &*self.file)) {
            tracing::warn!(path = %self.file.display(), %error, "states of templates not published");
        }
    }

    /// Removes the file.
    pub(crate) fn unpublish(&self) {
        match fs::remove_file(&*self.file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.file.display(), %error, "states of templates not removed");
            }
            _ => {}
        }
    }
}

impl From<Preparation> for Published {
    fn from(state: Preparation) -> Self {
        match state {
            Preparation::Ready => Self::Ready,
            Preparation::Preparing { percent, has_earlier_build: _ } => Self::Preparing { percent },
            Preparation::Failed { has_earlier_build: _ } => Self::Failed,
            Preparation::NotSelected => Self::NotSelected,
        }
    }
}

/// Returns the states that the running daemon published, by alias; an empty map if it published none.
pub(crate) fn published(file: &Path) -> BTreeMap<String, Published> {
    fs::read(file).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}
