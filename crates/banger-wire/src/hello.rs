//! The resync that opens every connection on the line.
//!
//! ```text
//! daemon -> agent   token (32 bytes)  nonce (16 bytes)
//! agent  -> daemon  MAGIC (8)  version (4, big endian)  boot id (16)  nonce (16)
//! both              HTTP/2
//! ```
//!
//! The token is made at launch and is the same for the life of the engine; the
//! agent learns it from the first 32 bytes it ever reads, and from then on
//! looks for it in all input. Where it appears, a new connection begins: the
//! agent drops the old one and answers. The daemon discards everything before
//! the answer that carries its own nonce. A quick reconnect goes unnoticed by
//! the guest's end of a virtio-serial line, so nothing less is safe.

/// Bytes of a reset token.
pub const TOKEN_LEN: usize = 32;
/// Bytes of the nonce of one connection.
pub const NONCE_LEN: usize = 16;
/// First bytes of the agent's answer.
pub const MAGIC: [u8; 8] = *b"\x00BANGER\xff";
/// Version of the protocol after the hello. Raised when either side changes
/// in a way that the other cannot ignore.
pub const VERSION: u32 = 1;
/// Bytes of the agent's whole answer.
pub const ANSWER_LEN: usize = MAGIC.len() + 4 + 16 + NONCE_LEN;

/// The reset token of one launched engine.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Token(pub [u8; TOKEN_LEN]);

/// What the daemon writes to open a connection.
#[must_use]
pub fn opening(token: &Token, nonce: &[u8; NONCE_LEN]) -> [u8; TOKEN_LEN + NONCE_LEN] {
    let mut bytes = [0; TOKEN_LEN + NONCE_LEN];
    bytes[..TOKEN_LEN].copy_from_slice(&token.0);
    bytes[TOKEN_LEN..].copy_from_slice(nonce);
    bytes
}

/// The agent's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Protocol version that the agent speaks.
    pub version: u32,
    /// The guest kernel's boot id.
    pub boot_id: [u8; 16],
    /// The nonce it answers.
    pub nonce: [u8; NONCE_LEN],
}

impl Answer {
    /// The answer as it goes over the line.
    #[must_use]
    pub fn encode(&self) -> [u8; ANSWER_LEN] {
        let mut bytes = [0; ANSWER_LEN];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&self.version.to_be_bytes());
        bytes[12..28].copy_from_slice(&self.boot_id);
        bytes[28..].copy_from_slice(&self.nonce);
        bytes
    }

    /// Reads an answer that begins with the magic; `None` where it does not.
    #[must_use]
    pub fn decode(bytes: &[u8; ANSWER_LEN]) -> Option<Self> {
        let rest = bytes.strip_prefix(&MAGIC)?;
        let (version, rest) = rest.split_first_chunk::<4>()?;
        let (boot_id, rest) = rest.split_first_chunk::<16>()?;
        Some(Self {
            version: u32::from_be_bytes(*version),
            boot_id: *boot_id,
            nonce: *rest.first_chunk::<NONCE_LEN>()?,
        })
    }
}

/// What the agent's scanner found in its input.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// Bytes of the current connection.
    Data(Vec<u8>),
    /// A new connection begins; its nonce is complete.
    Opened([u8; NONCE_LEN]),
}

/// Bytes of a token that are taken for one. Fewer at the end of the input are data like all the
/// rest, and only remembered: what ends with the first byte of its token is one message of 256,
/// and whoever waits for that message sends no more.
const CERTAIN: usize = 8;

/// The agent's side of the resync: input in, data and openings out.
///
/// All of a connection's data is given at once, so nothing waits for bytes that nobody sends. A
/// token split over reads is found all the same; of one that is split within its first
/// [`CERTAIN`] bytes, those before the split were given to the connection that it ends.
#[derive(Default)]
pub struct Scanner {
    token: Option<[u8; TOKEN_LEN]>,
    /// Undecided bytes: a beginning of a token, or of a nonce after it.
    held: Vec<u8>,
    /// How many of them were given as data.
    given: usize,
    after_token: bool,
}

impl Scanner {
    /// A scanner that has seen nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes of the line.
    pub fn push(&mut self, input: &[u8]) -> Vec<Found> {
        let mut found = Vec::new();
        if self.held.is_empty() {
            // Almost always: the bytes are looked at where they are.
            let left = self.scan(input, &mut found);
            self.held.extend_from_slice(&input[input.len() - left..]);
        } else {
            let mut held = std::mem::take(&mut self.held);
            held.extend_from_slice(input);
            let left = self.scan(&held, &mut found);
            held.drain(..held.len() - left);
            self.held = held;
        }
        found
    }

    /// Scans bytes that begin where the last scan stopped; answers how many at
    /// their end are undecided.
    fn scan(&mut self, mut rest: &[u8], found: &mut Vec<Found>) -> usize {
        // Of the bytes at the beginning of `rest`.
        let mut given = std::mem::take(&mut self.given);
        loop {
            let Some(token) = self.token else {
                let Some((first, after)) = rest.split_first_chunk::<TOKEN_LEN>() else {
                    return rest.len();
                };
                self.token = Some(*first);
                self.after_token = true;
                rest = after;
                continue;
            };
            if self.after_token {
                let Some((nonce, after)) = rest.split_first_chunk::<NONCE_LEN>() else {
                    return rest.len();
                };
                self.after_token = false;
                found.push(Found::Opened(*nonce));
                rest = after;
                continue;
            }
            if let Some(at) = memchr::memmem::find(rest, &token) {
                if at > given {
                    found.push(Found::Data(rest[given..at].to_vec()));
                }
                self.after_token = true;
                given = 0;
                rest = &rest[at + TOKEN_LEN..];
                continue;
            }
            let keep = undecided(rest, &token);
            let decided = rest.len() - keep;
            let ready = if keep < CERTAIN { rest.len() } else { decided };
            if ready > given {
                found.push(Found::Data(rest[given..ready].to_vec()));
                given = ready;
            }
            self.given = given.saturating_sub(decided);
            return keep;
        }
    }
}

