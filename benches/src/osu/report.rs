//! The output, in OSU's columns.

use std::io::Write;

/// Prints a table on rank 0.
#[derive(Debug)]
pub struct Report {
    loud: bool,
}

impl Report {
    /// Prints the header: `title` as "MPI Latency Test", and the names of the columns after the size.
    pub fn begin(rank: usize, title: &str, notes: &[String], columns: &[&str]) -> Report {
        let report = Report { loud: rank == 0 };
        report.line(&format!("# OSU {title} v{} (vmshm's own implementation)", env!("CARGO_PKG_VERSION")));
        for note in notes {
            report.line(&format!("# {note}"));
        }
        let names: String = columns.iter().map(|name| format!("{name:>WIDTH$}")).collect();
        report.line(&format!("{:<10}{names}", "# Size"));
        report
    }

    /// Prints all that is known of an operation without data, a mean time in microseconds.
    pub fn single(rank: usize, title: &str, mean: f64) {
        let report = Report { loud: rank == 0 };
        report.line(&format!("# OSU {title} v{} (vmshm's own implementation)", env!("CARGO_PKG_VERSION")));
        report.line("# Avg Latency(us)");
        report.line(&format!("{:>17}", figure(mean)));
    }

    /// Prints one row.
    pub fn row(&self, size: usize, values: &[f64]) {
        self.line(&row(size, values));
    }

    fn line(&self, line: &str) {
        if self.loud {
            println!("{line}");
            // Also through mpirun's pipe each line shows at once.
            let _ = std::io::stdout().flush();
        }
    }
}

const WIDTH: usize = 20;

fn row(size: usize, values: &[f64]) -> String {
    let values: String = values.iter().map(|value| format!("{:>WIDTH$}", figure(*value))).collect();
    format!("{size:<10}{values}")
}

/// Two decimals, as OSU; three for small figures, whose ratios would else be steps of several per cent.
fn figure(value: f64) -> String {
    if value < 10.0 { format!("{value:.3}") } else { format!("{value:.2}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_the_columns_of_osu() {
        assert_eq!(row(8, &[0.3]), "8                        0.300");
        assert_eq!(row(4096, &[1234.567, 1.0]), "4096                   1234.57               1.000");
    }
}
