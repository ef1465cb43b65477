//! Lines out of what a guest's command writes: whole ones, bounded, and without
//! what would act on a terminal.

/// Longest line, bytes; what is longer becomes several.
const LINE: usize = 4096;

/// One stream that becomes lines.
#[derive(Default)]
pub(super) struct Lines {
    line: Vec<u8>,
}

impl Lines {
    /// Takes bytes, and gives the lines that are whole now.
    pub(super) fn push(&mut self, bytes: &[u8], take: &mut (dyn FnMut(&str) + Send)) {
        for byte in bytes {
            match byte {
                b'\n' => self.tell(take),
                // What moves back to the start of its line writes it anew.
                b'\r' => {
                    if !self.line.is_empty() {
                        self.line.push(*byte);
                    }
                }
                _ => {
                    if self.line.last() == Some(&b'\r') {
                        self.line.clear();
                    }
                    self.line.push(*byte);
                }
            }
            if self.line.len() >= LINE {
                self.tell(take);
            }
        }
    }

    /// Gives what is left without an end.
    pub(super) fn finish(&mut self, take: &mut (dyn FnMut(&str) + Send)) {
        if !self.line.is_empty() {
            self.tell(take);
        }
    }

    fn tell(&mut self, take: &mut (dyn FnMut(&str) + Send)) {
        let text = String::from_utf8_lossy(&self.line);
        let fits = |c: &char| *c == '\t' || !c.is_control();
        take(text.chars().filter(fits).collect::<String>().trim_end());
        self.line.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(pieces: &[&[u8]]) -> Vec<String> {
        let mut told = Vec::new();
        let mut take = |line: &str| told.push(line.to_owned());
        let mut lines = Lines::default();
        for piece in pieces {
            lines.push(piece, &mut take);
        }
        lines.finish(&mut take);
        told
    }

    #[test]
    fn lines_are_whole_whatever_the_pieces() {
        assert_eq!(
            lines(&[b"a\nb", b"c\r", b"\n", b"\nend"]),
            ["a", "bc", "", "end"]
        );
        assert_eq!(lines(&[]), [""; 0]);
    }

    #[test]
    fn a_line_that_is_written_anew_is_told_as_it_was_last() {
        assert_eq!(lines(&[b"10%\r", b"50%\r100%\r\nnext\n"]), ["100%", "next"]);
    }

    #[test]
    fn what_acts_on_a_terminal_is_gone_and_long_lines_are_cut() {
        assert_eq!(
            lines(&[b"\x1b[31mred\x07\tx\xff\n"]),
            ["[31mred\tx\u{fffd}"]
        );
        let long = vec![b'x'; 2 * LINE + 1];
        let told = lines(&[&long]);
        assert_eq!(
            told.iter().map(String::len).collect::<Vec<_>>(),
            [LINE, LINE, 1]
        );
    }
}
