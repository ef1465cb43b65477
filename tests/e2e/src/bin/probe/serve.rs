//! Servers. A TCP client says in its first line what it wants:
//!
//! | line | what happens |
//! |---|---|
//! | `who` | both addresses are said, and the server closes |
//! | `echo` | all comes back, to the end |
//! | `down N` | N bytes come, the server closes first |
//! | `up BEFORE AFTER` | nothing is read for BEFORE seconds, then all; AFTER seconds later it is said what came |
//! | `bye` | the server closes its half, reads all, and says on its own stdout what came |
//!
//! A UDP datagram comes back as it was, `who` as both addresses. By HTTP the
//! files of a directory are given to who asks for them, and nothing else.

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Component, Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::{Outcome, dns, pattern, pause};

/// Starts one server; when this returns it listens.
pub(crate) fn start(spec: &str) -> Outcome<()> {
    let (kind, at) = spec.split_once('=').ok_or("KIND=ADDR")?;
    match kind {
        "tcp" => {
            let listener = TcpListener::bind(at).map_err(|e| format!("{spec}: {e}"))?;
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    // A client that went away is the client's affair.
                    thread::spawn(move || drop(talk(stream)));
                }
            });
        }
        "udp" => {
            let socket = UdpSocket::bind(at).map_err(|e| format!("{spec}: {e}"))?;
            let own = socket.local_addr()?;
            thread::spawn(move || {
                let mut buffer = vec![0; 65_536];
                loop {
                    // Errors are those that clients' closed ports sent back.
                    let Ok((length, from)) = socket.recv_from(&mut buffer) else {
                        continue;
                    };
                    let answer = match &buffer[..length] {
                        b"who" => whom(from, own).into_bytes(),
                        other => other.to_vec(),
                    };
                    let _ = socket.send_to(&answer, from);
                }
            });
        }
        "http" => {
            let (at, directory) = at.split_once('/').ok_or("ADDR/DIRECTORY")?;
            let directory = Path::new("/").join(directory);
            let listener = TcpListener::bind(at).map_err(|e| format!("{spec}: {e}"))?;
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let directory = directory.clone();
                    thread::spawn(move || drop(give_file(stream, &directory)));
                }
            });
        }
        "dns" => dns::serve(at).map_err(|e| format!("{spec}: {e}"))?,
        _ => return Err(format!("unknown server {spec}").into()),
    }
    Ok(())
}

fn whom(from: SocketAddr, own: SocketAddr) -> String {
    format!("from {from} at {own}\n")
}

fn talk(mut stream: TcpStream) -> Outcome<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        ["who"] => stream.write_all(whom(stream.peer_addr()?, stream.local_addr()?).as_bytes())?,
        ["echo"] => drop(std::io::copy(&mut reader, &mut stream)?),
        ["down", bytes] => {
            pattern::pour(&mut stream, bytes.parse()?)?;
            stream.shutdown(Shutdown::Write)?;
            pattern::drain(&mut reader);
        }
        ["up", before, after] => {
            pause(Duration::from_secs(before.parse()?));
            let (count, how) = pattern::drain(&mut reader);
            pause(Duration::from_secs(after.parse()?));
            writeln!(stream, "{count} {how}")?;
        }
        ["bye"] => {
            stream.shutdown(Shutdown::Write)?;
            let (count, how) = pattern::drain(&mut reader);
            println!("bye {count} {how}");
        }
        _ => writeln!(stream, "unknown words: {words:?}")?,
    }
    Ok(())
}

/// One request, one answer, then it closes.
fn give_file(mut stream: TcpStream, directory: &Path) -> Outcome<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut line = request.clone();
    while line.trim() != "" {
        line.clear();
        reader.read_line(&mut line)?;
    }
    let path = request.split_whitespace().nth(1).unwrap_or("/");
    let path = path.split('?').next().unwrap_or_default();
    let inside: PathBuf = Path::new(path)
        .components()
        .filter(|part| matches!(part, Component::Normal(_)))
        .collect();
    let (status, body) = match std::fs::read(directory.join(inside)) {
        Ok(body) => ("200 OK", body),
        Err(_) => ("404 Not Found", b"no such file\n".to_vec()),
    };
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    stream.write_all(&body)?;
    Ok(())
}
