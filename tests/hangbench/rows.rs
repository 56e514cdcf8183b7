//! The rows: what each program must end in.

use std::fmt::Debug;
use std::fs;
use std::time::Duration;

use leyden_train::Checkpoint;

use crate::bench::{Program, Seen, names_a_place};

/// A program, and its contract.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// What Lightning does there: from the design's measurements and the reading of its source.
    pub(crate) today: &'static str,
    pub(crate) program: &'static str,
    pub(crate) ranks: usize,
    /// What is done to it while it runs.
    pub(crate) act: fn(&Program),
    /// What there is instead of an error, in the table.
    pub(crate) instead: &'static str,
    exit: Exit,
    /// The ranks whose `fit` fails, and the code.
    told: &'static [(usize, &'static str)],
    /// What the error says on each of them.
    says: &'static [&'static str],
    /// What is said, by whomever.
    prints: &'static [&'static str],
    /// Seconds from the fault to the last rank that is told.
    within: f64,
    check: fn(&Seen) -> Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Exit {
    Code(i32),
    Signal(i32),
}

impl Row {
    /// What of the contract was broken.
    pub(crate) fn judge(&self, seen: &Seen) -> Vec<String> {
        use std::os::unix::process::ExitStatusExt as _;
        let mut wrong = Vec::new();
        let exit = match (seen.status.code(), seen.status.signal()) {
            (Some(code), _) => Exit::Code(code),
            (None, signal) => Exit::Signal(signal.unwrap_or(0)),
        };
        if exit != self.exit {
            wrong.push(format!("it ends with {exit:?} instead of {:?}", self.exit));
        }
        let told: Vec<(usize, String)> = seen.told().into_iter().map(|told| (told.rank, told.code)).collect();
        let expected: Vec<(usize, String)> =
            self.told.iter().map(|(rank, code)| (*rank, (*code).to_owned())).collect();
        if told != expected {
            wrong.push(format!("ranks are told {told:?} instead of {expected:?}"));
        }
        for (rank, code) in &told {
            let text = seen.error_on(*rank);
            for words in self.says {
                // How wide the columns are depends on what else is told.
                if !one_space(&text).contains(&one_space(words)) {
                    wrong.push(format!("rank {rank} is not told {words:?}"));
                }
            }
            if !text.contains("rank") {
                wrong.push(format!("rank {rank} is not told of which rank"));
            }
            if !names_a_place(&text) {
                wrong.push(format!("rank {rank} is not told where"));
            }
            // Of a user's own error the user knows more than we do.
            if !text.contains("fix: ") && !["T0001", "T0301"].contains(&code.as_str()) {
                wrong.push(format!("rank {rank} is not told what to do"));
            }
        }
        let all = seen.lines.join("\n");
        for words in self.prints.iter().filter(|words| !all.contains(**words)) {
            wrong.push(format!("nobody says {words:?}"));
        }
        if let Some(latency) = seen.latency().filter(|latency| *latency > self.within) {
            wrong.push(format!("it took {latency:.3} s, and may take {} s", self.within));
        }
        if !seen.left.is_empty() {
            wrong.push(format!("left behind: {}", seen.left.join(", ")));
        }
        wrong.extend((self.check)(seen));
        wrong
    }

    const fn new(name: &'static str, program: &'static str, today: &'static str) -> Self {
        Self {
            name,
            today,
            program,
            ranks: 2,
            act: |_| (),
            instead: "",
            exit: Exit::Code(0),
            told: &[],
            says: &[],
            prints: &[],
            // Ten times what is promised: the machine may be busy.
            within: 1.0,
            check: |_| Vec::new(),
        }
    }

    const fn ranks(self, ranks: usize) -> Self {
        Self { ranks, ..self }
    }

    /// It goes well, which is said like this.
    const fn goes_on(self, instead: &'static str) -> Self {
        Self { instead, ..self }
    }

    const fn exits(self, code: i32) -> Self {
        Self { exit: Exit::Code(code), ..self }
    }

    const fn dies_of(self, signal: i32) -> Self {
        Self { exit: Exit::Signal(signal), ..self }
    }

