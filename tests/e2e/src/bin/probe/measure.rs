//! Times for the benchmarks, measured inside the guest: one number a line, in
//! the unit that the word says.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Instant;

use crate::client::connect;
use crate::{Outcome, pattern};

/// Measures one thing once.
pub(crate) fn run(what: &str, at: SocketAddr, rest: &[&str]) -> Outcome<()> {
    let count: u64 = rest.first().unwrap_or(&"1").parse()?;
    let begin = Instant::now();
    match what {
        // MiB a second.
        "down" => {
            let mut stream = connect(at, &format!("down {count}\n"))?;
            take(&mut stream, count)?;
            println!("{:.2}", rate(count, begin));
        }
        "up" => {
            let mut stream = connect(at, "up 0 0\n")?;
            pattern::pour(&mut stream, count)?;
            stream.shutdown(std::net::Shutdown::Write)?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            if answer != format!("{count} ok\n") {
                return Err(format!("the server got {answer}").into());
            }
            println!("{:.2}", rate(count, begin));
        }
        // Milliseconds each.
        "connect" => {
            for _ in 0..count {
                drop(TcpStream::connect(at)?);
            }
            println!("{:.4}", begin.elapsed().as_secs_f64() * 1e3 / count as f64);
        }
        "round-trip" => {
            let mut stream = connect(at, "echo\n")?;
            let mut byte = [0];
            stream.write_all(b"x")?;
            stream.read_exact(&mut byte)?;
            let begin = Instant::now();
            for _ in 0..count {
                stream.write_all(b"x")?;
                stream.read_exact(&mut byte)?;
            }
            println!("{:.4}", begin.elapsed().as_secs_f64() * 1e3 / count as f64);
        }
        // Seconds in all.
        "parallel" => {
            let bytes: u64 = rest.get(1).ok_or("bytes of each")?.parse()?;
            let one = move || -> Outcome<()> {
                let mut stream = connect(at, &format!("down {bytes}\n"))?;
                take(&mut stream, bytes)
            };
            let all: Vec<_> = (0..count).map(|_| thread::spawn(one)).collect();
            for one in all {
                one.join().map_err(|_| "a thread panicked")??;
            }
            println!("{:.3}", begin.elapsed().as_secs_f64());
        }
        _ => return Err(format!("cannot measure {what}").into()),
    }
    Ok(())
}

fn take(stream: &mut TcpStream, wanted: u64) -> Outcome<()> {
    let mut buffer = vec![0; 256 << 10];
    let mut count = 0;
    loop {
        match stream.read(&mut buffer)? {
            0 if count == wanted => return Ok(()),
            0 => return Err(format!("{count} bytes of {wanted}").into()),
            length => count += length as u64,
        }
    }
}

fn rate(bytes: u64, begin: Instant) -> f64 {
    bytes as f64 / f64::from(1 << 20) / begin.elapsed().as_secs_f64()
}
