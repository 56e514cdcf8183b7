//! What those who wait learn, and what a failure leaves; and that nothing is told of ranks that do as they should.
#![expect(unsafe_code, reason = "a debugger is a system call")]

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::launching::{Ended, Program, run};

const LONG: Duration = Duration::from_secs(40);

fn run_with(words: &str, variables: &[(&str, &str)]) -> Ended {
    Program::start_with(words, variables).end()
}

/// The calls of a rank in the world, oldest first.
fn calls(records: &Value, rank: usize) -> Vec<String> {
    let calls = records["ranks"][rank]["groups"][0]["collectives"].as_array().unwrap();
    calls.iter().map(|call| call["call"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_rank_that_is_killed_leaves_its_records_in_the_one_file_that_all_errors_name() {
    let ended = run("watched killed");
    let [(path, records)] = &ended.records[..] else { panic!("{:?}\n{}", ended.records, ended.stderr) };
    let name = path.file_name().unwrap().to_str().unwrap();
    assert!(name.starts_with("leyden-died-") && name.ends_with("-0.json"), "{name}");
    for rank in ["", "[rank 2] "] {
        assert!(
            ended.says(format!("{rank} records of all ranks {}", path.display()).trim()),
            "{}",
            ended.stderr
        );
    }
    let reduce = "all_reduce(10 f32, sum)";
    assert_eq!(calls(records, 1), ["barrier(\"start\")", reduce, reduce], "{records:#}");
    assert_eq!(calls(records, 0), ["barrier(\"start\")", reduce, reduce, reduce], "{records:#}");
    let victim = &records["ranks"][1];
    assert_eq!((&victim["process"], &victim["state"]), (&"dead".into(), &"present".into()), "{victim:#}");
    assert_eq!(victim["end"]["words"], "killed by SIGKILL", "{victim:#}");
    assert_eq!(victim["phase"]["label"], "training");
    let last = &victim["groups"][0]["collectives"][2];
    assert!(last["place"].as_str().unwrap().contains("watched.rs:"), "{last:#}");
    assert_eq!(
        (&last["operation"], &last["elements"], &last["reduction"], &last["sequence"]),
        (&"all_reduce".into(), &serde_json::json!([10, "f32"]), &"sum".into(), &3.into()),
    );
    assert!(last["begun_seconds_ago"].as_f64().unwrap() < 30.0);
    assert_eq!(records["error"]["code"], "D0105");
    assert_eq!(records["ranks"][0]["evidence"]["tracer"], Value::Null);
    assert!(records["ranks"][0]["evidence"]["words"].is_string(), "{records:#}");
}

#[test]
fn an_error_of_a_rank_keeps_the_records_if_others_wait_for_it() {
    let ended = run("watched own-error waited-for");
    let [(path, records)] = &ended.records[..] else { panic!("{:?}\n{}", ended.records, ended.stderr) };
    assert!(ended.says(&format!("records of all ranks {}", path.display())), "{}", ended.stderr);
    assert_eq!(
        (&records["error"]["what"], &records["ranks"][0]["waits_in_groups"]),
        (&"no such column".into(), &serde_json::json!([0]))
    );
    let ended = run("watched own-error unnoticed");
    assert!(ended.records.is_empty() && !ended.stderr.contains("records"), "{}", ended.stderr);
    ended.expect(1, "", &["no such column"]);
}

#[test]
fn records_go_where_they_were_asked_to_or_the_error_says_why_not() {
    let folder = tempfile::tempdir().unwrap();
    let wanted = folder.path().join("a/b");
    let ended = run_with("watched killed", &[("LEYDEN_DUMP_DIR", wanted.to_str().unwrap())]);
    let files: Vec<_> = std::fs::read_dir(&wanted).unwrap().map(|file| file.unwrap().path()).collect();
    assert!(
        files.len() == 1 && ended.stderr.contains(files[0].to_str().unwrap()),
        "{files:?}: {}",
        ended.stderr
    );

    let ended = run_with("watched killed", &[("LEYDEN_DUMP_DIR", "/dev/null/x")]);
    ended.expect(
        1,
        "",
        &["error[D0105]: rank 1 died", "records of all ranks not written to /dev/null/x: Not a directory"],
    );
}

#[test]
fn a_full_disk_delays_no_error_and_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let full = folder.path().to_str().unwrap();
    let script = format!(
        "mount -t tmpfs -o size=4k none {full} && LEYDEN_DUMP_DIR={full} exec \"$0\" killed; exit 77"
    );
    let program =
        std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("examples/watched");
    let output = Command::new("unshare").args(["-Urm", "sh", "-c", &script]).arg(program).output();
    match output {
        Ok(output) if output.status.code() == Some(1) && !text(&output.stderr).starts_with("unshare") => {
            let said = text(&output.stderr);
            assert!(said.contains("error[D0105]: rank 1 died"), "{said}");
            assert!(said.contains(&format!("not written to {full}: No space left on device")), "{said}");
        }
        other => eprintln!("skipped: no file system can be mounted here: {other:?}"),
    }
}

#[test]
fn detail_compares_places_too_and_says_that_it_does() {
    run("watched two-places").expect(0, "", &[]);
    let ended = run_with("watched two-places", &[("LEYDEN_DEBUG", "detail")]);
    let words = [
        "error[D0120]: ranks call collective #2 of the world from different places",
        "rank 0 all_reduce(1 f32, sum) at",
        "rank 1 all_reduce(1 f32, sum) at",
        "`LEYDEN_DEBUG=detail` compares call sites too; all else is the same on all ranks",
        "[rank 1] Error: error[D0120]",
    ];
    ended.expect(1, "", &words);
    let [(path, records)] = &ended.records[..] else { panic!("{:?}", ended.records) };
    assert!(path.to_str().unwrap().contains("leyden-desync-"), "{}", path.display());
    assert_eq!((&records["detail"], &records["error"]["code"]), (&true.into(), &"D0120".into()));
}

#[test]
fn detail_keeps_all_records_at_the_end_of_a_world() {
    let ended = run_with("watched long-on-rank-zero", &[("LEYDEN_DEBUG", "detail")]);
    let [(path, records)] = &ended.records[..] else { panic!("{:?}\n{}", ended.records, ended.stderr) };
    ended.expect(0, "", &[&format!("leyden: records of all ranks: {}", path.display())]);
    assert_eq!(ended.stderr.matches("records of all ranks:").count(), 1, "{}", ended.stderr);
    assert_eq!(records["error"], Value::Null);
    for rank in 0..3 {
        assert_eq!(calls(records, rank), ["barrier(\"start\")", "on_rank_zero()"]);
        assert_eq!(records["ranks"][rank]["state"], "left");
    }
}

#[test]
fn a_late_rank_is_told_of_again_and_again_by_one_of_those_who_wait() {
    let ended = run("watched long-operation");
    ended.expect(0, "", &[]);
    let lines: Vec<&str> = ended.stderr.lines().filter(|line| line.contains("waits for rank")).collect();
    assert!((2..=5).contains(&lines.len()), "{lines:#?}");
    for line in lines {
        assert!(line.starts_with("leyden: warning: rank 0 waits for rank 1 for "), "{line}");
        for words in [
            "in barrier(\"saved\") at",
            "it is in `checkpoint` at",
            "the limit is 30s, of which 2",
            "are left",
        ] {
            assert!(line.contains(words), "{words:?} is not in {line}");
        }
    }
    let ended = run("watched long-on-rank-zero");
    ended.expect(
        0,
        "",
        &[
            "[rank 1] leyden: warning: rank 1 waits for rank 0 for",
            "it is in `on_rank_zero` at",
            "the limit is 1800s, of which 179",
        ],
    );
    assert!(!ended.stderr.contains("[rank 2]"), "{}", ended.stderr);
}

#[test]
fn a_first_step_within_the_limit_is_no_failure() {
    run("watched slow-start").expect(0, "", &[]);
}

#[test]
fn a_job_that_is_stopped_as_a_whole_goes_on() {
    let mut program = Program::start("watched steps 2");
    program.wait_until_ready();
    let processes = program.processes();
    assert_eq!(processes.len(), 4, "{processes:?}");
    for signal in [libc::SIGSTOP, libc::SIGCONT] {
        processes.iter().for_each(|(pid, _)| program.signal(*pid, signal));
        if signal == libc::SIGSTOP {
            // Longer than the budget of any wait.
            std::thread::sleep(Duration::from_secs(3));
        }
    }
    let ended = program.end();
    ended.expect(0, "", &[]);
    assert!(!ended.stderr.contains("warning"), "{}", ended.stderr);
}

#[test]
fn a_debugger_suspends_the_limits_of_the_rank_it_is_at() {
    let mut program = Program::start("watched held");
    program.wait_until_ready();
    let victim = program.pid_of("rank 1");
    let tracer = std::thread::spawn(move || {
        // SAFETY: it takes numbers, and touches no memory of ours. It does not stop the process; what it is at ends with
        // this thread.
        let seized = unsafe { libc::ptrace(libc::PTRACE_SEIZE, victim, 0, 0) } == 0;
        std::thread::sleep(Duration::from_millis(if seized { 3300 } else { 0 }));
        seized
    });
    let ended = program.end();
    if !tracer.join().unwrap() {
        eprintln!("skipped: no process can be traced here");
        return ended.expect(1, "", &["error[D0107]"]);
    }
    ended.expect(
        0,
        "",
        &["rank 0 waits for rank 1", "traced by process", "meanwhile its limit stands still"],
    );
}

#[test]
fn ranks_of_a_launcher_learn_how_one_died_while_another_is_merely_slow() {
    for (how, cause) in
        [("killed", "killed by SIGKILL"), ("aborts", "killed by SIGABRT"), ("exits", "exited with code 3")]
    {
        // One of a few: this machine may be busy.
        let took: Vec<Duration> = (0..5).map(|time| die_while_another_is_slow(how, cause, time)).collect();
        println!("{how}: {took:?}");
        assert!(took.iter().min().unwrap() < &Duration::from_millis(100), "{how}: {took:?}");
    }
}

/// How long after the death of rank 2 rank 0 had its error, which says the cause.
fn die_while_another_is_slow(how: &str, cause: &str, time: usize) -> Duration {
    let folder = tempfile::tempdir().unwrap();
    let mut ranks = (0..3).map(|rank| {
        let program =
            std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("examples/watched");
        let mut command = Command::new(program);
        command.args(["dies-while-another-is-slow", how]);
        command.env("RANK", rank.to_string()).env("WORLD_SIZE", "3").env("RUST_BACKTRACE", "0");
        command.env("TORCHELASTIC_RUN_ID", format!("{how}-{time}-{}", std::process::id()));
        command.env("LEYDEN_DUMP_DIR", folder.path());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    });
    let (zero, mut slow, victim) = (ranks.next().unwrap(), ranks.next().unwrap(), ranks.next().unwrap());
    // Taken from the kernel at once, as a launcher does.
    let victim = output_of(std::thread::spawn(move || victim.wait_with_output().unwrap()));
    let zero = output_of(std::thread::spawn(move || zero.wait_with_output().unwrap()));
    slow.kill().unwrap();
    slow.wait().unwrap();
    let said = text(&zero.stderr);
    let known = said.contains(&format!("  cause                 {cause}\n"))
        || said.contains(&format!("cause                 {cause} (core dumped)\n"));
    assert!(said.contains("error[D0105]: rank 2 died") && (known || forgets(&said)), "{said}");
    assert!(said.contains(folder.path().to_str().unwrap()), "{said}");
    let nanos = |output: &Output| text(&output.stdout).trim().parse().map(Duration::from_nanos).unwrap();
    nanos(&zero).saturating_sub(nanos(&victim))
}

fn output_of(thread: std::thread::JoinHandle<Output>) -> Output {
    let began = Instant::now();
    while !thread.is_finished() {
        assert!(began.elapsed() < LONG, "it hangs");
        std::thread::sleep(Duration::from_millis(1));
    }
    thread.join().unwrap()
}

/// Whether this kernel is one that forgets how a process ended whose parent knows, and the error says so.
fn forgets(said: &str) -> bool {
    let release = std::fs::read_to_string(Path::new("/proc/sys/kernel/osrelease")).unwrap();
    let mut numbers = release.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    version < (6, 15) && said.contains("not known")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
