//! Rank 0's side: one thread, which takes all connections and does what the [meeting](Meeting) decides. It never waits for
//! anybody: what cannot be sent now is kept, within a bound, until it can.
//!
//! Nothing that a stranger says is believed, and nothing of it kept beyond an opening's 44 bytes, before it has proved that it
//! has the run's secret.

use std::collections::{BTreeSet, VecDeque};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use leyden_process::clock::Lived;
use leyden_process::poller::{Poller, Ready};
use leyden_process::{Error, Result, threads};

use super::link::{
    LONGEST_TO_SERVER, OPENING, ToRank, ToServer, error_to_wire, frame, is_client, keep_watch, may_open,
    opening, proof_of_server, read_opening, unframe, words,
};
use super::meeting::{Act, Event, Hello, Limits, Meeting, Notice, Time};
use super::secret::{Nonce, Secret, nonce};
use crate::codes::SESSION_SERVE;
use crate::store::{self, Strange, classify};

/// What a server is started with.
pub(super) struct Options {
    pub(super) listener: TcpListener,
    /// What rank 0 says of itself.
    pub(super) zero: Hello,
    pub(super) secret: Secret,
    pub(super) protocol: u32,
    /// In which all must have come.
    pub(super) join: Duration,
    /// The store that this process hosts for the run: it lives as long.
    pub(super) store: Option<store::Server>,
}

/// Serves until all ranks have gone, on a thread.
///
/// # Errors
/// `D0230` if there are not enough descriptors for all ranks, or no thread.
pub(super) fn start(options: Options) -> Result<()> {
    let size = options.zero.size;
    enough_descriptors(size)?;
    let refused = |error: io::Error| {
        Error::new(SESSION_SERVE, "rank 0 cannot serve the other ranks")
            .because(&error)
            .hint("raise the limits on open files and threads (`ulimit -n`, `ulimit -u`)")
    };
    let poller = Poller::new().map_err(refused)?;
    let prepared = options
        .listener
        .set_nonblocking(true)
        .and_then(|()| poller.watch(options.listener.as_fd(), LISTENER, false));
    prepared.map_err(refused)?;
    let limits = Limits { join: options.join, lease: LEASE };
    let server = Server {
        meeting: Meeting::new(options.zero, limits),
        most: 2 * size + STRANGERS,
        listener: options.listener,
        poller,
        protocol: options.protocol,
        secret: options.secret,
        peers: Vec::new(),
        free: Vec::new(),
        arrived: 0,
        unproven: VecDeque::new(),
        clock: Lived::default(),
        accepts_at: None,
        lingers: None,
        named: BTreeSet::new(),
        acts: VecDeque::new(),
        store: options.store,
    };
    threads::start("leyden-session", move || server.run()).map_err(refused)
}

struct Server {
    meeting: Meeting,
    listener: TcpListener,
    poller: Poller,
    protocol: u32,
    secret: Secret,
    /// By their number.
    peers: Vec<Option<Peer>>,
    free: Vec<usize>,
    /// The most at a time.
    most: usize,
    /// How many have come so far.
    arrived: u64,
    /// Those that are no members, or none any longer, in the order in which they are cut off: when, who, the how many-th.
    unproven: VecDeque<(Time, usize, u64)>,
    /// It stands still while this process is stopped, so that nobody is late because of that.
    clock: Lived,
    /// When to take connections again, after the system had no descriptor for one.
    accepts_at: Option<Time>,
    /// Until when those who come too late are told of the failure.
    lingers: Option<Time>,
    /// Strangers that were named, and why they were cut off.
    named: BTreeSet<(IpAddr, String)>,
    acts: VecDeque<Act>,
    store: Option<store::Server>,
}

struct Peer {
    stream: TcpStream,
    address: SocketAddr,
    stage: Stage,
    /// The how many-th it is.
    arrived: u64,
    input: Vec<u8>,
    output: VecDeque<Arc<[u8]>>,
    /// How much of the first of them is sent.
    sent: usize,
    /// How much is to be sent in all.
    pending: usize,
    /// Whether the poller watches for when it can be written to.
    writes: bool,
    /// It is closed when all is sent.
    closing: bool,
}

enum Stage {
    /// It has said nothing whole.
    New,
    /// It has to prove itself.
    Asked {
        client: Nonce,
        server: Nonce,
    },
    /// It has to say who it is.
    Proved,
    Member,
}

