//! MPI jobs across the guests of a lab, started in guest 0 as a user would.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::host_mpi::{AS_ROOT, Layer};
use crate::base::process::last_lines;
use crate::lab::{Guests, PAYLOAD};

/// The ordinary user that the guests have, besides root.
pub const USER: &str = "mpi";

/// What starts the processes of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launcher {
    /// Open MPI's own launcher, by ssh.
    Mpirun,
    /// Slurm, by PMIx.
    Srun,
}

/// An MPI job.
#[derive(Debug, Clone)]
pub struct Job<'a> {
    /// What starts its processes.
    pub launcher: Launcher,
    /// Ranks, dealt to the guests in turn.
    pub ranks: usize,
    /// The guests that take part; empty: all.
    pub guests: &'a [usize],
    /// Layer that they talk over.
    pub layer: Layer,
    /// The program, with its arguments.
    pub program: &'a str,
    /// Further arguments of mpirun, for Slurm none but Open MPI's parameters.
    pub arguments: &'a str,
    /// Run by [`USER`], not by root.
    pub as_user: bool,
}

impl<'a> Job<'a> {
    /// A job over vmshm.
    pub fn new(ranks: usize, program: &'a str) -> Self {
        let (launcher, layer) = (Launcher::Mpirun, Layer::Vmshm);
        Self { launcher, ranks, guests: &[], layer, program, arguments: "", as_user: false }
    }

    /// The shell script that runs it in guest 0 of so many.
    pub fn script(&self, all: usize) -> String {
        let all: Vec<usize> = (0..all).collect();
        let guests = if self.guests.is_empty() { &all } else { self.guests };
        let mut script = String::new();
        if !self.as_user {
            for (name, value) in AS_ROOT {
                script += &format!("export {name}={value}\n");
            }
        }
        if self.layer.is_ours() {
            // As the README tells users to do it.
            script += &format!("settings=$({PAYLOAD}/bin/vmshm env) || exit\neval \"$settings\"\n");
        }
        script += "cd /tmp\n";
        script += &match self.launcher {
            Launcher::Mpirun => self.mpirun(guests),
            Launcher::Srun => self.srun(guests),
        };
        if !self.as_user {
            return script;
        }
        format!(
            "cat > /tmp/job.sh <<'JOB'\n{script}JOB\n\
             setpriv --reuid={USER} --regid={USER} --init-groups env HOME=/home/{USER} USER={USER} sh /tmp/job.sh\n"
        )
    }

    /// Open MPI's parameters, as mpirun takes them.
    fn parameters(&self, guests: &[usize]) -> String {
        let yielding = if self.ranks > guests.len() { "--mca mpi_yield_when_idle 1 " } else { "" };
        format!("{yielding}{} {}", self.layer.mpirun_args().join(" "), self.arguments)
    }

    fn mpirun(&self, guests: &[usize]) -> String {
        // Exactly as many places as needed, at least one a guest: what a rank spawns goes where a place is free.
        let places = self.ranks.div_ceil(guests.len());
        let hosts: Vec<String> = guests.iter().map(|k| format!("vm{k}:{places}")).collect();
        format!(
            "mpirun -np {} --host {} --map-by node --bind-to none --mca btl_tcp_if_include eth0 \
             --mca oob_tcp_if_include eth0 {} {}\n",
            self.ranks,
            hosts.join(","),
            self.parameters(guests),
            self.program,
        )
    }

    fn srun(&self, guests: &[usize]) -> String {
        let hosts: Vec<String> = guests.iter().map(|k| format!("vm{k}")).collect();
        format!(
            "{}srun --mpi=pmix --nodelist={} --ntasks={} --distribution=cyclic --overcommit {}\n",
            as_variables(&self.parameters(guests)),
            hosts.join(","),
            self.ranks,
            self.program,
        )
    }
}

/// Parameters of mpirun's command line as lines of a shell.
fn as_variables(parameters: &str) -> String {
    let words: Vec<&str> = parameters.split_whitespace().collect();
    let line = |words: &[&str]| match words {
        ["--mca", name, value] => Some(format!("export OMPI_MCA_{name}={value}\n")),
        _ => None,
    };
    words.chunks(3).filter_map(line).collect()
}

/// Runs `program` (with arguments) with so many ranks, dealt to the guests in turn; returns what it printed.
pub fn run(
    lab: &mut dyn Guests,
    ranks: usize,
    layer: Layer,
    program: &str,
    log: &Path,
    limit: Duration,
) -> Result<String> {
    run_job(lab, &Job { layer, ..Job::new(ranks, program) }, log, limit)
}

/// Runs a job; returns what it printed.
pub fn run_job(lab: &mut dyn Guests, job: &Job<'_>, log: &Path, limit: Duration) -> Result<String> {
    let guests = lab.size();
    let what = format!("{} over {} across {guests} guests", job.program, job.layer.name());
    run_script(lab, &what, &job.script(guests), log, limit)
}

/// Runs a shell script in guest 0, by which a user would start a job; returns what it printed.
pub fn run_script(
    lab: &mut dyn Guests,
    what: &str,
    script: &str,
    log: &Path,
    limit: Duration,
) -> Result<String> {
    let answer = lab.run(0, script, limit);
    let text = match &answer {
        Ok(answer) => answer.text.clone(),
        Err(error) => format!("{error:#}\n"),
    };
    if let Some(dir) = log.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::write(log, format!("{script}\n{text}")).with_context(|| format!("cannot write {}", log.display()))?;
    let answer = answer?;
    if answer.code != 0 {
        bail!(
            "{what} ended with exit code {}; log: {}\n{}",
            answer.code,
            log.display(),
            last_lines(&text, 15)
        );
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_become_variables() {
        let job = Job { launcher: Launcher::Srun, arguments: "--mca osc vmshm", ..Job::new(4, "program") };
        let script = job.script(2);
        for line in [
            "export OMPI_MCA_mpi_yield_when_idle=1",
            "export OMPI_MCA_btl=vmshm,self",
            "export OMPI_MCA_osc=vmshm",
            "srun --mpi=pmix --nodelist=vm0,vm1 --ntasks=4 --distribution=cyclic --overcommit program",
        ] {
            assert!(script.lines().any(|found| found == line), "{line} is not in {script}");
        }
    }
}
