//! The network of a set: a bridge of the host, and a tap device for each VM. It starts jobs; messages do not go through it.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use nix::ifaddrs::getifaddrs;

const ROOT: &str = "cannot make a network for the VMs, which only root may: run this as root, or have root make the network \
                    once and name its bridge with --bridge (`vmshm up --help` shows how)";
/// Longest name of a network device.
const NAME_MAX: usize = 15;

/// A bridge with an address of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// The bridge.
    pub bridge: String,
    /// The host's address there.
    pub host: Ipv4Addr,
    /// Bits of the network's number.
    pub prefix: u32,
}

/// Runs `ip`.
pub fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    let said = arguments.join(" ");
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .with_context(|| format!("cannot start `ip {said}`: install iproute2"))?;
    if !output.status.success() {
        bail!("`ip {said}` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Whether there is a network device of this name.
pub fn exists(device: &str) -> bool {
    Path::new("/sys/class/net").join(device).exists()
}

/// Addresses and prefix lengths of the host's network devices.
fn addresses() -> anyhow::Result<Vec<(String, Ipv4Addr, u32)>> {
    let all = getifaddrs().context("cannot list the host's network addresses")?;
    let found = all.filter_map(|device| {
        let address = device.address?.as_sockaddr_in()?.ip();
        let prefix = u32::from(device.netmask?.as_sockaddr_in()?.ip()).leading_ones();
        Some((device.interface_name, address, prefix))
    });
    Ok(found.collect())
}

fn overlap(a: (Ipv4Addr, u32), b: (Ipv4Addr, u32)) -> bool {
    let bits = 32 - a.1.min(b.1);
    let network = |address| u32::from(address).checked_shr(bits).unwrap_or(0);
    network(a.0) == network(b.0)
}

impl Network {
    /// One that is not there yet, and shares no address with the host's others.
    pub fn free() -> anyhow::Result<Self> {
        let used = addresses()?;
        let candidates = (0..=255).map(|number| Self {
            bridge: format!("vmshm{number}"),
            host: Ipv4Addr::new(10, 77, number, 254),
            prefix: 24,
        });
        let is_free = |network: &Self| {
            let own = (network.host, network.prefix);
            !exists(&network.bridge)
                && used.iter().all(|&(_, address, prefix)| !overlap(own, (address, prefix)))
        };
        candidates.into_iter().find(is_free).context(
            "no network 10.77.0.0/24 to 10.77.255.0/24 is free on this host: make a bridge with an address, and name it \
             with --bridge",
        )
    }

    /// A bridge that is there, with an address.
    pub fn existing(bridge: &str) -> anyhow::Result<Self> {
        if !exists(bridge) {
            bail!(
                "there is no bridge {bridge:?}: make it as root by `ip link add {bridge} type bridge`, `ip address add \
                 10.77.0.254/24 dev {bridge}` and `ip link set {bridge} up`"
            );
        }
        let found = addresses()?.into_iter().find(|(name, ..)| name == bridge);
        let Some((_, host, prefix)) = found else {
            bail!(
                "the bridge {bridge:?} has no IPv4 address: `ip address add 10.77.0.254/24 dev {bridge}` gives it one"
            );
        };
        Ok(Self { bridge: bridge.to_owned(), host, prefix })
    }

    /// Makes the bridge; false where somebody else has made one of this name meanwhile.
    pub fn make(&self) -> anyhow::Result<bool> {
        let bridge = &self.bridge;
        let address = format!("{}/{}", self.host, self.prefix);
        if let Err(error) = ip(&["link", "add", bridge, "type", "bridge"]) {
            return if exists(bridge) { Ok(false) } else { Err(error).context(ROOT) };
        }
        let made = ip(&["address", "add", &address, "dev", bridge])
            .and_then(|()| ip(&["link", "set", bridge, "up"]));
        made.inspect_err(|_| drop(ip(&["link", "delete", bridge])))?;
        Ok(true)
    }

    /// The tap device of a VM.
    pub fn tap(&self, vm: usize) -> String {
        format!("{}-{vm}", self.bridge)
    }

    /// Makes the tap device of a VM.
    pub fn make_tap(&self, vm: usize) -> anyhow::Result<()> {
        let (tap, bridge) = (self.tap(vm), &self.bridge);
        if tap.len() > NAME_MAX {
            bail!(
                "the tap device {tap:?} would have a longer name than {NAME_MAX} characters: rename the bridge"
            );
        }
        let cure = || {
            format!(
                "cannot make the tap device of a VM, which only root may: `sudo ip tuntap add {tap} mode tap user $USER` \
                 and `sudo ip link set {tap} master {bridge} up` make it once"
            )
        };
        ip(&["tuntap", "add", &tap, "mode", "tap"]).with_context(cure)?;
        ip(&["link", "set", &tap, "master", bridge, "up"])
            .inspect_err(|_| drop(ip(&["link", "delete", &tap])))
    }

    /// A VM's address.
    pub fn address(&self, vm: usize) -> anyhow::Result<Ipv4Addr> {
        let first = u32::from(self.host) & self.mask();
        let last = first | !self.mask();
        let hosts = (first + 1..last).filter(|&address| address != u32::from(self.host));
        let address = hosts.into_iter().nth(vm).with_context(|| {
            format!(
                "the network {} has no address for VM {vm}: give a bridge with a shorter prefix",
                self.number()
            )
        })?;
        Ok(address.into())
    }

    fn mask(&self) -> u32 {
        u32::MAX.checked_shl(32 - self.prefix).unwrap_or(0)
    }

    /// The network's number, as `10.77.0.0/24`.
    pub fn number(&self) -> String {
        format!("{}/{}", Ipv4Addr::from(u32::from(self.host) & self.mask()), self.prefix)
    }

    /// The word that tells a guest its address: `ip=`, as kernels and initial file systems have it.
    pub fn kernel_argument(&self, vm: usize, name: &str) -> anyhow::Result<String> {
        Ok(format!("ip={}:::{}:{name}:eth0:off", self.address(vm)?, Ipv4Addr::from(self.mask())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(host: [u8; 4], prefix: u32) -> Network {
        Network { bridge: "b".into(), host: host.into(), prefix }
    }

    #[test]
    fn vms_get_the_addresses_that_the_host_has_not() {
        let own = network([10, 77, 3, 254], 24);
        assert_eq!(own.kernel_argument(0, "vm0").unwrap(), "ip=10.77.3.1:::255.255.255.0:vm0:eth0:off");
        assert_eq!((own.tap(1), own.number()), ("b-1".into(), "10.77.3.0/24".into()));
        assert_eq!(own.address(252).unwrap(), Ipv4Addr::new(10, 77, 3, 253));
        assert!(own.address(253).unwrap_err().to_string().contains("10.77.3.0/24"));
        assert_eq!(network([192, 168, 0, 1], 16).address(0).unwrap(), Ipv4Addr::new(192, 168, 0, 2));
    }

    #[test]
    fn networks_overlap_where_one_holds_the_other() {
        let at = |text: &str| text.parse::<Ipv4Addr>().unwrap();
        assert!(overlap((at("10.77.0.254"), 24), (at("10.0.0.1"), 8)));
        assert!(overlap((at("10.77.0.254"), 24), (at("10.77.0.3"), 32)));
        assert!(!overlap((at("10.77.0.254"), 24), (at("10.77.1.254"), 24)));
        assert!(overlap((at("10.77.0.254"), 24), (at("1.2.3.4"), 0)));
    }
}
