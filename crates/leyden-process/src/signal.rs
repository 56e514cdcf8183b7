//! SIGINT and SIGTERM as values that a loop reads at its step boundary.
//!
//! While a [`Listener`] lives, the first signal is only noted (and said on stderr); a second one ends the
//! process at once with the signal's exit code. No user code runs inside a handler. Handlers that were there
//! before are called too, and put back when the last listener goes. A rank that gets one signal directly and another from the
//! process that has started it has got one. A signal that the parent set to be ignored
//! (`nohup`, a shell's background job) stays ignored.

use std::cell::Cell;
use std::io::PipeReader;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, IntoRawFd as _};
use std::ptr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU8, Ordering};

use crate::codes::START;
use crate::entry::{self, Role};
use crate::error::{Error, Result};
use crate::exit;

/// A signal that asks a run to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Signal {
    /// SIGINT: Ctrl+C.
    Interrupt,
    /// SIGTERM: a scheduler or `kill`.
    Terminate,
}

impl Signal {
    /// The signal's name: `SIGINT` or `SIGTERM`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
        }
    }

    /// The exit code of a program that this signal ended, 128 plus its number.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Interrupt => exit::INTERRUPTED,
            Self::Terminate => exit::TERMINATED,
        }
    }

    /// The signal's number.
    pub fn number(self) -> i32 {
        match self {
            Self::Interrupt => libc::SIGINT,
            Self::Terminate => libc::SIGTERM,
        }
    }

    /// The signal of this number, if it is one of these.
    pub fn from_number(number: i32) -> Option<Self> {
        [Self::Interrupt, Self::Terminate].into_iter().find(|signal| signal.number() == number)
    }
}

/// Catches signals while it lives. Several may live at once, on any threads; all read the same signal.
#[derive(Debug)]
pub struct Listener(());

impl Listener {
    /// Starts to catch SIGINT and SIGTERM.
    pub fn start() -> Self {
        let mut installed = INSTALLED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if installed.listeners == 0 {
            keep(&installed);
            RECEIVED.store(0, Ordering::SeqCst);
            SENDERS.store(0, Ordering::SeqCst);
            installed.restore = [Signal::Interrupt, Signal::Terminate].map(install);
        }
        installed.listeners += 1;
        Self(())
    }