    const fn tells(self, told: &'static [(usize, &'static str)]) -> Self {
        Self { told, ..self }
    }

    const fn says(self, says: &'static [&'static str]) -> Self {
        Self { says, ..self }
    }

    const fn prints(self, prints: &'static [&'static str]) -> Self {
        Self { prints, ..self }
    }

    const fn within(self, within: f64) -> Self {
        Self { within, ..self }
    }

    const fn act(self, act: fn(&Program)) -> Self {
        Self { act, ..self }
    }

    const fn check(self, check: fn(&Seen) -> Vec<String>) -> Self {
        Self { check, ..self }
    }
}

pub(crate) fn all() -> Vec<Row> {
    [founding(), models(), deaths(), stuck(), agreements(), data(), files_and_signals(), false_alarms()]
        .into_iter()
        .flatten()
        .collect()
}

/// What Leyden was founded on.
fn founding() -> Vec<Row> {
    const FREEZE: &str = "freeze at the second Trainer";
    const BARRIER: &str = "silent hang, 30 min";
    const ORPHAN: &str = "hang at exit; orphans";
    vec![
        Row::new("1,000 Trainers", "trainers", FREEZE).goes_on("1,000 made, nothing held").check(done),
        Row::new("100 fits, half fail, inline", "many inline", FREEZE).goes_on("nothing held").check(done),
        Row::new("100 fits, half fail, threads", "many threads", FREEZE).goes_on("nothing held").check(done),
        Row::new("24 fits, half fail, processes", "many processes", FREEZE)
            .goes_on("nothing held")
            .check(done),
        Row::new("barrier on rank 0 only", "barrier", BARRIER)
            .tells(&[(0, "D0103"), (1, "D0103")])
            .says(&["barrier(\"data is there\") at", "programs.rs:", "on_rank_zero"])
            .exits(100),
        Row::new("data set made on one rank", "dataset", BARRIER)
            .tells(&[(0, "D0405"), (1, "D0405")])
            .says(&["rank 0", "rank 1", "6", "5"])
            .exits(96),
        Row::new("loader is none on rank 1", "no-loader", BARRIER)
            .tells(&[(0, "C0104"), (1, "C0104")])
            .says(&["train_loader", "rank"])
            .exits(96),
        Row::new("fit on rank 0, test on rank 1", "elsewhere", BARRIER)
            .tells(&[(0, "D0401"), (1, "D0401")])
            .says(&["rank 0  `fit` at", "rank 1  `test` at", "programs.rs:"])
            .exits(96),
        Row::new("workers on every rank, unguarded", "workers", "failed bind, orphans; 11 s, no cause")
            .goes_on("trains")
            .check(trained),
        Row::new("the same 40 times, two at once", "workers", "port conflicts")
            .goes_on("all train")
            .check(|_| again(20)),
        Row::new("guarded: a rank's error", "guarded error", ORPHAN)
            .tells(&[(0, "T0001"), (1, "T0001")])
            .says(&["the row of the table is torn"])
            .exits(100)
            .check(cleaned_up_on_both),
        Row::new("guarded: a rank's panic", "guarded panic", ORPHAN)
            .tells(&[(0, "T0301"), (1, "T0301")])
            .says(&["the row of the table is torn"])
            .exits(100)
            .check(cleaned_up_on_both),
        Row::new("guarded: SIGINT", "guarded waits", ORPHAN)
            .act(|program| when_ready(program, Some(program.pid()), libc::SIGINT))
            .goes_on("stops")
            .exits(130)
            .check(cleaned_up_on_both),
        Row::new("guarded: SIGTERM", "guarded waits", ORPHAN)
            .act(|program| when_ready(program, Some(program.pid()), libc::SIGTERM))
            .goes_on("stops, saved")
            .exits(75)
            .check(cleaned_up_on_both),
        Row::new("guarded: rank 1 SIGKILLed", "guarded waits", ORPHAN)
            .act(|program| {
                let _ = program.wait_for("bench: ready", 1);
                program.signal(program.pid_of(1), libc::SIGKILL);
            })
            .tells(&[(0, "D0105")])
            .says(&["rank 1 died", "killed by SIGKILL"])
            .exits(102)
            .check(|seen| cleaned_up(seen, &[0])),
        Row::new("guarded: rank 0 SIGKILLed", "guarded waits", ORPHAN)
            .act(|program| when_ready(program, Some(program.pid()), libc::SIGKILL))
            .tells(&[(1, "D0105")])
            .says(&["rank 0 died", "killed by SIGKILL"])
            .dies_of(libc::SIGKILL)
            .check(|seen| cleaned_up(seen, &[1])),
    ]
}

