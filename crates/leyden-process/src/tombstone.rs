//! The word by which a process's death is noticed before the kernel has freed its memory.
//!
//! A pidfd, and the end of a socket, tell of a death only when the victim's memory is gone: about 80 ms for each
//! resident gigabyte. Robust futexes are looked at earlier, when the thread that holds them exits. So one thread of
//! the process, made for this alone, holds a word in shared memory for ever; the kernel marks it and wakes a waiter.
//!
//! The mark says that the process is *dying*: one of its threads has gone, and each other one goes at its next return
//! from the kernel or the next interrupt. Until the pidfd says so too, another thread may still finish a system call
//! that writes to shared memory.

use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::{Error, Result, codes, futex, threads};

/// What a tombstone's word says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nobody has taken the word yet.
    NotYet,
    /// The thread with this id holds it: its process lives.
    Held(u32),
    /// The holder is dead or dying.
    Dead,
}

/// What `word` says now. A waiter sleeps on the value it has looked at, by [`futex::wait`] or [`futex::waitv`]; the
/// kernel wakes one, so whoever else must know is told by that one.
pub fn state(word: &AtomicU32) -> State {
    decode(word.load(Ordering::Acquire))
}

/// What a tombstone's word of this value says.
pub fn decode(value: u32) -> State {
    match value {
        _ if value & libc::FUTEX_OWNER_DIED != 0 => State::Dead,
        _ if value & libc::FUTEX_TID_MASK != 0 => State::Held(value & libc::FUTEX_TID_MASK),
        _ => State::NotYet,
    }
}

/// Takes the word that `of` finds in `memory` for as long as this process lives. A second call for the same word is
/// refused.
///
/// Starts a thread that sleeps for ever with all signals blocked: an address range of 64 KiB, of which two or three
/// pages are used.
///
/// # Errors
///
/// `P0210` if the thread does not start, or if the word is taken.
pub fn hold<M, F>(memory: Arc<M>, of: F) -> Result<()>
where
    M: Send + Sync + 'static,
    F: Fn(&M) -> &AtomicU32 + Send + 'static,
{
    let refused =
        |why: String| Error::new(codes::NO_TOMBSTONE, "a worker's tombstone could not be taken").why(why);
    let (taken, told) = mpsc::sync_channel(1);
    thread::Builder::new()
        .name(THREAD.into())
        .stack_size(STACK)
        .spawn(move || lie(of(&memory), &taken))
        .map_err(|error| {
            refused(format!("its thread did not start: {error}"))
                .hint("use fewer workers, or raise the limit on threads (`ulimit -u`)")
        })?;
    match told.recv_timeout(START) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(why)) => Err(refused(why)),
        Err(_) => Err(refused(format!("its thread was not ready within {START:?}"))),
    }
}

/// The thread's life: it returns only if the word cannot be had.
fn lie(word: &AtomicU32, taken: &mpsc::SyncSender<std::result::Result<(), String>>) {
    let mut list = RobustList { next: ptr::null_mut(), offset: 0, pending: ptr::null_mut() };
    let mut node = RobustNode { next: ptr::null_mut() };
    let head = &raw mut list;
    let entry = &raw mut node;
    // SAFETY: both live on this stack, which is never left once the kernel knows of them: the thread sleeps for ever
    // below, and where it returns it has taken the list back.
    unsafe {
        (*head).next = entry;
        (*head).offset = (word.as_ptr() as isize).wrapping_sub(entry as isize);
        (*entry).next = head.cast();
    }
    // SAFETY: gettid has no preconditions; the set is filled before it is read.
    let thread = unsafe {
        let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), ptr::null_mut());
        libc::gettid()
    };
    let mut replaced: *mut libc::c_void = ptr::null_mut();
    let mut length = 0_usize;
    // SAFETY: the outputs are writable. The list is well formed, and outlives the thread's last instruction or is
    // taken back below. It stands in for the C library's list of this thread, which holds no robust mutex.
    let listed = unsafe {
        libc::syscall(libc::SYS_get_robust_list, 0, &raw mut replaced, &raw mut length) == 0
            && libc::syscall(libc::SYS_set_robust_list, head, size_of::<RobustList>()) == 0
    };
    if !listed {
        let _ = taken.try_send(Err(std::io::Error::last_os_error().to_string()));
        return;
    }
    // FUTEX_WAITERS from the start: without it the kernel marks the word and wakes nobody. The list comes first: a
    // death between the two leaves a word that nobody has taken, and never one that is held by nobody.
    let held = thread.cast_unsigned() | libc::FUTEX_WAITERS;
    // It never takes a lock again, and a process that is forked has no list of its own.
    threads::is_ours();
    if let Err(other) = word.compare_exchange(0, held, Ordering::AcqRel, Ordering::Acquire) {
        // SAFETY: this is the list that the C library gave the kernel for this thread.
        unsafe { libc::syscall(libc::SYS_set_robust_list, replaced, length) };
        let _ = taken.try_send(Err(format!("the word says {:?} already", decode(other))));
        return;
    }
    futex::wake(word, u32::MAX);
    let _ = taken.try_send(Ok(()));
    loop {
        // SAFETY: pause has no preconditions. It is meant to last until the process ends: there is no deadline to have.
        unsafe { libc::pause() };
    }
}

/// `struct robust_list_head` of the kernel.
#[repr(C)]
struct RobustList {
    next: *mut RobustNode,
    offset: isize,
    pending: *mut RobustNode,
}

/// `struct robust_list`.
#[repr(C)]
struct RobustNode {
    next: *mut RobustNode,
}

/// The thread's name.
pub(crate) const THREAD: &str = "tombstone";

/// Enough for the C library's and the standard library's own thread data, and a shallow call.
const STACK: usize = 64 << 10;

/// A thread starts within microseconds; on a machine that is this busy nothing else works either.
const START: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_held_once_and_says_by_whom() {
        let word = Arc::new(AtomicU32::new(0));
        assert_eq!(state(&word), State::NotYet);
        hold(word.clone(), |word: &AtomicU32| word).unwrap();
        assert!(matches!(state(&word), State::Held(_)), "{:?}", state(&word));
        assert_eq!(hold(word.clone(), |word: &AtomicU32| word).unwrap_err().code(), codes::NO_TOMBSTONE);
        assert_eq!(decode(libc::FUTEX_OWNER_DIED | libc::FUTEX_WAITERS), State::Dead);
    }
}
