//! What comes from outside, and what comes damaged.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use leyden_process::{Error, Result};

use super::join::Door;
use super::{Meeting, join};
use crate::rank::Rank;
use crate::session::{Member, Secret, nonce};
use crate::world::World;

const LONG: Duration = Duration::from_secs(60);

fn listen() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
}

fn member(address: SocketAddr) -> Member {
    Member { address, host: "here".to_owned(), pid: 1 }
}

/// Two ranks, each on a thread. `address`: where rank 1 looks for rank 0, if not where that listens.
fn two(
    address: impl FnOnce(SocketAddr) -> SocketAddr,
    secrets: [Secret; 2],
    within: Duration,
    f: impl Fn(&mut Rank) -> Result<()> + Sync,
) -> [Result<()>; 2] {
    let listeners = [listen(), listen()];
    let [zero, one] = [0, 1].map(|rank: usize| listeners[rank].local_addr().unwrap());
    let rosters = [[member(zero), member(one)], [member(address(zero)), member(one)]];
    let f = &f;
    std::thread::scope(|scope| {
        let mut seats = listeners.into_iter().zip(rosters).zip(secrets).enumerate();
        let threads: [_; 2] = std::array::from_fn(|_| {
            let (rank, ((listener, roster), secret)) = seats.next().unwrap();
            scope.spawn(move || {
                let world = Arc::new(World::create(2)?);
                let deadline = Instant::now() + within;
                let roster = &roster;
                let _mesh = join(&world, Meeting { rank, roster, secret: &secret, listener, deadline })?;
                let mut rank = Rank::join(Arc::clone(&world), rank)?;
                f(&mut rank).map_err(|error| rank.fail(error))
            })
        });
        threads.map(|thread| thread.join().unwrap())
    })
}

fn same() -> [Secret; 2] {
    let bytes = nonce().unwrap();
    [Secret::from_bytes(bytes), Secret::from_bytes(bytes)]
}

fn work(rank: &mut Rank) -> Result<()> {
    let mut data = vec![rank.rank() as f32; 100_000];
    for _ in 0..5 {
        rank.all_reduce(&mut data, crate::ReduceOp::Max)?;
    }
    assert!(data.iter().all(|&x| x == 1.0));
    rank.barrier("end")
}

#[test]
fn strangers_that_come_first_hold_nobody_up() {
    let mut kept = Vec::new();
    let results = two(
        |zero| {
            for words in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], b"leyden-mesh/1", &[0x5a; 500], b""] {
                let mut stranger = TcpStream::connect(zero).unwrap();
                stranger.write_all(words).unwrap();
                kept.push(stranger);
            }
            zero
        },
        same(),
        LONG,
        work,
    );
    for result in results {
        result.unwrap();
    }
}

#[test]
fn a_stranger_is_told_apart_by_what_it_says() {
    let door = || Door::of(0, Secret::from_bytes([7; 32]));
    let ask = |words: &[u8]| {
        let listener = listen();
        let mut stranger = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        stranger.write_all(words).unwrap();
        stranger.shutdown(Shutdown::Write).unwrap();
        door().ask(listener.accept().unwrap().0).map(drop).unwrap_err()
    };
    assert_eq!(ask(b""), "it says nothing");
    assert!(
        ask(b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: text/html, */*\r\nX: y\r\n\r\n").contains("HTTP")
    );
    assert!(ask(b"GET / HTTP/1.0\r\n\r\n").contains("HTTP"));
    assert!(ask(b"leyden-mesh/1\r\n\0half").contains("begins as a rank does"));
    assert!(ask(&[0x5a; 64]).contains("nothing known"));
}

#[test]
fn who_has_another_secret_is_not_let_in() {
    let secrets = [Secret::from_bytes([1; 32]), Secret::from_bytes([2; 32])];
    let [zero, one] = two(|zero| zero, secrets, Duration::from_secs(1), work);
    let (zero, one) = (zero.unwrap_err(), one.unwrap_err());
    assert_eq!(one.code().id, "D0241", "{one:?}");
    assert_eq!(zero.code().id, "D0242", "{zero:?}");
    assert!(format!("{zero:?}").contains("rank 1 at 127.0.0.1"), "{zero:?}");
}

#[test]
fn a_rank_that_nobody_answers_for_is_named_with_its_address() {
    let nowhere = listen().local_addr().unwrap();
    let [_, one] = two(|_| nowhere, same(), Duration::from_millis(300), work);
    let one = one.unwrap_err();
    assert_eq!(one.code().id, "D0240", "{one:?}");
    assert!(format!("{one:?}").contains(&format!("rank 0 at {nowhere}")), "{one:?}");
}

/// Between rank 1 and rank 0: turns a bit of what rank 1 sends as its frames, at this place.
fn proxy(zero: SocketAddr, place: usize) -> SocketAddr {
    let listener = listen();
    let address = listener.local_addr().unwrap();
    let carry = |mut from: TcpStream, mut to: TcpStream, place: Option<usize>| {
        std::thread::spawn(move || {
            let (mut bytes, mut passed) = ([0; 4096], 0);
            while let Ok(read @ 1..) = from.read(&mut bytes) {
                if let Some(place) = place.filter(|place| (passed..passed + read).contains(place)) {
                    bytes[place - passed] ^= 0x10;
                }
                passed += read;
                if to.write_all(&bytes[..read]).is_err() {
                    break;
                }
            }
            let _ = to.shutdown(Shutdown::Write);
        });
    };
    std::thread::spawn(move || {
        // The frames come first, then the pulse.
        for place in [Some(place), None] {
            let (one, zero) = (listener.accept().unwrap().0, TcpStream::connect(zero).unwrap());
            carry(one.try_clone().unwrap(), zero.try_clone().unwrap(), place);
            carry(zero, one, None);
        }
    });
    address
}

#[test]
fn a_bit_that_turns_on_the_way_is_noticed_wherever_it_is() {
    // Hello and proof are 96 bytes. Then come the state, the site, and the first arrival with its bytes.
    for place in [96 + 2, 96 + 9, 96 + 30, 96 + 56 + 3, 96 + 56 + 60, 5000, 200_000, 1_000_000] {
        let errors = two(|zero| proxy(zero, place), same(), LONG, work).map(|result| result.unwrap_err());
        for error in &errors {
            assert_eq!(error.code().id, "D0243", "at {place}: {error:?}");
            assert!(format!("{error:?}").contains("rank 1 at"), "{error:?}");
        }
    }
}

#[test]
fn a_proof_that_is_damaged_is_none() {
    let [zero, one] = two(|zero| proxy(zero, 70), same(), Duration::from_secs(1), work);
    let codes = [zero, one].map(|result: Result<(), Error>| result.unwrap_err().code().id);
    assert_eq!(codes, ["D0242", "D0241"]);
}
