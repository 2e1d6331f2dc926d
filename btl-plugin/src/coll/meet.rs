//! The members of a communicator meet, at the first operation: each prepares its block and tells the others where that is.

use std::ffi::c_int;
use std::sync::Arc;

use vmshm_transport::abi::{EndpointId, EndpointName};
use vmshm_transport::collective::{BLOCK, Group, Rank, is_chunk};
use vmshm_transport::tune::Tuning;
use vmshm_transport::{Fragment, Mapping, Purpose};
use zerocopy::{FromZeros, IntoBytes};

use super::group::{Met, tidy};
use super::waiting::{Waiting, spins};
use crate::ompi::{self, help, ompi_communicator_t, opal_proc_t, vmshm_coll_module_t};
use crate::process::{INSTANCE, params};

/// Version of the members' protocol, to be raised with each change: virtual machines may have plugins of different days.
const PROTOCOL: u64 = 1;

/// A member's greeting to the others.
#[derive(Clone, Copy, IntoBytes, FromZeros, zerocopy::KnownLayout, zerocopy::Immutable)]
#[repr(C)]
struct Hello {
    /// Offset of its block, or 0 where it has none.
    block: u64,
    /// Distinguishes the group from all others.
    tag: u64,
    /// Bytes of a chunk, as this member's parameters have it; the least one is taken.
    chunk: u64,
    protocol: u64,
}

/// The members of a communicator.
pub struct Members {
    /// This process's rank.
    pub me: usize,
    /// Open MPI's processes, by rank.
    pub procs: Vec<*mut opal_proc_t>,
    /// Endpoints, by rank.
    pub names: Vec<EndpointName>,
    /// Endpoints of a section of our region.
    pub endpoints: u32,
}

impl Members {
    /// Lets the members meet; None if the component below is to do their operations.
    ///
    /// # Errors
    /// Open MPI's code.
    ///
    /// # Safety
    /// `module` is ours and enabled, `comm` its communicator, whose members all call the same operation.
    #[cold]
    pub unsafe fn meet(
        &self,
        module: *mut vmshm_coll_module_t,
        comm: *mut ompi_communicator_t,
    ) -> Result<Option<Met>, c_int> {
        tidy();
        let prepared = self.prepare();
        let mine = match &prepared {
            Ok((fragment, tag)) => {
                let chunk = params::coll_chunk() as u64;
                Hello { block: fragment.offset(), tag: *tag, chunk, protocol: PROTOCOL }
            }
            Err(_) => Hello::new_zeroed(),
        };
        let mut hellos = vec![Hello::new_zeroed(); self.names.len()];
        // SAFETY: the buffers have the lengths that are given.
        let rc = unsafe {
            let to = hellos.as_mut_ptr().cast();
            ompi::vmshm_coll_exchange(module, comm, (&raw const mine).cast(), to, size_of::<Hello>() as c_int)
        };
        let met = match (&prepared, rc) {
            (Ok((fragment, _)), 0) => self.group(&hellos, fragment),
            (Err(why), 0) => Err(why.clone()),
            (_, rc) => return Err(rc),
        };
        match (met, prepared) {
            (Ok((group, waiting)), Ok((fragment, _))) => {
                let chunk = hellos.iter().map(|hello| hello.chunk as usize).min().unwrap_or(0);
                help::verbose(&format!(
                    "a communicator of {} does collective operations in the region",
                    self.names.len()
                ));
                Ok(Some(Met::new(group, waiting, fragment, chunk)))
            }
            (met, prepared) => {
                if let (Ok((fragment, _)), Some(instance)) = (prepared, INSTANCE.lock().as_mut()) {
                    instance.engine.free(fragment);
                }
                let why = met.err().unwrap_or_default();
                help::verbose(&format!("collective operations of a communicator are left to others: {why}"));
                Ok(None)
            }
        }
    }

    /// Meets the members' endpoints, and prepares our block.
    fn prepare(&self) -> Result<(Fragment, u64), String> {
        let mut instance = INSTANCE.lock();
        let instance = instance.as_mut().ok_or("this process has left the region")?;
        if instance.engine.params().sleep_after.is_some() {
            return Err("processes sleep (btl_vmshm_sleep_after)".into());
        }
        for (member, (name, proc)) in self.names.iter().zip(&self.procs).enumerate() {
            if member != self.me {
                instance.connect(name, *proc).map_err(|error| format!("member {member}: {error}"))?;
            }
        }
        let endpoint = instance.engine.endpoint_mut();
        let fragment =
            endpoint.fragment_for(BLOCK, Purpose::Small).ok_or("the section has no memory left")?;
        let tag = random_tag();
        Group::prepare(endpoint.memory(), fragment.offset(), tag);
        Ok((fragment, tag))
    }

    /// Whether this process shares its processor with other members: Open MPI knows that there are more processes than
    /// processors, or there are more members in our section.
    fn is_crowded(&self) -> bool {
        // SAFETY: Open MPI is initialized, which is all that its call asks for; sysconf asks for nothing.
        let (processors, yields) =
            unsafe { (libc::sysconf(libc::_SC_NPROCESSORS_ONLN), ompi::vmshm_coll_yields()) };
        let section = |name: &EndpointName| name.id / self.endpoints.max(1);
        let siblings =
            self.names.iter().filter(|name| section(name) == section(&self.names[self.me])).count();
        yields || usize::try_from(processors).is_ok_and(|processors| siblings > processors)
    }

    /// The group of members that said this.
    fn group(&self, hellos: &[Hello], mine: &Fragment) -> Result<(Group<Arc<Mapping>>, Waiting), String> {
        let instance = INSTANCE.lock();
        let instance = instance.as_ref().ok_or("this process has left the region")?;
        let endpoint = instance.engine.endpoint();
        let memory = Arc::clone(endpoint.memory());
        let mut members = Vec::new();
        for (member, (hello, name)) in hellos.iter().zip(&self.names).enumerate() {
            let place = endpoint.region().place(EndpointId(name.id));
            let (section, slot) = place.ok_or_else(|| format!("member {member} has no section"))?;
            if hello.block == 0 || hello.tag == 0 || !usize::try_from(hello.chunk).is_ok_and(is_chunk) {
                return Err(format!("member {member} cannot take part"));
            }
            if hello.protocol != PROTOCOL {
                let theirs = hello.protocol;
                return Err(format!(
                    "member {member} has a plugin of another version (protocol {theirs}, here {PROTOCOL})"
                ));
            }
            members.push(Rank {
                section: *section,
                block: hello.block,
                tag: hello.tag,
                slot: section.slot(slot),
                incarnation: name.incarnation,
            });
        }
        debug_assert_eq!(members[self.me].block, mine.offset());
        // SAFETY: Open MPI is initialized, which is all that the call asks for.
        let yields = unsafe { ompi::vmshm_coll_yields() };
        let is_crowded = self.is_crowded();
        let waiting = Waiting::new(is_crowded && !yields, Arc::clone(instance.engine.evictor()));
        let mut group = Group::new(memory, self.me, members, spins(is_crowded))
            .ok_or("a member's block lies outside of its section")?;
        group.expose_to_root(Tuning::of_this_machine().coll_zero_copy_limit);
        Ok((group, waiting))
    }
}

/// A number that no other group has had; not zero.
fn random_tag() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish() | 1
}
