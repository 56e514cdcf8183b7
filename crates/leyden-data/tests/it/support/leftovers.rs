//! What a test leaves behind, as `/proc` says.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};

use super::kind::Kind;
use super::trouble::{LONG, Trouble};
use leyden_data::DataLoader;

/// What there was before. While it lives, no other test that has one runs: what belongs to whom could not be said.
pub(crate) struct Leftovers {
    before: Counted,
    _alone: MutexGuard<'static, ()>,
}

/// What of this process's there is.
#[derive(Clone, Debug)]
struct Counted {
    /// Children, dead ones too, and other processes of this program.
    processes: BTreeSet<String>,
    descriptors: BTreeMap<String, usize>,
    /// Of shared memory.
    mappings: usize,
    /// Leyden's.
    threads: BTreeMap<String, usize>,
    /// Leyden's names in `/dev/shm`; others use it too.
    names: BTreeSet<String>,
}

impl Leftovers {
    /// Waits until it is alone, and counts.
    pub(crate) fn before() -> Self {
        static SERVANTS: Once = Once::new();
        let alone = alone();
        // The threads that serve all processes start with the first, and stay.
        SERVANTS.call_once(|| {
            let folder = tempfile::tempdir().unwrap();
            for kind in Kind::EACH {
                kind.of(DataLoader::builder(Trouble::new(1, folder.path()))).build().unwrap();
            }
            settle(|| Counted::now().processes.is_empty());
        });
        Self { before: Counted::now(), _alone: alone }
    }

    /// Fails unless everything is as it was before. What was killed may take a moment to be gone.
    pub(crate) fn assert_none(self) {
        if !settle(|| Counted::now().is_within(&self.before)) {
            panic!("something is left: {:#?}\nbefore: {:#?}", Counted::now(), self.before);
        }
    }
}

/// Waits until no other test starts processes.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for a condition; says whether it came.
pub(crate) fn settle(mut condition: impl FnMut() -> bool) -> bool {
    let began = Instant::now();
    while !condition() {
        if began.elapsed() > LONG / 3 {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

impl Counted {
    /// Whether there is nothing more than `before`. There may be less: the test before that one was still leaving then.
    fn is_within(&self, before: &Self) -> bool {
        let within = |now: &BTreeMap<String, usize>, before: &BTreeMap<String, usize>| {
            now.iter().all(|(name, count)| before.get(name).is_some_and(|before| count <= before))
        };
        self.processes.is_subset(&before.processes)
            && within(&self.descriptors, &before.descriptors)
            && self.mappings <= before.mappings
            && within(&self.threads, &before.threads)
            && self.names.is_subset(&before.names)
    }

    fn now() -> Self {
        let own = std::process::id() as i32;
        let program = fs::read_link("/proc/self/exe").ok();
        let session = stat(own).map(|stat| stat.session);
        let processes = processes()
            .filter(|&pid| pid != own)
            .filter_map(|pid| Some((pid, stat(pid)?)))
            .filter(|(pid, stat)| {
                let of_ours = || {
                    Some(stat.session) == session && fs::read_link(format!("/proc/{pid}/exe")).ok() == program
                };
                stat.parent == own || of_ours()
            })
            .map(|(pid, stat)| format!("{pid} {} {}", stat.name, stat.state))
            .collect();
        let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
        Self {
            processes,
            descriptors: count(links("/proc/self/fd").into_iter().map(kind_of_descriptor)),
            mappings: maps.lines().filter(|line| line.contains("memfd:leyden")).count(),
            threads: count(threads().into_iter().filter(|name| name.starts_with("leyden"))),
            names: names("/dev/shm").filter(|name| name.contains("leyden")).collect(),
        }
    }
}

fn names(folder: &str) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned())
}

/// Names of this process's threads.
fn threads() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    tasks
        .filter_map(|task| fs::read_to_string(task.path().join("comm")).ok())
        .map(|name| name.trim().to_owned())
        .collect()
}

fn links(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| Some(fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned()))
        .collect()
}

/// Without its number: `socket:[123]` and the like.
fn kind_of_descriptor(link: String) -> String {
    let end = link.find(":[").unwrap_or(link.len());
    link[..end].to_owned()
}

fn count(names: impl Iterator<Item = String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    names.for_each(|name| *counts.entry(name).or_default() += 1);
    counts
}

/// The numbers of all processes.
pub(crate) fn processes() -> impl Iterator<Item = i32> {
    names("/proc").filter_map(|name| name.parse().ok())
}

/// Some fields of `/proc/*/stat`.
pub(crate) struct Stat {
    pub(crate) name: String,
    pub(crate) state: char,
    pub(crate) parent: i32,
    pub(crate) session: i32,
}

pub(crate) fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (before, after) = text.rsplit_once(')')?;
    let fields: Vec<&str> = after.split_whitespace().collect();
    Some(Stat {
        name: before.split_once('(')?.1.to_owned(),
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
    })
}

/// Whether the process runs; one that is dead and not reaped does not.
pub(crate) fn is_alive(pid: i32) -> bool {
    stat(pid).is_some_and(|stat| !matches!(stat.state, 'Z' | 'X'))
}
