//! Connections between ranks: how a dead one is noticed, what is said first on it, and messages as bytes.
//!
//! ```text
//! client -> server   magic, protocol, a number of its own
//! client <- server   magic, protocol, a number of its own
//! client -> server   proof
//! client <- server   1 and its proof, or 0: that was none
//! then messages, each a length (4 bytes, little-endian) and as many bytes: `ToServer`, `ToRank`
//! ```

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use leyden_process::Error;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use socket2::{SockRef, TcpKeepalive};

use super::meeting::Hello;
use super::secret::Nonce;
use super::{Member, Secret};
use crate::store::timed_out;

/// Which language is spoken; another one is refused.
pub(crate) const PROTOCOL: u32 = 1;

/// What both sides begin with: magic, protocol, number.
pub(crate) const OPENING: usize = MAGIC.len() + 4 + 32;
const MAGIC: &[u8; 8] = b"leyden\x01\n";

/// What the client says, and the server.
const FROM_CLIENT: &str = "session, from a rank";
const FROM_SERVER: &str = "session, from the server";

/// The longest message to the server: an error is shortened to it.
pub(crate) const LONGEST_TO_SERVER: usize = 128 << 10;
/// The longest message to a rank: a roster of thousands.
pub(crate) const LONGEST_TO_RANK: usize = 16 << 20;
/// The longest error that is sent.
const LONGEST_ERROR: usize = 96 << 10;

/// What a rank says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToServer {
    Hello(Hello),
    Beat(u64),
    Fails(Vec<u8>),
    Leaves,
}

/// What it is told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToRank {
    /// It waits for the others, for so many milliseconds.
    Accepted(u64),
    Refused(Vec<u8>),
    /// All are there.
    Roster(Arc<[Member]>),
    Failed {
        by: Option<usize>,
        error: Vec<u8>,
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
    /// All have been told that it leaves.
    Bye,
}

/// Makes the kernel notice within some seconds that a host or the way to it is gone, and send what is written at once.
///
/// The end of a process is noticed at once anyway: its kernel closes what it had. One that is merely stopped is not noticed:
/// its kernel answers for it. But this is for connections that carry little: if more is sent to a stopped process than its
/// kernel takes (a few MB), ours gives it up as if its host were gone.
///
/// # Errors
/// The system's refusal.
pub(crate) fn keep_watch(stream: &TcpStream) -> io::Result<()> {
    const SECOND: Duration = Duration::from_secs(1);
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let probes = TcpKeepalive::new().with_time(SECOND).with_interval(SECOND).with_retries(2);
    socket.set_tcp_keepalive(&probes)?;
    socket.set_tcp_user_timeout(Some(2 * SECOND))
}

/// Why a connection has ended, in words that follow "is lost: ".
pub(crate) fn words(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::UnexpectedEof => "its process has ended, or closed it".to_owned(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
            "its process has ended (reset by peer)".to_owned()
        }
        kind if timed_out(kind) => "its host does not answer, or the network between is down".to_owned(),
        _ => error.to_string(),
    }
}

/// What a side begins with.
pub(crate) fn opening(protocol: u32, nonce: &Nonce) -> [u8; OPENING] {
    let mut bytes = [0; OPENING];
    let (magic, rest) = bytes.split_at_mut(MAGIC.len());
    magic.copy_from_slice(MAGIC);
    rest[..4].copy_from_slice(&protocol.to_le_bytes());
    rest[4..].copy_from_slice(nonce);
    bytes
}

/// Protocol and number of the other side; `None` if it is somebody else.
pub(crate) fn read_opening(bytes: &[u8; OPENING]) -> Option<(u32, Nonce)> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let (protocol, nonce) = rest.split_first_chunk::<4>()?;
    Some((u32::from_le_bytes(*protocol), nonce.try_into().ok()?))
}

/// Whether it may be the beginning of an opening.
pub(crate) fn may_open(bytes: &[u8]) -> bool {
    bytes.iter().zip(MAGIC).all(|(one, other)| one == other)
}

/// What a client proves itself by, and a server.
pub(crate) fn proof_of_client(secret: &Secret, client: &Nonce, server: &Nonce) -> [u8; 32] {
    secret.proof(FROM_CLIENT, [client, server])
}

pub(crate) fn is_client(secret: &Secret, proof: &[u8; 32], client: &Nonce, server: &Nonce) -> bool {
    secret.is_proof(proof, FROM_CLIENT, [client, server])
}

pub(crate) fn proof_of_server(secret: &Secret, client: &Nonce, server: &Nonce) -> [u8; 32] {
    secret.proof(FROM_SERVER, [client, server])
}

pub(crate) fn is_server(secret: &Secret, proof: &[u8; 32], client: &Nonce, server: &Nonce) -> bool {
    secret.is_proof(proof, FROM_SERVER, [client, server])
}

/// A message with its length.
pub(crate) fn frame(message: &impl Serialize) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    bytes = postcard::to_extend(message, bytes).expect("numbers and text always serialise");
    let length = (bytes.len() - 4) as u32;
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    bytes
}

