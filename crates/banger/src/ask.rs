//! Questions to the user, before what cannot be undone.

use std::io::{BufRead, IsTerminal, Write};

use crate::failure::Failure;

/// Whether there is somebody to ask.
pub(crate) fn possible() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Asks for a yes. Everything else is a no.
pub(crate) fn yes(question: &str) -> Result<bool, Failure> {
    let mut err = std::io::stderr().lock();
    let _ = write!(err, "{} [y/N] ", crate::show::escape(question));
    let _ = err.flush();
    let mut answer = String::new();
    // An unreadable terminal says no.
    let _ = std::io::stdin().lock().read_line(&mut answer);
    Ok(matches!(
        answer.trim().to_ascii_lowercase().as_str(),
        "y" | "yes"
    ))
}
