//! Several loaders as one.

use std::fmt;

use leyden_process::{Error, Result};

use crate::batching::Share;
use crate::codes::{LOADER_ARGUMENT, LOADER_ENDED};
use crate::loader::{Batch, Loader, after_the_end};

/// How far a [`CombinedLoader`] goes, and what becomes of loaders that are shorter (Lightning: `CombinedLoader`'s `mode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CombinedMode {
    /// As far as the shortest. The default, as in Lightning.
    #[default]
    MinSize,
    /// As far as the longest; one that has ended gives `None`.
    MaxSize,
    /// As far as the longest; one that has ended begins anew, in the order of a later epoch of its own.
    MaxSizeCycle,
    /// One after the other; the others give `None`.
    Sequential,
}

/// Loaders that are iterated together: a batch has a part for each of them, in their order (Lightning: `CombinedLoader`).
///
/// All have one type of batch; data sets of different types become one by
/// [`map_batch`](crate::DatasetExt::map_batch) into an enum. It has no workers: each loader has its own.
///
/// ```
/// use leyden_data::{CombinedLoader, CombinedMode, DataLoader, VecDataset};
///
/// let loader = |items: Vec<i64>| DataLoader::builder(VecDataset::new(items)).batch_size(2).build();
/// let few = loader(vec![1, 2])?;
/// let many = loader(vec![10, 20, 30, 40])?;
/// let both = CombinedLoader::new(CombinedMode::MaxSizeCycle).and(few).and(many);
/// let second = both.epoch(0).nth(1).expect("there are two")?;
/// let parts: Vec<i64> = second.data.into_iter().flatten().flat_map(|part| part.into_vec()).collect();
/// assert_eq!(parts, [1, 2, 30, 40]);
/// # Ok::<(), leyden_data::Error>(())
/// ```
pub struct CombinedLoader<B> {
    mode: CombinedMode,
    loaders: Vec<Box<dyn Loader<B>>>,
}

impl<B: 'static> CombinedLoader<B> {
    /// No loaders yet; [`and`](Self::and) adds them.
    pub fn new(mode: CombinedMode) -> Self {
        Self { mode, loaders: Vec::new() }
    }

    /// Adds a loader.
    #[must_use]
    pub fn and(mut self, loader: impl Loader<B> + 'static) -> Self {
        self.loaders.push(Box::new(loader));
        self
    }

    /// The batches of an epoch. For a part of it, see [`Loader::epoch`].
    pub fn epoch(&self, epoch: u64) -> Box<dyn Iterator<Item = Result<Batch<Parts<B>>>> + '_> {
        Loader::epoch(self, epoch, 0)
    }

    fn lengths(&self) -> impl Iterator<Item = usize> {
        self.loaders.iter().map(|loader| loader.len())
    }

    /// Where batch `batch` of `epoch` has its part of loader `loader`: the loader's own epoch and batch.
    fn place(&self, loader: usize, epoch: u64, batch: usize) -> Option<(u64, usize)> {
        let len = self.loaders[loader].len();
        match self.mode {
            CombinedMode::MinSize | CombinedMode::MaxSize => (batch < len).then_some((epoch, batch)),
            CombinedMode::MaxSizeCycle => {
                // Each pass of a short loader is an epoch of its own, which no other epoch of ours has.
                let passes = self.len().div_ceil(len.max(1)) as u64;
                let pass = batch.checked_div(len)? as u64;
                Some((epoch.wrapping_mul(passes).wrapping_add(pass), batch % len))
            }
            CombinedMode::Sequential => {
                let before: usize = self.lengths().take(loader).sum();
                let batch = batch.checked_sub(before)?;
                (batch < len).then_some((epoch, batch))
            }
        }
    }
}

/// Its batches: a part for each loader, `None` where it has none.
type Parts<B> = Vec<Option<B>>;

impl<B: 'static> Loader<Parts<B>> for CombinedLoader<B> {
    fn len(&self) -> usize {
        match self.mode {
            CombinedMode::MinSize => self.lengths().min().unwrap_or(0),
            CombinedMode::MaxSize | CombinedMode::MaxSizeCycle => self.lengths().max().unwrap_or(0),
            CombinedMode::Sequential => self.lengths().sum(),
        }
    }

    fn epoch(&self, epoch: u64, from: usize) -> Box<dyn Iterator<Item = Result<Batch<Parts<B>>>> + '_> {
        if self.loaders.is_empty() {
            let error = Error::new(LOADER_ARGUMENT, "a combined loader has no loaders");
            return Box::new(std::iter::once(Err(error.hint("add them with `.and(loader)`"))));
        }
        if let Some(error) = after_the_end(self.len(), epoch, from) {
            return Box::new(std::iter::once(Err(error)));
        }
        let parts = self.loaders.iter().map(|_| Part { at: None, batches: None }).collect();
        Box::new(Together { combined: self, epoch, batches: from..self.len(), parts })
    }

    fn set_sequential(&mut self) {
        self.loaders.iter_mut().for_each(|loader| loader.set_sequential());
    }

    fn set_share(&mut self, share: &Share) -> Result<()> {
        self.loaders.iter_mut().try_for_each(|loader| loader.set_share(share))
    }

    fn set_default_seed(&mut self, seed: u64) {
        self.loaders.iter_mut().for_each(|loader| loader.set_default_seed(seed));
    }

    fn identity(&self) -> String {
        let each: Vec<String> = self.loaders.iter().map(|loader| loader.identity()).collect();
        format!("{:?} of [{}]", self.mode, each.join("; "))
    }
}

