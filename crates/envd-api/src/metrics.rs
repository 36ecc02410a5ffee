//! What a guest says it uses. All of it is the guest's word: any numbers may come.

use bytes::Bytes;
use http::{Method, StatusCode};
use http_body_util::{BodyExt, Limited};
use serde::Deserialize;

use crate::client::{Client, Error, expect};

/// Longest answer that is read. The daemon's has 300 bytes.
const ANSWER_BYTES_MAX: usize = 8 * 1024;

/// What a guest uses now. Other members of the answer are not looked at.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct GuestMetrics {
    /// Unix seconds, by the guest's clock.
    #[serde(rename = "ts")]
    pub unix_seconds: i64,
    /// Logical CPUs.
    pub cpu_count: u64,
    /// Busy share of all of them since somebody last asked, in percent.
    pub cpu_used_pct: f64,
    /// Bytes, as all that follow.
    pub mem_total: u64,
    /// What programs use.
    pub mem_used: u64,
    /// What would be given up if they needed it.
    pub mem_cache: u64,
    /// Of the root filesystem.
    pub disk_total: u64,
    /// Of the root filesystem.
    pub disk_used: u64,
}

impl Client {
    /// What the guest uses. Cancel safe.
    ///
    /// # Errors
    /// Like every call; 401 from a daemon that was started again and knows nobody; [`Error::Command`] when the answer is not
    /// what the contract says.
    pub async fn metrics(&self) -> Result<GuestMetrics, Error> {
        let response = self.send(Method::GET, "/metrics", "application/json", Bytes::new()).await?;
        let response = expect(response, StatusCode::OK).await?;
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| Error::Transport(std::io::Error::other(error)))?;
        parse(&body.to_bytes())
    }
}

fn parse(body: &[u8]) -> Result<GuestMetrics, Error> {
    serde_json::from_slice(body).map_err(|error| Error::Command(format!("reading what it uses: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = r#"{"ts":1767225600,"cpu_count":2,"cpu_used_pct":12.34,"mem_total":1024,"mem_used":512,
        "mem_cache":256,"mem_total_mib":0,"mem_used_mib":0,"disk_total":4096,"disk_used":2048}"#;

    #[test]
    fn an_answer_is_read() {
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
        assert_eq!(parse(ANSWER.as_bytes()).expect("an answer"), expected);
    }

    #[test]
    fn what_is_no_answer_is_refused() {
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
            let answer = ANSWER.replace(part, instead);
            assert!(answer != ANSWER && parse(answer.as_bytes()).is_err(), "{answer}");
        }
    }
}
