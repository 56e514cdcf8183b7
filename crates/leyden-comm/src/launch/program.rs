//! Ranks that run the whole `main` of a program, from inside of it: rank 0's side, and the others'.

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use leyden_process::entry::{self, Role};
use leyden_process::lines::say;
use leyden_process::spawn::{Child, Job, Parent, Received, SpawnOptions};
use leyden_process::supervise::Ended;
use leyden_process::watch::{Watched, readable};
use leyden_process::{Error, Result, exit, rank, signal, threads};
use serde::{Deserialize, Serialize};

use super::hosts;
use super::logs::Logs;
use super::supervisor::{self, Order};
use super::{expect_descriptors, external};
use crate::codes::{LAUNCH_ELSEWHERE, LAUNCH_IN_WORKER, LAUNCH_OTHER_SIZE, LAUNCH_START, UNWATCHED};
use crate::environment::{Environment, Launcher};
use crate::rank::Rank;
use crate::world::World;

/// How to launch: `launch::world_with(4, &LaunchOptions { folder: Some("logs".into()), ..Default::default() })`. Each has a
/// default that a first program need not change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaunchOptions {
    /// Where what ranks above 0 print to stdout goes: to `rank-1.log` and so on in this folder, which is made. By default a
    /// temporary folder (in `TMPDIR`, or `/tmp`), which is removed after success; after a failure it is named, unless nothing
    /// was printed. Where the disk is full the rest is lost, which is said once for each rank, and the ranks go on. (torchrun:
    /// `--log-dir`, `--redirects`.)
    pub folder: Option<PathBuf>,
    /// How long the other ranks may go on once one has failed, or once rank 0 has returned from `main`; then they are
    /// ended. 5 s by default: enough to save something, and no time to be forgotten.
    pub grace: Duration,
}

impl Default for LaunchOptions {
    fn default() -> Self {
        Self { folder: None, grace: Duration::from_secs(5) }
    }
}

/// Makes this program `size` ranks: this process is rank 0, and `size - 1` more are started, each with the same arguments
/// and environment, whose whole `main` runs too (Lightning: `Fabric(devices=size).launch()`). There the same call gives the
/// same world. Code before and after it runs on every rank; [`Rank::on_rank_zero`] confines what is for one alone.
///
/// What ranks above 0 print goes to logs, see [`LaunchOptions::folder`]; their lines on stderr appear on ours, with their
/// names in front. Their stdin is empty. All of them end with this process, however it ends. A second call gives the same
/// world again.
///
/// A supervisor, a process of its own, starts the ranks and watches all of them. It says how one ended to whoever waits for
/// that one. If one fails (a signal, another exit code than 0), the others have a [grace](LaunchOptions::grace), after which
/// it ends them; rank 0 only if it holds its [`Rank`] still. When rank 0 returns from `main`, or calls
/// [`std::process::exit`], it waits for the others, which have the grace then. The program's exit code is that of rank 0;
/// but if it is 0 and another rank has failed, 102. SIGINT and SIGTERM of rank 0 reach the others too; the second one ends
/// them at once. Handlers of the program's own (`sigaction`, the crate `ctrlc`) are called as ever and change nothing of
/// that, but for the first 250 ms of one that is installed after this call. A program that takes signals without a handler
/// (`sigwait`, `signalfd`) must end itself: the others have their grace then.
///
/// The processor's cores are divided among the ranks: [`WorldHandle::threads`] says how many each has. Nothing is set in the
/// environment: whoever starts threads asks.
///
/// A world of 1 needs no process. Under a launcher (torchrun, srun, mpirun, or whoever sets `RANK` and `WORLD_SIZE`: see
/// [`Environment`]) nothing is started: its ranks find each other on their host, and wait for each other up to 60 s, or as
/// many seconds as `LEYDEN_JOIN_TIMEOUT` says. They are watched by each other alone, then: how one died they
/// learn from the kernel (from Linux 6.15 on; before, where the launcher has not taken its exit status yet).
///
/// # Example
///
/// ```no_run
/// use leyden_comm::{ReduceOp, launch};
///
/// fn main() -> leyden_comm::Result<()> {
///     let mut rank = launch::world(4)?.join()?;
///     let mut numbers = [rank.rank() as f32];
///     rank.all_reduce(&mut numbers, ReduceOp::Mean)?; // the same on all ranks: 1.5
///     rank.barrier("the end")
/// }
/// ```
///
/// # Errors
///
/// `D0101` if there cannot be that many ranks; `D0201` from another thread than that of `main`, and in a test, whose harness
/// would be what is started again: [`spawn`](super::spawn) works there; `D0202` if the world has another size; `D0203` in a
/// worker; `D0204` if the ranks could not be started; `D0205` if there is no place for their logs; `D0206` if too few
/// descriptors may be open; `D0110` in a rank whose supervisor is gone. Under a launcher also those of
/// [`Environment::detect`]; `D0217` if not all come, `D0218` if rank 0 refuses this one, `D0219` if another process is rank 0 of
/// this run; over a network `D0220` to `D0230` if they do not meet, `D0240` to `D0242` if they do not reach each other, `D0245`
/// if `LEYDEN_TRANSPORT` does not fit. `P0102`, `P0103` where no process can be started: see [`entry::preflight`].
pub fn world(size: usize) -> Result<&'static WorldHandle> {
    world_with(size, &LaunchOptions::default())
}

