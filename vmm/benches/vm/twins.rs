//! Twins of the bench guest's program that talk over a region: in two VMs, or in two processes of this host.
//!
//! Both run the same image at the same addresses, with the same registers, on the same CPUs.

use std::arch::x86_64::_rdtsc;
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::mem::{MaybeUninit, offset_of};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use vm_memory::{Bytes, GuestAddress};
use vmshm_host::{CreateOptions, PageSize, Region, RegionName, Registry, mount_point, pools};
use vmshm_vmm::{End, Host, Ram, RamOptions, Running, Shared, Topology, Vm, bare, place, power};

#[path = "../../bench-guest/src/board.rs"]
mod board;
#[path = "qemu.rs"]
pub mod qemu;

use board::{BOARD, Board, CHECKED_TURNS, RAM_END, SAMPLES, STREAMS, turns_of};
pub use board::{MAX_TURNS, SIZES, stream_of};

/// Where the program sees the region.
const REGION: u64 = 1 << 35;
const REGION_LEN: u64 = 64 << 20;
/// For one round of one way.
const LIMIT: Duration = Duration::from_secs(60);

/// The place where the twins run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Two VMs of ours.
    Vm,
    /// Two VMs of QEMU's.
    Qemu,
    /// Two processes.
    Process,
}

/// Times of many turns, in ticks of the time stamp counter.
pub type Samples = Vec<u32>;

/// The figures of one pair of twins. All times are ticks.
#[derive(Debug)]
pub struct Round {
    /// Round trips of a bare cache line, before all else and after it.
    pub lines: [Samples; 2],
    /// Round trips of messages of each size.
    pub turns: Vec<Samples>,
    /// Streams of messages of each size.
    pub streams: Vec<[u64; STREAMS]>,
    /// Bytes that both looked at.
    pub checked: u64,
    /// Those of them that were wrong.
    pub wrong: u64,
}

/// Bytes that a pair of twins looks at.
pub fn to_check() -> u64 {
    2 * CHECKED_TURNS * SIZES.iter().sum::<usize>() as u64
}

/// Builds the program. It lies in `target`, away from all else, since it is built another way.
pub fn image(target: &Path) -> Result<Vec<u8>, String> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench-guest");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    // Its flags and its target stand in its own configuration.
    for flags in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET"] {
        command.env_remove(flags);
    }
    let built = command
        .args(["build", "--quiet", "--release", "--locked", "--target-dir"])
        .arg(target)
        .current_dir(&sources)
        .output();
    let built = built.map_err(|error| format!("cannot run cargo: {error}"))?;
    if !built.status.success() {
        return Err(format!("cannot build the bench guest:\n{}", String::from_utf8_lossy(&built.stderr)));
    }
    let path = target.join("x86_64-unknown-linux-gnu/release/bench-guest");
    std::fs::read(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

/// The pages that the region and the memory of each twin lie on: 2 MiB where there are enough, and a hugetlbfs.
pub fn pages() -> PageSize {
    let page = PageSize::Huge2M.bytes();
    let wanted = (REGION_LEN + 2 * RAM_END) / page;
    let are_there = pools(None).iter().any(|pool| pool.page_len == page && pool.free >= wanted);
    match are_there && mount_point(PageSize::Huge2M).is_ok() {
        true => PageSize::Huge2M,
        false => PageSize::Base,
    }
}

/// Lets twins on two CPUs measure once, in a region of their own.
pub fn run(
    host: &Host,
    image: &[u8],
    way: Way,
    turns: u64,
    cpus: [usize; 2],
    pages: PageSize,
) -> Result<Round, String> {
    let dir = tempfile::tempdir_in("/dev/shm").map_err(text)?;
    let registry = Registry::at(dir.path());
    let name = RegionName::new("bench").map_err(text)?;
    let options = CreateOptions { pages, ..CreateOptions::new(REGION_LEN) };
    registry.create(&name, &options).map_err(text)?;
    let open = || registry.open("bench").map_err(text);
    let order = |section: u32| Board {
        region: REGION,
        region_len: REGION_LEN,
        section: section.into(),
        in_vm: (way != Way::Process).into(),
        turns,
        done: 0,
        checked: 0,
        wrong: 0,
        streams: [[0; STREAMS]; SIZES.len()],
        text: [0; 256],
    };
    let left = match way {
        Way::Vm => in_vms(host, image, [0, 1].map(order), cpus, pages, open),
        Way::Qemu => qemu::in_vms(image, [0, 1].map(order), cpus, pages, open),
        Way::Process => in_processes(image, [0, 1].map(order), cpus, pages, open),
    };
    registry.destroy("bench", true).map_err(text)?;
    read(&left?, turns)
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// The RAM that the twins left, from the board to the heap.
type Left = [Vec<u8>; 2];

const LEFT_LEN: usize = (board::HEAP - BOARD) as usize;

fn read(left: &Left, turns: u64) -> Result<Round, String> {
    let boards = [board_of(&left[0]), board_of(&left[1])];
    boards.iter().try_for_each(check)?;
    let mut samples = left[0][(SAMPLES - BOARD) as usize..].chunks_exact(4);
    let mut take = |count: u64| -> Samples {
        let next = samples.by_ref().take(count as usize);
        next.map(|bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])).collect()
    };
    let before = take(turns);
    let all = SIZES.map(|size| take(turns_of(size, turns)));
    Ok(Round {
        lines: [before, take(turns)],
        turns: all.into(),
        streams: boards[0].streams.into(),
        checked: boards.iter().map(|board| board.checked).sum(),
        wrong: boards.iter().map(|board| board.wrong).sum(),
    })
}

