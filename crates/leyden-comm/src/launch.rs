//! Starting ranks: the program itself, several times ([`world`]); processes that run one function ([`spawn`]); threads of
//! this process ([`threads()`]).

mod external;
mod hosts;
mod logs;
mod program;
mod supervisor;

use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use leyden_process::limits::{Resource, limit};
use leyden_process::spawn::{Child, Job, Parent, Received, SpawnOptions};
use leyden_process::supervise::Cause;
use leyden_process::{Error, Panic, Result, contain};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codes::{DIED, LAUNCH_DESCRIPTORS, OBJECT, RANK_PANICKED};
use crate::environment::Environment;
use crate::rank::Rank;
use crate::session::{Member, Secret, nonce};
use crate::transport::tcp::{self, Meeting};
use crate::world::World;

pub use program::{LaunchOptions, WorldHandle, current, world, world_with};

/// Takes this process's place in the world of the launcher that has started it (torchrun, srun, mpirun, or whoever sets
/// `RANK` and `WORLD_SIZE`), however large that is; without a launcher, in a world of one. See [`world`].
///
/// # Errors
/// Those of [`world`] and [`WorldHandle::join`].
pub fn join() -> Result<Rank> {
    world(Environment::detect()?.world_size())?.join()
}

/// Refuses where fewer descriptors may be open than a process needs that starts this many ranks: before half of them run.
///
/// # Errors
/// `D0206`, with the limit, what is needed, and the cure.
pub fn expect_descriptors(ranks: usize, needed: usize) -> Result<()> {
    let Some(most) = limit(Resource::Descriptors).filter(|&most| most < needed as u64) else { return Ok(()) };
    Err(Error::new(LAUNCH_DESCRIPTORS, "too few files may be open for that many ranks")
        .at("ranks", ranks)
        .at("needed", format_args!("{needed} descriptors"))
        .at("limit", format_args!("{most} (`ulimit -n`)"))
        .hint(format!("raise it with `ulimit -n {}`, or start fewer ranks", needed.max(1024))))
}

/// How ranks reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Carrier {
    /// Memory that they share: on one host, and the fastest.
    Memory,
    /// Connections between each two of them: on any hosts.
    Tcp,
}

/// Runs `f` on `n` ranks, each a thread of this process, and gives what each returns, in their order. For tests: with the
/// same arithmetic and the same errors as ranks that are processes, except that a thread cannot be killed.
///
/// # Errors
/// The first rank's error; `D0112` if it panics. Those of a world that cannot be made.
pub fn threads<R: Send>(n: usize, f: impl Fn(&mut Rank) -> Result<R> + Sync) -> Result<Vec<R>> {
    threads_over(Carrier::Memory, n, f)
}

/// The same with ranks that reach each other in this way: over [`Carrier::Tcp`] each has a world of its own and connections
/// to the others by way of the loopback interface, as ranks on several hosts have.
///
/// # Errors
/// As [`threads()`]; `D0240` to `D0242` if the ranks cannot connect to each other.
pub fn threads_over<R: Send>(
    carrier: Carrier,
    n: usize,
    f: impl Fn(&mut Rank) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    match carrier {
        Carrier::Memory => {
            let world = Arc::new(World::create(n)?);
            let ranks =
                (0..n).map(|rank| Rank::join(Arc::clone(&world), rank)).collect::<Result<Vec<_>>>()?;
            on_threads(ranks, |rank| live(rank, &f))
        }
        Carrier::Tcp => on_threads(seats(n)?, |seat| {
            let (rank, world) = (seat.rank, Arc::new(World::create(n)?));
            let deadline = Instant::now() + CONNECTED;
            let meeting = Meeting {
                rank,
                roster: &seat.roster,
                secret: &seat.secret,
                listener: seat.listener,
                deadline,
            };
            // Open until the rank has said goodbye.
            let _mesh = tcp::join(&world, meeting)?;
            live(Rank::join(world, rank)?, &f)
        }),
    }
}

/// Where one of several ranks of this process connects to the others.
struct Seat {
    rank: usize,
    listener: TcpListener,
    roster: Arc<[Member]>,
    secret: Secret,
}

fn seats(n: usize) -> Result<Vec<Seat>> {
    World::check_size(n)?;
    let listeners =
        (0..n).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect::<std::io::Result<Vec<_>>>()?;
    let member = |listener: &TcpListener| {
        let address = listener.local_addr()?;
        Ok(Member { address, host: "this one".to_owned(), pid: std::process::id() })
    };
    let roster: Arc<[Member]> = listeners.iter().map(member).collect::<std::io::Result<_>>()?;
    let secret = Secret::from_bytes(nonce()?);
    let seat =
        |(rank, listener)| Seat { rank, listener, roster: Arc::clone(&roster), secret: secret.clone() };
    Ok(listeners.into_iter().enumerate().map(seat).collect())
}

