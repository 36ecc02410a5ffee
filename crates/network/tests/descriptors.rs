//! Removal of slots in a process that cannot open more files.
//!
//! The only test in its program, because the limit applies to the whole process.

use std::net::Ipv4Addr;
use std::time::Duration;

use hearth_host::{namespace, requirement};
use hearth_network::{Config, Mode, Pool};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

fn set_open_files_limit(current: Option<u64>) {
    let limit = Rlimit { current, ..getrlimit(Resource::Nofile) };
    setrlimit(Resource::Nofile, limit).expect("sets");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_removal_of_a_slot_is_retried() {
    let finding = requirement::network_namespaces();
    if !finding.found {
        println!("skipped: {}", finding.detail);
        return;
    }
    let folder = tempfile::tempdir().expect("temporary folder");
    let config = Config {
        mode: Mode::Namespaces,
        owner: folder.path().display().to_string(),
        block: Ipv4Addr::new(10, 251, 0, 0),
        prepared_target: 0,
        guests_max: 1,
        egress_denied: Vec::new(),
    };
    let pool = Pool::open(config).await.expect("opens");
    let slots = [pool.acquire(true).await.expect("slot"), pool.acquire(true).await.expect("slot")];
    let paths = slots.each_ref().map(|slot| slot.namespace().expect("namespace").to_owned());
    let before = getrlimit(Resource::Nofile).current;
    set_open_files_limit(Some(3));
    let [first, second] = slots;
    pool.release(first).await;
    let while_exhausted = (paths[0].exists(), pool.unremoved());
    let refused = pool.acquire(true).await;
    set_open_files_limit(before);
    assert_eq!(while_exhausted, (false, 1), "the namespace was not removed, or the rest was");
    assert!(refused.is_err_and(|error| error.is_exhaustion()), "a slot was made without descriptors");
    let removed = async {
        while pool.unremoved() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), removed).await.expect("is removed");

    // At shutdown as well, up to its limit.
    set_open_files_limit(Some(3));
    pool.release(second).await;
    set_open_files_limit(before);
    pool.shutdown().await;
    assert_eq!(pool.unremoved(), 0);
    let links = namespace::links("hrt");
    assert!(paths.iter().all(|path| !path.exists()), "{links:?}");
}