/// Ranks that do not train the same.
fn models() -> Vec<Row> {
    let other = |name, program, today, says| {
        Row::new(name, program, today).tells(&[(0, "D0401"), (1, "D0401")]).says(says).exits(96)
    };
    vec![
        other(
            "parameter shape",
            "other shape",
            "\"Connection closed … GLHF!\", 9 s",
            &["parameter `weight`", "F32 [3], trained on rank 0; F32 [4], trained on rank 1"],
        ),
        other(
            "parameter count",
            "other count",
            "counts, no names",
            &["parameter `scale`", "missing on rank 0; F32 [3], trained on rank 1"],
        ),
        other(
            "parameter type",
            "other dtype",
            "not compared; garbage",
            &["parameter `bias`", "F32 [1], trained on rank 0; F64 [1], trained on rank 1"],
        ),
        other(
            "parameter order",
            "other order",
            "not compared; garbage",
            &["another order", "parameter `weight` on rank 0; parameter `bias` on rank 1"],
        ),
        other(
            "frozen on one rank",
            "other frozen",
            "hang in a bucket, 30 min",
            &["parameter `bias`", "trained on rank 0; F32 [1], not trained on rank 1"],
        ),
        Row::new("other first weights", "weights", "rank 0's are broadcast")
            .goes_on("rank 0's, on both")
            .check(trained),
        Row::new("parameter without gradient on one", "unused error", "hang, 30 min")
            .tells(&[(0, "D0402"), (1, "D0402")])
            .says(&["without one on rank 1", "bias", "find_unused_parameters"])
            .exits(100),
        Row::new("the same, allowed", "unused found", "walks the graph each step")
            .goes_on("zeros count")
            .check(trained),
        other(
            "validation on one rank",
            "validates",
            "hang, 30 min",
            &["limit_val_batches", "on rank 0", "on rank 1"],
        ),
    ]
}

