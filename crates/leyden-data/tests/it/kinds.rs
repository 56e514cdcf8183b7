//! Who makes a batch does not show in it.

use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::thread::ThreadId;
use std::time::Duration;

use leyden_data::{
    Array, DataLoader, Dataset, Error, IterableDataset, Loader, Result, SampleCx, Stream, StreamCx,
    StreamLoader, Workers, batch_sampler_fn, default_collate,
};
use serde::{Deserialize, Serialize};

use crate::support::{Kind, Leftovers, Noisy, epoch, hash, noisy};

// The portable back end has no zygotes.
const ALL: [Kind; if cfg!(leyden_portable) { 8 } else { 9 }] = [
    Kind::Inline,
    Kind::Threads(1),
    Kind::Threads(2),
    Kind::Threads(4),
    Kind::Spawn(1),
    Kind::Spawn(2),
    Kind::Spawn(4),
    Kind::SpawnThreads(2, 2),
    #[cfg(not(leyden_portable))]
    Kind::Zygote(2),
];

#[test]
fn all_kinds_and_numbers_of_workers_make_the_same_bits() {
    let leftovers = Leftovers::before();
    let expected = [0, 1, 2].map(|number| hash(epoch(&noisy(Kind::Inline), number).iter()));
    assert_ne!(expected[0], expected[1]);
    for kind in ALL {
        let loader = noisy(kind);
        // Twice the same epoch, too: workers keep nothing from one to the next.
        for number in [0, 1, 2, 1] {
            let found = hash(epoch(&loader, number).iter());
            assert_eq!(found, expected[number as usize], "{kind:?}, epoch {number}");
        }
    }
    leftovers.assert_none();
}

#[test]
fn an_epoch_goes_on_at_any_batch_under_another_kind() {
    let leftovers = Leftovers::before();
    let whole = epoch(&noisy(Kind::Inline), 3);
    let kinds: Vec<(Kind, DataLoader<Noisy>)> = ALL.map(|kind| (kind, noisy(kind))).into();
    for from in 0..=whole.len() {
        let (_, before) = &kinds[from % kinds.len()];
        let (kind, after) = &kinds[(from + 3) % kinds.len()];
        let begun: Vec<_> = before.epoch(3).take(from).map(|batch| batch.unwrap().data).collect();
        let cursor = if from == 0 { before.cursor_at(3, 0) } else { before.cursor() };
        let rest: Vec<_> = after.resume(&cursor).unwrap().map(|batch| batch.unwrap().data).collect();
        assert_eq!(
            hash(begun.iter().chain(&rest)),
            hash(whole.iter()),
            "interrupted before batch {from}, then {kind:?}"
        );
    }
    drop(kinds);
    leftovers.assert_none();
}

#[test]
fn programs_are_told_the_kind_by_its_name() {
    for kind in Kind::EACH {
        assert_eq!(Kind::named(&kind.name()), Some(kind));
    }
    assert_eq!(Kind::named("Threads"), None);
}

/// Each batch names the thread that made it; a sample takes as long as it is told to.
struct Where(Duration);

impl Dataset for Where {
    type Item = ();
    type Batch = ThreadId;

    fn len(&self) -> usize {
        32
    }

    fn get(&self, _: usize, _: &mut SampleCx) -> Result<()> {
        std::thread::sleep(self.0);
        Ok(())
    }

    fn collate(&self, _: Vec<()>) -> Result<ThreadId> {
        Ok(std::thread::current().id())
    }
}

#[test]
fn auto_starts_threads_where_samples_are_slow_and_there_is_more_than_one_core() {
    let _leftovers = Leftovers::before();
    let makers = |each: Duration| -> BTreeSet<String> {
        let loader = DataLoader::builder(Where(each)).batch_size(4).workers(Workers::auto()).build().unwrap();
        loader.epoch(0).map(|batch| format!("{:?}", batch.unwrap().data)).collect()
    };
    let here = format!("{:?}", std::thread::current().id());
    assert_eq!(makers(Duration::ZERO), BTreeSet::from([here.clone()]));
    if std::thread::available_parallelism().unwrap().get() > 1 {
        assert!(!makers(Duration::from_millis(2)).contains(&here));
        // A sample is made at once; a batch, which a batch sampler alone knows the size of, is not.
        let whole = batch_sampler_fn(1, |_, _| Ok(vec![(0..32).collect()]));
        let builder = DataLoader::builder(Where(Duration::from_micros(20))).batch_sampler(whole);
        let loader = builder.workers(Workers::auto()).build().unwrap();
        let maker = loader.epoch(0).next().unwrap().unwrap().data;
        assert_ne!(format!("{maker:?}"), here);
    }
}

#[test]
fn a_loader_inside_a_worker_process_works_by_itself_and_gives_the_same_bits() {
    /// A sample is the hash of an epoch of another loader, which asks for workers.
    #[derive(Serialize, Deserialize)]
    struct Nested;

    impl Dataset for Nested {
        type Item = u64;
        type Batch = Array<u64>;

        fn len(&self) -> usize {
            2
        }

        fn get(&self, index: usize, _: &mut SampleCx) -> Result<u64> {
            let kind = [Kind::Spawn(2), Kind::Threads(2)][index];
            Ok(hash(epoch(&noisy(kind), 0).iter()))
        }

        fn collate(&self, items: Vec<u64>) -> Result<Array<u64>> {
            default_collate(items)
        }
    }

    let leftovers = Leftovers::before();
    let expected = hash(epoch(&noisy(Kind::Inline), 0).iter());
    let loader = DataLoader::builder(Nested).batch_size(2).workers(Workers::spawn(1)).build().unwrap();
    let batch = loader.epoch(0).next().unwrap().unwrap();
    assert_eq!(batch.data[..], [expected; 2]);
    drop((loader, batch));
    leftovers.assert_none();
}

