//! Ioctls, reads and polls of one process: what is answered and what is refused.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::Path;

use anyhow::{Result, bail, ensure};
use libc::{EBADF, EBUSY, EEXIST, EFAULT, EINVAL, ENOENT, ENOTCONN, ENOTTY, ENXIO, POLLIN};
use vmshm_transport::abi::driver;
use vmshm_transport::attach::{AttachError, Options, open_endpoint};

use crate::device::{Device, ioctl, new_eventfd, refused, wait};
use crate::layout::Layout;
use crate::report::Report;

/// How long a ring that must come may take, milliseconds.
const COMES: i32 = 10_000;
/// How long nothing must come, milliseconds.
const NOTHING: i32 = 100;

/// Runs all checks of calls. `vacant` is a section that no VM has.
pub fn calls(path: &Path, vacant: Option<u32>, report: &mut Report) -> Result<()> {
    let (device, layout) = Layout::open(path)?;
    let own = layout.info.section;
    let (sections, slots) = (layout.header.sections, layout.header.endpoints);
    let open = || Device::open(path);

    report.check("a slot is held by one open file, and a file holds one slot", || {
        let other = open()?;
        device.claim(3)?;
        refused(other.claim(3), EBUSY)?;
        refused(device.claim(4), EEXIST)?;
        refused(device.claim(3), EEXIST)?;
        other.claim(4)?;
        device.unclaim()?;
        refused(device.unclaim(), ENOENT)?;
        device.claim(3)?;
        device.unclaim()?;
        Ok(())
    });
    report.check("a slot is free again after its file was closed", || {
        for slot in [0, slots - 1] {
            for _ in 0..3 {
                open()?.claim(slot)?;
            }
        }
        Ok(())
    });
    report.check("a slot that does not exist cannot be held", || {
        for slot in [slots, slots + 1, u32::MAX] {
            refused(open()?.claim(slot), EINVAL)?;
        }
        Ok(())
    });
    report.check("no section but that which the driver names can be asked for", || {
        let wanted = if own == 0 { 1 } else { 0 };
        let device = Some(path.display().to_string());
        let attached = open_endpoint(&Options { device, section: Some(wanted), ..Options::default() });
        let Err(error) = attached else { bail!("section {wanted} was attached to, where {own} is ours") };
        ensure!(
            matches!(error, AttachError::OtherSection { .. }),
            "it was refused for another reason: {error}"
        );
        Ok(())
    });
    report.check("unknown calls are refused", || {
        let magic = driver::INFO & 0xff00;
        // Other numbers, another size, another direction.
        for request in [0, magic, magic | 0xff, driver::INFO ^ 1 << 16, driver::INFO ^ 3 << 30, u32::MAX] {
            let mut block = [0_u8; 4096];
            refused(ioctl(device.fd(), request, &raw mut block), ENOTTY)?;
        }
        Ok(())
    });
    report.check("bad pointers are refused", || {
        // Nothing, what no process maps, the kernel's half.
        for address in [0_usize, 8, 0x7fff_ffff_f000, 0xffff_8880_0000_0000] {
            for request in [driver::INFO, driver::CLAIM, driver::RING, driver::EVENTFD] {
                if layout.info.vectors == 0 && matches!(request, driver::RING | driver::EVENTFD) {
                    continue;
                }
                refused(ioctl(open()?.fd(), request, address as *mut u8), EFAULT)?;
            }
        }
        Ok(())
    });
    report.check("what is read is the number of rings, in eight bytes", || {
        let mut short = [0; 7];
        for len in [0, 1, 7] {
            // SAFETY: the buffer has `len` bytes.
            let got = unsafe { libc::read(device.fd(), short.as_mut_ptr().cast(), len) };
            ensure!(got <= 0, "a read of {len} bytes gave {got}");
        }
        let count = device.rings()?;
        ensure!(device.rings()? == 0 || count > 0, "rings that nobody sent");
        // SAFETY: the address is bad, which is what is tried.
        let got = unsafe { libc::read(device.fd(), std::ptr::without_provenance_mut(8), 8) };
        let error = std::io::Error::last_os_error();
        ensure!(got == -1 && error.raw_os_error() == Some(EFAULT), "a bad buffer: {got}, {error}");
        Ok(())
    });

    if layout.info.vectors == 0 {
        report.check("a device without doorbells says so", || {
            refused(device.ring(0, 0), ENXIO)?;
            refused(device.eventfd(new_eventfd()?.as_raw_fd(), 0), ENXIO)?;
            ensure!(device.wait(NOTHING)? == 0, "poll saw something");
            Ok(())
        });
        return Ok(());
    }

    report.check("an endpoint that does not exist cannot be rung", || {
        for (section, slot) in [(sections, 0), (u32::MAX, 0), (own, slots), (own, u32::MAX)] {
            refused(device.ring(section, slot), EINVAL)?;
        }
        Ok(())
    });
    if let Some(vacant) = vacant {
        report.check("a section that no VM has cannot be rung", || refused(device.ring(vacant, 0), ENOTCONN));
    }
    report.check("a process of the same VM is rung", || {
        let (one, two) = (open()?, open()?);
        one.claim(1)?;
        two.claim(2)?;
        one.rings()?;
        two.rings()?;
        for round in 1..=100 {
            one.ring(own, 2)?;
            ensure!(two.wait(COMES)? & POLLIN != 0, "ring {round} did not come");
            let count = two.rings()?;
            ensure!(count == 1, "ring {round} was counted {count} times");
            ensure!(two.rings()? == 0 && two.wait(0)? & POLLIN == 0, "ring {round} came again");
        }
        ensure!(one.wait(NOTHING)? & POLLIN == 0, "the other was rung too");
        Ok(())
    });
    report.check("who holds no slot hears all doorbells", || {
        let (one, two) = (open()?, open()?);
        two.rings()?;
        for slot in 0..layout.info.vectors.min(slots) {
            one.ring(own, slot)?;
            ensure!(two.wait(COMES)? & POLLIN != 0, "the ring of slot {slot} did not come");
            ensure!(two.rings()? == 1, "the ring of slot {slot} was not counted once");
        }
        Ok(())
    });
    report.check("an eventfd is signalled until it is taken back", || {
        let (one, two) = (open()?, open()?);
        let event = new_eventfd()?;
        two.eventfd(event.as_raw_fd(), 0)?;
        one.ring(own, 0)?;
        ensure!(wait(event.as_raw_fd(), COMES)? & POLLIN != 0, "it was not signalled");
        ensure!(taken(&event)? == 1, "one ring was not counted once");
        if layout.info.vectors > 1 {
            one.ring(own, 1)?;
            ensure!(wait(event.as_raw_fd(), NOTHING)? & POLLIN == 0, "it was signalled by another doorbell");
        }
        two.eventfd(-1, 0)?;
        one.ring(own, 0)?;
        ensure!(wait(event.as_raw_fd(), NOTHING)? & POLLIN == 0, "it was signalled after it was taken back");
        two.eventfd(event.as_raw_fd(), 0)?;
        drop(two);
        one.ring(own, 0)?;
        ensure!(
            wait(event.as_raw_fd(), NOTHING)? & POLLIN == 0,
            "it was signalled after its file was closed"
        );
        Ok(())
    });
    report.check("a new eventfd takes the place of the old one", || {
        let (one, two) = (open()?, open()?);
        let (first, second) = (new_eventfd()?, new_eventfd()?);
        two.eventfd(first.as_raw_fd(), 0)?;
        two.eventfd(second.as_raw_fd(), 0)?;
        one.ring(own, 0)?;
        ensure!(wait(second.as_raw_fd(), COMES)? & POLLIN != 0, "the new one was not signalled");
        ensure!(wait(first.as_raw_fd(), NOTHING)? & POLLIN == 0, "the old one was signalled");
        Ok(())
    });
    report.check("what is no eventfd is refused", || {
        refused(device.eventfd(device.fd(), 0), EBADF)?;
        refused(device.eventfd(9999, 0), EBADF)?;
        refused(device.eventfd(new_eventfd()?.as_raw_fd(), layout.info.vectors), EINVAL)?;
        refused(device.eventfd(new_eventfd()?.as_raw_fd(), u32::MAX), EINVAL)
    });
    Ok(())
}

/// The count of an eventfd, which is zero from then on.
pub fn taken(mut event: &File) -> Result<u64> {
    let mut bytes = [0; 8];
    event.read_exact(&mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}
