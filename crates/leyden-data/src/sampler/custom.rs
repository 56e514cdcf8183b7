//! Orders that are lists: the user's own, fixed or made for each epoch.

use std::sync::Arc;

use leyden_process::{Error, Result};

use super::{BatchOrder, BatchSampler, Order, Sampler, fingerprint};
use crate::codes::SAMPLER_RESULT;

/// These samples in this order, in every epoch. The list is copied for each epoch: use an `Arc<[usize]>` where it is
/// long.
impl Sampler for Vec<usize> {
    fn len(&self) -> usize {
        Vec::len(self)
    }

    fn order(&self, _seed: u64, _epoch: u64) -> Result<Box<dyn Order>> {
        Ok(Box::new(List(self.as_slice().into())))
    }

    fn identity(&self) -> String {
        list_identity(self)
    }

    fn bound(&self) -> Option<usize> {
        Some(list_bound(self))
    }

    fn is_shuffled(&self) -> bool {
        false
    }
}

/// These samples in this order, in every epoch. No further memory, any position at once.
impl Sampler for Arc<[usize]> {
    fn len(&self) -> usize {
        <[usize]>::len(self)
    }

    fn order(&self, _seed: u64, _epoch: u64) -> Result<Box<dyn Order>> {
        Ok(Box::new(List(Arc::clone(self))))
    }

    fn identity(&self) -> String {
        list_identity(self)
    }

    fn bound(&self) -> Option<usize> {
        Some(list_bound(self))
    }

    fn is_shuffled(&self) -> bool {
        false
    }
}

/// A sampler of a function of seed and epoch that gives the whole order, `len` indices. It is called once at the
/// beginning of an epoch, on every rank, and where a run resumes inside one; its list is kept for the epoch.
///
/// ```
/// use leyden_data::{Sampler, sampler_fn};
///
/// // Even samples first.
/// let sampler = sampler_fn(6, |_seed, _epoch| Ok(vec![0, 2, 4, 1, 3, 5])).named("even first");
/// assert_eq!(sampler.order(0, 0)?.at(1), 2);
/// # Ok::<(), leyden_data::Error>(())
/// ```
pub fn sampler_fn<F>(len: usize, order: F) -> SamplerFn<F>
where
    F: Fn(u64, u64) -> Result<Vec<usize>> + Send + Sync,
{
    SamplerFn { len, name: "function".to_owned(), order }
}

/// See [`sampler_fn`].
#[derive(Clone)]
pub struct SamplerFn<F> {
    len: usize,
    name: String,
    order: F,
}

impl<F> SamplerFn<F> {
    /// What the order depends on, in words (default "function"): a function cannot be compared with the one that a
    /// checkpoint was made with, its name can.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }
}

impl<F: Fn(u64, u64) -> Result<Vec<usize>> + Send + Sync> Sampler for SamplerFn<F> {
    fn len(&self) -> usize {
        self.len
    }

    /// # Errors
    /// The function's, or `L0604` if its list has not the length it was said to have.
    fn order(&self, seed: u64, epoch: u64) -> Result<Box<dyn Order>> {
        let order = (self.order)(seed, epoch)?;
        check_len(&self.name, "indices", order.len(), self.len, epoch)?;
        Ok(Box::new(List(order.into())))
    }

    fn identity(&self) -> String {
        format!("{} of {} indices", self.name, self.len)
    }
}

/// A batch sampler of a function of seed and epoch that gives all `len` batches of an epoch, of all ranks together.
/// It is called as that of [`sampler_fn`] is.
pub fn batch_sampler_fn<F>(len: usize, batches: F) -> BatchSamplerFn<F>
where
    F: Fn(u64, u64) -> Result<Vec<Vec<usize>>> + Send + Sync,
{
    BatchSamplerFn { len, name: "function".to_owned(), batches }
}

/// See [`batch_sampler_fn`].
#[derive(Clone)]
pub struct BatchSamplerFn<F> {
    len: usize,
    name: String,
    batches: F,
}

impl<F> BatchSamplerFn<F> {
    /// What the batches depend on, in words; see [`SamplerFn::named`].
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }
}

impl<F: Fn(u64, u64) -> Result<Vec<Vec<usize>>> + Send + Sync> BatchSampler for BatchSamplerFn<F> {
    fn len(&self) -> usize {
        self.len
    }

