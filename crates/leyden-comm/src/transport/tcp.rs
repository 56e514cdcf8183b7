//! Ranks that share no memory: each pair has two connections.
//!
//! One carries frames. Whoever writes about itself sends it to all others at once, without a thread in between and, as long
//! as the kernel takes it, without a copy; what it does not take is kept and sent by a thread, so that nobody waits for a
//! peer that does not read. A thread for each peer reads what comes into this rank's own world.
//!
//! On the other, the pulse, nothing is ever sent. The kernels of both hosts ask each other on it, each second, whether they
//! are there, whatever lies unread on the first one: a process that is stopped is alive, and a host that is gone is dead
//! within 3 s.

mod frame;
mod join;
mod receive;

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSlice, Read as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use leyden_process::watch::{readable, writable};
use leyden_process::{Error, Result, threads};
use socket2::SockRef;

use self::frame::{HEAD, Head, Kind};
use super::{Arrival, Look, Transport, Word, show};
use crate::collective::Reach;
use crate::session::{Attendance, Member};
use crate::watch::now;
use crate::world::{State, World};

pub(crate) use join::{Meeting, join};

/// The connections of a rank. Dropping it closes them; the others take that for its end.
pub(crate) struct Mesh {
    inner: Arc<Inner>,
}

impl Mesh {
    /// Lets `world` be filled by what comes, and sends what `rank` writes into it, from now on.
    ///
    /// # Errors
    /// The system's, if a thread does not start.
    fn start(world: &Arc<World>, rank: usize, links: Vec<Option<Link>>) -> Result<Self> {
        let inner = Arc::new(Inner {
            rank,
            links,
            is_closing: AtomicBool::new(false),
            has_failed: AtomicBool::new(false),
            awaits: Mutex::new(None),
            is_behind: Mutex::new(false),
            behind: Condvar::new(),
            hearing: Mutex::new(()),
            heard: Condvar::new(),
            attendance: OnceLock::new(),
        });
        let mesh = Self { inner };
        world.carry_by(Arc::clone(&mesh.inner) as Arc<dyn Transport>);
        for peer in mesh.inner.links().map(|link| link.peer).collect::<Vec<_>>() {
            let (inner, world) = (Arc::clone(&mesh.inner), Arc::clone(world));
            threads::start("leyden-mesh", move || receive::receive(&inner, &world, peer))?;
        }
        let inner = Arc::clone(&mesh.inner);
        threads::start("leyden-mesh-out", move || inner.catch_up())?;
        let inner = Arc::clone(&mesh.inner);
        threads::start("leyden-pulse", move || inner.feel())?;
        Ok(mesh)
    }
}

impl Mesh {
    /// Tells the session too how far this rank is, and of what the world has failed.
    pub(crate) fn attended_by(&self, attendance: &Arc<Attendance>) {
        let _ = self.inner.attendance.set(Arc::downgrade(attendance));
    }

    /// Whether a rank has stopped to beat in the session, or does so again.
    pub(crate) fn note_silence(&self, rank: usize, silent: bool) {
        if let Some(Some(link)) = self.inner.links.get(rank) {
            link.is_silent.store(silent, Ordering::SeqCst);
        }
    }

    /// Says to all others that this rank's process ends, and how.
    pub(crate) fn say_end(&self, clean: bool, words: &str) {
        self.inner.send_to_all(Head { tick: u32::from(clean), ..Head::of(Kind::End) }, words.as_bytes());
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.inner.is_closing.store(true, Ordering::SeqCst);
        for link in self.inner.links() {
            let _ = link.stream.shutdown(Shutdown::Both);
            let _ = link.pulse.shutdown(Shutdown::Both);
        }
        self.inner.behind.notify_all();
        self.inner.heard.notify_all();
    }
}

impl fmt::Debug for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

struct Inner {
    rank: usize,
    /// One for each rank but this one.
    links: Vec<Option<Link>>,
    is_closing: AtomicBool,
    /// The failure of the world has been told, or was heard.
    has_failed: AtomicBool,
    /// What the others were told that this rank waits for.
    awaits: Mutex<Option<(usize, u64)>>,
    /// Something was left for the thread that catches up.
    is_behind: Mutex<bool>,
    behind: Condvar,
    /// With this, whoever waits until its goodbye is heard.
    hearing: Mutex<()>,
    heard: Condvar,
    attendance: OnceLock<Weak<Attendance>>,
}

