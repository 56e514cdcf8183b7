//! The store's server: accepts, reads requests, answers. What is kept is in `table.rs`.
//!
//! Each connection has a thread, which reads its requests and writes its replies. One exception: the byte that ends a wait
//! is written by whoever ends it. A socket's writes time out after a moment, so that this costs nobody else more than that
//! moment, whatever the peer does; the connection's own thread tries for longer.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::budget::{Budget, Bytes};
use super::owner;
use super::protocol::{
    Decoder, NOT_READY, READY, Request, STOP_WAITING, Stop, WAIT_CANCELED, classify, timed_out,
};
use super::table::{Table, Ticket};
use crate::codes::{STORE_LISTEN, STORE_PORT_TAKEN, STORE_THREAD};
use crate::{Error, Result};

pub use super::protocol::Strange;

/// How a [`Server`] is run.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Where to listen. By default any free port of `127.0.0.1`: nobody else reaches it, and no port can be taken.
    pub listen: SocketAddr,
    /// The most connections at a time; more are closed at once. By default 4096: PyTorch opens a few for each rank.
    pub connections: usize,
    /// The most memory in bytes for keys and values, with those that are arriving. By default 1 GiB.
    pub memory: usize,
    /// How long a peer may take to introduce itself, to go on with a request, or to read on. By default 10 s. Between two
    /// requests it may take as long as it likes.
    pub patience: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            connections: 4096,
            memory: 1 << 30,
            patience: Duration::from_secs(10),
        }
    }
}

/// Somebody whom the server has cut off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stranger {
    /// Where it came from.
    pub peer: SocketAddr,
    /// Why it was cut off.
    pub strange: Strange,
    /// How it began, if it never was a client: its first line, up to 64 bytes; what is not printable is escaped.
    pub opening: String,
}

/// `127.0.0.1:51234: it speaks HTTP: "GET / HTTP/1.1"`.
impl fmt::Display for Stranger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.peer, self.strange)?;
        if self.opening.is_empty() { Ok(()) } else { write!(f, ": \"{}\"", self.opening) }
    }
}

/// A key-value store that others reach over TCP; PyTorch's `TCPStore` with `is_master=True`. It serves until it is dropped.
pub struct Server {
    shared: Arc<Shared>,
    address: SocketAddr,
    acceptor: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens and serves.
    ///
    /// # Errors
    ///
    /// `D0501` the port is taken (and by whom), `D0502` there is no listening on this address, `D0511` no thread could be
    /// started.
    pub fn start(options: ServerOptions) -> Result<Self> {
        let listener =
            TcpListener::bind(options.listen).map_err(|error| cannot_listen(options.listen, &error))?;
        Self::from_listener(listener, options)
    }

