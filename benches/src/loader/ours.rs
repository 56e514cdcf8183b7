//! What Leyden does in each row.

use std::collections::BTreeMap;
use std::fs;
use std::hint::black_box;
use std::io::Write as _;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use leyden::data::{
    Array, Batching, DataLoader, DataLoaderBuilder, Dataset, ImageFolder, ImageTransform, Workers,
};
use leyden::{Error, Result};
use leyden_process::shared::SharedStrings;
use serde_json::{Value, json};

use super::checksum::Checksum;
use super::data::{Counted, Keyed, Paths, Resident, Rows, paths};
use super::side;

/// Answers for `cell` until stdin ends.
pub(crate) fn serve(cell: &str) -> Result<()> {
    let rows = || Rows::new(60_000, &[784], 60_000);
    let shuffled = |rows: Rows| DataLoader::builder(rows).batch_size(64).shuffle(true);
    match cell {
        "tensors-inline" => passes(shuffled(rows()?), 5),
        "tensors-2proc" => passes(shuffled(rows()?).workers(Workers::spawn(2)), 10),
        "dict32-1proc" => passes(DataLoader::builder(Keyed::new()?).workers(Workers::spawn(1)), 60),
        "big-2proc" => {
            let images = Rows::new(64, &[3, 224, 224], 64 * 48)?;
            passes(DataLoader::builder(images).batch_size(64).workers(Workers::spawn(2)), 1)
        }
        "jpeg" => {
            let images = ImageFolder::open(jpegs()?)?.transform(ImageTransform::new().resize_to(224, 224))?;
            passes(DataLoader::builder(images).batch_size(32).workers(Workers::spawn(2)), 1)
        }
        "start-2spawn" => {
            let rows = rows()?;
            starts(|| Ok(shuffled(rows.clone()).workers(Workers::spawn(2))))
        }
        "ship-128mib" => {
            let paths = paths();
            starts(|| {
                let shared = Paths(SharedStrings::collect(&paths)?);
                Ok(DataLoader::builder(shared).batch_size(64).workers(Workers::spawn(8)))
            })
        }
        "resume-1e9" => side::serve(|command| if command == "verify" { Ok(json!({})) } else { resume() }),
        "death-p99" => deaths(),
        _ => Err(Error::msg(format!("no cell `{cell}`"))),
    }
}

/// A folder of 512 JPEG files of 500×375 pixels, which PyTorch's side makes: there is no encoder here.
fn jpegs() -> Result<String> {
    let python = std::env::var("LEYDEN_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/jpegs.py");
    let made = Command::new(&python).arg(script).stderr(Stdio::inherit()).output()?;
    if !made.status.success() {
        return Err(Error::msg("the images could not be made")
            .at("program", format_args!("{python} {script}"))
            .hint("let LEYDEN_PYTHON name a Python with numpy and pillow"));
    }
    Ok(String::from_utf8_lossy(&made.stdout).trim().to_owned())
}

/// Whole epochs, with a consumer that does nothing; and one in which every byte is read.
fn passes<D>(builder: DataLoaderBuilder<D>, epochs: u64) -> Result<()>
where
    D: Dataset<Batch: Summed> + 'static,
{
    let loader = builder.build()?;
    loader.epoch(0).try_for_each(|batch| batch.map(drop))?;
    let mut epoch = 1;
    side::serve(|command| {
        if command == "verify" {
            let mut checksum = Checksum::default();
            for batch in loader.epoch(0) {
                let batch = batch?;
                batch.data.add_to(&mut checksum);
                checksum.samples += batch.samples;
            }
            return Ok(json!({ "checksum": checksum.text(), "samples": checksum.samples }));
        }
        let (busy, begun, mut batches) = (own_cpu()?, Instant::now(), 0);
        for epoch in epoch..epoch + epochs {
            for batch in loader.epoch(epoch) {
                black_box(batch?);
                batches += 1;
            }
        }
        let (seconds, cpu) = (begun.elapsed().as_secs_f64(), own_cpu()? - busy);
        epoch += epochs;
        Ok(json!({ "seconds": seconds, "batches": batches, "cpu": cpu }))
    })
}

/// From building a loader to its first batch; what `builder` does counts.
fn starts<D>(builder: impl Fn() -> Result<DataLoaderBuilder<D>>) -> Result<()>
where
    D: Dataset + 'static,
{
    side::serve(|command| {
        if command == "verify" {
            return Ok(json!({}));
        }
        let begun = Instant::now();
        let builder = builder()?;
        let made = begun.elapsed().as_secs_f64();
        let loader = builder.build()?;
        let built = begun.elapsed().as_secs_f64();
        let first = loader.epoch(0).next().transpose()?;
        let seconds = begun.elapsed().as_secs_f64();
        let pss = workers()?.into_iter().map(pss).sum::<Result<u64>>()?;
        black_box(first);
        Ok(json!({ "seconds": seconds, "data": made, "build": built - made, "pss": pss }))
    })
}