impl Transport for Inner {
    fn arrive(&self, world: &World, arrival: &Arrival<'_>) {
        let &Arrival { rank, group, members, seq, tick, bytes, reach } = arrival;
        show(world, rank, group, tick);
        let bare = Head {
            group: group as u8,
            tick,
            site: world.site_number(rank, group, seq),
            seq,
            words: world.agreed(rank, group, seq),
            ..Head::of(Kind::Arrival)
        };
        // The same for all that get all of it.
        let mut whole = None;
        let mut late = Vec::new();
        for link in self.links() {
            let (head, bytes) = match (members.binary_search(&link.peer), reach) {
                (Ok(_), Reach::All) => (*whole.get_or_insert_with(|| bare.with(bytes)), bytes),
                (Ok(_), Reach::Only(root)) if root == link.peer => (bare.with(bytes), bytes),
                (Ok(index), Reach::Slices(length)) => {
                    let start = (index * length).min(bytes.len());
                    let slice = &bytes[start..(start + length).min(bytes.len())];
                    (Head { offset: start as u32, ..bare }.with(slice), slice)
                }
                _ => (bare, &[][..]),
            };
            late.extend(link.send(head, bytes));
        }
        self.finish(late, PATIENCE);
        if group == 0
            && let Some(attendance) = self.attendance()
        {
            attendance.progress(seq);
        }
    }

    fn tell(&self, world: &World, rank: usize, word: Word<'_>) {
        if rank != self.rank {
            return;
        }
        match word {
            Word::Site(number, site) => {
                let (label, place) = (cut(&site.label), cut(&site.place));
                let head = Head { site: number, tick: label.len() as u32, ..Head::of(Kind::Site) };
                self.send_to_all(head, [label, place].concat().as_bytes());
            }
            Word::State(times, state) => {
                let words = [u64::from(state as u32), u64::from(std::process::id())];
                self.send_to_all(Head { tick: times, words, ..Head::of(Kind::State) }, &[]);
                if matches!(state, State::Left | State::Panicked) {
                    self.wait_until_heard(times);
                }
            }
            Word::Phase(site, since, budget) => {
                // Clocks differ: what is told is for how long.
                let words = [now().saturating_sub(since), budget];
                self.send_to_all(Head { site, words, ..Head::of(Kind::Phase) }, &[]);
            }
            Word::Awaits(group, value) => {
                let new = (value != 0).then_some((group, value));
                let old = std::mem::replace(&mut *lock(&self.awaits), new);
                if new != old {
                    let words = [value, 0];
                    self.send_to_all(Head { group: group as u8, words, ..Head::of(Kind::Awaits) }, &[]);
                }
            }
            Word::Forget(group) => {
                self.send_to_all(Head { group: group as u8, ..Head::of(Kind::Forget) }, &[]);
            }
        }
        let _ = world;
    }

    fn tell_failure(&self, error: &Error) {
        if self.has_failed.swap(true, Ordering::SeqCst) {
            return;
        }
        let mut wire = error.to_wire();
        if wire.len() > FAILURE_BYTES {
            let what: String = error.what().chars().take(1000).collect();
            wire = Error::new(error.code(), what).to_wire();
        }
        self.send_to_all(Head::of(Kind::Failure), &wire);
        if let Some(attendance) = self.attendance() {
            attendance.fail(error);
        }
    }

    fn look(&self, _: &World, rank: usize) -> Option<Look> {
        let Some(link) = self.links[rank].as_ref() else { return Some(Look::at(std::process::id() as i32)) };
        let mut asked = lock(&link.asked);
        let waits = asked.since.map(|since| since.elapsed());
        if asked.since.is_none() && asked.answered.is_none_or(|at| at.elapsed() > ASK_AGAIN) {
            asked.since = Some(Instant::now());
            drop(asked);
            self.send(link, Head::of(Kind::Ask), &[]);
            asked = lock(&link.asked);
        }
        let is_silent = waits.is_some_and(|waits| waits > ANSWER) || link.is_silent.load(Ordering::SeqCst);
        let words = if is_silent {
            format!(
                "silent: {} does not answer, though its host does: its process is stopped, or its machine has too much \
                 to do",
                link.name
            )
        } else if let Some(look) = &asked.look {
            return Some(look.clone());
        } else {
            format!("at {}", link.name)
        };
        Some(Look { words, suspended: false })
    }

    fn shares_memory(&self) -> bool {
        false
    }
}

impl Inner {
    /// Those to the ranks after this one first: not all send to rank 0 first.
    fn links(&self) -> impl Iterator<Item = &Link> {
        let (before, after) = self.links.split_at(self.rank);
        after.iter().chain(before).flatten()
    }

    fn attendance(&self) -> Option<Arc<Attendance>> {
        self.attendance.get()?.upgrade()
    }

    fn link(&self, peer: usize) -> &Link {
        self.links[peer].as_ref().expect("each rank but this one has one")
    }

