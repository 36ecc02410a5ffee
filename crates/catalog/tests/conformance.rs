//! Conformance suite for all backends of the catalog, written against [`Catalog`].

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hearth_catalog::{Catalog, Error, LEASE_MAX};
use hearth_types::{ExecutionId, NodeAddress, Route, SandboxId, TeamId, Visitors};
use tokio::task::JoinSet;
use tokio::time::advance;

const LEASE: Duration = Duration::from_secs(30);
const TICK: Duration = Duration::from_millis(1);

fn route(sandbox_id: &SandboxId) -> Route {
    Route {
        sandbox_id: sandbox_id.clone(),
        execution_id: ExecutionId::generate(),
        team_id: TeamId::generate(),
        node_id: "node-1.example".parse().expect("valid"),
        node_proxy: NodeAddress::Unix(PathBuf::from("/run/node/proxy.sock")),
        visitors: Visitors::All,
        host_mask: None,
        https_ports: BTreeSet::new(),
    }
}

async fn find(catalog: &Catalog, sandbox_id: &SandboxId) -> Option<Route> {
    catalog.find(sandbox_id).await.expect("the catalog is reachable").map(Arc::unwrap_or_clone)
}

async fn suite(catalog: &Catalog) {
    a_route_is_found_as_published(catalog).await;
    a_route_expires_with_its_lease(catalog).await;
    renewing_restarts_the_lease(catalog).await;
    an_older_execution_is_replaced_by_name_only(catalog).await;
    a_superseded_execution_changes_nothing(catalog).await;
    listing_returns_live_routes(catalog).await;
}

async fn a_route_is_found_as_published(catalog: &Catalog) {
    let sandbox_id = SandboxId::generate();
    assert_eq!(find(catalog, &sandbox_id).await, None);
    let tcp = NodeAddress::Tcp(SocketAddr::from((Ipv4Addr::new(10, 1, 2, 3), 5008)));
    for node_proxy in [NodeAddress::Unix(PathBuf::from("/run/node/proxy.sock")), tcp] {
        let route = Route { node_proxy, ..route(&sandbox_id) };
        catalog.publish(route.clone(), LEASE, None).await.expect("the route is free");
        assert_eq!(find(catalog, &sandbox_id).await.as_ref(), Some(&route));
        assert_eq!(find(&catalog.clone(), &sandbox_id).await.as_ref(), Some(&route), "clones share the routes");
        assert_eq!(catalog.remove(&sandbox_id, route.execution_id).await, Ok(true));
        assert_eq!(find(catalog, &sandbox_id).await, None);
        assert_eq!(catalog.remove(&sandbox_id, route.execution_id).await, Ok(false), "it is removed already");
    }
}

async fn a_route_expires_with_its_lease(catalog: &Catalog) {
    let sandbox_id = SandboxId::generate();
    for (lease, lasts) in [(LEASE, LEASE), (Duration::MAX, LEASE_MAX)] {
        let route = route(&sandbox_id);
        catalog.publish(route.clone(), lease, None).await.expect("the previous lease expired");
        advance(lasts - TICK).await;
        assert_eq!(find(catalog, &sandbox_id).await.as_ref(), Some(&route));
        advance(TICK).await;
        assert_eq!(find(catalog, &sandbox_id).await, None);
        assert_eq!(catalog.renew(&sandbox_id, route.execution_id, LEASE).await, Ok(false), "too late");
        assert_eq!(catalog.remove(&sandbox_id, route.execution_id).await, Ok(false), "too late");
    }
    catalog.publish(route(&sandbox_id), Duration::ZERO, None).await.expect("the previous lease expired");
    assert_eq!(find(catalog, &sandbox_id).await, None, "a lease of zero length");
}

async fn renewing_restarts_the_lease(catalog: &Catalog) {
    let sandbox_id = SandboxId::generate();
    let route = route(&sandbox_id);
    catalog.publish(route.clone(), LEASE, None).await.expect("the route is free");
    for _ in 0..3 {
        advance(LEASE - TICK).await;
        assert_eq!(catalog.renew(&sandbox_id, route.execution_id, LEASE).await, Ok(true));
    }
    advance(LEASE - TICK).await;
    catalog.publish(route.clone(), LEASE, None).await.expect("the holder may publish again");
    advance(LEASE - TICK).await;
    assert_eq!(find(catalog, &sandbox_id).await, Some(route));
}

