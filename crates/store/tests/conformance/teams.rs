//! Teams and their API keys.

use std::time::Duration;

use hearth_store::{CreateApiKeyError, CreateTeamError, KeySecret, Limits, NewTeam, Standing, Team};
use hearth_types::{ApiKeyId, TeamId};
use jiff::Timestamp;

use crate::{Fixture, at};

const MOST: Limits = Limits {
    sandboxes_max: u32::MAX,
    sandbox_length_max: Duration::from_millis(1),
    vcpus_max: u32::MAX,
    memory_mib_max: u32::MAX,
    builds_max: u32::MAX,
};
const NOTHING: Limits =
    Limits { sandboxes_max: 0, sandbox_length_max: Duration::ZERO, vcpus_max: 0, memory_mib_max: 0, builds_max: 0 };

pub(crate) async fn a_team_is_found_as_created(Fixture { store, .. }: &Fixture) {
    for (slug, limits) in [("default", Limits::STANDARD), ("a-b_9", MOST), ("none", NOTHING)] {
        let new = NewTeam { slug: slug.to_owned(), name: "Näme'\"; DROP".to_owned(), limits };
        let team = store.create_team(new).await.expect("the slug is free");
        assert_eq!((team.slug.as_str(), team.name.as_str()), (slug, "Näme'\"; DROP"));
        assert_eq!((team.limits, &team.standing), (limits, &Standing::Active));
        assert_eq!(store.team(team.id).await.expect("a read"), Some(team.clone()));
        assert_eq!(store.team_by_slug(slug).await.expect("a read"), Some(team));
    }
    assert_eq!(store.team(TeamId::generate()).await.expect("a read"), None);
    assert_eq!(store.team_by_slug("nobody").await.expect("a read"), None);
}

pub(crate) async fn slugs_are_unique_and_valid_in_references(fixture: &Fixture) {
    let first = fixture.team("taken").await;
    let limits = first.limits;
    let create = |slug: &str| fixture.store.create_team(NewTeam { slug: slug.to_owned(), name: String::new(), limits });
    assert!(matches!(create("taken").await, Err(CreateTeamError::SlugTaken { slug }) if slug == "taken"));
    for slug in ["", "A", "a/b", "a:b", "a.b", "ä", "a b", &"a".repeat(65)] {
        assert!(matches!(create(slug).await, Err(CreateTeamError::SlugInvalid)), "{slug}");
    }
    create(&"a".repeat(64)).await.expect("the longest slug");
    assert_eq!(fixture.store.team_by_slug("taken").await.expect("a read"), Some(first));
}

pub(crate) async fn a_team_changes_its_standing(fixture: &Fixture) {
    let store = &fixture.store;
    let (team, other) = (fixture.team("first").await, fixture.team("second").await);
    for standing in [
        Standing::Blocked { reason: "unpaid".to_owned() },
        Standing::Banned { reason: "abuse".to_owned() },
        Standing::Active,
    ] {
        assert!(store.set_team_standing(team.id, &standing).await.expect("a write"));
        let found = store.team(team.id).await.expect("a read").expect("the team");
        assert_eq!(found.standing, standing);
        assert_eq!(store.team(other.id).await.expect("a read").as_ref(), Some(&other));
    }
    assert!(!store.set_team_standing(TeamId::generate(), &Standing::Active).await.expect("a write"));
}

pub(crate) async fn a_key_authenticates_its_team(fixture: &Fixture) {
    let store = &fixture.store;
    for team in [fixture.team("first").await, fixture.team("second").await] {
        let secret = KeySecret::generate();
        let before = Timestamp::now();
        let key = store.create_api_key(team.id, "laptop", &secret).await.expect("a new key");
        assert_eq!((key.team_id, key.name.as_str(), &key.mask), (team.id, "laptop", &secret.mask()));
        assert_eq!(key.last_used_at, None);
        assert!(key.created_at.as_microsecond() >= before.as_microsecond() && key.created_at <= Timestamp::now());
        let found = store.authenticate(&secret.hash()).await.expect("a read");
        assert_eq!(found, Some((team, key)));
    }
    assert_eq!(store.authenticate(&KeySecret::generate().hash()).await.expect("a read"), None);
}