    /// Serves on a socket that listens already: bound once and handed on, so that nobody can take the port in between.
    /// [`ServerOptions::listen`] is not read.
    ///
    /// # Errors
    ///
    /// `D0502` the socket does not listen, `D0511` no thread could be started.
    pub fn from_listener(listener: TcpListener, options: ServerOptions) -> Result<Self> {
        let prepared = listener.local_addr().and_then(|address| {
            listener.set_nonblocking(false)?;
            // So that it looks up now and then even if nobody can connect to wake it: descriptors may have run out.
            let socket = TcpStream::from(OwnedFd::from(listener.try_clone()?));
            socket.set_read_timeout(Some(LOOK_UP))?;
            Ok(address)
        });
        let named = listener.local_addr().unwrap_or(options.listen);
        let address = prepared.map_err(|error| cannot_listen(named, &error))?;
        let shared = Arc::new(Shared::new(options));
        lock(&shared.registry).accepting = true;
        let accepting = shared.clone();
        let acceptor = thread("leyden-store", move || accept(&accepting, &listener)).map_err(|error| {
            Error::new(STORE_THREAD, "the store's thread could not be started")
                .at("address", address)
                .because(&error)
                .hint("raise the limit on threads and processes (`ulimit -u`, the cgroup's `pids.max`)")
        })?;
        Ok(Self { shared, address, acceptor: Some(acceptor) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        lock(&self.shared.registry).connections.len()
    }

    /// Whom it has cut off, oldest first: the last 64 of them.
    pub fn strangers(&self) -> Vec<Stranger> {
        lock(&self.shared.strangers).iter().cloned().collect()
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Drop for Server {
    /// Closes all connections and waits for the threads, a few milliseconds as a rule and 5 s at most.
    fn drop(&mut self) {
        const PATIENCE: Duration = Duration::from_secs(5);
        let mut registry = lock(&self.shared.registry);
        registry.stopping = true;
        for connection in registry.connections.values() {
            let _ = connection.connection.stream.shutdown(Shutdown::Both);
        }
        drop(registry);
        // Whether this arrives or not, the acceptor looks up.
        let _ = TcpStream::connect_timeout(&reachable(self.address), LOOK_UP);
        let registry = lock(&self.shared.registry);
        let busy = |registry: &mut Registry| registry.accepting || !registry.connections.is_empty();
        let (mut registry, waited) = self
            .shared
            .changed
            .wait_timeout_while(registry, PATIENCE, busy)
            .unwrap_or_else(PoisonError::into_inner);
        let finished = std::mem::take(&mut registry.finished);
        drop(registry);
        if !waited.timed_out() {
            // They have done their last, so that this takes no time.
            for thread in finished.into_iter().chain(self.acceptor.take()) {
                let _ = thread.join();
            }
        }
    }
}

/// How long the acceptor sleeps at most.
const LOOK_UP: Duration = Duration::from_millis(500);

/// What a write may cost whoever ends another's wait.
const MOMENT: Duration = Duration::from_millis(20);

/// What all threads of a server have in common. Nobody waits for a socket while he has a lock.
struct Shared {
    options: ServerOptions,
    budget: Arc<Budget>,
    table: Mutex<Table<Arc<Connection>>>,
    tickets: AtomicU64,
    registry: Mutex<Registry>,
    /// The registry has.
    changed: Condvar,
    strangers: Mutex<VecDeque<Stranger>>,
}

#[derive(Default)]
struct Registry {
    accepting: bool,
    stopping: bool,
    next: u64,
    connections: BTreeMap<u64, Registered>,
    /// Threads that are about to end.
    finished: Vec<JoinHandle<()>>,
}

struct Registered {
    connection: Arc<Connection>,
    thread: JoinHandle<()>,
}

struct Connection {
    stream: TcpStream,
    peer: SocketAddr,
    /// The wait that has not been answered. Whoever takes it answers it, while he has the lock.
    waiting: Mutex<Option<Ticket>>,
}

impl Shared {
    fn new(options: ServerOptions) -> Self {
        let budget = Budget::new(options.memory);
        Self {
            table: Mutex::new(Table::new(budget.clone())),
            budget,
            options,
            tickets: AtomicU64::new(1),
            registry: Mutex::default(),
            changed: Condvar::new(),
            strangers: Mutex::default(),
        }
    }

    fn note(&self, peer: SocketAddr, strange: Strange, opening: &[u8]) {
        /// Enough to see what is going on, and no more whoever calls.
        const MOST: usize = 64;
        let mut strangers = lock(&self.strangers);
        if strangers.len() == MOST {
            strangers.pop_front();
        }
        let line = opening.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let opening = line.trim_ascii_end().escape_ascii().to_string();
        strangers.push_back(Stranger { peer, strange, opening });
    }

    /// Does something with the table, and then wakes those whose wait it has ended.
    fn with<R>(&self, act: impl FnOnce(&mut Table<Arc<Connection>>) -> R) -> R {
        let mut table = lock(&self.table);
        let result = act(&mut table);
        let woken = table.woken();
        drop(table);
        for (connection, ticket) in woken {
            if !connection.wake(ticket) {
                self.note(connection.peer, Strange::NotReading, b"");
            }
        }
        result
    }

    /// Begins a wait by `begin`, which says whether it is not over already.
    fn wait(
        &self,
        connection: &Arc<Connection>,
        begin: impl FnOnce(&mut Table<Arc<Connection>>, Ticket) -> Result<bool, Strange>,
    ) -> Result<(), Stop> {
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        // Before anybody can end it.
        *lock(&connection.waiting) = Some(ticket);
        if self.with(|table| begin(table, ticket)).map_err(Stop::Strange)? {
            return Ok(());
        }
        *lock(&connection.waiting) = None;
        connection.reply(&[STOP_WAITING], self.options.patience)
    }

    /// Takes back a wait, if there is one. One that was just ended may have been for an item that somebody else gets now.
    fn cancel(&self, connection: &Connection) {
        let ticket = lock(&connection.waiting).take();
        self.with(|table| {
            if !ticket.is_some_and(|ticket| table.cancel(ticket)) {
                table.nudge();
            }
        });
    }
}

impl Connection {
    /// Says that the wait is over, unless it was taken back; `false` if the peer does not read that.
    fn wake(&self, ticket: Ticket) -> bool {
        let mut waiting = lock(&self.waiting);
        if *waiting != Some(ticket) {
            return true;
        }
        *waiting = None;
        loop {
            match (&self.stream).write(&[STOP_WAITING]) {
                Ok(1) => return true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if !timed_out(error.kind()) => return true, // it has gone; its thread notices
                _ => {
                    let _ = self.stream.shutdown(Shutdown::Both);
                    return false;
                }
            }
        }
    }

    /// Writes all of it, as long as the peer goes on reading.
    fn reply(&self, mut bytes: &[u8], patience: Duration) -> Result<(), Stop> {
        let mut progress = Instant::now();
        while !bytes.is_empty() {
            match (&self.stream).write(bytes) {
                Ok(0) => return Err(Stop::Ended),
                Ok(written) => {
                    bytes = &bytes[written..];
                    progress = Instant::now();
                }
                Err(error) if timed_out(error.kind()) => {
                    if progress.elapsed() > patience {
                        return Err(Stop::Strange(Strange::NotReading));
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Stop::Ended),
            }
        }
        Ok(())
    }
}

/// The accepting thread.
fn accept(shared: &Arc<Shared>, listener: &TcpListener) {
    loop {
        let accepted = listener.accept();
        let mut registry = lock(&shared.registry);
        if registry.stopping {
            break;
        }
        for thread in std::mem::take(&mut registry.finished) {
            let _ = thread.join();
        }
        match accepted {
            Ok((stream, peer)) => {
                if let Err(strange) = admit(shared, &mut registry, stream, peer) {
                    drop(registry);
                    shared.note(peer, strange, b"");
                }
            }
            Err(error) if timed_out(error.kind()) || error.kind() == ErrorKind::Interrupted => {}
            Err(_) => {
                // No descriptor is left, or somebody left before he was accepted. The first lasts: do not spin.
                drop(registry);
                std::thread::sleep(MOMENT);
            }
        }
    }
    lock(&shared.registry).accepting = false;
    shared.changed.notify_all();
}

fn admit(
    shared: &Arc<Shared>,
    registry: &mut Registry,
    stream: TcpStream,
    peer: SocketAddr,
) -> Result<(), Strange> {
    let prepared = stream
        .set_nodelay(true)
        .and_then(|()| stream.set_write_timeout(Some(MOMENT)))
        .and_then(|()| stream.set_read_timeout(Some(shared.options.patience.max(MOMENT))));
    if registry.connections.len() >= shared.options.connections || prepared.is_err() {
        return Err(Strange::TooMany);
    }
    let number = registry.next;
    let connection = Arc::new(Connection { stream, peer, waiting: Mutex::new(None) });
    let (ours, theirs) = (shared.clone(), connection.clone());
    let thread = thread("leyden-store", move || {
        converse(&ours, &theirs);
        let mut registry = lock(&ours.registry);
        if let Some(gone) = registry.connections.remove(&number) {
            registry.finished.push(gone.thread);
        }
        drop(registry);
        ours.changed.notify_all();
    });
    let thread = thread.map_err(|_| Strange::TooMany)?;
    registry.next += 1;
    registry.connections.insert(number, Registered { connection, thread });
    Ok(())
}

/// A connection's thread.
fn converse(shared: &Shared, connection: &Arc<Connection>) {
    let mut decoder = Decoder::new(&connection.stream, shared.budget.clone());
    let mut opening = Vec::new();
    match decoder.validate(&mut opening) {
        Ok(()) => {
            let stop = serve(shared, connection, &mut decoder);
            shared.cancel(connection);
            if let Stop::Strange(strange) = stop {
                shared.note(connection.peer, strange, b"");
            }
        }
        Err(Stop::Ended) => {}
        Err(Stop::Strange(strange @ (Strange::Silent | Strange::Stalled))) => {
            shared.note(connection.peer, strange, &opening);
        }
        Err(Stop::Strange(_)) => {
            /// For the rest of its first line, which says who it is.
            const CURIOSITY: Duration = Duration::from_millis(200);
            let _ = connection.stream.set_read_timeout(Some(CURIOSITY));
            decoder.opening(&mut opening);
            shared.note(connection.peer, classify(&opening), &opening);
        }
    }
    let _ = connection.stream.shutdown(Shutdown::Both);
}

fn serve(shared: &Shared, connection: &Arc<Connection>, decoder: &mut Decoder<&TcpStream>) -> Stop {
    loop {
        let answered = decoder.request().and_then(|request| answer(shared, connection, request));
        if let Err(stop) = answered {
            return stop;
        }
    }
}

fn answer(shared: &Shared, connection: &Arc<Connection>, request: Request) -> Result<(), Stop> {
    let strange = Stop::Strange;
    if !matches!(request, Request::CancelWait) && lock(&connection.waiting).is_some() {
        return Err(strange(Strange::Disordered));
    }
    let reply = |bytes: &[u8]| connection.reply(bytes, shared.options.patience);
    let number = |number: usize| reply(&(number as i64).to_le_bytes());
    match request {
        Request::Set(key, value) => shared.with(|table| table.set(key, value)),
        Request::CompareSet { key, expected, desired } => {
            let value = shared.with(|table| table.compare_set(key, expected, desired));
            Reply::new(&reply).bytes(&value)?.end()?;
        }
        Request::Get(key) => {
            let value = shared.with(|table| table.get(&key));
            Reply::new(&reply).optional(value.as_deref())?.end()?;
        }
        Request::Add(key, delta) => {
            let sum = shared.with(|table| table.add(key, delta)).map_err(strange)?;
            reply(&sum.to_le_bytes())?;
        }
        Request::Check(keys) => {
            let ready = shared.with(|table| table.check(&keys));
            reply(&[if ready { READY } else { NOT_READY }])?;
        }
        Request::Wait(keys) => {
            shared.wait(connection, |table, ticket| Ok(table.wait(ticket, connection.clone(), keys)))?;
        }
        Request::NumberOfKeys => number(shared.with(|table| table.number_of_keys()))?,
        Request::Delete(key) => number(usize::from(shared.with(|table| table.delete(&key))))?,
        Request::Append(key, data) => shared.with(|table| table.append(key, data)).map_err(strange)?,
        Request::MultiGet(keys) => {
            let values: Vec<_> = shared.with(|table| keys.iter().map(|key| table.get(key)).collect());
            let mut whole = Reply::new(&reply);
            for value in values {
                whole = whole.optional(value.as_deref())?;
            }
            whole.end()?;
        }
        Request::MultiSet(pairs) => shared.with(|table| {
            for (key, value) in pairs {
                table.set(key, value);
            }
        }),
        Request::CancelWait => {
            shared.cancel(connection);
            reply(&[WAIT_CANCELED])?;
        }
        Request::Ping(nonce) => reply(&nonce.to_le_bytes())?,
        Request::Push(key, item) => shared.with(|table| table.push(key, item)),
        Request::Pop(key) => {
            let (length, item) = shared.with(|table| table.pop(&key));
            let mut whole = Reply::new(&reply).number(length as i64)?;
            if let Some(item) = item {
                whole = whole.bytes(&item)?;
            }
            whole.end()?;
        }
        Request::QueueLength(key) => number(shared.with(|table| table.queue_length(&key)))?,
        Request::ListKeys => {
            let keys = shared.with(|table| table.keys());
            let mut whole = Reply::new(&reply).number(keys.len() as i64)?;
            for key in keys {
                whole = whole.bytes(&key)?;
            }
            whole.end()?;
        }
        Request::Barrier(key, world) => {
            shared.wait(connection, |table, ticket| table.barrier(ticket, connection.clone(), key, world))?;
        }
    }
    Ok(())
}

/// A reply of several parts, gathered so that small ones travel together and large ones are not copied.
struct Reply<'a, S> {
    send: &'a S,
    gathered: Vec<u8>,
}

impl<'a, S: Fn(&[u8]) -> Result<(), Stop>> Reply<'a, S> {
    const ENOUGH: usize = 64 << 10;

    fn new(send: &'a S) -> Self {
        Self { send, gathered: Vec::new() }
    }

    fn number(self, number: i64) -> Result<Self, Stop> {
        self.raw(&number.to_le_bytes())
    }

    fn bytes(self, bytes: &[u8]) -> Result<Self, Stop> {
        self.number(bytes.len() as i64)?.raw(bytes)
    }

    /// What is not there is sent as nothing, as PyTorch's server does.
    fn optional(self, bytes: Option<&Bytes>) -> Result<Self, Stop> {
        self.bytes(bytes.map_or(&[], |bytes| bytes))
    }

    fn raw(mut self, bytes: &[u8]) -> Result<Self, Stop> {
        if self.gathered.len() + bytes.len() > Self::ENOUGH {
            (self.send)(&self.gathered)?;
            self.gathered.clear();
        }
        if bytes.len() > Self::ENOUGH {
            (self.send)(bytes)?;
        } else {
            self.gathered.extend_from_slice(bytes);
        }
        Ok(self)
    }

    fn end(self) -> Result<(), Stop> {
        (self.send)(&self.gathered)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn thread(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    /// Its calls are not deep and its buffers not on it; a few hundred threads are a few hundred of these, mostly untouched.
    const STACK: usize = 256 << 10;
    std::thread::Builder::new().name(name.to_owned()).stack_size(STACK).spawn(body)
}

/// An address on this host that leads to who listens on `address`.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

fn cannot_listen(address: SocketAddr, error: &io::Error) -> Error {
    if error.kind() == ErrorKind::AddrInUse {
        let taken = Error::new(STORE_PORT_TAKEN, format!("the store's port {} is taken", address.port()))
            .at("address", address)
            .hint("port 0 takes a free one, and `Server::address` tells which");
        return match owner::of(address.port()) {
            Some(owner) => taken.at("by", owner).hint("end it if it is left over from an earlier run"),
            None => taken,
        };
    }
    let refused = Error::new(STORE_LISTEN, "the store cannot listen on its address")
        .at("address", address)
        .because(error);
    match error.kind() {
        ErrorKind::AddrNotAvailable => refused
            .why("no interface of this host has that address")
            .hint("listen on 127.0.0.1 for one host, on 0.0.0.0 for several; `ip addr` lists what there is"),
        ErrorKind::PermissionDenied => refused.hint("ports below 1024 are the system's: take a higher one"),
        _ => refused.hint("check the address, and the limit on open files (`ulimit -n`)"),
    }
}
