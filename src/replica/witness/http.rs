//! Requests over HTTP, each bounded in time and size.

use std::time::Duration;

use rustls::crypto::aws_lc_rs;
use ureq::Agent;
use ureq::http::Request;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use super::fault::{WitnessFault, excerpt};

/// The most bytes of an answer: a register, and what is around it.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// Connections to servers, which are kept between requests.
#[derive(Debug)]
pub(super) struct Http {
    agent: Agent,
}

/// What a server answered, with whatever status.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) etag: Option<String>,
    pub(super) body: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) struct NoAnswer {
    /// Whether the request surely has not reached a server.
    pub(super) unsent: bool,
    pub(super) fault: WitnessFault,
}

impl Http {
    /// With `tls`, servers are checked by the certificates of this host: those in `SSL_CERT_FILE`
    /// or `SSL_CERT_DIR`, else the system's.
    pub(super) fn new(tls: bool) -> Result<Self, WitnessFault> {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // What a server that is sent to elsewhere answers is no answer of this one.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent("slackwater");
        let config = if tls { config.tls_config(tls_config()?) } else { config.proxy(None) };
        Ok(Self { agent: config.build().into() })
    }

    /// Sends a request to `url`. Errors call it `place`: a URL that is signed is not for others.
    pub(super) fn send(
        &self,
        method: &str,
        place: &str,
        url: &str,
        headers: &[(&str, &str)],
        body: Option<&[u8]>,
        limit: Duration,
    ) -> Result<Answer, NoAnswer> {
        let failed = |error: ureq::Error| NoAnswer {
            unsent: is_before_sending(&error),
            fault: match error {
                ureq::Error::Timeout(_) => WitnessFault::TooLate { place: place.to_owned(), limit },
                error => WitnessFault::Request { url: place.to_owned(), source: Box::new(error) },
            },
        };
        let mut request = Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response =
            match body {
                Some(body) => request.body(body).map_err(ureq::Error::from).and_then(|request| {
                    self.agent.run(self.agent.configure_request(request).timeout_global(Some(limit)).build())
                }),
                None => request.body(()).map_err(ureq::Error::from).and_then(|request| {
                    self.agent.run(self.agent.configure_request(request).timeout_global(Some(limit)).build())
                }),
            };
        let mut response = response.map_err(failed)?;
        let body = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec();
        let body = body.map_err(|error| NoAnswer { unsent: false, ..failed(error) })?;
        let etag = response.headers().get("etag").and_then(|etag| etag.to_str().ok()).map(str::to_owned);
        Ok(Answer { status: response.status().as_u16(), etag, body })
    }
}

impl Answer {
    /// The error that a status is.
    pub(super) fn fault(&self, place: &str) -> WitnessFault {
        WitnessFault::Status { url: place.to_owned(), status: self.status, body: excerpt(&self.body) }
    }
}

/// Whether a status says that the request was refused, and not that something went wrong on its
/// way.
pub(super) const fn is_refusal(status: u16) -> bool {
    matches!(status, 300..=399 | 400 | 401 | 403 | 404 | 405 | 411 | 501)
}

/// Errors that come up only before the first byte of a request is sent.
fn is_before_sending(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::Http(_) | ureq::Error::BadUri(_) | ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => true,
        ureq::Error::Timeout(ureq::Timeout::Resolve | ureq::Timeout::Connect) => true,
        ureq::Error::Rustls(error) => is_certificate(error),
        ureq::Error::Io(error) => {
            let tls = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
            error.kind() == std::io::ErrorKind::ConnectionRefused || tls.is_some_and(is_certificate)
        }
        _ => false,
    }
}

/// A handshake ends by it, before there is anything that a request could be sent on.
const fn is_certificate(error: &rustls::Error) -> bool {
    matches!(error, rustls::Error::InvalidCertificate(_))
}

fn tls_config() -> Result<TlsConfig, WitnessFault> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let reasons: Vec<_> = found.errors.iter().map(ToString::to_string).collect();
        let reason = if reasons.is_empty() { "this host has none".to_owned() } else { reasons.join("; ") };
        return Err(WitnessFault::NoCertificates { reason });
    }
    let certificates: Vec<_> = found.certs.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
    let config = TlsConfig::builder()
        .unversioned_rustls_crypto_provider(aws_lc_rs::default_provider().into())
        .root_certs(RootCerts::Specific(certificates.into()));
    Ok(config.build())
}
