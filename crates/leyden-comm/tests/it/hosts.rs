//! Ranks over TCP as processes that something else has started: on this host, and on two hosts that are network
//! namespaces, joined by a cable that can be pulled out.

use std::io::{BufRead as _, BufReader, Read};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Only a hang takes longer.
const LONG: Duration = Duration::from_secs(100);
/// More than a failure may take to be noticed by all ranks of all hosts on a machine that has other things to do. What it
/// takes is printed.
const NOTICED: Duration = Duration::from_secs(8);

fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().unwrap().parent().unwrap().join("examples").join(name);
    assert!(program.exists(), "{} is built by `cargo test -p leyden-comm`", program.display());
    program
}

/// Ranks of one run.
struct Run {
    ranks: Vec<Started>,
}

struct Started {
    child: Child,
    stdout: Arc<Mutex<String>>,
    stderr: Arc<Mutex<String>>,
}

/// What became of a rank.
#[derive(Debug)]
struct Done {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// Where ranks run: here, or in a namespace each.
enum Place<'a> {
    Here,
    Two(&'a TwoHosts),
}

impl Run {
    /// Starts `ranks` processes of the example `meshed`.
    fn start(place: &Place<'_>, ranks: usize, words: &[&str]) -> Self {
        Self::start_with(place, ranks, words, &[])
    }

    fn start_with(place: &Place<'_>, ranks: usize, words: &[&str], variables: &[(&str, &str)]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let per_host = match place {
            Place::Here => ranks,
            Place::Two(_) => ranks / 2,
        };
        let start = |rank: usize| {
            let mut command = match place {
                Place::Here => Command::new(program("meshed")),
                Place::Two(hosts) => hosts.command(rank / per_host, &program("meshed")),
            };
            let master = match place {
                Place::Here => "127.0.0.1",
                Place::Two(_) => "10.77.0.1",
            };
            command.args(words).env("RANK", rank.to_string()).env("WORLD_SIZE", ranks.to_string());
            command.env("LOCAL_RANK", (rank % per_host).to_string());
            command.env("LOCAL_WORLD_SIZE", per_host.to_string());
            command.env("MASTER_ADDR", master).env("MASTER_PORT", port.to_string());
            command.env("TORCHELASTIC_RUN_ID", format!("hosts-{}-{port}", std::process::id()));
            command.env("LEYDEN_TOKEN", "a token that is long enough").env("LEYDEN_TRANSPORT", "tcp");
            command.env("LEYDEN_JOIN_TIMEOUT", "60").env("RUST_BACKTRACE", "0");
            command.envs(variables.iter().copied());
            let mut child =
                command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            let stdout = collect(child.stdout.take().unwrap());
            let stderr = collect(child.stderr.take().unwrap());
            Started { child, stdout, stderr }
        };
        Self { ranks: (0..ranks).map(start).collect() }
    }

    /// Waits until all ranks have passed their first barrier.
    fn ready(&mut self) {
        for rank in 0..self.ranks.len() {
            until("a rank is ready", || {
                let started = &mut self.ranks[rank];
                if let Some(status) = started.child.try_wait().unwrap() {
                    panic!("rank {rank} has ended: {status}, {}", started.stderr.lock().unwrap());
                }
                started.stdout.lock().unwrap().contains("ready")
            });
        }
    }

    /// Sends a signal to a rank's process; gives the time on the clock of all processes of this machine, in ms.
    fn signal(&self, rank: usize, signal: i32) -> u128 {
        let text = self.ranks[rank].stdout.lock().unwrap().clone();
        let pid = text.lines().find_map(|line| line.strip_prefix("ready ")).unwrap().parse().unwrap();
        // SAFETY: kill takes numbers; the process is a child that is not reaped.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
        now()
    }

    /// What became of all but those that are stopped for ever, which are killed.
    fn ends(mut self, killed: Option<usize>) -> Vec<Done> {
        let began = Instant::now();
        let done = |rank: usize, started: &mut Started| {
            let status = loop {
                if let Some(status) = started.child.try_wait().unwrap() {
                    break status;
                }
                let text = || started.stderr.lock().unwrap().clone();
                assert!(began.elapsed() < LONG, "rank {rank} does not end: {}", text());
                std::thread::sleep(Duration::from_millis(2));
            };
            // What it said before it ended has arrived when nobody can write any more.
            until("its outputs are closed", || {
                Arc::strong_count(&started.stdout) == 1 && Arc::strong_count(&started.stderr) == 1
            });
            let (stdout, stderr) =
                (started.stdout.lock().unwrap().clone(), started.stderr.lock().unwrap().clone());
            Done { code: status.code(), stdout, stderr }
        };
        let others: Vec<usize> = (0..self.ranks.len()).filter(|&rank| Some(rank) != killed).collect();
        let mut dones: Vec<(usize, Done)> =
            others.into_iter().map(|rank| (rank, done(rank, &mut self.ranks[rank]))).collect();
        if let Some(rank) = killed {
            let _ = self.ranks[rank].child.kill();
            dones.insert(rank, (rank, done(rank, &mut self.ranks[rank])));
        }
        dones.into_iter().map(|(_, done)| done).collect()
    }
}

