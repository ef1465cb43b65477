//! From a registry's challenge to the `Authorization` of the next request.
//!
//! `Basic` takes the login itself. `Bearer` names a token server: it is asked by GET, with the
//! login or anonymously, or, for an identity token, by the OAuth2 refresh_token POST. Tokens are
//! for pulling from one repository.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_auth::ChallengeParser;
use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::{StatusCode, Url};
use serde::Deserialize;

use crate::auth::Credential;
use crate::error::{Fault, Remedy};
use crate::session::Session;

/// Tokens of clouds are some KiB.
const ANSWER_LIMIT: u64 = 256 << 10;
/// Who asks, in the POST; token servers only log it.
const CLIENT: &str = "banger";

/// A way to log in that is understood here.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
    },
}

impl Challenge {
    /// The best of all that a 401 offers: tokens before passwords.
    pub(crate) fn best<'h>(headers: impl Iterator<Item = &'h str>) -> Option<Challenge> {
        let mut best = None;
        for challenge in
            headers.flat_map(|header| ChallengeParser::new(header).map_while(Result::ok))
        {
            let parameter = |name: &str| {
                challenge
                    .params
                    .iter()
                    .find(|(key, _)| key.eq_ignore_ascii_case(name))
                    .map(|(_, value)| value.to_unescaped())
            };
            if challenge.scheme.eq_ignore_ascii_case("bearer")
                && let Some(realm) = parameter("realm")
            {
                return Some(Challenge::Bearer {
                    realm,
                    service: parameter("service"),
                });
            }
            if challenge.scheme.eq_ignore_ascii_case("basic") {
                best = Some(Challenge::Basic);
            }
        }
        best
    }
}

/// The header for a name and a password.
pub(crate) fn basic(user: &str, password: &str) -> Option<HeaderValue> {
    secret(format!(
        "Basic {}",
        STANDARD.encode(format!("{user}:{password}"))
    ))
}

/// The header for a token.
pub(crate) fn bearer(token: &str) -> Option<HeaderValue> {
    secret(format!("Bearer {token}"))
}

/// `None` for text that no header can carry.
fn secret(text: String) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Asks the token server for the right to pull.
pub(crate) async fn obtain(
    session: &Session<'_>,
    realm: &str,
    service: Option<&str>,
    credential: Option<&Credential>,
    what: &str,
) -> Result<HeaderValue, Fault> {
    let odd = |why: &str| Fault::from(session.unavailable(what, why.to_owned(), Remedy::Operator));
    let realm: Url = realm
        .parse()
        .map_err(|_| odd("its token server has no legal address"))?;
    // A registry under TLS cannot send the login on in the clear.
    let registry_clear = session.clear.covers(session.reference.host());
    if !session.clear.allows(&realm) || (realm.scheme() == "http" && !registry_clear) {
        return Err(odd("its token server is without TLS"));
    }
    let scope = format!("repository:{}:pull", session.reference.repository());
    let mut fields = vec![("scope", scope.as_str())];
    fields.extend(service.map(|service| ("service", service)));
    let request = match credential {
        Some(Credential::Identity(token)) => {
            fields.extend([
                ("grant_type", "refresh_token"),
                ("client_id", CLIENT),
                ("refresh_token", token.as_str()),
            ]);
            session.posting()?.post(realm.clone()).form(&fields)
        }
        Some(Credential::Login { user, password }) => {
            let authorization = basic(user, password)
                .ok_or_else(|| session.denied(StatusCode::UNAUTHORIZED, what))?;
            session
                .http()
                .get(realm.clone())
                .query(&fields)
                .header(AUTHORIZATION, authorization)
        }
        Some(Credential::Bearer(_)) | None => session.http().get(realm.clone()).query(&fields),
    };
    let mut response = session.send(request, what).await?;
    let by_server = response.url().origin() == realm.origin();
    let status = response.status();
    if !status.is_success() {
        // Servers without the POST say so in several ways; the login is what does not fit.
        let no_post = matches!(credential, Some(Credential::Identity(_)))
            && matches!(
                status,
                StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED
            );
        if no_post {
            return Err(session.denied(StatusCode::UNAUTHORIZED, what).into());
        }
        return Err(session.refusal(response, what, by_server).await);
    }
    let body = session.body(&mut response, ANSWER_LIMIT, what).await?;
    body.and_then(|body| serde_json::from_slice::<Answer>(&body).ok())
        .and_then(|answer| {
            [answer.token, answer.access_token]
                .into_iter()
                .flatten()
                .find(|token| !token.is_empty())
        })
        .and_then(|token| bearer(&token))
        .ok_or_else(|| odd("its token server answered without a token"))
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_taken_before_a_password() {
        let bearer = |realm: &str, service: Option<&str>| {
            Some(Challenge::Bearer {
                realm: realm.to_owned(),
                service: service.map(str::to_owned),
            })
        };
        for (headers, expected) in [
            (vec![], None),
            (vec!["Negotiate"], None),
            (vec!["Bearer scope=\"x\""], None),
            (vec!["Basic realm=\"x\""], Some(Challenge::Basic)),
            (
                vec![
                    "Basic realm=\"x\"",
                    "bearer realm=\"https://t/\",service=\"s\"",
                ],
                bearer("https://t/", Some("s")),
            ),
            (
                vec!["Bearer Realm=\"https://t/\", error=\"a, b\", Basic realm=\"x\""],
                bearer("https://t/", None),
            ),
        ] {
            assert_eq!(
                Challenge::best(headers.iter().copied()),
                expected,
                "{headers:?}"
            );
        }
    }

    #[test]
    fn what_no_header_can_carry_is_no_token() {
        assert_eq!(bearer("a\r\nX-Other: b"), None);
        let value = bearer("t").expect("a token");
        assert!(value.is_sensitive());
    }
}
