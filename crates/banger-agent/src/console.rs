//! The agent's own words, on the machine's console. Few: the console is what a
//! person sees of a boot that failed, and its last line is a message to the
//! daemon.

use std::fs::OpenOptions;
use std::io::Write;

use banger_wire::agent::{ENDED_LINE, Ended};

/// Writes one line. What cannot be written is lost: there is nowhere else.
pub(crate) fn say(line: &str) {
    write(&format!("banger-agent: {line}\r\n"));
}

/// Writes the console's last line and waits until it has left the machine.
pub(crate) fn last_words(ended: &Ended) {
    let json = serde_json::to_string(ended).expect("an end is plain JSON");
    // A line of its own, whatever the guest was printing.
    write(&format!("\r\n{ENDED_LINE} {json}\r\n"));
    if let Ok(console) = OpenOptions::new().write(true).open("/dev/console") {
        let _ = rustix::termios::tcdrain(&console);
    }
}

fn write(text: &str) {
    if let Ok(mut console) = OpenOptions::new().write(true).open("/dev/console") {
        let _ = console.write_all(text.as_bytes());
    }
}