/// Length of the longest end of `held` that is a beginning of `token`.
fn undecided(held: &[u8], token: &[u8; TOKEN_LEN]) -> usize {
    (1..TOKEN_LEN.min(held.len() + 1))
        .rev()
        .find(|&length| held.ends_with(&token[..length]))
        .unwrap_or(0)
}

/// The daemon's side: discards the line until its own answer.
pub struct Expect {
    nonce: [u8; NONCE_LEN],
    held: Vec<u8>,
}

impl Expect {
    /// Waits for the answer to `nonce`.
    #[must_use]
    pub fn answer_to(nonce: [u8; NONCE_LEN]) -> Self {
        Self {
            nonce,
            held: Vec::new(),
        }
    }

    /// Takes the next bytes; on the answer gives it and what followed it.
    pub fn push(&mut self, input: &[u8]) -> Option<(Answer, Vec<u8>)> {
        self.held.extend_from_slice(input);
        let mut from = 0;
        while let Some(at) = memchr::memmem::find(&self.held[from..], &MAGIC) {
            let start = from + at;
            let Some(bytes) = self.held[start..].first_chunk::<ANSWER_LEN>() else {
                self.held.drain(..start);
                return None;
            };
            match Answer::decode(bytes) {
                Some(answer) if answer.nonce == self.nonce => {
                    let rest = self.held.split_off(start + ANSWER_LEN);
                    return Some((answer, rest));
                }
                _ => from = start + 1,
            }
        }
        let keep = self.held.len().min(MAGIC.len() - 1);
        let drop = self.held.len() - keep;
        self.held.drain(..drop);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: Token = Token(*b"0123456789abcdef0123456789ABCDEF");

    /// The data of each connection.
    fn run(pieces: &[&[u8]]) -> Vec<(u8, Vec<u8>)> {
        let mut connections: Vec<(u8, Vec<u8>)> = Vec::new();
        let mut scanner = Scanner::new();
        for found in pieces.iter().flat_map(|piece| scanner.push(piece)) {
            match found {
                Found::Data(bytes) => connections.last_mut().unwrap().1.extend(bytes),
                Found::Opened(nonce) => connections.push((nonce[0], Vec::new())),
            }
        }
        connections
    }

    #[test]
    fn a_token_split_at_every_byte_is_found_and_no_data_is_lost() {
        let mut line = opening(&TOKEN, &[7; 16]).to_vec();
        let first = b"first 0123456789abcdef0123 almost";
        line.extend(first);
        line.extend(opening(&TOKEN, &[9; 16]));
        line.extend(b"second");
        let check = |pieces: &[&[u8]], what: usize| {
            let [(7, one), (9, two)] = &run(pieces)[..] else {
                panic!("split at {what}");
            };
            // What the token's beginning was given to is over.
            let more = one.strip_prefix(first).expect("all of it");
            assert!(more.len() < CERTAIN && TOKEN.0.starts_with(more));
            assert_eq!(two, b"second", "split at {what}");
        };
        for at in 0..line.len() {
            check(&[&line[..at], &line[at..]], at);
            for other in at..line.len() {
                check(&[&line[..at], &line[at..other], &line[other..]], other);
            }
        }
        check(&line.chunks(1).collect::<Vec<_>>(), 1);
    }

    #[test]
    fn what_ends_like_a_token_begins_does_not_wait_for_more() {
        let mut scanner = Scanner::new();
        scanner.push(&opening(&TOKEN, &[7; 16]));
        for length in 0..CERTAIN {
            let text = [b"a request ", &TOKEN.0[..length]].concat();
            assert_eq!(scanner.push(&text), [Found::Data(text.clone())]);
            // And what follows it is no part of a token.
            assert_eq!(scanner.push(b"more"), [Found::Data(b"more".to_vec())]);
        }
        // All in all it is a token.
        let (beginning, end) = TOKEN.0.split_at(CERTAIN - 1);
        let _ = scanner.push(beginning);
        let found = scanner.push(&[end, &[9; 16]].concat());
        assert_eq!(found, [Found::Opened([9; 16])]);
    }

    #[test]
    fn the_daemon_skips_stale_bytes_and_answers_to_others() {
        let answer = |nonce| Answer {
            version: VERSION,
            boot_id: [3; 16],
            nonce,
        };
        let mut line = b"stale \x00BANG".to_vec();
        line.extend(answer([1; 16]).encode());
        line.extend(&answer([2; 16]).encode()[..20]);
        line.extend(answer([5; 16]).encode());
        line.extend(b"PRI");
        for at in 0..line.len() {
            let mut expect = Expect::answer_to([5; 16]);
            let got = expect
                .push(&line[..at])
                .or_else(|| expect.push(&line[at..]));
            let (found, mut rest) = got.expect("the answer is in the line");
            assert_eq!(found, answer([5; 16]));
            if rest.is_empty() {
                rest = line[line.len() - 3..].to_vec();
            }
            assert!(b"PRI".starts_with(&rest) || rest == b"PRI", "split at {at}");
        }
    }
}
