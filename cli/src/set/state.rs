//! The parts of a set, written down as they come into being, so that it can be ended whatever happens.

use std::fs::{self, File};
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use serde::{Deserialize, Serialize};
use vmshm_host::{DEFAULT_RUN_DIR, Error, Process, Registry, prepare_dir};

use super::network;

const FILE: &str = "set.json";
/// How long what was sent a signal may take to end.
const ENDING: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);
/// How long a VM may take to answer on its ssh port.
const ANSWER: Duration = Duration::from_millis(300);

/// A set of VMs.
#[derive(Debug, Serialize, Deserialize)]
pub struct Set {
    /// Its name, and its region's.
    pub name: String,
    /// The folder of what belongs to it.
    #[serde(skip)]
    pub dir: PathBuf,
    /// The folder of its region.
    pub registry: PathBuf,
    /// The id of its region.
    pub region: Option<String>,
    /// `vmshm serve`, where devices have doorbells.
    pub server: Option<Process>,
    /// Network devices that were made for it, in the order in which they go.
    pub links: Vec<String>,
    /// Text on the console of a VM that is up, if that is not told by its ssh port.
    pub ready: Option<String>,
    /// Its VMs.
    pub vms: Vec<Vm>,
}

/// A VM of a set.
#[derive(Debug, Serialize, Deserialize)]
pub struct Vm {
    /// `vm0` and so on.
    pub name: String,
    /// The NUMA node that it is confined to.
    pub node: Option<u32>,
    /// Number of vCPUs.
    pub vcpus: usize,
    /// Bytes.
    pub memory: u64,
    /// Its address.
    pub address: Ipv4Addr,
    /// The process that runs it.
    pub process: Process,
}

/// The state of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    /// It runs, and does not answer (yet).
    Runs,
    /// It answers.
    Answers,
    /// Its process has ended.
    Ended,
}

/// The folder of the sets: `VMSHM_RUN_DIR`, /run/vmshm for root, and one of their own for other users.
pub fn run_dir() -> PathBuf {
    let given = |name| std::env::var_os(name).filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let own = || given("XDG_RUNTIME_DIR").filter(|_| !geteuid().is_root()).map(|dir| dir.join("vmshm"));
    given("VMSHM_RUN_DIR").or_else(own).unwrap_or(DEFAULT_RUN_DIR.into())
}

