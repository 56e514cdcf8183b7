//! The rows `ddp/…`: two ranks that train together, beside Lightning's, and beside two raw Burn loops that reduce by hand.
//!
//! A step is timed from the end of the first one until `fit` returns, on all sides: how long ranks take to start is a row
//! of its own.

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use burn::module::{ModuleVisitor, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::pool::{MaxPool2d, MaxPool2dConfig};
use burn::nn::{Linear, LinearConfig};
use burn::optim::{AdamConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::activation::relu;
use leyden::Loader;
use leyden::data::Share;
use leyden::prelude::*;
use leyden_comm::{ReduceOp, launch};
use leyden_process::futex;

use crate::trainer::{Mlp, Net, NoiseSource, images, trainer};
use crate::{Row, Spread, in_child};

/// The rows with `only` in their names, beside Lightning if `peer`.
pub(crate) fn rows(peer: bool, only: &str) -> Result<Vec<Row>> {
    /// Measures a row of that name, beside the peer if so asked.
    type Measure = fn(&'static str, bool) -> Result<Row>;
    let all: [(&'static str, Measure); 5] = [
        ("ddp/mlp-2", mlp),
        ("ddp/cnn-2", cnn),
        ("ddp/reduce-share", share),
        ("ddp/first-step", first_step),
        ("ddp/virtual-2", virtual_ranks),
    ];
    all.into_iter().filter(|(row, _)| row.contains(only)).map(|(row, measure)| measure(row, peer)).collect()
}

fn mlp(row: &'static str, peer: bool) -> Result<Row> {
    let (ours, raw) = two_ranks("ddp-mlp")?;
    let peer = lightning("mlp", MLP_STEPS, peer).map(samples);
    let ours = samples(ours);
    let notes = vec![format!(
        "two raw Burn ranks {:.0}, of which ours has {}",
        samples(raw).median,
        of(ours, samples(raw))
    )];
    Ok(Row {
        row,
        ours,
        peer,
        unit: "samples/s",
        ratio: peer.map(|peer| ours.median / peer.median),
        goal: ">= 4x Lightning",
        compared: "Lightning".to_owned(),
        notes,
    })
}

fn cnn(row: &'static str, peer: bool) -> Result<Row> {
    let (ours, raw) = two_ranks("ddp-cnn")?;
    let theirs = lightning("cnn", CNN_STEPS, peer);
    let note = |theirs: Spread| {
        format!(
            "Lightning {:.0} us [{:.0} to {:.0}], {} of it ours takes",
            theirs.median,
            theirs.min,
            theirs.max,
            of(ours, theirs)
        )
    };
    Ok(Row {
        row,
        ours,
        peer: Some(raw),
        unit: "us",
        ratio: Some(ours.median / raw.median),
        goal: "<= 1.05x two raw Burn ranks",
        compared: "raw Burn".to_owned(),
        notes: theirs.map(note).into_iter().collect(),
    })
}

fn share(row: &'static str, _: bool) -> Result<Row> {
    let (whole, met) = two_ranks("ddp-share")?;
    Ok(Row {
        row,
        ours: whole,
        peer: None,
        unit: "% of a step",
        ratio: None,
        goal: "-",
        compared: "-".to_owned(),
        notes: vec![format!(
            "{:.1} % where the ranks have met before: the rest is waiting for the slower",
            met.median
        )],
    })
}

fn first_step(row: &'static str, peer: bool) -> Result<Row> {
    let folder = tempfile::tempdir()?;
    let mut program = Command::new(std::env::current_exe()?);
    let ours = crate::launch::spread(program.arg("first-step").arg(folder.path()), 20)?;
    let peer = peer
        .then(|| crate::launch::spread(&mut python(&["first", &FIRST_STEPS.to_string()]), 5))
        .transpose()?;
    Ok(Row {
        row,
        ours,
        peer,
        unit: "ms",
        ratio: peer.map(|peer| peer.median / ours.median),
        goal: ">= 30x",
        compared: "Lightning".to_owned(),
        notes: vec![format!("p99 {:.2} ms, from the start of the process, with its launch", ours.p99)],
    })
}

fn virtual_ranks(row: &'static str, _: bool) -> Result<Row> {
    let (ours, plain) = in_child("ddp-virtual", true, &[])?;
    Ok(Row {
        row,
        ours,
        peer: Some(plain),
        unit: "us",
        ratio: Some(ours.median / plain.median),
        goal: "<= 1.5x without",
        compared: "without".to_owned(),
        notes: Vec::new(),
    })
}

/// Our side of `ddp/first-step`: this program, which becomes two ranks.
pub(crate) fn first_step_program(folder: PathBuf) -> Result<()> {
    // What rank 1 prints goes to its log.
    println!("{}", fit::<Mlp>((folder, 2, 1, FIRST_STEPS))?.0);
    Ok(())
}

/// Steps of a `fit`. The MLP's are those of an epoch of MNIST.
const MLP_STEPS: usize = 938;
const CNN_STEPS: usize = 60;
const FIRST_STEPS: usize = 2;

/// What a child measures, in two processes of its own: ours and the reference.
pub(crate) fn measure(what: &str) -> Result<(Spread, Spread)> {
    let folder = tempfile::tempdir()?;
    let at = || folder.path().to_owned();
    let rounds = |ours: &dyn Fn() -> Result<f64>, reference: &dyn Fn() -> Result<f64>| {
        let (mut both, mut discarded) = ((Vec::new(), Vec::new()), true);
        for _ in 0..=ROUNDS {
            let pair = (reference()?, ours()?);
            if !std::mem::take(&mut discarded) {
                both.0.push(pair.1);
                both.1.push(pair.0);
            }
        }
        Ok((Spread::of(both.0), Spread::of(both.1)))
    };
    let trained = |steps, results: Vec<(u64, u64)>| micros(results[0], steps);
    match what {
        "ddp-mlp" => rounds(
            &|| Ok(trained(MLP_STEPS, launch::program(2, fit::<Mlp>, &(at(), 2, 1, MLP_STEPS))?)),
            &|| Ok(trained(MLP_STEPS, launch::spawn(2, raw::<Mlp>, &MLP_STEPS)?)),
        ),
        "ddp-cnn" => rounds(
            &|| Ok(trained(CNN_STEPS, launch::program(2, fit::<Cnn>, &(at(), 2, 1, CNN_STEPS))?)),
            &|| Ok(trained(CNN_STEPS, launch::spawn(2, raw::<Cnn>, &CNN_STEPS)?)),
        ),
        "ddp-share" => rounds(&|| Ok(launch::program(2, reducing, &(MLP_STEPS, false))?[0]), &|| {
            Ok(launch::program(2, reducing, &(MLP_STEPS, true))?[0])
        }),
        _ => rounds(&|| Ok(trained(MLP_STEPS, vec![fit::<Mlp>((at(), 1, 2, MLP_STEPS))?])), &|| {
            Ok(trained(MLP_STEPS, vec![fit::<Mlp>((at(), 1, 1, MLP_STEPS))?]))
        }),
    }
}

const ROUNDS: usize = 5;

/// Trains with so many ranks, each for so many virtual ones, in a global batch of 64: when the first step had ended and when
/// `fit` returned, in ns.
fn fit<N: Net>((folder, ranks, parts, steps): (PathBuf, usize, usize, usize)) -> Result<(u64, u64)> {
    let first = Arc::new(OnceLock::new());
    let mut builder = trainer(&folder).devices(ranks).callback(First(Arc::clone(&first)));
    if parts > 1 {
        builder = builder.virtual_ranks(ranks * parts);
    }
    let fitted = builder.build()?.fit_with(N::new, &mut NoiseSource(steps))?;
    let ended = nanos();
    assert_eq!(fitted.steps, steps as u64);
    // On rank 0 alone it is called.
    Ok((first.get().copied().unwrap_or_default(), ended))
}

/// Notes when the first step has ended.
struct First(Arc<OnceLock<u64>>);

impl Callback for First {
    fn name(&self) -> String {
        "First".to_owned()
    }

    fn rank_zero_only(&self) -> bool {
        true
    }

    fn on_train_batch_end(&mut self, _: &Event<'_>, _: &mut Control) -> Result<()> {
        self.0.get_or_init(nanos);
        Ok(())
    }
}

/// The same on a rank whose loop is written by hand: gradients are copied to one slice, reduced, and copied back.
fn raw<N: Net>(steps: usize, rank: &mut leyden_comm::Rank) -> Result<(u64, u64)> {
    let device = Device::default().autodiff();
    device.seed(1);
    let mut model = N::new(&device);
    let mut optimizer: ModuleOptimizer = AdamConfig::new().init();
    let mut loader = images(steps)?;
    let world_size = rank.world_size();
    loader.set_share(&Share { rank: rank.rank(), parts: 1, world_size, uneven: false })?;
    let (mut flat, mut first) = (Vec::new(), None);
    for batch in Loader::epoch(&loader, 0, 0) {
        let loss = model.loss(LabeledImages::from_host(batch?.data, &device)?);
        black_box(loss.clone().try_into_scalar::<f64>()?);
        let mut gradients = GradientsParams::from_grads(loss.backward(), &model);
        flat.clear();
        each_gradient(&model, &mut gradients, |values| flat.extend_from_slice(values));
        rank.all_reduce(&mut flat, ReduceOp::Mean)?;
        let mut rest = &flat[..];
        each_gradient(&model, &mut gradients, |values| {
            let own = rest.split_off(..values.len()).expect("it has been as many");
            values.copy_from_slice(own);
        });
        model = optimizer.step(1e-3, model, gradients);
        first.get_or_insert_with(nanos);
    }
    black_box(model);
    Ok((first.unwrap_or_default(), nanos()))
}

fn each_gradient<M: Module>(model: &M, gradients: &mut GradientsParams, f: impl FnMut(&mut [f32])) {
    struct Each<'a, F>(&'a mut GradientsParams, F);
    impl<F: FnMut(&mut [f32])> ModuleVisitor for Each<'_, F> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let Some(gradient) = self.0.remove::<D>(param.id) else { return };
            let device = gradient.device();
            let mut data = gradient.into_data();
            (self.1)(data.as_mut_slice().expect("they are f32"));
            self.0.register(param.id, Tensor::<D>::from_data(data, &device));
        }
    }
    model.visit(&mut Each(gradients, f));
}

/// Per cent of a hand-written loop's steps that `reduce` takes; if they are to meet before, without the wait for the other.
fn reducing((steps, meet): (usize, bool)) -> Result<f64> {
    let mut rank = Fabric::builder().devices(2).build()?.launch()?;
    let loader = rank.setup_loader(images(steps)?)?;
    let device = Device::default().autodiff();
    let (mut model, mut adam) = rank.setup(<Mlp as Net>::new(&device), AdamConfig::new().init())?;
    let (mut all, mut reducing) = (Duration::ZERO, Duration::ZERO);
    for batch in Loader::epoch(&loader, 0, 0) {
        let began = Instant::now();
        let loss = model.loss(LabeledImages::from_host(batch?.data, &device)?);
        let gradients = rank.backward(&model, loss)?;
        if meet {
            rank.barrier("before the reduction")?;
        }
        let reduces = Instant::now();
        let gradients = rank.reduce(&model, gradients)?;
        reducing += reduces.elapsed();
        model = adam.step(1e-3, model, gradients);
        all += began.elapsed();
    }
    black_box(model);
    Ok(100.0 * reducing.as_secs_f64() / all.as_secs_f64())
}

/// Two convolutions, as PyTorch's example for MNIST has them.
#[derive(Module, Debug)]
struct Cnn {
    convs: [Conv2d; 2],
    pool: MaxPool2d,
    layers: [Linear; 2],
}

impl Net for Cnn {
    fn new(device: &Device) -> Self {
        Self {
            convs: [[1, 32], [32, 64]].map(|channels| Conv2dConfig::new(channels, [3, 3]).init(device)),
            pool: MaxPool2dConfig::new([2, 2]).with_strides([2, 2]).init(),
            layers: [[9216, 128], [128, 10]].map(|[from, to]| LinearConfig::new(from, to).init(device)),
        }
    }

    fn loss(&self, batch: LabeledImages) -> Tensor<1> {
        let images = batch.images.unsqueeze_dim(1);
        let x = self.convs.iter().fold(images, |x, conv| relu(conv.forward(x)));
        let x = self.pool.forward(x).flatten(1, 3);
        cross_entropy(self.layers[1].forward(relu(self.layers[0].forward(x))), batch.labels)
    }
}

impl LeydenModule for Cnn {
    type Batch = LabeledImages;

    fn training_step(&self, batch: LabeledImages, cx: &mut StepCx) -> Result<Loss> {
        let loss = self.loss(batch);
        cx.log("train/loss", &loss).prog_bar();
        Ok(loss.into())
    }

    fn configure_optimizers(&self) -> Result<Optimizers> {
        Ok(Optimizers::new(AdamConfig::new().init(), 1e-3))
    }
}

/// Measures with mimalloc, and with each rank's share of the cores: the trainer divides them, a raw loop does not.
fn two_ranks(what: &str) -> Result<(Spread, Spread)> {
    let cores = available_parallelism().map_or(1, usize::from);
    in_child(what, true, &[("RAYON_NUM_THREADS", &(cores / 2).max(1).to_string())])
}

/// Lightning's microseconds of a step.
fn lightning(work: &str, steps: usize, peer: bool) -> Option<Spread> {
    if !peer {
        return None;
    }
    let round = |_| {
        let output = python(&[work, &steps.to_string()]).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let value = text.lines().last().and_then(|line| line.parse().ok());
        if value.is_none() {
            let reason = String::from_utf8_lossy(&output.stderr);
            eprintln!("skipped: Lightning, {}", reason.lines().last().unwrap_or("it printed nothing"));
        }
        value
    };
    Some(Spread::of((0..3).map(round).collect::<Option<_>>()?))
}

fn python(arguments: &[&str]) -> Command {
    let python = std::env::var("LEYDEN_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let mut command = Command::new(python);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/lightning_ddp.py")).args(arguments);
    command
}

fn micros((first, ended): (u64, u64), steps: usize) -> f64 {
    (ended - first) as f64 / 1e3 / (steps - 1) as f64
}

/// Samples a second of steps of 64 in microseconds.
fn samples(micros: Spread) -> Spread {
    let of = |micros: f64| 64.0 * 1e6 / micros;
    Spread { median: of(micros.median), min: of(micros.max), max: of(micros.min), p99: of(micros.p99) }
}

fn of(ours: Spread, theirs: Spread) -> String {
    format!("{:.2}", ours.median / theirs.median)
}

fn nanos() -> u64 {
    futex::now().as_nanos() as u64
}
