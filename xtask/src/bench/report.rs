//! Output of a run: on the terminal and as Markdown.

use super::measured::Measured;
use crate::figures::table::{self, Table};

/// Text for the terminal, and the same in Markdown.
#[derive(Debug, Default)]
pub struct Report {
    /// For the terminal.
    pub text: String,
    /// For documents.
    pub markdown: String,
}

impl Report {
    /// A table below its heading.
    pub fn table(&mut self, heading: &str, table: &Table, render: impl Fn(&Table) -> String) {
        self.text += &format!("\n{heading}\n{}", render(table));
        self.markdown += &format!("\n{heading}\n\n{}", table.render_markdown());
    }

    /// A paragraph, unless it is empty.
    pub fn say(&mut self, what: &str) {
        if !what.is_empty() {
            self.text += &format!("\n{}\n", what.trim_end());
            self.markdown += &format!("\n{}\n", what.trim_end());
        }
    }
}

/// Heading and table of a case's figures.
pub fn describe(measured: &Measured) -> (String, Table) {
    let names: Vec<&str> = measured.ways.iter().map(|(name, _)| name.as_str()).collect();
    let mut table = Table::default();
    let mut heading = vec!["size".to_owned()];
    heading.extend(names.iter().map(|&name| name.to_owned()));
    heading.extend(names[1..].iter().map(|name| format!("vmshm / {name}")));
    heading.push("vmshm / best".into());
    table.row(heading);
    for size in measured.sizes() {
        let mut cells =
            vec![if measured.case.starts_with("osu_barrier") { "-".into() } else { table::size(size) }];
        cells.extend((0..names.len()).map(|way| table::figure(measured.median(way, size))));
        cells.extend((1..names.len()).map(|way| match measured.ratio(way, size) {
            Some(ratio) => format!("{:.2}", ratio.spread.median),
            None => "-".into(),
        }));
        cells.push(match measured.ratio_to_best(size, |_| true) {
            Some(ratio) => {
                let spread = ratio.spread;
                format!("{:.2} ({:.2}..{:.2}) {}", spread.median, spread.min, spread.max, ratio.peer)
            }
            None => "-".into(),
        });
        table.row(cells);
    }
    let better = if measured.less_is_better { "less" } else { "more" };
    let rounds = measured.ways.iter().map(|way| way.1.len()).max().unwrap_or(0);
    let line = measured.line().map_or(String::new(), |line| format!("; {line}"));
    let heading = format!(
        "{}, {}: medians of {rounds} rounds and of their ratios, beside the best with smallest..largest ({better} is better){line}",
        measured.case, measured.unit,
    );
    (heading, table)
}
