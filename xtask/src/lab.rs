//! Some guests on one machine: they share a region and a network of their own, which nobody else can reach.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::accel::Accel;
use crate::guest::{Answer, Guest, Spec};
use crate::image::Image;
use crate::process;
use crate::progress;
use crate::region::Region;

/// Where the guests see the payload.
pub const PAYLOAD: &str = "/opt/vmshm";

/// Larger than 4 GiB, so that the guests' BAR lies above 4 GiB, as it should.
const REGION: &str = "8G";
const PROCESSORS: usize = 1;
const MEMORY: usize = 1024;
const BOOT: Duration = Duration::from_secs(60);

/// What a lab is built from.
#[derive(Debug)]
pub struct Plan<'a> {
    /// Kernel and root file system.
    pub image: &'a Image,
    /// The built tree, whose tool makes the region, and which the guests see under [`PAYLOAD`].
    pub payload: &'a Path,
    /// How QEMU runs the guests.
    pub accel: Accel,
    /// How many guests.
    pub guests: usize,
    /// Where consoles and QEMU's messages go.
    pub log_dir: &'a Path,
}

/// Running guests. All are killed, and their files and their region removed, when this value is dropped.
#[derive(Debug)]
pub struct Lab {
    // Before the region, which cannot be destroyed while a guest maps it.
    guests: Vec<Guest>,
    _region: Region,
    /// How many boots were tried once more.
    pub repeated_boots: usize,
    accel: Accel,
    _files: TempDir,
}

impl Lab {
    /// Boots the guests. A failed boot is tried once more, and counted.
    pub fn start(plan: &Plan<'_>) -> Result<Self> {
        let files = tempfile::Builder::new().prefix("vmshm-lab-").tempdir()?;
        fs::create_dir_all(plan.log_dir)?;
        let payload = payload_drive(plan.payload, files.path())?;
        // Sparse: guests must run where 8 GiB are not free, and touch only a little of them.
        let region = Region::create(plan.payload, REGION, plan.guests, true)?;
        let mut region_args = Vec::new();
        for section in 0..plan.guests {
            region_args.push(region.qemu_args(section)?);
        }
        let boot = || boot_all(plan, &region_args, &payload, files.path());
        progress::during(&format!("booting {} guests by {}", plan.guests, plan.accel), |_| {
            let mut repeated_boots = 0;
            let guests = match boot() {
                Ok(guests) => guests,
                Err(error) => {
                    crate::cleanup::check()?;
                    eprintln!("A boot failed and is tried once more: {error:#}");
                    repeated_boots += 1;
                    boot().context("the second boot failed too")?
                }
            };
            Ok((guests, repeated_boots))
        })
        .map(|(guests, repeated_boots)| Self {
            guests,
            _region: region,
            repeated_boots,
            accel: plan.accel,
            _files: files,
        })
    }

    /// How many guests there are.
    pub fn size(&self) -> usize {
        self.guests.len()
    }

    /// Runs a script in one guest; `limit` is for real hardware and stretched for emulation.
    pub fn run(&mut self, guest: usize, script: &str, limit: Duration) -> Result<Answer> {
        let limit = limit * self.accel.patience();
        self.guests.get_mut(guest).with_context(|| format!("there is no guest {guest}"))?.run(script, limit)
    }
}

fn boot_all(
    plan: &Plan<'_>,
    region_args: &[Vec<String>],
    payload: &Path,
    sockets: &Path,
) -> Result<Vec<Guest>> {
    let count = plan.guests;
    let mut guests = Vec::new();
    for (number, region) in region_args.iter().enumerate() {
        let mut devices = network(number, count, sockets);
        devices.extend(region.iter().cloned());
        guests.push(Guest::start(&Spec {
            number,
            guests: count,
            image: plan.image,
            payload,
            accel: plan.accel,
            processors: PROCESSORS,
            memory: MEMORY,
            devices,
            sockets,
            log_dir: plan.log_dir,
        })?);
    }
    for guest in &mut guests {
        guest.wait_ready(BOOT * plan.accel.patience())?;
    }
    Ok(guests)
}

/// QEMU's arguments for the guest's network card: guest 0 is the hub, with one wire to each other guest.
fn network(number: usize, count: usize, sockets: &Path) -> Vec<String> {
    let end = |from: usize, to: usize| {
        let path = sockets.join(format!("wire-{from}-{to}"));
        path.display().to_string().replace(',', ",,")
    };
    let wire = |id: &str, from: usize, to: usize| {
        format!(
            "dgram,id={id},local.type=unix,local.path={},remote.type=unix,remote.path={}",
            end(from, to),
            end(to, from)
        )
    };
    let mut args = Vec::new();
    let mut add = |option: &str, value: String| args.extend([option.to_owned(), value]);
    if number == 0 {
        add("-netdev", "hubport,id=net,hubid=0".into());
        for other in 1..count {
            // A socket file of an earlier try would be in the way.
            let _ = fs::remove_file(sockets.join(format!("wire-0-{other}")));
            add("-netdev", wire(&format!("wire{other}"), 0, other));
            add("-netdev", format!("hubport,id=port{other},hubid=0,netdev=wire{other}"));
        }
    } else {
        let _ = fs::remove_file(sockets.join(format!("wire-{number}-0")));
        add("-netdev", wire("net", number, 0));
    }
    add("-device", format!("virtio-net-pci,netdev=net,mac=52:54:00:77:00:{number:02x}"));
    args
}

/// Puts a directory into a small drive; much faster than copying files into a running guest.
fn payload_drive(payload: &Path, dir: &Path) -> Result<PathBuf> {
    let drive = dir.join("payload.ext4");
    let used = process::capture(Command::new("du").arg("-sm").arg(payload))?;
    let used: u64 =
        used.split_whitespace().next().and_then(|s| s.parse().ok()).context("du printed no size")?;
    let mut command = Command::new("mke2fs");
    // Debian keeps mke2fs where only root's PATH looks.
    let path = std::env::var("PATH").unwrap_or_default();
    command
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d"])
        .arg(payload)
        .arg(&drive)
        .arg(format!("{}M", used + used / 4 + 16));
    process::capture(&mut command).context("cannot make the guests' payload drive")?;
    Ok(drive)
}
