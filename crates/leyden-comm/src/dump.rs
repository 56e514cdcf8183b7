//! The records of all ranks as a file: once for each failure of a world, by whoever finds it, and with
//! `LEYDEN_DEBUG=detail` also when the last rank has left.
//!
//! All of it is read from the memory that the ranks share, so that a rank that was killed is in it too. A thread writes the
//! file, beside its place, and gives it its name once it is whole; a failure is told at the latest 25 ms later, whether or
//! not the file is there by then, and also if it cannot be written.

use std::env;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use leyden_process::supervise::evidence;
use leyden_process::tombstone;
use leyden_process::{Code, Error};
use serde::Serialize;

use crate::codes::{DEADLOCK, DIED, DISAGREE, LEFT, PLACES_DIFFER, STUCK, UNWATCHED};
use crate::record::{Parts, Record};
use crate::watch::now;
use crate::world::{End, MOST_GROUPS, State, World};

/// What an error calls the path of the file.
pub(crate) const PLACE: &str = "records of all ranks";

/// The end of the name of each of these files.
pub(crate) const ENDING: &str = ".json";

/// Whether `LEYDEN_DEBUG` asks for detail.
pub(crate) fn is_detail_asked_for() -> bool {
    env::var("LEYDEN_DEBUG").is_ok_and(|words| words.split(',').any(|word| word.trim() == "detail"))
}

/// Where the files go, if that was asked for.
pub(crate) fn folder_asked_for() -> Option<PathBuf> {
    env::var_os("LEYDEN_DUMP_DIR").filter(|folder| !folder.is_empty()).map(PathBuf::from)
}

/// Keeps the records of a world that fails of this, unless it concerns one rank alone.
pub(crate) fn keep(world: &World, error: &Error) -> Option<Kept> {
    let kind = match error.code() {
        DISAGREE | PLACES_DIFFER => "desync",
        LEFT => "left",
        DIED | UNWATCHED => "died",
        DEADLOCK => "deadlock",
        STUCK => "stuck",
        // A rank's own error.
        _ => "failed",
    };
    let somebody_waits = || {
        let mut places = (0..world.size()).flat_map(|rank| (0..MOST_GROUPS).map(move |group| (rank, group)));
        places.any(|(rank, group)| world.awaited(rank, group).load(Ordering::SeqCst) != 0)
    };
    (kind != "failed" || somebody_waits()).then(|| Kept::begin(world, kind, Some(error)).until(DELAY))
}

/// Keeps the records of a world that has come to its end, and says where.
pub(crate) fn keep_at_end(world: &World) {
    /// Nobody waits for it but a program that ends, whose user has asked for it.
    const PATIENCE: Duration = Duration::from_secs(5);
    let kept = Kept::begin(world, "records", None).until(PATIENCE);
    let _ = writeln!(io::stderr(), "leyden: {PLACE}: {kept}");
}

/// A file that is written, or what came of it.
pub(crate) struct Kept {
    state: Written,
    writer: Receiver<Written>,
}

enum Written {
    /// To be written to this place, or into this folder.
    Not(PathBuf),
    Whole(PathBuf),
    Failed(String),
}

impl Kept {
    fn begin(world: &World, kind: &'static str, error: Option<&Error>) -> Self {
        let folder = world.folder();
        let (sender, writer) = mpsc::channel();
        // The caller may be gone before the thread has done, so it has the memory by itself.
        let own = world.fd().try_clone_to_owned().map_err(Error::from).and_then(World::open);
        let begun = own.and_then(|world| {
            let (error, folder) = (error.cloned(), folder.clone());
            let thread = thread::Builder::new().name("leyden-records".to_owned());
            thread.spawn(move || {
                let done = write(&world, &folder, kind, error.as_ref(), &sender);
                let _ = sender.send(match done {
                    Ok(path) => Written::Whole(path),
                    Err(why) => Written::Failed(format!("not written to {}: {why}", folder.display())),
                });
            })?;
            Ok(())
        });
        let state = match begun {
            Ok(()) => Written::Not(folder),
            Err(error) => Written::Failed(format!("not written: {error}")),
        };
        Self { state, writer }
    }

