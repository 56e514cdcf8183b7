//! Several ranks in one run, as real processes: the same numbers, agreed ends, and failures that reach all.

use std::path::PathBuf;
use std::time::Instant;

use leyden_comm::launch;
use leyden_data::{Batch, DataLoader, Loader, Share};
use leyden_process::{Error, Result, bail};
use leyden_train::learner::Update;
use leyden_train::learner::toy::ToyBatch;
use leyden_train::schedule::{Interval, ReduceLROnPlateau};
use leyden_train::testing::{Record, RecordedLearner, Sabotage, ToyRows};
use leyden_train::{
    Callback, Control, DataModule, Ddp, EarlyStopping, Event, GradientClip, Learner, LearnerView, LoaderCx,
    Loaders, Logs, Mode, ModelCheckpoint, Outcome, Stage, StepCx, StepFacts, TrainerBuilder, Uneven,
    ValCheck,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::support::{bare, quick_dir, quiet, rows, toy};

/// Data whose steps are the same on any number of ranks.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Global {
    rows: usize,
    eval: usize,
    batch: usize,
    workers: usize,
}

impl Global {
    const SMALL: Self = Self { rows: 48, eval: 10, batch: 8, workers: 0 };

    fn loader(&self, rows: std::ops::Range<usize>, shuffle: bool) -> Result<Loaders<ToyBatch>> {
        let rows = ToyRows { features: 3, rows };
        let loader = DataLoader::builder(rows).global_batch_size(self.batch).shuffle(shuffle);
        Ok(loader.num_workers(self.workers).build()?.into())
    }
}

impl DataModule for Global {
    type Batch = ToyBatch;

    fn train_loader(&mut self, _: &LoaderCx) -> Result<Loaders<ToyBatch>> {
        self.loader(0..self.rows, true)
    }

    fn val_loader(&mut self, _: &LoaderCx) -> Result<Loaders<ToyBatch>> {
        self.loader(1000..1000 + self.eval, false)
    }

    fn test_loader(&mut self, _: &LoaderCx) -> Result<Loaders<ToyBatch>> {
        self.loader(2000..2000 + self.eval, false)
    }
}

fn bits(learner: &leyden_train::learner::toy::ToyLearner) -> Vec<u32> {
    let (weights, bias) = learner.weights();
    weights.iter().chain([&bias]).map(|weight| weight.to_bits()).collect()
}

/// Runs on `ranks` ranks what gives a value; that of each.
fn on_ranks<A, R, F>(ranks: usize, f: F, argument: &A) -> Result<Vec<R>>
where
    A: Clone + Serialize + DeserializeOwned + Send + 'static,
    R: Serialize + DeserializeOwned + Send,
    F: Fn(A) -> Result<R> + Copy + Send + Sync + 'static,
{
    match ranks {
        1 => Ok(vec![f(argument.clone())?]),
        _ => launch::program(ranks, f, argument),
    }
}

/// The weights, and the values, as bits.
type Numbers = (Vec<u32>, Vec<(String, u64)>);

type Fit = (usize, Option<usize>, u32, usize);
/// The weights after three epochs.
fn weights((ranks, virtual_ranks, accumulate, workers): Fit) -> Result<Numbers> {
    let mut learner = toy();
    let mut data = Global { workers, ..Global::SMALL };
    let mut builder = bare().devices(ranks).max_epochs(3).accumulate_grad_batches(accumulate);
    if let Some(virtual_ranks) = virtual_ranks {
        builder = builder.virtual_ranks(virtual_ranks);
    }
    let mut trainer = builder.build()?;
    let report = trainer.fit_learner(&mut learner, &mut data)?;
    assert!(matches!(report.outcome, Outcome::Finished(_)));
    let tested = trainer.test_learner(&mut learner, &mut data)?;
    let values = report.metrics.iter().chain(tested.iter());
    Ok((bits(&learner), values.map(|(name, value)| (name.to_owned(), value.to_bits())).collect()))
}

