//! Randomness that belongs to a sample: a small generator keyed by seed, epoch and index.
//!
//! It is for shuffling, augmentation and noise. It is not cryptographic, and it does not follow NumPy's or
//! PyTorch's streams. Its numbers are part of Leyden's contract: they do not change between releases, because a
//! run resumed under a later one must see the same data.

use std::f64::consts::TAU;

/// Hashes `values` under `seed` to 64 bits: how seeds are derived from seeds.
///
/// For one seed and all values but one fixed, different last values give different results (each step is a
/// bijection); otherwise collisions are as rare as for a random function. Neighbouring inputs share nothing, so
/// seeds 1 and 2 may be used side by side.
pub fn mix(seed: u64, values: &[u64]) -> u64 {
    values.iter().fold(finish(seed.wrapping_add(GOLDEN)), |hash, &value| {
        finish(hash.wrapping_add(GOLDEN) ^ finish(value.wrapping_add(GOLDEN.rotate_left(32))))
    })
}

/// A generator of 64-bit numbers: xoshiro256++ (Blackman and Vigna, 2019), its state filled by SplitMix64.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SampleRng {
    state: [u64; 4],
}

impl SampleRng {
    /// The generator with this seed; any seed is as good as any other.
    pub fn new(seed: u64) -> Self {
        // SplitMix64 never gives four zeros in a row, the one state xoshiro must not start in.
        Self { state: [1, 2, 3, 4].map(|step| finish(seed.wrapping_add(GOLDEN.wrapping_mul(step)))) }
    }

    /// The generator of one sample in one epoch of a run with this seed.
    pub fn for_sample(seed: u64, epoch: u64, index: u64) -> Self {
        Self::new(mix(seed, &[epoch, index]))
    }

    /// Uniform over all 64-bit numbers.
    pub fn next_u64(&mut self) -> u64 {
        let [a, b, c, d] = &mut self.state;
        let result = a.wrapping_add(*d).rotate_left(23).wrapping_add(*a);
        let shifted = *b << 17;
        *c ^= *a;
        *d ^= *b;
        *b ^= *c;
        *a ^= *d;
        *c ^= shifted;
        *d = d.rotate_left(45);
        result
    }

    /// Uniform in [0, 1), a multiple of 2⁻⁵³.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * UNIT
    }

    /// Uniform in [0, `n`), without bias (Lemire 2019: a multiplication, and rarely a second draw).
    ///
    /// # Panics
    /// If `n` is 0: there is no such number.
    pub fn below(&mut self, n: u64) -> u64 {
        assert!(n > 0, "there is no number below 0");
        let threshold = n.wrapping_neg() % n;
        loop {
            let wide = u128::from(self.next_u64()) * u128::from(n);
            if wide as u64 >= threshold {
                return (wide >> 64) as u64;
            }
        }
    }

    /// Standard normal: mean 0, variance 1 (Box and Muller 1958). Always two draws, so that what follows does not
    /// depend on the values.
    ///
    /// The last bit may differ between platforms, whose `ln` and `cos` do.
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (TAU * self.uniform()).cos()
    }
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood 2014, constants by Stafford): a bijection whose every output
/// bit depends on every input bit.
fn finish(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// 2⁶⁴ divided by the golden ratio: the step of SplitMix64.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
const UNIT: f64 = 1.0 / (1_u64 << 53) as f64;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn agrees_with_the_published_generators() {
        let mut xoshiro = SampleRng { state: [1, 2, 3, 4] };
        let expected = [41943041, 58720359, 3588806011781223, 3591011842654386, 9228616714210784205];
        assert_eq!([(); 5].map(|()| xoshiro.next_u64()), expected);

        let splitmix = SampleRng::new(1234567).state;
        assert_eq!(splitmix[..3], [6457827717110365317, 3203168211198807973, 9817491932198370423]);
    }

    #[test]
    fn keeps_its_numbers_between_releases() {
        // Computed by a second implementation, in Python.
        assert_eq!(mix(0, &[]), 0xe220_a839_7b1d_cdaf);
        assert_eq!(mix(42, &[1, 2, 3]), 0xabf7_4556_ce12_2b76);
        assert_eq!(SampleRng::for_sample(42, 3, 17).next_u64(), 0x274f_09d5_e648_d04e);
    }

    #[test]
    fn neighbouring_seeds_epochs_and_samples_share_no_stream() {
        let grid = || (0..20).flat_map(|s| (0..20).flat_map(move |e| (0..20).map(move |i| (s, e, i))));
        let firsts: HashSet<u64> =
            grid().map(|(s, e, i)| SampleRng::for_sample(s, e, i).next_u64()).collect();
        assert_eq!(firsts.len(), 20 * 20 * 20);
        assert_ne!(mix(0, &[1, 2]), mix(0, &[2, 1]));
        assert_ne!(mix(0, &[1]), mix(0, &[1, 0]));
    }

    #[test]
    fn one_changed_bit_changes_half_of_the_hash() {
        let flips: u32 = (0..64).map(|bit| (mix(7, &[5, 1 << bit]) ^ mix(7, &[5, 0])).count_ones()).sum();
        let mean = f64::from(flips) / 64.0;
        assert!((30.0..34.0).contains(&mean), "{mean} bits of 64");
    }

    #[test]
    fn uniform_and_normal_have_the_moments_of_their_names() {
        const N: usize = 100_000;
        let mut rng = SampleRng::new(1);
        let uniform: Vec<f64> = (0..N).map(|_| rng.uniform()).collect();
        let normal: Vec<f64> = (0..N).map(|_| rng.normal()).collect();
        assert!(uniform.iter().all(|x| (0.0..1.0).contains(x)));
        let moments = |xs: &[f64]| {
            let mean = xs.iter().sum::<f64>() / N as f64;
            (mean, xs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / N as f64)
        };
        // Five standard errors.
        let (mean, variance) = moments(&uniform);
        assert!((mean - 0.5).abs() < 0.005 && (variance - 1.0 / 12.0).abs() < 0.002, "{mean} {variance}");
        let (mean, variance) = moments(&normal);
        assert!(mean.abs() < 0.016 && (variance - 1.0).abs() < 0.023, "{mean} {variance}");
    }

    #[test]
    fn below_is_uniform_also_where_a_remainder_would_be_biased() {
        let mut rng = SampleRng::new(2);
        // Two thirds of the range: a plain remainder would give the lower half twice as often.
        let n = (1_u64 << 63) + (1 << 62);
        let low = (0..10_000).filter(|_| rng.below(n) < n / 2).count();
        assert!((4_750..5_250).contains(&low), "{low}");

        let mut counts = [0_u32; 7];
        (0..70_000).for_each(|_| counts[rng.below(7) as usize] += 1);
        assert!(counts.iter().all(|&count| count.abs_diff(10_000) < 500), "{counts:?}");
        assert_eq!(rng.below(1), 0);
    }
}
