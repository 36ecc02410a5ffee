//! Packet rules, as nftables scripts.
//!
//! A guest is hostile. Its namespace filters first, and the host filters again: a guest that has taken over its VMM is
//! in the namespace, but has no privileges there.
//!
//! Kernel tables that all namespaces share are bounded per guest. *Neighbours*: all that a slot needs are permanent,
//! which the kernel's limit does not count (arp(7), `gc_thresh3`), and ARP passes only between the slot's own pair of
//! addresses. *Connections*: the number of tracked ones is limited in the slot and on the host, and idle ones expire
//! equally fast in both. *Fragments*: the memory for reassembly in the slot is limited ([`slot_sysctls`]); the host
//! sees only whole packets.

use std::collections::BTreeSet;

use hearth_types::guest::{ADDRESS, GATEWAY, MAC};
use ipnet::Ipv4Net;

use crate::instance::{Instance, SLOTS};

/// Ethernet address of the guest's gateway, the same in every slot.
///
/// A restored guest remembers it from the slot it was saved in, and the gateway has the guest's as a permanent
/// neighbour: neither side needs ARP before the first packet.
pub(crate) const GATEWAY_MAC: &str = "02:fc:00:00:00:06";
/// Ethernet addresses of the two ends of the link to the host. Each end has the other as a permanent neighbour.
pub(crate) const HOST_MAC: &str = "02:fc:00:00:00:07";
pub(crate) const UPLINK_MAC: &str = "02:fc:00:00:00:08";
/// Names of the tap device and of the slot's end of the link to the host.
pub(crate) const TAP: &str = "tap0";
pub(crate) const UPLINK: &str = "uplink";
/// Pattern of the host's links of all instances of a machine.
const ALL_LINKS: &str = "\"hrt*\"";

/// Destinations that are denied to every guest.
///
/// These are this network, private, shared, loopback, link-local (cloud metadata), benchmarking, multicast and reserved
/// ranges (RFC 6890), and the metadata service of Azure, whose address is in a public range. Metadata services of other
/// clouds are in the ranges: 169.254.169.254 and 169.254.170.2 (most), 100.100.100.200 (Alibaba), 192.0.0.192 (Oracle).
/// Guests have no IPv6.
const FORBIDDEN: &str = "0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 168.63.129.16, 169.254.0.0/16, 172.16.0.0/12, \
     192.0.0.0/24, 192.168.0.0/16, 198.18.0.0/15, 224.0.0.0/4, 240.0.0.0/4";

/// Tracking time of an idle TCP connection: the minimum for a NAT (RFC 5382, REQ-5).
///
/// The kernel's default is 5 days.
const ESTABLISHED_SECONDS: u32 = 7440;
/// Tracking time of an unanswered SYN. By then a client has given up or sent it again.
const SYN_SENT_SECONDS: u32 = 30;
/// Tracking time of a closed connection, for a lost last acknowledgement.
///
/// With the kernel's default of 120, closed connections would use up a guest's limit.
const CLOSED_SECONDS: u32 = 10;

/// Network limits of one guest.
#[derive(Debug, Clone)]
pub(crate) struct GuestLimits {
    /// Maximum number of tracked connections at a time.
    pub(crate) connections_max: u32,
    /// Denied destinations, in addition to [`FORBIDDEN`].
    pub(crate) denied: Vec<Ipv4Net>,
}

impl GuestLimits {
    /// Definition of the nftables set of denied destinations. The operator's ranges may overlap; the set may be empty.
    fn denied_set(&self) -> String {
        let all: Vec<String> = self.denied.iter().map(Ipv4Net::to_string).collect();
        match all.is_empty() {
            true => "set denied { type ipv4_addr; flags interval; auto-merge; }".to_owned(),
            false => format!(
                "set denied {{ type ipv4_addr; flags interval; auto-merge; elements = {{ {} }}; }}",
                all.join(", ")
            ),
        }
    }
}

