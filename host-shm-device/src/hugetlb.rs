//! Pages of the backing memory, and the kernel's pools of huge ones.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::memory::format_bytes;

/// Size of the pages that back a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageSize {
    /// 4 KiB, from tmpfs.
    Base,
    /// 2 MiB, from hugetlbfs.
    Huge2M,
    /// 1 GiB, from hugetlbfs.
    Huge1G,
}

impl PageSize {
    /// Bytes of such a page.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Base => 4 << 10,
            Self::Huge2M => 2 << 20,
            Self::Huge1G => 1 << 30,
        }
    }

    /// As `pagesize=` of a hugetlbfs mount says it.
    const fn option(self) -> &'static str {
        match self {
            Self::Base => "4K",
            Self::Huge2M => "2M",
            Self::Huge1G => "1G",
        }
    }
}

/// The kernel's pool of huge pages of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct HugePool {
    /// Bytes of a page.
    pub page_len: u64,
    /// Pages in the pool.
    pub total: u64,
    /// Pages that nobody uses or has reserved.
    pub free: u64,
}

/// The pools of huge pages, of the whole host or of one NUMA node.
pub fn pools(node: Option<u32>) -> Vec<HugePool> {
    [PageSize::Huge2M, PageSize::Huge1G].into_iter().filter_map(|pages| pool(pages, node)).collect()
}

fn pool_dir(pages: PageSize, node: Option<u32>) -> PathBuf {
    let base = match node {
        Some(node) => format!("/sys/devices/system/node/node{node}/hugepages"),
        None => "/sys/kernel/mm/hugepages".to_owned(),
    };
    Path::new(&base).join(format!("hugepages-{}kB", pages.bytes() >> 10))
}

fn pool(pages: PageSize, node: Option<u32>) -> Option<HugePool> {
    let dir = pool_dir(pages, node);
    let read = |name| fs::read_to_string(dir.join(name)).ok()?.trim().parse::<u64>().ok();
    // A node's pool knows no reservations; those are counted for the host alone.
    let free = read("free_hugepages")?.saturating_sub(read("resv_hugepages").unwrap_or(0));
    Some(HugePool { page_len: pages.bytes(), total: read("nr_hugepages")?, free })
}

/// Refuses where the pool has fewer than `needed` bytes free, and says how to enlarge it.
pub(crate) fn check_pool(needed: u64, pages: PageSize, node: Option<u32>) -> Result<(), Error> {
    let wanted = needed.div_ceil(pages.bytes());
    let place = match node {
        Some(node) => format!("the pool of {} pages on NUMA node {node}", format_bytes(pages.bytes())),
        None => format!("the pool of {} pages", format_bytes(pages.bytes())),
    };
    let (free, cure) = match pool(pages, node) {
        Some(pool) if pool.free >= wanted => return Ok(()),
        Some(pool) => (
            pool.free,
            format!(
                "enlarge it: `echo {} | sudo tee {}/nr_hugepages`{}",
                pool.total + wanted - pool.free,
                pool_dir(pages, node).display(),
                if pages == PageSize::Huge1G { " (pages of 1 GiB are best reserved at boot)" } else { "" }
            ),
        ),
        None => (0, "this processor or kernel has no such pages; take another --pages".to_owned()),
    };
    Err(Error::NoRoom {
        needed: format!("{wanted} pages ({})", format_bytes(needed)),
        free: format!("{free} free"),
        place,
        cure,
    })
}

/// Where hugetlbfs with pages of that size is mounted; the error says how to mount it.
pub fn mount_point(pages: PageSize) -> Result<PathBuf, Error> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    find_mount(&mounts, pages).ok_or_else(|| Error::NoHugetlbfs {
        pages: format_bytes(pages.bytes()),
        cure: format!(
            "mount it: `sudo mkdir -p /dev/hugepages-{size} && sudo mount -t hugetlbfs -o pagesize={size} none /dev/hugepages-{size}`",
            size = pages.option()
        ),
    })
}

fn find_mount(mounts: &str, pages: PageSize) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (point, kind, options) = (words.next()?, words.next()?, words.next()?);
        let size = options.split(',').find_map(|option| option.strip_prefix("pagesize="));
        let fits = match size {
            // The kernel itself writes `2M` and `1024M`.
            Some(size) => size == pages.option() || size == format!("{}M", pages.bytes() >> 20),
            None => pages == PageSize::Huge2M,
        };
        // The kernel writes spaces in mount points as \040.
        (kind == "hugetlbfs" && fits && !options.split(',').any(|o| o == "ro"))
            .then(|| PathBuf::from(point.replace("\\040", " ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_with_the_right_page_size_is_found() {
        let mounts = "none /dev/shm tmpfs rw 0 0\n\
            hugetlbfs /dev/hugepages hugetlbfs rw,relatime,pagesize=2M 0 0\n\
            none /mnt/huge\\0401G hugetlbfs rw,relatime,pagesize=1024M 0 0\n\
            none /mnt/1g hugetlbfs rw,pagesize=1G 0 0\n";
        assert_eq!(find_mount(mounts, PageSize::Huge2M).unwrap(), Path::new("/dev/hugepages"));
        assert_eq!(find_mount(mounts, PageSize::Huge1G).unwrap(), Path::new("/mnt/huge 1G"));
        assert_eq!(find_mount("", PageSize::Huge2M), None);
    }

    #[test]
    fn an_empty_pool_is_refused_with_the_command_that_fills_it() {
        let Some(pool) = pool(PageSize::Huge2M, None) else { return };
        let error =
            check_pool((pool.free + 3) * PageSize::Huge2M.bytes(), PageSize::Huge2M, None).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&format!("echo {}", pool.total + 3)), "{text}");
    }
}
