//! Devices without doorbells.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::guest::{LIMIT, SHORT, attribute, check, check_in, checked, must};
use super::setup::{Prepared, start};
use crate::lab::region::Region;
use crate::lab::{PAYLOAD, Sharing};
use crate::test::tally::Count;

/// One guest with devices that have no doorbells and lie below 4 GiB: its own, one that the host gave it nothing of,
/// and one that is somebody else's.
pub fn plain(prepared: &Prepared, logs: &Path) -> Result<(Count, usize)> {
    let parts = prepared.as_ref().map_err(|why| anyhow::anyhow!("{why}"))?;
    let unassigned = Region::create(&parts.stage, "64M", 2, true)?;
    let file = unassigned.file().display().to_string().replace(',', ",,");
    let extra = [
        "-object",
        &format!("memory-backend-file,id=unassigned,mem-path={file},size=64M,share=on"),
        "-device",
        "ivshmem-plain,memdev=unassigned",
        "-object",
        "memory-backend-ram,id=foreign,size=1M,share=on",
        "-device",
        "ivshmem-plain,memdev=foreign",
    ];
    let sharing = Sharing {
        size: "256M",
        extra: extra.iter().map(|&word| word.to_owned()).collect(),
        ..Sharing::default()
    };
    let mut lab = start(prepared, 1, &sharing, logs)?;
    let lab = &mut lab;
    let dmesg = must(lab, 0, "dmesg | grep -i vmshm", SHORT)?;
    let count = checked(lab, logs, |lab| {
        let mut count = Count::default();
        let id = |region: &Region| -> Result<String> {
            Ok(region.inspect()?["id"].as_str().context("no id")?.to_owned())
        };
        let (own, other) = (id(lab.region())?, id(&unassigned)?);
        let names = must(lab, 0, "ls /sys/class/misc | grep '^vmshm'", SHORT)?;
        let names: Vec<&str> = names.split_whitespace().collect();
        check(&mut count, names == ["vmshm0", "vmshm1"], || format!("the devices are {names:?}"));
        let mut devices = [String::new(), String::new()];
        for name in names {
            let id = attribute(lab, 0, name, "region_id")?;
            if let Some(at) = [&own, &other].iter().position(|known| **known == id) {
                devices[at] = name.to_owned();
            }
        }
        let [own, other] = devices;
        ensure!(!own.is_empty() && !other.is_empty(), "a region has no device:\n{dmesg}");

        for (device, section) in [(&own, "0"), (&other, "none")] {
            let wanted = [("section", section), ("memory_type", "uncached"), ("vectors", "0")];
            for (name, want) in wanted {
                let got = attribute(lab, 0, device, name)?;
                check(&mut count, got == want, || format!("{name} of {device} is {got}, not {want}"));
            }
        }
        // Each tells its story in one line.
        for (what, lines, cure) in [
            ("the foreign device", 1, "left alone"),
            ("the device without a section", 1, "vmshm qemu-args"),
            ("uncached memory", 2, "4 GiB or more"),
        ] {
            let found = dmesg.lines().filter(|line| line.contains(cure)).count();
            check(&mut count, found == lines, || {
                format!("{found} lines about {what}, not {lines}:\n{dmesg}")
            });
        }
        let bound = must(lab, 0, "ls -d /sys/bus/pci/drivers/vmshm/0000:* | wc -l", SHORT)?;
        check(&mut count, bound.trim() == "2", || format!("{} devices are bound", bound.trim()));
        let doctor = lab.run(0, &format!("{PAYLOAD}/bin/vmshm doctor"), SHORT)?;
        fs::create_dir_all(logs)?;
        fs::write(logs.join("doctor.log"), &doctor.text)?;
        check(
            &mut count,
            doctor.text.contains("mapped UNCACHED") && doctor.text.contains("--size 4G"),
            || format!("vmshm doctor does not tell of uncached memory:\n{}", doctor.text),
        );
        check(
            &mut count,
            doctor.text.contains("programs take none by themselves: /dev/vmshm0, /dev/vmshm1"),
            || format!("vmshm doctor does not tell that there is a choice:\n{}", doctor.text),
        );
        count.add(&check_in(lab, &[0], |_| format!("mmap --device /dev/{own}"), logs, LIMIT)?.0);
        count.add(&check_in(lab, &[0], |_| format!("calls --device /dev/{own}"), logs, LIMIT)?.0);
        count.add(&check_in(lab, &[0], |_| format!("lives --device /dev/{own}"), logs, LIMIT)?.0);
        count.add(&check_in(lab, &[0], |_| format!("read-only --device /dev/{other}"), logs, LIMIT)?.0);
        Ok(count)
    })?;
    Ok((count, lab.repeated_boots))
}