/// Ranks that end.
fn deaths() -> Vec<Row> {
    const OBSERVER: &str = "all SIGKILLed after ≤ 5 s, no hook, no reason";
    const ZERO: &str = "others wait, 30 min";
    let error = |name, program, code: &'static [(usize, &'static str)]| {
        Row::new(name, program, OBSERVER).tells(code).says(&["column 7 is not there", "rank"]).exits(100)
    };
    const ERROR: &[(usize, &str)] = &[(0, "T0001"), (1, "T0001")];
    const PANIC: &[(usize, &str)] = &[(0, "T0301"), (1, "T0301")];
    let killed =
        |name, program, says| Row::new(name, program, OBSERVER).tells(&[(0, "D0105")]).says(says).exits(102);
    let zero = |name, program, signal, says| {
        Row::new(name, program, ZERO).tells(&[(1, "D0105")]).says(says).dies_of(signal)
    };
    vec![
        error("rank 1 fails in a step", "fails 1 error step", ERROR),
        error("rank 0 fails in a step", "fails 0 error step", ERROR),
        error("rank 1 fails in a callback", "fails 1 error callback", ERROR),
        error("rank 0 fails in a callback", "fails 0 error callback", ERROR),
        error("rank 1 fails in validation", "fails 1 error validation", ERROR),
        error("rank 0 fails in validation", "fails 0 error validation", ERROR),
        error("rank 1 panics in a step", "fails 1 panic step", PANIC),
        error("rank 0 panics in a step", "fails 0 panic step", PANIC),
        error("rank 1 panics in a callback", "fails 1 panic callback", PANIC),
        error("rank 0 panics in a callback", "fails 0 panic callback", PANIC),
        error("rank 1 panics in validation", "fails 1 panic validation", PANIC),
        error("rank 0 panics in validation", "fails 0 panic validation", PANIC),
        killed("rank 1 aborts in a step", "fails 1 abort step", &["killed by SIGABRT", "training_step"]),
        killed("rank 1 aborts in a callback", "fails 1 abort callback", &["killed by SIGABRT"]),
        killed(
            "rank 1 aborts in validation",
            "fails 1 abort validation",
            &["killed by SIGABRT", "validation_step"],
        ),
        killed("rank 1 SIGKILLed in a step", "fails 1 kill step", &["killed by SIGKILL", "training_step"]),
        killed("rank 1 SIGKILLed in a callback", "fails 1 kill callback", &["killed by SIGKILL"]),
        killed(
            "rank 1 SIGKILLed in validation",
            "fails 1 kill validation",
            &["killed by SIGKILL", "validation_step"],
        ),
        zero(
            "rank 0 aborts in a step",
            "fails 0 abort step",
            libc::SIGABRT,
            &["killed by SIGABRT", "training_step"],
        ),
        zero(
            "rank 0 SIGKILLed in a step",
            "fails 0 kill step",
            libc::SIGKILL,
            &["killed by SIGKILL", "training_step"],
        ),
        zero(
            "rank 0 SIGKILLed in a callback",
            "fails 0 kill callback",
            libc::SIGKILL,
            &["killed by SIGKILL"],
        ),
        zero(
            "rank 0 SIGKILLed in validation",
            "fails 0 kill validation",
            libc::SIGKILL,
            &["validation_step"],
        ),
        Row::new("of four ranks one SIGKILLed", "fails 2 kill step", OBSERVER)
            .ranks(4)
            .tells(&[(0, "D0105"), (1, "D0105"), (3, "D0105")])
            .says(&["rank 2 died", "killed by SIGKILL"])
            .within(3.0)
            .exits(102),
        Row::new("rank 1 exits 0 in a step", "fails 1 exit step", "no failure: hang, 30 min")
            .tells(&[(0, "D0104")])
            .says(&["rank 1 has left", "exited with code 0", "`training_step` at", "programs.rs:"])
            .exits(100),
        Row::new("rank 0 exits 0 in a step", "fails 0 exit step", "no failure: hang, 30 min")
            .tells(&[(1, "D0104")])
            .says(&["rank 0 has left", "exited with code 0", "`training_step` at", "programs.rs:"])
            .exits(102),
        Row::new("rank 1 returns before fit", "returns", "no failure: hang, 30 min")
            .tells(&[(0, "D0104")])
            .says(&["rank 1 has left", "exited with code 0"])
            .exits(100),
        Row::new("prepare_data fails on rank 0", "prepares error", "others wait, 10,000 days")
            .tells(&[(0, "T0001"), (1, "T0001")])
            .says(&["the server says 404", "prepare_data"])
            .exits(100),
        Row::new("prepare_data panics on rank 0", "prepares panic", "others wait, 10,000 days")
            .tells(&[(0, "T0301"), (1, "T0301")])
            .says(&["the server says 404", "prepare_data"])
            .exits(100),
        Row::new("rank 0 aborts in prepare_data", "prepares abort", "others wait, 10,000 days")
            .tells(&[(1, "D0105")])
            .says(&["killed by SIGABRT", "on_rank_zero"])
            .dies_of(libc::SIGABRT),
        Row::new("teardown of rank 1 is stuck", "teardown", "hang at exit")
            .prints(&["error[T0307]", "`DataModule::teardown` did not end within 1s"])
            .goes_on("named after its limit; ended")
            .exits(102),
        Row::new("the supervisor is SIGKILLed", "guarded waits", "orphans (rank 0 is the launcher)")
            .act(|program| {
                let _ = program.wait_for("bench: ready", 1);
                program.signal(program.pid_named("leyden-supervis"), libc::SIGKILL);
            })
            .tells(&[(0, "D0110")])
            .says(&["the process that watches the ranks is gone"])
            .exits(102)
            .check(|seen| cleaned_up(seen, &[0])),
    ]
}

