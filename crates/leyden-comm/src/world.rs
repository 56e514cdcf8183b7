//! The memory that the ranks of one host share: who is there, what each is about to do, and their numbers.
//!
//! Each word has one writer, but for those that say so. A rank announces a collective by writing its record and then
//! its arrival, and reads another's record once it has seen that one's arrival. Records and windows are used in turn:
//! what belongs to one arrival is written over only after all have made the next one, and whoever makes it has read
//! all that it needs of the one before. (Of two ranks, the one that reads a window is also the next to write to it.)

use std::cmp;
use std::ffi::OsStr;
use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use leyden_process::memory::Memory;
use leyden_process::supervise::evidence;
use leyden_process::{Error, Result, futex};

use crate::codes::{WORLD_FOREIGN, WORLD_SIZE};
use crate::dump;
use crate::element::Element;
use crate::handshake::{self, CALM, POISONED, Wake, Writer};
use crate::record::{Record, Site};
use crate::transport::{SharedMemory, Transport, Word};

/// The most ranks of one host.
pub const MOST_RANKS: usize = 1024;
/// The most groups, the world itself among them.
pub const MOST_GROUPS: usize = 16;
/// How much of a collective's numbers crosses at once, in bytes: two of them for each rank stay in the cache.
pub(crate) const WINDOW: usize = 256 << 10;

/// See the module.
pub(crate) struct World {
    memory: Memory,
    size: usize,
    /// What brings to the others what is written here, where they have worlds of their own.
    transport: OnceLock<Arc<dyn Transport>>,
}

/// What a rank is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum State {
    /// It has not come yet.
    Absent,
    /// It takes part.
    Present,
    /// It has let go of its [`Rank`](crate::Rank), as one that has finished does.
    Left,
    /// It has let go of it in a panic.
    Panicked,
    /// It wants to take part again, in a world that has failed.
    Renewing,
}

/// How a process ended, as whoever started it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum End {
    Unknown,
    Clean,
    Failed,
}

impl World {
    /// # Errors
    /// `D0101` if `size` is 0 or more than [`MOST_RANKS`]; those of [`Memory::new`].
    pub(crate) fn create(size: usize) -> Result<Self> {
        Self::check_size(size)?;
        let world = Self { memory: Memory::new(bytes(size))?, size, transport: OnceLock::new() };
        world.memory.word(RUN).store(std::process::id(), Ordering::Relaxed);
        world.memory.word(DETAIL).store(u32::from(dump::is_detail_asked_for()), Ordering::Relaxed);
        if let Some(folder) = dump::folder_asked_for() {
            world.set_folder(&folder);
        }
        world.memory.long(SIZE).store(size as u64, Ordering::Relaxed);
        world.memory.long(MAGIC).store(MAGIC_WORD, Ordering::Release);
        Ok(world)
    }

    /// # Errors
    /// `D0101`, as [`create`](Self::create).
    pub(crate) fn check_size(size: usize) -> Result<()> {
        if size > 0 && size <= MOST_RANKS {
            return Ok(());
        }
        Err(Error::new(WORLD_SIZE, "a world cannot have that many ranks")
            .at("ranks", size)
            .at("possible", format_args!("1 to {MOST_RANKS}")))
    }

    /// # Errors
    /// `D0102` if it is something else; those of [`Memory::from_fd`].
    pub(crate) fn open(fd: OwnedFd) -> Result<Self> {
        let memory = Memory::from_fd(fd)?;
        let foreign = || Error::new(WORLD_FOREIGN, "a descriptor is not the memory of a world");
        if memory.bytes() < HEADER || memory.long(MAGIC).load(Ordering::Acquire) != MAGIC_WORD {
            return Err(foreign());
        }
        let size = memory.long(SIZE).load(Ordering::Relaxed) as usize;
        if size == 0 || size > MOST_RANKS || memory.bytes() != bytes(size) {
            return Err(foreign().at("ranks", size));
        }
        Ok(Self { memory, size, transport: OnceLock::new() })
    }