/// The same with options, which count on rank 0 at the first call.
///
/// # Errors
///
/// As [`world`].
pub fn world_with(size: usize, options: &LaunchOptions) -> Result<&'static WorldHandle> {
    let mut made = lock(&WORLD);
    let role = entry::role();
    if matches!(role, Role::Worker | Role::Supervisor) && made.is_none() {
        return Err(Error::new(LAUNCH_IN_WORKER, "a worker cannot launch ranks")
            .why("a process that Leyden started runs one function, and may not become many")
            .hint("launch in `main`; what a worker needs to know of the ranks goes into its argument")
            .hint("ranks are made before a data loader's workers, and each rank has workers of its own"));
    }
    let handle = match *made {
        Some(handle) => handle,
        None => {
            let new = if role == Role::Rank { WorldHandle::handed_over() } else { found(size, options) };
            made.insert(Box::leak(Box::new(new?)))
        }
    };
    let launched = handle.world_size();
    if launched != size {
        return Err(Error::new(LAUNCH_OTHER_SIZE, "the world has another number of ranks")
            .at("asked for", size)
            .at("launched", launched)
            .at("rank", handle.rank)
            .why("a program has one world, and all its ranks run the same `main`")
            .hint("ask for the same number everywhere; for fewer ranks use `Rank::new_group`"));
    }
    Ok(handle)
}

/// This process's world, once there is one.
static WORLD: Mutex<Option<&'static WorldHandle>> = Mutex::new(None);

/// Gives this process, which runs a function as one of several ranks, its world.
pub(super) fn place(world: Arc<World>, rank: usize) {
    let handle = WorldHandle { world, rank, logs: None, joined: Mutex::new(0), starter: None };
    *lock(&WORLD) = Some(Box::leak(Box::new(handle)));
}

/// The world that this process is in already: [launched](world) by it before, or given to it as to one of the ranks that run a
/// [function](super::program()). A rank above 0 that has not come as far as `world` yet has none.
pub fn current() -> Option<&'static WorldHandle> {
    *lock(&WORLD)
}

/// The world that a launcher has started, if there is one; else starts it.
fn found(size: usize, options: &LaunchOptions) -> Result<WorldHandle> {
    let environment = Environment::detect()?;
    if environment.launcher() == Launcher::None {
        return launch(size, options);
    }
    let launched = environment.world_size();
    if launched != size {
        return Err(Error::new(LAUNCH_OTHER_SIZE, "the launcher has started another number of ranks")
            .at("asked for", size)
            .at("launched", format_args!("{launched}, by {}", environment.launcher()))
            .at("rank", environment.rank())
            .hint("ask for as many as the launcher starts: `launch::join` does"));
    }
    let world = match size {
        1 => Arc::new(World::create(1)?),
        _ if hosts::are_meant(&environment)? => hosts::meet(&environment)?,
        _ => Arc::new(external::meet(&environment)?),
    };
    Ok(WorldHandle { world, rank: environment.rank(), logs: None, joined: Mutex::new(0), starter: None })
}

