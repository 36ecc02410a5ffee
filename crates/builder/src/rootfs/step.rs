//! Steps of the script that makes an image, from its output.

use crate::progress::{Progress, Unit};

/// Step of `pack.sh`, which reports each with a line `::<name> [<total>]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Unpacking,
    Python,
    Node,
    Setup,
    Image,
}

impl Step {
    /// Returns the phase for progress reports.
    fn phase(self) -> &'static str {
        match self {
            Self::Unpacking => "root filesystem",
            Self::Python => "Python packages",
            Self::Node => "Node packages",
            Self::Setup => "configuration",
            Self::Image => "image",
        }
    }

    /// Returns the action for errors.
    pub(super) fn action(self) -> &'static str {
        match self {
            Self::Unpacking => "unpacking the template's packages",
            Self::Python => "installing the template's Python packages with pip",
            Self::Node => "installing the template's Node packages with npm",
            Self::Setup => "configuring the template's root filesystem",
            Self::Image => "writing the template's root filesystem",
        }
    }
}

/// Progress of the script.
#[derive(Debug)]
pub(super) struct Steps {
    pub(super) current: Step,
    done: u64,
    total: u64,
    /// Size of the finished tree, in MiB.
    pub(super) tree_mib: Option<u64>,
}

impl Steps {
    pub(super) fn begin(progress: &dyn Progress) -> Self {
        progress.phase(Step::Unpacking.phase(), Unit::Steps, None);
        Self { current: Step::Unpacking, done: 0, total: 0, tree_mib: None }
    }

    /// Reports the progress in a line of output.
    pub(super) fn read_line(&mut self, line: &str, progress: &dyn Progress) {
        if let Some((step, total)) = parse_mark(line) {
            // Each recipe of a lineage reports its own steps.
            if step != self.current || step == Step::Python {
                let counted = total.filter(|_| step == Step::Python);
                progress.phase(step.phase(), Unit::Steps, counted);
            }
            (self.current, self.done, self.total) = (step, 0, total.unwrap_or(0));
            if step == Step::Image {
                self.tree_mib = total;
            }
        } else if self.current == Step::Python {
            if line.starts_with("Collecting ") {
                self.done += 1;
                progress.advance(self.done, self.total.max(self.done));
            } else if line.starts_with("Installing collected packages") {
                progress.phase("Python installation", Unit::Steps, None);
            }
        }
    }
}

fn parse_mark(line: &str) -> Option<(Step, Option<u64>)> {
    let mut words = line.strip_prefix("::")?.split_whitespace();
    let step = match words.next()? {
        "python" => Step::Python,
        "node" => Step::Node,
        "setup" => Step::Setup,
        "image" => Step::Image,
        _ => return None,
    };
    Some((step, words.next().and_then(|total| total.parse().ok())))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Record(Mutex<Vec<String>>);

    impl Progress for Record {
        fn phase(&self, name: &'static str, _unit: Unit, total: Option<u64>) {
            self.0.lock().expect("no panic").push(format!("{name} {total:?}"));
        }
        fn advance(&self, done: u64, total: u64) {
            self.0.lock().expect("no panic").push(format!("{done}/{total}"));
        }
        fn finished(&self) {}
    }

    #[test]
    fn python_packages_are_counted() {
        let record = Record::default();
        let mut steps = Steps::begin(&record);
        for line in [
            "::setup",
            "::python 2",
            "Collecting a==1 (from -r /run/input/requirements.lock (line 1))",
            "  Downloading a-1.whl (1 kB)",
            "Collecting b==1",
            "Installing collected packages: a, b",
            "::setup",
            "::setup",
            "::image 900",
        ] {
            steps.read_line(line, &record);
        }
        let expected = [
            "root filesystem None",
            "configuration None",
            "Python packages Some(2)",
            "1/2",
            "2/2",
            "Python installation None",
            "configuration None",
            "image None",
        ];
        assert_eq!(*record.0.lock().expect("no panic"), expected);
        assert_eq!((steps.current, steps.tree_mib), (Step::Image, Some(900)));
    }
}
