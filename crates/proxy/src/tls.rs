//! TLS with clients and with guests.
//!
//! A listener's certificate can be replaced while it accepts connections. Connections to guests accept any certificate.
//!
//! ```text
//! Listener::Tls ─▶ handshake, in the connection's own task and within HEAD_TIMEOUT ─▶ HTTP/2 or HTTP/1.1, by ALPN
//! ```
//!
//! Server names are ignored: one certificate is valid for all of them, and each request names its host. HTTP/2 clients
//! send requests for different names of one certificate over one connection (RFC 9113, 9.1.1), so the name in the
//! handshake could be the wrong one.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use crate::dial::{Protocol, Stream};

/// ALPN protocols, the preferred one first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Time for a guest to complete the handshake.
///
/// Longer than working servers need, shorter than clients wait for a response.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Certificate with its chain and private key.
#[derive(Clone)]
pub struct Certificate(Arc<CertifiedKey>);

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Certificate").field(&self.0.cert.len()).finish()
    }
}

/// Rejection of a certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The chain is not PEM, or not a certificate.
    #[error("reading the certificate chain, which has to be PEM")]
    Chain(#[source] pem::Error),
    /// The chain is empty.
    #[error("the certificate chain has no certificate")]
    Empty,
    /// The key is not PEM, or not a private key.
    #[error("reading the private key, which has to be PEM")]
    Key(#[source] pem::Error),
    /// The type of the key is unknown, or it belongs to another certificate.
    #[error("the private key does not fit the certificate")]
    KeyMismatch(#[source] rustls::Error),
}

impl Certificate {
    /// Parses a certificate from its chain, end entity first, and its private key, both in PEM.
    ///
    /// # Errors
    /// See [`CertificateError`].
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, CertificateError> {
        let chain: Vec<_> =
            CertificateDer::pem_slice_iter(chain).collect::<Result<_, _>>().map_err(CertificateError::Chain)?;
        if chain.is_empty() {
            return Err(CertificateError::Empty);
        }
        let key = PrivateKeyDer::from_pem_slice(key).map_err(CertificateError::Key)?;
        let certified = CertifiedKey::from_der(chain, key, &provider()).map_err(CertificateError::KeyMismatch)?;
        Ok(Self(Arc::new(certified)))
    }
}

/// Server side of TLS. Cheap to clone: clones share the certificate.
#[derive(Clone)]
pub struct Acceptor {
    acceptor: TlsAcceptor,
    current: Arc<CurrentCertificate>,
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acceptor").field("current", &self.current).finish_non_exhaustive()
    }
}

impl Acceptor {
    /// Returns a server for TLS 1.3 and 1.2, HTTP/2 and HTTP/1.1, with this certificate for all names.
    ///
    /// # Panics
    /// Never: ring supports both versions.
    #[must_use]
    pub fn new(certificate: Certificate) -> Self {
        let current = Arc::new(CurrentCertificate(RwLock::new(certificate)));
        let resolver = Arc::<CurrentCertificate>::clone(&current);
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("ring knows TLS 1.2 and 1.3")
            .with_no_client_auth()
            .with_cert_resolver(resolver);
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
        // Clients store sessions in tickets, so no memory grows here. If the ticket key cannot be created, every
        // handshake is a full one.
        if let Ok(ticketer) = ring::Ticketer::new() {
            config.ticketer = ticketer;
        }
        Self { acceptor: TlsAcceptor::from(Arc::new(config)), current }
    }

    /// Replaces the certificate for new connections. Open connections continue.
    pub fn replace(&self, certificate: Certificate) {
        *self.current.0.write().unwrap_or_else(PoisonError::into_inner) = certificate;
    }

    /// Performs the handshake without a time limit.
    ///
    /// Dropping the future closes the connection.
    pub(crate) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        self.acceptor.accept(stream).await.map(TlsStream::from)
    }
}

/// Client side of TLS, for connections to guests. Cheap to clone.
#[derive(Clone)]
pub struct Connector {
    http1: TlsConnector,
    either: TlsConnector,
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector")
    }
}

impl Connector {
    /// Returns a client that accepts any certificate.
    ///
    /// Use it only for connections that no third party can intercept: the certificate of a program in a sandbox has no
    /// trusted issuer, and no name to verify.
    ///
    /// # Panics
    /// Never: ring supports both versions.
    #[must_use]
    pub fn unverified() -> Self {
        let provider = provider();
        let schemes = provider.signature_verification_algorithms.supported_schemes();
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring knows TLS 1.2 and 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AcceptAnyCertificate { schemes }))
            .with_no_client_auth();
        // Guests have no names that separate their sessions: one guest would be offered a session of another.
        config.resumption = Resumption::disabled();
        let connector = |protocols: &[&[u8]]| {
            let mut config = config.clone();
            config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
            TlsConnector::from(Arc::new(config))
        };
        Self { http1: connector(&PROTOCOLS[1..]), either: connector(&PROTOCOLS) }
    }

    /// Performs the handshake with a guest, which chooses an HTTP version up to `best`.
    ///
    /// Cancel safe: the connection closes.
    ///
    /// # Errors
    /// The handshake failed, or [`io::ErrorKind::TimedOut`] if the guest took too long.
    pub async fn connect(&self, stream: TcpStream, best: Protocol) -> io::Result<Stream> {
        // With an address, the client sends no server name; the requested name is not the guest's.
        let nameless = ServerName::IpAddress(IpAddr::from(Ipv4Addr::LOCALHOST).into());
        let connector = if best == Protocol::Http2 { &self.either } else { &self.http1 };
        let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, connector.connect(nameless, stream));
        let stream = handshake.await.map_err(|_| io::ErrorKind::TimedOut)??;
        Ok(Stream::Tls(Box::new(TlsStream::from(stream))))
    }
}

/// Verifier that accepts every certificate.
///
/// Signatures are not verified either: they would prove possession of the key of a meaningless certificate.
#[derive(Debug)]
struct AcceptAnyCertificate {
    schemes: Vec<SignatureScheme>,
}

impl ServerCertVerifier for AcceptAnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone()
    }
}

/// Certificate for new connections.
#[derive(Debug)]
struct CurrentCertificate(RwLock<Certificate>);

impl ResolvesServerCert for CurrentCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner).0))
    }
}

/// Returns the cryptography explicitly, so that the process's default has no influence.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}
