//! The store's client: one connection, one request at a time, each with a deadline.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::protocol::{self, Frame, LARGEST_VALUE, LONGEST_KEY, MOST_KEYS, Strange, classify, timed_out};
use crate::codes::{
    STORE_ADDRESS, STORE_LIMIT, STORE_LOST, STORE_REPLY, STORE_SILENT, STORE_STRANGER, STORE_TIMEOUT,
    STORE_UNREACHABLE,
};
use crate::{Error, Result};

/// How a [`Client`] connects.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// How long to try, name look-ups included. By default 10 s: the server may be started later than its clients. PyTorch
    /// tries for its `timeout`, and each try may take as long.
    pub deadline: Duration,
    /// How long [`get`](Client::get), [`wait`](Client::wait) and [`multi_get`](Client::multi_get) wait for their keys. By
    /// default 300 s, as PyTorch's.
    pub timeout: Duration,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(10), timeout: Duration::from_secs(300) }
    }
}

/// A connection to a store: a [`Server`](super::Server), or PyTorch's; PyTorch's `TCPStore` with `is_master=False`.
///
/// Keys are those that PyTorch's clients see under the same names. A connection that has failed stays so: every further
/// request says why.
pub struct Client {
    stream: TcpStream,
    address: String,
    timeout: Duration,
    /// Why it cannot be used any longer.
    broken: Option<String>,
}

/// How long a server may take for an answer that it has at hand. It is not short, because machines are busy at the start.
const PROMPT: Duration = Duration::from_secs(30);

impl Client {
    /// Connects to `host:port` (an IPv6 address in brackets), and makes sure that a store answers there. What is not up yet
    /// is tried again until the deadline.
    ///
    /// A name that the system's resolver cannot answer in time leaves a thread behind until the resolver gives up.
    ///
    /// # Errors
    ///
    /// `D0503` the address is none, or its name unknown; `D0504` nobody answers: says what was tried and how that ended;
    /// `D0505` what answers is no store.
    pub fn connect(address: &str, options: ConnectOptions) -> Result<Self> {
        let silence = options.deadline;
        Self::connect_unless_silent(address, options, silence)
    }

    /// The same, but gives up earlier, after `silence`, where nothing answers that could become a store: no host of that name,
    /// no word from its address. A host that refuses the connection is there, and may have a store in a moment.
    pub(crate) fn connect_unless_silent(
        address: &str,
        options: ConnectOptions,
        silence: Duration,
    ) -> Result<Self> {
        /// What a try takes that is to say more than that there was no time.
        const LAST_TRY: Duration = Duration::from_millis(20);
        let (end, silent) = (after(options.deadline), after(silence.min(options.deadline)));
        let (host, port) = split(address)?;
        let mut tries = Tries::default();
        let mut pause = Duration::from_millis(10);
        loop {
            let until = if tries.answered { end } else { silent };
            match resolve(host, port, left(until)) {
                Ok(found) => {
                    let count = found.len();
                    for (index, socket) in found.into_iter().enumerate() {
                        // One that swallows everything must not use up the time of the others.
                        let share = left(until) / (count - index) as u32;
                        match Self::open(socket, address, share, &options) {
                            Ok(client) => return Ok(client),
                            Err(Failed::Finally(error)) => return Err(*error),
                            Err(Failed::Now { why, answered }) => tries.add(socket, why, answered),
                        }
                    }
                }
                // The first reason: a later look-up may just have had too little time left.
                Err(why) => _ = tries.unresolved.get_or_insert(why),
            }
            std::thread::sleep(pause.min(left(end)));
            pause = (pause * 2).min(Duration::from_millis(200));
            let until = if tries.answered { end } else { silent };
            if left(until) < LAST_TRY {
                let tried = if tries.answered { options.deadline } else { silence.min(options.deadline) };
                return Err(tries.into_error(address, host, tried));
            }
        }
    }

