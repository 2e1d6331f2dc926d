//! Mean time of `MPI_Scatter`.

use std::process::ExitCode;

use vmshm_benches::osu::{Collective, run_collective};

fn main() -> ExitCode {
    run_collective(Collective::Scatter)
}
