//! What the tests of the store share: a peer that speaks bytes, and patience.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use leyden_comm::store::{Client, ConnectOptions, Server, ServerOptions};

/// Long enough that only a hang takes longer.
pub(crate) const LONG: Duration = Duration::from_secs(60);

pub(crate) const VALIDATE: [u8; 5] = [0, 0xCE, 0xF7, 0x85, 0x3C];

pub(crate) fn server() -> Server {
    Server::start(ServerOptions::default()).unwrap()
}

pub(crate) fn client(server: &Server) -> Client {
    let options = ConnectOptions { deadline: LONG, timeout: LONG };
    Client::connect(&server.address().to_string(), options).unwrap()
}

/// Waits for a condition.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < LONG, "not within {LONG:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A peer that says what it likes.
pub(crate) struct Raw(pub(crate) TcpStream);

impl Raw {
    pub(crate) fn silent(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.set_write_timeout(Some(LONG)).unwrap();
        Self(stream)
    }

    pub(crate) fn valid(address: SocketAddr) -> Self {
        let mut raw = Self::silent(address);
        raw.send(&VALIDATE);
        raw
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }
}

/// An operation and its keys and values.
pub(crate) fn frame(operation: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = vec![operation];
    for part in parts {
        bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
        bytes.extend_from_slice(part);
    }
    bytes
}

/// An operation on several keys.
pub(crate) fn counted(operation: u8, keys: &[&[u8]]) -> Vec<u8> {
    let mut bytes = vec![operation];
    bytes.extend_from_slice(&(keys.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&frame(0, keys)[1..]);
    bytes
}
