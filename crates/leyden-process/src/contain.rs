//! Panics as values: a panic of the user's code or of the engine becomes an error of the run, not its end.
//!
//! `contain` keeps what the default panic message would have printed (text and place) instead of printing it,
//! because the error that is made of it says the same with more context. With `RUST_BACKTRACE=1` the backtrace is
//! printed where the panic happens. Panics on other threads, and panics outside `contain`, print as ever.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::RefCell;
use std::io::Write as _;
use std::mem::ManuallyDrop;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

use crate::error::{Error, LONGEST, bounded};

/// What a contained panic said, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Panic {
    /// The panic's text.
    pub text: String,
    /// `file:line:column`, where it is known: panics carried over from another thread have lost it.
    pub location: Option<String>,
}

impl Panic {
    /// Adds the panic's text and place to the error that it becomes.
    pub fn explain(self, error: Error) -> Error {
        let error = error.why(self.text);
        match self.location {
            Some(location) => error.at("panicked", location),
            None => error,
        }
    }
}

/// Runs `work`; a panic comes back as a value.
///
/// Whatever `work` was changing may be half-changed afterwards: the caller decides what is still usable.
/// In a program built with `panic = "abort"` nothing can be contained.
pub fn contain<T>(work: impl FnOnce() -> T) -> Result<T, Panic> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let earlier = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let note = |frames: &mut Vec<Option<String>>| {
                let Some(frame) = frames.last_mut() else { return false };
                // The newest place counts: `work` may have caught the first panic itself. It is printed as well, because
                // a panic while another one unwinds ends the process, and must not be silent.
                let first = frame.is_none();
                *frame = info.location().map(ToString::to_string);
                if !first {
                    return false;
                }
                let backtrace = Backtrace::capture();
                if backtrace.status() == BacktraceStatus::Captured {
                    let _ = writeln!(std::io::stderr(), "{info}\n{backtrace}");
                }
                true
            };
            // In a thread that ends the list is gone, and a panic in a panic would end the process.
            let noted = CONTAINED.try_with(|frames| note(&mut frames.borrow_mut())).unwrap_or(false);
            if !noted {
                earlier(info);
            }
        }));
    });

    CONTAINED.with_borrow_mut(|frames| frames.push(None));
    let result = panic::catch_unwind(AssertUnwindSafe(work));
    let result = result.map_err(|payload| {
        let location = CONTAINED.with_borrow(|frames| frames.last().cloned().flatten());
        let text = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("a panic whose payload is no text");
        let text = bounded(text, LONGEST).into_owned();
        // A payload may panic when it is dropped, and what that panic carries, too: that one is never dropped.
        if let Err(second) = panic::catch_unwind(AssertUnwindSafe(|| drop(payload))) {
            let _never = ManuallyDrop::new(second);
        }
        Panic { text, location }
    });
    CONTAINED.with_borrow_mut(Vec::pop);
    result
}

thread_local! {
    /// One entry for each `contain` that is active on this thread: where its panic happened.
    static CONTAINED: RefCell<Vec<Option<String>>> = const { RefCell::new(Vec::new()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_text_and_place() {
        let panic = contain(|| panic!("shapes {} and {} differ", 3, 4)).unwrap_err();
        assert_eq!(panic.text, "shapes 3 and 4 differ");
        assert!(panic.location.unwrap().contains("contain.rs:"));
    }

    #[test]
    fn names_the_panic_that_got_out_not_one_that_was_caught_inside() {
        let line = std::cell::Cell::new(0);
        let caught = contain::<()>(|| {
            assert!(panic::catch_unwind(|| panic!("caught inside")).is_err());
            line.set(line!() + 1);
            panic!("got out")
        });
        let panic = caught.unwrap_err();
        assert_eq!(panic.text, "got out");
        assert!(panic.location.unwrap().contains(&format!("contain.rs:{}:", line.get())));
    }

    #[test]
    fn a_payload_that_panics_when_it_is_dropped_is_contained_too() {
        struct Bomb(u32);
        impl Drop for Bomb {
            fn drop(&mut self) {
                if self.0 > 0 {
                    panic::panic_any(Bomb(self.0 - 1));
                }
            }
        }
        for depth in 1..4 {
            let panic = contain(|| panic::panic_any(Bomb(depth))).unwrap_err();
            assert_eq!(panic.text, "a panic whose payload is no text");
            assert!(panic.location.unwrap().contains("contain.rs:"));
        }
        assert!(CONTAINED.with_borrow(Vec::is_empty));
    }

    #[test]
    fn a_text_without_end_is_cut() {
        let panic = contain(|| panic!("{}", "x".repeat(10 << 20))).unwrap_err();
        assert!(panic.text.len() < LONGEST + 100, "{}", panic.text.len());
        assert!(panic.text.ends_with("… (10485760 bytes)"));
    }

    #[test]
    fn nests_and_leaves_no_trace() {
        let outer = contain(|| {
            let inner = contain(|| panic!("inner")).unwrap_err();
            assert_eq!(inner.text, "inner");
            7
        });
        assert_eq!(outer, Ok(7));
        assert!(CONTAINED.with_borrow(Vec::is_empty));
    }
}
