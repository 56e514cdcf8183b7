//! How the others find rank 0: a key of the run's store, which says where it serves.
//!
//! The store is torchrun's if torchrun has one for its ranks; else rank 0 hosts ours at the master's address. Whoever reaches
//! it can read and write the key, so nothing in it is trusted: who answers at the address has to prove that it has the token.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use leyden_process::{Error, Result};
use serde::{Deserialize, Serialize};

use super::Terms;
use super::meeting::other_run;
use super::secret::{Nonce, Secret};
use crate::codes::{
    SESSION_CLOSED, SESSION_LOST, SESSION_MASTER, SESSION_OTHER_BUILD, SESSION_OTHER_TOKEN, SESSION_SERVE,
    SESSION_TOKEN, STORE_TIMEOUT,
};
use crate::environment::{Environment, Launcher};
use crate::store::{Client, ConnectOptions, Server, ServerOptions};

/// Where the ranks of a run meet, as each of them knows from its own variables.
pub(super) struct Place {
    several_hosts: bool,
    /// The store's, as one connects to it.
    address: String,
    port: u16,
    key: String,
    run: String,
    agent: bool,
}

impl Place {
    /// # Errors
    /// `D0220` without a token where one is needed, `D0221` if the master's address is not known.
    pub(super) fn of(environment: &Environment, terms: &Terms) -> Result<Self> {
        let several_hosts = super::is_on_several_hosts(environment);
        refuse_token(environment, terms, several_hosts)?;
        let Some((host, port)) = environment.master() else { return Err(no_master(environment)) };
        let agent = terms.agent_store && environment.launcher() == Launcher::Torchrun;
        // On one host rank 0 listens where nobody else can reach it, whatever that host is called.
        let host = if several_hosts || agent { host } else { "127.0.0.1" };
        let address = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let run = environment.run_id().unwrap_or_default().to_owned();
        // A store of ours serves one run, and its key tells one that comes to the wrong one so; torchrun's may have had others.
        let key = if agent { format!("leyden/session/{run}") } else { "leyden/session".to_owned() };
        Ok(Self { several_hosts, address, port, key, run, agent })
    }