/// The world of a program, on one of its ranks: see [`world`].
pub struct WorldHandle {
    world: Arc<World>,
    rank: usize,
    logs: Option<PathBuf>,
    /// How often it was joined.
    joined: Mutex<u32>,
    /// On ranks above 0: the supervisor.
    starter: Option<Parent>,
}

impl WorldHandle {
    /// Takes this process's place among the ranks. When the [`Rank`] is dropped, this rank has left: whoever waits for it
    /// is told, until it joins again.
    ///
    /// # Errors
    ///
    /// `D0101` while it is joined already; `P0210` if the word by which its death is noticed cannot be held.
    pub fn join(&self) -> Result<Rank> {
        let mut joined = lock(&self.joined);
        let rank = match *joined {
            0 => Rank::enter(Arc::clone(&self.world), self.rank)?,
            times => Rank::enter_again(Arc::clone(&self.world), self.rank, times)?,
        };
        *joined += 1;
        Ok(rank)
    }

    /// This process's rank, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many ranks there are.
    pub fn world_size(&self) -> usize {
        self.world.size()
    }

    /// Where the logs of ranks above 0 are; `None` in a world of 1.
    pub fn logs(&self) -> Option<&Path> {
        self.logs.as_deref()
    }

    /// How many threads each rank should compute with: `RAYON_NUM_THREADS` if that is set, as a user's word; else its share
    /// of the cores that this process may use, at least 1. It sets nothing: give it to whatever computes (of Rayon
    /// `ThreadPoolBuilder::num_threads`), which would else start a thread for each core on each rank. (torchrun sets
    /// `OMP_NUM_THREADS=1`.)
    pub fn threads(&self) -> usize {
        let told = std::env::var("RAYON_NUM_THREADS").ok().and_then(|text| text.trim().parse().ok());
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        told.filter(|&threads| threads > 0).unwrap_or_else(|| (cores() / self.world_size()).max(1))
    }

    /// What the supervisor has handed to this rank.
    fn handed_over() -> Result<Self> {
        /// It was sent before `main` began.
        const PATIENCE: Duration = Duration::from_secs(10);
        let refused = |why: &str| {
            Error::new(LAUNCH_START, "a rank has not got what it needs")
                .why(why)
                .hint("call `launch::world` rather than `leyden_process::rank::joined` in `main`")
        };
        let mut starter = rank::joined().ok_or_else(|| refused("something else has taken it"))?;
        let fd = starter.fds().pop().ok_or_else(|| refused("no memory was handed over"))?;
        let Received::Message(told) = starter.recv(PATIENCE)? else {
            return Err(refused("the supervisor does not say which rank it is"));
        };
        let HandedOver { rank, logs } = postcard::from_bytes(&told)?;
        let world = Arc::new(World::open(fd)?);
        Ok(Self { world, rank, logs: Some(logs), joined: Mutex::new(0), starter: Some(starter) })
    }
}

impl fmt::Debug for WorldHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorldHandle")
            .field("rank", &self.rank)
            .field("of", &self.world_size())
            .field("starter", &self.starter)
            .finish_non_exhaustive()
    }
}

/// What each rank above 0 is told.
#[derive(Serialize, Deserialize)]
pub(super) struct HandedOver {
    pub(super) rank: usize,
    pub(super) logs: PathBuf,
}

/// What rank 0 says to the supervisor.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) enum Word {
    /// A signal has arrived, of this number.
    Signal(i32),
    /// `main` has returned, or something has called `exit`: with this code, where it is known.
    Leaving(Option<i32>),
}

/// What the supervisor says to rank 0.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) enum Report {
    /// All ranks run.
    Started,
    /// All other ranks have ended.
    Over { failed: bool },
}

/// How long the supervisor and rank 0 have beyond the grace to end what does not end by itself.
pub(super) const ENDING: Duration = Duration::from_secs(10);

