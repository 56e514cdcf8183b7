//! Waiting for other ranks, and what ends a wait that nobody will end: each by an error that names ranks and places.
//!
//! Three kinds. What is *certain* fails at once: ranks that call different collectives, one that has left, one that has
//! died. Ranks that all wait for each other are looked at after half a second, twice. A rank that lives and does not
//! come is told of after 5 s and every 30 s, with what the kernel knows of it, and fails the world once the budget of what
//! it is doing is over.
//!
//! Whoever waits, waits for all that are late: it sleeps for the first one's arrival, and until anything else happens to any
//! of them. That all others have arrived, but with another collective, it need not look for: of two ranks the later one sees
//! the other's.

use std::fmt::Write as _;
use std::io::Write as _;
use std::iter;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use leyden_process::clock::Lived;
use leyden_process::futex::{self, WAITV_WORDS, WokenAny};
use leyden_process::tombstone::{self, State as Stone};
use leyden_process::{Error, Result};

use crate::autopsy::Peers;
use crate::codes::{DEADLOCK, DIED, DISAGREE, LEFT, PLACES_DIFFER, STUCK, UNWATCHED};
use crate::handshake::{self, has_reached};
use crate::record::{Record, Site, without_place};
use crate::transport::{Look, Word};
use crate::world::{End, State, World};

/// How long to wait for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// After which a rank that does not come is told of on stderr.
    pub(crate) warn: Duration,
    /// How often it is told of again.
    pub(crate) again: Duration,
    /// After which it fails the world, unless it has announced that it takes longer.
    pub(crate) budget: Duration,
}

impl Limits {
    /// A late rank is told of again after six times as long as before the first time.
    pub(crate) fn new(warn: Duration, budget: Duration) -> Self {
        Self { warn, again: warn.saturating_mul(6), budget }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::new(Duration::from_secs(5), Duration::from_secs(60))
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
    /// What the others are to have agreed to, unless that was looked at.
    pub(crate) agreed: Option<[u64; 2]>,
    /// How often to look before falling asleep.
    pub(crate) spins: u32,
    /// The processes whose ends it can tell of.
    pub(crate) peers: &'a Peers,
}

/// A wait that is no longer short.
struct Wait {
    began: Instant,
    /// At least one, while it lasts.
    late: Vec<Late>,
    next_cycle: Duration,
    slice: Duration,
}

/// One that has not arrived.
struct Late {
    rank: usize,
    /// How long it could have done something about it.
    clock: Lived,
    /// When to look at its process, and when to tell of it.
    look: Duration,
    word: Duration,
    /// Since when it is known not to come any more.
    dying: Option<Instant>,
    /// It is stopped, or somebody is at it with a debugger; and that was told.
    suspended: bool,
}

impl Waiter<'_> {
    /// Waits until all members have arrived, and have agreed to the same.
    pub(crate) fn wait_for_all(&self) -> Result<()> {
        let mut others = self.members.iter().copied().filter(|&peer| peer != self.rank);
        while let Some(peer) = others.next() {
            if !self.spin(peer) {
                let awaited = self.world.awaited(self.rank, self.group);
                awaited.store(u64::from(self.tick) | WAITS, Ordering::SeqCst);
                let result = self.sleep_for_all(iter::once(peer).chain(others).collect());
                awaited.store(0, Ordering::SeqCst);
                self.world.transport().tell(self.world, self.rank, Word::Awaits(self.group, 0));
                return result;
            }
            if !self.agrees(peer) {
                return Err(self.disagreement());
            }
        }
        Ok(())
    }

    fn spin(&self, peer: usize) -> bool {
        for _ in 0..self.spins {
            if self.has_arrived(peer) {
                return true;
            }
            std::hint::spin_loop();
        }
        self.has_arrived(peer)
    }

    fn has_arrived(&self, peer: usize) -> bool {
        has_reached(self.world.arrived(peer, self.group).load(Ordering::Acquire), self.tick)
    }

    /// Of one that has arrived.
    fn agrees(&self, peer: usize) -> bool {
        self.agreed.is_none_or(|agreed| self.world.agreed(peer, self.group, self.seq) == agreed)
    }

