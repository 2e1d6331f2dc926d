//! Latency and bandwidth against message size, as SVG and PNG.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Once;

use anyhow::{Context, Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};

use super::table;
use crate::mpi::osu::Points;

/// From the Debian package fonts-dejavu-core; the PNG backend draws letters itself.
const FONT: &str = "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf";
const SIZE: (u32, u32) = (1360, 620);
/// Stands for size 0, which a logarithmic axis does not have.
const ZERO: f64 = 0.5;

/// One line in the plot.
#[derive(Debug, Clone)]
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// Whether it comes from an emulated guest: drawn thin and with open marks.
    pub emulated: bool,
    /// Message size and figure.
    pub points: Points,
}

/// One half of the plot.
#[derive(Debug)]
pub struct Panel<'a> {
    /// Its heading.
    pub title: &'a str,
    /// Label of the vertical axis.
    pub unit: &'a str,
    /// Its lines.
    pub series: &'a [Series],
}

/// Colours that people with the usual kinds of colour blindness can tell apart.
const COLOURS: [RGBColor; 6] = [
    RGBColor(213, 94, 0),
    RGBColor(0, 114, 178),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(90, 90, 90),
    RGBColor(230, 159, 0),
];

/// Draws the panels side by side into `stem`.svg and `stem`.png, and returns the two paths.
pub fn draw(stem: &Path, caption: &str, panels: &[Panel<'_>]) -> Result<[PathBuf; 2]> {
    load_font()?;
    if let Some(dir) = stem.parent() {
        fs::create_dir_all(dir)?;
    }
    let svg = stem.with_extension("svg");
    let png = stem.with_extension("png");
    draw_on(&SVGBackend::new(&svg, SIZE).into_drawing_area(), caption, panels)
        .with_context(|| format!("cannot draw {}", svg.display()))?;
    draw_on(&BitMapBackend::new(&png, SIZE).into_drawing_area(), caption, panels)
        .with_context(|| format!("cannot draw {}", png.display()))?;
    Ok([svg, png])
}

fn load_font() -> Result<()> {
    static ONCE: Once = Once::new();
    let bytes = fs::read(FONT)
        .with_context(|| format!("cannot read the font {FONT}; install the package fonts-dejavu-core"))?;
    let mut result = Ok(());
    ONCE.call_once(|| {
        // The font is kept for the life of the process, as the drawing library asks.
        let bytes: &'static [u8] = Box::leak(bytes.into_boxed_slice());
        result = register_font("sans-serif", FontStyle::Normal, bytes)
            .map_err(|_| anyhow!("{FONT} is no font that can be used"));
    });
    result
}

fn draw_on<B>(root: &DrawingArea<B, Shift>, caption: &str, panels: &[Panel<'_>]) -> Result<()>
where
    B: DrawingBackend,
    B::ErrorType: 'static,
{
    root.fill(&WHITE)?;
    let below = root.titled(caption, ("sans-serif", 19))?;
    for (area, panel) in below.split_evenly((1, panels.len().max(1))).iter().zip(panels) {
        draw_panel(area, panel)?;
    }
    root.present()?;
    Ok(())
}

fn place(size: u64) -> f64 {
    // Message sizes are far below 2^53.
    #[allow(clippy::cast_precision_loss)]
    if size == 0 { ZERO } else { size as f64 }
}

fn draw_panel<B>(area: &DrawingArea<B, Shift>, panel: &Panel<'_>) -> Result<()>
where
    B: DrawingBackend,
    B::ErrorType: 'static,
{
    let all = || panel.series.iter().flat_map(|s| s.points.iter());
    let widest = all().map(|p| place(p.0)).fold(2.0, f64::max);
    let narrowest = all().map(|p| place(p.0)).fold(widest, f64::min);
    let highest = all().map(|p| p.1).fold(f64::MIN_POSITIVE, f64::max);
    let lowest = all().map(|p| p.1).fold(highest, f64::min);
    let mut chart = ChartBuilder::on(area)
        .caption(panel.title, ("sans-serif", 17))
        .margin(10)
        .x_label_area_size(46)
        .y_label_area_size(72)
        .build_cartesian_2d(
            (narrowest..widest * 1.3).log_scale().base(2.0),
            (lowest / 1.6..highest * 1.6).log_scale(),
        )?;
    chart
        .configure_mesh()
        .x_desc("message size")
        .y_desc(panel.unit)
        .x_labels(12)
        .label_style(("sans-serif", 13))
        .axis_desc_style(("sans-serif", 15))
        .light_line_style(TRANSPARENT)
        .x_label_formatter(&|x| {
            if *x < 1.0 {
                "0".into()
            } else {
                // The axis only has whole powers of two from here on.
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                let bytes = x.round() as u64;
                table::size(bytes)
            }
        })
        .y_label_formatter(&|y| table::figure(Some(*y)))
        .draw()?;
    for (number, series) in panel.series.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let style = colour.stroke_width(if series.emulated { 1 } else { 3 });
        let points: Vec<(f64, f64)> = series.points.iter().map(|p| (place(p.0), p.1)).collect();
        chart
            .draw_series(LineSeries::new(points.iter().copied(), style))?
            .label(&series.name)
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 22, y)], style));
        let mark = if series.emulated { colour.stroke_width(1) } else { colour.filled() };
        chart.draw_series(points.iter().map(|&p| Circle::new(p, 3, mark)))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .label_font(("sans-serif", 13))
        .draw()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_has_both_files() -> Result<()> {
        if !Path::new(FONT).exists() {
            eprintln!("skipped: no {FONT}");
            return Ok(());
        }
        let dir = tempfile::tempdir()?;
        let series =
            [Series { name: "some".into(), emulated: false, points: vec![(0, 1.0), (8, 2.0), (1024, 30.0)] }];
        let panel = Panel { title: "Latency", unit: "µs", series: &series };
        let [svg, png] = draw(&dir.path().join("plot"), "a caption", &[panel])?;
        assert!(fs::read_to_string(svg)?.contains("a caption"));
        assert!(fs::read(png)?.starts_with(b"\x89PNG"));
        Ok(())
    }
}
