//! News from a guest: lines of JSON for as long as the connection lives.

use async_trait::async_trait;
use banger_wire::agent::Event;
use bytes::{Buf, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::ports::EventStream;

/// Longest line, bytes. A guest that says more at once is not listened to.
const LONGEST: usize = 64 << 10;

/// The events of one connection.
pub(super) struct News {
    body: Incoming,
    held: BytesMut,
}

impl News {
    pub(super) fn new(body: Incoming) -> Self {
        Self {
            body,
            held: BytesMut::new(),
        }
    }
}

#[async_trait]
impl EventStream for News {
    async fn next(&mut self) -> Option<Event> {
        loop {
            while let Some(end) = self.held.iter().position(|&byte| byte == b'\n') {
                let line = self.held.split_to(end);
                self.held.advance(1);
                match serde_json::from_slice(&line) {
                    Ok(event) => return Some(event),
                    Err(error) => tracing::warn!(%error, "an agent's event cannot be read"),
                }
            }
            if self.held.len() > LONGEST {
                tracing::warn!("an agent's event is longer than {LONGEST} bytes");
                return None;
            }
            let frame = self.body.frame().await?.ok()?;
            if let Ok(data) = frame.into_data() {
                self.held.extend_from_slice(&data);
            }
        }
    }
}
