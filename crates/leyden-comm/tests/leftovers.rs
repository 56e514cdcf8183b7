//! Whatever the store was sent, it serves on, and leaves nothing behind when it is dropped. A program by itself, because it
//! counts the threads and descriptors of the whole process.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use leyden_comm::store::{Client, ConnectOptions, Server, ServerOptions};
use support::{Raw, VALIDATE, client, counted, frame, server, until};

/// One test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Threads of the store, and descriptors, of this process.
fn held() -> (usize, usize) {
    let count = |folder: &str| fs::read_dir(folder).unwrap().count();
    let store = fs::read_dir("/proc/self/task").unwrap().flatten().filter(|task| {
        fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.starts_with("leyden-"))
    });
    (store.count(), count("/proc/self/fd"))
}

#[test]
fn nothing_is_left_of_a_server_with_clients_in_every_state() {
    let _alone = alone();
    let before = held();
    for _ in 0..5 {
        let server = server();
        let address = server.address();
        let clients: Vec<_> = (0..20).map(|_| client(&server)).collect();
        let mut waiting: Vec<_> = (0..20).map(|_| Raw::valid(address)).collect();
        for raw in &mut waiting {
            raw.send(&counted(6, &[b"/never"]));
        }
        let mut half: Vec<_> = (0..20).map(|_| Raw::valid(address)).collect();
        for raw in &mut half {
            raw.send(&frame(1, &[b"key", b"value"])[..7]);
        }
        let silent: Vec<_> = (0..20).map(|_| Raw::silent(address)).collect();
        until("all are connected", || server.connections() == 80);
        drop(server);
        drop((clients, waiting, half, silent));
    }
    until("all is as before", || held() == before);
}

/// SplitMix64: the same bytes in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let length = self.below(most);
        (0..length).map(|_| self.next() as u8).collect()
    }

    /// A few requests that a client may send.
    fn requests(&mut self) -> Vec<u8> {
        let keys: [&[u8]; 4] = [b"/a", b"/b", b"", b"/queue"];
        let mut bytes = Vec::new();
        for _ in 0..1 + self.below(6) {
            let (key, other) = (keys[self.below(4)], keys[self.below(4)]);
            let value = self.bytes(40);
            let number = self.below(9) as i64;
            bytes.extend(match self.below(19) as u8 {
                0 => VALIDATE.to_vec(),
                operation @ (1 | 9 | 14) => frame(operation, &[key, &value]),
                2 => frame(2, &[key, &value, b"desired"]),
                operation @ (4 | 18) => [frame(operation, &[key]), number.to_le_bytes().to_vec()].concat(),
                operation @ (5 | 6 | 10) => counted(operation, &[key, other]),
                11 => {
                    [&[11][..], &2_u64.to_le_bytes(), &frame(0, &[key, &value, other, &value])[1..]].concat()
                }
                13 => vec![13, 1, 2, 3, 4],
                operation @ (7 | 12 | 17) => vec![operation],
                operation => frame(operation, &[key]),
            });
        }
        bytes
    }
}

#[test]
fn no_answer_makes_a_client_panic_or_wait() {
    let _alone = alone();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    const ROUNDS: usize = 400;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = Random(7);
            for _ in 0..ROUNDS {
                let (peer, _) = listener.accept().unwrap();
                let mut peer = Raw(peer);
                peer.0.read_exact(&mut [0; 14]).unwrap();
                let answer = random.bytes(60);
                // As a rule nothing large is announced, or all would end with that.
                let mild = answer.iter().map(|byte| if byte % 4 == 0 { *byte } else { byte % 3 });
                peer.send(&[&[0][..], &mild.collect::<Vec<u8>>()].concat());
                let _ = peer.0.shutdown(Shutdown::Write);
                let _ = peer.0.read_to_end(&mut Vec::new());
            }
        });
        for round in 0..ROUNDS {
            let options = ConnectOptions { timeout: Duration::from_millis(200), ..ConnectOptions::default() };
            let mut store = Client::connect(&address, options).unwrap();
            let mut failed = Vec::new();
            for _ in 0..8 {
                failed.extend(match round % 6 {
                    0 => store.get("a").err(),
                    1 => store.add("a", 1).err(),
                    2 => store.wait(&["a", "b"]).err(),
                    3 => store.multi_get(&["a", "b"]).err(),
                    4 => store.compare_set("a", b"", b"x").err(),
                    _ => store.ping().err(),
                });
            }
            // Sixty bytes are no eight answers; and what was lost stays lost.
            let last = failed.last().unwrap();
            assert_eq!(last.code(), leyden_comm::codes::STORE_LOST, "{failed:?}");
        }
    });
}

#[test]
fn thousands_of_damaged_streams_harm_nobody() {
    const STREAMS: usize = 4000;
    let _alone = alone();
    let before = held();
    let options =
        ServerOptions { memory: 64 << 20, patience: Duration::from_secs(2), ..ServerOptions::default() };
    let server = Server::start(options).unwrap();
    let mut good = client(&server);
    let mut random = Random(20_241_121);
    for stream in 0..STREAMS {
        let mut bytes = match stream % 4 {
            0 => random.bytes(200),
            1 => [&VALIDATE[..], &random.bytes(200)].concat(),
            _ => [&VALIDATE[..], &random.requests()].concat(),
        };
        if stream % 4 == 3 {
            // Damaged: bytes changed, or cut.
            for _ in 0..1 + random.below(4) {
                let at = random.below(bytes.len());
                bytes[at] = random.next() as u8;
            }
            bytes.truncate(random.below(bytes.len()) + 1);
        }
        let mut raw = Raw::silent(server.address());
        // The server may close it at any byte.
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let piece = 1 + random.below(rest.len());
            if raw.0.write_all(&rest[..piece]).is_err() {
                break;
            }
            rest = &rest[piece..];
        }
        if random.below(2) == 0 {
            let _ = raw.0.shutdown(Shutdown::Write);
            let _ = raw.0.read_to_end(&mut Vec::new());
        }
        drop(raw);
        if stream % 100 == 0 {
            good.set("good", b"still").unwrap();
            assert_eq!(good.get("good").unwrap(), b"still", "after {stream} streams");
        }
    }
    until("all are gone", || server.connections() == 1);
    assert_eq!(client(&server).get("good").unwrap(), b"still");
    println!("{} of the last 64: {:?}", server.strangers().len(), server.strangers().last());
    drop((good, server));
    until("all is as before", || held() == before);
}
