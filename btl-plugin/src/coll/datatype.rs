//! Buffers of any datatype as bytes one after another.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;

use crate::ompi::{self, Count, ompi_datatype_t, vmshm_coll_layout_t};

/// So many elements of a datatype.
#[derive(Clone, Copy)]
pub struct Shape {
    datatype: *mut ompi_datatype_t,
    count: Count,
    layout: vmshm_coll_layout_t,
}

impl Shape {
    /// # Safety
    /// `datatype` is one of Open MPI, and `count` not negative.
    #[inline]
    pub unsafe fn new(datatype: *mut ompi_datatype_t, count: Count) -> Self {
        let mut layout = MaybeUninit::uninit();
        // SAFETY: the caller vouches for the datatype; all of the layout is written.
        unsafe {
            ompi::vmshm_coll_layout(datatype, count, layout.as_mut_ptr());
            Self { datatype, count, layout: layout.assume_init() }
        }
    }

    /// Another number of these elements.
    #[inline]
    pub fn times(&self, count: Count) -> Self {
        if self.layout.contiguous && self.layout.size as isize == self.layout.extent {
            // However many there are, they follow one another.
            return Self { count, ..*self };
        }
        // SAFETY: the datatype is one of Open MPI, as it was when this was made.
        unsafe { Self::new(self.datatype, count) }
    }

    /// How many elements.
    pub fn count(&self) -> Count {
        self.count
    }

    /// Bytes of data.
    #[inline]
    pub fn bytes(&self) -> usize {
        self.layout.size * ompi::non_negative(self.count)
    }

    /// Bytes of data in one element.
    pub fn element(&self) -> usize {
        self.layout.size
    }

    /// Whether the data lies in memory as it is.
    pub fn is_contiguous(&self) -> bool {
        self.layout.contiguous
    }

    /// How the elements lie in memory.
    pub fn layout(&self) -> &vmshm_coll_layout_t {
        &self.layout
    }

    /// Whether each element lies before the last one: Open MPI 4.1 itself computes no span for these.
    #[inline]
    pub fn goes_back(&self) -> bool {
        self.layout.extent < 0
    }

    /// Bytes that the elements span in memory, with what lies between the first and the last.
    pub fn span(&self) -> usize {
        // SAFETY: the datatype is one of Open MPI, as it was when this was made.
        unsafe { ompi::vmshm_coll_span(self.datatype, self.count) }
    }

    /// The datatype.
    pub fn datatype(&self) -> *mut ompi_datatype_t {
        self.datatype
    }

    /// Where the first byte of data lies in a buffer.
    #[inline]
    pub fn first(&self, buffer: *mut u8) -> *mut u8 {
        buffer.wrapping_offset(self.layout.gap)
    }

    /// The buffer that begins so many elements behind this one.
    #[inline]
    pub fn behind(&self, buffer: *mut c_void, elements: isize) -> *mut c_void {
        buffer.wrapping_byte_offset(self.layout.extent.wrapping_mul(elements))
    }

    /// Where a member's part lies in a buffer that has one of this shape for each.
    #[inline]
    pub fn part(&self, buffer: *mut c_void, member: usize) -> *mut c_void {
        self.behind(buffer, member as isize * self.count as isize)
    }

    /// The bytes of a buffer to be sent.
    ///
    /// # Safety
    /// The buffer has this shape, and stays as it is while the bytes are used.
    #[inline]
    pub unsafe fn source(&self, buffer: *const c_void) -> Result<Source, c_int> {
        if self.layout.contiguous {
            return Ok(Source { bytes: self.first(buffer.cast_mut().cast()), _packed: Vec::new() });
        }
        let mut packed: Vec<u8> = Vec::with_capacity(self.bytes());
        // SAFETY: there is room for all bytes.
        unsafe { self.pack(buffer, packed.as_mut_ptr())? };
        Ok(Source { bytes: packed.as_ptr(), _packed: packed })
    }

    /// Copies the bytes of a buffer.
    ///
    /// # Safety
    /// The buffer has this shape, and `to` has room for its bytes.
    pub unsafe fn pack(&self, buffer: *const c_void, to: *mut u8) -> Result<(), c_int> {
        // SAFETY: the caller vouches for both.
        let rc = unsafe {
            ompi::vmshm_coll_pack(self.datatype, self.count, buffer, to.cast::<c_void>(), self.bytes())
        };
        succeeded(rc)
    }