fn check(board: &Board) -> Result<(), String> {
    match board.done {
        1 => Ok(()),
        _ => {
            let text = String::from_utf8_lossy(&board.text);
            Err(format!("twin {} stopped: {}", board.section, text.trim_end_matches(['\0', '\n'])))
        }
    }
}

fn board_of(left: &[u8]) -> Board {
    assert!(left.len() >= size_of::<Board>());
    // SAFETY: as many bytes are there, all of a board's are integers, and any bits make integers.
    unsafe { left.as_ptr().cast::<Board>().read_unaligned() }
}

fn bytes_of(board: &Board) -> &[u8] {
    // SAFETY: a board consists of integers without padding between them.
    unsafe { std::slice::from_raw_parts((&raw const *board).cast(), size_of::<Board>()) }
}

const _: () = assert!(size_of::<Board>() == offset_of!(Board, text) + 256);

fn in_vms(
    host: &Host,
    image: &[u8],
    boards: [Board; 2],
    cpus: [usize; 2],
    pages: PageSize,
    open: impl Fn() -> Result<Region, String>,
) -> Result<Left, String> {
    let start = |section: u32| -> Result<Running, String> {
        let uuid = uuid::Uuid::from_u128(1 + u128::from(section));
        let shared = Shared::take(open()?, section, uuid).map_err(text)?;
        let ram = RamOptions::anywhere(RAM_END, pages);
        let ram = Ram::new(&ram, |_, _| ()).map_err(text)?;
        let vm = Vm::new(host, ram, vec![shared], Topology::flat(1), true).map_err(text)?;
        power::add(&vm).map_err(text)?;
        vm.place(0, REGION).map_err(text)?;
        bare::load(host, &vm, image, &[(REGION, REGION_LEN)], |_| [0; 6]).map_err(text)?;
        let board = bytes_of(&boards[section as usize]);
        vm.ram().map().write_slice(board, GuestAddress(BOARD)).map_err(text)?;
        let cpu = cpus[section as usize];
        vm.start(move |_| place::pin(cpu).expect("a CPU that may be used")).map_err(text)
    };
    let vms = [start(0)?, start(1)?];
    let left = |vm: &Running| {
        let mut left = vec![0; LEFT_LEN];
        vm.ram().map().read_slice(&mut left, GuestAddress(BOARD)).map(|()| left).map_err(text)
    };
    let began = Instant::now();
    while vms.iter().any(|vm| vm.ended().is_none()) {
        // Rarely, since the guests have all CPUs that this process may use.
        vms[0].wait(Duration::from_secs(1));
        for vm in &vms {
            match vm.ended() {
                None if began.elapsed() > LIMIT => {
                    return Err(format!("a bench guest did not end within {} s", LIMIT.as_secs()));
                }
                // The other would wait for it for ever.
                Some(End::PowerOff) => check(&board_of(&left(vm)?))?,
                None => {}
                Some(end) => return Err(format!("a bench guest ended as it should not: {end}")),
            }
        }
    }
    Ok([left(&vms[0])?, left(&vms[1])?])
}

