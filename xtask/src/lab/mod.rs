//! Some guests on one machine: they share a region and a network of their own, which nobody else can reach.

pub mod accel;
mod guest;
pub mod image;
mod qmp;
pub mod region;
pub mod set;

pub use guest::Answer;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::base::process::{self, Running};
use crate::base::progress;
use accel::Accel;
use guest::{Guest, Spec};
use image::Image;
use qmp::Qmp;
use region::Region;

/// Where the guests see the payload.
pub const PAYLOAD: &str = "/opt/vmshm";

/// Larger than 4 GiB, so that the guests' BAR lies above 4 GiB, as it should.
const REGION: &str = "8G";
const PROCESSORS: usize = 1;
const MEMORY: usize = 1024;
const BOOT: Duration = Duration::from_secs(60);
const UNPLUG: Duration = Duration::from_secs(15);

/// Guests that obey.
pub trait Guests {
    /// How many there are.
    fn size(&self) -> usize;

    /// Runs a script as root in one of them; `limit` is for real hardware.
    fn run(&mut self, guest: usize, script: &str, limit: Duration) -> Result<Answer>;
}

impl Guests for Lab {
    fn size(&self) -> usize {
        Self::size(self)
    }

    fn run(&mut self, guest: usize, script: &str, limit: Duration) -> Result<Answer> {
        Self::run(self, guest, script, limit)
    }
}

/// Parts of a lab.
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

/// How the guests get the region.
#[derive(Debug)]
pub struct Sharing {
    /// Bytes of the region, as `8G`.
    pub size: &'static str,
    /// A device with doorbells, by way of the server, that can be unplugged.
    pub doorbell: bool,
    /// Sections of the region that no guest has.
    pub spare: usize,
    /// Guests, the last ones, that do not get the region: as on another host.
    pub outsiders: usize,
    /// Further arguments for each guest's QEMU.
    pub extra: Vec<String>,
}

impl Default for Sharing {
    fn default() -> Self {
        Self { size: REGION, doorbell: false, spare: 0, outsiders: 0, extra: Vec::new() }
    }
}

/// The name that QEMU knows the shared device by, where it can be unplugged.
const DEVICE: &str = "shared";
/// The slot that it is plugged into.
const PORT: &str = "shared-port";

/// Running guests. All are killed, and their files and their region removed, when this value is dropped.
#[derive(Debug)]
pub struct Lab {
    // Before the region, which cannot be destroyed while a guest maps it.
    guests: Vec<Option<Guest>>,
    _server: Option<Running>,
    region: Region,
    /// QEMU's arguments for the region, of each guest.
    region_args: Vec<Vec<String>>,
    /// How many boots were tried once more.
    pub repeated_boots: usize,
    accel: Accel,
    _files: TempDir,
}

impl Lab {
    /// Boots the guests. A failed boot is tried once more, and counted.
    pub fn start(plan: &Plan<'_>) -> Result<Self> {
        Self::sharing(plan, &Sharing::default())
    }

