//! All contexts, in order of creation.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use uuid::Uuid;

use crate::context::{Command, Context, CreateError, Description, Plan};
use crate::environment::Environment;
use crate::kernel::{Launch, StartError};
use crate::kernelspec::{self, KernelSpec};
use crate::language::Language;
use crate::log;
use crate::options::Options;

/// Contexts at the same time. Each has a process of 50 to 100 MB, so memory ends earlier in most guests.
pub(crate) const CONTEXTS_MAX: usize = 64;
/// Bytes of code that wait or run in all contexts: two of the largest requests, or many of a usual size.
const CODE_BYTES_MAX: usize = 64 << 20;
/// Id that names the default Python context.
const DEFAULT_ID: &str = "default";

/// Reason that a context was not created.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Kernel(#[from] kernelspec::Error),
    #[error(transparent)]
    Create(#[from] CreateError),
    #[error("{CONTEXTS_MAX} contexts exist, which is the limit; remove one first")]
    TooMany,
}

/// Context that exists, and its place under the limit.
struct Entry {
    context: Arc<Context>,
    is_default: bool,
    _place: OwnedSemaphorePermit,
}

/// All contexts of the guest.
pub(crate) struct Contexts {
    options: Options,
    environment: Arc<Environment>,
    entries: Mutex<Vec<Entry>>,
    places: Arc<Semaphore>,
    code_bytes: Arc<Semaphore>,
    /// One creation of a default context per language at a time.
    defaults: Mutex<HashMap<Language, Arc<tokio::sync::Mutex<()>>>>,
    ready: watch::Sender<bool>,
}

impl Contexts {
    pub(crate) fn new(options: Options) -> Arc<Self> {
        Arc::new(Self {
            environment: Arc::new(Environment::new(&options.envd, options.generation.clone())),
            options,
            entries: Mutex::default(),
            places: Arc::new(Semaphore::new(CONTEXTS_MAX)),
            code_bytes: Arc::new(Semaphore::new(CODE_BYTES_MAX)),
            defaults: Mutex::default(),
            ready: watch::Sender::new(false),
        })
    }

    /// Creates the first two contexts and warms them up. A missing kernel is skipped.
    pub(crate) async fn create_first(self: Arc<Self>) {
        for language in [Language::python(), Language::javascript()] {
            if let Err(error) = self.default_context(&language, true).await {
                log::line("default context skipped", &[("language", &language.name()), ("error", &error)]);
            }
        }
        self.ready.send_replace(true);
    }

    /// Waits until the first contexts exist.
    pub(crate) async fn ready(&self) {
        // The sender lives as long as this object.
        let _ = self.ready.subscribe().wait_for(|is_ready| *is_ready).await;
    }

    pub(crate) fn list(&self) -> Vec<Description> {
        self.entries().iter().map(|entry| entry.context.description.clone()).collect()
    }

    /// Finds a context by its id.
    pub(crate) fn find(&self, id: &str) -> Option<Arc<Context>> {
        let entries = self.entries();
        let entry = entries.iter().find(|entry| {
            let is_alias = id == DEFAULT_ID && entry.is_default && entry.context.language == Language::python();
            entry.context.description.id == id || is_alias
        });
        entry.map(|entry| Arc::clone(&entry.context))
    }

    /// Finds a context by a client's id; the alias creates the default Python context if it was deleted.
    pub(crate) async fn find_or_default(self: &Arc<Self>, id: &str) -> Result<Option<Arc<Context>>, Error> {
        if id == DEFAULT_ID { self.default_of(Language::python()).await.map(Some) } else { Ok(self.find(id)) }
    }

    /// Returns the default context of a language, and creates it if it does not exist.
    pub(crate) async fn default_of(self: &Arc<Self>, language: Language) -> Result<Arc<Context>, Error> {
        if let Some(found) = self.existing_default(&language) {
            return Ok(found);
        }
        let contexts = Arc::clone(self);
        // A client that leaves does not cancel the creation.
        let created = tokio::spawn(async move { contexts.default_context(&language, false).await });
        created.await.unwrap_or(Err(Error::Create(CreateError::Deleted)))
    }

    /// Creates a context.
    pub(crate) async fn create(self: &Arc<Self>, language: Language, cwd: String) -> Result<Arc<Context>, Error> {
        let contexts = Arc::clone(self);
        let created = tokio::spawn(async move { contexts.start(&language, cwd, false, false).await });
        created.await.unwrap_or(Err(Error::Create(CreateError::Deleted)))
    }

    /// Restarts the kernel of a context.
    pub(crate) async fn restart(&self, context: &Context) -> Result<(), StartError> {
        let (done, outcome) = oneshot::channel();
        if !context.command(Command::Restart(done)).await {
            return Ok(());
        }
        // The context may be deleted before its turn.
        outcome.await.unwrap_or(Ok(()))
    }

    /// Removes a context and stops its kernel.
    pub(crate) async fn delete(&self, context: &Context) {
        self.entries().retain(|entry| !std::ptr::eq(Arc::as_ptr(&entry.context), context));
        let (done, outcome) = oneshot::channel();
        if context.command(Command::Delete(done)).await {
            let _ = outcome.await;
        }
    }

    /// Reserves memory for code until its execution ends; none if too much code waits.
    pub(crate) fn reserve_code(&self, code: &str) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.code_bytes).try_acquire_many_owned(u32::try_from(code.len()).ok()?).ok()
    }

    /// Path of the default working directory.
    pub(crate) fn home(&self) -> String {
        self.options.home.display().to_string()
    }

    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        // Every section is one step on a valid list.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn existing_default(&self, language: &Language) -> Option<Arc<Context>> {
        let entries = self.entries();
        let entry = entries.iter().find(|entry| entry.is_default && entry.context.language == *language);
        entry.map(|entry| Arc::clone(&entry.context))
    }

    async fn default_context(&self, language: &Language, is_first: bool) -> Result<Arc<Context>, Error> {
        // Checked before the lock is made, so that there are only as many locks as kernels.
        KernelSpec::find(language, &self.options.kernels)?;
        let lock = {
            let mut defaults = self.defaults.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(defaults.entry(language.clone()).or_default())
        };
        let _turn = lock.lock().await;
        match self.existing_default(language) {
            Some(found) => Ok(found),
            None => self.start(language, self.home(), true, is_first).await,
        }
    }

    async fn start(
        &self,
        language: &Language,
        cwd: String,
        is_default: bool,
        is_first: bool,
    ) -> Result<Arc<Context>, Error> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| Error::TooMany)?;
        let spec = KernelSpec::find(language, &self.options.kernels)?;
        let id = Uuid::new_v4().to_string();
        let dialect = language.dialect(&spec.language);
        let launch = Launch { spec, folder: self.options.runtime.join(&id), directory: self.options.home.clone() };
        let warm_up = language.warm_up_file().filter(|_| is_first).map(|file| self.options.warm_up.join(file));
        let environment = Arc::clone(&self.environment);
        let context =
            Context::start(Plan { id, language: language.clone(), dialect, cwd, launch, environment, warm_up }).await?;
        let context = Arc::new(context);
        self.entries().push(Entry { context: Arc::clone(&context), is_default, _place: place });
        Ok(context)
    }
}

/// Removes the directories of an earlier server's kernels, which ended with it.
pub(crate) fn remove_leftovers(runtime: &Path) {
    for entry in std::fs::read_dir(runtime).into_iter().flatten().flatten() {
        let is_context = entry.file_name().to_str().is_some_and(|name| Uuid::try_parse(name).is_ok());
        if is_context {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