    fn sleep_for_all(&self, peers: Vec<usize>) -> Result<()> {
        let mut wait = Wait {
            began: Instant::now(),
            late: peers.into_iter().map(|rank| self.late(rank)).collect(),
            next_cycle: CYCLE,
            slice: NAP,
        };
        let sleep = |wait: &mut Wait, alarm| {
            let dying = wait.late.iter().any(|late| late.dying.is_some());
            self.sleep(&wait.late, alarm, if dying { AUTOPSY / 8 } else { wait.slice });
            wait.slice = SLICE;
        };
        handshake::watch(self.world.alarm(), &mut wait, |wait| self.look_around(wait).transpose(), sleep)
    }

    /// Whether all have come; an error if that will not be.
    fn look_around(&self, wait: &mut Wait) -> Result<Option<()>> {
        let mut agree = true;
        wait.late.retain(|late| {
            let here = self.has_arrived(late.rank);
            agree &= !here || self.agrees(late.rank);
            !here
        });
        if !agree {
            return Err(self.disagreement());
        }
        if wait.late.is_empty() {
            return Ok(Some(()));
        }
        let waited = wait.began.elapsed();
        let failed = self
            .world
            .poisoned()
            .or_else(|| wait.late.iter_mut().find_map(|late| self.end_of(late)))
            .or_else(|| self.unwatched())
            .or_else(|| {
                let due = waited >= wait.next_cycle;
                wait.next_cycle = if due { waited + CYCLE } else { wait.next_cycle };
                due.then(|| {
                    let awaits = Word::Awaits(self.group, u64::from(self.tick) | WAITS);
                    self.world.transport().tell(self.world, self.rank, awaits);
                    self.deadlock()
                })
                .flatten()
            })
            .or_else(|| wait.late.iter_mut().take(LOOKED_AT).find_map(|late| self.judge(late, waited)));
        failed.map_or(Ok(None), Err)
    }

    /// The error of ranks whose supervisor is gone.
    fn unwatched(&self) -> Option<Error> {
        (tombstone::state(self.world.supervisor()) == Stone::Dead).then(|| {
            Error::new(UNWATCHED, "the process that watches the ranks is gone")
                .at("rank", self.rank)
                .why("it was killed from outside: nobody would notice the death of a rank")
                .hint("start the program again; `dmesg` says whether memory had run out")
        })
    }

    fn late(&self, rank: usize) -> Late {
        let (look, word) = (self.look_every(), self.limits.warn);
        Late { rank, clock: Lived::default(), look, word, dying: None, suspended: false }
    }

    /// The error of one that does not come any more.
    fn end_of(&self, late: &mut Late) -> Option<Error> {
        let peer = late.rank;
        let state = self.world.state_in(peer, self.times);
        let stone = tombstone::state(self.world.tombstone(peer));
        let ended = match (self.world.end(peer), state, stone) {
            ((End::Failed, words), ..) => self.died(peer, &words),
            ((End::Clean, words), ..) => self.left(peer, &words),
            (_, State::Absent | State::Present | State::Renewing, Stone::NotYet | Stone::Held(_)) => {
                return None;
            }
            // Whoever watches it will say how it ended, soon; who leaves without ending is not waited for longer.
            (_, state, stone) => {
                let unattended = self.world.is_unattended();
                if late.dying.is_none() && stone == Stone::Dead {
                    // The kernel wakes one of those who sleep for it.
                    self.world.raise();
                }
                let since = *late.dying.get_or_insert_with(Instant::now);
                if unattended && stone == Stone::Dead && self.peers.tell(self.world, peer) {
                    return self.end_of(late);
                }
                if since.elapsed() < AUTOPSY && (stone == Stone::Dead || self.is_told_of_ends()) {
                    return None;
                }
                match state {
                    State::Left => self.left(peer, ""),
                    State::Panicked => self.died(peer, "it panicked"),
                    State::Absent | State::Present | State::Renewing if unattended => {
                        self.died(peer, "its process is gone; how it ended is not known")
                    }
                    State::Absent | State::Present | State::Renewing => {
                        self.died(peer, "its process is gone")
                    }
                }
            }
        };
        // Its last arrival may have come before its end.
        (!self.has_arrived(peer)).then_some(ended)
    }