#[test]
fn virtual_ranks_give_the_same_bits_on_one_two_and_four_ranks() {
    for accumulate in [1, 4] {
        let one = on_ranks(1, weights, &(1, Some(4), accumulate, 0)).unwrap().swap_remove(0).0;
        for (ranks, workers) in [(1, 2), (2, 0), (2, 2), (4, 0), (4, 2)] {
            let all = on_ranks(ranks, weights, &(ranks, Some(4), accumulate, workers)).unwrap();
            for (rank, (weights, _)) in all.iter().enumerate() {
                assert_eq!(
                    *weights, one,
                    "rank {rank} of {ranks}, accumulate {accumulate}, workers {workers}"
                );
            }
        }
    }
}

#[test]
fn all_ranks_have_the_same_numbers_and_those_of_one_rank_nearly() {
    for accumulate in [1, 4] {
        let (one, values) = on_ranks(1, weights, &(1, None, accumulate, 0)).unwrap().swap_remove(0);
        for ranks in [2, 3, 4] {
            // Three ranks do not divide eight rows: the last test is with another batch size.
            let ranks = if ranks == 3 { continue } else { ranks };
            let all = on_ranks(ranks, weights, &(ranks, None, accumulate, 2)).unwrap();
            for (weights, other) in &all {
                assert_eq!((weights, other), (&all[0].0, &all[0].1));
                for (a, b) in weights.iter().zip(&one) {
                    let (a, b) = (f32::from_bits(*a), f32::from_bits(*b));
                    assert!((a - b).abs() < 1e-5, "{a} {b}");
                }
                for ((name, a), (other, b)) in other.iter().zip(&values) {
                    let (a, b) = (f64::from_bits(*a), f64::from_bits(*b));
                    assert!(
                        name == other && (a - b).abs() < 1e-5 * (1.0 + b.abs()),
                        "{name} {a}, {other} {b}"
                    );
                }
            }
        }
    }
}

/// Ten rows on four ranks in batches of eight: the last two rows are on two ranks, and each counts once.
fn evaluated(eval: usize) -> Result<Vec<(String, u64)>> {
    let mut data = Global { eval, ..Global::SMALL };
    let ranks = if eval == 0 { 1 } else { 4 };
    let mut trainer = bare().devices(ranks).build()?;
    let tested = trainer.test_learner(&mut toy(), &mut data)?;
    Ok(tested.iter().map(|(name, value)| (name.to_owned(), value.to_bits())).collect())
}

#[test]
fn an_evaluation_counts_every_sample_once_however_few_there_are() {
    for eval in [1, 2, 3, 8, 10, 11] {
        let all = on_ranks(4, evaluated, &eval).unwrap();
        let alone =
            bare().build().unwrap().test_learner(&mut toy(), &mut Global { eval, ..Global::SMALL }).unwrap();
        let expected = alone.get("test/loss").unwrap();
        for values in &all {
            assert_eq!(values, &all[0]);
            let found = f64::from_bits(values[0].1);
            assert!((found - expected).abs() < 1e-6 * expected, "{eval}: {found} {expected}");
        }
    }
}

/// Trains with files; on `ranks` ranks, up to `steps`, and goes on from `from`.
fn saved(
    (root, ranks, steps, from): (PathBuf, usize, u64, Option<PathBuf>),
) -> Result<(Vec<u32>, Option<PathBuf>)> {
    let mut learner = toy();
    let mut trainer = quiet(&root)
        .devices(ranks)
        .virtual_ranks(4)
        .max_epochs(4)
        .max_steps(steps)
        .log_every_n_steps(1)
        .build()?;
    if let Some(from) = from {
        trainer.ckpt_path(from);
    }
    let report = trainer.fit_learner(&mut learner, &mut Global::SMALL.clone())?;
    Ok((bits(&learner), report.last_checkpoint))
}

