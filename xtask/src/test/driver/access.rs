//! The driver by itself: loading, mappings, calls, whose section is whose.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Result, bail};
use serde_json::Value;

use super::guest::{LIMIT, SHORT, attribute, check, check_in, must, seed};
use super::setup::MODULE;
use crate::lab::{Lab, PAYLOAD};
use crate::test::tally::Count;

/// Times that the module is loaded and unloaded.
pub const LOADS: usize = 50;

/// Random calls in each guest.
pub const CALLS: u64 = 20_000;

pub fn load(lab: &mut Lab, release: &str, logs: &Path) -> Result<Count> {
    let mut count = Count::default();
    let seen = lab.region().inspect()?;
    for guest in 0..lab.size() {
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let sections = seen["sections"].as_array().map_or(0, Vec::len);
        let wanted = [
            ("region_id", text(&seen["id"])),
            ("size", text(&seen["size"])),
            ("sections", sections.to_string()),
            ("section", guest.to_string()),
            ("numa_node", "-1".to_owned()),
            ("memory_type", "write-back".to_owned()),
            ("vectors", "8".to_owned()),
        ];
        for (name, want) in wanted {
            let got = attribute(lab, guest, "vmshm0", name)?;
            check(&mut count, got == want, || format!("{name} of guest {guest} is {got}, not {want}"));
        }
        let rights = must(lab, guest, "stat -c '%U:%G %a' /dev/vmshm0", SHORT)?;
        check(&mut count, rights.trim() == "root:vmshm 660", || format!("/dev/vmshm0 is {rights}"));
        memory_type(lab, guest, &mut count)?;
    }

    let info = must(lab, 0, &format!("modinfo {PAYLOAD}/{MODULE}"), SHORT)?;
    fs::create_dir_all(logs)?;
    fs::write(logs.join("modinfo.log"), &info)?;
    let field = |name: &str| {
        let mut lines = info.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(key, _)| *key == name).map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    for name in ["author", "description", "version"] {
        check(&mut count, !field(name).is_empty(), || format!("modinfo shows no {name}"));
    }
    for (name, want) in [
        ("name", "vmshm"),
        ("license", "GPL"),
        ("alias", "pci:v00001AF4d00001110sv*sd*bc*sc*i*"),
        ("vermagic", release),
    ] {
        let got = field(name);
        check(&mut count, got.split(' ').next() == Some(want), || format!("modinfo's {name} is {got:?}"));
    }

    // The shell opens the file before it becomes sleep; the module must be held all the time.
    let refused = lab.run(0, "exec 9< /dev/vmshm0\nrmmod vmshm\ncode=$?\nexec 9<&-\nexit $code", SHORT)?;
    check(&mut count, refused.code != 0 && refused.text.contains("in use"), || {
        format!("rmmod with an open file: exit code {}, {}", refused.code, refused.text)
    });
    let text = must(
        lab,
        0,
        &format!(
            "i=0\n\
             while [ $i -lt {LOADS} ]; do\n\
             rmmod vmshm || exit 1\n\
             [ ! -e /dev/vmshm0 ] || {{ echo \"round $i: the device is still there\"; exit 1; }}\n\
             insmod {PAYLOAD}/{MODULE} || exit 1\n\
             [ -c /dev/vmshm0 ] || {{ echo \"round $i: there is no device\"; exit 1; }}\n\
             i=$((i + 1))\n\
             done\n\
             udevadm settle --timeout=30\n\
             echo $i rounds"
        ),
        LIMIT,
    )?;
    check(&mut count, text.trim() == format!("{LOADS} rounds"), || text);
    count.note = format!("{LOADS} times loaded and unloaded");
    Ok(count)
}

/// Memory type behind `/dev/vmshm0`, by the kernel's own list.
pub fn memory_type(lab: &mut Lab, guest: usize, count: &mut Count) -> Result<()> {
    let text = must(
        lab,
        guest,
        "sed -n 3p /sys/class/misc/vmshm0/device/resource; cat /sys/kernel/debug/x86/pat_memtype_list",
        SHORT,
    )?;
    let mut lines = text.lines();
    let bar = lines.next().unwrap_or_default().to_owned();
    let mut numbers =
        bar.split_whitespace().filter_map(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok());
    let (Some(start), Some(end)) = (numbers.next(), numbers.next()) else { bail!("BAR 2 is {bar:?}") };
    check(count, start >= 1 << 32, || format!("BAR 2 of guest {guest} is at {start:#x}, below 4 GiB"));
    let range = format!("[mem 0x{start:016x}-0x{:016x}]", end + 1);
    let found: Vec<&str> = lines.filter(|line| line.contains(&range)).collect();
    check(count, found.len() == 1 && found[0].contains("write-back"), || {
        format!("pat_memtype_list of guest {guest} says {found:?} of {range}:\n{text}")
    });
    Ok(())
}

