//! `vmshm up`, `down` and `ps`, with kernels of a few instructions.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use common::kernel::{kernel, kvm, prints_and_switches_off, prints_and_waits};
use common::{Host, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Whether VMs with a network can be had here; says so where not.
fn ground() -> bool {
    let made = Command::new("ip").args(["link", "add", "vmshm-try", "type", "bridge"]).output();
    let made = made.is_ok_and(|output| output.status.success());
    let _ = Command::new("ip").args(["link", "delete", "vmshm-try"]).output();
    if !made || !Path::new("/dev/net/tun").exists() {
        eprintln!("skipped: this user can make no bridge and tap devices here");
    }
    made && Path::new("/dev/net/tun").exists() && kvm()
}

/// Ends the set of a test that fails.
struct Ended<'a>(&'a Host);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.0.output(&["down", "job", "--timeout", "0"]);
        }
    }
}

/// Fails where something is left of a set: its folder, its region, network devices of its own.
fn nothing_is_left(host: &Host, links: &[String]) {
    assert!(!host.sockets().join("job").exists(), "the set's folder");
    assert!(host.ok(&["region", "list"]).starts_with("no regions"));
    assert!(host.ok(&["ps"]).starts_with("no sets"));
    let devices = fs::read_dir("/sys/class/net").unwrap().flatten();
    let left: Vec<_> =
        devices.filter_map(|entry| index(&entry.path())).filter(|it| links.contains(it)).collect();
    assert!(left.is_empty(), "network devices {left:?} of {links:?}");
}

/// The number of a network device, which no later one has, unlike its name.
fn index(device: &Path) -> Option<String> {
    Some(fs::read_to_string(device.join("ifindex")).ok()?.trim().to_owned())
}

/// The network devices that were made for a set: a tap for each VM, and a bridge.
fn links(host: &Host) -> Vec<String> {
    let text = fs::read_to_string(host.sockets().join("job/set.json")).unwrap();
    let set: serde_json::Value = serde_json::from_str(&text).unwrap();
    let links = set["links"].as_array().unwrap().iter().map(|link| link.as_str().unwrap());
    links.map(|link| index(&Path::new("/sys/class/net").join(link)).unwrap()).collect()
}

const SMALL: [&str; 10] =
    ["--vms", "2", "--cpus", "1", "--memory", "16M", "--region", "2M", "--timeout", "30"];

#[test]
fn a_set_comes_up_is_shown_and_goes_without_a_trace() {
    if !ground() {
        return;
    }
    let host = Host::new();
    let _ended = Ended(&host);
    let kernel = kernel(&host, &prints_and_waits("login:"));
    let mut arguments =
        vec!["up", "job", "--kernel", kernel.to_str().unwrap(), "--ready", "login:", "--doorbell"];
    arguments.extend(SMALL);
    let text = host.ok(&arguments);
    let dir = host.sockets().join("job");
    for word in ["vm1 ", "mpirun -np 2", "ssh -F", "vmshm down job"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
    let rows: serde_json::Value = serde_json::from_str(&host.ok(&["ps", "--json"])).unwrap();
    let rows = rows.as_array().unwrap();
    assert_eq!((rows.len(), &rows[1]["vm"], &rows[1]["state"]), (2, &"vm1".into(), &"answers".into()));
    let address = |k: usize| rows[k]["address"].as_str().unwrap();
    assert_eq!(read("hostfile"), format!("{} slots=1\n{} slots=1\n", address(0), address(1)));
    assert_eq!(read("rankfile"), format!("rank 0={} slot=0\nrank 1={} slot=0\n", address(0), address(1)));
    assert!(read("ssh_config").contains(&format!("Host vm1 {0}\n    HostName {0}\n", address(1))));

    let seen: serde_json::Value = serde_json::from_str(&host.ok(&["vm", "status", "--json"])).unwrap();
    let ours = |k: usize| {
        let found =
            seen.as_array().unwrap().iter().find(|seen| seen["pid"] == rows[k]["pid"]).unwrap().clone();
        (found["regions"][0].clone(), found["vcpus"][0]["allowed"].clone())
    };
    assert_eq!((ours(0).0, ours(1).0), ("job:0".into(), "job:1".into()));
    // Only where there is one to spare: this machine may have a single CPU.
    if rows[0]["node"] == rows[1]["node"] {
        assert_ne!(ours(0).1, ours(1).1, "each has a CPU of its own");
    }
    assert!(host.fails(&arguments).contains("vmshm down job"), "a second one of that name");

    let links = links(&host);
    assert_eq!(links.len(), 3, "two taps and a bridge");
    host.ok(&["down", "job", "--timeout", "5"]);
    for row in rows {
        assert!(!Path::new("/proc").join(row["pid"].to_string()).join("exe").exists(), "{row}");
    }
    nothing_is_left(&host, &links);
    assert!(host.fails(&["down", "job"]).contains("vmshm ps"));
}

#[test]
fn what_fails_leaves_nothing_and_says_what_the_vm_said() {
    if !ground() {
        return;
    }
    let host = Host::new();
    let _ended = Ended(&host);
    let mut arguments = vec!["up", "job", "--kernel"];
    let off = kernel(&host, &prints_and_switches_off("no root file system"));
    arguments.push(off.to_str().unwrap());
    arguments.extend(SMALL);
    let text = host.fails(&arguments);
    assert!(text.contains("ended before") && text.contains("no root file system"), "{text}");
    nothing_is_left(&host, &[]);

    // One that never answers.
    kernel(&host, &prints_and_waits("login:"));
    *arguments.last_mut().unwrap() = "1";
    let text = host.fails(&arguments);
    assert!(text.contains("within 1 s") && text.contains("ssh server at 10.77."), "{text}");
    nothing_is_left(&host, &[]);

    // No such disk, no such bridge: before anything is made.
    arguments.extend(["--disk", "/nonexistent,ro"]);
    assert!(host.fails(&arguments).contains("/nonexistent"));
    arguments.extend(["--bridge", "vmshm-none"]);
    assert!(host.fails(&arguments).contains("ip link add vmshm-none type bridge"));
    nothing_is_left(&host, &[]);
}

#[test]
fn an_interrupt_ends_what_was_begun_and_down_does_where_up_was_killed() {
    if !ground() {
        return;
    }
    let host = Host::new();
    let _ended = Ended(&host);
    let kernel = kernel(&host, &prints_and_waits("login:"));
    let mut arguments = vec!["up", "job", "--kernel", kernel.to_str().unwrap(), "--ready", "never"];
    arguments.extend(SMALL);
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let mut up = host.command(&arguments).stderr(Stdio::piped()).spawn().unwrap();
        until("both VMs run", || {
            let rows = serde_json::from_str::<serde_json::Value>(&host.ok(&["ps", "--json"])).unwrap();
            rows.as_array().unwrap().iter().filter(|row| row["state"] == "runs").count() == 2
        });
        let links = links(&host);
        kill(Pid::from_raw(up.id() as i32), signal).unwrap();
        assert!(!up.wait().unwrap().success());
        if signal == Signal::SIGKILL {
            host.ok(&["down", "job", "--timeout", "5"]);
        }
        nothing_is_left(&host, &links);
    }
}