#[test]
fn a_checkpoint_of_four_ranks_goes_on_on_any_number() {
    let root = quick_dir();
    let root = root.path().to_path_buf();
    let whole = on_ranks(1, saved, &(root.clone(), 1, 100, None)).unwrap().swap_remove(0).0;
    for (first, second) in [(4, 1), (4, 2), (1, 4), (2, 4)] {
        // Inside the second epoch.
        let begun = on_ranks(first, saved, &(root.clone(), first, 8, None)).unwrap();
        let checkpoint = begun[0].1.clone().expect("rank 0 has saved");
        assert!(begun.iter().all(|(_, last)| *last == begun[0].1), "all ranks know of it");
        let resumed = on_ranks(second, saved, &(root.clone(), second, 100, Some(checkpoint))).unwrap();
        for (weights, _) in resumed {
            assert_eq!(weights, whole, "begun on {first} ranks, gone on on {second}");
        }
    }
    // One folder for each run, whose rows one rank has written.
    let folders = std::fs::read_dir(root.join("run")).unwrap().count();
    assert_eq!(folders, 9);
    let logged = rows(&root.join("run/version_0"));
    assert!(logged.len() >= 24, "{}", logged.len());
}

/// What goes wrong on rank 1, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Wrong {
    StepError,
    StepPanic,
    SetupError,
    CallbackError,
    NoLoader,
    OtherWidth,
    OtherConfig,
    FewerBatches,
    OtherNames,
}

struct Faulty {
    data: Global,
    wrong: Wrong,
    rank: usize,
    done: Vec<&'static str>,
}

impl Faulty {
    fn is(&self, wrong: Wrong) -> bool {
        self.rank == 1 && self.wrong == wrong
    }
}

impl DataModule for Faulty {
    type Batch = ToyBatch;

    fn setup(&mut self, _: Stage) -> Result<()> {
        if self.is(Wrong::SetupError) {
            bail!("no disk");
        }
        self.done.push("setup");
        Ok(())
    }

    fn train_loader(&mut self, cx: &LoaderCx) -> Result<Loaders<ToyBatch>> {
        if self.is(Wrong::NoLoader) {
            return Ok(Loaders::none());
        }
        if self.is(Wrong::FewerBatches) {
            self.data.rows -= self.data.batch;
        }
        self.data.train_loader(cx)
    }

    fn on_exception(&mut self, _: &Error) -> Result<()> {
        self.done.push("on_exception");
        Ok(())
    }

    fn teardown(&mut self, _: &Outcome) -> Result<()> {
        self.done.push("teardown");
        Ok(())
    }
}

struct Trouble {
    wrong: Wrong,
    rank: usize,
}

impl Callback for Trouble {
    fn name(&self) -> String {
        "Trouble".to_owned()
    }

