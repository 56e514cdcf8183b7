//! Waiting for other ranks, and what ends a wait that nobody will end: each by an error that names ranks and places.
//!
//! Three kinds. What is *certain* fails at once: ranks that call different collectives, one that has left, one that has
//! died. Ranks that all wait for each other are looked at after half a second, twice. A rank that lives and does not
//! come is told of after 5 s, with what the kernel knows of it, and fails the world once the budget of what it is doing
//! is over.

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use leyden_process::clock::Lived;
use leyden_process::futex::{self, WokenAny};
use leyden_process::supervise::evidence;
use leyden_process::tombstone::{self, State as Stone};
use leyden_process::{Error, Result};

use crate::codes::{DEADLOCK, DIED, DISAGREE, LEFT, STUCK, UNWATCHED};
use crate::record::{Record, Site};
use crate::world::{End, State, World};

/// How long to wait for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// After which a rank that does not come is told of on stderr.
    pub(crate) warn: Duration,
    /// After which it fails the world, unless it has announced that it takes longer.
    pub(crate) budget: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { warn: Duration::from_secs(5), budget: Duration::from_secs(60) }
    }
}

/// Somebody who waits.
pub(crate) struct Waiter<'a> {
    pub(crate) world: &'a World,
    pub(crate) limits: Limits,
    /// Who.
    pub(crate) rank: usize,
    /// How often it had come before.
    pub(crate) times: u32,
    pub(crate) group: usize,
    pub(crate) members: &'a [usize],
    /// Which collective of the group, and which arrival.
    pub(crate) seq: u64,
    pub(crate) tick: u32,
    /// How often to look before falling asleep.
    pub(crate) spins: u32,
}

