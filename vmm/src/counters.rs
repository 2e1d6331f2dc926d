//! KVM's counters of a VM and of each vCPU (KVM_GET_STATS_FD): exits by reason, faults, injected interrupts.
//!
//! Which counters there are is the kernel's choice, and is read from it once.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

use kvm_bindings::{KVM_STATS_TYPE_MASK, KVM_STATS_UNIT_MASK, kvm_stats_desc, kvm_stats_header};
use kvm_ioctls::{VcpuFd, VmFd};

const KVM_GET_STATS_FD: libc::c_ulong = 0xaece;
/// The name of a counter is not longer; KVM's own limit is less.
const LONGEST_NAME: u32 = 256;

/// Cumulative, and without a unit: so many times.
const COUNT: u32 = 0;

/// The counters of a VM, and of its vCPUs by their numbers. Empty where this KVM has none (before Linux 5.14).
#[derive(Debug)]
pub struct Counters {
    vm: Option<Of>,
    vcpus: Vec<Of>,
}

/// Their values.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Counts {
    /// Of the VM.
    pub vm: BTreeMap<String, u64>,
    /// Of each vCPU.
    pub vcpus: Vec<BTreeMap<String, u64>>,
}

impl Counters {
    pub(crate) fn new<'a>(vm: &VmFd, vcpus: impl Iterator<Item = &'a VcpuFd>) -> Self {
        let told = |error: &io::Error| tracing::debug!(%error, "this KVM shows no counters");
        Self {
            vm: Of::new(vm).inspect_err(told).ok(),
            vcpus: vcpus.filter_map(|vcpu| Of::new(vcpu).ok()).collect(),
        }
    }

    /// The values now.
    pub fn read(&self) -> Counts {
        Counts {
            vm: self.vm.as_ref().map(Of::read).unwrap_or_default(),
            vcpus: self.vcpus.iter().map(Of::read).collect(),
        }
    }
}

/// The counters of one object of KVM.
#[derive(Debug)]
struct Of {
    file: File,
    /// Names, and where their values lie.
    fields: Vec<(String, u64)>,
}

impl Of {
    /// Those of a VM or a vCPU.
    fn new(fd: &impl AsRawFd) -> io::Result<Self> {
        // SAFETY: the call takes no argument.
        let fd = unsafe { libc::ioctl(fd.as_raw_fd(), KVM_GET_STATS_FD, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor for us.
        Self::read_fields(unsafe { File::from_raw_fd(fd) })
    }

    fn read_fields(file: File) -> io::Result<Self> {
        let word = |at: u64| {
            let mut bytes = [0; 4];
            file.read_exact_at(&mut bytes, at).map(|()| u32::from_ne_bytes(bytes))
        };
        let header = |field: usize| word(field as u64);
        let name_len = header(std::mem::offset_of!(kvm_stats_header, name_size))?.min(LONGEST_NAME);
        let count = header(std::mem::offset_of!(kvm_stats_header, num_desc))?;
        let descriptors = u64::from(header(std::mem::offset_of!(kvm_stats_header, desc_offset))?);
        let data = u64::from(header(std::mem::offset_of!(kvm_stats_header, data_offset))?);
        let len = size_of::<kvm_stats_desc>() as u64 + u64::from(name_len);
        let mut fields = Vec::new();
        for at in (0..u64::from(count)).map(|i| descriptors + i * len) {
            let kind = word(at)? & (KVM_STATS_TYPE_MASK | KVM_STATS_UNIT_MASK);
            // Exponent and number of values, of 16 bits each; histograms have several.
            let values = word(at + 4)? >> 16;
            if kind != COUNT || values != 1 {
                continue;
            }
            let mut name = vec![0; name_len as usize];
            file.read_exact_at(&mut name, at + size_of::<kvm_stats_desc>() as u64)?;
            let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
            let offset = word(at + std::mem::offset_of!(kvm_stats_desc, offset) as u64)?;
            fields.push((String::from_utf8_lossy(name).into_owned(), data + u64::from(offset)));
        }
        Ok(Self { file, fields })
    }

    /// Their values now. One that cannot be read is left out.
    fn read(&self) -> BTreeMap<String, u64> {
        let value = |(name, at): &(String, u64)| {
            let mut bytes = [0; 8];
            self.file.read_exact_at(&mut bytes, *at).ok()?;
            Some((name.clone(), u64::from_ne_bytes(bytes)))
        };
        self.fields.iter().filter_map(value).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_name_and_histograms_left_out() {
        let mut bytes: Vec<u8> =
            [0u32, 16, 3, 24, 32, 200].iter().flat_map(|word| word.to_ne_bytes()).collect();
        bytes.resize(32, 0);
        for (flags, values, offset, name) in
            [(0u32, 1u32, 8u32, "exits"), (4, 4, 0, "wait_hist"), (0x20, 1, 0, "wait_ns")]
        {
            [flags, values << 16, offset, 0].iter().for_each(|word| bytes.extend(word.to_ne_bytes()));
            bytes.extend(name.as_bytes());
            bytes.resize(bytes.len().next_multiple_of(32), 0);
        }
        bytes.resize(200, 0);
        bytes.extend([7u64.to_ne_bytes(), 9u64.to_ne_bytes()].concat());
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, &bytes).unwrap();
        let counters = Of::read_fields(file).unwrap();
        assert_eq!(counters.read(), BTreeMap::from([("exits".to_owned(), 9)]));
        assert!(Of::read_fields(tempfile::tempfile().unwrap()).is_err());
    }
}