    /// Boots guests that get the region in a certain way.
    pub fn sharing(plan: &Plan<'_>, sharing: &Sharing) -> Result<Self> {
        let files = tempfile::Builder::new().prefix("vmshm-lab-").tempdir()?;
        fs::create_dir_all(plan.log_dir)?;
        let payload = payload_drive(plan.payload, files.path())?;
        // Sparse: guests must run where 8 GiB are not free, and touch only a little of them.
        let members = plan.guests - sharing.outsiders;
        let region = Region::create(plan.payload, sharing.size, members + sharing.spare, true)?;
        let mut region_args = vec![Vec::new(); plan.guests];
        for (section, region_args) in region_args.iter_mut().take(members).enumerate() {
            let mut args = region.qemu_args(section, sharing.doorbell)?;
            if sharing.doorbell {
                make_removable(&mut args)?;
            }
            *region_args = args;
        }
        let server = match sharing.doorbell {
            true => Some(region.serve(&plan.log_dir.join("server.log"))?),
            false => None,
        };
        let boot = || boot_all(plan, &region_args, &sharing.extra, &payload, files.path());
        progress::during(&format!("booting {} guests by {}", plan.guests, plan.accel), |_| {
            let mut repeated_boots = 0;
            let guests = match boot() {
                Ok(guests) => guests,
                Err(error) => {
                    crate::base::cleanup::check()?;
                    eprintln!("A boot failed and is tried once more: {error:#}");
                    repeated_boots += 1;
                    boot().context("the second boot failed too")?
                }
            };
            Ok((guests, repeated_boots))
        })
        .map(|(guests, repeated_boots)| Self {
            guests: guests.into_iter().map(Some).collect(),
            _server: server,
            region,
            region_args,
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
        self.guest(guest)?.run(script, limit)
    }

    /// Starts a script in one guest; [`Lab::receive`] waits for its end.
    pub fn send(&mut self, guest: usize, script: &str) -> Result<()> {
        self.guest(guest)?.send(script)
    }

    /// Waits for the end of the script that was sent; `limit` as for [`Lab::run`].
    pub fn receive(&mut self, guest: usize, limit: Duration) -> Result<Answer> {
        let limit = limit * self.accel.patience();
        self.guest(guest)?.receive(limit)
    }

    /// QEMU's monitor of one guest.
    pub fn monitor(&mut self, guest: usize) -> Result<&mut Qmp> {
        Ok(self.guest(guest)?.monitor())
    }

    /// The region that the guests share.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// Ends one guest as a power failure would.
    pub fn kill(&mut self, guest: usize) {
        if let Some(guest) = self.guests.get_mut(guest) {
            *guest = None;
        }
    }

    /// Takes the shared device from a running guest, which must let go of it.
    pub fn unplug(&mut self, guest: usize) -> Result<()> {
        let limit = UNPLUG * self.accel.patience();
        let monitor = self.monitor(guest)?;
        monitor.execute("device_del", json!({ "id": DEVICE }))?;
        monitor.wait_event("DEVICE_DELETED", Some(("device", DEVICE)), limit)?;
        // Its connection to the server stays else, and the server believes that the guest is still there.
        monitor.execute("chardev-remove", json!({ "id": "vmshm" }))?;
        Ok(())
    }

    /// Gives the shared device back to a running guest.
    pub fn plug(&mut self, guest: usize) -> Result<()> {
        let args = self.region_args.get(guest).with_context(|| format!("there is no guest {guest}"))?;
        let (chardev, device) = (option(args, "-chardev")?, option(args, "-device")?);
        let path = chardev.get("path").context("the chardev has no path")?.clone();
        let monitor = self.monitor(guest)?;
        let address = json!({ "type": "unix", "data": { "path": path } });
        let backend = json!({ "type": "socket", "data": { "addr": address, "server": false } });
        monitor.execute("chardev-add", json!({ "id": "vmshm", "backend": backend }))?;
        monitor.execute("device_add", Value::Object(device))?;
        Ok(())
    }

    fn guest(&mut self, guest: usize) -> Result<&mut Guest> {
        let found = self.guests.get_mut(guest).with_context(|| format!("there is no guest {guest}"))?;
        found.as_mut().with_context(|| format!("guest {guest} was killed"))
    }
}

/// Puts the shared device where it can be unplugged.
fn make_removable(args: &mut Vec<String>) -> Result<()> {
    let device = args.iter_mut().find(|arg| arg.starts_with("ivshmem-")).context("no ivshmem device")?;
    *device += &format!(",id={DEVICE},bus={PORT}");
    // The room for its memory stays reserved while it is unplugged.
    let port = format!("pcie-root-port,id={PORT},chassis=1,slot=1,pref64-reserve=16G");
    args.splice(0..0, ["-device".to_owned(), port]);
    Ok(())
}

/// The value of the last such option of QEMU's command line, as the monitor wants it.
fn option(args: &[String], name: &str) -> Result<Map<String, Value>> {
    let at = args.iter().rposition(|arg| arg == name).with_context(|| format!("there is no {name}"))?;
    let Some(value) = args.get(at + 1) else { bail!("{name} has no value") };
    let mut map = Map::new();
    for (index, part) in value.split(',').enumerate() {
        let (key, value) = match part.split_once('=') {
            Some(pair) => pair,
            None if index == 0 => ("driver", part),
            None => bail!("{part} of {name} is no setting"),
        };
        let value = value.parse::<u64>().map_or_else(|_| json!(value), |number| json!(number));
        map.insert(key.to_owned(), value);
    }
    Ok(map)
}

fn boot_all(
    plan: &Plan<'_>,
    region_args: &[Vec<String>],
    extra: &[String],
    payload: &Path,
    sockets: &Path,
) -> Result<Vec<Guest>> {
    let count = plan.guests;
    let mut guests = Vec::new();
    for (number, region) in region_args.iter().enumerate() {
        let mut devices = network(number, count, sockets);
        devices.extend(region.iter().chain(extra).cloned());
        guests.push(Guest::start(&Spec {
            number,
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
pub fn payload_drive(payload: &Path, dir: &Path) -> Result<PathBuf> {
    let drive = dir.join("payload.ext4");
    let used = process::capture(Command::new("du").arg("-sm").arg(payload))?;
    let used: u64 =
        used.split_whitespace().next().and_then(|s| s.parse().ok()).context("du printed no size")?;
    let mut command = process::administrative("mke2fs");
    command
        .args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d"])
        .arg(payload)
        .arg(&drive)
        .arg(format!("{}M", used + used / 4 + 16));
    process::capture(&mut command).context("cannot make the guests' payload drive")?;
    Ok(drive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removable_device_is_found_again_for_the_monitor() -> Result<()> {
        let text =
            "-chardev socket,id=vmshm,path=/x/lab.0.sock -device ivshmem-doorbell,chardev=vmshm,vectors=8";
        let mut args: Vec<String> = text.split(' ').map(str::to_owned).collect();
        make_removable(&mut args)?;
        assert_eq!(args[1].split(',').next(), Some("pcie-root-port"));
        assert_eq!(option(&args, "-chardev")?["path"], "/x/lab.0.sock");
        let want = json!({
            "driver": "ivshmem-doorbell", "chardev": "vmshm", "vectors": 8, "id": DEVICE, "bus": PORT
        });
        assert_eq!(Value::Object(option(&args, "-device")?), want);
        assert!(option(&args, "-uuid").is_err());
        Ok(())
    }
}
