//! A shuffled order that needs no memory: a keyed bijection of [0, len), computed position by position.
//!
//! A Feistel network permutes the numbers of the next power of two; a result outside the range is put through the
//! network again until it falls inside ("cycle walking", Black and Rogaway 2002): less than two passes on average.
//! So any position of any epoch is known at once, which makes resuming O(1). It is a shuffle, not a cipher: it does
//! not hide its key. As its key has 64 bits, it does not reach every order of more than 20 elements; nor does a
//! shuffle by any generator with a 64-bit seed.

use crate::rng::mix;

/// A bijection of [0, len), chosen by a key.
///
/// The order belongs to Leyden's contract: the same `len` and `key` give the same order in every release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permutation {
    len: u64,
    /// Bits of the upper and the lower half of a number: equal, or the lower has one more.
    halves: [u32; 2],
    keys: [[u64; 2]; ROUNDS / 2],
}

impl Permutation {
    /// The permutation of [0, `len`) with this key. Any `len` is fine, 0 included.
    pub fn new(len: u64, key: u64) -> Self {
        let bits = (u64::BITS - len.saturating_sub(1).leading_zeros()).max(MIN_BITS);
        let keys = std::array::from_fn(|i| [mix(key, &[i as u64, 0]), mix(key, &[i as u64, 1])]);
        Self { len, halves: [bits / 2, bits.div_ceil(2)], keys }
    }

    /// How many numbers are permuted.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is nothing to permute.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What stands at `position`.
    ///
    /// # Panics
    /// If `position` is not below `len`, as indexing does.
    pub fn at(&self, position: u64) -> u64 {
        assert!(position < self.len, "position {position} of a permutation of {} numbers", self.len);
        let mut value = self.network(position);
        // Ends: the network is a bijection, so the walk comes back to `position`, which is inside, at the latest.
        while value >= self.len {
            value = self.network(value);
        }
        value
    }

    /// One pass through the network, a bijection of the numbers of that many bits: each half in turn is changed
    /// by a function of the other.
    fn network(&self, value: u64) -> u64 {
        let [upper, lower] = self.halves;
        let (mut high, mut low) = (value >> lower, value & ((1 << lower) - 1));
        for [first, second] in self.keys {
            high ^= scramble(low, first) >> (u64::BITS - upper);
            low ^= scramble(high, second) >> (u64::BITS - lower);
        }
        high << lower | low
    }
}

/// The round function; its upper bits are the good ones. It need not be a bijection.
fn scramble(value: u64, key: u64) -> u64 {
    let spread = (value ^ key).wrapping_mul(SPREAD);
    (spread ^ spread >> 32).wrapping_mul(SPREAD)
}

/// Four rounds shuffle large ranges well (Luby and Rackoff 1988), six also those of [`MIN_BITS`].
const ROUNDS: usize = 6;
/// Networks of fewer bits are measurably uneven: with 4 bits, some of five elements come first 20 % too often. Shorter
/// ranges pay with more passes, under a microsecond per element of a handful.
const MIN_BITS: u32 = 8;
/// An odd number whose multiples spread well (the multiplier of PCG, O'Neill 2014).
const SPREAD: u64 = 0xDA94_2042_E4DD_58B5;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{HashMap, HashSet};

    fn order(len: u64, key: u64) -> Vec<u64> {
        let permutation = Permutation::new(len, key);
        (0..len).map(|position| permutation.at(position)).collect()
    }

    #[test]
    fn is_a_bijection_of_every_short_range() {
        for len in 0..=300 {
            for key in [0, 1, 42, u64::MAX] {
                let mut values = order(len, key);
                values.sort_unstable();
                assert!(values.into_iter().eq(0..len), "len {len}, key {key}");
            }
        }
    }

    #[test]
    fn is_a_bijection_of_a_large_range() {
        for len in [65_536, 65_537, 100_003] {
            let distinct: HashSet<u64> = order(len, 9).into_iter().collect();
            assert_eq!(distinct.len() as u64, len);
            assert!(distinct.iter().all(|&value| value < len));
        }
    }

    #[test]
    fn stays_inside_and_apart_where_it_cannot_be_listed() {
        for len in [(1 << 32) + 1, 1 << 40, (1 << 62) + 1, 1 << 63, u64::MAX] {
            let permutation = Permutation::new(len, 3);
            let positions = (0..2_000).chain(len - 2_000..len);
            let values: HashSet<u64> = positions.map(|position| permutation.at(position)).collect();
            assert_eq!(values.len(), 4_000, "len {len}");
            assert!(values.iter().all(|&value| value < len), "len {len}");
            // A shuffled order has about half of these in each half of the range.
            let low = values.iter().filter(|&&value| value < len / 2).count();
            assert!((1_800..2_200).contains(&low), "{low} of 4000 in the lower half of {len}");
        }
    }

    #[test]
    fn keeps_its_order_between_releases() {
        // Computed by a second implementation, in Python.
        assert_eq!(order(10, 42), [9, 7, 2, 1, 8, 4, 5, 6, 3, 0]);
        assert_eq!(Permutation::new(1_000_000_000_000, 42).at(0), 820539759094);
    }

    #[test]
    fn each_key_gives_another_order() {
        let orders: HashSet<Vec<u64>> = (0..1_000).map(|key| order(60, key)).collect();
        assert_eq!(orders.len(), 1_000);
    }

    /// Pearson's statistic of `counts` against an even distribution, less its mean, in its standard deviations.
    fn excess(counts: impl ExactSizeIterator<Item = u32> + Clone) -> f64 {
        let cells = counts.len() as f64;
        let expected = f64::from(counts.clone().sum::<u32>()) / cells;
        let statistic: f64 = counts.map(|count| (f64::from(count) - expected).powi(2) / expected).sum();
        (statistic - (cells - 1.0)) / (2.0 * (cells - 1.0)).sqrt()
    }

    #[test]
    fn each_position_holds_each_value_equally_often_over_keys() {
        for len in [2, 3, 5, 10, 17, 64, 100] {
            for position in [0, len / 2, len - 1] {
                let mut counts = vec![0; len as usize];
                for key in 0..20_000 {
                    counts[Permutation::new(len, key).at(position) as usize] += 1;
                }
                let excess = excess(counts.iter().copied());
                assert!(excess < 5.0, "len {len}, position {position}: {excess:.1} sigma, {counts:?}");
            }
        }
    }

    #[test]
    fn neighbours_in_the_order_are_independent() {
        let len = 20;
        let mut counts = vec![0; (len * len) as usize];
        for key in 0..40_000 {
            let permutation = Permutation::new(len, key);
            counts[(permutation.at(0) * len + permutation.at(1)) as usize] += 1;
        }
        let off_diagonal: Vec<u32> =
            (0..len * len).filter(|cell| cell % (len + 1) != 0).map(|cell| counts[cell as usize]).collect();
        let excess = excess(off_diagonal.iter().copied());
        assert!(excess < 5.0, "{excess:.1} sigma");
    }

    #[test]
    fn every_order_of_four_occurs_about_equally_often() {
        let mut counts: HashMap<Vec<u64>, u32> = HashMap::new();
        (0..48_000).for_each(|key| *counts.entry(order(4, key)).or_default() += 1);
        assert_eq!(counts.len(), 24);
        let excess = excess(counts.values().copied());
        assert!(excess < 5.0, "{excess:.1} sigma, {counts:?}");
    }
}
