//! Operations in two levels: within each part of a communicator, then between the parts' leaders, then within again. The
//! parts are the regions that members see, or the sections of one region, as one virtual machine has each.
//!
//! The members of each part are a communicator of their own, and so are the leaders. So whatever component is the best
//! for these does the work: ours among the processes of one region, and between regions the one that stands below us. A
//! part that is a region may have sections for parts itself.
//!
//! These communicators are made at the first operation, which takes collective operations that the program knows nothing
//! of. So levels are made where the user asks for them (`coll_vmshm_levels`).

use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::{fmt, ptr};

use vmshm_transport::abi::EndpointName;

use super::datatype::Shape;
use super::datatype::is_in_place;
use super::op::Room;
use crate::ompi::{self, Count, ompi_communicator_t, ompi_datatype_t, ompi_op_t};

/// The criterion that parts members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// The region that they see.
    Region,
    /// The section of the region that all members see.
    Section {
        /// Endpoints of a section.
        endpoints: u32,
    },
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            By::Region => "region",
            By::Section { .. } => "section",
        })
    }
}

/// The parts: for each member the part's number, and the member's number in the part. Parts are numbered in the order of
/// their first members, which lead them.
#[derive(Debug, PartialEq, Eq)]
struct Parts(Vec<(usize, usize)>);

impl Parts {
    fn new(names: &[EndpointName], by: By) -> Self {
        let section = |name: &EndpointName| match by {
            By::Region => 0,
            By::Section { endpoints } => name.id / endpoints.max(1),
        };
        // Each part's number, and how many of its members there have been.
        let mut parts: HashMap<([u8; 16], u32), (usize, usize)> = HashMap::new();
        let place = |name: &EndpointName| {
            let next = parts.len();
            let (part, members) = parts.entry((name.region_id, section(name))).or_insert((next, 0));
            *members += 1;
            (*part, *members - 1)
        };
        Self(names.iter().map(place).collect())
    }
}

/// Whether all members see one region.
pub fn is_one_region(names: &[EndpointName]) -> bool {
    names.iter().all(|name| name.region_id == names[0].region_id)
}

/// Whether there are several parts, and some member is not alone in its own.
pub fn has_neighbours(names: &[EndpointName], by: By) -> bool {
    let parts = Parts::new(names, by).0;
    parts.iter().any(|(part, _)| *part > 0) && parts.iter().any(|(_, number)| *number > 0)
}

/// The communicators of the levels.
pub struct Levels {
    parts: Parts,
    me: usize,
    low: *mut ompi_communicator_t,
    /// The leaders' communicator; NULL in other members.
    up: *mut ompi_communicator_t,
}

type Done = Result<(), c_int>;

fn done(rc: c_int) -> Done {
    if rc == 0 { Ok(()) } else { Err(rc) }
}

impl Levels {
    /// Makes the communicators; all members call this at the same time.
    ///
    /// # Safety
    /// `comm` is a communicator of Open MPI with these members, of which we are number `me`.
    pub unsafe fn new(
        comm: *mut ompi_communicator_t,
        names: &[EndpointName],
        by: By,
        me: usize,
    ) -> Result<Self, c_int> {
        let parts = Parts::new(names, by);
        let (part, number) = parts.0[me];
        let leads = if number == 0 { 0 } else { -1 };
        // Dropped, and its communicators freed, if the rest fails.
        let mut levels = Self { parts, me, low: ptr::null_mut(), up: ptr::null_mut() };
        // SAFETY: the caller vouches for the communicator; both pointers are written.
        unsafe {
            done(ompi::vmshm_coll_split(comm, part as c_int, me as c_int, &raw mut levels.low))?;
            done(ompi::vmshm_coll_split(comm, leads, me as c_int, &raw mut levels.up))?;
        }
        Ok(levels)
    }

    fn leads(&self) -> bool {
        !self.up.is_null()
    }

    /// Whether a reduction to this root ends at a leader.
    pub fn is_led_by(&self, root: usize) -> bool {
        self.parts.0[root].1 == 0
    }

    /// # Safety
    /// All members call this.
    pub unsafe fn barrier(&self) -> Done {
        // SAFETY: the communicators live as long as this value.
        unsafe {
            done(ompi::vmshm_coll_barrier(self.low))?;
            if self.leads() {
                done(ompi::vmshm_coll_barrier(self.up))?;
            }
            done(ompi::vmshm_coll_barrier(self.low))
        }
    }

