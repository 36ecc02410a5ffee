//! Real slots, with a second namespace as the guest. Its link replaces the tap device.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
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

fn config(folder: &Path, prepared_target: usize) -> Config {
    Config {
        mode: Mode::Namespaces,
        owner: folder.display().to_string(),
        // Not the default block. With the machine-wide locked number it cannot collide with daemons on this machine.
        block: Ipv4Addr::new(10, 251, 0, 0),
        prepared_target,
        guests_max: 1,
        egress_denied: Vec::new(),
    }
}

/// Returns true if this machine can run the test; otherwise prints the reason.
fn permitted() -> bool {
    let finding = requirement::network_namespaces();
    if !finding.found {
        println!("skipped: {}", finding.detail);
    }
    finding.found
}

/// A guest: a namespace with the guest's address behind the slot's `tap0`.
struct Guest {
    name: String,
}

impl Guest {
    fn behind(slot: &Slot, name: &str) -> Self {
        let slot = slot.namespace().expect("a slot with a namespace").to_owned();
        namespace::ip(&format!("netns add {name}\n")).expect("creates");
        namespace::inside(&slot, || {
            namespace::ip(&format!(
                "link del tap0\n\
                 link add tap0 address {GATEWAY_MAC} type veth peer name eth0 address {MAC} netns {name}\n\
                 addr add {GATEWAY}/{PREFIX_LENGTH} dev tap0\nlink set tap0 up\n\
                 neigh add {ADDRESS} lladdr {MAC} dev tap0 nud permanent\n"
            ))
        })
        .expect("replaces the tap device");
        let guest = Self { name: name.to_owned() };
        guest.run(|| {
            namespace::ip(&format!(
                "link set lo up\naddr add {ADDRESS}/{PREFIX_LENGTH} dev eth0\nlink set eth0 up\n\
                 route add default via {GATEWAY}\n",
            ))
            .expect("configures");
        });
        guest
    }

    fn path(&self) -> PathBuf {
        namespace::path(&self.name)
    }

    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        namespace::inside(&self.path(), || Ok(work())).expect("enters")
    }

    fn reaches(&self, address: &str, port: u16) -> bool {
        let address = SocketAddr::new(address.parse().expect("an address"), port);
        self.run(|| TcpStream::connect_timeout(&address, DROP_TIMEOUT).is_ok())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = namespace::ip(&format!("netns del {}\n", self.name));
    }
}

/// Serves one word on every connection to port 8080 of all addresses of a guest.
fn serve(guest: &Guest, word: &'static str) {
    let listener = guest.run(|| TcpListener::bind("0.0.0.0:8080").expect("binds"));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.and_then(|mut stream| stream.write_all(word.as_bytes()));
        }
    });
}

