//! How a process of this program learns, before `main`, that it was started to do something else than `main`.
//!
//! A process that Leyden starts runs the same executable. A constructor in this crate, which the C library calls before
//! `main`, finds a cookie in the environment, does the work, and ends the process: `main` is never reached, and need
//! not be written in any particular way. The cookie names the socket that is the process's stdin. One that was
//! inherited, copied or left over names another file and is removed, and in the real child it is removed too, so the
//! programs that a worker starts are ordinary ones.
//!
//! A rank is the one that does reach `main`, on purpose: the constructor ties its life to its starter's, keeps what it was
//! handed for [`rank::joined`], and returns.
//!
//! Starting a program again by its path is how a mistake becomes a fork bomb. Four things keep it from happening, each
//! enough alone: [`preflight`] refuses to start where the constructor would not divert; each role starts only those
//! below it, so that a rank starts no ranks and a worker nothing; the cookie counts how deep the process is and one that
//! is too deep ends before `main`; and [`fuse`], called by whatever could start one, ends a process whose cookie nobody
//! took.

use std::ffi::{CStr, c_char, c_int};
use std::fmt;
use std::fs;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, IntoRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use crate::codes::{NESTED, NO_ENTRY, NO_SELF, UNCONSUMED_ROLE};
use crate::control::Control;
use crate::error::{Error, Result};
#[cfg(target_os = "linux")]
use crate::image::Image;
use crate::{exit, guarded, image, sys, worker};
#[cfg(not(leyden_portable))]
use crate::{rank, zygote};

/// What a process is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The program itself, as its user started it.
    Main,
    /// Started by Leyden: it is the program with a `main` that runs, beside others; see [`rank`].
    Rank,
    /// Started by Leyden: it runs one function and never `main`.
    Worker,
    /// A worker that outlives its parent for a while and may start ranks: see
    /// [`SpawnOptions::survives`](crate::spawn::SpawnOptions::survives).
    Supervisor,
}

/// What this process is there for.
///
/// # Example
///
/// ```
/// assert_eq!(leyden_process::entry::role(), leyden_process::entry::Role::Main);
/// ```
pub fn role() -> Role {
    match ROLE.load(Ordering::Relaxed) {
        0 => Role::Main,
        #[cfg(not(leyden_portable))]
        rank if rank == Kind::Rank as u8 => Role::Rank,
        #[cfg(not(leyden_portable))]
        supervisor if supervisor == Kind::Supervisor as u8 => Role::Supervisor,
        _ => Role::Worker,
    }
}

/// Whether this program can be started again to run a function of its own. Done before every start; call it early to
/// learn the answer before it matters.
///
/// # Errors
///
/// `P0101` in a worker or supervisor, which Leyden started itself; `P0102` if Leyden is in a library instead of the executable (a
/// `cdylib`, `-C prefer-dynamic`), where the function could not be found again; `P0103` if `/proc/self/exe` is missing,
/// not executable, or another program: this one was started through a loader or an emulator. On systems other than
/// Linux also if the program's file was replaced since the program started.
pub fn preflight() -> Result<()> {
    may_start(Kind::Worker)?;
    can_start_again()
}

/// The part of [`preflight`] that asks what this process is: each role starts only those below it.
pub(crate) fn may_start(kind: Kind) -> Result<()> {
    fuse();
    if kind.may_be_started_by(role()) {
        return Ok(());
    }
    let refused = |what| Error::new(NESTED, what);
    Err(match role() {
        Role::Rank => refused("a rank cannot start ranks")
            .why("its `main` runs too, and would start more of them in each: a chain of processes")
            .hint("start ranks in the process that the user has started; a rank may start workers"),
        Role::Supervisor => refused("a supervisor can start ranks and nothing else")
            .why("it is there to watch the ranks, and ends by its own timer")
            .hint("start other processes in the program's own process or in its ranks"),
        Role::Main | Role::Worker => refused("a process that Leyden started cannot start others")
            .why("it runs a function of the program, never its `main`, and may not become a chain of processes")
            .hint("start processes in the program's own process; use threads inside a worker")
            .hint("for other programs use `leyden_process::guarded::Guarded`"),
    })
}

/// What tells this build of the program from others: the linker's build id or, where there is none, which file it is.
pub fn build_id() -> Vec<u8> {
    image::build()
}

