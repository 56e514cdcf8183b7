//! What the server keeps: values, queues, and who waits for what. No sockets; `W` stands for whoever is to be woken.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::budget::{Budget, Bytes};
use super::protocol::Strange;

/// Names one wait, in the order in which they began.
pub(super) type Ticket = u64;

pub(super) struct Table<W> {
    budget: Arc<Budget>,
    values: BTreeMap<Arc<Bytes>, Arc<Bytes>>,
    /// Never an empty one.
    queues: BTreeMap<Arc<Bytes>, VecDeque<Arc<Bytes>>>,
    waits: BTreeMap<Ticket, Wait<W>>,
    /// Under a key those waits that watch it.
    watched: BTreeMap<Arc<Bytes>, BTreeSet<Ticket>>,
    woken: Vec<(W, Ticket)>,
}

/// A wait watches one key that is missing. When that appears, it goes on to the next that is missing; if there is none, it
/// is over. So each key of it is looked at about once, and keys that are deleted meanwhile are noticed in the end.
struct Wait<W> {
    who: W,
    keys: Vec<Arc<Bytes>>,
    watches: usize,
    /// Of a barrier: how many must have arrived. It counts under its one key.
    world: Option<i64>,
}

impl<W> Table<W> {
    pub(super) fn new(budget: Arc<Budget>) -> Self {
        Self {
            budget,
            values: BTreeMap::new(),
            queues: BTreeMap::new(),
            waits: BTreeMap::new(),
            watched: BTreeMap::new(),
            woken: Vec::new(),
        }
    }

    /// Those whose wait is over since this was asked last.
    pub(super) fn woken(&mut self) -> Vec<(W, Ticket)> {
        std::mem::take(&mut self.woken)
    }

    pub(super) fn set(&mut self, key: Bytes, value: Bytes) {
        self.put(key, Arc::new(value));
    }

    pub(super) fn get(&self, key: &Bytes) -> Option<Arc<Bytes>> {
        self.values.get(key).cloned()
    }

    /// As PyTorch's: of a key that is not there it gives what was expected, which was not there either.
    pub(super) fn compare_set(&mut self, key: Bytes, expected: Bytes, desired: Bytes) -> Arc<Bytes> {
        match self.values.get(&key) {
            Some(value) if **value != expected => value.clone(),
            None if !expected.is_empty() => Arc::new(expected),
            _ => {
                let desired = Arc::new(desired);
                self.put(key, desired.clone());
                desired
            }
        }
    }

    pub(super) fn add(&mut self, key: Bytes, delta: i64) -> Result<i64, Strange> {
        let sum = self.number(&key)?.checked_add(delta).ok_or(Strange::NotANumber)?;
        self.put_number(key, sum)?;
        Ok(sum)
    }

    pub(super) fn append(&mut self, key: Bytes, data: Bytes) -> Result<(), Strange> {
        let Some(value) = self.values.get_mut(&key) else {
            self.set(key, data);
            return Ok(());
        };
        if let Some(value) = Arc::get_mut(value) {
            if !value.make_room(data.len()) {
                return Err(Strange::OutOfMemory);
            }
            value.data_mut().extend_from_slice(&data);
            return Ok(());
        }
        // Somebody is just being sent the old value.
        let mut longer = Bytes::new(&self.budget, value).ok_or(Strange::OutOfMemory)?;
        if !longer.make_room(data.len()) {
            return Err(Strange::OutOfMemory);
        }
        longer.data_mut().extend_from_slice(&data);
        *value = Arc::new(longer);
        Ok(())
    }

    pub(super) fn delete(&mut self, key: &Bytes) -> bool {
        self.values.remove(key).is_some()
    }

    pub(super) fn number_of_keys(&self) -> usize {
        self.values.len()
    }

    pub(super) fn keys(&self) -> Vec<Arc<Bytes>> {
        self.values.keys().cloned().collect()
    }

    pub(super) fn check(&self, keys: &[Bytes]) -> bool {
        keys.iter().all(|key| self.is_there(key))
    }

