//! Which memory devices may reach: the IOMMU's tables, by the guest's physical addresses.

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;

use iommufd_bindings::iommufd::{
    iommu_ioas_map, iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE, iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE,
};
use iommufd_ioctls::{IommuFd, IommufdError};
use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_TYPE, vfio_iommu_type1_dma_map,
};
use vfio_ioctls::{VfioContainer, VfioDeviceFd, VfioError, VfioIommufd, VfioOps};

use crate::error::Error;
use crate::host_device::{self, Found, Refusal};
use crate::space::Reach;

/// One address space for all devices of a VM.
pub(crate) enum Dma {
    /// By groups, as all kernels have it.
    Container(Arc<VfioContainer>),
    /// By devices, in kernels since 6.6 that were built for it.
    Iommufd(Arc<VfioIommufd>),
}

impl std::fmt::Debug for Dma {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Container(_) => "Dma by container",
            Self::Iommufd(_) => "Dma by iommufd",
        })
    }
}

impl Dma {
    /// An address space with nothing in it. KVM hears of its devices by way of `kvm`.
    pub(crate) fn new(devices: &[Found], kvm: VfioDeviceFd) -> Result<Self, Refusal> {
        let kvm = Some(Arc::new(kvm));
        let iommufd = Path::new("/dev/iommu");
        if iommufd.exists() && devices.iter().all(|device| device.path.join("vfio-dev").exists()) {
            let fd = IommuFd::new().map_err(|error| match &error {
                IommufdError::OpenIommufd(cause) if cause.kind() == io::ErrorKind::PermissionDenied => {
                    Refusal::Permission { path: iommufd.to_owned() }
                }
                _ => kernel("open /dev/iommu", &error),
            })?;
            let space =
                VfioIommufd::new(Arc::new(fd), None, kvm).map_err(|error| refusal(&error, iommufd))?;
            return Ok(Self::Iommufd(Arc::new(space)));
        }
        let container = Path::new("/dev/vfio/vfio");
        let space = VfioContainer::new(kvm).map_err(|error| refusal(&error, container))?;
        Ok(Self::Container(Arc::new(space)))
    }

    /// The same for the crate that opens devices.
    pub(crate) fn ops(&self) -> Arc<dyn VfioOps> {
        match self {
            Self::Container(space) => space.clone(),
            Self::Iommufd(space) => space.clone(),
        }
    }
}

impl Reach for Dma {
    unsafe fn map(
        &self,
        start: u64,
        address: NonNull<libc::c_void>,
        len: u64,
        writable: bool,
    ) -> Result<(), Error> {
        let user = address.as_ptr().addr() as u64;
        // The crate's own way to map knows no read-only memory.
        let result = match self {
            Self::Container(space) => {
                let write = if writable { VFIO_DMA_MAP_FLAG_WRITE } else { 0 };
                let map = vfio_iommu_type1_dma_map {
                    argsz: size_of::<vfio_iommu_type1_dma_map>() as u32,
                    flags: VFIO_DMA_MAP_FLAG_READ | write,
                    vaddr: user,
                    iova: start,
                    size: len,
                };
                const MAP_DMA: libc::c_ulong =
                    (VFIO_TYPE as libc::c_ulong) << 8 | (VFIO_BASE as libc::c_ulong + 13);
                // SAFETY: the kernel reads a struct of the size that it says; what the caller promises of the memory.
                match unsafe { libc::ioctl(space.as_raw_fd(), MAP_DMA, &map) } {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                }
            }
            Self::Iommufd(space) => {
                let write = if writable { iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE } else { 0 };
                let map = iommu_ioas_map {
                    size: size_of::<iommu_ioas_map>() as u32,
                    flags: iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE
                        | iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA
                        | write,
                    ioas_id: space.ioas().id(),
                    __reserved: 0,
                    user_va: user,
                    length: len,
                    iova: start,
                };
                space.iommufd().map_iommu_ioas(&map).map_err(|error| match error {
                    IommufdError::IommuIoasMap(errno) => errno.into(),
                    other => io::Error::other(other.to_string()),
                })
            }
        };
        let writes = if writable { "read and write" } else { "read only" };
        tracing::debug!("devices may {writes} {len:#x} bytes at guest address {start:#x}: {result:?}");
        let refusal = result.map_err(|cause| match cause.raw_os_error() {
            Some(libc::ENOMEM) => {
                Refusal::Memlock { wanted: len, limit: host_device::memlock().unwrap_or(u64::MAX) }
            }
            _ => Refusal::Map {
                start,
                len,
                cause,
                reserved: "/sys/kernel/iommu_groups/*/reserved_regions".into(),
            },
        });
        Ok(refusal?)
    }

    fn unmap(&self, start: u64, len: u64) {
        let result = match self {
            Self::Container(space) => space.vfio_dma_unmap(start, len as usize),
            Self::Iommufd(space) => space.vfio_dma_unmap(start, len as usize),
        };
        if let Err(error) = result {
            tracing::warn!(%error, "devices still reach memory at guest address {start:#x}");
        }
    }
}

/// Meaning of the crate's error when a device, or the file at `path`, was opened.
pub(super) fn refusal(error: &VfioError, path: &Path) -> Refusal {
    let path = path.to_owned();
    let cause = match error {
        VfioError::OpenContainer(cause)
        | VfioError::OpenGroup(cause, _)
        | VfioError::OpenDeviceCdev(cause) => cause,
        other => return kernel(format!("use {}", path.display()), other),
    };
    match cause.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => Refusal::Permission { path },
        Some(libc::EBUSY) => Refusal::InUse { path },
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => Refusal::NoVfio { path },
        _ => kernel(format!("open {}", path.display()), cause),
    }
}

fn kernel(doing: impl Into<String>, cause: &dyn std::fmt::Display) -> Refusal {
    Refusal::Kernel { doing: doing.into(), cause: cause.to_string() }
}