/// Starts the supervisor, which starts the ranks.
fn launch(size: usize, options: &LaunchOptions) -> Result<WorldHandle> {
    refuse_elsewhere()?;
    let world = Arc::new(World::create(size)?);
    if size == 1 {
        return Ok(WorldHandle { world, rank: 0, logs: None, joined: Mutex::new(0), starter: None });
    }
    expect_descriptors(size, supervisor::DESCRIPTORS + supervisor::DESCRIPTORS_EACH * (size - 1))?;
    let logs = Logs::make(options.folder.as_deref())?;
    world.offer_folder(&logs.folder);
    let started = start(&world, options.grace, &logs);
    if started.is_err() {
        logs.put_away(false, false);
    }
    started?;
    Ok(WorldHandle { world, rank: 0, logs: Some(logs.folder), joined: Mutex::new(0), starter: None })
}

fn start(world: &Arc<World>, grace: Duration, logs: &Logs) -> Result<()> {
    let program = Watched::this()?;
    let order = Order { grace, logs: logs.clone() };
    let survives = grace.saturating_add(ENDING);
    let spawn = SpawnOptions {
        fds: vec![world.fd(), program.as_fd()],
        survives: Some(survives),
        ..SpawnOptions::named("leyden-supervisor")
    };
    let mut supervisor = Job::new(supervisor::supervise, &order)?.spawn(&spawn)?;
    expect_start(&mut supervisor, world.size())?;
    attend(supervisor, world, logs, survives)
}

/// Refuses where the ranks' `main` would not come here again.
fn refuse_elsewhere() -> Result<()> {
    let why = if !threads::is_main() {
        "this is another thread than the one of `main`"
    } else if is_in_a_test() {
        "this is a test: its harness would be started again, with all its tests"
    } else {
        return Ok(());
    };
    Err(Error::new(LAUNCH_ELSEWHERE, "ranks that run `main` cannot be launched from here")
        .why(why)
        .hint("use `launch::spawn(n, f, &argument)`: it runs a function on ranks, from anywhere")
        .hint("or launch in `main` itself, or in what it calls"))
}

/// Whether a test harness has called this thread. It runs tests on threads of its own, but for `--test-threads=1`.
fn is_in_a_test() -> bool {
    let program = std::env::current_exe().unwrap_or_default();
    // Where cargo puts tests. Looking at the stack takes milliseconds.
    if !program.parent().is_some_and(|folder| folder.ends_with("deps")) {
        return false;
    }
    let stack = std::backtrace::Backtrace::force_capture().to_string();
    stack.contains("test::run_test") || stack.contains("test::console::run_tests")
}

/// Waits for the word that all ranks run.
fn expect_start(supervisor: &mut Child, size: usize) -> Result<()> {
    /// A rank reports within milliseconds or is given up after 10 s; a machine may be busy with all of them.
    const PATIENCE: Duration = Duration::from_secs(30);
    let failed = |why: &dyn fmt::Display| {
        Error::new(LAUNCH_START, "the ranks could not be started").at("ranks", size).why(why)
    };
    match supervisor.recv(PATIENCE)? {
        Received::Message(report) => match postcard::from_bytes(&report)? {
            Report::Started => Ok(()),
            Report::Over { .. } => Err(failed(&"they have ended at once")),
        },
        Received::TimedOut => Err(failed(&format_args!("they were not there within {PATIENCE:?}"))
            .hint("is the machine too busy, or does a constructor of the program hang?")),
        Received::Closed => {
            let ended = supervisor.ended(Duration::from_secs(1));
            Err(match ended {
                Some(Ended { error: Some(error), .. }) => error,
                Some(ended) => failed(&format_args!("the supervisor {}", ended.cause)),
                None => failed(&"the supervisor has closed its socket"),
            })
        }
    }
}

/// What the thread that talks with the supervisor and the exit of the program have in common.
struct Shared {
    state: Mutex<Talk>,
    changed: Condvar,
    /// Wakes the thread.
    wake: UnixStream,
    /// How long the exit waits.
    patience: Duration,
}

#[derive(Default)]
struct Talk {
    /// The program leaves, with this code.
    leaving: Option<Option<i32>>,
    /// All is over; whether a rank has failed.
    over: Option<bool>,
}

static SHARED: OnceLock<Shared> = OnceLock::new();

