//! How ranks on several hosts meet, and how each hears what becomes of the others. A star: rank 0 serves, on a socket of its
//! own, whose address it puts into the key-value [`store`](crate::store) of the run. No data goes through it.
//!
//! A rank says who it is and of what build; rank 0 lets it in or says why not, and once all are there, tells each who the
//! others are and where they take connections. From then on each beats, and hears within a moment when another one leaves,
//! fails, or is gone. Who connects has to prove that it has the run's token, and so has who answers.

mod invitation;
pub(crate) mod link;
pub(crate) mod meeting;
mod secret;
mod server;

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use leyden_process::copies::Home;
use leyden_process::{Error, Result, entry, threads};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::codes::{
    NOT_A_NUMBER, SESSION_LOST, SESSION_OTHER_BUILD, SESSION_OTHER_TOKEN, SESSION_UNREACHABLE,
};
use crate::environment::Environment;
use crate::store::Client;
use invitation::{Invitation, Place, Published, cannot_serve, left};
use link::{Link, OPENING, PROTOCOL, ToRank, ToServer, error_to_wire, frame, read_opening};
use meeting::{Hello, Manifest};

use link::{keep_watch, words};
pub(crate) use secret::{Secret, nonce};

/// Whether some ranks are on other hosts than this: as the launcher says or, where it does not, if the master's address is
/// not loopback.
pub(crate) fn is_on_several_hosts(environment: &Environment) -> bool {
    match environment.local_world_size() {
        Some(local) => local < environment.world_size(),
        None if environment.nodes().len() > 1 => true,
        None => environment.master().is_some_and(|(host, _)| {
            host != "localhost" && !host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
        }),
    }
}

/// A socket at which this rank can take the connections of the others, on any free port: of this host alone if all ranks
/// are here.
///
/// # Errors
/// `D0230` if there is none.
pub(crate) fn listener(environment: &Environment) -> Result<TcpListener> {
    Place::listener(is_on_several_hosts(environment), 0).map_err(|error| cannot_serve(&error))
}

/// Meets all ranks of the run; `listener` is where this rank takes the others' connections. Takes as long as the last one
/// takes to come, and `LEYDEN_JOIN_TIMEOUT` seconds at most, 60 by default.
///
/// # Errors
/// `D0220` to `D0230`: each says what the others have said. Those of the store: `D0501` if its port is taken, `D0503` and
/// `D0504` if rank 0 cannot be reached.
pub(crate) fn join(environment: &Environment, listener: &TcpListener) -> Result<Session> {
    join_on(environment, listener, &Terms::of_this_process()?)
}

/// What a rank brings besides its place.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    /// `LEYDEN_TOKEN`.
    pub(crate) token: Option<String>,
    pub(crate) patience: Duration,
    /// torchrun has a store for its ranks.
    pub(crate) agent_store: bool,
    pub(crate) protocol: u32,
    pub(crate) build: String,
    pub(crate) version: String,
    /// A hash of what must be the same on all ranks; 0 if the program does not say.
    pub(crate) configuration: u64,
}

