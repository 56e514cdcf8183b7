//! The programs of the rows. Each is what a user might write, up to its mistake; `main` ends as `#[leyden::main]` does.
#![expect(clippy::disallowed_methods, reason = "ranks are to die here, in each way")]

use std::fs;
use std::io::Write as _;
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use leyden_comm::launch;
use leyden_data::{DataLoader, Dataset, SampleCx, Workers};
use leyden_process::guarded::Guarded;
use leyden_process::signal::noted_exit_code;
use leyden_process::{Result, bail};
use leyden_train::learner::toy::ToyBatch;
use leyden_train::learner::{Parameter, Trained};
use leyden_train::state::DType;
use leyden_train::testing::ToyRows;
use leyden_train::{Ddp, Hook, Limit, Loaders, Trainer, Uneven, ValCheck};
use serde::{Deserialize, Serialize};

use crate::toys::{Data, Makers, Model, On, Own, bare, fit, fit_with, folder, ranks, saving, say};

/// Runs one, and ends as `#[leyden::main]` does.
pub(crate) fn main(name: &str, words: &[String]) -> ExitCode {
    let words: Vec<&'static str> = words.iter().map(|word| &*word.clone().leak()).collect();
    let code = match run(name, &words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = std::io::stderr().write_all(format!("{error:?}\n").as_bytes());
            ExitCode::from(error.exit_code())
        }
    };
    noted_exit_code().map_or(code, ExitCode::from)
}

fn run(name: &str, words: &[&'static str]) -> Result<()> {
    match name {
        "plain" => plain(),
        "many" => many(words[0]),
        "trainers" => trainers(),
        "barrier" => barrier(),
        "dataset" => dataset(),
        "no-loader" => no_loader(),
        "elsewhere" => elsewhere(),
        "workers" => workers(),
        "guarded" => guarded(words[0]),
        "other" => other(words[0]),
        "weights" => weights(),
        "fails" => fails(words[0].parse().unwrap_or(0), words[1], words[2]),
        "stuck" => stuck(words[0].parse().unwrap_or(0), words[1]),
        "returns" => returns(),
        "validates" => validates(),
        "checkpoint" => checkpoint(),
        "early-stop" => early_stop(),
        "skips" => skips(),
        "logs" => logs(words[0]),
        "silent" => silent(),
        "prepares" => prepares(words[0]),
        "teardown" => teardown(),
        "uneven" => uneven(words[0]),
        "empty-shard" => empty_shard(),
        "ends-early" => ends_early(),
        "worker" => worker(words[0]),
        "unused" => unused(words[0] == "found"),
        "disk" => disk(),
        "slow-checkpoint" => slow_checkpoint(),
        "slow-step" => slow_step(),
        "timed" => timed(),
        "long" => long(),
        "whole" => whole(words),
        "deaf" => deaf(),
        _ => bail!("there is no program `{name}`"),
    }
}

/// This process's rank, before there is a trainer: whoever must know it launches first.
fn rank() -> Result<usize> {
    Ok(launch::world(ranks())?.rank())
}

fn plain() -> Result<()> {
    fit(bare(), &mut Model::new(), &mut Data::new()).map(drop)
}

/// A hundred trainers, a hundred fits of each kind: in turn each ends well, or with an error on rank 1, on rank 0, or in
/// a panic. Afterwards this process holds what it held before.
fn many(makers: &str) -> Result<()> {
    let me = rank()?;
    let makers = match makers {
        "inline" => Makers::Inline,
        "threads" => Makers::Threads,
        _ => Makers::Processes,
    };
    let round = |number: usize| -> Result<()> {
        let mut model = Model::new().with_step(move |_, cx| match (number % 4, me) {
            (1, 1) if cx.facts().batch == 2 => bail!("round {number} fails on rank 1"),
            (2, 0) if cx.facts().batch == 2 => bail!("round {number} fails on rank 0"),
            (3, 1) if cx.facts().batch == 1 => panic!("round {number} panics on rank 1"),
            _ => Ok(None),
        });
        let mut data = Data { makers, ..Data::new() };
        let mut trainer = bare().max_epochs(1).build()?;
        let first = trainer.fit_learner(&mut model, &mut data);
        if first.is_ok() != number.is_multiple_of(4) {
            bail!("round {number}: {first:?}");
        }
        // The second fit of one trainer, also of one that has failed.
        model.step = None;
        let second = trainer.fit_learner(&mut model, &mut data)?;
        if second.steps != 6 {
            bail!("round {number}: {second:?}");
        }
        Ok(())
    };
    let rounds = if makers == Makers::Processes { 24 } else { 100 };
    (0..4).try_for_each(round)?;
    let before = held()?;
    (0..rounds).try_for_each(round)?;
    let after = held()?;
    if after != before {
        bail!(
            "descriptors, threads, children, shared memory: {before:?} before, {after:?} after {rounds} rounds"
        );
    }
    say(&format!("done {rounds} rounds"));
    Ok(())
}

/// Descriptors, threads, children and mapped shared memory of this process, once they are at rest.
fn held() -> Result<[usize; 4]> {
    let count = || -> Result<[usize; 4]> {
        let me = std::process::id().to_string();
        let children = fs::read_dir("/proc")?
            .filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("stat")).ok())
            .filter(|stat| stat.rsplit(") ").next().unwrap_or_default().split(' ').nth(1) == Some(&me));
        let maps = fs::read_to_string("/proc/self/maps")?;
        let shared = maps.lines().filter(|line| line.contains("memfd:")).count();
        let entries = |folder: &str| -> Result<usize> { Ok(fs::read_dir(folder)?.count()) };
        Ok([entries("/proc/self/fd")?, entries("/proc/self/task")?, children.count(), shared])
    };
    // A thread that has said that it is done is still on its way out for a moment.
    let mut last = count()?;
    for _ in 0..40 {
        thread::sleep(Duration::from_millis(25));
        let now = count()?;
        if now == last {
            return Ok(now);
        }
        last = now;
    }
    Ok(last)
}

