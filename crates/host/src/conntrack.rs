//! Connection tracking of the current network namespace: the deletion of an address's entries (libnetfilter_conntrack's
//! protocol, `linux/netfilter/nfnetlink_conntrack.h`).
//!
//! The kernel keeps an entry of an established TCP connection for days, and nothing removes it when its peer's link goes.

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

/// Size of the buffer for one read; the kernel fills at most 32 KiB of a dump at a time.
const ANSWER_BYTES: usize = 64 * 1024;
/// Attributes of `linux/netfilter/nfnetlink_conntrack.h` that the library does not export.
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;

/// The side of a connection that an address has, as seen by its first packet.
#[derive(Debug, Clone, Copy)]
enum Side {
    Source,
    Destination,
}

/// Deletes all entries whose original direction comes from or leads to `address`, and returns their number. Blocks for as
/// long as one walk through the table takes.
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
            // An entry that expired in between is an error of its own, and none of ours.
            deleted += usize::from(acknowledged(&socket)?);
        }
    }
    Ok(deleted)
}

/// The original direction of every entry that has the address on that side.
fn entries(socket: &OwnedFd, side: Side, address: Ipv4Addr) -> io::Result<Vec<Vec<Tuple>>> {
    let (tuple, flag) = match side {
        Side::Source => (IPTuple::SourceAddress(address.into()), 1u32),
        Side::Destination => (IPTuple::DestinationAddress(address.into()), 2),
    };
    // The kernel selects by the flagged fields of the tuple (since Linux 5.8; an older one sends all). The library's own
    // attribute would lose the mark of nesting, without which the kernel refuses the filter.
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

/// Whether the kernel did what it was asked.
fn acknowledged(socket: &OwnedFd) -> io::Result<bool> {
    let answers = receive(socket)?;
    Ok(answers.iter().any(|answer| matches!(&answer.payload, NetlinkPayload::Error(error) if error.code.is_none())))
}

/// The messages of one read.
fn receive(socket: &OwnedFd) -> io::Result<Vec<NetlinkMessage<NetfilterMessage>>> {
    let mut buffer = vec![0; ANSWER_BYTES];
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
