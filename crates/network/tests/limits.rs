//! Limits on the kernel state of a guest, and forwarding of traffic that is not of guests.
//!
//! Namespaces stand for the machine, the internet, a LAN of the machine, and the guest.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use hearth_host::{namespace, requirement};
use hearth_network::{Config, Mode, Pool, Slot};
use hearth_types::guest::{ADDRESS, GATEWAY, MAC, PREFIX_LENGTH};

/// Ethernet address of the gateway, which slots set on their tap device.
const GATEWAY_MAC: &str = "02:fc:00:00:00:06";

/// Time to wait for a packet that is dropped. A success that takes longer is not noticed.
const DROP_TIMEOUT: Duration = Duration::from_millis(700);
/// Time limit of a handshake that succeeds.
///
/// The first packet over a new link may be lost, and TCP repeats it after a second (RFC 6298).
const REPLY_TIMEOUT: Duration = Duration::from_secs(20);
/// A host on the internet (RFC 5737).
const INTERNET: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// A host on the machine's LAN.
const LAN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// Minimum of a guest, which is small enough for a test to exceed.
const CONNECTIONS_MIN: u32 = 1024;

/// A network namespace that stands for a computer. It is removed on drop.
struct Computer(String);

impl Computer {
    fn new(role: &str) -> Self {
        let name = format!("test-{role}-{}", std::process::id());
        namespace::ip(&format!("netns add {name}\n")).expect("creates");
        let computer = Self(name);
        computer.run(|| {
            // A new namespace inherits defaults from this machine.
            for (switch, value) in [("ip_forward", "0"), ("conf/default/forwarding", "0"), ("conf/all/rp_filter", "0")]
            {
                namespace::sysctl(&format!("net/ipv4/{switch}"), value).expect("sets");
            }
            let _ = namespace::sysctl("net/ipv6/conf/all/disable_ipv6", "1");
            namespace::ip("link set lo up\n").expect("sets");
        });
        computer
    }

    fn path(&self) -> PathBuf {
        namespace::path(&self.0)
    }

    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        namespace::inside(&self.path(), || Ok(work())).expect("enters")
    }

    fn reaches(&self, address: Ipv4Addr, port: u16) -> bool {
        self.connect(address, port, DROP_TIMEOUT).is_ok()
    }

    fn connect(&self, address: Ipv4Addr, port: u16, timeout: Duration) -> std::io::Result<TcpStream> {
        let address = SocketAddr::new(address.into(), port);
        self.run(|| TcpStream::connect_timeout(&address, timeout))
    }

    /// Connects a link of this computer to one of another.
    fn link(&self, (name, address): (&str, &str), other: &Self, (other_name, other_address): (&str, &str)) {
        self.run(|| {
            let peer = &other.0;
            namespace::ip(&format!(
                "link add {name} type veth peer name {other_name} netns {peer}\naddr add {address} dev {name}\n\
                 link set {name} up\n"
            ))
            .expect("links");
        });
        other.run(|| {
            namespace::ip(&format!("addr add {other_address} dev {other_name}\nlink set {other_name} up\n"))
                .expect("links");
        });
    }
}

impl Drop for Computer {
    fn drop(&mut self) {
        let _ = namespace::remove(&self.0);
    }
}

/// A machine on the internet, with a LAN behind it.
struct TestNetwork {
    machine: Computer,
    internet: Computer,
    lan: Computer,
}

impl TestNetwork {
    /// Returns `None` and prints the reason if namespaces cannot be created.
    fn new() -> Option<Self> {
        let finding = requirement::network_namespaces();
        if !finding.found {
            println!("skipped: {}", finding.detail);
            return None;
        }
        let [machine, internet, lan] = ["machine", "internet", "lan"].map(Computer::new);
        machine.link(("eth0", "203.0.113.2/24"), &internet, ("wan0", "203.0.113.1/24"));
        machine.link(("lan0", "192.0.2.1/24"), &lan, ("eth0", "192.0.2.2/24"));
        machine.run(|| namespace::ip("route add default via 203.0.113.1\n").expect("adds"));
        lan.run(|| namespace::ip("route add default via 192.0.2.1\n").expect("adds"));
        internet.run(|| {
            // Clouds have their metadata service at such an address, which is in a public range.
            namespace::ip("addr add 168.63.129.16/32 dev wan0\nroute add 192.0.2.0/24 via 203.0.113.2\n")
                .expect("adds");
        });
        Some(Self { machine, internet, lan })
    }

    /// Runs a test on the machine: the runtime's threads are in its namespace.
    fn on_machine<F: Future<Output = ()>>(&self, test: impl FnOnce() -> F + Send) {
        self.machine.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("builds");
            runtime.block_on(test());
        });
    }

    fn machine_sysctl(&self, name: &str) -> String {
        self.machine.run(|| namespace::read_sysctl(name).expect("reads"))
    }

    /// Listens on all addresses of a computer and returns the port.
    fn listen(computer: &Computer) -> u16 {
        let listener = computer.run(|| TcpListener::bind("0.0.0.0:0").expect("binds"));
        let port = listener.local_addr().expect("address").port();
        // Stays open until the test ends.
        std::thread::spawn(move || listener.incoming().collect::<Vec<_>>());
        port
    }
}

