//! Which point-to-point layer Open MPI will take: vmshm is a BTL, which only `ob1` uses, and a transport of UCX.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::check::Check;
use super::ompi_info::ompi_info;
use crate::installed::Series;

/// The parameters as `ompi_info --parsable` prints them, and the network adapters of a machine.
#[derive(Debug)]
struct Machine<'a> {
    parameters: &'a str,
    /// Names and kernel drivers of the adapters in `/sys/class/infiniband`.
    adapters: Vec<(String, String)>,
    /// Whether there is an Omni-Path adapter's device file.
    has_omni_path: bool,
    ucx: Ucx,
}

/// The UCX of a machine, as far as it matters to our transports.
#[derive(Debug, Default)]
struct Ucx {
    /// Series that a transport is installed for.
    served: Vec<Series>,
    /// The series that programs use, where `ucx_info` tells.
    running: Option<Series>,
}

impl Ucx {
    fn look(transports: &[(Series, PathBuf)]) -> Self {
        let answer = Command::new("ucx_info").arg("-v").stdin(Stdio::null()).output();
        let text =
            answer.map(|answer| String::from_utf8_lossy(&answer.stdout).into_owned()).unwrap_or_default();
        // The first line is `# Version 1.13.1`, or `# Library version: 1.18.1`.
        let running = text.lines().next().and_then(|line| Series::parse(line.rsplit(' ').next()?));
        Self { served: transports.iter().map(|(series, _)| *series).collect(), running }
    }

    fn check(&self, why: &str) -> Check {
        let all = self.served.iter().map(Series::to_string).collect::<Vec<_>>().join(" and ");
        let without = |what: &str| {
            Check::warning(
                format!(
                    "Open MPI takes pml/ucx ({why}): it uses no BTL, and {what}, so vmshm carries nothing"
                ),
                "cargo xtask install --prefix DIR with the headers of that UCX installed (Debian: libucx-dev), or: \
                 mpirun --mca pml ob1 (between hosts then a BTL has to carry: openib, uct or tcp)",
            )
        };
        match self.running {
            _ if self.served.is_empty() => without("no UCX transport is installed"),
            Some(running) if !self.served.contains(&running) => {
                without(&format!("the UCX transport is for UCX {all}, and this is {running}"))
            }
            _ => Check::ok(format!(
                "Open MPI takes pml/ucx ({why}), which uses vmshm by its transport for UCX {all}"
            )),
        }
    }
}

/// Which layer wins on this machine, asked with these additional parameters in the environment; nothing where Open MPI
/// does not say.
pub fn check(component_path: Option<&str>, transports: &[(Series, PathBuf)]) -> Option<Check> {
    let ask = |framework| {
        ompi_info(&["--parsable", "--param", framework, "all", "--level", "9"], component_path)
            .map(|(out, _)| out)
    };
    let parameters = ask("pml")? + &ask("mtl")?;
    Machine { ucx: Ucx::look(transports), ..Machine::look(Path::new("/"), &parameters) }.check()
}

/// Whether anything of this machine could have another layer win: cheaper than to ask.
pub fn is_doubtful() -> bool {
    let machine = Machine::look(Path::new("/"), "");
    std::env::var_os("OMPI_MCA_pml").is_some() || machine.has_omni_path || !machine.adapters.is_empty()
}

impl<'a> Machine<'a> {
    fn look(root: &Path, parameters: &'a str) -> Self {
        let list = |dir: &str| fs::read_dir(root.join(dir)).into_iter().flatten().flatten();
        let mut adapters: Vec<_> = list("sys/class/infiniband")
            .map(|entry| {
                let driver = fs::read_link(entry.path().join("device/driver")).unwrap_or_default();
                let text = |name: &std::ffi::OsStr| name.to_string_lossy().into_owned();
                (text(&entry.file_name()), driver.file_name().map(text).unwrap_or_default())
            })
            .collect();
        adapters.sort();
        let has_omni_path = list("dev").any(|entry| entry.file_name().to_string_lossy().starts_with("hfi1_"));
        Self { parameters, adapters, has_omni_path, ucx: Ucx::default() }
    }

