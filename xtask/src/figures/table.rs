//! Tables in plain text, columns as wide as their longest cell, and in Markdown.

/// A table that grows line by line.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Adds one line.
    pub fn row<T: Into<String>>(&mut self, cells: impl IntoIterator<Item = T>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// The text of a table of figures, which stand to the right, one line each row; the first row is set off as heading.
    pub fn render(&self) -> String {
        self.lay_out(|cell, width| format!("{cell:>width$}"))
    }

    /// The same for a table of words, which stand to the left.
    pub fn render_left(&self) -> String {
        self.lay_out(|cell, width| format!("{cell:<width$}"))
    }

    /// The table in Markdown.
    pub fn render_markdown(&self) -> String {
        let mut text = String::new();
        for (number, row) in self.rows.iter().enumerate() {
            text += &format!("| {} |\n", row.join(" | "));
            if number == 0 {
                text += &format!("|{}\n", "---|".repeat(row.len()));
            }
        }
        text
    }

    fn lay_out(&self, pad: impl Fn(&str, usize) -> String) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for (number, row) in self.rows.iter().enumerate() {
            let line: Vec<String> = row.iter().zip(&widths).map(|(cell, &width)| pad(cell, width)).collect();
            text += line.join("  ").trim_end();
            text.push('\n');
            if number == 0 {
                let total = widths.iter().sum::<usize>() + 2 * columns.saturating_sub(1);
                text += &"-".repeat(total);
                text.push('\n');
            }
        }
        text
    }
}

/// A message size as people say it.
pub fn size(bytes: u64) -> String {
    match bytes {
        b if b >= 1 << 20 && b % (1 << 20) == 0 => format!("{} MiB", b >> 20),
        b if b >= 1 << 10 && b % (1 << 10) == 0 => format!("{} KiB", b >> 10),
        b => format!("{b} B"),
    }
}

/// A figure with about three digits; `-` where there is none.
pub fn figure(value: Option<f64>) -> String {
    match value {
        None => "-".into(),
        Some(v) if v < 10.0 => format!("{v:.2}"),
        Some(v) if v < 100.0 => format!("{v:.1}"),
        Some(v) => format!("{v:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::default();
        table.row(["size", "x"]);
        table.row(["8 B", "12.5"]);
        assert_eq!(table.render(), "size     x\n----------\n 8 B  12.5\n");
        assert_eq!(table.render_left(), "size  x\n----------\n8 B   12.5\n");
        assert_eq!(table.render_markdown(), "| size | x |\n|---|---|\n| 8 B | 12.5 |\n");
    }

    #[test]
    fn sizes_and_figures() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1536), "1536 B");
        assert_eq!(size(65536), "64 KiB");
        assert_eq!(size(4 << 20), "4 MiB");
        assert_eq!(figure(Some(0.304)), "0.30");
        assert_eq!(figure(Some(12345.6)), "12346");
        assert_eq!(figure(None), "-");
    }
}
