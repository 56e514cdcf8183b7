//! PyTorch's stores and Leyden's understand each other: its clients our server, our client its servers, of both kinds.
//!
//! They need an interpreter with PyTorch: LEYDEN_PYTHON, or `python3`. Without it a test prints why it is skipped; with
//! LEYDEN_REQUIRE_TORCH=1 that is a failure.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use leyden_comm::codes;
use leyden_comm::store::{Client, ConnectOptions, LARGEST_VALUE, Server, ServerOptions, Strange};

/// Long enough that only a hang takes longer.
const LONG: Duration = Duration::from_secs(60);

/// To import PyTorch takes seconds by itself, on a machine that does nothing else.
const VERY_LONG: Duration = Duration::from_secs(240);

/// The interpreter, if it has PyTorch.
fn interpreter() -> Option<&'static str> {
    static FOUND: OnceLock<Result<String, String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        let python = std::env::var("LEYDEN_PYTHON").unwrap_or_else(|_| "python3".to_owned());
        match Command::new(&python).args(["-c", "import torch.distributed as d; d.TCPStore"]).output() {
            Ok(output) if output.status.success() => Ok(python),
            Ok(output) => {
                Err(String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or_default().to_owned())
            }
            Err(error) => Err(format!("{python}: {error}")),
        }
    });
    match found {
        Ok(python) => Some(python),
        Err(why) => {
            assert!(std::env::var_os("LEYDEN_REQUIRE_TORCH").is_none(), "no PyTorch: {why}");
            eprintln!("skipped: {why}");
            None
        }
    }
}

/// A Python program that ends when it is dropped.
struct Python {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Python {
    fn start(program: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Option<Self> {
        let mut child = Command::new(interpreter()?)
            .args(["-u", "-c", program])
            .args(arguments)
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Some(Self { child, output })
    }

    /// Its next line. A program that hangs is ended by its own alarm.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "it has ended: {}", self.complaint());
        line.trim_end().to_owned()
    }

