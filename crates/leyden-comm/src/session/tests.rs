//! Ranks that meet through real sockets: threads where nobody dies, and processes where somebody does.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::AtomicU16;
use std::sync::mpsc::{self, Receiver};

use super::*;
use crate::codes::{
    SESSION_CLOSED, SESSION_DUPLICATE, SESSION_MASTER, SESSION_MISSING, SESSION_OTHER_RUN, SESSION_SIZE,
    SESSION_TOKEN, STORE_ADDRESS, STORE_PORT_TAKEN, STORE_UNREACHABLE,
};
use crate::store::{Server, ServerOptions};

const TOKEN: &str = "0123456789abcdef";
/// Long enough that only a hang takes longer.
const LONG: Duration = Duration::from_secs(60);

/// A port that nobody has, outside of the range from which systems choose.
fn port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let number = u32::from(NEXT.fetch_add(1, Ordering::Relaxed)) + std::process::id() * 37;
        let port = 12_000 + (number % 18_000) as u16;
        if TcpListener::bind(("0.0.0.0", port)).is_ok() {
            return port;
        }
    }
}

fn terms() -> Terms {
    Terms { token: None, patience: LONG, agent_store: false, ..Terms::of_this_process().unwrap() }
}

fn patient(seconds: u64) -> Terms {
    Terms { patience: Duration::from_secs(seconds), ..terms() }
}

fn with_token(token: &str) -> Terms {
    Terms { token: Some(token.to_owned()), ..patient(3) }
}

/// A rank of one host.
fn local(rank: usize, size: usize, port: u16) -> Environment {
    let locals = size.to_string();
    environment(rank, size, port, &[("MASTER_ADDR", "127.0.0.1"), ("LOCAL_WORLD_SIZE", &locals)])
}

