//! Listening ports that are not reachable at the guest's interface, from the kernel's tables (proc_pid_net(5)).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// TCP_LISTEN of the kernel's `tcp_states.h`.
const LISTEN: &str = "0A";

/// Returns ports with the address of their listener, without those that are reachable at `interface`.
///
/// IPv6 services on all addresses are included: they may serve IPv4 too, which the tables do not show.
pub(super) fn not_reachable_at(interface: Ipv4Addr) -> BTreeMap<u16, IpAddr> {
    let mut found = BTreeMap::new();
    for table in ["/proc/net/tcp6", "/proc/net/tcp"] {
        // Without IPv6 the table does not exist.
        let Ok(file) = File::open(table) else { continue };
        let lines = BufReader::new(file).lines().skip(1).map_while(Result::ok);
        // Listeners precede connections, of which there may be very many.
        for (port, address) in lines.map_while(|line| listener(&line).ok()) {
            let Some(rank) = rank(address, interface) else { continue };
            let entry = found.entry(port).or_insert((rank, address));
            *entry = (*entry).min((rank, address));
        }
    }
    found.into_iter().map(|(port, (_, address))| (port, address)).collect()
}

/// Returns the precedence of a listener's address, for services that listen on several.
///
/// Returns `None` for an address that needs no relay, or that cannot be connected to.
fn rank(address: IpAddr, interface: Ipv4Addr) -> Option<u8> {
    match address {
        IpAddr::V4(address) if address.is_unspecified() || address == interface => None,
        IpAddr::V4(Ipv4Addr::LOCALHOST) => Some(0),
        IpAddr::V6(Ipv6Addr::LOCALHOST) => Some(1),
        IpAddr::V4(address) if address.is_loopback() => Some(2),
        // A link-local address cannot be used without its interface.
        IpAddr::V6(address) if address.is_unicast_link_local() => None,
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Some(4),
        _ => Some(3),
    }
}

/// A line that does not describe a listener.
#[derive(Debug, PartialEq, Eq)]
struct NotAListener;

/// Parses port and address of a line such as `0: 0100007F:1F90 00000000:0000 0A ...`.
///
/// Addresses are words of 32 bits in the machine's byte order.
fn listener(line: &str) -> Result<(u16, IpAddr), NotAListener> {
    let mut fields = line.split_whitespace().skip(1);
    let local = fields.next().ok_or(NotAListener)?;
    if fields.nth(1) != Some(LISTEN) {
        return Err(NotAListener);
    }
    let (address, port) = local.split_once(':').ok_or(NotAListener)?;
    let port = u16::from_str_radix(port, 16).map_err(|_| NotAListener)?;
    let word = |text: &str| u32::from_str_radix(text, 16).map(u32::to_ne_bytes).map_err(|_| NotAListener);
    if !address.is_ascii() {
        return Err(NotAListener);
    }
    let address = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(address)?)),
        32 => {
            let mut bytes = [0; 16];
            for (index, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(&address[index * 8..index * 8 + 8])?);
            }
            // An IPv4-mapped address belongs to IPv4.
            IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
        }
        _ => return Err(NotAListener),
    };
    Ok((port, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn kernel_table_lines_are_parsed() {
        let v4 =
            "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 1 1 0 100 0";
        assert_eq!(listener(v4), Ok((8080, Ipv4Addr::LOCALHOST.into())));
        let v6 = "   1: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 0 0 0 0 0";
        assert_eq!(listener(v6), Ok((80, Ipv6Addr::LOCALHOST.into())));
        let all = "   2: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000";
        assert_eq!(listener(all), Ok((22, Ipv4Addr::UNSPECIFIED.into())));
        for other in ["", "0:", "3: 0100007F:1F90 0100007F:8000 01 0", "3: zz:1F90 0:0 0A", "3: 0100007Fé:1F90 0:0 0A"]
        {
            assert_eq!(listener(other), Err(NotAListener), "{other}");
        }
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn ipv4_mapped_addresses_are_ipv4() {
        let mapped = "   1: 0000000000000000FFFF00000100007F:0050 00000000000000000000000000000000:0000 0A 0 0 0 0 0";
        assert_eq!(listener(mapped), Ok((80, Ipv4Addr::LOCALHOST.into())));
    }

    #[test]
    fn ranks_of_addresses() {
        let interface = Ipv4Addr::new(169, 254, 0, 21);
        let rank = |text: &str| rank(text.parse().expect("an address"), interface);
        for direct in ["0.0.0.0", "169.254.0.21", "fe80::1"] {
            assert_eq!(rank(direct), None, "{direct}");
        }
        let ranked = ["127.0.0.1", "::1", "127.0.1.1", "172.17.0.1", "::"].map(rank);
        assert!(ranked.is_sorted() && ranked.iter().all(Option::is_some), "{ranked:?}");
    }

    #[test]
    fn listeners_of_this_machine_are_found() {
        let at = |address: &str| std::net::TcpListener::bind((address, 0)).expect("bind");
        let port = |listener: &std::net::TcpListener| listener.local_addr().expect("bound").port();
        let listeners = ["127.0.0.1", "127.0.0.5", "127.83.1.3", "0.0.0.0"].map(|address| (address, at(address)));
        let found = not_reachable_at(Ipv4Addr::new(127, 83, 1, 3));
        let found = listeners.map(|(address, listener)| (address, found.get(&port(&listener)).map(IpAddr::to_string)));
        let relayed = |address: &str| Some(address.to_owned());
        assert_eq!(
            found,
            [
                ("127.0.0.1", relayed("127.0.0.1")),
                ("127.0.0.5", relayed("127.0.0.5")),
                ("127.83.1.3", None),
                ("0.0.0.0", None)
            ]
        );
    }
}