fn config(folder: &Path) -> Config {
    Config {
        mode: Mode::Namespaces,
        owner: folder.display().to_string(),
        block: Ipv4Addr::new(10, 251, 0, 0),
        prepared_target: 0,
        guests_max: 100_000,
        egress_denied: Vec::new(),
    }
}

/// Creates a guest behind the slot's `tap0`, which a link to the guest's namespace replaces.
fn guest_behind(slot: &Slot) -> Computer {
    let guest = Computer::new("guest");
    let name = &guest.0;
    namespace::inside(slot.namespace().expect("a slot with a namespace"), || {
        namespace::ip(&format!(
            "link del tap0\n\
             link add tap0 address {GATEWAY_MAC} type veth peer name eth0 address {MAC} netns {name}\n\
             addr add {GATEWAY}/{PREFIX_LENGTH} dev tap0\nlink set tap0 up\n\
             neigh add {ADDRESS} lladdr {MAC} dev tap0 nud permanent\n"
        ))
    })
    .expect("replaces the tap device");
    guest.run(|| {
        namespace::ip(&format!(
            "addr add {ADDRESS}/{PREFIX_LENGTH} dev eth0\nlink set eth0 up\nroute add default via {GATEWAY}\n"
        ))
        .expect("configures");
    });
    guest
}

/// Lines of `ip -4 neigh` in the current namespace.
fn neighbours() -> Vec<String> {
    let output = Command::new("ip").args(["-4", "neigh", "show", "nud", "all"]).output().expect("runs");
    let text = String::from_utf8(output.stdout).expect("text");
    // NOARP entries are the kernel's own, for multicast and loopback.
    text.lines().map(|line| line.trim_end().to_owned()).filter(|line| !line.ends_with("NOARP")).collect()
}

/// Sends an ARP request for the gateway from each of `senders` and prints the number of replies.
const ARP: &str = "import socket, struct, sys
gateway, mac = socket.inet_aton(sys.argv[1]), bytes.fromhex(sys.argv[2].replace(':', ''))
senders = sys.argv[3:]
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
s.bind(('eth0', 0x0806))
s.settimeout(0.5)
for sender in senders:
    request = struct.pack('!HHBBH', 1, 0x0800, 6, 4, 1) + mac + socket.inet_aton(sender) + bytes(6) + gateway
    s.send(b'\\xff' * 6 + mac + b'\\x08\\x06' + request)
replies = 0
try:
    while True:
        frame = s.recv(100)
        replies += frame[20:22] == b'\\x00\\x02' and frame[28:32] == gateway
except TimeoutError:
    pass
print(replies)";

fn arp_replies(guest: &Computer, senders: &[String]) -> usize {
    let output = guest.run(|| {
        Command::new("python3").args(["-c", ARP, &GATEWAY.to_string(), MAC]).args(senders).output().expect("runs")
    });
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().parse().expect("a number")
}

#[test]
fn an_arp_flood_creates_no_neighbours() {
    let Some(network) = TestNetwork::new() else { return };
    let folder = tempfile::tempdir().expect("temporary folder");
    network.on_machine(|| async {
        let pool = Pool::open(config(folder.path())).await.expect("opens");
        let slot = pool.acquire(true).await.expect("slot");
        let guest = guest_behind(&slot);
        let path = slot.namespace().expect("namespace").to_owned();
        let in_slot = || namespace::inside(&path, || Ok(neighbours())).expect("enters");
        let before = in_slot();
        // One sender in the gateway's own network, the others outside. Few, because the table belongs to the whole
        // machine.
        let flood: Vec<String> = (0..150).map(|n| format!("10.99.0.{n}")).chain(["169.254.0.23".to_owned()]).collect();
        assert_eq!(arp_replies(&guest, &flood), 0, "the flood was answered");
        assert_eq!(in_slot(), before);
        // The guest itself gets a reply.
        assert_eq!(arp_replies(&guest, &[ADDRESS.to_string()]), 1);

        // Traffic creates no neighbours either: both ends of the link have each other as permanent ones.
        let port = TestNetwork::listen(&network.internet);
        guest.connect(INTERNET, port, REPLY_TIMEOUT).expect("connects");
        for neighbour in in_slot().into_iter().chain(neighbours()).filter(|line| !line.contains("dev eth0")) {
            assert!(neighbour.ends_with("PERMANENT"), "{neighbour}");
        }
        drop(guest);
        pool.release(slot).await;
        pool.shutdown().await;
    });
}

/// Tracked connections of the current namespace.
fn tracked() -> u32 {
    namespace::read_sysctl("net/netfilter/nf_conntrack_count").expect("reads").parse().expect("a number")
}

