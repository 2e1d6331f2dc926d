//! Mappings of the region: any range to read, the own section to write, nothing else.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, bail, ensure};
use libc::{EACCES, EFAULT, EINVAL, ENXIO, EOVERFLOW, MAP_PRIVATE, PROT_EXEC, PROT_READ, PROT_WRITE};
use vmshm_transport::abi::driver::NO_SECTION;
use vmshm_transport::abi::region::MAGIC;

use crate::device::{Device, refused};
use crate::layout::Layout;
use crate::mapping::{Map, PAGE};
use crate::report::Report;

/// Runs all checks of mappings.
pub fn checks(path: &Path, report: &mut Report) -> Result<()> {
    let (device, layout) = Layout::open(path)?;
    let own = layout.own()?;
    let total = layout.header.region_len as usize;
    let page = PAGE as u64;
    let end = own.offset + own.len;
    let read = |offset, len| Map::shared(&device, offset, len, PROT_READ);
    let write = |offset, len| Map::shared(&device, offset, len, PROT_READ | PROT_WRITE);

    report.check("the whole region can be read", || {
        let map = read(0, total)?;
        ensure!(map.word(0).load(Ordering::Relaxed) == MAGIC, "it does not begin with a header");
        map.byte(total - 1).load(Ordering::Relaxed);
        Ok(())
    });
    report.check("any page range can be read", || {
        let mib2 = 2 << 20;
        let starts = [0, page, layout.header.table_end, own.offset, own.offset + page, end - page, end];
        let starts = starts.into_iter().chain([mib2 - page, mib2, 3 * mib2 + page, (total - PAGE) as u64]);
        for start in starts {
            for pages in [1, 2, 3, 511, 512, 513, 1027] {
                let len = pages * PAGE;
                if start + len as u64 > total as u64 {
                    continue;
                }
                let map = read(start, len).with_context(|| format!("{pages} pages at {start:#x}"))?;
                map.byte(0).load(Ordering::Relaxed);
                map.byte(len - 1).load(Ordering::Relaxed);
            }
        }
        Ok(())
    });
    report.check(
        "the own section can be written, and what was written is seen through every mapping",
        || {
            let whole = write(own.offset, own.len as usize)?;
            let region = read(0, total)?;
            for at in [0, own.len / 2, own.len - page] {
                // The last word of the page, in a part that nobody uses while these checks run.
                let at = at as usize + PAGE - 8;
                let before = whole.word(at).load(Ordering::Relaxed);
                let value = 0x5eed_0000_0000_0000 | at as u64;
                whole.word(at).store(value, Ordering::SeqCst);
                let part = read(own.offset + (at - at % PAGE) as u64, PAGE)?;
                let seen = part.word(at % PAGE).load(Ordering::SeqCst);
                let also = region.word(own.offset as usize + at).load(Ordering::SeqCst);
                whole.word(at).store(before, Ordering::SeqCst);
                ensure!((seen, also) == (value, value), "at {at:#x} {seen:#x} and {also:#x}, not {value:#x}");
            }
            Ok(())
        },
    );
    report.check("mapped whole, as programs do it, 64 MiB cost few page faults", || {
        let len = (64 << 20).min(own.len as usize);
        let map = read(0, total)?;
        let before = faults();
        for at in (0..len).step_by(PAGE) {
            map.byte(own.offset as usize + at).load(Ordering::Relaxed);
        }
        let count = faults() - before;
        println!("        {count} page faults for {} pages", len / PAGE);
        ensure!(count < (len / PAGE / 16) as i64, "{count} page faults for {} pages", len / PAGE);
        Ok(())
    });
    report.check("parts of a large mapping can be protected and unmapped", || {
        let (mib2, gib) = (2_usize << 20, 1_usize << 30);
        let map = read(0, total)?;
        // In pages of every size that the kernel may have used; each touched first.
        for at in [mib2 + 5 * PAGE, gib.min(total / 2) + mib2, total / 4 * 3 + 9 * PAGE] {
            for len in [PAGE, mib2] {
                let (before, after) = (at - PAGE, at + len);
                for place in [before, at, after] {
                    map.byte(place).load(Ordering::Relaxed);
                }
                map.protect(at, len, libc::PROT_NONE)?;
                map.protect(at, len, PROT_READ)?;
                for place in [before, at, after] {
                    map.byte(place).load(Ordering::Relaxed);
                }
            }
            map.unmap(at, PAGE)?;
            map.byte(at - PAGE).load(Ordering::Relaxed);
            map.byte(at + PAGE).load(Ordering::Relaxed);
        }
        ensure!(map.word(0).load(Ordering::Relaxed) == MAGIC, "the rest shows something else");
        Ok(())
    });
    report.check("a child has its parent's mapping", || {
        let map = write(end - page, PAGE)?;
        map.word(0).store(1, Ordering::SeqCst);
        let status = in_child(|| map.word(0).store(2, Ordering::SeqCst))?;
        let seen = map.word(0).swap(0, Ordering::SeqCst);
        ensure!(status == 0 && seen == 2, "its status is {status:#x}, the word {seen}");
        Ok(())
    });

    let others = [
        ("the header", 0),
        ("the table", layout.header.table_end - page),
        ("the page before the own section", own.offset - page),
    ];
    for (name, offset) in others {
        report
            .check(&format!("{name} cannot be mapped for writing"), || refused(write(offset, PAGE), EACCES));
    }
    for (number, other) in layout.sections.iter().enumerate() {
        if number as u32 != layout.info.section {
            report.check(&format!("section {number} of another cannot be mapped for writing"), || {
                refused(write(other.offset, PAGE), EACCES)?;
                refused(write(other.offset, other.len as usize), EACCES)?;
                refused(write(other.offset + other.len - page, PAGE), EACCES)
            });
        }
    }
    report.check("a range that only begins or ends in the own section cannot be mapped for writing", || {
        refused(write(own.offset - page, 2 * PAGE), EACCES)?;
        if end < total as u64 {
            refused(write(end - page, 2 * PAGE), EACCES)?;
        }
        refused(write(0, total), EACCES)
    });
    report.check("for writing alone is no way round", || {
        refused(Map::shared(&device, 0, PAGE, PROT_WRITE), EACCES)
    });
    report.check("nothing beyond the region can be mapped", || {
        refused(read(total as u64, PAGE), EINVAL)?;
        refused(read(total as u64 - page, 2 * PAGE), EINVAL)?;
        refused(read(0, total + PAGE), EINVAL)?;
        refused(read(1 << 62, PAGE), EINVAL)
    });
    report.check("a range that overflows cannot be mapped", || {
        for (offset, len) in
            [(u64::MAX - page + 1, PAGE), (1 << 63, PAGE), (u64::MAX - 2 * page + 1, 4 * PAGE)]
        {
            let result = read(offset, len);
            let Err(error) = result else { bail!("{len:#x} bytes at {offset:#x} were mapped") };
            let errno = error.raw_os_error();
            ensure!(
                errno == Some(EINVAL) || errno == Some(EOVERFLOW),
                "{len:#x} bytes at {offset:#x}: {error}"
            );
        }
        Ok(())
    });
    report.check("nothing can be mapped for execution", || {
        refused(Map::shared(&device, own.offset, PAGE, PROT_READ | PROT_EXEC), EACCES)?;
        refused(Map::shared(&device, 0, PAGE, PROT_EXEC), EACCES)?;
        for offset in [0, own.offset] {
            refused(read(offset, PAGE)?.protect(0, PAGE, PROT_READ | PROT_EXEC), EACCES)?;
        }
        Ok(())
    });
    report.check("there are no private mappings", || {
        for protection in [PROT_READ, PROT_READ | PROT_WRITE] {
            for offset in [0, own.offset] {
                refused(Map::new(device.fd(), offset, PAGE, protection, MAP_PRIVATE), EINVAL)?;
            }
        }
        Ok(())
    });
    report.check("mprotect gives no right to write elsewhere", || {
        refused(read(0, PAGE)?.protect(0, PAGE, PROT_READ | PROT_WRITE), EACCES)?;
        for (number, other) in layout.sections.iter().enumerate() {
            if number as u32 != layout.info.section {
                refused(read(other.offset, PAGE)?.protect(0, PAGE, PROT_READ | PROT_WRITE), EACCES)?;
            }
        }
        // Part of a mapping that may not be written as a whole.
        let straddling = read(own.offset - page, 2 * PAGE)?;
        refused(straddling.protect(0, PAGE, PROT_READ | PROT_WRITE), EACCES)
    });
    report.check("mprotect takes and gives back the right to write to the own section", || {
        let map = write(end - page, PAGE)?;
        map.protect(0, PAGE, PROT_READ)?;
        map.protect(0, PAGE, PROT_READ | PROT_WRITE)?;
        map.byte(0).store(0, Ordering::Relaxed);
        Ok(())
    });
    report.check("mremap moves and shrinks, but does not grow", || {
        let mut map = read(0, 4 * PAGE)?;
        refused(map.resize(8 * PAGE), EFAULT)?;
        map.resize(2 * PAGE)?;
        ensure!(map.word(0).load(Ordering::Relaxed) == MAGIC, "a shrunk mapping shows something else");
        Ok(())
    });
    report.check("a file opened for reading alone gives no right to write", || {
        let device = Device::open_read_only(path)?;
        refused(Map::shared(&device, own.offset, PAGE, PROT_READ | PROT_WRITE), EACCES)?;
        let map = Map::shared(&device, own.offset, PAGE, PROT_READ)?;
        refused(map.protect(0, PAGE, PROT_READ | PROT_WRITE), EACCES)
    });
    report.check("writing to what is mapped for reading ends the process", || {
        for offset in [0, own.offset] {
            let map = read(offset, PAGE)?;
            // The pointer, not `byte`: this must be a plain store that nothing optimises away.
            // SAFETY: the kernel ends the child here; that is what is tried.
            let status = in_child(|| unsafe { map.as_ptr().write_volatile(1) })?;
            ensure!(
                libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSEGV,
                "its status was {status:#x}"
            );
        }
        Ok(())
    });
    report.check("the mapping is out of bounds for get_user_pages, mremap and core dumps", || {
        let map = read(0, total)?;
        let flags = vm_flags(map.address())?;
        for flag in ["sh", "pf", "io", "de", "dd"] {
            ensure!(flags.split(' ').any(|f| f == flag), "VmFlags are {flags}, without {flag}");
        }
        for flag in ["me", "mw", "ex"] {
            ensure!(flags.split(' ').all(|f| f != flag), "VmFlags are {flags}, with {flag}");
        }
        Ok(())
    });
    Ok(())
}

