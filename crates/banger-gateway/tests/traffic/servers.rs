//! What listens outside besides the room's own services: servers that end a
//! connection in all the ways there are, and a resolver.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;

/// Reads to the end, then says how much and what it was, and ends.
pub(crate) const SINK: u16 = 2001;
/// Says a mebibyte and ends its side, then does as [`SINK`], but tells
/// [`REPORT`].
pub(crate) const FIRST: u16 = 2002;
/// Says what the last of the others had to report.
pub(crate) const REPORT: u16 = 2003;
/// Is told a number in twelve digits, and says so many bytes.
pub(crate) const PUSH: u16 = 2004;
/// Hears one byte, says 10,000 and resets.
pub(crate) const RESETS: u16 = 2005;
/// Says nothing, waits for the end and reports how it came.
pub(crate) const WITNESS: u16 = 2006;
/// Reads nothing until it is told by [`GO`], then does as [`SINK`].
pub(crate) const LATE: u16 = 2007;
/// Lets one connection of [`LATE`] go.
pub(crate) const GO: u16 = 2008;

const DNS: u16 = 53;

/// What was last reported.
static REPORTED: Mutex<String> = Mutex::new(String::new());
/// Somebody may go.
static GONE: (Mutex<u32>, std::sync::Condvar) = (Mutex::new(0), std::sync::Condvar::new());

/// The byte at a place of everything that is said here.
pub(crate) fn byte(at: usize) -> u8 {
    (at % 251) as u8
}

/// So many bytes from a place on.
pub(crate) fn bytes(from: usize, length: usize) -> Vec<u8> {
    (from..from + length).map(byte).collect()
}

/// Looks at bytes as they come.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) count: usize,
    pub(crate) wrong: usize,
}

impl Tally {
    pub(crate) fn add(&mut self, data: &[u8]) {
        for (at, heard) in (self.count..).zip(data) {
            self.wrong += usize::from(*heard != byte(at));
        }
        self.count += data.len();
    }

    pub(crate) fn says(&self) -> String {
        format!("{} bytes, {} wrong", self.count, self.wrong)
    }
}

/// Starts all of them; the link need not be there yet.
pub(crate) fn start() {
    serve(SINK, |mut stream| {
        let tally = listen_to(&mut stream)?;
        stream.write_all(tally.says().as_bytes())
    });
    serve(FIRST, |mut stream| {
        stream.write_all(&bytes(0, 1 << 20))?;
        stream.shutdown(Shutdown::Write)?;
        let tally = listen_to(&mut stream)?;
        report(tally.says());
        Ok(())
    });
    serve(REPORT, |mut stream| {
        let text = REPORTED.lock().unwrap().clone();
        stream.write_all(text.as_bytes())
    });
    serve(PUSH, |mut stream| {
        let mut digits = [0; 12];
        stream.read_exact(&mut digits)?;
        let length: usize = std::str::from_utf8(&digits)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        let block = bytes(0, 251 * 1000);
        let mut left = length;
        while left > 0 {
            let part = left.min(block.len());
            stream.write_all(&block[..part])?;
            left -= part;
        }
        Ok(())
    });
    serve(RESETS, |mut stream| {
        stream.read_exact(&mut [0])?;
        // A reset throws away what this host has not sent yet: no more than goes out at once.
        stream.write_all(&bytes(0, 10_000))?;
        set_socket_linger(&stream, Some(Duration::ZERO))?;
        Ok(())
    });
    serve(WITNESS, |mut stream| {
        report(match listen_to(&mut stream) {
            Ok(tally) => tally.says(),
            Err(error) => format!("{:?}", error.kind()),
        });
        Ok(())
    });
    serve(LATE, |mut stream| {
        let mut gone = GONE.0.lock().unwrap();
        while *gone == 0 {
            gone = GONE.1.wait(gone).unwrap();
        }
        *gone -= 1;
        drop(gone);
        let tally = listen_to(&mut stream)?;
        stream.write_all(tally.says().as_bytes())
    });
    serve(GO, |_| {
        *GONE.0.lock().unwrap() += 1;
        GONE.1.notify_one();
        Ok(())
    });
    resolver();
}

fn report(text: String) {
    *REPORTED.lock().unwrap() = text;
}

fn serve(port: u16, each: fn(TcpStream) -> std::io::Result<()>) {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || each(stream));
        }
    });
}

fn listen_to(stream: &mut TcpStream) -> std::io::Result<Tally> {
    let (mut tally, mut buffer) = (Tally::default(), vec![0; 256 << 10]);
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(tally),
            length => tally.add(&buffer[..length]),
        }
    }
}

/// Answers every question with its own bytes as an answer; names that begin
/// with `refuse` with code 5, with `long` by UDP with 40,000 bytes.
fn resolver() {
    let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, DNS)).unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 65_536];
        loop {
            if let Ok((length, from)) = udp.recv_from(&mut buffer) {
                let mut answer = answer(&buffer[..length]);
                if buffer[13..].starts_with(b"long") {
                    answer.resize(40_000, b'.');
                }
                // A wrong one first: it must not get through.
                let mut wrong = answer.clone();
                wrong[0] ^= 0xff;
                let _ = udp.send_to(&wrong, from);
                let _ = udp.send_to(&answer, from);
            }
        }
    });
    serve(DNS, |mut stream| {
        let mut length = [0; 2];
        while stream.read_exact(&mut length).is_ok() {
            let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut question)?;
            stream.write_all(&[&length[..], &answer(&question)].concat())?;
        }
        Ok(())
    });
}

fn answer(question: &[u8]) -> Vec<u8> {
    let mut answer = question.to_vec();
    answer[2] |= 0x80;
    if question[13..].starts_with(b"refuse") {
        answer[3] |= 5;
    }
    answer
}
