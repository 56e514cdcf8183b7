//! A checksum of every byte of every sample, whatever the order of the samples: the sum of one hash for each of them.
//! `checksum` in `peers/loader_torch.py` computes the same.

use leyden::data::{Array, Element};

/// Sums over the batches of a pass.
#[derive(Default)]
pub(super) struct Checksum {
    sum: u64,
    pub(super) samples: usize,
}

impl Checksum {
    /// Adds the samples of an array, which is the `salt`-th of its batch.
    pub(super) fn add<T: Element>(&mut self, array: &Array<T>, salt: u64) {
        let hashes = array.rows().map(|row| hash(bytemuck::cast_slice(row), salt));
        self.sum = hashes.fold(self.sum, u64::wrapping_add);
    }

    pub(super) fn text(&self) -> String {
        format!("{:016x}", self.sum)
    }
}

/// The words, each with a weight of its own place, then stirred: equal sums of different samples do not cancel.
fn hash(words: &[u32], salt: u64) -> u64 {
    let weighted = words.iter().zip((1_u64..).step_by(2)).fold(salt, |sum, (&word, odd)| {
        sum.wrapping_add(u64::from(word).wrapping_mul(odd.wrapping_mul(0x9E37_79B9_7F4A_7C15)))
    });
    let mixed = (weighted ^ weighted >> 32).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    mixed ^ mixed >> 29
}
