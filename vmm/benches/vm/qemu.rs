//! The twins in two VMs under QEMU, with its `microvm` machine and the region as `ivshmem-plain`.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use vmshm_host::{PageSize, Region, mount_point};
use vmshm_vmm::{bare, place};

use super::board::{BOARD, Board, RAM_END};
use super::{LEFT_LEN, LIMIT, Left, REGION, REGION_LEN, board_of, bytes_of, check, text};
#[path = "firmware.rs"]
mod firmware;

/// QEMU as it is found.
pub const PROGRAM: &str = "qemu-system-x86_64";
/// QEMU's exit code for what the program stores to port 0x600 when it ends, as `isa-debug-exit` makes it.
const ENDED: i32 = 0x34 << 1 | 1;

/// One of the twins.
#[derive(Debug)]
struct Twin {
    child: Child,
    /// Its memory.
    ram: GuestMemoryMmap,
}

impl Drop for Twin {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Twin {
    /// The memory that it left, if it ended; an error where that went wrong.
    fn look(&mut self) -> Result<Option<Vec<u8>>, String> {
        let Some(status) = self.child.try_wait().map_err(text)? else { return Ok(None) };
        if status.code() != Some(ENDED) {
            let mut said = String::new();
            let _ = self.child.stderr.take().map(|mut pipe| pipe.read_to_string(&mut said));
            return Err(format!("{PROGRAM} ended as it should not, {status}: {}", said.trim()));
        }
        let mut left = vec![0; LEFT_LEN];
        self.ram.read_slice(&mut left, GuestAddress(BOARD)).map_err(text)?;
        check(&board_of(&left))?;
        Ok(Some(left))
    }
}

/// Lets two VMs run the program.
pub fn in_vms(
    image: &[u8],
    boards: [Board; 2],
    cpus: [usize; 2],
    pages: PageSize,
    open: impl Fn() -> Result<Region, String>,
) -> Result<Left, String> {
    // The RAM of a VM is a file, which holds all that the firmware needs before QEMU starts.
    let dir = match pages {
        PageSize::Base => Path::new("/dev/shm").to_owned(),
        _ => mount_point(pages).map_err(text)?,
    };
    let dir = tempfile::tempdir_in(dir).map_err(text)?;
    let bios = tempfile::tempdir().map_err(text)?;
    let file = bios.path().join("firmware");
    fs::write(&file, firmware::image()).map_err(text)?;
    let start = |section: usize| -> Result<Twin, String> {
        let region = open()?;
        // As a VM of ours has its section: the transport looks who has it.
        region.assign(section as u32, Some(uuid::Uuid::from_u128(1 + section as u128))).map_err(text)?;
        let path = dir.path().join(format!("ram{section}"));
        let ram = prepare(&path, image, &boards[section])?;
        let mut command = Command::new(PROGRAM);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-accel", "kvm"]);
        // Without the feature, since a KVM in software does not have its model-specific register.
        command.args(["-cpu", "host,-arch-capabilities", "-smp", "1", "-m", &format!("{RAM_END}B")]);
        command.args(["-machine", "microvm,pcie=on,memory-backend=ram,pit=off,pic=off,rtc=off"]);
        for (id, path, len) in [("ram", &*path, RAM_END), ("region", region.path(), REGION_LEN)] {
            let path = path.display();
            let options = format!("id={id},mem-path={path},size={len}B,share=on,prealloc=on");
            command.args(["-object", &format!("memory-backend-file,{options}")]);
        }
        command.args(["-device", "ivshmem-plain,memdev=region,addr=1"]);
        command.args(["-device", "isa-debug-exit,iobase=0x600,iosize=1"]);
        command.arg("-bios").arg(&file);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let cpu = cpus[section];
        // SAFETY: both calls are the kernel's own, without memory of the parent's.
        unsafe {
            command.pre_exec(move || {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                place::pin(cpu).map_err(|_| std::io::Error::last_os_error())
            });
        }
        let child = command.spawn().map_err(|error| format!("cannot start {PROGRAM}: {error}"))?;
        Ok(Twin { child, ram })
    };
    let mut twins = [start(0)?, start(1)?];
    let mut left = [None, None];
    let began = Instant::now();
    while left.iter().any(Option::is_none) {
        if began.elapsed() > LIMIT {
            return Err(format!("a bench guest under QEMU did not end within {} s", LIMIT.as_secs()));
        }
        // Rarely, since the guests have all CPUs that this process may use.
        std::thread::sleep(Duration::from_millis(250));
        for (twin, left) in twins.iter_mut().zip(&mut left) {
            if left.is_none() {
                *left = twin.look()?;
            }
        }
    }
    Ok(left.map(Option::unwrap_or_default))
}

/// A file with a VM's memory: the program, its board, and what the processor needs.
fn prepare(path: &Path, image: &[u8], board: &Board) -> Result<GuestMemoryMmap, String> {
    let file = File::options().read(true).write(true).create_new(true).open(path).map_err(text)?;
    file.set_len(RAM_END).map_err(text)?;
    let range = (GuestAddress(0), RAM_END as usize, Some(FileOffset::new(file, 0)));
    let ram = GuestMemoryMmap::from_ranges_with_files([range]).map_err(text)?;
    let (firmware_start, firmware_len) = firmware::MAPPED;
    let ranges = [
        (0, 0, RAM_END),
        (REGION, firmware::BAR, REGION_LEN),
        (firmware_start, firmware_start, firmware_len),
    ];
    let parts: [(&[u8], u64); 5] = [
        (&firmware::descriptors(), firmware::GDT),
        (&bare::task_state(), bare::TSS),
        (&bare::page_tables(&ranges).map_err(text)?, bare::TABLES),
        (image, bare::CODE),
        (bytes_of(board), BOARD),
    ];
    for (bytes, at) in parts {
        ram.write_slice(bytes, GuestAddress(at)).map_err(text)?;
    }
    Ok(ram)
}
