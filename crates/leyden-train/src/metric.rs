//! Metrics over a whole data set: counted per batch, computed once, equal to what one pass over all samples gives.
//!
//! Nothing here knows a tensor, a rank or a progress bar: predictions arrive as class indices, and another rank's
//! share arrives as its [`Metric::state`]. Where it is possible the state is integer counts, so that neither the
//! batch size nor the order of batches nor the number of ranks changes a bit of the result.

mod accuracy;
mod confusion_matrix;
pub(crate) mod exact;
mod f1;
mod mean;

use std::any::Any;

use leyden_process::{Code, Error, Result, exit};
use serde::de::DeserializeOwned;
use serde_json::Value;

pub use accuracy::Accuracy;
pub use confusion_matrix::ConfusionMatrix;
pub use f1::F1;
pub use mean::Mean;

/// What the training loop needs of a metric; the update is the metric's own method, since its arguments differ.
pub trait Metric: Any + Send {
    /// Pushes (full name, value) for everything seen since the last [`reset`](Metric::reset). Most metrics push
    /// one value under `name`, some push several under `name/…`. A metric that has seen nothing pushes NaN:
    /// there is no right number, and 0 would look like one.
    fn compute(&self, name: &str, out: &mut Vec<(String, f64)>);

    /// Forgets everything seen.
    fn reset(&mut self);

    /// Everything seen, as JSON that restores it to the bit.
    fn state(&self) -> Value;

    /// Replaces what was seen by `state`.
    ///
    /// # Errors
    /// [`BAD_METRIC_STATE`] if `state` is not one of this metric, or of another number of classes; the metric is then
    /// as before.
    fn load_state(&mut self, state: &Value) -> Result<()>;

    /// Adds what another rank has seen. Counts give the same bits in any order of merging; see [`Mean`] for sums.
    ///
    /// # Errors
    /// As [`load_state`](Metric::load_state).
    fn merge(&mut self, state: &Value) -> Result<()>;
}

/// How one class fared against all others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct ClassCounts {
    true_positives: u64,
    false_positives: u64,
    false_negatives: u64,
}

impl ClassCounts {
    /// TP / (TP + FP): 0 if the class was never predicted.
    fn precision(self) -> f64 {
        ratio_or_zero(self.true_positives, self.true_positives + self.false_positives)
    }

    /// TP / (TP + FN): 0 if the class never occurs.
    fn recall(self) -> f64 {
        ratio_or_zero(self.true_positives, self.true_positives + self.false_negatives)
    }

    /// 2 TP / (2 TP + FP + FN), the harmonic mean of precision and recall.
    fn f1(self) -> f64 {
        let twice = 2 * self.true_positives;
        ratio_or_zero(twice, twice + self.false_positives + self.false_negatives)
    }

    /// Neither predicted nor a target: the data say nothing about this class.
    fn is_absent(self) -> bool {
        self == Self::default()
    }
}