/// Construction does nothing that could freeze.
fn trainers() -> Result<()> {
    let before = held()?;
    say("begins");
    let trainers = (0..1000).map(|_| bare().build()).collect::<Result<Vec<Trainer>>>()?;
    say("done 1000 trainers");
    let after = held()?;
    if before != after {
        bail!("{before:?} before, {after:?} after {} trainers", trainers.len());
    }
    Ok(())
}

/// The classic: what looks harmless before the training.
fn barrier() -> Result<()> {
    let world = launch::world(ranks())?;
    if world.rank() == 0 {
        world.join()?.barrier("data is there").inspect_err(|error| say(&format!("told {}", error.code())))?;
    }
    fit(bare(), &mut Model::new(), &mut Data::new()).map(drop)
}

/// Rank 0 makes the data set, tells the others, and they have returned already.
fn dataset() -> Result<()> {
    let me = rank()?;
    let mut data = Data::new();
    data.train = Some(Box::new(move |_| {
        if me == 0 {
            return Data::new().loader(0..48, true);
        }
        Data::new().loader(0..40, true)
    }));
    fit(bare(), &mut Model::new(), &mut data).map(drop)
}

fn no_loader() -> Result<()> {
    let mut data = Data::new();
    data.train =
        Some(Box::new(|cx| if cx.rank == 1 { Ok(Loaders::none()) } else { Data::new().loader(0..48, true) }));
    fit(bare(), &mut Model::new(), &mut data).map(drop)
}

/// Rank 0 trains, rank 1 tests.
fn elsewhere() -> Result<()> {
    if rank()? == 0 {
        return fit(bare(), &mut Model::new(), &mut Data::new()).map(drop);
    }
    say("begins");
    let tested = bare().build()?.test_learner(&mut Model::new(), &mut Data::new());
    tested.map(drop).inspect_err(|error| say(&format!("told {}", error.code())))
}

