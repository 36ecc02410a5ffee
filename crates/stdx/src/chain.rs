//! An error and its causes in one line, for logs.

use std::error::Error;
use std::fmt;

/// Displays an error followed by its sources, separated by `: `.
///
/// Messages of Hearth's errors never repeat their source, so the line has no repetitions.
pub struct Chain<'a>(&'a (dyn Error + 'static));

/// Returns a value that displays `error` with all its sources.
#[must_use]
pub fn chain<'a>(error: &'a (dyn Error + 'static)) -> Chain<'a> {
    Chain(error)
}

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    #[derive(Debug)]
    struct Outer(io::Error);

    impl std::fmt::Display for Outer {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("opening `x`")
        }
    }

    impl std::error::Error for Outer {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn every_cause_is_printed_once() {
        let error = Outer(io::Error::other("disk on fire"));
        assert_eq!(super::chain(&error).to_string(), "opening `x`: disk on fire");
    }
}