/// What becomes of a peer.
enum Fate {
    Stays,
    /// Its connection ends, of this.
    Ends(String),
    /// It is none of ours.
    Stranger(Strange),
}

impl Server {
    fn run(mut self) {
        while !self.is_over() {
            let now = self.clock.tick();
            let wakes = [self.meeting.next(), self.accepts_at, self.lingers, self.first_cut_off()];
            let next = wakes.into_iter().flatten().min();
            // A clock that stands still in pauses must be looked at now and then.
            let wait = next.map_or(LOOK, |next| next.saturating_sub(now).min(LOOK));
            let ready = self.poller.wait(wait).unwrap_or_else(|_| {
                std::thread::sleep(PAUSE);
                Vec::new()
            });
            self.clock.tick();
            for one in ready.iter().filter(|one| one.number != LISTENER) {
                self.attend_to(*one);
            }
            // Last, so that no number is taken by somebody else before all of its events were seen.
            if ready.iter().any(|one| one.number == LISTENER) {
                self.accept();
            }
            self.on_time();
            self.act();
        }
        drop(self.store);
    }

    /// All have gone, or have been told that the run has failed.
    fn is_over(&self) -> bool {
        if self.meeting.is_gathering() {
            return false;
        }
        match self.meeting.failed() {
            Some(_) => self.lingers.is_some_and(|until| self.clock.lived() >= until),
            None => self.meeting.present() == 0 && self.peers.iter().flatten().all(|peer| peer.pending == 0),
        }
    }

    fn on_time(&mut self) {
        let now = self.clock.lived();
        let mut acts = Vec::new();
        self.meeting.tick(now, &mut acts);
        self.acts.extend(acts);
        if self.accepts_at.is_some_and(|when| when <= now) {
            self.accepts_at = None;
            let _ = self.poller.watch(self.listener.as_fd(), LISTENER, false);
        }
        if self.lingers.is_none() && self.meeting.failed().is_some() {
            self.lingers = Some(now + LINGER);
        }
        while self.first_cut_off().is_some_and(|when| when <= now) {
            self.cut_off_the_first();
        }
    }

    /// When the first is cut off that has not become a member.
    fn first_cut_off(&self) -> Option<Time> {
        self.unproven.front().map(|(when, ..)| *when)
    }

    fn cut_off_the_first(&mut self) {
        let Some((_, number, arrived)) = self.unproven.pop_front() else { return };
        let Some(peer) = self.peers[number].as_ref().filter(|peer| peer.arrived == arrived) else { return };
        let fate = match peer.stage {
            Stage::Member if !peer.closing => return,
            Stage::New if peer.input.is_empty() => Fate::Stranger(Strange::Silent),
            Stage::New if !peer.closing => Fate::Stranger(Strange::Stalled),
            _ => Fate::Ends("it has stalled".to_owned()),
        };
        self.end(number, fate);
    }

    /// Makes room for one more, at the cost of whoever has been here longest without a proof.
    fn make_room(&mut self) -> bool {
        for _ in 0..self.unproven.len() {
            if self.peers.len() - self.free.len() < self.most {
                break;
            }
            let first = self.unproven.front().copied();
            let is_proved = |(_, number, _): (Time, usize, u64)| {
                matches!(&self.peers[number], Some(Peer { stage: Stage::Proved, .. }))
            };
            match first.filter(|&first| is_proved(first)) {
                Some(proved) => {
                    self.unproven.pop_front();
                    self.unproven.push_back(proved);
                }
                None => self.cut_off_the_first(),
            }
        }
        self.peers.len() - self.free.len() < self.most
    }

