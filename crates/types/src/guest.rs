//! Addresses that are the same in every guest.
//!
//! The guest's own programs (PID 1 and the daemon), the packet rules of its slot, its VMM and the proxies all use these
//! values. They are part of every snapshot: a restored guest keeps the addresses it booted with.

use std::net::Ipv4Addr;

/// Network of the guest and its gateway.
pub const NETWORK: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 20);
/// Prefix length of [`NETWORK`], in bits.
pub const PREFIX_LENGTH: u8 = 30;
/// Address of the guest's interface.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 21);
/// Address of the guest's gateway: the tap device, or the VMM's user-mode network.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 22);
/// Ethernet address of the guest's interface. Locally administered, unicast.
pub const MAC: &str = "02:fc:00:00:00:05";

/// Port of the guest daemon. All other ports belong to the user.
pub const DAEMON_PORT: u16 = 49_983;
/// Port of the code interpreter, in templates that have it.
pub const INTERPRETER_PORT: u16 = 49_999;

/// Server of Hearth in a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Server {
    /// Name of the program, and of its declaration in `/etc/hearth/services`.
    pub name: &'static str,
    pub port: u16,
    /// Path with a successful reply once the server is ready.
    pub health: &'static str,
    /// Paths that only the host may request. The server cannot distinguish a client, so the edge rejects them.
    pub host_paths: &'static [&'static str],
}

/// The guest daemon, in every guest.
pub const DAEMON: Server = Server {
    name: "envd",
    port: DAEMON_PORT,
    health: "/health",
    host_paths: &["/collapse", "/freeze", "/fsfreeze", "/fsthaw", "/init", "/logs", "/unfreeze", "/upgrade"],
};
/// The code interpreter. All of its routes are for clients.
pub const INTERPRETER: Server =
    Server { name: "interpreter", port: INTERPRETER_PORT, health: "/health", host_paths: &[] };

/// File in the guest that changes with each restore.
///
/// Programs whose random state is part of a snapshot reseed when its content is new.
pub const GENERATION_FILE: &str = "/run/hearth/generation";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_and_gateway_are_the_hosts_of_the_network() {
        let mask = u32::MAX << (32 - u32::from(PREFIX_LENGTH));
        for (address, host) in [(ADDRESS, 1), (GATEWAY, 2)] {
            assert_eq!(u32::from(address) & mask, u32::from(NETWORK));
            assert_eq!(u32::from(address) & !mask, host);
        }
    }
}
