//! Recipes: the contents of templates as data, from `guest/recipes`, embedded in the binary.
//!
//! ```text
//! guest/recipes/<name>/recipe.toml   packages, resources, commands and the names of the files below
//!                      setup.sh      run as root in the root filesystem, without network
//!                      ...           lock files, and a tree of files for the root filesystem
//! ```
//!
//! A recipe may extend another one: its root filesystem has all packages of its *lineage*, and the other steps of each
//! recipe follow in the order of the lineage, the oldest first.

use std::collections::HashSet;
use std::sync::LazyLock;

use hearth_types::Resources;

mod document;

use document::Document;

/// Name of the recipe that is made first, and its alias: the template that SDKs request by default.
pub const BASE: &str = "base";
/// Name of the document in a recipe's folder.
const DOCUMENT: &str = "recipe.toml";
/// Declaration of the interpreter's service in a root filesystem, for PID 1.
const INTERPRETER_SERVICE: &str = "etc/hearth/services/interpreter";
/// Contents of `guest/recipes`, sorted by path.
const FILES: &[File] = include!(concat!(env!("OUT_DIR"), "/recipes.rs"));

/// An embedded file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct File {
    recipe: &'static str,
    /// Path below the folder of the recipe, or below the part of it that was selected.
    pub(crate) path: &'static str,
    pub(crate) executable: bool,
    pub(crate) bytes: &'static [u8],
}

/// Description of a template.
#[derive(Debug, Clone)]
pub struct Recipe {
    name: &'static str,
    document: Document,
}

static RECIPES: LazyLock<Vec<Recipe>> =
    LazyLock::new(|| read(FILES).expect("the recipes in the repository are valid, as a test checks"));

