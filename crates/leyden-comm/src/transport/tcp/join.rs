//! How ranks connect to each other: each to all before it. Both sides prove that they are of the run.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::time::{Duration, Instant};

use leyden_process::watch::readable;
use leyden_process::{Error, Result, threads};
use socket2::{SockRef, TcpKeepalive};

use super::{Link, Mesh, name};
use crate::codes::{PEER_ABSENT, PEER_REFUSED, PEER_UNREACHABLE};
use crate::session::{Member, Secret, nonce};
use crate::store::classify;
use crate::world::World;

/// What a rank must know to connect to the others.
pub(crate) struct Meeting<'a> {
    pub(crate) rank: usize,
    /// All ranks, in their order.
    pub(crate) roster: &'a [Member],
    pub(crate) secret: &'a Secret,
    /// Where this rank takes connections, as the roster says.
    pub(crate) listener: TcpListener,
    pub(crate) deadline: Instant,
}

/// Connects a rank to all others, and its world to what comes from them. Nobody can connect afterwards.
///
/// # Errors
/// `D0240` if a rank cannot be reached; `D0241` if it is not of this run, or takes this one for a stranger; `D0242` if one
/// does not connect in time.
pub(crate) fn join(world: &Arc<World>, meeting: Meeting<'_>) -> Result<Mesh> {
    let Meeting { rank, roster, secret, listener, deadline } = meeting;
    let mut pairs = Vec::new();
    for (peer, member) in roster.iter().enumerate().take(rank) {
        let connect = |channel| connect(rank, peer, member, channel, secret, deadline);
        pairs.push(Some([connect(Channel::Frames)?, connect(Channel::Pulse)?]));
    }
    pairs.push(None);
    pairs.extend(accept(rank, roster, secret, listener, deadline)?.into_iter().map(Some));
    let links = pairs.into_iter().zip(roster).enumerate().map(|(peer, (pair, member))| {
        let Some([stream, pulse]) = pair else { return Ok(None) };
        settle(&stream, &pulse)?;
        Ok(Some(Link::new(peer, member, stream, pulse)))
    });
    Mesh::start(world, rank, links.collect::<io::Result<Vec<_>>>()?)
}

/// Which of both connections of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Channel {
    Frames,
    Pulse,
}

/// What a connection begins with: who wants to speak to whom, and a number.
struct Hello {
    from: usize,
    to: usize,
    channel: Channel,
    nonce: [u8; 32],
}

impl Hello {
    const BYTES: usize = 64;
    const MAGIC: &'static [u8; 16] = b"leyden-mesh/1\r\n\0";

    fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..16].copy_from_slice(Self::MAGIC);
        bytes[16..20].copy_from_slice(&(self.from as u32).to_le_bytes());
        bytes[20..24].copy_from_slice(&(self.to as u32).to_le_bytes());
        bytes[24] = self.channel as u8;
        bytes[32..].copy_from_slice(&self.nonce);
        bytes
    }

    fn decode(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        let number =
            |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize;
        let channel = match bytes[24] {
            0 => Channel::Frames,
            1 => Channel::Pulse,
            _ => return None,
        };
        let nonce = bytes[32..].try_into().expect("32 bytes");
        (bytes[..16] == *Self::MAGIC).then(|| Self { from: number(16), to: number(20), channel, nonce })
    }

    /// What a proof is for.
    fn purpose(&self, side: &str) -> String {
        format!("mesh {side} {} to {} {:?}", self.from, self.to, self.channel)
    }
}

/// The side that comes.
fn connect(
    rank: usize,
    peer: usize,
    member: &Member,
    channel: Channel,
    secret: &Secret,
    deadline: Instant,
) -> Result<TcpStream> {
    let about = |error: Error| {
        error.at("rank", rank).at("to", format_args!("rank {peer} at {}", name(member.address, member)))
    };
    let left = || deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let mut stream = loop {
        match TcpStream::connect_timeout(&member.address, left()) {
            Ok(stream) => break stream,
            // A backlog that is full, or a host that is not quite there.
            Err(_) if Instant::now() + AGAIN < deadline => std::thread::sleep(AGAIN),
            Err(error) => {
                return Err(about(Error::new(PEER_UNREACHABLE, "a rank cannot be reached").because(&error))
                    .hint("look whether that rank runs still, and whether a firewall lets its port through")
                    .hint("ranks listen at any free port: open those between the hosts to each other"));
            }
        }
    };
    let refused = |why: String| {
        about(Error::new(PEER_REFUSED, "a rank does not take this one for one of its run").why(why))
            .hint("give all ranks the same LEYDEN_TOKEN, and start them from one launcher")
    };
    let spoken = |error: io::Error| refused(format!("it closed the connection ({error})"));
    stream.set_nodelay(true)?;
    let hello = Hello { from: rank, to: peer, channel, nonce: nonce()? };
    stream.write_all(&hello.encode()).map_err(spoken)?;
    let mut answer = [0; 64];
    read_until(&mut stream, &mut answer, deadline).map_err(spoken)?;
    let (theirs, proof) = answer.split_at(32);
    let theirs: [u8; 32] = theirs.try_into().expect("half of 64");
    let proof = proof.try_into().expect("half of 64");
    if !secret.is_proof(&proof, &hello.purpose("takes"), [&hello.nonce, &theirs]) {
        return Err(refused("it cannot prove that it is of this run".to_owned()));
    }
    let proof = secret.proof(&hello.purpose("comes"), [&hello.nonce, &theirs]);
    stream.write_all(&proof).map_err(spoken)?;
    let mut word = [0];
    read_until(&mut stream, &mut word, deadline).map_err(spoken)?;
    if word != WELCOME {
        return Err(refused(format!("it answers {word:?}")));
    }
    Ok(stream)
}

