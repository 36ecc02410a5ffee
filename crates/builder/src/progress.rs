//! Progress reports of a build.

/// Unit of a phase's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Bytes,
    /// Finished steps.
    Steps,
}

/// Receiver of progress reports. Calls come from one task at a time and must not block.
pub trait Progress: Send + Sync {
    /// Starts a phase and ends the previous one. `total` is `None` if the phase has nothing to count.
    fn phase(&self, name: &'static str, unit: Unit, total: Option<u64>);

    /// Reports the finished part of the phase. Later calls may correct both numbers.
    fn advance(&self, done: u64, total: u64);

    /// Ends the last phase.
    fn finished(&self);
}

/// Receiver that ignores all reports.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn phase(&self, _name: &'static str, _unit: Unit, _total: Option<u64>) {}
    fn advance(&self, _done: u64, _total: u64) {}
    fn finished(&self) {}
}
