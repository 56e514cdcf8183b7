//! The store over real sockets: what it does for its clients, and against everybody else.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use leyden_comm::codes;
use leyden_comm::store::{
    Client, ConnectOptions, LARGEST_VALUE, LONGEST_KEY, Server, ServerOptions, Strange,
};
use support::{LONG, Raw, VALIDATE, client, counted, frame, server, until};

// Where a test gives a port up and counts on it, it listens on 127.0.0.2 and up: no other test may take it there.

const MOMENT: Duration = Duration::from_millis(50);

fn within(deadline: Duration) -> ConnectOptions {
    ConnectOptions { deadline, timeout: LONG }
}

fn strangers(server: &Server) -> Vec<Strange> {
    server.strangers().into_iter().map(|stranger| stranger.strange).collect()
}

/// One that soon loses its patience.
fn brusque() -> Server {
    Server::start(ServerOptions { patience: Duration::from_secs(1), ..ServerOptions::default() }).unwrap()
}

impl Raw {
    fn read<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn number(&mut self) -> i64 {
        i64::from_le_bytes(self.read())
    }

    fn value(&mut self) -> Vec<u8> {
        let mut value = vec![0; self.number() as usize];
        self.0.read_exact(&mut value).unwrap();
        value
    }

    /// Reads until the server has closed the connection.
    fn assert_closed(&mut self) {
        let mut rest = [0; 1 << 16];
        loop {
            match self.0.read(&mut rest) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) => {
                    let kind = error.kind();
                    assert!(kind == ErrorKind::ConnectionReset, "not closed: {error}");
                    return;
                }
            }
        }
    }
}

#[test]
fn every_request_of_the_client_is_answered() {
    let server = server();
    let mut store = client(&server);
    assert_eq!(store.number_of_keys().unwrap(), 0);
    store.set("a", b"one").unwrap();
    assert_eq!(store.get("a").unwrap(), b"one");
    assert_eq!(store.try_get("a").unwrap().as_deref(), Some(&b"one"[..]));
    assert_eq!(store.try_get("missing").unwrap(), None);
    assert_eq!((store.add("n", 5).unwrap(), store.add("n", -7).unwrap()), (5, -2));
    assert_eq!(store.get("n").unwrap(), b"-2");
    assert!(store.check(&["a", "n"]).unwrap() && !store.check(&["a", "missing"]).unwrap());
    assert!(store.check::<&str>(&[]).unwrap());
    store.wait(&["a", "n"]).unwrap();
    store.wait_within(&["a", "n"], Duration::MAX).unwrap();
    assert!(store.delete("n").unwrap() && !store.delete("n").unwrap());
    assert_eq!(store.compare_set("c", b"", b"first").unwrap(), b"first");
    assert_eq!(store.compare_set("c", b"other", b"second").unwrap(), b"first");
    assert_eq!(store.compare_set("c", b"first", b"second").unwrap(), b"second");
    // What is not there "is" what was expected, as PyTorch's server has it.
    assert_eq!(store.compare_set("none", b"x", b"y").unwrap(), b"x");
    assert_eq!(store.try_get("none").unwrap(), None);
    store.append("log", b"one ").unwrap();
    store.append("log", b"two").unwrap();
    assert_eq!(store.get("log").unwrap(), b"one two");
    store.multi_set(&[("m1", "x"), ("m2", "")]).unwrap();
    assert_eq!(store.multi_get(&["m2", "m1", "a"]).unwrap(), [&b""[..], b"x", b"one"]);
    assert!(store.ping().unwrap() < LONG);
    assert_eq!((store.announce().unwrap(), store.announce().unwrap()), (1, 2));
    assert_eq!(store.number_of_keys().unwrap(), 6);
    assert!(server.strangers().is_empty(), "{:?}", server.strangers());
}

