//! The toy learner keeps the contract that the loop relies on.

use leyden_train::learner::toy::{ToyBatch, ToyLearner};
use leyden_train::schedule::{Interval, StepLr};
use leyden_train::testing::{Record, RecordedLearner, learner_suite};

/// Different rows for each index, with a loss that depends on every parameter.
fn batch(index: usize) -> ToyBatch {
    let x: Vec<f32> = (0..6).map(|k| ((index * 7 + k * 5) % 11) as f32 / 5.0 - 1.0).collect();
    ToyBatch { x, y: vec![index as f32 + 1.0, 0.5] }
}

#[test]
fn the_toy_learner_keeps_the_contract() {
    learner_suite(|| ToyLearner::new(3, 0.05), batch);
}

#[test]
fn so_it_does_with_a_schedule_and_under_a_recorder() {
    let scheduled = || ToyLearner::new(3, 0.05).schedule(Interval::Step, StepLr::new(2, 0.5));
    learner_suite(scheduled, batch);
    learner_suite(|| RecordedLearner::new(&Record::new()), batch);
}
