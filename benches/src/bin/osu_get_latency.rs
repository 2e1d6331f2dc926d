//! Time of `MPI_Get` with `MPI_Win_flush`.

use std::process::ExitCode;

use vmshm_benches::osu::{OneSided, run_one_sided};

fn main() -> ExitCode {
    run_one_sided("osu_get_latency", OneSided::Get)
}