/// Nothing is guarded: ranks at the top of `main`, and loaders with worker processes on each.
fn workers() -> Result<()> {
    let mut data = Data { makers: Makers::Processes, ..Data::new() };
    fit(bare().max_epochs(1), &mut Model::new(), &mut data).map(drop)
}

/// A data module that owns a process, a thread, a file and a lock, in a training that ends in some way.
fn guarded(how: &'static str) -> Result<()> {
    let me = rank()?;
    let mut data = Data::new();
    let lock = std::sync::Arc::new(Mutex::new(()));
    let owned = std::sync::Arc::new(Mutex::new(None));
    let path = folder().join(format!("journal-{me}"));
    let (in_setup, in_teardown, held) = (owned.clone(), owned, lock);
    data.setup = Some(Box::new(move || {
        let server = Guarded::spawn(Command::new("sleep").arg("1000"))?;
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let lock = held.clone();
        let file = fs::File::create(&path)?;
        let thread = thread::spawn(move || {
            let _lock = lock.lock().expect("nobody panics with it");
            let _ = stopped.recv_timeout(Duration::from_secs(100));
            drop(file);
        });
        *in_setup.lock().expect("nobody panics with it") = Some((server, stop, thread));
        Ok(())
    }));
    data.at_teardown = Some(Box::new(move || {
        let owned = in_teardown.lock().expect("nobody panics with it").take();
        let (mut server, stop, thread) = owned.expect("setup has made them");
        drop(stop);
        thread.join().expect("it ends");
        server.kill();
    }));
    let mut model = Model::new().with_step(move |_, cx| {
        thread::sleep(Duration::from_millis(2));
        if cx.facts().global_step == 5 && me == 0 {
            say("ready");
        }
        match how {
            "error" if me == 1 && cx.facts().global_step == 5 => {
                say("fault");
                bail!("the row of the table is torn")
            }
            "panic" if me == 1 && cx.facts().global_step == 5 => {
                say("fault");
                panic!("the row of the table is torn")
            }
            _ => Ok(None),
        }
    });
    let epochs = if how == "waits" { 500 } else { 3 };
    fit(saving().max_epochs(epochs), &mut model, &mut data).map(drop)
}

/// The model of rank 1 is another one.
fn other(what: &str) -> Result<()> {
    let me = rank()?;
    let parameter = |path: &str, dtype, len: usize, trainable| Parameter {
        path: path.to_owned(),
        dtype,
        shape: vec![len],
        trainable,
    };
    let (weight, bias) = (parameter("weight", DType::F32, 3, true), parameter("bias", DType::F32, 1, true));
    let mut model = Model::wide(if me == 1 && what == "shape" { 4 } else { 3 });
    if me == 1 {
        model.listed = match what {
            "count" => Some(vec![weight, bias, parameter("scale", DType::F32, 3, true)]),
            "dtype" => Some(vec![weight, parameter("bias", DType::F64, 1, true)]),
            "order" => Some(vec![bias, weight]),
            "frozen" => Some(vec![weight, parameter("bias", DType::F32, 1, false)]),
            _ => None,
        };
    }
    fit(bare(), &mut model, &mut Data::new()).map(drop)
}

/// Each rank begins with other weights: those of rank 0 count.
fn weights() -> Result<()> {
    let me = rank()?;
    fit(bare(), &mut Model::new().starting_at(me as f32)?, &mut Data::new()).map(drop)
}