    fn send(&self, link: &Link, head: Head, bytes: &[u8]) {
        self.finish(link.send(head, bytes).into_iter().collect(), Duration::ZERO);
    }

    fn send_to_all(&self, head: Head, bytes: &[u8]) {
        let head = head.with(bytes);
        let late = self.links().filter_map(|link| link.send(head, bytes)).collect();
        self.finish(late, Duration::ZERO);
    }

    /// Waits so long for those that do not take all of it; what is left is copied, and sent when they do.
    fn finish(&self, mut late: Vec<Unsent<'_>>, patience: Duration) {
        if late.is_empty() {
            return;
        }
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let fds: Vec<_> = late.iter().map(|unsent| unsent.link.stream.as_fd()).collect();
            writable(&fds, left);
            late.retain_mut(|unsent| !unsent.go_on());
            if late.is_empty() {
                return;
            }
        }
        late.into_iter().for_each(Unsent::keep);
        *lock(&self.is_behind) = true;
        self.behind.notify_one();
    }

    /// The thread that sends what peers did not take at once.
    fn catch_up(&self) {
        /// How often it looks whether others are behind too.
        const SLICE: Duration = Duration::from_millis(20);
        while !self.is_closing.load(Ordering::SeqCst) {
            let mut is_behind = lock(&self.is_behind);
            if !*is_behind {
                is_behind = self
                    .behind
                    .wait_timeout(is_behind, Duration::from_secs(1))
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
            }
            if !std::mem::take(&mut *is_behind) {
                continue;
            }
            drop(is_behind);
            let behind: Vec<&Link> = self.links().filter(|link| !link.catch_up()).collect();
            if !behind.is_empty() {
                let fds: Vec<_> = behind.iter().map(|link| link.stream.as_fd()).collect();
                writable(&fds, SLICE);
                *lock(&self.is_behind) = true;
            }
        }
    }

    /// The thread that notices hosts that are gone.
    fn feel(&self) {
        let mut links: Vec<&Link> = self.links().collect();
        while !links.is_empty() && !self.is_closing.load(Ordering::SeqCst) {
            let fds: Vec<_> = links.iter().map(|link| link.pulse.as_fd()).collect();
            let mut ready = readable(&fds, Duration::from_secs(60)).into_iter();
            links.retain(|link| !ready.next().unwrap_or(false) || self.is_there(link));
        }
    }

    /// Whether there is more to come of a pulse.
    fn is_there(&self, link: &Link) -> bool {
        use io::ErrorKind::{Interrupted, WouldBlock};
        match (&link.pulse).read(&mut [0; 64]) {
            Ok(0) => false,
            Ok(_) => true,
            Err(error) if matches!(error.kind(), WouldBlock | Interrupted) => true,
            // A process that has ended says so on the other connection, after its last words.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => false,
            Err(error) => {
                *lock(&link.lost) = Some(format!("its host does not answer any more ({error})"));
                let _ = link.stream.shutdown(Shutdown::Both);
                false
            }
        }
    }

    /// Waits until all others have heard that this rank has left for the `times + 1`st time: a process that ends while its
    /// last words are on their way may take them back.
    fn wait_until_heard(&self, times: u32) {
        let deadline = Instant::now() + GOODBYE;
        let mut hearing = lock(&self.hearing);
        while self.links().any(|link| !link.is_down() && link.heard.load(Ordering::SeqCst) <= times) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.is_closing.load(Ordering::SeqCst) {
                return;
            }
            hearing = self.heard.wait_timeout(hearing, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mesh")
            .field("rank", &self.rank)
            .field("of", &self.links.len())
            .finish_non_exhaustive()
    }
}

/// The connections to another rank.
struct Link {
    peer: usize,
    /// "10.0.0.2:41123 (host b, pid 77)".
    name: String,
    stream: TcpStream,
    pulse: TcpStream,
    /// What the kernel did not take yet. Whoever has the lock may send.
    queue: Mutex<VecDeque<u8>>,
    is_down: AtomicBool,
    /// The session says so.
    is_silent: AtomicBool,
    /// Why it is lost, if that is known better than by its end.
    lost: Mutex<Option<String>>,
    /// How many of this rank's goodbyes the peer has heard.
    heard: AtomicU32,
    asked: Mutex<Asked>,
}

/// What a peer was asked, and has answered.
#[derive(Default)]
struct Asked {
    /// When, if it has not answered.
    since: Option<Instant>,
    answered: Option<Instant>,
    look: Option<Look>,
}