pub(crate) async fn a_secret_is_used_by_one_key_only(fixture: &Fixture) {
    let store = &fixture.store;
    let (first, second) = (fixture.team("first").await, fixture.team("second").await);
    let secret = KeySecret::generate();
    let key = store.create_api_key(first.id, "one", &secret).await.expect("a new key");
    for team in [first.id, second.id] {
        let again = store.create_api_key(team, "two", &secret).await;
        assert!(matches!(again, Err(CreateApiKeyError::Exists)));
    }
    assert_eq!(store.authenticate(&secret.hash()).await.expect("a read"), Some((first, key)));
    let missing = TeamId::generate();
    let orphan = store.create_api_key(missing, "one", &KeySecret::generate()).await;
    assert!(matches!(orphan, Err(CreateApiKeyError::UnknownTeam { team_id }) if team_id == missing));
}

pub(crate) async fn the_latest_use_of_a_key_wins(fixture: &Fixture) {
    let store = &fixture.store;
    let team = fixture.team("first").await;
    let [secret, other] = [(); 2].map(|()| KeySecret::generate());
    let key = store.create_api_key(team.id, "used", &secret).await.expect("a new key");
    store.create_api_key(team.id, "unused", &other).await.expect("a new key");
    let last_used = async |secret: &KeySecret| {
        store.authenticate(&secret.hash()).await.expect("a read").expect("the key").1.last_used_at
    };
    for (use_at, stored) in [(at(5), at(5)), (at(3), at(5)), (at(7), at(7)), (at(7), at(7))] {
        store.touch_api_key(key.id, use_at).await.expect("a write");
        assert_eq!(last_used(&secret).await, Some(stored));
    }
    assert_eq!(last_used(&other).await, None);
    store.touch_api_key(ApiKeyId::generate(), at(1)).await.expect("an unknown key is ignored");
}

pub(crate) async fn limits_are_stored(fixture: &Fixture) {
    let store = &fixture.store;
    let (team, other) = (fixture.team("first").await, fixture.team("second").await);
    for limits in [MOST, NOTHING, Limits { builds_max: 3, ..Limits::STANDARD }] {
        assert!(store.set_team_limits(team.id, limits).await.expect("a write"));
        let changed = Team { limits, ..team.clone() };
        assert_eq!(store.teams().await.expect("a read"), [changed, other.clone()]);
    }
    assert!(!store.set_team_limits(TeamId::generate(), MOST).await.expect("a write"));
}

pub(crate) async fn a_team_changes_only_its_own_keys(fixture: &Fixture) {
    let store = &fixture.store;
    let (team, other) = (fixture.team("first").await, fixture.team("second").await);
    let secrets = [(); 3].map(|()| KeySecret::generate());
    let mut keys = Vec::new();
    for (owner, secret) in [&team, &team, &other].into_iter().zip(&secrets) {
        keys.push(store.create_api_key(owner.id, "key", secret).await.expect("a new key"));
    }
    let listed = async |team: TeamId| {
        let keys = store.api_keys(team).await.expect("a read");
        keys.into_iter().map(|(key, user)| (key.id, key.name, user)).collect::<Vec<_>>()
    };
    let key = |index: usize, name: &str| (keys[index].id, name.to_owned(), None);
    assert_eq!(listed(team.id).await, [key(0, "key"), key(1, "key")]);
    assert!(!store.rename_api_key(other.id, keys[0].id, "stolen").await.expect("a write"));
    assert!(!store.delete_api_key(other.id, keys[0].id).await.expect("a write"));
    assert!(store.rename_api_key(team.id, keys[0].id, "desk").await.expect("a write"));
    assert_eq!(listed(team.id).await, [key(0, "desk"), key(1, "key")]);
    assert!(store.delete_api_key(team.id, keys[1].id).await.expect("a write"));
    assert!(!store.delete_api_key(team.id, keys[1].id).await.expect("a write"));
    assert_eq!(listed(team.id).await, [key(0, "desk")]);
    assert_eq!(listed(other.id).await, [key(2, "key")]);
    let found = async |index: usize| store.authenticate(&secrets[index].hash()).await.expect("a read").is_some();
    assert_eq!((found(0).await, found(1).await, found(2).await), (true, false, true));
}
