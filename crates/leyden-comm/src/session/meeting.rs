//! What rank 0 decides: who is let in, when all are there, and what the others are told afterwards. No sockets, no clock
//! and no threads: [events](Event) with their times go in, [acts](Act) come out. What one rank's event costs does not grow
//! with the number of ranks, except for what is told to all.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use leyden_process::{Error, Result};
use serde::{Deserialize, Serialize};

use super::Member;
use crate::codes::{
    SESSION_CLOSED, SESSION_DUPLICATE, SESSION_MISSING, SESSION_OTHER_BUILD, SESSION_OTHER_RUN, SESSION_SIZE,
};

/// A connection's number. They are small, and used again once a connection is closed.
pub(crate) type Connection = usize;

/// Since whatever beginning; it never goes back.
pub(crate) type Time = Duration;

/// What a rank says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) rank: usize,
    pub(crate) size: usize,
    pub(crate) member: Member,
    pub(crate) manifest: Manifest,
}

/// What must be the same on all ranks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// The launcher's name of the run; empty if it gives none.
    pub(crate) run: String,
    /// What tells one build of the program from another, on all hosts.
    pub(crate) build: String,
    /// Leyden's version.
    pub(crate) version: String,
    /// A hash of the program's configuration; 0 if it says none.
    pub(crate) configuration: u64,
}

impl Manifest {
    /// What differs, as one says it and the other.
    fn differences(&self, other: &Self) -> (String, String) {
        let hash = |manifest: &Self| format!("{:016x}", manifest.configuration);
        let rows = [
            ("Leyden", self.version.clone(), other.version.clone()),
            ("build", self.build.clone(), other.build.clone()),
            ("configuration", hash(self), hash(other)),
        ];
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for (what, one, another) in rows.into_iter().filter(|(_, one, another)| one != another) {
            ours.push(format!("{what} {one}"));
            theirs.push(format!("{what} {another}"));
        }
        (ours.join(", "), theirs.join(", "))
    }
}

/// What is to be kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// When all must have come.
    pub(crate) join: Time,
    /// For how long a rank may be silent before the others are told.
    pub(crate) lease: Duration,
}

/// What happens on a connection.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Hello(Hello),
    /// It lives, and is so far.
    Beat(u64),
    /// It says that the run has failed.
    Fails(Error),
    /// It leaves in order; its connection will be closed.
    Leaves,
    /// It is closed, for this reason.
    Closed(String),
}

/// What is to be done.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// It is let in, and waits for the others for this long at most.
    Accept(Connection, Duration),
    /// It is told why not, and closed. Its number is free.
    Refuse(Connection, Error),
    /// All are there: each is told who they are, in the order of their ranks.
    Open(Arc<[Member]>),
    /// All who are let in are told, but the rank that it is about.
    Tell(Notice),
}

/// What all are told.
#[derive(Clone, Debug)]
pub(crate) enum Notice {
    /// The run has failed; by whom it was said, if a rank said it.
    Failed {
        by: Option<usize>,
        error: Error,
    },
    Ended {
        rank: usize,
        clean: bool,
        words: String,
    },
    Silent {
        rank: usize,
        silent: bool,
    },
}

/// See the module.
pub(crate) struct Meeting {
    size: usize,
    /// Rank 0, which may come later than others.
    zero: Member,
    manifest: Manifest,
    limits: Limits,
    phase: Phase,
    ranks: Vec<Place>,
    /// Which rank speaks on a connection.
    speakers: Vec<Option<usize>>,
    /// How many are let in and have not gone.
    present: usize,
    /// When to look whether a rank has beaten since: one entry for each that is present and not silent, soonest first.
    leases: BinaryHeap<Reverse<(Time, usize)>>,
    /// What may explain that somebody is missing: strangers that were cut off, limits that were met.
    remarks: Vec<String>,
}

enum Phase {
    Gathering,
    Open,
    Failed(Error),
}

#[derive(Default)]
struct Place {
    who: Option<Member>,
    connection: Option<Connection>,
    beat: Time,
    silent: bool,
    progress: u64,
}

