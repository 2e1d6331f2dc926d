//! `vmshm up`.

use std::fmt::Write as _;
use std::io::Write as _;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;
use vmshm_host::{CreateOptions, PageSize, Process, RegionName, Registry, format_bytes, section_socket};
use vmshm_vmm::{Host, place};

use super::member::{Member, members};
use super::network::{Network, exists};
use super::state::{Condition, Set, Vm, run_dir};
use crate::shell::quote;
use crate::{signals, size};

/// Of a region, for each VM, unless its size is given.
const SHARE: u64 = 1 << 30;
const POLL: u16 = 200;
/// How long the server may take to listen.
const LISTENING: Duration = Duration::from_secs(10);

/// Options of `vmshm up`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  vmshm up job --kernel /boot/vmlinuz-7.2 --initrd /boot/initrd.img-7.2 \\
      --disk node.raw --append root=/dev/vda1 --memory 64G
  vmshm ps
  vmshm down job

What starts is one VM for each NUMA node: its vCPUs on that node's CPUs, its memory and its section of the region NAME from \
there. The disk is an image of a distribution with sshd, Open MPI, vmshm's plugin and the guest driver, from which every VM \
has a private copy that is gone with the VM.

The network starts jobs. As root, vmshm makes a bridge (vmshm0) with an address of the host (10.77.0.254) and a tap device for \
each VM. A VM is told its name and its address (10.77.0.1 for vm0) on its kernel's command line: `ip=ADDRESS:::MASK:NAME:eth0:off` \
and `systemd.hostname=NAME`. Distributions with systemd obey after `systemctl enable systemd-networkd \
systemd-network-generator`, dracut's initial file systems and kernels with CONFIG_IP_PNP by themselves.

For other users root makes the network once, in addresses of the site's choice; BRIDGE-K is the tap device of VM K:
  ip link add BRIDGE type bridge
  ip address add 10.99.0.254/24 dev BRIDGE
  ip link set BRIDGE up
  ip tuntap add BRIDGE-0 mode tap user USER
  ip link set BRIDGE-0 master BRIDGE up

The set's folder is NAME below /run/vmshm (for other users than root below XDG_RUNTIME_DIR/vmshm), or below VMSHM_RUN_DIR: \
ssh_config, hostfile, rankfile, and what each VM prints in vmK.log.")]
pub struct Args {
    /// Name of the set, and of its region
    name: String,
    /// The kernel, a bzImage or the vmlinux that it was made from
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// The initial file system
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// A disk with a raw image, or a block device, of which each VM has a private copy; with `,ro` one that is only read
    #[arg(long = "disk", value_name = "FILE[,ro]")]
    disks: Vec<String>,
    /// More for the kernel's command line
    #[arg(long, default_value = "", value_name = "TEXT", allow_hyphen_values = true)]
    append: String,
    /// Number of VMs. Default: one for each NUMA node with memory
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    vms: Option<u16>,
    /// vCPUs of each VM. Default: all CPUs of its node but one
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    cpus: Option<u16>,
    /// Memory of each VM, such as 64G
    #[arg(long, default_value = "4G", value_parser = size::parse, value_name = "SIZE")]
    memory: u64,
    /// Pages of memory and region; 2M and 1G come from hugetlbfs
    #[arg(long, default_value = "4K", value_parser = size::pages, value_name = "4K|2M|1G")]
    pages: PageSize,
    /// Size of the whole region, a power of two. Default: 1G for each VM, rounded up
    #[arg(long = "region", value_parser = size::parse, value_name = "SIZE")]
    size: Option<u64>,
    /// Devices with doorbells, on which processes can sleep, and a server for them
    #[arg(long)]
    doorbell: bool,
    /// A bridge that is there, instead of a new one
    #[arg(long)]
    bridge: Option<String>,
    /// A VM is up when its console shows this, instead of when its ssh port answers
    #[arg(long, value_name = "TEXT")]
    ready: Option<String>,
    /// Seconds that the VMs may take until they are up
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    timeout: u64,
    /// Print what would be started, and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// The VMs of a set with their network and region, before they are started.
struct Plan {
    members: Vec<Member>,
    network: Network,
    region: CreateOptions,
}

impl Args {
    /// Starts the set, or nothing.
    pub fn run(&self) -> anyhow::Result<()> {
        let name = RegionName::new(&self.name)?;
        let mut plan = self.plan()?;
        if self.dry_run {
            return self.describe(&plan);
        }
        // Before anything is made: it takes long until a VM notices.
        Host::open()?;
        let disks = self.disks.iter().map(|disk| PathBuf::from(disk.strip_suffix(",ro").unwrap_or(disk)));
        for file in [&self.kernel].into_iter().chain(&self.initrd).cloned().chain(disks) {
            std::fs::File::open(&file).with_context(|| format!("cannot open {}", file.display()))?;
        }
        Set::check_free(&self.name)?;
        let region = Registry::from_env().create(&name, &plan.region)?;
        let id = region.id().to_string();
        drop(region);
        // From here on there is something that must go again.
        let interrupt = Interrupt::new()?;
        let mut set = match Set::create(&self.name, self.ready.clone()) {
            Ok(set) => set,
            Err(error) => {
                Registry::from_env().destroy(&self.name, false)?;
                return Err(error);
            }
        };
        set.region = Some(id);
        let started = self.start(&mut plan, &mut set, &interrupt);
        if let Err(error) = started {
            set.end(Duration::ZERO).context("something was left after a failure: `vmshm down` removes it")?;
            return Err(error);
        }
        self.tell(&plan, &set)
    }

