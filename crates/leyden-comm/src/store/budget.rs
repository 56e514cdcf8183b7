//! How much memory a server may hold for others, and bytes that count against it for as long as they live.

use std::cmp::Ordering;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// What all keys and values of a server may take together, those that are still arriving or leaving included.
pub(super) struct Budget {
    limit: usize,
    used: AtomicUsize,
}

/// Bytes whose memory is accounted for.
pub(super) struct Bytes {
    data: Vec<u8>,
    held: Held,
}

/// A part of the budget; given back when dropped.
struct Held {
    budget: Arc<Budget>,
    amount: usize,
}

impl Budget {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicUsize::new(0) })
    }

    /// What is in use.
    #[cfg(test)]
    pub(super) fn used(&self) -> usize {
        self.used.load(Relaxed)
    }

    fn take(&self, amount: usize) -> bool {
        let enough = |used: usize| used.checked_add(amount).filter(|sum| *sum <= self.limit);
        self.used.fetch_update(Relaxed, Relaxed, enough).is_ok()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.amount, Relaxed);
    }
}

impl Bytes {
    /// What one takes beyond its content: the vector, the counts, a place in a map or two.
    const OVERHEAD: usize = 160;

    /// No bytes yet; `None` if the budget is used up.
    pub(super) fn empty(budget: &Arc<Budget>) -> Option<Self> {
        budget
            .take(Self::OVERHEAD)
            .then(|| Self { data: Vec::new(), held: Held { budget: budget.clone(), amount: Self::OVERHEAD } })
    }

    /// `None` if the budget does not allow it.
    pub(super) fn new(budget: &Arc<Budget>, data: &[u8]) -> Option<Self> {
        let mut bytes = Self::empty(budget)?;
        bytes.make_room(data.len()).then(|| bytes.data.extend_from_slice(data))?;
        Some(bytes)
    }

    /// Reserves memory for `more` bytes; `false` if the budget does not allow it.
    pub(super) fn make_room(&mut self, more: usize) -> bool {
        let spare = self.data.capacity() - self.data.len();
        if more <= spare {
            return true;
        }
        if !self.held.budget.take(more - spare) {
            return false;
        }
        self.held.amount += more - spare;
        self.data.reserve_exact(more);
        true
    }

    /// The vector itself; nobody lets it outgrow what [`make_room`](Self::make_room) has allowed.
    pub(super) fn data_mut(&mut self) -> &mut Vec<u8> {
        &mut self.data
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.data
    }
}

impl PartialEq for Bytes {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Bytes {}

impl PartialOrd for Bytes {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Bytes {
    fn cmp(&self, other: &Self) -> Ordering {
        (**self).cmp(&**other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_given_back() {
        let budget = Budget::new(1000);
        let mut one = Bytes::new(&budget, &[7; 100]).unwrap();
        assert_eq!(budget.used(), 100 + Bytes::OVERHEAD);
        assert!(one.make_room(400));
        assert!(!one.make_room(5000));
        assert_eq!(budget.used(), 500 + Bytes::OVERHEAD);
        assert!(Bytes::new(&budget, &[7; 400]).is_none());
        drop(one);
        assert_eq!(budget.used(), 0);
    }
}