impl Meeting {
    /// Of as many ranks as rank 0 says, of its program.
    pub(crate) fn new(zero: Hello, limits: Limits) -> Self {
        let Hello { size, member, manifest, .. } = zero;
        let ranks = std::iter::repeat_with(Place::default).take(size).collect();
        Self {
            size,
            zero: member,
            manifest,
            limits,
            phase: Phase::Gathering,
            ranks,
            speakers: Vec::new(),
            present: 0,
            leases: BinaryHeap::new(),
            remarks: Vec::new(),
        }
    }

    /// Something has happened.
    pub(crate) fn on(&mut self, connection: Connection, event: Event, now: Time, acts: &mut Vec<Act>) {
        if let Event::Hello(hello) = event {
            return self.hello(connection, hello, now, acts);
        }
        let Some(rank) = self.speakers.get(connection).copied().flatten() else { return };
        match event {
            Event::Hello(_) => {}
            Event::Beat(progress) => self.beat(rank, progress, now, acts),
            Event::Fails(error) if matches!(self.phase, Phase::Open) => {
                acts.push(Act::Tell(Notice::Failed { by: Some(rank), error }));
            }
            Event::Fails(_) => {}
            Event::Leaves => self.gone(rank, connection, None, now, acts),
            Event::Closed(words) => self.gone(rank, connection, Some(words), now, acts),
        }
    }

    /// Time has passed.
    pub(crate) fn tick(&mut self, now: Time, acts: &mut Vec<Act>) {
        if matches!(self.phase, Phase::Gathering) && now >= self.limits.join {
            let error = self.missing();
            self.fail(error, acts);
        }
        while let Some(&Reverse((when, rank))) = self.leases.peek()
            && when <= now
        {
            self.leases.pop();
            let place = &mut self.ranks[rank];
            let ends = place.beat + self.limits.lease;
            match place.connection {
                None => {}
                Some(_) if ends > now => self.leases.push(Reverse((ends, rank))),
                Some(_) => {
                    place.silent = true;
                    acts.push(Act::Tell(Notice::Silent { rank, silent: true }));
                }
            }
        }
    }

    /// When [`tick`](Self::tick) has something to do, if nothing happens before.
    pub(crate) fn next(&self) -> Option<Time> {
        match self.phase {
            Phase::Gathering => Some(self.limits.join),
            Phase::Open | Phase::Failed(_) => self.leases.peek().map(|Reverse((when, _))| *when),
        }
    }

    /// Something that may explain that somebody is missing.
    pub(crate) fn remark(&mut self, remark: String) {
        /// Enough for an error.
        const MOST: usize = 8;
        if self.remarks.len() < MOST && !self.remarks.contains(&remark) {
            self.remarks.push(remark);
        }
    }

    /// Who is let in, and has not gone.
    pub(crate) fn members(&self) -> impl Iterator<Item = (usize, Connection)> {
        self.ranks.iter().enumerate().filter_map(|(rank, place)| Some((rank, place.connection?)))
    }

    /// Who speaks on a connection.
    pub(crate) fn speaker(&self, connection: Connection) -> Option<usize> {
        self.speakers.get(connection).copied().flatten()
    }

    /// `rank 3 (host b, pid 77)`.
    pub(crate) fn name(&self, rank: usize) -> String {
        match self.ranks.get(rank).and_then(|place| place.who.as_ref()) {
            Some(who) => format!("rank {rank} ({who})"),
            None => format!("rank {rank}"),
        }
    }

    pub(crate) fn present(&self) -> usize {
        self.present
    }

    pub(crate) fn is_gathering(&self) -> bool {
        matches!(self.phase, Phase::Gathering)
    }

    /// What it failed of before all had come.
    pub(crate) fn failed(&self) -> Option<&Error> {
        match &self.phase {
            Phase::Failed(error) => Some(error),
            _ => None,
        }
    }

