//! Telling a person how far things are.

/// What the numbers of a phase count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Things done.
    Steps,
}

/// Watches a build. Calls come from one task at a time and must not block.
pub trait Progress: Send + Sync {
    /// A phase begins, and with it the one before ends. `total` is known where there is something to count.
    fn phase(&self, name: &'static str, unit: Unit, total: Option<u64>);

    /// So much of the phase is done, of so much. Both may be corrected later.
    fn advance(&self, done: u64, total: u64);

    /// Nothing more comes.
    fn finished(&self);
}

/// Nobody watches.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn phase(&self, _name: &'static str, _unit: Unit, _total: Option<u64>) {}
    fn advance(&self, _done: u64, _total: u64) {}
    fn finished(&self) {}
}
