//! Several ivshmem devices in a VM: which of them programs take.

use vmshm_transport::attach::{AttachError, Source, find, pci_devices};

use super::check::Check;

/// How to choose.
const CURE: &str = "choose: export VMSHM_DEVICE=DEVICE, or mpirun --mca btl_vmshm_device DEVICE";

/// A finding where this machine has a choice of devices.
pub fn look() -> Option<Check> {
    let chosen = std::env::var("VMSHM_DEVICE").ok().filter(|device| !device.is_empty());
    match pci_devices().len() {
        0 => None,
        count => check(count, chosen.as_deref(), &find(chosen.as_deref())),
    }
}

/// `chosen` is what VMSHM_DEVICE says, and `taken` what a program gets by that.
fn check(count: usize, chosen: Option<&str>, taken: &Result<Source, AttachError>) -> Option<Check> {
    match taken {
        Err(AttachError::Ambiguous(names)) => Some(Check::missing(
            format!(
                "{} vmshm regions, of which programs take none by themselves: {}",
                names.len(),
                names.join(", ")
            ),
            CURE,
        )),
        Err(error @ AttachError::Unknown(_)) if chosen.is_some() => {
            Some(Check::missing(error.to_string(), CURE))
        }
        Ok(source) if count > 1 => {
            let why = match (chosen, source) {
                (Some(_), _) => "as VMSHM_DEVICE says",
                (None, Source::Driver(_)) => "since the guest driver has it",
                (None, _) => "since it alone holds a region",
            };
            Some(Check::ok(format!(
                "of {count} ivshmem devices programs take {}, {why}; another by VMSHM_DEVICE",
                name(source)
            )))
        }
        _ => None,
    }
}

/// As VMSHM_DEVICE takes it.
fn name(source: &Source) -> String {
    match source {
        Source::Pci(device) => device.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        Source::Driver(path) | Source::File(path) => path.display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::Verdict;
    use super::*;

    #[test]
    fn a_choice_is_told_or_asked_for() {
        let names = vec!["/dev/vmshm0".to_owned(), "/dev/vmshm1".to_owned()];
        let found = check(2, None, &Err(AttachError::Ambiguous(names))).unwrap();
        assert_eq!(found.verdict, Verdict::Missing);
        assert!(found.what.contains("take none") && found.what.contains("/dev/vmshm1"), "{found:?}");
        assert!(found.cure.unwrap().contains("VMSHM_DEVICE"));
        let driven = Ok(Source::Driver("/dev/vmshm0".into()));
        let found = check(2, None, &driven).unwrap();
        assert!(found.verdict == Verdict::Ok && found.what.contains("take /dev/vmshm0, since"), "{found:?}");
        let found =
            check(2, Some("0000:00:05.0"), &Ok(Source::Pci("/sys/bus/pci/devices/0000:00:05.0".into())))
                .unwrap();
        assert!(found.what.contains("take 0000:00:05.0, as VMSHM_DEVICE says"), "{found:?}");
        let found = check(1, Some("vmshm9"), &Err(AttachError::Unknown("vmshm9".into()))).unwrap();
        assert_eq!(found.verdict, Verdict::Missing);
        assert!(check(1, None, &driven).is_none());
    }
}