    /// The signal that arrived since the first of the living listeners started.
    #[inline]
    pub fn received(&self) -> Option<Signal> {
        match RECEIVED.load(Ordering::Relaxed) {
            0 => None,
            number => Signal::from_number(number),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut installed = INSTALLED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        installed.listeners -= 1;
        if installed.listeners == 0 {
            for (signal, earlier) in [Signal::Interrupt, Signal::Terminate].into_iter().zip(installed.restore)
            {
                let Some(earlier) = earlier else { continue };
                // Whoever installed a handler meanwhile keeps it.
                if present_action(signal.number()).is_some_and(|now| now.sa_sigaction == our_handler()) {
                    // SAFETY: `earlier` is what sigaction itself wrote for this signal.
                    unsafe { libc::sigaction(signal.number(), &earlier, ptr::null_mut()) };
                }
            }
        }
    }
}

/// A pipe that tells of each SIGINT and SIGTERM by one byte, the signal's number (see [`Signal::from_number`]): for who
/// passes them on to other processes.
///
/// Nothing else changes: listeners and handlers that are there, or come later and call those before them, are called as
/// ever, and a signal that nobody handles ends the process. A signal that is ignored stays ignored and is not told of.
/// From then on for as long as the program runs; a handler that comes later, and does not call those before it, silences
/// the relay until [`keep_relay`].
///
/// # Errors
///
/// `P0106` if there is no descriptor left, or on a second call.
pub fn relay() -> Result<PipeReader> {
    let refused = |why: &dyn std::fmt::Display| Error::new(START, "signals cannot be passed on").why(why);
    let mut installed = INSTALLED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if RELAY.load(Ordering::SeqCst) >= 0 {
        return Err(refused(&"they are passed on already"));
    }
    let (read, write) = std::io::pipe().map_err(|error| refused(&error))?;
    // A handler that waits for room would be stuck for ever where nobody reads.
    // SAFETY: fcntl with F_SETFL takes an integer; the flag is set on the writing end alone.
    unsafe { libc::fcntl(write.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
    RELAY.store(write.into_raw_fd(), Ordering::SeqCst);
    let listens = installed.listeners > 0;
    for (signal, below) in [Signal::Interrupt, Signal::Terminate].into_iter().zip(&mut installed.restore) {
        if listens {
            // Below the listeners: it stays when they go.
            let Some(earlier) = *below else { continue };
            let action = relaying_after(&FIRST, on_relayed, signal, earlier);
            EARLIER_TAKES_INFO[slot(signal.number())].store(true, Ordering::SeqCst);
            EARLIER[slot(signal.number())]
                .store(ptr::with_exposed_provenance_mut(action.sa_sigaction), Ordering::SeqCst);
            *below = Some(action);
        } else {
            take_over(&FIRST, on_relayed, signal);
        }
    }
    Ok(read)
}

/// Puts the [`relay`] in front of handlers that others have installed over it (the crate `ctrlc`, a `sigaction` by hand),
/// which are called by it from then on, with their own flags. To be called now and then, by whoever reads the pipe.
///
/// A signal that is ignored, or has its default effect again, is left so. One that some thread takes without a handler
/// (`sigwait`, `signalfd`) never reaches the relay.
pub fn keep_relay() {
    keep(&INSTALLED.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
}

fn keep(installed: &Installed) {
    if RELAY.load(Ordering::SeqCst) < 0 {
        return;
    }
    for signal in [Signal::Interrupt, Signal::Terminate] {
        let known = |action: usize| {
            let ours = [address(on_relayed), address(on_relayed_again), libc::SIG_IGN, libc::SIG_DFL];
            ours.contains(&action) || (action == our_handler() && installed.listeners > 0)
        };
        if present_action(signal.number()).is_some_and(|now| !known(now.sa_sigaction)) {
            take_over(&LATER, on_relayed_again, signal);
        }
    }
}

/// Notes the exit code that the program should end with although its `main` returns `Ok`: an interrupted run is
/// no error, and yet a scheduler must see it. `#[leyden::main]` reads it back with [`noted_exit_code`].
pub fn note_exit_code(code: u8) {
    NOTED.store(i32::from(code), Ordering::SeqCst);
}

/// The code last noted with [`note_exit_code`].
pub fn noted_exit_code() -> Option<u8> {
    u8::try_from(NOTED.load(Ordering::SeqCst)).ok().filter(|&code| code != exit::OK)
}

struct Installed {
    listeners: usize,
    restore: [Option<libc::sigaction>; 2],
}

static INSTALLED: Mutex<Installed> = Mutex::new(Installed { listeners: 0, restore: [None, None] });
static RECEIVED: AtomicI32 = AtomicI32::new(0);
/// Who has sent one: bit 0 for whoever it may be, bit 1 for the process that has started this rank.
static SENDERS: AtomicU8 = AtomicU8::new(0);
static NOTED: AtomicI32 = AtomicI32::new(0);

/// Handlers that were installed before ours, as addresses, and whether they take three arguments.
static EARLIER: [AtomicPtr<libc::c_void>; 2] = [const { AtomicPtr::new(ptr::null_mut()) }; 2];
static EARLIER_TAKES_INFO: [AtomicBool; 2] = [const { AtomicBool::new(false) }; 2];

/// Installs our handler; gives what to put back, or nothing where the signal is ignored.
fn install(signal: Signal) -> Option<libc::sigaction> {
    let number = signal.number();
    let earlier = present_action(number)?;
    if earlier.sa_sigaction == libc::SIG_IGN {
        return None;
    }

    let slot = slot(number);
    let chained = if earlier.sa_sigaction == libc::SIG_DFL { 0 } else { earlier.sa_sigaction };
    EARLIER_TAKES_INFO[slot].store(earlier.sa_flags & libc::SA_SIGINFO != 0, Ordering::SeqCst);
    EARLIER[slot].store(ptr::with_exposed_provenance_mut(chained), Ordering::SeqCst);

    // SAFETY: the action is a zeroed plain struct with an empty mask and a handler that calls only
    // async-signal-safe functions; SA_RESTART keeps the user's system calls from failing with EINTR.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = our_handler();
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
        libc::sigemptyset(&mut action.sa_mask);
        (libc::sigaction(number, &action, ptr::null_mut()) == 0).then_some(earlier)
    }
}

fn present_action(number: i32) -> Option<libc::sigaction> {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: a null new action only reads the present one into `action`, which is whole if the call succeeds.
    unsafe { (libc::sigaction(number, ptr::null(), action.as_mut_ptr()) == 0).then(|| action.assume_init()) }
}

fn our_handler() -> usize {
    on_signal as *const () as usize
}

fn slot(number: i32) -> usize {
    usize::from(number == libc::SIGTERM)
}

extern "C" fn on_signal(number: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let first = RECEIVED.compare_exchange(0, number, Ordering::SeqCst, Ordering::SeqCst).is_ok();
    // SAFETY: the kernel gives a whole siginfo, of a signal that a process has sent.
    let sender = unsafe { (*info).si_pid() };
    // SAFETY: it takes nothing, and is async-signal-safe.
    let passed_on = entry::role() == Role::Rank && sender == unsafe { libc::getppid() };
    let again =
        SENDERS.fetch_or(1 << u8::from(passed_on), Ordering::SeqCst) & (1 << u8::from(passed_on)) != 0;
    if !first && !again {
        // A scheduler that signals all processes reaches a rank twice: directly, and by way of the supervisor, which passes on
        // what rank 0 got. That is one wish to end, not two.
        return;
    }
    let text: &[u8] = if first {
        b"\nleyden: stopping at the end of this step; a second signal stops at once\n"
    } else {
        b"\nleyden: second signal: stopped at once, without clean-up\n"
    };
    // SAFETY: write is async-signal-safe and the buffer is static; errno is this thread's own, and the code that was
    // interrupted may be about to read it.
    unsafe {
        let errno = errno();
        let before = *errno;
        libc::write(2, text.as_ptr().cast(), text.len());
        *errno = before;
    }
    if !first {
        // SAFETY: _exit is async-signal-safe.
        unsafe { libc::_exit(128 + number) };
    }

    let handler = EARLIER[slot(number)].load(Ordering::SeqCst);
    if handler.is_null() {
        return;
    }
    // SAFETY: the address came from sigaction, which says by SA_SIGINFO which of the two types it has; the
    // arguments are the ones that the kernel gave us.
    unsafe { call(handler, EARLIER_TAKES_INFO[slot(number)].load(Ordering::SeqCst), number, info, context) };
}

/// The writing end of the [`relay`], never closed; -1 while there is none.
static RELAY: AtomicI32 = AtomicI32::new(-1);
/// A handler that the relay calls: its address, whether it takes three arguments, and the one that was there before it. Never
/// freed, because the relay's handler may be just about to read it; there are as many as were installed over the relay.
struct Below {
    handler: usize,
    takes_info: bool,
    before: *const Below,
}

/// What was there before the relay.
static FIRST: [AtomicPtr<Below>; 2] = [const { AtomicPtr::new(ptr::null_mut()) }; 2];
/// What has come over it. Who has installed that may put back what it found, the relay without it: so it is kept apart.
static LATER: [AtomicPtr<Below>; 2] = [const { AtomicPtr::new(ptr::null_mut()) }; 2];

thread_local! {
    /// The handler that the relay is calling. It may call the one that it has found, which is the relay's.
    static CALLING: [Cell<*const Below>; 2] = const { [const { Cell::new(ptr::null()) }; 2] };
}

type Handler = extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void);

fn address(handler: Handler) -> usize {
    handler as *const () as usize
}

/// Puts a handler of the relay before the present one.
fn take_over(list: &'static [AtomicPtr<Below>; 2], handler: Handler, signal: Signal) {
    if let Some(earlier) = present_action(signal.number())
        && earlier.sa_sigaction != libc::SIG_IGN
    {
        let action = relaying_after(list, handler, signal, earlier);
        // SAFETY: the action is whole, and its handler calls only async-signal-safe functions, and what was there.
        unsafe { libc::sigaction(signal.number(), &action, ptr::null_mut()) };
    }
}

/// The action of a handler of the relay, which hands on to `earlier`. It has the flags of that one, whose program may count
/// on them.
fn relaying_after(
    list: &'static [AtomicPtr<Below>; 2],
    handler: Handler,
    signal: Signal,
    earlier: libc::sigaction,
) -> libc::sigaction {
    let head = &list[slot(signal.number())];
    // SAFETY: as in `install`.
    let mut action: libc::sigaction = unsafe {
        let mut action = std::mem::zeroed::<libc::sigaction>();
        libc::sigemptyset(&mut action.sa_mask);
        action
    };
    action.sa_flags = libc::SA_RESTART;
    if earlier.sa_sigaction != libc::SIG_DFL {
        let takes_info = earlier.sa_flags & libc::SA_SIGINFO != 0;
        let before = head.load(Ordering::SeqCst);
        let below = Below { handler: earlier.sa_sigaction, takes_info, before };
        head.store(Box::leak(Box::new(below)), Ordering::SeqCst);
        action = earlier;
    }
    action.sa_sigaction = address(handler);
    action.sa_flags |= libc::SA_SIGINFO;
    action
}

/// The relay as it began.
extern "C" fn on_relayed(number: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let slot = slot(number);
    let nested = CALLING.with(|calling| !calling[slot].get().is_null());
    if !nested {
        tell(number);
    }
    let below = FIRST[slot].load(Ordering::SeqCst);
    if !below.is_null() {
        // SAFETY: what was stored there is never freed; the arguments are the kernel's.
        unsafe { call_below(below, number, info, context) };
    } else if !nested && present_action(number).is_some_and(|now| now.sa_sigaction == address(on_relayed)) {
        // Where nobody else has taken the signal, it does what it would do without us.
        // SAFETY: both are async-signal-safe. The signal waits until this handler has returned.
        unsafe {
            libc::signal(number, libc::SIG_DFL);
            libc::raise(number);
        }
    }
}

/// The relay over somebody who came later.
extern "C" fn on_relayed_again(number: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let slot = slot(number);
    let calling = CALLING.with(|calling| calling[slot].get());
    // SAFETY: what was stored there is never freed.
    let below = match unsafe { calling.as_ref() } {
        None => {
            tell(number);
            LATER[slot].load(Ordering::SeqCst)
        }
        // Called by the one that it has called: by what this one found when it came.
        Some(caller) => caller.before,
    };
    if !below.is_null() {
        // SAFETY: as above; the arguments are the kernel's.
        unsafe { call_below(below, number, info, context) };
    }
}

/// Writes a signal's number to the relay's pipe.
fn tell(number: i32) {
    let byte = number as u8;
    // SAFETY: write is async-signal-safe and the buffer lives; errno is this thread's own.
    unsafe {
        let errno = errno();
        let before = *errno;
        libc::write(RELAY.load(Ordering::SeqCst), (&raw const byte).cast(), 1);
        *errno = before;
    }
}

/// Calls a handler, and notes meanwhile that it is called.
///
/// # Safety
///
/// `below` is one that is never freed; the arguments are a kernel's.
unsafe fn call_below(
    below: *const Below,
    number: i32,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    let outer = CALLING.with(|calling| calling[slot(number)].replace(below));
    // SAFETY: the caller's promise; address and flag came from sigaction together.
    unsafe {
        let Below { handler, takes_info, .. } = &*below;
        call(ptr::with_exposed_provenance_mut(*handler), *takes_info, number, info, context);
    }
    CALLING.with(|calling| calling[slot(number)].set(outer));
}

/// Calls a handler as the kernel would.
///
/// # Safety
///
/// The address is that of a handler, which takes three arguments if `takes_info`, and these are a kernel's.
unsafe fn call(
    handler: *mut libc::c_void,
    takes_info: bool,
    number: i32,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: the caller's promise.
    unsafe {
        if takes_info {
            let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) =
                std::mem::transmute(handler);
            handler(number, info, context);
        } else {
            let handler: extern "C" fn(i32) = std::mem::transmute(handler);
            handler(number);
        }
    }
}

/// Where this thread's errno is.
fn errno() -> *mut i32 {
    // SAFETY: neither function has preconditions.
    #[cfg(target_os = "linux")]
    unsafe {
        libc::__errno_location()
    }
    // SAFETY: as above.
    #[cfg(not(target_os = "linux"))]
    unsafe {
        libc::__error()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    static EARLIER_CALLS: AtomicI32 = AtomicI32::new(0);

    extern "C" fn count(_: i32) {
        EARLIER_CALLS.fetch_add(1, Ordering::SeqCst);
    }

    static LATER_CALLS: AtomicI32 = AtomicI32::new(0);
    static FOUND: AtomicPtr<libc::c_void> = AtomicPtr::new(ptr::null_mut());

    extern "C" fn ask_nobody(_: i32) {
        LATER_CALLS.fetch_add(1, Ordering::SeqCst);
    }

    extern "C" fn ask_on(number: i32) {
        LATER_CALLS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: what was found is the relay's handler, which takes three arguments and passes the last two on.
        unsafe { call(FOUND.load(Ordering::SeqCst), true, number, ptr::null_mut(), ptr::null_mut()) };
    }

    /// One test, because signals belong to the whole process.
    #[test]
    fn notes_the_first_signal_chains_and_restores() {
        // SAFETY: `count` only touches an atomic.
        unsafe { libc::signal(libc::SIGTERM, count as *const () as usize) };
        {
            let listener = Listener::start();
            let nested = Listener::start();
            assert_eq!(listener.received(), None);
            // SAFETY: raise has no preconditions; our handler is installed.
            unsafe { libc::raise(libc::SIGTERM) };
            assert_eq!(listener.received(), Some(Signal::Terminate));
            assert_eq!(nested.received(), Some(Signal::Terminate));
            assert_eq!(EARLIER_CALLS.load(Ordering::SeqCst), 1);
        }
        // SAFETY: the handler in place is `count` again.
        unsafe { libc::raise(libc::SIGTERM) };
        assert_eq!(EARLIER_CALLS.load(Ordering::SeqCst), 2);
        assert_eq!(Listener::start().received(), None, "a new listener starts clean");

        // A relay tells of each, below a listener that was there before and above the handler, and stays.
        let listener = Listener::start();
        let mut pipe = relay().unwrap();
        assert_eq!(relay().unwrap_err().code(), START);
        // SAFETY: as above.
        unsafe { libc::raise(libc::SIGTERM) };
        assert_eq!(listener.received(), Some(Signal::Terminate));
        drop(listener);
        // SAFETY: the handler in place is the relay's, which calls `count`.
        unsafe { libc::raise(libc::SIGTERM) };
        let later = Listener::start();
        // SAFETY: our handler is installed.
        unsafe { libc::raise(libc::SIGTERM) };
        assert_eq!(later.received(), Some(Signal::Terminate));
        let mut told = [0; 3];
        pipe.read_exact(&mut told).unwrap();
        assert_eq!(told.map(|number| Signal::from_number(number.into())), [Some(Signal::Terminate); 3]);
        assert_eq!(EARLIER_CALLS.load(Ordering::SeqCst), 5);
        drop(later);

        // One that comes later and asks nobody silences it, until it is put in front again; and one that calls what it
        // found does not make it tell twice, nor call itself.
        let heard = |pipe: &mut PipeReader, own: i32, earlier: i32, told: usize| {
            let before = (LATER_CALLS.load(Ordering::SeqCst), EARLIER_CALLS.load(Ordering::SeqCst));
            // SAFETY: as above.
            unsafe { libc::raise(libc::SIGTERM) };
            assert_eq!(LATER_CALLS.load(Ordering::SeqCst) - before.0, own);
            assert_eq!(EARLIER_CALLS.load(Ordering::SeqCst) - before.1, earlier);
            // SAFETY: the byte of `raise` ends what there is to read.
            unsafe { libc::write(RELAY.load(Ordering::SeqCst), [0_u8].as_ptr().cast(), 1) };
            let mut bytes = vec![0; told + 1];
            pipe.read_exact(&mut bytes).unwrap();
            assert_eq!(bytes.iter().position(|&byte| byte == 0), Some(told));
        };
        // SAFETY: both handlers only touch atomics, and call what was there.
        let relaying = unsafe { libc::signal(libc::SIGTERM, ask_nobody as *const () as usize) };
        heard(&mut pipe, 1, 0, 0);
        keep_relay();
        keep_relay();
        heard(&mut pipe, 1, 0, 1);
        for time in 1..4 {
            // SAFETY: as above.
            let found = unsafe { libc::signal(libc::SIGTERM, ask_on as *const () as usize) };
            FOUND.store(ptr::with_exposed_provenance_mut(found), Ordering::SeqCst);
            keep_relay();
            // The same handler finds itself below, by way of the relay: once for each time that it was installed.
            heard(&mut pipe, time + 1, 0, 1);
        }
        // SAFETY: as above.
        unsafe { libc::signal(libc::SIGTERM, relaying) };
        keep_relay();
        heard(&mut pipe, 0, 1, 1);
        // SAFETY: as above.
        unsafe { libc::signal(libc::SIGTERM, ask_nobody as *const () as usize) };
        let listener = Listener::start();
        heard(&mut pipe, 1, 0, 1);
        assert_eq!(listener.received(), Some(Signal::Terminate));
    }
}
