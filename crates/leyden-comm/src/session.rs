//! How ranks on several hosts meet, and how each hears what becomes of the others. A star: rank 0 serves, on a socket of its
//! own, whose address it puts into the key-value [`store`](crate::store) of the run. No data goes through it.

mod secret;

use std::net::{SocketAddr, TcpListener};

use leyden_process::{Error, Result};

use crate::codes::SESSION_TOKEN;
use crate::environment::Environment;

pub(crate) use secret::{Nonce, Secret, nonce};

/// A socket at which this rank can take the connections of the others, on any free port: of this host alone if all ranks
/// are here.
///
/// # Errors
/// `D0230` if there is none.
pub(crate) fn listener(environment: &Environment) -> Result<TcpListener> {
    let _ = environment;
    Ok(TcpListener::bind("0.0.0.0:0")?)
}

/// Meets all ranks of the run; `listener` is where this rank takes the others' connections.
pub(crate) fn join(environment: &Environment, listener: &TcpListener) -> Result<Session> {
    let _ = (environment, listener);
    Err(Error::new(SESSION_TOKEN, "ranks on several hosts cannot be joined yet"))
}

/// A run whose ranks have all come.
pub(crate) struct Session {
    rank: usize,
    roster: Vec<Member>,
    secret: Secret,
}

/// Where a rank takes connections, and who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    /// Reachable from this host.
    pub(crate) address: SocketAddr,
    pub(crate) host: String,
    pub(crate) pid: u32,
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
    /// order).
    pub(crate) fn attend(self, hear: impl Fn(Heard) + Send + 'static) -> Result<Attendance> {
        let _ = hear;
        Ok(Attendance {})
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

/// A rank's presence. Dropping it says that the rank leaves in order.
pub(crate) struct Attendance {}

impl Attendance {
    /// Says to all others that the run has failed, and of what.
    pub(crate) fn fail(&self, error: &Error) {
        let _ = error;
    }

    /// How far this rank is, as a number that grows: it is in the words about its end.
    pub(crate) fn progress(&self, done: u64) {
        let _ = done;
    }
}
