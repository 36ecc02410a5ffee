//! Routes of the guest daemon that clients must not reach.
//!
//! The daemon cannot distinguish a client from the node, so the proxy checks the requests that arrive through the
//! public address. A path is compared after it was decoded and normalized, so that no spelling of it passes. Decoding
//! is repeated while it changes the path: a path that needs several rounds matches no route of the daemon, so rejecting
//! it costs nothing, and it does not matter how often another proxy decodes it.

use std::borrow::Cow;

use hearth_types::guest::DAEMON;
pub use hearth_types::guest::DAEMON_PORT;
use percent_encoding::percent_decode;

/// Maximum number of times a path is decoded.
///
/// The daemon decodes once, and no known proxy twice; without a limit a long path of nested escapes would take
/// quadratic time.
const DECODINGS_MAX: usize = 4;

/// Returns the reserved route of the daemon that a raw path matches.
///
/// `path` is the path of the request without its query.
#[must_use]
pub fn reserved_route(path: &str) -> Option<&'static str> {
    let mut path: Cow<'_, [u8]> = Cow::Borrowed(path.as_bytes());
    for _ in 0..=DECODINGS_MAX {
        if let Some(route) = matching(&path) {
            return Some(route);
        }
        let decoded: Cow<'_, [u8]> = percent_decode(&path).into();
        let Cow::Owned(decoded) = decoded else { return None };
        path = Cow::Owned(decoded);
    }
    None
}

fn matching(path: &[u8]) -> Option<&'static str> {
    let mut segments: Vec<&[u8]> = Vec::new();
    for segment in path.split(|byte| *byte == b'/') {
        match segment {
            b"" | b"." => {}
            b".." => drop(segments.pop()),
            name => segments.push(name),
        }
    }
    let [only] = segments[..] else { return None };
    DAEMON.host_paths.iter().copied().find(|route| route.as_bytes()[1..] == *only)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reserved_routes_are_found_in_every_spelling() {
        for path in [
            "/init",
            "/init/",
            "//init",
            "/./init",
            "/init/.",
            "/init//",
            "/files/../init",
            "/../init",
            "/../../init",
            "/a/b/../../init",
            "/init/x/..",
            "/%69nit",
            "/%69%6E%69%74",
            "/%69%6e%69%74/",
            "/%2Finit",
            "/init%2F",
            "/%2e/init",
            "/files/%2e%2e/init",
            "/files%2F..%2Finit",
            "/files/.%2E/%69nit",
            "/%2569nit",
            "/%252569nit",
            "/files%252F%252e%252e%252Finit",
        ] {
            assert_eq!(reserved_route(path), Some("/init"), "{path}");
        }
        for route in DAEMON.host_paths {
            assert_eq!(reserved_route(route), Some(*route));
        }
    }

    #[test]
    fn other_paths_are_not_reserved() {
        for path in [
            "",
            "/",
            "*",
            "/files",
            "/health",
            "/INIT",
            "/initial",
            "/init/x",
            "/files/init",
            "/init/..",
            "/init%00",
            "/init%",
            "/%init",
            "/init%zz",
            "/init;x",
            "/process.Process/Start",
            "/%ff%fe",
        ] {
            assert_eq!(reserved_route(path), None, "{path}");
        }
    }

    #[test]
    fn a_long_nested_path_takes_bounded_time() {
        assert_eq!(reserved_route(&format!("/%{}69nit", "25".repeat(30_000))), None);
    }

    proptest! {
        #[test]
        fn any_path_is_accepted_without_panic(path in ".*") {
            let _ = reserved_route(&path);
        }

        #[test]
        fn percent_encoding_does_not_hide_a_route(
            route in prop::sample::select(DAEMON.host_paths),
            encoded in prop::collection::vec(any::<bool>(), 16),
            dots in "(/|/\\./|/[a-z]{1,3}/\\.\\.){0,3}",
        ) {
            let spelled: String = route[1..]
                .bytes()
                .zip(encoded)
                .map(|(byte, encode)| if encode { format!("%{byte:02x}") } else { char::from(byte).to_string() })
                .collect();
            let path = format!("{dots}/{spelled}");
            prop_assert_eq!(reserved_route(&path), Some(route));
        }
    }
}