/// Starts the thread that talks with the supervisor for as long as the program runs.
fn attend(supervisor: Child, world: &Arc<World>, logs: &Logs, patience: Duration) -> Result<()> {
    let (wake, woken) = UnixStream::pair()?;
    woken.set_nonblocking(true)?;
    wake.set_nonblocking(true)?;
    let signals = signal::relay()?;
    let shared = Shared { state: Mutex::default(), changed: Condvar::new(), wake, patience };
    let shared = SHARED.get_or_init(|| shared);
    let (world, logs) = (Arc::clone(world), logs.clone());
    let attendant = Attendant { supervisor, signals, woken, world, logs, shared };
    threads::start("leyden-launch", move || attendant.run())?;
    exit::before_exit(leave);
    Ok(())
}

struct Attendant {
    supervisor: Child,
    signals: io::PipeReader,
    woken: UnixStream,
    world: Arc<World>,
    logs: Logs,
    shared: &'static Shared,
}

impl Attendant {
    fn run(mut self) {
        /// All else wakes it; nobody tells of a handler that was installed over the relay's.
        const LOOK: Duration = Duration::from_millis(250);
        let mut said = false;
        let failed = loop {
            signal::keep_relay();
            let control = self.supervisor.control_fd();
            let mut fds = vec![control, self.signals.as_fd(), self.woken.as_fd()];
            fds.extend(self.supervisor.pidfd());
            let ready = readable(&fds, LOOK);
            if ready[1] {
                self.pass_signals_on();
            }
            if ready[2] {
                let _ = (&self.woken).read(&mut [0; 16]);
            }
            let leaving = lock(&self.shared.state).leaving;
            if let Some(code) = leaving
                && !said
            {
                said = true;
                self.say(Word::Leaving(code));
            }
            match self.supervisor.recv(Duration::ZERO) {
                Ok(Received::Message(report)) => {
                    if let Ok(Report::Over { failed }) = postcard::from_bytes(&report) {
                        break failed;
                    }
                }
                Ok(Received::TimedOut) => {}
                Ok(Received::Closed) | Err(_) => {
                    self.unwatched();
                    break true;
                }
            }
        };
        // It has no more to do but to put the logs away.
        self.supervisor.ended(ENDING);
        lock(&self.shared.state).over = Some(failed);
        self.shared.changed.notify_all();
    }

    fn pass_signals_on(&mut self) {
        let mut numbers = [0; 16];
        let count = self.signals.read(&mut numbers).unwrap_or(0);
        for &number in &numbers[..count] {
            self.say(Word::Signal(number.into()));
        }
    }

    /// If it is gone, the end of the socket says so.
    fn say(&self, word: Word) {
        let bytes = postcard::to_allocvec(&word).expect("two numbers always serialise");
        let _ = self.supervisor.send(&bytes);
    }

    /// The supervisor is gone before the ranks: those it had started are too.
    fn unwatched(&mut self) {
        let cause = self.supervisor.ended(Duration::from_secs(1));
        let cause = cause.map_or_else(|| "it has closed its socket".to_owned(), |ended| ended.to_string());
        let error = Error::new(UNWATCHED, "the process that watches the ranks is gone")
            .at("rank", 0)
            .at("the supervisor", cause);
        // Those that wait notice the end themselves, in words of their own.
        if let Some(what) = self.logs.put_away(true, true) {
            say(&format!("{what} is in {}", self.logs.folder.display()));
        }
        let error = error.why("the other ranks have ended with it");
        self.world.poison(&error.hint("start the program again; `dmesg` says whether memory had run out"));
    }
}

/// Rank 0 ends by itself: the others have their grace. Gives the program's exit code, if it is to be another.
fn leave(code: Option<i32>) -> Option<u8> {
    let shared = SHARED.get()?;
    let mut state = lock(&shared.state);
    state.leaving = Some(code);
    let _ = (&shared.wake).write(&[1]);
    let deadline = Instant::now() + shared.patience;
    while state.over.is_none() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        state = shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
    }
    // Where the C library does not tell the code, it cannot be kept.
    let good = code.is_none_or(|code| code == 0);
    (good && state.over != Some(false)).then_some(exit::WORKER_DIED)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