    /// Begins a wait; `false` if it is over already.
    pub(super) fn wait(&mut self, ticket: Ticket, who: W, keys: Vec<Bytes>) -> bool {
        let Some(watches) = keys.iter().position(|key| !self.is_there(key)) else { return false };
        let wait = Wait { who, keys: keys.into_iter().map(Arc::new).collect(), watches, world: None };
        self.watch(ticket, wait);
        true
    }

    /// Arrives at a barrier; `false` if all have. As PyTorch's, a barrier stays open once it was.
    pub(super) fn barrier(
        &mut self,
        ticket: Ticket,
        who: W,
        key: Bytes,
        world: i64,
    ) -> Result<bool, Strange> {
        let arrived = self.number(&key)?.checked_add(1).ok_or(Strange::NotANumber)?;
        let copy = Bytes::new(&self.budget, &key).ok_or(Strange::OutOfMemory)?;
        self.put_number(copy, arrived)?;
        if arrived < world {
            self.watch(ticket, Wait { who, keys: vec![Arc::new(key)], watches: 0, world: Some(world) });
            return Ok(true);
        }
        let here = self.watched.get(&key).into_iter().flatten();
        let over: Vec<Ticket> = here
            .copied()
            .filter(|ticket| self.waits[ticket].world.is_some_and(|world| world <= arrived))
            .collect();
        for ticket in over {
            self.wake(ticket);
        }
        Ok(false)
    }

    /// Ends a wait unanswered; `false` if it was over.
    pub(super) fn cancel(&mut self, ticket: Ticket) -> bool {
        let Some(wait) = self.unwatch(ticket) else { return false };
        if wait.world.is_some() {
            self.leave(&wait.keys[0]);
        }
        true
    }

    /// Pushes to a queue, which ends one wait for it: the item is for one.
    pub(super) fn push(&mut self, key: Bytes, item: Bytes) {
        let key = Arc::new(key);
        self.queues.entry(key.clone()).or_default().push_back(Arc::new(item));
        self.wake_one(&key);
    }

    /// The length before, and the item.
    pub(super) fn pop(&mut self, key: &Bytes) -> (usize, Option<Arc<Bytes>>) {
        let Some(queue) = self.queues.get_mut(key) else { return (0, None) };
        let length = queue.len();
        let item = queue.pop_front();
        if queue.is_empty() {
            self.queues.remove(key);
        } else {
            self.wake_one(key);
        }
        (length, item)
    }

    pub(super) fn queue_length(&self, key: &Bytes) -> usize {
        self.queues.get(key).map_or(0, VecDeque::len)
    }

    /// Somebody who was woken will not come: what lies in a queue may be for the next.
    pub(super) fn nudge(&mut self) {
        let keys: Vec<_> = self.queues.keys().cloned().collect();
        for key in keys {
            self.wake_one(&key);
        }
    }

    fn is_there(&self, key: &Bytes) -> bool {
        self.values.contains_key(key) || self.queues.contains_key(key)
    }

    fn put(&mut self, key: Bytes, value: Arc<Bytes>) {
        if let Some(old) = self.values.get_mut(&key) {
            *old = value;
            return;
        }
        let key = Arc::new(key);
        self.values.insert(key.clone(), value);
        for ticket in self.watched.get(&*key).cloned().unwrap_or_default() {
            self.go_on(ticket);
        }
    }

    /// 0 if it is not there.
    fn number(&self, key: &Bytes) -> Result<i64, Strange> {
        let Some(value) = self.values.get(key) else { return Ok(0) };
        let text = std::str::from_utf8(value).map_err(|_| Strange::NotANumber)?;
        text.trim().parse().map_err(|_| Strange::NotANumber)
    }

    fn put_number(&mut self, key: Bytes, number: i64) -> Result<(), Strange> {
        let text = Bytes::new(&self.budget, number.to_string().as_bytes()).ok_or(Strange::OutOfMemory)?;
        self.put(key, Arc::new(text));
        Ok(())
    }