    /// Waits for the file, for so long.
    fn until(mut self, patience: Duration) -> Self {
        let deadline = Instant::now() + patience;
        while matches!(self.state, Written::Not(_)) {
            match self.writer.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(state) => self.state = state,
                Err(_) => break,
            }
        }
        self
    }

    /// The failure is told. Whoever tells it may end the process at once, so it waits a little for a slow disk.
    pub(crate) fn finish(self) {
        self.until(FINISH);
    }
}

/// The path, or what came of it.
impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.state {
            Written::Whole(path) => write!(f, "{}", path.display()),
            Written::Not(path) => write!(f, "{} (being written)", path.display()),
            Written::Failed(why) => f.write_str(why),
        }
    }
}

/// Writes the file, after it has said where.
fn write(
    world: &World,
    folder: &Path,
    kind: &str,
    error: Option<&Error>,
    told: &Sender<Written>,
) -> io::Result<PathBuf> {
    fs::create_dir_all(folder)?;
    let (path, partial, mut file) = claim(folder, kind, world.run())?;
    let _ = told.send(Written::Not(path.clone()));
    let done = serde_json::to_vec_pretty(&Records::of(world, error))
        .map_err(io::Error::from)
        .and_then(|bytes| file.write_all(&bytes))
        .and_then(|()| fs::rename(&partial, &path));
    if done.is_err() {
        let _ = fs::remove_file(&partial);
    }
    done.map(|()| path)
}

