//! Commands for a guest that nobody can call: it asks for them.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::{Outcome, pause};

/// Runs this program with the words of each line that comes, and answers with
/// what it said, as one line.
pub(crate) fn obey(at: SocketAddr) -> Outcome<()> {
    let program = std::env::args().next().ok_or("a program has a name")?;
    let mut stream = loop {
        match TcpStream::connect(at) {
            Ok(stream) => break stream,
            // A machine that has just begun has its network in a moment.
            Err(_) => pause(Duration::from_millis(200)),
        }
    };
    let lines = BufReader::new(stream.try_clone()?).lines();
    for line in lines {
        let done = Command::new(&program)
            .args(line?.split_whitespace())
            .output()?;
        let said = [done.stdout, done.stderr].concat();
        let said = String::from_utf8_lossy(&said).replace('\n', " ");
        writeln!(stream, "{} {said}", done.status.code().unwrap_or(-1))?;
    }
    Ok(())
}

/// Gives its input to the first who asks, and prints the answers.
pub(crate) fn post(at: SocketAddr) -> Outcome<()> {
    let listener = TcpListener::bind(at)?;
    println!("ready");
    let (mut stream, _) = listener.accept()?;
    println!("there");
    let mut answers = stream.try_clone()?;
    thread::spawn(move || io::copy(&mut answers, &mut io::stdout()));
    io::copy(&mut io::stdin(), &mut stream)?;
    Ok(())
}