fn in_processes(
    image: &[u8],
    boards: [Board; 2],
    cpus: [usize; 2],
    pages: PageSize,
    open: impl Fn() -> Result<Region, String>,
) -> Result<Left, String> {
    let start = |section: usize| -> Result<Process, String> {
        let region = open()?;
        // As a VM has its section: the transport looks who has it.
        let uuid = uuid::Uuid::from_u128(1 + section as u128);
        region.assign(section as u32, Some(uuid)).map_err(text)?;
        let entry = region.entry(section as u32).map_err(text)?;
        let own = (entry.offset, entry.len as usize);
        let (ear, mouth) = io::pipe().map_err(text)?;
        // SAFETY: the child calls nothing but the operating system and the program, and has all that it needs already; no
        // lock and no allocator are used, which another thread might have held.
        match unsafe { fork() }.map_err(text)? {
            ForkResult::Parent { child } => Ok(Process { child, ear: Some(ear), region }),
            ForkResult::Child => {
                let code =
                    become_twin(image, &boards[section], cpus[section], pages, region.file(), own, mouth);
                // SAFETY: ends the process without its destructors, which are the parent's.
                unsafe { libc::_exit(code) }
            }
        }
    };
    let mut processes = [start(0)?, start(1)?];
    let [left, right] = processes.each_mut().map(|process| process.end());
    Ok([left?, right?])
}

/// A process that is one of the twins.
struct Process {
    child: Pid,
    ear: Option<PipeReader>,
    region: Region,
}

impl Process {
    fn end(&mut self) -> Result<Vec<u8>, String> {
        let mut left = Vec::with_capacity(LEFT_LEN);
        let read = self.ear.take().map(|mut ear| ear.read_to_end(&mut left));
        let ended = waitpid(self.child, None).map_err(text)?;
        if !matches!(read, Some(Ok(LEFT_LEN))) || ended != WaitStatus::Exited(self.child, 0) {
            return Err(format!("a process on {} ended as it should not: {ended:?}", self.region.name()));
        }
        Ok(left)
    }
}