    fn hello(&mut self, connection: Connection, hello: Hello, now: Time, acts: &mut Vec<Act>) {
        if self.speaker(connection).is_some() {
            // A member repeats itself: it is no rank of ours.
            return self.on(connection, Event::Closed("it said hello twice".to_owned()), now, acts);
        }
        if let Some(error) = self.late(&hello) {
            return acts.push(Act::Refuse(connection, error));
        }
        if let Err(error) = self.fits(&hello) {
            // It will not come as it should: nobody need wait until the deadline to learn that.
            acts.push(Act::Refuse(connection, error.clone()));
            return self.fail(error, acts);
        }
        if self.speakers.len() <= connection {
            self.speakers.resize(connection + 1, None);
        }
        self.speakers[connection] = Some(hello.rank);
        self.ranks[hello.rank] =
            Place { who: Some(hello.member), connection: Some(connection), ..Place::default() };
        self.present += 1;
        acts.push(Act::Accept(connection, self.limits.join.saturating_sub(now)));
        if self.present == self.size {
            self.open(now, acts);
        }
    }

    /// Why this one comes to the wrong place, or at the wrong time: that concerns nobody else.
    fn late(&self, hello: &Hello) -> Option<Error> {
        if hello.manifest.run != self.manifest.run {
            return Some(other_run(&hello.manifest.run, &self.manifest.run).at("rank", hello.rank));
        }
        match &self.phase {
            Phase::Gathering => None,
            Phase::Open => {
                let place = self.ranks.get(hello.rank);
                let error = Error::new(SESSION_CLOSED, "the run is complete, and takes no more ranks")
                    .at("rank", hello.rank);
                let error = match place.and_then(|place| place.who.as_ref()) {
                    Some(who) => error.at("that rank is", who),
                    None => error,
                };
                Some(error.hint("end what is left of an earlier start, and start the run anew as a whole"))
            }
            // It is one of those that were awaited, and came in time.
            Phase::Failed(reason) if reason.code() != SESSION_MISSING => {
                Some(reason.clone().at_if_absent("rank", hello.rank))
            }
            Phase::Failed(reason) => {
                let code = SESSION_CLOSED;
                let error = Error::new(code, "this rank came when the run had failed already");
                let error = error.at("rank", hello.rank).why(format!("[{}] {reason}", reason.code()));
                let error = reason.places().fold(error, |error, (label, place)| error.at(label, place));
                Some(reason.hints().iter().fold(error, |error, hint| error.hint(hint)))
            }
        }
    }

    /// Whether it is one of the ranks that are awaited.
    fn fits(&self, hello: &Hello) -> Result<()> {
        let (rank, size) = (hello.rank, self.size);
        if hello.size != size || rank >= size {
            return Err(Error::new(SESSION_SIZE, "ranks disagree on how many they are")
                .at("rank 0", format!("{}: {size} ranks", self.zero))
                .at(format!("rank {rank}"), format!("{} says rank {rank} of {}", hello.member, hello.size))
                .hint("start all ranks with the same WORLD_SIZE, each with a RANK of its own below it"));
        }
        if hello.manifest != self.manifest {
            let (ours, theirs) = self.manifest.differences(&hello.manifest);
            return Err(Error::new(SESSION_OTHER_BUILD, "ranks are not of the same program")
                .at("rank 0", format!("{}: {ours}", self.zero))
                .at(format!("rank {rank}"), format!("{}: {theirs}", hello.member))
                .hint("copy one build to all hosts, or start it from a file system that they share"));
        }
        if let Place { who: Some(first), connection: Some(_), .. } = &self.ranks[rank] {
            return Err(Error::new(SESSION_DUPLICATE, format!("two processes are rank {rank}"))
                .at("one", first)
                .at("other", &hello.member)
                .at("ranks", size)
                .hint("give each process a RANK of its own; with `torchrun`, each host its own --node-rank")
                .hint("end what an earlier start has left running"));
        }
        Ok(())
    }

