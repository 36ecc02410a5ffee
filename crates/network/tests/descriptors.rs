//! Removal of slots in a process that may open no more files. Alone in its program: the limit is the whole process's.

use std::net::Ipv4Addr;
use std::time::Duration;

use hearth_host::{namespace, requirement};
use hearth_network::{Config, Mode, Pool};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

fn may_open(current: Option<u64>) {
    let limit = Rlimit { current, ..getrlimit(Resource::Nofile) };
    setrlimit(Resource::Nofile, limit).expect("sets");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_cannot_be_removed_is_tried_again() {
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
    may_open(Some(3));
    let [first, second] = slots;
    pool.release(first).await;
    let while_exhausted = (paths[0].exists(), pool.unremoved());
    let refused = pool.acquire(true).await;
    may_open(before);
    assert_eq!(while_exhausted, (false, 1), "the namespace takes no descriptor, the rest does");
    assert!(refused.is_err_and(|error| error.is_exhaustion()), "a slot was made without descriptors");
    let removed = async {
        while pool.unremoved() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), removed).await.expect("is removed");

    // At a stop as well, for as long as it may take.
    may_open(Some(3));
    pool.release(second).await;
    may_open(before);
    pool.shutdown().await;
    assert_eq!(pool.unremoved(), 0);
    let links = namespace::links("hrt");
    assert!(paths.iter().all(|path| !path.exists()), "{links:?}");
}
