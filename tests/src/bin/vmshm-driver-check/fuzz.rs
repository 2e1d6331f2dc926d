//! Random calls from several threads: whatever a program asks, the kernel stays healthy.

use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::{Result, ensure};
use vmshm_tests::payload::{Key, Random};
use vmshm_transport::abi::driver;

use crate::device::{Device, new_eventfd};
use crate::layout::Layout;
use crate::map::in_child;
use crate::mapping::{Map, PAGE};
use crate::report::Report;

/// How much is tried.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Determines what each thread does
    #[arg(long)]
    seed: u64,
    /// Calls in all
    #[arg(long, default_value_t = 20_000)]
    calls: u64,
    /// Threads
    #[arg(long, default_value_t = 4)]
    threads: u64,
}

/// Open files that all threads use, and close while others use them.
const FILES: usize = 6;
/// Mappings that a thread keeps.
const MAPS: usize = 8;

type Files = Mutex<Vec<Option<Arc<Device>>>>;

/// Runs them, and sees that the device still works.
pub fn run(path: &Path, options: &Options, report: &mut Report) -> Result<()> {
    let (_, layout) = Layout::open(path)?;
    println!("        seed {}", options.seed);
    // An access that the kernel refuses after all would end the process; nothing here makes one, but a page may go.
    crate::sigbus::catch()?;
    let files = Files::new(vec![None; FILES]);
    let each = options.calls.div_ceil(options.threads);
    let done = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..options.threads)
            .map(|thread| {
                let random = Random::new(Key::new(options.seed, &[thread]));
                let mut fuzzer = Fuzzer::new(path, &layout, &files, random);
                scope.spawn(move || {
                    for _ in 0..each {
                        fuzzer.call();
                    }
                    (fuzzer.calls, fuzzer.allowed)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("a thread of the fuzzer does not panic"))
            .fold((0, 0), |sum, (calls, allowed)| (sum.0 + calls, sum.1 + allowed))
    });
    let (calls, allowed) = done;
    report.check("random calls from several threads", || {
        println!("        {calls} calls, {allowed} of them allowed");
        ensure!(calls >= options.calls, "only {calls} calls were made");
        ensure!(allowed > calls / 50 && allowed < calls, "{allowed} calls allowed: they are not random");
        Ok(())
    });
    files.lock().expect("no thread panicked").clear();
    report.check("the device works afterwards", || {
        let (device, after) = Layout::open(path)?;
        ensure!(after.header.region_id == layout.header.region_id, "it is another region");
        let own = after.own()?;
        for slot in 0..after.header.endpoints {
            let file = Device::open(path)?;
            ensure!(file.claim(slot).is_ok(), "slot {slot} is still held");
        }
        if after.info.vectors > 0 {
            device.rings()?;
            device.ring(after.info.section, 0)?;
            ensure!(device.wait(10_000)? & libc::POLLIN != 0, "it does not ring");
        }
        let page = PAGE as u64;
        Map::shared(&device, own.offset, own.len as usize - PAGE, libc::PROT_READ | libc::PROT_WRITE)?;
        Map::shared(&device, own.offset + own.len - page, PAGE, libc::PROT_READ)?;
        Ok(())
    });
    Ok(())
}

struct Fuzzer<'a> {
    path: &'a Path,
    files: &'a Files,
    random: Random,
    region: u64,
    sections: u64,
    slots: u64,
    table_end: u64,
    maps: Vec<(usize, usize)>,
    events: Vec<std::fs::File>,
    calls: u64,
    allowed: u64,
}

impl<'a> Fuzzer<'a> {
    fn new(path: &'a Path, layout: &Layout, files: &'a Files, random: Random) -> Self {
        Self {
            path,
            files,
            random,
            region: layout.header.region_len,
            sections: layout.header.sections.into(),
            slots: layout.header.endpoints.into(),
            table_end: layout.header.table_end,
            maps: Vec::new(),
            events: Vec::new(),
            calls: 0,
            allowed: 0,
        }
    }

