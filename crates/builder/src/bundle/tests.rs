//! Bundles between two folders, and files that are no bundles.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::*;
use crate::rootfs::image_name;
use crate::{GuestPrograms, NAMESERVER, NoProgress, SUITE};

const KERNEL_VERSION: &str = "6.12.1+deb13-cloud-amd64";
const WRITER: &str = "1.2.3";

fn config(root: &Path) -> Config {
    Config {
        folder: root.join("guest"),
        guest: GuestPrograms { init: PathBuf::new(), envd: PathBuf::new(), interpreter: None },
        suite: SUITE.to_owned(),
        mirror: None,
        variables: BTreeMap::new(),
        nameserver: NAMESERVER,
    }
}

fn image(config: &Config) -> PathBuf {
    config.folder.join("rootfs").join(image_name(config, Recipe::base(), KERNEL_VERSION))
}

fn write(path: &Path, content: &str) {
    fs::create_dir_all(path.parent().expect("a folder")).expect("creates");
    fs::write(path, content).expect("writes");
}

/// Returns a folder with a kernel and a sparse root filesystem.
fn prepared() -> (TempDir, Config) {
    let root = tempfile::tempdir().expect("a folder");
    let config = config(root.path());
    let kernel = config.folder.join("kernel").join(KERNEL_VERSION);
    write(&config.folder.join("kernel/current-trixie"), KERNEL_VERSION);
    write(&kernel.join("boot/vmlinuz"), "kernel");
    write(&kernel.join("initramfs-0123"), "programs of this machine");
    // Longer than the name in an old tar header.
    let long = format!("usr/lib/modules/{KERNEL_VERSION}/kernel/drivers/net/ethernet/{}/x.ko.xz", "d".repeat(80));
    write(&kernel.join(long), "module");
    write(&image(&config), "");
    let file = File::options().write(true).open(image(&config)).expect("opens");
    file.set_len(64 << 20).expect("grows");
    file.write_all_at(b"root", 32 << 20).expect("writes");
    (root, config)
}

async fn bundled(config: &Config, folder: &Path) -> PathBuf {
    let target = folder.join("bundle");
    write_bundle(config, &[Recipe::base()], WRITER, &target, &NoProgress).await.expect("writes");
    target
}

/// Returns the names of all entries below a folder, except the lock.
fn entries(folder: &Path) -> Vec<String> {
    let entries = walkdir::WalkDir::new(folder).sort_by_file_name().into_iter().flatten();
    let files = entries.filter(|entry| entry.file_type().is_file() && entry.file_name() != "lock");
    files.map(|entry| entry.path().strip_prefix(folder).expect("below").display().to_string()).collect()
}

#[tokio::test]
async fn a_bundle_brings_kernel_and_images_to_another_folder() {
    let (root, from) = prepared();
    let bundle = bundled(&from, root.path()).await;
    assert!(fs::metadata(&bundle).expect("exists").len() < 1 << 20, "the holes were not compressed");
    let target = tempfile::tempdir().expect("a folder");
    let to = config(target.path());
    let read = read_bundle(&to, &[Recipe::base()], &bundle, &NoProgress).await.expect("reads").expect("all is missing");
    assert_eq!(
        (read.writer.as_str(), read.kernel_version.as_str(), read.templates),
        (WRITER, KERNEL_VERSION, vec!["base".to_owned()])
    );
    let mut expected = entries(&from.folder);
    expected.retain(|path| !path.contains("initramfs-"));
    assert_eq!(entries(&to.folder), expected);
    assert_eq!(fs::read(image(&to)).expect("reads"), fs::read(image(&from)).expect("reads"));
    assert!(fs::metadata(image(&to)).expect("exists").blocks() * 512 < 1 << 20, "the holes were filled");
    // A second time there is nothing to do, whatever the file is.
    fs::write(target.path().join("other"), "no bundle").expect("writes");
    let again = read_bundle(&to, &[Recipe::base()], &target.path().join("other"), &NoProgress).await;
    assert_eq!(again.expect("nothing is missing"), None);
    // A missing image is unpacked without replacing the kernel.
    let kernel = to.folder.join("kernel").join(KERNEL_VERSION).join("boot/vmlinuz");
    let before = fs::metadata(&kernel).expect("exists").ino();
    fs::remove_file(image(&to)).expect("removes");
    read_bundle(&to, &[Recipe::base()], &bundle, &NoProgress).await.expect("reads").expect("an image is missing");
    assert_eq!((fs::metadata(&kernel).expect("exists").ino(), entries(&to.folder)), (before, expected));
    // Two bundles of the same inputs are equal, so that one hash identifies them.
    let first = fs::read(&bundle).expect("reads");
    assert!(fs::read(bundled(&from, root.path()).await).expect("reads") == first, "the bundles differ");
}