/// Runs `f` on a thread for each seat; gives all results, or the first error.
fn on_threads<S: Send, R: Send>(seats: Vec<S>, f: impl Fn(S) -> Result<R> + Sync) -> Result<Vec<R>> {
    let f = &f;
    let results: Vec<Result<R>> = std::thread::scope(|scope| {
        let threads: Vec<_> = seats.into_iter().map(|seat| scope.spawn(move || f(seat))).collect();
        threads.into_iter().map(|thread| thread.join().expect("panics are contained")).collect()
    });
    results.into_iter().collect()
}

/// Runs `f` on `n` fresh ranks, each a process of this program that never reaches `main`, and gives what each returns, in
/// their order (PyTorch: `torch.multiprocessing.spawn`). From anywhere: a test, a thread, a second time. They die with this
/// process, and all of them are gone when this returns.
///
/// `f` is a plain function or a closure that captures nothing; each rank has a copy of `argument`.
///
/// # Errors
/// What failed first: a rank's own error, with the place `rank`; `D0105` if it died, with the cause and its last lines on
/// stderr; `D0112` if it panicked. Those of [`Job::new`] and [`Job::spawn`]; `D0109` if a result cannot be sent.
pub fn spawn<A, R, F>(n: usize, f: F, argument: &A) -> Result<Vec<R>>
where
    A: Serialize + DeserializeOwned + Send + 'static,
    R: Serialize + DeserializeOwned + Send,
    F: Fn(A, &mut Rank) -> Result<R> + Copy + Send + Sync + 'static,
{
    let job = Job::new(move |argument: A, parent| serve(f, argument, parent), argument)?;
    start(n, &job)
}

/// Runs `f` on `n` fresh ranks, as [`spawn`] does; there [`world`] gives the world of these ranks, as it would in a program
/// that has launched them: for code that joins by itself, such as a training (Lightning: `strategy="ddp_spawn"`).
///
/// # Errors
/// As [`spawn`].
///
/// # Example
///
/// ```
/// use leyden_comm::{ReduceOp, launch};
///
/// let sums = launch::program(2, |start: f32| {
///     let mut rank = launch::world(2)?.join()?; // the same line as in `main`
///     let mut number = [start + rank.rank() as f32];
///     rank.all_reduce(&mut number, ReduceOp::Sum)?;
///     Ok(number[0])
/// }, &20.0)?;
/// assert_eq!(sums, [41.0, 41.0]);
/// # Ok::<(), leyden_comm::Error>(())
/// ```
pub fn program<A, R, F>(n: usize, f: F, argument: &A) -> Result<Vec<R>>
where
    A: Serialize + DeserializeOwned + Send + 'static,
    R: Serialize + DeserializeOwned + Send,
    F: Fn(A) -> Result<R> + Copy + Send + Sync + 'static,
{
    let job = Job::new(move |argument: A, parent| serve_program(f, argument, parent), argument)?;
    start(n, &job)
}

/// Starts `n` ranks, and waits for what they return.
fn start<R: DeserializeOwned + Send>(n: usize, job: &Job) -> Result<Vec<R>> {
    let world = World::create(n)?;
    let options =
        |rank| SpawnOptions { fds: vec![world.fd()], ..SpawnOptions::named(format!("rank {rank}")) };
    let children = job.spawn_all(&(0..n).map(options).collect::<Vec<_>>())?;
    for (rank, child) in children.iter().enumerate() {
        child.send(&(rank as u64).to_le_bytes())?;
    }
    let world = &world;
    let results: Vec<Result<Vec<u8>>> = std::thread::scope(|scope| {
        let threads: Vec<_> = children
            .into_iter()
            .enumerate()
            .map(|(rank, child)| scope.spawn(move || attend(world, rank, child)))
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("it does not panic")).collect()
    });
    // What failed first is the reason of all other failures. One that the functions have dealt with is none.
    if results.iter().any(Result::is_err)
        && let Some(error) = world.poisoned()
    {
        return Err(error);
    }
    let read = |bytes: Result<Vec<u8>>| {
        postcard::from_bytes(&bytes?)
            .map_err(|error| Error::new(OBJECT, "a rank's result cannot be read").because(&error))
    };
    results.into_iter().map(read).collect()
}