    /// Takes back an arrival at a barrier.
    fn leave(&mut self, key: &Arc<Bytes>) {
        let Ok(arrived) = self.number(key) else { return };
        // Not enough memory for a few digits: then the arrival stays counted, as it does in PyTorch.
        let text = Bytes::new(&self.budget, (arrived - 1).to_string().as_bytes());
        if let (Some(value), Some(text)) = (self.values.get_mut(&**key), text) {
            *value = Arc::new(text);
        }
    }

    fn watch(&mut self, ticket: Ticket, wait: Wait<W>) {
        self.watched.entry(wait.keys[wait.watches].clone()).or_default().insert(ticket);
        self.waits.insert(ticket, wait);
    }

    fn unwatch(&mut self, ticket: Ticket) -> Option<Wait<W>> {
        let wait = self.waits.remove(&ticket)?;
        let key = &wait.keys[wait.watches];
        if let Some(tickets) = self.watched.get_mut(&**key) {
            tickets.remove(&ticket);
            if tickets.is_empty() {
                self.watched.remove(&**key);
            }
        }
        Some(wait)
    }

    fn wake(&mut self, ticket: Ticket) {
        if let Some(wait) = self.unwatch(ticket) {
            self.woken.push((wait.who, ticket));
        }
    }

    /// The key that it watches has appeared. Says whether the wait is over.
    fn go_on(&mut self, ticket: Ticket) -> bool {
        let Some(wait) = self.waits.get(&ticket).filter(|wait| wait.world.is_none()) else { return false };
        let (here, count) = (wait.watches, wait.keys.len());
        let missing = (here..here + count).map(|at| at % count).find(|&at| !self.is_there(&wait.keys[at]));
        let Some(missing) = missing else {
            self.wake(ticket);
            return true;
        };
        if let Some(mut wait) = self.unwatch(ticket) {
            wait.watches = missing;
            self.watch(ticket, wait);
        }
        false
    }

    fn wake_one(&mut self, key: &Bytes) {
        for ticket in self.watched.get(key).cloned().unwrap_or_default() {
            if self.go_on(ticket) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Rows {
        table: Table<&'static str>,
        next: Ticket,
    }

    impl Rows {
        fn new() -> Self {
            Self { table: Table::new(Budget::new(1 << 20)), next: 0 }
        }

        fn bytes(&self, text: &str) -> Bytes {
            Bytes::new(&self.table.budget, text.as_bytes()).unwrap()
        }

        fn set(&mut self, key: &str) -> Vec<&'static str> {
            let (key, value) = (self.bytes(key), self.bytes("v"));
            self.table.set(key, value);
            self.woken()
        }

        fn push(&mut self, key: &str) -> Vec<&'static str> {
            let (key, value) = (self.bytes(key), self.bytes("item"));
            self.table.push(key, value);
            self.woken()
        }

        fn pop(&mut self, key: &str) -> usize {
            let key = self.bytes(key);
            self.table.pop(&key).0
        }

        fn woken(&mut self) -> Vec<&'static str> {
            self.table.woken().into_iter().map(|(who, _)| who).collect()
        }

        fn wait(&mut self, who: &'static str, keys: &[&str]) -> Option<Ticket> {
            self.next += 1;
            let keys = keys.iter().map(|key| self.bytes(key)).collect();
            self.table.wait(self.next, who, keys).then_some(self.next)
        }

        fn barrier(&mut self, who: &'static str, world: i64) -> Option<Ticket> {
            self.next += 1;
            let key = self.bytes("b");
            self.table.barrier(self.next, who, key, world).unwrap().then_some(self.next)
        }

