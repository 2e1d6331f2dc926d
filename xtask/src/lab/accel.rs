//! Which accelerator runs the guests: KVM if it really boots a stock kernel here, else emulation (TCG).

use std::fmt;
use std::fs::OpenOptions;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::ValueEnum;

use super::image::Image;
use crate::base::cleanup;
use crate::base::process::{Running, last_lines, mortal};

/// Marker that the first program of a guest prints.
pub const USER_SPACE: &str = "vmshm-guest: user space reached";

/// Real KVM needs about two seconds; a KVM that only pretends never arrives.
const TRIAL: Duration = Duration::from_secs(20);

/// How QEMU runs a guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// By the processor.
    Kvm,
    /// By translation: works everywhere, and its times mean nothing.
    Tcg,
}

/// The user's choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Wish {
    /// KVM if a trial boot works, else TCG.
    Auto,
    /// KVM without a trial.
    Kvm,
    /// TCG.
    Tcg,
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Accel::Kvm => "KVM",
            Accel::Tcg => "TCG (emulation)",
        })
    }
}

impl Accel {
    /// QEMU's arguments for it.
    pub fn qemu_args(self) -> [&'static str; 4] {
        match self {
            Accel::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Accel::Tcg => ["-accel", "tcg,thread=multi", "-cpu", "max"],
        }
    }

    /// How much longer than on real hardware things may take.
    pub fn patience(self) -> u32 {
        match self {
            Accel::Kvm => 1,
            Accel::Tcg => 4,
        }
    }
}

/// Finds the accelerator, saying which and why.
pub fn choose(wish: Wish, image: &Image, log_dir: &Path) -> Result<Accel> {
    let (accel, why) = match wish {
        Wish::Kvm => (Accel::Kvm, "as asked".to_owned()),
        Wish::Tcg => (Accel::Tcg, "as asked".to_owned()),
        Wish::Auto => match try_kvm(image, log_dir)? {
            None => (Accel::Kvm, "a trial boot worked".to_owned()),
            Some(why) => (Accel::Tcg, why),
        },
    };
    println!("Guests run by {accel}: {why}.");
    Ok(accel)
}

/// Boots the kernel alone on KVM; `None` if it reaches user space, else why not.
fn try_kvm(image: &Image, log_dir: &Path) -> Result<Option<String>> {
    if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        return Ok(Some(format!("/dev/kvm cannot be opened ({error})")));
    }
    let mut command = mortal("qemu-system-x86_64");
    command
        .args(Accel::Kvm.qemu_args())
        .args(["-nodefaults", "-display", "none", "-no-reboot"])
        .args(["-m", "256M", "-serial", "stdio"])
        .arg("-kernel")
        .arg(&image.kernel)
        .arg("-initrd")
        .arg(&image.initramfs)
        .args(["-append", "console=ttyS0 quiet panic=-1"]);
    trial(command, "QEMU with KVM", &log_dir.join("kvm-trial.log"))
}

/// The same under our own VMM, which `tool` has.
pub fn try_ours(image: &Image, tool: &Path, log_dir: &Path) -> Result<Option<String>> {
    let mut command = mortal(tool);
    command.args(["vm", "run", "--memory", "256M"]).arg("--kernel").arg(&image.kernel);
    command.arg("--initrd").arg(&image.initramfs).args(["--append", "console=ttyS0 quiet panic=-1"]);
    trial(command, "our VMM", &log_dir.join("vmm-trial.log"))
}

/// Boots a kernel; `None` if it reaches user space, else why not.
fn trial(command: Command, what: &str, log: &Path) -> Result<Option<String>> {
    let mut running = Running::start(command, what, log)?;
    let begin = Instant::now();
    while begin.elapsed() < TRIAL {
        cleanup::check()?;
        if running.text().contains(USER_SPACE) {
            return Ok(None);
        }
        if let Some(status) = running.poll()? {
            let said = last_lines(&running.text(), 1);
            return Ok(Some(format!("a trial boot of {what} ended with {status} ({})", said.trim())));
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(Some(format!(
        "/dev/kvm exists, but a stock kernel did not reach user space on it under {what} within {} s",
        TRIAL.as_secs()
    )))
}