    /// Copies bytes to a buffer.
    ///
    /// # Safety
    /// The buffer has this shape, and `from` has all its bytes.
    pub unsafe fn unpack(&self, buffer: *mut c_void, from: *const u8) -> Result<(), c_int> {
        // SAFETY: the caller vouches for both.
        let rc = unsafe {
            let from = from.cast::<c_void>();
            ompi::vmshm_coll_unpack(self.datatype, self.count, buffer, from, self.bytes())
        };
        succeeded(rc)
    }

    /// Where bytes for a buffer are to be put.
    #[inline]
    pub fn sink(&self, buffer: *mut c_void) -> Sink {
        if self.layout.contiguous {
            return Sink { bytes: self.first(buffer.cast()), packed: None };
        }
        // Not made zero: all of it is written before any is delivered.
        let mut packed = Vec::with_capacity(self.bytes());
        Sink { bytes: packed.as_mut_ptr(), packed: Some((*self, buffer, packed)) }
    }

    /// Fails where a place of another shape is too short for this one's bytes.
    pub fn must_fit(&self, place: &Self) -> Result<(), c_int> {
        if self.bytes() <= place.bytes() { Ok(()) } else { Err(ompi::MPI_ERR_TRUNCATE as c_int) }
    }

    /// Copies a buffer of this shape to one of another, as far as that reaches.
    ///
    /// # Errors
    ///
    /// Open MPI's code where not all fits.
    ///
    /// # Safety
    /// Both buffers have their shapes.
    pub unsafe fn copy(&self, from: *const c_void, to_shape: &Self, to: *mut c_void) -> Result<(), c_int> {
        if self.layout.contiguous && to_shape.layout.contiguous {
            let bytes = self.bytes().min(to_shape.bytes());
            // SAFETY: both lie in memory as they are; a program that gives overlapping buffers gets what memmove does.
            unsafe {
                let (from, to) = (self.first(from.cast_mut().cast()), to_shape.first(to.cast()));
                from.cast_const().copy_to(to, bytes);
            }
            return self.must_fit(to_shape);
        }
        // SAFETY: the caller vouches for both.
        let rc = unsafe {
            let to_type = to_shape.datatype;
            ompi::vmshm_coll_copy(from, self.count, self.datatype, to, to_shape.count, to_type)
        };
        succeeded(rc)
    }
}

fn succeeded(rc: c_int) -> Result<(), c_int> {
    if rc == 0 { Ok(()) } else { Err(rc) }
}

/// Bytes to be sent.
pub struct Source {
    bytes: *const u8,
    _packed: Vec<u8>,
}

impl Source {
    /// Where they are.
    #[inline]
    pub fn bytes(&self) -> *const u8 {
        self.bytes
    }
}

/// A place for bytes that are received.
pub struct Sink {
    bytes: *mut u8,
    packed: Option<(Shape, *mut c_void, Vec<u8>)>,
}

impl Sink {
    /// Where it is.
    #[inline]
    pub fn bytes(&self) -> *mut u8 {
        self.bytes
    }

    /// Brings the bytes to the buffer.
    ///
    /// # Safety
    /// The buffer has the shape that it was made for.
    #[inline]
    pub unsafe fn deliver(self) -> Result<(), c_int> {
        match &self.packed {
            None => Ok(()),
            // SAFETY: the caller vouches for the buffer.
            Some((shape, buffer, packed)) => unsafe { shape.unpack(*buffer, packed.as_ptr()) },
        }
    }
}

/// `MPI_IN_PLACE`.
pub fn is_in_place(buffer: *const c_void) -> bool {
    buffer.addr() == 1
}

/// Parts of one shape, one after another.
pub enum Parts {
    /// Where the user has them.
    AsTheyAre(*const u8),
    /// In memory of ours.
    Packed(Vec<u8>),
}

impl Parts {
    /// Where they are.
    pub fn bytes(&self) -> *const u8 {
        match self {
            Parts::AsTheyAre(bytes) => *bytes,
            Parts::Packed(bytes) => bytes.as_ptr(),
        }
    }
}

/// The bytes of `count` parts of one shape.
///
/// # Safety
/// `place` says where each part lies.
pub unsafe fn parts(
    part: &Shape,
    count: usize,
    place: impl Fn(usize) -> *const c_void,
) -> Result<Parts, c_int> {
    // SAFETY: the caller vouches for the parts.
    unsafe {
        let first = part.source(place(0))?;
        let len = part.bytes();
        let follow = place(1).addr().wrapping_sub(place(0).addr()) == len;
        if part.is_contiguous() && follow {
            return Ok(Parts::AsTheyAre(first.bytes()));
        }
        let mut packed = vec![0u8; len * count];
        for (member, to) in packed.chunks_exact_mut(len).enumerate() {
            part.pack(place(member), to.as_mut_ptr())?;
        }
        Ok(Parts::Packed(packed))
    }
}