    fn plan(&self) -> anyhow::Result<Plan> {
        let members = members(self.vms.map(usize::from), self.cpus.map(usize::from))?;
        let network = match &self.bridge {
            Some(bridge) => Network::existing(bridge)?,
            None => Network::free()?,
        };
        let size = self.size.unwrap_or((SHARE * members.len() as u64).next_power_of_two());
        let region = CreateOptions {
            sections: members.len() as u32,
            nodes: members.iter().filter_map(|member| member.node).collect(),
            pages: self.pages,
            ..CreateOptions::new(size)
        };
        Ok(Plan { members, network, region })
    }

    /// Arguments of `vmshm` for a VM.
    fn arguments(&self, plan: &Plan, vm: usize) -> anyhow::Result<Vec<String>> {
        let (member, network) = (&plan.members[vm], &plan.network);
        let mut append = format!(
            "console=ttyS0 net.ifnames=0 {} systemd.hostname={}",
            network.kernel_argument(vm, &member.name)?,
            member.name
        );
        if !self.append.is_empty() {
            append += " ";
            append += &self.append;
        }
        let mut arguments = vec!["vm".to_owned(), "run".to_owned()];
        let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
        add("--kernel", self.kernel.display().to_string());
        if let Some(initrd) = &self.initrd {
            add("--initrd", initrd.display().to_string());
        }
        add("--append", append);
        add("--cpus", member.vcpus.to_string());
        add("--memory", self.memory.to_string());
        add("--pages", self.pages.bytes().to_string());
        if let Some(node) = member.node {
            add("--numa-node", node.to_string());
        }
        add("--region", format!("{}:{vm}", self.name));
        for disk in &self.disks {
            add("--disk", disk.clone());
        }
        add("--net", format!("tap:{}", network.tap(vm)));
        if self.doorbell {
            arguments.push("--doorbell".to_owned());
        }
        Ok(arguments)
    }

    fn describe(&self, plan: &Plan) -> anyhow::Result<()> {
        let mut text = format!(
            "region     {}: {} in {} sections\nnetwork    {}, the host is {} on the bridge {}\n",
            self.name,
            format_bytes(plan.region.size),
            plan.region.sections,
            plan.network.number(),
            plan.network.host,
            plan.network.bridge
        );
        for (vm, member) in plan.members.iter().enumerate() {
            writeln!(text, "\n{}", self.row(member, &plan.network.address(vm)?.to_string()))?;
            let words: Vec<_> = self.arguments(plan, vm)?.iter().map(|word| quote(word)).collect();
            writeln!(text, "vmshm {}", words.join(" "))?;
        }
        std::io::stdout().write_all(text.as_bytes())?;
        Ok(())
    }