impl Waiter<'_> {
    /// Waits until `peer` has arrived.
    pub(crate) fn wait_for(&self, peer: usize) -> Result<()> {
        for _ in 0..self.spins {
            if self.has_arrived(peer) {
                return Ok(());
            }
            std::hint::spin_loop();
        }
        self.world.awaited(self.rank, self.group).store(u64::from(self.tick) | WAITS, Ordering::SeqCst);
        let result = self.sleep_for(peer);
        self.world.awaited(self.rank, self.group).store(0, Ordering::SeqCst);
        result
    }

    fn has_arrived(&self, peer: usize) -> bool {
        has_reached(self.world.arrived(peer, self.group).load(Ordering::Acquire), self.tick)
    }

    fn sleep_for(&self, peer: usize) -> Result<()> {
        let (began, mut clock) = (Instant::now(), Lived::default());
        let mut dying: Option<Instant> = None;
        let mut warned = false;
        let mut next_word_of_suspended = self.limits.warn;
        let mut next_look = CYCLE;
        loop {
            if self.has_arrived(peer) {
                return Ok(());
            }
            if let Some(error) = self.world.poisoned() {
                return Err(error);
            }
            let (state, stone) =
                (self.world.state_in(peer, self.times), self.world.tombstone(peer).load(Ordering::Acquire));
            match (self.world.end(peer), state, tombstone::decode(stone)) {
                // Its last arrival may have come before its end.
                _ if self.has_arrived(peer) => return Ok(()),
                ((End::Failed, words), ..) => return Err(self.died(peer, &words)),
                ((End::Clean, words), ..) => return Err(self.left(peer, &words)),
                (_, State::Absent | State::Present | State::Renewing, Stone::NotYet | Stone::Held(_)) => {}
                // It does not come any more. Whoever watches it will say how it ended, soon; who leaves without ending is
                // not waited for longer.
                (_, state, stone) => {
                    let since = *dying.get_or_insert_with(Instant::now);
                    if since.elapsed() >= AUTOPSY || stone != Stone::Dead && !self.is_watched() {
                        return Err(match state {
                            State::Left => self.left(peer, ""),
                            State::Panicked => self.died(peer, "it panicked"),
                            State::Absent | State::Present | State::Renewing => {
                                self.died(peer, "its process is gone")
                            }
                        });
                    }
                }
            }
            if tombstone::state(self.world.supervisor()) == Stone::Dead {
                return Err(Error::new(UNWATCHED, "the process that watches the ranks is gone")
                    .at("rank", self.rank)
                    .why("it was killed from outside: nobody would notice the death of a rank")
                    .hint("start the program again; `dmesg` says whether memory had run out"));
            }
            let waited = began.elapsed();
            if waited >= next_look {
                next_look = waited + CYCLE;
                if let Some(error) = self.deadlock() {
                    return Err(error);
                }
            }
            let seen = self.look(peer, &mut clock);
            if seen.lived >= self.limits.warn && !warned && !seen.suspended {
                warned = true;
                let line = self.lateness(peer, seen.lived);
                warn(&format!("{line}; the limit is {:?}", self.budget_of(peer)));
            }
            // Its time does not count, so that nothing else would ever end this silence.
            if seen.suspended && waited >= next_word_of_suspended {
                next_word_of_suspended = waited + SUSPENDED;
                let line = self.lateness(peer, waited);
                warn(&format!("{line}; it is waited for until it goes on or ends"));
            }
            if seen.lived >= self.budget_of(peer) && !seen.suspended {
                return Err(self.stuck(peer, seen.lived));
            }
            self.sleep(peer, stone, if dying.is_some() { AUTOPSY / 8 } else { SLICE });
        }
    }

    /// Whether a process watches the ranks from outside.
    fn is_watched(&self) -> bool {
        matches!(tombstone::state(self.world.supervisor()), Stone::Held(_))
    }

    /// Sleeps until the peer's arrival, state, end or death, or the end of the slice.
    fn sleep(&self, peer: usize, stone: u32, slice: Duration) {
        let arrived = self.world.arrived(peer, self.group);
        let seen = arrived.load(Ordering::Acquire);
        let sleepers = self.world.sleepers(peer, self.group);
        sleepers.fetch_add(1, Ordering::SeqCst);
        // Whoever arrives looks for sleepers after it has arrived, so that one of both sees the other.
        if !self.has_arrived(peer) && self.world.is_calm() {
            let state = self.world.state_word(peer);
            let end = self.world.end_word(peer);
            let supervisor = self.world.supervisor();
            let mut words = vec![
                (arrived, seen),
                (self.world.poison_word(), 0),
                (state, state.load(Ordering::Acquire)),
                (end, end.load(Ordering::Acquire)),
            ];
            if tombstone::decode(stone) != Stone::Dead {
                words.push((self.world.tombstone(peer), stone));
            }
            let watched = supervisor.load(Ordering::Acquire);
            if matches!(tombstone::decode(watched), Stone::Held(_)) {
                words.push((supervisor, watched));
            }
            if futex::waitv(&words, slice) == WokenAny::Unsupported {
                futex::wait(arrived, seen, slice.min(BLIND));
            }
        }
        sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    /// How long the peer could have done something about it.
    fn look(&self, peer: usize, clock: &mut Lived) -> Seen {
        let lived = clock.tick();
        // Asked rarely: it reads files.
        if lived < self.limits.warn.min(self.limits.budget).min(Duration::from_secs(1)) {
            return Seen { lived, suspended: false };
        }
        let pid = self.world.pid(peer);
        let evidence = (pid > 0).then(|| evidence(pid));
        let suspended = evidence.is_some_and(|seen| seen.is_traced() || seen.is_stopped());
        if suspended {
            *clock = Lived::default();
        }
        Seen { lived, suspended }
    }

    /// What the peer may take for what it is doing.
    fn budget_of(&self, peer: usize) -> Duration {
        match self.world.phase(peer) {
            Some((_, _, budget)) if budget > 0 => Duration::from_nanos(budget).max(self.limits.budget),
            _ => self.limits.budget,
        }
    }

    /// The error of ranks that do not agree on this collective: of those that have arrived.
    pub(crate) fn disagreement(&self) -> Error {
        let records: Vec<(usize, Record)> = self
            .members
            .iter()
            .filter(|&&peer| self.has_arrived(peer) || peer == self.rank)
            .filter_map(|&peer| Some((peer, self.world.record(peer, self.group, self.seq)?)))
            .collect();
        let error = Error::new(
            DISAGREE,
            format!("ranks disagree on collective #{} of {}", self.seq, group_name(self.group)),
        );
        let error = group_by_record(&records)
            .into_iter()
            .fold(error, |error, (ranks, record)| error.at(ranks, calls(&record)));
        let kinds = |record: &Record| record.agreed[0] & 0xff;
        let same_op = records.windows(2).all(|pair| kinds(&pair[0].1) == kinds(&pair[1].1));
        let before = match self.seq - 1 {
            0 => "it is their first".to_owned(),
            last => format!("#{last} was equal on all ranks"),
        };
        if same_op {
            error
                .why(format!("the same collective was called with other arguments ({before})"))
                .hint("give it the same length, type, reduction and root on every rank")
        } else {
            error
                .why(format!("a rank ran a collective that another skipped, or in another order ({before})"))
                .hint("call it on every rank, in the same order; or do what one rank alone does inside `on_rank_zero`")
        }
    }

    fn left(&self, peer: usize, words: &str) -> Error {
        let error = Error::new(LEFT, format!("rank {peer} has left, and others wait for it"));
        let error = self.with_places(error, peer);
        let error = if words.is_empty() { error } else { error.at("its process", words) };
        error
            .why(format!("rank {peer} finished without collective #{} of {}", self.seq, group_name(self.group)))
            .hint("let every rank come as far as the last collective: look for a `return` or a loop that ends earlier there")
    }

    fn died(&self, peer: usize, words: &str) -> Error {
        let error = Error::new(DIED, format!("rank {peer} died"));
        let (cause, last) = words.split_once('\n').unwrap_or((words, ""));
        let error = self.with_places(error, peer).at("cause", cause);
        let error = if last.is_empty() { error } else { error.at("its stderr", last) };
        error.hint("its own words, above or in its log, say why; then start again from the last checkpoint")
    }

    fn stuck(&self, peer: usize, waited: Duration) -> Error {
        let error = Error::new(STUCK, format!("rank {peer} does not come"));
        let error = self.with_places(error, peer).at("waited", format_args!("{waited:.1?}"));
        let error = match self.world.pid(peer) {
            0 => error.at("it is", "not there yet: it never joined the world"),
            pid => error.at("it is", evidence(pid)),
        };
        error.at("budget", format_args!("{:?}", self.budget_of(peer))).hint(
            "if it only takes long there, announce it with `rank.long_op(name, budget, ..)` on that rank",
        )
    }

    fn lateness(&self, peer: usize, waited: Duration) -> String {
        let mut line = format!("rank {} waits for rank {peer} for {waited:.1?}", self.rank);
        if let Some(own) = self.world.record(self.rank, self.group, self.seq) {
            let _ = write!(line, " in {}", calls(&own));
        }
        if let Some((site, since, _)) = self.world.phase(peer) {
            let since = Duration::from_nanos(now().saturating_sub(since));
            let _ = write!(line, "; it is in {} for {since:.1?}", words(&site));
        }
        match self.world.pid(peer) {
            0 => line += "; it never joined the world",
            pid => {
                let _ = write!(line, "; it is {}", evidence(pid));
            }
        }
        line
    }

    /// Who waits where, and where the peer was last.
    fn with_places(&self, error: Error, peer: usize) -> Error {
        let waiting: Vec<(usize, Record)> = self
            .members
            .iter()
            .filter(|&&rank| rank != peer && (rank == self.rank || self.has_arrived(rank)))
            .filter_map(|&rank| Some((rank, self.world.record(rank, self.group, self.seq)?)))
            .collect();
        let error = group_by_record(&waiting)
            .into_iter()
            .fold(error, |error, (ranks, record)| error.at(format!("{ranks} in"), calls(&record)));
        let error = match self.world.last_record(peer, self.group) {
            Some(last) => {
                error.at(format!("rank {peer} last in"), format_args!("#{} {}", last.seq, calls(&last)))
            }
            None => error.at(format!("rank {peer} last in"), "no collective yet"),
        };
        match self.world.phase(peer) {
            Some((site, ..)) => error.at(format!("rank {peer} since"), words(&site)),
            None => error,
        }
    }

    /// The error of ranks that can only wait for each other, if they do.
    fn deadlock(&self) -> Option<Error> {
        let circle = self.blocked()?;
        // Looked at twice: who is blocked for good still is.
        std::thread::sleep(Duration::from_millis(2));
        if self.blocked()? != circle {
            return None;
        }
        let error = Error::new(DEADLOCK, "ranks wait for each other, each in another group");
        let error = circle.iter().fold(error, |error, edge| {
            let last = self.world.last_record(edge.rank, edge.group);
            let call = last.map_or_else(String::new, |record| calls(&record));
            let awaits: Vec<String> = edge.awaits.iter().map(usize::to_string).collect();
            error.at(
                format!("rank {}", edge.rank),
                format_args!("{call} in {}, waits for rank {}", group_name(edge.group), awaits.join(", ")),
            )
        });
        Some(
            error
                .why("groups were used in another order on some ranks")
                .hint("use groups in the same order on every rank that is in several of them"),
        )
    }

    /// All ranks that nobody can wake, and what they wait for; nothing if this one may be woken.
    fn blocked(&self) -> Option<Vec<Edge>> {
        let edges: Vec<Option<Edge>> = (0..self.world.size()).map(|rank| self.edge(rank)).collect();
        let mut blocked: Vec<bool> = edges.iter().map(Option::is_some).collect();
        // Whoever waits for a rank that is not blocked may be woken.
        loop {
            let freed = (0..edges.len()).find(|&rank| {
                blocked[rank]
                    && edges[rank].as_ref().is_some_and(|edge| edge.awaits.iter().all(|&peer| !blocked[peer]))
            });
            match freed {
                Some(rank) => blocked[rank] = false,
                None => break,
            }
        }
        blocked[self.rank].then(|| {
            edges.into_iter().zip(&blocked).filter_map(|(edge, blocked)| edge.filter(|_| *blocked)).collect()
        })
    }

    fn edge(&self, rank: usize) -> Option<Edge> {
        (0..crate::world::MOST_GROUPS).find_map(|group| {
            let awaited = self.world.awaited(rank, group).load(Ordering::SeqCst);
            if awaited == 0 {
                return None;
            }
            let tick = awaited as u32;
            let awaits = self.world.members(group).into_iter().filter(|&peer| {
                peer != rank && !has_reached(self.world.arrived(peer, group).load(Ordering::SeqCst), tick)
            });
            Some(Edge { rank, group, tick, awaits: awaits.collect() })
        })
    }
}