/// The linker's build id: the same on all hosts that have this build of the program. `None` if the linker was not told to
/// make one.
pub fn linker_build_id() -> Option<Vec<u8>> {
    image::linker_build()
}

/// In a process that was forked to be a worker.
#[cfg(not(leyden_portable))]
pub(crate) fn note_worker() {
    ROLE.store(Kind::Worker as u8, Ordering::Relaxed);
}

/// Ends a process that was started to be a worker and yet got this far. Whatever could start processes calls it first.
///
/// In a sound program this never happens: see [`preflight`].
pub fn fuse() {
    let Some(text) = std::env::var_os(VARIABLE) else { return };
    let unconsumed = text.to_str().and_then(Cookie::parse).is_some_and(|cookie| cookie.is_ours());
    if unconsumed {
        let error = Error::new(
            UNCONSUMED_ROLE,
            "a process that should be a worker has reached the program's own code",
        );
        eprintln!("error[{}]: {error}", error.code());
        sys::exit_now(exit::CONFIGURATION);
    }
}

/// Fails unless the function at this address lies in the program itself.
pub(crate) fn is_in_the_program(function: usize) -> Result<()> {
    if image::is_in_the_program(function) {
        Ok(())
    } else {
        Err(no_entry("the function of the job lies in a library"))
    }
}

/// The part of [`preflight`] that is also asked of processes that may only start a guard.
pub(crate) fn can_start_again() -> Result<()> {
    static ANSWER: OnceLock<Result<()>> = OnceLock::new();
    ANSWER.get_or_init(look).clone()?;
    #[cfg(leyden_portable)]
    if !image::file_is_unchanged() {
        return Err(no_self("the program's own file has changed since the program started")
            .why("a process that is started now would be another build: a compiler has written the file anew")
            .hint("start the program again; or run a copy of it that nothing replaces"));
    }
    Ok(())
}

/// What a process that Leyden starts is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// Runs one function.
    Worker = 1,
    /// Kills its process group when its parent is gone; see [`crate::guarded`].
    Guard,
    /// Forks workers; see `zygote.rs`.
    #[cfg(not(leyden_portable))]
    Zygote,
    /// Runs `main`; see `rank.rs`.
    #[cfg(not(leyden_portable))]
    Rank,
    /// Runs one function, also when its parent is gone.
    #[cfg(not(leyden_portable))]
    Supervisor,
}

impl Kind {
    const ALL: &[Self] = &[
        Self::Worker,
        Self::Guard,
        #[cfg(not(leyden_portable))]
        Self::Zygote,
        #[cfg(not(leyden_portable))]
        Self::Rank,
        #[cfg(not(leyden_portable))]
        Self::Supervisor,
    ];

    /// How many processes of the program may be above one of this kind, itself included: the program starts a supervisor,
    /// that starts ranks, a rank starts workers and zygotes, and all but the supervisor start guards.
    fn deepest(self) -> u8 {
        match self {
            Self::Worker => 3,
            Self::Guard => 4,
            #[cfg(not(leyden_portable))]
            Self::Zygote => 3,
            #[cfg(not(leyden_portable))]
            Self::Rank => 2,
            #[cfg(not(leyden_portable))]
            Self::Supervisor => 1,
        }
    }

    /// Each role starts only those below it.
    fn may_be_started_by(self, starter: Role) -> bool {
        match (starter, self) {
            (Role::Main, _) | (Role::Rank, Self::Worker) | (Role::Rank | Role::Worker, Self::Guard) => true,
            #[cfg(not(leyden_portable))]
            (Role::Rank, Self::Zygote) | (Role::Supervisor, Self::Rank) => true,
            _ => false,
        }
    }

    /// Whether it outlives its parent.
    pub(crate) fn survives(self) -> bool {
        #[cfg(not(leyden_portable))]
        return self == Self::Supervisor;
        #[cfg(leyden_portable)]
        false
    }

    fn name(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Guard => "guard",
            #[cfg(not(leyden_portable))]
            Self::Zygote => "zygote",
            #[cfg(not(leyden_portable))]
            Self::Rank => "rank",
            #[cfg(not(leyden_portable))]
            Self::Supervisor => "supervisor",
        }
    }
}

/// The environment variable of the cookie.
pub(crate) const VARIABLE: &str = "LEYDEN_ROLE";
const VARIABLE_C: &CStr = c"LEYDEN_ROLE";

/// What the variable says: `worker:1:<device>:<inode>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cookie {
    kind: Kind,
    depth: u8,
    stdin: (u64, u64),
}