impl Terms {
    /// # Errors
    /// `D0301` if the time limit is none.
    pub(crate) fn of_this_process() -> Result<Self> {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let patience = match variable("LEYDEN_JOIN_TIMEOUT") {
            None => PATIENCE,
            Some(text) => match text.trim().parse::<u32>() {
                Ok(seconds) if seconds > 0 => Duration::from_secs(seconds.into()),
                _ => {
                    let what = "the variable LEYDEN_JOIN_TIMEOUT is not a number of seconds";
                    let value = format!("`{}`", text.escape_debug());
                    return Err(Error::new(NOT_A_NUMBER, what)
                        .at("LEYDEN_JOIN_TIMEOUT", value)
                        .hint("set it to a whole number above 0, or unset it for 60"));
                }
            },
        };
        Ok(Self {
            token: variable("LEYDEN_TOKEN"),
            patience,
            agent_store: variable("TORCHELASTIC_USE_AGENT_STORE")
                .is_some_and(|value| value.eq_ignore_ascii_case("true")),
            protocol: PROTOCOL,
            build: build(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            configuration: 0,
        })
    }
}

/// The same with what is otherwise read from this process.
pub(crate) fn join_on(environment: &Environment, listener: &TcpListener, terms: &Terms) -> Result<Session> {
    let deadline = Instant::now() + terms.patience;
    let place = Place::of(environment, terms)?;
    let own = listener.local_addr().map_err(|error| cannot_serve(&error))?;
    let hello = Hello {
        rank: environment.rank(),
        size: environment.world_size(),
        member: Member { address: own, host: host_name(), pid: std::process::id() },
        manifest: Manifest {
            run: place.run().to_owned(),
            build: terms.build.clone(),
            version: terms.version.clone(),
            configuration: terms.configuration,
        },
    };
    if hello.rank > 0 {
        let (link, secret) =
            find(&place, terms, deadline).map_err(|error| error.at_if_absent("rank", hello.rank))?;
        return enter(link, secret, hello, deadline);
    }
    let (mut store, server) = place.open_store(hello.size, left(deadline))?;
    let joined = serve(&place, terms, &hello, &mut store, server, left(deadline)).and_then(|invitation| {
        let secret = invitation.secret(terms, place.is_on_several_hosts())?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, invitation.port));
        loop {
            match open(address, &secret, terms, left(deadline).min(SHARE)) {
                Ok(link) => return enter(link, secret, hello, deadline),
                // There may be so many strangers that this was taken for one.
                Err(Failed::Later(_)) if !left(deadline).is_zero() => std::thread::sleep(PAUSE),
                Err(failed) => return Err(failed.into_error(&place)),
            }
        }
    });
    if let Err(error) = &joined
        && place.is_of_agent()
    {
        // torchrun's store lives on: who comes late learns it there.
        let _ = place.publish(&mut store, &Published::Failed(error_to_wire(error)), terms.protocol);
    }
    joined
}

/// A run whose ranks have all come.
#[derive(Debug)]
pub(crate) struct Session {
    rank: usize,
    roster: Vec<Member>,
    secret: Secret,
    link: Link,
}

/// Where a rank takes connections, and who it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Member {
    /// Reachable from this host.
    pub(crate) address: SocketAddr,
    pub(crate) host: String,
    pub(crate) pid: u32,
}

/// `node1, pid 77, at 10.0.0.1`.
impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, host, pid } = self;
        write!(f, "{}, pid {pid}", host.escape_debug())?;
        // Of a rank that nobody has seen yet.
        if address.ip().is_unspecified() { Ok(()) } else { write!(f, ", at {}", address.ip()) }
    }
}

impl Session {
    pub(crate) fn rank(&self) -> usize {
        self.rank
    }

    pub(crate) fn size(&self) -> usize {
        self.roster.len()
    }

    /// All ranks, in their order.
    pub(crate) fn roster(&self) -> &[Member] {
        &self.roster
    }

    /// Known to this run's ranks alone: connections between them prove that they have it.
    pub(crate) fn secret(&self) -> &Secret {
        &self.secret
    }

    /// From now on a thread beats and hears what the server pushes, until it is dropped (which says that this rank leaves in
    /// order). A session that is dropped before has not left in order.
    ///
    /// # Errors
    /// `D0230` if there is no thread.
    pub(crate) fn attend(self, hear: impl Fn(Heard) + Send + 'static) -> Result<Attendance> {
        let stream = self.link.stream().try_clone().map_err(|error| cannot_serve(&error))?;
        let shared = Arc::new(Shared {
            stream: Mutex::new(stream),
            progress: AtomicU64::new(0),
            leaves: AtomicBool::new(false),
            over: Mutex::new(false),
            changed: Condvar::new(),
        });
        let attendant = Attendant {
            link: self.link,
            zero: self.roster[0].clone(),
            zero_has_left: false,
            shared: Arc::clone(&shared),
        };
        threads::start("leyden-session", move || attendant.run(hear))
            .map_err(|error| cannot_serve(&error))?;
        Ok(Attendance { shared, home: Home::here() })
    }
}

/// What a rank hears.
#[derive(Debug)]
pub(crate) enum Heard {
    /// Another rank has ended: it has left in order, or not, and in which words.
    Ended { rank: usize, clean: bool, words: String },
    /// Another rank has said that the run has failed.
    Failed { rank: usize, error: Error },
    /// A rank does not beat, or does so again, though its host and its connection stand: it is stopped, or its host is
    /// overloaded. Not a failure.
    Silent { rank: usize, silent: bool },
    /// Nothing will be heard any longer: the process that serves is gone.
    Lost(Error),
}

