//! Open MPI's predefined datatypes, each with its parts and with values on which the order of evaluation can't show.

use std::ffi::{CStr, c_void};
use std::mem::transmute_copy;

use mpi::ffi;

use crate::datatype::Datatype;
use crate::payload::Random;

/// A part of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// So many bytes of an integer.
    Int(usize),
    /// C's bool, or Fortran's logical of so many bytes.
    Bool(usize),
    /// Single precision.
    Float,
    /// Double precision.
    Double,
    /// C's `long double`: 80 bits in 16 bytes.
    Long,
}

impl Part {
    fn size(self) -> usize {
        match self {
            Part::Int(size) | Part::Bool(size) => size,
            Part::Float => 4,
            Part::Double => 8,
            Part::Long => 16,
        }
    }

    /// A value, of few, so that there are ties.
    fn value(self, random: &mut Random) -> Vec<u8> {
        let value = random.below(5) as u8;
        let mut bytes = match self {
            Part::Int(_) => vec![value],
            Part::Bool(_) => vec![value % 2],
            Part::Float => f32::from(value).to_le_bytes().to_vec(),
            Part::Double => f64::from(value).to_le_bytes().to_vec(),
            Part::Long if value == 0 => Vec::new(),
            Part::Long => {
                let shift = u64::from(value).leading_zeros();
                let exponent = 16383 + 63 - shift as u16;
                [&(u64::from(value) << shift).to_le_bytes()[..], &exponent.to_le_bytes()].concat()
            }
        };
        bytes.resize(self.size(), 0);
        bytes
    }
}

/// One of the datatypes.
#[derive(Clone, Copy, Debug)]
pub struct Predefined {
    /// The name of Open MPI's constant.
    pub name: &'static CStr,
    parts: &'static [Part],
    /// Where the second part is, if that is not right behind the first one, and bytes from one element to the next.
    gaps: Option<(usize, usize)>,
}

impl Predefined {
    const fn new(name: &'static CStr, parts: &'static [Part]) -> Self {
        Self { name, parts, gaps: None }
    }

    const fn with_gaps(name: &'static CStr, parts: &'static [Part], second: usize, extent: usize) -> Self {
        Self { name, parts, gaps: Some((second, extent)) }
    }

    /// The datatype.
    ///
    /// # Panics
    /// This is not Open MPI.
    pub fn datatype(&self) -> Datatype {
        let found = symbol(self.name).expect("these tests of accumulates are for Open MPI");
        let sizes = self.parts.iter().map(|part| part.size());
        let blocks = match self.gaps {
            Some((second, _)) => [0, second].into_iter().zip(sizes).collect(),
            None => vec![(0, sizes.sum())],
        };
        let end = blocks.iter().map(|(at, len)| at + len).max().unwrap_or(0);
        // SAFETY: a handle of Open MPI is the address of such a constant.
        unsafe { Datatype::of_open_mpi(transmute_copy(&found), blocks, self.gaps.map_or(end, |gaps| gaps.1)) }
    }

    /// Where an element has bytes that mean nothing, packed or in memory: a `long double` has ten that do, and compilers leave the others
    /// behind it as they are, or not.
    pub fn padding(&self) -> Vec<usize> {
        let starts = self.parts.iter().scan(0, |end, part| {
            let start = *end;
            *end += part.size();
            Some((start, part))
        });
        let long = starts.filter(|(_, part)| **part == Part::Long);
        long.flat_map(|(start, part)| start + 10..start + part.size()).collect()
    }

    /// The packed bytes of one of its elements.
    pub fn operand(&self, random: &mut Random) -> Vec<u8> {
        self.parts.iter().flat_map(|part| part.value(random)).collect()
    }
}

/// A constant of Open MPI's that this binding does not know, if this is Open MPI.
pub fn symbol(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: any name may be asked for.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    (!found.is_null()).then_some(found)
}

/// One of Open MPI's operations, by the name of its constant.
///
/// # Panics
/// This is not Open MPI.
pub fn operation(name: &CStr) -> ffi::MPI_Op {
    let found = symbol(name).expect("these tests of accumulates are for Open MPI");
    // SAFETY: a handle of Open MPI is the address of such a constant.
    unsafe { transmute_copy(&found) }
}

/// The operations that combine operands.
pub const OPERATIONS: [&CStr; 12] = [
    c"ompi_mpi_op_max",
    c"ompi_mpi_op_min",
    c"ompi_mpi_op_sum",
    c"ompi_mpi_op_prod",
    c"ompi_mpi_op_land",
    c"ompi_mpi_op_band",
    c"ompi_mpi_op_lor",
    c"ompi_mpi_op_bor",
    c"ompi_mpi_op_lxor",
    c"ompi_mpi_op_bxor",
    c"ompi_mpi_op_maxloc",
    c"ompi_mpi_op_minloc",
];

use Part::{Bool, Double, Float, Int, Long};

