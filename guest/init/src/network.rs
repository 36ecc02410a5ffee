//! The guest's network: loopback, one interface with a fixed address, one route.
//!
//! The addresses are the same in every guest; outside, the slot on the host represents the guest. They are set by
//! netlink (rtnetlink(7)), so that a root file system needs no tools for it.

use std::io;

use hearth_types::guest::{ADDRESS, GATEWAY, PREFIX_LENGTH};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkFlags, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::fd::OwnedFd;
use rustix::net::{AddressFamily as Family, RecvFlags, SendFlags, SocketFlags, SocketType, netdevice};

use crate::Error;

const INTERFACE: &str = "eth0";
/// Longest reply to a request: an error that contains the request.
const REPLY_BYTES_MAX: usize = 8192;

/// Configures loopback and the interface.
pub(crate) fn configure() -> Result<(), Error> {
    // A slot forwards no IPv6. Loopback retains it, because servers bind to ::1.
    let ipv6 = format!("/proc/sys/net/ipv6/conf/{INTERFACE}/disable_ipv6");
    std::fs::write(&ipv6, "1").map_err(Error::on("disabling IPv6 of", INTERFACE))?;
    // Protocol 0 is NETLINK_ROUTE (netlink(7)).
    let socket = rustix::net::socket_with(Family::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)
        .map_err(Error::on("opening", "netlink"))?;
    let index = |name: &str| netdevice::name_to_index(&socket, name).map_err(Error::on("finding the interface", name));
    let loopback = index("lo")?;
    let interface = index(INTERFACE)?;
    request_ack(&socket, up(loopback)).map_err(Error::on("bringing up", "lo"))?;
    request_ack(&socket, address(interface)).map_err(Error::on("setting the address of", INTERFACE))?;
    request_ack(&socket, up(interface)).map_err(Error::on("bringing up", INTERFACE))?;
    request_ack(&socket, default_route(interface)).map_err(Error::on("setting the route through", GATEWAY.to_string()))
}

fn up(index: u32) -> RouteNetlinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    RouteNetlinkMessage::SetLink(link)
}

fn address(index: u32) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = PREFIX_LENGTH;
    message.header.index = index;
    message.attributes = vec![AddressAttribute::Local(ADDRESS.into()), AddressAttribute::Address(ADDRESS.into())];
    RouteNetlinkMessage::NewAddress(message)
}

fn default_route(index: u32) -> RouteNetlinkMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = AddressFamily::Inet;
    // RT_TABLE_MAIN
    route.header.table = 254;
    route.header.protocol = RouteProtocol::Boot;
    route.header.scope = RouteScope::Universe;
    route.header.kind = RouteType::Unicast;
    route.attributes = vec![RouteAttribute::Gateway(RouteAddress::Inet(GATEWAY)), RouteAttribute::Oif(index)];
    RouteNetlinkMessage::NewRoute(route)
}

/// Sends a request and waits for its acknowledgement.
fn request_ack(socket: &OwnedFd, request: RouteNetlinkMessage) -> io::Result<()> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    rustix::net::send(socket, &bytes, SendFlags::empty())?;
    let mut reply = vec![0; REPLY_BYTES_MAX];
    let (length, _) = rustix::net::recv(socket, &mut reply[..], RecvFlags::empty())?;
    let reply = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&reply[..length])
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
    match reply.payload {
        NetlinkPayload::Error(error) if error.code.is_none() => Ok(()),
        NetlinkPayload::Error(error) => Err(error.to_io()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel did not acknowledge")),
    }
}
