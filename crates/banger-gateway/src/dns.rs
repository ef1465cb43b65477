//! The guest's questions to its resolver, which is the gateway's address: each
//! goes as it is to one of the host's resolvers, from a socket of its own, and
//! only that resolver's answer with the question's number comes back. One that
//! fails or says nothing for [`PATIENCE`] is followed by the next; after the
//! last one the guest is told SERVFAIL. By TCP the question is a flow like any
//! other, see [`crate::tcp`].

mod message;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use banger_wire::gateway::GATEWAY;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketType, ipproto, recv, send};

use crate::counters::Dropped;
use crate::host::{DNS_PORT, Host};
use crate::poller::{News, Owner, Token, Watch};
use crate::slab::{Key, Slab};
use crate::timers::Alarm;
use crate::{ipv4, udp};

/// Time that one resolver has.
const PATIENCE: Duration = Duration::from_secs(2);
/// Questions at a time; the oldest gives way.
const MAX_QUESTIONS: usize = 128;
/// Longest question, and longest refusal that is kept in case nobody else says
/// more, bytes. Both together are a mebibyte.
const MAX_KEPT: usize = 4 << 10;

/// A question that was passed on.
struct Question {
    guest_port: u16,
    message: Vec<u8>,
    /// Who is asked now.
    socket: Option<OwnedFd>,
    asked: Option<SocketAddr>,
    /// To be asked after that.
    others: VecDeque<SocketAddr>,
    /// What a resolver said that could not help.
    refusal: Option<Vec<u8>>,
    since: Instant,
    alarm: Alarm,
}

/// All questions.
#[derive(Default)]
pub(crate) struct Dns {
    questions: Slab<Question>,
}

impl Dns {
    /// Bytes that are kept.
    pub(crate) fn memory(&self) -> usize {
        let bytes = |one: &Question| one.message.len() + one.refusal.as_ref().map_or(0, Vec::len);
        self.questions.iter().map(|(_, one)| bytes(one)).sum()
    }

    /// A datagram of the guest to the gateway's port for names.
    pub(crate) fn question(
        &mut self,
        host: &mut Host,
        now: Instant,
        guest_port: u16,
        message: &[u8],
    ) {
        if !message::is_question(message) {
            return host.drop(Dropped::Malformed);
        }
        if message.len() > MAX_KEPT {
            return host.drop(Dropped::TooLarge);
        }
        let is_this = |known: &Question| known.guest_port == guest_port && known.message == message;
        if self.questions.iter().any(|(_, known)| is_this(known)) {
            // Said again while it is being asked.
            return;
        }
        if self.questions.len() >= MAX_QUESTIONS {
            let oldest = self.questions.iter().min_by_key(|(_, one)| one.since);
            if let Some((oldest, _)) = oldest {
                self.give_up(host, oldest);
            }
        }
        let others = host.resolvers.in_order().collect();
        let key = self.questions.insert_with(|_| Question {
            guest_port,
            message: message.to_vec(),
            socket: None,
            asked: None,
            others,
            refusal: None,
            since: now,
            alarm: Alarm::default(),
        });
        self.ask_next(host, now, key);
    }

    /// Asks the next resolver, or tells the guest that there is none.
    fn ask_next(&mut self, host: &mut Host, now: Instant, key: Key) {
        let token = token(key);
        let Some(question) = self.questions.get_mut(key) else {
            return;
        };
        question.socket = None;
        while let Some(resolver) = question.others.pop_front() {
            if let Ok(socket) = ask(host, token, resolver, &question.message) {
                question.socket = Some(socket);
                question.asked = Some(resolver);
                host.timers.set(&mut question.alarm, token, None);
                let until = Some(now + PATIENCE);
                host.timers.set(&mut question.alarm, token, until);
                return;
            }
        }
        self.give_up(host, key);
    }

    /// News of a question's socket.
    pub(crate) fn hear(&mut self, host: &mut Host, now: Instant, news: &News) {
        let key = news.token.key;
        let mut buffer = std::mem::take(&mut host.buffer);
        while let Some(question) = self.questions.get_mut(key) {
            let Some(socket) = &question.socket else {
                break;
            };
            match recv(socket, &mut buffer[..], RecvFlags::empty()) {
                Ok((length, _)) => self.answer(host, now, key, &buffer[..length]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                // Nobody is there.
                Err(_) => self.ask_next(host, now, key),
            }
        }
        host.buffer = buffer;
    }

    /// What the asked resolver said.
    fn answer(&mut self, host: &mut Host, now: Instant, key: Key, answer: &[u8]) {
        let Some(question) = self.questions.get_mut(key) else {
            return;
        };
        if !message::is_answer(answer, &question.message) {
            return;
        }
        let helps = !message::is_refusal(answer);
        if !helps && !question.others.is_empty() && answer.len() <= MAX_KEPT {
            question.refusal = Some(answer.to_vec());
            return self.ask_next(host, now, key);
        }
        if let (true, Some(resolver)) = (helps, question.asked) {
            host.resolvers.prefer(resolver);
        }
        give(host, question.guest_port, answer);
        self.remove(host, key);
    }

    /// A resolver's time is over.
    pub(crate) fn due(&mut self, host: &mut Host, now: Instant, key: Key) {
        if let Some(question) = self.questions.get_mut(key) {
            question.alarm.rang();
            self.ask_next(host, now, key);
        }
    }

    /// Nobody could help.
    fn give_up(&mut self, host: &mut Host, key: Key) {
        if let Some(question) = self.remove(host, key) {
            let answer = question
                .refusal
                .unwrap_or_else(|| message::failure(&question.message));
            give(host, question.guest_port, &answer);
        }
    }

    fn remove(&mut self, host: &mut Host, key: Key) -> Option<Question> {
        let mut question = self.questions.remove(key)?;
        host.timers.set(&mut question.alarm, token(key), None);
        Some(question)
    }
}

fn ask(
    host: &Host,
    token: Token,
    resolver: SocketAddr,
    message: &[u8],
) -> rustix::io::Result<OwnedFd> {
    let protocol = Some(ipproto::UDP);
    let (socket, _) = host.dial(SocketType::DGRAM, protocol, resolver, |_| Ok(()))?;
    host.watch(&socket, token, Watch::Reading)?;
    send(&socket, message, SendFlags::NOSIGNAL)?;
    Ok(socket)
}

fn give(host: &mut Host, guest_port: u16, answer: &[u8]) {
    let datagram = udp::from_gateway(GATEWAY, DNS_PORT, guest_port, answer);
    host.give(GATEWAY, ipv4::UDP, &datagram);
}

fn token(key: Key) -> Token {
    Token {
        owner: Owner::Dns,
        key,
    }
}