#[test]
fn tracked_connections_are_limited_and_deleted_with_their_slot() {
    let Some(network) = TestNetwork::new() else { return };
    let folder = tempfile::tempdir().expect("temporary folder");
    network.on_machine(|| async {
        let pool = Pool::open(config(folder.path())).await.expect("opens");
        let slot = pool.acquire(true).await.expect("slot");
        let guest = guest_behind(&slot);
        let IpAddr::V4(address) = slot.guest_address().expect("address") else { panic!("an IPv4 address") };
        // From the guest and to the guest: both are tracked, established ones for hours.
        let (outside, inside) = (TestNetwork::listen(&network.internet), TestNetwork::listen(&guest));
        let outward = guest.run(|| TcpStream::connect((INTERNET, outside)).expect("connects"));
        let inward = TcpStream::connect((address, inside)).expect("connects");
        if let Ok(table) = std::fs::read_to_string("/proc/thread-self/net/nf_conntrack") {
            let seconds = |line: &str| line.split_whitespace().nth(4).and_then(|field| field.parse::<u32>().ok());
            let of_guest = table.lines().find(|line| line.contains(&format!("src={address} dst={INTERNET}")));
            let remaining = of_guest.and_then(seconds).expect("is tracked");
            assert!((7000..=7440).contains(&remaining), "an idle connection is tracked for {remaining} s");
        }
        guest.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("binds");
            for port in 1..=3 * CONNECTIONS_MIN as u16 {
                socket.send_to(b"x", (INTERNET, port)).expect("sends");
            }
        });
        let in_slot = namespace::inside(slot.namespace().expect("namespace"), || Ok(tracked())).expect("enters");
        // "Port unreachable" replies belong to their connections. The tolerance is for connections of the machine
        // itself.
        for (location, count) in [("the slot", in_slot), ("the machine", tracked())] {
            assert!((CONNECTIONS_MIN / 2..CONNECTIONS_MIN + 64).contains(&count), "{count} are tracked in {location}");
        }
        drop((guest, outward, inward));
        pool.release(slot).await;
        assert_eq!(tracked(), 0);
        pool.shutdown().await;
    });
}

#[test]
fn only_guests_are_forwarded_and_forwarding_is_restored() {
    let Some(network) = TestNetwork::new() else { return };
    let folder = tempfile::tempdir().expect("temporary folder");
    let port = TestNetwork::listen(&network.internet);
    let lan = TestNetwork::listen(&network.lan);
    let forwarding = |link: &str| network.machine_sysctl(&format!("net/ipv4/conf/{link}/forwarding"));
    network.on_machine(|| async {
        let pool = Pool::open(config(folder.path())).await.expect("opens");
        let slot = pool.acquire(true).await.expect("slot");
        let guest = guest_behind(&slot);
        guest.connect(INTERNET, port, REPLY_TIMEOUT).expect("the guest has internet");
        assert!(!guest.reaches(Ipv4Addr::new(168, 63, 129, 16), port), "the guest reached a metadata service");
        assert_eq!(network.machine_sysctl("net/ipv4/ip_forward"), "0");
        assert_eq!((forwarding("eth0").as_str(), forwarding("lan0").as_str()), ("1", "0"));
        assert!(!network.internet.reaches(LAN, lan), "the machine is a router for the internet");
        assert!(!network.lan.reaches(INTERNET, port), "the machine is a router for its LAN");
        drop(guest);
        pool.release(slot).await;
        // A daemon that crashes, as this one with its runtime, restores nothing.
    });
    assert_eq!(forwarding("eth0"), "1");
    network.on_machine(|| async {
        let next = Pool::open(config(folder.path())).await.expect("opens again");
        next.shutdown().await;
        assert_eq!(forwarding("eth0"), "0");
    });
    network.on_machine(|| async {
        // A new uplink forwards when the next slot is prepared. A host that an operator made a router stays one after
        // shutdown.
        let pool = Pool::open(config(folder.path())).await.expect("opens");
        namespace::ip("route replace default via 192.0.2.2\n").expect("replaces");
        let slot = pool.acquire(true).await.expect("slot");
        assert_eq!(forwarding("lan0"), "1");
        pool.release(slot).await;
        namespace::sysctl("net/ipv4/ip_forward", "1").expect("sets");
        pool.shutdown().await;
        assert_eq!((forwarding("eth0").as_str(), forwarding("lan0").as_str()), ("1", "1"));
    });
}

#[test]
fn denied_destinations_are_out_of_reach() {
    let Some(network) = TestNetwork::new() else { return };
    let folder = tempfile::tempdir().expect("temporary folder");
    let port = TestNetwork::listen(&network.internet);
    network.on_machine(|| async {
        // They may overlap with each other and with the ranges that are always denied.
        let denied = ["203.0.113.0/30", "203.0.113.1/32", "10.0.0.0/9"].map(|range| range.parse().expect("a range"));
        let config = Config { egress_denied: denied.to_vec(), ..config(folder.path()) };
        let pool = Pool::open(config.clone()).await.expect("opens");
        let slot = pool.acquire(true).await.expect("slot");
        let guest = guest_behind(&slot);
        assert!(!guest.reaches(INTERNET, port), "the guest reached what is denied");
        drop(guest);
        pool.release(slot).await;
        pool.shutdown().await;
        let refused = Pool::open(Config { mode: Mode::User, ..config }).await;
        assert!(refused.is_err(), "nothing denies what a user-mode network sends");
    });
}
