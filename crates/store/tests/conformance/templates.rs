//! What references mean.

use hearth_store::{Alias, BuildStatus, NewBuild, RegisterBuildError, ResolveError, Store, Team};
use hearth_types::{BuildId, Resources, Tag};

use crate::{Fixture, base, reference};

/// What a reference means to a team, as something that can be compared.
#[derive(Debug, PartialEq)]
enum Meaning {
    Build(BuildId),
    UnknownTemplate,
    UnknownTag,
    Private,
}

async fn meaning(store: &Store, text: &str, team: &Team) -> Meaning {
    match store.resolve(&reference(text), team).await {
        Ok(resolved) => {
            assert_eq!(resolved.build.template_id, resolved.template.id);
            assert_eq!(resolved.build.status, BuildStatus::Ready);
            Meaning::Build(resolved.build.id)
        }
        Err(ResolveError::UnknownTemplate { .. }) => Meaning::UnknownTemplate,
        Err(ResolveError::UnknownTag { .. }) => Meaning::UnknownTag,
        Err(ResolveError::Private { .. }) => Meaning::Private,
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
    store.register_build(new.clone()).await.expect("nothing is in the way");
    new
}

pub(crate) async fn a_registered_build_is_what_its_names_mean(fixture: &Fixture) {
    let store = &fixture.store;
    let team = fixture.team("first").await;
    assert_eq!(meaning(store, "base", &team).await, Meaning::UnknownTemplate);
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
        ("other", Meaning::UnknownTemplate),
        ("first/base", Meaning::UnknownTemplate),
        ("base:v1", Meaning::UnknownTag),
        (&format!("base:{}", BuildId::generate()), Meaning::UnknownTag),
        (&format!("first/{id}"), Meaning::UnknownTemplate),
    ] {
        assert_eq!(meaning(store, text, &team).await, expected, "{text}");
    }
    let template = store.resolve_template(&reference("base:no-such-tag"), &team).await.expect("whatever the tag");
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
    // The build before is still what the tag means when a newer assignment is taken away: there was only one.
    fixture.tamper("DELETE FROM tag_assignment WHERE sequence = (SELECT max(sequence) FROM tag_assignment)").await;
    assert_eq!(meaning(store, "base", &team).await, Meaning::UnknownTag);
}

pub(crate) async fn a_tag_means_its_newest_ready_build(fixture: &Fixture) {
    let store = &fixture.store;
    let team = fixture.team("first").await;
    let old = register(store, NewBuild { kernel_version: "old".to_owned(), ..base() }).await;
    let new = NewBuild { build_id: BuildId::generate(), kernel_version: "new".to_owned(), ..old.clone() };
    let new = register(store, new).await;
    let other = NewBuild { build_id: BuildId::generate(), tag: tag("v1.2"), ..old.clone() };
    let other = register(store, other).await;
    assert_eq!(meaning(store, "base", &team).await, Meaning::Build(new.build_id));
    assert_eq!(meaning(store, "base:v1.2", &team).await, Meaning::Build(other.build_id));
    for status in ["waiting", "building", "error"] {
        fixture.tamper(&format!("UPDATE build SET status = '{status}' WHERE kernel_version = 'new'")).await;
        assert_eq!(meaning(store, "base", &team).await, Meaning::Build(old.build_id), "{status}");
        let by_id = format!("base:{}", new.build_id);
        assert_eq!(meaning(store, &by_id, &team).await, Meaning::UnknownTag, "{status}");
    }
    fixture.tamper("UPDATE build SET status = 'building' WHERE kernel_version = 'old'").await;
    fixture.tamper("DELETE FROM tag_assignment WHERE tag = 'v1.2'").await;
    assert_eq!(meaning(store, "base", &team).await, Meaning::UnknownTag, "none is ready");
    for again in [&new, &old, &new] {
        register(store, again.clone()).await;
        assert_eq!(meaning(store, "base", &team).await, Meaning::Build(again.build_id), "it was registered last");
    }
}

pub(crate) async fn a_build_id_stands_for_a_tag(fixture: &Fixture) {
    let store = &fixture.store;
    let team = fixture.team("first").await;
    let old = register(store, base()).await;
    let new = register(store, NewBuild { build_id: BuildId::generate(), ..old.clone() }).await;
    let elsewhere = NewBuild { alias: alias("", "elsewhere"), ..base() };
    let elsewhere = register(store, elsewhere).await;
    for build in [old.build_id, new.build_id] {
        assert_eq!(meaning(store, &format!("base:{build}"), &team).await, Meaning::Build(build));
        let upper = format!("base:{}", build.to_string().to_uppercase());
        assert_eq!(meaning(store, &upper, &team).await, Meaning::Build(build));
        let digits = build.as_uuid().simple().to_string();
        assert_eq!(meaning(store, &format!("base:{digits}"), &team).await, Meaning::UnknownTag, "may well be a tag");
    }
    let foreign = format!("base:{}", elsewhere.build_id);
    assert_eq!(meaning(store, &foreign, &team).await, Meaning::UnknownTag, "a build of another template");
    let digits = new.build_id.as_uuid().simple().to_string();
    register(store, NewBuild { tag: tag(&digits), ..old.clone() }).await;
    assert_eq!(meaning(store, &format!("base:{digits}"), &team).await, Meaning::Build(old.build_id), "now it is");
}

