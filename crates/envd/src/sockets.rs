//! Closing of the guest's TCP connections that a restore has broken (sock_diag(7)).
//!
//! The peer's host has no state of them, or never had of this copy. A program that waits on one would wait until the
//! kernel gives up, a quarter of an hour later; when the connection is closed here, the program gets an error
//! immediately and can connect again. Connections inside the guest are retained.

use std::io;
use std::net::SocketAddr;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_packet_sock_diag::{SockDiagDestroy, SockDiagMessage};
use rustix::fd::OwnedFd;
use rustix::net::netlink::SOCK_DIAG;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// Buffer for one read of the kernel's reply, in bytes.
const REPLY_BYTES: usize = 32 * 1024;
/// Limit of connections closed in one restore.
const CLOSED_MAX: usize = 65_536;

/// Closes every connection that leaves the guest, except the one between `kept`, the guest's address and its peer.
///
/// Returns the number of closed connections.
///
/// # Errors
/// Fails if the kernel lacks `tcp_diag` or does not permit it.
pub(crate) fn close_outbound(kept: Option<(SocketAddr, SocketAddr)>) -> io::Result<usize> {
    let socket =
        rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(SOCK_DIAG))?;
    let mut closed = 0;
    for family in [AF_INET, AF_INET6] {
        for id in connections(&socket, family)? {
            if !is_outbound(&id, kept) || closed >= CLOSED_MAX {
                continue;
            }
            let request = SockDiagDestroy::new(request(family, StateFlags::all(), id));
            send(&socket, NetlinkPayload::from(request), NLM_F_REQUEST | NLM_F_ACK)?;
            // A connection that has just ended by itself is reported as an error, which is ignored.
            if acknowledged(&socket)? {
                closed += 1;
            }
        }
    }
    Ok(closed)
}

fn is_outbound(id: &SocketId, kept: Option<(SocketAddr, SocketAddr)>) -> bool {
    let (local, peer) = (id.source_address.to_canonical(), id.destination_address.to_canonical());
    let is_kept = kept.is_some_and(|(kept_local, kept_peer)| {
        (local, id.source_port) == (kept_local.ip().to_canonical(), kept_local.port())
            && (peer, id.destination_port) == (kept_peer.ip().to_canonical(), kept_peer.port())
    });
    !local.is_loopback() && !peer.is_loopback() && !is_kept
}

fn request(family: u8, states: StateFlags, socket_id: SocketId) -> SockDiagMessage {
    let extensions = ExtensionFlags::empty();
    SockDiagMessage::InetRequest(InetRequest { family, protocol: IPPROTO_TCP, extensions, states, socket_id })
}

/// Lists all connections that are open or being opened.
fn connections(socket: &OwnedFd, family: u8) -> io::Result<Vec<SocketId>> {
    let all = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
    let states = StateFlags::all() - StateFlags::LISTEN - StateFlags::CLOSE - StateFlags::TIME_WAIT;
    send(socket, NetlinkPayload::from(request(family, states, all)), NLM_F_REQUEST | NLM_F_DUMP)?;
    let mut found = Vec::new();
    loop {
        for message in receive(socket)? {
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(found),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                    found.push(response.header.socket_id);
                }
                _ => {}
            }
        }
    }
}

fn send<M: NetlinkSerializable>(socket: &OwnedFd, payload: NetlinkPayload<M>, flags: u16) -> io::Result<()> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let mut message = NetlinkMessage::new(header, payload);
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    rustix::net::send(socket, &bytes, SendFlags::empty())?;
    Ok(())
}

/// Returns true if the kernel acknowledged the request.
fn acknowledged(socket: &OwnedFd) -> io::Result<bool> {
    let replies = receive(socket)?;
    Ok(replies.iter().any(|reply| matches!(&reply.payload, NetlinkPayload::Error(error) if error.code.is_none())))
}

/// Reads the messages of one datagram.
fn receive(socket: &OwnedFd) -> io::Result<Vec<NetlinkMessage<SockDiagMessage>>> {
    let mut buffer = vec![0; REPLY_BYTES];
    let (length, _) = rustix::net::recv(socket, &mut buffer[..], RecvFlags::empty())?;
    let mut rest = &buffer[..length];
    let mut messages = Vec::new();
    while !rest.is_empty() {
        let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
        // Messages start at multiples of four bytes (netlink(7)).
        let taken = usize::try_from(message.header.length).unwrap_or(usize::MAX).next_multiple_of(4);
        rest = rest.get(taken..).unwrap_or_default();
        messages.push(message);
    }
    Ok(messages)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn outbound_connections_except_the_kept_one() {
        let id = |local: &str, peer: &str| {
            let (local, peer): (SocketAddr, SocketAddr) = (local.parse().expect("valid"), peer.parse().expect("valid"));
            SocketId {
                source_address: local.ip(),
                source_port: local.port(),
                destination_address: peer.ip(),
                destination_port: peer.port(),
                ..SocketId::new_v4()
            }
        };
        let kept = Some(("169.254.0.21:49983".parse().expect("valid"), "169.254.0.22:4000".parse().expect("valid")));
        for (local, peer, outbound) in [
            ("169.254.0.21:40000", "1.1.1.1:443", true),
            ("[::ffff:169.254.0.21]:80", "[::ffff:169.254.0.22]:5000", true),
            ("127.0.0.1:40000", "127.0.0.1:80", false),
            ("[::1]:40000", "[::1]:80", false),
            ("[::ffff:127.0.0.1]:80", "[::ffff:127.0.0.1]:40000", false),
            ("169.254.0.21:49983", "169.254.0.22:4000", false),
            ("169.254.0.21:49983", "169.254.0.22:4001", true),
        ] {
            assert_eq!(is_outbound(&id(local, peer), kept), outbound, "{local} {peer}");
        }
    }

    #[test]
    fn connections_of_this_machine_are_listed() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let client = std::net::TcpStream::connect(listener.local_addr().expect("bound")).expect("connect");
        let socket =
            rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(SOCK_DIAG));
        let found = match socket.map_err(io::Error::from).and_then(|socket| connections(&socket, AF_INET)) {
            Ok(found) => found,
            Err(error) => return eprintln!("skipped: this kernel does not list sockets: {error}"),
        };
        let local = client.local_addr().expect("connected");
        let is_local =
            |id: &SocketId| (id.source_address, id.source_port) == (IpAddr::from([127, 0, 0, 1]), local.port());
        assert!(found.iter().any(is_local), "{found:?}");
    }
}
