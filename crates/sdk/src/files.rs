//! Upload and download of files.

use std::time::Duration;

use bytes::Bytes;
use http::Method;

use crate::endpoint::Call;
use crate::{Error, Sandbox};

/// Timeout for the head of a transfer's response. For an upload, this includes sending the file.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(600);

impl Sandbox {
    /// Writes a whole file; creates missing parent directories.
    pub async fn write(&self, path: &str, content: Bytes) -> Result<(), Error> {
        let mut headers = self.headers();
        headers.push(("content-type", "application/octet-stream".to_owned()));
        let path = format!("/files?path={}", encoded(path));
        let call = Call { method: Method::POST, path: &path, headers, body: content, timeout: TRANSFER_TIMEOUT };
        let edge = &self.client().edge;
        let response = edge.send(call).await?;
        edge.read(response, 1 << 20).await.map(drop)
    }

    /// Reads a file of at most `bytes_max` bytes.
    pub async fn read(&self, path: &str, bytes_max: usize) -> Result<Bytes, Error> {
        let path = format!("/files?path={}", encoded(path));
        let call = Call {
            method: Method::GET,
            path: &path,
            headers: self.headers(),
            body: Bytes::new(),
            timeout: TRANSFER_TIMEOUT,
        };
        let edge = &self.client().edge;
        let response = edge.send(call).await?;
        edge.read(response, bytes_max).await
    }
}

/// Percent-encodes all but unreserved characters and slashes for a query value (RFC 3986, 2.3).
fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    #[test]
    fn reserved_characters_are_encoded() {
        assert_eq!(super::encoded("/tmp/a b&c=ä"), "/tmp/a%20b%26c%3D%C3%A4");
    }
}