/// The first message of `bytes`, and how long it is with its length; `Ok(None)` if it is not whole yet.
///
/// # Errors
/// That it is longer than may be, or makes no sense.
pub(crate) fn unframe<T: DeserializeOwned>(bytes: &[u8], longest: usize) -> io::Result<Option<(T, usize)>> {
    let Some((length, rest)) = bytes.split_first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_le_bytes(*length) as usize;
    if length > longest {
        return Err(io::Error::new(
            ErrorKind::InvalidData,
            format!("it announced a message of {length} bytes"),
        ));
    }
    let Some(message) = rest.get(..length) else { return Ok(None) };
    let message = postcard::from_bytes(message).map_err(|error| {
        io::Error::new(ErrorKind::InvalidData, format!("its message cannot be read: {error}"))
    })?;
    Ok(Some((message, 4 + length)))
}

/// An error as bytes that fit into a message.
pub(crate) fn error_to_wire(error: &Error) -> Vec<u8> {
    let wire = error.to_wire();
    if wire.len() <= LONGEST_ERROR {
        return wire;
    }
    Error::new(error.code(), error.what()).why("its places and reasons are too long to be sent").to_wire()
}

/// A client's connection, with a deadline for each act.
#[derive(Debug)]
pub(crate) struct Link {
    stream: TcpStream,
    /// What has come and was not asked for yet.
    input: Vec<u8>,
}

impl Link {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self { stream, input: Vec::new() }
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// As many bytes.
    pub(crate) fn bytes<const N: usize>(&mut self, deadline: Instant) -> io::Result<[u8; N]> {
        while self.input.len() < N {
            self.more(deadline)?;
        }
        let rest = self.input.split_off(N);
        let bytes = std::mem::replace(&mut self.input, rest);
        Ok(bytes.try_into().expect("they were split off there"))
    }

    /// The next message.
    pub(crate) fn message(&mut self, deadline: Instant) -> io::Result<ToRank> {
        loop {
            if let Some((message, length)) = unframe(&self.input, LONGEST_TO_RANK)? {
                self.input.drain(..length);
                return Ok(message);
            }
            self.more(deadline)?;
        }
    }

    pub(crate) fn send(&self, bytes: &[u8], deadline: Instant) -> io::Result<()> {
        send(&self.stream, bytes, deadline)
    }

    /// Waits for more.
    fn more(&mut self, deadline: Instant) -> io::Result<()> {
        const PIECE: usize = 16 << 10;
        let have = self.input.len();
        let result = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break Err(ErrorKind::WouldBlock.into());
            }
            self.stream.set_read_timeout(Some(left.max(SHORTEST)))?;
            self.input.resize(have + PIECE, 0);
            match self.stream.read(&mut self.input[have..]) {
                Ok(0) => break Err(ErrorKind::UnexpectedEof.into()),
                Ok(some) => break Ok(some),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // The end of our patience; `TimedOut` is that of the kernel's.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => break Err(error),
            }
        };
        self.input.truncate(have + result.as_ref().map_or(0, |some| *some));
        result.map(drop)
    }
}

/// Sends all of it.
pub(crate) fn send(mut stream: &TcpStream, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::WouldBlock.into());
        }
        stream.set_write_timeout(Some(left.max(SHORTEST)))?;
        match stream.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(some) => bytes = &bytes[some..],
            Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Sockets take no shorter time limit than something.
const SHORTEST: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_opening_is_read_and_another_beginning_is_not() {
        let bytes = opening(7, &[9; 32]);
        assert_eq!(read_opening(&bytes), Some((7, [9; 32])));
        assert!(may_open(&bytes) && may_open(&bytes[..3]) && may_open(b""));
        assert!(!may_open(b"GET / HTTP/1.1"));
        let mut other = bytes;
        other[0] = b'L';
        assert!(read_opening(&other).is_none() && !may_open(&other));
    }

    #[test]
    fn a_message_that_is_too_long_is_refused_before_it_has_come() {
        let announced = (LONGEST_TO_SERVER as u32 + 1).to_le_bytes();
        let error = unframe::<ToServer>(&announced, LONGEST_TO_SERVER).unwrap_err();
        assert!(error.to_string().contains("131073 bytes"), "{error}");
        let error = Error::msg("it failed").at("log", "x".repeat(40 << 10)).at("more", "y".repeat(40 << 10));
        let error = error.at("still more", "z".repeat(40 << 10));
        let frame = frame(&ToServer::Fails(error_to_wire(&error)));
        assert!(frame.len() < LONGEST_TO_SERVER);
    }

    proptest! {
        #[test]
        fn a_message_comes_whole_or_not_at_all(words in ".{0,40}", rank in any::<usize>(), cut in any::<prop::sample::Index>()) {
            let bytes = frame(&ToRank::Ended { rank, clean: false, words: words.clone() });
            let (message, length) = unframe(&bytes, LONGEST_TO_RANK).unwrap().unwrap();
            prop_assert_eq!(length, bytes.len());
            match message {
                ToRank::Ended { rank: theirs, clean: false, words: said } => {
                    prop_assert_eq!((theirs, said), (rank, words));
                }
                other => prop_assert!(false, "{:?}", other),
            }
            let part = &bytes[..cut.index(bytes.len())];
            prop_assert!(unframe::<ToRank>(part, LONGEST_TO_RANK).unwrap().is_none());
        }

        #[test]
        fn no_bytes_are_believed_to_be_more_than_they_are(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(Some((_, length))) = unframe::<ToServer>(&bytes, LONGEST_TO_SERVER) {
                prop_assert!(length <= bytes.len());
            }
        }
    }
}