#[test]
fn a_client_sees_what_another_sets_under_any_key() {
    let server = server();
    let (mut one, mut other) = (client(&server), client(&server));
    for key in ["", "/", "a/b", "ключ", "with space", &"k".repeat(LONGEST_KEY - 1)] {
        one.set(key, key.as_bytes()).unwrap();
        assert_eq!(other.get(key).unwrap(), key.as_bytes());
    }
}

#[test]
fn hundreds_wait_at_once_and_one_set_wakes_all() {
    const WAITERS: usize = 300;
    let server = server();
    std::thread::scope(|scope| {
        let waiters: Vec<_> = (0..WAITERS)
            .map(|number| {
                let mut store = client(&server);
                scope.spawn(move || {
                    store.add("arrived", 1)?;
                    let value = store.get("go")?;
                    store.set(&format!("done{number}"), &value)?;
                    store.number_of_keys()
                })
            })
            .collect();
        let mut store = client(&server);
        until("all have arrived", || store.add("arrived", 0).unwrap() == WAITERS as i64);
        store.set("go", b"now").unwrap();
        let done: Vec<String> = (0..WAITERS).map(|number| format!("done{number}")).collect();
        store.wait(&done).unwrap();
        for waiter in waiters {
            waiter.join().unwrap().unwrap();
        }
        assert!(store.multi_get(&done).unwrap().iter().all(|value| value == b"now"));
    });
}

#[test]
fn a_wait_that_takes_too_long_names_what_is_missing_and_the_connection_serves_on() {
    let server = server();
    let mut store = client(&server);
    store.set("here", b"").unwrap();
    for round in 0..20 {
        let error = store.wait_within(&["here", "gone", "never"], MOMENT / 10).unwrap_err();
        assert_eq!(error.code(), codes::STORE_TIMEOUT);
        assert_eq!(error.what(), "the key `gone`, `never` was not set within 5ms");
        assert_eq!(store.add("round", 1).unwrap(), round + 1);
    }
    let error = store.get_within("gone", Duration::ZERO).unwrap_err();
    assert_eq!(error.code(), codes::STORE_TIMEOUT);
    // What comes later is not taken for an answer to what was given up.
    client(&server).set("gone", b"late").unwrap();
    until("it is there", || store.check(&["gone"]).unwrap());
    assert_eq!(store.get("gone").unwrap(), b"late");
}

#[test]
fn a_wait_that_is_answered_just_as_it_is_cancelled_leaves_the_connection_in_step() {
    let server = server();
    let (mut waiter, mut setter) = (client(&server), client(&server));
    let start = Barrier::new(2);
    const ROUNDS: u64 = 200;
    let (mut came, mut not) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..ROUNDS {
                start.wait();
                // About when the other's patience ends; a little earlier or later each time.
                std::thread::sleep(Duration::from_micros(500 + round % 40 * 200));
                setter.set(&format!("key{round}"), b"").unwrap();
            }
        });
        for round in 0..ROUNDS {
            start.wait();
            match waiter.wait_within(&[format!("key{round}")], Duration::from_millis(1)) {
                Ok(()) => came += 1,
                Err(error) => {
                    assert_eq!(error.code(), codes::STORE_TIMEOUT);
                    not += 1;
                }
            }
            assert_eq!(waiter.add("rounds", 1).unwrap(), round as i64 + 1);
        }
    });
    println!("{came} came, {not} did not");
    assert!(server.strangers().is_empty(), "{:?}", server.strangers());
}

#[test]
fn keys_that_came_while_the_wait_was_cancelled_have_come() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (peer, _) = listener.accept().unwrap();
            let mut peer = Raw(peer);
            let _: [u8; 14] = peer.read();
            peer.send(&[0]);
            let wait: [u8; 19] = peer.read();
            assert_eq!(wait[..], counted(6, &[b"/k"]));
            // Cancelled; its release was under way.
            assert_eq!(peer.read(), [12]);
            peer.send(&[0, 1]);
            assert_eq!(peer.read(), [7]);
            peer.send(&3_i64.to_le_bytes());
        });
        let mut store = Client::connect(&address, within(LONG)).unwrap();
        store.wait_within(&["k"], MOMENT).unwrap();
        assert_eq!(store.number_of_keys().unwrap(), 3);
    });
}

