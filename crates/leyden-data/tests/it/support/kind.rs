//! Kinds of workers as values, so that a test is written once for all of them.

use leyden_data::{DataLoaderBuilder, Dataset, Workers};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A kind of workers, and how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Inline,
    Threads(usize),
    Spawn(usize),
    SpawnThreads(usize, usize),
    Zygote(usize),
    Fork(usize),
}

/// How many kinds are missing.
const PORTABLE: usize = cfg!(leyden_portable) as usize;

impl Kind {
    /// Every kind, for what each must stand. The portable back end has no zygotes.
    pub(crate) const EACH: [Self; 4 - PORTABLE] = [
        Self::Inline,
        Self::Threads(2),
        Self::Spawn(2),
        #[cfg(not(leyden_portable))]
        Self::Zygote(2),
    ];
    /// Those that work beside the caller.
    pub(crate) const WORKERS: [Self; 3 - PORTABLE] = [
        Self::Threads(2),
        Self::Spawn(2),
        #[cfg(not(leyden_portable))]
        Self::Zygote(2),
    ];
    /// Those that stand the death of a worker.
    pub(crate) const PROCESSES: [Self; 2 - PORTABLE] = [
        Self::Spawn(2),
        #[cfg(not(leyden_portable))]
        Self::Zygote(2),
    ];

    pub(crate) fn of<D>(self, builder: DataLoaderBuilder<D>) -> DataLoaderBuilder<D>
    where
        D: Dataset + Serialize + DeserializeOwned + 'static,
        D::Batch: Serialize + DeserializeOwned,
    {
        match self {
            Self::Inline => builder.workers(Workers::inline()),
            Self::Threads(n) => builder.workers(Workers::threads(n)),
            Self::Spawn(n) => builder.workers(Workers::spawn(n)),
            Self::Zygote(n) => builder.workers(Workers::zygote(n)),
            Self::Fork(n) => builder.workers(Workers::fork(n)),
            Self::SpawnThreads(n, each) => builder.workers(Workers::spawn(n).threads_each(each)),
        }
    }

    /// For the arguments of a program.
    pub(crate) fn name(self) -> String {
        format!("{self:?}")
    }

    /// The kind with this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let known =
            [1, 2].map(|n| [Self::Threads(n), Self::Spawn(n), Self::Zygote(n), Self::Fork(n)]).concat();
        [Self::Inline].into_iter().chain(known).find(|kind| kind.name() == name)
    }

    /// How many processes it starts: workers, and who makes them.
    pub(crate) fn processes(self) -> usize {
        match self {
            Self::Inline | Self::Threads(_) => 0,
            Self::Spawn(n) | Self::SpawnThreads(n, _) | Self::Fork(n) => n,
            Self::Zygote(n) => n + 1,
        }
    }

    /// This kind with one worker.
    pub(crate) fn alone(self) -> Self {
        match self {
            Self::Inline => Self::Inline,
            Self::Threads(_) => Self::Threads(1),
            Self::Spawn(_) | Self::SpawnThreads(..) => Self::Spawn(1),
            Self::Zygote(_) => Self::Zygote(1),
            Self::Fork(_) => Self::Fork(1),
        }
    }

    pub(crate) fn is_process(self) -> bool {
        matches!(self, Self::Spawn(_) | Self::SpawnThreads(..) | Self::Zygote(_) | Self::Fork(_))
    }
}