    fn open(
        socket: SocketAddr,
        address: &str,
        share: Duration,
        options: &ConnectOptions,
    ) -> std::result::Result<Self, Failed> {
        let end = after(share);
        let share = share.max(SHORTEST);
        let stream = TcpStream::connect_timeout(&socket, share).map_err(|error| match error.kind() {
            kind if timed_out(kind) => {
                let why = "no answer: the host is off, or something drops what is sent";
                Failed::Now { why: why.to_owned(), answered: false }
            }
            kind => Failed::Now { why: error.to_string(), answered: kind == ErrorKind::ConnectionRefused },
        })?;
        stream.set_nodelay(true).map_err(|error| Failed::now(&error.to_string()))?;
        let mut client = Self { stream, address: address.to_owned(), timeout: options.timeout, broken: None };
        client.introduce(socket, end)?;
        Ok(client)
    }

    /// Validates, and asks something that every server answers: whether none of no keys is missing.
    fn introduce(&mut self, socket: SocketAddr, end: Instant) -> std::result::Result<(), Failed> {
        let none: Frame = Frame::new(protocol::CHECK).number(0);
        let mut first = [0];
        let asked = write(&self.stream, &protocol::validation(), end)
            .and_then(|()| write(&self.stream, &none.into_bytes(), end))
            .and_then(|()| read(&self.stream, &mut first, end));
        match asked {
            Ok(()) if first == [protocol::READY] => Ok(()),
            Ok(()) => Err(Failed::Finally(Box::new(self.stranger(socket, first[0])))),
            Err(error) if timed_out(error.kind()) => {
                Err(Failed::now("it accepts, and says nothing: not a store, or one that is stuck"))
            }
            // A server that is just going down does this too.
            Err(_) => Err(Failed::now("it closed the connection: not a store, or one that is full")),
        }
    }

    fn stranger(&self, socket: SocketAddr, first: u8) -> Error {
        const MORE: Duration = Duration::from_millis(200);
        let mut opening = vec![first; 64];
        let _ = self.stream.set_read_timeout(Some(MORE));
        let more = (&self.stream).read(&mut opening[1..]).unwrap_or(0);
        opening.truncate(1 + more);
        let who = match classify(&opening) {
            Strange::Http => "an HTTP server",
            Strange::Tls => "a server that speaks TLS",
            Strange::Ssh => "an SSH server",
            _ => "a server of another kind",
        };
        let line = opening.split(|byte| *byte == b'\n').next().unwrap_or_default();
        Error::new(STORE_STRANGER, format!("what answers at the store's address is {who}"))
            .at("address", &self.address)
            .at("peer", socket)
            .at("it said", format!("`{}`", line.trim_ascii_end().escape_ascii()))
            .hint("give the address of the store; the port may belong to another program on that host")
    }

    /// Sets a key, whether it is there or not. There is no answer to wait for: a later request notices if this was lost.
    ///
    /// # Errors
    ///
    /// `D0507` the connection is lost, `D0508` key or value is too large, `D0510` the server takes nothing in.
    pub fn set(&mut self, key: &str, value: &[u8]) -> Result<()> {
        let frame = Frame::new(protocol::SET).bytes(&name(key)?).bytes(sized(key, value)?);
        self.send(frame)
    }

    /// The value of a key, as soon as somebody has set it.
    ///
    /// # Errors
    ///
    /// `D0506` nobody has within the client's timeout; `D0507` the connection is lost; `D0508` the key is too long; `D0509`
    /// the answer makes no sense; `D0510` there is none.
    pub fn get(&mut self, key: &str) -> Result<Vec<u8>> {
        self.get_within(key, self.timeout)
    }

