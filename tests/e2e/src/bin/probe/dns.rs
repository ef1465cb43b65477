//! Just enough of DNS: questions for IPv4 addresses, and a server that knows a
//! few names.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::{Outcome, word};

const HEADER: usize = 12;
/// The number of each question; only one is ever open.
const NUMBER: [u8; 2] = [0x1d, 0x05];

/// Asks for the address of a name and prints it.
pub(crate) fn ask(by: &str, server: SocketAddr, name: &str) -> Outcome<()> {
    let question = question(name);
    let came = match by {
        "udp" => by_udp(server, &question),
        "tcp" => by_tcp(server, &question),
        _ => return Err("udp or tcp".into()),
    };
    match came {
        Ok(answer) => println!("{}", read(&answer)),
        Err(error) => println!("{}", word(&error)),
    }
    Ok(())
}

fn by_udp(server: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(Duration::from_secs(15)))?;
    socket.send(question)?;
    let mut answer = vec![0; 4096];
    let length = socket.recv(&mut answer)?;
    answer.truncate(length);
    Ok(answer)
}

fn by_tcp(server: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(15))?;
    stream.set_read_timeout(Some(Duration::from_secs(15)))?;
    write_framed(&mut stream, question)?;
    read_framed(&mut stream)
}

/// By TCP a message has its length before it.
fn write_framed(stream: &mut TcpStream, message: &[u8]) -> std::io::Result<()> {
    let length = u16::try_from(message.len()).expect("messages of ours are short");
    stream.write_all(&[&length.to_be_bytes(), message].concat())
}

fn read_framed(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message)?;
    Ok(message)
}

fn question(name: &str) -> Vec<u8> {
    // Recursion desired, one question.
    let mut message = [&NUMBER[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).expect("labels of ours are short"));
        message.extend_from_slice(label.as_bytes());
    }
    // The end of the name; A, IN.
    message.extend_from_slice(&[0, 0, 1, 0, 1]);
    message
}

/// The last address of an answer, or its code.
fn read(answer: &[u8]) -> String {
    let field = |at: usize| answer.get(at).copied().unwrap_or(0);
    if answer.get(..2) != Some(&NUMBER[..]) || field(2) & 0x80 == 0 {
        return "no answer to this question".to_owned();
    }
    match (field(3) & 0xf, field(7)) {
        (0, 0) => "no address".to_owned(),
        (0, _) => match answer.last_chunk::<4>() {
            Some(&address) => Ipv4Addr::from(address).to_string(),
            None => "short answer".to_owned(),
        },
        (2, _) => "servfail".to_owned(),
        (3, _) => "nxdomain".to_owned(),
        (code, _) => format!("code-{code}"),
    }
}

/// Serves `ADDR/NAME=IP,...`.
pub(crate) fn serve(spec: &str) -> Outcome<()> {
    let (at, names) = spec.split_once('/').ok_or("ADDR/NAME=IP,...")?;
    let mut known = HashMap::new();
    for pair in names.split(',') {
        let (name, address) = pair.split_once('=').ok_or("NAME=IP")?;
        known.insert(name.to_owned(), address.parse::<Ipv4Addr>()?);
    }
    let known = Arc::new(known);
    let socket = UdpSocket::bind(at)?;
    let listener = TcpListener::bind(at)?;
    let names = Arc::clone(&known);
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        loop {
            let Ok((length, from)) = socket.recv_from(&mut buffer) else {
                continue;
            };
            if let Some(answer) = answer(&names, &buffer[..length]) {
                let _ = socket.send_to(&answer, from);
            }
        }
    });
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let names = Arc::clone(&known);
            thread::spawn(move || {
                while let Ok(question) = read_framed(&mut stream) {
                    let Some(answer) = answer(&names, &question) else {
                        return;
                    };
                    if write_framed(&mut stream, &answer).is_err() {
                        return;
                    }
                }
            });
        }
    });
    Ok(())
}

fn answer(known: &HashMap<String, Ipv4Addr>, question: &[u8]) -> Option<Vec<u8>> {
    let mut labels = Vec::new();
    let mut at = HEADER;
    loop {
        let length = usize::from(*question.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(question.get(at..at + length)?).to_lowercase());
        at += length;
    }
    let kind = question.get(at..at + 4)?;
    let found = known.get(&labels.join("."));
    let wants_address = kind == [0, 1, 0, 1];
    let code = if found.is_none() { 3 } else { 0 };
    let count = u8::from(found.is_some() && wants_address);
    let mut message = question.get(..2)?.to_vec();
    message.extend_from_slice(&[0x81, 0x80 | code, 0, 1, 0, count, 0, 0, 0, 0]);
    message.extend_from_slice(&question[HEADER..at + 4]);
    if let (Some(address), true) = (found, wants_address) {
        // The name above, A, IN, for no time at all, four bytes.
        message.extend_from_slice(&[0xc0, HEADER as u8, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        message.extend_from_slice(&address.octets());
    }
    Some(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_gets_the_answer_that_the_client_reads() {
        let known = HashMap::from([("a.test".to_owned(), Ipv4Addr::new(192, 0, 2, 1))]);
        let said = |name: &str| read(&answer(&known, &question(name)).expect("a whole question"));
        assert_eq!(said("a.test"), "192.0.2.1");
        assert_eq!(said("A.test"), "192.0.2.1");
        assert_eq!(said("b.test"), "nxdomain");
        let mut aaaa = question("a.test");
        let end = aaaa.len();
        aaaa[end - 3] = 28;
        assert_eq!(read(&answer(&known, &aaaa).expect("whole")), "no address");
        assert_eq!(answer(&known, &aaaa[..end - 1]), None);
    }
}
