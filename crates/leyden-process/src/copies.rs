//! Copies of a worker that its own code makes by `fork`.
//!
//! A copy may do what it likes and end. One that comes back from the code that made it, and goes on as if it were the
//! worker, would say everything twice: it is ended before it says anything. What workers share with the program they keep
//! from their copies as well, so that one that writes there is ended by the kernel.
//!
//! A copy of the program itself is the program's own affair. But it has copies of values that stand for threads and
//! processes which it does not have: those know their [`Home`], and do nothing elsewhere.

use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Error, exit, sys};

/// Ends this process if it is a copy of a worker that was made by `fork`; on stderr it says that it came back from what
/// `from` names. In any other process nothing happens.
pub fn end_if_copied<T: std::fmt::Display>(from: impl FnOnce() -> T) {
    if COPIED.load(Ordering::Relaxed) {
        end(&from());
    }
}

/// The process that a value was made in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Home(u32);

impl Home {
    /// This process.
    pub fn here() -> Self {
        Self(std::process::id())
    }

    /// Whether this process is it, and not a copy of it.
    pub fn is_here(self) -> bool {
        self == Self::here()
    }

    /// Adds to the error of a value that was used in a copy which processes are meant.
    pub fn explain(self, error: Error) -> Error {
        error
            .at("made in", format_args!("process {}", self.0))
            .at("used in", format_args!("process {}", std::process::id()))
            .why("a forked process has none of its parent's threads, and is not the parent of its workers")
            .hint("make it in the process that uses it, after the fork")
    }
}

/// From here on, copies of this process know that they are.
pub(crate) fn watch() {
    extern "C" fn copied() {
        COPIED.store(true, Ordering::Relaxed);
    }
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the handler stores to an atomic, which may be done at any time. A refusal, for want of memory, leaves
        // copies as they would be without it.
        unsafe { libc::pthread_atfork(None, None, Some(copied)) };
    });
}

/// Set in copies alone: each process has its own.
static COPIED: AtomicBool = AtomicBool::new(false);

#[cold]
fn end(from: &dyn std::fmt::Display) -> ! {
    let line = format!(
        "leyden: warning: {from} has forked, and the copy of the worker came back from it: the copy was ended, and the \
         worker goes on. Code that forks ends the copy itself, by `_exit` or `exec`\n"
    );
    // Not by `eprintln!`: another thread may have held its lock when this process was copied.
    // SAFETY: the text gives pointer and length.
    unsafe { libc::write(2, line.as_ptr().cast(), line.len()) };
    sys::exit_now(exit::WORKER_DIED)
}