/// One rank fails in one of the ways, in a step, a callback or a validation.
fn fails(who: usize, how: &'static str, place: &'static str) -> Result<()> {
    let me = rank()?;
    let fault = move || -> Result<()> {
        say("fault");
        match how {
            "error" => bail!("column 7 is not there"),
            "panic" => panic!("column 7 is not there"),
            "abort" => std::process::abort(),
            "exit" => std::process::exit(0),
            _ => {
                // SAFETY: it takes numbers.
                unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
                Ok(())
            }
        }
    };
    let mut model = Model::new().with_step(move |_, cx| {
        if me == who && place == "step" && cx.facts().global_step == 8 {
            fault()?;
        }
        Ok(None)
    });
    let hook = if place == "validation" { Hook::ValidationBatchEnd } else { Hook::TrainBatchEnd };
    let callback = On(hook, move |event: &leyden_train::Event<'_>, _: &mut leyden_train::Control| {
        let here = me == who && place != "step" && event.progress.global_step >= 6;
        if here { fault() } else { Ok(()) }
    });
    fit(bare().callback(callback), &mut model, &mut Data::new()).map(drop)
}

/// One rank does not come any more.
fn stuck(who: usize, how: &'static str) -> Result<()> {
    let options = launch::LaunchOptions { grace: Duration::from_millis(500), ..Default::default() };
    let me = launch::world_with(ranks(), &options)?.rank();
    let mut model = Model::new().with_step(move |_, cx| {
        if me == who && cx.facts().global_step == 8 {
            say("fault");
            match how {
                "sleeps" => thread::sleep(Duration::from_secs(600)),
                "loops" => loop {
                    std::hint::spin_loop();
                },
                "waits" => {
                    let lock = Mutex::new(());
                    let first = lock.lock();
                    let second = lock.lock();
                    drop((first, second));
                }
                _ => {
                    // SAFETY: it takes numbers.
                    unsafe { libc::kill(libc::getpid(), libc::SIGSTOP) };
                }
            }
        }
        Ok(None)
    });
    fit(bare().rank_timeout(Duration::from_secs(1)), &mut model, &mut Data::new()).map(drop)
}

/// Rank 1 finds nothing to do.
fn returns() -> Result<()> {
    if rank()? == 1 {
        say("fault");
        return Ok(());
    }
    fit(bare(), &mut Model::new(), &mut Data::new()).map(drop)
}

fn validates() -> Result<()> {
    let limit = if rank()? == 0 { Limit::Batches(2) } else { Limit::Batches(0) };
    fit(bare().limit_val_batches(limit), &mut Model::new(), &mut Data::new()).map(drop)
}

fn checkpoint() -> Result<()> {
    let me = rank()?;
    let asks =
        On(Hook::TrainEpochEnd, move |_: &leyden_train::Event<'_>, control: &mut leyden_train::Control| {
            if me == 1 {
                say("fault");
                control.save_checkpoint(folder().join("mine.safetensors"), false);
            }
            Ok(())
        });
    fit(saving().callback(asks), &mut Model::new(), &mut Data::new()).map(drop)
}

fn early_stop() -> Result<()> {
    let me = rank()?;
    let stops = On(
        Hook::TrainBatchEnd,
        move |event: &leyden_train::Event<'_>, control: &mut leyden_train::Control| {
            if me == 1 && event.progress.global_step == 8 {
                control.stop("the loss of this rank is low enough");
            }
            Ok(())
        },
    );
    fit(bare().callback(stops), &mut Model::new(), &mut Data::new()).map(drop)
}

/// A batch of one rank is bad, and is left out before anything is logged of it.
fn skips() -> Result<()> {
    let me = rank()?;
    let mut model = Model::new().with_step(move |_, cx| {
        let bad = me == 1 && [2, 3, 8].contains(&cx.facts().global_step);
        Ok(bad.then_some(Trained::Skipped))
    });
    let builder = saving().log_every_n_steps(1).logger(leyden_train::CsvLogger::new());
    fit(builder, &mut model, &mut Data::new()).map(drop)
}