impl Link {
    fn new(peer: usize, member: &Member, stream: TcpStream, pulse: TcpStream) -> Self {
        Self {
            peer,
            name: name(member.address, member),
            stream,
            pulse,
            queue: Mutex::default(),
            is_down: AtomicBool::new(false),
            is_silent: AtomicBool::new(false),
            lost: Mutex::default(),
            heard: AtomicU32::new(0),
            asked: Mutex::default(),
        }
    }

    fn is_down(&self) -> bool {
        self.is_down.load(Ordering::SeqCst)
    }

    /// Sends what the kernel takes at once, and gives what is left. Whoever holds that holds the connection.
    fn send<'a>(&'a self, head: Head, bytes: &'a [u8]) -> Option<Unsent<'a>> {
        let queue = lock(&self.queue);
        let mut unsent = Unsent { link: self, queue, head: head.encode(), bytes, sent: 0 };
        if !unsent.queue.is_empty() {
            unsent.keep();
            return None;
        }
        (!unsent.go_on()).then_some(unsent)
    }

    /// Whether all that was kept is sent, or never will be.
    fn catch_up(&self) -> bool {
        let mut queue = lock(&self.queue);
        while !queue.is_empty() {
            let (first, second) = queue.as_slices();
            match self.write(&[IoSlice::new(first), IoSlice::new(second)]) {
                Some(0) => return false,
                Some(sent) => drop(queue.drain(..sent)),
                None => queue.clear(),
            }
        }
        queue.shrink_to(QUEUE_KEPT);
        true
    }

    /// How much the kernel has taken; nothing if the connection is down.
    fn write(&self, slices: &[IoSlice<'_>]) -> Option<usize> {
        if self.is_down() {
            return None;
        }
        loop {
            match SockRef::from(&self.stream).send_vectored_with_flags(slices, AT_ONCE) {
                Ok(sent) => return Some(sent),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Some(0),
                // Whoever reads from it says why.
                Err(_) => return None,
            }
        }
    }
}

/// A frame of which the kernel has taken a part.
struct Unsent<'a> {
    link: &'a Link,
    queue: MutexGuard<'a, VecDeque<u8>>,
    head: [u8; HEAD],
    bytes: &'a [u8],
    sent: usize,
}

impl Unsent<'_> {
    /// What is left, of the head and of the bytes.
    fn rest(&self) -> [&[u8]; 2] {
        [&self.head[self.sent.min(HEAD)..], &self.bytes[self.sent.saturating_sub(HEAD)..]]
    }

    /// Whether all is sent, or never will be.
    fn go_on(&mut self) -> bool {
        loop {
            let [head, bytes] = self.rest();
            if head.len() + bytes.len() == 0 {
                return true;
            }
            match self.link.write(&[IoSlice::new(head), IoSlice::new(bytes)]) {
                Some(0) => return false,
                Some(sent) => self.sent += sent,
                None => return true,
            }
        }
    }

    /// Keeps it until the kernel takes more.
    fn keep(mut self) {
        let rest = [
            self.head[self.sent.min(HEAD)..].to_vec(),
            self.bytes[self.sent.saturating_sub(HEAD)..].to_vec(),
        ];
        if self.queue.len() > MOST_KEPT {
            let why = format!("it has not taken {} MiB that were sent to it", MOST_KEPT >> 20);
            *lock(&self.link.lost) = Some(why);
            let _ = self.link.stream.shutdown(Shutdown::Both);
            return;
        }
        rest.into_iter().for_each(|part| self.queue.extend(part));
    }
}

fn name(address: SocketAddr, member: &Member) -> String {
    format!("{address} (host {}, pid {})", member.host, member.pid)
}

/// As much of a text as a world keeps of it.
fn cut(text: &str) -> &str {
    let mut end = text.len().min(256);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Linux's `MSG_DONTWAIT` and `MSG_NOSIGNAL`: takes what it can, and never ends the process.
const AT_ONCE: i32 = 0x40 | 0x4000;
/// How long a rank stays at it when a peer does not take an arrival at once: on a healthy network less than a window needs.
const PATIENCE: Duration = Duration::from_millis(20);
/// The most that is kept for a peer, in bytes. One in a collective never has more than a window of it to come; one outside
/// has the bare arrivals of the others, a million of them.
const MOST_KEPT: usize = 64 << 20;
/// How much room a queue keeps when it is empty, in bytes.
const QUEUE_KEPT: usize = 1 << 20;
/// The largest error that is sent.
const FAILURE_BYTES: usize = 32 << 10;
/// How long a rank that leaves waits until all have heard it. Only one that is stopped, or unreachable, takes so long.
const GOODBYE: Duration = Duration::from_secs(1);
/// How often a peer that does not come is asked how it does.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// An answer takes milliseconds, and on a busy machine some more.
const ANSWER: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