impl Cookie {
    /// For a process that this one starts, whose stdin will be this socket.
    pub(crate) fn new(kind: Kind, stdin: BorrowedFd<'_>) -> Option<Self> {
        let depth = DEPTH.load(Ordering::Relaxed) + 1;
        Some(Self { kind, depth, stdin: sys::identity(stdin.as_raw_fd())? })
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let kind = parts.next()?;
        let kind = *Kind::ALL.iter().find(|known| known.name() == kind)?;
        let depth = parts.next()?.parse().ok()?;
        let stdin = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        parts.next().is_none().then_some(Self { kind, depth, stdin })
    }

    /// Whether it was written for this process, which has not taken it yet.
    fn is_ours(self) -> bool {
        sys::identity(0) == Some(self.stdin)
    }
}

impl fmt::Display for Cookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (device, inode) = self.stdin;
        write!(f, "{}:{}:{device}:{inode}", self.kind.name(), self.depth)
    }
}

static HOOK_RAN: AtomicBool = AtomicBool::new(false);
/// How many times the program has started itself to get here: 0 in the process that its user started.
static DEPTH: AtomicU8 = AtomicU8::new(0);
/// 0, or the [`Kind`] of this process.
static ROLE: AtomicU8 = AtomicU8::new(0);

type Constructor = extern "C" fn(c_int, *const *const c_char, *const *const c_char);

/// Called by the C library before `main`, because it lies in this section. glibc passes the arguments of `main`; musl
/// passes nothing, and nothing is read there.
#[used]
#[cfg_attr(not(target_vendor = "apple"), unsafe(link_section = ".init_array"))]
#[cfg_attr(target_vendor = "apple", unsafe(link_section = "__DATA,__mod_init_func"))]
static HOOK: Constructor = hook;

extern "C" fn hook(argc: c_int, argv: *const *const c_char, envp: *const *const c_char) {
    HOOK_RAN.store(true, Ordering::Relaxed);
    #[cfg(leyden_portable)]
    image::note_file();
    let Some(cookie) = take_cookie() else { return };
    if !(1..=cookie.kind.deepest()).contains(&cookie.depth) {
        sys::exit_now(exit::CONFIGURATION);
    }

    ROLE.store(cookie.kind as u8, Ordering::Relaxed);
    DEPTH.store(cookie.depth, Ordering::Relaxed);
    let control = clean_up_inheritance();
    let work: fn(Control) -> ! = match cookie.kind {
        // It runs no code of the program, and must outlive us by the moment that it needs to kill its group.
        Kind::Guard => guarded::guard(&control),
        Kind::Worker => worker::run,
        #[cfg(not(leyden_portable))]
        Kind::Zygote => zygote::run,
        // The C library goes on with the later constructors and `main`.
        #[cfg(not(leyden_portable))]
        Kind::Rank => return rank::begin(worker::arm(control)),
        #[cfg(not(leyden_portable))]
        Kind::Supervisor => worker::run_surviving,
    };
    let control = if cookie.kind.survives() { control } else { worker::arm(control) };
    run_later_constructors(argc, argv, envp);
    work(control)
}

/// The cookie, if it was written for this process. It is removed in any case, unless it is ours and cannot be used: then
/// the fuse must find it.
fn take_cookie() -> Option<Cookie> {
    // SAFETY: before `main`, no other thread of ours changes the environment; the text is copied before it is removed.
    let text = unsafe {
        let text = libc::getenv(VARIABLE_C.as_ptr());
        if text.is_null() {
            return None;
        }
        CStr::from_ptr(text).to_str().ok()?.to_owned()
    };
    let cookie = Cookie::parse(&text).filter(|cookie| cookie.is_ours());
    // In a library this may run under the loader's lock, where starting a thread can deadlock. Nothing is to be run
    // there: the preflight has refused to start us.
    if cookie.is_some() && is_in_the_program(hook as *const () as usize).is_err() {
        return None;
    }
    // SAFETY: as above.
    unsafe { libc::unsetenv(VARIABLE_C.as_ptr()) };
    cookie
}

/// Moves what the process talks through off stdin and stdout, and closes everything else that was inherited. Runs before
/// the constructors that may open files of their own.
#[cfg(not(leyden_portable))]
fn clean_up_inheritance() -> Control {
    let control = move_away(0, FIRST);
    silence_stdin();
    close_from(FIRST + 1);
    fill_standard();
    Control::new(control)
}