/// Ranks that live and do not come. Their budget is a second.
fn stuck() -> Vec<Row> {
    let late = |name, program, says| {
        Row::new(name, program, "silent hang, 30 min")
            .tells(&[(0, "D0107")])
            .says(says)
            .within(4.0)
            .exits(100)
    };
    vec![
        late("rank 1 sleeps", "stuck 1 sleeps", &["rank 1 does not come", "training_step", "sleep"]),
        late("rank 1 loops", "stuck 1 loops", &["rank 1 does not come", "training_step", "running"]),
        late(
            "rank 1 waits for its own lock",
            "stuck 1 waits",
            &["rank 1 does not come", "training_step", "futex"],
        ),
        Row::new("rank 0 loops", "stuck 0 loops", "silent hang, 30 min")
            .tells(&[(1, "D0107")])
            .says(&["rank 0 does not come", "training_step"])
            .within(4.0)
            .dies_of(libc::SIGKILL),
        Row::new("rank 1 is stopped, and goes on", "stuck 1 stops", "silent hang, 30 min")
            .act(|program| {
                let _ = program.wait_for("stopped by a signal", 1);
                program.signal(program.pid_of(1), libc::SIGCONT);
            })
            .prints(&["rank 0 waits for rank 1", "stopped by a signal", "its limit stands still"])
            .goes_on("told after 5 s; goes on")
            .check(trained),
    ]
}

/// What one rank decides, all do; or it is an error.
fn agreements() -> Vec<Row> {
    vec![
        Row::new("checkpoint asked on rank 1 alone", "checkpoint", "deadlock (#20187)")
            .tells(&[(0, "D0404"), (1, "D0404")])
            .says(&["asked on rank", "rank 0 writes the files"])
            .exits(100),
        Row::new("early stop on rank 1", "early-stop", "hang, 30 min").goes_on("both stop").check(|seen| {
            let mut wrong = trained(seen);
            wrong.extend(on_each(seen, "done ", &["step 8, epoch 1", "(on rank 1)"]));
            wrong
        }),
        Row::new("a batch skipped on rank 1", "skips", "hang, 30 min")
            .goes_on("weights agree")
            .check(trained),
        Row::new("metric logged on rank 0 only", "logs one", "hang, or a silent mix")
            .tells(&[(0, "D0403"), (1, "D0403")])
            .says(&["only on rank 0", "train/accuracy", "only on rank 1"])
            .exits(100),
        Row::new("other metric names", "logs keys", "hang, or a silent mix")
            .tells(&[(0, "D0403"), (1, "D0403")])
            .says(&["train/accuracy-0", "train/accuracy-1"])
            .exits(100),
        Row::new("step value on rank 1 only", "logs steps", "hang, or a silent mix")
            .tells(&[(0, "D0403"), (1, "D0403")])
            .says(&["train/gap", "rank 1"])
            .exits(100),
        Row::new("evaluation of rank 1 logs nothing", "silent", "hang, or a silent mix")
            .tells(&[(0, "D0403"), (1, "D0403")])
            .says(&["only on rank 0", "val/loss", "only on rank 1", "nothing"])
            .exits(100),
        Row::new("validation by the clock", "timed", "hang, 30 min").goes_on("both validate").check(trained),
    ]
}

/// Batches.
fn data() -> Vec<Row> {
    vec![
        Row::new("uneven batches", "uneven error", "hang at the end, 30 min")
            .tells(&[(0, "D0405"), (1, "D0405")])
            .says(&["rank 0  7", "rank 1  5", "Uneven::Drop"])
            .exits(96),
        Row::new("uneven batches, dropped", "uneven drop", "hang at the end, 30 min")
            .goes_on("10 steps")
            .check(|seen| {
                let mut wrong = trained(seen);
                wrong.extend(on_each(seen, "done ", &["step 10,"]));
                wrong
            }),
        Row::new("uneven batches, joined", "uneven join", "Join, by hand").goes_on("14 steps").check(
            |seen| {
                let mut wrong = trained(seen);
                wrong.extend(on_each(seen, "done ", &["step 14,"]));
                wrong
            },
        ),
        Row::new("three samples, four ranks", "empty-shard", "repeats samples")
            .ranks(4)
            .tells(&[(0, "L0103"), (1, "L0103"), (2, "L0103"), (3, "L0102")])
            .says(&["train_loader"])
            .within(3.0)
            .exits(96),
        Row::new("loader ends early on rank 1", "ends-early", "hang, 30 min")
            .tells(&[(0, "T0304"), (1, "T0304")])
            .says(&["it promised 6 batches, and gave 4"])
            .exits(100),
        Row::new("a sample kills a worker", "worker dies", "hang, or no cause")
            .tells(&[(0, "L0905"), (1, "L0905")])
            .says(&["37"])
            .within(5.0)
            .exits(102),
        Row::new("a sample blocks a worker", "worker blocks", "others wait, 30 min")
            .tells(&[(0, "L0903"), (1, "L0903")])
            .says(&["sample 37", "the training loader"])
            .within(20.0)
            .exits(102),
    ]
}

