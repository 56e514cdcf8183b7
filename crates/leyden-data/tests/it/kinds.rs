//! Who makes a batch does not show in it.

use leyden_data::DataLoader;

use crate::support::{Kind, Leftovers, Noisy, epoch, hash, noisy};

const ALL: [Kind; 9] = [
    Kind::Inline,
    Kind::Threads(1),
    Kind::Threads(2),
    Kind::Threads(4),
    Kind::Spawn(1),
    Kind::Spawn(2),
    Kind::Spawn(4),
    Kind::SpawnThreads(2, 2),
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
