//! What the network tests run at both ends of a connection: a client inside
//! guests, servers on the fake host and outside it. One static program of the
//! standard library alone, so that it runs in a guest that has nothing.
//!
//! ```text
//! probe hold                        says "up", ends with its input
//! probe serve SPEC...               says "ready", serves, ends with its input
//!   tcp=ADDR  udp=ADDR              see `serve`
//!   dns=ADDR/NAME=IP,...            answers these names by UDP and TCP
//!   http=ADDR/DIRECTORY             gives the files below it
//! probe try SPEC...                 tcp:ADDR, udp:ADDR or cast:ADDR, all at once
//! probe down N ADDR [PAUSE]         takes N bytes, after PAUSE seconds of nothing
//! probe up N ADDR [BEFORE [AFTER]]  gives N bytes, half-closes, reads an answer
//! probe bye N ADDR                  gives N bytes after the server closed its half
//! probe short N THREADS ADDR        N connections one after the other
//! probe datagram SIZE ADDR          one datagram there and back
//! probe ask udp|tcp SERVER NAME     the IPv4 address of a name
//! probe tick ADDR                   one connection, a line a tenth of a second
//! probe knock SECONDS ADDR          new connections all the time
//! probe measure WHAT ADDR [N]       times for the benchmarks
//! probe post ADDR                   commands from the input for who asks there
//! probe obey ADDR                   asks there for commands
//! ```
//!
//! What came of it is one line of words on stdout; the status is 0 for every
//! result of the network, since tests ask for failures as well.

#![forbid(unsafe_code)]

mod client;
mod dns;
mod measure;
mod pattern;
mod remote;
mod serve;
mod try_out;

use std::error::Error;
use std::io::Read;
use std::net::SocketAddr;
use std::time::Duration;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Outcome<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["hold"] => hold("up"),
        ["serve", ref specs @ ..] => {
            for spec in specs {
                serve::start(spec)?;
            }
            hold("ready")
        }
        ["try", ref specs @ ..] => try_out::all(specs),
        ["down", bytes, at] => client::down(bytes.parse()?, at.parse()?, Duration::ZERO),
        ["down", bytes, at, pause] => client::down(bytes.parse()?, at.parse()?, seconds(pause)?),
        ["up", bytes, at] => client::up(bytes.parse()?, at.parse()?, 0, 0),
        ["up", bytes, at, before] => client::up(bytes.parse()?, at.parse()?, before.parse()?, 0),
        ["up", bytes, at, before, after] => {
            client::up(bytes.parse()?, at.parse()?, before.parse()?, after.parse()?)
        }
        ["bye", bytes, at] => client::bye(bytes.parse()?, at.parse()?),
        ["short", count, threads, at] => {
            client::short(count.parse()?, threads.parse()?, at.parse()?)
        }
        ["datagram", size, at] => client::datagram(size.parse()?, at.parse()?),
        ["ask", by, server, name] => dns::ask(by, server.parse()?, name),
        ["tick", at] => client::tick(at.parse()?),
        ["knock", time, at] => client::knock(seconds(time)?, at.parse()?),
        ["measure", what, at, ref rest @ ..] => measure::run(what, at.parse::<SocketAddr>()?, rest),
        ["post", at] => remote::post(at.parse()?),
        ["obey", at] => remote::obey(at.parse()?),
        _ => Err(format!("unknown words: {words:?}").into()),
    }
}

fn seconds(text: &str) -> Outcome<Duration> {
    Ok(Duration::from_secs_f64(text.parse()?))
}

/// Says a word and waits for the end of the input.
fn hold(word: &str) -> Outcome<()> {
    println!("{word}");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Lets time pass, where a test's subject is somebody who is slow.
#[allow(clippy::disallowed_methods)]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// A result of the network in a word.
fn word(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(111) => "refused".to_owned(),
        Some(113) => "unreachable".to_owned(),
        Some(101) => "net-unreachable".to_owned(),
        Some(104 | 32) => "reset".to_owned(),
        Some(110 | 11) => "timeout".to_owned(),
        Some(number) => format!("error-{number}"),
        None if error.kind() == std::io::ErrorKind::TimedOut => "timeout".to_owned(),
        None => format!("{:?}", error.kind()),
    }
}
