//! The process that starts the ranks of a program and watches all of them, rank 0 too, whose child it is. It is nobody's
//! rank, never reaches `main`, and outlives rank 0 by as long as it takes to end the others.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use leyden_process::signal::Signal;
use leyden_process::spawn::{Child, Parent, Received, SpawnOptions};
use leyden_process::supervise::{Cause, stop_all};
use leyden_process::watch::{Watched, readable};
use leyden_process::{Error, Result, exit, rank, tombstone};
use serde::{Deserialize, Serialize};

use super::logs::{Logs, refused};
use super::program::{HandedOver, Report, Word};
use crate::codes::{DIED, LAUNCH_START};
use crate::world::{State, World};

/// What it is to do.
#[derive(Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) grace: Duration,
    pub(super) logs: Logs,
}

/// Its life.
pub(super) fn supervise(order: Order, mut program: Parent) -> Result<()> {
    let mut fds = program.fds().into_iter();
    let (Some(memory), Some(zero)) = (fds.next(), fds.next()) else {
        return Err(Error::new(LAUNCH_START, "the supervisor has not got what it needs"));
    };
    let world = Arc::new(World::open(memory)?);
    let zero = Watched::from_fd(zero)?;
    tombstone::hold(Arc::clone(&world), |world| world.supervisor())?;
    let ranks = start(&world, &order)?;
    say(&program, Report::Started);
    Supervisor {
        world,
        order,
        program,
        zero: Zero::Runs,
        process: zero,
        ranks,
        deadline: None,
        announce: None,
        poison: None,
        signals: 0,
        failed: false,
    }
    .run();
    Ok(())
}

/// Starts all ranks but rank 0.
fn start(world: &World, order: &Order) -> Result<Vec<(usize, Child)>> {
    let ranks = (1..world.size()).map(|number| {
        let path = order.logs.of(number);
        let log = File::create(&path).map_err(|error| refused(&path, &error))?;
        let options = SpawnOptions {
            fds: vec![world.fd()],
            stdout: Some(log.as_fd()),
            ..SpawnOptions::named(format!("rank {number}"))
        };
        let failed = |error: Error| error.at("rank", number);
        let child = rank::start(&options).map_err(failed)?;
        let told = HandedOver { rank: number, logs: order.logs.folder.clone() };
        child.send(&postcard::to_allocvec(&told)?).map_err(failed)?;
        Ok((number, child))
    });
    ranks.collect()
}

struct Supervisor {
    world: Arc<World>,
    order: Order,
    program: Parent,
    zero: Zero,
    process: Watched,
    /// Those that have not ended.
    ranks: Vec<(usize, Child)>,
    /// When those that still run are ended.
    deadline: Option<Instant>,
    /// When to say so, if they still run then.
    announce: Option<(Instant, String)>,
    /// When to fail the world, and of what: those that wait for the one that died say it better, and come first.
    poison: Option<(Instant, Error)>,
    /// How many signals were passed on.
    signals: u32,
    /// Whether a rank has failed.
    failed: bool,
}

/// Where rank 0 is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Zero {
    Runs,
    /// It has been told to end, and has a moment to do so.
    Terminated,
    /// It waits in its exit for the others.
    Leaves,
    Ended,
}

impl Supervisor {
    fn run(mut self) {
        loop {
            self.wait();
            self.listen();
            self.look_at_ranks();
            self.look_at_zero();
            if self.ranks.is_empty() {
                match self.zero {
                    Zero::Leaves => break say(&self.program, Report::Over { failed: self.failed }),
                    Zero::Ended => break,
                    // It is the last one, and has nobody to wait for.
                    Zero::Runs | Zero::Terminated => {}
                }
            }
            let now = Instant::now();
            if let Some((_, line)) = self.announce.take_if(|(when, _)| *when <= now)
                && !(self.ranks.is_empty() && self.zero == Zero::Ended)
            {
                tell(&line);
            }
            if let Some((_, error)) = self.poison.take_if(|(when, _)| *when <= now) {
                self.world.poison(&error);
            }
            if self.deadline.is_some_and(|deadline| deadline <= now) {
                self.end_the_rest();
            }
        }
        self.clear_up();
    }

