//! The protocol of PyTorch's `TCPStore` as bytes, and nothing else: no sockets, no store.
//!
//! A request is an operation (one byte) and its arguments, without any frame around them; integers are little-endian; a key
//! or value is a length (8 bytes) and its bytes. There is one request at a time on a connection, so replies carry no
//! number. The first request must be VALIDATE with [`MAGIC`], and has no reply.

use std::fmt;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::sync::Arc;

use super::budget::{Budget, Bytes};

/// The longest key, as PyTorch's server has it, in bytes.
pub const LONGEST_KEY: usize = 8 << 10;

/// The largest value of one request, as PyTorch's server has it, in bytes. Appending makes larger ones.
pub const LARGEST_VALUE: usize = 8 << 20;

/// The most keys of one request, as PyTorch's server has it.
pub const MOST_KEYS: usize = 128 << 10;

/// What a client of this protocol sends first.
pub(super) const MAGIC: u32 = 0x3C85_F7CE;

pub(super) const VALIDATE: u8 = 0;
pub(super) const SET: u8 = 1;
pub(super) const COMPARE_SET: u8 = 2;
pub(super) const GET: u8 = 3;
pub(super) const ADD: u8 = 4;
pub(super) const CHECK: u8 = 5;
pub(super) const WAIT: u8 = 6;
pub(super) const GETNUMKEYS: u8 = 7;
pub(super) const DELETE_KEY: u8 = 8;
pub(super) const APPEND: u8 = 9;
pub(super) const MULTI_GET: u8 = 10;
pub(super) const MULTI_SET: u8 = 11;
pub(super) const CANCEL_WAIT: u8 = 12;
pub(super) const PING: u8 = 13;
pub(super) const QUEUE_PUSH: u8 = 14;
pub(super) const QUEUE_POP: u8 = 15;
pub(super) const QUEUE_LEN: u8 = 16;
pub(super) const LIST_KEYS: u8 = 17;
pub(super) const BARRIER: u8 = 18;

/// The reply to CHECK if all keys are there, and if not.
pub(super) const READY: u8 = 0;
pub(super) const NOT_READY: u8 = 1;

/// The reply to WAIT, and the reply to CANCEL_WAIT.
pub(super) const STOP_WAITING: u8 = 0;
pub(super) const WAIT_CANCELED: u8 = 1;

/// A request as it arrived.
pub(super) enum Request {
    Set(Bytes, Bytes),
    CompareSet { key: Bytes, expected: Bytes, desired: Bytes },
    Get(Bytes),
    Add(Bytes, i64),
    Check(Vec<Bytes>),
    Wait(Vec<Bytes>),
    NumberOfKeys,
    Delete(Bytes),
    Append(Bytes, Bytes),
    MultiGet(Vec<Bytes>),
    MultiSet(Vec<(Bytes, Bytes)>),
    CancelWait,
    Ping(u32),
    Push(Bytes, Bytes),
    Pop(Bytes),
    QueueLength(Bytes),
    ListKeys,
    Barrier(Bytes, i64),
}

/// Why a server has cut a peer off.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Strange {
    /// It speaks HTTP: a browser, a probe.
    Http,
    /// It speaks TLS.
    Tls,
    /// It speaks SSH.
    Ssh,
    /// It began as a client of a store does, with another number: another version, or chance.
    WrongMagic(u32),
    /// It speaks nothing that is known here.
    Garbage,
    /// It connected and said nothing.
    Silent,
    /// It stopped in the middle of a request, and stayed.
    Stalled,
    /// It left in the middle of a request.
    Truncated,
    /// It asked for an operation that there is not.
    UnknownOperation(u8),
    /// It announced more than the protocol allows: a key, value or number of keys of this size.
    TooLarge(&'static str, u64),
    /// It asked to add to a value that is not a number, or beyond 64 bits.
    NotANumber,
    /// It sent another request while it waited.
    Disordered,
    /// It does not read what it asked for.
    NotReading,
    /// What it sent is more than the server may hold.
    OutOfMemory,
    /// There were too many connections, or no thread or descriptor for one more.
    TooMany,
}