/// A rank's process.
fn serve<A, R, F>(f: F, argument: A, mut parent: Parent) -> Result<()>
where
    R: Serialize,
    F: Fn(A, &mut Rank) -> Result<R>,
{
    let Some((world, number)) = told(&mut parent)? else { return Ok(()) };
    let rank = Rank::enter(world, number)?;
    answer(&parent, number, &live(rank, |rank| f(argument, rank))?)
}

/// A rank's process that joins by itself.
fn serve_program<A, R, F>(f: F, argument: A, mut parent: Parent) -> Result<()>
where
    R: Serialize,
    F: Fn(A) -> Result<R>,
{
    let Some((world, number)) = told(&mut parent)? else { return Ok(()) };
    program::place(Arc::clone(&world), number);
    let result = contain(|| f(argument)).unwrap_or_else(|panic| Err(panicked(panic)));
    let result = result.map_err(|error| error.at_if_absent("rank", number));
    answer(&parent, number, &result.map_err(|error| world.poison(&error))?)
}

/// What a rank's process is told first: its world, and its number.
fn told(parent: &mut Parent) -> Result<Option<(Arc<World>, usize)>> {
    let Received::Message(number) = parent.recv(TOLD)? else { return Ok(None) };
    let number = number.try_into().map_or(usize::MAX, |bytes| u64::from_le_bytes(bytes) as usize);
    let Some(fd) = parent.fds().pop() else { return Ok(None) };
    Ok(Some((Arc::new(World::open(fd)?), number)))
}

/// Sends what a rank's function has returned.
fn answer<R: Serialize>(parent: &Parent, number: usize, result: &R) -> Result<()> {
    let bytes = postcard::to_allocvec(result).map_err(|error| {
        Error::new(OBJECT, "a rank's result cannot be sent").at("rank", number).because(&error)
    })?;
    bytes.chunks(MESSAGE).try_for_each(|piece| parent.send(piece))
}

/// A rank's life: its error, or panic, is the world's.
fn live<R>(mut rank: Rank, f: impl FnOnce(&mut Rank) -> Result<R>) -> Result<R> {
    let result = contain(|| f(&mut rank)).unwrap_or_else(|panic| Err(panicked(panic)));
    result.map_err(|error| rank.fail(error))
}

fn panicked(panic: Panic) -> Error {
    panic.explain(Error::new(RANK_PANICKED, "a rank panicked"))
}

/// Takes a rank's result, and tells the others how it ended.
fn attend(world: &World, rank: usize, mut child: Child) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut failing = None;
    let ended = loop {
        match child.recv(LOOK)? {
            Received::Message(piece) => bytes.extend(piece),
            Received::TimedOut => {
                // The others have seen that the world failed; what does not end by itself is ended.
                if world.is_calm() {
                    failing = None;
                    continue;
                }
                let since = *failing.get_or_insert_with(Instant::now);
                if since.elapsed() > GRACE {
                    break child.stop(LOOK);
                }
            }
            Received::Closed => match child.ended(GRACE) {
                Some(ended) => break ended,
                None => break child.stop(LOOK),
            },
        }
    };
    if ended.cause == Cause::Done {
        // What it failed of outside of its function (its place, its result) is the world's failure too.
        if let Some(error) = &ended.error {
            world.poison(&error.clone().at_if_absent("rank", rank));
        }
        world.tell_end(rank, ended.error.is_none(), "returned");
        return ended.into_result(&format!("rank {rank}")).map(|()| bytes);
    }
    let words = std::iter::once(ended.cause.to_string()).chain(ended.stderr.clone());
    let words = words.collect::<Vec<_>>().join("\n");
    world.tell_end(rank, false, &words);
    let mut error = Error::new(DIED, format!("rank {rank} died")).at("cause", ended.cause);
    if !ended.stderr.is_empty() {
        error = error.at("its stderr", ended.stderr.join("\n"));
    }
    // Whoever waits for it says so too, and from where. Nobody need wait for it, though.
    std::thread::sleep(BETTER_WORDS);
    Err(world.poison(&error))
}

/// How long ranks of one process may take to connect to each other.
const CONNECTED: Duration = Duration::from_secs(60);
/// How long a new process waits to be told its rank.
const TOLD: Duration = Duration::from_secs(10);
/// How much of a result is sent at once, in bytes.
const MESSAGE: usize = 64 << 10;
/// How often whoever waits for a rank looks whether the world has failed meanwhile.
const LOOK: Duration = Duration::from_millis(100);
/// How long those that wait for a dead rank have to say so first.
const BETTER_WORDS: Duration = Duration::from_millis(20);
/// How long the other ranks may take to end once one has failed.
const GRACE: Duration = Duration::from_secs(5);