    /// A socket for others: on all interfaces, or on one host of loopback.
    ///
    /// # Errors
    /// The system's refusal.
    pub(super) fn listener(several_hosts: bool, port: u16) -> std::io::Result<TcpListener> {
        if !several_hosts {
            return TcpListener::bind((Ipv4Addr::LOCALHOST, port));
        }
        match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)) {
            // A system without IPv6.
            Err(error) if error.kind() != std::io::ErrorKind::AddrInUse => {
                TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
            }
            other => other,
        }
    }

    /// Rank 0's store: that of torchrun, or one that it hosts from now on.
    ///
    /// # Errors
    /// `D0501` to `D0505`: the port is taken, or torchrun's store does not answer.
    pub(super) fn open_store(&self, size: usize, patience: Duration) -> Result<(Client, Option<Server>)> {
        if self.agent {
            return Ok((self.connect(patience)?, None));
        }
        let any = if self.several_hosts { Ipv4Addr::UNSPECIFIED } else { Ipv4Addr::LOCALHOST };
        // There is one small key: strangers get no room for theirs.
        let options = ServerOptions {
            listen: (any, self.port).into(),
            connections: 2 * size + STRANGERS,
            memory: 4 << 20,
            ..ServerOptions::default()
        };
        let server = match Self::listener(self.several_hosts, self.port) {
            Ok(listener) => Server::from_listener(listener, options)?,
            // It says who has the port.
            Err(_) => Server::start(options)?,
        };
        let address = format!("127.0.0.1:{}", self.port);
        let client = Client::connect(&address, ConnectOptions { deadline: SILENCE, ..Default::default() })?;
        Ok((client, Some(server)))
    }

    /// A connection to the store, for which somebody else may have to come first.
    ///
    /// # Errors
    /// `D0503` to `D0505`.
    pub(super) fn connect(&self, patience: Duration) -> Result<Client> {
        let options = ConnectOptions { deadline: patience, timeout: patience };
        Client::connect_unless_silent(&self.address, options, SILENCE).map_err(|error| {
            let error = match self.agent {
                true => error.at("the store of", "torchrun, by MASTER_ADDR and MASTER_PORT"),
                false => error.at("the store of", "rank 0, by MASTER_ADDR and MASTER_PORT"),
            };
            error
                .hint("MASTER_ADDR must lead to the host of rank 0, from all hosts; look at what rank 0 says")
        })
    }

    /// Says where rank 0 is.
    ///
    /// # Errors
    /// Those of the store.
    pub(super) fn publish(&self, store: &mut Client, published: &Published, protocol: u32) -> Result<()> {
        store.set(&self.key, &published.to_bytes(protocol))?;
        // There is no answer to that; to this there is, and it comes afterwards.
        store.check(&[&self.key]).map(drop)
    }

    /// Waits until rank 0 has said where it is; `None` if it has not.
    ///
    /// # Errors
    /// Those of the store; `D0225` if rank 0 is of another version; `D0226` of another run; `D0228` if the run has failed.
    pub(super) fn read(
        &self,
        store: &mut Client,
        terms: &Terms,
        within: Duration,
    ) -> Result<Option<Invitation>> {
        let bytes = match store.get_within(&self.key, within) {
            Ok(bytes) => bytes,
            Err(error) if error.code() == STORE_TIMEOUT => return Ok(None),
            Err(error) => return Err(error),
        };
        match Published::from_bytes(&bytes, terms.protocol)? {
            Published::Open(invitation) if invitation.run != self.run => {
                Err(other_run(&self.run, &invitation.run).at("address", &self.address))
            }
            Published::Open(invitation) => Ok(Some(invitation)),
            Published::Failed(error) => {
                let reason = Error::from_wire(&error).map_or_else(String::new, |error| format!("{error:?}"));
                Err(Error::new(SESSION_CLOSED, "this rank came when the run had failed already").why(reason))
            }
        }
    }

    /// Where rank 0 may be reached, the likeliest first.
    pub(super) fn addresses(&self, invitation: &Invitation, store: &Client) -> Vec<SocketAddr> {
        let hosts = store.ends().map(|(_, theirs)| theirs.ip().to_canonical());
        let mut found: Vec<IpAddr> = Vec::new();
        // torchrun's store may be on another host than rank 0.
        match self.agent {
            true => found.extend(invitation.addresses.iter().chain(&hosts)),
            false => found.extend(hosts.iter().chain(&invitation.addresses)),
        }
        let mut known = Vec::new();
        for ip in found {
            let address = SocketAddr::new(ip, invitation.port);
            if !known.contains(&address) {
                known.push(address);
            }
        }
        known
    }

    pub(super) fn run(&self) -> &str {
        &self.run
    }

    pub(super) fn is_on_several_hosts(&self) -> bool {
        self.several_hosts
    }

    pub(super) fn is_of_agent(&self) -> bool {
        self.agent
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }
}

/// What rank 0 says.
#[derive(Serialize, Deserialize)]
pub(super) enum Published {
    Open(Invitation),
    /// An error: nobody will be let in.
    Failed(Vec<u8>),
}

#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Invitation {
    /// This start of the run, and no other.
    pub(super) session: Nonce,
    pub(super) run: String,
    pub(super) port: u16,
    /// Where rank 0's host can be reached, if the store is elsewhere.
    pub(super) addresses: Vec<IpAddr>,
    /// Without a token: what the ranks of this host prove themselves by.
    pub(super) secret: Option<[u8; 32]>,
}

impl Invitation {
    /// What both sides prove themselves by.
    ///
    /// # Errors
    /// `D0223` if one of both has a token, and the other none.
    pub(super) fn secret(&self, terms: &Terms, several_hosts: bool) -> Result<Secret> {
        let other = |why: &str| {
            Err(Error::new(SESSION_OTHER_TOKEN, "this rank has another token than rank 0")
                .why(why)
                .hint("set LEYDEN_TOKEN to the same on all ranks"))
        };
        match (&terms.token, self.secret) {
            (Some(token), None) => Ok(Secret::of_token(token, &self.session)),
            (None, Some(secret)) if !several_hosts => Ok(Secret::from_bytes(secret)),
            (None, None) => other("rank 0 has one, and this rank none"),
            (_, Some(_)) => other("this rank has one, and rank 0 none"),
        }
    }
}

