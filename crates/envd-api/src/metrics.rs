//! Resource usage that a guest reports. All of it is untrusted: a guest may send any numbers.

use bytes::Bytes;
use http::{Method, StatusCode};
use http_body_util::{BodyExt, Limited};
use serde::Deserialize;

use crate::client::{Client, Error, expect};

/// Longest reply that is read, in bytes. The daemon's has 300.
const REPLY_BYTES_MAX: usize = 8 * 1024;

/// Current resource usage of a guest. Other members of the reply are ignored.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct GuestMetrics {
    /// Unix seconds, by the guest's clock.
    #[serde(rename = "ts")]
    pub unix_seconds: i64,
    /// Logical CPUs.
    pub cpu_count: u64,
    /// Busy share of all CPUs since the previous request, in percent.
    pub cpu_used_pct: f64,
    /// In bytes, like all of the following.
    pub mem_total: u64,
    /// Memory used by programs, in bytes.
    pub mem_used: u64,
    /// Page cache and reclaimable memory, in bytes.
    pub mem_cache: u64,
    /// Size of the root file system, in bytes.
    pub disk_total: u64,
    /// Used part of the root file system, in bytes.
    pub disk_used: u64,
}

impl Client {
    /// Fetches the guest's resource usage. Cancel safe.
    ///
    /// # Errors
    /// Those of every call; status 401 from a restarted daemon that has no identity; [`Error::Command`] if the reply
    /// does not match the contract.
    pub async fn metrics(&self) -> Result<GuestMetrics, Error> {
        let response = self.send(Method::GET, "/metrics", "application/json", Bytes::new()).await?;
        let response = expect(response, StatusCode::OK).await?;
        let body = Limited::new(response.into_body(), REPLY_BYTES_MAX).collect().await;
        let body = body.map_err(|error| Error::Transport(std::io::Error::other(error)))?;
        parse(&body.to_bytes())
    }
}

fn parse(body: &[u8]) -> Result<GuestMetrics, Error> {
    serde_json::from_slice(body).map_err(|error| Error::Command(format!("parsing the metrics: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPLY: &str = r#"{"ts":1767225600,"cpu_count":2,"cpu_used_pct":12.34,"mem_total":1024,"mem_used":512,
        "mem_cache":256,"mem_total_mib":0,"mem_used_mib":0,"disk_total":4096,"disk_used":2048}"#;

    #[test]
    fn a_reply_is_parsed() {
        let expected = GuestMetrics {
            unix_seconds: 1_767_225_600,
            cpu_count: 2,
            cpu_used_pct: 12.34,
            mem_total: 1024,
            mem_used: 512,
            mem_cache: 256,
            disk_total: 4096,
            disk_used: 2048,
        };
        assert_eq!(parse(REPLY.as_bytes()).expect("valid"), expected);
    }

    #[test]
    fn invalid_replies_are_rejected() {
        for (part, instead) in [
            ("\"cpu_count\":2", "\"cpu_count\":2.5"),
            ("\"cpu_count\":2", "\"cpu_count\":-2"),
            ("\"cpu_count\":2,", ""),
            ("12.34", "NaN"),
            ("12.34", "1e999"),
            ("12.34", "\"12\""),
            ("\"mem_used\":512", "\"mem_used\":18446744073709551616"),
            ("\"disk_used\":2048", "\"disk_used\":null"),
            ("}", ""),
        ] {
            let reply = REPLY.replace(part, instead);
            assert!(reply != REPLY && parse(reply.as_bytes()).is_err(), "{reply}");
        }
    }
}
