//! JSON request bodies with limits for size and time.

use axum::body::Body;
use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use crate::config::Config;
use crate::failure::Failure;

/// Reads and parses a body that must not be empty.
pub(crate) async fn required<T: DeserializeOwned>(config: &Config, body: Body) -> Result<T, Failure> {
    parse_required(&bytes(config, body).await?)
}

/// Parses the bytes of a body that must not be empty.
pub(crate) fn parse_required<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    let text = bytes.trim_ascii();
    if text.is_empty() {
        return Err(Failure::invalid("the request has no body"));
    }
    parse(text)
}

/// Reads and parses a body that may be absent, empty or `null`.
pub(crate) async fn optional<T: DeserializeOwned + Default>(config: &Config, body: Body) -> Result<T, Failure> {
    let bytes = bytes(config, body).await?;
    let text = bytes.trim_ascii();
    if text.is_empty() || text == b"null" { Ok(T::default()) } else { parse(text) }
}

/// Reads a body of at most [`Config::request_bytes_max`].
pub(crate) async fn bytes(config: &Config, body: Body) -> Result<Bytes, Failure> {
    bytes_up_to(config, body, config.request_bytes_max).await
}

/// Reads a body of at most `bytes_max`.
pub(crate) async fn bytes_up_to(config: &Config, body: Body, bytes_max: usize) -> Result<Bytes, Failure> {
    let limited = Limited::new(body, bytes_max);
    match tokio::time::timeout(config.body_read_max, limited.collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Failure::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the request body is larger than {bytes_max} bytes"),
        )),
        // The client disconnected or violated HTTP, so this reply is not read.
        Ok(Err(_)) => Err(Failure::bad_request("the request body ended too early")),
        Err(_) => Err(Failure::new(StatusCode::REQUEST_TIMEOUT, "the request body did not arrive in time")),
    }
}

fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, Failure> {
    // serde would accept an array as an object with its members in order.
    if !text.starts_with(b"{") {
        return Err(Failure::invalid("the request body is not a JSON object"));
    }
    serde_json::from_slice(text).map_err(Failure::invalid)
}
