//! `leyden run`: ranks of any program, watched.

use std::ffi::OsString;
use std::io::{ErrorKind, IsTerminal as _, Read, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Args;
use leyden_comm::launch;
use leyden_process::guarded::Guarded;
use leyden_process::lines::{self, Lines, say};
use leyden_process::signal::{Listener, Signal};
use leyden_process::supervise::Cause;
use leyden_process::{Result, exit};

#[derive(Args)]
pub(crate) struct Run {
    /// How many ranks
    #[arg(short = 'n', long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    ranks: u16,
    /// Seconds that the other ranks have to end by themselves once one has failed
    #[arg(long, default_value_t = 5)]
    grace: u64,
    /// The program and its arguments
    #[arg(trailing_var_arg = true, required = true, allow_hyphen_values = true)]
    program: Vec<OsString>,
}

struct Rank {
    number: u16,
    program: Guarded,
    ended: Option<ExitStatus>,
    /// What passes its lines on.
    forwards: Vec<JoinHandle<()>>,
}

impl Run {
    /// Runs until all have ended; gives the largest exit code of those that ended by themselves, as `srun` does.
    ///
    /// # Errors
    /// Those of [`Guarded::spawn`]; `D0206` if too few descriptors may be open.
    pub(crate) fn run(&self) -> Result<u8> {
        /// For itself, and for each rank: its guard's and its own pipes and ends.
        const DESCRIPTORS: [usize; 2] = [8, 6];
        let ranks = usize::from(self.ranks);
        launch::expect_descriptors(ranks, DESCRIPTORS[0] + DESCRIPTORS[1] * ranks)?;
        let signals = Listener::start();
        let born = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let run = format!("leyden-{}-{born}", std::process::id());
        let mut ranks = (0..self.ranks).map(|number| self.start(number, &run)).collect::<Result<Vec<_>>>()?;
        let mut passed_on = false;
        let mut failed: Option<Instant> = None;
        let mut worst = exit::OK;
        let mut killed = false;
        loop {
            for rank in ranks.iter_mut().filter(|rank| rank.ended.is_none()) {
                rank.ended = rank.program.wait(Duration::ZERO)?;
                let Some(status) = rank.ended.filter(|status| !status.success()) else { continue };
                say(&format!("rank {} {}", rank.number, words(rank.program.cause())));
                failed.get_or_insert_with(Instant::now);
                // Which of them was the first nobody knows: those that were waiting for it end as soon as it does.
                if !killed {
                    worst = worst.max(code(status));
                }
            }
            if ranks.iter().all(|rank| rank.ended.is_some()) {
                Self::await_last_lines(&ranks);
                return Ok(worst);
            }
            // A second one ends this process at once, and with it all ranks.
            if let Some(signal) = signals.received().filter(|_| !passed_on) {
                passed_on = true;
                ranks.iter_mut().for_each(|rank| rank.pass_on(signal));
            }
            let over = failed.is_some_and(|since| since.elapsed() >= Duration::from_secs(self.grace));
            if over && !std::mem::replace(&mut killed, over) {
                for rank in ranks.iter_mut().filter(|rank| rank.ended.is_none()) {
                    say(&format!(
                        "rank {} has not ended within {} s, and is killed",
                        rank.number, self.grace
                    ));
                    rank.program.kill();
                }
            }
            thread::sleep(LOOK);
        }
    }

    fn start(&self, number: u16, run: &str) -> Result<Rank> {
        let mut command = Command::new(&self.program[0]);
        command.args(&self.program[1..]);
        command.env("RANK", number.to_string()).env("WORLD_SIZE", self.ranks.to_string());
        command.env("LOCAL_RANK", number.to_string()).env("LOCAL_WORLD_SIZE", self.ranks.to_string());
        command.env("TORCHELASTIC_RUN_ID", run);
        // Rank 0 talks as the program would; the others' lines bear their numbers. Its stderr is a terminal where ours is, and
        // else a pipe too: others' lines would come between the pieces of its own.
        if number > 0 {
            command.stdin(Stdio::null()).stdout(Stdio::piped());
        }
        if number > 0 || !std::io::stderr().is_terminal() {
            command.stderr(Stdio::piped());
        }
        let mut program = Guarded::spawn(&mut command)?;
        let name = (number > 0).then(|| format!("rank {number}"));
        let stdout = program.stdout.take().map(|stdout| forward(name.clone(), stdout, std::io::stdout));
        let stderr = program.stderr.take().map(|stderr| forward(name, stderr, std::io::stderr));
        let forwards = stdout.into_iter().chain(stderr).collect();
        Ok(Rank { number, program, ended: None, forwards })
    }

    /// Something that a rank has started and that has left its group may hold its pipes: not for ever.
    fn await_last_lines(ranks: &[Rank]) {
        let began = Instant::now();
        let forwards = || ranks.iter().flat_map(|rank| &rank.forwards);
        while began.elapsed() < LAST_LINES && !forwards().all(JoinHandle::is_finished) {
            thread::sleep(LOOK);
        }
    }
}

impl Rank {
    fn pass_on(&mut self, signal: Signal) {
        if self.ended.is_none() {
            self.program.signal(signal);
        }
    }
}

/// Passes a rank's lines on, with its name in front if it has one, until it has closed them.
fn forward<W: Write + 'static>(
    name: Option<String>,
    mut from: impl Read + Send + 'static,
    to: fn() -> W,
) -> JoinHandle<()> {
    thread::spawn(move || {
        // Whoever listens may have gone; the rank must not be stopped by that.
        let pass_on = |line: &[u8]| drop(lines::pass_on(name.as_deref(), line, to()));
        let (mut lines, mut buffer) = (Lines::default(), vec![0; 64 << 10]);
        loop {
            match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => lines.push(&buffer[..count], pass_on),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        lines.finish().iter().for_each(|line| pass_on(line));
    })
}

fn words(cause: Cause) -> String {
    match cause {
        Cause::Exited(code) => format!("exited with code {code}"),
        Cause::Unknown => "ended".to_owned(),
        other => format!("was {other}"),
    }
}

fn code(status: ExitStatus) -> u8 {
    status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(exit::WORKER_DIED)
}

/// How long to wait for the last lines of ranks that have ended.
const LAST_LINES: Duration = Duration::from_secs(1);
/// How often to look whether a rank has ended.
const LOOK: Duration = Duration::from_millis(10);
