//! One guest's place on the network.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use hearth_host::namespace;

use crate::config::Error;
use crate::instance::Instance;
use crate::rules;

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

    /// Makes the namespace, its links, addresses and rules. Blocks for about 15 ms. What fails leaves nothing behind.
    pub(crate) fn prepare(instance: &Instance, index: u32) -> Result<Self, Error> {
        let name = instance.namespace(index);
        let path = namespace::path(&name);
        let (host, address) = instance.addresses(index);
        let setup = |action| move |source| Error::Setup { action, source };
        let link = instance.link(index);
        let made = namespace::ip(&format!(
            "netns add {name}\n\
             link add {link} type veth peer name {uplink} netns {name}\n\
             addr add {host}/31 dev {link}\n\
             link set {link} up\n",
            uplink = rules::UPLINK,
        ))
        .map_err(setup("making a network namespace"))
        .and_then(|()| namespace::inside(&path, || furnish(host, address)).map_err(setup("furnishing a namespace")));
        match made {
            Ok(()) => Ok(Self { kind: Kind::Namespace { index, path, address } }),
            Err(error) => {
                remove(instance, index);
                Err(error)
            }
        }
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

/// What is done inside of a fresh namespace.
fn furnish(host: Ipv4Addr, address: Ipv4Addr) -> Result<(), namespace::Error> {
    // Before any link is up: no router advertisement or address of IPv6 ever appears.
    namespace::sysctl("net/ipv6/conf/all/disable_ipv6", "1")?;
    namespace::sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
    namespace::sysctl("net/ipv4/ip_forward", "1")?;
    // The rules stand before the first packet can pass.
    namespace::nft(&rules::namespace(&address.to_string(), true))?;
    namespace::ip(&format!(
        "tuntap add {tap} mode tap\n\
         link set {tap} address {gateway_mac} up\n\
         addr add {gateway}/30 dev {tap}\n\
         neigh add {guest} lladdr {guest_mac} dev {tap} nud permanent\n\
         addr add {address}/31 dev {uplink}\n\
         link set {uplink} up\n\
         route add default via {host}\n",
        tap = rules::TAP,
        gateway = rules::GATEWAY,
        gateway_mac = rules::GATEWAY_MAC,
        guest = rules::GUEST,
        guest_mac = rules::GUEST_MAC,
        uplink = rules::UPLINK,
    ))
}

/// Removes whatever there is of a slot. Its link goes with its namespace, at once if nobody is in it. Blocks.
pub(crate) fn remove(instance: &Instance, index: u32) {
    let name = instance.namespace(index);
    let link = instance.link(index);
    // The link first: it goes now, and not when the kernel gets to tearing the namespace down.
    if !namespace::links(&link).contains(&link) {
        tracing::debug!(link, "the link of a slot is gone already");
    } else if let Err(error) = namespace::ip(&format!("link del {link}\n")) {
        tracing::warn!(link, %error, "could not remove a slot's link");
    }
    if namespace::path(&name).exists()
        && let Err(error) = namespace::ip(&format!("netns del {name}\n"))
    {
        tracing::warn!(name, %error, "could not remove a slot's namespace");
    }
}