    /// A parameter's value.
    fn value(&self, name: &str) -> Option<&'a str> {
        let key = format!(":param:{name}:value:");
        self.parameters.lines().find_map(|line| Some(line.split_once(&key)?.1.trim()))
    }

    /// Whether a component is installed, and not excluded by its framework's parameter.
    fn may_run(&self, framework: &str, component: &str) -> bool {
        let head = format!("mca:{framework}:{component}:");
        let chosen = self.value(framework).unwrap_or_default();
        self.parameters.lines().any(|line| line.starts_with(&head)) && is_chosen(chosen, component)
    }

    fn priority(&self, name: &str) -> i64 {
        self.value(&format!("{name}_priority")).and_then(|value| value.parse().ok()).unwrap_or(0)
    }

    /// Each layer that would come up here, its priority, and what of the machine brings it up.
    fn candidates(&self) -> Vec<(&'static str, i64, String)> {
        let mut found = Vec::new();
        if self.may_run("pml", "ob1") {
            found.push(("ob1", self.priority("pml_ob1"), String::new()));
        }
        if self.may_run("pml", "ucx") {
            // Without such an adapter it stands one below ob1, whatever its parameter says.
            let patterns = self.value("pml_ucx_devices").unwrap_or("mlx*");
            let raises = |driver: &str| patterns.split(',').any(|pattern| is_like(driver, pattern));
            match self.adapters.iter().find(|(_, driver)| patterns == "any" || raises(driver)) {
                Some((name, _)) => {
                    found.push(("ucx", self.priority("pml_ucx"), format!("the adapter {name} is there")));
                }
                None => found.push(("ucx", 19, String::new())),
            }
        }
        if self.may_run("pml", "cm") {
            if self.has_omni_path && self.may_run("mtl", "psm2") {
                found.push(("cm", self.priority("mtl_psm2"), "an Omni-Path adapter is there".into()));
            }
            if let Some((name, _)) = self.adapters.first().filter(|_| self.may_run("mtl", "ofi")) {
                found.push(("cm", self.priority("mtl_ofi"), format!("libfabric may use the adapter {name}")));
            }
        }
        found
    }

    fn check(&self) -> Option<Check> {
        let candidates = self.candidates();
        let chosen = self.value("pml").unwrap_or_default();
        let ob1 = candidates.iter().find(|(name, ..)| *name == "ob1");
        // Where priorities are equal we say what is no trouble.
        let winner = candidates.iter().rev().max_by_key(|(_, priority, _)| priority);
        let (winner, why) = match (winner, ob1) {
            (Some(("ob1", priority, _)), _) => {
                return Some(Check::ok(format!(
                    "Open MPI takes pml/ob1 (priority {priority}), which uses vmshm"
                )));
            }
            (Some((name, priority, why)), Some((_, ob1, _))) => {
                (Some(*name), format!("priority {priority} against ob1's {ob1}, since {why}"))
            }
            _ if chosen.is_empty() => return None,
            (winner, _) => (winner.map(|(name, ..)| *name), format!("the parameter pml is {chosen:?}")),
        };
        let winner = match winner {
            Some("ucx") => return Some(self.ucx.check(&why)),
            Some(name) => format!("pml/{name}"),
            None => "another pml than ob1".to_owned(),
        };
        Some(Check::warning(
            format!("Open MPI takes {winner} ({why}): it uses no BTL, so vmshm carries nothing"),
            "mpirun --mca pml ob1, or: export OMPI_MCA_pml=ob1 (between hosts then a BTL has to carry: openib, uct or tcp)",
        ))
    }
}

/// Whether a list as Open MPI's parameters have it, `a,b` or `^a,b`, lets a component in.
fn is_chosen(list: &str, component: &str) -> bool {
    match list.strip_prefix('^') {
        Some(without) => without.split(',').all(|name| name != component),
        None => list.is_empty() || list.split(',').any(|name| name == component),
    }
}