/// As on Linux; and what the program prints must not get between the frames on stdout.
#[cfg(leyden_portable)]
fn clean_up_inheritance() -> Control {
    let (read, write) = (move_away(0, FIRST), move_away(1, FIRST + 1));
    silence_stdin();
    // SAFETY: dup2 replaces a standard descriptor, which everybody expects to be replaced.
    unsafe { libc::dup2(2, 1) };
    close_from(FIRST + 2);
    fill_standard();
    Control::new(read, write).unwrap_or_else(|_| sys::exit_now(exit::CONFIGURATION))
}

/// Behind the standard descriptors.
const FIRST: RawFd = 3;

/// Gives an inherited descriptor another number; what had that is closed.
fn move_away(from: RawFd, to: RawFd) -> OwnedFd {
    // SAFETY: before `main`, nothing in this process owns a descriptor but the standard ones: what is closed and
    // replaced here was inherited. `from` is what the cookie says it is, or stdout, which then came with it.
    unsafe {
        if libc::dup2(from, to) < 0 || libc::fcntl(to, libc::F_SETFD, libc::FD_CLOEXEC) < 0 {
            sys::exit_now(exit::CONFIGURATION);
        }
        OwnedFd::from_raw_fd(to)
    }
}

/// Puts `/dev/null` in the place of stdin. Without one stdin is closed rather than what it was.
fn silence_stdin() {
    let null = fs::File::open("/dev/null").map(IntoRawFd::into_raw_fd);
    // SAFETY: as for `move_away`; the file that was opened stays open only as stdin.
    unsafe {
        match null {
            Ok(null) => {
                libc::dup2(null, 0);
                libc::close(null);
            }
            Err(_) => drop(libc::close(0)),
        }
    }
}

/// Opens `/dev/null` where stdout or stderr is closed, as the standard library does before `main`: else the next file
/// that is opened would be printed to, and shared memory is a file.
fn fill_standard() {
    while let Ok(null) = fs::File::options().read(true).write(true).open("/dev/null") {
        if null.as_raw_fd() > 2 {
            return;
        }
        let _ = null.into_raw_fd();
    }
}

/// Closes all descriptors from `first` on.
fn close_from(first: RawFd) {
    const OPEN: &str = if cfg!(target_os = "linux") { "/proc/self/fd" } else { "/dev/fd" };
    // SAFETY: the callers own every descriptor from there on: see `clean_up_inheritance`.
    unsafe {
        #[cfg(target_os = "linux")]
        if libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) == 0 {
            return;
        }
        // Other systems, and kernels before 5.9.
        let open: Vec<RawFd> = fs::read_dir(OPEN)
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect();
        for fd in open.into_iter().filter(|&fd| fd >= first) {
            libc::close(fd);
        }
    }
}

/// Calls the program's constructors that come after ours: C++ statics, other crates' hooks. A function of the program
/// may count on them. On Apple's systems the linker does not say which those are, and they are not called.
fn run_later_constructors(argc: c_int, argv: *const *const c_char, envp: *const *const c_char) {
    let after_ours = (&raw const HOOK).addr() + size_of::<Constructor>();
    let end = end_of_constructors();
    for place in (after_ours..end).step_by(size_of::<Constructor>()) {
        // SAFETY: the linker puts the addresses of constructors between our entry and the array's end; 0 and -1 are
        // fillers. They are called with what the C library would call them with, in its order, once: it never gets to
        // them, because this process ends in our constructor.
        unsafe {
            let entry = std::ptr::with_exposed_provenance::<usize>(place).read();
            if entry != 0 && entry != usize::MAX {
                let constructor: Constructor =
                    std::mem::transmute(std::ptr::with_exposed_provenance::<()>(entry));
                constructor(argc, argv, envp);
            }
        }
    }
}