/// Checkpoints, and the signals that make one.
fn files_and_signals() -> Vec<Row> {
    const LOOP: &str = "handler runs a collective (#20806)";
    vec![
        Row::new("disk full on rank 0", "disk", "others wait in a barrier, 30 min")
            .tells(&[(0, "K0101"), (1, "K0101")])
            .says(&["checkpoints/epoch=1-step=12.safetensors", "rank   0", "the previous file"])
            .within(3.0)
            .exits(100)
            .check(|seen| match Checkpoint::read(&last(seen)) {
                Ok(_) => Vec::new(),
                Err(error) => vec![format!("the earlier checkpoint: {error}")],
            }),
        Row::new("SIGTERM to rank 0", "long", LOOP)
            .act(|program| when_ready(program, Some(program.pid()), libc::SIGTERM))
            .goes_on("both stop, saved; resumed bits equal")
            .exits(75)
            .check(stopped_and_resumed),
        Row::new("SIGTERM to rank 1", "long", "not passed on")
            .act(|program| {
                let _ = program.wait_for("bench: ready", 1);
                program.signal(program.pid_of(1), libc::SIGTERM);
            })
            .goes_on("both stop, saved; resumed bits equal")
            .exits(75)
            .check(stopped_and_resumed),
        Row::new("SIGTERM to all processes", "long", LOOP)
            .act(|program| {
                let _ = program.wait_for("bench: ready", 1);
                // Rank 1 first, or last: then it has its own before, or after, the one that rank 0's passes on.
                program.signal(program.pid_of(1), libc::SIGTERM);
                program.signal(program.pid_named("leyden-supervis"), libc::SIGTERM);
                let _ = program.wait_for("stopping at the end of this step", 1);
                program.signal(Some(program.pid()), libc::SIGTERM);
            })
            .goes_on("both stop, saved; resumed bits equal")
            .exits(75)
            .check(stopped_and_resumed),
        Row::new("the same, rank 0 first", "long", LOOP)
            .act(|program| {
                let _ = program.wait_for("bench: ready", 1);
                program.signal(Some(program.pid()), libc::SIGTERM);
                let _ = program.wait_for("[rank 1] leyden: stopping at the end of this step", 1);
                program.signal(program.pid_of(1), libc::SIGTERM);
            })
            .goes_on("both stop, saved; resumed bits equal")
            .exits(75)
            .check(stopped_and_resumed),
        Row::new("SIGINT", "long", "children SIGKILLed, exit 1")
            .act(|program| when_ready(program, Some(program.pid()), libc::SIGINT))
            .goes_on("both stop, saved; resumed bits equal")
            .exits(130)
            .check(stopped_and_resumed),
        Row::new("SIGINT twice in a deaf step", "deaf", "children SIGKILLed")
            .act(|program| {
                let _ = program.wait_for("bench: ready", 2);
                program.signal(Some(program.pid()), libc::SIGINT);
                std::thread::sleep(Duration::from_millis(300));
                program.signal(Some(program.pid()), libc::SIGINT);
            })
            .goes_on("ends at once")
            .exits(130),
    ]
}

/// What must not fire.
fn false_alarms() -> Vec<Row> {
    vec![
        Row::new("checkpoint slower than the limit", "slow-checkpoint", "spurious timeout")
            .goes_on("no alarm")
            .check(trained),
        Row::new("a first step of 3 s", "slow-step", "none").goes_on("no alarm").check(trained),
        Row::new("eight ranks", "plain", "none").ranks(8).goes_on("no alarm").check(trained),
        Row::new("one rank", "plain", "special-cased").ranks(1).goes_on("trains").check(trained),
    ]
}

