//! Data sets and kinds of workers that the tests share.

use std::collections::BTreeMap;
use std::hash::Hasher as _;

use leyden_data::{
    Array, DataLoader, DataLoaderBuilder, Dataset, Result, SampleCx, Workers, default_collate,
};
use serde::{Deserialize, Serialize};

/// Noisy rows with a label and a name: a batch with arrays and with what is none.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Noisy {
    pub(crate) samples: usize,
    pub(crate) width: usize,
}

/// What [`Noisy`] makes.
pub(crate) type NoisyBatch = (Array<f32>, Array<i64>, Vec<String>, BTreeMap<String, Array<u8>>);

impl Dataset for Noisy {
    type Item = (Array<f32>, i64, String, BTreeMap<String, u8>);
    type Batch = NoisyBatch;

    fn len(&self) -> usize {
        self.samples
    }

    fn get(&self, index: usize, cx: &mut SampleCx) -> Result<Self::Item> {
        let row: Vec<f32> = (0..self.width).map(|_| cx.rng().uniform() as f32).collect();
        let extra =
            BTreeMap::from([("low".to_owned(), index as u8), ("draw".to_owned(), cx.rng().next_u64() as u8)]);
        Ok((row.into(), index as i64, format!("sample {index}"), extra))
    }

    fn collate(&self, items: Vec<Self::Item>) -> Result<Self::Batch> {
        default_collate(items)
    }
}

/// A hash of all batches of an epoch, bit for bit, in their order.
pub(crate) fn hash<'a>(batches: impl Iterator<Item = &'a NoisyBatch>) -> u64 {
    let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
    for (rows, labels, names, extra) in batches {
        rows.iter().for_each(|value| hasher.write_u32(value.to_bits()));
        labels.iter().for_each(|&label| hasher.write_i64(label));
        names.iter().for_each(|name| hasher.write(name.as_bytes()));
        extra.iter().for_each(|(key, column)| {
            hasher.write(key.as_bytes());
            hasher.write(column);
        });
    }
    hasher.finish()
}

/// FNV-1a.
struct Fnv(u64);

impl std::hash::Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

/// A kind of workers, as a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Inline,
    Threads(usize),
    Spawn(usize),
    SpawnThreads(usize, usize),
    Zygote(usize),
}

impl Kind {
    pub(crate) const ALL: [Self; 9] = [
        Self::Inline,
        Self::Threads(1),
        Self::Threads(2),
        Self::Threads(4),
        Self::Spawn(1),
        Self::Spawn(2),
        Self::Spawn(4),
        Self::SpawnThreads(2, 2),
        Self::Zygote(2),
    ];

    pub(crate) fn of<D>(self, builder: DataLoaderBuilder<D>) -> DataLoaderBuilder<D>
    where
        D: Dataset + Serialize + for<'de> Deserialize<'de> + 'static,
        D::Batch: Serialize + for<'de> Deserialize<'de>,
    {
        match self {
            Self::Inline => builder.workers(Workers::inline()),
            Self::Threads(n) => builder.workers(Workers::threads(n)),
            Self::Spawn(n) => builder.workers(Workers::spawn(n)),
            Self::Zygote(n) => builder.workers(Workers::zygote(n)),
            Self::SpawnThreads(n, each) => builder.workers(Workers::spawn(n).threads_each(each)),
        }
    }
}

pub(crate) fn noisy(kind: Kind) -> DataLoader<Noisy> {
    let builder = DataLoader::builder(Noisy { samples: 103, width: 33 }).batch_size(4).shuffle(true).seed(7);
    kind.of(builder).build().unwrap()
}

pub(crate) fn epoch(loader: &DataLoader<Noisy>, epoch: u64) -> Vec<NoisyBatch> {
    loader.epoch(epoch).map(|batch| batch.unwrap().data).collect()
}
