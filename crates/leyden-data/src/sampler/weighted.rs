//! Random draws by weight.
//!
//! With replacement by an alias table (Walker 1977, filled as Vose 1991 does): a draw is one column and one coin,
//! whatever the number of samples, and belongs to its position alone. Without replacement by exponential keys
//! (Efraimidis and Spirakis 2006): every sample draws one number, and the largest in its weight's measure come first.

use std::sync::Arc;

use leyden_process::{Error, Result};

use super::custom::List;
use super::{Order, Sampler, fingerprint};
use crate::codes::{SAMPLER_ARGUMENT, SAMPLER_WEIGHTS};
use crate::rng::{SampleRng, mix};

/// Samples drawn as often as their weights say (PyTorch: `WeightedRandomSampler`).
///
/// Weights are `f64`, need not add up to 1, and may be as many as memory holds (PyTorch's: 2²⁴). A sample of weight 0 is
/// never drawn. Samples beyond the last weight do not exist to it.
///
/// With replacement ([`WeightedRandomSampler::new`]) a table of 16 B per weight is made once, an epoch needs no memory,
/// and any position is known at once, so a run resumes in O(1). Without
/// ([`WeightedRandomSampler::without_replacement`]) each epoch is drawn as a whole when it begins or is resumed:
/// O(n log n), some 0.2 s per million weights, 16 B per weight while it is made and 8 B per draw afterwards.
///
/// ```
/// use leyden_data::{Sampler, WeightedRandomSampler};
///
/// // One of three classes is rare: weigh by one over its size.
/// let classes = [0, 0, 0, 0, 1, 2, 2];
/// let sizes = [4.0, 1.0, 2.0];
/// let weights: Vec<f64> = classes.iter().map(|&class: &usize| 1.0 / sizes[class]).collect();
/// let sampler = WeightedRandomSampler::new(&weights, 1000)?;
/// let order = sampler.order(42, 0)?;
/// let rare = (0..1000).filter(|&position| order.at(position) == 4).count();
/// assert!((280..390).contains(&rare));
/// # Ok::<(), leyden_data::Error>(())
/// ```
#[derive(Clone)]
pub struct WeightedRandomSampler {
    weights: usize,
    draws: usize,
    identity: String,
    method: Method,
}

#[derive(Clone)]
enum Method {
    With(Arc<[Column]>),
    Without(Arc<[f64]>),
}

impl WeightedRandomSampler {
    /// `num_samples` draws per epoch, each from all samples.
    ///
    /// # Errors
    /// `L0602` with index and value of a weight that is negative, infinite or no number, or if all are 0; `L0601` for
    /// no draws.
    pub fn new(weights: &[f64], num_samples: usize) -> Result<Self> {
        check(weights, num_samples)?;
        Ok(Self::of(weights, num_samples, "with", Method::With(alias_table(weights).into())))
    }

    /// `num_samples` draws per epoch, no sample twice: each from the samples that are left.
    ///
    /// # Errors
    /// As of [`WeightedRandomSampler::new`], and `L0602` if fewer samples than `num_samples` have a weight above 0.
    pub fn without_replacement(weights: &[f64], num_samples: usize) -> Result<Self> {
        check(weights, num_samples)?;
        let drawable = weights.iter().filter(|&&weight| weight > 0.0).count();
        if drawable < num_samples {
            return Err(Error::new(SAMPLER_WEIGHTS, "too few samples have a weight above 0")
                .at("num_samples", num_samples)
                .at("weights above 0", format_args!("{drawable} of {}", weights.len()))
                .why("without replacement no sample is drawn twice, and one of weight 0 never")
                .hint(format!(
                    "draw at most {drawable}, or with replacement: `WeightedRandomSampler::new`"
                )));
        }
        Ok(Self::of(weights, num_samples, "without", Method::Without(weights.into())))
    }

    fn of(weights: &[f64], draws: usize, replacement: &str, method: Method) -> Self {
        let hash = fingerprint(weights.iter().map(|weight| weight.to_bits()));
        let weights = weights.len();
        let identity = format!("{draws} by {weights} weights {replacement} replacement, hash {hash:016x}");
        Self { weights, draws, identity, method }
    }
}

impl Sampler for WeightedRandomSampler {
    fn len(&self) -> usize {
        self.draws
    }