fn read(address: IpAddr) -> String {
    let mut stream =
        TcpStream::connect_timeout(&SocketAddr::new(address, 8080), REPLY_TIMEOUT).expect("reaches the guest");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("reads");
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn guests_are_reachable_from_the_host_and_reach_no_private_address() {
    if !permitted() {
        return;
    }
    let folder = tempfile::tempdir().expect("temporary folder");
    let pool = Pool::open(config(folder.path(), 1)).await.expect("opens");
    let (first, second) = (pool.acquire(true).await.expect("slot"), pool.acquire(true).await.expect("slot"));
    let id = std::process::id();
    let (a, b) = (Guest::behind(&first, &format!("test-a-{id}")), Guest::behind(&second, &format!("test-b-{id}")));
    serve(&a, "I am a");
    serve(&b, "I am b");
    let (to_a, to_b) = (first.guest_address().expect("address"), second.guest_address().expect("address"));
    assert_eq!(read(to_a), "I am a");
    assert_eq!(read(to_b), "I am b");

    // A closed port is refused immediately and does not time out.
    let closed = TcpStream::connect_timeout(&SocketAddr::new(to_a, 81), REPLY_TIMEOUT).expect_err("closed");
    assert_eq!(closed.kind(), ErrorKind::ConnectionRefused);

    let host = TcpListener::bind("0.0.0.0:0").expect("binds");
    let port = host.local_addr().expect("address").port();
    let IpAddr::V4(uplink) = to_a else { panic!("an IPv4 address") };
    let host_end = Ipv4Addr::from(u32::from(uplink) - 1).to_string();
    for (address, port) in [
        (host_end.as_str(), port),
        (&GATEWAY.to_string(), port),
        (&to_b.to_string(), 8080),
        (&to_a.to_string(), 8080),
        ("127.0.0.1", port),
        ("169.254.169.254", 80),
    ] {
        assert!(!a.reaches(address, port), "the guest reached {address}:{port}");
    }

    // A datagram from an address that is not the guest's is dropped.
    let host_udp = UdpSocket::bind((to_a_host(to_a), 0)).expect("binds");
    host_udp.set_read_timeout(Some(DROP_TIMEOUT)).expect("sets");
    let target = host_udp.local_addr().expect("address");
    a.run(|| {
        namespace::ip("addr add 8.8.4.4/32 dev eth0\n").expect("adds");
        UdpSocket::bind("8.8.4.4:0").and_then(|socket| socket.send_to(b"spoofed", target)).expect("sends");
    });
    let received = loop {
        match host_udp.recv_from(&mut [0; 16]) {
            // A receive with a time limit is not restarted after a child's exit (signal(7)).
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            received => break received,
        }
    };
    assert_eq!(received.map_err(|error| error.kind()), Err(ErrorKind::WouldBlock), "a spoofed datagram arrived");

    drop((a, b));
    pool.release(first).await;
    pool.release(second).await;
    pool.shutdown().await;
}

fn to_a_host(guest: IpAddr) -> IpAddr {
    let IpAddr::V4(address) = guest else { panic!("an IPv4 address") };
    IpAddr::V4(Ipv4Addr::from(u32::from(address) - 1))
}

/// Two uplinks in namespaces would need a routed internet; the test only checks that packets do not leave the slot.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_without_internet_only_replies() {
    if !permitted() {
        return;
    }
    let folder = tempfile::tempdir().expect("temporary folder");
    let pool = Pool::open(config(folder.path(), 0)).await.expect("opens");
    let slot = pool.acquire(false).await.expect("slot");
    let guest = Guest::behind(&slot, &format!("test-c-{}", std::process::id()));
    serve(&guest, "answer");
    assert_eq!(read(slot.guest_address().expect("address")), "answer");
    let before = forwarded(&slot);
    assert!(!guest.reaches("198.51.100.1", 80));
    assert_eq!(forwarded(&slot), before, "a packet of the guest left the slot");
    drop(guest);
    pool.release(slot).await;
    pool.shutdown().await;
}

/// Returns the number of packets that left the slot towards the host.
fn forwarded(slot: &Slot) -> u64 {
    namespace::inside(slot.namespace().expect("namespace"), || {
        let table = std::fs::read_to_string("/proc/thread-self/net/dev").expect("reads");
        let line = table.lines().find_map(|line| line.trim().strip_prefix("uplink:")).expect("has an uplink");
        // proc_pid_net(5): eight columns of received counters, then bytes and packets sent.
        Ok(line.split_whitespace().nth(9).and_then(|field| field.parse().ok()).expect("a number"))
    })
    .expect("enters")
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_are_removed_after_release_and_after_a_crash() {
    if !permitted() {
        return;
    }
    let folder = tempfile::tempdir().expect("temporary folder");
    let pool = Pool::open(config(folder.path(), 2)).await.expect("opens");
    let mut names = Vec::new();
    for _ in 0..10 {
        let slot = pool.acquire(true).await.expect("slot");
        names.push(slot.namespace().expect("namespace").to_owned());
        pool.release(slot).await;
    }
    assert!(names.iter().all(|name| !name.exists()), "a released slot still exists");

    // The owner of a slot was dropped; the shutdown does not leave it.
    let abandoned = pool.acquire(true).await.expect("slot");
    pool.abandon(&abandoned);

    // A daemon that crashes releases nothing; the next daemon of the same owner finds the slot.
    let lost = pool.acquire(true).await.expect("slot");
    let lost = lost.namespace().expect("namespace").to_owned();
    let prefix =
        lost.file_name().and_then(|name| name.to_str()).and_then(|name| name.rsplit_once('-')).expect("a name");
    let prefix = format!("{}-", prefix.0);
    pool.shutdown().await;
    assert!(lost.exists(), "a slot in use was removed");
    assert!(!abandoned.namespace().expect("namespace").exists(), "an abandoned slot was left");
    drop(pool);
    let next = Pool::open(config(folder.path(), 0)).await.expect("opens again");
    assert!(!lost.exists(), "a lost slot was not found");
    next.shutdown().await;
    assert_eq!(namespace::list(&prefix), Vec::<String>::new());
    let table = format!("inet {}", prefix.trim_end_matches('-'));
    assert!(!namespace::nft_table_exists(&table).expect("lists"), "the host's rules still exist");
}