/// Runs the checks of a region in which this VM has no section.
pub fn read_only(path: &Path, report: &mut Report) -> Result<()> {
    let (device, layout) = Layout::open(path)?;
    let total = layout.header.region_len as usize;
    report.check("no section is ours, and all can be read", || {
        ensure!(layout.info.section == NO_SECTION, "section {} is ours", layout.info.section);
        let map = Map::shared(&device, 0, total, PROT_READ)?;
        ensure!(map.word(0).load(Ordering::Relaxed) == MAGIC, "it does not begin with a header");
        refused(map.protect(0, PAGE, PROT_READ | PROT_WRITE), EACCES)
    });
    report.check("nothing can be mapped for writing", || {
        for section in &layout.sections {
            refused(Map::shared(&device, section.offset, PAGE, PROT_READ | PROT_WRITE), EACCES)?;
        }
        refused(Map::shared(&device, 0, PAGE, PROT_READ | PROT_WRITE), EACCES)
    });
    report.check("there is no slot to hold", || refused(device.claim(0), ENXIO));
    Ok(())
}

fn vm_flags(address: usize) -> Result<String> {
    let smaps = fs::read_to_string("/proc/self/smaps")?;
    let head = format!("{address:x}-");
    let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&head));
    let flags = lines.find_map(|line| line.strip_prefix("VmFlags: "));
    Ok(flags.context("the mapping is not in smaps")?.trim().to_owned())
}

fn faults() -> i64 {
    // SAFETY: all zero is a valid value, which the kernel fills.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    usage.ru_minflt + usage.ru_majflt
}

/// Does something in a child process and returns its wait status.
pub fn in_child(work: impl FnOnce()) -> Result<i32> {
    // SAFETY: the child does only what the callers here give it: system calls and memory accesses.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()).context("fork"),
        0 => {
            work();
            // SAFETY: ends the child without running what belongs to its parent.
            unsafe { libc::_exit(0) }
        }
        child => {
            let mut status = 0;
            // SAFETY: our own child.
            match unsafe { libc::waitpid(child, &raw mut status, 0) } {
                -1 => Err(io::Error::last_os_error()).context("waitpid"),
                _ => Ok(status),
            }
        }
    }
}
