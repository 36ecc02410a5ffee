//! Kernel modules and the order in which to load them.
//!
//! A package has no index of dependencies (`depmod` makes it during installation), but every module names its own in
//! the section `.modinfo`: texts `key=value`, each terminated by a zero byte.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use lzma_rust2::XzReader;
use object::{Object, ObjectSection};
use walkdir::WalkDir;

use crate::Error;

/// Maximum size of an unpacked module. The largest of a distribution are a few MiB.
const MODULE_BYTES_MAX: u64 = 64 << 20;

/// Modules of a kernel, by name.
#[derive(Debug)]
pub(super) struct Modules {
    files: BTreeMap<String, PathBuf>,
    built_in: BTreeSet<String>,
}

impl Modules {
    /// Finds the modules below a folder with an unpacked kernel package.
    pub(super) fn read(folder: &Path) -> Result<Self, Error> {
        let mut files = BTreeMap::new();
        let mut built_in = BTreeSet::new();
        for entry in WalkDir::new(folder).into_iter().flatten() {
            let path = entry.path();
            if entry.file_name() == "modules.builtin" {
                let list = fs::read_to_string(path).map_err(Error::file("reading", path))?;
                built_in.extend(list.lines().filter_map(|line| name(Path::new(line))));
            } else if let Some(name) = name(path) {
                files.insert(name, path.to_owned());
            }
        }
        Ok(Self { files, built_in })
    }

    /// Returns the wanted modules and their dependencies, uncompressed, each after its dependencies.
    ///
    /// Modules built into the kernel are left out.
    pub(super) fn in_load_order(&self, wanted: &[&str]) -> Result<Vec<(String, Vec<u8>)>, Error> {
        let mut seen = BTreeSet::new();
        let mut order = Vec::new();
        for name in wanted {
            self.visit(name, &mut seen, &mut order)?;
        }
        Ok(order)
    }

    fn visit(&self, name: &str, seen: &mut BTreeSet<String>, order: &mut Vec<(String, Vec<u8>)>) -> Result<(), Error> {
        // Dependencies have no cycles: such modules could not be loaded.
        if !seen.insert(name.to_owned()) || self.built_in.contains(name) {
            return Ok(());
        }
        let error = |reason: String| Error::Module { module: name.to_owned(), reason };
        let path = self.files.get(name).ok_or_else(|| error("this kernel does not have it".to_owned()))?;
        let bytes = contents(path).map_err(|reason| error(format!("unpacking {}: {reason}", path.display())))?;
        for dependency in dependencies(&bytes).map_err(|reason| error(reason.to_string()))? {
            self.visit(&dependency, seen, order)?;
        }
        order.push((name.to_owned(), bytes));
        Ok(())
    }
}

/// Returns the name by which other modules refer to a module: without extensions, with underscores.
fn name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let (stem, ending) = file.split_once(".ko")?;
    matches!(ending, "" | ".xz").then(|| stem.replace('-', "_"))
}

fn contents(path: &Path) -> std::io::Result<Vec<u8>> {
    let file = fs::File::open(path)?;
    let mut bytes = Vec::new();
    if path.extension().is_some_and(|extension| extension == "xz") {
        XzReader::new(file, true).take(MODULE_BYTES_MAX).read_to_end(&mut bytes)?;
    } else {
        file.take(MODULE_BYTES_MAX).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

fn dependencies(module: &[u8]) -> object::Result<Vec<String>> {
    let elf = object::File::parse(module)?;
    let Some(section) = elf.section_by_name(".modinfo") else { return Ok(Vec::new()) };
    let texts = section.data()?.split(|byte| *byte == 0);
    let lists = texts.filter_map(|text| std::str::from_utf8(text).ok()?.strip_prefix("depends="));
    let names = lists.flat_map(|list| list.split(',')).filter(|name| !name.is_empty());
    Ok(names.map(|name| name.replace('-', "_")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_a_module_have_the_same_name() {
        for (path, expected) in [
            ("kernel/net/nf_tables.ko", Some("nf_tables")),
            ("a/virtio-mmio.ko.xz", Some("virtio_mmio")),
            ("a/b.ko.zst", None),
            ("modules.order", None),
        ] {
            assert_eq!(name(Path::new(path)).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn an_unusable_module_is_named_in_the_error() {
        let folder = tempfile::tempdir().expect("temporary folder");
        fs::write(folder.path().join("broken.ko"), "no ELF").expect("writes");
        fs::write(folder.path().join("modules.builtin"), "kernel/a/built-in.ko\n").expect("writes");
        let modules = Modules::read(folder.path()).expect("lists");
        assert!(modules.in_load_order(&["built_in"]).expect("nothing to load").is_empty());
        for wanted in ["broken", "absent"] {
            let error = modules.in_load_order(&[wanted]).expect_err("unusable");
            assert!(matches!(error, Error::Module { module, .. } if module == wanted));
        }
    }
}