    /// Waits until something happens.
    fn wait(&self) {
        /// Something always wakes it, but for a kernel that has no pidfds.
        const LOOK: Duration = Duration::from_millis(500);
        let program = (self.zero != Zero::Ended).then(|| [self.program.as_fd(), self.process.as_fd()]);
        let ranks = self.ranks.iter().map(|(_, child)| child.pidfd().unwrap_or(child.control_fd()));
        let fds: Vec<BorrowedFd<'_>> = program.into_iter().flatten().chain(ranks).collect();
        let announce = self.announce.as_ref().map(|(when, _)| *when);
        let poison = self.poison.as_ref().map(|(when, _)| *when);
        let until = [self.deadline, announce, poison].into_iter().flatten().min();
        let left = until.map_or(LOOK, |until| until.saturating_duration_since(Instant::now()).min(LOOK));
        readable(&fds, left);
    }

    /// Takes what rank 0 says.
    fn listen(&mut self) {
        while self.zero != Zero::Ended {
            match self.program.recv(Duration::ZERO) {
                Ok(Received::Message(word)) => match postcard::from_bytes(&word) {
                    Ok(Word::Signal(number)) => self.pass_on(number),
                    Ok(Word::Leaving(code)) => {
                        self.zero = Zero::Leaves;
                        let code = code.unwrap_or(0);
                        self.world.tell_end(0, code == 0, &format!("exited with code {code}"));
                        self.begin_grace("rank 0 has ended".to_owned());
                    }
                    Err(_) => return,
                },
                Ok(Received::TimedOut) => return,
                Ok(Received::Closed) | Err(_) => return self.zero_has_ended(),
            }
        }
    }

    fn look_at_zero(&mut self) {
        if self.zero != Zero::Ended && self.process.ended().is_some() {
            // What it said as its last comes first.
            self.listen();
            self.zero_has_ended();
        }
    }

    /// It has ended without a word, or after its last.
    fn zero_has_ended(&mut self) {
        if self.zero == Zero::Ended {
            return;
        }
        let said = self.zero == Zero::Leaves;
        self.zero = Zero::Ended;
        if said {
            return;
        }
        let cause = self.process.wait(Duration::from_secs(1)).unwrap_or(Cause::Unknown);
        let words = in_words(cause);
        self.world.tell_end(0, false, &words);
        self.fail(0, &words, &[]);
        let signal = match cause {
            Cause::Signalled { number, .. } => Signal::from_number(number),
            Cause::Exited(code) => [Signal::Interrupt, Signal::Terminate]
                .into_iter()
                .find(|signal| i32::from(signal.exit_code()) == code),
            _ => None,
        };
        match signal {
            // It has not survived its first signal, and nobody has passed that one on; or this is the second.
            Some(signal) => {
                self.begin_grace(format!("rank 0 was ended by {}", signal.name()));
                let second = matches!(cause, Cause::Exited(_)) && self.signals > 0;
                if self.signals == 0 || second {
                    self.pass_on(signal.number());
                }
            }
            None => self.begin_grace(format!("rank 0 {words}")),
        }
    }

    fn look_at_ranks(&mut self) {
        let mut ended = Vec::new();
        self.ranks.retain_mut(|(number, child)| match child.try_ended() {
            Some(end) => {
                ended.push((*number, end));
                false
            }
            None => true,
        });
        for (number, end) in ended {
            self.rank_has_ended(number, end.cause, &end.stderr);
        }
    }

    fn rank_has_ended(&mut self, number: usize, cause: Cause, stderr: &[String]) {
        let clean = cause == Cause::Exited(exit::OK.into());
        let mut words = in_words(cause);
        let last = self.report(number, &words);
        for line in stderr {
            let _ = write!(words, "\n{line}");
        }
        self.world.tell_end(number, clean, &words);
        if !clean {
            self.fail(number, &in_words(cause), stderr);
            self.begin_grace(last);
        }
    }

