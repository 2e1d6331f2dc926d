//! Parts of the guests of these steps, and their start.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::guest::{LIMIT, must};
use super::ucx;
use crate::base::workspace::Workspace;
use crate::install;
use crate::kernel::kmod;
use crate::kernel::{self, Kernel};
use crate::lab::accel::Accel;
use crate::lab::image::Image;
use crate::lab::{Lab, PAYLOAD, Plan, Sharing};

/// Where the module lies in the payload.
pub const MODULE: &str = "driver/vmshm.ko";

/// Parts of the guests.
#[derive(Debug)]
pub struct Parts {
    pub stage: PathBuf,
    image: Image,
    accel: Accel,
    kernel: Kernel,
}

impl Parts {
    /// The same with another root file system.
    pub fn with_root(self, root: &Path) -> Self {
        Self { image: self.kernel.under(root), ..self }
    }
}

/// Parts of the guests, or why there can be none.
pub type Prepared = Result<Parts, String>;

/// Fetches the kernel, builds the driver for it and lays it beside everything else in `stage`.
pub fn prepare(
    workspace: &Workspace,
    stage: &Path,
    image: &Image,
    accel: Accel,
    logs: &Path,
) -> Result<Parts> {
    let kernel = kernel::stock(workspace, logs)?;
    let module = kmod::module(workspace, logs)?;
    ensure!(
        module.release == kernel.release,
        "the driver is for {}, the guests run {}",
        module.release,
        kernel.release
    );
    install::place(&module.file, &stage.join(MODULE), 0o644)?;
    ucx::build(stage, logs)?;
    Ok(Parts { stage: stage.to_owned(), image: kernel.under(&image.root), accel, kernel })
}

/// Two guests with doorbells, booted by the first step which needs them.
#[derive(Debug)]
pub struct Pair<'a> {
    prepared: &'a Prepared,
    lab: Option<Result<Lab, String>>,
}

impl<'a> Pair<'a> {
    pub fn new(prepared: &'a Prepared) -> Self {
        Self { prepared, lab: None }
    }

    pub fn lab(&mut self, logs: &Path) -> Result<&mut Lab> {
        let lab = self.lab.get_or_insert_with(|| {
            let sharing = Sharing { doorbell: true, spare: 1, ..Sharing::default() };
            start(self.prepared, 2, &sharing, logs).map_err(|error| format!("{error:#}"))
        });
        lab.as_mut().map_err(|why| anyhow::anyhow!("there are no guests: {why}"))
    }

    /// How many boots were repeated.
    pub fn repeated_boots(&self) -> usize {
        self.lab.iter().flatten().map(|lab| lab.repeated_boots).sum()
    }

    pub fn release(&self) -> Result<String> {
        self.prepared
            .as_ref()
            .map(|parts| parts.kernel.release.clone())
            .map_err(|why| anyhow::anyhow!("{why}"))
    }
}

pub fn start(prepared: &Prepared, guests: usize, sharing: &Sharing, logs: &Path) -> Result<Lab> {
    let parts = prepared.as_ref().map_err(|why| anyhow::anyhow!("{why}"))?;
    let plan = Plan { image: &parts.image, payload: &parts.stage, accel: parts.accel, guests, log_dir: logs };
    let mut lab = Lab::sharing(&plan, sharing)?;
    for guest in 0..guests {
        // As a distribution does at boot: here with the rule that we install.
        must(
            &mut lab,
            guest,
            &format!(
                "set -e\n\
                 mount -t debugfs debugfs /sys/kernel/debug\n\
                 mount -t tracefs tracefs /sys/kernel/tracing\n\
                 mkdir -p /run/udev/rules.d\n\
                 cp {PAYLOAD}/lib/udev/rules.d/60-vmshm.rules /run/udev/rules.d\n\
                 /lib/systemd/systemd-udevd --daemon\n\
                 insmod {PAYLOAD}/{MODULE}\n\
                 udevadm settle --timeout=30\n"
            ),
            LIMIT,
        )
        .context("the driver cannot be loaded")?;
    }
    Ok(lab)
}
