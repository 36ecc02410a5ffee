//! The bound of transfers: plain TCP through the same tap, with a small Python server in the guest.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::wire::{CHUNK_BYTES, Connection};

/// Python server, which prints its port.
///
/// A client first sends the number of bytes to download (8 bytes, big endian). Then the server reads until the end of the
/// stream, and replies with the number of bytes that it read.
const SERVER: &str = r"
import socket
listener = socket.create_server(('0.0.0.0', 0))
print(listener.getsockname()[1], flush=True)
chunk = bytearray(1 << 20)
view = memoryview(chunk)
while True:
    peer, _ = listener.accept()
    with peer:
        requested = int.from_bytes(peer.recv(8, socket.MSG_WAITALL), 'big')
        while requested:
            requested -= peer.send(view[:min(requested, len(chunk))])
        received = 0
        while count := peer.recv_into(chunk):
            received += count
        peer.sendall(received.to_bytes(8, 'big'))
";

/// Running Python server, with the stream of its output.
pub(super) struct RawTcp {
    address: SocketAddr,
    _server: super::wire::Messages<hearth_envd_api::process::StartResponse>,
    /// Connection of the stream above.
    _connection: Connection,
}

impl RawTcp {
    pub(super) async fn open(mut connection: Connection, guest: IpAddr) -> Result<Self> {
        let mut server = connection.start(None, &["python3", "-c", SERVER]).await?;
        let port = server.output().await?.context("the Python server printed no port")?;
        let port = String::from_utf8(port)?.trim().parse()?;
        Ok(Self { address: SocketAddr::new(guest, port), _server: server, _connection: connection })
    }

    /// Sends bytes to the guest and returns the duration.
    pub(super) async fn upload(&self, bytes: usize) -> Result<Duration> {
        let mut stream = TcpStream::connect(self.address).await?;
        let chunk = vec![0; CHUNK_BYTES];
        let start = Instant::now();
        stream.write_u64(0).await?;
        let mut left = bytes;
        while left > 0 {
            let size = left.min(chunk.len());
            stream.write_all(&chunk[..size]).await?;
            left -= size;
        }
        stream.shutdown().await?;
        let received = stream.read_u64().await?;
        ensure!(received == bytes as u64, "the guest received {received} of {bytes} bytes");
        Ok(start.elapsed())
    }

    /// Receives bytes from the guest and returns the duration.
    pub(super) async fn download(&self, bytes: usize) -> Result<Duration> {
        let mut stream = TcpStream::connect(self.address).await?;
        let mut chunk = vec![0; CHUNK_BYTES];
        let start = Instant::now();
        stream.write_u64(bytes as u64).await?;
        let mut left = bytes;
        while left > 0 {
            let size = left.min(chunk.len());
            let read = stream.read(&mut chunk[..size]).await?;
            ensure!(read > 0, "the guest closed the connection with {left} bytes missing");
            left -= read;
        }
        Ok(start.elapsed())
    }
}