impl Recipe {
    /// Returns all recipes, sorted by name.
    pub fn all() -> &'static [Self] {
        &RECIPES
    }

    /// Returns the recipe of this name.
    pub fn find(name: &str) -> Option<&'static Self> {
        Self::all().iter().find(|recipe| recipe.name == name)
    }

    /// Returns the recipe [`BASE`].
    pub fn base() -> &'static Self {
        Self::find(BASE).expect("the recipe is part of the repository")
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Returns the name under which clients request the template.
    pub fn alias(&self) -> &str {
        &self.document.alias
    }

    /// Returns the virtual hardware of the template.
    pub fn resources(&self) -> Resources {
        let document::Resources { cpu_count, memory_mib, disk_mib } = self.document.resources;
        Resources { vcpus: cpu_count, memory_mib, disk_mib }
    }

    /// Returns the recipes that this one extends, the oldest first, and then the recipe itself.
    pub(crate) fn lineage(&self) -> Vec<&Self> {
        let mut lineage = vec![self];
        while let Some(parent) = lineage[lineage.len() - 1].document.extends.as_deref().and_then(Self::find) {
            lineage.push(parent);
        }
        lineage.reverse();
        lineage
    }

    /// Returns the Debian packages of the lineage.
    pub(crate) fn packages(&self) -> Vec<&str> {
        let packages = self.lineage().into_iter().flat_map(|recipe| &recipe.document.packages);
        packages.map(String::as_str).collect()
    }

    /// Returns the commands of the lineage that load programs into the guest's memory.
    pub(crate) fn warm_up(&self) -> Vec<&str> {
        let commands = self.lineage().into_iter().flat_map(|recipe| &recipe.document.warm_up);
        commands.map(String::as_str).collect()
    }

    /// Returns the URL that must answer in the guest: the recipe's own, or that of the nearest extended one.
    pub(crate) fn ready(&self) -> Option<&str> {
        self.lineage().into_iter().rev().find_map(|recipe| recipe.document.ready.as_deref())
    }

    /// Returns true if the root filesystem declares the service of the interpreter.
    pub(crate) fn needs_interpreter(&self) -> bool {
        let trees = self.lineage().into_iter().flat_map(Self::tree);
        trees.into_iter().any(|file| file.path == INTERPRETER_SERVICE)
    }

    /// Returns the size of the finished tree of files, roughly.
    pub(crate) fn installed_bytes(&self) -> u64 {
        self.document.installed_mib << 20
    }

    /// Returns the script that configures the root filesystem.
    pub(crate) fn setup(&self) -> Option<File> {
        self.document.setup.as_deref().and_then(|path| self.file(path))
    }

    /// Returns the lock file of Python packages.
    pub(crate) fn python_lock(&self) -> Option<File> {
        self.document.python_lock.as_deref().and_then(|path| self.file(path))
    }

    /// Returns the files that lock the Node packages.
    pub(crate) fn node_lock(&self) -> Vec<File> {
        self.below(self.document.npm_lock_folder.as_deref())
    }

    /// Returns the tree of files that is copied over the root filesystem.
    pub(crate) fn tree(&self) -> Vec<File> {
        self.below(self.document.files.as_deref())
    }

    /// Returns true if packages of Python or Node are installed from a registry.
    pub(crate) fn uses_registries(&self) -> bool {
        let lineage = self.lineage();
        lineage.iter().any(|recipe| recipe.document.python_lock.is_some() || recipe.document.npm_lock_folder.is_some())
    }

    /// Returns the files of a folder, with paths below it.
    fn below(&self, folder: Option<&str>) -> Vec<File> {
        let Some(folder) = folder else { return Vec::new() };
        let inside = |file: File| Some(File { path: file.path.strip_prefix(folder)?.strip_prefix('/')?, ..file });
        self.files().filter_map(inside).collect()
    }

    fn file(&self, path: &str) -> Option<File> {
        self.files().find(|file| file.path == path)
    }

    fn files(&self) -> impl Iterator<Item = File> {
        FILES.iter().copied().filter(|file| file.recipe == self.name)
    }

    /// Returns all that the root filesystem is made of, for a hash.
    pub(crate) fn inputs(&self) -> Vec<&[u8]> {
        let mut inputs: Vec<&[u8]> = Vec::new();
        for recipe in self.lineage() {
            inputs.push(recipe.name.as_bytes());
            inputs.extend(recipe.document.packages.iter().map(String::as_bytes));
            let single = recipe.python_lock().into_iter().chain(recipe.setup());
            for file in single.chain(recipe.node_lock()).chain(recipe.tree()) {
                let mode: &[u8] = if file.executable { b"executable" } else { b"file" };
                inputs.extend([file.path.as_bytes(), mode, file.bytes]);
            }
        }
        inputs
    }
}

/// Reads the documents among `files` and checks what they refer to.
fn read(files: &'static [File]) -> Result<Vec<Recipe>, String> {
    let mut recipes = Vec::new();
    for file in files.iter().filter(|file| file.path == DOCUMENT) {
        let name = file.recipe;
        let document = std::str::from_utf8(file.bytes).map_err(|error| error.to_string()).and_then(Document::parse);
        let document = document.map_err(|reason| format!("recipe {name}: {reason}"))?;
        recipes.push(Recipe { name, document });
    }
    for recipe in &recipes {
        recipe.check(files, &recipes).map_err(|reason| format!("recipe {}: {reason}", recipe.name))?;
    }
    Ok(recipes)
}

