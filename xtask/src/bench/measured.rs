//! The rounds of one case, and the ratios that follow from them.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::figures::statistics::{Spread, spread};
use crate::mpi::osu::{self, Points};

/// All rounds of one case.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Measured {
    /// The case's name.
    pub case: String,
    /// Unit and meaning of the figures.
    pub unit: String,
    /// Whether smaller figures are better.
    pub less_is_better: bool,
    /// For each way, for each round, size and figure; the first way is ours.
    pub ways: Vec<(String, Vec<Points>)>,
    /// Nanoseconds of a bare cache line, one way, before each round.
    #[serde(default)]
    pub lines: Vec<f64>,
    /// Whether this is the quieter of two measurements.
    #[serde(default)]
    pub is_repeated: bool,
}

/// The machine is noisy where a bare line takes so many times as long in one round as in another.
const NOISY: f64 = 1.2;

/// Ours divided by a peer's.
#[derive(Debug, Clone, PartialEq)]
pub struct Ratio {
    /// Round by round.
    pub spread: Spread,
    /// The peer.
    pub peer: String,
    /// Bytes of a message.
    pub size: u64,
}

impl Measured {
    /// Whether what the machine did besides shows in a measurement that has nothing to do with us or our peers.
    pub fn is_noisy(&self) -> bool {
        self.noise() > NOISY
    }

    /// The slowest round's bare line divided by the fastest one's.
    fn noise(&self) -> f64 {
        spread(&self.lines).map_or(1.0, |line| line.max / line.min)
    }

    /// The quieter of two measurements of a case, by the bare line: to choose by the figures would flatter them.
    pub fn quieter(self, again: Self) -> Self {
        let chosen = if again.noise() < self.noise() { again } else { self };
        Self { is_repeated: true, ..chosen }
    }

    /// The bare cache line beside the rounds, as a phrase.
    pub fn line(&self) -> Option<String> {
        let Spread { min, median, max } = spread(&self.lines)?;
        let noisy = if self.is_noisy() { ", a noisy machine" } else { "" };
        let repeated = if self.is_repeated { ", in the quieter of two measurements" } else { "" };
        Some(format!("a bare cache line {median:.0} ns one way ({min:.0}..{max:.0}{noisy}{repeated})"))
    }

    /// All sizes that some way was measured with.
    pub fn sizes(&self) -> BTreeSet<u64> {
        self.ways.iter().flat_map(|way| way.1.iter().flatten()).map(|point| point.0).collect()
    }

    fn figures(&self, way: usize, size: u64) -> Vec<f64> {
        self.ways[way].1.iter().filter_map(|points| osu::at(points, size)).collect()
    }

    /// The median of a way's rounds.
    pub fn median(&self, way: usize, size: u64) -> Option<f64> {
        spread(&self.figures(way, size)).map(|spread| spread.median)
    }

    /// Our figure divided by that of way `peer`, round by round.
    pub fn ratio(&self, peer: usize, size: u64) -> Option<Ratio> {
        let rounds = self.ways[0].1.iter().zip(&self.ways[peer].1);
        let ratios: Vec<f64> =
            rounds.filter_map(|(ours, theirs)| Some(osu::at(ours, size)? / osu::at(theirs, size)?)).collect();
        Some(Ratio { spread: spread(&ratios)?, peer: self.ways[peer].0.clone(), size })
    }

    /// The ratio to the best of the peers whose names `is_named` likes.
    pub fn ratio_to_best(&self, size: u64, is_named: impl Fn(&str) -> bool) -> Option<Ratio> {
        let named = (1..self.ways.len()).filter(|way| is_named(&self.ways[*way].0));
        let with_median = named.filter_map(|way| Some((way, self.median(way, size)?)));
        let (best, _) = with_median.min_by(|one, other| match self.less_is_better {
            true => one.1.total_cmp(&other.1),
            false => other.1.total_cmp(&one.1),
        })?;
        self.ratio(best, size)
    }

    /// The ratio to the best of the named peers at that size of a range where we stand worst.
    pub fn worst(
        &self,
        range: std::ops::RangeInclusive<u64>,
        is_named: impl Fn(&str) -> bool,
    ) -> Option<Ratio> {
        let sizes = self.sizes().into_iter().filter(|size| range.contains(size));
        let ratios = sizes.filter_map(|size| self.ratio_to_best(size, &is_named));
        ratios.max_by(|one, other| match self.less_is_better {
            true => one.spread.median.total_cmp(&other.spread.median),
            false => other.spread.median.total_cmp(&one.spread.median),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(less_is_better: bool) -> Measured {
        let way = |name: &str, figures: [f64; 2]| {
            let rounds = figures.map(|figure| vec![(8, figure), (64, 2.0 * figure)]);
            (name.to_owned(), rounds.to_vec())
        };
        let ways = vec![way("vmshm", [1.0, 1.0]), way("one", [2.0, 2.0]), way("two", [4.0, 5.0])];
        let lines = Vec::new();
        Measured { case: "x".into(), unit: "y".into(), less_is_better, ways, lines, is_repeated: false }
    }

    #[test]
    fn the_best_peer_is_the_fastest() {
        let less = measured(true).ratio_to_best(8, |_| true).unwrap();
        assert_eq!((less.peer.as_str(), less.spread.median), ("one", 0.5));
        let more = measured(false).ratio_to_best(8, |_| true).unwrap();
        assert_eq!((more.peer.as_str(), more.spread.max), ("two", 0.25));
        let named = measured(true).ratio_to_best(8, |name| name == "two").unwrap();
        assert_eq!(named.peer, "two");
        assert!(measured(true).ratio_to_best(8, |_| false).is_none());
    }

    #[test]
    fn the_worst_size_decides() {
        let mut measured = measured(true);
        measured.ways[0].1[0][1].1 = 8.0;
        measured.ways[0].1[1][1].1 = 8.0;
        let worst = measured.worst(0..=64, |name| name == "one").unwrap();
        assert_eq!((worst.size, worst.spread.median), (64, 2.0));
        assert!(measured.worst(100..=200, |_| true).is_none());
    }

    #[test]
    fn a_line_that_varies_by_more_than_a_fifth_is_noise() {
        let of = |lines: &[f64]| Measured { lines: lines.to_vec(), ..measured(true) };
        assert!(!of(&[]).is_noisy() && !of(&[70.0, 75.0, 83.0]).is_noisy());
        let noisy = of(&[70.0, 75.0, 85.0]);
        assert_eq!(
            noisy.line().as_deref(),
            Some("a bare cache line 75 ns one way (70..85, a noisy machine)")
        );
    }

    #[test]
    fn of_two_measurements_the_quieter_one_stays_and_says_so() {
        let of = |lines: &[f64]| Measured { lines: lines.to_vec(), ..measured(true) };
        let chosen = of(&[70.0, 90.0]).quieter(of(&[80.0, 84.0]));
        assert_eq!(chosen.lines, [80.0, 84.0]);
        assert!(chosen.line().unwrap().ends_with("(80..84, in the quieter of two measurements)"));
        let chosen = of(&[70.0, 90.0]).quieter(of(&[70.0, 100.0]));
        assert_eq!(chosen.lines, [70.0, 90.0]);
        assert!(
            chosen.line().unwrap().ends_with("(70..90, a noisy machine, in the quieter of two measurements)")
        );
    }
}
