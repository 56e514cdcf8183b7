//! glibc's allocator, told to keep memory that a training step will ask for again.
//!
//! A CPU engine allocates every intermediate tensor. By default glibc maps and unmaps each block above 128 KiB
//! anew (it adapts only slowly) and returns the top of the heap to the kernel after each free, so a step pays
//! for page faults instead of arithmetic: a small MLP's step took 5.3 ms with the defaults and 2.5 ms with these
//! thresholds.

/// Raises glibc's mmap, trim and top-pad thresholds, once a process; elsewhere it does nothing.
///
/// Called by `#[leyden::main]` and at the start of each run. `LEYDEN_MALLOC=system` in the environment leaves
/// the allocator alone. The price: up to [`KEPT_BYTES`] of freed memory stay with the process.
pub fn raise_thresholds() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        static ONCE: std::sync::Once = std::sync::Once::new();
        ONCE.call_once(|| {
            if std::env::var_os("LEYDEN_MALLOC").is_some_and(|value| value == "system") {
                return;
            }
            // SAFETY: mallopt takes two integers; glibc sets them under the main arena's lock, and a value that it does
            // not like only makes it return 0. Its manual calls it unsafe beside other threads because they may still
            // see the values of before, which is harmless here.
            unsafe {
                libc::mallopt(libc::M_MMAP_THRESHOLD, LARGEST_HEAP_BLOCK);
                libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES);
                libc::mallopt(libc::M_TOP_PAD, TOP_PAD);
            }
        });
    }
}

/// The most freed memory, in bytes, that the process keeps at the top of its heap.
pub const KEPT_BYTES: i32 = 512 << 20;

/// glibc refuses a larger mmap threshold than half of its largest arena heap.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGEST_HEAP_BLOCK: i32 = 32 << 20;

/// Grow the heap in steps of this size: fewer system calls while the first step warms up.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const TOP_PAD: i32 = 16 << 20;
