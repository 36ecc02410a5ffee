//! TLS towards clients, with a certificate that can be changed while connections come in, and towards guests, who are believed
//! whatever certificate they show.
//!
//! ```text
//! Listener::Tls ─▶ handshake, in the connection's own task and within HEAD_TIMEOUT ─▶ HTTP/2 or HTTP/1.1, by ALPN
//! ```
//!
//! Names do not matter here: one certificate is for all of them, and which of the names a request is for stands in the request.
//! HTTP/2 clients send requests for different names of one certificate over one connection (RFC 9113, 9.1.1), so that the
//! name of the handshake would be the wrong one to decide by.

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

/// What we speak inside, the better one first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// How long a guest may take to greet. Longer than any that works, shorter than the patience of whoever waits for the answer.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// A certificate with its chain and its key.
#[derive(Clone)]
pub struct Certificate(Arc<CertifiedKey>);

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Certificate").field(&self.0.cert.len()).finish()
    }
}

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// Something else than PEM, or PEM of something else.
    #[error("reading the certificate chain, which has to be PEM")]
    Chain(#[source] pem::Error),
    /// There is no certificate in it.
    #[error("the certificate chain has no certificate")]
    Empty,
    /// Something else than PEM, or PEM of something else.
    #[error("reading the private key, which has to be PEM")]
    Key(#[source] pem::Error),
    /// The key is of an unknown kind, or belongs to another certificate.
    #[error("the private key does not fit the certificate")]
    KeyMismatch(#[source] rustls::Error),
}

impl Certificate {
    /// A certificate from its chain, the end entity's first, and its key, both as PEM.
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

/// The server's side of TLS. Cheap to clone: clones share the certificate.
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
    /// A server that shows this certificate, whatever name it is asked for: TLS 1.3 and 1.2, HTTP/2 and HTTP/1.1.
    ///
    /// # Panics
    /// Never: the cryptography we chose knows both versions.
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
        // Sessions are the clients' to remember, in tickets: nothing here grows with them. Without tickets, should their key
        // not come about, every handshake is a full one.
        if let Ok(ticketer) = ring::Ticketer::new() {
            config.ticketer = ticketer;
        }
        Self { acceptor: TlsAcceptor::from(Arc::new(config)), current }
    }

    /// Shows another certificate from now on. Connections that are open go on.
    pub fn replace(&self, certificate: Certificate) {
        *self.current.0.write().unwrap_or_else(PoisonError::into_inner) = certificate;
    }

    /// The handshake. How long it may take is the caller's to say. Dropped before the end, it closes the connection.
    pub(crate) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        self.acceptor.accept(stream).await.map(TlsStream::from)
    }
}

/// The client's side of TLS, towards ports of guests. Cheap to clone.
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
    /// A client that takes any certificate. It is for connections that nobody else can come between: nobody vouches for the
    /// certificate of a program in a sandbox, and there is no name to check it against.
    ///
    /// # Panics
    /// Never: the cryptography we chose knows both versions.
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
        // Guests have no names to tell their sessions apart by: one would be shown what another one gave us to remember.
        config.resumption = Resumption::disabled();
        let connector = |protocols: &[&[u8]]| {
            let mut config = config.clone();
            config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
            TlsConnector::from(Arc::new(config))
        };
        Self { http1: connector(&PROTOCOLS[1..]), either: connector(&PROTOCOLS) }
    }

    /// The handshake, over a connection to the guest. The server chooses a version of HTTP, `best` at most. Cancel safe: the
    /// connection closes.
    ///
    /// # Errors
    /// What is said by the guest makes no sense as TLS, or it says nothing for long.
    pub async fn connect(&self, stream: TcpStream, best: Protocol) -> io::Result<Stream> {
        // An address sends no name: the one that was asked for is not the guest's.
        let nameless = ServerName::IpAddress(IpAddr::from(Ipv4Addr::LOCALHOST).into());
        let connector = if best == Protocol::Http2 { &self.either } else { &self.http1 };
        let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, connector.connect(nameless, stream));
        let stream = handshake.await.map_err(|_| io::ErrorKind::TimedOut)??;
        Ok(Stream::Tls(Box::new(TlsStream::from(stream))))
    }
}

/// Takes whatever a guest shows. Its signatures are not looked at either: they would prove that it has the key of a certificate
/// that says nothing.
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

/// The certificate that is shown.
#[derive(Debug)]
struct CurrentCertificate(RwLock<Certificate>);

impl ResolvesServerCert for CurrentCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner).0))
    }
}

/// The cryptography, named: no state of the process decides about it.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}
