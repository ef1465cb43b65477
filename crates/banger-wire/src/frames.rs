//! `stdio_mux_v1`: the frames that carry a command's standard streams.
//!
//! A frame is one byte of channel, four bytes of big-endian length, and a
//! payload of at most 1 MiB. An unknown channel or an oversize length ends the
//! connection; a control message of unknown type is ignored.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

/// Largest payload of a frame.
pub const MAX_PAYLOAD: usize = 1 << 20;
/// Bytes before the payload.
pub const HEADER_LEN: usize = 5;

/// Which stream a frame belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// To the command.
    Stdin = 1,
    /// From the command; all output of a PTY.
    Stdout = 2,
    /// From the command.
    Stderr = 3,
    /// JSON messages: [`Control`].
    Control = 4,
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The stream.
    pub channel: Channel,
    /// Its bytes.
    pub payload: Bytes,
}

/// A message on the control channel. `start` is only spoken to the agent, as
/// the first frame of an exec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Control {
    /// First frame of an exec, daemon to agent.
    Start {
        /// What to run.
        exec: Box<crate::agent::Exec>,
    },
    /// The command runs now; agent to daemon, before any output.
    Started {
        /// Its process id in the guest's namespace.
        pid: u32,
    },
    /// End of standard input.
    Eof,
    /// New size of the terminal.
    Resize {
        /// Columns.
        cols: u16,
        /// Rows.
        rows: u16,
    },
    /// Send a signal to the command's process group, by name without `SIG`.
    Signal {
        /// `TERM`, `INT`, `HUP`, ...
        signal: String,
    },
    /// The command ended; the last frame.
    Exit {
        /// Its status, or 128 + the signal that killed it.
        exit_code: i32,
    },
    /// The command was never run, or its end is not known; the last frame.
    Error {
        /// Why.
        error: String,
        /// 126 where it is not executable, 127 where it is not found, else 125.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit_code: Option<i32>,
    },
    /// A type this side does not know.
    #[serde(other)]
    Unknown,
}

impl Control {
    /// The message as a frame.
    #[must_use]
    pub fn frame(&self) -> Frame {
        let payload = serde_json::to_vec(self).expect("control messages are plain JSON");
        Frame {
            channel: Channel::Control,
            payload: payload.into(),
        }
    }
}

/// Why a stream of frames cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Neither 1, 2, 3 nor 4.
    #[error("unknown channel {0}")]
    Channel(u8),
    /// More than [`MAX_PAYLOAD`].
    #[error("frame of {0} bytes is larger than 1 MiB")]
    Oversize(u32),
    /// A control frame that is not a JSON object with a `type`.
    #[error("control frame is not a message")]
    Control,
}

/// The bytes before a payload of `length`, for those who read a payload
/// directly to its place.
///
/// # Panics
/// Where `length` is over [`MAX_PAYLOAD`].
#[must_use]
pub fn header(channel: Channel, length: usize) -> [u8; HEADER_LEN] {
    assert!(
        length <= MAX_PAYLOAD,
        "a frame of {length} bytes is larger than 1 MiB"
    );
    let [a, b, c, d] = u32::try_from(length).expect("at most 1 MiB").to_be_bytes();
    [channel as u8, a, b, c, d]
}

impl Frame {
    /// A frame of stream bytes.
    #[must_use]
    pub fn new(channel: Channel, payload: impl Into<Bytes>) -> Self {
        Self {
            channel,
            payload: payload.into(),
        }
    }

    /// Reads the control message in this frame.
    ///
    /// # Errors
    /// [`FrameError::Control`] where the payload is no message.
    pub fn control(&self) -> Result<Control, FrameError> {
        serde_json::from_slice(&self.payload).map_err(|_| FrameError::Control)
    }

    /// Appends the encoded frame. Payloads over [`MAX_PAYLOAD`] are cut into
    /// several frames of the same channel.
    pub fn encode(&self, out: &mut BytesMut) {
        let mut rest = &self.payload[..];
        loop {
            let (piece, after) = rest.split_at(rest.len().min(MAX_PAYLOAD));
            out.reserve(HEADER_LEN + piece.len());
            out.put_u8(self.channel as u8);
            out.put_u32(u32::try_from(piece.len()).expect("at most 1 MiB"));
            out.put_slice(piece);
            rest = after;
            if rest.is_empty() {
                return;
            }
        }
    }

    /// The encoded frame.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        let mut out = BytesMut::new();
        self.encode(&mut out);
        out.freeze()
    }
}

/// Reads frames out of bytes as they come.
#[derive(Default)]
pub struct Decoder {
    buffer: BytesMut,
}

