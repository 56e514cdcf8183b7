//! The Trainer adds nothing to the numbers: a raw Burn loop, a loop over the learner's verbs and the Trainer end with
//! the same bits; and the losses of 20 steps are a golden file.

use std::fs;
use std::path::Path;

use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::Device;
use leyden::data::Loader;
use leyden::prelude::*;
use leyden::train::learner::{Learner, Trained, Update};
use leyden::train::{Logs, StepFacts, testing};
use leyden::{ModuleLearner, data::mix};

use crate::cells::{Net, Rows, Source, alone, bits, dry};

const EPOCHS: u64 = 3;
const SEED: u64 = 7;

/// The seed that the Trainer gives the device before a training batch.
fn batch_seed(batches_seen: u64) -> u64 {
    mix(SEED, &[Stage::Fit as u64, 0, batches_seen])
}

fn fresh() -> Net {
    let device = Device::default();
    device.seed(SEED);
    Net::new(&device)
}

fn rates() -> impl FnMut() -> f64 {
    use leyden::schedule::Schedule;
    let mut schedule = OneCycle::new(2e-2, 200);
    let mut next = schedule.initial(1e-2);
    move || std::mem::replace(&mut next, schedule.next(&|_| None).unwrap())
}

#[test]
fn raw_burn_learner_verbs_and_trainer_end_with_the_same_bits() {
    let _alone = alone();
    let source = Source::default();

    let device = Device::default().autodiff();
    let (mut raw, mut optimizer, mut rate) = (fresh().train(), AdamConfig::new().init(), rates());
    let mut seen = 0;
    for epoch in 0..EPOCHS {
        for batch in Loader::epoch(&source.training(SEED).unwrap(), epoch, 0) {
            Device::default().seed(batch_seed(seen));
            let batch = Rows::from_host(batch.unwrap().data, &device).unwrap();
            let loss = cross_entropy(raw.forward(batch.features), batch.classes);
            let gradients = GradientsParams::from_grads(loss.backward(), &raw);
            raw = optimizer.step(rate(), raw, gradients);
            seen += 1;
        }
    }

    let mut learner = ModuleLearner::new(fresh());
    learner.setup(Stage::Fit, SEED).unwrap();
    learner.configure_optimizers().unwrap();
    let (mut logs, mut seen) = (Logs::new(), 0);
    for epoch in 0..EPOCHS {
        for batch in Loader::epoch(&source.training(SEED).unwrap(), epoch, 0) {
            let batch = batch.unwrap();
            let at = StepFacts {
                stage: Stage::Fit,
                epoch,
                batch: batch.index,
                samples: batch.samples,
                global_step: seen,
                batches_seen: seen,
                seed: batch_seed(seen),
                loader: 0,
                in_step: true,
            };
            let trained = learner.train(batch.data, &mut leyden::train::StepCx::new(at, &mut logs)).unwrap();
            assert!(matches!(trained, Trained::Loss(_)));
            learner.apply(&Update { accumulated: 1, clip: None }).unwrap();
            learner.advance(Interval::Step, &|_| None).unwrap();
            logs.end_step().unwrap();
            seen += 1;
        }
    }

    let mut trainer = dry().max_epochs(EPOCHS).seed(SEED).build().unwrap();
    let fitted = trainer.fit(fresh(), &mut source.clone()).unwrap();

    let raw = bits(&raw);
    assert!(raw.iter().any(|(name, _)| name == "norm.running_mean"), "buffers are compared too");
    assert_eq!(raw, bits(learner.model().unwrap()), "raw Burn and the learner's verbs");
    assert_eq!(raw, bits(fitted.model()), "raw Burn and the Trainer");
}

#[test]
fn the_same_seed_gives_the_same_bits_and_another_one_does_not() {
    let _alone = alone();
    let run = |seed| {
        let mut trainer = dry().max_epochs(1).seed(seed).build().unwrap();
        bits(trainer.fit_with(Net::new, &mut Source::default()).unwrap().model())
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

/// Full precision; the file is made anew with `LEYDEN_BLESS=1`, and a change of it needs a reason.
///
/// Matrix products sum in another order on another kind of processor, and Adam makes the last bits larger, so the
/// comparison leaves them room.
#[test]
fn the_losses_of_twenty_steps_are_the_golden_ones() {
    let _alone = alone();
    struct Losses(testing::Record);
    impl Callback for Losses {
        fn name(&self) -> String {
            "Losses".to_owned()
        }
        fn on_train_batch_end(&mut self, event: &Event<'_>, _: &mut Control) -> Result<()> {
            self.0.note(format!("{:?}", event.loss.expect("each batch has a loss").read()?));
            Ok(())
        }
    }
    let record = testing::Record::new();
    let mut trainer = dry().max_steps(20).seed(SEED).callback(Losses(record.clone())).build().unwrap();
    let _ = trainer.fit_with(Net::new, &mut Source::default()).unwrap();
    let losses = record.lines();
    assert_eq!(losses.len(), 20);

    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/net.loss");
    if std::env::var_os("LEYDEN_BLESS").is_some() {
        fs::write(&file, losses.join("\n") + "\n").unwrap();
    }
    let golden = fs::read_to_string(&file).unwrap();
    let golden: Vec<f64> = golden.lines().map(|line| line.parse().unwrap()).collect();
    for (step, (loss, golden)) in losses.iter().zip(&golden).enumerate() {
        let loss: f64 = loss.parse().unwrap();
        assert!((loss - golden).abs() <= 1e-3 * golden.abs(), "step {step}: {loss} is not {golden}");
    }
}

#[test]
fn the_module_learner_keeps_the_learner_s_contract() {
    let _alone = alone();
    // Without dropout and BatchNorm, so that two equal batches have equal gradients.
    #[derive(Module, Debug)]
    struct Plain {
        first: burn::nn::Linear,
        second: burn::nn::Linear,
    }
    impl LeydenModule for Plain {
        type Batch = Rows;
        fn training_step(&self, batch: Rows, cx: &mut StepCx) -> Result<Loss> {
            let hidden = burn::tensor::activation::tanh(self.first.forward(batch.features));
            let loss = cross_entropy(self.second.forward(hidden), batch.classes);
            cx.log("train/loss", &loss);
            Ok(loss.into())
        }
        fn validation_step(&self, batch: Rows, cx: &mut StepCx) -> Result<()> {
            let hidden = burn::tensor::activation::tanh(self.first.forward(batch.features));
            cx.log_classification("val", self.second.forward(hidden), batch.classes)
        }
        fn test_step(&self, batch: Rows, cx: &mut StepCx) -> Result<()> {
            self.validation_step(batch, cx)
        }
        fn configure_optimizers(&self) -> Result<Optimizers> {
            let sgd = burn::optim::SgdConfig::new()
                .with_momentum(Some(burn::optim::momentum::MomentumConfig::new()));
            Ok(Optimizers::new(sgd.init(), 0.1))
        }
    }
    let make = || {
        let device = Device::default();
        device.seed(3);
        let layer = |i, o| burn::nn::LinearConfig::new(i, o).init(&device);
        ModuleLearner::new(Plain { first: layer(6, 5), second: layer(5, 3) })
    };
    let loader = Source::default().training(1).unwrap();
    testing::learner_suite(make, |index| Loader::epoch(&loader, 0, index).next().unwrap().unwrap().data);
}
