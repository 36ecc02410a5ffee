//! JavaScript and TypeScript: code for a kernel on Node.js.

use super::{Variables, packed};

/// Calls the kernel's hook, because V8's own generator cannot be seeded from outside.
pub(super) const RESEED: &str = "globalThis[Symbol.for('hearth.reseed')]?.(); void 0";

/// Throws if the directory cannot be entered.
pub(super) fn change_directory(path: &str) -> String {
    format!("process.chdir(JSON.parse(Buffer.from('{}', 'base64').toString('utf8'))); void 0", packed(&path))
}

pub(super) fn change_variables(set: &Variables, removed: &[&str]) -> String {
    let (set, removed) = (packed(set), packed(&removed));
    format!(
        "Object.assign(process.env, JSON.parse(Buffer.from('{set}', 'base64').toString('utf8'))); \
         JSON.parse(Buffer.from('{removed}', 'base64').toString('utf8')).forEach((name) => delete process.env[name]); \
         void 0"
    )
}