/// A loader of a billion samples, built, and its first batch after nine tenths of an epoch; and what many orders take
/// in memory.
fn resume() -> Result<Value> {
    const SAMPLES: usize = 1_000_000_000;
    const ORDERS: usize = 100_000;
    let builder = || DataLoader::builder(Counted(SAMPLES)).batch_size(64).shuffle(true);
    let cursor = {
        let loader = builder().build()?;
        loader.cursor_at(3, loader.batching().batches() / 10 * 9)
    };
    let begun = Instant::now();
    let loader = builder().build()?;
    let first = loader.resume(&cursor)?.next().transpose()?;
    let seconds = begun.elapsed().as_secs_f64();
    black_box(first);

    let batching = Batching::whole(SAMPLES, true).batch_size(64);
    let before = memory()?;
    let orders = (0..ORDERS).map(|epoch| batching.epoch(0, epoch as u64)).collect::<Result<Vec<_>>>()?;
    let bytes = memory()?.saturating_sub(before) / ORDERS as u64;
    black_box(orders);
    Ok(json!({ "seconds": seconds, "bytes": bytes, "samples": SAMPLES }))
}

/// A worker is killed at a batch, and the other one makes it: the time from the one to the other.
fn deaths() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let resident = Resident { folder: folder.path().to_owned() };
    let loader = DataLoader::builder(resident).workers(Workers::spawn(2)).build()?;
    let mut killer = Killer::new()?;
    let mut epoch = 0;
    side::serve(|command| {
        if command == "verify" {
            return Ok(json!({}));
        }
        let mut batches = loader.epoch(epoch);
        let victim = patiently(|| {
            let note = fs::read_to_string(folder.path().join(format!("at-{epoch}"))).ok()?;
            note.strip_suffix('\n')?.parse().ok()
        })?;
        let begun = Instant::now();
        killer.kill(victim)?;
        let batch = batches.next().transpose()?;
        let seconds = begun.elapsed().as_secs_f64();
        black_box(batch);
        epoch += 1;
        // Both are there again, as large as before.
        patiently(|| {
            let workers = workers().ok()?;
            let ready = |pid: &u32| folder.path().join(format!("ready-{pid}")).exists();
            (workers.len() == 2 && workers.iter().all(ready)).then_some(())
        })?;
        Ok(json!({ "seconds": seconds }))
    })
}

/// Kills by a shell that is there already: starting one takes longer than what is measured.
struct Killer(ChildStdin);

impl Killer {
    fn new() -> Result<Self> {
        let mut shell = Command::new("sh").stdin(Stdio::piped()).spawn()?;
        shell.stdin.take().map(Self).ok_or_else(|| Error::msg("the shell has no stdin"))
    }

    fn kill(&mut self, pid: u32) -> Result<()> {
        Ok(writeln!(self.0, "kill -9 {pid}")?)
    }
}

/// Looks again and again, for a minute at the most.
fn patiently<T>(look: impl Fn() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + Duration::from_secs(60);
    while Instant::now() < deadline {
        if let Some(found) = look() {
            return Ok(found);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Err(Error::msg("what a row waits for did not happen"))
}

/// Batches whose every byte can be summed.
trait Summed {
    fn add_to(&self, checksum: &mut Checksum);
}

impl Summed for (Array<f32>, Array<i64>) {
    fn add_to(&self, checksum: &mut Checksum) {
        checksum.add(&self.0, 0);
        checksum.add(&self.1, 1);
    }
}

impl Summed for BTreeMap<String, Array<f32>> {
    fn add_to(&self, checksum: &mut Checksum) {
        self.values().zip(0..).for_each(|(array, salt)| checksum.add(array, salt));
    }
}

/// The processor time of this process's threads, in seconds.
fn own_cpu() -> Result<f64> {
    let mut nanoseconds = 0.0;
    for thread in fs::read_dir("/proc/self/task")? {
        let stat = fs::read_to_string(thread?.path().join("schedstat"))?;
        nanoseconds += stat.split(' ').next().and_then(|time| time.parse::<f64>().ok()).unwrap_or_default();
    }
    Ok(nanoseconds / 1e9)
}

/// The process's resident bytes.
fn memory() -> Result<u64> {
    let pages = fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = pages.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or_default();
    Ok(pages * 4096)
}

/// The processes that this one has started, but for the shell that kills and the dead.
fn workers() -> Result<Vec<u32>> {
    let own = std::process::id().to_string();
    let mut workers = Vec::new();
    for process in fs::read_dir("/proc")? {
        let process = process?;
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let stat = fs::read_to_string(process.path().join("stat")).unwrap_or_default();
        // The name, in parentheses, may have spaces of its own.
        let Some((name, rest)) = stat.rsplit_once(") ") else { continue };
        let mut rest = rest.split(' ');
        let lives = rest.next() != Some("Z");
        if lives && rest.next() == Some(&own) && !name.ends_with("(sh") {
            workers.push(pid);
        }
    }
    Ok(workers)
}

/// A process's share of memory, in bytes.
fn pss(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("smaps_rollup"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(kilobytes.unwrap_or_default() * 1024)
}
