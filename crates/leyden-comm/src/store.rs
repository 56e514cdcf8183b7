//! The store: a few keys and values on one server, through which ranks find each other before anything else connects
//! them. It speaks the protocol of PyTorch's `TCPStore`, so a [`Server`] serves PyTorch's clients, and a [`Client`] is one
//! of PyTorch's servers. No leases, no liveness, no authentication: whoever reaches the port may read and write, so it
//! listens on loopback unless told otherwise.
//!
//! ```
//! use std::time::Duration;
//! use leyden_comm::store::{Client, ConnectOptions, Server, ServerOptions};
//!
//! let server = Server::start(ServerOptions::default())?;
//! let address = server.address().to_string();
//! let rank = std::thread::spawn(move || -> leyden_comm::Result<Vec<u8>> {
//!     let mut store = Client::connect(&address, ConnectOptions::default())?;
//!     store.get_within("dataset", Duration::from_secs(30))           // waits until somebody has set it
//! });
//! let mut store = Client::connect(&server.address().to_string(), ConnectOptions::default())?;
//! store.set("dataset", b"ready")?;
//! assert_eq!(rank.join().unwrap()?, b"ready");
//! # Ok::<(), leyden_comm::Error>(())
//! ```
//!
//! # Where it differs from PyTorch's
//!
//! - A server stops when it is dropped, within a bounded time, and closes its connections.
//! - What a peer announces is not allocated before it arrives, and all that is kept counts against
//!   [`ServerOptions::memory`]. Whoever breaks the protocol is cut off, alone, and can be read in [`Server::strangers`].
//! - A validation that arrives in pieces is accepted.
//! - A wait is over when all its keys are there at the same time (PyTorch counts each once, also if it was deleted since).
//! - Who leaves a barrier, by a timeout or by dying, does not count in it any longer; the barrier releases nobody early.
//! - [`Client`] waits for a store that is not up yet, for as long as [`ConnectOptions::deadline`] and no longer; PyTorch's
//!   tries can take twice the timeout.
//!
//! # Threads
//!
//! A server has a thread that accepts, and one for each connection: these are mostly asleep, and there are a few per rank.

mod budget;
mod client;
pub(crate) mod owner;
mod protocol;
mod server;
mod table;

pub use client::{Client, ConnectOptions};
pub use protocol::{LARGEST_VALUE, LONGEST_KEY, MOST_KEYS};
#[cfg(target_os = "linux")]
pub(crate) use protocol::{classify, timed_out};
pub use server::{Server, ServerOptions, Strange, Stranger};