        fn assert_nothing_is_watched(&self) {
            assert!(self.table.waits.is_empty() && self.table.watched.is_empty());
        }
    }

    #[test]
    fn a_wait_is_over_when_all_its_keys_are_there_at_once() {
        let mut rows = Rows::new();
        rows.wait("both", &["a", "b", "a"]).unwrap();
        rows.wait("b", &["b"]).unwrap();
        assert!(rows.set("a").is_empty());
        let a = rows.bytes("a");
        assert!(rows.table.delete(&a));
        assert_eq!(rows.set("b"), ["b"]);
        assert_eq!(rows.set("a"), ["both"]);
        assert!(rows.wait("late", &["a", "b"]).is_none());
        assert!(rows.wait("nothing", &[]).is_none());
        rows.assert_nothing_is_watched();
    }

    #[test]
    fn a_wait_that_was_cancelled_wakes_nobody_and_leaves_nothing() {
        let mut rows = Rows::new();
        let ticket = rows.wait("gone", &["a", "b"]).unwrap();
        assert!(rows.table.cancel(ticket));
        assert!(!rows.table.cancel(ticket));
        assert!(rows.set("a").is_empty() && rows.set("b").is_empty());
        rows.assert_nothing_is_watched();
    }

    #[test]
    fn a_wait_for_many_keys_takes_time_in_proportion() {
        let mut rows = Rows::new();
        rows.table.budget = Budget::new(1 << 30);
        let names: Vec<String> = (0..20_000).map(|number| format!("{number}")).collect();
        rows.wait("all", &names.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
        // In whatever order they come: backwards here.
        let mut woken = Vec::new();
        for name in names.iter().rev().chain([&"x".to_owned()]) {
            woken.extend(rows.set(name));
        }
        assert_eq!(woken, ["all"]);
    }

    #[test]
    fn an_item_of_a_queue_is_for_one() {
        let mut rows = Rows::new();
        rows.wait("first", &["q"]).unwrap();
        rows.wait("second", &["q"]).unwrap();
        assert_eq!(rows.push("q"), ["first"]);
        assert_eq!(rows.push("q"), ["second"]);
        assert_eq!((rows.pop("q"), rows.pop("q"), rows.pop("q")), (2, 1, 0));
        // Who is woken and does not come leaves the item to the next.
        rows.wait("gone", &["q"]).unwrap();
        rows.wait("next", &["q"]).unwrap();
        assert_eq!(rows.push("q"), ["gone"]);
        rows.table.nudge();
        assert_eq!(rows.woken(), ["next"]);
        rows.assert_nothing_is_watched();
    }

    #[test]
    fn a_barrier_counts_only_who_is_there() {
        let mut rows = Rows::new();
        let gone = rows.barrier("gone", 3).unwrap();
        rows.barrier("one", 3).unwrap();
        assert!(rows.table.cancel(gone));
        rows.barrier("two", 3).unwrap();
        assert!(rows.woken().is_empty());
        assert!(rows.barrier("three", 3).is_none());
        assert_eq!(rows.woken(), ["one", "two"]);
        rows.assert_nothing_is_watched();
    }

    #[test]
    fn a_value_that_is_being_sent_is_not_changed_by_appending() {
        let mut rows = Rows::new();
        let (key, one) = (rows.bytes("k"), rows.bytes("one"));
        rows.table.append(key, one).unwrap();
        let key = rows.bytes("k");
        let sent = rows.table.get(&key).unwrap();
        let (again, two) = (rows.bytes("k"), rows.bytes(" two"));
        rows.table.append(again, two).unwrap();
        assert_eq!((&**sent, &**rows.table.get(&key).unwrap()), (&b"one"[..], &b"one two"[..]));
    }

    #[test]
    fn adding_to_what_is_no_number_is_refused() {
        let mut rows = Rows::new();
        let (key, value) = (rows.bytes("n"), rows.bytes("many"));
        rows.table.set(key, value);
        let mut add = |key: &str, delta| {
            let key = rows.bytes(key);
            rows.table.add(key, delta)
        };
        assert_eq!(add("n", 1), Err(Strange::NotANumber));
        assert_eq!((add("m", 5), add("m", -7)), (Ok(5), Ok(-2)));
        assert_eq!(add("m", i64::MIN), Err(Strange::NotANumber));
    }
}
