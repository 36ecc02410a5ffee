//! A network slot of one guest.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Once;

use hearth_host::exhaustion::is_exhaustion;
use hearth_host::{conntrack, namespace};
use hearth_types::guest;

use crate::config::Error;
use crate::instance::Instance;
use crate::rules::{self, GuestLimits};

/// Connection between the VMM and the guest's network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attachment {
    /// A tap device that exists in the slot's namespace.
    Tap { name: &'static str },
    /// The VMM's user-mode network; the VMM needs no privileges.
    User,
}

/// A network slot. Release it with [`Pool::release`](crate::Pool::release).
#[derive(Debug, PartialEq, Eq)]
pub struct Slot {
    kind: Kind,
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Namespace { index: u32, path: PathBuf, address: Ipv4Addr },
    User,
}

impl Slot {
    pub(crate) fn user() -> Self {
        Self { kind: Kind::User }
    }

    /// Creates the namespace, its links, addresses and rules. Blocks for about 15 ms.
    ///
    /// # Errors
    /// Parts of the slot may exist; the caller [removes](remove) them.
    pub(crate) fn prepare(instance: &Instance, limits: &GuestLimits, index: u32) -> Result<Self, Error> {
        set_up(instance, limits, index)?;
        let path = namespace::path(&instance.namespace(index));
        let (_, address) = instance.addresses(index);
        Ok(Self { kind: Kind::Namespace { index, path, address } })
    }

    /// Denies the guest all traffic except replies to the host. Blocks.
    pub(crate) fn deny_internet(&self) -> Result<(), Error> {
        match &self.kind {
            Kind::Namespace { path, .. } => namespace::inside(path, || namespace::nft(&rules::deny_internet()))
                .map_err(|source| Error::Setup { action: "denying a slot's internet access", source }),
            Kind::User => Ok(()),
        }
    }

    pub(crate) fn index(&self) -> Option<u32> {
        match &self.kind {
            Kind::Namespace { index, .. } => Some(*index),
            Kind::User => None,
        }
    }

    /// Returns the namespace in which the VMM must run; `None` for user-mode network.
    #[must_use]
    pub fn namespace(&self) -> Option<&Path> {
        match &self.kind {
            Kind::Namespace { path, .. } => Some(path),
            Kind::User => None,
        }
    }

    /// Returns the connection between the VMM and the guest's network.
    #[must_use]
    pub fn attachment(&self) -> Attachment {
        match &self.kind {
            Kind::Namespace { .. } => Attachment::Tap { name: rules::TAP },
            Kind::User => Attachment::User,
        }
    }

    /// Returns the address at which the host reaches every port of the guest; `None` for user-mode network.
    #[must_use]
    pub fn guest_address(&self) -> Option<IpAddr> {
        match &self.kind {
            Kind::Namespace { address, .. } => Some(IpAddr::V4(*address)),
            Kind::User => None,
        }
    }
}

fn set_up(instance: &Instance, limits: &GuestLimits, index: u32) -> Result<(), Error> {
    let name = instance.namespace(index);
    let link = instance.link(index);
    let (host, address) = instance.addresses(index);
    let setup = |action| move |source| Error::Setup { action, source };
    namespace::ip(&format!(
        "netns add {name}\n\
         link add {link} address {host_mac} type veth peer name {uplink} address {uplink_mac} netns {name}\n",
        host_mac = rules::HOST_MAC,
        uplink = rules::UPLINK,
        uplink_mac = rules::UPLINK_MAC,
    ))
    .map_err(setup("creating a network namespace"))?;
    // Set before the link is up, so that it never gets an IPv6 address.
    disable_ipv6(&link).map_err(setup("disabling IPv6 on a slot's link"))?;
    for (switch, value) in [("forwarding", "1"), ("rp_filter", "1"), ("accept_redirects", "0")] {
        namespace::sysctl(&format!("net/ipv4/conf/{link}/{switch}"), value)
            .map_err(setup("setting up a slot's link"))?;
    }
    namespace::ip(&format!(
        "addr add {host}/31 dev {link}\n\
         link set {link} up\n\
         neigh replace {address} lladdr {uplink_mac} dev {link} nud permanent\n",
        uplink_mac = rules::UPLINK_MAC,
    ))
    .map_err(setup("connecting a network namespace"))?;
    namespace::inside(&namespace::path(&name), || set_up_inside(limits, host, address))
        .map_err(setup("setting up a network namespace"))
}

