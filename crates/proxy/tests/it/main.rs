//! The proxy between real sockets: clients and upstreams are other programs as far as it can tell.

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