/// The pairs of a value and an index that C has; some have gaps between the two, or behind them.
pub const PAIRS: [Predefined; 6] = [
    Predefined::new(c"ompi_mpi_2int", &[Int(4), Int(4)]),
    Predefined::new(c"ompi_mpi_float_int", &[Float, Int(4)]),
    Predefined::with_gaps(c"ompi_mpi_short_int", &[Int(2), Int(4)], 4, 8),
    Predefined::with_gaps(c"ompi_mpi_long_int", &[Int(8), Int(4)], 8, 16),
    Predefined::with_gaps(c"ompi_mpi_double_int", &[Double, Int(4)], 8, 16),
    Predefined::with_gaps(c"ompi_mpi_longdbl_int", &[Long, Int(4)], 16, 32),
];

/// All others, but those that Open MPI has for want of one.
pub const OTHERS: [Predefined; 58] = [
    Predefined::new(c"ompi_mpi_char", &[Int(1)]),
    Predefined::new(c"ompi_mpi_signed_char", &[Int(1)]),
    Predefined::new(c"ompi_mpi_unsigned_char", &[Int(1)]),
    Predefined::new(c"ompi_mpi_byte", &[Int(1)]),
    Predefined::new(c"ompi_mpi_packed", &[Int(1)]),
    Predefined::new(c"ompi_mpi_short", &[Int(2)]),
    Predefined::new(c"ompi_mpi_unsigned_short", &[Int(2)]),
    Predefined::new(c"ompi_mpi_int", &[Int(4)]),
    Predefined::new(c"ompi_mpi_unsigned", &[Int(4)]),
    Predefined::new(c"ompi_mpi_long", &[Int(8)]),
    Predefined::new(c"ompi_mpi_unsigned_long", &[Int(8)]),
    Predefined::new(c"ompi_mpi_long_long_int", &[Int(8)]),
    Predefined::new(c"ompi_mpi_unsigned_long_long", &[Int(8)]),
    Predefined::new(c"ompi_mpi_int8_t", &[Int(1)]),
    Predefined::new(c"ompi_mpi_uint8_t", &[Int(1)]),
    Predefined::new(c"ompi_mpi_int16_t", &[Int(2)]),
    Predefined::new(c"ompi_mpi_uint16_t", &[Int(2)]),
    Predefined::new(c"ompi_mpi_int32_t", &[Int(4)]),
    Predefined::new(c"ompi_mpi_uint32_t", &[Int(4)]),
    Predefined::new(c"ompi_mpi_int64_t", &[Int(8)]),
    Predefined::new(c"ompi_mpi_uint64_t", &[Int(8)]),
    Predefined::new(c"ompi_mpi_wchar", &[Int(4)]),
    Predefined::new(c"ompi_mpi_aint", &[Int(8)]),
    Predefined::new(c"ompi_mpi_offset", &[Int(8)]),
    Predefined::new(c"ompi_mpi_count", &[Int(8)]),
    Predefined::new(c"ompi_mpi_float", &[Float]),
    Predefined::new(c"ompi_mpi_double", &[Double]),
    Predefined::new(c"ompi_mpi_long_double", &[Long]),
    Predefined::new(c"ompi_mpi_c_bool", &[Bool(1)]),
    Predefined::new(c"ompi_mpi_c_complex", &[Float, Float]),
    Predefined::new(c"ompi_mpi_c_float_complex", &[Float, Float]),
    Predefined::new(c"ompi_mpi_c_double_complex", &[Double, Double]),
    Predefined::new(c"ompi_mpi_c_long_double_complex", &[Long, Long]),
    Predefined::new(c"ompi_mpi_logical", &[Bool(4)]),
    Predefined::new(c"ompi_mpi_logical1", &[Bool(1)]),
    Predefined::new(c"ompi_mpi_logical2", &[Bool(2)]),
    Predefined::new(c"ompi_mpi_logical4", &[Bool(4)]),
    Predefined::new(c"ompi_mpi_logical8", &[Bool(8)]),
    Predefined::new(c"ompi_mpi_character", &[Int(1)]),
    Predefined::new(c"ompi_mpi_integer", &[Int(4)]),
    Predefined::new(c"ompi_mpi_integer1", &[Int(1)]),
    Predefined::new(c"ompi_mpi_integer2", &[Int(2)]),
    Predefined::new(c"ompi_mpi_integer4", &[Int(4)]),
    Predefined::new(c"ompi_mpi_integer8", &[Int(8)]),
    Predefined::new(c"ompi_mpi_real", &[Float]),
    Predefined::new(c"ompi_mpi_real4", &[Float]),
    Predefined::new(c"ompi_mpi_real8", &[Double]),
    Predefined::new(c"ompi_mpi_dblprec", &[Double]),
    Predefined::new(c"ompi_mpi_cplex", &[Float, Float]),
    Predefined::new(c"ompi_mpi_complex8", &[Float, Float]),
    Predefined::new(c"ompi_mpi_complex16", &[Double, Double]),
    Predefined::new(c"ompi_mpi_dblcplex", &[Double, Double]),
    Predefined::new(c"ompi_mpi_2integer", &[Int(4), Int(4)]),
    Predefined::new(c"ompi_mpi_2real", &[Float, Float]),
    Predefined::new(c"ompi_mpi_2dblprec", &[Double, Double]),
    Predefined::new(c"ompi_mpi_cxx_bool", &[Bool(1)]),
    Predefined::new(c"ompi_mpi_cxx_dblcplex", &[Double, Double]),
    Predefined::new(c"ompi_mpi_2dblcplex", &[Double, Double, Double, Double]),
];