fn ratio_or_zero(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

fn ratio_or_nan(part: u64, whole: u64) -> f64 {
    if whole == 0 { f64::NAN } else { part as f64 / whole as f64 }
}

/// The unweighted mean of `score` over the classes that occur, as prediction or as target; NaN if none does.
///
/// These are the rules of torchmetrics' multi-class `average="macro"` and of scikit-learn's
/// `average="macro", zero_division=0`: an absent class is left out, one that is only predicted or only a target
/// counts with what its zero division gives, 0.
fn macro_mean(classes: impl Iterator<Item = ClassCounts>, score: impl Fn(ClassCounts) -> f64) -> f64 {
    let (sum, present) = classes
        .filter(|class| !class.is_absent())
        .fold((0.0, 0u64), |(sum, present), class| (sum + score(class), present + 1));
    if present == 0 { f64::NAN } else { sum / present as f64 }
}

fn check_lengths(predicted: &[usize], target: &[usize]) -> Result<()> {
    if predicted.len() == target.len() {
        return Ok(());
    }
    Err(Error::new(UNEVEN_UPDATE, "a metric got unequal numbers of predictions and targets")
        .at("predicted", predicted.len())
        .at("target", target.len())
        .hint("pass one predicted class and one target class for each sample of the batch"))
}

/// Checks everything before anything is counted, so that a failed update changes nothing.
fn check_classes(predicted: &[usize], target: &[usize], classes: usize) -> Result<()> {
    check_lengths(predicted, target)?;
    let bad = predicted.iter().zip(target).position(|(&p, &t)| p >= classes || t >= classes);
    let Some(index) = bad else { return Ok(()) };
    let (side, class) =
        if predicted[index] >= classes { ("predicted", predicted[index]) } else { ("target", target[index]) };
    Err(Error::new(
        CLASS_OUT_OF_RANGE,
        format!("`{side}[{index}]` is class {class}, the metric has {classes} classes"),
    )
    .at("index", index)
    .at("predicted", predicted[index])
    .at("target", target[index])
    .at("classes", format!("0..{classes}"))
    .hint("build the metric with the number of classes of the model's output; classes count from 0"))
}

/// Reads the state of metric `kind`.
fn read_state<T: DeserializeOwned>(kind: &str, state: &Value) -> Result<T> {
    T::deserialize(state).map_err(|error| {
        Error::new(BAD_METRIC_STATE, format!("a saved state does not fit metric `{kind}`"))
            .at("state", abridged(state))
            .because(&error)
            .hint("load the state that this kind of metric has saved")
    })
}

/// The refusal of a state for another number of classes.
fn classes_differ(kind: &str, expected: usize, found: usize) -> Error {
    Error::new(BAD_METRIC_STATE, format!("a saved state does not fit metric `{kind}`"))
        .at("expected", format!("{expected} classes"))
        .at("found", format!("{found} classes"))
        .hint("build the metric with the number of classes it had when the state was saved")
}

/// A state as text of at most [`STATE_CHARS_MAX`] characters, for messages.
pub(crate) fn abridged(state: &Value) -> String {
    let text = state.to_string();
    match text.char_indices().nth(STATE_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// Two lines of a terminal: enough to recognise a state, little enough to read.
const STATE_CHARS_MAX: usize = 160;

/// `T0501`: predictions and targets of one update differ in number.
pub const UNEVEN_UPDATE: Code = Code::new("T0501", exit::TRAINING_FAILED);
/// `T0502`: a predicted or target class is not below the metric's number of classes.
pub const CLASS_OUT_OF_RANGE: Code = Code::new("T0502", exit::TRAINING_FAILED);
/// `T0503`: a saved metric state is of another metric or another number of classes.
pub const BAD_METRIC_STATE: Code = Code::new("T0503", exit::TRAINING_FAILED);

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten samples of four classes; class 3 neither occurs nor is predicted, class 2 is only predicted.
    const PREDICTED: [usize; 10] = [0, 0, 1, 1, 1, 0, 2, 1, 0, 0];
    const TARGET: [usize; 10] = [0, 0, 1, 1, 1, 1, 0, 0, 0, 0];

    fn value(metric: &dyn Metric) -> f64 {
        let mut out = Vec::new();
        metric.compute("m", &mut out);
        assert_eq!(out.len(), 1);
        out[0].1
    }

    #[test]
    fn agrees_with_scikit_learn_on_absent_and_only_predicted_classes() {
        let mut matrix = ConfusionMatrix::new(4);
        matrix.update(&PREDICTED, &TARGET).unwrap();
        let mut out = Vec::new();
        matrix.compute("test", &mut out);
        // By hand: class 0: TP 4, FP 1, FN 2. Class 1: TP 3, FP 1, FN 1. Class 2: TP 0, FP 1, FN 0.
        let expected = [
            ("test/accuracy", 7.0 / 10.0),
            ("test/f1", (8.0 / 11.0 + 6.0 / 8.0 + 0.0) / 3.0),
            ("test/precision", (4.0 / 5.0 + 3.0 / 4.0 + 0.0) / 3.0),
            ("test/recall", (4.0 / 6.0 + 3.0 / 4.0 + 0.0) / 3.0),
        ];
        assert_eq!(out, expected.map(|(name, value)| (name.to_owned(), value)));
        let mut f1 = F1::macro_average(4);
        f1.update(&PREDICTED, &TARGET).unwrap();
        assert_eq!(value(&f1), (8.0 / 11.0 + 6.0 / 8.0) / 3.0);
    }

    #[test]
    fn every_metric_restores_and_merges_its_counts_exactly() {
        fn check<M: Metric>(new: impl Fn() -> M, update: impl Fn(&mut M, std::ops::Range<usize>)) {
            let (mut whole, mut left, mut right) = (new(), new(), new());
            update(&mut whole, 0..10);
            update(&mut left, 0..3);
            update(&mut right, 3..10);
            let through_text: Value = serde_json::from_str(&right.state().to_string()).unwrap();
            left.merge(&through_text).unwrap();
            assert_eq!(left.state(), whole.state());
            let mut restored = new();
            restored.load_state(&through_text).unwrap();
            assert_eq!(restored.state(), right.state());
            left.reset();
            assert_eq!(left.state(), new().state());
        }
        check(Accuracy::new, |m, r| m.update(&PREDICTED[r.clone()], &TARGET[r]).unwrap());
        check(|| ConfusionMatrix::new(4), |m, r| m.update(&PREDICTED[r.clone()], &TARGET[r]).unwrap());
        check(|| F1::macro_average(4), |m, r| m.update(&PREDICTED[r.clone()], &TARGET[r]).unwrap());
        check(|| F1::micro(4), |m, r| m.update(&PREDICTED[r.clone()], &TARGET[r]).unwrap());
        check(Mean::new, |m, r| r.for_each(|i| m.update(PREDICTED[i] as f64, 0.5)));
    }

    #[test]
    fn an_empty_data_set_computes_to_nan() {
        let metrics: [&dyn Metric; 5] =
            [&Accuracy::new(), &ConfusionMatrix::new(3), &F1::macro_average(3), &F1::micro(3), &Mean::new()];
        for metric in metrics {
            let mut out = Vec::new();
            metric.compute("m", &mut out);
            assert!(!out.is_empty() && out.iter().all(|(_, value)| value.is_nan()), "{out:?}");
        }
    }

    #[test]
    fn a_failed_update_names_the_sample_and_counts_nothing() {
        let mut f1 = F1::micro(10);
        let before = f1.state();
        let error = f1.update(&[1, 2, 10], &[1, 2, 3]).unwrap_err();
        assert_eq!(
            format!("{error:?}"),
            "error[T0502]: `predicted[2]` is class 10, the metric has 10 classes\n  index      2\n  predicted  10\n  \
             target     3\n  classes    0..10\n  fix: build the metric with the number of classes of the model's \
             output; classes count from 0"
        );
        let error = f1.update(&[1], &[12]).unwrap_err();
        assert_eq!(error.what(), "`target[0]` is class 12, the metric has 10 classes");
        assert_eq!(f1.state(), before);
    }

    #[test]
    fn unequal_lengths_are_refused_with_both() {
        let error = Accuracy::new().update(&[1, 2, 3], &[1, 2]).unwrap_err();
        assert_eq!(error.code(), UNEVEN_UPDATE);
        assert_eq!((error.place("predicted"), error.place("target")), (Some("3"), Some("2")));
    }

    #[test]
    fn a_foreign_state_is_refused_and_changes_nothing() {
        let mut accuracy = Accuracy::new();
        accuracy.update(&[1], &[1]).unwrap();
        let error = accuracy.load_state(&Mean::new().state()).unwrap_err();
        assert_eq!(error.code(), BAD_METRIC_STATE);
        assert_eq!(error.what(), "a saved state does not fit metric `accuracy`");
        assert_eq!(value(&accuracy), 1.0);

        let error = ConfusionMatrix::new(3).merge(&ConfusionMatrix::new(4).state()).unwrap_err();
        assert_eq!((error.place("expected"), error.place("found")), (Some("3 classes"), Some("4 classes")));
        let error = F1::micro(2).load_state(&F1::micro(1).state()).unwrap_err();
        assert_eq!((error.place("expected"), error.place("found")), (Some("2 classes"), Some("1 classes")));
    }
}
