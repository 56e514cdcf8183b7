//! Data sets and kinds of workers that the tests share.

pub(crate) mod kind;
pub(crate) mod leftovers;
pub(crate) mod program;
pub(crate) mod trouble;

use std::collections::BTreeMap;
use std::hash::Hasher as _;
use std::time::Duration;

use leyden_data::{Array, DataLoader, DataLoaderBuilder, Dataset, Error, Result, SampleCx, default_collate};
use serde::{Deserialize, Serialize};

pub(crate) use self::kind::Kind;
pub(crate) use self::leftovers::Leftovers;
use self::trouble::Fnv;
pub(crate) use self::trouble::{Act, LONG, Trouble};

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
    let mut hasher = Fnv::default();
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

pub(crate) fn noisy(kind: Kind) -> DataLoader<Noisy> {
    let builder = DataLoader::builder(Noisy { samples: 103, width: 33 }).batch_size(4).shuffle(true).seed(7);
    kind.of(builder).build().unwrap()
}

pub(crate) fn epoch(loader: &DataLoader<Noisy>, epoch: u64) -> Vec<NoisyBatch> {
    loader.epoch(epoch).map(|batch| batch.unwrap().data).collect()
}

/// A loader of a troubled data set: batches of four, shuffled, under the limits of the tests.
pub(crate) fn troubled(kind: Kind, dataset: &Trouble) -> DataLoaderBuilder<Trouble> {
    let builder = DataLoader::builder(dataset.clone()).batch_size(4).shuffle(true).seed(11);
    kind.of(builder)
}

/// The hash of an epoch without trouble, made by nobody else.
pub(crate) fn calm_hash(dataset: &Trouble, number: u64) -> u64 {
    whole_hash(&troubled(Kind::Inline, &dataset.calm()).build().unwrap(), number)
}

/// All batches of an epoch, which must be there, as a hash.
pub(crate) fn whole_hash(loader: &DataLoader<Trouble>, number: u64) -> u64 {
    let mut hasher = Fnv::default();
    let mut epoch = loader.epoch(number);
    let expected = epoch.len();
    let count = epoch
        .by_ref()
        .map(|batch| hasher.add(&batch.unwrap_or_else(|error| panic!("{error:?}")).data))
        .count();
    assert_eq!(count, expected);
    hasher.finish()
}

/// The batches of an epoch: the numbers of their samples, or their error.
pub(crate) fn outcomes(loader: &DataLoader<Trouble>, number: u64) -> Vec<Result<Vec<u64>>> {
    loader.epoch(number).map(|batch| Ok(batch?.data.1.to_vec())).collect()
}

/// The one error among them, and the number of its batch.
pub(crate) fn only_error(outcomes: &[Result<Vec<u64>>]) -> (usize, &Error) {
    let mut errors =
        outcomes.iter().enumerate().filter_map(|(batch, outcome)| Some((batch, outcome.as_ref().err()?)));
    let first = errors.next().expect("one batch fails");
    if let Some((batch, error)) = errors.next() {
        panic!("batch {batch} fails too: {error:?}\nafter {:?}", first.1);
    }
    first
}

/// The batch that a sample is in.
pub(crate) fn batch_of(dataset: &Trouble, number: u64, sample: usize) -> usize {
    let loader = troubled(Kind::Inline, &dataset.calm()).build().unwrap();
    let order: Vec<Vec<u64>> = outcomes(&loader, number).into_iter().map(Result::unwrap).collect();
    order.iter().position(|batch| batch.contains(&(sample as u64))).expect("every sample is in some batch")
}

/// A measured time, for whoever runs the tests with `--nocapture`.
pub(crate) fn measured(row: &str, what: impl std::fmt::Display, time: Duration) {
    println!("row {row}: {what}: {:.1} ms", time.as_secs_f64() * 1e3);
}