struct Seen {
    lived: Duration,
    /// It is stopped, or somebody is at it with a debugger.
    suspended: bool,
}

#[derive(PartialEq)]
struct Edge {
    rank: usize,
    group: usize,
    tick: u32,
    awaits: Vec<usize>,
}

/// Whether an arrival has been made, over the wrap-around of its number.
pub(crate) fn has_reached(arrived: u32, tick: u32) -> bool {
    arrived.wrapping_sub(tick) < u32::MAX / 2
}

/// `ranks 1-3` and their common record, most first.
fn group_by_record(records: &[(usize, Record)]) -> Vec<(String, Record)> {
    let mut groups: Vec<(Vec<usize>, &Record)> = Vec::new();
    for (rank, record) in records {
        match groups.iter_mut().find(|(_, other)| *other == record) {
            Some((ranks, _)) => ranks.push(*rank),
            None => groups.push((vec![*rank], record)),
        }
    }
    groups.into_iter().map(|(ranks, record)| (ranks_in_words(&ranks), record.clone())).collect()
}

/// `rank 0`, `ranks 1-3, 7`.
fn ranks_in_words(ranks: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &rank in ranks {
        match runs.last_mut() {
            Some((_, end)) if *end + 1 == rank => *end = rank,
            _ => runs.push((rank, rank)),
        }
    }
    let runs = runs.iter().map(|(start, end)| match start == end {
        true => start.to_string(),
        false => format!("{start}-{end}"),
    });
    format!("{} {}", if ranks.len() == 1 { "rank" } else { "ranks" }, runs.collect::<Vec<_>>().join(", "))
}

