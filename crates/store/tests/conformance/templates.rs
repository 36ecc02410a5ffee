//! Resolution of references.

use hearth_store::{Alias, BuildStatus, NewBuild, RegisterBuildError, ResolveError, Store, Team};
use hearth_types::{BuildId, Resources, Tag};

use crate::{Fixture, base, reference};

/// Outcome of resolving a reference for a team, reduced to comparable values.
#[derive(Debug, PartialEq)]
enum Resolution {
    Build(BuildId),
    UnknownTemplate,
    UnknownTag,
    Private,
}

async fn resolution(store: &Store, text: &str, team: &Team) -> Resolution {
    match store.resolve(&reference(text), team).await {
        Ok(resolved) => {
            assert_eq!(resolved.build.template_id, resolved.template.id);
            assert_eq!(resolved.build.status, BuildStatus::Ready);
            Resolution::Build(resolved.build.id)
        }
        Err(ResolveError::UnknownTemplate { .. }) => Resolution::UnknownTemplate,
        Err(ResolveError::UnknownTag { .. }) => Resolution::UnknownTag,
        Err(ResolveError::Private { .. }) => Resolution::Private,
        Err(ResolveError::Store(error)) => panic!("{error}"),
    }
}

fn alias(namespace: &str, name: &str) -> Alias {
    Alias { namespace: (!namespace.is_empty()).then(|| namespace.to_owned()), name: name.to_owned() }
}

fn tag(text: &str) -> Tag {
    reference(&format!("x:{text}")).tag()
}

async fn register(store: &Store, new: NewBuild) -> NewBuild {
    store.register_build(new.clone()).await.expect("no alias is in use by others");
    new
}

pub(crate) async fn references_resolve_to_a_registered_build(fixture: &Fixture) {
    let store = &fixture.store;
    let team = fixture.team("first").await;
    assert_eq!(resolution(store, "base", &team).await, Resolution::UnknownTemplate);
    let new = base();
    let build = store.register_build(new.clone()).await.expect("nothing is registered yet");
    assert_eq!((build.id, &build.template_id, build.status), (new.build_id, &new.template_id, BuildStatus::Ready));
    assert_eq!(build.resources, Resources { vcpus: 2, memory_mib: 1024, disk_mib: 10_240 });
    assert_eq!((build.envd_version.as_str(), build.kernel_version.as_str()), ("0.6.4", "6.12.48"));
    assert_eq!((build.created_at, build.finished_at), (new.created_at, Some(new.finished_at)));
    let id = &new.template_id;
    for text in ["base", " BASE ", "base:default", id.as_str(), &format!("{id}:default")] {
        let resolved = store.resolve(&reference(text), &team).await.expect(text);
        assert_eq!(resolved.build, build, "{text}");
        assert_eq!((&resolved.template.id, resolved.template.team_id), (id, None), "{text}");
        assert!(resolved.template.public);
        assert_eq!(resolved.alias.as_deref(), Some("base"), "{text}");
    }
    for (text, expected) in [
        ("other", Resolution::UnknownTemplate),
        ("first/base", Resolution::UnknownTemplate),
        ("base:v1", Resolution::UnknownTag),
        (&format!("base:{}", BuildId::generate()), Resolution::UnknownTag),
        (&format!("first/{id}"), Resolution::UnknownTemplate),
    ] {
        assert_eq!(resolution(store, text, &team).await, expected, "{text}");
    }
    let template = store.resolve_template(&reference("base:no-such-tag"), &team).await.expect("the tag is ignored");
    assert_eq!(&template.id, id);
}

pub(crate) async fn registering_again_changes_nothing(fixture: &Fixture) {
    let store = &fixture.store;
    let team = fixture.team("first").await;
    let new = register(store, base()).await;
    let before = store.resolve(&reference("base"), &team).await.expect("registered");
    for _ in 0..2 {
        register(store, new.clone()).await;
        assert_eq!(store.resolve(&reference("base"), &team).await.expect("registered"), before);
    }
    let mut racing = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let (store, new) = (store.clone(), new.clone());
        racing.spawn(async move { store.register_build(new).await.expect("idempotent") });
    }
    assert!(racing.join_all().await.iter().all(|build| *build == before.build));
    // There was only one assignment: once it is deleted, the tag refers to no build.
    fixture.tamper("DELETE FROM tag_assignment WHERE sequence = (SELECT max(sequence) FROM tag_assignment)").await;
    assert_eq!(resolution(store, "base", &team).await, Resolution::UnknownTag);
}