#[test]
fn streams_are_the_same_for_all_kinds_and_go_on_at_any_batch() {
    /// Shards of uneven length.
    #[derive(Serialize, Deserialize)]
    struct Shards;

    impl IterableDataset for Shards {
        type Item = (i64, f32);
        type Batch = (Array<i64>, Array<f32>);

        fn shards(&self) -> usize {
            5
        }

        fn shard_len(&self, shard: usize) -> Option<usize> {
            Some(3 * shard + 2)
        }

        fn stream(&self, shard: usize, cx: StreamCx) -> Result<Stream<'_, Self::Item>> {
            let sample = move |n: usize| Ok(((100 * shard + n) as i64, cx.rng(n as u64).uniform() as f32));
            Ok(Box::new((0..3 * shard + 2).map(sample)))
        }

        fn collate(&self, items: Vec<Self::Item>) -> Result<Self::Batch> {
            default_collate(items)
        }
    }

    let leftovers = Leftovers::before();
    let builder = || StreamLoader::builder(Shards).batch_size(3).lanes(3).shuffle_shards(true).seed(5);
    let whole: Vec<_> = builder().build().unwrap().epoch(2).map(Result::unwrap).collect();
    let loaders = [
        builder().workers(Workers::threads(2)),
        builder().workers(Workers::spawn(2)),
        #[cfg(not(leyden_portable))]
        builder().workers(Workers::zygote(3)),
    ];
    for builder in loaders {
        let loader = builder.build().unwrap();
        for from in [0, 1, whole.len() / 2, whole.len()] {
            let rest: Vec<_> = Loader::epoch(&loader, 2, from).map(Result::unwrap).collect();
            assert_eq!(rest, whole[from..], "{loader:?} from {from}");
        }
    }
    leftovers.assert_none();
}

#[test]
fn errors_of_streams_name_the_worker_among_all_and_waiting_for_others_is_no_training() {
    /// A shard a lane; the last fails, the first is slow.
    #[derive(Serialize, Deserialize)]
    struct Uneven;

    impl IterableDataset for Uneven {
        type Item = i64;
        type Batch = Array<i64>;

        fn shards(&self) -> usize {
            3
        }

        fn shard_len(&self, _: usize) -> Option<usize> {
            Some(8)
        }

        fn stream(&self, shard: usize, _: StreamCx) -> Result<Stream<'_, i64>> {
            Ok(Box::new((0..8).map(move |n| match shard {
                0 => {
                    std::thread::sleep(Duration::from_millis(5));
                    Ok(n)
                }
                2 => Err(Error::msg("a torn record")),
                _ => Ok(n),
            })))
        }

        fn collate(&self, items: Vec<i64>) -> Result<Array<i64>> {
            default_collate(items)
        }
    }

    let leftovers = Leftovers::before();
    for (builder, process) in [
        (StreamLoader::builder(Uneven).workers(Workers::threads(3)), false),
        (StreamLoader::builder(Uneven).workers(Workers::spawn(3)), true),
    ] {
        let loader = builder.lanes(3).build().unwrap();
        let batches: Vec<_> = loader.epoch(0).collect();
        assert_eq!(batches.len(), 24);
        for batch in &batches {
            let Err(error) = batch else { continue };
            let named = if process { "2 of 3, pid " } else { "2 of 3 threads" };
            assert!(error.place("worker").unwrap().starts_with(named), "{error:?}");
        }
        assert_eq!(batches.iter().filter(|batch| batch.is_err()).count(), 8);
        drop(batches);
        // Nobody trains here: what passes is waiting for the first part, which is not the second's.
        let timings = loader.timings();
        assert!(timings[0].waited > Duration::from_millis(20), "{timings:?}");
        let trained = timings[1].elapsed.saturating_sub(timings[1].waited);
        assert!(trained < timings[0].waited / 2, "{trained:?} in {timings:?}");
    }
    leftovers.assert_none();
}

#[test]
fn a_data_set_may_keep_arrays_that_it_made_for_a_sample() {
    /// Makes a row once, and keeps it.
    #[derive(Serialize, Deserialize)]
    struct Cached {
        #[serde(skip)]
        kept: OnceLock<Array<f32>>,
    }

    impl Dataset for Cached {
        type Item = Array<f32>;
        type Batch = Array<f32>;

        fn len(&self) -> usize {
            12
        }

        fn get(&self, index: usize, _: &mut SampleCx) -> Result<Array<f32>> {
            let kept = self.kept.get_or_init(|| {
                let mut kept = Array::zeros(&[2]).unwrap();
                kept.copy_from_slice(&[1.0, 2.0]);
                kept
            });
            let mut row = Array::zeros(kept.shape())?;
            row.iter_mut().zip(kept).for_each(|(value, kept)| *value = kept * index as f32);
            Ok(row)
        }

        fn collate(&self, items: Vec<Array<f32>>) -> Result<Array<f32>> {
            default_collate(items)
        }
    }

    let leftovers = Leftovers::before();
    for kind in Kind::EACH {
        let loader =
            kind.of(DataLoader::builder(Cached { kept: OnceLock::new() }).batch_size(4)).build().unwrap();
        let rows: Vec<f32> = loader.epoch(0).flat_map(|batch| batch.unwrap().data.into_vec()).collect();
        assert_eq!(rows[20..], [10.0, 20.0, 11.0, 22.0], "{kind:?}");
    }
    leftovers.assert_none();
}
