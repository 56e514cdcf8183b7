//! What data sets in memory cost the workers.

use std::collections::BTreeSet;
use std::fs;
use std::hash::Hasher as _;

use leyden_data::{
    Array, DataLoader, Dataset, DatasetExt as _, Error, IdxImages, Result, SampleCx, TensorDataset, Workers,
};
use serde::{Deserialize, Serialize};

use crate::support::trouble::Fnv;
use crate::support::{Kind, Leftovers};

const MIB: u64 = 1 << 20;
/// Together 64 MiB of numbers.
const ROWS: usize = 1 << 12;
const WIDTH: usize = 1 << 12;

fn tensors() -> TensorDataset<(Array<f32>, Array<i64>)> {
    let numbers = (0..ROWS * WIDTH).map(|at| (at as u32).wrapping_mul(0x9e37_79b9) as f32);
    let x = Array::from_vec(&[ROWS, WIDTH], numbers.collect()).unwrap();
    TensorDataset::new((x, (0..ROWS as i64).collect())).unwrap()
}

/// Of an epoch: the hash of its batches, and who made them.
fn read<D>(loader: &DataLoader<D>, epoch: u64) -> (u64, BTreeSet<u32>)
where
    D: Dataset<Batch = ((Array<f32>, Array<i64>), u32)>,
{
    let (mut hasher, mut makers) = (Fnv::default(), BTreeSet::new());
    for batch in loader.epoch(epoch) {
        let ((x, labels), maker) = batch.unwrap().data;
        x.iter().for_each(|x| hasher.write_u32(x.to_bits()));
        labels.iter().for_each(|&label| hasher.write_i64(label));
        makers.insert(maker);
    }
    (hasher.finish(), makers)
}

/// A line of what a process has in memory, in bytes.
fn memory(process: u32, line: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).unwrap();
    let line = text.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(':')).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

// The portable back end has a copy in each worker.
#[cfg(not(leyden_portable))]
#[test]
fn tensors_are_in_memory_once_for_all_workers_of_all_generations() {
    let leftovers = Leftovers::before();
    let loader = |kind: Kind| {
        let whole = tensors().map_batch(|batch| Ok((batch, std::process::id())));
        kind.of(DataLoader::builder(whole).batch_size(64).shuffle(true)).build().unwrap()
    };
    let inline = loader(Kind::Inline);
    let expected = [0, 1].map(|epoch| read(&inline, epoch).0);
    drop(inline);
    for kind in Kind::PROCESSES {
        let loader = loader(kind);
        let (hash, makers) = read(&loader, 0);
        assert_eq!(hash, expected[0], "{kind:?}");
        // Its replacement reads the same argument.
        let victim = *makers.first().expect("somebody made them");
        // SAFETY: it is a process of this test's, and alive.
        assert_eq!(unsafe { libc::kill(victim as i32, libc::SIGKILL) }, 0);
        let (hash, makers) = read(&loader, 1);
        assert_eq!(hash, expected[1], "{kind:?}");
        let alive: Vec<u32> = makers.into_iter().filter(|&maker| maker != victim).collect();
        assert!(!alive.is_empty(), "{kind:?}");
        for &maker in &alive {
            let own = memory(maker, "Pss_Anon");
            println!("{kind:?}: {} KiB of its own in {maker}", own >> 10);
            assert!(own < 8 * MIB, "{kind:?}: {own} bytes of {maker}'s own");
        }
        let together: u64 = alive.iter().map(|&maker| memory(maker, "Pss")).sum();
        println!("{kind:?}: {} MiB together", together / MIB);
        assert!(together < 64 * MIB + 32 * MIB, "{kind:?}: {together} bytes of {alive:?}");
    }
    leftovers.assert_none();
}

#[test]
fn an_array_that_workers_share_may_be_written_to_in_each() {
    /// Adds to its numbers before it looks.
    #[derive(Clone, Serialize, Deserialize)]
    struct Adding(Array<u32>);

    impl Dataset for Adding {
        type Item = u32;
        type Batch = Array<u32>;

        fn len(&self) -> usize {
            64
        }

        fn get(&self, index: usize, _: &mut SampleCx) -> Result<u32> {
            let mut mine = self.0.clone();
            mine.iter_mut().for_each(|x| *x += 1);
            let (ours, mine) = (self.0[index], mine[index]);
            if mine == ours + 1 { Ok(mine) } else { Err(Error::msg("a copy is no copy")) }
        }

        fn collate(&self, items: Vec<u32>) -> Result<Array<u32>> {
            Ok(items.into())
        }
    }

    let leftovers = Leftovers::before();
    let numbers: Array<u32> = (0..1 << 16).collect();
    for kind in Kind::EACH {
        let loader = kind.of(DataLoader::builder(Adding(numbers.clone())).batch_size(8)).build().unwrap();
        let read: Vec<u32> = loader.epoch(0).flat_map(|batch| batch.unwrap().data.into_vec()).collect();
        assert_eq!(read, (1..=64).collect::<Vec<_>>(), "{kind:?}");
    }
    leftovers.assert_none();
}

#[test]
fn more_arrays_than_may_be_attached_cross_all_the_same() {
    let leftovers = Leftovers::before();
    let rows: Vec<Array<u8>> = (0..100).map(|row| Array::from(vec![row; 1 << 16])).collect();
    for kind in Kind::EACH {
        let dataset = leyden_data::VecDataset::new(rows.clone());
        let loader = kind.of(DataLoader::builder(dataset).batch_size(10)).build().unwrap();
        let read: Vec<u8> = loader
            .epoch(0)
            .flat_map(|batch| batch.unwrap().data.rows().map(|row| row[7]).collect::<Vec<_>>())
            .collect();
        assert_eq!(read, (0..100).collect::<Vec<_>>(), "{kind:?}");
    }
    leftovers.assert_none();
}

// Elsewhere each worker reads the files.
#[cfg(not(leyden_portable))]
#[test]
fn images_are_read_from_their_files_once() {
    let leftovers = Leftovers::before();
    let folder = tempfile::tempdir().unwrap();
    let [images, labels] = ["images", "labels"].map(|name| folder.path().join(name));
    let header = |sizes: &[u32]| -> Vec<u8> {
        [0, 0, 8, sizes.len() as u8]
            .into_iter()
            .chain(sizes.iter().flat_map(|size| size.to_be_bytes()))
            .collect()
    };
    let pixels = (0..1000 * 28 * 28).map(|at: u32| at as u8);
    fs::write(&images, header(&[1000, 28, 28]).into_iter().chain(pixels).collect::<Vec<_>>()).unwrap();
    fs::write(
        &labels,
        header(&[1000]).into_iter().chain((0..1000_u32).map(|at| at as u8)).collect::<Vec<_>>(),
    )
    .unwrap();
    let dataset = IdxImages::open(&images, &labels).unwrap();
    drop(folder);
    let builder = || DataLoader::builder(dataset.clone()).batch_size(50).shuffle(true);
    let expected: Vec<_> = builder().build().unwrap().epoch(0).map(|batch| batch.unwrap().data).collect();
    let loader = builder().workers(Workers::spawn(2)).build().unwrap();
    let read: Vec<_> = loader.epoch(0).map(|batch| batch.unwrap().data).collect();
    assert_eq!(read, expected);
    drop((loader, read));
    leftovers.assert_none();
}
