//! A weighted mean whose rounding error does not grow with the number of values.
//!
//! It is not exact to the last bit: sums of floats depend on their order, though here only in the last place.

use leyden_process::Result;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Metric, exact, read_state};

/// The sum of value × weight over the sum of weights; for a loss, the weight is the number of samples.
///
/// Both sums are compensated (Neumaier 1974), and the products' rounding errors are added too: the error is about one
/// rounding of the result, where a plain sum of n values may lose n. [`merge`](Metric::merge) adds another rank's
/// sums with the same care. A NaN or infinite value shows in the result. NaN before the first value.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mean {
    weighted: Sum,
    weights: Sum,
}

impl Mean {
    /// The mean of nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one value; `weight` is meant to be finite and not negative, 1 for a plain mean.
    pub fn update(&mut self, value: f64, weight: f64) {
        let product = value * weight;
        self.weighted.add(product);
        if product.is_finite() {
            // What the product's rounding lost, exactly: a fused multiply-add rounds once.
            self.weighted.add(value.mul_add(weight, -product));
        }
        self.weights.add(weight);
    }

    /// The mean so far, or NaN.
    pub fn value(&self) -> f64 {
        self.weighted.value() / self.weights.value()
    }
}

impl Metric for Mean {
    fn compute(&self, name: &str, out: &mut Vec<(String, f64)>) {
        out.push((name.to_owned(), self.value()));
    }

    fn reset(&mut self) {
        *self = Self::default();
    }

    fn state(&self) -> Value {
        json!(self)
    }

    fn load_state(&mut self, state: &Value) -> Result<()> {
        *self = read_state("mean", state)?;
        Ok(())
    }

    fn merge(&mut self, state: &Value) -> Result<()> {
        let other: Self = read_state("mean", state)?;
        self.weighted.merge(&other.weighted);
        self.weights.merge(&other.weights);
        Ok(())
    }
}

/// A running sum and, apart, what its roundings have lost.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sum {
    #[serde(with = "exact")]
    sum: f64,
    #[serde(with = "exact")]
    lost: f64,
}

impl Sum {
    fn add(&mut self, value: f64) {
        let sum = self.sum + value;
        // The smaller of the two is the one that lost digits.
        self.lost +=
            if self.sum.abs() >= value.abs() { (self.sum - sum) + value } else { (value - sum) + self.sum };
        self.sum = sum;
    }

    fn merge(&mut self, other: &Self) {
        self.add(other.sum);
        self.lost += other.lost;
    }

    /// Once the sum is infinite or NaN the losses are inf - inf and mean nothing.
    fn value(&self) -> f64 {
        if self.sum.is_finite() { self.sum + self.lost } else { self.sum }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean_of(values: &[(f64, f64)]) -> f64 {
        let mut mean = Mean::new();
        values.iter().for_each(|&(value, weight)| mean.update(value, weight));
        mean.value()
    }

    #[test]
    fn weighs_values_by_their_samples() {
        assert_eq!(mean_of(&[(0.5, 64.0), (2.0, 16.0)]), 64.0 / 80.0);
    }

    #[test]
    fn keeps_what_a_plain_sum_loses() {
        assert_eq!(mean_of(&[(1.0, 1.0), (1e100, 1.0), (1.0, 1.0), (-1e100, 1.0)]), 2.0 / 4.0);
        let mut mean = Mean::new();
        (0..1_000_000).for_each(|_| mean.update(0.1, 1.0));
        assert_eq!(mean.value(), 0.1);
    }

    #[test]
    fn shows_infinities_and_nan() {
        assert_eq!(mean_of(&[(1.0, 1.0), (f64::INFINITY, 1.0), (1.0, 1.0)]), f64::INFINITY);
        assert!(mean_of(&[(1.0, 1.0), (f64::NAN, 1.0)]).is_nan());
    }
}
