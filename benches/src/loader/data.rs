//! What the loaders of both sides load: the same bits as in `peers/loader_torch.py`.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use leyden::data::{Array, Dataset, SampleCx, WorkerInfo, default_collate};
use leyden::{Error, Result};
use leyden_process::shared::{Shared, SharedStrings};
use serde::{Deserialize, Serialize};

/// Numbers from 0 to 1 that look random.
fn numbers(count: usize) -> impl Iterator<Item = f32> {
    (0..count as u32).map(|k| (k.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32)
}

/// Rows with labels, in memory that all workers share; `len` samples, which are the rows over and over.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Rows {
    values: Shared<f32>,
    row: Vec<usize>,
    width: usize,
    len: usize,
}

impl Rows {
    pub(super) fn new(rows: usize, row: &[usize], len: usize) -> Result<Self> {
        let width = row.iter().product();
        Ok(Self { values: Shared::collect(numbers(rows * width))?, row: row.to_vec(), width, len })
    }
}

impl Dataset for Rows {
    type Item = usize;
    type Batch = (Array<f32>, Array<i64>);

    fn len(&self) -> usize {
        self.len
    }

    fn get(&self, index: usize, _: &mut SampleCx) -> Result<usize> {
        Ok(index)
    }

    fn collate(&self, items: Vec<usize>) -> Result<Self::Batch> {
        let rows = self.values.len() / self.width;
        let row = |&item: &usize| &self.values[item % rows * self.width..][..self.width];
        let labels = items.iter().map(|&item| (item % 10) as i64).collect();
        Ok((Array::stack(&self.row, items.iter().map(row))?, labels))
    }
}

/// Samples of many small arrays, each made and collated as a user would first write it.
#[derive(Serialize, Deserialize)]
pub(super) struct Keyed {
    columns: BTreeMap<String, Shared<f32>>,
}

impl Keyed {
    pub(super) fn new() -> Result<Self> {
        let column = |key: usize| {
            let values = numbers(KEYED_ROWS * KEYED_WIDTH).map(|number| number + key as f32);
            Ok((format!("column{key:02}"), Shared::collect(values)?))
        };
        Ok(Self { columns: (0..KEYS).map(column).collect::<Result<_>>()? })
    }
}

impl Dataset for Keyed {
    type Item = BTreeMap<String, Array<f32>>;
    type Batch = BTreeMap<String, Array<f32>>;

    fn len(&self) -> usize {
        KEYED_LEN
    }

    fn get(&self, index: usize, _: &mut SampleCx) -> Result<Self::Item> {
        let row = |(name, values): (&String, &Shared<f32>)| {
            let row = &values[index % KEYED_ROWS * KEYED_WIDTH..][..KEYED_WIDTH];
            (name.clone(), Array::from(row.to_vec()))
        };
        Ok(self.columns.iter().map(row).collect())
    }

    fn collate(&self, items: Vec<Self::Item>) -> Result<Self::Batch> {
        default_collate(items)
    }
}

/// As many paths as fit into 128 MiB.
#[derive(Serialize, Deserialize)]
pub(super) struct Paths(pub(super) SharedStrings);

/// The strings of [`Paths`].
pub(super) fn paths() -> Vec<String> {
    let name = |i: usize| {
        let class = i / 1300;
        format!("/data/imagenet/train/n{class:08}/n{class:08}_{i:08}.JPEG")
    };
    (0..SHIPPED_BYTES / name(0).len()).map(name).collect()
}

impl Dataset for Paths {
    type Item = i64;
    type Batch = Array<i64>;

    fn len(&self) -> usize {
        self.0.len()
    }

    fn get(&self, index: usize, _: &mut SampleCx) -> Result<i64> {
        Ok(self.0[index].len() as i64)
    }

    fn collate(&self, items: Vec<i64>) -> Result<Array<i64>> {
        default_collate(items)
    }
}

/// Nothing but a length.
pub(super) struct Counted(pub(super) usize);

impl Dataset for Counted {
    type Item = i64;
    type Batch = Array<i64>;

    fn len(&self) -> usize {
        self.0
    }

    fn get(&self, index: usize, _: &mut SampleCx) -> Result<i64> {
        Ok(index as i64)
    }

    fn collate(&self, items: Vec<i64>) -> Result<Array<i64>> {
        default_collate(items)
    }
}

/// Its workers are as large as a data set that has been read. Sample 0 of each epoch is asked for by a worker that does
/// not give it: whoever is asked after that one's death does.
#[derive(Serialize, Deserialize)]
pub(super) struct Resident {
    /// Where workers say that they are ready, and who is at sample 0 of an epoch.
    pub(super) folder: PathBuf,
}

impl Dataset for Resident {
    type Item = i64;
    type Batch = Array<i64>;

    fn len(&self) -> usize {
        1
    }

    fn worker_init(&self, _: &WorkerInfo) -> Result<()> {
        // Kept until the process ends.
        Box::leak(vec![1_u8; RESIDENT_BYTES].into_boxed_slice());
        fs::write(self.folder.join(format!("ready-{}", std::process::id())), "")?;
        Ok(())
    }

    fn get(&self, index: usize, cx: &mut SampleCx) -> Result<i64> {
        let note = self.folder.join(format!("at-{}", cx.epoch()));
        let Ok(mut note) = fs::File::create_new(note) else { return Ok(index as i64) };
        writeln!(note, "{}", std::process::id())?;
        thread::sleep(Duration::from_secs(60));
        Err(Error::msg("nobody has killed this worker"))
    }

    fn collate(&self, items: Vec<i64>) -> Result<Array<i64>> {
        default_collate(items)
    }
}

const KEYS: usize = 32;
const KEYED_WIDTH: usize = 1024;
const KEYED_ROWS: usize = 64;
const KEYED_LEN: usize = 300;
const SHIPPED_BYTES: usize = 128 << 20;
const RESIDENT_BYTES: usize = 1 << 30;