    fn order(&self, seed: u64, epoch: u64) -> Result<Box<dyn Order>> {
        let key = mix(seed, &[WEIGHTED, epoch]);
        Ok(match &self.method {
            Method::With(table) => Box::new(Draws { table: Arc::clone(table), key }),
            Method::Without(weights) => Box::new(List(largest(weights, self.draws, key).into())),
        })
    }

    fn identity(&self) -> String {
        self.identity.clone()
    }

    fn bound(&self) -> Option<usize> {
        Some(self.weights)
    }
}

/// A share of 1/n of all draws: below `threshold` it is the sample of this column, else the other.
#[derive(Clone, Copy)]
struct Column {
    threshold: f64,
    other: usize,
}

struct Draws {
    table: Arc<[Column]>,
    key: u64,
}

impl Order for Draws {
    fn at(&self, position: usize) -> usize {
        let mut rng = SampleRng::new(mix(self.key, &[position as u64]));
        let column = rng.below(self.table.len() as u64) as usize;
        let Column { threshold, other } = self.table[column];
        if rng.uniform() < threshold { column } else { other }
    }
}

/// Columns of equal size, each shared by at most two samples.
fn alias_table(weights: &[f64]) -> Vec<Column> {
    let heaviest = (0..weights.len()).max_by(|&a, &b| weights[a].total_cmp(&weights[b])).unwrap_or(0);
    // Divided before it is added up: a sum of large weights may be infinite.
    let share = |weight: f64| weight / weights[heaviest];
    let mean = weights.iter().map(|&weight| share(weight)).sum::<f64>() / weights.len() as f64;
    let mut mass: Vec<f64> = weights.iter().map(|&weight| share(weight) / mean).collect();

    // What rounding leaves over keeps its column, unless it must never be drawn: the sum of a hundred million weights
    // may be off by more than one column.
    let own = |(index, &weight): (usize, &f64)| match weight > 0.0 {
        true => Column { threshold: 1.0, other: index },
        false => Column { threshold: 0.0, other: heaviest },
    };
    let mut table: Vec<Column> = weights.iter().enumerate().map(own).collect();
    let (mut under, mut over): (Vec<usize>, Vec<usize>) =
        (0..weights.len()).partition(|&index| mass[index] < 1.0);
    while let (Some(&donor), Some(index)) = (over.last(), under.pop()) {
        table[index] = Column { threshold: mass[index], other: donor };
        mass[donor] = (mass[donor] + mass[index]) - 1.0;
        if mass[donor] < 1.0 {
            over.pop();
            under.push(donor);
        }
    }
    table
}

/// The `draws` samples with the largest keys, the largest first.
fn largest(weights: &[f64], draws: usize, key: u64) -> Vec<usize> {
    let weighted = weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0);
    let mut keyed: Vec<(f64, usize)> = weighted
        .map(|(index, &weight)| (exponential_key(weight, mix(key, &[index as u64])), index))
        .collect();
    let order = |a: &(f64, usize), b: &(f64, usize)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    if draws < keyed.len() {
        keyed.select_nth_unstable_by(draws, order);
        keyed.truncate(draws);
    }
    keyed.sort_unstable_by(order);
    keyed.into_iter().map(|(_, index)| index).collect()
}

/// u^(1/w) of Efraimidis and Spirakis, as ln w - ln(-ln u): the same order, without a limit to the weights' range.
/// The last bit of `ln` may differ between platforms; for the order to, two keys must agree in all others.
fn exponential_key(weight: f64, random: u64) -> f64 {
    // In the open interval (0, 1), so that both logarithms are finite.
    let uniform = ((random >> 12) as f64 + 0.5) / (1_u64 << 52) as f64;
    weight.ln() - (-uniform.ln()).ln()
}

fn check(weights: &[f64], draws: usize) -> Result<()> {
    if let Some((index, weight)) =
        weights.iter().enumerate().find(|(_, weight)| !weight.is_finite() || **weight < 0.0)
    {
        return Err(Error::new(SAMPLER_WEIGHTS, "a weight is not a number from 0 on")
            .at("index", index)
            .at("weight", weight)
            .hint("weights are finite and not negative; they need not add up to 1"));
    }
    if weights.iter().all(|&weight| weight == 0.0) {
        return Err(Error::new(SAMPLER_WEIGHTS, "no sample has a weight above 0")
            .at("weights", weights.len())
            .hint("give a weight above 0 to each sample that may be drawn"));
    }
    if draws == 0 {
        return Err(Error::new(SAMPLER_ARGUMENT, "a sampler must draw at least one sample")
            .at("num_samples", 0)
            .hint("the usual number of draws is that of the samples"));
    }
    Ok(())
}