/// A rank that takes all others to be on other hosts.
fn remote(rank: usize, size: usize, port: u16) -> Environment {
    let locals = [("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "1"), ("MASTER_ADDR", "127.0.0.1")];
    environment(rank, size, port, &locals)
}

fn environment(rank: usize, size: usize, port: u16, more: &[(&str, &str)]) -> Environment {
    let own = [("RANK", rank), ("WORLD_SIZE", size), ("MASTER_PORT", port.into())];
    let own = own.map(|(name, value)| (name.to_owned(), value.to_string()));
    let more = more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Environment::from_variables(own.into_iter().chain(more)).unwrap()
}

/// All of them join, each on a thread.
fn meet(ranks: &[(Environment, Terms)]) -> Vec<Result<Session>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = ranks
            .iter()
            .map(|(environment, terms)| {
                scope.spawn(move || join_on(environment, &listener(environment).unwrap(), terms))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn all_meet(size: usize, port: u16) -> Vec<Session> {
    let ranks: Vec<_> = (0..size).map(|rank| (local(rank, size, port), terms())).collect();
    meet(&ranks).into_iter().collect::<Result<_>>().unwrap()
}

/// Attends, and gives what is heard.
fn listening(session: Session) -> (Attendance, Receiver<Heard>) {
    let (say, heard) = mpsc::channel();
    let attendance = session.attend(move |what| drop(say.send(what))).unwrap();
    (attendance, heard)
}

fn text(result: &Result<Session>) -> String {
    format!("{:?}", result.as_ref().unwrap_err())
}

#[test]
fn ranks_of_one_host_meet_without_a_token_and_learn_where_the_others_are() {
    let port = port();
    let environments: Vec<_> = (0..4).map(|rank| local(rank, 4, port)).collect();
    let listeners: Vec<_> = environments.iter().map(|environment| listener(environment).unwrap()).collect();
    let sessions: Vec<Session> = std::thread::scope(|scope| {
        // Rank 0 comes last.
        let join = |rank: usize| {
            let (environment, listener) = (&environments[rank], &listeners[rank]);
            scope.spawn(move || join_on(environment, listener, &terms()).unwrap())
        };
        let mut threads: Vec<_> = (1..4).map(join).collect();
        threads.insert(0, join(0));
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for (rank, session) in sessions.iter().enumerate() {
        assert_eq!((session.rank(), session.size()), (rank, 4));
        let addresses: Vec<SocketAddr> = session.roster().iter().map(|member| member.address).collect();
        let expected: Vec<_> = listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
        assert_eq!(addresses, expected);
        assert!(session.roster().iter().all(|member| member.pid == std::process::id()));
        let proof = session.secret().proof("mesh", [&[1; 32], &[2; 32]]);
        assert!(sessions[0].secret().is_proof(&proof, "mesh", [&[1; 32], &[2; 32]]));
    }
}

#[test]
fn a_hundred_ranks_that_come_at_once_meet_and_leave() {
    let began = Instant::now();
    let sessions = all_meet(100, port());
    println!("100 ranks have met after {:?}", began.elapsed());
    let mut sessions = sessions.into_iter();
    let (first, heard) = listening(sessions.next().unwrap());
    sessions.for_each(|session| drop(session.attend(|_| {}).unwrap()));
    let mut left: Vec<usize> = (1..100)
        .map(|_| match heard.recv_timeout(LONG) {
            Ok(Heard::Ended { rank, clean: true, .. }) => rank,
            other => panic!("{other:?}"),
        })
        .collect();
    left.sort_unstable();
    assert!(left.into_iter().eq(1..100));
    drop(first);
}

#[test]
fn ranks_of_several_hosts_meet_with_their_token_and_not_without() {
    let port = port();
    let ranks: Vec<_> = (0..3).map(|rank| (remote(rank, 3, port), with_token(TOKEN))).collect();
    let sessions = meet(&ranks);
    let sessions: Vec<Session> = sessions.into_iter().collect::<Result<_>>().unwrap();
    for member in sessions[1].roster() {
        assert!(!member.address.ip().is_unspecified() && member.address.port() > 0, "{member:?}");
    }
    // Who knows the run knows each secret of it; another run with the same token has another one.
    let proof = sessions[0].secret().proof("mesh", [&[1; 32], &[2; 32]]);
    assert!(sessions[2].secret().is_proof(&proof, "mesh", [&[1; 32], &[2; 32]]));

    let refused = meet(&[(remote(0, 2, port), terms())]);
    assert_eq!(refused[0].as_ref().unwrap_err().code(), SESSION_TOKEN);
    assert!(text(&refused[0]).contains("fix: make one"), "{refused:?}");
    let refused = meet(&[(remote(0, 2, port), with_token("short"))]);
    assert!(text(&refused[0]).contains("5 bytes, and at least 16"), "{refused:?}");
}

#[test]
fn another_token_is_refused_on_that_rank_and_named_on_rank_0() {
    let port = port();
    let results = meet(&[
        (remote(0, 2, port), with_token(TOKEN)),
        (remote(1, 2, port), with_token("another token, long enough")),
    ]);
    assert_eq!(results[1].as_ref().unwrap_err().code(), SESSION_OTHER_TOKEN);
    let zero = results[0].as_ref().unwrap_err();
    assert_eq!((zero.code(), zero.place("missing")), (SESSION_MISSING, Some("rank 1")));
    assert!(zero.reasons()[0].contains("127.0.0.1 has another token"), "{zero:?}");

    let port = self::port();
    let results = meet(&[(local(0, 2, port), patient(2)), (local(1, 2, port), with_token(TOKEN))]);
    assert!(text(&results[1]).contains("this rank has one, and rank 0 none"), "{results:?}");
}

#[test]
fn another_number_of_ranks_is_told_to_all_with_who_says_what() {
    let port = port();
    let ranks = [(local(0, 2, port), terms()), (local(1, 3, port), terms())];
    let began = Instant::now();
    for result in meet(&ranks) {
        let error = result.unwrap_err();
        assert_eq!(error.code(), SESSION_SIZE, "{error:?}");
        assert!(error.place("rank 1").unwrap().contains("says rank 1 of 3"), "{error:?}");
        assert!(error.place("rank 0").unwrap().contains("2 ranks"), "{error:?}");
    }
    assert!(began.elapsed() < LONG / 2);
}

#[test]
fn a_rank_beyond_the_number_of_ranks_is_refused() {
    // Its own variables are read first: what is sent is what a rank of a foreign program might send.
    let port = port();
    std::thread::scope(|scope| {
        let zero = scope.spawn(|| meet(&[(local(0, 2, port), terms())]).pop().unwrap());
        let (link, secret) = by_hand(port);
        let mut hello = hello(2, 2);
        hello.manifest.build = build();
        let error = enter(link, secret, hello, Instant::now() + LONG).unwrap_err();
        assert!(error.code() == SESSION_SIZE && format!("{error:?}").contains("rank 2 of 2"), "{error:?}");
        assert_eq!(zero.join().unwrap().unwrap_err().code(), SESSION_SIZE);
    });
}

#[test]
fn two_processes_of_one_rank_are_both_named_to_all() {
    let port = port();
    let ranks = [0, 1, 1].map(|rank| (local(rank, 3, port), terms()));
    for result in meet(&ranks) {
        let error = result.unwrap_err();
        assert_eq!(error.code(), SESSION_DUPLICATE, "{error:?}");
        let pid = format!("pid {}", std::process::id());
        assert!(error.place("one").unwrap().contains(&pid) && error.place("other").unwrap().contains(&pid));
    }
}

#[test]
fn who_is_missing_is_listed_to_all_and_told_when_it_comes_too_late() {
    let port = port();
    let ranks = [0, 2].map(|rank| (local(rank, 4, port), patient(1)));
    for result in meet(&ranks) {
        let error = result.unwrap_err();
        assert_eq!((error.code(), error.place("missing")), (SESSION_MISSING, Some("rank 1, 3")));
        assert!(error.place("had come").unwrap().starts_with("2 of 4: rank 0"), "{error:?}");
    }
    let late = meet(&[(local(3, 4, port), patient(3))]);
    assert_eq!(late[0].as_ref().unwrap_err().code(), SESSION_CLOSED, "{late:?}");
    assert!(text(&late[0]).contains("[D0227] not all ranks have come"), "{late:?}");
}

#[test]
fn a_run_that_is_complete_takes_nobody_else() {
    let port = port();
    let sessions = all_meet(2, port);
    let late = meet(&[(local(1, 2, port), terms())]);
    assert!(text(&late[0]).contains("the run is complete"), "{late:?}");
    // That has disturbed nobody.
    let [(zero, _), (_one, heard)] = [0, 1].map({
        let mut sessions = sessions.into_iter();
        move |_| listening(sessions.next().unwrap())
    });
    drop(zero);
    assert!(matches!(heard.recv_timeout(LONG), Ok(Heard::Ended { rank: 0, clean: true, .. })));
}

#[test]
fn another_build_version_or_configuration_is_told_to_all() {
    for (change, named) in [
        ((|terms| terms.build = "beef".to_owned()) as fn(&mut Terms), "build beef"),
        (|terms| terms.version = "9.9.9".to_owned(), "Leyden 9.9.9"),
        (|terms| terms.configuration = 7, "configuration 0000000000000007"),
    ] {
        let port = port();
        let mut other = terms();
        change(&mut other);
        for result in meet(&[(local(0, 2, port), terms()), (local(1, 2, port), other)]) {
            let error = result.unwrap_err();
            assert_eq!(error.code(), SESSION_OTHER_BUILD, "{error:?}");
            assert!(error.place("rank 1").unwrap().contains(named), "{error:?}");
        }
    }
}

#[test]
fn another_protocol_is_refused_at_once_by_either_side() {
    let port = port();
    std::thread::scope(|scope| {
        let zero = scope.spawn(|| meet(&[(local(0, 2, port), patient(3))]).pop().unwrap());
        let newer = Terms { protocol: PROTOCOL + 1, ..terms() };
        let one = meet(&[(local(1, 2, port), newer.clone())]).pop().unwrap();
        assert!(text(&one).contains("rank 0     protocol 1\n  this rank  protocol 2"), "{one:?}");
        // One that does not look at what the store says.
        let (invitation, address) = invited(port);
        let secret = invitation.secret(&terms(), false).unwrap();
        let Err(Failed::Finally(error)) = open(address, &secret, &newer, LONG) else { panic!("let in") };
        assert_eq!(error.code(), SESSION_OTHER_BUILD);
        let missing = text(&zero.join().unwrap());
        assert!(missing.contains("speaks protocol 2, and rank 0 1"), "{missing}");
    });
}

#[test]
fn one_of_another_run_is_told_so_and_disturbs_nobody() {
    let port = port();
    let run = |rank: usize, id: &str| {
        environment(
            rank,
            2,
            port,
            &[("MASTER_ADDR", "127.0.0.1"), ("LOCAL_WORLD_SIZE", "2"), ("TORCHELASTIC_RUN_ID", id)],
        )
    };
    std::thread::scope(|scope| {
        let zero = scope.spawn(|| meet(&[(run(0, "new"), terms())]).pop().unwrap());
        let stale = meet(&[(run(1, "old"), terms())]).pop().unwrap();
        let error = stale.unwrap_err();
        assert_eq!(error.code(), SESSION_OTHER_RUN);
        assert_eq!(
            (error.place("this rank's run"), error.place("the other run")),
            (Some("`old`"), Some("`new`"))
        );
        let one = meet(&[(run(1, "new"), terms())]).pop().unwrap();
        assert!(one.is_ok() && zero.join().unwrap().is_ok());
    });
}

#[test]
fn without_a_master_s_address_the_variables_are_named() {
    let variables = [("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "4")];
    let hosts = [("OMPI_COMM_WORLD_LOCAL_RANK", "1"), ("OMPI_COMM_WORLD_LOCAL_SIZE", "2")];
    let environment = Environment::from_variables(variables.into_iter().chain(hosts)).unwrap();
    let result = meet(&[(environment, with_token(TOKEN))]).pop().unwrap();
    assert_eq!(result.as_ref().unwrap_err().code(), SESSION_MASTER);
    assert!(
        text(&result).contains("mpirun -x MASTER_ADDR=HOST -x MASTER_PORT=29500 -x LEYDEN_TOKEN"),
        "{result:?}"
    );
}

#[test]
fn a_taken_port_names_its_owner() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    for environment in [local(0, 2, port), remote(0, 2, port)] {
        let result = meet(&[(environment, with_token(TOKEN))]).pop().unwrap();
        let error = result.unwrap_err();
        assert_eq!(error.code(), STORE_PORT_TAKEN);
        assert_eq!(
            error.place("by"),
            Some(&*format!("pid {}, this process", std::process::id())),
            "{error:?}"
        );
    }
}

#[test]
fn a_master_that_is_unknown_or_swallows_everything_is_an_error_within_ten_seconds() {
    let names = [("MASTER_ADDR", "no-such-host.invalid"), ("LOCAL_WORLD_SIZE", "1")];
    // A socket whose queue is full: the system drops what else comes, as a firewall would.
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    full.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    full.listen(0).unwrap();
    let swallows = full.local_addr().unwrap().as_socket().unwrap();
    let fill = |_| TcpStream::connect_timeout(&swallows, Duration::from_millis(200));
    let _queue: Vec<_> = (0..4).map(fill).collect();
    let began = Instant::now();
    let long = Terms { patience: LONG, ..with_token(TOKEN) };
    let results =
        meet(&[(environment(1, 2, 29_500, &names), long.clone()), (remote(1, 2, swallows.port()), long)]);
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert_eq!(results[0].as_ref().unwrap_err().code(), STORE_ADDRESS);
    assert!(text(&results[0]).contains("no-such-host.invalid"), "{results:?}");
    let swallowed = results[1].as_ref().unwrap_err();
    assert_eq!(swallowed.code(), STORE_UNREACHABLE);
    assert!(swallowed.place("tried").unwrap().contains("no answer"), "{swallowed:?}");
}

#[test]
fn a_time_limit_that_is_none_is_refused() {
    let mut zero = Process::of(Command::new("env").arg("LEYDEN_JOIN_TIMEOUT=soon"), 0, 2, port());
    let line = zero.expect("failed");
    assert!(line.contains("D0301") && line.contains("LEYDEN_JOIN_TIMEOUT  `soon`"), "{line}");
}

#[test]
fn without_rank_0_the_others_say_so_at_their_deadline() {
    let port = port();
    let alone = meet(&[(local(1, 2, port), patient(1))]).pop().unwrap();
    let error = alone.unwrap_err();
    assert_eq!((error.code(), error.place("rank")), (STORE_UNREACHABLE, Some("1")));
    assert!(error.hints().iter().any(|hint| hint.contains("MASTER_ADDR must lead to the host of rank 0")));

    // A store of torchrun's is there before any rank.
    let listen = (Ipv4Addr::LOCALHOST, port).into();
    let _store = Server::start(ServerOptions { listen, ..ServerOptions::default() }).unwrap();
    let under_torchrun = |rank: usize| (local(rank, 2, port), Terms { agent_store: true, ..patient(1) });
    let alone = meet(&[under_torchrun(1)]).pop().unwrap();
    assert_eq!(alone.as_ref().unwrap_err().code(), SESSION_UNREACHABLE);
    assert!(text(&alone).contains("why: it has not said where it serves"), "{alone:?}");
    // What rank 0 says there at its end outlives it.
    let zero = meet(&[under_torchrun(0)]).pop().unwrap();
    assert_eq!(zero.unwrap_err().place("missing"), Some("rank 1"));
    let late = meet(&[under_torchrun(1)]).pop().unwrap();
    assert_eq!(late.as_ref().unwrap_err().code(), SESSION_CLOSED);
    assert!(text(&late).contains("error[D0227]: not all ranks have come"), "{late:?}");
}

#[test]
fn strangers_are_cut_off_named_and_hold_nobody_up() {
    let port = port();
    let began = Instant::now();
    let mut zero = Process::start(0, 2, port);
    let (_, address) = invited(port);
    let silent: Vec<_> = (0..200).map(|_| TcpStream::connect(address).unwrap()).collect();
    for opening in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 3000], b"SSH-2.0-x\r\n", &[0x16, 3, 1, 0, 0]] {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.write_all(opening).unwrap();
        // It is closed, and nothing is said.
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty(), "{answer:?}");
    }
    // One that knows how to begin, and proves nothing.
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.write_all(&link::opening(PROTOCOL, &[1; 32])).unwrap();
    stream.write_all(&[7; 32]).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert_eq!((answer.len(), answer.last()), (OPENING + 1, Some(&0)));
    // One that begins slowly and goes on so.
    let mut slow = TcpStream::connect(address).unwrap();
    slow.write_all(b"ley").unwrap();
    // One of the run that says what nobody says.
    let (link, _) = by_hand(port);
    link.send(&u32::MAX.to_le_bytes(), Instant::now() + LONG).unwrap();

    let mut one = Process::start(1, 2, port);
    one.expect("met");
    assert!(began.elapsed() < LONG / 2, "{:?}", began.elapsed());
    drop(silent);
    let mut named = String::new();
    loop {
        let line = zero.expect("");
        if line.starts_with("met") {
            break;
        }
        named = named + &line + "\n";
    }
    let http = "is no rank of this run, and was cut off: it speaks HTTP: \"GET / HTTP/1.1\"";
    for line in
        [http, "it speaks SSH", "it speaks TLS", "it speaks nothing known", "it connected and said nothing"]
    {
        assert!(named.contains(line), "{line}: {named}");
    }
    assert!(named.contains("has another token") && named.lines().count() <= 8, "{named}");
}

#[test]
fn a_limit_on_descriptors_is_told_with_what_is_needed() {
    let mut zero =
        Process::of(Command::new("sh").args(["-c", "ulimit -n 40; exec \"$0\" \"$@\""]), 0, 64, port());
    let line = zero.expect("failed");
    assert!(
        line.contains("D0230") && line.contains("limit   40") && line.contains("ulimit -n 256"),
        "{line}"
    );
}

#[test]
fn those_who_stay_hear_who_left_who_failed_and_who_is_gone() {
    let mut sessions = all_meet(4, port()).into_iter();
    let (zero, heard_by_zero) = listening(sessions.next().unwrap());
    let (one, heard_by_one) = listening(sessions.next().unwrap());
    let (two, _) = listening(sessions.next().unwrap());
    let three = sessions.next().unwrap();
    let heard = [&heard_by_zero, &heard_by_one];

    one.progress(5);
    two.fail(&Error::msg("the disk is full"));
    for heard in heard {
        let Ok(Heard::Failed { rank: 2, error }) = heard.recv_timeout(LONG) else { panic!("not heard") };
        assert_eq!(error.what(), "the disk is full");
    }
    drop(two);
    for heard in heard {
        assert!(matches!(heard.recv_timeout(LONG), Ok(Heard::Ended { rank: 2, clean: true, .. })));
    }
    // It goes without a word.
    drop(three);
    for heard in heard {
        let Ok(Heard::Ended { rank: 3, clean: false, words }) = heard.recv_timeout(LONG) else {
            panic!("not heard")
        };
        let who = format!(
            "the connection of rank 3 ({}, pid {}, at 127.0.0.1) is lost: ",
            host_name(),
            std::process::id()
        );
        assert!(words.starts_with(&who), "{words}");
    }
    drop(zero);
    assert!(matches!(heard_by_one.recv_timeout(LONG), Ok(Heard::Ended { rank: 0, clean: true, .. })));
    drop(one);
    assert!(heard_by_one.recv_timeout(LONG).is_err(), "nothing more is heard");
}

#[test]
fn a_killed_rank_is_heard_of_within_a_second_and_so_is_the_end_of_rank_0() {
    let port = port();
    let mut ranks: Vec<Process> = (0..3).map(|rank| Process::start(rank, 3, port)).collect();
    for rank in &mut ranks {
        rank.expect("met");
    }
    let killed = Instant::now();
    ranks[2].child.kill().unwrap();
    for rank in &mut ranks[..2] {
        let line = rank.expect("ended 2 false");
        assert!(line.contains("the connection of rank 2 (") && line.contains("is lost"), "{line}");
    }
    let latency = killed.elapsed();
    ranks[0].child.kill().unwrap();
    let line = ranks[1].expect("lost");
    assert!(line.contains("D0231") && line.contains(&format!("pid {}", ranks[0].child.id())), "{line}");
    println!("heard of a killed rank after {latency:?}");
    assert!(latency < Duration::from_secs(5), "{latency:?}");
}

#[test]
fn a_stopped_rank_is_silent_and_not_dead() {
    let port = port();
    let mut ranks: Vec<Process> = (0..3).map(|rank| Process::start(rank, 3, port)).collect();
    for rank in &mut ranks {
        rank.expect("met");
    }
    ranks[1].signal("STOP");
    assert_eq!(ranks[2].expect(""), "silent 1 true");
    ranks[1].signal("CONT");
    assert_eq!(ranks[2].expect(""), "silent 1 false");
    drop(ranks[1].orders.take());
    // Neither dead nor lost meanwhile: it has left in order.
    assert!(ranks[2].expect("").starts_with("ended 1 true"));
    assert!(ranks[0].expect("leyden: rank 1 (").contains("does not beat"));
}

#[test]
fn a_rank_that_is_killed_before_all_have_come_is_named_at_once() {
    let port = port();
    let mut ranks: Vec<Process> = (0..2).map(|rank| Process::start(rank, 3, port)).collect();
    ranks[1].expect("joins");
    // Until rank 0 has it.
    std::thread::sleep(Duration::from_millis(500));
    ranks[1].child.kill().unwrap();
    let line = ranks[0].expect("failed");
    assert!(line.contains("D0227") && line.contains("rank 1 ("), "{line}");
}

#[test]
fn ranks_of_the_real_torchrun_meet_through_its_store() {
    let python = std::env::var("LEYDEN_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let has_torch = Command::new(&python).args(["-c", "import torch.distributed.run"]).output();
    if !has_torch.is_ok_and(|output| output.status.success()) {
        assert!(std::env::var_os("LEYDEN_REQUIRE_TORCH").is_none(), "{python} has no torch");
        eprintln!("skipped: {python} has no torch");
        return;
    }
    let mut torchrun = Command::new(python);
    torchrun.args(["-m", "torch.distributed.run", "--standalone", "--no-python", "--nproc-per-node", "3"]);
    let output =
        torchrun.arg(std::env::current_exe().unwrap()).args(PROCESS).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said.matches("met 3 through torchrun's store").count(), 3, "{output:?}");
    assert!(output.status.success(), "{output:?}");
}

/// How this test's program is one rank.
const PROCESS: [&str; 4] = ["--exact", "session::tests::one_rank", "--ignored", "--nocapture"];

/// Not a test: a rank, in a process of its own. It stays until its stdin ends.
#[test]
#[ignore = "it is a rank of other tests"]
fn one_rank() {
    let environment = Environment::detect().unwrap();
    println!("joins");
    let session = match join(&environment, &listener(&environment).unwrap()) {
        Ok(session) => session,
        Err(error) => {
            println!("failed {}", format!("{error:?}").replace('\n', " "));
            return;
        }
    };
    let through = if Terms::of_this_process().unwrap().agent_store { "torchrun's store" } else { "ours" };
    println!("met {} through {through}", session.size());
    let attendance = session.attend(|heard| match heard {
        Heard::Ended { rank, clean, words } => println!("ended {rank} {clean} {words}"),
        Heard::Failed { rank, error } => println!("failed of {rank}: {error}"),
        Heard::Silent { rank, silent } => println!("silent {rank} {silent}"),
        Heard::Lost(error) => println!("lost {}", format!("{error:?}").replace('\n', " ")),
    });
    let attendance = attendance.unwrap();
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    drop(attendance);
}

/// A rank that is a process. It ends with this.
struct Process {
    child: Child,
    orders: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Process {
    fn start(rank: usize, size: usize, port: u16) -> Self {
        // `env` runs what follows.
        Self::of(&mut Command::new("env"), rank, size, port)
    }

    /// By a program that runs another one.
    fn of(command: &mut Command, rank: usize, size: usize, port: u16) -> Self {
        command.arg(std::env::current_exe().unwrap()).args(PROCESS);
        command.env("RANK", rank.to_string()).env("WORLD_SIZE", size.to_string());
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
        command.env("LEYDEN_JOIN_TIMEOUT", "30").env("RUST_BACKTRACE", "0");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let orders = child.stdin.take();
        let (say, lines) = mpsc::channel();
        let outputs: [Box<dyn std::io::Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for output in outputs {
            let (say, output) = (say.clone(), BufReader::new(output));
            std::thread::spawn(move || {
                output.lines().map_while(Result::ok).try_for_each(|line| say.send(line))
            });
        }
        Self { child, orders, lines }
    }

    /// The next line of ours that begins so.
    fn expect(&mut self, beginning: &str) -> String {
        let end = Instant::now() + LONG;
        loop {
            let line =
                self.lines.recv_timeout(left(end)).unwrap_or_else(|_| panic!("never said `{beginning}`"));
            let ours = ["joins", "failed", "met", "ended", "silent", "lost", "leyden: "];
            if ours.iter().any(|word| line.starts_with(word)) && line.starts_with(beginning) {
                return line;
            }
        }
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(sent.unwrap().success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What rank 0 of a test says of where it serves, and there.
fn invited(port: u16) -> (Invitation, SocketAddr) {
    let place = Place::of(&local(1, 2, port), &terms()).unwrap();
    let mut store = place.connect(LONG).unwrap();
    let invitation = place.read(&mut store, &terms(), LONG).unwrap().unwrap();
    let address = (Ipv4Addr::LOCALHOST, invitation.port).into();
    (invitation, address)
}

/// A connection to it that has proved itself.
fn by_hand(port: u16) -> (Link, Secret) {
    let (invitation, address) = invited(port);
    let secret = invitation.secret(&terms(), false).unwrap();
    match open(address, &secret, &terms(), LONG) {
        Ok(link) => (link, secret),
        Err(Failed::Later(why)) => panic!("{why}"),
        Err(Failed::Finally(error)) => panic!("{error:?}"),
    }
}

fn hello(rank: usize, size: usize) -> Hello {
    let terms = terms();
    let address = (Ipv4Addr::LOCALHOST, 1).into();
    let member = Member { address, host: host_name(), pid: std::process::id() };
    let (build, version, configuration) = (terms.build, terms.version, terms.configuration);
    Hello { rank, size, member, manifest: Manifest { run: String::new(), build, version, configuration } }
}
