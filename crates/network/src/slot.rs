//! One guest's place on the network.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Once;

use hearth_host::exhaustion::is_exhaustion;
use hearth_host::{conntrack, namespace};

use crate::config::Error;
use crate::instance::Instance;
use crate::rules::{self, Bounds};

/// How the VMM connects its guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attachment {
    /// Through a tap device that exists in the slot's namespace.
    Tap {
        /// Its name.
        name: &'static str,
    },
    /// By itself, as an ordinary process.
    User,
}

/// A place on the network. Give it back with [`Pool::release`](crate::Pool::release).
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

    /// Makes the namespace, its links, addresses and rules. Blocks for about 15 ms.
    ///
    /// # Errors
    /// The caller [removes](remove) what there is.
    pub(crate) fn prepare(instance: &Instance, bounds: &Bounds, index: u32) -> Result<Self, Error> {
        furnish(instance, bounds, index)?;
        let path = namespace::path(&instance.namespace(index));
        let (_, address) = instance.addresses(index);
        Ok(Self { kind: Kind::Namespace { index, path, address } })
    }

    /// Cuts the guest off from everything but answers to the host. Blocks.
    pub(crate) fn forbid_internet(&self) -> Result<(), Error> {
        match &self.kind {
            Kind::Namespace { path, .. } => namespace::inside(path, || namespace::nft(&rules::without_internet()))
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

    /// The namespace the VMM belongs into.
    #[must_use]
    pub fn namespace(&self) -> Option<&Path> {
        match &self.kind {
            Kind::Namespace { path, .. } => Some(path),
            Kind::User => None,
        }
    }

    /// How the VMM connects its guest.
    #[must_use]
    pub fn attachment(&self) -> Attachment {
        match &self.kind {
            Kind::Namespace { .. } => Attachment::Tap { name: rules::TAP },
            Kind::User => Attachment::User,
        }
    }

    /// Where the host reaches every port of the guest; `None` where only the VMM can.
    #[must_use]
    pub fn guest_address(&self) -> Option<IpAddr> {
        match &self.kind {
            Kind::Namespace { address, .. } => Some(IpAddr::V4(*address)),
            Kind::User => None,
        }
    }
}

fn furnish(instance: &Instance, bounds: &Bounds, index: u32) -> Result<(), Error> {
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
    .map_err(setup("making a network namespace"))?;
    // Before the link is up: no address of IPv6 ever appears.
    without_ipv6(&link).map_err(setup("disabling IPv6 on a slot's link"))?;
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
    namespace::inside(&namespace::path(&name), || furnish_inside(bounds, host, address))
        .map_err(setup("furnishing a namespace"))
}

/// One warning is enough for a kernel without `nf_conntrack_netlink`.
static NOT_DELETED: Once = Once::new();

/// What is done inside of a fresh namespace.
fn furnish_inside(bounds: &Bounds, host: Ipv4Addr, address: Ipv4Addr) -> Result<(), namespace::Error> {
    // Before any link is up: no router advertisement or address of IPv6 ever appears.
    without_ipv6("all")?;
    without_ipv6("default")?;
    namespace::sysctl("net/ipv4/ip_forward", "1")?;
    // The rules stand before the first packet can pass.
    namespace::nft(&rules::namespace(&address.to_string(), bounds))?;
    for (name, value) in rules::slot_sysctls() {
        namespace::sysctl(name, &value.to_string())?;
    }
    namespace::ip(&format!(
        "tuntap add {tap} mode tap\n\
         link set {tap} address {gateway_mac} up\n\
         addr add {gateway}/30 dev {tap}\n\
         neigh add {guest} lladdr {guest_mac} dev {tap} nud permanent\n\
         addr add {address}/31 dev {uplink}\n\
         link set {uplink} up\n\
         neigh replace {host} lladdr {host_mac} dev {uplink} nud permanent\n\
         route add default via {host}\n",
        tap = rules::TAP,
        gateway = rules::GATEWAY,
        gateway_mac = rules::GATEWAY_MAC,
        guest = rules::GUEST,
        guest_mac = rules::GUEST_MAC,
        uplink = rules::UPLINK,
        host_mac = rules::HOST_MAC,
    ))
}

/// Switches IPv6 off for links of the current namespace; a kernel may not have it at all.
fn without_ipv6(links: &str) -> Result<(), namespace::Error> {
    let switch = format!("net/ipv6/conf/{links}/disable_ipv6");
    if namespace::has_sysctl(&switch) { namespace::sysctl(&switch, "1") } else { Ok(()) }
}

/// Removes whatever there is of a slot, and what the host remembers of its connections. Blocks. Idempotent: what could not
/// be removed is tried again with the same call.
pub(crate) fn remove(instance: &Instance, index: u32) -> Result<(), Error> {
    let setup = |action| move |source| Error::Setup { action, source };
    // The link first: it goes now, and not when the kernel gets to tearing the namespace down.
    let link = namespace::remove_link(&instance.link(index)).map_err(setup("removing a slot's link"));
    // Also after a failure: this takes no descriptor, and the link goes with the namespace.
    let namespace = namespace::remove(&instance.namespace(index)).map_err(setup("removing a slot's namespace"));
    // When no packet can come any more. The next guest with this address must not meet them.
    let (_, address) = instance.addresses(index);
    let connections = conntrack::delete(address);
    link.and(namespace)?;
    match connections {
        Ok(count) => tracing::debug!(count, %address, "tracked connections of a slot deleted"),
        Err(error) if is_exhaustion(&error) => return Err(Error::Conntrack(error)),
        // A kernel that cannot never will: the slot is not held for it.
        Err(error) => NOT_DELETED.call_once(|| {
            tracing::warn!(%error, "could not delete tracked connections of a slot, they stay until they expire");
        }),
    }
    Ok(())
}
