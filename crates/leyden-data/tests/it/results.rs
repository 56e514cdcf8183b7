//! Batches that cannot cross from a worker to the program: an error in their place, and never a hang.

use leyden_data::codes::{BATCH_UNREADABLE, BATCH_UNWRITABLE};
use leyden_data::{Array, DataLoader, Dataset, Error, Result, SampleCx};
use leyden_process::codes::{OVER_BUDGET, SLOT_FULL};
use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::support::{Kind, Leftovers};

/// What is wrong with the batch in the middle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Wrong {
    Nothing,
    Writing,
    WritingPanics,
    Reading,
    ReadingPanics,
    /// Its arrays are larger than a batch may be.
    Large,
    /// What lies beside its arrays is.
    LargeBody,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Awkward(Wrong);

#[derive(Debug)]
struct AwkwardBatch {
    wrong: Wrong,
    numbers: Array<u64>,
    filling: Vec<u8>,
}

impl Serialize for AwkwardBatch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.wrong {
            Wrong::Writing => Err(S::Error::custom("it has an open file")),
            Wrong::WritingPanics => panic!("it has an open file"),
            _ => (self.wrong, &self.numbers, &self.filling).serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for AwkwardBatch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (wrong, numbers, filling) = Deserialize::deserialize(deserializer)?;
        match wrong {
            Wrong::Reading => Err(D::Error::custom("no such file here")),
            Wrong::ReadingPanics => panic!("no such file here"),
            _ => Ok(Self { wrong, numbers, filling }),
        }
    }
}

impl Dataset for Awkward {
    type Item = u64;
    type Batch = AwkwardBatch;

    fn len(&self) -> usize {
        12
    }

    fn get(&self, index: usize, _: &mut SampleCx) -> Result<u64> {
        Ok(index as u64)
    }

    fn collate(&self, items: Vec<u64>) -> Result<AwkwardBatch> {
        let wrong = if items.contains(&5) { self.0 } else { Wrong::Nothing };
        let numbers = if wrong == Wrong::Large { Array::zeros(&[LARGEST])? } else { items.into() };
        let filling = if wrong == Wrong::LargeBody { vec![1; LARGEST] } else { Vec::new() };
        Ok(AwkwardBatch { wrong, numbers, filling })
    }
}

/// What is told of a type that refuses in its own words.
const WORDS_LOST: &str =
    "the batch's own `Serialize` or `Deserialize` refused; the words of its error do not cross";
/// In bytes.
const LARGEST: usize = 1 << 20;

// Row 17.
#[test]
fn a_batch_that_cannot_cross_is_an_error_in_its_place() {
    let leftovers = Leftovers::before();
    for kind in Kind::PROCESSES {
        for (wrong, code, reason) in [
            (Wrong::Writing, BATCH_UNWRITABLE, WORDS_LOST),
            (Wrong::WritingPanics, BATCH_UNWRITABLE, "it has an open file"),
            (Wrong::Reading, BATCH_UNREADABLE, WORDS_LOST),
            (Wrong::ReadingPanics, BATCH_UNREADABLE, "no such file here"),
            (Wrong::Large, SLOT_FULL, ""),
            (Wrong::LargeBody, SLOT_FULL, ""),
        ] {
            let builder = DataLoader::builder(Awkward(wrong)).batch_size(4).max_batch_bytes(LARGEST as u64);
            let loader = kind.of(builder).build().unwrap();
            for _ in 0..3 {
                let results: Vec<Result<u64>> =
                    loader.epoch(0).map(|batch| Ok(batch?.data.numbers.iter().sum())).collect();
                let [Ok(6), Err(error), Ok(38)] = &results[..] else {
                    panic!("{kind:?}, {wrong:?}: {results:?}")
                };
                assert_eq!(error.code(), code, "{kind:?}, {wrong:?}: {error:?}");
                let named = ["batch", "epoch"].map(|label| error.place(label));
                assert_eq!(named, [Some("1"), Some("0")], "{kind:?}, {wrong:?}: {error:?}");
                let told = reason.is_empty() || error.reasons().contains(&reason.to_owned());
                assert!(told, "{kind:?}, {wrong:?}: {error:?}");
                let cure = error.hints().iter().any(|hint| hint.contains("max_batch_bytes"));
                assert!(cure || code != SLOT_FULL, "{kind:?}, {wrong:?}: {error:?}");
            }
        }
    }
    leftovers.assert_none();
}

#[test]
fn where_nothing_crosses_nothing_is_wrong() {
    let leftovers = Leftovers::before();
    for kind in [Kind::Inline, Kind::Threads(2)] {
        for wrong in [Wrong::Writing, Wrong::WritingPanics, Wrong::Reading, Wrong::Large, Wrong::LargeBody] {
            let loader = kind.of(DataLoader::builder(Awkward(wrong)).batch_size(4)).build().unwrap();
            assert!(loader.epoch(0).all(|batch| batch.is_ok()), "{kind:?}, {wrong:?}");
        }
    }
    leftovers.assert_none();
}

/// The memory for batches is half of what is there: who asks for more than all of it is told before anybody is killed.
#[test]
fn a_batch_that_is_larger_than_the_memory_is_an_error() {
    #[derive(Serialize, Deserialize)]
    struct Enormous;

    impl Dataset for Enormous {
        type Item = ();
        type Batch = Array<u8>;

        fn len(&self) -> usize {
            2
        }

        fn get(&self, _: usize, _: &mut SampleCx) -> Result<()> {
            Ok(())
        }

        fn collate(&self, _: Vec<()>) -> Result<Array<u8>> {
            Array::zeros(&[1 << 40])
        }
    }

    let leftovers = Leftovers::before();
    for kind in Kind::PROCESSES {
        let loader = kind.of(DataLoader::builder(Enormous).max_batch_bytes(1 << 41)).build().unwrap();
        let errors: Vec<Error> = loader.epoch(0).filter_map(Result::err).collect();
        assert_eq!(
            errors.iter().map(Error::code).collect::<Vec<_>>(),
            [OVER_BUDGET; 2],
            "{kind:?}: {errors:?}"
        );
    }
    leftovers.assert_none();
}