    fn say(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Waits for its good end.
    fn finish(mut self) {
        drop(self.child.stdin.take());
        let began = Instant::now();
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None => assert!(began.elapsed() < VERY_LONG, "it does not end"),
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        assert!(status.success(), "{status}: {}", self.complaint());
    }

    fn complaint(&mut self) -> String {
        let _ = self.child.kill();
        let mut complaint = String::new();
        let _ = self.child.stderr.take().unwrap().read_to_string(&mut complaint);
        complaint
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What every program begins with: it ends by itself, whatever happens.
const PRELUDE: &str = "
import os, signal, sys, threading, time
signal.alarm(200)
import torch
import torch.distributed as d
from datetime import timedelta as T

def connect(host, port, timeout=60):
    return d.TCPStore(host, int(port), None, False, T(seconds=timeout), wait_for_workers=False)

def fails(act):
    try:
        act()
    except Exception as error:
        return str(error)
    raise SystemExit('it did not fail')
";

fn client(address: SocketAddr) -> Client {
    let options = ConnectOptions { deadline: LONG, timeout: LONG };
    Client::connect(&address.to_string(), options).unwrap()
}

#[test]
fn pytorch_s_client_is_served_by_our_server() {
    let server = Server::start(ServerOptions::default()).unwrap();
    let program = format!(
        "{PRELUDE}
store = connect(*sys.argv[1:3])
store.set('a', 'one')
assert store.get('a') == b'one'
assert (store.add('n', 5), store.add('n', -7)) == (5, -2)
assert store.check(['a', 'n']) and not store.check(['a', 'missing'])
store.wait(['a', 'n'], T(seconds=30))
assert store.delete_key('n') and not store.delete_key('n')
assert store.compare_set('c', '', 'first') == b'first'
assert store.compare_set('c', 'other', 'second') == b'first'
assert store.compare_set('c', 'first', 'second') == b'second'
assert store.compare_set('none', 'x', 'y') == b'x'
store.append('log', 'one ')
store.append('log', 'two')
assert store.get('log') == b'one two'
store.multi_set(['m1', 'm2'], ['x', 'y'])
assert store.multi_get(['m2', 'm1']) == [b'y', b'x']
assert store.num_keys() == 5, store.num_keys()

prefixed = d.PrefixStore('outer', d.PrefixStore('inner', store))
prefixed.set('k', 'v')
assert store.get('inner/outer/k') == b'v'
assert prefixed.add('count', 2) == 2

# Waits that time out; the connection serves on.
for round in range(5):
    assert 'never' in fails(lambda: store.wait(['never'], T(milliseconds=20)))
    assert store.get('a') == b'one'

# Many who wait, and one who sets.
def wait(index):
    mine = connect(*sys.argv[1:3])
    mine.add('arrived', 1)
    mine.wait(['go'], T(seconds=60))
    mine.set(f'done{{index}}', mine.get('go'))
threads = [threading.Thread(target=wait, args=(index,)) for index in range(40)]
for thread in threads: thread.start()
while store.add('arrived', 0) < 40: time.sleep(0.005)
store.set('go', 'now')
for thread in threads: thread.join()
assert store.multi_get([f'done{{index}}' for index in range(40)]) == [b'now'] * 40

store.set('largest', 'x' * (8 << 20))
assert store.get('largest') == b'x' * (8 << 20)
broken = connect(*sys.argv[1:3])
fails(lambda: (broken.set('larger', 'x' * ((8 << 20) + 1)), broken.num_keys()))
assert store.get('a') == b'one'

if hasattr(store, 'queue_push'):
    store.queue_push('q', 'first')
    store.queue_push('q', 'second')
    assert store.queue_len('q') == 2
    assert (store.queue_pop('q'), store.queue_pop('q')) == (b'first', b'second')
    fails(lambda: store.queue_pop('q', False))
    taken = []
    pops = [connect(*sys.argv[1:3]) for _ in range(4)]
    threads = [threading.Thread(target=lambda pop=pop: taken.append(pop.queue_pop('q'))) for pop in pops]
    for thread in threads: thread.start()
    for index in range(4): store.queue_push('q', f'item{{index}}')
    for thread in threads: thread.join()
    assert sorted(taken) == [b'item0', b'item1', b'item2', b'item3'], taken
if hasattr(store, 'list_keys'):
    keys = store.list_keys()
    assert {{'a', 'c', 'log'}} <= {{key.lstrip('/') for key in keys}}, keys
if hasattr(store, 'barrier'):
    other = connect(*sys.argv[1:3])
    # Who gives up does not count afterwards.
    fails(lambda: other.barrier('b', 2, T(milliseconds=20)))
    fails(lambda: store.barrier('b', 2, T(milliseconds=20)))
    thread = threading.Thread(target=lambda: other.barrier('b', 2, T(seconds=60)))
    thread.start()
    store.barrier('b', 2, T(seconds=60))
    thread.join()
print(torch.__version__, hasattr(store, 'queue_push'), hasattr(store, 'list_keys'), hasattr(store, 'barrier'))
store.set('finished', 'yes')
"
    );
    let address = server.address();
    let (host, port) = (address.ip().to_string(), address.port().to_string());
    let Some(mut python) = Python::start(&program, &[&host, &port], &[]) else { return };
    println!("PyTorch, queues, list_keys, barrier: {}", python.line());
    let mut store = client(address);
    assert_eq!(store.get("finished").unwrap(), b"yes");
    assert_eq!(store.get("log").unwrap(), b"one two");
    assert_eq!(store.get("inner/outer/k").unwrap(), b"v");
    python.finish();
    let strange: Vec<Strange> = server.strangers().into_iter().map(|stranger| stranger.strange).collect();
    assert_eq!(strange, [Strange::TooLarge("a value", LARGEST_VALUE as u64 + 1)]);
    let began = Instant::now();
    while server.connections() > 1 {
        assert!(began.elapsed() < LONG, "{} connections are left", server.connections());
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A server of PyTorch's, with its own client beside it.
fn pytorch_s_server(libuv: bool) -> Option<(Python, SocketAddr)> {
    let program = format!(
        "{PRELUDE}
store = d.TCPStore('127.0.0.1', 0, None, True, T(seconds=60), wait_for_workers=False, use_libuv=sys.argv[1] == 'uv')
assert store.libuvBackend == (sys.argv[1] == 'uv')
print(store.port)
for line in sys.stdin:
    print(repr(eval(line)))
"
    );
    let mut python = Python::start(&program, &[if libuv { "uv" } else { "poll" }], &[])?;
    let port: u16 = python.line().parse().unwrap();
    Some((python, SocketAddr::from(([127, 0, 0, 1], port))))
}

#[test]
fn our_client_is_served_by_pytorch_s_servers() {
    for libuv in [true, false] {
        let Some((mut python, address)) = pytorch_s_server(libuv) else { return };
        let mut store = client(address);
        store.set("a", b"one").unwrap();
        assert_eq!(store.get("a").unwrap(), b"one");
        assert_eq!(store.try_get("missing").unwrap(), None);
        assert_eq!((store.add("n", 5).unwrap(), store.add("n", -7).unwrap()), (5, -2));
        assert!(store.check(&["a", "n"]).unwrap() && !store.check(&["a", "missing"]).unwrap());
        store.wait(&["a", "n"]).unwrap();
        assert!(store.delete("n").unwrap() && !store.delete("n").unwrap());
        assert_eq!(store.compare_set("c", b"", b"first").unwrap(), b"first");
        assert_eq!(store.compare_set("c", b"other", b"second").unwrap(), b"first");
        assert_eq!(store.compare_set("c", b"first", b"second").unwrap(), b"second");
        store.append("log", b"one ").unwrap();
        store.append("log", b"two").unwrap();
        store.multi_set(&[("m1", "x"), ("m2", "y")]).unwrap();
        assert_eq!(store.multi_get(&["m2", "m1", "log"]).unwrap(), [&b"y"[..], b"x", b"one two"]);
        assert!(store.ping().unwrap() < LONG);
        assert_eq!(store.number_of_keys().unwrap(), 5);
        for (asked, answer) in [
            ("store.get('log')", "b'one two'"),
            ("store.set('theirs', 'v')", "None"),
            ("store.num_keys()", "6"),
        ] {
            python.say(asked);
            assert_eq!(python.line(), answer);
        }
        assert_eq!(store.get("theirs").unwrap(), b"v");

        // Waits that time out; the connection serves on, also where the answers cross.
        for round in 0..60 {
            let patience = Duration::from_micros(200 + round % 10 * 700);
            let key = format!("late{round}");
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let mut setter = client(address);
                    std::thread::sleep(Duration::from_millis(3));
                    setter.set(&key, b"").unwrap();
                });
                if let Err(error) = store.wait_within(&[&key], patience) {
                    assert_eq!(error.code(), codes::STORE_TIMEOUT, "{error:?}");
                }
            });
            assert_eq!(store.get("a").unwrap(), b"one", "{round}");
        }
        let error = store.get_within("never", Duration::from_millis(20)).unwrap_err();
        assert_eq!(
            (error.code(), error.what()),
            (codes::STORE_TIMEOUT, "the key `never` was not set within 20ms")
        );

        let largest = vec![7; LARGEST_VALUE];
        store.set("largest", &largest).unwrap();
        assert!(store.get("largest").unwrap() == largest);
        store.append("largest", &largest).unwrap();
        assert_eq!(store.get("largest").unwrap().len(), 2 * LARGEST_VALUE);

        // It refuses by closing the connection.
        let mut broken = client(address);
        broken.set("text", b"many").unwrap();
        assert_eq!(broken.add("text", 1).unwrap_err().code(), codes::STORE_LOST);
        assert_eq!(store.get("a").unwrap(), b"one");

        let waiting = std::thread::spawn(move || client(address).get("never"));
        let mut last = client(address);
        python.finish();
        assert_eq!(waiting.join().unwrap().unwrap_err().code(), codes::STORE_LOST);
        assert_eq!(last.get("a").unwrap_err().code(), codes::STORE_LOST);
    }
}

#[test]
fn a_server_that_waits_for_its_workers_sees_ours() {
    let program = format!(
        "{PRELUDE}
import socket
listener = socket.socket()
listener.bind(('127.0.0.1', 0))
listener.listen()
port = listener.getsockname()[1]
print(port)
store = d.TCPStore('127.0.0.1', port, 2, True, T(seconds=60), wait_for_workers=True, master_listen_fd=listener.detach())
print(store.get('from'))
"
    );
    let Some(mut python) = Python::start(&program, &[], &[]) else { return };
    let port: u16 = python.line().parse().unwrap();
    let mut store = client(SocketAddr::from(([127, 0, 0, 1], port)));
    assert!(store.announce().unwrap() >= 1);
    store.set("from", b"a rank").unwrap();
    assert_eq!(python.line(), "b'a rank'");
    python.finish();
}

#[test]
fn two_processes_of_pytorch_train_through_our_server() {
    let server = Server::start(ServerOptions::default()).unwrap();
    let program = format!(
        "{PRELUDE}
d.init_process_group('gloo', timeout=T(seconds=120))
d.monitored_barrier(timeout=T(seconds=60))
value = torch.arange(1000.0) * (d.get_rank() + 1)
d.all_reduce(value)
assert torch.equal(value, torch.arange(1000.0) * 3), value
gathered = [None, None]
d.all_gather_object(gathered, f'rank {{d.get_rank()}}')
d.barrier()
d.destroy_process_group()
print(gathered)
"
    );
    let port = server.address().port().to_string();
    let ranks: Vec<_> = ["0", "1"]
        .iter()
        .filter_map(|rank| {
            let variables = [
                ("RANK", *rank),
                ("WORLD_SIZE", "2"),
                ("MASTER_ADDR", "127.0.0.1"),
                ("MASTER_PORT", &port),
                // The store is not rank 0's.
                ("TORCHELASTIC_USE_AGENT_STORE", "True"),
                ("GLOO_SOCKET_IFNAME", "lo"),
                ("OMP_NUM_THREADS", "1"),
            ];
            Python::start(&program, &[], &variables)
        })
        .collect();
    for mut rank in ranks {
        assert_eq!(rank.line(), "['rank 0', 'rank 1']");
        rank.finish();
    }
    assert!(server.strangers().is_empty(), "{:?}", server.strangers());
}
