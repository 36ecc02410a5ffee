//! Jupyter's messages: a header, a parent header and a content, signed.
//!
//! Only the parts that an execution needs are parsed. A message that is not one is an error, which the caller skips.

use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::Sha256;

use crate::lenient;
use crate::zmtp::Multipart;

/// Frame between a message's addresses and its parts.
const DELIMITER: &[u8] = b"<IDS|MSG>";
/// Version of the messaging protocol.
const PROTOCOL: &str = "5.3";
/// Addresses in front of the delimiter that are searched.
const ADDRESSES_MAX: usize = 8;
/// Longest message id or type, in bytes.
const NAME_BYTES_MAX: usize = 256;

/// Reason to skip a message.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("the message has no delimiter or too few parts")]
    Shape,
    #[error("the signature is wrong")]
    Signature,
    #[error("the header is not valid")]
    Header,
}

/// Key with which messages are signed; none on sockets that only their owner can open.
#[derive(Clone)]
pub(crate) struct Signer(Option<Hmac<Sha256>>);

impl Signer {
    /// Makes a signer from a connection file's key; an empty one disables signatures.
    pub(crate) fn new(key: &str) -> Self {
        // A key of any length is valid.
        Self((!key.is_empty()).then(|| Hmac::new_from_slice(key.as_bytes()).ok()).flatten())
    }

    fn mac(&self, parts: &[Bytes]) -> Option<Hmac<Sha256>> {
        let mut mac = self.0.clone()?;
        for part in parts {
            mac.update(part);
        }
        Some(mac)
    }

    fn sign(&self, parts: &[Bytes]) -> Bytes {
        self.mac(parts).map_or_else(Bytes::new, |mac| hex::encode(mac.finalize().into_bytes()).into())
    }

    fn verify(&self, signature: &[u8], parts: &[Bytes]) -> bool {
        let Some(mac) = self.mac(parts) else { return true };
        hex::decode(signature).is_ok_and(|signature| mac.verify_slice(&signature).is_ok())
    }
}

/// Received message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) kind: Kind,
    /// Id of the request that caused it.
    pub(crate) parent: String,
    /// JSON, not parsed; empty if it was too large.
    pub(crate) content: Bytes,
    /// Bytes that were discarded because the message was too large.
    pub(crate) dropped_bytes: u64,
}

/// Types of messages that matter to an execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Status,
    ExecuteInput,
    Stream,
    DisplayData,
    ExecuteResult,
    Error,
    ExecuteReply,
    KernelInfoReply,
    /// Any other, also `update_display_data` and `clear_output`.
    Other,
}

impl Kind {
    fn new(name: &str) -> Self {
        match name {
            "status" => Self::Status,
            "execute_input" => Self::ExecuteInput,
            "stream" => Self::Stream,
            "display_data" => Self::DisplayData,
            "execute_result" => Self::ExecuteResult,
            "error" => Self::Error,
            "execute_reply" => Self::ExecuteReply,
            "kernel_info_reply" => Self::KernelInfoReply,
            _ => Self::Other,
        }
    }
}

#[derive(Deserialize)]
struct Header {
    #[serde(default)]
    msg_type: String,
    #[serde(default)]
    msg_id: String,
}

impl Message {
    /// Parses a message and checks its signature.
    pub(crate) fn parse(message: Multipart, signer: &Signer) -> Result<Self, Malformed> {
        let Multipart { frames, dropped_bytes } = message;
        let delimiter = frames.iter().take(ADDRESSES_MAX).position(|frame| frame == DELIMITER);
        let parts = &frames[delimiter.ok_or(Malformed::Shape)? + 1..];
        let is_cut = dropped_bytes > 0;
        let (signature, parts) = parts.split_first().ok_or(Malformed::Shape)?;
        if parts.len() < 4 && !(is_cut && parts.len() == 3) {
            return Err(Malformed::Shape);
        }
        let signed = &parts[..parts.len().min(4)];
        // The signature of a message that was cut cannot be checked, and its content is not used.
        if signed.len() == 4 && !signer.verify(signature, signed) {
            return Err(Malformed::Signature);
        }
        let header = parsed_header(&parts[0]).ok_or(Malformed::Header)?;
        // Messages without a cause have an empty parent header.
        let parent = parsed_header(&parts[1]).map(|parent| parent.msg_id).unwrap_or_default();
        if header.msg_type.len() > NAME_BYTES_MAX || parent.len() > NAME_BYTES_MAX {
            return Err(Malformed::Header);
        }
        let content = parts.get(3).cloned().unwrap_or_default();
        Ok(Self { kind: Kind::new(&header.msg_type), parent, content, dropped_bytes })
    }
}

