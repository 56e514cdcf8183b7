//! Descriptors that travel beside serialised bytes.
//!
//! A value that owns shared memory serialises as the number of a descriptor instead of as its contents. Which
//! descriptors those are is known to the thread that serialises: [`collect`] gathers them, [`provide`] hands them to
//! the thread that deserialises in the other process. Outside of these two there is nothing to attach to, and such a
//! value serialises its contents.
//!
//! Formats drop the words of serde's errors, so why a value refused to travel is kept beside them: [`refuse`].

use std::cell::RefCell;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::thread::LocalKey;

use crate::error::Error;

thread_local! {
    static REFUSAL: RefCell<Option<Error>> = const { RefCell::new(None) };
    static COLLECTED: RefCell<Option<Vec<OwnedFd>>> = const { RefCell::new(None) };
    static PROVIDED: RefCell<Option<Vec<OwnedFd>>> = const { RefCell::new(None) };
}

/// Runs `work`, and gives the descriptors that [`attach`] was called with meanwhile, in the order of their numbers.
pub fn collect<T>(work: impl FnOnce() -> T) -> (T, Vec<OwnedFd>) {
    let outer = COLLECTED.replace(Some(Vec::new()));
    let restore = Restore(&COLLECTED, Some(outer));
    let result = work();
    let collected = COLLECTED.take().unwrap_or_default();
    drop(restore);
    (result, collected)
}

/// Sends a duplicate of `fd` along; gives its number, or nothing outside of [`collect`] or where no descriptor is
/// left. `fd` attached twice is sent once.
pub fn attach(fd: BorrowedFd<'_>) -> Option<u32> {
    COLLECTED.with_borrow_mut(|collected| {
        let collected = collected.as_mut()?;
        let known = collected.iter().position(|known| same_file(known.as_fd(), fd));
        let index = match known {
            Some(index) => index,
            None => {
                collected.push(fd.try_clone_to_owned().ok()?);
                collected.len() - 1
            }
        };
        u32::try_from(index).ok()
    })
}

/// Whether this thread serialises inside of [`collect`] and so few descriptors go along yet that one more does no harm:
/// each process has them all open.
pub fn has_room() -> bool {
    const FEW: usize = 64;
    COLLECTED.with_borrow(|collected| collected.as_ref().is_some_and(|collected| collected.len() < FEW))
}

/// Runs `work` with these descriptors to be found by [`attached`].
pub fn provide<T>(fds: Vec<OwnedFd>, work: impl FnOnce() -> T) -> T {
    let outer = PROVIDED.replace(Some(fds));
    let _restore = Restore(&PROVIDED, Some(outer));
    work()
}

/// A duplicate of the descriptor with this number, inside of [`provide`].
pub fn attached(index: u32) -> Option<OwnedFd> {
    PROVIDED.with_borrow(|provided| {
        provided.as_ref()?.get(usize::try_from(index).ok()?)?.as_fd().try_clone_to_owned().ok()
    })
}

/// Keeps why a value of this thread cannot be serialised or read; gives it in words, for serde's error.
pub fn refuse(error: Error) -> String {
    let words = error.to_string();
    REFUSAL.replace(Some(error));
    words
}

/// The newest refusal of this thread; told once.
pub fn refusal() -> Option<Error> {
    REFUSAL.take()
}

/// Puts a thread's list back as it was, also when the work panics.
pub(crate) struct Restore<T: 'static>(
    pub(crate) &'static LocalKey<RefCell<Option<Vec<T>>>>,
    pub(crate) Option<Option<Vec<T>>>,
);

impl<T> Drop for Restore<T> {
    fn drop(&mut self) {
        self.0.replace(self.1.take().flatten());
    }
}

fn same_file(a: BorrowedFd<'_>, b: BorrowedFd<'_>) -> bool {
    let identity = |fd: BorrowedFd<'_>| {
        let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
        // SAFETY: fstat fills `stat` whole if it succeeds, and only then it is read.
        unsafe {
            (libc::fstat(fd.as_raw_fd(), stat.as_mut_ptr()) == 0).then(|| {
                let stat = stat.assume_init();
                (stat.st_dev, stat.st_ino)
            })
        }
    };
    identity(a).is_some_and(|a| Some(a) == identity(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn descriptors_are_numbered_once_each_and_found_by_number() {
        let (first, second) = (File::open("/dev/null").unwrap(), File::open("/dev/zero").unwrap());
        let (numbers, fds) = collect(|| [&first, &second, &first].map(|file| attach(file.as_fd())));
        assert_eq!(numbers, [Some(0), Some(1), Some(0)]);
        provide(fds, || {
            assert!(same_file(attached(1).unwrap().as_fd(), second.as_fd()));
            assert!(attached(2).is_none());
        });
    }

    #[test]
    fn outside_there_is_nothing_to_attach_to() {
        let file = File::open("/dev/null").unwrap();
        assert_eq!(attach(file.as_fd()), None);
        assert!(attached(0).is_none() && !has_room());
        assert!(collect(has_room).0);
        let _ = std::panic::catch_unwind(|| collect(|| panic!("while it serialises")));
        assert_eq!(attach(file.as_fd()), None);
    }
}