/// Each guest writes a pattern, and each other reads it.
pub fn exchange(lab: &mut Lab, paint: bool, seed: u64, logs: &Path) -> Result<Count> {
    let guests: Vec<usize> = (0..lab.size()).collect();
    for &guest in guests.iter().filter(|_| paint) {
        let seed = seed + guest as u64;
        must(lab, guest, &format!("{PAYLOAD}/bin/vmshm-driver-check paint --seed {seed}"), SHORT)?;
    }
    let other = |guest: usize| (guest + 1) % guests.len();
    let arguments =
        |guest| format!("compare --section {} --seed {}", other(guest), seed + other(guest) as u64);
    Ok(check_in(lab, &guests, arguments, logs, SHORT)?.0)
}

pub fn mmap(lab: &mut Lab, logs: &Path) -> Result<Count> {
    let (mut count, _) = check_in(lab, &[0, 1], |_| "mmap".into(), logs, LIMIT)?;
    count.add(&check_in(lab, &[0], |_| "faults".into(), logs, LIMIT)?.0);
    count.add(&exchange(lab, true, seed(), logs)?);
    Ok(count)
}

pub fn calls(lab: &mut Lab, logs: &Path) -> Result<Count> {
    let vacant = lab.size();
    // One after the other: they count each ring.
    let (mut count, _) = check_in(lab, &[0], |_| format!("calls --vacant {vacant}"), logs, LIMIT)?;
    count.add(&check_in(lab, &[0, 1], |_| "lives".into(), logs, LIMIT)?.0);
    Ok(count)
}

pub fn fuzz(lab: &mut Lab, logs: &Path) -> Result<Count> {
    let seed = seed();
    let arguments = |guest| format!("fuzz --seed {} --calls {CALLS}", seed + guest as u64);
    let (mut count, _) = check_in(lab, &[0, 1], arguments, logs, LIMIT * 2)?;
    count.note = format!("{CALLS} calls in each guest, seeds {seed} and {}", seed + 1);
    Ok(count)
}

pub fn unbind(lab: &mut Lab, logs: &Path) -> Result<Count> {
    let (mut count, _) = check_in(lab, &[0, 1], |_| "unbind".into(), logs, LIMIT * 2)?;
    for guest in 0..2 {
        must(lab, guest, "udevadm settle --timeout=30", LIMIT)?;
    }
    another_s_section(lab, &mut count)?;
    Ok(count)
}

/// A section whose row names another machine than this one is not this one's, whatever number its device was given.
pub fn another_s_section(lab: &mut Lab, count: &mut Count) -> Result<()> {
    // The word `vm_id` of row 0, see `abi/src/region.rs`.
    const VM_ID: u64 = 256 + 52;
    let file = fs::File::options().read(true).write(true).open(lab.region().file())?;
    let mut before = [0; 4];
    file.read_exact_at(&mut before, VM_ID)?;
    let bind_anew = "cd /sys/bus/pci/drivers/vmshm && device=$(echo 0000:*) && echo $device > unbind && \
                     echo $device > bind && udevadm settle --timeout=30";
    file.write_all_at(&(u32::from_ne_bytes(before) + 64).to_ne_bytes(), VM_ID)?;
    let rebound = must(lab, 0, bind_anew, LIMIT);
    file.write_all_at(&before, VM_ID)?;
    rebound?;
    let section = attribute(lab, 0, "vmshm0", "section")?;
    check(count, section == "none", || format!("guest 0 took section {section}, which was another's"));
    // To open the device is to look again.
    must(lab, 0, ": < /dev/vmshm0", SHORT)?;
    let section = attribute(lab, 0, "vmshm0", "section")?;
    check(count, section == "0", || format!("the section of guest 0 is {section}, not 0"));
    Ok(())
}