/// A test that fails leaves no process behind.
impl Drop for Run {
    fn drop(&mut self) {
        for started in &mut self.ranks {
            let _ = started.child.kill();
            let _ = started.child.wait();
        }
    }
}

fn collect(from: impl Read + Send + 'static) -> Arc<Mutex<String>> {
    let text = Arc::new(Mutex::new(String::new()));
    let into = Arc::clone(&text);
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            *into.lock().unwrap() += &(line + "\n");
        }
    });
    text
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < LONG, "not within {LONG:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn now() -> u128 {
    leyden_process::futex::now().as_millis()
}

impl Done {
    /// When it failed, if it had begun to wait.
    fn ended_at(&self) -> Option<u128> {
        self.stdout.lines().find_map(|line| line.rsplit_once(" at ")?.1.parse().ok())
    }
}

/// Fails unless all ranks but one ended with this code, these words in their errors, soon after `since`.
fn expect(
    dones: &[Done],
    but: Option<usize>,
    code: &str,
    words: &[&str],
    since: Option<u128>,
    within: Duration,
) {
    let mut slowest = 0;
    for (rank, done) in dones.iter().enumerate().filter(|&(rank, _)| Some(rank) != but) {
        assert!(done.stderr.contains(&format!("error[{code}]")), "rank {rank}: {done:?}");
        for word in words {
            assert!(done.stderr.contains(word), "rank {rank}: {word:?} is not in {done:?}");
        }
        if let (Some(since), Some(at)) = (since, done.ended_at()) {
            slowest = slowest.max(at.saturating_sub(since));
        }
    }
    println!("{code}, but for {but:?}: noticed by all within {slowest} ms");
    assert!(slowest < within.as_millis(), "{slowest} ms: {dones:?}");
}

/// Ranks that fail by themselves.
fn failures(place: &Place<'_>, ranks: usize, victims: &[usize]) {
    let rows: [(&str, &str, &[&str]); 7] = [
        ("mismatch", "D0103", &["all_reduce(10 f32, sum)", "barrier(\"make_dataset\")", "meshed.rs:"]),
        ("leave", "D0104", &["has left", "barrier(\"epoch end\")"]),
        ("exit", "D0104", &["has left", "exited with code 0"]),
        ("exit3", "D0105", &["died", "exited with code 3"]),
        ("panic", "D0105", &["died", "panicked"]),
        ("abort", "D0105", &["died", "connection"]),
        ("fail", "D0105", &["died", "exited with code 1"]),
    ];
    for (how, code, words) in rows {
        for &victim in victims {
            let mut run = Run::start(place, ranks, &[how, &victim.to_string()]);
            let names = format!("rank {victim}");
            let began = Instant::now();
            run.ready_or_ended();
            let words: Vec<&str> = words.iter().copied().chain([&*names]).collect();
            let dones = run.ends(None);
            println!("{how}, rank {victim}: all over within {:?}", began.elapsed());
            // All begin to wait at about the same time, when the victim has failed.
            let waited = dones.iter().filter_map(|done| {
                done.stdout.lines().find_map(|line| {
                    line.strip_prefix("ended after ")?.split(' ').next()?.parse::<u64>().ok()
                })
            });
            let waited = waited.max().unwrap_or(0);
            assert!(waited < NOTICED.as_millis() as u64, "{how}: {waited} ms");
            expect(&dones, (how != "mismatch").then_some(victim), code, &words, None, NOTICED);
        }
    }
}

impl Run {
    /// The same as `ready`, where a rank may have failed already.
    fn ready_or_ended(&mut self) {
        for started in &mut self.ranks {
            until("a rank is ready, or has ended", || {
                started.stdout.lock().unwrap().contains("ready")
                    || started.child.try_wait().unwrap().is_some()
            });
        }
    }
}

fn kills(place: &Place<'_>, ranks: usize) {
    for victim in 0..ranks {
        let mut run = Run::start(place, ranks, &["wait", &victim.to_string()]);
        run.ready();
        let since = run.signal(victim, libc::SIGKILL);
        let words = [&*format!("rank {victim} died"), "epoch end", "connection"];
        expect(&run.ends(None), Some(victim), "D0105", &words, Some(since), NOTICED);
    }
}

