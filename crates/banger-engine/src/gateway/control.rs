//! Asks a gateway over its control socket: one message and one answer at a
//! time, a descriptor beside either. The connection is made when it is needed
//! and given up whenever an exchange is cut, so that no answer is ever taken
//! for that of another question.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_wire::gateway::{Answer, Counters, MAX_MESSAGE, MessageError, Request};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use tokio::io::unix::AsyncFd;
use tokio::sync::Mutex;

use crate::{sockets, watch};

/// A gateway answers between two packets; this long only a stopped one takes.
const PATIENCE: Duration = Duration::from_secs(2);
/// Descriptors that are accepted beside a message.
const MOST_BESIDE: usize = 4;

/// A question that was not answered.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The socket.
    #[error("cannot speak to the gateway")]
    Io(#[from] io::Error),
    /// What came is no message.
    #[error("the gateway answered with nonsense")]
    Message(#[from] MessageError),
    /// The answer is to another question.
    #[error("the gateway answered something else")]
    Unasked,
    /// The gateway said no.
    #[error("the gateway refused: {0}")]
    Refused(String),
    /// Nothing came.
    #[error("the gateway did not answer within {} s", PATIENCE.as_secs())]
    Silent,
}

/// The control socket of one gateway.
#[derive(Debug)]
pub struct Control {
    directory: PathBuf,
    name: &'static str,
    connection: Mutex<Option<AsyncFd<OwnedFd>>>,
}

impl Control {
    pub(super) fn of(directory: &Path, name: &'static str) -> Self {
        Self {
            directory: directory.to_owned(),
            name,
            connection: Mutex::new(None),
        }
    }

    /// Tells it of the engine that it must not outlive.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn watch_engine(&self, pidfd: BorrowedFd<'_>) -> Result<(), ControlError> {
        match self.ask(&Request::Engine, Some(pidfd)).await? {
            (Answer::Done, _) => Ok(()),
            (answer, _) => Err(unexpected(answer)),
        }
    }

    /// Tells it whom to ask for names.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn set_resolvers(
        &self,
        addresses: Vec<std::net::IpAddr>,
    ) -> Result<(), ControlError> {
        match self.ask(&Request::Resolvers { addresses }, None).await? {
            (Answer::Done, _) => Ok(()),
            (answer, _) => Err(unexpected(answer)),
        }
    }

    /// What went through and what did not.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn counters(&self) -> Result<Counters, ControlError> {
        match self.ask(&Request::Counters, None).await? {
            (Answer::Counters(counters), _) => Ok(counters),
            (answer, _) => Err(unexpected(answer)),
        }
    }

    /// Its end of the line.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn line(&self) -> Result<OwnedFd, ControlError> {
        match self.ask(&Request::Line, None).await? {
            (Answer::Line, Some(line)) => Ok(line),
            (answer, _) => Err(unexpected(answer)),
        }
    }

    async fn ask(
        &self,
        request: &Request,
        beside: Option<BorrowedFd<'_>>,
    ) -> Result<(Answer, Option<OwnedFd>), ControlError> {
        let mut kept = self.connection.lock().await;
        // Out of its place while it is used: an exchange that is cut takes the
        // connection along.
        let connection = match kept.take() {
            Some(connection) => connection,
            None => watch::readable(sockets::connect_packets(&self.directory, self.name)?)?,
        };
        send(connection.get_ref().as_fd(), &request.encode(), beside)?;
        let (packet, beside) = tokio::time::timeout(PATIENCE, receive(&connection))
            .await
            .map_err(|_| ControlError::Silent)??;
        let answer = Answer::decode(&packet)?;
        *kept = Some(connection);
        Ok((answer, beside))
    }
}

fn unexpected(answer: Answer) -> ControlError {
    match answer {
        Answer::Refused { message } => ControlError::Refused(message),
        Answer::Done | Answer::Counters(_) | Answer::Line => ControlError::Unasked,
    }
}