    fn on_train_batch_end(&mut self, event: &Event<'_>, _: &mut Control) -> Result<()> {
        if self.rank == 1 && event.progress.global_step == 3 {
            match self.wrong {
                Wrong::CallbackError => bail!("a callback fails"),
                Wrong::StepError => bail!("the step fails"),
                Wrong::StepPanic => panic!("the step panics"),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The code, text and time of the error on this rank, and what its data module was told.
type Told = (String, String, f64, Vec<String>);

fn fails(wrong: Wrong) -> Result<Told> {
    let rank = launch::world(2)?.rank();
    let mut data = Faulty { data: Global::SMALL.clone(), wrong, rank, done: Vec::new() };
    let width = if data.is(Wrong::OtherWidth) { 4 } else { 3 };
    let mut learner = leyden_train::learner::toy::ToyLearner::new(width, 0.05);
    let rate = if data.is(Wrong::OtherConfig) { 2 } else { 1 };
    let trainer: TrainerBuilder = bare().devices(2).max_epochs(3).accumulate_grad_batches(rate);
    let mut trainer = trainer.callback(Trouble { wrong, rank }).build()?;
    let begun = Instant::now();
    let error = match trainer.fit_learner(&mut learner, &mut data) {
        Ok(report) => {
            return Err(Error::new(leyden_process::error::USER, format!("it went on: {:?}", report.outcome)));
        }
        Err(error) => error,
    };
    let done = data.done.iter().map(|what| (*what).to_owned()).collect();
    Ok((error.code().to_string(), format!("{error:?}"), begun.elapsed().as_secs_f64(), done))
}

#[test]
fn what_goes_wrong_on_one_rank_reaches_both() {
    use Wrong::*;
    for (wrong, code, words) in [
        (StepError, "T0001", "the step fails"),
        (StepPanic, "T0301", "the step panics"),
        (SetupError, "T0001", "no disk"),
        (CallbackError, "T0001", "a callback fails"),
        (NoLoader, "C0104", "exactly one training loader"),
        (OtherWidth, "D0401", "F32 [3], trained on rank 0; F32 [4], trained on rank 1"),
        (OtherConfig, "D0401", "configuration"),
        (FewerBatches, "D0405", "rank 1"),
    ] {
        let told = launch::program(2, fails, &wrong).unwrap_or_else(|error| panic!("{wrong:?}: {error:?}"));
        for (rank, (found, text, seconds, done)) in told.iter().enumerate() {
            assert!(text.contains(words) && text.contains("rank"), "{wrong:?} on rank {rank}: {text}");
            assert!(found == code || code == "T0001", "{wrong:?} on rank {rank}: {text}");
            assert!(*seconds < 5.0, "{wrong:?} took {seconds} s on rank {rank}");
            let expected: &[&str] = match (wrong, rank) {
                (SetupError, 1) => &["on_exception"],
                _ => &["setup", "on_exception", "teardown"],
            };
            assert_eq!(done, expected, "{wrong:?} on rank {rank}");
        }
    }
}

type Clipped = (usize, Option<usize>, bool);

/// The weights after three epochs of clipped steps.
fn clipped((ranks, virtual_ranks, norm): Clipped) -> Result<Vec<u32>> {
    let clip = if norm { GradientClip::Norm(0.5) } else { GradientClip::Value(0.1) };
    let mut builder = bare().devices(ranks).max_epochs(3).accumulate_grad_batches(2).gradient_clip(clip);
    if let Some(virtual_ranks) = virtual_ranks {
        builder = builder.virtual_ranks(virtual_ranks);
    }
    let mut learner = toy();
    let _ = builder.build()?.fit_learner(&mut learner, &mut Global::SMALL.clone())?;
    Ok(bits(&learner))
}

fn are_near(found: &[u32], expected: &[u32]) -> bool {
    let near = |(a, b): (&u32, &u32)| (f32::from_bits(*a) - f32::from_bits(*b)).abs() < 1e-5;
    found.len() == expected.len() && found.iter().zip(expected).all(near)
}

#[test]
fn clipping_takes_the_gradient_of_all_ranks() {
    for norm in [true, false] {
        let one = on_ranks(1, clipped, &(1, None, norm)).unwrap().swap_remove(0);
        let fixed = on_ranks(1, clipped, &(1, Some(4), norm)).unwrap().swap_remove(0);
        assert_ne!(one, on_ranks(1, weights, &(1, None, 2, 0)).unwrap()[0].0, "something is clipped");
        for ranks in [2, 4] {
            let all = on_ranks(ranks, clipped, &(ranks, None, norm)).unwrap();
            assert!(
                all.iter().all(|weights| *weights == all[0] && are_near(weights, &one)),
                "{ranks}: {all:?}"
            );
            let all = on_ranks(ranks, clipped, &(ranks, Some(4), norm)).unwrap();
            assert!(all.iter().all(|weights| *weights == fixed), "{ranks}: {all:?}");
        }
    }
}

/// A training on which rank 2 gets SIGTERM in its eighth step; how it ended, its steps and its checkpoint.
fn preempted(root: PathBuf) -> Result<(String, u64, PathBuf)> {
    let me = launch::world(4)?.rank();
    let mut learner = RecordedLearner::new(&Record::new());
    learner.in_training = Some(Box::new(move |_, cx| match (me, cx.global_step()) {
        (2, 8) => Sabotage::Terminate.commit("a step"),
        _ => Ok(()),
    }));
    let mut trainer = quiet(&root).devices(4).virtual_ranks(4).max_epochs(4).build()?;
    let report = trainer.fit_learner(&mut learner, &mut Global::SMALL.clone())?;
    let last = report.last_checkpoint.expect("it was saved");
    Ok((report.outcome.to_string(), report.steps, last))
}

#[test]
fn a_signal_to_one_of_four_ranks_stops_all_and_two_go_on_with_the_same_bits() {
    let root = quick_dir();
    let whole = on_ranks(1, saved, &(root.path().join("whole"), 1, 100, None)).unwrap().swap_remove(0).0;
    let root = root.path().join("stopped");
    let all = launch::program(4, preempted, &root).unwrap();
    for (outcome, steps, last) in &all {
        assert_eq!((outcome.as_str(), *steps, last), ("interrupted by SIGTERM", all[0].1, &all[0].2));
    }
    assert_eq!(all[0].1, 9, "the step in which it came was done");
    let resumed = on_ranks(2, saved, &(root, 2, 100, Some(all[0].2.clone()))).unwrap();
    assert!(resumed.iter().all(|(weights, _)| *weights == whole), "{resumed:?}");
}

/// Batches of one's own: of so many rows, different on each rank.
struct Batches {
    rank: usize,
    count: usize,
}

impl Batches {
    fn batch(&self, index: usize) -> ToyBatch {
        let x: Vec<f32> = (0..12).map(|k| ((31 * self.rank + 12 * index + k) % 11) as f32 / 11.0).collect();
        let y = x.chunks(3).map(|row| row[0] + 2.0 * row[1] + 0.5).collect();
        ToyBatch { x, y }
    }
}

impl Loader<ToyBatch> for Batches {
    fn len(&self) -> usize {
        self.count
    }

    fn epoch(&self, _: u64, from: usize) -> Box<dyn Iterator<Item = Result<Batch<ToyBatch>>> + '_> {
        let batch = |index| Ok(Batch { data: self.batch(index), samples: 4, padding: 0, index });
        Box::new((from..self.count).map(batch))
    }

    fn set_sequential(&mut self) {}

    fn set_share(&mut self, _: &Share) -> Result<()> {
        Ok(())
    }
}

/// How many batches each of two ranks has.
const BATCHES: [usize; 2] = [5, 3];

struct UnevenData;

impl DataModule for UnevenData {
    type Batch = ToyBatch;

    fn train_loader(&mut self, cx: &LoaderCx) -> Result<Loaders<ToyBatch>> {
        Ok(Loaders::none().and(Batches { rank: cx.rank, count: BATCHES[cx.rank] }))
    }
}

fn uneven(join: bool) -> Result<(u64, Vec<u32>)> {
    let uneven = if join { Uneven::Join } else { Uneven::Drop };
    let mut learner = toy();
    let trainer = bare().devices(2).max_epochs(2).strategy(Ddp::default().uneven(uneven)).build();
    let report = trainer?.fit_learner(&mut learner, &mut UnevenData)?;
    Ok((report.steps, bits(&learner)))
}

#[test]
fn uneven_ranks_make_the_steps_of_the_batches_that_there_are() {
    for join in [true, false] {
        // By hand: each step takes the mean over the batches that are left.
        let (mut by_hand, mut steps) = (toy(), 0);
        let mut logs = Logs::new();
        let each = if join { BATCHES[0] } else { BATCHES[1] };
        for index in (0..2).flat_map(|_| 0..each) {
            let ranks = (0..2).filter(|&rank| index < BATCHES[rank]);
            let mut accumulated = 0;
            for rank in ranks {
                let cx = &mut StepCx::new(facts(), &mut logs);
                by_hand.train(Batches { rank, count: 0 }.batch(index), cx).unwrap();
                accumulated += 1;
            }
            by_hand.apply(&Update { accumulated, clip: None }).unwrap();
            steps += 1;
        }
        let all = launch::program(2, uneven, &join).unwrap();
        for (made, weights) in &all {
            assert_eq!((*made, weights), (steps, &all[0].1), "join {join}");
            assert!(are_near(weights, &bits(&by_hand)), "join {join}: {weights:?}");
        }
    }
}

fn facts() -> StepFacts {
    StepFacts {
        stage: Stage::Fit,
        epoch: 0,
        batch: 0,
        samples: 4,
        global_step: 0,
        batches_seen: 0,
        seed: 0,
        loader: 0,
        in_step: true,
    }
}

/// Stops early and lowers its learning rate, both by what validation has found.
fn watched(ranks: usize) -> Result<(u64, u64, Vec<u32>)> {
    let plateau = ReduceLROnPlateau::new("val/loss").patience(1).threshold(0.5);
    let mut learner = toy().schedule(Interval::Epoch, plateau);
    let stopping = EarlyStopping::new("val/loss").patience(4).min_delta(1e-3);
    let mut trainer = bare().devices(ranks).max_epochs(60).callback(stopping).build()?;
    let report = trainer.fit_learner(&mut learner, &mut Global::SMALL.clone())?;
    assert!(report.outcome.to_string().contains("EarlyStopping"), "{}", report.outcome);
    Ok((report.epochs, learner.learning_rates()[0].1.to_bits(), bits(&learner)))
}

#[test]
fn ranks_stop_early_and_lower_their_rate_together_as_one_rank_does() {
    let one = watched(1).unwrap();
    assert!(f64::from_bits(one.1) < 0.05, "the rate was lowered");
    for ranks in [2, 4] {
        let all = launch::program(ranks, watched, &ranks).unwrap();
        for found in &all {
            assert_eq!(found, &all[0]);
            assert_eq!((found.0, found.1), (one.0, one.1), "epochs and rate on {ranks} ranks");
            assert!(are_near(&found.2, &one.2));
        }
    }
}

/// A fit whose validation is for fewer ranks than there are, and whose windows are open when it validates.
fn validated((eval, accumulate, patience): (usize, u32, u32)) -> Result<(Numbers, bool)> {
    let root = quick_dir();
    let mut data = Global { eval, ..Global::SMALL };
    let trainer = quiet(root.path()).devices(4).max_epochs(3).accumulate_grad_batches(accumulate);
    let trainer = trainer.val_check_interval(ValCheck::Batches(3));
    let stop = EarlyStopping::new("val/loss").patience(patience).mode(Mode::Max);
    let best = ModelCheckpoint::monitor("val/loss");
    let newest = ModelCheckpoint::new();
    let mut trainer = trainer.callback(stop).callback(best).callback(newest).build()?;
    let mut learner = toy();
    let report = trainer.fit_learner(&mut learner, &mut data)?;
    let there = leyden_comm::launch::world(4)?.rank() > 0
        || [&report.best_checkpoint, &report.last_checkpoint]
            .iter()
            .all(|path| path.as_ref().unwrap().is_file());
    let values = report.metrics.iter().map(|(name, value)| (name.to_owned(), value.to_bits())).collect();
    Ok(((bits(&learner), values), there))
}

#[test]
fn validations_of_few_samples_and_within_windows_are_made_by_all() {
    for (eval, accumulate, patience) in [(1, 1, 100), (3, 4, 100), (10, 4, 0)] {
        let all = on_ranks(4, validated, &(eval, accumulate, patience)).unwrap();
        for (numbers, there) in &all {
            assert_eq!(numbers, &all[0].0, "{eval} {accumulate} {patience}");
            assert!(numbers.1.iter().any(|(name, _)| name == "val/loss") && *there);
        }
    }
}

#[test]
fn a_single_rank_is_refused_where_there_are_more() {
    let codes = launch::program(
        2,
        |(): ()| {
            let _ = launch::world(2)?;
            let error = bare().devices(1).build()?.fit_learner(&mut toy(), &mut Global::SMALL.clone());
            let auto = bare().max_epochs(1).build()?.fit_learner(&mut toy(), &mut Global::SMALL.clone())?;
            Ok((error.unwrap_err().code().to_string(), auto.steps))
        },
        &(),
    );
    assert_eq!(codes.unwrap(), vec![("D0202".to_owned(), 6); 2]);
}
