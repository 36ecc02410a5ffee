//! nginx, configured like the edge.
//!
//! It streams in both directions, keeps connections alive, and has as many workers as the machine has processors.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

const START_PATIENCE: Duration = Duration::from_secs(10);

pub(super) struct Nginx {
    child: Child,
    pub(super) address: SocketAddr,
    _folder: TempDir,
}

impl Nginx {
    pub(super) async fn start(upstream: SocketAddr) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        // The port may be taken again before nginx binds it: nginx does not accept an open socket.
        let address = TcpListener::bind(("127.0.0.1", 0)).await?.local_addr()?;
        let here = folder.path().display();
        let configuration = format!(
            "daemon off; worker_processes auto; pid {here}/pid; error_log stderr warn;
             events {{ worker_connections 8192; }}
             http {{
               access_log off; client_body_temp_path {here}/body; proxy_temp_path {here}/proxy;
               fastcgi_temp_path {here}/fastcgi; uwsgi_temp_path {here}/uwsgi; scgi_temp_path {here}/scgi;
               keepalive_requests 1000000;
               upstream guest {{ server {upstream}; keepalive 128; keepalive_requests 1000000; }}
               server {{
                 listen {address};
                 location / {{
                   proxy_pass http://guest; proxy_http_version 1.1; proxy_set_header Connection \"\";
                   proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr;
                   proxy_set_header X-Forwarded-Proto $scheme;
                   proxy_buffering off; proxy_request_buffering off; client_max_body_size 0;
                 }}
               }}
             }}"
        );
        let file = folder.path().join("nginx.conf");
        std::fs::write(&file, configuration)?;
        let mut command = Command::new("nginx");
        command.arg("-e").arg("stderr").arg("-p").arg(folder.path()).arg("-c").arg(&file);
        command.stdin(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn().context("starting nginx (Debian's package nginx-light)")?;
        let listening = async {
            while TcpStream::connect(address).await.is_err() {
                if let Some(status) = child.try_wait()? {
                    bail!("nginx exited with {status}");
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Ok(())
        };
        tokio::time::timeout(START_PATIENCE, listening).await.context("nginx does not listen")??;
        Ok(Self { child, address, _folder: folder })
    }

    pub(super) async fn stop(mut self) -> Result<()> {
        super::parts::terminate(&self.child)?;
        self.child.wait().await?;
        Ok(())
    }
}