#[tokio::test]
async fn damaged_and_hostile_bundles_leave_nothing() {
    let (root, from) = prepared();
    let good = fs::read(bundled(&from, root.path()).await).expect("reads");
    let tar = zstd::decode_all(good.as_slice()).expect("decodes");
    let compressed = |tar: &[u8]| zstd::encode_all(tar, 1).expect("encodes");
    let changed = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let mut tar = tar.clone();
        let at = tar.windows(from.len()).rposition(|window| window == from.as_bytes()).expect("contained");
        tar[at..at + from.len()].copy_from_slice(to.as_bytes());
        compressed(&tar)
    };
    let mut flipped = good.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    let extra = |path: &str, kind: tar::EntryType| {
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_path(path).expect("short");
        header.set_size(0);
        header.set_cksum();
        archive.append(&header, io::empty()).expect("appends");
        let end = tar.len() - 1024;
        compressed(&[&tar[..end], &archive.into_inner().expect("ends")].concat())
    };
    let cases = [
        ("empty", Vec::new(), "compressed"),
        ("text", b"hello".repeat(1000), "compressed"),
        ("another archive", compressed(&[0; 2048]), "empty"),
        ("half", good[..good.len() / 2].to_vec(), "damaged or incomplete"),
        ("without its end", good[..good.len() - 1].to_vec(), "damaged or incomplete"),
        ("a flipped bit", flipped, ""),
        ("another content", changed("module", "MODULE"), "hash"),
        ("another image", changed("root", "ROOT"), "hash"),
        ("an unlisted file", extra("kernel/x", tar::EntryType::Regular), "more files"),
        ("a link", extra("kernel/x", tar::EntryType::Symlink), "more files"),
        ("a path in the manifest", changed("kernel/boot/vmlinuz\"", "kernel/../../mlinuz\""), "not allowed"),
    ];
    let target = tempfile::tempdir().expect("a folder");
    let to = config(target.path());
    for (name, bytes, part) in cases {
        let path = target.path().join("bundle");
        fs::write(&path, bytes).expect("writes");
        let error = read_bundle(&to, &[Recipe::base()], &path, &NoProgress).await.expect_err(name).to_string();
        assert!(error.contains(part), "{name}: {error}");
        assert_eq!(entries(&to.folder), Vec::<String>::new(), "{name}");
    }
    let missing =
        read_bundle(&to, &[Recipe::base()], &target.path().join("no"), &NoProgress).await.expect_err("missing");
    assert!(missing.to_string().starts_with("opening "), "{missing}");
}

#[tokio::test]
async fn a_bundle_of_other_recipes_names_its_writer() {
    let (root, mut from) = prepared();
    let bundle = bundled(&from, root.path()).await;
    // The name server is a part of the images' key, like the recipe.
    from.nameserver = "9.9.9.9".parse().expect("an address");
    let error = read_bundle(&from, &[Recipe::base()], &bundle, &NoProgress).await;
    let error = error.expect_err("another key").to_string();
    assert!(error.contains("hearth 1.2.3") && error.contains("base"), "{error}");
    let error = write_bundle(&from, &[Recipe::base()], WRITER, &bundle, &NoProgress).await.expect_err("not prepared");
    assert!(matches!(error, BundleError::NotPrepared("base")), "{error}");
}

#[tokio::test]
async fn an_interrupted_write_leaves_no_file() {
    let (root, from) = prepared();
    let target = root.path().join("bundle");
    let meter = Meter::default();
    drop(CancelOnDrop(meter.clone()));
    let build_folder = BuildFolder::open(&from).await.expect("opens");
    let inputs = write::Inputs::collect(&build_folder, &from, &[Recipe::base()], WRITER).expect("collects");
    let error = inputs.write(&target, &meter).expect_err("cancelled");
    assert!(matches!(error, BundleError::Cancelled), "{error:?}");
    assert_eq!(fs::read_dir(root.path()).expect("lists").count(), 1);
}
