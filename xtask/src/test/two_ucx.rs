//! A step with two UCX in one process.

use std::env::consts::ARCH;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::tally::{Count, Tally};
use super::ucx::{LIMIT, REGION};
use crate::base::process::{self, last_lines};
use crate::install::stage;
use crate::install::ucx::Ucx;
use crate::lab::region::Region;

/// UCX's libraries that the transport calls.
const LIBRARIES: [&str; 3] = ["libucp.so.0", "libuct.so.0", "libucs.so.0"];

/// Runs it; `stage` is the built tree, or why there is none.
pub fn steps(stage: &Result<PathBuf, String>, tally: &mut Tally) -> Result<()> {
    tally.step("ucx-two", |logs| {
        let stage = stage::built(stage)?;
        two(stage, logs)
    })
}

/// Two UCX with a transport each talk to one another; where parts of two are mixed, the transport says so in one line.
fn two(stage: &Path, logs: &Path) -> Result<Count> {
    let ucx = Ucx::found()?;
    let transport = stage.join(ucx.transport());
    needs_one(&transport)?;
    let (own, copy, part) = (folder(&ucx)?, copy(&ucx, logs)?, logs.join("part"));
    let [first, ..] = LIBRARIES;
    fs::create_dir_all(&part)?;
    fs::copy(own.join(first), part.join(first))?;
    let program = program(&ucx, logs)?;
    let region = Region::create(stage, REGION, 2, true)?;
    let run = |name: &str, mut command: Command| {
        command.env("VMSHM_DEVICE", region.file());
        Ok::<_, anyhow::Error>(process::run(command, name, &logs.join(format!("{name}.log")), LIMIT)?.text)
    };

    let mut two = Command::new(&program);
    two.args([&own, &transport, &copy, &transport]).env("UCX_TLS", "vmshm");
    verdict(&run("two", two)?)?;
    for (place, is_one) in [(&copy, true), (&part, false)] {
        let mut info = Command::new("ucx_info");
        info.arg("-d").env("LD_LIBRARY_PATH", place).env("LD_PRELOAD", &transport);
        let text = run(if is_one { "one" } else { "mixed" }, info)?;
        let lines: Vec<&str> = text.lines().filter(|line| line.contains("vmshm")).collect();
        let is_right = match (is_one, &lines[..]) {
            (true, lines) => lines.iter().any(|line| line.contains("Transport: vmshm")),
            (false, [line]) => line.contains("this transport stays out"),
            (false, _) => false,
        };
        if !is_right {
            bail!("with UCX's libraries from {}, ucx_info says of vmshm: {lines:?}", place.display());
        }
    }
    Ok(Count { passed: 4, ..Count::default() })
}

/// The program that has two UCX.
pub fn program(ucx: &Ucx, logs: &Path) -> Result<PathBuf> {
    fs::create_dir_all(logs)?;
    let (source, program) = (logs.join("two.c"), logs.join("two"));
    fs::write(&source, include_str!("two_ucx.c"))?;
    let mut compile = Command::new("cc");
    compile.arg("-I").arg(ucx.prefix.join("include")).arg("-o").args([&program, &source]).arg("-ldl");
    process::run(compile, "cc", &logs.join("cc.log"), LIMIT)?;
    Ok(program)
}

/// Looks whether it has sent and received all.
pub fn verdict(text: &str) -> Result<()> {
    match text.contains("both have sent and received") {
        true => Ok(()),
        false => bail!("two UCX in one process:\n{}", last_lines(text, 10)),
    }
}

/// Copies the libraries to another folder.
pub fn copy(ucx: &Ucx, logs: &Path) -> Result<PathBuf> {
    let (own, copy) = (folder(ucx)?, logs.join("copy"));
    fs::create_dir_all(&copy)?;
    for name in LIBRARIES {
        fs::copy(own.join(name), copy.join(name))?;
    }
    Ok(copy)
}

/// Of UCX the transport may name one library: others of the system would get into a program that has its UCX elsewhere.
fn needs_one(transport: &Path) -> Result<()> {
    let text = process::capture(Command::new("readelf").arg("-d").arg(transport))?;
    let is_needed =
        |name: &&&str| text.lines().any(|line| line.contains("(NEEDED)") && line.contains(**name));
    let needed: Vec<_> = LIBRARIES.iter().filter(is_needed).collect();
    match needed[..] {
        [_] => Ok(()),
        _ => bail!("{} needs {needed:?}", transport.display()),
    }
}

/// Where the libraries lie.
fn folder(ucx: &Ucx) -> Result<PathBuf> {
    let places = [format!("lib/{ARCH}-linux-gnu"), "lib".to_owned()].map(|name| ucx.prefix.join(name));
    let is_there = |place: &PathBuf| LIBRARIES.iter().all(|name| place.join(name).exists());
    places.into_iter().find(is_there).with_context(|| format!("no UCX in {}", ucx.prefix.display()))
}