    /// Takes all who want in.
    fn accept(&mut self) {
        loop {
            match self.listener.accept() {
                Ok((stream, address)) => {
                    if self.make_room() {
                        self.admit(stream, address);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Whoever it was has gone again.
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    self.meeting.remark(format!("rank 0 could not take a connection: {error} (`ulimit -n`)"));
                    self.cut_off_the_first();
                    let _ = self.poller.forget(self.listener.as_fd());
                    self.accepts_at = Some(self.clock.lived() + PAUSE);
                    return;
                }
            }
        }
    }

    fn admit(&mut self, stream: TcpStream, address: SocketAddr) {
        let number = self.free.pop().unwrap_or(self.peers.len());
        let prepared = stream
            .set_nonblocking(true)
            .and_then(|()| keep_watch(&stream))
            .and_then(|()| self.poller.watch(stream.as_fd(), number as u64, false));
        if number == self.peers.len() {
            self.peers.push(None);
        }
        if prepared.is_err() {
            return self.free.push(number);
        }
        self.arrived += 1;
        self.unproven.push_back((self.clock.lived() + PATIENCE, number, self.arrived));
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        self.peers[number] = Some(Peer {
            stream,
            address,
            stage: Stage::New,
            arrived: self.arrived,
            input: Vec::new(),
            output: VecDeque::new(),
            sent: 0,
            pending: 0,
            writes: false,
            closing: false,
        });
    }

    /// Reads from one, or writes to it.
    fn attend_to(&mut self, ready: Ready) {
        let number = ready.number as usize;
        let Some(peer) = self.peers.get_mut(number).and_then(Option::as_mut) else { return };
        let mut fate = Fate::Stays;
        if ready.readable {
            fate = match peer.read() {
                Ok(()) => self.hear(number),
                // What it has sent before its end counts.
                Err(error) => match self.hear(number) {
                    Fate::Stays => Fate::Ends(words(&error)),
                    other => other,
                },
            };
        }
        if ready.writable && matches!(fate, Fate::Stays) {
            fate = self.flush(number);
        }
        self.end(number, fate);
        self.act();
    }

    /// Understands what a peer has sent.
    fn hear(&mut self, number: usize) -> Fate {
        loop {
            let Some(peer) = self.peers[number].as_mut() else { return Fate::Stays };
            if peer.closing {
                peer.input.clear();
                return Fate::Stays;
            }
            match peer.stage {
                Stage::New => {
                    if !may_open(&peer.input) {
                        return Fate::Stranger(classify(&peer.input));
                    }
                    let Some(bytes) = peer.take::<OPENING>() else { return Fate::Stays };
                    let Some((protocol, client)) = read_opening(&bytes) else { return Fate::Stays };
                    let Ok(server) = nonce() else { return Fate::Ends("no random numbers".to_owned()) };
                    peer.put(opening(self.protocol, &server).into());
                    if protocol != self.protocol {
                        peer.closing = true;
                        let address = peer.address;
                        let what = format!("speaks protocol {protocol}, and rank 0 {}", self.protocol);
                        self.note(address, &format!("{what}: it is of another version of Leyden"));
                    } else {
                        peer.stage = Stage::Asked { client, server };
                    }
                }
                Stage::Asked { client, server } => {
                    let Some(proof) = peer.take::<32>() else { return Fate::Stays };
                    if is_client(&self.secret, &proof, &client, &server) {
                        let proof = proof_of_server(&self.secret, &client, &server);
                        peer.put([&[1], &proof[..]].concat().into());
                        peer.stage = Stage::Proved;
                    } else {
                        peer.put([0].into());
                        peer.closing = true;
                        let address = peer.address;
                        self.note(address, "has another token (LEYDEN_TOKEN), or is of another run");
                    }
                }
                Stage::Proved | Stage::Member => {
                    let (message, length) = match unframe(&peer.input, LONGEST_TO_SERVER) {
                        Ok(Some(message)) => message,
                        Ok(None) => return Fate::Stays,
                        Err(error) => return Fate::Ends(error.to_string()),
                    };
                    peer.input.drain(..length);
                    self.understand(number, message);
                    continue;
                }
            }
            if let fate @ (Fate::Ends(_) | Fate::Stranger(_)) = self.flush(number) {
                return fate;
            }
        }
    }

    fn understand(&mut self, number: usize, message: ToServer) {
        let Some(peer) = self.peers[number].as_mut() else { return };
        let event = match message {
            ToServer::Hello(mut hello) => {
                complete(&mut hello, peer.address);
                Event::Hello(hello)
            }
            ToServer::Beat(progress) => Event::Beat(progress),
            ToServer::Fails(error) => match Error::from_wire(&error) {
                Some(error) => Event::Fails(error),
                None => return,
            },
            ToServer::Leaves => Event::Leaves,
        };
        let leaves = matches!(event, Event::Leaves) && self.meeting.speaker(number).is_some();
        self.tell_meeting(number, event);
        if leaves {
            // Before it hears so, the others do.
            self.act();
            self.say(number, &ToRank::Bye);
            self.close_when_sent(number);
        }
    }

    fn tell_meeting(&mut self, number: usize, event: Event) {
        let mut acts = Vec::new();
        self.meeting.on(number, event, self.clock.lived(), &mut acts);
        self.acts.extend(acts);
    }

    /// Does what the meeting has decided.
    fn act(&mut self) {
        while let Some(act) = self.acts.pop_front() {
            match act {
                Act::Accept(number, left) => {
                    if let Some(peer) = self.peers[number].as_mut() {
                        peer.stage = Stage::Member;
                    }
                    self.say(number, &ToRank::Accepted(left.as_millis() as u64));
                }
                Act::Refuse(number, error) => {
                    self.say(number, &ToRank::Refused(error_to_wire(&error)));
                    self.close_when_sent(number);
                }
                Act::Open(roster) => self.say_to_all(None, &ToRank::Roster(roster)),
                Act::Tell(notice) => {
                    let (about, message) = self.in_words(notice);
                    self.say_to_all(about, &message);
                }
            }
        }
    }

    /// A notice as it is sent, and whom it need not be sent to.
    fn in_words(&self, notice: Notice) -> (Option<usize>, ToRank) {
        match notice {
            Notice::Failed { by, error } => (by, ToRank::Failed { by, error: error_to_wire(&error) }),
            Notice::Ended { rank, clean, words } => {
                let name = self.meeting.name(rank);
                let words = if clean { words } else { format!("the connection of {name} is lost: {words}") };
                (Some(rank), ToRank::Ended { rank, clean, words })
            }
            Notice::Silent { rank, silent } => {
                let name = self.meeting.name(rank);
                let what = match silent {
                    true => "does not beat: it is stopped, or its host is overloaded",
                    false => "beats again",
                };
                tell(&format!("{name} {what}"));
                (Some(rank), ToRank::Silent { rank, silent })
            }
        }
    }

    fn say(&mut self, number: usize, message: &ToRank) {
        self.send(number, frame(message).into());
    }

    /// The bytes are the same for all, and there once.
    fn say_to_all(&mut self, but: Option<usize>, message: &ToRank) {
        let bytes: Arc<[u8]> = frame(message).into();
        let members: Vec<(usize, usize)> = self.meeting.members().collect();
        for (_, number) in members.into_iter().filter(|(rank, _)| Some(*rank) != but) {
            self.send(number, Arc::clone(&bytes));
        }
    }

    fn send(&mut self, number: usize, bytes: Arc<[u8]>) {
        let Some(peer) = self.peers[number].as_mut() else { return };
        peer.put(bytes);
        let fate = self.flush(number);
        self.end(number, fate);
    }

    /// Writes what can be written.
    fn flush(&mut self, number: usize) -> Fate {
        let Some(peer) = self.peers[number].as_mut() else { return Fate::Stays };
        if let Err(error) = peer.write() {
            return Fate::Ends(words(&error));
        }
        if peer.pending > MOST_PENDING {
            return Fate::Ends("it does not read what it is told".to_owned());
        }
        if peer.pending == 0 && peer.closing {
            return Fate::Ends(String::new());
        }
        let writes = peer.pending > 0;
        if writes != peer.writes {
            peer.writes = writes;
            if let Err(error) = self.poller.change(peer.stream.as_fd(), number as u64, writes) {
                return Fate::Ends(error.to_string());
            }
        }
        Fate::Stays
    }

    fn close_when_sent(&mut self, number: usize) {
        let until = self.clock.lived() + PATIENCE;
        let Some(peer) = self.peers[number].as_mut() else { return };
        peer.closing = true;
        let arrived = peer.arrived;
        self.unproven.push_back((until, number, arrived));
        let fate = self.flush(number);
        self.end(number, fate);
    }

    fn end(&mut self, number: usize, fate: Fate) {
        let words = match fate {
            Fate::Stays => return,
            Fate::Ends(words) => words,
            Fate::Stranger(strange) => {
                if let Some(peer) = self.peers[number].as_ref() {
                    let line = peer.input.split(|byte| *byte == b'\n').next().unwrap_or_default();
                    let line = line[..line.len().min(64)].trim_ascii_end();
                    let said = match line {
                        [] => String::new(),
                        _ => format!(": \"{}\"", line.escape_ascii()),
                    };
                    let address = peer.address;
                    self.name_stranger(address, &format!("{strange}{said}"));
                }
                String::new()
            }
        };
        if let Some(peer) = self.peers[number].take() {
            self.free.push(number);
            if matches!(peer.stage, Stage::Member) {
                self.tell_meeting(number, Event::Closed(words));
            }
        }
    }

    /// One that would be a rank, and cannot.
    fn note(&mut self, address: SocketAddr, what: &str) {
        self.meeting.remark(format!("a process at {} {what}", address.ip()));
        self.name_stranger(address, what);
    }

    fn name_stranger(&mut self, address: SocketAddr, what: &str) {
        /// Whoever calls again and again does not fill the log.
        const MOST: usize = 16;
        if self.named.len() == MOST || !self.named.insert((address.ip(), what.to_owned())) {
            return;
        }
        tell(&format!("{address} is no rank of this run, and was cut off: {what}"));
        if self.named.len() == MOST {
            tell("further strangers are not named");
        }
    }
}

impl Peer {
    /// Reads what has come: some of it, if it is much.
    fn read(&mut self) -> io::Result<()> {
        let mut bytes = [0; 16 << 10];
        loop {
            match (&self.stream).read(&mut bytes) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(some) => {
                    self.input.extend_from_slice(&bytes[..some]);
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn write(&mut self) -> io::Result<()> {
        while let Some(first) = self.output.front() {
            match (&self.stream).write(&first[self.sent..]) {
                Ok(some) => {
                    self.sent += some;
                    self.pending -= some;
                    if self.sent == first.len() {
                        self.sent = 0;
                        self.output.pop_front();
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn put(&mut self, bytes: Arc<[u8]>) {
        self.pending += bytes.len();
        self.output.push_back(bytes);
    }

    /// The first bytes that it has sent, once they are there.
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let bytes = *self.input.first_chunk()?;
        self.input.drain(..N);
        Some(bytes)
    }
}

/// What a rank cannot know of itself: from where it is seen.
fn complete(hello: &mut Hello, seen: SocketAddr) {
    const LONGEST_NAME: usize = 255;
    let member = &mut hello.member;
    let end = member.host.floor_char_boundary(LONGEST_NAME);
    member.host.truncate(end);
    if member.address.ip().is_unspecified() {
        member.address.set_ip(seen.ip());
    }
}

/// Each rank has a connection to the session, and two to each other rank.
fn enough_descriptors(size: usize) -> Result<()> {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let limit = line.and_then(|line| line.split_ascii_whitespace().next()?.parse::<usize>().ok());
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let needed = open + 3 * size + SPARE;
    match limit {
        Some(limit) if limit < needed => {
            Err(Error::new(SESSION_SERVE, "rank 0 may not open as many files as its ranks need")
                .at("limit", limit)
                .at(
                    "needed",
                    format!("{needed}: {open} are open, each of {size} ranks needs 3, and {SPARE} to spare"),
                )
                .hint(format!(
                    "raise the limit in the shell that starts rank 0: `ulimit -n {}`",
                    needed.next_power_of_two()
                )))
        }
        _ => Ok(()),
    }
}

/// Says so on stderr, which may be gone.
fn tell(line: &str) {
    let _ = writeln!(io::stderr(), "leyden: {line}");
}

/// The listener's number in the poller.
const LISTENER: u64 = u64::MAX;
/// How many strangers may be there at a time, beside two connections for each rank.
const STRANGERS: usize = 64;
/// Descriptors for strangers, the store, and what the program opens.
const SPARE: usize = 32;
/// How long one may take to say who it is; and to read why it is refused.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a rank may be silent before that is told: twelve beats.
const LEASE: Duration = Duration::from_secs(3);
/// How long those who come too late are told why the run has failed.
const LINGER: Duration = Duration::from_secs(5);
/// How long to leave a system alone that has no descriptors.
const PAUSE: Duration = Duration::from_millis(50);
/// The longest wait.
const LOOK: Duration = Duration::from_millis(400);
/// The most that may wait to be sent to one rank: a roster, and words about thousands of ends.
const MOST_PENDING: usize = 8 << 20;
