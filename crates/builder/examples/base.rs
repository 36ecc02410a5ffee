use std::sync::Mutex;
use std::time::Instant;
use hearth_builder::*;
struct P(Instant, Mutex<(Option<(&'static str, Instant)>, u64, u64)>);
impl P { fn end(&self) { let mut s=self.1.lock().unwrap(); if let Some((n,t))=s.0.take(){ println!("{:8.3} {n}: {:.3} s ({}/{})", self.0.elapsed().as_secs_f64(), t.elapsed().as_secs_f64(), s.1, s.2);} s.1=0; s.2=0; } }
impl Progress for P {
    fn phase(&self, name: &'static str, _u: Unit, total: Option<u64>) { self.end(); let mut s=self.1.lock().unwrap(); s.0=Some((name,Instant::now())); s.2=total.unwrap_or(0); }
    fn advance(&self, d: u64, t: u64) { let mut s=self.1.lock().unwrap(); s.1=d; s.2=t; }
    fn finished(&self) { self.end(); println!("{:8.3} finished", self.0.elapsed().as_secs_f64()); }
}
#[tokio::main]
async fn main() {
    let data = std::path::PathBuf::from(std::env::args().nth(1).unwrap());
    let mode = match std::env::args().nth(2).as_deref() { Some("user") => hearth_network::Mode::User, _ => hearth_network::Mode::Auto };
    let suite = std::env::args().nth(3).unwrap_or(SUITE.to_owned());
    std::fs::create_dir_all(&data).unwrap();
    let root = std::path::Path::new("/work/main/target/guest");
    let config = Config { folder: data.join("builder"), guest: GuestPrograms { init: root.join("hearth-init"), envd: root.join("envd") }, suite, mirror: None, nameserver: NAMESERVER, resources: RESOURCES };
    let p = P(Instant::now(), Mutex::new((None,0,0)));
    let run = async {
        let kernel = ensure_kernel(&config, &p).await?;
        println!("{kernel:?}");
        let driver = hearth_vmm::Driver::open(&hearth_vmm::Config { qemu_program: "qemu-system-x86_64".into(), accelerator: hearth_vmm::AcceleratorChoice::Auto, verdict_file: data.join("verdict") }, &kernel).await.unwrap();
        println!("{:?}", driver.verdict());
        let pool = hearth_network::Pool::open(hearth_network::Config { mode, owner: data.display().to_string(), block: std::net::Ipv4Addr::new(10,11,0,0), prepared_target: 1 }).await.unwrap();
        let cache = hearth_artifact::Cache::open(data.join("artifacts")).unwrap();
        let base = ensure_base(&config, &driver, &pool, &cache, &kernel, &p).await;
        pool.shutdown().await;
        let base = base?;
        println!("{base:?}");
        Ok::<(), Error>(())
    };
    if let Err(e) = run.await { eprintln!("ERROR {}", hearth_stdx::chain(&e)); std::process::exit(1); }
}