    /// A rank has failed; so has the world.
    fn fail(&mut self, number: usize, words: &str, stderr: &[String]) {
        /// A rank that waits for it needs less; one that computes, or waits for others, learns of it by this.
        const BETTER_WORDS: Duration = Duration::from_millis(25);
        if !self.failed {
            self.failed = true;
            let error = Error::new(DIED, format!("rank {number} died")).at("cause", words);
            let error = if stderr.is_empty() { error } else { error.at("its stderr", stderr.join("\n")) };
            let error = error.hint(
                "its own words, above or in its log, say why; then start again from the last checkpoint",
            );
            self.poison = Some((Instant::now() + BETTER_WORDS, error));
        }
    }

    fn report(&self, number: usize, words: &str) -> String {
        format!("rank {number} {words} (what it printed: {})", self.order.logs.of(number).display())
    }

    /// From the first failure on, or the program's end, the others have so long.
    fn begin_grace(&mut self, what: String) {
        /// Those that wait for the one that is gone end by themselves, within this.
        const TOGETHER: Duration = Duration::from_millis(500);
        if self.deadline.is_none() {
            let grace = self.order.grace;
            self.deadline = Some(Instant::now() + grace);
            let together = TOGETHER.min(grace / 2);
            let line = format!("{what}; the other ranks have {grace:.1?} to end by themselves");
            self.announce = Some((Instant::now() + together, line));
        }
    }

    /// The first signal is the ranks' own to handle, the second ends them at once.
    fn pass_on(&mut self, number: i32) {
        self.signals += 1;
        if self.signals > 1 {
            self.deadline = Some(Instant::now());
        } else if let Some(signal) = Signal::from_number(number) {
            for (_, child) in &mut self.ranks {
                child.signal(signal);
            }
        }
    }

    /// The grace is over.
    fn end_the_rest(&mut self) {
        /// For handlers of SIGTERM.
        const LADDER: Duration = Duration::from_millis(400);
        /// For rank 0, whose exit waits for us.
        const MORE: Duration = Duration::from_secs(2);
        self.deadline = None;
        self.announce = None;
        let (numbers, children): (Vec<usize>, Vec<Child>) = self.ranks.drain(..).unzip();
        if !numbers.is_empty() {
            let at_once = self.signals > 1;
            self.failed = true;
            let list: Vec<String> = numbers.iter().map(ToString::to_string).collect();
            let why = if at_once { "by the second signal" } else { "after their grace" };
            tell(&format!("ended {why}: rank {}", list.join(", ")));
            let ends = stop_all(children, if at_once { Duration::ZERO } else { LADDER });
            for (number, end) in numbers.into_iter().zip(ends) {
                self.world.tell_end(number, false, &format!("{} (ended {why})", in_words(end.cause)));
            }
        }
        // A program that holds its rank still has not noticed that the world has failed: it computes, or hangs.
        match self.zero {
            Zero::Runs if self.failed && self.world.state(0) == State::Present => {
                tell("rank 0 has not ended either, and is sent SIGTERM");
                self.process.terminate();
                self.zero = Zero::Terminated;
                self.deadline = Some(Instant::now() + MORE);
            }
            Zero::Terminated => self.process.kill(),
            Zero::Runs | Zero::Leaves | Zero::Ended => {}
        }
    }

    fn clear_up(&self) {
        if self.order.logs.put_away(self.failed) {
            tell(&format!("what the ranks printed is in {}", self.order.logs.folder.display()));
        }
    }
}

/// How a process ended that has no goodbye to say.
fn in_words(cause: Cause) -> String {
    match cause {
        Cause::Exited(code) => format!("exited with code {code}"),
        Cause::Unknown => "ended; how is not known".to_owned(),
        other => other.to_string(),
    }
}

/// If rank 0 is gone, nobody need know.
fn say(program: &Parent, report: Report) {
    let bytes = postcard::to_allocvec(&report).expect("a number always serialises");
    let _ = program.send(&bytes);
}

/// Says so on the program's stderr, which may be gone.
fn tell(line: &str) {
    // In one write: ranks write there too.
    let _ = std::io::stderr().write_all(format!("leyden: {line}\n").as_bytes());
}
