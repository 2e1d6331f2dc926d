//! Steps that run MPI programs over vmshm across guests.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};

use super::tally::{Count, Tally};
use super::{host, mpich};
use crate::install::ucx::Ucx;
use crate::lab::accel::Accel;
use crate::lab::image::Image;
use crate::lab::{Lab, PAYLOAD, Plan};
use crate::mpi::guest_mpi;
use crate::mpi::host_mpi::Layer;
use crate::mpi::hpcc;

const LIMIT: Duration = Duration::from_secs(150);

/// Parts of the guests, or why there can be none.
pub type Prepared = Result<(PathBuf, Image, Accel), String>;

/// Guests that are booted by the first step which needs them, and then serve the others.
#[derive(Debug)]
pub struct Shared<'a> {
    prepared: &'a Prepared,
    boot: fn(&Prepared, &Path) -> Result<Lab>,
    lab: Option<Result<Lab, String>>,
}

impl<'a> Shared<'a> {
    /// Guests that `boot` will start.
    pub fn new(prepared: &'a Prepared, boot: fn(&Prepared, &Path) -> Result<Lab>) -> Self {
        Self { prepared, boot, lab: None }
    }

    /// The guests; the first call boots them.
    pub fn lab(&mut self, logs: &Path) -> Result<&mut Lab> {
        let lab = self
            .lab
            .get_or_insert_with(|| (self.boot)(self.prepared, logs).map_err(|error| format!("{error:#}")));
        lab.as_mut().map_err(|why| anyhow::anyhow!("there are no guests: {why}"))
    }

    /// How many boots were repeated.
    pub fn repeated_boots(&self) -> usize {
        self.lab.iter().flatten().map(|lab| lab.repeated_boots).sum()
    }
}

fn start(prepared: &Prepared, guests: usize, logs: &Path) -> Result<Lab> {
    let (stage, image, accel) = prepared.as_ref().map_err(|why| anyhow::anyhow!("{why}"))?;
    Lab::start(&Plan { image, payload: stage, accel: *accel, guests, log_dir: logs })
}

/// Runs all of them, in two labs: one of two guests and one of three. Returns how many boots were repeated.
pub fn steps(prepared: &Prepared, tally: &mut Tally) -> Result<usize> {
    let mut two = Shared::new(prepared, |prepared, logs| start(prepared, 2, logs));
    if tally.for_release("guests-2-check") {
        tally.step("guests-2-check", |logs| check(two.lab(logs)?, 2, logs))?;
    }
    tally.step("guests-2-check-4", |logs| check(two.lab(logs)?, 4, logs))?;
    tally.step("guests-2-netpipe", |logs| {
        let program = "NPopenmpi -i -n 1 -u 262144 -o /dev/null";
        let log = logs.join("netpipe.log");
        let text = guest_mpi::run(two.lab(logs)?, 2, Layer::Vmshm, program, &log, LIMIT)?;
        host::netpipe(&text)
    })?;
    tally.step("guests-2-hpcc", |logs| challenge(two.lab(logs)?, logs))?;
    tally.step("guests-2-spawn", |logs| spawn(two.lab(logs)?, logs))?;
    tally.step("guests-2-mpich", |logs| mpich::across(two.lab(logs)?, &Ucx::found()?.series, logs))?;
    let mut repeated = two.repeated_boots();
    // Their memory and processors are for the next lab.
    drop(two);
    let mut three = Shared::new(prepared, |prepared, logs| start(prepared, 3, logs));
    tally.step("guests-3-check", |logs| check(three.lab(logs)?, 3, logs))?;
    repeated += three.repeated_boots();
    Ok(repeated)
}

fn check(lab: &mut Lab, ranks: usize, logs: &Path) -> Result<Count> {
    let log = logs.join(format!("check-{ranks}.log"));
    let program = format!("{PAYLOAD}/bin/vmshm-mpi-check --quick");
    let text = guest_mpi::run(lab, ranks, Layer::Vmshm, &program, &log, LIMIT)?;
    match Count::of_checker(&text) {
        Some(count) => Ok(count),
        None => bail!("vmshm-mpi-check printed no closing line; log: {}", log.display()),
    }
}

fn challenge(lab: &mut Lab, logs: &Path) -> Result<Count> {
    // Rank 0 reads the input and writes the output, in guest 0; the wrapper brings both along.
    let input = hpcc::input(100, 1, 2);
    let program =
        "sh -c 'cd /tmp && hpcc && if [ \"$OMPI_COMM_WORLD_RANK\" = 0 ]; then cat hpccoutf.txt; fi'";
    let answer =
        lab.run(0, &format!("rm -f /tmp/hpccoutf.txt\ncat > /tmp/hpccinf.txt <<'END'\n{input}END\n"), LIMIT)?;
    if answer.code != 0 {
        bail!("cannot write hpcc's input: {}", answer.text);
    }
    let log = logs.join("hpcc.log");
    let text = guest_mpi::run(lab, 2, Layer::Vmshm, program, &log, LIMIT)?;
    Ok(Count { passed: hpcc::verify(&text)?, ..Count::default() })
}

/// One rank in guest 0 starts another, for which only guest 1 has a place.
///
/// Children in several guests at once fail to start in Open MPI 4.1.4, over TCP too.
fn spawn(lab: &mut Lab, logs: &Path) -> Result<Count> {
    let program = format!("{PAYLOAD}/bin/vmshm-mpi-spawn --children 1");
    guest_mpi::run(lab, 1, Layer::Vmshm, &program, &logs.join("spawn.log"), LIMIT)?;
    Ok(Count::one())
}