    /// [`get`](Self::get) with a timeout of its own.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub fn get_within(&mut self, key: &str, timeout: Duration) -> Result<Vec<u8>> {
        self.wait_within(&[key], timeout)?;
        self.send(Frame::new(protocol::GET).bytes(&name(key)?))?;
        self.value()
    }

    /// The value of a key if it is there now; PyTorch's has no counterpart. If it is deleted between the question and the
    /// answer, the value is empty.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get), without `D0506`.
    pub fn try_get(&mut self, key: &str) -> Result<Option<Vec<u8>>> {
        if !self.check(&[key])? {
            return Ok(None);
        }
        self.send(Frame::new(protocol::GET).bytes(&name(key)?))?;
        self.value().map(Some)
    }

    /// Adds to a number, 0 if the key is not there, and gives the sum. A number is kept as its decimal digits.
    ///
    /// # Errors
    ///
    /// As [`set`](Self::set). A server closes the connection if the value is not a number (`D0507`).
    pub fn add(&mut self, key: &str, delta: i64) -> Result<i64> {
        self.add_raw(&name(key)?, delta)
    }

    /// Tells a PyTorch server that waits for its workers (`wait_for_workers=True`) that this one is here; gives how many are.
    ///
    /// # Errors
    ///
    /// As [`add`](Self::add).
    pub fn announce(&mut self) -> Result<i64> {
        // The one key without the prefix.
        self.add_raw(b"init/", 1)
    }

    /// Whether all these keys are there.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get), without `D0506`.
    pub fn check<K: AsRef<str>>(&mut self, keys: &[K]) -> Result<bool> {
        self.send(named(protocol::CHECK, keys)?)?;
        match self.byte()? {
            protocol::READY => Ok(true),
            protocol::NOT_READY => Ok(false),
            other => Err(self.nonsense(format!("{other} in answer to CHECK"))),
        }
    }

    /// Waits until all these keys are there.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub fn wait<K: AsRef<str>>(&mut self, keys: &[K]) -> Result<()> {
        self.wait_within(keys, self.timeout)
    }

    /// [`wait`](Self::wait) with a timeout of its own. Afterwards the connection serves on, in time or not.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get). The error names the keys that are missing.
    pub fn wait_within<K: AsRef<str>>(&mut self, keys: &[K], timeout: Duration) -> Result<()> {
        let end = after(timeout);
        let frame = named(protocol::WAIT, keys)?;
        self.send(frame)?;
        let mut answer = [0];
        match read(&self.stream, &mut answer, end) {
            Ok(()) => self.released(answer[0]),
            Err(error) if timed_out(error.kind()) => {
                if self.cancel()? {
                    return Ok(());
                }
                let missing = self.missing(keys)?;
                Err(Error::new(STORE_TIMEOUT, format!("{} was not set within {timeout:?}", list(&missing)))
                    .at("store", &self.address)
                    .why("whoever sets it has not come so far, has failed, or uses another name or store")
                    .hint("look at the other ranks first: their error is the cause if there is one"))
            }
            Err(error) => Err(self.lost(&error)),
        }
    }

    /// Deletes a key; says whether it was there.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get), without `D0506`.
    pub fn delete(&mut self, key: &str) -> Result<bool> {
        self.send(Frame::new(protocol::DELETE_KEY).bytes(&name(key)?))?;
        Ok(self.number()? > 0)
    }

    /// Sets a key to `desired` if its value is `expected`, or if it is not there and `expected` is empty; gives the value
    /// that it has then. Of a key that is not there and was expected to be something, servers answer `expected`, as PyTorch's
    /// does.
    ///
    /// # Errors
    ///
    /// As [`set`](Self::set) and [`get`](Self::get), without `D0506`.
    pub fn compare_set(&mut self, key: &str, expected: &[u8], desired: &[u8]) -> Result<Vec<u8>> {
        let frame = Frame::new(protocol::COMPARE_SET).bytes(&name(key)?);
        self.send(frame.bytes(sized(key, expected)?).bytes(sized(key, desired)?))?;
        self.value()
    }

    /// Adds bytes at the end of a value, which begins empty.
    ///
    /// # Errors
    ///
    /// As [`set`](Self::set).
    pub fn append(&mut self, key: &str, data: &[u8]) -> Result<()> {
        self.send(Frame::new(protocol::APPEND).bytes(&name(key)?).bytes(sized(key, data)?))
    }

    /// The values of several keys, as soon as all are there.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub fn multi_get<K: AsRef<str>>(&mut self, keys: &[K]) -> Result<Vec<Vec<u8>>> {
        self.wait(keys)?;
        self.send(named(protocol::MULTI_GET, keys)?)?;
        keys.iter().map(|_| self.value()).collect()
    }

    /// Sets several keys.
    ///
    /// # Errors
    ///
    /// As [`set`](Self::set).
    pub fn multi_set<K: AsRef<str>, V: AsRef<[u8]>>(&mut self, pairs: &[(K, V)]) -> Result<()> {
        let mut frame = Frame::new(protocol::MULTI_SET).number(counted(pairs.len())?);
        for (key, value) in pairs {
            let key = key.as_ref();
            frame = frame.bytes(&name(key)?).bytes(sized(key, value.as_ref())?);
        }
        self.send(frame)
    }

    /// How many keys the store has, PyTorch's own (`init/`) included.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get), without `D0506`.
    pub fn number_of_keys(&mut self) -> Result<usize> {
        self.send(Frame::new(protocol::GETNUMKEYS))?;
        let number = self.number()?;
        usize::try_from(number).map_err(|_| self.nonsense(format!("{number} keys")))
    }

    /// Asks whether the server is there; gives the time that took. Servers of PyTorch before 2.5 do not know the question, and
    /// close the connection.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get), without `D0506`.
    pub fn ping(&mut self) -> Result<Duration> {
        let (began, nonce) = (Instant::now(), std::process::id());
        self.send(Frame::new(protocol::PING).nonce(nonce))?;
        let mut echo = [0; 4];
        self.receive(&mut echo)?;
        if u32::from_le_bytes(echo) == nonce {
            return Ok(began.elapsed());
        }
        Err(self.nonsense(format!("an echo of {} for {nonce}", u32::from_le_bytes(echo))))
    }

    /// Both ends of the connection: ours, and the server's.
    #[cfg(target_os = "linux")]
    pub(crate) fn ends(&self) -> Option<(SocketAddr, SocketAddr)> {
        self.stream.local_addr().ok().zip(self.stream.peer_addr().ok())
    }

    /// The address that was given to [`connect`](Self::connect).
    pub fn address(&self) -> &str {
        &self.address
    }

    fn add_raw(&mut self, key: &[u8], delta: i64) -> Result<i64> {
        self.send(Frame::new(protocol::ADD).bytes(key).number(delta))?;
        self.number()
    }

    /// Takes a wait back; `true` if the keys have come after all.
    fn cancel(&mut self) -> Result<bool> {
        self.send(Frame::new(protocol::CANCEL_WAIT))?;
        match self.byte()? {
            protocol::WAIT_CANCELED => Ok(false),
            // It was under way already; the answer to the cancellation follows.
            protocol::STOP_WAITING => match self.byte()? {
                protocol::WAIT_CANCELED => Ok(true),
                other => Err(self.nonsense(format!("{other} in answer to CANCEL_WAIT"))),
            },
            other => Err(self.nonsense(format!("{other} in answer to CANCEL_WAIT"))),
        }
    }

    fn released(&mut self, answer: u8) -> Result<()> {
        match answer {
            protocol::STOP_WAITING => Ok(()),
            other => Err(self.nonsense(format!("{other} in answer to WAIT"))),
        }
    }

    /// Those of the keys that are not there: of many, the first that one looks at.
    fn missing<K: AsRef<str>>(&mut self, keys: &[K]) -> Result<Vec<String>> {
        const MOST: usize = 64;
        let mut missing = Vec::new();
        for key in keys.iter().take(MOST) {
            if !self.check(&[key])? {
                missing.push(key.as_ref().to_owned());
            }
        }
        if missing.is_empty() {
            missing.extend(keys.iter().take(1).map(|key| key.as_ref().to_owned()));
        }
        Ok(missing)
    }

    fn send(&mut self, frame: Frame) -> Result<()> {
        if let Some(why) = &self.broken {
            return Err(self.gone().why(why));
        }
        write(&self.stream, &frame.into_bytes(), after(PROMPT)).map_err(|error| self.lost(&error))
    }

    fn receive(&mut self, bytes: &mut [u8]) -> Result<()> {
        read(&self.stream, bytes, after(PROMPT)).map_err(|error| self.lost(&error))
    }

    fn byte(&mut self) -> Result<u8> {
        let mut byte = [0];
        self.receive(&mut byte)?;
        Ok(byte[0])
    }

    fn number(&mut self) -> Result<i64> {
        let mut number = [0; 8];
        self.receive(&mut number)?;
        Ok(i64::from_le_bytes(number))
    }

    fn value(&mut self) -> Result<Vec<u8>> {
        /// What appending can have made of a value; beyond it, the other side is not believed.
        const LARGEST: u64 = 1 << 30;
        /// Read at a time, so that no more is allocated than has come.
        const PIECE: usize = 1 << 20;
        let announced = self.number()? as u64;
        if announced > LARGEST {
            return Err(self.nonsense(format!("a value of {announced} bytes")));
        }
        let size = announced as usize;
        let mut value = Vec::new();
        while value.len() < size {
            let have = value.len();
            value.resize(size.min(have + PIECE), 0);
            self.receive(&mut value[have..])?;
        }
        Ok(value)
    }

    /// The connection is of no more use: what comes next on it belongs to an earlier request.
    fn lost(&mut self, error: &io::Error) -> Error {
        if timed_out(error.kind()) {
            self.broken = Some(format!("the server did not answer an earlier request within {PROMPT:?}"));
            return Error::new(STORE_SILENT, format!("the store does not answer within {PROMPT:?}"))
                .at("store", &self.address)
                .why("the process that has it is stopped or overloaded, or the network drops what is sent")
                .hint("look at the process that has the store, and whether its host can be reached");
        }
        self.broken = Some("the connection was lost before".to_owned());
        let gone = self.gone();
        if error.kind() == ErrorKind::UnexpectedEof {
            return gone.why("the server closed it: its process has ended, or refused the request");
        }
        gone.because(error)
    }

    fn gone(&self) -> Error {
        Error::new(STORE_LOST, "the connection to the store is lost")
            .at("store", &self.address)
            .hint("look at the process that has the store first: rank 0, the launcher, or torchrun's agent")
            .hint("a server closes without a word if one adds to what is not a number, or sends too much")
    }

    fn nonsense(&mut self, what: String) -> Error {
        self.broken = Some("an earlier answer made no sense".to_owned());
        Error::new(STORE_REPLY, "the store's answer makes no sense")
            .at("store", &self.address)
            .why(format!("it sent {what}"))
            .hint("check that it is a store of Leyden's or PyTorch's, version 2.4 or later")
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Sockets take no shorter time limit than something.
const SHORTEST: Duration = Duration::from_millis(1);

/// Why there is no connection.
enum Failed {
    /// For now: it may be otherwise a moment later. Whether there is a host at all.
    Now {
        why: String,
        answered: bool,
    },
    Finally(Box<Error>),
}

impl Failed {
    /// By somebody who is there.
    fn now(why: &str) -> Self {
        Self::Now { why: why.to_owned(), answered: true }
    }
}

/// What was tried, and how it ended the last time.
#[derive(Default)]
struct Tries {
    unresolved: Option<String>,
    sockets: BTreeMap<SocketAddr, (usize, String)>,
    /// Whether one of them has answered somehow.
    answered: bool,
}

impl Tries {
    fn add(&mut self, socket: SocketAddr, why: String, answered: bool) {
        self.answered |= answered;
        let count = self.sockets.get(&socket).map_or(0, |(count, _)| *count);
        self.sockets.insert(socket, (count + 1, why));
    }

    fn into_error(self, address: &str, host: &str, deadline: Duration) -> Error {
        if self.sockets.is_empty() {
            let why = self.unresolved.unwrap_or_else(|| "there was no time to look it up".to_owned());
            return Error::new(STORE_ADDRESS, format!("the store's host `{host}` is not known"))
                .at("address", address)
                .at("tried for", format!("{deadline:?}"))
                .why(why)
                .hint("check MASTER_ADDR, and that this host can look the name up (`getent hosts NAME`)");
        }
        let mut error =
            Error::new(STORE_UNREACHABLE, format!("no store answers at {address} within {deadline:?}"));
        for (socket, (count, why)) in self.sockets {
            let times = if count == 1 { "once".to_owned() } else { format!("{count} times") };
            error = error.at("tried", format!("{socket}, {times}: {why}"));
        }
        error
            .hint("check that the process that has the store is up, and that it listens on this address")
            .hint("a store on 127.0.0.1 cannot be reached from another host")
    }
}

/// The end of a time limit; one that nobody lives to see ends in a hundred years.
fn after(limit: Duration) -> Instant {
    const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
    Instant::now() + limit.min(FOR_EVER)
}

fn left(end: Instant) -> Duration {
    end.saturating_duration_since(Instant::now())
}

/// `host:29500`, `[::1]:29500`.
fn split(address: &str) -> Result<(&str, u16)> {
    let refused = |why: &str| {
        Error::new(STORE_ADDRESS, "the store's address is not `host:port`")
            .at("address", format!("`{}`", address.escape_debug()))
            .why(why)
            .hint("write `node1:29500`, `10.0.0.1:29500` or `[fd00::1]:29500`")
    };
    let (host, port) = address.rsplit_once(':').ok_or_else(|| refused("it has no port"))?;
    let port = port.parse().ok().filter(|port| *port > 0);
    let port = port.ok_or_else(|| refused("its port is not a number from 1 to 65535"))?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    match bare {
        Some(bare) => Ok((bare, port)),
        None if host.is_empty() => Err(refused("it has no host")),
        None if host.contains(':') => Err(refused("an IPv6 address needs brackets")),
        None => Ok((host, port)),
    }
}

/// The addresses of a host. The system's resolver has no deadline, so a thread asks it.
fn resolve(host: &str, port: u16, within: Duration) -> std::result::Result<Vec<SocketAddr>, String> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let (answer, answered) = mpsc::sync_channel(1);
    let name = host.to_owned();
    let thread = std::thread::Builder::new().name("leyden-resolve".to_owned()).spawn(move || {
        let found = (name.as_str(), port).to_socket_addrs().map(Iterator::collect::<Vec<_>>);
        // Nobody listens if it has taken too long.
        let _ = answer.try_send(found);
    });
    thread.map_err(|error| format!("no thread for the look-up: {error}"))?;
    match answered.recv_timeout(within) {
        Ok(Ok(found)) if found.is_empty() => Err("the name has no address".to_owned()),
        Ok(Ok(found)) => Ok(found),
        Ok(Err(error)) => Err(error.to_string()),
        Err(RecvTimeoutError::Timeout) => Err(format!("the resolver did not answer within {within:.1?}")),
        Err(RecvTimeoutError::Disconnected) => Err("the look-up failed".to_owned()),
    }
}