fn bits(place: &Place<'_>, ranks: usize, transport: &str) -> String {
    let run = Run::start_with(place, ranks, &["bits"], &[("LEYDEN_TRANSPORT", transport)]);
    let dones = run.ends(None);
    assert!(dones.iter().all(|done| done.code == Some(0)), "{dones:?}");
    let first = dones[0].stdout.clone();
    assert!(first.starts_with("bits ") && dones.iter().all(|done| done.stdout == first), "{dones:?}");
    first
}

#[test]
fn ranks_over_tcp_get_the_bits_of_those_that_share_memory() {
    for ranks in 2..=5 {
        let expected = bits(&Place::Here, ranks, "memory");
        assert_eq!(bits(&Place::Here, ranks, "tcp"), expected);
    }
}

#[test]
fn a_world_over_tcp_is_joined_again_and_again() {
    let dones = Run::start(&Place::Here, 3, &["again"]).ends(None);
    assert!(dones.iter().all(|done| done.stdout == "three times\n" && done.code == Some(0)), "{dones:?}");
}

#[test]
fn over_tcp_each_failure_is_an_error_on_all_other_ranks() {
    failures(&Place::Here, 3, &[0, 1, 2]);
}

#[test]
fn over_tcp_each_rank_that_is_killed_is_named() {
    kills(&Place::Here, 3);
}

#[test]
fn a_rank_that_is_stopped_is_stuck_and_not_dead() {
    let mut run = Run::start(&Place::Here, 3, &["stuck", "1"]);
    run.ready();
    run.signal(1, libc::SIGSTOP);
    let dones = run.ends(Some(1));
    // It had 4 s, and its kernel answered for it.
    expect(
        &dones,
        Some(1),
        "D0107",
        &["rank 1 does not come", "silent", "does not answer", "budget"],
        None,
        LONG,
    );
}

#[test]
fn a_rank_that_is_stopped_and_goes_on_harms_nobody() {
    let mut run = Run::start(&Place::Here, 3, &["busy", "9"]);
    run.ready();
    run.signal(2, libc::SIGSTOP);
    // Longer than any limit of the connections, while they are full.
    std::thread::sleep(Duration::from_secs(5));
    run.signal(2, libc::SIGCONT);
    std::thread::sleep(Duration::from_secs(1));
    for started in &mut run.ranks {
        assert_eq!(started.child.try_wait().unwrap(), None, "{}", started.stderr.lock().unwrap());
    }
    let since = run.signal(0, libc::SIGKILL);
    expect(&run.ends(None), Some(0), "D0105", &["rank 0 died"], Some(since), NOTICED);
}

#[test]
fn a_transport_that_does_not_fit_is_refused() {
    let dones = Run::start_with(&Place::Here, 1, &["bits"], &[("LEYDEN_TRANSPORT", "rdma")]).ends(None);
    assert_eq!(dones[0].code, Some(0), "a world of one needs none: {dones:?}");
    let dones = Run::start_with(&Place::Here, 2, &["bits"], &[("LEYDEN_TRANSPORT", "rdma")]).ends(None);
    assert!(dones.iter().all(|done| done.stderr.contains("D0245")), "{dones:?}");
    let variables = [("LEYDEN_TRANSPORT", "memory"), ("LOCAL_WORLD_SIZE", "1"), ("LOCAL_RANK", "0")];
    let dones = Run::start_with(&Place::Here, 2, &["bits"], &variables).ends(None);
    assert!(dones.iter().all(|done| done.stderr.contains("share no memory")), "{dones:?}");
}

/// Two network namespaces, joined by a cable: 10.77.0.1 and 10.77.0.2. They are gone when this is dropped.
struct TwoHosts {
    names: [String; 2],
    /// One test at a time has the addresses.
    _alone: std::sync::MutexGuard<'static, ()>,
}

impl TwoHosts {
    /// Nothing, with the reason, where there can be none.
    fn make() -> Option<Self> {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let names = ["a", "b"].map(|side| format!("leyden{}{side}", std::process::id()));
        let made = Self { names, _alone: alone };
        match made.connect() {
            Ok(()) => Some(made),
            Err(why) => {
                assert!(std::env::var_os("LEYDEN_REQUIRE_NAMESPACES").is_none(), "no namespaces: {why}");
                eprintln!("skipped: {why}");
                None
            }
        }
    }

    fn connect(&self) -> Result<(), String> {
        let [a, b] = &self.names;
        let (end_a, end_b) = (&self.cable(0), &self.cable(1));
        ip(&["netns", "add", a])?;
        ip(&["netns", "add", b])?;
        ip(&["link", "add", end_a, "netns", a, "type", "veth", "peer", "name", end_b, "netns", b])?;
        for (name, end, address) in [(a, end_a, "10.77.0.1/24"), (b, end_b, "10.77.0.2/24")] {
            ip(&["-n", name, "addr", "add", address, "dev", end])?;
            ip(&["-n", name, "link", "set", end, "up"])?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
        }
        Ok(())
    }