fn logs(what: &'static str) -> Result<()> {
    let me = rank()?;
    let mut model = Model::new().with_step(move |_, cx| {
        match (what, me) {
            ("one", 0) => drop(cx.log("train/accuracy", 0.5).on_epoch(true)),
            ("keys", _) => drop(cx.log(&format!("train/accuracy-{me}"), 0.5).on_epoch(true)),
            ("steps", 1) => drop(cx.log("train/gap", 0.5)),
            _ => {}
        }
        Ok(None)
    });
    let builder = saving().log_every_n_steps(1);
    let builder = if what == "steps" { builder.logger(leyden_train::CsvLogger::new()) } else { builder };
    fit(builder, &mut model, &mut Data::new()).map(drop)
}

/// The evaluation of rank 1 logs nothing at all.
fn silent() -> Result<()> {
    let mut model = Model::new();
    model.evaluates_in_silence = rank()? == 1;
    fit(bare(), &mut model, &mut Data::new()).map(drop)
}

/// What rank 0 does for all fails.
fn prepares(how: &'static str) -> Result<()> {
    let mut data = Data::new();
    data.prepare = Some(Box::new(move || {
        say("fault");
        match how {
            "error" => bail!("the server says 404"),
            "panic" => panic!("the server says 404"),
            _ => std::process::abort(),
        }
    }));
    fit(bare(), &mut Model::new(), &mut data).map(drop)
}

/// A clean-up of rank 1 that does not end.
fn teardown() -> Result<()> {
    let me = rank()?;
    let mut data = Data::new();
    data.at_teardown = Some(Box::new(move || {
        if me == 1 {
            thread::sleep(Duration::from_secs(600));
        }
    }));
    fit(bare().teardown_timeout(Duration::from_secs(1)), &mut Model::new(), &mut data).map(drop)
}

/// Rank 0 has seven batches, rank 1 five.
fn uneven(policy: &str) -> Result<()> {
    let uneven = match policy {
        "error" => Uneven::Error,
        "drop" => Uneven::Drop,
        _ => Uneven::Join,
    };
    let mut data = Data { eval: 0, ..Data::new() };
    data.train = Some(Box::new(|cx| {
        let batches = if cx.rank == 0 { 7 } else { 5 };
        Ok(Loaders::none().and(Own { promised: batches, given: batches, from: 100 * cx.rank }))
    }));
    let builder = saving().max_epochs(2).log_every_n_steps(1).logger(leyden_train::CsvLogger::new());
    fit(builder.strategy(Ddp::default().uneven(uneven)), &mut Model::new(), &mut data).map(drop)
}

/// Three samples for four ranks.
fn empty_shard() -> Result<()> {
    let mut data = Data::new();
    data.train = Some(Box::new(|_| {
        let rows = ToyRows { features: 3, rows: 0..3 };
        Ok(DataLoader::builder(rows).batch_size(1).build()?.into())
    }));
    fit(bare(), &mut Model::new(), &mut data).map(drop)
}

/// Rank 1's loader gives fewer batches than it promises.
fn ends_early() -> Result<()> {
    let mut data = Data::new();
    data.train = Some(Box::new(|cx| {
        let given = if cx.rank == 0 { 6 } else { 4 };
        Ok(Loaders::none().and(Own { promised: 6, given, from: 0 }))
    }));
    fit(bare(), &mut Model::new(), &mut data).map(drop)
}

/// Rows of which one kills, or keeps, the worker that loads it.
#[derive(Serialize, Deserialize)]
struct Poisoned {
    rows: ToyRows,
    blocks: bool,
}

impl Dataset for Poisoned {
    type Item = (Vec<f32>, f32);
    type Batch = ToyBatch;

    fn len(&self) -> usize {
        self.rows.len()
    }

    fn get(&self, index: usize, cx: &mut SampleCx) -> Result<Self::Item> {
        if index == 37 && self.blocks {
            thread::sleep(Duration::from_secs(600));
        }
        if index == 37 {
            std::process::abort();
        }
        self.rows.get(index, cx)
    }

    fn collate(&self, items: Vec<Self::Item>) -> Result<ToyBatch> {
        self.rows.collate(items)
    }
}

