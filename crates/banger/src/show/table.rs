//! Plain columns for terminals and scripts: two spaces between, no borders,
//! the last column as long as it likes.

use super::{Style, escape, paint_stdout};

/// Rows under a heading.
pub(crate) struct Table {
    rows: Vec<Vec<Cell>>,
}

/// One value.
struct Cell {
    text: String,
    style: Option<Style>,
}

impl Table {
    /// A table with these headings.
    pub(crate) fn new<'h>(headings: impl IntoIterator<Item = &'h str>) -> Self {
        let cells = headings
            .into_iter()
            .map(|heading| Cell {
                text: heading.to_owned(),
                style: None,
            })
            .collect();
        Self { rows: vec![cells] }
    }

    /// Adds a row. Values are escaped; an empty one is shown as `-`.
    pub(crate) fn row(&mut self, values: impl IntoIterator<Item = String>) {
        let cells = values
            .into_iter()
            .map(|value| Cell {
                text: if value.is_empty() {
                    "-".to_owned()
                } else {
                    escape(&value)
                },
                style: None,
            })
            .collect();
        self.rows.push(cells);
    }

    /// Colours a value of the row added last.
    pub(crate) fn style_last(&mut self, column: usize, style: Style) {
        if let Some(cell) = self.rows.last_mut().and_then(|row| row.get_mut(column)) {
            cell.style = Some(style);
        }
    }

    /// The table as text, colours where standard output shows them.
    pub(crate) fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                self.rows
                    .iter()
                    .filter_map(|row| row.get(column))
                    .map(|cell| cell.text.chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let mut out = String::new();
        for row in &self.rows {
            for (column, cell) in row.iter().enumerate() {
                let painted = match cell.style {
                    Some(style) => paint_stdout(style, &cell.text),
                    None => cell.text.clone(),
                };
                out.push_str(&painted);
                if column + 1 < row.len() {
                    let gap = widths[column] + 2 - cell.text.chars().count();
                    out.extend(std::iter::repeat_n(' ', gap));
                }
            }
            out.push('\n');
        }
        out
    }
}

/// `key: value` lines of one thing, keys aligned; empty values are left out.
pub(crate) fn facts(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(key, _)| key.len()).max().unwrap_or(0) + 1;
    rows.iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| format!("{:<width$} {}\n", format!("{key}:"), escape(value)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_nothing_trails() {
        let mut table = Table::new(["NAME", "STATE", "IP"]);
        table.row(["a-long-name".into(), "running".into(), String::new()]);
        table.row(["web".into(), "stopped".into(), "10.0.0.1".into()]);
        assert_eq!(
            table.render(),
            "NAME         STATE    IP\na-long-name  running  -\nweb          stopped  10.0.0.1\n"
        );
    }

    #[test]
    fn a_value_with_escape_sequences_stays_in_its_cell() {
        let mut table = Table::new(["NAME"]);
        table.row(["a\u{1b}[2J\nb".into()]);
        assert_eq!(table.render(), "NAME\na\\x1b[2J\\x0ab\n");
    }

    #[test]
    fn facts_leave_out_what_is_unset() {
        assert_eq!(
            facts(&[
                ("id", "ab".into()),
                ("kernel", String::new()),
                ("state", "stopped".into())
            ]),
            "id:     ab\nstate:  stopped\n"
        );
    }
}