impl fmt::Display for Strange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http => f.write_str("it speaks HTTP"),
            Self::Tls => f.write_str("it speaks TLS"),
            Self::Ssh => f.write_str("it speaks SSH"),
            Self::WrongMagic(magic) => write!(f, "it validates with {magic:#010x}, not {MAGIC:#010x}"),
            Self::Garbage => f.write_str("it speaks nothing known"),
            Self::Silent => f.write_str("it connected and said nothing"),
            Self::Stalled => f.write_str("it stopped in the middle of a request"),
            Self::Truncated => f.write_str("it left in the middle of a request"),
            Self::UnknownOperation(operation) => write!(f, "it asked for the unknown operation {operation}"),
            Self::TooLarge(what, size) => write!(f, "it announced {what} of {size}"),
            Self::NotANumber => f.write_str("it added to what is not a number"),
            Self::Disordered => f.write_str("it sent a request while it waited"),
            Self::NotReading => f.write_str("it does not read what it asked for"),
            Self::OutOfMemory => f.write_str("the server may not hold more"),
            Self::TooMany => f.write_str("there were too many connections"),
        }
    }
}

/// Why no request came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The peer has left, between two requests.
    Ended,
    Strange(Strange),
}

/// Reads requests off a stream. A read that times out inside a request makes the peer [`Strange::Stalled`]; between two
/// requests it may take as long as it likes.
pub(super) struct Decoder<R> {
    stream: BufReader<R>,
    budget: Arc<Budget>,
}

impl<R: Read> Decoder<R> {
    /// Requests are small; values that are not go around the buffer.
    const BUFFER: usize = 4 << 10;

    pub(super) fn new(stream: R, budget: Arc<Budget>) -> Self {
        Self { stream: BufReader::with_capacity(Self::BUFFER, stream), budget }
    }