fn when_ready(program: &Program, pid: Option<i32>, signal: i32) {
    let _ = program.wait_for("bench: ready", 1);
    program.signal(pid, signal);
}

fn equal<T: PartialEq + Debug>(what: &str, found: T, expected: T) -> Vec<String> {
    if found == expected { Vec::new() } else { vec![format!("{what}: {found:?} instead of {expected:?}")] }
}

fn done(seen: &Seen) -> Vec<String> {
    equal("ranks that have said `done`", seen.said("done ").is_empty(), false)
}

/// All ranks have done the same: steps, epochs, end, weights.
fn trained(seen: &Seen) -> Vec<String> {
    let done = seen.said("done ");
    let first = done.first().map(|(_, what)| what.clone()).unwrap_or_default();
    let mut wrong = equal("ranks that have trained", done.len(), seen.said("begins").len().max(1));
    wrong.extend(done.iter().flat_map(|(rank, what)| equal(&format!("rank {rank}"), what, &first)));
    wrong
}

fn on_each(seen: &Seen, word: &str, words: &[&str]) -> Vec<String> {
    let lacks = |(rank, what): (usize, String)| {
        let missing = words.iter().filter(move |word| !what.contains(**word)).copied().collect::<Vec<_>>();
        missing.into_iter().map(move |word| format!("rank {rank} does not say {word:?}")).collect::<Vec<_>>()
    };
    seen.said(word).into_iter().flat_map(lacks).collect()
}

fn cleaned_up_on_both(seen: &Seen) -> Vec<String> {
    cleaned_up(seen, &[0, 1])
}

/// `on_exception`, then `teardown`, once each, on these ranks and no other.
fn cleaned_up(seen: &Seen, ranks: &[usize]) -> Vec<String> {
    let mut wrong = Vec::new();
    for who in ["data", "model"] {
        for rank in 0..2 {
            let stamps = seen.stamps().into_iter().filter(|stamp| stamp.rank == rank);
            let said: Vec<String> = stamps
                .filter_map(|stamp| Some(stamp.what.strip_prefix(&format!("{who} "))?.to_owned()))
                .collect();
            let fine = match ranks.contains(&rank) {
                true => said.len() == 2 && said[0] == "on_exception" && said[1].starts_with("teardown "),
                false => said.is_empty(),
            };
            if !fine {
                wrong.push(format!("the {who} on rank {rank}: {said:?}"));
            }
        }
    }
    wrong
}

/// The row's program so many times, two at once, in which nothing else happens.
fn again(times: usize) -> Vec<String> {
    let mut wrong = Vec::new();
    for _ in 0..times {
        let [first, second] = [0, 1].map(|_| Program::start("workers", 2));
        for program in [first, second] {
            let seen = program.end();
            if !seen.status.success() || !seen.left.is_empty() || !trained(&seen).is_empty() {
                wrong.push(format!("{:?}, {:?}\n{}", seen.status, seen.left, seen.text()));
            }
        }
    }
    wrong
}

/// The run's newest checkpoint.
fn last(seen: &Seen) -> std::path::PathBuf {
    let runs = seen.folder().join("runs/run");
    let version = fs::read_dir(&runs).into_iter().flatten().flatten().next().map(|entry| entry.path());
    version.unwrap_or(runs).join("checkpoints/last.safetensors")
}

/// Both ranks have stopped at one step, and the run goes on from there to the bits of one that was never stopped.
fn stopped_and_resumed(seen: &Seen) -> Vec<String> {
    let mut wrong = trained(seen);
    wrong.extend(on_each(seen, "done ", &["interrupted by SIG"]));
    let path = last(seen);
    if !path.is_file() {
        wrong.push(format!("there is no {}", path.display()));
        return wrong;
    }
    let resumed = Program::start(&format!("whole {}", path.display()), 2).end();
    let whole = Program::start("whole", 2).end();
    wrong.extend(equal("the resumed run", resumed.said("done "), whole.said("done ")));
    wrong.extend(equal("ranks of the resumed run", resumed.said("done ").len(), 2));
    wrong
}

/// The same with one space for several.
fn one_space(text: &str) -> String {
    text.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}
