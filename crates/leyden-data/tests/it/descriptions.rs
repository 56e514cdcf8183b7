//! Data sets whose own `Serialize`, `Deserialize` or `worker_init` does not do what it should: whose code it was is said.

use std::time::{Duration, Instant};

use leyden_data::codes::WORKER_INIT;
use leyden_data::{DataLoader, Dataset, Error, Result, SampleCx};
use leyden_process::codes::{ARGUMENT, DIED, PANICKED, POOL_START};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::support::{Act, Kind, LONG, Leftovers, Trouble, troubled};

/// It crosses as what is to happen on the way.
struct Crossing(String);

impl Serialize for Crossing {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        assert!(self.0 != "panic here", "not to be written");
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Crossing {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let what = String::deserialize(deserializer)?;
        match what.as_str() {
            "panic there" => panic!("not to be read"),
            "sleep" => std::thread::sleep(2 * LONG),
            "exit" => std::process::exit(0),
            _ => {}
        }
        Ok(Self(what))
    }
}

impl Dataset for Crossing {
    type Item = u64;
    type Batch = Vec<u64>;

    fn len(&self) -> usize {
        8
    }

    fn get(&self, index: usize, _: &mut SampleCx) -> Result<u64> {
        Ok(index as u64)
    }

    fn collate(&self, items: Vec<u64>) -> Result<Vec<u64>> {
        Ok(items)
    }
}

fn refusal(kind: Kind, what: &str) -> Error {
    let builder = DataLoader::builder(Crossing(what.to_owned())).start_timeout(Duration::from_millis(700));
    kind.of(builder).build().map(drop).unwrap_err()
}

#[test]
fn a_description_that_panics_while_it_is_written_is_an_error() {
    let leftovers = Leftovers::before();
    for kind in Kind::PROCESSES {
        let error = refusal(kind, "panic here");
        assert_eq!(error.code(), ARGUMENT, "{kind:?}: {error:?}");
        assert!(error.what().ends_with("its `Serialize` panicked"), "{kind:?}: {error:?}");
        assert_eq!(error.reasons(), ["not to be written"]);
        assert!(error.place("panicked").unwrap().contains("descriptions.rs:"), "{kind:?}: {error:?}");
    }
    leftovers.assert_none();
}

#[test]
fn a_description_that_panics_while_it_is_read_is_an_error_that_says_so() {
    let leftovers = Leftovers::before();
    for kind in Kind::PROCESSES {
        let error = refusal(kind, "panic there");
        assert_eq!(error.code(), PANICKED, "{kind:?}: {error:?}");
        assert!(error.what().contains("`Deserialize`"), "{kind:?}: {error:?}");
        assert_eq!(error.reasons(), ["not to be read"]);
    }
    leftovers.assert_none();
}

#[test]
fn a_description_that_is_not_read_in_time_is_given_up_after_the_time_to_start() {
    let leftovers = Leftovers::before();
    for kind in Kind::PROCESSES {
        let began = Instant::now();
        let error = refusal(kind, "sleep");
        assert!(began.elapsed() < LONG, "{kind:?}: {:?}", began.elapsed());
        assert_eq!(error.code(), POOL_START, "{kind:?}: {error:?}");
        assert_eq!(error.place("limit"), Some("700ms"), "{kind:?}: {error:?}");
        assert!(error.place("in").unwrap().contains("`Deserialize`"), "{kind:?}: {error:?}");
        assert!(error.hints()[0].contains("start_timeout"), "{kind:?}: {error:?}");
    }
    leftovers.assert_none();
}

#[test]
fn code_that_ends_a_process_before_it_works_is_named() {
    let leftovers = Leftovers::before();
    for kind in Kind::PROCESSES {
        let error = refusal(kind, "exit");
        assert!(error.place("in").unwrap().contains("`Deserialize`"), "{kind:?}: {error:?}");
        assert!(error.reasons()[0].contains("exited with code 0"), "{kind:?}: {error:?}");

        let folder = tempfile::tempdir().unwrap();
        let dataset = Trouble::new(8, folder.path()).init(0, Act::Exit(0), usize::MAX);
        let error = troubled(kind, &dataset).build().map(drop).unwrap_err();
        assert_eq!(error.code(), DIED, "{kind:?}: {error:?}");
        assert!(error.place("in").unwrap().contains("`worker_init`"), "{kind:?}: {error:?}");

        let dataset = Trouble::new(8, folder.path()).init(1, Act::Block, usize::MAX);
        let builder = troubled(kind, &dataset).start_timeout(Duration::from_millis(700));
        let error = builder.build().map(drop).unwrap_err();
        assert_eq!(error.code(), POOL_START, "{kind:?}: {error:?}");
        assert!(error.place("in").unwrap().contains("`worker_init`"), "{kind:?}: {error:?}");

        let dataset = Trouble::new(8, folder.path()).init(1, Act::Fail, usize::MAX);
        let error = troubled(kind, &dataset).build().map(drop).unwrap_err();
        assert_eq!((error.code(), error.place("in")), (WORKER_INIT, None), "{kind:?}: {error:?}");
    }
    leftovers.assert_none();
}