/// A rank's presence. Dropping it says that the rank leaves in order, and waits a second at most until the others are told.
pub(crate) struct Attendance {
    shared: Arc<Shared>,
    home: Home,
}

impl Attendance {
    /// Says to all others that the run has failed, and of what.
    pub(crate) fn fail(&self, error: &Error) {
        self.shared.say(&ToServer::Fails(error_to_wire(error)));
    }

    /// How far this rank is, as the number of its collectives: it is in the words about its end.
    pub(crate) fn progress(&self, done: u64) {
        self.shared.progress.store(done, Ordering::Relaxed);
    }
}

impl Drop for Attendance {
    fn drop(&mut self) {
        // A copy made by `fork` is not the rank.
        if !self.home.is_here() {
            return;
        }
        self.shared.leaves.store(true, Ordering::Relaxed);
        self.shared.say(&ToServer::Leaves);
        let over = self.shared.over.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = self.shared.changed.wait_timeout_while(over, FAREWELL, |over| !*over);
    }
}

/// What the rank's threads and the one that attends have in common.
struct Shared {
    /// For writing.
    stream: Mutex<TcpStream>,
    progress: AtomicU64,
    leaves: AtomicBool,
    /// Nothing more is heard.
    over: Mutex<bool>,
    changed: Condvar,
}

impl Shared {
    /// That it is lost is noticed by whoever reads.
    fn say(&self, message: &ToServer) {
        let stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = link::send(&stream, &frame(message), Instant::now() + FAREWELL);
    }
}

struct Attendant {
    link: Link,
    zero: Member,
    /// The server ends with it.
    zero_has_left: bool,
    shared: Arc<Shared>,
}

impl Attendant {
    fn run(mut self, hear: impl Fn(Heard)) {
        let mut beats = Instant::now();
        let end = loop {
            if Instant::now() >= beats {
                self.shared.say(&ToServer::Beat(self.shared.progress.load(Ordering::Relaxed)));
                beats = Instant::now() + BEAT;
            }
            match self.link.message(beats) {
                Ok(ToRank::Bye) => break None,
                Ok(message) => self.pass_on(message, &hear),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => break Some(error),
            }
        };
        if let Some(error) = end
            && !self.zero_has_left
            && !self.shared.leaves.load(Ordering::Relaxed)
        {
            hear(Heard::Lost(lost(&self.zero, &error)));
        }
        *self.shared.over.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.shared.changed.notify_all();
    }

    fn pass_on(&mut self, message: ToRank, hear: &impl Fn(Heard)) {
        match message {
            ToRank::Ended { rank, clean, words } => {
                self.zero_has_left |= rank == 0 && clean;
                hear(Heard::Ended { rank, clean, words });
            }
            ToRank::Failed { by, error } => {
                let unreadable = || Error::new(SESSION_LOST, "the reason why a rank failed cannot be read");
                let error = Error::from_wire(&error).unwrap_or_else(unreadable);
                hear(Heard::Failed { rank: by.unwrap_or(0), error });
            }
            ToRank::Silent { rank, silent } => hear(Heard::Silent { rank, silent }),
            // It was said before, or is said by who reads it.
            ToRank::Accepted(_) | ToRank::Refused(_) | ToRank::Roster(_) | ToRank::Bye => {}
        }
    }
}

/// Rank 0 serves from now on, and can be found.
fn serve(
    place: &Place,
    terms: &Terms,
    hello: &Hello,
    store: &mut Client,
    server: Option<crate::store::Server>,
    join: Duration,
) -> Result<Invitation> {
    let listener = Place::listener(place.is_on_several_hosts(), 0).map_err(|error| cannot_serve(&error))?;
    // Thousands may come at once.
    let _ = socket2::SockRef::from(&listener).listen(4096);
    let port = listener.local_addr().map_err(|error| cannot_serve(&error))?.port();
    let ours = store.ends().map(|(ours, _)| ours.ip().to_canonical());
    let invitation = Invitation {
        session: nonce()?,
        run: place.run().to_owned(),
        port,
        addresses: ours.into_iter().filter(|ip| !ip.is_loopback()).collect(),
        secret: if terms.token.is_none() { Some(nonce()?) } else { None },
    };
    let secret = invitation.secret(terms, place.is_on_several_hosts())?;
    server::start(server::Options {
        listener,
        zero: hello.clone(),
        secret,
        protocol: terms.protocol,
        join,
        store: server,
    })?;
    place.publish(store, &Published::Open(invitation.clone()), terms.protocol)?;
    Ok(invitation)
}

