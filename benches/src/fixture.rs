//! A region in memory and endpoints in it, for what is measured without MPI.

use std::sync::Arc;

use vmshm_host::{CreateOptions, Region, RegionName, create_memfd};
use vmshm_transport::{Endpoint, Inbox, Mapping, Peer, SendError};

/// A region in memory, with one mapping for each section that is used.
#[derive(Debug)]
pub struct Fixture {
    region: Region,
    mappings: Vec<Option<Arc<Mapping>>>,
}

impl Fixture {
    /// A region with so many sections, each with room for so many endpoints.
    ///
    /// # Panics
    /// Without memory for it.
    pub fn new(sections: u32, endpoints: u32) -> Fixture {
        let mut options = CreateOptions::new(2 << 30);
        (options.sections, options.endpoints, options.sparse) = (sections, Some(endpoints), true);
        let name = RegionName::new("bench").expect("a good name");
        let region = create_memfd(&name, &options).expect("a region in memory");
        Fixture { region, mappings: vec![None; sections as usize] }
    }

    /// The region.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// A new endpoint in a section.
    ///
    /// # Panics
    /// Where the section has no room for another.
    pub fn node(&mut self, section: u32) -> Node {
        let endpoint = Endpoint::attach(self.mapping(section), section).expect("room in the section");
        Node { endpoint, inbox: Inbox::new(), peer: None }
    }

    fn mapping(&mut self, section: u32) -> Arc<Mapping> {
        let region = &self.region;
        let made = self.mappings[section as usize].get_or_insert_with(|| {
            let entry = region.entry(section).expect("a section of the region");
            let own = entry.offset..entry.offset + entry.len;
            let file = region.reopen().expect("a file of our own");
            Arc::new(Mapping::of_file(file, region.header().region_len, own).expect("memory to map"))
        });
        Arc::clone(made)
    }
}

/// An endpoint with what it needs to be used in a loop.
#[derive(Debug)]
pub struct Node {
    /// The endpoint.
    pub endpoint: Endpoint<Arc<Mapping>>,
    /// Where its messages arrive.
    pub inbox: Inbox,
    peer: Option<Peer>,
}

impl Node {
    /// Connects to another, to which [`send`](Node::send) sends from now on.
    ///
    /// # Panics
    /// Without room in the section.
    pub fn meet(&mut self, other: &Node) {
        self.peer = Some(self.endpoint.connect(&other.endpoint.name()).expect("the other is there"));
    }

    /// Whom it has met last.
    ///
    /// # Panics
    /// If it has met nobody.
    pub fn peer(&self) -> Peer {
        self.peer.expect("every node meets another first")
    }

    /// Sends a message, when there is room for it.
    #[inline]
    pub fn send(&mut self, tag: u8, bytes: &[u8]) {
        let peer = self.peer();
        while self.endpoint.send(peer, tag, &[bytes]) == Err(SendError::Full) {
            std::hint::spin_loop();
        }
    }
}