    /// What to hand to a rank's process.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.memory.fd()
    }

    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// The process that made it: the name of the run, for people.
    pub(crate) fn run(&self) -> u32 {
        self.memory.word(RUN).load(Ordering::Relaxed)
    }

    /// Whether all is to be compared and kept: `LEYDEN_DEBUG=detail`, as whoever made the world was told.
    pub(crate) fn is_detailed(&self) -> bool {
        self.memory.word(DETAIL).load(Ordering::Relaxed) != 0
    }

    /// Where records go that are kept: as was asked for, else the run's folder, else the temporary one.
    pub(crate) fn folder(&self) -> PathBuf {
        match self.folder_bytes() {
            bytes if bytes.is_empty() => std::env::temp_dir(),
            bytes => PathBuf::from(OsStr::from_bytes(&bytes)),
        }
    }

    /// Names the run's folder, unless another one was asked for.
    pub(crate) fn offer_folder(&self, folder: &Path) {
        if self.folder_bytes().is_empty() {
            self.set_folder(folder);
        }
    }

    /// A path that is too long for the system is not kept.
    fn set_folder(&self, folder: &Path) {
        let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
        let bytes = folder.as_os_str().as_bytes();
        if bytes.len() <= FOLDER_BYTES - 4 {
            self.memory.write(FOLDER + 4, bytes);
            self.memory.word(FOLDER).store(bytes.len() as u32, Ordering::Release);
        }
    }

    fn folder_bytes(&self) -> Vec<u8> {
        self.read_bytes(FOLDER, FOLDER_BYTES)
    }

    /// Nobody outside watches the ranks: they tell each other how one ended.
    pub(crate) fn set_unattended(&self) {
        self.memory.word(UNATTENDED).store(1, Ordering::Release);
    }

    pub(crate) fn is_unattended(&self) -> bool {
        self.memory.word(UNATTENDED).load(Ordering::Acquire) != 0
    }

    /// Whether it is for us to keep the records of a world that all have left for the `times + 1`st time.
    pub(crate) fn takes_the_last_records(&self, times: u32) -> bool {
        let word = self.memory.word(KEPT);
        word.compare_exchange(times, times + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    pub(crate) fn transport(&self) -> &dyn Transport {
        self.transport.get().map_or(&SharedMemory, |transport| &**transport)
    }

    /// Has what is written here brought to the others, from now on. Counts once.
    pub(crate) fn carry_by(&self, transport: Arc<dyn Transport>) {
        self.memory.word(CARRIED).store(1, Ordering::Release);
        let _ = self.transport.set(transport);
    }

    /// Whether other ranks are elsewhere: their process numbers are not of this host.
    pub(crate) fn is_carried(&self) -> bool {
        self.memory.word(CARRIED).load(Ordering::Acquire) != 0
    }

    /// Says how a rank's process ended, unless that was said; whoever waits for it wakes. `words`: "killed by SIGKILL", and
    /// its last lines.
    pub(crate) fn tell_end(&self, rank: usize, clean: bool, words: &str) {
        let word = self.end_word(rank);
        if word.compare_exchange(0, END_BEING_TOLD, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return;
        }
        self.write_text(self.rank(rank) + END_WORDS, END_WORDS_BYTES, words);
        let end = if clean { End::Clean } else { End::Failed };
        word.store(end as u32, Ordering::Release);
        self.raise();
    }

    /// How a rank's process ended, once that is known, and in which words.
    pub(crate) fn end(&self, rank: usize) -> (End, String) {
        let end = match self.end_word(rank).load(Ordering::Acquire) {
            1 => End::Clean,
            2 => End::Failed,
            _ => return (End::Unknown, String::new()),
        };
        (end, self.read_text(self.rank(rank) + END_WORDS, END_WORDS_BYTES))
    }

    pub(crate) fn end_word(&self, rank: usize) -> &AtomicU32 {
        self.memory.word(self.rank(rank) + END)
    }

    /// The first failure of the world ends all waits of all ranks. Gives the error with the place of the records of all
    /// ranks, if they were kept.
    pub(crate) fn poison(&self, error: &Error) -> Error {
        if !self.takes_the_pen() {
            return match self.poisoned().as_ref().and_then(|first| first.place(dump::PLACE)) {
                Some(place) => error.clone().at_if_absent(dump::PLACE, place),
                None => error.clone(),
            };
        }
        let kept = dump::keep(self, error);
        let with_place = |error: Error| match &kept {
            Some(kept) => error.at_if_absent(dump::PLACE, kept),
            None => error,
        };
        let error = with_place(error.clone());
        let mut wire = error.to_wire();
        if wire.len() > POISON_BYTES {
            let what: String = error.what().chars().take(1000).collect();
            wire = with_place(Error::new(error.code(), what)).to_wire();
        }
        self.memory.write(POISON_WORDS, &wire);
        self.memory.word(POISON_LENGTH).store(wire.len() as u32, Ordering::Relaxed);
        // First: whoever sees it here may leave at once, and nobody must hear of that before.
        self.transport().tell_failure(&error);
        handshake::put_pen_down(self.poison_word(), self.alarm(), &Futexes);
        if let Some(kept) = kept {
            kept.finish();
        }
        error
    }

    /// Whether it is for us to write what the world failed of. Whoever writes may be killed while it does: then the next one
    /// writes it anew.
    fn takes_the_pen(&self) -> bool {
        /// A writer needs milliseconds, and a process that was killed a while to die.
        const PATIENCE: Duration = Duration::from_secs(1);
        let start = Instant::now();
        handshake::take_pen(self.poison_word(), std::process::id(), |writer| {
            let process = evidence(writer as i32);
            if matches!(process.state, None | Some('Z' | 'X')) {
                return Some(Writer::Died);
            }
            std::thread::sleep(Duration::from_micros(200));
            (start.elapsed() < PATIENCE).then_some(Writer::Lives)
        })
    }

    /// What the world failed of, if it did.
    pub(crate) fn poisoned(&self) -> Option<Error> {
        if self.poison_word().load(Ordering::Acquire) != POISONED {
            return None;
        }
        let length = self.memory.word(POISON_LENGTH).load(Ordering::Relaxed) as usize;
        let mut wire = vec![0; length.min(POISON_BYTES)];
        self.memory.read(POISON_WORDS, &mut wire);
        let unreadable = || Error::new(WORLD_FOREIGN, "the reason why a world failed cannot be read");
        Some(Error::from_wire(&wire).unwrap_or_else(unreadable))
    }

    pub(crate) fn is_calm(&self) -> bool {
        self.poison_word().load(Ordering::Relaxed) == CALM
    }

    fn poison_word(&self) -> &AtomicU32 {
        self.memory.word(POISON)
    }

    /// The count that goes up with whatever ends a wait but an arrival: see [`handshake`].
    pub(crate) fn alarm(&self) -> &AtomicU32 {
        self.memory.word(ALARM)
    }

    /// Lets all ranks that wait look around.
    pub(crate) fn raise(&self) {
        handshake::raise(self.alarm(), &Futexes);
    }

    /// The tombstone of whoever watches the ranks from outside, if there is somebody.
    pub(crate) fn supervisor(&self) -> &AtomicU32 {
        self.memory.word(SUPERVISOR)
    }

    pub(crate) fn tombstone(&self, rank: usize) -> &AtomicU32 {
        self.memory.word(self.rank(rank) + TOMBSTONE)
    }

    /// Takes a rank's place; false if somebody has it.
    pub(crate) fn take_place(&self, rank: usize, pid: u32) -> bool {
        let place = self.rank(rank);
        let word = self.memory.word(place + PID);
        if word.compare_exchange(0, pid, Ordering::AcqRel, Ordering::Acquire).is_err() {
            return false;
        }
        self.set_state(rank, 0, State::Present);
        true
    }

    pub(crate) fn pid(&self, rank: usize) -> i32 {
        self.memory.word(self.rank(rank) + PID).load(Ordering::Acquire) as i32
    }

    pub(crate) fn state(&self, rank: usize) -> State {
        match self.state_word(rank).load(Ordering::Acquire) & STATE_BITS {
            1 => State::Present,
            2 => State::Left,
            3 => State::Panicked,
            4 => State::Renewing,
            _ => State::Absent,
        }
    }

    /// How often a rank had come before this time.
    pub(crate) fn times(&self, rank: usize) -> u32 {
        self.state_word(rank).load(Ordering::Acquire) >> STATE_BITS.count_ones()
    }

    /// Its state to somebody who is here for the `times + 1`st time: one that has not come so often is yet to come, and one
    /// that has come more often has left.
    pub(crate) fn state_in(&self, rank: usize, times: u32) -> State {
        match self.times(rank).cmp(&times) {
            cmp::Ordering::Less => State::Absent,
            cmp::Ordering::Equal => self.state(rank),
            cmp::Ordering::Greater => State::Left,
        }
    }

    /// The failure is over, for ranks that have come `times` times before: their collectives go on at one number. Only rank
    /// 0 says so, once all ranks have come back.
    pub(crate) fn renew(&self, times: u32) {
        let arrived = |rank| self.arrived(rank, 0).load(Ordering::Acquire);
        // Of numbers that wrap around: the one that is furthest from the first.
        let first = arrived(0);
        let ahead = |rank: &usize| arrived(*rank).wrapping_sub(first) as i32;
        let tick = (0..self.size).max_by_key(ahead).map_or(first, arrived);
        let seq = (0..self.size).filter_map(|rank| self.last_record(rank, 0)).map(|last| last.seq).max();
        self.memory.word(RENEWED_TICK).store(tick, Ordering::Relaxed);
        self.memory.long(RENEWED_SEQ).store(seq.unwrap_or(0), Ordering::Relaxed);
        self.poison_word().store(CALM, Ordering::Release);
        self.raise();
        self.memory.word(RENEWED).store(times, Ordering::Release);
        futex::wake(self.memory.word(RENEWED), u32::MAX);
    }

    /// For which number of times the world was [renewed](Self::renew) last: to sleep on.
    pub(crate) fn renewed(&self) -> &AtomicU32 {
        self.memory.word(RENEWED)
    }

    /// Where collectives of all ranks go on since then: the arrival and the collective before.
    pub(crate) fn renewed_at(&self) -> (u32, u64) {
        let tick = self.memory.word(RENEWED_TICK).load(Ordering::Relaxed);
        (tick, self.memory.long(RENEWED_SEQ).load(Ordering::Relaxed))
    }

    fn state_word(&self, rank: usize) -> &AtomicU32 {
        self.memory.word(self.rank(rank) + STATE)
    }

    /// `times`: how often it had come before.
    pub(crate) fn set_state(&self, rank: usize, times: u32, state: State) {
        let word = times << STATE_BITS.count_ones() | state as u32;
        self.state_word(rank).store(word, Ordering::Release);
        self.raise();
        self.transport().tell(self, rank, Word::State(times, state));
    }

    /// What a rank is doing outside of collectives.
    pub(crate) fn set_phase(&self, rank: usize, site: u32, since: u64, budget: u64) {
        let place = self.rank(rank);
        self.memory.word(place + PHASE).store(site, Ordering::Relaxed);
        self.memory.long(place + PHASE_SINCE).store(since, Ordering::Relaxed);
        self.memory.long(place + PHASE_BUDGET).store(budget, Ordering::Release);
        self.transport().tell(self, rank, Word::Phase(site, since, budget));
    }

    /// The phase that a rank is in, since when (on the clock of all processes, in ns), and how long it may take in ns, if
    /// that was announced.
    pub(crate) fn phase(&self, rank: usize) -> Option<(Site, u64, u64)> {
        let place = self.rank(rank);
        let budget = self.memory.long(place + PHASE_BUDGET).load(Ordering::Acquire);
        let site = self.memory.word(place + PHASE).load(Ordering::Relaxed);
        let since = self.memory.long(place + PHASE_SINCE).load(Ordering::Relaxed);
        (site != 0).then(|| (self.site(rank, site), since, budget))
    }

    /// Keeps where something was called, as number `number` of `rank`'s, above 0.
    pub(crate) fn write_site(&self, rank: usize, number: u32, site: &Site) {
        let offset = self.site_offset(rank, number);
        self.write_text(offset, SITE_LABEL_BYTES, &site.label);
        self.write_text(offset + SITE_LABEL_BYTES, SITE_BYTES - SITE_LABEL_BYTES, &site.place);
        self.transport().tell(self, rank, Word::Site(number, site));
    }

    fn site(&self, rank: usize, number: u32) -> Site {
        if number == 0 || number > SITES {
            return Site::default();
        }
        let offset = self.site_offset(rank, number);
        Site {
            label: self.read_text(offset, SITE_LABEL_BYTES),
            place: self.read_text(offset + SITE_LABEL_BYTES, SITE_BYTES - SITE_LABEL_BYTES),
        }
    }

    fn site_offset(&self, rank: usize, number: u32) -> usize {
        self.rank(rank) + SITES_AT + (number as usize - 1) % SITES as usize * SITE_BYTES
    }

    /// Writes a record, and announces what is agreed beside the arrival, where whoever looks for that finds it without
    /// another look at memory; it is seen once the arrival is.
    pub(crate) fn write_record(
        &self,
        rank: usize,
        group: usize,
        seq: u64,
        agreed: [u64; 2],
        site: u32,
        time: u64,
    ) {
        let record = self.record_offset(rank, group, seq);
        let words = [agreed[0], agreed[1], u64::from(site), time, seq];
        for (word, value) in words.into_iter().enumerate() {
            self.memory.long(record + 8 * word).store(value, Ordering::Relaxed);
        }
        let announced = self.announced_offset(rank, group, seq);
        self.memory.long(announced).store(agreed[0], Ordering::Relaxed);
        self.memory.long(announced + 8).store(agreed[1], Ordering::Relaxed);
    }

    /// What a rank has agreed to as its collective `seq`: of the last two alone.
    pub(crate) fn agreed(&self, rank: usize, group: usize, seq: u64) -> [u64; 2] {
        let announced = self.announced_offset(rank, group, seq);
        [0, 8].map(|word| self.memory.long(announced + word).load(Ordering::Relaxed))
    }

    fn announced_offset(&self, rank: usize, group: usize, seq: u64) -> usize {
        self.arrival_offset(rank, group) + ANNOUNCED + handshake::parity(seq) * 16
    }

    /// The whole record of a rank's collective `seq`, if it is still there.
    pub(crate) fn record(&self, rank: usize, group: usize, seq: u64) -> Option<Record> {
        let offset = self.record_offset(rank, group, seq);
        let word = |word: usize| self.memory.long(offset + 8 * word).load(Ordering::Relaxed);
        (seq > 0 && word(4) == seq).then(|| Record {
            seq,
            group: group as u8,
            agreed: [word(0), word(1)],
            site: self.site(rank, word(2) as u32),
        })
    }

    /// The number of the call site of a rank's collective `seq`: of the last [`RING`] alone.
    pub(crate) fn site_number(&self, rank: usize, group: usize, seq: u64) -> u32 {
        self.memory.long(self.record_offset(rank, group, seq) + 16).load(Ordering::Relaxed) as u32
    }

    /// The last collective that a rank has begun in a group.
    pub(crate) fn last_record(&self, rank: usize, group: usize) -> Option<Record> {
        let last = (0..RING as u64)
            .map(|place| {
                self.memory.long(self.record_offset(rank, group, place) + RECORD_SEQ).load(Ordering::Relaxed)
            })
            .max()?;
        self.record(rank, group, last)
    }

    /// All records of a rank in a group that are still there, and when each was written, on the clock of all processes, in
    /// ns.
    pub(crate) fn records(&self, rank: usize, group: usize) -> Vec<(Record, u64)> {
        let word = |place: u64, word: usize| {
            self.memory.long(self.record_offset(rank, group, place) + 8 * word).load(Ordering::Relaxed)
        };
        let mut records: Vec<(Record, u64)> = (0..RING as u64)
            .filter_map(|place| Some((self.record(rank, group, word(place, 4))?, word(place, 3))))
            .collect();
        records.sort_by_key(|(record, _)| record.seq);
        records
    }

    fn record_offset(&self, rank: usize, group: usize, seq: u64) -> usize {
        self.rank(rank) + RECORDS_AT + (group * RING + (seq % RING as u64) as usize) * RECORD_BYTES
    }

    /// How often a rank has arrived in a group.
    pub(crate) fn arrived(&self, rank: usize, group: usize) -> &AtomicU32 {
        self.memory.word(self.arrival_offset(rank, group))
    }

    /// How many ranks sleep until that rank arrives: written by them.
    pub(crate) fn sleepers(&self, rank: usize, group: usize) -> &AtomicU32 {
        self.memory.word(self.arrival_offset(rank, group) + 4)
    }

    /// The arrival that a rank waits for in a group; 0 while it does not wait.
    pub(crate) fn awaited(&self, rank: usize, group: usize) -> &AtomicU64 {
        self.memory.long(self.arrival_offset(rank, group) + 8)
    }

    /// Which ranks are in a group: bits, of which member 0 writes.
    pub(crate) fn members(&self, group: usize) -> Vec<usize> {
        if group == 0 {
            return (0..self.size).collect();
        }
        let has = |rank: &usize| {
            self.memory.long(self.members_offset(group) + rank / 64 * 8).load(Ordering::Acquire)
                >> (rank % 64)
                & 1
                == 1
        };
        (0..self.size).filter(has).collect()
    }

    pub(crate) fn set_members(&self, group: usize, members: &[usize]) {
        for (place, word) in (0..MOST_RANKS / 64).enumerate() {
            let bits = members
                .iter()
                .filter(|&&rank| rank / 64 == word)
                .fold(0, |bits, rank| bits | 1_u64 << (rank % 64));
            self.memory.long(self.members_offset(group) + place * 8).store(bits, Ordering::Release);
        }
    }

    /// Forgets what a rank has done in a group, which is made anew.
    pub(crate) fn forget_group(&self, rank: usize, group: usize) {
        for place in 0..RING as u64 {
            self.memory.long(self.record_offset(rank, group, place) + RECORD_SEQ).store(0, Ordering::Relaxed);
        }
        self.arrived(rank, group).store(0, Ordering::Release);
        self.transport().tell(self, rank, Word::Forget(group));
    }

    fn members_offset(&self, group: usize) -> usize {
        GROUPS_AT + group * (MOST_RANKS / 8)
    }

    fn arrival_offset(&self, rank: usize, group: usize) -> usize {
        self.rank(rank) + ARRIVALS_AT + group * ARRIVAL_BYTES
    }

    /// Gives each of `into` the number at its place in a rank's window, from `offset` on.
    pub(crate) fn fold_window<A, T: Element>(
        &self,
        (rank, group, tick): (usize, usize, u32),
        offset: usize,
        into: &mut [A],
        f: impl Fn(&mut A, T),
    ) {
        self.memory.fold(self.window(rank, group, tick) + offset, into, f);
    }

    /// Puts bytes into a rank's window of a group, for arrival `tick`.
    pub(crate) fn write_window(&self, rank: usize, group: usize, tick: u32, bytes: &[u8]) {
        self.write_window_at(rank, group, tick, 0, bytes);
    }

    /// The same for a part of it.
    pub(crate) fn write_window_at(&self, rank: usize, group: usize, tick: u32, offset: usize, bytes: &[u8]) {
        self.memory.write(self.window(rank, group, tick) + offset, bytes);
    }

    /// Reads from a rank's window.
    pub(crate) fn read_window(&self, rank: usize, group: usize, tick: u32, offset: usize, bytes: &mut [u8]) {
        self.memory.read(self.window(rank, group, tick) + offset, bytes);
    }

    /// Two ranks write into one place by turns: each into the one that it has read last, whose lines are in its cache. A line
    /// then crosses once for each arrival, and not a second time to be taken back.
    fn window(&self, rank: usize, group: usize, tick: u32) -> usize {
        let odd = handshake::parity(tick.into());
        let (owner, place) = if self.size == 2 { (rank ^ odd, 0) } else { (rank, odd) };
        HEADER + self.size * RANK_BYTES + ((owner * MOST_GROUPS + group) * 2 + place) * WINDOW
    }

    fn rank(&self, rank: usize) -> usize {
        assert!(rank < self.size, "rank {rank} of {}", self.size);
        HEADER + rank * RANK_BYTES
    }

    /// A text of at most `room - 4` bytes, with its length before it.
    fn write_text(&self, offset: usize, room: usize, text: &str) {
        let mut end = text.len().min(room - 4);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        self.memory.write(offset + 4, &text.as_bytes()[..end]);
        self.memory.word(offset).store(end as u32, Ordering::Release);
    }

    fn read_text(&self, offset: usize, room: usize) -> String {
        String::from_utf8_lossy(&self.read_bytes(offset, room)).into_owned()
    }

    fn read_bytes(&self, offset: usize, room: usize) -> Vec<u8> {
        let length = self.memory.word(offset).load(Ordering::Acquire) as usize;
        let mut bytes = vec![0; length.min(room - 4)];
        self.memory.read(offset + 4, &mut bytes);
        bytes
    }
}

/// Wakes by the kernel.
pub(crate) struct Futexes;

impl Wake for Futexes {
    fn wake(&self, word: &AtomicU32) {
        futex::wake(word, u32::MAX);
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World").field("size", &self.size).finish_non_exhaustive()
    }
}

/// How many records of a rank are kept in each group: what is left of its past when it dies.
pub(crate) const RING: usize = 64;
/// How many call sites of a rank are kept.
pub(crate) const SITES: u32 = 256;

const MAGIC_WORD: u64 = u64::from_le_bytes(*b"leyden/1");
// The header.
const MAGIC: usize = 0;
const SIZE: usize = 8;
const SUPERVISOR: usize = 16;
const RENEWED: usize = 20;
const RENEWED_TICK: usize = 24;
const RENEWED_SEQ: usize = 32;
const RUN: usize = 40;
const DETAIL: usize = 44;
const UNATTENDED: usize = 48;
const KEPT: usize = 52;
const CARRIED: usize = 56;
const POISON: usize = 64;
const POISON_LENGTH: usize = 68;
const ALARM: usize = 72;
const POISON_WORDS: usize = 128;
const POISON_BYTES: usize = 16 << 10;
const GROUPS_AT: usize = POISON_WORDS + POISON_BYTES;
const HEADER: usize = 32 << 10;
const FOLDER_BYTES: usize = 4 << 10;
const FOLDER: usize = HEADER - FOLDER_BYTES;
const _: () = assert!(GROUPS_AT + MOST_GROUPS * MOST_RANKS / 8 <= FOLDER);

// Each rank's part. Its state is the low bits of its word; the others count how often it had come before.
const STATE_BITS: u32 = 0b1111;
const TOMBSTONE: usize = 0;
const STATE: usize = 64;
const PID: usize = 68;
const END: usize = 72;
/// Somebody writes the words.
const END_BEING_TOLD: u32 = 3;
const PHASE: usize = 76;
const PHASE_SINCE: usize = 80;
const PHASE_BUDGET: usize = 88;
const END_WORDS: usize = 128;
const END_WORDS_BYTES: usize = 4096 - END_WORDS;
const ARRIVALS_AT: usize = 4096;
/// A cache line: no two ranks' arrivals share one.
const ARRIVAL_BYTES: usize = 64;
/// In it, after arrival, sleepers and what is awaited.
const ANNOUNCED: usize = 16;
const RECORDS_AT: usize = ARRIVALS_AT + MOST_GROUPS * ARRIVAL_BYTES;
const RECORD_BYTES: usize = 64;
const RECORD_SEQ: usize = 32;
const SITES_AT: usize = RECORDS_AT + MOST_GROUPS * RING * RECORD_BYTES;
const SITE_BYTES: usize = 256;
const SITE_LABEL_BYTES: usize = 96;
const RANK_BYTES: usize = (SITES_AT + SITES as usize * SITE_BYTES).next_multiple_of(4096);

/// The size of a world's memory. It is sparse: what is not used takes none.
const fn bytes(ranks: usize) -> usize {
    HEADER + ranks * (RANK_BYTES + MOST_GROUPS * 2 * WINDOW)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_world_is_opened_by_its_descriptor_and_nothing_else_is() {
        let world = World::create(3).unwrap();
        let other = World::open(world.fd().try_clone_to_owned().unwrap()).unwrap();
        assert_eq!(other.size(), 3);
        assert!(other.take_place(1, 77) && !world.take_place(1, 78));
        assert_eq!((world.pid(1), world.state(1), world.state(0)), (77, State::Present, State::Absent));
        let foreign = Memory::new(bytes(3)).unwrap();
        let error = World::open(foreign.fd().try_clone_to_owned().unwrap()).unwrap_err();
        assert_eq!(error.code(), WORLD_FOREIGN);
        for size in [0, MOST_RANKS + 1] {
            assert_eq!(World::create(size).unwrap_err().code(), WORLD_SIZE);
        }
    }

    #[test]
    fn words_and_records_come_out_as_they_went_in() {
        let world = World::create(2).unwrap();
        let site = Site { label: "epoch end".to_owned(), place: "ä".repeat(200) };
        world.write_site(1, 5, &site);
        world.write_record(1, 0, 70, [1, 2], 5, 9);
        assert_eq!((world.agreed(1, 0, 70), world.agreed(1, 0, 69)), ([1, 2], [0, 0]));
        let record = world.record(1, 0, 70).unwrap();
        assert_eq!((record.agreed, &record.site.label[..]), ([1, 2], "epoch end"));
        assert!(record.site.place.starts_with("ää") && record.site.place.len() <= 156);
        assert_eq!(world.record(1, 0, 6), None, "its place was taken by 70");
        assert_eq!(world.last_record(1, 0), Some(record));
        assert_eq!(world.last_record(0, 0), None);
        world.tell_end(0, false, "killed by SIGKILL");
        assert_eq!(world.end(0), (End::Failed, "killed by SIGKILL".to_owned()));
        world.set_members(3, &[0, 1]);
        assert_eq!(world.members(3), [0, 1]);
    }

    #[test]
    fn the_first_poison_is_the_one_that_stays() {
        let world = World::create(1).unwrap();
        assert!(world.is_calm() && world.poisoned().is_none());
        world.poison(&Error::new(WORLD_SIZE, "first").at("rank", 1));
        world.poison(&Error::new(WORLD_SIZE, "second"));
        let error = world.poisoned().unwrap();
        assert_eq!((error.what(), error.place("rank")), ("first", Some("1")));
    }

    #[test]
    fn a_process_that_is_killed_while_it_poisons_keeps_nobody_from_it() {
        let world = World::create(1).unwrap();
        let mut writer = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        assert!(handshake::take_pen(world.poison_word(), writer.id(), |_| None));
        std::thread::scope(|scope| {
            scope.spawn(|| world.poison(&Error::new(WORLD_SIZE, "second")));
            writer.kill().unwrap();
        });
        writer.wait().unwrap();
        assert_eq!(world.poisoned().unwrap().what(), "second");
    }
}
