//! Mean time of `MPI_Alltoallv`, all parts of the same length.

use std::process::ExitCode;

use vmshm_benches::osu::{Collective, run_collective};

fn main() -> ExitCode {
    run_collective(Collective::Alltoallv)
}