    /// All have come.
    fn open(&mut self, now: Time, acts: &mut Vec<Act>) {
        self.phase = Phase::Open;
        let first = now + self.limits.lease;
        let mut roster = Vec::with_capacity(self.size);
        for place in &mut self.ranks {
            place.beat = now;
            roster.extend(place.who.clone());
        }
        self.leases = (0..self.size).map(|rank| Reverse((first, rank))).collect();
        acts.push(Act::Open(roster.into()));
    }

    fn beat(&mut self, rank: usize, progress: u64, now: Time, acts: &mut Vec<Act>) {
        let place = &mut self.ranks[rank];
        place.beat = now;
        place.progress = progress;
        if std::mem::take(&mut place.silent) {
            self.leases.push(Reverse((now + self.limits.lease, rank)));
            acts.push(Act::Tell(Notice::Silent { rank, silent: false }));
        }
    }

    /// A rank is there no longer; in order if there are no words.
    fn gone(
        &mut self,
        rank: usize,
        connection: Connection,
        words: Option<String>,
        now: Time,
        acts: &mut Vec<Act>,
    ) {
        self.speakers[connection] = None;
        self.present -= 1;
        let name = self.name(rank);
        let place = &mut self.ranks[rank];
        place.connection = None;
        let clean = words.is_none();
        let mut words = words.unwrap_or_else(|| "it has left".to_owned());
        match self.phase {
            Phase::Open => {
                if !clean && place.silent {
                    let silent = now.saturating_sub(place.beat);
                    let _ = write!(words, "; it had not beaten for {silent:.1?}");
                }
                if !clean && place.progress > 0 {
                    let _ = write!(words, "; it had done {} collectives", place.progress);
                }
                acts.push(Act::Tell(Notice::Ended { rank, clean, words }));
            }
            Phase::Gathering => {
                let error = Error::new(SESSION_MISSING, format!("{name} has gone before all had come"))
                    .at("rank", rank)
                    .at("how", words)
                    .at("had come", format!("{} of {}", self.present + 1, self.size))
                    .hint("look at what that rank says: its own error is the cause");
                self.fail(error, acts);
            }
            Phase::Failed(_) => {}
        }
    }

    fn fail(&mut self, error: Error, acts: &mut Vec<Act>) {
        if self.is_gathering() {
            self.phase = Phase::Failed(error.clone());
            acts.push(Act::Tell(Notice::Failed { by: None, error }));
        }
    }

    fn missing(&self) -> Error {
        let absent = (0..self.size).filter(|&rank| self.ranks[rank].connection.is_none());
        let absent = ranges(absent);
        let error = Error::new(SESSION_MISSING, "not all ranks have come")
            .at("missing", format!("rank {absent}"))
            .at("had come", format!("{} of {}{}", self.present, self.size, self.by_host()))
            .at("waited", format!("{:.1?}", self.limits.join));
        let error = self.remarks.iter().fold(error, |error, remark| error.why(remark));
        error
            .hint("look at what those that are missing say, and whether the launcher has started them")
            .hint("slow hosts need longer: LEYDEN_JOIN_TIMEOUT, in seconds")
    }

    /// `: rank 0-3 on a; rank 8-11 on c`.
    fn by_host(&self) -> String {
        const SHOWN: usize = 16;
        let mut hosts: Vec<(&str, Vec<usize>)> = Vec::new();
        for (rank, place) in self.ranks.iter().enumerate() {
            if let Place { who: Some(who), connection: Some(_), .. } = place {
                // A host's ranks follow each other.
                match hosts.last_mut() {
                    Some((host, ranks)) if *host == who.host => ranks.push(rank),
                    _ => hosts.push((&who.host, vec![rank])),
                }
            }
        }
        let mut text = String::new();
        for (index, (host, ranks)) in hosts.iter().take(SHOWN).enumerate() {
            let separator = if index == 0 { ": " } else { "; " };
            let _ = write!(text, "{separator}rank {} on {host}", ranges(ranks.iter().copied()));
        }
        if hosts.len() > SHOWN {
            let _ = write!(text, "; and on {} more hosts", hosts.len() - SHOWN);
        }
        text
    }
}