/// Whether a name is like a pattern, in which a star at the end stands for anything.
fn is_like(name: &str, pattern: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::check::Verdict;
    use super::*;

    /// Output of Debian 12's `ompi_info`, but for the lists.
    fn parameters(pml: &str, mtl: &str) -> String {
        format!(
            "mca:pml:base:param:pml:value:{pml}\n\
             mca:pml:cm:version:mca:2.1.0\n\
             mca:pml:ob1:param:pml_ob1_priority:value:20\n\
             mca:pml:ucx:param:pml_ucx_priority:value:51\n\
             mca:pml:ucx:param:pml_ucx_devices:value:mlx*\n\
             mca:mtl:base:param:mtl:value:{mtl}\n\
             mca:mtl:ofi:param:mtl_ofi_priority:value:25\n\
             mca:mtl:psm2:param:mtl_psm2_priority:value:40\n"
        )
    }

    fn adapter(root: &Path, name: &str, driver: &str) {
        let device = root.join("sys/class/infiniband").join(name).join("device");
        fs::create_dir_all(&device).unwrap();
        symlink(format!("../../../bus/pci/drivers/{driver}"), device.join("driver")).unwrap();
    }

    fn verdict(root: &Path, parameters: &str) -> (Verdict, String) {
        let check = Machine::look(root, parameters).check().unwrap();
        (check.verdict, check.what + "; " + &check.cure.unwrap_or_default())
    }

    #[test]
    fn infiniband_brings_ucx_before_ob1() {
        let root = tempfile::tempdir().unwrap();
        // Without an adapter it is nothing to worry about.
        assert_eq!(verdict(root.path(), &parameters("", "")).0, Verdict::Ok);
        adapter(root.path(), "mlx5_0", "mlx5_core");
        let (verdict_, text) = verdict(root.path(), &parameters("", "^ofi"));
        assert_eq!(verdict_, Verdict::Warning);
        for part in ["pml/ucx", "51 against ob1's 20", "mlx5_0", "--mca pml ob1"] {
            assert!(text.contains(part), "{text}");
        }
        // As Debian sets it, and as we advise.
        for pml in ["^ucx", "ob1"] {
            assert_eq!(verdict(root.path(), &parameters(pml, "^ofi")).0, Verdict::Ok, "{pml}");
        }
        let (verdict_, text) = verdict(root.path(), &parameters("ucx", "^ofi"));
        assert!(verdict_ == Verdict::Warning && text.contains("the parameter pml is \"ucx\""), "{text}");
    }

    #[test]
    fn ucx_is_no_trouble_where_it_has_our_transport() {
        let root = tempfile::tempdir().unwrap();
        adapter(root.path(), "mlx5_0", "mlx5_core");
        let parameters = parameters("", "^ofi");
        let check = |served: &[Series], running| {
            let ucx = Ucx { served: served.to_vec(), running };
            let check = Machine { ucx, ..Machine::look(root.path(), &parameters) }.check().unwrap();
            (check.verdict, check.what)
        };
        let both = [Series(1, 13), Series(1, 18)];
        for running in [None, Some(Series(1, 18))] {
            let (verdict, text) = check(&both, running);
            assert!(verdict == Verdict::Ok && text.contains("UCX 1.13 and 1.18"), "{text}");
        }
        let (verdict, text) = check(&both, Some(Series(1, 15)));
        assert!(verdict == Verdict::Warning && text.contains("1.15"), "{text}");
    }

    #[test]
    fn other_adapters_bring_cm_before_ob1() {
        let root = tempfile::tempdir().unwrap();
        // An adapter that UCX does not rise for; libfabric does.
        adapter(root.path(), "irdma0", "irdma");
        let (_, text) = verdict(root.path(), &parameters("", ""));
        assert!(text.contains("pml/cm (priority 25") && text.contains("irdma0"), "{text}");
        assert_eq!(verdict(root.path(), &parameters("", "^ofi")).0, Verdict::Ok);
        fs::create_dir(root.path().join("dev")).unwrap();
        fs::write(root.path().join("dev/hfi1_0"), "").unwrap();
        let (_, text) = verdict(root.path(), &parameters("", "^ofi"));
        assert!(text.contains("pml/cm (priority 40 against ob1's 20, since an Omni-Path"), "{text}");
    }

    #[test]
    fn a_machine_without_open_mpi_s_answer_has_no_finding() {
        assert!(Machine::look(Path::new("/nowhere"), "").check().is_none());
    }
}