pub(crate) async fn a_tag_resolves_to_its_newest_ready_build(fixture: &Fixture) {
    let store = &fixture.store;
    let team = fixture.team("first").await;
    let old = register(store, NewBuild { kernel_version: "old".to_owned(), ..base() }).await;
    let new = NewBuild { build_id: BuildId::generate(), kernel_version: "new".to_owned(), ..old.clone() };
    let new = register(store, new).await;
    let other = NewBuild { build_id: BuildId::generate(), tag: tag("v1.2"), ..old.clone() };
    let other = register(store, other).await;
    assert_eq!(resolution(store, "base", &team).await, Resolution::Build(new.build_id));
    assert_eq!(resolution(store, "base:v1.2", &team).await, Resolution::Build(other.build_id));
    for status in ["waiting", "building", "error"] {
        fixture.tamper(&format!("UPDATE build SET status = '{status}' WHERE kernel_version = 'new'")).await;
        assert_eq!(resolution(store, "base", &team).await, Resolution::Build(old.build_id), "{status}");
        let by_id = format!("base:{}", new.build_id);
        assert_eq!(resolution(store, &by_id, &team).await, Resolution::UnknownTag, "{status}");
    }
    fixture.tamper("UPDATE build SET status = 'building' WHERE kernel_version = 'old'").await;
    fixture.tamper("DELETE FROM tag_assignment WHERE tag = 'v1.2'").await;
    assert_eq!(resolution(store, "base", &team).await, Resolution::UnknownTag, "none is ready");
    for again in [&new, &old, &new] {
        register(store, again.clone()).await;
        assert_eq!(resolution(store, "base", &team).await, Resolution::Build(again.build_id), "it was registered last");
    }
}

pub(crate) async fn a_build_id_is_accepted_as_a_tag(fixture: &Fixture) {
    let store = &fixture.store;
    let team = fixture.team("first").await;
    let old = register(store, base()).await;
    let new = register(store, NewBuild { build_id: BuildId::generate(), ..old.clone() }).await;
    let elsewhere = NewBuild { alias: alias("", "elsewhere"), ..base() };
    let elsewhere = register(store, elsewhere).await;
    for build in [old.build_id, new.build_id] {
        assert_eq!(resolution(store, &format!("base:{build}"), &team).await, Resolution::Build(build));
        let upper = format!("base:{}", build.to_string().to_uppercase());
        assert_eq!(resolution(store, &upper, &team).await, Resolution::Build(build));
        let digits = build.as_uuid().simple().to_string();
        assert_eq!(
            resolution(store, &format!("base:{digits}"), &team).await,
            Resolution::UnknownTag,
            "digits are read as a tag"
        );
    }
    let foreign = format!("base:{}", elsewhere.build_id);
    assert_eq!(resolution(store, &foreign, &team).await, Resolution::UnknownTag, "a build of another template");
    let digits = new.build_id.as_uuid().simple().to_string();
    register(store, NewBuild { tag: tag(&digits), ..old.clone() }).await;
    assert_eq!(
        resolution(store, &format!("base:{digits}"), &team).await,
        Resolution::Build(old.build_id),
        "the tag exists now"
    );
}

pub(crate) async fn namespaces_are_searched_in_order(fixture: &Fixture) {
    let store = &fixture.store;
    let (first, second) = (fixture.team("first").await, fixture.team("second").await);
    let global = register(store, base()).await;
    let own = NewBuild { team_id: Some(first.id), public: false, alias: alias("first", "base"), ..base() };
    let own = register(store, own).await;
    // A global alias that equals the id of another template.
    let decoy = NewBuild { alias: alias("", global.template_id.as_str()), ..base() };
    let decoy = register(store, decoy).await;
    for (team, text, expected) in [
        (&first, "base", Resolution::Build(own.build_id)),
        (&second, "base", Resolution::Build(global.build_id)),
        (&first, "first/base", Resolution::Build(own.build_id)),
        (&second, "second/base", Resolution::UnknownTemplate),
        (&second, "first/base", Resolution::Private),
        (&first, global.template_id.as_str(), Resolution::Build(decoy.build_id)),
        (&first, own.template_id.as_str(), Resolution::Build(own.build_id)),
        (&second, own.template_id.as_str(), Resolution::Private),
    ] {
        assert_eq!(resolution(store, text, team).await, expected, "{text} for {}", team.slug);
    }
}