impl<B> fmt::Debug for CombinedLoader<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let loaders = self.loaders.len();
        f.debug_struct("CombinedLoader").field("mode", &self.mode).field("loaders", &loaders).finish()
    }
}

/// An epoch of several loaders.
struct Together<'a, B> {
    combined: &'a CombinedLoader<B>,
    epoch: u64,
    batches: std::ops::Range<usize>,
    parts: Vec<Part<'a, B>>,
}

/// One loader of an epoch.
struct Part<'a, B> {
    /// The epoch and batch that `batches` gives next.
    at: Option<(u64, usize)>,
    batches: Option<Box<dyn Iterator<Item = Result<Batch<B>>> + 'a>>,
}

impl<B: 'static> Iterator for Together<'_, B> {
    type Item = Result<Batch<Parts<B>>>;

    fn next(&mut self) -> Option<Self::Item> {
        let index = self.batches.next()?;
        // Each loader gives its part, also where another one's is an error: they stay side by side.
        let parts: Vec<Result<Option<Batch<B>>>> =
            (0..self.parts.len()).map(|loader| self.part(loader, index)).collect();
        Some(parts.into_iter().enumerate().try_fold(
            Batch { data: Vec::new(), samples: 0, padding: 0, index },
            |mut whole, (loader, part)| {
                let part = part.map_err(|error| error.at("loader", loader))?;
                whole.samples += part.as_ref().map_or(0, |part| part.samples);
                whole.padding += part.as_ref().map_or(0, |part| part.padding);
                whole.data.push(part.map(|part| part.data));
                Ok(whole)
            },
        ))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.batches.size_hint()
    }
}

impl<B: 'static> Together<'_, B> {
    fn part(&mut self, loader: usize, index: usize) -> Result<Option<Batch<B>>> {
        let Some(place) = self.combined.place(loader, self.epoch, index) else { return Ok(None) };
        let part = &mut self.parts[loader];
        if part.at != Some(place) {
            part.batches = None;
        }
        let (epoch, batch) = place;
        let batches = part.batches.get_or_insert_with(|| self.combined.loaders[loader].epoch(epoch, batch));
        part.at = Some((epoch, batch + 1));
        match batches.next() {
            Some(batch) => batch.map(Some),
            None => Err(Error::new(LOADER_ENDED, "a loader ended before its length")
                .at("batch", batch)
                .at("epoch", epoch)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::array::Array;
    use crate::{DataLoader, VecDataset};

    fn of(samples: std::ops::Range<i64>) -> DataLoader<VecDataset<i64>> {
        let items = VecDataset::new(samples.collect());
        DataLoader::builder(items).batch_size(2).shuffle(true).seed(1).build().unwrap()
    }

    fn combined(mode: CombinedMode) -> CombinedLoader<Array<i64>> {
        CombinedLoader::new(mode).and(of(0..4)).and(of(100..110))
    }

    fn shape(mode: CombinedMode) -> Vec<[usize; 2]> {
        let batches = combined(mode).epoch(0).map(|batch| batch.unwrap().data).collect::<Vec<_>>();
        batches.iter().map(|parts| [0, 1].map(|at| parts[at].as_ref().map_or(0, |part| part.len()))).collect()
    }

    #[test]
    fn each_mode_goes_as_far_as_it_says() {
        assert_eq!(shape(CombinedMode::MinSize), [[2, 2]; 2]);
        assert_eq!(shape(CombinedMode::MaxSize), [[2, 2], [2, 2], [0, 2], [0, 2], [0, 2]]);
        assert_eq!(shape(CombinedMode::MaxSizeCycle), [[2, 2]; 5]);
        assert_eq!(shape(CombinedMode::Sequential), [[2, 0], [2, 0], [0, 2], [0, 2], [0, 2], [0, 2], [0, 2]]);
    }

    #[test]
    fn a_cycle_visits_everything_in_each_pass_and_in_another_order() {
        let whole: Vec<_> =
            combined(MAX_CYCLE).epoch(0).map(|batch| batch.unwrap().data[0].clone().unwrap()).collect();
        let passes: Vec<Vec<i64>> =
            whole.chunks(2).map(|pass| pass.iter().flatten().copied().collect()).collect();
        let mut sorted = passes[0].clone();
        sorted.sort_unstable();
        assert_eq!(sorted, [0, 1, 2, 3]);
        let later: Vec<_> =
            combined(MAX_CYCLE).epoch(1).map(|batch| batch.unwrap().data[0].clone().unwrap()).collect();
        assert_ne!(whole, later);
    }

    #[test]
    fn an_epoch_goes_on_at_any_batch() {
        for mode in [CombinedMode::MinSize, CombinedMode::MaxSize, MAX_CYCLE, CombinedMode::Sequential] {
            let loader = combined(mode);
            let whole: Vec<_> = loader.epoch(3).map(Result::unwrap).collect();
            assert_eq!(whole.len(), loader.len());
            for from in 0..=whole.len() {
                let rest: Vec<_> = Loader::epoch(&loader, 3, from).map(Result::unwrap).collect();
                assert_eq!(rest, whole[from..], "{mode:?} from {from}");
            }
        }
    }

    #[test]
    fn without_loaders_it_is_an_error() {
        let none = CombinedLoader::<Array<i64>>::new(CombinedMode::MinSize);
        let error = none.epoch(0).next().unwrap().unwrap_err();
        assert_eq!(error.code(), LOADER_ARGUMENT);
    }

    const MAX_CYCLE: CombinedMode = CombinedMode::MaxSizeCycle;
}