#[test]
fn what_is_too_large_is_refused_before_it_is_sent() {
    let server = server();
    let mut store = client(&server);
    let large = vec![7; LARGEST_VALUE];
    store.set("large", &large).unwrap();
    assert!(store.get("large").unwrap() == large);
    for error in [
        store.set("larger", &vec![7; LARGEST_VALUE + 1]).unwrap_err(),
        store.append("larger", &vec![7; LARGEST_VALUE + 1]).unwrap_err(),
        store.compare_set("larger", b"", &vec![7; LARGEST_VALUE + 1]).unwrap_err(),
        store.set(&"k".repeat(LONGEST_KEY), b"").unwrap_err(),
        store.check(&vec!["k"; (128 << 10) + 1]).unwrap_err(),
    ] {
        assert_eq!(error.code(), codes::STORE_LIMIT, "{error:?}");
    }
    assert_eq!(store.number_of_keys().unwrap(), 1);
    // Appending is how a value gets larger.
    store.append("large", &large).unwrap();
    assert_eq!(store.get("large").unwrap().len(), 2 * LARGEST_VALUE);
}

#[test]
fn what_others_announce_is_refused_by_the_server() {
    let server = server();
    let announce = |operation: u8, size: u64| [&[operation][..], &size.to_le_bytes()].concat();
    let rows: [(Vec<u8>, Strange); 6] = [
        (announce(3, 8193), Strange::TooLarge("a key", 8193)),
        (announce(1, u64::MAX), Strange::TooLarge("a key", u64::MAX)),
        (announce(6, 131_073), Strange::TooLarge("a number of keys", 131_073)),
        (
            [frame(1, &[b"k"]), announce(0, 1 << 40)[1..].to_vec()].concat(),
            Strange::TooLarge("a value", 1 << 40),
        ),
        (vec![99], Strange::UnknownOperation(99)),
        (vec![0], Strange::UnknownOperation(0)),
    ];
    for (bytes, strange) in rows {
        let mut raw = Raw::valid(server.address());
        raw.send(&bytes);
        raw.assert_closed();
        until("it is noted", || strangers(&server).last() == Some(&strange));
    }
    client(&server).set("k", b"v").unwrap();
}

#[test]
fn memory_is_bounded_and_what_is_deleted_is_free_again() {
    const PART: usize = 400 << 10;
    let server = Server::start(ServerOptions { memory: 4 * PART - 1, ..ServerOptions::default() }).unwrap();
    let mut store = client(&server);
    let part = vec![7; PART];
    for key in ["a", "b", "c"] {
        store.set(key, &part).unwrap();
    }
    assert_eq!(store.number_of_keys().unwrap(), 3);
    let mut greedy = client(&server);
    // It is cut off while it sends, or just after.
    let lost = greedy.set("d", &part).and_then(|()| greedy.number_of_keys()).unwrap_err();
    assert_eq!(lost.code(), codes::STORE_LOST);
    until("it is noted", || strangers(&server) == [Strange::OutOfMemory]);
    assert!(store.delete("a").unwrap());
    // Set again and again, a key takes its place once; while it is set, twice.
    for _ in 0..20 {
        store.set("c", &part[1000..]).unwrap();
    }
    assert!(store.get("c").unwrap() == part[1000..]);
    assert_eq!(store.number_of_keys().unwrap(), 2);
}

#[test]
fn a_connection_too_many_is_closed_and_others_are_served() {
    let server = Server::start(ServerOptions { connections: 2, ..ServerOptions::default() }).unwrap();
    let (mut one, two) = (client(&server), client(&server));
    let error = Client::connect(&server.address().to_string(), within(MOMENT)).unwrap_err();
    assert_eq!(error.code(), codes::STORE_UNREACHABLE, "{error:?}");
    until("it is noted", || strangers(&server).contains(&Strange::TooMany));
    one.set("k", b"v").unwrap();
    drop(two);
    until("there is room", || server.connections() < 2);
    assert_eq!(client(&server).get("k").unwrap(), b"v");
}