impl Decoder {
    /// A decoder at the start of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes of the stream.
    pub fn push(&mut self, input: &[u8]) {
        self.buffer.extend_from_slice(input);
    }

    /// The next whole frame, if its bytes are all here.
    ///
    /// # Errors
    /// [`FrameError`] where the stream is not one of frames; it stays broken.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some(header) = self.buffer.first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let channel = match header[0] {
            1 => Channel::Stdin,
            2 => Channel::Stdout,
            3 => Channel::Stderr,
            4 => Channel::Control,
            other => return Err(FrameError::Channel(other)),
        };
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]);
        let payload_len = length as usize;
        if payload_len > MAX_PAYLOAD {
            return Err(FrameError::Oversize(length));
        }
        if self.buffer.len() < HEADER_LEN + payload_len {
            self.buffer
                .reserve(HEADER_LEN + payload_len - self.buffer.len());
            return Ok(None);
        }
        self.buffer.advance(HEADER_LEN);
        let payload = self.buffer.split_to(payload_len).freeze();
        Ok(Some(Frame { channel, payload }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn channel() -> impl Strategy<Value = Channel> {
        prop_oneof![
            Just(Channel::Stdin),
            Just(Channel::Stdout),
            Just(Channel::Stderr),
            Just(Channel::Control),
        ]
    }

    fn frame() -> impl Strategy<Value = Frame> {
        (channel(), prop::collection::vec(any::<u8>(), 0..2000))
            .prop_map(|(channel, payload)| Frame::new(channel, payload))
    }

    /// All frames in bytes that arrive in these pieces.
    fn decode(pieces: &[&[u8]]) -> Result<Vec<Frame>, FrameError> {
        let mut decoder = Decoder::new();
        let mut frames = Vec::new();
        for piece in pieces {
            decoder.push(piece);
            while let Some(frame) = decoder.next_frame()? {
                frames.push(frame);
            }
        }
        Ok(frames)
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in_however_the_stream_is_cut(
            frames in prop::collection::vec(frame(), 0..8),
            step in 1_usize..700,
        ) {
            let mut bytes = BytesMut::new();
            for frame in &frames {
                frame.encode(&mut bytes);
            }
            let pieces: Vec<&[u8]> = bytes.chunks(step).collect();
            prop_assert_eq!(decode(&pieces).unwrap(), frames);
        }

        #[test]
        fn foreign_bytes_never_panic_and_give_no_oversize_frame(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            if let Ok(frames) = decode(&[&bytes]) {
                for frame in frames {
                    prop_assert!(frame.payload.len() <= MAX_PAYLOAD);
                    let _ = frame.control();
                }
            }
        }

        #[test]
        fn a_header_is_the_beginning_of_its_frame(
            channel in channel(),
            payload in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let mut bytes = header(channel, payload.len()).to_vec();
            bytes.extend(&payload);
            prop_assert_eq!(&Frame::new(channel, payload).to_bytes()[..], &bytes[..]);
        }
    }

    #[test]
    fn a_payload_over_the_limit_is_cut_and_nothing_is_lost() {
        let payload: Vec<u8> = (0..MAX_PAYLOAD + 7).map(|at| at as u8).collect();
        let bytes = Frame::new(Channel::Stdout, payload.clone()).to_bytes();
        let frames = decode(&[&bytes]).unwrap();
        assert_eq!(frames.len(), 2);
        let joined: Vec<u8> = frames
            .iter()
            .flat_map(|frame| frame.payload.to_vec())
            .collect();
        assert_eq!(joined, payload);
    }

    #[test]
    fn an_unknown_channel_and_an_oversize_length_break_the_stream() {
        assert_eq!(decode(&[&[9, 0, 0, 0, 0]]), Err(FrameError::Channel(9)));
        assert_eq!(decode(&[&[0, 0, 0, 0, 0]]), Err(FrameError::Channel(0)));
        let oversize = [2, 0, 0x10, 0, 1];
        assert_eq!(
            decode(&[&oversize]),
            Err(FrameError::Oversize(MAX_PAYLOAD as u32 + 1))
        );
    }

    #[test]
    fn a_control_message_of_unknown_type_is_known_as_such() {
        let frame = Frame::new(Channel::Control, &br#"{"type":"dance","steps":3}"#[..]);
        assert_eq!(frame.control(), Ok(Control::Unknown));
        let frame = Frame::new(Channel::Control, &b"[]"[..]);
        assert_eq!(frame.control(), Err(FrameError::Control));
        let exit = Control::Exit { exit_code: 7 };
        assert_eq!(exit.frame().control(), Ok(exit));
    }
}