    /// The name of a host's end of the cable.
    fn cable(&self, host: usize) -> String {
        format!("ley{}{host}", std::process::id() % 100_000_000)
    }

    /// A program on one of the hosts.
    fn command(&self, host: usize, program: &std::path::Path) -> Command {
        let mut command = Command::new("ip");
        // `exec` replaces itself: the process that is started is the rank.
        command.args(["netns", "exec", &self.names[host]]).arg(program);
        command
    }

    fn pull_out(&self) {
        ip(&["-n", &self.names[0], "link", "set", &self.cable(0), "down"]).unwrap();
    }

    /// So many bits a second, from both ends.
    fn slow_down(&self, rate: &str) {
        for host in 0..2 {
            let (name, end) = (&self.names[host], &self.cable(host));
            let words =
                ["netns", "exec", name, "tc", "qdisc", "add", "dev", end, "root", "tbf", "rate", rate];
            ip(&[&words[..], &["burst", "32kbit", "latency", "400ms"]].concat()).unwrap();
        }
    }
}

impl Drop for TwoHosts {
    fn drop(&mut self) {
        for name in &self.names {
            // The cable goes with them. One that was not made needs not go.
            let _ = ip(&["netns", "del", name]);
        }
    }
}

fn ip(words: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(words).output().map_err(|error| format!("ip: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("ip {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim())),
    }
}

#[test]
fn two_hosts_get_the_bits_of_one() {
    let Some(hosts) = TwoHosts::make() else { return };
    assert_eq!(bits(&Place::Two(&hosts), 4, ""), bits(&Place::Here, 4, "memory"));
}

#[test]
fn each_failure_is_an_error_on_both_hosts() {
    let Some(hosts) = TwoHosts::make() else { return };
    failures(&Place::Two(&hosts), 4, &[3]);
}

#[test]
fn each_rank_that_is_killed_is_named_on_both_hosts() {
    let Some(hosts) = TwoHosts::make() else { return };
    kills(&Place::Two(&hosts), 4);
}

#[test]
fn a_cable_that_is_pulled_out_is_noticed_on_both_hosts() {
    let Some(hosts) = TwoHosts::make() else { return };
    for how in ["wait", "busy"] {
        // Those that wait do so for rank 3, which does not come.
        let late = if how == "wait" { "3" } else { "9" };
        let mut run = Run::start(&Place::Two(&hosts), 4, &[how, late]);
        run.ready();
        let since = now();
        hosts.pull_out();
        let but = if how == "wait" { Some(3) } else { None };
        let dones = run.ends(but);
        for (rank, done) in dones.iter().enumerate().filter(|&(rank, _)| Some(rank) != but) {
            let waited = done.ended_at().unwrap().saturating_sub(since);
            println!("{how}: rank {rank} noticed after {waited} ms");
            assert!(waited < 10_000 && done.stderr.contains("error["), "{waited} ms: {done:?}");
        }
        ip(&["-n", &hosts.names[0], "link", "set", &hosts.cable(0), "up"]).unwrap();
    }
}

#[test]
fn a_slow_cable_is_no_failure() {
    let Some(hosts) = TwoHosts::make() else { return };
    hosts.slow_down("10mbit");
    // 1.5 MB from each rank to each on the other host.
    assert_eq!(bits(&Place::Two(&hosts), 4, ""), bits(&Place::Here, 4, "memory"));
}

/// torchrun's own store at the master's address, its agents on both hosts.
#[test]
fn ranks_of_the_real_torchrun_on_two_hosts_get_the_bits_of_one() {
    let python = std::env::var("LEYDEN_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let has_torch = Command::new(&python).args(["-c", "import torch.distributed.run"]).output();
    if !has_torch.is_ok_and(|output| output.status.success()) {
        assert!(std::env::var_os("LEYDEN_REQUIRE_TORCH").is_none(), "{python} has no torch");
        eprintln!("skipped: {python} has no torch");
        return;
    }
    let Some(hosts) = TwoHosts::make() else { return };
    let start = |host: usize| {
        let mut command = hosts.command(host, std::path::Path::new(&python));
        command.args(["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "2"]);
        command.args(["--node-rank", &host.to_string(), "--master-addr", "10.77.0.1"]);
        command.args(["--master-port", "29511", "--no-python"]).arg(program("meshed")).arg("bits");
        command.env("LEYDEN_TOKEN", "a token that is long enough").env("RUST_BACKTRACE", "0");
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (stdout, stderr) = (collect(child.stdout.take().unwrap()), collect(child.stderr.take().unwrap()));
        Started { child, stdout, stderr }
    };
    let dones = Run { ranks: vec![start(0), start(1)] }.ends(None);
    let expected = bits(&Place::Here, 4, "memory");
    for done in &dones {
        assert!(done.code == Some(0) && done.stdout == expected.repeat(2), "{expected}: {dones:?}");
    }
}