    /// # Safety
    /// All members call this, with what they gave to `MPI_Bcast`.
    pub unsafe fn bcast(
        &self,
        buffer: *mut c_void,
        count: Count,
        datatype: *mut ompi_datatype_t,
        root: usize,
    ) -> Done {
        let (from, number) = self.parts.0[root];
        let is_first = self.parts.0[self.me].0 == from;
        // SAFETY: the communicators live as long as this value; the caller vouches for the buffer.
        unsafe {
            let low =
                |root: usize| done(ompi::vmshm_coll_bcast(buffer, count, datatype, root as c_int, self.low));
            if is_first {
                low(number)?;
            }
            if self.leads() {
                done(ompi::vmshm_coll_bcast(buffer, count, datatype, from as c_int, self.up))?;
            }
            if is_first { Ok(()) } else { low(0) }
        }
    }

    /// # Safety
    /// All members call this, with what they gave to `MPI_Allreduce`; the operation commutes.
    pub unsafe fn allreduce(
        &self,
        from: *const c_void,
        to: *mut c_void,
        count: Count,
        datatype: *mut ompi_datatype_t,
        op: *mut ompi_op_t,
    ) -> Done {
        let mine = if is_in_place(from) && !self.leads() { to.cast_const() } else { from };
        // SAFETY: the communicators live as long as this value; the caller vouches for the buffers.
        unsafe {
            done(ompi::vmshm_coll_reduce(mine, to, count, datatype, op, 0, self.low))?;
            if self.leads() {
                done(ompi::vmshm_coll_allreduce(in_place(), to, count, datatype, op, self.up))?;
            }
            done(ompi::vmshm_coll_bcast(to, count, datatype, 0, self.low))
        }
    }

    /// # Safety
    /// All members call this, with what they gave to `MPI_Reduce`; the operation commutes, and the root leads a part.
    pub unsafe fn reduce(
        &self,
        from: *const c_void,
        to: *mut c_void,
        count: Count,
        datatype: *mut ompi_datatype_t,
        op: *mut ompi_op_t,
        root: usize,
    ) -> Done {
        let is_root = self.me == root;
        // SAFETY: the communicators live as long as this value; the caller vouches for the buffers, and `room` has room for all
        // elements of a part.
        unsafe {
            if !self.leads() {
                return done(ompi::vmshm_coll_reduce(from, to, count, datatype, op, 0, self.low));
            }
            let shape = Shape::new(datatype, count);
            let mut room = Room::default();
            if !is_root && !room.reserve(&shape) {
                return Err(ompi::MPI_ERR_NO_MEM as c_int);
            }
            let part = if is_root { to } else { room.buffer(&shape) };
            done(ompi::vmshm_coll_reduce(from, part, count, datatype, op, 0, self.low))?;
            let mine = if is_root { in_place() } else { part.cast_const() };
            let leader = self.parts.0[root].0 as c_int;
            done(ompi::vmshm_coll_reduce(mine, to, count, datatype, op, leader, self.up))
        }
    }
}

/// `MPI_IN_PLACE`.
fn in_place() -> *const c_void {
    ptr::without_provenance(1)
}

impl Drop for Levels {
    fn drop(&mut self) {
        for comm in [self.low, self.up] {
            if !comm.is_null() {
                // SAFETY: it was made for this value, and nobody else knows it.
                unsafe { ompi::vmshm_coll_free(comm) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(region: u8, id: u32) -> EndpointName {
        EndpointName { region_id: [region; 16], id, version: 1, incarnation: 1 }
    }

    #[test]
    fn members_of_several_regions_are_parted_by_region() {
        let names: Vec<_> = [1, 2, 2, 1, 3].into_iter().zip(0..).map(|(r, id)| name(r, id)).collect();
        assert_eq!(Parts::new(&names, By::Region), Parts(vec![(0, 0), (1, 0), (1, 1), (0, 1), (2, 0)]));
        assert!(has_neighbours(&names, By::Region));
        assert!(!has_neighbours(&[name(1, 0), name(2, 0)], By::Region));
        assert!(!has_neighbours(&[name(1, 0), name(1, 1)], By::Region));
    }

    #[test]
    fn members_of_one_region_are_parted_by_section() {
        let by = By::Section { endpoints: 16 };
        let names: Vec<_> = [40, 3, 47, 15, 16].into_iter().map(|id| name(1, id)).collect();
        assert_eq!(Parts::new(&names, by), Parts(vec![(0, 0), (1, 0), (0, 1), (1, 1), (2, 0)]));
        assert!(has_neighbours(&names, by));
        assert!(!has_neighbours(&names[1..2], by));
        assert!(!has_neighbours(&[name(1, 15), name(1, 16)], by));
    }
}