impl Published {
    const MAGIC: &'static [u8] = b"leyden session ";

    fn to_bytes(&self, protocol: u32) -> Vec<u8> {
        let bytes = [Self::MAGIC, &protocol.to_le_bytes()].concat();
        postcard::to_extend(self, bytes).expect("numbers and text always serialise")
    }

    fn from_bytes(bytes: &[u8], protocol: u32) -> Result<Self> {
        let nonsense = || {
            Error::new(SESSION_LOST, "where rank 0 serves cannot be read")
                .why("something else has written the key `leyden/session` of the store")
                .hint("give each program a MASTER_PORT of its own")
        };
        let rest = bytes.strip_prefix(Self::MAGIC).and_then(|rest| rest.split_first_chunk::<4>());
        let (theirs, rest) = rest.ok_or_else(nonsense)?;
        let theirs = u32::from_le_bytes(*theirs);
        if theirs != protocol {
            return Err(Error::new(SESSION_OTHER_BUILD, "rank 0 is of another version of Leyden")
                .at("rank 0", format!("protocol {theirs}"))
                .at("this rank", format!("protocol {protocol}, Leyden {}", env!("CARGO_PKG_VERSION")))
                .hint("copy one build to all hosts, or start it from a file system that they share"));
        }
        postcard::from_bytes(rest).map_err(|_| nonsense())
    }
}

/// Refuses ranks on several hosts that have no token, or one that can be found by trying.
fn refuse_token(environment: &Environment, terms: &Terms, several_hosts: bool) -> Result<()> {
    /// 64 bits if it is made of hexadecimal digits.
    const SHORTEST: usize = 16;
    let (what, is) = match &terms.token {
        Some(token) if token.len() >= SHORTEST => return Ok(()),
        None if !several_hosts => return Ok(()),
        None => ("ranks on several hosts need a token", "not set".to_owned()),
        Some(token) => {
            ("the token is too short", format!("{} bytes, and at least {SHORTEST} are needed", token.len()))
        }
    };
    Err(Error::new(SESSION_TOKEN, what)
        .at("rank", format!("{} of {}", environment.rank(), environment.world_size()))
        .at("LEYDEN_TOKEN", is)
        .why("some of the ranks are on other hosts, and whoever reaches their ports could join")
        .hint("make one where you start the run: `export LEYDEN_TOKEN=$(openssl rand -hex 16)`")
        .hint(
            "it must reach every rank: srun passes it on, Open MPI does with `mpirun -x LEYDEN_TOKEN`; torchrun \
             needs it in the shell on each host",
        ))
}

fn no_master(environment: &Environment) -> Error {
    let error =
        Error::new(SESSION_MASTER, "the ranks do not know where to meet: rank 0's address is not known")
            .at("launcher", environment.launcher())
            .at("rank", format!("{} of {}", environment.rank(), environment.world_size()))
            .at("MASTER_ADDR, MASTER_PORT", "not both set")
            .why("this launcher does not tell its ranks where rank 0 is");
    match environment.launcher() {
        Launcher::OpenMpi => error.hint(
            "give them: `mpirun -x MASTER_ADDR=HOST -x MASTER_PORT=29500 -x LEYDEN_TOKEN …`, HOST being that of rank 0",
        ),
        Launcher::Pmi => error.hint(
            "give them: `mpiexec -genv MASTER_ADDR HOST -genv MASTER_PORT 29500 -genv LEYDEN_TOKEN …`, HOST being that \
             of rank 0",
        ),
        _ => error.hint(
            "set MASTER_ADDR to the host of rank 0 and MASTER_PORT to a free port of it (29500), the same on all ranks",
        ),
    }
}

/// How many connections the store takes beside two for each rank.
const STRANGERS: usize = 64;
/// How long a host may be unknown or say nothing at all before that is an error; the launcher has started it already.
const SILENCE: Duration = Duration::from_secs(10);

/// What is left until then.
pub(super) fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// Rank 0 cannot have a socket.
pub(super) fn cannot_serve(error: &std::io::Error) -> Error {
    Error::new(SESSION_SERVE, "rank 0 cannot serve the other ranks")
        .because(error)
        .hint("check the limit on open files (`ulimit -n`), and that there is a network")
}
