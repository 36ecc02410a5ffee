//! The packet rules, as nftables scripts.
//!
//! The guest is hostile, so its namespace filters first and the host filters again: a guest that took over its VMM is in
//! the namespace, but has no rights there.
//!
//! Tables of the kernel that all namespaces share are bounded for each guest. *Neighbours*: all that a slot needs are
//! permanent, which the kernel's limit does not count (arp(7), `gc_thresh3`), and ARP passes only between the slot's own
//! pair. *Connections*: a number of tracked ones, in the slot and on the host, which forget idle ones alike. *Fragments*:
//! the memory of the slot's reassembly ([`slot_sysctls`]); the host sees only whole packets.

use std::collections::BTreeSet;

use ipnet::Ipv4Net;

use crate::instance::{Instance, SLOTS};

/// The guest's address and its gateway, the same in every slot.
pub(crate) const GUEST: &str = "169.254.0.21";
pub(crate) const GATEWAY: &str = "169.254.0.22";
/// Their Ethernet addresses, also the same: a restored guest remembers its gateway's from the slot it was saved in, and
/// neither side has to ask before the first packet. The guest's is the one that VMMs give its network device.
pub(crate) const GUEST_MAC: &str = "02:fc:00:00:00:05";
pub(crate) const GATEWAY_MAC: &str = "02:fc:00:00:00:06";
/// Ethernet addresses of the two ends of the link to the host: each has the other as a permanent neighbour.
pub(crate) const HOST_MAC: &str = "02:fc:00:00:00:07";
pub(crate) const UPLINK_MAC: &str = "02:fc:00:00:00:08";
/// The tap device, and the slot's end of the link to the host.
pub(crate) const TAP: &str = "tap0";
pub(crate) const UPLINK: &str = "uplink";
/// Links on the host of all instances of a machine.
const ALL_LINKS: &str = "\"hrt*\"";

/// What no guest may send to: this network, private, shared, loopback, link-local (cloud metadata), benchmarking, multicast
/// and reserved ranges (RFC 6890), and the metadata service of Azure, whose address looks public. Those of other clouds are
/// in the ranges: 169.254.169.254 and 169.254.170.2 (most), 100.100.100.200 (Alibaba), 192.0.0.192 (Oracle). Guests have no
/// IPv6.
const FORBIDDEN: &str = "0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 168.63.129.16, 169.254.0.0/16, 172.16.0.0/12, \
     192.0.0.0/24, 192.168.0.0/16, 198.18.0.0/15, 224.0.0.0/4, 240.0.0.0/4";

/// Seconds that an idle TCP connection is tracked: what a NAT owes at least (RFC 5382, REQ-5). The kernel's default is 5 days.
const ESTABLISHED_SECONDS: u32 = 7440;
/// Seconds that an unanswered SYN is tracked: a client has given up or sent it again by then.
const SYN_SENT_SECONDS: u32 = 30;
/// Seconds that a closed connection is tracked, for a last acknowledgement that was lost. The kernel's default of 120 would
/// fill a guest's number with connections that are over.
const CLOSED_SECONDS: u32 = 10;

/// What one guest may do on the network.
#[derive(Debug, Clone)]
pub(crate) struct Bounds {
    /// Connections that are tracked for it at once.
    pub(crate) connections_max: u32,
    /// Destinations that are denied, besides [`FORBIDDEN`].
    pub(crate) denied: Vec<Ipv4Net>,
}

impl Bounds {
    /// The set of denied destinations: ranges of an operator may overlap. Empty where there are none.
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

/// Kernel parameters of a slot's namespace, in order: limits on what its guest makes the kernel remember. Those of connection
/// tracking exist once rules that need it are there.
pub(crate) fn slot_sysctls() -> [(&'static str, u32); 8] {
    [
        // What comes from the guest must come from an address that a route leads back to. So must senders of ARP requests.
        ("net/ipv4/conf/all/rp_filter", 1),
        // Bytes of fragments of incomplete packets (a quarter of a MiB is four of the largest), and seconds they are kept.
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

/// The rules inside a slot's namespace.
pub(crate) fn namespace(address: &str, bounds: &Bounds) -> String {
    let denied_set = bounds.denied_set();
    let connections_max = bounds.connections_max;
    format!(
        "table arp hearth {{
  chain input {{
    type filter hook input priority filter; policy drop;
    iifname {TAP} arp operation request arp saddr ether {GUEST_MAC} arp saddr ip {GUEST} arp daddr ip {GATEWAY} accept
  }}
}}
table inet hearth {{
  {denied_set}
  chain to_guest {{
    type nat hook prerouting priority dstnat;
    iifname {UPLINK} ip daddr {address} dnat ip to {GUEST}
  }}
  chain from_guest {{
    type nat hook postrouting priority srcnat;
    oifname {UPLINK} ip saddr {GUEST} snat ip to {address}
  }}
  chain spoofed {{
    type filter hook prerouting priority raw;
    iifname {TAP} ip saddr != {GUEST} drop
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

/// Replaces the egress decision of a prepared slot: replies to what the host asked are established already.
pub(crate) fn without_internet() -> String {
    format!("insert rule inet hearth forward iifname {TAP} ct state new drop\n")
}

/// The parts of the host's rules that not every kernel has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Timeouts {
    /// Connections of guests are forgotten as soon as in their slots.
    OfSlots,
    /// The host's own apply: the kernel has no `CONFIG_NF_CONNTRACK_TIMEOUT`.
    OfHost,
}

/// The host's rules for all slots of an instance. `opened` are the uplinks that forward only for Hearth.
pub(crate) fn host(instance: &Instance, bounds: &Bounds, opened: &BTreeSet<String>, timeouts: Timeouts) -> String {
    let table = instance.table();
    let links = format!("\"{}*\"", instance.link_prefix());
    let range = instance.range();
    let denied_set = bounds.denied_set();
    let connections_max = bounds.connections_max;
    let (timeout, set_timeout) = match timeouts {
        Timeouts::OfSlots => (
            format!(
                "ct timeout slots {{
    protocol tcp; l3proto ip
    policy = {{ established : {ESTABLISHED_SECONDS}, syn_sent : {SYN_SENT_SECONDS}, time_wait : {CLOSED_SECONDS} }}
  }}"
            ),
            format!("iifname {links} ip protocol tcp ct state new ct timeout set \"slots\""),
        ),
        Timeouts::OfHost => (String::new(), String::new()),
    };
    let opened: String = opened.iter().map(|link| open(instance, link)).collect();
    // `add` then `delete` then the definition: replaces what an earlier daemon left, in one transaction.
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

/// Adds an uplink to those that forward only for Hearth.
pub(crate) fn open(instance: &Instance, link: &str) -> String {
    format!("add element inet {} opened {{ \"{link}\" }}\n", instance.table())
}
