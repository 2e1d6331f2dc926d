//! Shared by the tests on `/dev/kvm`: a region of their own, and bare-metal programs.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::arch::global_asm;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use vmshm_host::{CreateOptions, PageSize, Region, RegionName, Registry};
use vmshm_vmm::{
    Attachment, End, Error, Guest, Host, Machine, Plan, Ram, RamOptions, Running, Shared, Topology, Vm, bare,
    power,
};

/// Where the programs see the region.
pub const BAR: u64 = 1 << 35;
pub const LIMIT: Duration = Duration::from_secs(60);

/// The host's KVM, or `None` with a word about why the test is skipped.
pub fn kvm() -> Option<Host> {
    match Host::open() {
        Ok(host) => Some(host),
        Err(error @ (Error::NoKvm | Error::KvmPermission)) => {
            eprintln!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Waits until something holds.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A directory with one region.
pub struct Place {
    registry: Registry,
    name: RegionName,
    _dir: tempfile::TempDir,
}

impl Place {
    pub fn new(options: &CreateOptions) -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let registry = Registry::at(dir.path());
        let name = RegionName::new("job").unwrap();
        registry.create(&name, options).unwrap();
        Self { registry, name, _dir: dir }
    }

    pub fn region(&self) -> Region {
        self.registry.open(self.name.as_str()).unwrap()
    }

    pub fn take(&self, section: u32) -> Result<Shared, Error> {
        Shared::take(self.region(), section, uuid::Uuid::from_u128(1 + u128::from(section)))
    }

    /// A VM with this section that runs a program. Its arguments: BAR, its length, own section's offset and length.
    pub fn run(&self, host: &Host, section: u32, code: &[u8]) -> Running {
        let shared = self.take(section).unwrap();
        let entry = self.region().entry(section).unwrap();
        let arguments = [BAR, shared.len(), entry.offset, entry.len, 0, 0];
        let ram = RamOptions::anywhere(2 << 20, PageSize::Base);
        let mapped = [(BAR, shared.len())];
        let vm =
            Vm::new(host, Ram::new(&ram, |_, _| ()).unwrap(), vec![shared], Topology::flat(1), true).unwrap();
        power::add(&vm).unwrap();
        vm.place(0, BAR).unwrap();
        bare::load(host, &vm, code, &mapped, |_| arguments).unwrap();
        vm.start(|_| ()).unwrap()
    }

    pub fn set_word(&self, offset: u64, word: u64) {
        self.region().file().write_all_at(&word.to_ne_bytes(), offset).unwrap();
    }

    pub fn word(&self, offset: u64) -> u64 {
        let mut bytes = [0; 8];
        self.region().read(&mut bytes, offset).unwrap();
        u64::from_ne_bytes(bytes)
    }
}

/// A machine with one region and no other device, which runs a program with these arguments.
pub fn machine(
    host: &Host,
    code: &[u8],
    arguments: [u64; 6],
    vcpus: usize,
    ram: RamOptions<'_>,
    region: Attachment,
) -> Result<Machine, Error> {
    let plan = Plan {
        guest: Guest::Program { code, arguments },
        uuid: uuid::Uuid::from_u128(7),
        vcpus,
        ram,
        regions: vec![region],
        disks: Vec::new(),
        nets: Vec::new(),
        devices: Vec::new(),
        console: None,
        cpus: Vec::new(),
    };
    Machine::start(host, plan, Box::new(std::io::sink()), |_, _| ())
}

pub fn ended(vm: Running) -> End {
    let end = vm.wait(LIMIT).expect("the program ends");
    vm.stop();
    end
}

macro_rules! program {
    ($name:ident, $label:literal, $($line:literal),+ $(,)?) => {
        global_asm!(
            concat!(".section .rodata.vmshm, \"a\"\n.global ", $label, "\n.global ", $label, "_end\n", $label, ":"),
            $($line,)+
            concat!($label, "_end:\n.previous"),
        );

        pub fn $name() -> &'static [u8] {
            unsafe extern "C" {
                #[link_name = $label]
                static START: u8;
                #[link_name = concat!($label, "_end")]
                static END: u8;
            }
            let (start, end) = (&raw const START, &raw const END);
            // SAFETY: the assembler puts both labels into one read-only section, the second behind the first.
            unsafe { std::slice::from_raw_parts(start, end.addr() - start.addr()) }
        }
    };
}

// Stores the first word of a configuration space, and its third BAR; the arguments: its address, and where to. Powers off.
program!(
    asks,
    "vmshm_asks",
    "mov eax, edi",
    "mov dx, 0xcf8",
    "out dx, eax",
    "mov dx, 0xcfc",
    "in eax, dx",
    "mov [rsi], rax",
    "lea eax, [rdi + 0x18]",
    "mov dx, 0xcf8",
    "out dx, eax",
    "mov dx, 0xcfc",
    "in eax, dx",
    "mov [rsi + 8], rax",
    "mov dx, 0x600",
    "mov al, 0x34",
    "out dx, al",
    "2: jmp 2b",
);

// Counts in its section how often it has looked at the next one, whose first word stays zero.
program!(
    polls,
    "vmshm_polls",
    "add rdx, rdi",
    "2: inc qword ptr [rdx]",
    "pause",
    "cmp qword ptr [rdx + rcx], 0",
    "je 2b",
    "ud2",
);

// Stores 8 bytes to every 512th byte of the BAR, then with each kind of instruction to its last page; powers off.
program!(
    writes_everywhere,
    "vmshm_writes_everywhere",
    "mov rax, 0x5a5a5a5a5a5a5a5a",
    "lea r8, [rdi + rsi]",
    "2: mov [rdi], rax",
    "add rdi, 512",
    "cmp rdi, r8",
    "jb 2b",
    "sub rdi, 4096",
    "mov [rdi + 1], al",
    "mov [rdi + 3], ax",
    "mov [rdi + 12], eax",
    "lock xadd [rdi + 24], eax",
    "xchg [rdi + 32], ecx",
    "movnti [rdi + 40], rcx",
    "lock or dword ptr [rdi + 48], 1",
    "lock cmpxchg [rdi + 56], rcx",
    "mov dx, 0x600",
    "mov al, 0x34",
    "out dx, al",
    "3: pause",
    "jmp 3b",
);

// Counts in the first word of its section for ever.
program!(counts, "vmshm_counts", "add rdi, rdx", "2: inc qword ptr [rdi]", "pause", "jmp 2b",);

// A 32-byte store to the region's header, which is read-only for every VM.
program!(
    stores_a_vector,
    "vmshm_stores_a_vector",
    "vpxor ymm0, ymm0, ymm0",
    "vmovdqu [rdi], ymm0",
    "2: pause",
    "jmp 2b",
);

// Touches memory without a page table: a triple fault, since nobody handles the exception.
program!(falls, "vmshm_falls", "xor eax, eax", "dec rax", "mov [rax - 4096], al", "2: jmp 2b");

// Notes in its section (rsi) that it lives, and what it finds of an earlier life in the RAM's last word and in rbx; switches
// its first device's memory off, and resets itself; the twentieth time it switches itself off.
program!(
    resets,
    "vmshm_resets",
    "add rbx, [0x1ffff8]",
    "lock add [rsi + 8], rbx",
    "mov eax, 1",
    "lock xadd [rsi], rax",
    "cmp rax, 19",
    "jae 3f",
    "mov word ptr [rdi + 4], 0",
    "mov qword ptr [0x1ffff8], 1",
    "mov ebx, 1",
    "mov dx, 0x602",
    "mov al, 1",
    "out dx, al",
    "2: pause",
    "jmp 2b",
    "3: mov dx, 0x600",
    "mov al, 0x34",
    "out dx, al",
    "4: pause",
    "jmp 4b",
);

// Sets MSI-X vector 0 up as interrupt 0x41, and notes its position in its section (r8). Once the third word there is not 0
// any more, vector 0 becomes interrupt 0x42, which the first word tells by 1: what rang before is not taken for a peer. Then
// it rings the doorbell in ecx (again and again where r9 is 0, else once its own has rung), which the first word tells by 2.
// The interrupt is seen as a request that waits in the local APIC. Powers off when the third word is 2.
program!(
    rings,
    "vmshm_rings",
    "mov eax, 0xfee00000",
    "mov dword ptr [rax + 0xf0], 0x1ff",
    "mov dword ptr [rdx], 0xfee00000",
    "mov dword ptr [rdx + 4], 0",
    "mov dword ptr [rdx + 8], 0x41",
    "mov dword ptr [rdx + 12], 0",
    "mov word ptr [rdi + 0x42], 0x8000",
    "mov ebx, [rsi + 8]",
    "mov [r8 + 8], ebx",
    "2: pause",
    "cmp qword ptr [r8 + 16], 0",
    "je 2b",
    "mov dword ptr [rdx + 8], 0x42",
    "mov qword ptr [r8], 1",
    "3: test r9, r9",
    "jnz 4f",
    "mov [rsi + 12], ecx",
    "4: pause",
    "mov ebx, [rax + 0x220]",
    "test ebx, 4",
    "jz 3b",
    "mov [rsi + 12], ecx",
    "mov qword ptr [r8], 2",
    "5: pause",
    "cmp qword ptr [r8 + 16], 2",
    "jne 5b",
    "mov dx, 0x600",
    "mov al, 0x34",
    "out dx, al",
    "6: pause",
    "jmp 6b",
);