#[test]
fn a_bridge_of_the_site_is_used_and_stays() {
    if !ground() {
        return;
    }
    let host = Host::new();
    let _ended = Ended(&host);
    let number = std::process::id() % 200;
    let bridge = format!("vmshmt{number}");
    let ip =
        |arguments: &str| assert!(Command::new("ip").args(arguments.split(' ')).status().unwrap().success());
    ip(&format!("link add {bridge} type bridge"));
    ip(&format!("address add 10.78.{number}.1/29 dev {bridge}"));
    ip(&format!("link set {bridge} up"));
    let kernel = kernel(&host, &prints_and_waits("login:"));
    let mut arguments = vec!["up", "job", "--kernel", kernel.to_str().unwrap(), "--ready", "login:"];
    arguments.extend(["--bridge", &bridge]);
    arguments.extend(SMALL);
    let text = host.output(&arguments);
    host.output(&["down", "job", "--timeout", "5"]);
    let stays = ["", "-0"].map(|end| Path::new("/sys/class/net").join(format!("{bridge}{end}")).exists());
    ip(&format!("link delete {bridge}"));
    assert!(text.status.success(), "{}", String::from_utf8_lossy(&text.stderr));
    let text = String::from_utf8(text.stdout).unwrap();
    // The host has the network's first address.
    assert!(
        text.contains(&format!("10.78.{number}.3\n")) && text.contains(&format!("10.78.{number}.0/29")),
        "{text}"
    );
    assert_eq!(stays, [true, false], "the bridge stays, its taps go");
    nothing_is_left(&host, &[]);
}

#[test]
fn what_another_user_has_written_down_is_not_carried_out() {
    let host = Host::new();
    let dir = host.sockets().join("job");
    fs::create_dir_all(&dir).unwrap();
    let file = dir.join("set.json");
    fs::write(&file, "{}").unwrap();
    if std::os::unix::fs::chown(&file, Some(65534), None).is_err() {
        eprintln!("skipped: only root can give a file away");
        return;
    }
    let text = host.fails(&["down", "job"]);
    assert!(text.contains("65534"), "{text}");
    assert!(file.exists());
}

#[test]
fn a_dry_run_shows_each_vm_and_makes_nothing() {
    let host = Host::new();
    let arguments =
        ["up", "job", "--kernel", "/none", "--disk", "/root image.raw", "--append", "root=/dev/vda1"];
    let with = |more: &[&'static str]| [&arguments[..], &["--dry-run"], more].concat();
    let text = host.ok(&with(&["--vms", "2", "--cpus", "1", "--memory", "8G"]));
    for word in [
        "region     job: 2 GiB in 2 sections",
        "ip=10.77.",
        ".2:::255.255.255.0:vm1:eth0:off systemd.hostname=vm1 root=/dev/vda1'",
        "--region job:1",
        "--disk '/root image.raw'",
        "8 GiB of memory",
        "--net tap:vmshm",
    ] {
        assert!(text.contains(word), "{word}: {text}");
    }
    assert!(!host.sockets().exists() && !host.regions().exists());
    for (more, word) in [
        (&["--cpus", "60000"][..], "--cpus"),
        (&["--vms", "0"], "0"),
        (&["--bridge", "lo-none"], "lo-none"),
        (&["--pages", "3K"], "4K, 2M or 1G"),
    ] {
        let text = host.fails(&with(more));
        assert!(text.contains(word), "{more:?}: {text}");
    }
}
