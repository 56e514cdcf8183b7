//! Data sets that hold functions.

use leyden_data::{
    Array, DataLoader, Dataset, DatasetExt as _, IterableDatasetExt as _, Result, SampleCx, SampleRng,
    StreamLoader, TensorDataset, VecDataset, Workers, default_collate, stream_fn,
};
use leyden_process::codes::ARGUMENT;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::support::{Kind, Leftovers};

/// Functions by name are functions too.
fn scaled(items: Vec<(i64, f64)>) -> Result<(Array<i64>, Array<f64>)> {
    default_collate(items.into_iter().map(|(label, x)| (label, x * 0.5)).collect())
}

type Sums = (Array<i64>, Array<f64>, i64);

/// Filtered, mapped with randomness, collated by a function, and its batches changed.
fn chain() -> impl Dataset<Item = (i64, f64), Batch = Sums> + Serialize + DeserializeOwned + 'static {
    let numbers = VecDataset::new((0..101_i64).collect());
    let odd = numbers.filter(|x| x % 2 == 1).unwrap();
    let noisy = odd.map(|x, cx: &mut SampleCx| Ok((x, x as f64 + cx.rng().normal())));
    noisy.collate_with(scaled).map_batch(|(labels, x)| {
        let sum = labels.iter().sum();
        Ok((labels, x, sum))
    })
}

#[test]
fn data_sets_that_hold_functions_are_the_same_for_all_kinds() {
    let leftovers = Leftovers::before();
    let epochs = |kind: Kind| -> Vec<_> {
        let loader =
            kind.of(DataLoader::builder(chain()).batch_size(7).shuffle(true).seed(3)).build().unwrap();
        let bits = |batch: Result<leyden_data::Batch<Sums>>| {
            let (labels, x, sum) = batch.unwrap().data;
            (labels.into_vec(), x.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), sum)
        };
        (0..2).flat_map(|number| loader.epoch(number).map(bits).collect::<Vec<_>>()).collect()
    };
    let expected = epochs(Kind::Inline);
    assert_eq!(expected.len(), 2 * 50_usize.div_ceil(7));
    for kind in Kind::WORKERS {
        assert_eq!(epochs(kind), expected, "{kind:?}");
    }
    leftovers.assert_none();
}

#[test]
fn streams_that_hold_functions_are_the_same_for_all_kinds() {
    let leftovers = Leftovers::before();
    let builder = || {
        let numbers = stream_fn(4, |shard, _| Ok((0..20).map(move |i| Ok(100 * shard as i64 + i))));
        let even = numbers.filter(|x| x % 2 == 0).shuffle_window(4);
        let noisy = even.map(|x, rng: &mut SampleRng| Ok((x, rng.next_u64())));
        StreamLoader::builder(noisy).batch_size(3).batches_per_epoch(14).lanes(2).seed(5)
    };
    let whole: Vec<_> = builder().build().unwrap().epoch(1).map(Result::unwrap).collect();
    for builder in [
        builder().workers(Workers::threads(2)),
        builder().workers(Workers::spawn(2)),
        #[cfg(not(leyden_portable))]
        builder().workers(Workers::zygote(2)),
    ] {
        let loader = builder.build().unwrap();
        assert_eq!(loader.epoch(1).map(Result::unwrap).collect::<Vec<_>>(), whole, "{loader:?}");
    }
    leftovers.assert_none();
}

#[test]
fn a_function_that_captures_is_an_error_of_build_with_processes_and_works_without() {
    let leftovers = Leftovers::before();
    let factor = std::hint::black_box(3_i64);
    let tensors = TensorDataset::new(Array::from(vec![1_i64, 2])).unwrap();
    let dataset = tensors.map_batch(move |batch: Array<i64>| Ok(batch.iter().map(|x| x * factor).collect()));
    for kind in Kind::EACH {
        let built = kind.of(DataLoader::builder(dataset.clone()).batch_size(2)).build();
        if !kind.is_process() {
            let batch: Array<i64> = built.unwrap().epoch(0).next().unwrap().unwrap().data;
            assert_eq!(batch[..], [3, 6], "{kind:?}");
            continue;
        }
        let error = built.unwrap_err();
        assert_eq!(error.code(), ARGUMENT, "{kind:?}: {error:?}");
        let text = format!("{error:?}");
        for words in ["captures 8 bytes", "into the data set", "`Workers::threads`", "{{closure}}"] {
            assert!(text.contains(words), "{kind:?}: {words} in {text}");
        }
    }
    leftovers.assert_none();
}