/// A name that nobody has, and the file that is to get it, which no other user can read.
fn claim(folder: &Path, kind: &str, run: u32) -> io::Result<(PathBuf, PathBuf, File)> {
    /// Failures of one process number in one folder.
    const MOST: u32 = 10_000;
    for number in 0..MOST {
        let name = format!("leyden-{kind}-{run}-{number}{ENDING}");
        let (path, partial) = (folder.join(&name), folder.join(format!("{name}.partial")));
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial) {
            Ok(file) if !path.exists() => return Ok((path, partial, file)),
            Ok(_) => fs::remove_file(&partial)?,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(ErrorKind::AlreadyExists.into())
}

/// The file.
#[derive(Serialize)]
struct Records {
    /// Of this layout.
    format: u32,
    leyden: &'static str,
    /// The process that made the world.
    run: u32,
    written_by_pid: u32,
    unix_time: f64,
    /// Whether call sites were compared too.
    detail: bool,
    error: Option<Told>,
    groups: Vec<GroupOf>,
    ranks: Vec<RankOf>,
}

#[derive(Serialize)]
struct Told {
    code: &'static str,
    what: String,
    places: Vec<(String, String)>,
    why: Vec<String>,
    hints: Vec<String>,
}

#[derive(Serialize)]
struct GroupOf {
    group: usize,
    ranks: Vec<usize>,
}

#[derive(Serialize)]
struct RankOf {
    rank: usize,
    pid: i32,
    state: &'static str,
    /// How often it had joined before.
    joined_before: u32,
    /// What the kernel has noted of its process: `not watched`, `lives`, `dead`.
    process: &'static str,
    end: Option<EndOf>,
    phase: Option<PhaseOf>,
    waits_in_groups: Vec<usize>,
    /// What `/proc` says; nothing for a process that is gone, or where there was no time to look.
    evidence: Option<EvidenceOf>,
    groups: Vec<PastOf>,
}

#[derive(Serialize)]
struct EndOf {
    clean: bool,
    words: String,
}

#[derive(Serialize)]
struct PhaseOf {
    label: String,
    place: String,
    since_seconds: f64,
    budget_seconds: Option<f64>,
}

#[derive(Serialize)]
struct EvidenceOf {
    words: String,
    state: Option<char>,
    waits_in: Option<String>,
    system_call: Option<i64>,
    tracer: Option<i32>,
    kernel_stack: Vec<String>,
    threads: Vec<(String, char)>,
}

/// What a rank has done in a group.
#[derive(Serialize)]
struct PastOf {
    group: usize,
    arrivals: u32,
    /// The last ones, oldest first.
    collectives: Vec<CallOf>,
}

#[derive(Serialize)]
struct CallOf {
    sequence: u64,
    call: String,
    #[serde(flatten)]
    parts: Parts,
    label: String,
    place: String,
    begun_seconds_ago: f64,
}

impl Records {
    fn of(world: &World, error: Option<&Error>) -> Self {
        /// For what `/proc` says of all ranks: each takes some tens of microseconds.
        const LOOK: Duration = Duration::from_millis(10);
        let (now, began) = (now(), Instant::now());
        let used = |rank: usize, group: usize| {
            world.arrived(rank, group).load(Ordering::Acquire) > 0 || world.last_record(rank, group).is_some()
        };
        let groups: Vec<usize> =
            (0..MOST_GROUPS).filter(|&group| (0..world.size()).any(|rank| used(rank, group))).collect();
        let ranks = (0..world.size()).map(|rank| {
            let may_look = began.elapsed() < LOOK;
            RankOf::of(world, rank, &groups, now, may_look)
        });
        Self {
            format: 1,
            leyden: env!("CARGO_PKG_VERSION"),
            run: world.run(),
            written_by_pid: std::process::id(),
            unix_time: SystemTime::UNIX_EPOCH.elapsed().map_or(0.0, |time| time.as_secs_f64()),
            detail: world.is_detailed(),
            error: error.map(Told::of),
            ranks: ranks.collect(),
            groups: groups.into_iter().map(|group| GroupOf { group, ranks: world.members(group) }).collect(),
        }
    }
}

impl Told {
    fn of(error: &Error) -> Self {
        let Code { id: code, .. } = error.code();
        Self {
            code,
            what: error.what().to_owned(),
            places: error.places().map(|(label, value)| (label.to_owned(), value.to_owned())).collect(),
            why: error.reasons().to_vec(),
            hints: error.hints().to_vec(),
        }
    }
}

impl RankOf {
    fn of(world: &World, rank: usize, groups: &[usize], now: u64, may_look: bool) -> Self {
        let pid = world.pid(rank);
        let end = match world.end(rank) {
            (End::Unknown, _) => None,
            (end, words) => Some(EndOf { clean: end == End::Clean, words }),
        };
        let phase = world.phase(rank).map(|(site, since, budget)| PhaseOf {
            label: site.label,
            place: site.place,
            since_seconds: seconds(now, since),
            budget_seconds: (budget > 0).then(|| Duration::from_nanos(budget).as_secs_f64()),
        });
        Self {
            rank,
            pid,
            state: match world.state(rank) {
                State::Absent => "absent",
                State::Present => "present",
                State::Left => "left",
                State::Panicked => "panicked",
                State::Renewing => "joining again",
            },
            joined_before: world.times(rank),
            process: match tombstone::state(world.tombstone(rank)) {
                tombstone::State::NotYet => "not watched",
                tombstone::State::Held(_) => "lives",
                tombstone::State::Dead => "dead",
            },
            end,
            phase,
            waits_in_groups: groups
                .iter()
                .copied()
                .filter(|&group| world.awaited(rank, group).load(Ordering::SeqCst) != 0)
                .collect(),
            evidence: (may_look && pid > 0 && !world.is_carried()).then(|| EvidenceOf::of(pid)),
            groups: groups
                .iter()
                .map(|&group| PastOf {
                    group,
                    arrivals: world.arrived(rank, group).load(Ordering::Acquire),
                    collectives: world
                        .records(rank, group)
                        .into_iter()
                        .map(|(record, time)| CallOf::of(record, seconds(now, time)))
                        .collect(),
                })
                .collect(),
        }
    }
}

impl EvidenceOf {
    fn of(pid: i32) -> Self {
        let evidence = evidence(pid);
        Self {
            words: evidence.to_string(),
            state: evidence.state,
            waits_in: evidence.waits_in,
            system_call: evidence.system_call,
            tracer: evidence.tracer,
            kernel_stack: evidence.kernel_stack,
            threads: evidence.threads,
        }
    }
}

impl CallOf {
    fn of(record: Record, begun_seconds_ago: f64) -> Self {
        Self {
            sequence: record.seq,
            call: record.to_string(),
            parts: record.parts(),
            label: record.site.label,
            place: record.site.place,
            begun_seconds_ago,
        }
    }
}

fn seconds(now: u64, then: u64) -> f64 {
    Duration::from_nanos(now.saturating_sub(then)).as_secs_f64()
}

/// How long a failure waits for its file.
const DELAY: Duration = Duration::from_millis(25);
/// How long the one that tells it waits for it beyond that.
const FINISH: Duration = Duration::from_millis(75);
