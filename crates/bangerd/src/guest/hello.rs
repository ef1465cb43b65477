//! The first bytes of a connection. What an earlier connection left in the
//! line is thrown away; only the agent that answers our nonce is spoken to.

use std::io;

use banger_wire::hello::{Expect, NONCE_LEN, Token, VERSION, opening};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, Join, join};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// Bytes taken from the line at once: a frame and more, since each read wakes
/// the engine.
const ROUND: usize = 128 << 10;

/// Why there is no conversation.
#[derive(Debug, thiserror::Error)]
pub(super) enum HelloError {
    /// The line closed or broke.
    #[error("the line to the guest broke")]
    Line(#[from] io::Error),
    /// An agent that we cannot speak to.
    #[error("the agent speaks version {theirs} of the protocol and this daemon {VERSION}")]
    Version {
        /// What it speaks.
        theirs: u32,
    },
    /// No randomness for the nonce.
    #[error("the host gives no random bytes")]
    Nonce(#[source] getrandom::Error),
}

/// The line after the hello, first giving what came in with it.
pub(super) type Stream =
    Join<tokio::io::Chain<io::Cursor<Vec<u8>>, BufReader<OwnedReadHalf>>, OwnedWriteHalf>;

/// An agent that answered.
pub(super) struct Opened<S> {
    /// The rest of the line.
    pub(super) stream: S,
    /// The guest kernel's boot id, as the kernel prints it.
    pub(super) boot_id: String,
}

/// Says hello and waits for the answer, for as long as it takes.
pub(super) async fn open(line: UnixStream, token: Token) -> Result<Opened<Stream>, HelloError> {
    let (from, to) = line.into_split();
    let (mut from, mut to) = (BufReader::with_capacity(ROUND, from), to);
    let (boot_id, rest) = greet(&mut from, &mut to, token).await?;
    Ok(Opened {
        stream: join(io::Cursor::new(rest).chain(from), to),
        boot_id,
    })
}

/// The boot id, and the bytes that came after the answer.
async fn greet(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    token: Token,
) -> Result<(String, Vec<u8>), HelloError> {
    let mut nonce = [0; NONCE_LEN];
    getrandom::fill(&mut nonce).map_err(HelloError::Nonce)?;
    to.write_all(&opening(&token, &nonce)).await?;
    let mut expect = Expect::answer_to(nonce);
    let mut buffer = vec![0; 16 << 10];
    loop {
        let got = from.read(&mut buffer).await?;
        if got == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        if let Some((answer, rest)) = expect.push(&buffer[..got]) {
            if answer.version != VERSION {
                return Err(HelloError::Version {
                    theirs: answer.version,
                });
            }
            return Ok((printed(answer.boot_id), rest));
        }
    }
}

/// As `/proc/sys/kernel/random/boot_id` has it.
fn printed(id: [u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (at, byte) in id.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_wire::hello::{Answer, TOKEN_LEN};

    #[tokio::test]
    async fn stale_bytes_and_answers_to_others_are_thrown_away() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 16);
        let agent = async move {
            let mut opening = [0; TOKEN_LEN + NONCE_LEN];
            theirs.read_exact(&mut opening).await.unwrap();
            let nonce = *opening.last_chunk::<NONCE_LEN>().unwrap();
            let answer = |nonce| {
                Answer {
                    version: VERSION,
                    boot_id: [0xab; 16],
                    nonce,
                }
                .encode()
            };
            theirs.write_all(&vec![7; 30_000]).await.unwrap();
            theirs.write_all(&answer([1; NONCE_LEN])).await.unwrap();
            theirs.write_all(&answer(nonce)).await.unwrap();
            theirs.write_all(b"more").await.unwrap();
            (opening, theirs)
        };
        let (mut from, mut to) = tokio::io::split(ours);
        let token = Token([3; 32]);
        let (greeted, (opening, _theirs)) = tokio::join!(greet(&mut from, &mut to, token), agent);
        let (boot_id, mut rest) = greeted.unwrap();
        assert_eq!(opening[..TOKEN_LEN], token.0);
        assert_eq!(boot_id, "abababab-abab-abab-abab-abababababab");
        let mut later = vec![0; 4 - rest.len()];
        from.read_exact(&mut later).await.unwrap();
        rest.extend(later);
        assert_eq!(rest, b"more");
    }

    #[tokio::test]
    async fn another_version_is_refused_and_a_closed_line_is_told() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 10);
        let agent = async move {
            let mut opening = [0; TOKEN_LEN + NONCE_LEN];
            theirs.read_exact(&mut opening).await.unwrap();
            let nonce = *opening.last_chunk::<NONCE_LEN>().unwrap();
            theirs
                .write_all(
                    &Answer {
                        version: VERSION + 1,
                        boot_id: [0; 16],
                        nonce,
                    }
                    .encode(),
                )
                .await
                .unwrap();
        };
        let (mut from, mut to) = tokio::io::split(ours);
        let (greeted, ()) = tokio::join!(greet(&mut from, &mut to, Token([0; 32])), agent);
        assert!(matches!(greeted, Err(HelloError::Version { theirs }) if theirs == VERSION + 1));

        let (ours, theirs) = tokio::io::duplex(1 << 10);
        drop(theirs);
        let (mut from, mut to) = tokio::io::split(ours);
        assert!(matches!(
            greet(&mut from, &mut to, Token([0; 32])).await,
            Err(HelloError::Line(_))
        ));
    }
}
