//! What comes from a peer, written into this rank's own world; and what its silence means.

use std::io::{self, BufRead as _, BufReader, ErrorKind, Read};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use leyden_process::Error;

use super::frame::{Fault, HEAD, Head, Kind, checksum};
use super::{Inner, Link, lock};
use crate::codes::{DIED, FRAME_DAMAGED, FRAME_SENSELESS};
use crate::record::Site;
use crate::transport::{Look, show};
use crate::watch::now;
use crate::world::{End, State, World};

/// The thread of one peer: until its connection ends.
pub(super) fn receive(inner: &Inner, world: &World, peer: usize) {
    let link = inner.link(peer);
    let mut reader = BufReader::with_capacity(BUFFER, &link.stream);
    let ending = loop {
        if let Err(ending) = next(inner, world, link, &mut reader) {
            break ending;
        }
    };
    end(inner, world, link, ending);
}

/// How a connection ends.
enum Ending {
    /// Between two frames.
    Closed,
    /// Inside of one.
    Torn,
    Failed(io::Error),
    Wrong(Fault, Option<Kind>),
}

impl From<io::Error> for Ending {
    fn from(error: io::Error) -> Self {
        if error.kind() == ErrorKind::UnexpectedEof { Self::Torn } else { Self::Failed(error) }
    }
}

fn next(inner: &Inner, world: &World, link: &Link, reader: &mut BufReader<&TcpStream>) -> Result<(), Ending> {
    if fill(reader)?.is_empty() {
        return Err(Ending::Closed);
    }
    let mut head = [0; HEAD];
    reader.read_exact(&mut head)?;
    let head = Head::decode(&head).map_err(|fault| Ending::Wrong(fault, None))?;
    if head.kind == Kind::Arrival {
        return arrival(world, link.peer, &head, reader);
    }
    let mut bytes = vec![0; head.length as usize];
    reader.read_exact(&mut bytes)?;
    if checksum(&bytes) != head.checksum {
        return Err(Ending::Wrong(Fault::Damaged, Some(head.kind)));
    }
    apply(inner, world, link, &head, &bytes).ok_or(Ending::Wrong(Fault::Senseless, Some(head.kind)))
}

/// Bytes, record and then the arrival itself. The window of this arrival is not in use: the peer has seen that this rank has
/// read the one before the last.
fn arrival(
    world: &World,
    peer: usize,
    head: &Head,
    reader: &mut BufReader<&TcpStream>,
) -> Result<(), Ending> {
    let (group, mut offset, mut left) = (usize::from(head.group), head.offset as usize, head.length as usize);
    let mut sum = crc32fast::Hasher::new();
    while left > 0 {
        let bytes = fill(reader)?;
        if bytes.is_empty() {
            return Err(Ending::Torn);
        }
        let bytes = &bytes[..bytes.len().min(left)];
        sum.update(bytes);
        world.write_window_at(peer, group, head.tick, offset, bytes);
        let read = bytes.len();
        reader.consume(read);
        (offset, left) = (offset + read, left - read);
    }
    if sum.finalize() != head.checksum {
        return Err(Ending::Wrong(Fault::Damaged, Some(head.kind)));
    }
    world.write_record(peer, group, head.seq, head.words, head.site, now());
    show(world, peer, group, head.tick);
    Ok(())
}

/// What is in the buffer, or what comes next; nothing at the end.
fn fill<'a>(reader: &'a mut BufReader<&TcpStream>) -> io::Result<&'a [u8]> {
    loop {
        match reader.fill_buf() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Asked twice: what it would give now borrows for longer than a loop may.
            Err(error) => return Err(error),
            Ok(_) => break,
        }
    }
    reader.fill_buf()
}