#[test]
fn strangers_are_named_by_what_they_speak() {
    let server = brusque();
    let tls = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    let rows: [(&[u8], Strange, &str); 6] = [
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", Strange::Http, "GET /metrics HTTP/1.1"),
        (tls, Strange::Tls, "\\x16\\x03\\x01"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", Strange::Ssh, "SSH-2.0-OpenSSH_9.2"),
        (b"\0\x01\x02\x03\x04", Strange::WrongMagic(0x0403_0201), "\\x00\\x01"),
        (b"hello\n", Strange::Garbage, "hello"),
        (b"", Strange::Silent, ""),
    ];
    for (bytes, strange, opening) in rows {
        let mut raw = Raw::silent(server.address());
        raw.send(bytes);
        raw.assert_closed();
        until("it is noted", || strangers(&server).last() == Some(&strange));
        let stranger = server.strangers().pop().unwrap();
        assert_eq!(stranger.peer, raw.0.local_addr().unwrap());
        assert!(stranger.opening.starts_with(opening), "{stranger}");
    }
    let http = server.strangers().remove(0);
    assert!(http.to_string().ends_with(": it speaks HTTP: \"GET /metrics HTTP/1.1\""), "{http}");
    // Who only looks whether the port is open is no stranger.
    let known = server.strangers().len();
    drop(Raw::silent(server.address()));
    client(&server).set("k", b"v").unwrap();
    until("it has gone", || server.connections() <= 1);
    assert_eq!(server.strangers().len(), known);
}

#[test]
fn the_list_of_strangers_is_bounded() {
    let server = server();
    for _ in 0..100 {
        let mut raw = Raw::silent(server.address());
        raw.send(b"hello\n");
        raw.assert_closed();
    }
    until("the last is noted", || server.connections() == 0);
    assert_eq!(server.strangers().len(), 64);
}

#[test]
fn a_validation_in_pieces_is_accepted() {
    let server = server();
    let mut raw = Raw::silent(server.address());
    raw.send(&VALIDATE[..1]);
    // So that the pieces are read one by one: the server has nothing to answer in between.
    std::thread::sleep(MOMENT);
    raw.send(&VALIDATE[1..]);
    raw.send(&[13, 1, 2, 3, 4]);
    assert_eq!(raw.read(), [1, 2, 3, 4]);
    let mut drip = Raw::silent(server.address());
    for byte in VALIDATE.iter().chain(&frame(4, &[b"n"])).chain(&7_i64.to_le_bytes()) {
        drip.send(&[*byte]);
    }
    assert_eq!(drip.number(), 7);
}

#[test]
fn who_stops_inside_a_request_is_cut_off_and_who_is_idle_is_not() {
    let server = brusque();
    let mut idle = client(&server);
    let mut stalled = Raw::valid(server.address());
    stalled.send(&frame(1, &[b"key", b"value"])[..12]);
    stalled.assert_closed();
    until("it is noted", || strangers(&server) == [Strange::Stalled]);
    let mut gone = Raw::valid(server.address());
    gone.send(&frame(1, &[b"key", b"value"])[..12]);
    drop(gone);
    until("it is noted", || strangers(&server) == [Strange::Stalled, Strange::Truncated]);
    assert_eq!(idle.number_of_keys().unwrap(), 0);
}

#[test]
fn a_request_during_a_wait_ends_the_connection() {
    let server = server();
    let mut raw = Raw::valid(server.address());
    raw.send(&counted(6, &[b"/never"]));
    raw.send(&[7]);
    raw.assert_closed();
    until("it is noted", || strangers(&server) == [Strange::Disordered]);
    client(&server).set("never", b"").unwrap();
}

#[test]
fn who_does_not_read_keeps_nobody_waiting_and_is_cut_off() {
    let server = brusque();
    let mut store = client(&server);
    store.set("large", &vec![7; 4 << 20]).unwrap();
    // Answered only when that has arrived.
    assert_eq!(store.number_of_keys().unwrap(), 1);
    let mut lazy = Raw::valid(server.address());
    for _ in 0..16 {
        lazy.send(&frame(3, &[b"/large"]));
    }
    for round in 0..50 {
        store.set("small", b"v").unwrap();
        assert_eq!(store.get("small").unwrap(), b"v", "{round}");
    }
    until("it is cut off", || strangers(&server) == [Strange::NotReading]);
    lazy.assert_closed();
}

#[test]
fn many_who_do_not_read_keep_nobody_waiting() {
    let server = server();
    let mut store = client(&server);
    let hostile: Vec<Raw> = (0..20)
        .map(|_| {
            let mut raw = Raw::valid(server.address());
            // Until nothing more fits in between: a server that cannot write does not read.
            raw.0.set_nonblocking(true).unwrap();
            let ping = [13, 1, 2, 3, 4].repeat(1000);
            let (mut at, mut idle) = (0, 0);
            while idle < 20 {
                match raw.0.write(&ping[at..]) {
                    Ok(written) => (at, idle) = ((at + written) % ping.len(), 0),
                    Err(_) => {
                        std::thread::sleep(Duration::from_millis(1));
                        idle += 1;
                    }
                }
            }
            raw
        })
        .collect();
    let began = Instant::now();
    for round in 0..50 {
        store.set(&format!("k{round}"), b"v").unwrap();
        store.get(&format!("k{round}")).unwrap();
    }
    assert!(began.elapsed() < LONG / 4, "{:?}", began.elapsed());
    assert_eq!(server.connections(), 1 + hostile.len(), "{:?}", server.strangers());
}

#[test]
fn queues_lists_and_barriers_are_served() {
    let server = server();
    let (mut one, mut two) = (Raw::valid(server.address()), Raw::valid(server.address()));
    one.send(&frame(15, &[b"/q"]));
    assert_eq!(one.number(), 0);
    // A wait for a queue, as PyTorch's `queue_pop` begins.
    one.send(&counted(6, &[b"/q"]));
    two.send(&frame(14, &[b"/q", b"first"]));
    assert_eq!(one.read(), [0]);
    two.send(&frame(14, &[b"/q", b"second"]));
    two.send(&frame(16, &[b"/q"]));
    assert_eq!(two.number(), 2);
    one.send(&frame(15, &[b"/q"]));
    assert_eq!((one.number(), one.value()), (2, b"first".to_vec()));
    one.send(&counted(5, &[b"/q"]));
    assert_eq!(one.read(), [0]);

    one.send(&frame(1, &[b"/b", b"1"]));
    one.send(&frame(1, &[b"/a", b"1"]));
    one.send(&[17]);
    assert_eq!((one.number(), one.value(), one.value()), (2, b"/a".to_vec(), b"/b".to_vec()));

    let barrier = |world: i64| [frame(18, &[b"/bar"]), world.to_le_bytes().to_vec()].concat();
    // One arrives and gives up, one arrives and dies; neither counts.
    let mut dead = Raw::valid(server.address());
    dead.send(&barrier(2));
    one.send(&barrier(3));
    one.send(&[12]);
    assert_eq!(one.read(), [1]);
    drop(dead);
    let mut store = client(&server);
    until("both have left", || store.get("bar").unwrap() == b"0");
    one.send(&barrier(2));
    two.send(&barrier(2));
    assert_eq!((one.read(), two.read()), ([0], [0]));
    // Without a wait, there is nothing to cancel, and an answer all the same.
    one.send(&[12]);
    assert_eq!(one.read(), [1]);
    assert!(server.strangers().is_empty(), "{:?}", server.strangers());
}

#[test]
fn adding_to_what_is_no_number_loses_the_connection_and_the_error_says_what_may_be() {
    let server = server();
    let mut store = client(&server);
    store.set("text", b"many").unwrap();
    let error = store.add("text", 1).unwrap_err();
    assert_eq!(error.code(), codes::STORE_LOST);
    assert!(error.hints().iter().any(|hint| hint.contains("not a number")), "{error:?}");
    assert_eq!(strangers(&server), [Strange::NotANumber]);
    let again = store.get("text").unwrap_err();
    assert_eq!(
        (again.code(), again.reasons()),
        (codes::STORE_LOST, &["the connection was lost before".to_owned()][..])
    );
}

#[test]
fn a_server_that_ends_is_noticed_by_who_waits_and_its_end_takes_no_time() {
    let server = server();
    let mut waiting = client(&server);
    let (mut half, idle) = (Raw::valid(server.address()), client(&server));
    half.send(&[1, 2, 3]);
    let _silent = Raw::silent(server.address());
    std::thread::scope(|scope| {
        let waiter = scope.spawn(move || waiting.get("never"));
        until("all are connected", || server.connections() == 4);
        let began = Instant::now();
        drop(server);
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
        let error = waiter.join().unwrap().unwrap_err();
        assert_eq!(error.code(), codes::STORE_LOST, "{error:?}");
    });
    drop(idle);
}

#[test]
fn a_server_takes_a_socket_that_listens_already_and_its_port_again_at_once() {
    let listener = TcpListener::bind("127.0.0.2:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    // Whoever connects before the server serves is served too.
    let mut early = Raw::valid(address);
    early.send(&frame(4, &[b"n"]));
    early.send(&1_i64.to_le_bytes());
    let server = Server::from_listener(listener, ServerOptions::default()).unwrap();
    assert_eq!((server.address(), early.number()), (address, 1));
    drop(server);
    let again = Server::start(ServerOptions { listen: address, ..ServerOptions::default() }).unwrap();
    assert_eq!(client(&again).number_of_keys().unwrap(), 0);
}

#[test]
fn on_all_interfaces_and_over_ipv6_it_serves_and_stops() {
    for listen in ["0.0.0.0:0", "[::1]:0", "[::]:0"] {
        let listen: SocketAddr = listen.parse().unwrap();
        if let Err(error) = TcpListener::bind(listen) {
            println!("skipped: {listen}: {error}");
            continue;
        }
        let server = Server::start(ServerOptions { listen, ..ServerOptions::default() }).unwrap();
        let host = if listen.is_ipv4() { "127.0.0.1" } else { "[::1]" };
        let address = format!("{host}:{}", server.address().port());
        let mut store = Client::connect(&address, within(LONG)).unwrap();
        store.set("k", b"v").unwrap();
        assert_eq!(store.get("k").unwrap(), b"v");
        let began = Instant::now();
        drop(server);
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    }
}

#[test]
fn a_port_that_is_taken_names_who_has_it() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = listener.local_addr().unwrap();
    let error = Server::start(ServerOptions { listen, ..ServerOptions::default() }).unwrap_err();
    assert_eq!(error.code(), codes::STORE_PORT_TAKEN);
    if cfg!(target_os = "linux") {
        assert_eq!(
            error.place("by"),
            Some(&*format!("pid {}, this process", std::process::id())),
            "{error:?}"
        );
    }
    let elsewhere = ServerOptions { listen: "192.0.2.1:0".parse().unwrap(), ..ServerOptions::default() };
    let error = Server::start(elsewhere).unwrap_err();
    assert_eq!(error.code(), codes::STORE_LISTEN, "{error:?}");
}

#[test]
fn a_server_that_comes_up_later_is_reached() {
    let listener = TcpListener::bind("127.0.0.3:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    std::thread::scope(|scope| {
        let early = scope.spawn(move || Client::connect(&address.to_string(), within(LONG))?.get("k"));
        std::thread::sleep(Duration::from_millis(300));
        let server = Server::start(ServerOptions { listen: address, ..ServerOptions::default() }).unwrap();
        client(&server).set("k", b"v").unwrap();
        assert_eq!(early.join().unwrap().unwrap(), b"v");
    });
}

