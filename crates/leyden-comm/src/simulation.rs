//! What rank 0 has to do for thousands of ranks, measured without them: the decisions of a session and its messages as
//! bytes, with everything but sockets. For benchmarks, and for whoever wonders how far it goes.

use std::sync::Arc;
use std::time::Duration;

use leyden_process::clock::of_this_thread;

use crate::session::link::{LONGEST_TO_SERVER, ToRank, ToServer, frame, unframe};
use crate::session::meeting::{Act, Event, Hello, Limits, Manifest, Meeting, Notice, Time};
use crate::session::{Member, link};

/// What a session of so many ranks has cost rank 0, in time of the processor.
#[derive(Clone, Copy, Debug)]
pub struct Session {
    /// How many ranks.
    pub ranks: usize,
    /// Until all had come, in any order, and each was sent who the others are.
    pub meeting: Duration,
    /// A beat of each.
    pub beats: Duration,
    /// From the death of one until each of the others was sent it.
    pub death: Duration,
    /// How many messages were sent.
    pub sent: usize,
}

impl Session {
    /// The meeting, a second of beats (four), and a death, divided by the ranks.
    pub fn per_rank(&self) -> Duration {
        (self.meeting + 4 * self.beats + self.death) / self.ranks as u32
    }
}

/// Drives a session of `ranks` ranks, of which one dies.
///
/// # Panics
///
/// If the session does not do what it should; with no ranks.
pub fn session(ranks: usize) -> Session {
    let hellos: Vec<Vec<u8>> =
        shuffled(ranks).map(|rank| frame(&ToServer::Hello(hello(rank, ranks)))).collect();
    let limits = Limits { join: Duration::from_secs(60), lease: Duration::from_secs(3) };
    let began = of_this_thread();
    let mut zero = Zero { meeting: Meeting::new(hello(0, ranks), limits), queues: Vec::new(), sent: 0 };
    zero.queues.resize_with(ranks, Vec::new);
    for (connection, hello) in hellos.iter().enumerate() {
        zero.hears(connection, hello, Duration::ZERO);
    }
    let meeting = of_this_thread() - began;
    // Each was let in, and has the roster.
    assert_eq!(zero.sent, 2 * ranks);

    const ROUNDS: u32 = 20;
    let began = of_this_thread();
    for round in 1..=ROUNDS {
        let now = round * Duration::from_millis(250);
        let beat = frame(&ToServer::Beat(round.into()));
        (0..ranks).for_each(|connection| zero.hears(connection, &beat, now));
        zero.time_passes(now);
    }
    let beats = (of_this_thread() - began) / ROUNDS;
    assert_eq!(zero.sent, 2 * ranks, "nobody was silent");

    let began = of_this_thread();
    let now = (ROUNDS + 1) * Duration::from_millis(250);
    zero.happens(ranks / 2, Event::Closed("its process has ended".to_owned()), now);
    let death = of_this_thread() - began;
    assert_eq!(zero.sent, 3 * ranks - 1);
    Session { ranks, meeting, beats, death, sent: zero.sent }
}

/// Rank 0 without sockets.
struct Zero {
    meeting: Meeting,
    /// What the last messages to each are.
    queues: Vec<Vec<Arc<[u8]>>>,
    sent: usize,
}

impl Zero {
    fn hears(&mut self, connection: usize, bytes: &[u8], now: Time) {
        let (message, _) = unframe(bytes, LONGEST_TO_SERVER).expect("it was framed").expect("it is whole");
        let event = match message {
            ToServer::Hello(hello) => Event::Hello(hello),
            ToServer::Beat(progress) => Event::Beat(progress),
            ToServer::Fails(_) | ToServer::Leaves => return,
        };
        self.happens(connection, event, now);
    }

    fn happens(&mut self, connection: usize, event: Event, now: Time) {
        let mut acts = Vec::new();
        self.meeting.on(connection, event, now, &mut acts);
        self.act(acts);
    }

    fn time_passes(&mut self, now: Time) {
        let mut acts = Vec::new();
        self.meeting.tick(now, &mut acts);
        self.act(acts);
    }

    fn act(&mut self, acts: Vec<Act>) {
        for act in acts {
            match act {
                Act::Accept(connection, left) => {
                    self.send(connection, frame(&ToRank::Accepted(left.as_millis() as u64)).into());
                }
                Act::Refuse(connection, error) => {
                    self.send(connection, frame(&ToRank::Refused(link::error_to_wire(&error))).into());
                }
                Act::Open(roster) => self.send_to_all(&ToRank::Roster(roster)),
                Act::Tell(Notice::Ended { rank, clean, words }) => {
                    self.send_to_all(&ToRank::Ended { rank, clean, words });
                }
                Act::Tell(Notice::Silent { rank, silent }) => {
                    self.send_to_all(&ToRank::Silent { rank, silent });
                }
                Act::Tell(Notice::Failed { by, error }) => {
                    self.send_to_all(&ToRank::Failed { by, error: link::error_to_wire(&error) });
                }
            }
        }
    }

    fn send_to_all(&mut self, message: &ToRank) {
        let bytes: Arc<[u8]> = frame(message).into();
        let members: Vec<usize> = self.meeting.members().map(|(_, connection)| connection).collect();
        members.into_iter().for_each(|connection| self.send(connection, Arc::clone(&bytes)));
    }

    fn send(&mut self, connection: usize, bytes: Arc<[u8]>) {
        self.queues[connection].push(bytes);
        self.sent += 1;
    }
}

fn hello(rank: usize, size: usize) -> Hello {
    let [_, high, middle, low] = (rank as u32).to_be_bytes();
    let address = ([10, high, middle, low], 40_000).into();
    let member = Member { address, host: format!("node{:05}", rank / 8), pid: 10_000 + rank as u32 };
    let manifest = Manifest {
        run: "4242.0".to_owned(),
        build: "2c26b46b68ffc68ff99b453c1d30413413422d70".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        configuration: 0,
    };
    Hello { rank, size, member, manifest }
}

/// All ranks, in an order of no pattern: a multiple of a prime that does not divide their number.
fn shuffled(ranks: usize) -> impl Iterator<Item = usize> {
    let step = [7919, 7907].into_iter().find(|step| !ranks.is_multiple_of(*step)).unwrap_or(1);
    (0..ranks).map(move |place| place * step % ranks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_of_any_size_sends_each_rank_three_messages_and_the_dead_one_two() {
        for ranks in [1, 2, 50, 1000] {
            let session = session(ranks);
            assert_eq!((session.ranks, session.sent), (ranks, 3 * ranks - 1));
        }
        let mut all: Vec<usize> = shuffled(7919).collect();
        all.sort_unstable();
        assert!(all.into_iter().eq(0..7919));
    }

    /// `cargo test --release -p leyden-comm --lib -- --ignored --nocapture cost_per_rank`
    #[test]
    #[ignore = "a figure, not a test"]
    fn cost_per_rank() {
        for ranks in [100, 1000, 10_000] {
            let mut runs: Vec<Session> = (0..21).map(|_| session(ranks)).collect();
            runs.sort_by_key(Session::per_rank);
            let median = runs[runs.len() / 2];
            println!("{:?} a rank: {median:?}", median.per_rank());
        }
    }
}