/// The address behind the program's last constructor, or 0 if the linker does not say. The reference is weak, because
/// GNU ld does not define the symbol in shared libraries, and one that holds this crate must still load.
fn end_of_constructors() -> usize {
    #[cfg(not(target_vendor = "apple"))]
    let end: usize;
    // SAFETY: the instructions read an address from the global offset table, and change nothing else.
    #[cfg(all(target_arch = "x86_64", not(target_vendor = "apple")))]
    unsafe {
        std::arch::asm!(
            ".weak __init_array_end",
            "mov {end}, qword ptr [rip + __init_array_end@GOTPCREL]",
            end = out(reg) end,
            options(nostack, preserves_flags),
        );
    }
    // SAFETY: as above.
    #[cfg(all(target_arch = "aarch64", not(target_vendor = "apple")))]
    unsafe {
        std::arch::asm!(
            ".weak __init_array_end",
            "adrp {end}, :got:__init_array_end",
            "ldr {end}, [{end}, :got_lo12:__init_array_end]",
            end = out(reg) end,
            options(nostack, preserves_flags),
        );
    }
    #[cfg(target_vendor = "apple")]
    let end = 0;
    end
}

fn look() -> Result<()> {
    if !HOOK_RAN.load(Ordering::Relaxed) {
        return Err(no_entry("its constructor did not run"));
    }
    if !image::is_in_the_program(hook as *const () as usize) || !image::anchor_is_in_the_program() {
        return Err(no_entry("it lies in a library, which another process may have elsewhere"));
    }
    #[cfg(target_os = "linux")]
    is_its_own_program()?;
    Ok(())
}

/// Whether what the kernel would start again is this program.
#[cfg(target_os = "linux")]
fn is_its_own_program() -> Result<()> {
    let Some(program) = Image::of_the_program() else {
        return Err(no_entry("the program's image was not found in memory"));
    };
    let itself = fs::read_link("/proc/self/exe").map_err(|error| {
        no_self("the program's own file is not known").at("file", "/proc/self/exe").because(&error)
    })?;
    let itself = itself.to_string_lossy().into_owned();
    match file_mapped_at(program.headers) {
        Some(mapped) if mapped == itself => {}
        Some(mapped) => {
            return Err(no_self("the program was started through another one")
                .at("program", mapped)
                .at("started as", itself)
                .why("a loader or an emulator runs it, and is what would be started again"));
        }
        None => return Err(no_self("the program's own file is not known").at("file", "/proc/self/maps")),
    }
    // SAFETY: access takes a path that ends with a zero.
    if unsafe { libc::access(c"/proc/self/exe".as_ptr(), libc::X_OK) } != 0 {
        let error = std::io::Error::last_os_error();
        return Err(no_self("the program's own file may not be executed").at("file", itself).because(&error));
    }
    Ok(())
}

/// The path of the file that is mapped at this address.
#[cfg(target_os = "linux")]
fn file_mapped_at(address: usize) -> Option<String> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines().find_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let bound = |text| usize::from_str_radix(text, 16).ok();
        // After the range: permissions, offset, device, inode, and the path behind spaces.
        (bound(start)?..bound(end)?).contains(&address).then_some(())?;
        Some(rest.splitn(5, ' ').nth(4)?.trim_start().replace("\\012", "\n"))
    })
}

fn no_entry(why: &str) -> Error {
    Error::new(NO_ENTRY, "this program cannot run a function in another process")
        .why(format!("Leyden's entry hook is not part of the executable: {why}"))
        .hint("use threads: `Workers::threads`")
        .hint("link Leyden statically into an executable: no `cdylib`, no `-C prefer-dynamic`")
}

fn no_self(what: &str) -> Error {
    Error::new(NO_SELF, what)
        .hint("use threads: `Workers::threads`")
        .hint("start the executable directly, with /proc mounted")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_reads_back_as_it_was_written() {
        let null = fs::File::open("/dev/null").unwrap();
        let cookie = Cookie::new(Kind::Worker, std::os::fd::AsFd::as_fd(&null)).unwrap();
        assert_eq!(Cookie::parse(&cookie.to_string()), Some(cookie));
        for foreign in ["", "worker", "worker:1:2", "worker:1:2:3:4", "main:1:2:3", "worker:x:2:3"] {
            assert_eq!(Cookie::parse(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn the_program_that_runs_these_tests_can_be_started_again() {
        preflight().unwrap();
        assert_eq!(role(), Role::Main);
    }

    #[test]
    #[cfg(not(target_vendor = "apple"))]
    fn the_constructors_end_is_known() {
        assert!(end_of_constructors() >= (&raw const HOOK).addr() + size_of::<Constructor>());
    }

    #[test]
    fn a_function_of_a_library_is_refused() {
        if cfg!(target_feature = "crt-static") {
            return;
        }
        let error = is_in_the_program(libc::getpid as *const () as usize).unwrap_err();
        assert_eq!(error.code(), NO_ENTRY);
    }
}