async fn an_older_execution_is_replaced_by_name_only(catalog: &Catalog) {
    let sandbox_id = SandboxId::generate();
    let [old, new] = [(); 2].map(|()| route(&sandbox_id));
    catalog.publish(old.clone(), LEASE, None).await.expect("the route is free");
    let rejected = Err(Error::Held { sandbox_id: sandbox_id.clone(), holder: old.execution_id });
    for replaces in [None, Some(ExecutionId::generate()), Some(new.execution_id)] {
        assert_eq!(catalog.publish(new.clone(), LEASE, replaces).await, rejected);
        assert_eq!(find(catalog, &sandbox_id).await.as_ref(), Some(&old));
    }
    catalog.publish(new.clone(), LEASE, Some(old.execution_id)).await.expect("it names the execution that it replaces");
    assert_eq!(find(catalog, &sandbox_id).await, Some(new));
}

async fn a_superseded_execution_changes_nothing(catalog: &Catalog) {
    let sandbox_id = SandboxId::generate();
    let [old, new] = [(); 2].map(|()| route(&sandbox_id));
    catalog.publish(old.clone(), LEASE, None).await.expect("the route is free");
    catalog.publish(new.clone(), LEASE, Some(old.execution_id)).await.expect("it names the execution that it replaces");
    assert_eq!(catalog.renew(&sandbox_id, old.execution_id, LEASE_MAX).await, Ok(false));
    assert_eq!(catalog.remove(&sandbox_id, old.execution_id).await, Ok(false));
    catalog.publish(old, LEASE, None).await.expect_err("the new execution holds it");
    advance(LEASE - TICK).await;
    assert_eq!(find(catalog, &sandbox_id).await, Some(new));
    advance(TICK).await;
    assert_eq!(find(catalog, &sandbox_id).await, None, "the old execution did not extend the lease");
}

async fn listing_returns_live_routes(catalog: &Catalog) {
    let [short, long, removed] = [(); 3].map(|()| route(&SandboxId::generate()));
    for (route, lease) in [(&short, LEASE), (&long, 2 * LEASE), (&removed, 2 * LEASE)] {
        catalog.publish(route.clone(), lease, None).await.expect("the route is free");
    }
    assert_eq!(catalog.remove(&removed.sandbox_id, removed.execution_id).await, Ok(true));
    let mine = |listed: Vec<Route>| -> Vec<Route> {
        listed.into_iter().filter(|route| [&short, &long, &removed].contains(&route)).collect()
    };
    let mut listed = mine(catalog.list().await.expect("the catalog is reachable"));
    listed.sort_by_key(|route| *route != short);
    assert_eq!(listed, [short.clone(), long.clone()]);
    advance(LEASE).await;
    assert_eq!(mine(catalog.list().await.expect("the catalog is reachable")), std::slice::from_ref(&long));
}

async fn one_of_many_publishers_wins(catalog: &Catalog) {
    let sandbox_id = SandboxId::generate();
    let mut publishers = JoinSet::new();
    for _ in 0..100 {
        let (catalog, route) = (catalog.clone(), route(&sandbox_id));
        publishers.spawn(async move { (route.clone(), catalog.publish(route, LEASE, None).await) });
    }
    let outcomes = publishers.join_all().await;
    let winners: Vec<&Route> = outcomes.iter().filter(|(_, done)| done.is_ok()).map(|(route, _)| route).collect();
    assert_eq!(winners.len(), 1);
    assert_eq!(find(catalog, &sandbox_id).await.as_ref(), Some(winners[0]));
    for (_, refusal) in outcomes.iter().filter(|(_, done)| done.is_err()) {
        let holder = winners[0].execution_id;
        assert_eq!(refusal, &Err(Error::Held { sandbox_id: sandbox_id.clone(), holder }));
    }
}

#[tokio::test(start_paused = true)]
async fn memory() {
    suite(&Catalog::in_memory()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn memory_with_many_threads() {
    one_of_many_publishers_wins(&Catalog::in_memory()).await;
}
