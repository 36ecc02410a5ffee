//! The packet rules, as nftables scripts.
//!
//! The guest is hostile, so its namespace filters first and the host filters again: a guest that took over its VMM is in
//! the namespace, but has no rights there.

use crate::instance::Instance;

/// The guest's address and its gateway, the same in every slot.
pub(crate) const GUEST: &str = "169.254.0.21";
pub(crate) const GATEWAY: &str = "169.254.0.22";
/// Their Ethernet addresses, also the same: a restored guest remembers its gateway's from the slot it was saved in, and
/// neither side has to ask before the first packet. The guest's is the one that VMMs give its network device.
pub(crate) const GUEST_MAC: &str = "02:fc:00:00:00:05";
pub(crate) const GATEWAY_MAC: &str = "02:fc:00:00:00:06";
/// The tap device, and the slot's end of the link to the host.
pub(crate) const TAP: &str = "tap0";
pub(crate) const UPLINK: &str = "uplink";

/// What no guest may send to: this network, private, shared, loopback, link-local (cloud metadata), benchmarking, multicast
/// and reserved ranges (RFC 6890).
const FORBIDDEN: &str = "0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, 172.16.0.0/12, 192.0.0.0/24, \
     192.168.0.0/16, 198.18.0.0/15, 224.0.0.0/4, 240.0.0.0/4";

/// The rules inside a slot's namespace.
pub(crate) fn namespace(address: &str, internet_access: bool) -> String {
    let egress = if internet_access {
        format!("iifname {TAP} oifname {UPLINK} accept")
    } else {
        // Replies to what the host asked are established already.
        format!("iifname {TAP} drop")
    };
    format!(
        "table inet hearth {{
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
    {egress}
  }}
  chain input {{
    type filter hook input priority filter; policy drop;
  }}
}}
"
    )
}

/// Replaces the egress decision of a prepared slot.
pub(crate) fn without_internet() -> String {
    format!("insert rule inet hearth forward iifname {TAP} ct state new drop\n")
}

/// The host's rules for all slots of an instance.
pub(crate) fn host(instance: &Instance) -> String {
    let table = instance.table();
    let links = format!("\"{}*\"", instance.link_prefix());
    let range = instance.range();
    // `add` then `delete` then the definition: replaces what an earlier daemon left, in one transaction.
    format!(
        "add table inet {table}
delete table inet {table}
table inet {table} {{
  chain to_internet {{
    type nat hook postrouting priority srcnat;
    ip saddr {range} oifname != {links} masquerade
  }}
  chain forward {{
    type filter hook forward priority filter;
    iifname {links} ct state established,related accept
    iifname {links} ip daddr {{ {FORBIDDEN} }} drop
    oifname {links} ct state established,related accept
    oifname {links} drop
  }}
  chain input {{
    type filter hook input priority filter;
    iifname {links} ct state established,related accept
    iifname {links} drop
  }}
}}
"
    )
}