/// The side that waits: for both connections of each rank after this one, in the order of ranks. Who is none of them is
/// sent away.
fn accept(
    rank: usize,
    roster: &[Member],
    secret: &Secret,
    listener: TcpListener,
    deadline: Instant,
) -> Result<Vec<[TcpStream; 2]>> {
    let expected: Vec<(usize, Channel)> =
        (rank + 1..roster.len()).flat_map(|peer| [(peer, Channel::Frames), (peer, Channel::Pulse)]).collect();
    let mut come: BTreeMap<(usize, Channel), TcpStream> = BTreeMap::new();
    let (sender, receiver) = mpsc::sync_channel(MOST_AT_THE_DOOR);
    if expected.is_empty() {
        return Ok(Vec::new());
    }
    let door = Arc::new(Door::of(rank, secret.clone()));
    let keeper = Arc::clone(&door);
    listener.set_nonblocking(true)?;
    threads::start("leyden-mesh-door", move || keeper.keep(&listener, &sender))?;
    while come.len() < expected.len() {
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok((key, mut stream)) = receiver.recv_timeout(left) else { break };
        let why = match come.entry(key) {
            _ if !expected.contains(&key) => format!("rank {} does not connect to rank {rank}", key.0),
            Entry::Occupied(_) => format!("rank {} is connected already", key.0),
            Entry::Vacant(place) => {
                // One that is gone again is noticed as any rank is.
                let _ = stream.write_all(&WELCOME);
                place.insert(stream);
                continue;
            }
        };
        door.warn(stream.peer_addr().ok(), &why);
    }
    door.is_closed.store(true, Ordering::SeqCst);
    let mut missing: Vec<usize> =
        expected.iter().filter(|key| !come.contains_key(key)).map(|(peer, _)| *peer).collect();
    missing.dedup();
    if !missing.is_empty() {
        let named =
            missing.iter().map(|&peer| format!("{peer} at {}", name(roster[peer].address, &roster[peer])));
        return Err(Error::new(PEER_ABSENT, "not all ranks have connected")
            .at("rank", rank)
            .at("missing", format_args!("rank {}", named.collect::<Vec<_>>().join(", rank ")))
            .hint("look at what those say: they may not reach this host")
            .hint("ranks listen at any free port: open those between the hosts to each other"));
    }
    let mut streams = come.into_values();
    Ok(std::iter::from_fn(|| Some([streams.next()?, streams.next()?])).collect())
}

/// Where ranks come in, as long as not all are there.
pub(super) struct Door {
    rank: usize,
    secret: Secret,
    /// How many are being asked who they are.
    inside: AtomicUsize,
    warnings: AtomicUsize,
    is_closed: AtomicBool,
}

impl Door {
    pub(super) fn of(rank: usize, secret: Secret) -> Self {
        Self {
            rank,
            secret,
            inside: AtomicUsize::new(0),
            warnings: AtomicUsize::new(0),
            is_closed: AtomicBool::new(false),
        }
    }

    /// Lets each that knocks say who it is, on a thread of its own: nobody holds up another.
    fn keep(self: Arc<Self>, listener: &TcpListener, sender: &SyncSender<((usize, Channel), TcpStream)>) {
        /// How often it looks whether all are there.
        const SLICE: Duration = Duration::from_millis(50);
        while !self.is_closed.load(Ordering::SeqCst) {
            if !readable(&[listener.as_fd()], SLICE)[0] {
                continue;
            }
            let Ok((stream, address)) = listener.accept() else {
                // It is gone again, or there is no descriptor left for it: others may be luckier.
                std::thread::sleep(Duration::from_millis(1));
                continue;
            };
            if self.inside.fetch_add(1, Ordering::SeqCst) >= MOST_AT_THE_DOOR {
                self.inside.fetch_sub(1, Ordering::SeqCst);
                self.warn(Some(address), "too many come at once");
                continue;
            }
            let (door, sender) = (Arc::clone(&self), sender.clone());
            let started = threads::start("leyden-mesh-hello", move || {
                match door.ask(stream) {
                    Ok(come) => drop(sender.send(come)),
                    Err(why) => door.warn(Some(address), &why),
                }
                door.inside.fetch_sub(1, Ordering::SeqCst);
            });
            if started.is_err() {
                self.inside.fetch_sub(1, Ordering::SeqCst);
                self.warn(Some(address), "there is no thread to talk with it");
            }
        }
    }