fn parsed_header(json: &[u8]) -> Option<Header> {
    lenient::parse(json, |text| serde_json::from_str(text)).ok()
}

/// Makes a signed request with the id `id`.
pub(crate) fn request(signer: &Signer, session: &str, id: &str, kind: &str, content: &impl Serialize) -> Vec<Bytes> {
    let header = json!({
        "msg_id": id,
        "session": session,
        "username": "",
        "date": jiff::Timestamp::now().to_string(),
        "msg_type": kind,
        "version": PROTOCOL,
    });
    // The types of requests have only string keys, so they can be written.
    let content = serde_json::to_vec(content).unwrap_or_default();
    let empty = Bytes::from_static(b"{}");
    signed(signer, [Bytes::from(header.to_string()), empty.clone(), empty, Bytes::from(content)])
}

/// Makes the frames of a message of header, parent header, metadata and content.
pub(crate) fn signed(signer: &Signer, parts: [Bytes; 4]) -> Vec<Bytes> {
    let mut frames = vec![Bytes::from_static(DELIMITER), signer.sign(&parts)];
    frames.extend(parts);
    frames
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(frames: Vec<Bytes>, key: &str) -> Result<Message, Malformed> {
        Message::parse(Multipart { frames, dropped_bytes: 0 }, &Signer::new(key))
    }

    fn sent(key: &str) -> Vec<Bytes> {
        request(&Signer::new(key), "s", "i", "stream", &json!({"name": "stdout"}))
    }

    #[test]
    fn requests_are_signed_and_read_back() {
        for key in ["", "secret"] {
            let message = received(sent(key), key).expect("valid");
            assert_eq!((message.kind, message.parent.as_str()), (Kind::Stream, ""));
            assert_eq!(message.content, r#"{"name":"stdout"}"#);
        }
        let mut addressed = sent("");
        addressed.insert(0, Bytes::from_static(b"kernel.1.stream"));
        assert!(received(addressed, "").is_ok());
    }

    #[test]
    fn messages_with_a_wrong_signature_or_shape_are_rejected() {
        assert_eq!(received(sent("other"), "secret"), Err(Malformed::Signature));
        let mut unsigned = sent("secret");
        unsigned[1] = Bytes::new();
        assert_eq!(received(unsigned, "secret"), Err(Malformed::Signature));
        let mut changed = sent("secret");
        changed[5] = Bytes::from_static(b"{}");
        assert_eq!(received(changed, "secret"), Err(Malformed::Signature));
        for count in 0..6 {
            assert_eq!(received(sent("")[..count].to_vec(), ""), Err(Malformed::Shape), "{count}");
        }
        for header in [&b"{"[..], b"5", b"\xff", b"{\"msg_type\":1}", b""] {
            let mut odd = sent("");
            odd[2] = Bytes::copy_from_slice(header);
            assert_eq!(received(odd, ""), Err(Malformed::Header), "{header:?}");
        }
    }

    #[test]
    fn a_message_that_was_cut_has_no_content() {
        let mut frames = sent("secret");
        frames.pop();
        let cut = Multipart { frames, dropped_bytes: 9 };
        let message = Message::parse(cut, &Signer::new("secret")).expect("cut, but known");
        assert_eq!((message.kind, message.content.len(), message.dropped_bytes), (Kind::Stream, 0, 9));
    }
}
