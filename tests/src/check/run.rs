//! Runs the cases one after another and reports them.

use std::fmt;
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::context::report;
use crate::check::{Case, Context, Needs, Outcome};
use crate::collective::Op;
use crate::comm::Comm;
use crate::universe::{Universe, abort_on_panic};

/// Choice of cases, and how they run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The cases, by name or by the beginning of their names; all if empty.
    pub only: Vec<String>,
    /// Determines all payloads and random choices.
    pub seed: u64,
    /// Short run.
    pub quick: bool,
    /// Threads a rank; more than 1 asks for `MPI_THREAD_MULTIPLE`.
    pub threads: usize,
    /// Also the case with a message of more than 4 GiB.
    pub huge: bool,
    /// Longest time for one case; none if zero.
    pub timeout: Duration,
}

/// How many cases ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Cases in which all was right.
    pub passed: usize,
    /// Cases in which something was wrong on some rank.
    pub failed: usize,
    /// Cases that could not run.
    pub skipped: usize,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "checks: {} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 {
            write!(f, ", {} skipped", self.skipped)?;
        }
        Ok(())
    }
}

/// Where this process is, for the reports of a panic and of the watchdog.
#[derive(Debug, Default)]
struct Place {
    rank: AtomicUsize,
    passed: AtomicUsize,
    failed: AtomicUsize,
    current: Mutex<Option<(&'static str, Instant)>>,
}

impl Place {
    fn enter(&self, case: Option<&'static str>) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        *current = case.map(|name| (name, Instant::now()));
    }

    fn current(&self) -> Option<(&'static str, Instant)> {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what ended the run, and the tally so far with the running case as failed.
    fn last_words(&self, message: &str) {
        let rank = self.rank.load(Ordering::Relaxed);
        let name = self.current().map_or("between cases", |(name, _)| name);
        report(&format!("rank {rank}, {name}: {message}"));
        let passed = self.passed.load(Ordering::Relaxed);
        let failed = self.failed.load(Ordering::Relaxed) + 1;
        let line = format!("checks: {passed} passed, {failed} failed\n");
        // Nothing is left to do about an error here.
        let _ = std::io::stdout().write_all(line.as_bytes());
        let _ = std::io::stdout().flush();
    }
}

/// Ends the process if one case takes longer than `limit`.
fn watch(place: Arc<Place>, limit: Duration) {
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(Duration::from_millis(200));
            if place.current().is_some_and(|(_, since)| since.elapsed() > limit) {
                let seconds = limit.as_secs();
                place.last_words(&format!("not finished after {seconds} s: hanging, or too slow"));
                std::process::exit(3);
            }
        }
    });
}

/// Runs the cases; every rank of the job calls this.
///
/// # Errors
/// The MPI at hand does not offer the thread level, or a name in `only` is unknown.
pub fn run(options: &Options) -> Result<Summary, String> {
    let chosen = choose(&options.only)?;
    let place = Arc::new(Place::default());
    let universe = Universe::start(options.threads > 1)?;
    let world = Comm::world();
    place.rank.store(world.rank() as usize, Ordering::Relaxed);
    let for_panic = Arc::clone(&place);
    abort_on_panic(move |message| for_panic.last_words(message));
    if !options.timeout.is_zero() {
        watch(Arc::clone(&place), options.timeout);
    }
    let loud = world.rank() == 0;
    let seed = agreed_seed(&world, options.seed);
    if loud {
        println!(
            "vmshm-mpi-check: {} ranks, {} threads each, seed {seed}{}",
            world.size(),
            options.threads.max(1),
            if options.quick { ", quick" } else { "" }
        );
    }
    let mut summary = Summary::default();
    for case in &chosen {
        place.enter(Some(case.name));
        let began = Instant::now();
        let (line, checked) = match missing(case, options, world.size()) {
            Some(reason) if options.only.is_empty() && case.needs != Needs::TwoRanks => {
                // Not asked for: not worth a line.
                let _ = reason;
                continue;
            }
            Some(reason) => (Line::Skipped(reason), 0),
            None => run_one(case, options, seed, &world),
        };
        match line {
            Line::Passed => summary.passed += 1,
            Line::Failed(_) => summary.failed += 1,
            Line::Skipped(_) => summary.skipped += 1,
        }
        place.passed.store(summary.passed, Ordering::Relaxed);
        place.failed.store(summary.failed, Ordering::Relaxed);
        if loud {
            print_line(case.name, &line, began.elapsed(), checked);
        }
    }
    place.enter(None);
    if loud {
        println!("{summary}");
    }
    // Finalize may hang as well.
    place.enter(Some("MPI_Finalize"));
    drop(universe);
    place.enter(None);
    Ok(summary)
}

