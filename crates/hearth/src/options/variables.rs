//! Warnings about unknown environment variables named `HEARTH_…`.
//!
//! Such a variable is a typing mistake, or belongs to another program: Kubernetes, for example, sets
//! `HEARTH_SERVICE_HOST` for a service named `hearth`. Therefore it is ignored with a warning.

/// Prefix of the variables of all options.
const PREFIX: &str = "HEARTH_";

/// Returns a warning for each variable in `present` that is not in `known`, with the most similar known one.
pub(crate) fn warnings<'a>(known: &[String], present: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut unknown: Vec<&str> =
        present.into_iter().filter(|name| name.starts_with(PREFIX) && !known.iter().any(|k| k == name)).collect();
    unknown.sort_unstable();
    unknown.into_iter().map(|name| warning(known, name)).collect()
}

fn warning(known: &[String], name: &str) -> String {
    let advice = match nearest(known, name) {
        Some(candidate) => format!("did you mean {candidate}?"),
        None => "`hearth --help` lists the known variables".to_owned(),
    };
    format!("warning: the variable {name} is unknown and ignored: {advice}")
}

/// Returns the most similar known name, by Damerau-Levenshtein distance, if it is similar enough.
///
/// A missing, extra, wrong or swapped letter is one mistake. The bound is one mistake, plus one for every six letters.
fn nearest<'a>(known: &'a [String], name: &str) -> Option<&'a String> {
    let own = name.trim_start_matches(PREFIX);
    let mistakes = known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(candidate.trim_start_matches(PREFIX), own), candidate));
    let (fewest, candidate) = mistakes.min_by_key(|(mistakes, _)| *mistakes)?;
    (fewest <= 1 + own.len() / 6).then_some(candidate)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;

    #[test]
    fn warnings_suggest_the_nearest_known_variable() {
        let known = Cli::known_variables();
        for (present, suggested) in [
            ("HEARTH_LGO", Some("HEARTH_LOG")),
            ("HEARTH_API_LISTENER", Some("HEARTH_API_LISTEN")),
            ("HEARTH_DATADIR", Some("HEARTH_DATA_DIR")),
            ("HEARTH_SANDBOX_MAX", Some("HEARTH_SANDBOXES_MAX")),
            ("HEARTH_SERVICE_HOST", None),
            ("HEARTH_PORT_3000_TCP_ADDR", None),
        ] {
            let warnings = warnings(&known, ["HOME", "HEARTH_LOG", present]);
            assert!(warnings.len() == 1 && warnings[0].contains(present), "{warnings:?}");
            match suggested {
                Some(name) => assert!(warnings[0].ends_with(&format!("did you mean {name}?")), "{warnings:?}"),
                None => assert!(warnings[0].contains("hearth --help"), "{warnings:?}"),
            }
        }
        assert_eq!(warnings(&known, ["HEARTH_LOG", "PATH", "E2B_API_KEY"]), Vec::<String>::new());
    }
}
