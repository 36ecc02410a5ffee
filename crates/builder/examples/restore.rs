use std::time::{Duration, Instant};
fn cpu(pid: i32) -> u64 { let s = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap(); let f: Vec<&str> = s.rsplit(')').next().unwrap().split_whitespace().collect(); (f[11].parse::<u64>().unwrap() + f[12].parse::<u64>().unwrap()) * 10 }
#[tokio::main]
async fn main() {
    let data = std::path::PathBuf::from(std::env::args().nth(1).unwrap());
    let n: usize = std::env::args().nth(2).map_or(5, |n| n.parse().unwrap());
    let mode = match std::env::args().nth(3).as_deref() { Some("user") => hearth_network::Mode::User, _ => hearth_network::Mode::Auto };
    let kernel = hearth_vmm::Kernel { version: "x".into(), image: "/x".into(), initramfs: "/x".into() };
    let driver = hearth_vmm::Driver::open(&hearth_vmm::Config { qemu_program: "qemu-system-x86_64".into(), accelerator: hearth_vmm::AcceleratorChoice::Tcg, verdict_file: data.join("verdict") }, &kernel).await.unwrap();
    let pool = hearth_network::Pool::open(hearth_network::Config { mode, owner: data.display().to_string(), block: std::net::Ipv4Addr::new(10,11,0,0), prepared_target: 2 }).await.unwrap();
    let cache = hearth_artifact::Cache::open(data.join("artifacts")).unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    for i in 0..n {
        let slot = pool.acquire(true).await.unwrap();
        let user = slot.guest_address().is_none();
        let kind = if user { "user" } else { "tap" };
        let set = cache.list().unwrap().into_iter().find(|s| s.manifest().platform.nic == kind).unwrap();
        let folder = data.join(format!("sb{i}")); let _ = std::fs::remove_dir_all(&folder); std::fs::create_dir(&folder).unwrap();
        let t = Instant::now();
        hearth_artifact::create_overlay(&folder.join("o"), u64::from(set.manifest().resources.disk_mib) << 20).unwrap();
        let nic = if user { hearth_vmm::Nic::User{forwards: vec![]} } else { hearth_vmm::Nic::Tap{name: "tap0".into()} };
        let m = hearth_vmm::Machine { folder: folder.clone(), resources: set.manifest().resources, base: set.rootfs(), overlay: Some(folder.join("o")), nic, namespace: slot.namespace().map(Into::into), cgroup: None };
        let paused = driver.restore(&m, &hearth_vmm::Saved { memory: set.memory(), state: set.state() }).await.unwrap();
        let restored = t.elapsed();
        let mut vm = paused.resume().await.map_err(|e| e.1).unwrap();
        let resumed = t.elapsed();
        let addr = match slot.guest_address() { Some(a) => std::net::SocketAddr::new(a, 49983), None => std::net::SocketAddr::from(([127,0,0,1], vm.forward(49983).await.unwrap())) };
        let c = hearth_envd_api::Client::new(Box::new(move || Box::pin(tokio::net::TcpStream::connect(addr))), "x", http::HeaderMap::new());
        let r = tokio::time::timeout(Duration::from_secs(1), tokio::net::TcpStream::connect(addr)).await;
        let connected = t.elapsed();
        let v = c.init(&hearth_envd_api::Init { access_token: None, sandbox_id: Some("i1".into()), ..Default::default() }, Duration::from_millis(std::env::var("ATT").map_or(200, |a| a.parse().unwrap())), Duration::from_secs(30)).await;
        let inited = t.elapsed(); let cpu1 = cpu(vm.process().pid());
        let mut outs = vec![];
        for cmd in std::env::var("CMDS").unwrap_or("true;id -un; python3 -c 'print(1)';df -h / | tail -1; free -m | grep Mem; ps aux | wc -l".into()).split(';') {
            let s = Instant::now();
            let o = c.run(cmd).await;
            outs.push(format!("  {cmd}: {:.3} cpu {} {}", s.elapsed().as_secs_f64(), cpu(vm.process().pid()), o.map_or_else(|e| hearth_stdx::chain(&e).to_string(), |o| format!("{} {}{}", o.exit_code, String::from_utf8_lossy(&o.stdout).trim(), String::from_utf8_lossy(&o.stderr).trim()))));
        }
        println!("restored {restored:?} resumed {resumed:?} connected {connected:?} ({}) init {inited:?} {} cpu {cpu1}", r.is_ok(), v.is_ok());
        if i == 0 || i == n-1 { println!("{}", outs.join("\n")); } else { println!("{}", outs[0]); }
        let _ = vm.pause().await.map_err(|e| println!("{}", e.1)).map(|p| p.kill()).unwrap().await;
        pool.release(slot).await;
        std::fs::remove_dir_all(&folder).unwrap();
    }
    pool.shutdown().await;
}