    fn row(&self, member: &Member, address: &str) -> String {
        let place = member.node.map_or("anywhere".to_owned(), |node| format!("node {node}"));
        let cpus: Vec<_> = member.cpus.iter().map(usize::to_string).collect();
        let cpus = if cpus.is_empty() { String::new() } else { format!(" on CPUs {}", cpus.join(",")) };
        format!(
            "{:<10} {place}, {} vCPUs{cpus}, {} of memory, {address}",
            member.name,
            member.vcpus,
            format_bytes(self.memory)
        )
    }

    /// Starts all of it, and waits until the VMs are up.
    fn start(&self, plan: &mut Plan, set: &mut Set, interrupt: &Interrupt) -> anyhow::Result<()> {
        set.save()?;
        if self.doorbell {
            self.serve(set, interrupt)?;
        }
        if self.bridge.is_none() {
            while !plan.network.make()? {
                plan.network = Network::free()?;
            }
            set.links.push(plan.network.bridge.clone());
            set.save()?;
        }
        let network = &plan.network;
        let mut vms = Vec::new();
        for (k, member) in plan.members.iter().enumerate() {
            let tap = network.tap(k);
            if !exists(&tap) {
                network.make_tap(k)?;
                // Before its bridge.
                set.links.insert(0, tap);
                set.save()?;
            }
            let mut command = program(set, &member.name)?;
            command.args(self.arguments(plan, k)?);
            let others = plan.members.iter().filter(|other| *other != member);
            let child = away_from(&others.flat_map(|other| other.cpus.clone()).collect::<Vec<_>>(), command)?;
            set.vms.push(Vm {
                name: member.name.clone(),
                node: member.node,
                vcpus: member.vcpus,
                memory: self.memory,
                address: network.address(k)?,
                process: Process::with_pid(child.id()).context("a VM's process cannot be seen in /proc")?,
            });
            set.save()?;
            vms.push(child);
        }
        self.wait(set, &mut vms, interrupt)?;
        write_files(set)
    }

    fn serve(&self, set: &mut Set, interrupt: &Interrupt) -> anyhow::Result<()> {
        let mut command = program(set, "serve")?;
        command.args(["serve", &self.name]);
        let mut server = command.spawn().context("cannot start the server")?;
        set.server = Process::with_pid(server.id());
        set.save()?;
        let socket = section_socket(&run_dir().join(format!("{}.sock", self.name)), 0);
        let begin = Instant::now();
        while !socket.exists() {
            if let Some(status) = server.try_wait()? {
                bail!("the server of the region ended ({status}):\n{}", last_lines(set, "serve"));
            }
            if begin.elapsed() > LISTENING {
                bail!("the server of the region did not listen at {} in time", socket.display());
            }
            interrupt.pause()?;
        }
        Ok(())
    }

    fn wait(&self, set: &Set, children: &mut [Child], interrupt: &Interrupt) -> anyhow::Result<()> {
        let begin = Instant::now();
        let mut waiting: Vec<usize> = (0..children.len()).collect();
        while !waiting.is_empty() {
            interrupt.pause()?;
            for (vm, child) in set.vms.iter().zip(&mut *children) {
                if let Some(status) = child.try_wait()? {
                    bail!(
                        "{} ended before all VMs were up ({status}):\n{}",
                        vm.name,
                        last_lines(set, &vm.name)
                    );
                }
            }
            waiting.retain(|&k| {
                let up = set.condition(&set.vms[k]) == Condition::Answers;
                if up {
                    eprintln!("{} is up after {} s", set.vms[k].name, begin.elapsed().as_secs());
                }
                !up
            });
            if let Some(&k) = waiting.first()
                && begin.elapsed() > Duration::from_secs(self.timeout)
            {
                let vm = &set.vms[k];
                let sign = match &self.ready {
                    Some(text) => format!("its console did not show {text:?}"),
                    None => format!("its ssh server at {} did not answer", vm.address),
                };
                bail!(
                    "{} was not up within {} s: {sign}. Its console ends so:\n{}\nIs sshd enabled there, and does \
                     its system obey `ip=` (`vmshm up --help`)? A longer --timeout waits longer",
                    vm.name,
                    self.timeout,
                    last_lines(set, &vm.name)
                );
            }
        }
        Ok(())
    }