/// Finds rank 0, which may come later than this rank, and be another process than the store says until then.
fn find(place: &Place, terms: &Terms, deadline: Instant) -> Result<(Link, Secret)> {
    let mut last = None;
    let mut store: Option<Client> = None;
    loop {
        if left(deadline).is_zero() {
            let error = last.unwrap_or_else(|| Failed::later("it has not said where it serves"));
            return Err(error.into_error(place).at("waited", format!("{:?}", terms.patience)));
        }
        let client = match &mut store {
            Some(client) => client,
            None => store.insert(place.connect(left(deadline))?),
        };
        let invitation = match place.read(client, terms, left(deadline).min(LOOK)) {
            Ok(Some(invitation)) => invitation,
            Ok(None) => continue,
            Err(error) if is_of_store(&error) => {
                // Whoever has it may have been about to end.
                last = Some(Failed::later(&format!("the store was lost: {error}")));
                store = None;
                std::thread::sleep(PAUSE);
                continue;
            }
            Err(error) => return Err(error),
        };
        let secret = invitation.secret(terms, place.is_on_several_hosts())?;
        let addresses = place.addresses(&invitation, client);
        for (index, address) in addresses.iter().enumerate() {
            // One that swallows everything must not use up the time of the others.
            let share = left(deadline).min(SHARE) / (addresses.len() - index) as u32;
            match open(*address, &secret, terms, share) {
                Ok(link) => return Ok((link, secret)),
                Err(Failed::Finally(error)) => return Err(*error),
                Err(later) => last = Some(later),
            }
        }
        std::thread::sleep(PAUSE.min(left(deadline)));
    }
}

/// Why there is no connection to rank 0.
enum Failed {
    /// For now.
    Later(String),
    Finally(Box<Error>),
}

impl Failed {
    fn later(why: &str) -> Self {
        Self::Later(why.to_owned())
    }

    fn into_error(self, place: &Place) -> Error {
        match self {
            Self::Finally(error) => *error,
            Self::Later(why) => Error::new(SESSION_UNREACHABLE, "rank 0 cannot be reached")
                .at("its store", place.address())
                .why(why)
                .hint("look at what rank 0 says, and whether it runs")
                .hint("the ranks connect to any port of rank 0's host: a firewall must let them"),
        }
    }
}

/// Connects to the server, and proves that both have the secret.
fn open(address: SocketAddr, secret: &Secret, terms: &Terms, within: Duration) -> Result<Link, Failed> {
    let deadline = Instant::now() + within;
    let failed = |error: &io::Error| Failed::Later(format!("{address}: {}", words(error)));
    let within = within.max(Duration::from_millis(1));
    let stream = TcpStream::connect_timeout(&address, within)
        .map_err(|error| Failed::Later(format!("{address}: {error}")))?;
    keep_watch(&stream).map_err(|error| failed(&error))?;
    let own = nonce().map_err(|error| Failed::Finally(Box::new(error)))?;
    let mut link = Link::new(stream);
    link.send(&link::opening(terms.protocol, &own), deadline).map_err(|error| failed(&error))?;
    let answer = link.bytes::<OPENING>(deadline).map_err(|error| failed(&error))?;
    let Some((protocol, theirs)) = read_opening(&answer) else {
        return Err(Failed::Later(format!("{address} answers, and is no rank 0")));
    };
    if protocol != terms.protocol {
        let error = Error::new(SESSION_OTHER_BUILD, "rank 0 is of another version of Leyden")
            .at("rank 0", format!("protocol {protocol}"))
            .at("this rank", format!("protocol {}", terms.protocol))
            .hint("copy one build to all hosts, or start it from a file system that they share");
        return Err(Failed::Finally(Box::new(error)));
    }
    let proof = link::proof_of_client(secret, &own, &theirs);
    link.send(&proof, deadline).map_err(|error| failed(&error))?;
    let [verdict] = link.bytes::<1>(deadline).map_err(|error| failed(&error))?;
    let other = |who: &str| {
        Error::new(SESSION_OTHER_TOKEN, "this rank has another token than rank 0")
            .at("rank 0", address)
            .why(who)
            .hint("set LEYDEN_TOKEN to the same on all ranks, as it is on rank 0")
    };
    if verdict != 1 {
        return Err(Failed::Finally(Box::new(other("rank 0 does not take this rank's proof for one"))));
    }
    let proof = link.bytes::<32>(deadline).map_err(|error| failed(&error))?;
    if !link::is_server(secret, &proof, &own, &theirs) {
        return Err(Failed::Finally(Box::new(other("what answers for rank 0 cannot prove that it is it"))));
    }
    Ok(link)
}

