//! Who may command the daemon. Every request is checked for three things, from the first day on:
//!
//! - the token of the `api` file (0600): a process of another user, or another app, does not have it;
//! - `Host` names this machine's loopback: a page that rebinds its name to 127.0.0.1 (DNS rebinding) does not;
//! - `Origin` is absent or loopback: a page in the operator's browser (CSRF) sends its own.

use axum::http::{HeaderMap, StatusCode, header};
use subtle::ConstantTimeEq as _;

use crate::error::{Code, Fail};

/// The secret of the `api` file. Shown nowhere.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// 256 random bits.
    ///
    /// # Errors
    /// The operating system gives no randomness.
    pub fn generate() -> Result<Self, Fail> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(|e| {
            Fail::new(
                Code::Failure,
                format!("no randomness for the API token: {e}"),
            )
        })?;
        Ok(Self(data_encoding::HEXLOWER.encode(&bytes)))
    }

    /// The text for the `api` file. For nothing else.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether it is the token, in a time that tells nothing of how much of it is right.
    pub(crate) fn matches(&self, offered: &str) -> bool {
        bool::from(self.0.as_bytes().ct_eq(offered.as_bytes()))
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Judges the headers of a request.
///
/// # Errors
/// 401 without the token, 403 for a foreign `Host` or `Origin`, with the failure to answer with.
pub(super) fn check(headers: &HeaderMap, token: &Token) -> Result<(), (StatusCode, Fail)> {
    let refused = |status, cause: &str, hint: &str| {
        Err((status, Fail::new(Code::Permission, cause).hint(hint)))
    };
    let host = headers.get(header::HOST).and_then(|v| v.to_str().ok());
    if !host.is_some_and(is_loopback_authority) {
        return refused(
            StatusCode::FORBIDDEN,
            "the Host header does not name this machine's loopback",
            "address the API as 127.0.0.1, [::1] or localhost",
        );
    }
    if headers
        .get_all(header::ORIGIN)
        .iter()
        .any(|v| !v.to_str().is_ok_and(is_loopback_origin))
    {
        return refused(
            StatusCode::FORBIDDEN,
            "requests from web pages of other origins are refused",
            "use the command line, or a page served from loopback",
        );
    }
    let offered = headers
        .get(header::AUTHORIZATION)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.strip_prefix("Bearer "));
    match offered {
        Some(offered) if token.matches(offered) => Ok(()),
        Some(_) => refused(
            StatusCode::UNAUTHORIZED,
            "the API token is wrong",
            "read the token from the `api` file of this daemon's repository; it changes with every start",
        ),
        None => refused(
            StatusCode::UNAUTHORIZED,
            "the API token is missing",
            "send `Authorization: Bearer …` with the token of the repository's `api` file",
        ),
    }
}

fn is_loopback_origin(origin: &str) -> bool {
    origin
        .strip_prefix("http://")
        .is_some_and(is_loopback_authority)
}

/// `127.0.0.1`, `[::1]` or `localhost`, each with or without a port.
fn is_loopback_authority(authority: &str) -> bool {
    let name = match authority.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => authority,
    };
    matches!(name, "127.0.0.1" | "[::1]") || name.eq_ignore_ascii_case("localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(pairs: &[(&'static str, &str)]) -> Option<u16> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        check(&headers, &Token("right".into()))
            .err()
            .map(|(status, _)| status.as_u16())
    }

    const GOOD: (&str, &str) = ("authorization", "Bearer right");

    #[test]
    fn the_token_is_needed_and_compared() {
        let host = ("host", "127.0.0.1:5");
        assert_eq!(verdict(&[host, GOOD]), None);
        for bad in [
            "Bearer wrong",
            "Bearer righ",
            "Bearer rightt",
            "Bearer ",
            "right",
            "Basic right",
        ] {
            assert_eq!(verdict(&[host, ("authorization", bad)]), Some(401), "{bad}");
        }
        assert_eq!(verdict(&[host]), Some(401));
    }

    /// Row H3: names that a rebinding page would send.
    #[test]
    fn h3_only_loopback_hosts_are_served() {
        for good in [
            "127.0.0.1",
            "127.0.0.1:80",
            "localhost:5001",
            "LOCALHOST",
            "[::1]:9",
            "[::1]",
        ] {
            assert_eq!(verdict(&[("host", good), GOOD]), None, "{good}");
        }
        for bad in [
            "evil.example",
            "evil.example:80",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "127.0.0.2",
            "0.0.0.0:80",
            "192.168.1.4",
            "[::2]",
            "::1",
            "",
            "localhost:80x",
            "127.0.0.1@evil.example",
        ] {
            assert_eq!(verdict(&[("host", bad), GOOD]), Some(403), "{bad}");
        }
        assert_eq!(verdict(&[GOOD]), Some(403));
    }

    /// Row H2: pages of other origins are refused even if they had the token.
    #[test]
    fn h2_foreign_origins_are_refused() {
        let host = ("host", "localhost:1");
        for good in ["http://127.0.0.1:9", "http://localhost", "http://[::1]:3"] {
            assert_eq!(verdict(&[host, GOOD, ("origin", good)]), None, "{good}");
        }
        for bad in [
            "http://evil.example",
            "https://localhost",
            "null",
            "http://127.0.0.1.evil.example",
            "file://",
            "chrome-extension://x",
            "http://localhost:1:2",
        ] {
            assert_eq!(verdict(&[host, GOOD, ("origin", bad)]), Some(403), "{bad}");
        }
        assert_eq!(
            verdict(&[
                host,
                GOOD,
                ("origin", "http://localhost"),
                ("origin", "http://evil.example")
            ]),
            Some(403)
        );
    }

    #[test]
    fn tokens_differ_and_are_never_shown() {
        let token = Token::generate().unwrap();
        assert_eq!(token.reveal().len(), 64);
        assert_ne!(token.reveal(), Token::generate().unwrap().reveal());
        assert!(!format!("{token:?}").contains(token.reveal()));
    }
}