    /// Whether somebody says how a rank's process has ended: one that watches the ranks from outside, or a connection.
    fn is_told_of_ends(&self) -> bool {
        matches!(tombstone::state(self.world.supervisor()), Stone::Held(_))
            || !self.world.transport().shares_memory()
    }

    /// Sleeps until the first one's arrival, the alarm, a death, or the end of the slice.
    fn sleep(&self, late: &[Late], alarm: u32, slice: Duration) {
        let first = late[0].rank;
        let arrived = self.world.arrived(first, self.group);
        let sleepers = self.world.sleepers(first, self.group);
        handshake::doze((arrived, sleepers), self.tick, (self.world.alarm(), alarm), |value| {
            let mut words = vec![(arrived, value), (self.world.alarm(), alarm)];
            // Most sleeps are short, and need not look that far.
            if slice != NAP {
                let is_dead = |rank| tombstone::state(self.world.tombstone(rank)) == Stone::Dead;
                if late.iter().any(|late| late.dying.is_none() && is_dead(late.rank)) {
                    return;
                }
                // Where there are too many, others sleep for the rest, and tell all.
                let ranks = late.iter().map(|late| late.rank).cycle().skip(self.rank % late.len());
                let stones = ranks.take(late.len()).map(|rank| self.world.tombstone(rank));
                let held = iter::once(self.world.supervisor()).chain(stones).filter_map(|stone| {
                    let seen = stone.load(Ordering::Acquire);
                    matches!(tombstone::decode(seen), Stone::Held(_)).then_some((stone, seen))
                });
                words.extend(held.take(WAITV_WORDS - 2));
            }
            if futex::waitv(&words, slice) == WokenAny::Unsupported {
                futex::wait(arrived, value, slice.min(BLIND));
            }
        });
    }

    /// The error of one that lives and has used up its budget; before that, a word about it.
    fn judge(&self, late: &mut Late, waited: Duration) -> Option<Error> {
        let lived = late.clock.tick();
        let budget = self.budget_of(late.rank);
        // Seldom: it reads files.
        if lived < late.look.min(late.word).min(budget) {
            return None;
        }
        let seen = self.world.transport().look(self.world, late.rank);
        if seen.as_ref().is_some_and(|seen| seen.suspended) {
            if !late.suspended && waited >= self.limits.warn && self.speaks() {
                late.suspended = true;
                tell(&format!(
                    "{}; meanwhile its limit stands still",
                    self.lateness(late.rank, waited, seen)
                ));
            }
            *late = Late { dying: late.dying, suspended: late.suspended, ..self.late(late.rank) };
            return None;
        }
        late.suspended = false;
        late.look = lived + self.look_every();
        if lived >= budget {
            return Some(self.stuck(late.rank, lived, seen));
        }
        if lived >= late.word {
            late.word = lived + self.limits.again;
            if self.speaks() {
                let left = budget - lived;
                tell(&format!(
                    "{}; the limit is {budget:?}, of which {left:.1?} are left",
                    self.lateness(late.rank, lived, seen)
                ));
            }
        }
        None
    }

    /// One of those who wait says who is late: the first.
    fn speaks(&self) -> bool {
        let first = self.members.iter().find(|&&member| member == self.rank || self.has_arrived(member));
        first == Some(&self.rank)
    }

    /// How often to look at the process of one that is late.
    fn look_every(&self) -> Duration {
        self.limits.warn.min(self.limits.budget).min(Duration::from_secs(1))
    }

    /// What the peer may take for what it is doing.
    fn budget_of(&self, peer: usize) -> Duration {
        match self.world.phase(peer) {
            Some((_, _, budget)) if budget > 0 => Duration::from_nanos(budget).max(self.limits.budget),
            _ => self.limits.budget,
        }
    }

