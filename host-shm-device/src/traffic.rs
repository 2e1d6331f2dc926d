//! Traffic of an endpoint with its peers, as its process tells it now and then. A member can write anything there.

use vmshm_abi::region::SectionEntry;
use vmshm_abi::ring::{CONNECTION_LEN, ConnectionHeader, SLOT};
use vmshm_abi::section::{EndpointSlot, SectionLayout};
use zerocopy::FromBytes;

use crate::error::Error;
use crate::region::Region;

/// Traffic with one peer in the present life of both.
#[derive(Debug, serde::Serialize)]
pub struct Traffic {
    /// The peer's section.
    pub section: u32,
    /// The peer's slot in it.
    pub slot: u32,
    /// Messages in the peer's ring that were received.
    pub inline: u64,
    /// Bytes of the ring that these took, in whole slots.
    pub inline_bytes: u64,
    /// Fragments of the peer's section that were received: messages, and pieces of long ones.
    pub fragments: u64,
    /// Bytes of these.
    pub fragment_bytes: u64,
    /// Reads of the peer's section in place.
    pub gets: u64,
    /// Bytes of these.
    pub get_bytes: u64,
    /// Writes to the peer's section.
    pub puts: u64,
    /// Bytes of these.
    pub put_bytes: u64,
}

impl Traffic {
    fn new(header: &ConnectionHeader, endpoints: u32) -> Self {
        let told = header.told;
        Self {
            section: header.peer / endpoints,
            slot: header.peer % endpoints,
            inline: told.inline,
            // Each fragment has a slot of the ring, too.
            inline_bytes: header.consumed.saturating_sub(told.fragments).saturating_mul(SLOT),
            fragments: told.fragments,
            fragment_bytes: told.fragment_bytes,
            gets: told.gets,
            get_bytes: told.get_bytes,
            puts: told.puts,
            put_bytes: told.put_bytes,
        }
    }

    /// Whether there was any.
    fn is_some(&self) -> bool {
        self.inline != 0 || self.fragments != 0 || self.gets != 0 || self.puts != 0
    }
}

/// Traffic of the endpoint in this slot, whose present life is `incarnation`, with all peers that it has heard of.
pub(crate) fn of(
    region: &Region,
    entry: &SectionEntry,
    layout: &SectionLayout,
    told: &EndpointSlot,
    incarnation: u64,
) -> Result<Vec<Traffic>, Error> {
    let is_inside = |offset: u64, len: u64| offset.checked_add(len).is_some_and(|end| end <= entry.len);
    let mut directory = vec![0; layout.total_endpoints as usize * 8];
    if told.directory == 0 || !is_inside(told.directory, directory.len() as u64) {
        return Ok(Vec::new());
    }
    region.read(&mut directory, entry.offset + told.directory)?;
    let mut found = Vec::new();
    for (peer, word) in (0..).zip(directory.chunks_exact(8)) {
        let offset = u64::from_ne_bytes(word.try_into().expect("eight bytes"));
        if offset == 0 || !is_inside(offset, CONNECTION_LEN) {
            continue;
        }
        let mut bytes = [0; CONNECTION_LEN as usize];
        region.read(&mut bytes, entry.offset + offset)?;
        let header = ConnectionHeader::read_from_bytes(&bytes).expect("as many bytes as a header has");
        if header.peer == peer && header.incarnation == incarnation {
            found.push(Traffic::new(&header, layout.endpoints));
        }
    }
    found.retain(Traffic::is_some);
    Ok(found)
}