impl Recipe {
    fn check(&self, files: &[File], recipes: &[Self]) -> Result<(), String> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if !self.name.bytes().all(plain) {
            return Err("the name may have lower-case letters, digits and dashes".to_owned());
        }
        let Document { setup, python_lock, npm_lock_folder, files: tree, .. } = &self.document;
        let lock = npm_lock_folder.as_ref().map(|folder| format!("{folder}/package-lock.json"));
        for path in [setup, python_lock, &lock, tree].into_iter().flatten() {
            let found = |file: &File| {
                let rest = file.path.strip_prefix(path.as_str());
                file.recipe == self.name && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            };
            if !files.iter().any(found) {
                return Err(format!("{path} is missing"));
            }
        }
        let mut seen = HashSet::from([self.name]);
        let mut packages: HashSet<&str> = HashSet::new();
        let mut current = self;
        loop {
            for package in &current.document.packages {
                let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte);
                if package.is_empty() || !package.bytes().all(plain) || !packages.insert(package) {
                    return Err(format!("the package `{package}` has an invalid name, or is listed twice"));
                }
            }
            let Some(parent) = current.document.extends.as_deref() else { return Ok(()) };
            let known = recipes.iter().find(|recipe| recipe.name == parent);
            current = known.ok_or_else(|| format!("it extends {parent}, which does not exist"))?;
            if !seen.insert(current.name) {
                return Err("it extends itself".to_owned());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(recipe: &'static str, text: &'static str) -> File {
        File { recipe, path: DOCUMENT, executable: false, bytes: text.as_bytes() }
    }

    fn check(files: Vec<File>) -> Result<Vec<Recipe>, String> {
        read(files.leak())
    }

    const RESOURCES: &str =
        "alias = \"x\"\ninstalled_mib = 1\n[resources]\ncpu_count = 1\nmemory_mib = 2\ndisk_mib = 3\n";

    #[test]
    fn the_embedded_recipes_are_valid() {
        let recipes = read(FILES).expect("valid");
        assert!(recipes.iter().any(|recipe| recipe.name == BASE));
        let base = Recipe::base();
        assert_eq!(base.resources(), Resources { vcpus: 2, memory_mib: 512, disk_mib: 8192 });
        assert!(base.packages().contains(&"python3") && base.packages().contains(&"nodejs"));
        assert!(base.setup().is_some_and(|script| !script.bytes.is_empty()));
        for recipe in Recipe::all() {
            assert_eq!(recipe.lineage()[0].name, BASE, "{} would have no user and no daemon's needs", recipe.name);
        }
    }

    #[test]
    fn a_recipe_has_the_packages_and_warm_up_of_those_that_it_extends() {
        let recipe = Recipe::find("code-interpreter-v1").expect("embedded");
        let names = recipe.lineage().iter().map(|recipe| recipe.name()).collect::<Vec<_>>();
        assert_eq!(names, ["base", "code-interpreter-v1"]);
        assert!(recipe.packages().contains(&"git") && recipe.packages().contains(&"r-cran-irkernel"));
        assert_eq!(recipe.warm_up()[..], Recipe::base().warm_up());
        assert!(recipe.needs_interpreter() && !Recipe::base().needs_interpreter());
        assert!(recipe.uses_registries() && !Recipe::base().uses_registries());
        assert_eq!((recipe.ready().is_some(), Recipe::base().ready()), (true, None));
        let tree = recipe.tree();
        assert!(tree.iter().any(|file| file.path == "etc/hearth/interpreter/warm-up.py"), "paths are relative");
        assert_ne!(recipe.inputs(), Recipe::base().inputs());
    }

    #[test]
    fn mistakes_are_named() {
        let extending = |parent: &str| format!("extends = \"{parent}\"\n{RESOURCES}").leak() as &'static str;
        let package = |name: &str| format!("packages = [\"{name}\"]\n{RESOURCES}").leak() as &'static str;
        for (files, expected) in [
            (vec![file("a", "alias = 1")], "recipe a: "),
            (vec![file("a", extending("b"))], "recipe a: it extends b, which does not exist"),
            (vec![file("a", extending("b")), file("b", extending("a"))], "recipe a: it extends itself"),
            (vec![file("A b", RESOURCES)], "recipe A b: the name may have"),
            (vec![file("a", package("x y"))], "recipe a: the package `x y` has an invalid name"),
            (vec![file("a", format!("setup = \"s\"\n{RESOURCES}").leak())], "recipe a: s is missing"),
            (vec![file("a", format!("set_up = \"s\"\n{RESOURCES}").leak())], "recipe a: "),
        ] {
            let error = check(files).expect_err(expected);
            assert!(error.starts_with(expected), "{error}");
        }
        assert_eq!(check(vec![file("a", RESOURCES)]).expect("valid").len(), 1);
    }
}