fn read(mut stream: &TcpStream, mut bytes: &mut [u8], end: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.set_read_timeout(Some(left(end).max(SHORTEST)))?;
        match stream.read(bytes) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(some) => bytes = &mut bytes[some..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if timed_out(error.kind()) && !left(end).is_zero() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn write(mut stream: &TcpStream, mut bytes: &[u8], end: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.set_write_timeout(Some(left(end).max(SHORTEST)))?;
        match stream.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(some) => bytes = &bytes[some..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if timed_out(error.kind()) && !left(end).is_zero() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A key as PyTorch's clients write it.
fn name(key: &str) -> Result<Vec<u8>> {
    let name = [b"/", key.as_bytes()].concat();
    if name.len() <= LONGEST_KEY {
        return Ok(name);
    }
    let shown: String = key.chars().take(40).collect();
    Err(Error::new(STORE_LIMIT, "a key is longer than the store takes")
        .at("key", format!("`{}…`", shown.escape_debug()))
        .at("bytes", format!("{}, at most {}", key.len(), LONGEST_KEY - 1))
        .hint("shorten it: hash what makes it long"))
}

fn sized<'a>(key: &str, value: &'a [u8]) -> Result<&'a [u8]> {
    if value.len() <= LARGEST_VALUE {
        return Ok(value);
    }
    Err(Error::new(STORE_LIMIT, "a value is larger than the store takes")
        .at("key", format!("`{}`", key.escape_debug()))
        .at("bytes", format!("{}, at most {LARGEST_VALUE}", value.len()))
        .hint("a store is for addresses and counts: send data by a collective, or through a file"))
}

fn counted(keys: usize) -> Result<i64> {
    if keys <= MOST_KEYS {
        return Ok(keys as i64);
    }
    Err(Error::new(STORE_LIMIT, "a request has more keys than the store takes")
        .at("keys", format!("{keys}, at most {MOST_KEYS}"))
        .hint("ask in several requests"))
}

fn named<K: AsRef<str>>(operation: u8, keys: &[K]) -> Result<Frame> {
    let mut frame = Frame::new(operation).number(counted(keys.len())?);
    for key in keys {
        frame = frame.bytes(&name(key.as_ref())?);
    }
    Ok(frame)
}

/// "key `a`", "keys `a`, `b` and 7 more".
fn list(keys: &[String]) -> String {
    const SHOWN: usize = 8;
    let names: Vec<String> = keys.iter().take(SHOWN).map(|key| format!("`{}`", key.escape_debug())).collect();
    let more = match keys.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("the key {}{more}", names.join(", "))
}
