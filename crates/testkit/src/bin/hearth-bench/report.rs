//! The measured values, as a table and as JSON.

use std::fmt;

use serde_json::{Value, json};

/// Measured value with its bound and its goal.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) value: f64,
    /// The same measurement without Hearth, from the same run.
    pub(crate) bound: Option<f64>,
    pub(crate) goal: Option<Goal>,
}

/// Goal for a value.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Goal {
    /// At most this many times the bound.
    TimesBound(f64),
    Below(f64),
    AtMost(f64),
    /// At least this many times the bound.
    AtLeastTimesBound(f64),
}

/// All lines, in the order of measurement.
#[derive(Debug, Default)]
pub(crate) struct Report {
    lines: Vec<Line>,
}

impl Line {
    fn ratio(&self) -> Option<f64> {
        self.bound.filter(|bound| *bound > 0.0).map(|bound| self.value / bound)
    }

    fn verdict(&self) -> Option<bool> {
        match self.goal? {
            Goal::TimesBound(times) => self.ratio().map(|ratio| ratio <= times),
            Goal::AtLeastTimesBound(times) => self.ratio().map(|ratio| ratio >= times),
            Goal::Below(limit) => Some(self.value < limit),
            Goal::AtMost(limit) => Some(self.value <= limit),
        }
    }

    fn goal(&self) -> String {
        match self.goal {
            Some(Goal::TimesBound(times)) => format!("<= {times} x bound"),
            Some(Goal::AtLeastTimesBound(times)) => format!(">= {times} x bound"),
            Some(Goal::Below(limit)) => format!("< {limit}"),
            Some(Goal::AtMost(limit)) => format!("<= {limit}"),
            None => String::new(),
        }
    }
}

impl Report {
    /// Adds a line and prints it to standard error.
    pub(crate) fn add(&mut self, line: Line) {
        eprintln!("  {}: {:.2} {}", line.name, line.value, line.unit);
        self.lines.push(line);
    }

    /// Adds a value without a bound.
    pub(crate) fn plain(&mut self, name: &str, unit: &'static str, value: f64, goal: Option<Goal>) {
        self.add(Line { name: name.to_owned(), unit, value, bound: None, goal });
    }

    /// Adds a value with its bound.
    pub(crate) fn bounded(&mut self, name: &str, unit: &'static str, value: f64, bound: f64, goal: Option<Goal>) {
        self.add(Line { name: name.to_owned(), unit, value, bound: Some(bound), goal });
    }

    pub(crate) fn to_json(&self) -> String {
        let lines: Vec<Value> = self
            .lines
            .iter()
            .map(|line| {
                json!({
                    "name": line.name, "unit": line.unit, "value": line.value, "bound": line.bound,
                    "ratio": line.ratio(), "goal": line.goal(), "met": line.verdict(),
                })
            })
            .collect();
        format!("{:#}\n", Value::from(lines))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.lines.iter().map(|line| line.name.len()).max().unwrap_or(0);
        writeln!(f, "{:width$}  {:>10}  {:>10}  {:>6}  goal", "", "value", "bound", "ratio")?;
        for line in &self.lines {
            let bound = line.bound.map_or_else(String::new, |bound| format!("{bound:.2}"));
            let ratio = line.ratio().map_or_else(String::new, |ratio| format!("{ratio:.2}"));
            let met = match line.verdict() {
                Some(true) => " met",
                Some(false) => " MISSED",
                None => "",
            };
            let (name, value, unit, goal) = (&line.name, line.value, line.unit, line.goal());
            writeln!(f, "{name:width$}  {value:>10.2}  {bound:>10}  {ratio:>6}  {unit} {goal}{met}")?;
        }
        Ok(())
    }
}