/// Connects in vain; the deadline is kept.
fn in_vain(address: &str) -> leyden_comm::Error {
    const DEADLINE: Duration = Duration::from_millis(700);
    let began = Instant::now();
    let error = Client::connect(address, within(DEADLINE)).unwrap_err();
    assert!(began.elapsed() < DEADLINE + Duration::from_secs(5), "{:?}: {error:?}", began.elapsed());
    error
}

#[test]
fn a_store_that_is_not_there_is_an_error_that_says_what_was_tried() {
    let listener = TcpListener::bind("127.0.0.4:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    // It listens, and never accepts or answers.
    let error = in_vain(&address);
    assert_eq!(error.code(), codes::STORE_UNREACHABLE);
    assert!(error.place("tried").unwrap().contains("it accepts, and says nothing"), "{error:?}");
    drop(listener);
    let error = in_vain(&address);
    assert_eq!(error.code(), codes::STORE_UNREACHABLE);
    let tried = error.place("tried").unwrap();
    assert!(tried.starts_with(&address) && tried.contains("times: Connection refused"), "{error:?}");
    // An address of documentation, which nobody has: dropped, or refused by a router.
    let error = in_vain("192.0.2.1:29500");
    assert_eq!(error.code(), codes::STORE_UNREACHABLE, "{error:?}");
    assert!(error.place("tried").unwrap().starts_with("192.0.2.1:29500, "), "{error:?}");
    let error = in_vain("no-such-host.invalid:29500");
    assert_eq!(error.code(), codes::STORE_ADDRESS, "{error:?}");
    assert_eq!(error.what(), "the store's host `no-such-host.invalid` is not known");
}

#[test]
fn what_is_no_address_is_refused_at_once() {
    for address in ["localhost", "localhost:", "localhost:0", "localhost:99999", ":29500", "::1:29500", ""] {
        let began = Instant::now();
        let error = Client::connect(address, within(LONG)).unwrap_err();
        assert_eq!(error.code(), codes::STORE_ADDRESS, "{error:?}");
        assert!(began.elapsed() < LONG / 2);
    }
}

#[test]
fn a_server_of_another_kind_is_named() {
    let rows: [(&[u8], &str); 3] = [
        (b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", "an HTTP server"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "an SSH server"),
        (b"220 mail ready\r\n", "a server of another kind"),
    ];
    for (says, kind) in rows {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut peer, _): (TcpStream, _) = listener.accept().unwrap();
                peer.write_all(says).unwrap();
                let _ = peer.read(&mut [0; 64]);
                // Until the client has left, so that it is not reset while it reads.
                let _ = peer.set_read_timeout(Some(LONG));
                let _ = peer.read_to_end(&mut Vec::new());
            });
            let error = Client::connect(&address, within(LONG)).unwrap_err();
            assert_eq!(error.code(), codes::STORE_STRANGER, "{error:?}");
            assert_eq!(error.what(), format!("what answers at the store's address is {kind}"));
            let first = String::from_utf8_lossy(says).lines().next().unwrap().to_owned();
            assert_eq!(error.place("it said"), Some(&*format!("`{first}`")));
        });
    }
}

#[test]
fn a_server_whose_answers_make_no_sense_is_not_believed() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut peer, _) = listener.accept().unwrap();
            // Validation and the first question, then one request.
            let mut asked = [0; 14];
            peer.read_exact(&mut asked).unwrap();
            peer.write_all(&[0]).unwrap();
            let _ = peer.read(&mut asked).unwrap();
            // That the key is there; then a value of 2^62 bytes.
            peer.write_all(&[0]).unwrap();
            let _ = peer.read(&mut asked).unwrap();
            peer.write_all(&(1_i64 << 62).to_le_bytes()).unwrap();
        });
        let mut store = Client::connect(&address, within(LONG)).unwrap();
        let error = store.get("k").unwrap_err();
        assert_eq!(error.code(), codes::STORE_REPLY, "{error:?}");
        assert_eq!(store.set("k", b"").unwrap_err().code(), codes::STORE_LOST);
    });
}