/// Says who this rank is, and waits until all are there.
fn enter(mut link: Link, secret: Secret, hello: Hello, deadline: Instant) -> Result<Session> {
    let rank = hello.rank;
    let size = hello.size;
    let gone = |error: io::Error| match error.kind() {
        ErrorKind::WouldBlock => Error::new(SESSION_UNREACHABLE, "rank 0 does not say whether all have come")
            .at("rank", rank)
            .why("its connection stands: its process is stopped, or its host is overloaded")
            .hint("look at what rank 0 does, and says"),
        _ => Error::new(SESSION_LOST, "rank 0 has gone before all had come")
            .at("rank", rank)
            .why(words(&error))
            .hint("look at what rank 0 says: its own error is the cause"),
    };
    let unreadable = || Error::new(SESSION_LOST, "what rank 0 says cannot be read").at("rank", rank);
    let error_of = |wire: &[u8]| Error::from_wire(wire).unwrap_or_else(unreadable);
    link.send(&frame(&ToServer::Hello(hello)), deadline).map_err(gone)?;
    let mut until = deadline;
    let roster = loop {
        match link.message(until).map_err(gone)? {
            // From now on the server's deadline counts: it knows who is missing.
            ToRank::Accepted(millis) => until = Instant::now() + Duration::from_millis(millis) + VERDICT,
            ToRank::Roster(roster) => break roster,
            ToRank::Refused(wire) | ToRank::Failed { error: wire, .. } => {
                return Err(error_of(&wire).at_if_absent("rank", rank));
            }
            ToRank::Ended { .. } | ToRank::Silent { .. } | ToRank::Bye => {}
        }
    };
    if roster.len() != size || rank >= size {
        return Err(unreadable());
    }
    let server = link.stream().peer_addr().map_err(gone)?.ip().to_canonical();
    let roster = roster.iter().map(|member| reached(member.clone(), server)).collect();
    Ok(Session { rank, roster, secret, link })
}

/// A rank that rank 0 saw on its own host is where rank 0 is.
fn reached(mut member: Member, server: IpAddr) -> Member {
    let ip = member.address.ip().to_canonical();
    member.address.set_ip(if ip.is_loopback() || ip.is_unspecified() { server } else { ip });
    member
}

fn lost(zero: &Member, error: &io::Error) -> Error {
    Error::new(SESSION_LOST, "the connection to rank 0, which serves the session, is lost")
        .at("rank 0", zero)
        .why(words(error))
        .hint("look at what rank 0 says: its own error, or how it was ended, is the cause")
}

fn is_of_store(error: &Error) -> bool {
    error.code().id.starts_with("D05")
}

/// What tells one build of the program from another, on all hosts.
fn build() -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    if let Some(id) = entry::linker_build_id() {
        return hex(&id);
    }
    let mut content = Sha256::new();
    let hashed = std::fs::File::open("/proc/self/exe").and_then(|mut file| io::copy(&mut file, &mut content));
    hashed.map_or_else(|_| "unknown".to_owned(), |_| format!("sha256 {}", hex(&content.finalize())))
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "a host without a name".to_owned() } else { name.trim().to_owned() }
}

/// How long ranks wait for each other, unless `LEYDEN_JOIN_TIMEOUT` says how many seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a rank says that it lives.
const BEAT: Duration = Duration::from_millis(250);
/// How long one that leaves waits until the others are told.
const FAREWELL: Duration = Duration::from_secs(1);
/// How much longer than the server one waits for its verdict.
const VERDICT: Duration = Duration::from_secs(5);
/// How long a connection to rank 0 may take before the store is asked again where it is.
const SHARE: Duration = Duration::from_secs(5);
/// How long one waits for rank 0 before looking at the time.
const LOOK: Duration = Duration::from_secs(1);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests;