/// Keeps weighted draws apart from other uses of the same seed.
const WEIGHTED: u64 = 0x7765_6967_6874;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn draws(sampler: &WeightedRandomSampler, seed: u64, epoch: u64) -> Vec<usize> {
        let order = sampler.order(seed, epoch).unwrap();
        (0..sampler.len()).map(|position| order.at(position)).collect()
    }

    /// What the table gives each sample of all draws.
    fn chances(weights: &[f64]) -> Vec<f64> {
        let table = alias_table(weights);
        let mut chances = vec![0.0; weights.len()];
        for (index, column) in table.iter().enumerate() {
            let own = column.threshold.clamp(0.0, 1.0);
            chances[index] += own / table.len() as f64;
            chances[column.other] += (1.0 - own) / table.len() as f64;
        }
        chances
    }

    /// Pearson's statistic of `counts` against `expected`, less its mean, in its standard deviations.
    fn excess(counts: &[u32], expected: &[f64]) -> f64 {
        let cells = counts.len() as f64;
        let statistic: f64 = counts
            .iter()
            .zip(expected)
            .map(|(&count, expected)| (f64::from(count) - expected).powi(2) / expected)
            .sum();
        (statistic - (cells - 1.0)) / (2.0 * (cells - 1.0)).sqrt()
    }

    #[test]
    fn draws_as_often_as_the_weights_say() {
        let weights: Vec<f64> = (1..=50).map(f64::from).collect();
        let sampler = WeightedRandomSampler::new(&weights, 200_000).unwrap();
        let mut counts = vec![0; 50];
        draws(&sampler, 1, 0).into_iter().for_each(|index| counts[index] += 1);
        let expected: Vec<f64> = weights.iter().map(|weight| weight / 1275.0 * 200_000.0).collect();
        let excess = excess(&counts, &expected);
        assert!(excess < 4.0, "{excess:.1} sigma, {counts:?}");
        assert_eq!(draws(&sampler, 1, 0), draws(&sampler, 1, 0));
        assert_ne!(draws(&sampler, 1, 0), draws(&sampler, 1, 1));
    }

    #[test]
    fn the_first_two_without_replacement_are_as_likely_as_drawing_from_what_is_left() {
        let weights = [1.0, 2.0, 3.0, 4.0];
        let sampler = WeightedRandomSampler::without_replacement(&weights, 2).unwrap();
        let (mut counts, mut expected) = (vec![0; 12], vec![0.0; 12]);
        let cell = |first: usize, second: usize| first * 3 + second - usize::from(second > first);
        for epoch in 0..50_000 {
            let drawn = draws(&sampler, 3, epoch);
            counts[cell(drawn[0], drawn[1])] += 1;
        }
        for first in 0..4 {
            for second in (0..4).filter(|&second| second != first) {
                let chance = weights[first] / 10.0 * weights[second] / (10.0 - weights[first]);
                expected[cell(first, second)] = 50_000.0 * chance;
            }
        }
        let excess = excess(&counts, &expected);
        assert!(excess < 4.0, "{excess:.1} sigma, {counts:?} for {expected:?}");
    }

    #[test]
    fn without_replacement_no_sample_comes_twice_and_none_of_weight_zero() {
        let weights: Vec<f64> = (0..1_000).map(|index| f64::from(index % 4)).collect();
        let all = WeightedRandomSampler::without_replacement(&weights, 750).unwrap();
        let mut drawn = draws(&all, 1, 0);
        let some = WeightedRandomSampler::without_replacement(&weights, 100).unwrap();
        assert_eq!(draws(&some, 1, 0), drawn[..100], "fewer draws are the first ones");
        drawn.sort_unstable();
        assert!(drawn.into_iter().eq((0..1_000).filter(|index| index % 4 != 0)));
    }

    #[test]
    fn any_range_of_weights_is_kept() {
        let weights = [0.0, f64::MAX, f64::MAX, 0.0, f64::MAX / 2.0, f64::MIN_POSITIVE, 5e-324];
        let expected = [0.0, 0.4, 0.4, 0.0, 0.2, 0.0, 0.0];
        for (chance, expected) in chances(&weights).into_iter().zip(expected) {
            assert!((chance - expected).abs() < 1e-15, "{chance} for {expected}");
        }
        let sampler = WeightedRandomSampler::without_replacement(&weights, 5).unwrap();
        let drawn = draws(&sampler, 1, 0);
        assert_eq!(drawn[3..], [5, 6], "the lightest come last");
        assert_eq!(chances(&[5e-324, 5e-324]), [0.5, 0.5]);
        assert_eq!(chances(&[7.0]), [1.0]);
    }

    #[test]
    fn more_weights_than_pytorch_takes_are_fine() {
        let mut weights = vec![0.0; (1 << 24) + 10];
        weights[(1 << 24) + 5] = 3.0;
        weights[0] = 1.0;
        let sampler = WeightedRandomSampler::new(&weights, 1_000).unwrap();
        let drawn = draws(&sampler, 1, 0);
        let far = drawn.iter().filter(|&&index| index == (1 << 24) + 5).count();
        assert!((680..820).contains(&far) && drawn.iter().all(|index| [0, (1 << 24) + 5].contains(index)));
    }

    #[test]
    fn keeps_its_draws_between_releases() {
        let weights = [0.5, 0.0, 3.0, 1.25, 2.0];
        assert_eq!(draws(&WeightedRandomSampler::new(&weights, 12).unwrap(), 7, 3), GOLDEN);
        let without = WeightedRandomSampler::without_replacement(&weights, 4).unwrap();
        assert_eq!(draws(&without, 7, 3), GOLDEN_WITHOUT);
    }

    #[test]
    fn refuses_what_are_no_weights_with_index_and_value() {
        for (weight, text) in [(f64::NAN, "NaN"), (-0.5, "-0.5"), (f64::INFINITY, "inf")] {
            for make in [WeightedRandomSampler::new, WeightedRandomSampler::without_replacement] {
                let error = make(&[1.0, 0.0, 2.0, weight], 1).map(drop).unwrap_err();
                assert_eq!((error.code(), error.place("index")), (SAMPLER_WEIGHTS, Some("3")));
                assert_eq!(error.place("weight"), Some(text));
            }
        }
        for weights in [&[][..], &[0.0, -0.0]] {
            let error = WeightedRandomSampler::new(weights, 1).map(drop).unwrap_err();
            assert_eq!(error.what(), "no sample has a weight above 0");
        }
        let error = WeightedRandomSampler::new(&[1.0], 0).map(drop).unwrap_err();
        assert_eq!(error.code(), SAMPLER_ARGUMENT);

        let error = WeightedRandomSampler::without_replacement(&[1.0, 0.0, 2.0], 3).map(drop).unwrap_err();
        let expected = "error[L0602]: too few samples have a weight above 0\n  num_samples      3\n  weights above 0  \
                        2 of 3\n  why: without replacement no sample is drawn twice, and one of weight 0 never\n  \
                        fix: draw at most 2, or with replacement: `WeightedRandomSampler::new`";
        assert_eq!(format!("{error:?}"), expected);
    }

    #[test]
    fn other_weights_are_another_identity() {
        let identity = |weights: &[f64]| WeightedRandomSampler::new(weights, 4).unwrap().identity();
        assert_eq!(identity(&[1.0, 2.0]), identity(&[1.0, 2.0]));
        assert_ne!(identity(&[1.0, 2.0]), identity(&[2.0, 1.0]));
        let without = WeightedRandomSampler::without_replacement(&[1.0, 2.0], 2).unwrap().identity();
        assert!(without.starts_with("2 by 2 weights without replacement, hash "), "{without}");
    }

    proptest! {
        #[test]
        fn the_table_gives_each_sample_its_share(
            weights in prop::collection::vec(prop_oneof![Just(0.0), 0.0..1.0, 0.0..1e-9, 1e6..1e9], 1..200)
        ) {
            let sum: f64 = weights.iter().sum();
            prop_assume!(sum > 0.0);
            for (index, chance) in chances(&weights).into_iter().enumerate() {
                let expected = weights[index] / sum;
                prop_assert!((chance - expected).abs() < 1e-12, "{chance} for {expected} at {index}");
                prop_assert!(weights[index] > 0.0 || chance == 0.0, "weight 0 at {index} is drawn");
            }
        }
    }

    // Computed by a second implementation, in Python.
    const GOLDEN: [usize; 12] = [2, 4, 3, 2, 2, 2, 4, 0, 2, 2, 4, 2];
    const GOLDEN_WITHOUT: [usize; 4] = [0, 4, 2, 3];
}
