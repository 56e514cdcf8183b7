//! Ranks that torchrun, srun, mpirun or a script has started: they find each other on their host.
//!
//! Rank 0 makes the world's memory, and waits at a socket without a file, whose name says which run of which launcher it
//! is; it is gone when rank 0 is. The others say who they are, and are told where the memory is. Nobody who is of another
//! build, counts other ranks, or has a rank that somebody else has gets in.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::{Duration, Instant};

use leyden_process::watch::readable;
use leyden_process::{Error, Result, entry};

use crate::codes::{EXTERNAL_MISSING, EXTERNAL_REFUSED, EXTERNAL_SOCKET, NOT_A_NUMBER};
use crate::environment::Environment;
use crate::world::World;

/// The world in which the launcher has given this process a rank; on rank 0 once all have come.
///
/// # Errors
/// `D0217` if not all come in time, with those that are missing; `D0218` if rank 0
/// refuses this one; `D0219` if the socket cannot be had. Those of a world that cannot be made.
pub(crate) fn meet(environment: &Environment) -> Result<World> {
    let patience = patience()?;
    let (rank, size) = (environment.rank(), environment.world_size());
    let name = meeting(environment);
    let deadline = Instant::now() + patience;
    match rank {
        0 => receive(&name, size, deadline, patience),
        _ => enter(&name, rank, size, deadline, patience),
    }
}

/// How long ranks wait for each other.
fn patience() -> Result<Duration> {
    let Some(told) = std::env::var_os("LEYDEN_JOIN_TIMEOUT").filter(|text| !text.is_empty()) else {
        return Ok(PATIENCE);
    };
    let seconds = told.to_str().and_then(|text| text.trim().parse().ok());
    seconds.map(Duration::from_secs).ok_or_else(|| {
        Error::new(NOT_A_NUMBER, "the variable LEYDEN_JOIN_TIMEOUT is not a number of seconds")
            .at("LEYDEN_JOIN_TIMEOUT", told.display())
            .hint("set it to whole seconds, such as 60, or unset it")
    })
}

/// The name of the socket: the same for all ranks of a run, and for no other run.
fn meeting(environment: &Environment) -> String {
    let user = fs::metadata("/proc/self").map_or(0, |own| own.uid());
    let port = environment.master().map_or(0, |(_, port)| port);
    // Whoever sets the variables by hand starts the ranks from one process.
    let run = environment
        .run_id()
        .map_or_else(|| format!("of-{}", std::os::unix::process::parent_id()), str::to_owned);
    let name = format!("leyden.{user}.{}.{port}.{run}", environment.launcher());
    // An address has room for 107 bytes.
    name.bytes().take(100).map(char::from).filter(char::is_ascii_graphic).collect()
}

/// Rank 0.
fn receive(name: &str, size: usize, deadline: Instant, patience: Duration) -> Result<World> {
    let world = World::create(size)?;
    world.set_unattended();
    let listener = SocketAddr::from_abstract_name(name)
        .and_then(|address| UnixListener::bind_addr(&address))
        .map_err(|error| {
            let refusal = Error::new(EXTERNAL_SOCKET, "rank 0 cannot be found by the others")
                .at("socket", format_args!("@{name}"))
                .because(&error);
            match error.kind() {
                io::ErrorKind::AddrInUse => refusal
                    .why("another process is rank 0 of this run")
                    .hint("give each process a rank of its own; two runs at once need different run ids"),
                _ => refusal,
            }
        })?;
    listener.set_nonblocking(true)?;
    // Nobody is admitted twice; whoever was admitted and dies is noticed as any rank is.
    let mut admitted = vec![false; size];
    admitted[0] = true;
    let mut callers: Vec<Caller> = Vec::new();
    while admitted.contains(&false) {
        wait(&listener, &callers, deadline);
        if Instant::now() >= deadline {
            return Err(missing(&world, &admitted, patience));
        }
        accept(&listener, &mut callers, size)?;
        callers.retain_mut(|caller| match caller.listen() {
            Heard::More => true,
            Heard::Line => {
                admit(&caller.peer, &caller.said, &world, &mut admitted);
                false
            }
        });
    }
    Ok(world)
}