pub(crate) async fn private_templates_resolve_for_their_team_only(fixture: &Fixture) {
    let store = &fixture.store;
    let (first, second) = (fixture.team("first").await, fixture.team("second").await);
    let new = NewBuild { team_id: Some(first.id), public: false, alias: alias("first", "mine"), ..base() };
    let new = register(store, new).await;
    let platform = NewBuild { public: false, alias: alias("", "internal"), ..base() };
    let platform = register(store, platform).await;
    assert_eq!(resolution(store, "mine", &first).await, Resolution::Build(new.build_id));
    assert_eq!(
        resolution(store, "first/mine:nothing", &second).await,
        Resolution::Private,
        "its tags are not revealed"
    );
    for text in ["internal", platform.template_id.as_str()] {
        assert_eq!(resolution(store, text, &first).await, Resolution::Private, "{text}");
    }
    let private = store.resolve_template(&reference("first/mine"), &second).await;
    assert!(matches!(private, Err(ResolveError::Private { .. })));
    register(store, NewBuild { public: true, ..new.clone() }).await;
    assert_eq!(resolution(store, "first/mine", &second).await, Resolution::Build(new.build_id), "it was published");
    register(store, NewBuild { public: false, ..new.clone() }).await;
    assert_eq!(resolution(store, "first/mine", &second).await, Resolution::Private, "and made private again");
}

pub(crate) async fn an_alias_moves_between_templates_of_one_owner(fixture: &Fixture) {
    let store = &fixture.store;
    let team = fixture.team("first").await;
    let old = register(store, base()).await;
    let new = register(store, base()).await;
    assert_eq!(resolution(store, "base", &team).await, Resolution::Build(new.build_id));
    let nameless = store.resolve(&reference(old.template_id.as_str()), &team).await.expect("by its id");
    assert_eq!((nameless.build.id, nameless.alias), (old.build_id, None));
    // There is at most one alias per namespace: a new alias replaces the old one.
    register(store, NewBuild { alias: alias("", "renamed"), ..new.clone() }).await;
    assert_eq!(resolution(store, "base", &team).await, Resolution::UnknownTemplate);
    assert_eq!(resolution(store, "renamed", &team).await, Resolution::Build(new.build_id));
    // Aliases in several namespaces coexist; the oldest is shown.
    register(store, NewBuild { alias: alias("elsewhere", "second-name"), ..new.clone() }).await;
    let resolved = store.resolve(&reference("elsewhere/second-name"), &team).await.expect("registered");
    assert_eq!((resolved.build.id, resolved.alias.as_deref()), (new.build_id, Some("renamed")));
}

pub(crate) async fn builds_of_other_owners_are_rejected(fixture: &Fixture) {
    let store = &fixture.store;
    let team = fixture.team("first").await;
    let platform = register(store, base()).await;
    let theirs = NewBuild { team_id: Some(team.id), public: false, alias: alias("first", "mine"), ..base() };
    let stolen_template = NewBuild { template_id: platform.template_id.clone(), ..theirs.clone() };
    let rejection = store.register_build(stolen_template).await;
    assert!(
        matches!(rejection, Err(RegisterBuildError::Foreign { template_id }) if template_id == platform.template_id)
    );
    let stolen_name = NewBuild { alias: platform.alias.clone(), ..theirs.clone() };
    let rejection = store.register_build(stolen_name).await;
    assert!(matches!(rejection, Err(RegisterBuildError::AliasTaken { holder, .. }) if holder == platform.template_id));
    let stolen_build = NewBuild { build_id: platform.build_id, ..theirs.clone() };
    let rejection = store.register_build(stolen_build).await;
    let Err(RegisterBuildError::OtherTemplate { template_id, .. }) = rejection else { panic!("{rejection:?}") };
    assert_eq!(template_id, platform.template_id);
    for text in ["first/mine", theirs.template_id.as_str()] {
        assert_eq!(
            resolution(store, text, &team).await,
            Resolution::UnknownTemplate,
            "a rejected registration has no effect"
        );
    }
    assert_eq!(resolution(store, "base", &team).await, Resolution::Build(platform.build_id));
}
