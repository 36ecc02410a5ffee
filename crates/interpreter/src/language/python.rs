//! Python: code for ipykernel.
//!
//! Every piece is one expression or hides its names in a function's scope, because it runs in the user's namespace.

use super::{Variables, packed};

/// Splits large output, and makes the kernel wait for a slow reader instead of losing its messages.
pub(super) const START: &str = include_str!("python/start.py");
/// Seeds the generators that were made before a restore from a snapshot.
pub(super) const RESEED: &str = include_str!("python/reseed.py");

/// Stays in the current directory if the new one cannot be entered, as the contract says.
pub(super) fn change_directory(path: &str) -> String {
    let path = packed(&path);
    format!(
        "exec(\"import base64, contextlib, json, os\\nwith contextlib.suppress(OSError, ValueError): \
         os.chdir(json.loads(base64.b64decode('{path}')))\", {{}})"
    )
}

pub(super) fn change_variables(set: &Variables, removed: &[&str]) -> String {
    let (set, removed) = (packed(set), packed(&removed));
    format!(
        "exec(\"import base64, json, os\\nos.environ.update(json.loads(base64.b64decode('{set}')))\\n\
         for name in json.loads(base64.b64decode('{removed}')): os.environ.pop(name, None)\", {{}})"
    )
}
