//! What stands for `leyden-comm` where ranks cannot be: they need Linux. Asking for several is an error, so that nothing here
//! but that is ever reached.

use std::convert::Infallible;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use leyden_process::{Error, Result};
use serde::{Serialize, de::DeserializeOwned};

#[derive(Debug)]
pub(crate) struct Rank(Infallible);

#[derive(Debug)]
pub(crate) struct Bucket<T>(Infallible, PhantomData<T>);

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Group;

impl Group {
    pub(crate) const WORLD: Self = Self;
}

pub(crate) enum ReduceOp {
    Sum,
}

pub(crate) mod launch {
    use leyden_process::{Code, Error, Result, exit};

    pub(crate) struct World(std::convert::Infallible);

    pub(crate) fn world(size: usize) -> Result<World> {
        Err(Error::new(NOT_HERE, "several ranks need Linux")
            .at("ranks", size)
            .why("they share memory, and their deaths are noticed as only Linux tells")
            .hint("train on one rank here: leave out `.devices(..)`"))
    }

    impl World {
        pub(crate) fn join(&self) -> Result<super::Rank> {
            match self.0 {}
        }
    }

    /// Several ranks need Linux.
    pub(crate) const NOT_HERE: Code = Code::new("C0112", exit::CONFIGURATION);
}

impl<T> Bucket<T> {
    pub(crate) fn is_shared(&self) -> bool {
        match self.0 {}
    }
}

impl<T> Deref for Bucket<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self.0 {}
    }
}

impl<T> DerefMut for Bucket<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match self.0 {}
    }
}

impl Rank {
    pub(crate) fn rank(&self) -> usize {
        match self.0 {}
    }

    pub(crate) fn world_size(&self) -> usize {
        match self.0 {}
    }

    pub(crate) fn set_limits(&mut self, _: Duration, _: Duration) {}

    pub(crate) fn called_from(&mut self, _: &'static std::panic::Location<'static>) {}

    pub(crate) fn phase(&mut self, _: &str) {}

    pub(crate) fn barrier(&mut self, _: &str) -> Result<()> {
        match self.0 {}
    }

    pub(crate) fn agree_any(&mut self, _: bool, _: &str) -> Result<bool> {
        match self.0 {}
    }

    pub(crate) fn long_op<T>(&mut self, _: &str, _: Duration, _: impl FnOnce() -> T) -> T {
        match self.0 {}
    }

    pub(crate) fn fail(&self, error: Error) -> Error {
        error
    }

    pub(crate) fn on_rank_zero<T>(&mut self, _: impl FnOnce(&()) -> Result<T>) -> Result<T> {
        match self.0 {}
    }

    pub(crate) fn all_gather_in<T>(&mut self, _: Group, _: &[T], _: &str) -> Result<Vec<T>> {
        match self.0 {}
    }

    pub(crate) fn all_gather_object<T: Serialize + DeserializeOwned>(
        &mut self,
        _: &T,
        _: &str,
    ) -> Result<Vec<T>> {
        match self.0 {}
    }

    pub(crate) fn all_reduce_in<T>(&mut self, _: Group, _: &mut [T], _: ReduceOp, _: &str) -> Result<()> {
        match self.0 {}
    }

    pub(crate) fn bucket<T>(&mut self, _: usize, _: &str) -> Result<Bucket<T>> {
        match self.0 {}
    }

    pub(crate) fn all_reduce_bucket<T>(&mut self, _: &mut Bucket<T>, _: ReduceOp) -> Result<()> {
        match self.0 {}
    }

    pub(crate) fn broadcast_in<T>(&mut self, _: Group, _: &mut [T], _: usize, _: &str) -> Result<()> {
        match self.0 {}
    }

    pub(crate) fn new_group(&mut self, _: &[usize]) -> Result<Group> {
        match self.0 {}
    }
}