    /// Gives those who come at the same time a moment, so that the odd one of many stands out.
    fn await_the_rest(&self) {
        const TOGETHER: Duration = Duration::from_millis(3);
        let began = Instant::now();
        while began.elapsed() < TOGETHER
            && self.world.is_calm()
            && !self.members.iter().all(|&peer| self.has_arrived(peer))
        {
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// The error of ranks that do not agree on this collective: of those that have arrived.
    fn disagreement(&self) -> Error {
        self.await_the_rest();
        let records: Vec<(usize, Record)> = self
            .members
            .iter()
            .filter(|&&peer| self.has_arrived(peer) || peer == self.rank)
            .filter_map(|&peer| Some((peer, self.world.record(peer, self.group, self.seq)?)))
            .collect();
        let same =
            |of: fn(&Record) -> [u64; 2]| records.windows(2).all(|pair| of(&pair[0].1) == of(&pair[1].1));
        let only_places = self.world.is_detailed()
            && same(|record| without_place(record.agreed))
            && !same(|record| record.agreed);
        let number = format!("collective #{} of {}", self.seq, group_name(self.group));
        let error = match only_places {
            true => Error::new(PLACES_DIFFER, format!("ranks call {number} from different places")),
            false => Error::new(DISAGREE, format!("ranks disagree on {number}")),
        };
        let error = group_by_record(&records)
            .into_iter()
            .fold(error, |error, (ranks, record)| error.at(ranks, calls(&record)));
        if only_places {
            return error
                .why("`LEYDEN_DEBUG=detail` compares call sites too; all else is the same on all ranks")
                .hint("is a branch taken on some ranks alone? If it is meant, leave `detail` out");
        }
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

    fn stuck(&self, peer: usize, waited: Duration, seen: Option<Look>) -> Error {
        let error = Error::new(STUCK, format!("rank {peer} does not come"));
        let error = self.with_places(error, peer).at("waited", format_args!("{waited:.1?}"));
        let error = match seen {
            None => error.at("it is", "not there yet: it never joined the world"),
            Some(seen) => error.at("it is", seen.words),
        };
        error.at("budget", format_args!("{:?}", self.budget_of(peer))).hint(
            "if it only takes long there, announce it with `rank.long_op(name, budget, ..)` on that rank",
        )
    }

    fn lateness(&self, peer: usize, waited: Duration, seen: Option<Look>) -> String {
        let mut line = format!("rank {} waits for rank {peer} for {waited:.1?}", self.rank);
        if let Some(own) = self.world.record(self.rank, self.group, self.seq) {
            let _ = write!(line, " in {}", calls(&own));
        }
        if let Some((site, since, _)) = self.world.phase(peer) {
            let since = Duration::from_nanos(now().saturating_sub(since));
            let _ = write!(line, "; it is in {} for {since:.1?}", words(&site));
        }
        match seen {
            None => line += "; it never joined the world",
            Some(seen) => {
                let _ = write!(line, "; it is {}", seen.words.replace('\n', ", "));
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

#[derive(PartialEq)]
struct Edge {
    rank: usize,
    group: usize,
    tick: u32,
    awaits: Vec<usize>,
}

fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "leyden: warning: {line}");
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

fn words(site: &Site) -> String {
    if site.label.is_empty() { site.place.clone() } else { format!("`{}` at {}", site.label, site.place) }
}

/// The clock that all processes of a host share, in ns.
pub(crate) fn now() -> u64 {
    leyden_process::futex::now().as_nanos() as u64
}

/// The same, a tick late at the most: for what is told and not measured.
pub(crate) fn lately() -> u64 {
    leyden_process::futex::lately().as_nanos() as u64
}

const WAITS: u64 = 1 << 32;
/// The first sleep of each wait.
const NAP: Duration = Duration::from_millis(1);
/// How long a later one lasts before a rank looks around by itself.
const SLICE: Duration = Duration::from_millis(50);
/// The same where the kernel cannot wake for several reasons.
const BLIND: Duration = Duration::from_millis(2);
/// How long to wait for the word of how a rank died.
const AUTOPSY: Duration = Duration::from_millis(60);
/// How many of those that are late are looked at by their files in `/proc`.
const LOOKED_AT: usize = 16;
/// When ranks that wait for each other are looked for, and how often.
const CYCLE: Duration = Duration::from_millis(500);
