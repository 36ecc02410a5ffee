//! Choice of the templates to prepare.

use anyhow::{Result, bail};
use clap::builder::PossibleValuesParser;
use hearth_builder::Recipe;

/// Templates that are prepared without a choice of the operator: those that SDKs request by default.
const DEFAULT: [&str; 2] = [hearth_builder::BASE, "code-interpreter-v1"];

/// Returns the names that an option for templates accepts, for errors and shell completion.
pub(crate) fn names() -> PossibleValuesParser {
    PossibleValuesParser::new(Recipe::all().iter().map(Recipe::name))
}

/// Selected templates: `base` first, then the others in the order of their preparation, each once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Selection {
    names: Vec<&'static str>,
}

impl Selection {
    /// Selects `base` and the named templates; the default ones if none is named.
    pub(super) fn from_option(named: &[String]) -> Result<Self> {
        if named.is_empty() {
            // A release without a recipe of this name has nothing to prepare for it.
            let known = DEFAULT.iter().filter_map(|name| Recipe::find(name));
            return Ok(Self::of(known.map(Recipe::name)));
        }
        Self::only(named)
    }

    /// Selects `base` and the named templates.
    ///
    /// # Errors
    /// A name is unknown. The message lists the known ones.
    pub(crate) fn only(named: &[String]) -> Result<Self> {
        let mut names = Vec::new();
        for name in named {
            match Recipe::find(name.trim()) {
                Some(recipe) => names.push(recipe.name()),
                None => {
                    let known: Vec<&str> = Recipe::all().iter().map(Recipe::name).collect();
                    bail!("there is no template `{name}`: choose among {}", known.join(", "));
                }
            }
        }
        Ok(Self::of(names))
    }

    fn of(names: impl IntoIterator<Item = &'static str>) -> Self {
        let mut unique = vec![hearth_builder::BASE];
        for name in names {
            if !unique.contains(&name) {
                unique.push(name);
            }
        }
        Self { names: unique }
    }

    /// Returns the names, `base` first.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.names.iter().copied()
    }

    /// Returns the recipes, that of `base` first.
    pub(crate) fn recipes(&self) -> impl Iterator<Item = &'static Recipe> {
        self.names().filter_map(Recipe::find)
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.names.contains(&name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_is_always_selected_first_and_once() {
        let names = |selection: Selection| selection.names().collect::<Vec<_>>();
        assert_eq!(names(Selection::of([])), ["base"]);
        assert_eq!(names(Selection::of(["tools", "base", "tools"])), ["base", "tools"]);
        assert_eq!(names(Selection::only(&[" base".to_owned()]).expect("known")), ["base"]);
        let error = Selection::only(&["base".to_owned(), "bse".to_owned()]).expect_err("unknown").to_string();
        assert!(error.starts_with("there is no template `bse`: choose among base"), "{error}");
        let default = Selection::from_option(&[]).expect("valid");
        assert!(default.contains("base") && default.recipes().count() <= DEFAULT.len());
    }
}
