//! The bound of everything that moves bytes: plain TCP through the same tap, with nothing at the guest's end but a few lines
//! of Python that take or give them.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::wire::{Connection, PIECE_BYTES};

/// Tells its port. A connection begins with how many bytes are wanted (8 bytes); with none, it takes what comes, and says how
/// much that was.
const SERVER: &str = r"
import socket
listener = socket.create_server(('0.0.0.0', 0))
print(listener.getsockname()[1], flush=True)
piece = bytearray(1 << 20)
view = memoryview(piece)
while True:
    peer, _ = listener.accept()
    with peer:
        wanted = int.from_bytes(peer.recv(8, socket.MSG_WAITALL), 'big')
        while wanted:
            wanted -= peer.send(view[:min(wanted, len(piece))])
        taken = 0
        while count := peer.recv_into(piece):
            taken += count
        peer.sendall(taken.to_bytes(8, 'big'))
";

/// The Python end, for as long as this lives.
pub(super) struct Raw {
    address: SocketAddr,
    _server: super::wire::Messages<hearth_envd_api::process::StartResponse>,
    /// The stream above is on it.
    _connection: Connection,
}

impl Raw {
    pub(super) async fn open(mut connection: Connection, guest: IpAddr) -> Result<Self> {
        let mut server = connection.start(None, &["python3", "-c", SERVER]).await?;
        let port = server.output().await?.context("the port of the Python server")?;
        let port = String::from_utf8(port)?.trim().parse()?;
        Ok(Self { address: SocketAddr::new(guest, port), _server: server, _connection: connection })
    }

    /// Into the guest.
    pub(super) async fn upload(&self, bytes: usize) -> Result<Duration> {
        let mut stream = TcpStream::connect(self.address).await?;
        let piece = vec![0; PIECE_BYTES];
        let start = Instant::now();
        stream.write_u64(0).await?;
        let mut left = bytes;
        while left > 0 {
            let size = left.min(piece.len());
            stream.write_all(&piece[..size]).await?;
            left -= size;
        }
        stream.shutdown().await?;
        let taken = stream.read_u64().await?;
        ensure!(taken == bytes as u64, "{taken} of {bytes} bytes came to the guest");
        Ok(start.elapsed())
    }

    /// Out of the guest.
    pub(super) async fn download(&self, bytes: usize) -> Result<Duration> {
        let mut stream = TcpStream::connect(self.address).await?;
        let mut piece = vec![0; PIECE_BYTES];
        let start = Instant::now();
        stream.write_u64(bytes as u64).await?;
        let mut left = bytes;
        while left > 0 {
            let size = left.min(piece.len());
            let read = stream.read(&mut piece[..size]).await?;
            ensure!(read > 0, "{left} bytes did not come from the guest");
            left -= read;
        }
        Ok(start.elapsed())
    }
}
