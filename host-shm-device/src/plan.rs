//! The arithmetic of a region: where the table ends and how long the sections are.

use vmshm_abi::region::{ENTRY_LEN, MAX_ENDPOINTS, MAX_SECTIONS, TABLE_OFFSET};
use vmshm_abi::section::{SLOT_LEN, SectionLayout};

use crate::error::Error;
use crate::memory::format_bytes;

/// Most endpoint slots that are chosen without being asked for.
const DEFAULT_ENDPOINTS: u32 = 256;

/// Largest region: what a file offset can express, as a power of two.
const MAX_LEN: u64 = 1 << 62;

/// Page size that processors map memory with where they can.
const LARGE_PAGE: u64 = 2 << 20;

/// From this size on, aligning a section to large pages costs next to nothing.
const BIG_SECTION: u64 = 128 << 20;

/// The numbers of a region to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Bytes of the whole region, a power of two.
    pub region_len: u64,
    /// Bytes of a page.
    pub page_len: u64,
    /// Bytes of header and table.
    pub table_end: u64,
    /// Bytes of each section.
    pub section_len: u64,
    /// Number of sections.
    pub sections: u32,
    /// Endpoint slots in each section.
    pub endpoints: u32,
}

impl Plan {
    /// Plans a region of `size` bytes; refuses what can't be laid out, and says what can.
    ///
    /// Without `endpoints`, a section gets 256 slots, or fewer where slots and activity lines would take more
    /// than an eighth of it.
    pub fn new(size: u64, page_len: u64, sections: u32, endpoints: Option<u32>) -> Result<Self, Error> {
        let invalid =
            |what, value: String, why: String| Err(Error::Invalid { what, value: value.clone(), why });
        if size == 0 {
            return invalid("the size", "0".into(), "is nothing: give for example 8G".into());
        }
        if size > MAX_LEN {
            return invalid("the size", size.to_string(), format!("is too much: {MAX_LEN} is the most"));
        }
        if !size.is_power_of_two() {
            return invalid(
                "the size",
                format_bytes(size),
                format!(
                    "is not a power of two, as a PCI BAR must be: the next one up is {}",
                    format_bytes(size.next_power_of_two())
                ),
            );
        }
        if sections == 0 || sections > MAX_SECTIONS {
            return invalid(
                "the number of sections",
                sections.to_string(),
                format!("makes no sense: give 1 to {MAX_SECTIONS}, one for each VM"),
            );
        }
        if let Some(n) = endpoints
            && (n == 0 || n > MAX_ENDPOINTS)
        {
            return invalid(
                "the number of endpoints",
                n.to_string(),
                format!("makes no sense: give 1 to {MAX_ENDPOINTS}, one for each MPI process of a VM"),
            );
        }
        Self::fit(size, page_len, sections, endpoints).ok_or_else(|| {
            let enough = (size.ilog2() + 1..=62)
                .map(|shift| 1 << shift)
                .find(|&size| Self::fit(size, page_len, sections, endpoints).is_some())
                .unwrap_or(MAX_LEN);
            Error::Invalid {
                what: "the size",
                value: format_bytes(size),
                why: format!(
                    "is too small for {sections} sections with pages of {}{}: {} is enough",
                    format_bytes(page_len),
                    endpoints.map_or(String::new(), |n| format!(" and {n} endpoints each")),
                    format_bytes(enough)
                ),
            }
        })
    }

    fn fit(region_len: u64, page_len: u64, sections: u32, endpoints: Option<u32>) -> Option<Self> {
        // Big sections start on boundaries of 2 MiB, so that guests and IOMMUs can map them with large pages, and
        // no large page lies on two NUMA nodes.
        let big = region_len / u64::from(sections) >= BIG_SECTION;
        let align = if big { page_len.max(LARGE_PAGE) } else { page_len };
        let table_end = table_len(sections, align);
        let each = region_len.checked_sub(table_end)? / u64::from(sections);
        let section_len = each / align * align;
        // The rest that rounding leaves goes to the table, so that every byte of the region belongs to something.
        let table_end = region_len - u64::from(sections) * section_len;
        let endpoints = endpoints.unwrap_or_else(|| derive_endpoints(section_len, sections));
        SectionLayout::new(section_len, sections, endpoints)?;
        Some(Self { region_len, page_len, table_end, section_len, sections, endpoints })
    }

    /// Bytes of whole pages that header and table really need.
    pub(crate) fn table_len(&self) -> u64 {
        table_len(self.sections, self.page_len)
    }

    /// Offset of section `section` from the start of the region.
    pub fn section_offset(&self, section: u32) -> u64 {
        self.table_end + u64::from(section) * self.section_len
    }
}

/// Bytes of whole pages that header and table of so many sections need.
pub(crate) fn table_len(sections: u32, page_len: u64) -> u64 {
    (TABLE_OFFSET + u64::from(sections) * ENTRY_LEN).next_multiple_of(page_len)
}

fn derive_endpoints(section_len: u64, sections: u32) -> u32 {
    let mut n = DEFAULT_ENDPOINTS;
    while n > 1 && u64::from(n) * (SLOT_LEN + u64::from(sections) * vmshm_abi::LINE) > section_len / 8 {
        n /= 2;
    }
    n
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_lie_on_pages_inside_the_region() {
        for size in (20..43).map(|shift| 1 << shift) {
            for page_len in [4096, 2 << 20, 1 << 30] {
                for sections in [1, 2, 3, 7, 64, 1024] {
                    let Ok(p) = Plan::new(size, page_len, sections, None) else { continue };
                    assert_eq!(p.section_len % page_len, 0);
                    if size / u64::from(sections) >= 128 << 20 {
                        assert_eq!(p.section_offset(1) % (2 << 20), 0);
                    }
                    assert!(p.section_len > 0);
                    assert_eq!(p.section_offset(sections), size);
                    assert!(p.section_offset(0) >= TABLE_OFFSET + u64::from(sections) * ENTRY_LEN);
                }
            }
        }
    }

    #[test]
    fn big_sections_get_256_slots_and_small_ones_fewer() {
        assert_eq!(Plan::new(8 << 30, 4096, 2, None).unwrap().endpoints, 256);
        assert_eq!(Plan::new(512 << 20, 4096, 2, None).unwrap().endpoints, 256);
        let small = Plan::new(1 << 20, 4096, 2, None).unwrap();
        assert!((16..256).contains(&small.endpoints), "{small:?}");
    }

    #[test]
    fn refusals_name_the_value_and_what_would_do() {
        let say = |size, pages, sections, endpoints| {
            Plan::new(size, pages, sections, endpoints).unwrap_err().to_string()
        };
        assert!(say(0, 4096, 1, None).contains("8G"));
        assert!(say(3 << 30, 4096, 1, None).contains("4 GiB"));
        assert!(say(u64::MAX, 4096, 1, None).contains("too much"));
        assert!(say(1 << 30, 4096, 0, None).contains("\"0\""));
        assert!(say(1 << 30, 4096, 1025, None).contains("1024"));
        assert!(say(1 << 30, 4096, 1, Some(0)).contains("endpoints"));
        assert!(say(1 << 30, 4096, 1, Some(1025)).contains("1025"));
        assert!(say(4096, 4096, 1, None).contains("is enough"));
        assert!(say(1 << 30, 1 << 30, 1, None).contains("2 GiB is enough"));
    }

    #[test]
    fn what_a_refusal_calls_enough_is_enough() {
        assert!(Plan::new(1 << 30, 1 << 30, 1, None).is_err());
        assert!(Plan::new(2 << 30, 1 << 30, 1, None).is_ok());
    }
}