    fn below(&mut self, end: u64) -> u64 {
        self.random.next_u64() % end.max(1)
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.random.below(from.len())]
    }

    /// One of the shared files, opened anew where there is none.
    fn file(&mut self) -> Option<Arc<Device>> {
        let at = self.random.below(FILES);
        let mut files = self.files.lock().expect("no thread panicked");
        if files[at].is_none() {
            let device = match self.random.below(8) {
                0 => Device::open_read_only(self.path),
                _ => Device::open(self.path),
            };
            files[at] = device.ok().map(Arc::new);
        }
        files[at].clone()
    }

    fn note(&mut self, result: i64) {
        self.calls += 1;
        self.allowed += u64::from(result >= 0);
    }

    fn call(&mut self) {
        let Some(file) = self.file() else { return self.note(-1) };
        let fd = file.fd();
        match self.random.below(100) {
            0..40 => self.ioctl(fd),
            40..62 => self.map(fd),
            62..70 => self.change_map(),
            70..76 => self.poll(fd),
            76..84 => self.read(fd),
            84..88 => self.odd(fd),
            88..90 => self.child(fd),
            90..93 => self.event(fd),
            _ => {
                // The file of another thread's call, perhaps; the last user closes it.
                let at = self.random.below(FILES);
                let old = self.files.lock().expect("no thread panicked")[at].take();
                drop(old);
                self.note(0);
            }
        }
    }

    /// An address that is good, half good, or bad.
    fn address(&mut self, buffer: &mut [u8]) -> usize {
        let within = buffer.as_mut_ptr() as usize;
        match self.random.below(10) {
            0 => 0,
            1 => 0x7fff_ffff_f000 - self.random.below(16),
            2 => 0xffff_8880_0000_0000,
            3 => usize::MAX - self.random.below(64),
            4 => self.random.next_u64() as usize,
            // In a mapping of the device itself; not nearer to its end than the longest answer, behind which other
            // things of this process lie.
            5 => self.maps.last().map_or(8, |&(address, len)| address + len - 64 - self.random.below(64)),
            _ => within + self.random.below(8),
        }
    }

    fn ioctl(&mut self, fd: RawFd) {
        let mut buffer = [0_u8; 4096];
        for word in buffer[..64].chunks_exact_mut(4) {
            let value = match self.random.below(6) {
                0 => self.random.next_u64(),
                1 => u64::from(u32::MAX),
                2 => self.below(self.sections + 2),
                3 => self.below(self.slots + 2),
                4 => self.events.last().map_or(0, |event| event.as_raw_fd() as u64),
                _ => self.below(4),
            };
            word.copy_from_slice(&(value as u32).to_ne_bytes());
        }
        let known = [driver::INFO, driver::CLAIM, driver::UNCLAIM, driver::RING, driver::EVENTFD];
        let request = match self.random.below(10) {
            0 => self.random.next_u64() as u32,
            1 => driver::INFO & 0xff00 | self.random.below(256) as u32,
            2 => self.pick(&known) ^ 1 << self.random.below(32),
            _ => self.pick(&known),
        };
        let argument = self.address(&mut buffer);
        // SAFETY: no call of the driver writes more than 64 bytes, and good addresses are those of a larger buffer, or
        // of mappings that hold nothing.
        let result = unsafe { libc::ioctl(fd, request.into(), argument) };
        self.note(result.into());
    }

    fn protection(&mut self) -> i32 {
        match self.random.below(6) {
            0 => self.random.below(8) as i32,
            1 => libc::PROT_NONE,
            2 | 3 => libc::PROT_READ | libc::PROT_WRITE,
            _ => libc::PROT_READ,
        }
    }

    fn map(&mut self, fd: RawFd) {
        if self.maps.len() >= MAPS {
            let at = self.random.below(MAPS);
            let (address, len) = self.maps.swap_remove(at);
            // SAFETY: a mapping of our own, which nothing refers to.
            let result = unsafe { libc::munmap(address as *mut _, len) };
            return self.note(result.into());
        }
        let page = PAGE as u64;
        let near = match self.random.below(8) {
            0 => self.random.next_u64(),
            1 => self.region,
            2 => self.table_end,
            3 => u64::MAX,
            4 => 1 << 63,
            _ => self.below(self.region),
        };
        let offset = near.wrapping_add(self.below(5) * page).wrapping_sub(2 * page);
        let offset = if self.random.below(16) == 0 { offset } else { offset & !(page - 1) };
        let len = match self.random.below(8) {
            0 => self.below(self.region * 2),
            1 => 2 << 20,
            2 => u64::MAX - self.below(3 * page),
            3 => 0,
            _ => (1 + self.below(600)) * page,
        } as usize;
        let flags = match self.random.below(8) {
            0 => libc::MAP_PRIVATE,
            1 => libc::MAP_SHARED | libc::MAP_POPULATE,
            2 => libc::MAP_SHARED | libc::MAP_LOCKED,
            3 => libc::MAP_SHARED_VALIDATE | libc::MAP_SYNC,
            _ => libc::MAP_SHARED,
        };
        // SAFETY: the kernel chooses an address where nothing is.
        let address = unsafe {
            libc::mmap(std::ptr::null_mut(), len, self.protection(), flags, fd, offset as libc::off_t)
        };
        if address == libc::MAP_FAILED {
            return self.note(-1);
        }
        self.note(0);
        self.maps.push((address as usize, len));
        self.touch();
    }

    /// Reads a byte of a mapping by a system call, which is refused where the mapping forbids it.
    fn touch(&mut self) {
        let Some(&(address, len)) = self.maps.last() else { return };
        let mut byte = 0_u8;
        let local = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        let mut pipe = [0; 2];
        // SAFETY: room for two descriptors.
        if unsafe { libc::pipe(pipe.as_mut_ptr()) } != 0 {
            return;
        }
        let at = self.random.below(len.max(1));
        // SAFETY: the kernel checks the address; the answer goes to our byte.
        let result = unsafe {
            let result = libc::write(pipe[1], (address + at) as *const _, 1);
            if result == 1 {
                libc::readv(pipe[0], &raw const local, 1);
            }
            libc::close(pipe[0]);
            libc::close(pipe[1]);
            result
        };
        self.note(result as i64);
    }

    fn change_map(&mut self) {
        if self.maps.is_empty() {
            return self.note(-1);
        }
        let at = self.random.below(self.maps.len());
        let (address, len) = self.maps[at];
        let part = self.below(len as u64 / PAGE as u64 + 1) as usize * PAGE;
        let begin = (address + part.min(len.saturating_sub(1)) / PAGE * PAGE) as *mut libc::c_void;
        let rest = len - (begin as usize - address);
        // SAFETY: all this is about a mapping of our own, which nothing refers to.
        let result = unsafe {
            match self.random.below(6) {
                0 => libc::mprotect(begin, rest, self.protection()).into(),
                1 => libc::madvise(
                    begin,
                    rest,
                    self.pick(&[
                        libc::MADV_DONTNEED,
                        libc::MADV_WILLNEED,
                        libc::MADV_HUGEPAGE,
                        libc::MADV_REMOVE,
                        libc::MADV_DONTFORK,
                        libc::MADV_FREE,
                        libc::MADV_DODUMP,
                    ]),
                )
                .into(),
                2 => libc::msync(begin, rest, libc::MS_SYNC).into(),
                3 => libc::mlock(begin, rest.min(1 << 20)).into(),
                4 => {
                    let new = self.random.below(2 * len + PAGE).next_multiple_of(PAGE).max(PAGE);
                    let moved = libc::mremap(address as *mut _, len, new, libc::MREMAP_MAYMOVE);
                    if moved != libc::MAP_FAILED {
                        self.maps[at] = (moved as usize, new);
                    }
                    if moved == libc::MAP_FAILED { -1 } else { 0 }
                }
                _ => {
                    let mut resident = vec![0_u8; rest.div_ceil(PAGE)];
                    libc::mincore(begin, rest, resident.as_mut_ptr()).into()
                }
            }
        };
        self.note(result);
    }

    fn poll(&mut self, fd: RawFd) {
        let events = self.random.next_u64() as i16;
        let mut polls = [libc::pollfd { fd, events, revents: 0 }; 3];
        // SAFETY: three valid elements.
        let result = unsafe { libc::poll(polls.as_mut_ptr(), 3, self.random.below(2) as i32) };
        self.note(result.into());
    }

    fn read(&mut self, fd: RawFd) {
        let mut buffer = [0_u8; 4200];
        let address = self.address(&mut buffer);
        let len = self.pick(&[0, 1, 7, 8, 9, 16, 4096]);
        // SAFETY: the driver reads out eight bytes, and checks the address.
        let result = unsafe {
            match self.random.below(4) {
                0 => libc::pread(fd, address as *mut _, len, self.random.next_u64() as i64),
                1 => libc::write(fd, address as *const _, len),
                _ => libc::read(fd, address as *mut _, len),
            }
        };
        self.note(result as i64);
    }

    /// Calls that the driver does not expect.
    fn odd(&mut self, fd: RawFd) {
        // SAFETY: plain integers, and addresses that live through the call.
        let result = unsafe {
            match self.random.below(8) {
                0 => libc::lseek(fd, self.random.next_u64() as i64, self.random.below(5) as i32),
                1 => libc::fsync(fd).into(),
                2 => libc::ftruncate(fd, 1 << 20).into(),
                3 => {
                    let flags = self.pick(&[libc::O_NONBLOCK, libc::O_ASYNC, libc::O_DIRECT, 0]);
                    libc::fcntl(fd, libc::F_SETFL, flags).into()
                }
                4 => libc::flock(fd, libc::LOCK_SH | libc::LOCK_NB).into(),
                5 => libc::sendfile(fd, fd, std::ptr::null_mut(), 8) as i64,
                6 => {
                    let copy = libc::dup(fd);
                    libc::close(copy).into()
                }
                _ => {
                    let epoll = libc::epoll_create1(libc::EPOLL_CLOEXEC);
                    let flags = (libc::EPOLLIN | libc::EPOLLET | libc::EPOLLOUT) as u32;
                    let mut event = libc::epoll_event { events: flags, u64: 0 };
                    let added = libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &raw mut event);
                    libc::epoll_wait(epoll, &raw mut event, 1, 0);
                    libc::close(epoll);
                    added.into()
                }
            }
        };
        self.note(result);
    }

    /// A child that inherits everything, calls a little and ends in some way.
    fn child(&mut self, fd: RawFd) {
        let (how, slot) = (self.random.below(3), self.below(self.slots) as u32);
        let status = in_child(|| {
            // SAFETY: system calls alone, with a local buffer; other threads may have held locks of the allocator.
            unsafe {
                let mut info = [0_u8; 64];
                libc::ioctl(fd, driver::INFO.into(), info.as_mut_ptr());
                libc::ioctl(fd, driver::CLAIM.into(), &raw const slot);
                match how {
                    0 => drop(libc::raise(libc::SIGKILL)),
                    1 => drop(libc::close(fd)),
                    _ => (),
                }
            }
        });
        self.note(if status.is_ok() { 0 } else { -1 });
    }

    /// Registers an eventfd, and closes others while they are registered.
    fn event(&mut self, fd: RawFd) {
        if self.events.len() > 4 {
            self.events.remove(0);
        }
        let Ok(event) = new_eventfd() else { return self.note(-1) };
        let mut argument = [event.as_raw_fd() as u32, self.below(10) as u32];
        self.events.push(event);
        // SAFETY: eight bytes that live through the call.
        let result = unsafe { libc::ioctl(fd, driver::EVENTFD.into(), argument.as_mut_ptr()) };
        self.note(result.into());
    }
}
