//! UCX programs that sleep while they wait, in guests that have the driver.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::guest::{LIMIT, check};
use super::jobs::waiting;
use crate::base::process;
use crate::install::ucx::Ucx;
use crate::lab::{Lab, PAYLOAD};
use crate::test::tally::Count;

/// Where the program lies in the payload.
const PROGRAM: &str = "bin/ucx-wait";

/// Messages in turn after the long wait.
const ROUNDS: usize = 100;

/// Builds the program.
pub fn build(stage: &Path, logs: &Path) -> Result<()> {
    fs::create_dir_all(logs)?;
    let source = logs.join("ucx_wait.c");
    fs::write(&source, include_str!("ucx_wait.c"))?;
    let prefix = Ucx::found()?.prefix;
    let mut command = Command::new("cc");
    command.arg("-O1").arg("-o").args([&stage.join(PROGRAM), &source]);
    command.arg("-I").arg(prefix.join("include")).arg("-L").arg(prefix.join("lib"));
    command.args(["-lucp", "-lucs"]);
    process::run(command, "cc", &logs.join("ucx-wait.log"), LIMIT)?;
    Ok(())
}

/// A wait of some seconds, and short ones, by the doorbell's descriptor and by polling.
pub fn sleep(lab: &mut Lab, logs: &Path) -> Result<Count> {
    let mut figures = Vec::new();
    let mut count = Count::default();
    for (mode, port, setting) in [("poll", 4701, ""), ("sleep", 4702, "export UCX_VMSHM_SLEEP=y")] {
        let texts = run(lab, mode, port, setting, logs)?;
        let right = format!("{} messages are right, ", ROUNDS + 2);
        for text in &texts {
            let sleeps = text.lines().find_map(|line| line.strip_prefix(&right)?.split(' ').next());
            let sleeps: u32 = sleeps.with_context(|| format!("{mode}: {text}"))?.parse()?;
            check(&mut count, (sleeps > 0) == (mode == "sleep"), || format!("{mode}: {sleeps} sleeps"));
        }
        figures.push(waiting(&texts[0]).with_context(|| format!("{mode}: {}", texts[0]))?);
    }
    let [(_, spinning), (waited, sleeping)] = figures[..] else { unreachable!("two runs") };
    count.note = format!(
        "processor time of a wait of {waited:.1} s: {sleeping:.2} s asleep, {spinning:.2} s spinning"
    );
    Ok(count)
}

/// Runs the program in both guests; what they printed.
fn run(lab: &mut Lab, mode: &str, port: u16, setting: &str, logs: &Path) -> Result<[String; 2]> {
    fs::create_dir_all(logs)?;
    let series = Ucx::found()?.series;
    for (guest, host) in [(0, ""), (1, "vm0")] {
        // As docs/ucx.md tells users to do it.
        let script = format!(
            "settings=$({PAYLOAD}/bin/vmshm env --ucx {series}) || exit\neval \"$settings\"\n{setting}\n\
             export UCX_TLS=vmshm,self\n{PAYLOAD}/{PROGRAM} {mode} {port} 5 {ROUNDS} {host}\n"
        );
        lab.send(guest, &script)?;
    }
    // Both are waited for, so that the guests obey afterwards.
    let answers = [lab.receive(0, LIMIT), lab.receive(1, LIMIT)];
    let mut texts = [const { String::new() }; 2];
    for (guest, answer) in answers.into_iter().enumerate() {
        let answer = answer?;
        fs::write(logs.join(format!("{mode}-vm{guest}.log")), &answer.text)?;
        ensure!(answer.code == 0, "{mode}, guest {guest}: {}", answer.text);
        texts[guest] = answer.text;
    }
    Ok(texts)
}