    /// Who it is, if it can prove it.
    pub(super) fn ask(&self, mut stream: TcpStream) -> Result<((usize, Channel), TcpStream), String> {
        let deadline = Instant::now() + MANNERS;
        stream
            .set_nonblocking(false)
            .and_then(|()| stream.set_nodelay(true))
            .map_err(|error| error.to_string())?;
        stream.set_write_timeout(Some(MANNERS)).map_err(|error| error.to_string())?;
        let mut opening = [0; Hello::BYTES];
        if let Err((read, error)) = read_some(&mut stream, &mut opening, deadline) {
            return Err(match read {
                0 => "it says nothing".to_owned(),
                _ if opening.starts_with(&Hello::MAGIC[..read.min(16)]) => {
                    format!("it begins as a rank does, and says no more ({error})")
                }
                _ => classify(&opening[..read]).to_string(),
            });
        }
        let Some(hello) = Hello::decode(&opening) else { return Err(classify(&opening).to_string()) };
        if hello.to != self.rank {
            return Err(format!("it looks for rank {}", hello.to));
        }
        let gone =
            |error: io::Error| format!("it says it is rank {}, and has gone away ({error})", hello.from);
        let ours = nonce().map_err(|error| error.to_string())?;
        let proof = self.secret.proof(&hello.purpose("takes"), [&hello.nonce, &ours]);
        stream.write_all(&[ours, proof].concat()).map_err(gone)?;
        let mut proof = [0; 32];
        read_some(&mut stream, &mut proof, deadline).map_err(|(_, error)| gone(error))?;
        if !self.secret.is_proof(&proof, &hello.purpose("comes"), [&hello.nonce, &ours]) {
            return Err(format!(
                "it says it is rank {}, and cannot prove it: it has another token",
                hello.from
            ));
        }
        Ok(((hello.from, hello.channel), stream))
    }

    /// Names a stranger, in one line.
    fn warn(&self, address: Option<SocketAddr>, why: &str) {
        /// A port that is scanned must not fill a log.
        const MOST: usize = 16;
        if self.warnings.fetch_add(1, Ordering::SeqCst) < MOST {
            let from = address.map_or_else(|| "somewhere".to_owned(), |address| address.to_string());
            let _ = writeln!(
                io::stderr(),
                "leyden: warning: a connection from {from} to rank {} was refused: {why}",
                self.rank
            );
        }
    }
}

/// What both connections of a pair need once they stand.
fn settle(stream: &TcpStream, pulse: &TcpStream) -> io::Result<()> {
    let alive = TcpKeepalive::new().with_time(BEAT).with_interval(BEAT).with_retries(2);
    for connection in [stream, pulse] {
        connection.set_read_timeout(None)?;
        connection.set_write_timeout(None)?;
        SockRef::from(connection).set_tcp_keepalive(&alive)?;
    }
    // Not on the other one: the kernel would also count the time in which a process that is stopped does not read.
    SockRef::from(pulse).set_tcp_user_timeout(Some(2 * BEAT))?;
    pulse.set_nonblocking(true)
}

fn read_until(stream: &mut TcpStream, bytes: &mut [u8], deadline: Instant) -> io::Result<()> {
    read_some(stream, bytes, deadline).map_err(|(_, error)| error)
}

/// Fills `bytes`; if that fails, says how many have come.
fn read_some(stream: &mut TcpStream, bytes: &mut [u8], deadline: Instant) -> Result<(), (usize, io::Error)> {
    let mut read = 0;
    while read < bytes.len() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err((read, io::ErrorKind::TimedOut.into()));
        }
        let more = stream.set_read_timeout(Some(left)).and_then(|()| stream.read(&mut bytes[read..]));
        match more {
            Ok(0) => return Err((read, io::ErrorKind::UnexpectedEof.into())),
            Ok(more) => read += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err((read, io::ErrorKind::TimedOut.into()));
            }
            Err(error) => return Err((read, error)),
        }
    }
    Ok(())
}

/// What a rank that is taken in hears.
const WELCOME: [u8; 1] = *b"!";
/// How many are asked at once who they are.
const MOST_AT_THE_DOOR: usize = 64;
/// How long one may take to say who it is; a rank needs milliseconds.
const MANNERS: Duration = Duration::from_secs(5);
/// How long to wait before a connection is tried again.
const AGAIN: Duration = Duration::from_millis(50);
/// How often the kernel asks a silent peer's kernel whether it is there; after two without an answer it is not.
const BEAT: Duration = Duration::from_secs(1);
