//! Which ports are listened on at loopback, as the kernel tells (proc_pid_net(5)).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::LOOPBACK;

/// TCP_LISTEN of the kernel's `tcp_states.h`.
const LISTEN: &str = "0A";

/// Ports, with the address to reach each at. Who listens at both is reached by IPv4.
pub(super) fn on_loopback() -> BTreeMap<u16, IpAddr> {
    let mut found = BTreeMap::new();
    for table in ["/proc/net/tcp6", "/proc/net/tcp"] {
        // Without IPv6 there is no table of it.
        let Ok(file) = File::open(table) else { continue };
        let lines = BufReader::new(file).lines().skip(1).map_while(Result::ok);
        // Listeners come first; there may be very many connections after them.
        let listeners = lines.map_while(|line| listener(&line).ok());
        found.extend(listeners.filter(|(_, address)| LOOPBACK.contains(address)));
    }
    found
}

/// A line that is not one of a listener.
#[derive(Debug, PartialEq, Eq)]
struct Other;

/// Port and address of a line such as `0: 0100007F:1F90 00000000:0000 0A ...`. Addresses are words of 32 bits in the
/// machine's order.
fn listener(line: &str) -> Result<(u16, IpAddr), Other> {
    let mut fields = line.split_whitespace().skip(1);
    let local = fields.next().ok_or(Other)?;
    if fields.nth(1) != Some(LISTEN) {
        return Err(Other);
    }
    let (address, port) = local.split_once(':').ok_or(Other)?;
    let port = u16::from_str_radix(port, 16).map_err(|_| Other)?;
    let word = |text: &str| u32::from_str_radix(text, 16).map(u32::to_ne_bytes).map_err(|_| Other);
    if !address.is_ascii() {
        return Err(Other);
    }
    let address = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(address)?)),
        32 => {
            let mut bytes = [0; 16];
            for (index, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(&address[index * 8..index * 8 + 8])?);
            }
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
        _ => return Err(Other),
    };
    Ok((port, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn lines_of_the_kernel() {
        let v4 =
            "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 1 1 0 100 0";
        assert_eq!(listener(v4), Ok((8080, Ipv4Addr::LOCALHOST.into())));
        let v6 = "   1: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 0 0 0 0 0";
        assert_eq!(listener(v6), Ok((80, Ipv6Addr::LOCALHOST.into())));
        let all = "   2: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000";
        assert_eq!(listener(all), Ok((22, Ipv4Addr::UNSPECIFIED.into())));
        for other in ["", "0:", "3: 0100007F:1F90 0100007F:8000 01 0", "3: zz:1F90 0:0 0A", "3: 0100007Fé:1F90 0:0 0A"]
        {
            assert_eq!(listener(other), Err(Other), "{other}");
        }
    }

    #[test]
    fn this_machine_s_listeners_are_found() {
        let at = |address: IpAddr| std::net::TcpListener::bind((address, 0)).expect("binds");
        let port = |listener: &std::net::TcpListener| listener.local_addr().expect("bound").port();
        let (v4, all) = (at(LOOPBACK[0]), at(Ipv4Addr::UNSPECIFIED.into()));
        let found = on_loopback();
        assert_eq!(found.get(&port(&v4)), Some(&LOOPBACK[0]));
        assert_eq!(found.get(&port(&all)), None);
    }
}
