//! What certificates and their files are called.

/// The DNS name that every certificate has.
pub(super) const NAME: &str = "slackwater";

/// The certificate of the CA, or of several.
pub(super) const CA_FILE: &str = "ca.pem";

/// The certificate of this host.
pub(super) const CERT_FILE: &str = "cert.pem";

/// The key of this host.
pub(super) const KEY_FILE: &str = "key.pem";
