use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::*;

const NET: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

fn settings(dir: &tempfile::TempDir, mode: Mode) -> Settings {
    Settings { mode, state: Some(dir.path().to_owned()), name: "a".to_owned(), ..Settings::default() }
}

#[test]
fn what_is_encrypted_as_a_table() {
    let dir = tempfile::tempdir().unwrap();
    let trust = Trust::load(settings(&dir, Mode::Auto)).unwrap();
    let needs = |at| trust.terms().needs_tls(at);
    assert!(!needs(HERE) && !needs(Ipv6Addr::LOCALHOST.into()) && needs(NET));
    assert!(!needs("::ffff:127.0.0.1".parse().unwrap()), "an IPv4 loopback seen through IPv6");
    trust.reload(settings(&dir, Mode::On)).unwrap();
    assert!(needs(HERE) && needs(NET));
    trust.reload(settings(&dir, Mode::Off)).unwrap();
    assert!(!needs(HERE) && !needs(NET));
    // Once somebody was named there is no way back but to write it out.
    add(dir.path(), "b", Fingerprint([1; 32]), None).unwrap();
    trust.reload(settings(&dir, Mode::Auto)).unwrap();
    assert!(needs(HERE));
    remove(dir.path(), "b", None).unwrap();
    trust.refresh().unwrap();
    assert!(needs(HERE) && trust.terms().peers().is_empty());
}

#[test]
fn what_cannot_be_read_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let trust = Trust::load(settings(&dir, Mode::On)).unwrap();
    let before = trust.terms().status().fingerprint;
    let mut changes = trust.subscribe();
    std::fs::write(dir.path().join(PEERS), "garbage").unwrap();
    assert_eq!(trust.refresh().unwrap_err().kind(), ErrorKind::Config);
    std::fs::remove_file(dir.path().join(PEERS)).unwrap();
    let ca = Some(dir.path().join(KEY));
    let e = trust.reload(Settings { ca, ..settings(&dir, Mode::On) }).unwrap_err();
    assert!(e.to_string().contains("no certificate in PEM"), "{e}");
    std::fs::remove_file(dir.path().join(KEY)).unwrap();
    trust.refresh().unwrap_err();
    assert!(!changes.has_changed().unwrap() && trust.terms().status().fingerprint == before);
    // Where plain TCP may do, a node without a key still serves.
    trust.reload(settings(&dir, Mode::Auto)).unwrap();
    assert!(changes.borrow_and_update().server().is_err());
    assert!(trust.terms().status().warning.is_some_and(|w| w.contains("--new-key")));
    renew(dir.path(), "a", true).unwrap();
    trust.mend();
    assert!(trust.terms().server().is_ok());
}

/// A CA, and what it signs.
struct Signer(rcgen::Certificate, rcgen::Issuer<'static, rcgen::KeyPair>);

impl Signer {
    fn new(name: &str) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let certificate = params.self_signed(&key).unwrap();
        Self(certificate, rcgen::Issuer::new(params, key))
    }

    fn sign(&self, name: &str, serial: u64) -> Presented {
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.serial_number = Some(serial.into());
        let key = rcgen::KeyPair::generate().unwrap();
        let der = params.signed_by(&key, &self.1).unwrap().der().clone();
        Presented::new(Some(&[der]), false).unwrap()
    }

    fn revoke(&self, serial: u64) -> String {
        let params = rcgen::CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2024, 1, 1),
            next_update: rcgen::date_time_ymd(2054, 1, 1),
            crl_number: 1_u64.into(),
            issuing_distribution_point: None,
            revoked_certs: vec![rcgen::RevokedCertParams {
                serial_number: serial.into(),
                revocation_time: rcgen::date_time_ymd(2024, 1, 1),
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        params.signed_by(&self.1).unwrap().pem().unwrap()
    }
}

#[test]
fn a_ca_vouches_for_names_and_takes_its_word_back() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, other) = (Signer::new("ca"), Signer::new("other"));
    let (file, crl) = (dir.path().join("ca.pem"), dir.path().join("crl.pem"));
    std::fs::write(&file, ca.0.pem()).unwrap();
    let with = Settings { ca: Some(file), ..settings(&dir, Mode::Auto) };
    let trust = Trust::load(with.clone()).unwrap();
    let judge = |peer: &Presented, said: &str| match trust.terms().judge(peer, Some(said), Ask::Stream) {
        Ok(_) => "good".to_owned(),
        Err(refusal) => format!("{:?}: {refusal}", refusal.code),
    };
    let (good, taken) = (ca.sign("node-1", 10), ca.sign("node-2", 11));
    assert_eq!((judge(&good, "node-1"), judge(&taken, "node-2")), ("good".to_owned(), "good".to_owned()));
    assert!(judge(&good, "node-2").starts_with("Identity"), "{}", judge(&good, "node-2"));
    let stranger = judge(&other.sign("node-1", 10), "node-1");
    assert!(stranger.starts_with("Untrusted") && stranger.contains("another issuer"), "{stranger}");
    std::fs::write(&crl, ca.revoke(11)).unwrap();
    trust.reload(Settings { crl: Some(crl), ..with }).unwrap();
    assert_eq!(judge(&good, "node-1"), "good");
    let taken = judge(&taken, "node-2");
    assert!(taken.starts_with("Untrusted") && taken.contains("revoked"), "{taken}");
}

#[test]
fn an_expired_certificate_between_a_node_and_its_ca_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Signer::new("ca");
    let file = dir.path().join("ca.pem");
    std::fs::write(&file, ca.0.pem()).unwrap();
    let trust = Trust::load(Settings { ca: Some(file), ..settings(&dir, Mode::Auto) }).unwrap();
    let between = |until: i32| {
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "between");
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &ca.1).unwrap();
        let signer = Signer(certificate, rcgen::Issuer::new(params, key));
        let mut signed = signer.sign("node", 1);
        signed.chain.push(signer.0.der().clone());
        trust.terms().judge(&signed, Some("node"), Ask::Stream)
    };
    assert!(between(4000).is_ok());
    let refused = between(2001).unwrap_err().reason;
    for words in ["between it and the CA is expired", "have the CA give it another one"] {
        assert!(refused.contains(words), "{refused}");
    }
}
