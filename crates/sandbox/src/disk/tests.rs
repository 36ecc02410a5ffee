//! Tests on a small file system that only the test's thread sees.

use std::fs::{self, File};
use std::io::Write;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::*;

const MIB: u64 = 1 << 20;
/// Size of the disk, of which 16 MiB are reserved.
const DISK_MIB: u64 = 64;

/// Runs a test with a folder on a disk of [`DISK_MIB`], with a paused clock.
fn on_small_disk<F: Future<Output = ()>>(test: impl FnOnce(PathBuf) -> F + Send) {
    if !hearth_host::requirement::is_root() {
        println!("skipped: only root mounts file systems");
        return;
    }
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().to_owned();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("is private");
            let size = format!("size={DISK_MIB}m");
            mount(Some("small"), &path, Some("tmpfs"), MsFlags::empty(), Some(size.as_str())).expect("mounts");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
            runtime.expect("builds").block_on(test(path.clone()));
        });
    });
}

/// Every sandbox has a disk of 64 MiB and a share of 16 MiB plus tables.
fn space(folder: &Path) -> DiskSpace {
    let config = DiskConfig { folder: folder.to_owned(), reserve_bytes: 16 * MIB, overcommit: 4 };
    DiskSpace::open(config).expect("opens")
}

fn grow(path: &Path, mib: u64) {
    let mut file = File::options().append(true).open(path).expect("opens");
    // Behind the allocated range.
    file.set_len(40 * MIB).expect("grows");
    file.write_all(&vec![1; usize::try_from(mib * MIB).expect("small")]).expect("writes");
}

#[test]
fn shares_are_allocated_and_the_reserve_is_not() {
    on_small_disk(|folder| async move {
        let space = space(&folder);
        assert_eq!(space.fitting_sandboxes(64 * MIB), 2);
        for name in ["a", "b"] {
            space.create_overlay(&folder.join(name), 64 * MIB).expect("has space");
        }
        assert!(free_bytes(&folder).expect("reads") < 31 * MIB, "the shares are not allocated");
        let refused = space.create_overlay(&folder.join("c"), 64 * MIB).expect_err("no space");
        let Error::InsufficientDisk(insufficient) = &refused else { panic!("{refused:?}") };
        assert_eq!(insufficient.share_mib, 17);
        assert!(insufficient.to_string().contains("--disk-overcommit"), "{insufficient}");
        assert!(space.check(64 * MIB).is_err() && space.check(8 * MIB).is_ok());
        assert!(!folder.join("c").exists());
        fs::remove_file(folder.join("a")).expect("removes");
        space.create_overlay(&folder.join("c"), 64 * MIB).expect("has space again");
    });
}

/// Some file systems cannot allocate, and a guest may discard blocks.
#[test]
fn committed_space_counts_even_if_not_allocated() {
    on_small_disk(|folder| async move {
        let space = space(&folder);
        for name in ["a", "b"] {
            space.create_overlay(&folder.join(name), 64 * MIB).expect("has space");
            File::create(folder.join(name)).expect("discards all blocks");
        }
        assert!(space.check(64 * MIB).is_err());
    });
}

#[test]
fn only_a_sandbox_above_its_share_waits_for_space() {
    on_small_disk(|folder| async move {
        let space = space(&folder);
        let (hog, modest) = (folder.join("hog"), folder.join("modest"));
        for path in [&hog, &modest] {
            space.create_overlay(path, 64 * MIB).expect("has space");
        }
        let stop = CancellationToken::new();
        let measuring = tokio::spawn(space.clone().run(stop.clone()));
        let waits = |path: PathBuf| {
            let space = space.clone();
            async move { tokio::time::timeout(Duration::from_secs(5), space.exceeds_share(&path)).await.is_ok() }
        };
        assert!(!waits(hog.clone()).await, "there is space");
        grow(&hog, 20);
        assert!(waits(hog.clone()).await, "the hog does not wait");
        assert!(!waits(modest.clone()).await, "the modest one waits");
        // Space becomes free before the time limit.
        let filler = folder.join("filler");
        let waiting = tokio::spawn({
            let (space, hog) = (space.clone(), hog.clone());
            async move { space.wait_for_space(&hog).await }
        });
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert!(!waiting.is_finished());
        assert!(!filler.exists());
        fs::remove_file(&modest).expect("removes");
        assert!(waiting.await.expect("ends"), "the hog does not continue");
        stop.cancel();
        measuring.await.expect("ends");
    });
}

#[test]
fn the_largest_is_selected_first_if_no_space_becomes_free() {
    on_small_disk(|folder| async move {
        let space = space(&folder);
        let (large, small) = (folder.join("large"), folder.join("small"));
        for path in [&large, &small] {
            space.create_overlay(path, 32 * MIB).expect("has space");
        }
        grow(&large, 24);
        grow(&small, 8);
        let stop = CancellationToken::new();
        let measuring = tokio::spawn(space.clone().run(stop.clone()));
        space.exceeds_share(&large).await;
        space.exceeds_share(&small).await;
        let began = Instant::now();
        let small_goes_on = tokio::spawn({
            let (space, small) = (space.clone(), small.clone());
            async move { space.wait_for_space(&small).await }
        });
        assert!(!space.wait_for_space(&large).await, "space appeared from nowhere");
        assert!(began.elapsed() >= WAIT_LIMIT);
        assert!(!small_goes_on.is_finished());
        // Space becomes free some time after the kill.
        tokio::time::sleep(LARGEST_CHECK_INTERVAL).await;
        assert!(!small_goes_on.is_finished());
        fs::remove_file(&large).expect("removes");
        assert!(small_goes_on.await.expect("ends"));
        stop.cancel();
        measuring.await.expect("ends");
    });
}