    /// Says what there is now, and how to use it.
    fn tell(&self, plan: &Plan, set: &Set) -> anyhow::Result<()> {
        let mut text = String::new();
        for (member, vm) in plan.members.iter().zip(&set.vms) {
            writeln!(text, "{}", self.row(member, &vm.address.to_string()))?;
        }
        let file = |name: &str| quote(&set.dir.join(name).display().to_string());
        let ranks: usize = set.vms.iter().map(|vm| vm.vcpus).sum();
        writeln!(
            text,
            "\nA shell:       ssh -F {} vm0\nAn MPI job:    eval \"$(vmshm env)\"\n               mpirun -np {ranks} --hostfile {} \
             --rankfile {} --mca plm_rsh_args {} --mca oob_tcp_if_include {} ./program\nThe end:       vmshm down {}",
            file("ssh_config"),
            file("hostfile"),
            file("rankfile"),
            quote(&format!("-F {}", set.dir.join("ssh_config").display())),
            plan.network.number(),
            quote(&self.name)
        )?;
        std::io::stdout().write_all(text.as_bytes())?;
        Ok(())
    }
}

/// This program, to be started for a set with its output in a log there.
fn program(set: &Set, log: &str) -> anyhow::Result<Command> {
    let out = set.log(log)?;
    let mut command = Command::new(std::env::current_exe().context("cannot tell where this program lies")?);
    command
        .env("VMSHM_RUN_DIR", run_dir())
        // Ctrl-C is for this command, which then ends the others.
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out);
    Ok(command)
}

/// Starts a program that keeps off some CPUs.
fn away_from(cpus: &[usize], mut command: Command) -> anyhow::Result<Child> {
    // The kernel's list is the thread's, and passed on.
    let spawn = move || -> anyhow::Result<Child> {
        place::leave(cpus)?;
        command.spawn().context("cannot start a VM")
    };
    std::thread::scope(|scope| scope.spawn(spawn).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Writes the files that ssh and mpirun read.
fn write_files(set: &Set) -> anyhow::Result<()> {
    let (mut ssh, mut hosts, mut ranks) = (String::new(), String::new(), String::new());
    let mut rank = 0;
    for vm in &set.vms {
        let (name, address) = (&vm.name, vm.address);
        // The network ends at the host's bridge; VMs of the next set have the same addresses, and may have other keys.
        writeln!(
            ssh,
            "Host {name} {address}\n    HostName {address}\n    StrictHostKeyChecking no\n    \
             UserKnownHostsFile /dev/null\n    LogLevel ERROR"
        )?;
        writeln!(hosts, "{address} slots={}", vm.vcpus)?;
        for slot in 0..vm.vcpus {
            writeln!(ranks, "rank {rank}={address} slot={slot}")?;
            rank += 1;
        }
    }
    set.write("ssh_config", &ssh)?;
    set.write("hostfile", &hosts)?;
    set.write("rankfile", &ranks)
}

/// The end of what a program of the set printed.
fn last_lines(set: &Set, log: &str) -> String {
    let bytes = std::fs::read(set.log_path(log)).unwrap_or_default();
    let text: String =
        String::from_utf8_lossy(&bytes).chars().filter(|&c| c == '\n' || !c.is_control()).collect();
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let shown = &lines[lines.len().saturating_sub(8)..];
    shown.iter().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}

/// SIGTERM, SIGINT and SIGHUP, which this thread sees only when it pauses.
struct Interrupt(SignalFd);

impl Interrupt {
    fn new() -> anyhow::Result<Self> {
        signals::descriptor().map(Self)
    }

    fn pause(&self) -> anyhow::Result<()> {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::from(POLL)).is_ok_and(|found| found > 0) {
            bail!("interrupted; what was started is ended");
        }
        Ok(())
    }
}
