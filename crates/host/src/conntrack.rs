//! Deletion of tracked connections of an address, in the current network namespace.
//!
//! Speaks the protocol of libnetfilter_conntrack (`linux/netfilter/nfnetlink_conntrack.h`). The kernel retains the
//! entry of an established TCP connection for days, and nothing removes it when the peer's link is removed.

use std::io;
use std::net::Ipv4Addr;

use netlink_packet_core::{
    DefaultNla, Emitable, NLA_F_NESTED, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_netfilter::conntrack::{ConntrackAttribute, ConntrackMessage, ConntrackMessageType, IPTuple, Tuple};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};
use rustix::fd::OwnedFd;
use rustix::net::netlink::NETFILTER;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// Buffer for one read; the kernel sends at most 32 KiB of a dump at a time.
const REPLY_BYTES: usize = 64 * 1024;
/// Attributes of `linux/netfilter/nfnetlink_conntrack.h` that the library does not export.
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;

/// Side of an address in a connection, as seen by the first packet.
#[derive(Debug, Clone, Copy)]
enum Side {
    Source,
    Destination,
}

/// Deletes all entries whose original direction has `address` as source or destination; returns their number.
///
/// Blocks for one walk through the table per side.
///
/// # Errors
/// The kernel has no connection tracking over netlink (`nf_conntrack_netlink`), or this process may not use it.
pub fn delete(address: Ipv4Addr) -> io::Result<usize> {
    let socket =
        rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(NETFILTER))?;
    let mut deleted = 0;
    for side in [Side::Source, Side::Destination] {
        for original in entries(&socket, side, address)? {
            let request = ConntrackMessage::Delete(vec![ConntrackAttribute::CtaTupleOrig(original)]);
            send(&socket, request, NLM_F_REQUEST | NLM_F_ACK)?;
            // Deleting an entry that expired meanwhile is an error, which is not counted.
            deleted += usize::from(acknowledged(&socket)?);
        }
    }
    Ok(deleted)
}

/// Returns the original direction of every entry with the address on that side.
fn entries(socket: &OwnedFd, side: Side, address: Ipv4Addr) -> io::Result<Vec<Vec<Tuple>>> {
    let (tuple, flag) = match side {
        Side::Source => (IPTuple::SourceAddress(address.into()), 1u32),
        Side::Destination => (IPTuple::DestinationAddress(address.into()), 2),
    };
    // The kernel filters by the flagged fields of the tuple (since Linux 5.8; older kernels send all entries). The
    // library's own attribute lacks the nesting flag, without which the kernel rejects the filter.
    let flags = [(CTA_FILTER_ORIG_FLAGS, flag), (CTA_FILTER_REPLY_FLAGS, 0)];
    let flags = flags.map(|(kind, flags)| DefaultNla::new(kind, flags.to_ne_bytes().to_vec()));
    let addresses = Tuple::Ip(vec![tuple.clone()]);
    let request = ConntrackMessage::Other {
        message_type: ConntrackMessageType::Get.into(),
        attributes: vec![
            DefaultNla::new(CTA_TUPLE_ORIG | NLA_F_NESTED, bytes(&addresses)),
            DefaultNla::new(CTA_FILTER | NLA_F_NESTED, bytes(&&flags[..])),
        ],
    };
    send(socket, request, NLM_F_REQUEST | NLM_F_DUMP)?;
    let mut found = Vec::new();
    loop {
        for message in receive(socket)? {
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(found),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                NetlinkPayload::InnerMessage(message) => found.extend(original(message).filter(|o| has(o, &tuple))),
                _ => {}
            }
        }
    }
}

fn bytes(part: &impl Emitable) -> Vec<u8> {
    let mut bytes = vec![0; part.buffer_len()];
    part.emit(&mut bytes);
    bytes
}

fn original(message: NetfilterMessage) -> Option<Vec<Tuple>> {
    let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = message.inner else { return None };
    attributes.into_iter().find_map(|attribute| match attribute {
        ConntrackAttribute::CtaTupleOrig(tuples) => Some(tuples),
        _ => None,
    })
}

fn has(original: &[Tuple], wanted: &IPTuple) -> bool {
    original.iter().any(|tuple| matches!(tuple, Tuple::Ip(addresses) if addresses.contains(wanted)))
}

fn send(socket: &OwnedFd, message: ConntrackMessage, flags: u16) -> io::Result<()> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let inner = NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::IPv4, 0, 0), message);
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(inner));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    rustix::net::send(socket, &bytes, SendFlags::empty())?;
    Ok(())
}

/// Receives a reply and returns true if the kernel acknowledged the request.
fn acknowledged(socket: &OwnedFd) -> io::Result<bool> {
    let replies = receive(socket)?;
    Ok(replies.iter().any(|reply| matches!(&reply.payload, NetlinkPayload::Error(error) if error.code.is_none())))
}

/// Receives the messages of one read.
fn receive(socket: &OwnedFd) -> io::Result<Vec<NetlinkMessage<NetfilterMessage>>> {
    let mut buffer = vec![0; REPLY_BYTES];
    let (length, _) = rustix::net::recv(socket, &mut buffer[..], RecvFlags::empty())?;
    let mut rest = &buffer[..length];
    let mut messages = Vec::new();
    while !rest.is_empty() {
        let message = NetlinkMessage::<NetfilterMessage>::deserialize(rest)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
        // Messages begin at multiples of four bytes (netlink(7)).
        let taken = usize::try_from(message.header.length).unwrap_or(usize::MAX).next_multiple_of(4);
        rest = rest.get(taken..).unwrap_or_default();
        messages.push(message);
    }
    Ok(messages)
}