enum Line {
    Passed,
    Failed(usize),
    Skipped(String),
}

fn run_one(case: &Case, options: &Options, seed: u64, world: &Comm) -> (Line, u64) {
    let threads = options.threads.max(1);
    let context = Context::new(case.name, world.duplicate(), seed, options.quick, threads);
    let outcome = (case.run)(&context);
    let mine = [i64::from(context.failures() > 0), i64::try_from(context.checked()).unwrap_or(i64::MAX)];
    let all = world.all_reduce(&mine, Op::Sum);
    let line = match outcome {
        _ if all[0] > 0 => Line::Failed(usize::try_from(all[0]).unwrap_or(0)),
        Outcome::Done => Line::Passed,
        Outcome::Skipped(reason) => Line::Skipped(reason),
    };
    (line, u64::try_from(all[1]).unwrap_or(0))
}

fn print_line(name: &str, line: &Line, took: Duration, checked: u64) {
    let seconds = took.as_secs_f64();
    let mib = checked as f64 / (1024.0 * 1024.0);
    match line {
        Line::Passed => println!("ok    {name:<34} {seconds:7.2} s {mib:10.2} MiB checked"),
        Line::Failed(ranks) => println!("FAIL  {name:<34} {seconds:7.2} s wrong on {ranks} ranks"),
        Line::Skipped(reason) => println!("skip  {name:<34} {reason}"),
    }
    // Shown while the next case runs, also through mpirun's pipe.
    let _ = std::io::stdout().flush();
}

/// Why a case can't run, if it can't.
fn missing(case: &Case, options: &Options, ranks: usize) -> Option<String> {
    match case.needs {
        Needs::Threads if options.threads < 2 => Some("needs --threads 2 or more".into()),
        Needs::Huge if !options.huge => Some("needs --huge".into()),
        Needs::TwoRanks | Needs::Huge if ranks < 2 => Some("needs two ranks".into()),
        _ => None,
    }
}

/// The cases whose names equal or begin with one of `only`.
fn choose(only: &[String]) -> Result<Vec<Case>, String> {
    let all = super::cases();
    for wanted in only {
        if !all.iter().any(|case| case.name.starts_with(wanted.as_str())) {
            return Err(format!("there is no check '{wanted}'; --list shows all names"));
        }
    }
    let wanted = |case: &Case| only.iter().any(|name| case.name.starts_with(name.as_str()));
    Ok(all.into_iter().filter(|case| only.is_empty() || wanted(case)).collect())
}

/// Rank 0's seed: the default one differs from process to process.
fn agreed_seed(world: &Comm, seed: u64) -> u64 {
    let mut bytes = seed.to_le_bytes();
    world.broadcast(&mut bytes, 0);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_reads_like_a_test_runner() {
        let summary = Summary { passed: 3, failed: 1, skipped: 0 };
        assert_eq!(summary.to_string(), "checks: 3 passed, 1 failed");
        let summary = Summary { skipped: 2, ..summary };
        assert_eq!(summary.to_string(), "checks: 3 passed, 1 failed, 2 skipped");
    }

    #[test]
    fn names_choose_cases_and_unknown_ones_are_refused() {
        let all = choose(&[]).unwrap().len();
        let sizes = choose(&["sizes/".into()]).unwrap();
        assert!(!sizes.is_empty() && sizes.len() < all);
        let message = choose(&["nonsense".into()]).unwrap_err();
        assert!(message.contains("'nonsense'") && message.contains("--list"));
    }
}