/// A kernel without `nf_conntrack_netlink` fails for every slot; one warning is enough.
static DELETE_UNSUPPORTED: Once = Once::new();

/// Configures a new namespace from inside.
fn set_up_inside(limits: &GuestLimits, host: Ipv4Addr, address: Ipv4Addr) -> Result<(), namespace::Error> {
    // Set before any link is up, so that no router advertisement is accepted and no IPv6 address assigned.
    disable_ipv6("all")?;
    disable_ipv6("default")?;
    namespace::sysctl("net/ipv4/ip_forward", "1")?;
    // The rules are set before the first packet can pass.
    namespace::nft(&rules::namespace(&address.to_string(), limits))?;
    for (name, value) in rules::slot_sysctls() {
        namespace::sysctl(name, &value.to_string())?;
    }
    namespace::ip(&format!(
        "tuntap add {tap} mode tap\n\
         link set {tap} address {gateway_mac} up\n\
         addr add {gateway}/{prefix} dev {tap}\n\
         neigh add {guest} lladdr {guest_mac} dev {tap} nud permanent\n\
         addr add {address}/31 dev {uplink}\n\
         link set {uplink} up\n\
         neigh replace {host} lladdr {host_mac} dev {uplink} nud permanent\n\
         route add default via {host}\n",
        tap = rules::TAP,
        gateway = guest::GATEWAY,
        prefix = guest::PREFIX_LENGTH,
        gateway_mac = rules::GATEWAY_MAC,
        guest = guest::ADDRESS,
        guest_mac = guest::MAC,
        uplink = rules::UPLINK,
        host_mac = rules::HOST_MAC,
    ))
}

/// Disables IPv6 for links of the current namespace, if the kernel has IPv6.
fn disable_ipv6(links: &str) -> Result<(), namespace::Error> {
    let switch = format!("net/ipv6/conf/{links}/disable_ipv6");
    if namespace::has_sysctl(&switch) { namespace::sysctl(&switch, "1") } else { Ok(()) }
}

/// Removes all existing parts of a slot, and the host's tracked connections of its guest. Blocks.
///
/// Idempotent: after an error the same call tries again.
pub(crate) fn remove(instance: &Instance, index: u32) -> Result<(), Error> {
    let setup = |action| move |source| Error::Setup { action, source };
    // The link first: it is removed immediately, not when the kernel tears the namespace down.
    let link = namespace::remove_link(&instance.link(index)).map_err(setup("removing a slot's link"));
    // Also after a failure: this opens no descriptor, and the kernel removes the link with the namespace.
    let namespace = namespace::remove(&instance.namespace(index)).map_err(setup("removing a slot's namespace"));
    // Deleted when no packet can arrive any more. The next guest with this address must not receive packets of these
    // connections.
    let (_, address) = instance.addresses(index);
    let connections = conntrack::delete(address);
    link.and(namespace)?;
    match connections {
        Ok(count) => tracing::debug!(count, %address, "tracked connections of a slot deleted"),
        Err(error) if is_exhaustion(&error) => return Err(Error::Conntrack(error)),
        // A kernel without support never deletes them, so the slot is freed without it.
        Err(error) => DELETE_UNSUPPORTED.call_once(|| {
            tracing::warn!(%error, "could not delete tracked connections of a slot, they stay until they expire");
        }),
    }
    Ok(())
}