/// A loader's worker of one rank dies, or blocks.
fn worker(how: &str) -> Result<()> {
    let blocks = how == "blocks";
    let mut data = Data::new();
    data.train = Some(Box::new(move |_| {
        let rows = Poisoned { rows: ToyRows { features: 3, rows: 0..48 }, blocks };
        let loader = DataLoader::builder(rows).global_batch_size(8).workers(Workers::spawn(2));
        Ok(loader.timeout(Duration::from_secs(1)).build()?.into())
    }));
    fit(bare(), &mut Model::new(), &mut data).map(drop)
}

/// The loss of rank 1 does not depend on the bias.
fn unused(find: bool) -> Result<()> {
    let mut model = Model::new();
    model.unused = rank()? == 1;
    let ddp = Ddp::default().find_unused_parameters(find);
    fit(bare().strategy(ddp), &mut model, &mut Data::new()).map(drop)
}

/// After the first epoch's checkpoint rank 0 can write no more.
fn disk() -> Result<()> {
    let me = rank()?;
    let fills =
        On(Hook::TrainEpochStart, move |event: &leyden_train::Event<'_>, _: &mut leyden_train::Control| {
            if me == 0 && event.progress.epoch == 1 {
                let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
                // SAFETY: the limit is a value of this function; without the signal a write fails, as on a full disk.
                unsafe {
                    libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
                    libc::setrlimit(libc::RLIMIT_FSIZE, &none);
                }
            }
            Ok(())
        });
    fit(saving().callback(fills), &mut Model::new(), &mut Data::new()).map(drop)
}

/// Saving takes three times as long as ranks may be silent.
fn slow_checkpoint() -> Result<()> {
    let mut model = Model::new();
    model.saving_takes = Duration::from_millis(1500);
    fit(saving().max_epochs(1).rank_timeout(Duration::from_millis(500)), &mut model, &mut Data::new())
        .map(drop)
}

/// The first step of one rank takes long, as where something is compiled.
fn slow_step() -> Result<()> {
    let me = rank()?;
    let mut model = Model::new().with_step(move |_, cx| {
        if me == 1 && cx.facts().global_step == 0 {
            thread::sleep(Duration::from_secs(3));
        }
        Ok(None)
    });
    fit(bare(), &mut model, &mut Data::new()).map(drop)
}

/// Validations by the clock, of which each rank has its own.
fn timed() -> Result<()> {
    let me = rank()?;
    let mut model = Model::new().with_step(move |_, _| {
        thread::sleep(Duration::from_micros(if me == 0 { 300 } else { 900 }));
        Ok(None)
    });
    let builder = bare().max_epochs(40).val_check_interval(ValCheck::Time(Duration::from_millis(7)));
    fit(builder, &mut model, &mut Data::new()).map(drop)
}

/// A training that a signal finds in its middle.
fn long() -> Result<()> {
    let me = rank()?;
    let mut model = Model::new().with_step(move |_, cx| {
        thread::sleep(Duration::from_millis(3));
        if me == 0 && cx.facts().global_step == 8 {
            say("ready");
        }
        Ok(None)
    });
    fit(saving().max_epochs(EPOCHS), &mut model, &mut Data::new()).map(drop)
}

/// The same training, from its beginning or from a checkpoint, without anything in its way.
fn whole(words: &[&str]) -> Result<()> {
    let mut trainer = saving().max_epochs(EPOCHS).build()?;
    if let Some(path) = words.first() {
        trainer.ckpt_path(*path);
    }
    fit_with(&mut trainer, &mut Model::new(), &mut Data::new()).map(drop)
}

const EPOCHS: u64 = 100;

/// A step that a first signal does not end.
fn deaf() -> Result<()> {
    let mut model = Model::new().with_step(move |_, cx| {
        if cx.facts().global_step == 8 {
            say("ready");
            thread::sleep(Duration::from_secs(600));
        }
        Ok(None)
    });
    fit(bare(), &mut model, &mut Data::new()).map(drop)
}