/// Writes down what a peer says of itself; nothing if it makes no sense.
fn apply(inner: &Inner, world: &World, link: &Link, head: &Head, bytes: &[u8]) -> Option<()> {
    let (peer, group) = (link.peer, usize::from(head.group));
    match head.kind {
        Kind::Arrival => return None,
        Kind::Site => {
            let (label, place) = std::str::from_utf8(bytes).ok()?.split_at_checked(head.tick as usize)?;
            let site = Site { label: label.to_owned(), place: place.to_owned() };
            world.write_site(peer, head.site, &site);
        }
        Kind::State => {
            let state = match head.words[0] {
                1 => State::Present,
                2 => State::Left,
                3 => State::Panicked,
                _ => return None,
            };
            world.take_place(peer, u32::try_from(head.words[1]).ok()?);
            world.set_state(peer, head.tick, state);
            if state != State::Present {
                inner.send(link, Head { tick: head.tick, ..Head::of(Kind::Heard) }, &[]);
            }
        }
        Kind::Phase => {
            let [lasts, budget] = head.words;
            world.set_phase(peer, head.site, now().saturating_sub(lasts), budget);
        }
        Kind::Awaits => world.awaited(peer, group).store(head.words[0], Ordering::SeqCst),
        Kind::Forget => world.forget_group(peer, group),
        Kind::Failure => {
            let error = Error::from_wire(bytes)?;
            inner.has_failed.store(true, Ordering::SeqCst);
            world.poison(&error);
        }
        Kind::Heard => {
            link.heard.fetch_max(head.tick + 1, Ordering::SeqCst);
            let _hearing = lock(&inner.hearing);
            inner.heard.notify_all();
        }
        Kind::Ask => {
            let own = Look::at(std::process::id() as i32);
            let words = [u64::from(own.suspended), 0];
            let text: String = own.words.chars().take(1000).collect();
            inner.send(link, Head { words, ..Head::of(Kind::Look) }.with(text.as_bytes()), text.as_bytes());
        }
        Kind::End => tell_end(world, peer, head.tick != 0, std::str::from_utf8(bytes).ok()?),
        Kind::Look => {
            let words = std::str::from_utf8(bytes).ok()?.to_owned();
            let mut asked = lock(&link.asked);
            asked.since = None;
            asked.answered = Some(Instant::now());
            asked.look = Some(Look { words, suspended: head.words[0] != 0 });
        }
    }
    Some(())
}

/// Tells what the end of a connection means to those who wait for the peer; and, if it did not leave in order, to all.
fn end(inner: &Inner, world: &World, link: &Link, ending: Ending) {
    let (is_wrong, failed) = match ending {
        Ending::Wrong(fault, kind) => {
            // While it can be told.
            world.poison(&wrong(link, fault, kind));
            (true, None)
        }
        Ending::Failed(error) => (false, Some(error)),
        Ending::Closed | Ending::Torn => (false, None),
    };
    link.is_down.store(true, Ordering::SeqCst);
    let _ = link.stream.shutdown(if is_wrong { Shutdown::Write } else { Shutdown::Both });
    drop(lock(&inner.hearing));
    inner.heard.notify_all();
    if is_wrong || inner.is_closing.load(Ordering::SeqCst) {
        return;
    }
    let peer = link.peer;
    let lost = lock(&link.lost).take();
    let words = match (&failed, lost) {
        (_, Some(why)) => why,
        (Some(error), None) => error.to_string(),
        (None, None) => "closed by the other side".to_owned(),
    };
    let (clean, words) = match world.state(peer) {
        State::Left => (true, "has ended".to_owned()),
        State::Panicked => (false, "it panicked".to_owned()),
        State::Present | State::Absent => {
            (false, format!("its connection from {} is lost: {words}", link.name))
        }
    };
    // What it said itself, with which code it exits, has come before.
    tell_end(world, peer, clean, &words);
    if world.end(peer).0 == End::Failed {
        // Whoever waits for it says so too, and from where.
        std::thread::sleep(BETTER_WORDS);
        let cause = world.end(peer).1;
        let cause = cause.lines().next().unwrap_or_default();
        world.poison(
            &Error::new(DIED, format!("rank {peer} died")).at("cause", cause).hint(
                "its own words, above or in its log, say why; then start again from the last checkpoint",
            ),
        );
    }
}

/// The first word counts.
fn tell_end(world: &World, peer: usize, clean: bool, words: &str) {
    if world.end(peer).0 == End::Unknown {
        world.tell_end(peer, clean, words);
    }
}

fn wrong(link: &Link, fault: Fault, kind: Option<Kind>) -> Error {
    let error = match fault {
        Fault::Damaged => Error::new(FRAME_DAMAGED, "what a rank sent has arrived damaged")
            .why("its checksum is another one, which TCP has not noticed")
            .hint("start again from the last checkpoint; if it comes again, test memory and network card of both hosts"),
        Fault::Senseless => Error::new(FRAME_SENSELESS, "what a rank sent makes no sense")
            .why("it is whole, and no rank of this version sends it")
            .hint("this is a defect of Leyden, or memory of the other process was overwritten: please report it"),
    };
    let error = error.at("from", format_args!("rank {} at {}", link.peer, link.name));
    match kind {
        Some(kind) => error.at("what", format_args!("{kind:?}")),
        None => error.at("what", "the head of a frame"),
    }
}

/// How much is read at once, in bytes: a part of a window that stays in the cache.
const BUFFER: usize = 128 << 10;
/// How long those that wait for a dead rank have to say so first.
const BETTER_WORDS: Duration = Duration::from_millis(20);
