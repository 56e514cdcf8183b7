//! Places in the data: any place, of any loader, means the same to any other one like it.

use leyden_data::codes::{BATCH_POSITION, STATE_MISMATCH};
use leyden_data::{Cursor, DataLoader, DataLoaderBuilder};
use proptest::prelude::*;

use crate::support::{Kind, Leftovers, Trouble};

/// What a loader is like, without its workers.
#[derive(Clone, Copy, Debug)]
struct Like {
    samples: usize,
    batch_size: usize,
    shuffle: bool,
    drop_last: bool,
    seed: u64,
}

impl Like {
    fn builder(self, kind: Kind) -> DataLoaderBuilder<Trouble> {
        let Self { samples, shuffle, drop_last, seed, .. } = self;
        let dataset = Trouble { width: 2, ..Trouble::new(samples, std::path::Path::new("")) };
        let builder = DataLoader::builder(dataset).shuffle(shuffle).drop_last(drop_last).seed(seed);
        kind.of(builder)
    }

    fn build(self, kind: Kind) -> DataLoader<Trouble> {
        self.builder(kind).batch_size(self.batch_size).build().unwrap()
    }
}

/// The samples, and what was drawn for them.
type Rows = Vec<(u64, Vec<f32>)>;

fn rows(
    batches: impl Iterator<
        Item = leyden_data::Result<leyden_data::Batch<(leyden_data::Array<f32>, leyden_data::Array<u64>)>>,
    >,
) -> Vec<Rows> {
    let row = |(number, row): (&u64, &[f32])| (*number, row.to_vec());
    batches
        .map(|batch| {
            let (draws, numbers) = batch.unwrap().data;
            numbers.iter().zip(draws.rows()).map(row).collect()
        })
        .collect()
}

fn like() -> impl Strategy<Value = Like> {
    (1..80_usize, 1..10_usize, any::<bool>(), any::<bool>(), any::<u64>()).prop_map(
        |(samples, batch_size, shuffle, drop_last, seed)| {
            let drop_last = drop_last && samples >= batch_size;
            Like { samples, batch_size, shuffle, drop_last, seed }
        },
    )
}

fn kind() -> impl Strategy<Value = Kind> {
    prop::sample::select(vec![
        Kind::Inline,
        Kind::Threads(1),
        Kind::Threads(3),
        Kind::Spawn(1),
        #[cfg(not(leyden_portable))]
        Kind::Zygote(2),
    ])
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

// Row 44.
proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn the_rest_of_an_epoch_is_the_same_from_any_place_for_any_workers(
        like in like(),
        epoch in any::<u64>(),
        part in 0.0..=1.0,
        before in kind(),
        after in kind(),
    ) {
        let leftovers = Leftovers::before();
        let whole = rows(like.build(Kind::Inline).epoch(epoch));
        let from = (part * whole.len() as f64) as usize;
        let loader = like.build(before);
        let mut seen = rows(loader.epoch(epoch).take(from));
        let saved = if from == 0 { loader.cursor_at(epoch, 0) } else { loader.cursor() };
        drop(loader);
        let read: Cursor = postcard::from_bytes(&postcard::to_allocvec(&saved).unwrap()).unwrap();
        prop_assert_eq!(&read, &saved);
        seen.extend(rows(like.build(after).resume(&read).unwrap()));
        prop_assert_eq!(seen, whole);
        leftovers.assert_none();
    }
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn a_place_saved_by_some_ranks_is_the_same_to_another_number_of_ranks(
        like in like(),
        epoch in any::<u64>(),
        steps in 0..20_usize,
        worlds in prop::sample::select(vec![(1, 2), (2, 1), (2, 4), (4, 2), (3, 1), (1, 3), (4, 1)]),
    ) {
        let global = 12;
        let rank = |rank: usize, world: usize| {
            like.builder(Kind::Inline).global_batch_size(global).drop_last(true).rank(rank, world).build()
        };
        // A step of all ranks together, in their order.
        let step = |world: usize, position: &Cursor| -> Vec<Rows> {
            let ranks: Vec<Vec<Rows>> =
                (0..world).map(|it| rows(rank(it, world).unwrap().resume(position).unwrap())).collect();
            (0..ranks[0].len()).map(|step| ranks.iter().flat_map(|rank| rank[step].clone()).collect()).collect()
        };
        prop_assume!(like.samples >= global);
        let (first, second) = worlds;
        let saved = rank(0, first).unwrap().cursor_at(epoch, steps.min(like.samples / global));
        let by_second = rank(0, second).unwrap().cursor_at(epoch, steps.min(like.samples / global));
        prop_assert_eq!(saved.position, by_second.position);
        prop_assert_eq!(step(first, &saved), step(second, &saved));
    }

    #[test]
    fn a_place_of_another_loader_or_of_nobody_is_refused_and_never_a_panic(
        like in like(),
        seed in any::<u64>(),
        epoch in any::<u64>(),
        position in any::<u64>(),
        identity in ".{0,40}",
        keep in any::<[bool; 3]>(),
    ) {
        let loader = like.build(Kind::Inline);
        let own = loader.cursor_at(epoch, 0);
        let [seed_too, position_too, identity_too] = keep;
        let cursor = Cursor {
            seed: if seed_too { own.seed } else { seed },
            position: if position_too { own.position } else { position },
            identity: if identity_too { own.identity.clone() } else { identity },
            ..own
        };
        let possible = cursor.seed == like.seed && identity_too && cursor.position <= like.samples as u64;
        match loader.resume(&cursor) {
            Ok(rest) => prop_assert!(possible, "{} batches from {cursor:?}", rest.len()),
            Err(error) => prop_assert!([STATE_MISMATCH, BATCH_POSITION].contains(&error.code()), "{error:?}"),
        }
    }
}