pub(crate) async fn names_are_looked_up_in_order(fixture: &Fixture) {
    let store = &fixture.store;
    let (first, second) = (fixture.team("first").await, fixture.team("second").await);
    let global = register(store, base()).await;
    let own = NewBuild { team_id: Some(first.id), public: false, alias: alias("first", "base"), ..base() };
    let own = register(store, own).await;
    // A global alias that reads like the id of another template.
    let decoy = NewBuild { alias: alias("", global.template_id.as_str()), ..base() };
    let decoy = register(store, decoy).await;
    for (team, text, expected) in [
        (&first, "base", Meaning::Build(own.build_id)),
        (&second, "base", Meaning::Build(global.build_id)),
        (&first, "first/base", Meaning::Build(own.build_id)),
        (&second, "second/base", Meaning::UnknownTemplate),
        (&second, "first/base", Meaning::Private),
        (&first, global.template_id.as_str(), Meaning::Build(decoy.build_id)),
        (&first, own.template_id.as_str(), Meaning::Build(own.build_id)),
        (&second, own.template_id.as_str(), Meaning::Private),
    ] {
        assert_eq!(meaning(store, text, team).await, expected, "{text} for {}", team.slug);
    }
}

pub(crate) async fn private_templates_are_their_team_s(fixture: &Fixture) {
    let store = &fixture.store;
    let (first, second) = (fixture.team("first").await, fixture.team("second").await);
    let new = NewBuild { team_id: Some(first.id), public: false, alias: alias("first", "mine"), ..base() };
    let new = register(store, new).await;
    let platform = NewBuild { public: false, alias: alias("", "internal"), ..base() };
    let platform = register(store, platform).await;
    assert_eq!(meaning(store, "mine", &first).await, Meaning::Build(new.build_id));
    assert_eq!(meaning(store, "first/mine:nothing", &second).await, Meaning::Private, "before its tags are told");
    for text in ["internal", platform.template_id.as_str()] {
        assert_eq!(meaning(store, text, &first).await, Meaning::Private, "{text}");
    }
    let private = store.resolve_template(&reference("first/mine"), &second).await;
    assert!(matches!(private, Err(ResolveError::Private { .. })));
    register(store, NewBuild { public: true, ..new.clone() }).await;
    assert_eq!(meaning(store, "first/mine", &second).await, Meaning::Build(new.build_id), "it was published");
    register(store, NewBuild { public: false, ..new.clone() }).await;
    assert_eq!(meaning(store, "first/mine", &second).await, Meaning::Private, "and taken back");
}

pub(crate) async fn an_alias_moves_between_templates_of_one_owner(fixture: &Fixture) {
    let store = &fixture.store;
    let team = fixture.team("first").await;
    let old = register(store, base()).await;
    let new = register(store, base()).await;
    assert_eq!(meaning(store, "base", &team).await, Meaning::Build(new.build_id));
    let nameless = store.resolve(&reference(old.template_id.as_str()), &team).await.expect("by its id");
    assert_eq!((nameless.build.id, nameless.alias), (old.build_id, None));
    // At most one alias per namespace: another name is a new name.
    register(store, NewBuild { alias: alias("", "renamed"), ..new.clone() }).await;
    assert_eq!(meaning(store, "base", &team).await, Meaning::UnknownTemplate);
    assert_eq!(meaning(store, "renamed", &team).await, Meaning::Build(new.build_id));
    // Names in several namespaces stay: the first one is shown.
    register(store, NewBuild { alias: alias("elsewhere", "second-name"), ..new.clone() }).await;
    let resolved = store.resolve(&reference("elsewhere/second-name"), &team).await.expect("registered");
    assert_eq!((resolved.build.id, resolved.alias.as_deref()), (new.build_id, Some("renamed")));
}

pub(crate) async fn what_belongs_to_others_is_refused(fixture: &Fixture) {
    let store = &fixture.store;
    let team = fixture.team("first").await;
    let platform = register(store, base()).await;
    let theirs = NewBuild { team_id: Some(team.id), public: false, alias: alias("first", "mine"), ..base() };
    let stolen_template = NewBuild { template_id: platform.template_id.clone(), ..theirs.clone() };
    let refusal = store.register_build(stolen_template).await;
    assert!(matches!(refusal, Err(RegisterBuildError::Foreign { template_id }) if template_id == platform.template_id));
    let stolen_name = NewBuild { alias: platform.alias.clone(), ..theirs.clone() };
    let refusal = store.register_build(stolen_name).await;
    assert!(matches!(refusal, Err(RegisterBuildError::AliasTaken { holder, .. }) if holder == platform.template_id));
    let stolen_build = NewBuild { build_id: platform.build_id, ..theirs.clone() };
    let refusal = store.register_build(stolen_build).await;
    let Err(RegisterBuildError::OtherTemplate { template_id, .. }) = refusal else { panic!("{refusal:?}") };
    assert_eq!(template_id, platform.template_id);
    for text in ["first/mine", theirs.template_id.as_str()] {
        assert_eq!(meaning(store, text, &team).await, Meaning::UnknownTemplate, "a refusal leaves nothing behind");
    }
    assert_eq!(meaning(store, "base", &team).await, Meaning::Build(platform.build_id));
}
