//! Variables named `HEARTH_…` that no option has: a typing mistake, or another program's. Kubernetes, for one, sets
//! `HEARTH_SERVICE_HOST` and the like for a service named `hearth`. They are ignored with a warning.

/// What all names begin with.
const PREFIX: &str = "HEARTH_";

/// Returns a warning for each present variable that is not known, with the known one that it resembles.
pub(crate) fn warnings<'a>(known: &[String], present: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut unknown: Vec<&str> =
        present.into_iter().filter(|name| name.starts_with(PREFIX) && !known.iter().any(|k| k == name)).collect();
    unknown.sort_unstable();
    unknown.into_iter().map(|name| warning(known, name)).collect()
}

fn warning(known: &[String], name: &str) -> String {
    let advice = match nearest(known, name) {
        Some(candidate) => format!("did you mean {candidate}?"),
        None => "`hearth --help` lists those that are known".to_owned(),
    };
    format!("warning: the variable {name} is unknown and ignored: {advice}")
}

/// The known name that becomes this one by the fewest mistakes, if these are few: a letter that is missing, too many, wrong or
/// swapped with the next. One mistake may always be made, and another for every six letters.
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
    fn unknown_variables_are_named_with_the_nearest_known_one() {
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
