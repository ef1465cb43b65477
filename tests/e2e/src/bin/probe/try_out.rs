//! Many addresses at once, and what became of each: `SPEC WORD MS`. Only
//! `reached` means that somebody there answered.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};
use std::{io, thread};

use crate::{Outcome, word};

/// Longer than a host takes to notice that nobody has an address.
const CONNECT: Duration = Duration::from_secs(20);
/// Of somebody who answers at all.
const ANSWER: Duration = Duration::from_secs(5);

/// Tries all of them side by side.
pub(crate) fn all(specs: &[&str]) -> Outcome<()> {
    let mut tries = Vec::new();
    for spec in specs {
        let (kind, at) = spec.split_once(':').ok_or("KIND:ADDR")?;
        let (spec, kind, at) = ((*spec).to_owned(), kind.to_owned(), at.parse()?);
        tries.push(thread::spawn(move || {
            let began = Instant::now();
            let result = match &kind[..] {
                "tcp" => tcp(at),
                "udp" => udp(at),
                _ => cast(at),
            };
            let said = result.unwrap_or_else(|error| word(&error));
            (spec, said, began.elapsed().as_millis())
        }));
    }
    for one in tries {
        let (spec, said, ms) = one.join().map_err(|_| "a try panicked")?;
        println!("{spec} {said} {ms}");
    }
    Ok(())
}

fn tcp(at: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&at, CONNECT)?;
    stream.set_read_timeout(Some(ANSWER))?;
    let _ = stream.write_all(b"who\n");
    let mut answer = [0; 256];
    Ok(match stream.read(&mut answer) {
        Ok(length) if length > 0 => "reached".to_owned(),
        Ok(_) => "connected-closed".to_owned(),
        Err(error) => format!("connected-{}", word(&error)),
    })
}

fn udp(at: SocketAddr) -> io::Result<String> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(at)?;
    socket.set_read_timeout(Some(ANSWER))?;
    socket.send(b"who")?;
    socket.recv(&mut [0; 256])?;
    Ok("reached".to_owned())
}

/// A broadcast, which others may answer from their own addresses.
fn cast(at: SocketAddr) -> io::Result<String> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_broadcast(true)?;
    socket.set_read_timeout(Some(ANSWER))?;
    socket.send_to(b"who", at)?;
    socket.recv_from(&mut [0; 256])?;
    Ok("reached".to_owned())
}