/// The queue of a connection without an open question has room for one.
fn send(socket: BorrowedFd<'_>, packet: &[u8], beside: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = beside.as_slice();
    if beside.is_some() {
        let pushed = control.push(SendAncillaryMessage::ScmRights(descriptors));
        debug_assert!(pushed, "there is space for one descriptor");
    }
    rustix::net::sendmsg(
        socket,
        &[IoSlice::new(packet)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

async fn receive(socket: &AsyncFd<OwnedFd>) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    loop {
        let mut ready = socket.readable().await?;
        match receive_now(socket.get_ref().as_fd()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
            other => return other,
        }
    }
}

fn receive_now(socket: BorrowedFd<'_>) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let mut packet = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_BESIDE))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut packet)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut beside = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            // All are taken, so that those beyond the first are closed.
            for descriptor in descriptors {
                beside.get_or_insert(descriptor);
            }
        }
    }
    if got.flags.contains(ReturnFlags::TRUNC) {
        return Err(io::Error::from(io::ErrorKind::FileTooLarge));
    }
    if got.bytes == 0 {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
    }
    packet.truncate(got.bytes);
    Ok((packet, beside))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::thread::JoinHandle;

    use super::*;

    /// Answers each packet with the next of these, a descriptor beside it
    /// where there is one, and tells what it was asked.
    fn gateway(
        listener: OwnedFd,
        answers: Vec<(Vec<u8>, Option<OwnedFd>)>,
    ) -> JoinHandle<Vec<(Request, bool)>> {
        std::thread::spawn(move || {
            rustix::io::ioctl_fionbio(&listener, false).unwrap();
            let mut connection = rustix::net::accept(&listener).unwrap();
            let mut asked = Vec::new();
            for (answer, beside) in answers {
                let (packet, got) = match receive_now(connection.as_fd()) {
                    // The connection before was given up.
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                        connection = rustix::net::accept(&listener).unwrap();
                        receive_now(connection.as_fd()).unwrap()
                    }
                    other => other.unwrap(),
                };
                asked.push((Request::decode(&packet).unwrap(), got.is_some()));
                send(
                    connection.as_fd(),
                    &answer,
                    beside.as_ref().map(AsFd::as_fd),
                )
                .unwrap();
            }
            asked
        })
    }

    fn place(name: &str) -> PathBuf {
        let place = std::env::temp_dir().join(format!("banger-ask-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&place);
        std::fs::create_dir_all(&place).unwrap();
        place
    }

    #[tokio::test]
    async fn each_question_gets_its_answer_and_descriptors_go_both_ways() {
        let place = place("both");
        let listener = sockets::listen_packets(&place, "g.sock").unwrap();
        let (line, _other) = super::super::line().unwrap();
        let counters = Counters {
            bytes_in: 7,
            ..Counters::default()
        };
        let answers = vec![
            (Answer::Done.encode(), None),
            (Answer::Line.encode(), Some(line)),
            (Answer::Counters(counters.clone()).encode(), None),
            (Answer::Done.encode(), None),
        ];
        let thread = gateway(listener, answers);
        let control = Control::of(&place, "g.sock");
        let file = File::open("/dev/null").unwrap();
        control.watch_engine(file.as_fd()).await.unwrap();
        let line = control.line().await.unwrap();
        assert!(rustix::net::sockopt::socket_type(&line).is_ok(), "a socket");
        assert_eq!(control.counters().await.unwrap(), counters);
        let addresses = vec!["192.0.2.1".parse().unwrap()];
        control.set_resolvers(addresses.clone()).await.unwrap();
        assert_eq!(
            thread.join().unwrap(),
            [
                (Request::Engine, true),
                (Request::Line, false),
                (Request::Counters, false),
                (Request::Resolvers { addresses }, false)
            ]
        );
        std::fs::remove_dir_all(&place).unwrap();
    }

    #[tokio::test]
    async fn a_wrong_answer_is_an_error_and_spoils_no_later_question() {
        let place = place("wrong");
        let listener = sockets::listen_packets(&place, "g.sock").unwrap();
        let refused = Answer::Refused {
            message: "no".to_owned(),
        };
        let answers = vec![
            (b"nonsense".to_vec(), None),
            (Answer::Line.encode(), None),
            (refused.encode(), None),
            (Answer::Done.encode(), None),
        ];
        let thread = gateway(listener, answers);
        let control = Control::of(&place, "g.sock");
        let error = control.counters().await.unwrap_err();
        assert!(matches!(error, ControlError::Message(_)), "{error:?}");
        let error = control.line().await.unwrap_err();
        assert!(matches!(error, ControlError::Unasked), "{error:?}");
        let error = control.counters().await.unwrap_err();
        assert!(matches!(error, ControlError::Refused(_)), "{error:?}");
        control.set_resolvers(Vec::new()).await.unwrap();
        thread.join().unwrap();
        std::fs::remove_dir_all(&place).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_gateway_that_says_nothing_is_not_waited_for_for_ever() {
        let place = place("mute");
        let control = Control::of(&place, "g.sock");
        let error = control.counters().await.unwrap_err();
        assert!(matches!(error, ControlError::Io(_)), "{error:?}");
        let _listener = sockets::listen_packets(&place, "g.sock").unwrap();
        let error = control.counters().await.unwrap_err();
        assert!(matches!(error, ControlError::Silent), "{error:?}");
        std::fs::remove_dir_all(&place).unwrap();
    }
}
