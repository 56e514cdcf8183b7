//! A part of a task's reply, wherever it lies.

use std::any::Any;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

/// A range of bytes that nobody else reads or writes while this lives, and that lives as long as this.
///
/// It begins at a multiple of 64 bytes. What it holds at first is arbitrary: ranges are recycled.
pub struct Region {
    base: NonNull<u8>,
    bytes: usize,
    /// Keeps the mapping, and the slot that the range is in.
    _keeper: Arc<dyn Any + Send + Sync>,
}

impl Region {
    /// # Safety
    ///
    /// The range is mapped for reading and writing while `keeper` lives, and nobody else uses it until the region is
    /// dropped.
    pub(crate) unsafe fn new(base: NonNull<u8>, bytes: usize, keeper: Arc<dyn Any + Send + Sync>) -> Self {
        Self { base, bytes, _keeper: keeper }
    }
}

impl Deref for Region {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: whoever made the region promised that the range is mapped and ours alone; any byte is a `u8`.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.bytes) }
    }
}

impl DerefMut for Region {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.bytes) }
    }
}

// SAFETY: it is the only owner of its bytes, as `Box<[u8]>` is, and its keeper may go to any thread.
unsafe impl Send for Region {}
// SAFETY: a shared region only lends its bytes for reading.
unsafe impl Sync for Region {}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}
