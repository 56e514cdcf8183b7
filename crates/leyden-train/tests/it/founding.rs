//! The trainings of `examples/founding`, from outside: what they say, how they end, and that nothing is left of them.

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::support::quick_dir;

/// Far beyond anything that works.
const LONG: &str = "60";
/// What ends a little later than its program.
const LEAVING: Duration = Duration::from_secs(5);

/// Runs an example, killed after a minute, and waits until none of its processes is left.
fn run(name: &str, argument: &str) -> Output {
    let root = quick_dir();
    let examples = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("examples");
    let program = examples.join(name);
    assert!(program.is_file(), "{} is built by `cargo test`", program.display());
    let mark = format!("founding-{}-{name}-{argument}.", std::process::id());
    let output = Command::new("timeout")
        .args(["-s", "KILL", LONG])
        .arg(program)
        .arg(argument)
        .env("LEYDEN_TEST", &mark)
        .env("TMPDIR", root.path())
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let ended = Instant::now();
    loop {
        let left: Vec<_> = std::fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter(|entry| {
                let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
                environment.windows(mark.len()).any(|part| part == mark.as_bytes())
            })
            .map(|entry| std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default())
            .collect();
        if left.is_empty() {
            return output;
        }
        assert!(ended.elapsed() < LEAVING, "{name} {argument} leaves {left:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Fails unless the program has ended like this, printed this, and said all these words.
#[track_caller]
fn expect(output: &Output, code: i32, stdout: &str, words: &[&str]) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{out}\n{err}");
    assert_eq!(out, stdout, "{err}");
    for word in words {
        assert!(err.contains(word), "{word:?} is not in {err}");
    }
    err
}

#[test]
fn a_second_trainer_does_not_freeze_after_success_or_failure() {
    expect(&run("second_trainer", ""), 0, "20 trainers, 30 trainings, 120 steps\n", &[]);
}

#[test]
fn a_data_set_that_one_rank_makes_is_an_error_with_both_places() {
    let words = [
        "error[D0103]",
        "barrier(\"make_dataset\") at",
        "one_sided_dataset.rs:17",
        "\"the start of `fit`\"",
        "one_sided_dataset.rs:32",
        "[rank 1] Error: error[D0103]",
    ];
    expect(&run("one_sided_dataset", ""), 1, "", &words);
}

#[test]
fn workers_on_every_rank_of_an_unguarded_program_leave_before_main() {
    let output = run("workers_on_every_rank", "");
    let err = expect(&output, 0, "16 steps of 2 ranks with 2 workers each\n", &[]);
    assert_eq!(err.matches("main runs").count(), 2, "{err}");
}

#[test]
fn a_data_module_is_torn_down_on_every_path_and_its_program_ends_with_it() {
    expect(
        &run("guarded_data_module", "well"),
        0,
        "6 steps\n",
        &["teardown: finished", "[rank 1] teardown: finished"],
    );
    for how in ["error", "panic"] {
        let err =
            expect(&run("guarded_data_module", how), 1, "", &["a row is torn", "[rank 1] on_exception: "]);
        for words in ["on_exception: ", "teardown: failed"] {
            assert_eq!(err.matches(words).count(), 2, "{how}: once on each rank: {err}");
        }
    }
    let words = ["on_exception: rank 1 died", "teardown: failed", "killed by SIGKILL"];
    let err = expect(&run("guarded_data_module", "kill"), 1, "", &words);
    assert_eq!(err.matches("teardown: ").count(), 1, "{err}");
}