/// Waits until somebody calls, or says something, or has said nothing for too long.
fn wait(listener: &UnixListener, callers: &[Caller], deadline: Instant) {
    let fds: Vec<BorrowedFd<'_>> =
        std::iter::once(listener.as_fd()).chain(callers.iter().map(|caller| caller.peer.as_fd())).collect();
    let until = callers.iter().map(|caller| caller.deadline).chain([deadline]).min().unwrap_or(deadline);
    readable(&fds, until.saturating_duration_since(Instant::now()));
}

/// Takes who calls, at most a few at once, so that those are heard before they must make room for others.
fn accept(listener: &UnixListener, callers: &mut Vec<Caller>, size: usize) -> Result<()> {
    for _ in 0..STRANGERS {
        match listener.accept() {
            Ok((peer, _)) => {
                peer.set_nonblocking(true)?;
                if callers.len() >= size + STRANGERS {
                    callers.remove(0);
                }
                callers.push(Caller { peer, said: Vec::new(), deadline: Instant::now() + SILENCE });
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => {
                return Err(
                    Error::new(EXTERNAL_SOCKET, "rank 0 cannot be found by the others").because(&error)
                );
            }
        }
    }
    Ok(())
}

/// Somebody who may want to join, and what it has said so far.
struct Caller {
    peer: UnixStream,
    said: Vec<u8>,
    deadline: Instant,
}

enum Heard {
    /// It may have more to say.
    More,
    /// All that it will.
    Line,
}

impl Caller {
    fn listen(&mut self) -> Heard {
        let mut buffer = [0; LONGEST];
        while self.said.len() < LONGEST && !self.said.contains(&b'\n') {
            match self.peer.read(&mut buffer) {
                Ok(0) => return Heard::Line,
                Ok(count) => self.said.extend(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < self.deadline => {
                    return Heard::More;
                }
                Err(_) => return Heard::Line,
            }
        }
        Heard::Line
    }
}

/// Answers one that wants to join: where the memory is, or why not.
fn admit(peer: &UnixStream, said: &[u8], world: &World, admitted: &mut [bool]) {
    let answer = match std::str::from_utf8(said).ok().map(Call::parse) {
        Some(Some(call)) => match call.refused(admitted) {
            None => {
                admitted[call.rank] = true;
                format!("ok {} {}\n", std::process::id(), world.fd().as_raw_fd())
            }
            Some(why) => format!("no {why}\n"),
        },
        _ => "no it says nothing that a rank says\n".to_owned(),
    };
    let _ = (&mut &*peer).write_all(answer.as_bytes());
}

/// Who wants to join.
struct Call {
    build: String,
    size: usize,
    rank: usize,
}

impl Call {
    fn text(rank: usize, size: usize) -> String {
        format!("leyden {} {size} {rank}\n", build())
    }

    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let (Some("leyden"), Some(build), Some(size), Some(rank), None) =
            (words.next(), words.next(), words.next(), words.next(), words.next())
        else {
            return None;
        };
        Some(Self { build: build.to_owned(), size: size.parse().ok()?, rank: rank.parse().ok()? })
    }

    fn refused(&self, admitted: &[bool]) -> Option<String> {
        let size = admitted.len();
        if self.build != build() {
            return Some("it is of another build of the program than rank 0".to_owned());
        }
        if self.size != size {
            return Some(format!("it counts {} ranks, and rank 0 counts {size}", self.size));
        }
        match admitted.get(self.rank) {
            Some(false) => None,
            Some(true) => Some(format!("another process is rank {}", self.rank)),
            None => Some(format!("rank {} is not below {size}", self.rank)),
        }
    }
}

/// The other ranks: asks rank 0 until it is there.
fn enter(name: &str, rank: usize, size: usize, deadline: Instant, patience: Duration) -> Result<World> {
    let address = SocketAddr::from_abstract_name(name)?;
    let mut peer = loop {
        match UnixStream::connect_addr(&address) {
            Ok(peer) => break peer,
            Err(_) if Instant::now() < deadline => std::thread::sleep(LOOK),
            Err(error) => {
                return Err(Error::new(EXTERNAL_MISSING, "rank 0 has not come")
                    .at("rank", rank)
                    .at("waited", format_args!("{patience:?}"))
                    .at("socket", format_args!("@{name}"))
                    .because(&error)
                    .hint("look whether rank 0 runs on this host, and has got as far as this"));
            }
        }
    };
    peer.write_all(Call::text(rank, size).as_bytes())?;
    let refused = |why: &str| {
        Error::new(EXTERNAL_REFUSED, "rank 0 refuses this rank")
            .at("rank", rank)
            .at("ranks", size)
            .why(why)
            .hint("start all ranks from the same program, with the same number of ranks and a rank of its own each")
    };
    let answer = read_line(&peer).unwrap_or_default();
    let mut words = answer.split_ascii_whitespace();
    let (verdict, pid, fd) = (words.next(), words.next(), words.next());
    let ("ok", Some(pid), Some(fd)) = (verdict.unwrap_or_default(), pid, fd) else {
        return Err(refused(answer.strip_prefix("no ").unwrap_or("it has gone away").trim_end()));
    };
    let memory = fs::File::options().read(true).write(true).open(format!("/proc/{pid}/fd/{fd}"));
    let memory = memory.map_err(|error| refused("its memory cannot be opened").because(&error))?;
    World::open(OwnedFd::from(memory))
}

/// The error of a world that is not complete, told to those who came.
fn missing(world: &World, admitted: &[bool], patience: Duration) -> Error {
    let absent: Vec<String> =
        (0..world.size()).filter(|&rank| !admitted[rank]).map(|rank| rank.to_string()).collect();
    let error = Error::new(EXTERNAL_MISSING, "not all ranks have come")
        .at("missing", format_args!("rank {}", absent.join(", ")))
        .at("ranks", world.size())
        .at("waited", format_args!("{patience:?}"))
        .hint("look at what those say, and whether the launcher has started them");
    world.poison(&error)
}

fn build() -> String {
    entry::build_id().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A short line; nothing if it does not come soon.
fn read_line(peer: &UnixStream) -> Option<String> {
    peer.set_read_timeout(Some(SILENCE)).ok()?;
    let mut line = String::new();
    BufReader::new(peer.take(LONGEST as u64)).read_line(&mut line).ok()?;
    Some(line)
}

/// How long ranks wait for each other, unless `LEYDEN_JOIN_TIMEOUT` says how many seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long somebody who calls has to say who it is: a rank does so at once.
const SILENCE: Duration = Duration::from_secs(2);
/// How much it may say.
const LONGEST: usize = 1024;
/// For how many who are no ranks there is room beside the ranks. The one that has waited longest makes room for the next.
const STRANGERS: usize = 64;
/// How often to look whether something has happened.
const LOOK: Duration = Duration::from_millis(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_and_strays_are_refused_with_the_reason() {
        let admitted = [true, false, true];
        let refused = |line: &str| Call::parse(line).map(|call| call.refused(&admitted));
        assert_eq!(refused(&Call::text(1, 3)), Some(None));
        assert!(refused(&Call::text(2, 3)).unwrap().unwrap().contains("another process is rank 2"));
        assert!(refused(&Call::text(1, 4)).unwrap().unwrap().contains("counts 4 ranks"));
        assert!(refused(&Call::text(3, 3)).unwrap().unwrap().contains("not below 3"));
        assert!(refused("leyden 00 3 1").unwrap().unwrap().contains("another build"));
        assert!(refused("GET / HTTP/1.1").is_none() && refused("").is_none());
    }
}