    /// # Errors
    /// The function's, or `L0604` if its list has not the length it was said to have.
    fn order(&self, seed: u64, epoch: u64) -> Result<Box<dyn BatchOrder>> {
        let batches = (self.batches)(seed, epoch)?;
        check_len(&self.name, "batches", batches.len(), self.len, epoch)?;
        Ok(Box::new(Lists(batches)))
    }

    fn identity(&self) -> String {
        format!("{} of {} batches", self.name, self.len)
    }
}

pub(super) struct List(pub(super) Arc<[usize]>);

impl Order for List {
    fn at(&self, position: usize) -> usize {
        self.0[position]
    }
}

struct Lists(Vec<Vec<usize>>);

impl BatchOrder for Lists {
    fn batch(&self, index: usize) -> Vec<usize> {
        self.0[index].clone()
    }
}

fn check_len(name: &str, what: &str, given: usize, promised: usize, epoch: u64) -> Result<()> {
    if given == promised {
        return Ok(());
    }
    Err(Error::new(SAMPLER_RESULT, "a sampler's function gave a list of another length than it was said to")
        .at("sampler", name)
        .at("given", format_args!("{given} {what}"))
        .at("promised", format_args!("{promised} {what}"))
        .at("epoch", epoch)
        .hint(
            "every epoch has the same length, on every rank: give it to `sampler_fn` or `batch_sampler_fn`",
        ))
}

pub(super) fn list_identity(indices: &[usize]) -> String {
    let hash = fingerprint(indices.iter().map(|&index| index as u64));
    format!("list of {} indices, hash {hash:016x}", indices.len())
}

pub(super) fn list_bound(indices: &[usize]) -> usize {
    indices.iter().max().map_or(0, |&index| index.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_its_own_order_in_every_epoch() {
        let list = vec![4, 0, 4, 2];
        let shared: Arc<[usize]> = list.clone().into();
        for epoch in 0..2 {
            let orders = [list.order(1, epoch).unwrap(), shared.order(1, epoch).unwrap()];
            for order in orders {
                assert!((0..4).map(|position| order.at(position)).eq(list.iter().copied()));
            }
        }
        assert_eq!((Sampler::len(&list), Sampler::len(&shared)), (4, 4));
        assert_eq!((list.bound(), vec![].bound()), (Some(5), Some(0)));
        assert_eq!(vec![usize::MAX].bound(), Some(usize::MAX), "which no data set has");
        assert_eq!(list.identity(), shared.identity());
        assert_ne!(list.identity(), vec![0, 4, 4, 2].identity(), "the order counts");
    }

    #[test]
    fn a_function_is_asked_for_each_epoch() {
        let sampler = sampler_fn(2, |seed, epoch| Ok(vec![seed as usize, epoch as usize]));
        let order = sampler.order(3, 8).unwrap();
        assert_eq!([order.at(0), order.at(1)], [3, 8]);
        assert_eq!(sampler.identity(), "function of 2 indices");
        assert_eq!(sampler.named("pairs").identity(), "pairs of 2 indices");

        let batches = batch_sampler_fn(2, |_, epoch| Ok(vec![vec![epoch as usize], vec![1, 2]])).named("odd");
        let order = batches.order(0, 5).unwrap();
        assert_eq!([order.batch(1), order.batch(0)], [vec![1, 2], vec![5]]);
        assert_eq!(batches.identity(), "odd of 2 batches");
    }

    #[test]
    fn a_function_that_breaks_its_word_is_an_error() {
        let error = sampler_fn(3, |_, _| Ok(vec![0, 1])).order(0, 4).map(drop).unwrap_err();
        let expected = "error[L0604]: a sampler's function gave a list of another length than it was said to\n  \
                        sampler   function\n  given     2 indices\n  promised  3 indices\n  epoch     4\n  fix: every \
                        epoch has the same length, on every rank: give it to `sampler_fn` or `batch_sampler_fn`";
        assert_eq!(format!("{error:?}"), expected);
        let error = batch_sampler_fn(1, |_, _| Ok(vec![])).order(0, 0).map(drop).unwrap_err();
        assert_eq!(error.place("given"), Some("0 batches"));

        let error = sampler_fn(3, |_, _| Err(Error::msg("no list"))).order(0, 0).map(drop).unwrap_err();
        assert_eq!(error.what(), "no list");
    }
}