/// Kernel parameters of a slot's namespace, in the order to set them.
///
/// They limit the state that a guest can make the kernel store. Those of connection tracking exist only after rules
/// that need it are set.
pub(crate) fn slot_sysctls() -> [(&'static str, u32); 8] {
    [
        // Packets of the guest must have a source address to which a route leads back, and so must ARP requests.
        ("net/ipv4/conf/all/rp_filter", 1),
        // Bytes of fragments of incomplete packets (a quarter of a MiB holds four of the largest), and their lifetime
        // in seconds.
        ("net/ipv4/ipfrag_low_thresh", 192 << 10),
        ("net/ipv4/ipfrag_high_thresh", 256 << 10),
        ("net/ipv4/ipfrag_time", 10),
        ("net/netfilter/nf_conntrack_tcp_timeout_established", ESTABLISHED_SECONDS),
        ("net/netfilter/nf_conntrack_tcp_timeout_syn_sent", SYN_SENT_SECONDS),
        ("net/netfilter/nf_conntrack_tcp_timeout_time_wait", CLOSED_SECONDS),
        // Protocols without ports.
        ("net/netfilter/nf_conntrack_generic_timeout", 60),
    ]
}

/// Rules inside a slot's namespace.
pub(crate) fn namespace(address: &str, limits: &GuestLimits) -> String {
    let denied_set = limits.denied_set();
    let connections_max = limits.connections_max;
    format!(
        "table arp hearth {{
  chain input {{
    type filter hook input priority filter; policy drop;
    iifname {TAP} arp operation request arp saddr ether {MAC} arp saddr ip {ADDRESS} arp daddr ip {GATEWAY} accept
  }}
}}
table inet hearth {{
  {denied_set}
  chain to_guest {{
    type nat hook prerouting priority dstnat;
    iifname {UPLINK} ip daddr {address} dnat ip to {ADDRESS}
  }}
  chain from_guest {{
    type nat hook postrouting priority srcnat;
    oifname {UPLINK} ip saddr {ADDRESS} snat ip to {address}
  }}
  chain spoofed {{
    type filter hook prerouting priority raw;
    iifname {TAP} ip saddr != {ADDRESS} drop
    iifname {TAP} meta protocol ip6 drop
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    ct state invalid drop
    ct state established,related accept
    iifname {UPLINK} oifname {TAP} accept
    iifname {TAP} ip daddr {{ {FORBIDDEN} }} drop
    iifname {TAP} ip daddr @denied drop
    iifname {TAP} ct state new ct count over {connections_max} drop
    iifname {TAP} oifname {UPLINK} accept
  }}
  chain input {{
    type filter hook input priority filter; policy drop;
  }}
}}
"
    )
}

/// Rule that denies internet access to a prepared slot. Replies to the host belong to established connections and pass.
pub(crate) fn deny_internet() -> String {
    format!("insert rule inet hearth forward iifname {TAP} ct state new drop\n")
}

/// Source of the timeouts of tracked connections on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Timeouts {
    /// Idle connections of guests expire as soon as in their slots.
    Slots,
    /// The host's own timeouts apply: the kernel lacks `CONFIG_NF_CONNTRACK_TIMEOUT`.
    Host,
}

/// Host rules for all slots of an instance. `opened` contains the uplinks that forward only for Hearth.
pub(crate) fn host(instance: &Instance, limits: &GuestLimits, opened: &BTreeSet<String>, timeouts: Timeouts) -> String {
    let table = instance.table();
    let links = format!("\"{}*\"", instance.link_prefix());
    let range = instance.range();
    let denied_set = limits.denied_set();
    let connections_max = limits.connections_max;
    let (timeout, set_timeout) = match timeouts {
        Timeouts::Slots => (
            format!(
                "ct timeout slots {{
    protocol tcp; l3proto ip
    policy = {{ established : {ESTABLISHED_SECONDS}, syn_sent : {SYN_SENT_SECONDS}, time_wait : {CLOSED_SECONDS} }}
  }}"
            ),
            format!("iifname {links} ip protocol tcp ct state new ct timeout set \"slots\""),
        ),
        Timeouts::Host => (String::new(), String::new()),
    };
    let opened: String = opened.iter().map(|link| open_uplink(instance, link)).collect();
    // `add`, `delete`, then the definition: replaces the table of an earlier daemon in one transaction.
    format!(
        "add table inet {table}
delete table inet {table}
table inet {table} {{
  {timeout}
  {denied_set}
  set opened {{ type ifname; }}
  set guests {{ type ipv4_addr; size {SLOTS}; flags dynamic; }}
  chain to_internet {{
    type nat hook postrouting priority srcnat;
    ip saddr {range} oifname != {links} masquerade
  }}
  chain forward {{
    type filter hook forward priority filter;
    iifname {links} ct state established,related accept
    iifname {links} ip saddr != {range} drop
    iifname {links} ip daddr {{ {FORBIDDEN} }} drop
    iifname {links} ip daddr @denied drop
    iifname {links} ct state new add @guests {{ ip saddr ct count over {connections_max} }} drop
    {set_timeout}
    oifname {links} ct state established,related accept
    oifname {links} drop
    iifname @opened oifname != {ALL_LINKS} ct status dnat accept
    iifname @opened oifname != {ALL_LINKS} ct state new,invalid,untracked drop
  }}
  chain input {{
    type filter hook input priority filter;
    iifname {links} ct state established,related accept
    iifname {links} drop
  }}
  chain output {{
    type filter hook output priority filter;
    ip daddr {range} oifname != {links} oifname != \"lo\" drop
  }}
}}
{opened}"
    )
}

/// Command that adds an uplink to the set of those that forward only for Hearth.
pub(crate) fn open_uplink(instance: &Instance, link: &str) -> String {
    format!("add element inet {} opened {{ \"{link}\" }}\n", instance.table())
}
