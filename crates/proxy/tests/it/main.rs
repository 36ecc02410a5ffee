//! Tests of the proxy over real sockets.

mod aborts;
mod heads;
mod hostile;
mod http2;
mod lifecycle;
mod limits;
mod pool;
mod streaming;
mod test_proxy;
mod upgrades;
