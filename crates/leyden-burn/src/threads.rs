//! The processor's cores, divided among the ranks of a host.

use std::thread::available_parallelism;

use leyden_train::TrainerConfig;

/// Makes the thread pool that Burn's CPU back end computes with, with this rank's share of the cores: each rank would
/// otherwise start as many threads as there are cores. `RAYON_NUM_THREADS` is the user's word, and a pool that is there
/// already, because something was computed before, stays as it is.
pub(crate) fn divide(config: &TrainerConfig) {
    let ranks = config.ranks_of_host().unwrap_or(1);
    if ranks > 1 && std::env::var_os("RAYON_NUM_THREADS").is_none() {
        let cores = available_parallelism().map_or(1, usize::from);
        let _ = rayon::ThreadPoolBuilder::new().num_threads((cores / ranks).max(1)).build_global();
    }
}
