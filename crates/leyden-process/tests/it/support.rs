//! Looking at processes from outside.

use std::time::{Duration, Instant};

/// Far beyond anything that works; a hang is caught by it.
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// Waits until `condition` holds; panics after [`LONG`].
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LONG, "waited for: {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
    start.elapsed()
}

/// Whether the process runs; one that is dead and not reaped does not.
pub(crate) fn is_alive(pid: i32) -> bool {
    !matches!(leyden_process::supervise::evidence(pid).state, None | Some('Z' | 'X'))
}