/// Runs the program in a process that was just forked, and tells the parent what it left. Returns an exit code.
fn become_twin(
    image: &[u8],
    board: &Board,
    cpu: usize,
    pages: PageSize,
    region: &File,
    own: (u64, usize),
    mut mouth: PipeWriter,
) -> i32 {
    // SAFETY: calls without pointers. Nobody waits for ever for a twin that is gone.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::alarm(LIMIT.as_secs() as u32);
    }
    if place::pin(cpu).is_err() {
        return 2;
    }
    // Huge pages are whole ones; what lies below the board is the image and its stack.
    let low = bare::CODE - bare::STACK;
    let huge = match pages {
        PageSize::Base => 0,
        _ => libc::MAP_HUGETLB | libc::MAP_HUGE_2MB,
    };
    let all = libc::PROT_READ | libc::PROT_WRITE;
    let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let mapped = map(low, (BOARD - low) as usize, all | libc::PROT_EXEC, private, -1)
        && map(BOARD, (RAM_END - BOARD) as usize, all, private | huge, -1)
        && map(REGION, REGION_LEN as usize, libc::PROT_READ, libc::MAP_SHARED, region.as_raw_fd());
    if !mapped {
        return 3;
    }
    // SAFETY: all addresses lie in what was just mapped, which nobody else uses; the image is a program for the C calling
    // convention that begins with its first byte, and does nothing beyond its memory, as long as it does not switch a VM off.
    unsafe {
        let at = |address: u64| std::ptr::with_exposed_provenance_mut::<u8>(address as usize);
        libc::madvise(at(BOARD).cast(), (RAM_END - BOARD) as usize, libc::MADV_HUGEPAGE);
        libc::madvise(at(BOARD).cast(), (RAM_END - BOARD) as usize, libc::MADV_POPULATE_WRITE);
        libc::mprotect(at(REGION + own.0).cast(), own.1, all);
        at(bare::CODE).copy_from_nonoverlapping(image.as_ptr(), image.len());
        at(BOARD).cast::<Board>().write(*board);
        let program: extern "C" fn() = std::mem::transmute(at(bare::CODE));
        program();
        let left = std::slice::from_raw_parts(at(BOARD), LEFT_LEN);
        i32::from(mouth.write_all(left).is_err())
    }
}

/// Maps memory where the program expects it.
fn map(at: u64, len: usize, prot: i32, flags: i32, fd: i32) -> bool {
    let at = std::ptr::with_exposed_provenance_mut(at as usize);
    // SAFETY: never in place of another mapping.
    unsafe { libc::mmap(at, len, prot, flags | libc::MAP_FIXED_NOREPLACE, fd, 0) == at }
}

/// Whether `/dev/kvm` runs such guests: one that only switches itself off.
pub fn probe(host: &Host) -> Result<(), String> {
    // mov dx, 0x600; mov al, 0x34; out dx, al; again
    let code = [0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee, 0xeb, 0xf7];
    let ram = RamOptions::anywhere(2 << 20, PageSize::Base);
    let vm = Vm::new(host, Ram::new(&ram, |_, _| ()).map_err(text)?, Vec::new(), Topology::flat(1), true)
        .map_err(text)?;
    power::add(&vm).map_err(text)?;
    bare::load(host, &vm, &code, &[], |_| [0; 6]).map_err(text)?;
    let vm = vm.start(|_| ()).map_err(text)?;
    match vm.wait(Duration::from_secs(10)) {
        Some(End::PowerOff) => Ok(()),
        Some(end) => Err(format!("a program of a few instructions at privilege level 3 did not run: {end}")),
        None => Err("a program of a few instructions at privilege level 3 did not end within 10 s".into()),
    }
}

/// Two CPUs that this process may use, on different cores.
pub fn two_cpus() -> Option<[usize; 2]> {
    let mut set = MaybeUninit::<libc::cpu_set_t>::zeroed();
    // SAFETY: the kernel fills a set of this size; zeros are a set, too.
    let set = unsafe {
        libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), set.as_mut_ptr());
        set.assume_init()
    };
    let core = |cpu: usize| {
        let dir = PathBuf::from(format!("/sys/devices/system/cpu/cpu{cpu}/topology"));
        let read = |what| std::fs::read_to_string(dir.join(what)).unwrap_or_default();
        (read("physical_package_id"), read("core_id"))
    };
    // SAFETY: the set is as large as CPU_SETSIZE says.
    let mut cpus = (0..libc::CPU_SETSIZE as usize).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) });
    let first = cpus.next()?;
    Some([first, cpus.find(|cpu| core(*cpu) != core(first))?])
}

/// Ticks of the time stamp counter in a nanosecond.
pub fn ticks_per_nanosecond() -> f64 {
    // SAFETY: every x86-64 processor has it.
    let ticks = || unsafe { _rdtsc() };
    let (began, first) = (Instant::now(), ticks());
    std::thread::sleep(Duration::from_millis(100));
    (ticks() - first) as f64 / began.elapsed().as_nanos() as f64
}