impl Set {
    /// A set of which nothing is there yet but its folder.
    pub fn create(name: &str, ready: Option<String>) -> anyhow::Result<Self> {
        let run_dir = run_dir();
        prepare_dir(&run_dir, 0o755)?;
        let dir = run_dir.join(name);
        fs::DirBuilder::new().mode(0o755).create(&dir).map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => taken(name, &dir),
            _ => anyhow::Error::new(error).context(format!("cannot make the folder {}", dir.display())),
        })?;
        let set = Self {
            name: name.to_owned(),
            dir,
            registry: Registry::from_env().dir().to_owned(),
            region: None,
            server: None,
            links: Vec::new(),
            ready,
            vms: Vec::new(),
        };
        set.save()?;
        Ok(set)
    }

    /// Fails where there is a set of this name.
    pub fn check_free(name: &str) -> anyhow::Result<()> {
        let dir = run_dir().join(name);
        if dir.exists() { Err(taken(name, &dir)) } else { Ok(()) }
    }

    /// A set that was started.
    pub fn open(name: &str) -> anyhow::Result<Self> {
        let dir = run_dir().join(name);
        if !dir.join(FILE).exists() {
            bail!("there is no set {name:?} in {}: `vmshm ps` lists those there are", run_dir().display());
        }
        Self::read(&dir)
    }

    /// All sets, and those that cannot be read.
    pub fn all() -> Vec<anyhow::Result<Self>> {
        let entries = fs::read_dir(run_dir()).into_iter().flatten().flatten();
        let mut dirs: Vec<_> =
            entries.map(|entry| entry.path()).filter(|dir| dir.join(FILE).exists()).collect();
        dirs.sort();
        dirs.iter().map(|dir| Self::read(dir)).collect()
    }

    fn read(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join(FILE);
        let doing = || format!("cannot read {}", path.display());
        let file = File::options()
            .read(true)
            .custom_flags(OFlag::O_NOFOLLOW.bits())
            .open(&path)
            .with_context(doing)?;
        // Processes are ended and devices removed as it says.
        let owner = file.metadata().with_context(doing)?.uid();
        if ![0, geteuid().as_raw()].contains(&owner) {
            bail!(
                "{} belongs to the user with id {owner}, who could have named anything in it",
                path.display()
            );
        }
        let set: Self = serde_json::from_reader(file).with_context(doing)?;
        Ok(Self { dir: dir.to_owned(), ..set })
    }

    /// Writes it down.
    pub fn save(&self) -> anyhow::Result<()> {
        self.write(FILE, &serde_json::to_string_pretty(self)?)
    }

    /// Writes a file of the set's folder, as a whole.
    pub fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let path = self.dir.join(name);
        let new = self.dir.join(format!("{name}.new"));
        let written = fs::write(&new, text).and_then(|()| fs::rename(&new, &path));
        written.with_context(|| format!("cannot write {}", path.display()))
    }

    /// A new file for what a program of the set prints, for its owner only: consoles show secrets.
    pub fn log(&self, name: &str) -> anyhow::Result<File> {
        let path = self.log_path(name);
        let file = File::options().write(true).create_new(true).mode(0o600).open(&path);
        file.with_context(|| format!("cannot make {}", path.display()))
    }

    /// Where [`Set::log`] is.
    pub fn log_path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }

    /// The state of a VM, now.
    pub fn condition(&self, vm: &Vm) -> Condition {
        if !vm.process.is_alive() {
            return Condition::Ended;
        }
        let answers = match &self.ready {
            Some(text) => fs::read(self.log_path(&vm.name))
                .is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(text.as_str())),
            None => answers(SocketAddr::from((vm.address, 22))),
        };
        if answers { Condition::Answers } else { Condition::Runs }
    }

    /// Ends all of it: VMs that have not switched off after `patience` are stopped. Parts that are gone already are no error,
    /// so this can be repeated.
    pub fn end(&self, patience: Duration) -> anyhow::Result<()> {
        let alive = || self.vms.iter().map(|vm| vm.process).filter(Process::is_alive);
        if !patience.is_zero() {
            alive().for_each(|process| send(process, Signal::SIGTERM));
            wait(patience, || alive().next().is_none());
        }
        alive().for_each(|process| send(process, Signal::SIGKILL));
        if !wait(ENDING, || alive().next().is_none()) {
            bail!("a VM of the set {:?} does not end, though it was killed: see `vmshm ps`", self.name);
        }
        if let Some(server) = self.server.filter(Process::is_alive) {
            send(server, Signal::SIGTERM);
            if !wait(ENDING, || !server.is_alive()) {
                send(server, Signal::SIGKILL);
            }
        }
        for link in self.links.iter().filter(|link| network::exists(link)) {
            network::ip(&["link", "delete", link])?;
        }
        self.destroy_region()?;
        fs::remove_dir_all(&self.dir).with_context(|| format!("cannot remove {}", self.dir.display()))
    }

    /// Destroys the region that was made for the set, and no other that has its name by now.
    fn destroy_region(&self) -> anyhow::Result<()> {
        let Some(id) = &self.region else { return Ok(()) };
        let registry = Registry::at(&self.registry);
        match registry.open(&self.name) {
            Ok(region) if region.id().to_string() == *id => drop(region),
            Ok(_) | Err(Error::NotFound { .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        // The kernel takes its time to unmap what VMs had.
        let mut last = Ok(());
        wait(ENDING, || {
            last = registry.destroy(&self.name, false);
            !matches!(last, Err(Error::InUse { .. }))
        });
        last.with_context(|| format!("the VMs of the set {:?} have ended, its region is left", self.name))
    }
}

fn taken(name: &str, dir: &Path) -> anyhow::Error {
    anyhow::anyhow!(
        "there is a set {name:?} already ({}): `vmshm ps` shows it, `vmshm down {name}` ends it",
        dir.display()
    )
}

/// Whether an ssh server answers.
fn answers(address: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect_timeout(&address, ANSWER) else { return false };
    let mut greeting = [0; 4];
    // A machine under load may accept long before it greets.
    stream.set_read_timeout(Some(10 * ANSWER)).is_ok()
        && stream.read_exact(&mut greeting).is_ok()
        && greeting == *b"SSH-"
}

fn send(process: Process, signal: Signal) {
    // The number may have become another's only since it was looked at.
    if let Ok(pid) = i32::try_from(process.pid) {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// Waits until something holds; false if it does not in time.
fn wait(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let begin = Instant::now();
    loop {
        if holds() {
            return true;
        }
        if begin.elapsed() > limit {
            return false;
        }
        std::thread::sleep(POLL);
    }
}
