//! The query of a request: decoded once, and nothing unknown in it.

use banger_api::error::Code;

use crate::failure::Failure;

/// Parameters of a request, in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    /// Reads a query in which only these names may appear.
    pub(crate) fn parse(text: Option<&str>, known: &[&str]) -> Result<Self, Failure> {
        let mut found = Vec::new();
        for pair in text
            .unwrap_or_default()
            .split('&')
            .filter(|pair| !pair.is_empty())
        {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (Some(name), Some(value)) = (decode(name), decode(value)) else {
                return Err(Failure::new(
                    Code::BadRequest,
                    "the query is not percent-encoded UTF-8",
                ));
            };
            if !known.contains(&name.as_str()) {
                return Err(Failure::new(
                    Code::BadRequest,
                    format!("unknown query parameter {:?}", cut(&name)),
                ));
            }
            found.push((name, value));
        }
        Ok(Self(found))
    }

    /// The last value of this name.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .rev()
            .find(|(found, _)| found == name)
            .map(|(_, value)| value.as_str())
    }

    /// Every value of this name.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(found, _)| found == name)
            .map(|(_, value)| value.as_str())
    }

    /// A switch: absent is no, present without a value is yes.
    pub(crate) fn flag(&self, name: &str) -> Result<bool, Failure> {
        match self.get(name) {
            None | Some("false" | "0") => Ok(false),
            Some("" | "true" | "1") => Ok(true),
            Some(other) => Err(bad(name, other, "true or false")),
        }
    }

    /// A value that parses.
    pub(crate) fn parsed<T: std::str::FromStr>(
        &self,
        name: &str,
        rule: &str,
    ) -> Result<Option<T>, Failure> {
        let parse = |text: &str| text.parse().map_err(|_| bad(name, text, rule));
        self.get(name).map(parse).transpose()
    }
}

/// A parameter that breaks its rule.
pub(crate) fn bad(name: &str, value: &str, rule: &str) -> Failure {
    Failure::new(
        Code::BadRequest,
        format!("query parameter {name}={:?} is not {rule}", cut(value)),
    )
}

fn cut(text: &str) -> String {
    text.chars().take(40).collect()
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                let value = digit(rest.next())? * 16 + digit(rest.next())?;
                u8::try_from(value).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded_and_repeat() {
        let query = Query::parse(Some("vm=a%2Fb&vm=c+d&content"), &["vm", "content"]).unwrap();
        assert_eq!(query.all("vm").collect::<Vec<_>>(), ["a/b", "c d"]);
        assert!(query.flag("content").unwrap());
        assert!(!query.flag("follow").unwrap());
    }

    #[test]
    fn unknown_and_broken_parameters_are_bad_requests() {
        for text in ["nope=1", "vm=%", "vm=%f", "vm=%ff", "vm=%zz"] {
            let failure = Query::parse(Some(text), &["vm"]).unwrap_err();
            assert_eq!(failure.code, Code::BadRequest, "{text}");
        }
        let query = Query::parse(Some("tail=x&follow=maybe"), &["tail", "follow"]).unwrap();
        assert!(query.parsed::<u32>("tail", "a number").is_err());
        assert!(query.flag("follow").is_err());
    }
}
