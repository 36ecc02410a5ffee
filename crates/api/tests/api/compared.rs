//! Error texts that public clients match on, and rejected lifecycle options.

use hearth_api::compared::{ALL, Compared, TOO_LONG, TOO_MANY_SANDBOXES, UNKNOWN_TAG, UNKNOWN_TEMPLATE};
use hearth_store::Limits;

use crate::client::Reply;
use crate::world::{LIMITS, World};

/// Returns each text with the replies that must contain it.
async fn replies(world: &World) -> Vec<(Compared, Reply)> {
    let id = world.running().await;
    let (_, full) = world.other_team("full", Limits { sandboxes_max: 0, ..LIMITS }).await;
    let base = r#"{"templateID":"base"}"#;
    let long = r#"{"templateID":"base","timeout":86401}"#;
    let mut replies = Vec::new();
    for path in ["/v2/sandboxes", "/sandboxes"] {
        replies.push((TOO_MANY_SANDBOXES, full.post(path, base).await));
        replies.push((TOO_LONG, world.client.post(path, long).await));
        replies.push((TOO_LONG, world.client.post(&format!("{path}/{id}/connect"), r#"{"timeout":86401}"#).await));
        for tag in ["other", "0198d0d3-1c8e-4b3a-9d7e-9f6f6f1f4b1a"] {
            let body = format!(r#"{{"templateID":"base:{tag}"}}"#);
            let reply = world.client.post(path, &body).await;
            let message = reply.json()["message"].as_str().unwrap_or_default().to_owned();
            assert_eq!(message, format!("tag '{tag}' does not exist for template 'base'"));
            replies.push((UNKNOWN_TAG, reply));
        }
        replies.push((UNKNOWN_TEMPLATE, world.client.post(path, r#"{"templateID":"nothing"}"#).await));
    }
    replies
}

#[tokio::test]
async fn every_text_that_clients_match_on_is_sent_and_documented() {
    let documented = include_str!("../../../../docs/compatibility.md");
    let world = World::start().await;
    let replies = replies(&world).await;
    for compared in ALL {
        let found: Vec<_> = replies.iter().filter(|(of, _)| of == compared).collect();
        assert!(!found.is_empty(), "no request for {compared:?}");
        for (Compared { status, words, .. }, reply) in found {
            reply.clone().assert_status(status.as_u16());
            let message = reply.json()["message"].as_str().expect("a message").to_owned();
            assert!(message.contains(words), "{words}: {message}");
        }
        assert!(documented.contains(&format!("`{}`", compared.words)), "{compared:?} is not documented");
        for client in compared.clients {
            assert!(documented.contains(client), "{client} is not documented");
        }
    }
}

#[tokio::test]
async fn a_rejected_lifecycle_option_names_the_accepted_one() {
    let world = World::start().await;
    for (member, setting) in [
        (r#""autoPause":true"#, r#"lifecycle={"on_timeout": "kill"}"#),
        (r#""autoPause":true,"autoPauseMemory":false"#, "lifecycle: { onTimeout: 'kill' }"),
        (r#""autoPause":true,"autoResume":{"enabled":true}"#, r#""autoPause": false"#),
        (r#""autoResume":{"enabled":true}"#, r#""autoResume": {"enabled": false}"#),
    ] {
        let reply = world.create(&format!(r#"{{"templateID":"base",{member}}}"#)).await.assert_error(403, setting);
        assert_eq!(reply.json()["error_code"], "feature_not_supported");
    }
    for member in [
        r#""autoPause":false"#,
        r#""autoPause":null,"autoResume":null"#,
        r#""autoPause":false,"autoPauseMemory":true,"autoResume":{"enabled":false}"#,
        r#""autoResume":{"enabled":false}"#,
    ] {
        for path in ["/v2/sandboxes", "/sandboxes"] {
            let created = world.client.post(path, &format!(r#"{{"templateID":"base",{member}}}"#)).await;
            let id = created.assert_status(201).text_of("sandboxID");
            let detail = world.client.get(&format!("/sandboxes/{id}")).await.json();
            assert_eq!(detail["lifecycle"], serde_json::json!({"onTimeout": "kill", "autoResume": false}));
        }
    }
}