    /// Reads the validation, in however many pieces. What came instead is left where [`opening`](Self::opening) finds it.
    pub(super) fn validate(&mut self, opening: &mut Vec<u8>) -> Result<(), Stop> {
        let expected = validation();
        while opening.len() < expected.len() {
            match self.stream.fill_buf() {
                // Probes that only look whether the port is open are no strangers.
                Ok([]) if opening.is_empty() => return Err(Stop::Ended),
                Ok([]) => return Err(Stop::Strange(classify(opening))),
                Ok(bytes) => {
                    let taken = bytes.len().min(expected.len() - opening.len());
                    opening.extend_from_slice(&bytes[..taken]);
                    self.stream.consume(taken);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if timed_out(error.kind()) && opening.is_empty() => {
                    return Err(Stop::Strange(Strange::Silent));
                }
                Err(error) if timed_out(error.kind()) => return Err(Stop::Strange(Strange::Stalled)),
                Err(_) => return Err(Stop::Ended),
            }
            if !expected.starts_with(opening) {
                return Err(Stop::Strange(classify(opening)));
            }
        }
        Ok(())
    }

    /// Adds to `opening` what has arrived since, up to a line.
    pub(super) fn opening(&mut self, opening: &mut Vec<u8>) {
        const ENOUGH: usize = 64;
        while opening.len() < ENOUGH && !opening.contains(&b'\n') {
            match self.stream.fill_buf() {
                Ok([]) => return,
                Ok(bytes) => {
                    let taken = bytes.len().min(ENOUGH - opening.len());
                    opening.extend_from_slice(&bytes[..taken]);
                    self.stream.consume(taken);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    /// Waits for the next request.
    pub(super) fn request(&mut self) -> Result<Request, Stop> {
        let operation = loop {
            match self.stream.fill_buf() {
                Ok([]) => return Err(Stop::Ended),
                Ok([operation, ..]) => break *operation,
                Err(error) if error.kind() == ErrorKind::Interrupted || timed_out(error.kind()) => {}
                Err(_) => return Err(Stop::Ended),
            }
        };
        self.stream.consume(1);
        self.arguments(operation).map_err(Stop::Strange)
    }

    fn arguments(&mut self, operation: u8) -> Result<Request, Strange> {
        Ok(match operation {
            SET => Request::Set(self.key()?, self.value()?),
            COMPARE_SET => {
                Request::CompareSet { key: self.key()?, expected: self.value()?, desired: self.value()? }
            }
            GET => Request::Get(self.key()?),
            ADD => Request::Add(self.key()?, i64::from_le_bytes(self.array()?)),
            CHECK => Request::Check(self.keys()?),
            WAIT => Request::Wait(self.keys()?),
            GETNUMKEYS => Request::NumberOfKeys,
            DELETE_KEY => Request::Delete(self.key()?),
            APPEND => Request::Append(self.key()?, self.value()?),
            MULTI_GET => Request::MultiGet(self.keys()?),
            MULTI_SET => {
                let count = self.count()?;
                Request::MultiSet(
                    (0..count).map(|_| Ok((self.key()?, self.value()?))).collect::<Result<_, _>>()?,
                )
            }
            CANCEL_WAIT => Request::CancelWait,
            PING => Request::Ping(u32::from_le_bytes(self.array()?)),
            QUEUE_PUSH => Request::Push(self.key()?, self.value()?),
            QUEUE_POP => Request::Pop(self.key()?),
            QUEUE_LEN => Request::QueueLength(self.key()?),
            LIST_KEYS => Request::ListKeys,
            BARRIER => Request::Barrier(self.key()?, i64::from_le_bytes(self.array()?)),
            unknown => return Err(Strange::UnknownOperation(unknown)),
        })
    }

    fn keys(&mut self) -> Result<Vec<Bytes>, Strange> {
        let count = self.count()?;
        (0..count).map(|_| self.key()).collect()
    }

    fn count(&mut self) -> Result<u64, Strange> {
        let count = u64::from_le_bytes(self.array()?);
        if count <= MOST_KEYS as u64 { Ok(count) } else { Err(Strange::TooLarge("a number of keys", count)) }
    }

    fn key(&mut self) -> Result<Bytes, Strange> {
        self.bytes("a key", LONGEST_KEY)
    }

    fn value(&mut self) -> Result<Bytes, Strange> {
        self.bytes("a value", LARGEST_VALUE)
    }

    fn bytes(&mut self, what: &'static str, most: usize) -> Result<Bytes, Strange> {
        /// What is taken on the word of a peer before any of it has arrived.
        const CREDIT: usize = 64 << 10;
        let announced = u64::from_le_bytes(self.array()?);
        let size = usize::try_from(announced).ok().filter(|size| *size <= most);
        let size = size.ok_or(Strange::TooLarge(what, announced))?;
        let mut bytes = Bytes::empty(&self.budget).ok_or(Strange::OutOfMemory)?;
        while bytes.len() < size {
            let have = bytes.len();
            let more = (size - have).min(have.max(CREDIT));
            if !bytes.make_room(more) {
                return Err(Strange::OutOfMemory);
            }
            let data = bytes.data_mut();
            data.resize(have + more, 0);
            exactly(&mut self.stream, &mut data[have..])?;
        }
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Strange> {
        let mut array = [0; N];
        exactly(&mut self.stream, &mut array)?;
        Ok(array)
    }
}

/// Fills `bytes`, in the middle of a request.
fn exactly(stream: &mut impl Read, bytes: &mut [u8]) -> Result<(), Strange> {
    stream.read_exact(bytes).map_err(|error| match error.kind() {
        kind if timed_out(kind) => Strange::Stalled,
        _ => Strange::Truncated,
    })
}

/// What a socket says when its time limit is over: it differs from system to system.
pub(crate) fn timed_out(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// What speaks like this.
pub(crate) fn classify(opening: &[u8]) -> Strange {
    const METHODS: [&[u8]; 11] = [
        b"GET ",
        b"HEAD ",
        b"POST ",
        b"PUT ",
        b"DELETE ",
        b"OPTIONS ",
        b"CONNECT ",
        b"TRACE ",
        b"PATCH ",
        b"PRI * ",
        b"HTTP/",
    ];
    match opening {
        [VALIDATE, magic @ ..] if magic.len() >= 4 => {
            Strange::WrongMagic(u32::from_le_bytes([magic[0], magic[1], magic[2], magic[3]]))
        }
        [0x16, 0x03, ..] => Strange::Tls,
        _ if opening.starts_with(b"SSH-") => Strange::Ssh,
        _ if METHODS.iter().any(|method| opening.starts_with(method)) => Strange::Http,
        _ => Strange::Garbage,
    }
}

/// The request that comes first. PyTorch's server wants its five bytes in one piece.
pub(super) fn validation() -> [u8; 5] {
    let [a, b, c, d] = MAGIC.to_le_bytes();
    [VALIDATE, a, b, c, d]
}

/// A request to send.
pub(super) struct Frame(Vec<u8>);

impl Frame {
    pub(super) fn new(operation: u8) -> Self {
        Self(vec![operation])
    }

    /// A key or a value.
    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        self.0.extend_from_slice(bytes);
        self
    }

    pub(super) fn number(mut self, number: i64) -> Self {
        self.0.extend_from_slice(&number.to_le_bytes());
        self
    }

    /// Numbers that have no bytes of their own around them: PING's.
    pub(super) fn nonce(mut self, nonce: u32) -> Self {
        self.0.extend_from_slice(&nonce.to_le_bytes());
        self
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A request as plain values: to compare, and to write.
    #[derive(Clone, Debug, PartialEq)]
    struct Plain {
        operation: u8,
        parts: Vec<Vec<u8>>,
        number: i64,
    }

    impl Plain {
        fn frame(&self) -> Vec<u8> {
            let Self { operation, parts, number } = self;
            let frame = Frame::new(*operation);
            let all = |frame: Frame| parts.iter().fold(frame, |frame, part| frame.bytes(part));
            match *operation {
                CHECK | WAIT | MULTI_GET => all(frame.number(parts.len() as i64)),
                MULTI_SET => all(frame.number(parts.len() as i64 / 2)),
                ADD | BARRIER => all(frame).number(*number),
                PING => frame.nonce(*number as u32),
                _ => all(frame),
            }
            .into_bytes()
        }

        fn of(request: Request) -> Self {
            let (operation, parts, number) = match request {
                Request::Set(a, b) => (SET, vec![a, b], 0),
                Request::CompareSet { key, expected, desired } => {
                    (COMPARE_SET, vec![key, expected, desired], 0)
                }
                Request::Get(a) => (GET, vec![a], 0),
                Request::Add(a, number) => (ADD, vec![a], number),
                Request::Check(keys) => (CHECK, keys, 0),
                Request::Wait(keys) => (WAIT, keys, 0),
                Request::NumberOfKeys => (GETNUMKEYS, vec![], 0),
                Request::Delete(a) => (DELETE_KEY, vec![a], 0),
                Request::Append(a, b) => (APPEND, vec![a, b], 0),
                Request::MultiGet(keys) => (MULTI_GET, keys, 0),
                Request::MultiSet(pairs) => {
                    (MULTI_SET, pairs.into_iter().flat_map(|(key, value)| [key, value]).collect(), 0)
                }
                Request::CancelWait => (CANCEL_WAIT, vec![], 0),
                Request::Ping(nonce) => (PING, vec![], i64::from(nonce)),
                Request::Push(a, b) => (QUEUE_PUSH, vec![a, b], 0),
                Request::Pop(a) => (QUEUE_POP, vec![a], 0),
                Request::QueueLength(a) => (QUEUE_LEN, vec![a], 0),
                Request::ListKeys => (LIST_KEYS, vec![], 0),
                Request::Barrier(a, number) => (BARRIER, vec![a], number),
            };
            Self { operation, parts: parts.iter().map(|part| part.to_vec()).collect(), number }
        }
    }

    fn plain() -> impl Strategy<Value = Plain> {
        let part = || proptest::collection::vec(any::<u8>(), 0..40);
        (1_u8..=18, proptest::collection::vec(part(), 6), any::<i64>(), 0_usize..4).prop_map(
            |(operation, mut parts, number, keys)| {
                parts.truncate(match operation {
                    SET | APPEND | QUEUE_PUSH => 2,
                    COMPARE_SET => 3,
                    GET | ADD | DELETE_KEY | QUEUE_POP | QUEUE_LEN | BARRIER => 1,
                    CHECK | WAIT | MULTI_GET => keys,
                    MULTI_SET => 2 * keys,
                    _ => 0,
                });
                let number = match operation {
                    ADD | BARRIER => number,
                    PING => i64::from(number as u32),
                    _ => 0,
                };
                Plain { operation, parts, number }
            },
        )
    }

    /// Gives a few bytes at a time, as a network may.
    struct Dribble<'a>(&'a [u8], usize);

    impl Read for Dribble<'_> {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            let some = self.0.len().min(self.1).min(into.len());
            into[..some].copy_from_slice(&self.0[..some]);
            self.0 = &self.0[some..];
            Ok(some)
        }
    }

    fn decoder(bytes: &[u8], at_a_time: usize) -> Decoder<Dribble<'_>> {
        Decoder::new(Dribble(bytes, at_a_time), Budget::new(64 << 20))
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_in_any_pieces(requests in proptest::collection::vec(plain(), 1..6), pieces in 1_usize..9) {
            let mut bytes = validation().to_vec();
            bytes.extend(requests.iter().flat_map(Plain::frame));
            let mut decoder = decoder(&bytes, pieces);
            prop_assert_eq!(decoder.validate(&mut Vec::new()), Ok(()));
            for request in requests {
                prop_assert_eq!(Plain::of(decoder.request().ok().unwrap()), request);
            }
            prop_assert_eq!(decoder.request().err(), Some(Stop::Ended));
        }

        #[test]
        fn what_is_cut_anywhere_is_truncated_and_holds_nothing(request in plain(), cut in 1_usize..200) {
            let bytes = request.frame();
            let cut = cut % bytes.len();
            // An operation alone may be whole, and nothing is no request.
            prop_assume!(cut > 0);
            let mut decoder = decoder(&bytes[..cut], 7);
            prop_assert_eq!(decoder.request().err(), Some(Stop::Strange(Strange::Truncated)));
            prop_assert_eq!(decoder.budget.used(), 0);
        }

        #[test]
        fn no_bytes_make_it_panic_or_hold_what_it_was_not_given(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut decoder = decoder(&bytes, 50);
            while decoder.request().is_ok() {}
            prop_assert_eq!(decoder.budget.used(), 0);
        }
    }

    #[test]
    fn the_bytes_are_pytorch_s() {
        assert_eq!(validation(), [0, 0xCE, 0xF7, 0x85, 0x3C]);
        let set = Frame::new(SET).bytes(b"/k").bytes(b"v").into_bytes();
        assert_eq!(set, [1, 2, 0, 0, 0, 0, 0, 0, 0, b'/', b'k', 1, 0, 0, 0, 0, 0, 0, 0, b'v']);
        let add = Frame::new(ADD).bytes(b"n").number(-2).into_bytes();
        assert_eq!(add[..10], [4, 1, 0, 0, 0, 0, 0, 0, 0, b'n']);
        assert_eq!(add[10..], [0xFE, 255, 255, 255, 255, 255, 255, 255]);
        assert_eq!(Frame::new(PING).nonce(7).into_bytes(), [13, 7, 0, 0, 0]);
    }

    #[test]
    fn what_is_announced_too_large_is_refused_at_once() {
        let refused = |frame: Frame| decoder(&frame.into_bytes(), 9).request().err();
        let too_large = |what, size| Some(Stop::Strange(Strange::TooLarge(what, size)));
        assert_eq!(refused(Frame::new(GET).number(8193)), too_large("a key", 8193));
        assert_eq!(refused(Frame::new(GET).number(-1)), too_large("a key", u64::MAX));
        let value = Frame::new(SET).bytes(b"k").number((8 << 20) + 1);
        assert_eq!(refused(value), too_large("a value", (8 << 20) + 1));
        assert_eq!(refused(Frame::new(WAIT).number(131_073)), too_large("a number of keys", 131_073));
        assert_eq!(refused(Frame::new(19)), Some(Stop::Strange(Strange::UnknownOperation(19))));
    }

    #[test]
    fn an_announcement_takes_no_memory_until_it_is_kept() {
        let announced = Frame::new(SET).bytes(b"k").number(LARGEST_VALUE as i64).into_bytes();
        let budget = Budget::new(100 << 10);
        let mut decoder = Decoder::new(&announced[..], budget.clone());
        // Within the credit, so it is not refused for its size, although the budget is smaller.
        assert_eq!(decoder.request().err(), Some(Stop::Strange(Strange::Truncated)));
        assert_eq!(budget.used(), 0);
        let mut sent = announced;
        sent.resize(sent.len() + LARGEST_VALUE, 7);
        let mut decoder = Decoder::new(&sent[..], budget.clone());
        assert_eq!(decoder.request().err(), Some(Stop::Strange(Strange::OutOfMemory)));
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn strangers_are_known_by_how_they_begin() {
        for (opening, strange) in [
            (&b"GET / HTTP/1.1\r\n"[..], Strange::Http),
            (b"HTTP/1.1 400 Bad Request", Strange::Http),
            (b"\x16\x03\x01\x02\x00\x01", Strange::Tls),
            (b"SSH-2.0-OpenSSH_9.2", Strange::Ssh),
            (b"\0\x01\x02\x03\x04", Strange::WrongMagic(0x0403_0201)),
            (b"hello", Strange::Garbage),
        ] {
            let mut decoder = decoder(opening, 3);
            let mut read = Vec::new();
            assert!(decoder.validate(&mut read).is_err());
            decoder.opening(&mut read);
            assert_eq!(classify(&read), strange, "{opening:?}");
        }
        assert_eq!(decoder(b"", 1).validate(&mut Vec::new()), Err(Stop::Ended));
    }
}
