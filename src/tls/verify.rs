//! How certificates are looked at in a handshake, and by which CA they are vouched for.
//!
//! The handshake itself takes any certificate whose key the peer proves to hold: whether that key is trusted is judged
//! after it, so that a refusal can be said in words over the encrypted connection. Both sides must show one.

use std::path::Path;
use std::sync::Arc;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, ServerName, TrustAnchor, UnixTime};
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls13_signature};
use tokio_rustls::rustls::server::NoServerSessionStorage;
use tokio_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use tokio_rustls::rustls::sign::SingleCertAndKey;
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error as TlsError,
    PeerIncompatible, ServerConfig, SignatureScheme,
};
use webpki::{
    CertRevocationList, EndEntityCert, KeyUsage, OwnedCertRevocationList, RevocationOptionsBuilder,
    UnknownStatusPolicy,
};

use super::identity::{self, Identity};
use crate::certificate::Facts;
use crate::error::{Error, ErrorKind, Result};
use crate::trust::Chain;

/// What both sides of a handshake say they speak; another protocol's TLS port is told from ours.
const PROTOCOL: &[u8] = b"towline";

/// Takes every certificate that can be read and whose key signs the handshake.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl Anybody {
    fn look(end_entity: &CertificateDer<'_>) -> std::result::Result<(), TlsError> {
        let good = EndEntityCert::try_from(end_entity).is_ok() && Facts::of(end_entity).is_ok();
        good.then_some(()).ok_or(TlsError::InvalidCertificate(CertificateError::BadEncoding))
    }

    fn signed(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }
}

fn only_13() -> TlsError {
    TlsError::PeerIncompatible(PeerIncompatible::Tls12NotOfferedOrEnabled)
}

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> std::result::Result<ServerCertVerified, TlsError> {
        Self::look(end_entity).map(|()| ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, TlsError> {
        Err(only_13())
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, TlsError> {
        self.signed(message, cert, dss)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Anybody {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> std::result::Result<ClientCertVerified, TlsError> {
        Self::look(end_entity).map(|()| ClientCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, TlsError> {
        Err(only_13())
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, TlsError> {
        self.signed(message, cert, dss)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Both ends of TLS 1.3 with this identity. Sessions are not resumed: each connection is judged anew.
pub(super) fn configs(identity: &Identity) -> Result<(Arc<ServerConfig>, Arc<ClientConfig>)> {
    let failed = |e: TlsError| Error::new(ErrorKind::Config, format!("TLS can't be set up: {e}"));
    let provider = Arc::new(ring::default_provider());
    let anybody = Arc::new(Anybody(Arc::clone(&provider)));
    let certified = Arc::clone(&identity.certified);
    let resolver = Arc::new(SingleCertAndKey::from(certified));
    let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13])
        .map_err(failed)?
        .with_client_cert_verifier(Arc::clone(&anybody) as _)
        .with_cert_resolver(Arc::clone(&resolver) as _);
    server.alpn_protocols = vec![PROTOCOL.to_vec()];
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(failed)?
        .dangerous()
        .with_custom_certificate_verifier(anybody)
        .with_client_cert_resolver(resolver);
    client.alpn_protocols = vec![PROTOCOL.to_vec()];
    client.resumption = Resumption::disabled();
    client.enable_sni = false;
    Ok((Arc::new(server), Arc::new(client)))
}

/// The CAs whose word counts, and what they took back.
#[derive(Debug)]
pub(super) struct Authority {
    anchors: Vec<TrustAnchor<'static>>,
    revoked: Vec<CertRevocationList<'static>>,
}

impl Authority {
    /// Reads the certificates of CAs and, if there is a file of them, their revocation lists.
    pub(super) fn load(ca: &Path, crl: Option<&Path>) -> Result<Self> {
        let bad = |path: &Path, why: String| {
            Error::new(ErrorKind::Config, format!("'{}' can't be used: {why}", path.display()))
        };
        let certificates = identity::certificates(ca)?;
        if certificates.is_empty() {
            return Err(bad(ca, "it holds no certificate in PEM".to_owned()));
        }
        let mut anchors = Vec::new();
        for certificate in &certificates {
            let anchor = webpki::anchor_from_trusted_cert(certificate).map_err(|e| bad(ca, e.to_string()))?;
            anchors.push(anchor.to_owned());
        }
        let mut revoked = Vec::new();
        if let Some(path) = crl {
            let pem = identity::read(path)?;
            for list in CertificateRevocationListDer::pem_slice_iter(&pem) {
                let list = list.map_err(|_| bad(path, "it holds a damaged list".to_owned()))?;
                let list = OwnedCertRevocationList::from_der(&list).map_err(|e| bad(path, e.to_string()))?;
                revoked.push(list.into());
            }
            if revoked.is_empty() {
                return Err(bad(path, "it holds no revocation list in PEM".to_owned()));
            }
        }
        Ok(Self { anchors, revoked })
    }

    /// Whether one of them vouches for the first of `chain`, at `now`, in seconds since 1970. `serves`: the peer was
    /// connected to, rather than connected.
    pub(super) fn vouches(&self, chain: &[CertificateDer<'static>], serves: bool, now: i64) -> Chain {
        let Some((first, between)) = chain.split_first() else {
            return Chain::Bad("there is no certificate".to_owned());
        };
        let judged = EndEntityCert::try_from(first).and_then(|cert| {
            let usage = if serves { KeyUsage::server_auth() } else { KeyUsage::client_auth() };
            let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now.try_into().unwrap_or(0)));
            let lists: Vec<&CertRevocationList<'_>> = self.revoked.iter().collect();
            let revocation = RevocationOptionsBuilder::new(&lists)
                .ok()
                .map(|b| b.with_status_policy(UnknownStatusPolicy::Allow).build());
            let algorithms = webpki::ALL_VERIFICATION_ALGS;
            cert.verify_for_usage(algorithms, &self.anchors, between, now, usage, revocation, None)
                .map(|_| ())
        });
        match judged {
            Ok(()) => Chain::Good,
            Err(webpki::Error::UnknownIssuer) => Chain::Bad("another issuer signed it".to_owned()),
            Err(webpki::Error::CertRevoked) => Chain::Bad("it was revoked".to_owned()),
            // Of one whose own time is over nobody asks its CA.
            Err(webpki::Error::CertExpired { .. }) => {
                Chain::Bad("a certificate between it and the CA is expired".to_owned())
            }
            Err(e) => Chain::Bad(e.to_string()),
        }
    }
}
