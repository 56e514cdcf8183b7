//! Processes that run the program's whole `main` beside the one that the user started: ranks.
//!
//! [`start`] starts this program again with the same arguments, environment and working directory, and its `main` runs
//! there; [`joined`] tells it that it is a rank, and gives what its starter handed over. Its stdin is empty. When its
//! starter ends, however it ends, the rank and its process group end too, within milliseconds and without unwinding. It
//! has the signal handling of any program, but for SIGHUP, by which the kernel tells it of that end. It may start workers,
//! and never ranks.
//!
//! Lightning starts its ranks by running `sys.argv` again through the shell's `PATH`; they outlive a launcher that is killed.

#[cfg(not(leyden_portable))]
use std::sync::{Arc, Mutex, PoisonError};

#[cfg(not(leyden_portable))]
use serde::{Deserialize, Serialize};

#[cfg(leyden_portable)]
use crate::portable::spawn::not_here;
use crate::spawn::{Child, Parent, SpawnOptions};
#[cfg(not(leyden_portable))]
use crate::{
    Error,
    codes::START,
    control::{Control, Tag},
    entry::Kind,
    image,
    spawn::{self, Start, Starting},
    sys, threads, worker,
};
use crate::{Result, entry};

/// Starts this program again, so that its `main` runs there as a rank.
///
/// Returns when the process has reported, which it does before its `main`, after about a millisecond. How it ends is told
/// by [`Child::ended`]: [`Exited`](crate::supervise::Cause::Exited) with its exit code, also 0, because a `main` does not
/// say goodbye.
///
/// # Errors
///
/// `P0101` in a rank and in a worker; `P0102`, `P0103` where no process can be started: see
/// [`preflight`](entry::preflight). `P0106` if the system refuses, or if the options ask for what a rank cannot be (a
/// fork, one that survives); `P0107` if it does not report in time; `P0108` if it is of another build. `P0115` on the
/// portable back end.
#[cfg(not(leyden_portable))]
pub fn start(options: &SpawnOptions<'_>) -> Result<Child> {
    starting(options)?.wait()
}

/// The same for several, each with its options, which all start at once. If one cannot be started, none is left.
///
/// # Errors
///
/// The first one's, as [`start`].
#[cfg(not(leyden_portable))]
pub fn start_all(options: &[SpawnOptions<'_>]) -> Result<Vec<Child>> {
    let all = options.iter().map(starting).collect::<Result<Vec<_>>>()?;
    all.into_iter().map(Starting::wait).collect()
}

/// Starts this program again, which has not reported yet.
#[cfg(not(leyden_portable))]
fn starting(options: &SpawnOptions<'_>) -> Result<Starting> {
    entry::may_start(Kind::Rank)?;
    entry::can_start_again()?;
    if options.start != Start::Exec || options.survives.is_some() {
        return Err(Error::new(START, "a rank could not be started")
            .at("process", &options.name)
            .why("it is always started again, and never outlives its starter")
            .hint("use `Start::Exec`, and no `survives`"));
    }
    let child = spawn::launch(Kind::Rank, options)?;
    let order = Order { build: image::build(), name: options.name.clone(), handed: options.fds.len() as u32 };
    // What became of an order that nobody took is said by the hello that does not come.
    spawn::ask(&child, Tag::Start, &postcard::to_allocvec(&order)?, &options.fds, options)?;
    Ok(Starting::of(child, options.hello_timeout))
}

/// Starts this program again, so that its `main` runs there as a rank: not on this back end.
///
/// # Errors
///
/// `P0115`, always.
#[cfg(leyden_portable)]
pub fn start(options: &SpawnOptions<'_>) -> Result<Child> {
    entry::fuse();
    Err(not_here("ranks that run the program's `main`").at("process", &options.name))
}

/// The same for several: not on this back end.
///
/// # Errors
///
/// `P0115`, for the first one.
#[cfg(leyden_portable)]
pub fn start_all(options: &[SpawnOptions<'_>]) -> Result<Vec<Child>> {
    options.iter().map(start).collect()
}

/// In a process that was [started](start) as a rank: its starter, with what that has handed over. `None` elsewhere, and the
/// second time.
///
/// The rank lives only while its starter does, whether or not anybody keeps this.
pub fn joined() -> Option<Parent> {
    #[cfg(not(leyden_portable))]
    return PARENT.lock().unwrap_or_else(PoisonError::into_inner).take();
    #[cfg(leyden_portable)]
    None
}

/// What a rank gets, after its descriptors.
#[cfg(not(leyden_portable))]
#[derive(Serialize, Deserialize)]
struct Order {
    build: Vec<u8>,
    name: String,
    /// How many descriptors are handed over.
    handed: u32,
}

#[cfg(not(leyden_portable))]
static PARENT: Mutex<Option<Parent>> = Mutex::new(None);

/// What a process with the role of a rank does before its `main`. The kernel has been told to end it with its starter
/// already; a thread waits for the end of the socket too, because the signal has holes, and may be taken by `main`.
#[cfg(not(leyden_portable))]
pub(crate) fn begin(control: Control) {
    let control = Arc::new(control);
    let joined = worker::hello(&control).and_then(|()| join(&control));
    match joined.and_then(|parent| Ok((parent, watch(&control)?))) {
        Ok((parent, ())) => *PARENT.lock().unwrap_or_else(PoisonError::into_inner) = Some(parent),
        Err(error) => worker::leave(&control, Err(error)),
    }
}

/// Reads what was handed over.
#[cfg(not(leyden_portable))]
fn join(control: &Arc<Control>) -> Result<Parent> {
    let (order, fds) = worker::take_order::<Order>(control)?;
    if order.build != image::build() {
        return Err(worker::other_build());
    }
    worker::all_came(&fds, order.handed as usize)?;
    worker::set_name(&order.name);
    Ok(Parent::new(control, &order.name, fds))
}

/// Starts the thread that ends the process when its starter is gone.
#[cfg(not(leyden_portable))]
fn watch(control: &Arc<Control>) -> Result<()> {
    let watched = Arc::clone(control);
    let blocked = sys::block_all_signals();
    // The new thread has the mask of this one: signals are for the program's own threads.
    let started = threads::start("leyden-watch", move || {
        watched.wait_until_closed();
        worker::end_the_group()
    });
    sys::restore_signals(&blocked);
    started.map_err(|error| {
        Error::new(START, "a rank's thread could not be started")
            .because(&error)
            .hint("use fewer ranks, or raise the limit on threads (`ulimit -u`)")
    })
}
