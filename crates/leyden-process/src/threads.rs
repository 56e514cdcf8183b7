//! Threads of Leyden's own, which do not stand in the way of a fork, and those that are not Leyden's.

#[cfg(not(leyden_portable))]
use std::collections::BTreeSet;
#[cfg(not(leyden_portable))]
use std::fs;
use std::io;
use std::sync::mpsc;
#[cfg(not(leyden_portable))]
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

/// Starts a thread that holds no lock of general use while it waits, and so may be there when a process is forked
/// ([`Start::Fork`](crate::spawn::Start::Fork)), and returns when it runs.
///
/// # Errors
///
/// The system's refusal.
pub fn start(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    /// A new thread runs within microseconds; a machine that is this busy is not usable.
    const PATIENCE: Duration = Duration::from_secs(10);
    let (known, is_known) = mpsc::sync_channel(1);
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        #[cfg(not(leyden_portable))]
        is_ours();
        // Nobody listens only if the caller has given up.
        let _ = known.send(());
        body();
        #[cfg(not(leyden_portable))]
        ours().remove(&current());
    })?;
    is_known.recv_timeout(PATIENCE).map_err(|_| io::ErrorKind::TimedOut.into())
}

/// The calling thread holds no lock of general use from now on.
#[cfg(not(leyden_portable))]
pub(crate) fn is_ours() {
    ours().insert(current());
}

/// Whether this is the thread that runs `main`.
#[cfg(not(leyden_portable))]
pub fn is_main() -> bool {
    current() == std::process::id() as i32
}

/// The names of the threads of this process that are neither the calling one nor Leyden's.
#[cfg(not(leyden_portable))]
pub(crate) fn foreign() -> Vec<String> {
    let (ours, own) = (ours(), current());
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    tasks
        .filter(|task| {
            let number = task.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
            number.is_some_and(|number| number != own && !ours.contains(&number))
        })
        .map(|task| {
            let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            name.trim().to_owned()
        })
        .collect()
}

#[cfg(not(leyden_portable))]
fn ours() -> MutexGuard<'static, BTreeSet<i32>> {
    static OURS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());
    OURS.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(not(leyden_portable))]
fn current() -> i32 {
    // SAFETY: gettid has no preconditions.
    unsafe { libc::syscall(libc::SYS_gettid) as i32 }
}

#[cfg(all(test, not(leyden_portable)))]
mod tests {
    use super::*;

    #[test]
    fn a_thread_of_ours_is_known_and_another_is_named() {
        start("leyden-test", || std::thread::sleep(Duration::from_secs(3600))).unwrap();
        let (stop, stopped) = mpsc::channel::<()>();
        let stranger = std::thread::Builder::new().name("stranger".to_owned());
        let stranger = stranger.spawn(move || stopped.recv().unwrap_err()).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        // The system names a thread after it has started.
        while !foreign().contains(&"stranger".to_owned()) {
            assert!(std::time::Instant::now() < deadline, "{:?}", foreign());
        }
        assert!(!foreign().contains(&"leyden-test".to_owned()));
        drop(stop);
        stranger.join().unwrap();
    }
}
