//! What stands for `leyden-comm` where ranks cannot be: they need Linux. Asking for several is an error, so that nothing here
//! but that is ever reached.

use std::convert::Infallible;
use std::time::Duration;

use leyden_process::{Error, Result};
use serde::{Serialize, de::DeserializeOwned};

#[derive(Debug)]
pub(crate) struct Rank(Infallible);

#[derive(Clone, Copy, Debug)]
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

    pub(crate) fn broadcast_in<T>(&mut self, _: Group, _: &mut [T], _: usize, _: &str) -> Result<()> {
        match self.0 {}
    }

    pub(crate) fn new_group(&mut self, _: &[usize]) -> Result<Group> {
        match self.0 {}
    }
}