/// The error of one that has come to another run.
pub(crate) fn other_run(theirs: &str, ours: &str) -> Error {
    let name = |run: &str| if run.is_empty() { "none".to_owned() } else { format!("`{run}`") };
    Error::new(SESSION_OTHER_RUN, "what answers at the master's address belongs to another run")
        .at("this rank's run", name(theirs))
        .at("the other run", name(ours))
        .why("an earlier run still has that port, or two runs were given the same one")
        .hint("end the earlier run, or give each run a MASTER_PORT of its own")
}

/// `1, 3-7`: of very many the first.
fn ranges(ranks: impl Iterator<Item = usize>) -> String {
    const SHOWN: usize = 32;
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for rank in ranks {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == rank => *last = rank,
            _ => runs.push((rank, rank)),
        }
    }
    let shown: Vec<String> = runs
        .iter()
        .take(SHOWN)
        .map(|&(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") })
        .collect();
    let more = runs.len().saturating_sub(SHOWN);
    if more > 0 { format!("{} and more", shown.join(", ")) } else { shown.join(", ") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::session::Member;

    const JOIN: Time = Duration::from_secs(60);
    const LEASE: Duration = Duration::from_secs(3);

    fn manifest() -> Manifest {
        Manifest {
            run: "42.0".to_owned(),
            build: "cafe".to_owned(),
            version: "0.1.0".to_owned(),
            configuration: 0,
        }
    }

    fn meeting(size: usize) -> Meeting {
        Meeting::new(hello(0, size), Limits { join: JOIN, lease: LEASE })
    }

    fn hello(rank: usize, size: usize) -> Hello {
        let address = ([10, 0, 0, rank as u8], 1000 + rank as u16).into();
        let member = Member { address, host: format!("host{}", rank / 2), pid: 100 + rank as u32 };
        Hello { rank, size, member, manifest: manifest() }
    }

    fn on(meeting: &mut Meeting, connection: Connection, event: Event, at: u64) -> Vec<Act> {
        let mut acts = Vec::new();
        meeting.on(connection, event, Duration::from_millis(at), &mut acts);
        acts
    }

    fn tick(meeting: &mut Meeting, at: u64) -> Vec<Act> {
        let mut acts = Vec::new();
        meeting.tick(Duration::from_millis(at), &mut acts);
        acts
    }

    /// All of `size` ranks come, rank 3 on connection 3.
    fn open(size: usize) -> Meeting {
        let mut meeting = meeting(size);
        for rank in 0..size {
            let acts = on(&mut meeting, rank, Event::Hello(hello(rank, size)), 0);
            assert!(matches!(acts[0], Act::Accept(connection, JOIN) if connection == rank));
            assert_eq!(acts.len(), if rank + 1 == size { 2 } else { 1 });
        }
        meeting
    }

    fn failure(acts: &[Act]) -> &Error {
        match acts.last() {
            Some(Act::Tell(Notice::Failed { error, .. })) => error,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn when_all_have_come_in_whatever_order_each_gets_the_roster_in_theirs() {
        let mut meeting = meeting(3);
        assert!(matches!(on(&mut meeting, 7, Event::Hello(hello(2, 3)), 0)[..], [Act::Accept(7, JOIN)]));
        on(&mut meeting, 1, Event::Hello(hello(0, 3)), 1000);
        let acts = on(&mut meeting, 4, Event::Hello(hello(1, 3)), 2000);
        let [Act::Accept(4, left), Act::Open(roster)] = &acts[..] else { panic!("{acts:?}") };
        assert_eq!(*left, Duration::from_secs(58));
        let pids: Vec<u32> = roster.iter().map(|member| member.pid).collect();
        assert_eq!(pids, [100, 101, 102]);
        assert!(tick(&mut meeting, 4000).is_empty(), "the deadline of joining is over");
    }

    #[test]
    fn who_is_missing_at_the_deadline_is_listed_with_who_has_come_and_late_ones_are_told() {
        let mut meeting = meeting(8);
        for rank in [0, 1, 2, 5] {
            on(&mut meeting, rank, Event::Hello(hello(rank, 8)), 0);
        }
        meeting.remark("10.0.0.9 had another token".to_owned());
        assert_eq!(meeting.next(), Some(JOIN));
        assert!(tick(&mut meeting, 59_999).is_empty());
        let acts = tick(&mut meeting, 60_000);
        let error = failure(&acts);
        assert_eq!(error.place("missing"), Some("rank 3-4, 6-7"));
        let came = "4 of 8: rank 0-1 on host0; rank 2 on host1; rank 5 on host2";
        assert_eq!(
            (error.place("had come"), error.reasons()),
            (Some(came), &["10.0.0.9 had another token".to_owned()][..])
        );
        let late = on(&mut meeting, 9, Event::Hello(hello(3, 8)), 61_000);
        let [Act::Refuse(9, error)] = &late[..] else { panic!("{late:?}") };
        assert!(error.code() == SESSION_CLOSED && error.place("missing").is_some(), "{error:?}");
        assert!(tick(&mut meeting, 70_000).is_empty(), "it fails once");
    }

    #[test]
    fn ranks_that_do_not_fit_fail_the_meeting_for_all_with_what_each_says() {
        let wrong = |change: fn(&mut Hello)| {
            let mut meeting = meeting(4);
            on(&mut meeting, 0, Event::Hello(hello(0, 4)), 0);
            on(&mut meeting, 1, Event::Hello(hello(1, 4)), 0);
            let mut hello = hello(3, 4);
            change(&mut hello);
            let acts = on(&mut meeting, 2, Event::Hello(hello), 0);
            assert!(
                matches!(&acts[..], [Act::Refuse(2, _), Act::Tell(Notice::Failed { by: None, .. })]),
                "{acts:?}"
            );
            format!("{:?}", failure(&acts))
        };
        let size = wrong(|hello| hello.size = 8);
        assert!(size.contains("D0222") && size.contains("host0, pid 100, at 10.0.0.0: 4 ranks"), "{size}");
        assert!(size.contains("host1, pid 103, at 10.0.0.3 says rank 3 of 8"), "{size}");
        assert!(wrong(|hello| hello.rank = 4).contains("says rank 4 of 4"));
        let twice = wrong(|hello| hello.rank = 1);
        assert!(twice.contains("D0224") && twice.contains("pid 101") && twice.contains("pid 103"), "{twice}");
        let build = wrong(|hello| hello.manifest.build = "beef".to_owned());
        assert!(
            build.contains("D0225") && build.contains("build cafe") && build.contains("build beef"),
            "{build}"
        );
        assert!(!build.contains("configuration"), "{build}");
        let other = wrong(|hello| hello.manifest.configuration = 0xabc);
        assert!(other.contains("configuration 0000000000000abc"), "{other}");
    }

    #[test]
    fn one_of_another_run_is_refused_and_disturbs_nobody() {
        let mut meeting = meeting(2);
        on(&mut meeting, 0, Event::Hello(hello(0, 2)), 0);
        let mut stray = hello(1, 2);
        stray.manifest.run = "41.0".to_owned();
        let acts = on(&mut meeting, 1, Event::Hello(stray), 0);
        let [Act::Refuse(1, error)] = &acts[..] else { panic!("{acts:?}") };
        assert!(error.code() == SESSION_OTHER_RUN && error.place("this rank's run") == Some("`41.0`"));
        // Its number is used again.
        assert_eq!(on(&mut meeting, 1, Event::Hello(hello(1, 2)), 0).len(), 2);
        let acts = on(&mut meeting, 2, Event::Hello(hello(1, 2)), 0);
        let [Act::Refuse(2, error)] = &acts[..] else { panic!("{acts:?}") };
        assert_eq!(error.place("that rank is"), Some("host0, pid 101, at 10.0.0.1"));
    }

    #[test]
    fn one_that_goes_before_all_have_come_fails_the_meeting_at_once() {
        let mut meeting = meeting(3);
        on(&mut meeting, 0, Event::Hello(hello(0, 3)), 0);
        on(&mut meeting, 1, Event::Hello(hello(2, 3)), 0);
        let acts = on(&mut meeting, 1, Event::Closed("reset by peer".to_owned()), 10);
        let error = failure(&acts);
        assert!(error.what().contains("rank 2 (host1, pid 102, at 10.0.0.2) has gone"), "{error:?}");
        assert_eq!(error.place("how"), Some("reset by peer"));
        assert_eq!(meeting.members().collect::<Vec<_>>(), [(0, 0)]);
    }

    #[test]
    fn an_end_is_told_once_and_says_whether_it_was_in_order() {
        let mut meeting = open(3);
        on(&mut meeting, 1, Event::Beat(17), 100);
        let acts = on(&mut meeting, 1, Event::Closed("reset by peer".to_owned()), 200);
        let [Act::Tell(Notice::Ended { rank: 1, clean: false, words })] = &acts[..] else {
            panic!("{acts:?}")
        };
        assert_eq!(words, "reset by peer; it had done 17 collectives");
        let acts = on(&mut meeting, 2, Event::Leaves, 300);
        assert!(matches!(&acts[..], [Act::Tell(Notice::Ended { rank: 2, clean: true, .. })]));
        assert!(on(&mut meeting, 2, Event::Closed(String::new()), 301).is_empty());
        assert!(on(&mut meeting, 1, Event::Beat(18), 302).is_empty());
        let acts = on(&mut meeting, 0, Event::Fails(Error::msg("lost")), 400);
        assert!(matches!(&acts[..], [Act::Tell(Notice::Failed { by: Some(0), .. })]));
        assert_eq!((meeting.present(), meeting.is_gathering()), (1, false));
    }

    #[test]
    fn one_that_does_not_beat_is_told_of_once_until_it_does() {
        let mut meeting = open(2);
        let beat = |meeting: &mut Meeting, at| assert!(on(meeting, 0, Event::Beat(1), at).is_empty());
        for at in (250..=3000).step_by(250) {
            beat(&mut meeting, at);
            let silent = tick(&mut meeting, at);
            assert_eq!(silent.len(), usize::from(at == 3000), "{at}: {silent:?}");
        }
        assert!(tick(&mut meeting, 5000).is_empty());
        let acts = on(&mut meeting, 1, Event::Beat(1), 5500);
        assert!(matches!(&acts[..], [Act::Tell(Notice::Silent { rank: 1, silent: false })]));
        assert!(matches!(
            &tick(&mut meeting, 6000)[..],
            [Act::Tell(Notice::Silent { rank: 0, silent: true })]
        ));
        assert_eq!(meeting.next(), Some(Duration::from_millis(8500)));
        let acts = on(&mut meeting, 0, Event::Closed("gone".to_owned()), 7000);
        let [Act::Tell(Notice::Ended { words, .. })] = &acts[..] else { panic!("{acts:?}") };
        assert!(words.contains("it had not beaten for 4.0s"), "{words}");
    }

    /// Something that may happen in any order.
    #[derive(Clone, Debug)]
    enum Happens {
        Joins { connection: Connection, rank: usize, fits: bool, run: bool },
        Does(Connection, u8),
        Waits(u64),
    }

    fn happens(size: usize) -> impl Strategy<Value = Happens> {
        let joins = (0..2 * size, 0..size + 1, prop::bool::weighted(0.97), prop::bool::weighted(0.9))
            .prop_map(|(connection, rank, fits, run)| Happens::Joins { connection, rank, fits, run });
        let orderly =
            (0..size).prop_map(|rank| Happens::Joins { connection: rank, rank, fits: true, run: true });
        let does = (0..2 * size, 0_u8..8).prop_map(|(connection, what)| Happens::Does(connection, what));
        prop_oneof![2 => joins, 12 => orderly, 4 => does, 1 => (0_u64..9000).prop_map(Happens::Waits)]
    }

    /// What each connection has been told; a shadow of what the server would do.
    #[derive(Default)]
    struct Told {
        /// Whether it waits for a verdict, by connection.
        waits: std::collections::BTreeMap<Connection, bool>,
        opened: bool,
        failed: usize,
        ended: Vec<usize>,
    }

    impl Told {
        fn take(&mut self, meeting: &Meeting, asked: Option<Connection>, acts: Vec<Act>) {
            let mut answered = false;
            for act in acts {
                match act {
                    Act::Accept(connection, left) => {
                        assert!(asked == Some(connection) && left <= JOIN && !answered);
                        answered = true;
                        assert!(
                            self.waits.insert(connection, true).is_none(),
                            "{connection} was let in twice"
                        );
                    }
                    Act::Refuse(connection, _) => {
                        assert!(asked == Some(connection) && !answered);
                        answered = true;
                    }
                    Act::Open(roster) => {
                        assert!(!self.opened && self.failed == 0 && roster.len() == meeting.size);
                        assert_eq!(self.waits.len(), meeting.size);
                        self.opened = true;
                        self.waits.values_mut().for_each(|waits| *waits = false);
                    }
                    Act::Tell(Notice::Failed { by: None, .. }) => {
                        assert!(!self.opened);
                        self.failed += 1;
                        self.waits.values_mut().for_each(|waits| *waits = false);
                    }
                    Act::Tell(Notice::Ended { rank, .. }) => {
                        assert!(self.opened && !self.ended.contains(&rank), "{rank} ended twice");
                        self.ended.push(rank);
                    }
                    Act::Tell(Notice::Silent { rank, .. }) => {
                        assert!(self.opened && !self.ended.contains(&rank))
                    }
                    Act::Tell(Notice::Failed { by: Some(_), .. }) => {}
                }
            }
            // Nobody who asks stays without an answer.
            assert!(asked.is_none() || answered);
        }
    }

    proptest! {
        #[test]
        fn whatever_happens_everybody_has_a_verdict_by_the_deadline(
            (size, events) in (1_usize..6).prop_flat_map(|size| {
                (Just(size), prop::collection::vec(happens(size), 0..40))
            }),
        ) {
            let mut meeting = meeting(size);
            let mut told = Told::default();
            let mut now = 0;
            for event in events {
                let mut acts = Vec::new();
                let mut asked = None;
                match event {
                    Happens::Joins { connection, .. } if told.waits.contains_key(&connection) => continue,
                    Happens::Joins { connection, rank, fits, run } => {
                        let mut hello = hello(rank, size);
                        if !fits {
                            hello.manifest.build = "beef".to_owned();
                        }
                        if !run {
                            hello.manifest.run = "41.0".to_owned();
                        }
                        asked = Some(connection);
                        acts = on(&mut meeting, connection, Event::Hello(hello), now);
                    }
                    Happens::Does(connection, what) => {
                        let event = match what {
                            0 => Event::Closed("gone".to_owned()),
                            1 => Event::Leaves,
                            2 => Event::Fails(Error::msg("failed")),
                            _ => Event::Beat(now),
                        };
                        if what < 2 {
                            told.waits.remove(&connection);
                        }
                        acts.extend(on(&mut meeting, connection, event, now));
                    }
                    Happens::Waits(millis) => {
                        now += millis;
                        acts = tick(&mut meeting, now);
                    }
                }
                told.take(&meeting, asked, acts);
                prop_assert_eq!(meeting.present(), told.waits.len());
                prop_assert_eq!(meeting.members().count(), told.waits.len());
                prop_assert!(meeting.leases.len() <= size);
            }
            now = now.max(JOIN.as_millis() as u64);
            let acts = tick(&mut meeting, now);
            told.take(&meeting, None, acts);
            prop_assert!(told.opened || told.failed == 1);
            prop_assert!(told.waits.values().all(|waits| !waits), "somebody waits for ever");
            prop_assert!(!meeting.is_gathering());
        }
    }
}
