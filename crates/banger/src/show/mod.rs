//! How things are shown: results on standard output, all else on standard
//! error, colour only on a terminal, nothing that could steer one.

pub(crate) mod progress;
pub(crate) mod size;
pub(crate) mod table;
pub(crate) mod timings;

use std::io::{IsTerminal, Write};

use crate::failure::Failure;

/// What a colour says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// As it should be.
    Good,
    /// Under way, or worth a look.
    Busy,
    /// Wrong.
    Bad,
    /// Less important.
    Faint,
}

/// Writes a result line to standard output.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    write(format!("{text}\n").as_bytes())
}

/// Writes result bytes to standard output, at once.
pub(crate) fn write(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes)
        .and_then(|()| out.flush())
        .map_err(|error| Failure::of_output(&error))
}

/// The same beside everything else: a reader that does not read holds up
/// nobody who waits for an interrupt.
pub(crate) async fn write_aside(bytes: Vec<u8>) -> Result<(), Failure> {
    tokio::task::spawn_blocking(move || write(&bytes))
        .await
        .expect("writing does not panic")
}

/// Writes a line to standard error. A closed standard error is nobody's loss.
pub(crate) fn note(text: &str) {
    let mut err = std::io::stderr().lock();
    let _ = writeln!(err, "{text}");
}

/// Says something that deserves attention, on a terminal or not.
pub(crate) fn warn(text: &str) {
    note(&format!(
        "{} {}",
        paint_stderr(Style::Busy, "warning:"),
        escape_lines(text)
    ));
}

/// Whether somebody reads standard error as it is written.
pub(crate) fn watched() -> bool {
    std::io::stderr().is_terminal()
}

fn colours_allowed() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Text in a colour where standard output shows colours.
pub(crate) fn paint_stdout(style: Style, text: &str) -> String {
    paint(style, text, std::io::stdout().is_terminal())
}

/// Text in a colour where standard error shows colours.
pub(crate) fn paint_stderr(style: Style, text: &str) -> String {
    paint(style, text, watched())
}

fn paint(style: Style, text: &str, terminal: bool) -> String {
    if !terminal || !colours_allowed() {
        return text.to_owned();
    }
    let number = match style {
        Style::Good => "32",
        Style::Busy => "33",
        Style::Bad => "1;31",
        Style::Faint => "2",
    };
    format!("\u{1b}[{number}m{text}\u{1b}[0m")
}

/// Text on one line, control characters spelled out.
pub(crate) fn escape(text: &str) -> String {
    escape_but(text, &[])
}

/// Text that may have lines and tabs, other control characters spelled out.
pub(crate) fn escape_lines(text: &str) -> String {
    escape_but(text, &['\n', '\t'])
}

fn escape_but(text: &str, kept: &[char]) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        let steers = character.is_control()
            || matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if !steers || kept.contains(&character) {
            out.push(character);
        } else if u32::from(character) < 0x100 {
            out.push_str(&format!("\\x{:02x}", u32::from(character)));
        } else {
            out.push_str(&format!("\\u{{{:x}}}", u32::from(character)));
        }
    }
    out
}

/// An id as tables show it.
pub(crate) fn short_id(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_steer_a_terminal_is_spelled_out() {
        assert_eq!(
            escape("a\u{1b}[2Jb\nc\u{9b}d\u{202e}"),
            "a\\x1b[2Jb\\x0ac\\x9bd\\u{202e}"
        );
        assert_eq!(escape_lines("a\n\tb\r"), "a\n\tb\\x0d");
        assert_eq!(escape("schön"), "schön");
    }

    #[test]
    fn colour_needs_a_terminal() {
        assert_eq!(paint(Style::Bad, "x", false), "x");
    }

    #[test]
    fn ids_are_cut_to_twelve_digits_and_short_ones_stay() {
        assert_eq!(short_id("0123456789abcdef"), "0123456789ab");
        assert_eq!(short_id("0123"), "0123");
    }
}
