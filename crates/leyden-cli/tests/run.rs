//! The program itself, with ranks that are shells.

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

fn leyden(ranks: &str, script: &str) -> (Output, Duration) {
    let began = Instant::now();
    let mut command = Command::new(env!("CARGO_BIN_EXE_leyden"));
    command.args(["run", "-n", ranks, "--grace", "1", "--", "sh", "-c", script]);
    let output = command.stdin(Stdio::null()).output().unwrap();
    (output, began.elapsed())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn each_rank_is_told_its_number_and_the_others_lines_bear_it() {
    let (output, _) = leyden("3", "echo $RANK of $WORLD_SIZE");
    assert!(output.status.success());
    let mut lines: Vec<String> = text(&output.stdout).lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines, ["0 of 3", "[rank 1] 1 of 3", "[rank 2] 2 of 3"]);
}

#[test]
fn a_rank_that_fails_gives_the_exit_code_and_ends_the_others_after_the_grace() {
    let (output, took) = leyden("3", "if [ $RANK = 1 ]; then exit 7; fi; sleep 60");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(7), "{said}");
    assert!(said.contains("rank 1 exited with code 7") && said.contains("rank 0 has not ended"), "{said}");
    assert!(took < Duration::from_secs(20), "{took:?}");
    assert_eq!(said.matches("rank 0 has not ended").count(), 1, "{said}");
    let (output, _) = leyden("2", "if [ $RANK = 1 ]; then kill -KILL $$; fi");
    assert_eq!(output.status.code(), Some(102));
    assert!(text(&output.stderr).contains("rank 1 was killed by SIGKILL"));
}

#[test]
fn lines_of_ranks_that_print_at_once_are_whole_and_in_order() {
    const LINES: usize = 10_000;
    let (output, _) =
        leyden("4", &format!("seq -f \"line %.0f of rank $RANK\" 1 {LINES} >&2; printf 'no end' >&2"));
    assert!(output.status.success());
    let said = text(&output.stderr);
    for rank in 0..4 {
        let name = if rank == 0 { String::new() } else { format!("[rank {rank}] ") };
        let end = format!(" of rank {rank}");
        let lines: Vec<&str> = said.lines().filter(|line| line.ends_with(&end)).collect();
        assert_eq!(lines.len(), LINES);
        for (number, line) in (1..).zip(lines) {
            assert_eq!(line, format!("{name}line {number}{end}"));
        }
        assert!(said.lines().any(|line| line == format!("{name}no end")), "{rank}");
    }
    assert_eq!(said.lines().count(), 4 * (LINES + 1));
}

#[test]
fn real_ranks_find_each_other() {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().unwrap().parent().unwrap().join("examples/rank_of_a_launcher");
    let mut command = Command::new(env!("CARGO_BIN_EXE_leyden"));
    let output = command.args(["run", "-n", "3", "--"]).arg(program).output().unwrap();
    assert_eq!(text(&output.stdout), "3 ranks, sums [6, 6, 6]\n", "{output:?}");
}

#[test]
fn a_signal_reaches_all_ranks() {
    let script = "trap 'echo stopped $RANK; exit 3' TERM; echo ready >&2; while :; do sleep 0.05; done";
    let mut command = Command::new(env!("CARGO_BIN_EXE_leyden"));
    command.args(["run", "-n", "2", "--", "sh", "-c", script]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    std::thread::sleep(Duration::from_millis(1000));
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let said = text(&output.stdout);
    assert!(
        said.contains("stopped 0") && said.contains("[rank 1] stopped 1"),
        "{said} {}",
        text(&output.stderr)
    );
    assert_eq!(output.status.code(), Some(3));
}

#[test]
fn a_program_that_is_not_there_is_an_error() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leyden"));
    let output = command.args(["run", "-n", "2", "--", "no-such-program"]).output().unwrap();
    let said = text(&output.stderr);
    assert!(said.contains("P0113") && said.contains("no-such-program"), "{said}");
}

fn doctor(variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leyden"));
    command.env_clear().arg("doctor").envs(variables.iter().copied()).output().unwrap()
}

#[test]
fn the_doctor_says_what_a_launch_would_find() {
    let output = doctor(&[]);
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}");
    for row in ["launcher  none", "transport ", "token ", "patience ", "cores ", "open files ", "memory "] {
        assert!(said.lines().any(|line| line.starts_with(row)), "{row:?} is not in {said}");
    }
    let several = [("RANK", "1"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2")];
    let said = text(&doctor(&several).stdout);
    assert!(
        said.contains("torchrun") && said.contains("tcp, between hosts") && said.contains("and needed"),
        "{said}"
    );
    let token = [&several[..], &[("LEYDEN_TOKEN", "secret"), ("LEYDEN_JOIN_TIMEOUT", "7")]].concat();
    let said = text(&doctor(&token).stdout);
    assert!(said.contains("set") && said.contains("7 s") && !said.contains("secret"), "{said}");
}

#[test]
fn the_doctor_says_what_can_be_said_where_the_launcher_contradicts_itself() {
    let output = doctor(&[("RANK", "4"), ("WORLD_SIZE", "4")]);
    assert_eq!(output.status.code(), Some(96));
    assert!(
        text(&output.stdout).contains("open files") && text(&output.stderr).contains("D0303"),
        "{output:?}"
    );
}
