//! `logs`: what the guest's console and the engine said.

use std::io::IsTerminal;

use banger_api::endpoint::{Endpoint, VmLogs};
use clap::Args;

use crate::client::At;
use crate::client::start::Place;
use crate::complete;
use crate::failure::Failure;
use crate::interrupt::interruptible;

/// Print the console of a VM
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// VM by name or id
    #[arg(value_name = "VM", add = complete::vms())]
    vm: String,
    /// Go on with what comes
    #[arg(short, long)]
    follow: bool,
    /// Only the last lines
    #[arg(short = 'n', long, value_name = "LINES")]
    tail: Option<u32>,
}

impl Logs {
    /// Prints it, escaped where a terminal reads it: a guest wrote it.
    pub(crate) async fn run(self, place: &Place) -> Result<u8, Failure> {
        interruptible(self.print(place)).await
    }

    async fn print(&self, place: &Place) -> Result<u8, Failure> {
        let client = place.reach().await?;
        let tail = self.tail.map(|lines| lines.to_string());
        let mut query = vec![("content", "true")];
        query.extend(tail.as_deref().map(|lines| ("tail", lines)));
        if self.follow {
            query.push(("follow", "true"));
        }
        let mut text = client
            .text(
                At {
                    path: &[&self.vm],
                    query: &query,
                },
                VmLogs::PATH,
            )
            .await?;
        let terminal = std::io::stdout().is_terminal();
        let mut cut = Vec::new();
        while let Some(bytes) = text.next().await? {
            let shown = if terminal {
                tame(&mut cut, &bytes).into_bytes()
            } else {
                bytes.into()
            };
            crate::show::write_aside(shown).await?;
        }
        Ok(0)
    }
}

/// Console bytes as text for a terminal; a character cut by the end of the
/// piece waits in `cut` for its rest. Carriage returns before newlines go.
fn tame(cut: &mut Vec<u8>, bytes: &[u8]) -> String {
    cut.extend_from_slice(bytes);
    let whole = match std::str::from_utf8(cut) {
        // No error length: the end may become valid with more bytes.
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        _ => cut.len(),
    };
    let rest = cut.split_off(whole);
    let text = String::from_utf8_lossy(cut)
        .replace("\r\n", "\n")
        .replace('\r', "");
    *cut = rest;
    crate::show::escape_lines(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_cannot_steer_the_terminal_and_characters_stay_whole() {
        let mut cut = Vec::new();
        let mut out = String::new();
        for byte in "ok ü\r\n\u{1b}[2J".as_bytes() {
            out.push_str(&tame(&mut cut, &[*byte]));
        }
        assert_eq!(out, "ok ü\n\\x1b[2J");
    }
}
