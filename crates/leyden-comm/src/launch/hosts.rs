//! Ranks that something else has started on several hosts: they meet in a session, and then connect to each other. Also
//! ranks of one host, where `LEYDEN_TRANSPORT=tcp` asks for it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use leyden_process::{Error, Result, exit, futex};

use crate::codes::{DIED, TRANSPORT_UNFIT};
use crate::environment::Environment;
use crate::session::{self, Attendance, Heard};
use crate::transport::tcp::{self, Meeting, Mesh};
use crate::world::{End, State, World};

/// Whether the ranks are to reach each other over the network: they are on several hosts, or `LEYDEN_TRANSPORT` says so.
///
/// # Errors
/// `D0245` if that names no transport, or one that does not reach all of them.
pub(super) fn are_meant(environment: &Environment) -> Result<bool> {
    let several = session::is_on_several_hosts(environment);
    let told = std::env::var("LEYDEN_TRANSPORT").unwrap_or_default();
    let refused =
        |what: &str| Error::new(TRANSPORT_UNFIT, what).at("LEYDEN_TRANSPORT", format_args!("`{told}`"));
    match told.as_str() {
        "" => Ok(several),
        "tcp" => Ok(true),
        "memory" if !several => Ok(false),
        "memory" => Err(refused("ranks on several hosts share no memory")
            .at("launcher", environment.launcher())
            .hint("unset LEYDEN_TRANSPORT, or set it to `tcp`")),
        _ => Err(refused("there is no such transport").hint("set it to `tcp` or `memory`, or unset it")),
    }
}

/// The world in which the launcher has given this process a rank, once all have come and are connected. It stays so until
/// the process ends.
///
/// # Errors
/// Those of [`session::listener`], [`session::join`] and [`tcp::join`].
pub(super) fn meet(environment: &Environment) -> Result<Arc<World>> {
    let listener = session::listener(environment)?;
    let session = session::join(environment, &listener)?;
    let (rank, roster, secret) = (session.rank(), session.roster().to_vec(), session.secret().clone());
    let world = Arc::new(World::create(session.size())?);
    let hearing = Arc::clone(&world);
    // Before the ranks connect to each other: who fails at it is heard of.
    let attendance = Arc::new(session.attend(move |heard| hear(&hearing, heard))?);
    let deadline = Instant::now() + patience();
    let meeting = Meeting { rank, roster: &roster, secret: &secret, listener, deadline };
    let mesh = tcp::join(&world, meeting).inspect_err(|error| attendance.fail(error))?;
    mesh.attended_by(&attendance);
    *lock() = Some(Presence { rank, mesh, world: Arc::clone(&world), attendance: Some(attendance) });
    exit::before_exit(leave);
    Ok(world)
}

/// What a rank has for as long as its process lives.
struct Presence {
    rank: usize,
    world: Arc<World>,
    mesh: Mesh,
    /// Until it leaves in order.
    attendance: Option<Arc<Attendance>>,
}

static PRESENCE: Mutex<Option<Presence>> = Mutex::new(None);

/// How long the connecting may take: as long as the meeting, which has read the same variable.
fn patience() -> Duration {
    let told = std::env::var("LEYDEN_JOIN_TIMEOUT").ok().and_then(|seconds| seconds.trim().parse().ok());
    Duration::from_secs(told.filter(|&seconds| seconds > 0).unwrap_or(60))
}

/// Writes down what the session says.
fn hear(world: &World, heard: Heard) {
    match heard {
        // Who left in order has said so to each rank itself, after its last arrival.
        Heard::Ended { clean: true, .. } => {}
        Heard::Silent { rank, silent } => {
            if let Some(presence) = &*lock() {
                presence.mesh.note_silence(rank, silent);
            }
        }
        Heard::Ended { rank, words, .. } => {
            // What the rank itself has sent last may come later than this, and says more.
            let began = Instant::now();
            while world.end(rank).0 == End::Unknown && began.elapsed() < AUTOPSY {
                futex::wait(world.end_word(rank), 0, AUTOPSY.saturating_sub(began.elapsed()));
            }
            if world.end(rank).0 == End::Unknown {
                world.tell_end(rank, false, &words);
            }
            // Whoever waits for it says so too, and from where.
            std::thread::sleep(BETTER_WORDS);
            let (end, words) = world.end(rank);
            if end == End::Failed {
                let cause = words.lines().next().unwrap_or_default();
                world.poison(&Error::new(DIED, format!("rank {rank} died")).at("cause", cause).hint(
                    "its own words, above or in its log, say why; then start again from the last checkpoint",
                ));
            }
        }
        Heard::Failed { rank, error } => world.poison(&error.at_if_absent("rank", rank)),
        Heard::Lost(error) => {
            // Rank 0 is gone, which its connections to each rank say too, and better.
            std::thread::sleep(AUTOPSY + 2 * BETTER_WORDS);
            if world.state(0) != State::Left {
                world.poison(&error);
            }
        }
    }
}

/// The program ends. Who still has its rank says with which code; nothing of it changes. Connections stay until the kernel
/// closes them, when all that was sent is on its way.
fn leave(code: Option<i32>) -> Option<u8> {
    let is_good = code.is_none_or(|code| code == 0);
    let mut presence = lock();
    let Presence { rank, world, mesh, attendance } = presence.as_mut()?;
    if let Some(code) = code
        && (world.state(*rank) != State::Left || !is_good)
    {
        let panicked = if world.state(*rank) == State::Panicked { "panicked, and " } else { "" };
        mesh.say_end(is_good, &format!("{panicked}exited with code {code}"));
    }
    // One that fails has not left in order, and does not say so.
    let leaving = if is_good { attendance.take() } else { None };
    drop(presence);
    drop(leaving);
    None
}

fn lock() -> std::sync::MutexGuard<'static, Option<Presence>> {
    PRESENCE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long those that wait for a dead rank have to say so first.
const BETTER_WORDS: Duration = Duration::from_millis(20);
/// How long to wait for better words of how a rank ended: as those that wait for it do.
const AUTOPSY: Duration = Duration::from_millis(60);
