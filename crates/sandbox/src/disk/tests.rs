//! On a small file system of its own, that only the test's thread sees.

use std::fs::{self, File};
use std::io::Write;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::*;

const MIB: u64 = 1 << 20;
/// The disk, of which 16 MiB are reserved.
const DISK_MIB: u64 = 64;

/// Runs a test with a folder that has [`DISK_MIB`], on a clock that is told to go on.
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

/// Each sandbox has a disk of 64 MiB, of which it is certain to get 16 and its tables.
fn room(folder: &Path) -> DiskRoom {
    let config = DiskConfig { folder: folder.to_owned(), reserve_bytes: 16 * MIB, overcommit: 4 };
    DiskRoom::open(config).expect("opens")
}

fn grow(path: &Path, mib: u64) {
    let mut file = File::options().append(true).open(path).expect("opens");
    // Behind what is allocated.
    file.set_len(40 * MIB).expect("grows");
    file.write_all(&vec![1; usize::try_from(mib * MIB).expect("small")]).expect("writes");
}

#[test]
fn shares_are_taken_and_the_reserve_is_not() {
    on_small_disk(|folder| async move {
        let room = room(&folder);
        assert_eq!(room.more(64 * MIB), 2);
        for name in ["a", "b"] {
            room.create_overlay(&folder.join(name), 64 * MIB).expect("has room");
        }
        assert!(free_bytes(&folder).expect("tells") < 31 * MIB, "the shares are not allocated");
        let refused = room.create_overlay(&folder.join("c"), 64 * MIB).expect_err("no room");
        let Error::NoRoom(no_room) = &refused else { panic!("{refused:?}") };
        assert_eq!(no_room.share_mib, 17);
        assert!(no_room.to_string().contains("--disk-overcommit"), "{no_room}");
        assert!(room.check(64 * MIB).is_err() && room.check(8 * MIB).is_ok());
        assert!(!folder.join("c").exists());
        fs::remove_file(folder.join("a")).expect("removes");
        room.create_overlay(&folder.join("c"), 64 * MIB).expect("has room again");
    });
}

/// Some file systems cannot allocate, and a guest gives blocks back.
#[test]
fn what_is_promised_and_not_allocated_counts() {
    on_small_disk(|folder| async move {
        let room = room(&folder);
        for name in ["a", "b"] {
            room.create_overlay(&folder.join(name), 64 * MIB).expect("has room");
            File::create(folder.join(name)).expect("gives all blocks back");
        }
        assert!(room.check(64 * MIB).is_err());
    });
}

#[test]
fn only_who_takes_more_than_its_share_waits_until_there_is_room() {
    on_small_disk(|folder| async move {
        let room = room(&folder);
        let (hog, modest) = (folder.join("hog"), folder.join("modest"));
        for path in [&hog, &modest] {
            room.create_overlay(path, 64 * MIB).expect("has room");
        }
        let stop = CancellationToken::new();
        let looking = tokio::spawn(room.clone().run(stop.clone()));
        let waits = |path: PathBuf| {
            let room = room.clone();
            async move { tokio::time::timeout(Duration::from_secs(5), room.over_share(&path)).await.is_ok() }
        };
        assert!(!waits(hog.clone()).await, "there is room");
        grow(&hog, 20);
        assert!(waits(hog.clone()).await, "the hog is not held");
        assert!(!waits(modest.clone()).await, "the modest one is held");
        // Room comes before its time is up.
        let filler = folder.join("filler");
        let waiting = tokio::spawn({
            let (room, hog) = (room.clone(), hog.clone());
            async move { room.room(&hog).await }
        });
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert!(!waiting.is_finished());
        assert!(!filler.exists());
        fs::remove_file(&modest).expect("removes");
        assert!(waiting.await.expect("ends"), "the hog does not go on");
        stop.cancel();
        looking.await.expect("ends");
    });
}

#[test]
fn the_largest_goes_first_when_no_room_comes() {
    on_small_disk(|folder| async move {
        let room = room(&folder);
        let (large, small) = (folder.join("large"), folder.join("small"));
        for path in [&large, &small] {
            room.create_overlay(path, 32 * MIB).expect("has room");
        }
        grow(&large, 24);
        grow(&small, 8);
        let stop = CancellationToken::new();
        let looking = tokio::spawn(room.clone().run(stop.clone()));
        room.over_share(&large).await;
        room.over_share(&small).await;
        let began = Instant::now();
        let small_goes_on = tokio::spawn({
            let (room, small) = (room.clone(), small.clone());
            async move { room.room(&small).await }
        });
        assert!(!room.room(&large).await, "room came from nowhere");
        assert!(began.elapsed() >= PATIENCE);
        assert!(!small_goes_on.is_finished());
        // Its end is what makes room, after a moment.
        tokio::time::sleep(TURN).await;
        assert!(!small_goes_on.is_finished());
        fs::remove_file(&large).expect("removes");
        assert!(small_goes_on.await.expect("ends"));
        stop.cancel();
        looking.await.expect("ends");
    });
}
