//! One connection or many, and what came of them.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::{Outcome, pattern, pause, word};

/// A connection on which something was said.
pub(crate) fn connect(at: SocketAddr, line: &str) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(at)?;
    stream.set_nodelay(true)?;
    stream.write_all(line.as_bytes())?;
    Ok(stream)
}

/// Takes what the server gives until it closes.
pub(crate) fn down(bytes: u64, at: SocketAddr, lazy: Duration) -> Outcome<()> {
    let mut stream = connect(at, &format!("down {bytes}\n"))?;
    pause(lazy);
    let (count, how) = pattern::drain(&mut stream);
    println!("{count} {how}");
    Ok(())
}

/// Gives, closes its half, and says what the server says then.
pub(crate) fn up(bytes: u64, at: SocketAddr, before: u64, after: u64) -> Outcome<()> {
    let mut stream = connect(at, &format!("up {before} {after}\n"))?;
    let given = pattern::pour(&mut stream, bytes).and_then(|()| stream.shutdown(Shutdown::Write));
    let mut answer = String::new();
    match given.and_then(|()| stream.read_to_string(&mut answer)) {
        Ok(_) => print!("{answer}"),
        Err(error) => println!("{}", word(&error)),
    }
    Ok(())
}

/// Gives after the server has closed its half.
pub(crate) fn bye(bytes: u64, at: SocketAddr) -> Outcome<()> {
    let mut stream = connect(at, "bye\n")?;
    let (count, how) = pattern::drain(&mut stream);
    pattern::pour(&mut stream, bytes)?;
    println!("{count} {how}, then {bytes} sent");
    Ok(())
}

/// Connections one after the other in each thread, a few bytes on each.
pub(crate) fn short(count: u64, threads: u64, at: SocketAddr) -> Outcome<()> {
    let worker = move || {
        let mut failures = Vec::new();
        for _ in 0..count / threads {
            let exchange = || -> io::Result<()> {
                let mut stream = connect(at, "who\n")?;
                let mut answer = String::new();
                stream.read_to_string(&mut answer)?;
                if answer.is_empty() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Ok(())
            };
            if let Err(error) = exchange() {
                failures.push(word(&error));
            }
        }
        failures
    };
    let all: Vec<_> = (0..threads).map(|_| thread::spawn(worker)).collect();
    let mut failures = Vec::new();
    for one in all {
        failures.extend(one.join().map_err(|_| "a thread panicked")?);
    }
    let good = count / threads * threads - failures.len() as u64;
    failures.truncate(5);
    println!("{good} ok {}", failures.join(" "));
    Ok(())
}

/// One datagram there and back.
pub(crate) fn datagram(size: usize, at: SocketAddr) -> Outcome<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(at)?;
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    let sent = pattern::piece(size);
    let mut buffer = vec![0; 65_536];
    let came = socket.send(&sent).and_then(|_| socket.recv(&mut buffer));
    match came {
        Ok(length) if buffer[..length] == sent => println!("{length} ok"),
        Ok(length) => println!("{length} damaged"),
        Err(error) => println!("{}", word(&error)),
    }
    Ok(())
}

/// One connection that lives: a number there and back ten times a second. Says
/// each number that came back, and how it ended.
pub(crate) fn tick(at: SocketAddr) -> Outcome<()> {
    let mut stream = connect(at, "echo\n")?;
    let mut reader = BufReader::new(stream.try_clone()?);
    for number in 0_u64.. {
        let mut line = String::new();
        let came = writeln!(stream, "{number}").and_then(|()| reader.read_line(&mut line));
        match came {
            Ok(0) => line = "closed".to_owned(),
            Ok(_) => {}
            Err(error) => line = word(&error),
        }
        println!("{}", line.trim());
        if line.trim() != number.to_string() {
            return Ok(());
        }
        pause(Duration::from_millis(100));
    }
    Ok(())
}

/// Opens connections all the time, each with little patience. Says how many
/// there were, the longest time without one, and the longest time that this
/// machine stood still, all in milliseconds.
pub(crate) fn knock(time: Duration, at: SocketAddr) -> Outcome<()> {
    let over = AtomicBool::new(false);
    let stood_still = AtomicU64::new(0);
    let begin = Instant::now();
    let (mut good, mut gap, mut last) = (0_u64, Duration::ZERO, begin);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut before = Instant::now();
            while !over.load(Ordering::Relaxed) {
                pause(Duration::from_millis(20));
                let ms = u64::try_from(before.elapsed().as_millis()).unwrap_or(u64::MAX);
                stood_still.fetch_max(ms, Ordering::Relaxed);
                before = Instant::now();
            }
        });
        println!("knocking");
        while begin.elapsed() < time {
            let patience = Duration::from_secs(1);
            let came = TcpStream::connect_timeout(&at, patience).and_then(|mut stream| {
                stream.set_read_timeout(Some(patience))?;
                stream.write_all(b"who\n")?;
                stream.read(&mut [0; 256])
            });
            if came.is_ok_and(|length| length > 0) {
                good += 1;
                gap = gap.max(last.elapsed());
                last = Instant::now();
            } else {
                pause(Duration::from_millis(10));
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    gap = gap.max(last.elapsed());
    let still = stood_still.load(Ordering::Relaxed);
    println!(
        "{good} connections, gap {} ms, still {still} ms",
        gap.as_millis()
    );
    Ok(())
}