fn group_name(group: usize) -> String {
    if group == 0 { "the world".to_owned() } else { format!("group {group}") }
}

/// A call and its place.
fn calls(record: &Record) -> String {
    format!("{record} at {}", record.site.place)
}

/// A line on stderr, in one write: other ranks write there too.
fn warn(line: &str) {
    let _ = std::io::stderr().write_all(format!("leyden: warning: {line}\n").as_bytes());
}

fn words(site: &Site) -> String {
    if site.label.is_empty() { site.place.clone() } else { format!("`{}` at {}", site.label, site.place) }
}

/// The clock that all processes of a host share, in ns.
pub(crate) fn now() -> u64 {
    leyden_process::futex::now().as_nanos() as u64
}

const WAITS: u64 = 1 << 32;
/// How long a sleep lasts before a rank looks around by itself.
const SLICE: Duration = Duration::from_millis(50);
/// The same where the kernel cannot wake for several reasons.
const BLIND: Duration = Duration::from_millis(2);
/// How often it is said that a rank is stopped, or held by a debugger.
const SUSPENDED: Duration = Duration::from_secs(60);
/// How long to wait for the word of how a rank died.
const AUTOPSY: Duration = Duration::from_millis(60);
/// When ranks that wait for each other are looked for, and how often.
const CYCLE: Duration = Duration::from_millis(500);
