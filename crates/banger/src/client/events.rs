//! Server-sent events: named JSON messages on a reply that does not end.

use bytes::{Buf, BytesMut};
use serde::de::DeserializeOwned;

use super::{At, Client, Text};
use crate::failure::Failure;
use banger_api::error::Code;

/// Largest event, bytes.
const MAX_EVENT: usize = 8 << 20;

/// One event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Event {
    /// Its name.
    pub(crate) name: String,
    /// Its JSON.
    pub(crate) data: String,
}

impl Event {
    /// The message in it; `None` where this build cannot read it.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_str(&self.data).ok()
    }
}

/// A stream of events.
pub(crate) struct Events {
    text: Text,
    parser: Parser,
}

impl Client {
    /// Opens a stream of events, after the event `last` where one is named.
    pub(crate) async fn events(
        &self,
        at: At<'_>,
        path: &str,
        last: Option<&str>,
    ) -> Result<Events, Failure> {
        let mut headers = vec![("accept", "text/event-stream")];
        headers.extend(last.map(|id| ("last-event-id", id)));
        let (body, driver) = self.open_stream(at, path, &headers).await?;
        Ok(Events {
            text: Text {
                body,
                _driver: driver,
            },
            parser: Parser::default(),
        })
    }
}

impl Events {
    /// The next event; `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Result<Option<Event>, Failure> {
        loop {
            if let Some(event) = self.parser.next() {
                return Ok(Some(event));
            }
            match self.text.next().await? {
                None => return Ok(None),
                Some(bytes) => self.parser.push(&bytes)?,
            }
        }
    }

    /// Id of the last event that had one.
    pub(crate) fn last_id(&self) -> Option<&str> {
        self.parser.last_id.as_deref()
    }
}

/// Puts lines together into events.
#[derive(Default)]
struct Parser {
    buffer: BytesMut,
    event: Event,
    last_id: Option<String>,
}

impl Parser {
    fn push(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        if self.buffer.len() + self.event.data.len() + bytes.len() > MAX_EVENT {
            return Err(Failure::new(
                Code::TooLarge,
                "bangerd sent an event larger than 8 MiB",
            ));
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    fn next(&mut self) -> Option<Event> {
        while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
            let line = self.buffer.split_to(end);
            self.buffer.advance(1);
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches('\r');
            if line.is_empty() {
                let event = std::mem::take(&mut self.event);
                if !event.data.is_empty() {
                    return Some(event);
                }
                continue;
            }
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => self.event.name = value.to_owned(),
                "data" => {
                    if !self.event.data.is_empty() {
                        self.event.data.push('\n');
                    }
                    self.event.data.push_str(value);
                }
                "id" => self.last_id = Some(value.to_owned()),
                // Comments have an empty field; unknown fields are ignored.
                _ => {}
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pieces: &[&str]) -> Vec<Event> {
        let mut parser = Parser::default();
        let mut events = Vec::new();
        for piece in pieces {
            parser.push(piece.as_bytes()).unwrap();
            while let Some(event) = parser.next() {
                events.push(event);
            }
        }
        events
    }

    #[test]
    fn an_event_cut_anywhere_is_the_same_event() {
        let text = ": keep\n\nid: 7\nevent: stage\ndata: {\"stage\":\"reserve\"}\n\n";
        let whole = [Event {
            name: "stage".into(),
            data: "{\"stage\":\"reserve\"}".into(),
        }];
        for cut in 0..text.len() {
            assert_eq!(parse(&[&text[..cut], &text[cut..]]), whole, "cut at {cut}");
        }
    }

    #[test]
    fn data_of_several_lines_is_joined_and_carriage_returns_are_dropped() {
        assert_eq!(parse(&["data: a\r\ndata:b\r\n\r\n"])[0].data, "a\nb");
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut parser = Parser::default();
        let piece = vec![b'x'; 1 << 20];
        let refused = (0..16).find(|_| parser.push(&piece).is_err());
        assert!(refused.is_some());
    }
}
