//! Steps that run MPI programs over vmshm across guests.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::accel::Accel;
use crate::guest_mpi;
use crate::host_mpi::Layer;
use crate::host_tests;
use crate::hpcc;
use crate::image::Image;
use crate::lab::{Lab, PAYLOAD, Plan};
use crate::region::Region;
use crate::tally::{Count, Tally};

const LIMIT: Duration = Duration::from_secs(150);

/// What the guests are made of, or why there can be none.
pub type Ground = Result<(PathBuf, Image, Accel), String>;

/// Runs all of them, in two labs: one of two guests and one of three. Returns how many boots were repeated.
pub fn steps(ground: &Ground, tally: &mut Tally) -> Result<usize> {
    let mut repeated = 0;
    tally.step("guests-2", |logs| {
        let (mut lab, _region) = start(ground, 2, logs, &mut repeated)?;
        let mut count = Count { note: note(&lab), ..Count::default() };
        count.add(&check(&mut lab, 1, logs)?);
        count.add(&check(&mut lab, 2, logs)?);
        let program = "NPopenmpi -i -n 1 -u 262144 -o /dev/null";
        let log = logs.join("netpipe.log");
        count.add(&host_tests::netpipe(&guest_mpi::run(&mut lab, 1, Layer::Vmshm, program, &log, LIMIT)?)?);
        count.passed += challenge(&mut lab, logs)?;
        count.add(&spawn(&mut lab, logs)?);
        Ok(count)
    })?;
    tally.step("guests-3", |logs| {
        let (mut lab, _region) = start(ground, 3, logs, &mut repeated)?;
        let mut count = Count { note: note(&lab), ..Count::default() };
        count.add(&check(&mut lab, 1, logs)?);
        Ok(count)
    })?;
    Ok(repeated)
}

fn start(ground: &Ground, guests: usize, logs: &Path, repeated: &mut usize) -> Result<(Lab, Region)> {
    let (stage, image, accel) =
        ground.as_ref().map_err(|why| anyhow::anyhow!("there can be no guests: {why}"))?;
    // Sparse: the test must run where 8 GiB are not free.
    let region = Region::create(stage, "8G", guests, true)?;
    let args = (0..guests).map(|section| region.qemu_args(section)).collect::<Result<_>>()?;
    let plan = Plan { image, payload: stage, accel: *accel, region: args, log_dir: logs };
    let lab = Lab::start(&plan)?;
    *repeated += lab.repeated_boots;
    Ok((lab, region))
}

fn note(lab: &Lab) -> String {
    match lab.repeated_boots {
        0 => String::new(),
        times => format!("{times} failed boot was tried once more"),
    }
}

fn check(lab: &mut Lab, ranks: usize, logs: &Path) -> Result<Count> {
    let log = logs.join(format!("check-{ranks}-ranks-each.log"));
    let program = "vmshm-mpi-check --quick";
    let text = guest_mpi::run(lab, ranks, Layer::Vmshm, program, &log, LIMIT)?;
    match Count::of_checker(&text) {
        Some(count) => Ok(count),
        None => bail!("vmshm-mpi-check printed no closing line; log: {}", log.display()),
    }
}

fn challenge(lab: &mut Lab, logs: &Path) -> Result<usize> {
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
    hpcc::verify(&guest_mpi::run(lab, 1, Layer::Vmshm, program, &log, LIMIT)?)
}

fn spawn(lab: &mut Lab, logs: &Path) -> Result<Count> {
    let program = format!("{PAYLOAD}/bin/vmshm-mpi-spawn --children 2");
    guest_mpi::run(lab, 1, Layer::Vmshm, &program, &logs.join("spawn.log"), LIMIT)?;
    Ok(Count::one())
}
