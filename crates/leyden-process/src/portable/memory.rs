//! Memory for the parts of a reply: the heap's, aligned as shared memory is.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

pub use crate::available::available_bytes;
pub use crate::region::Region;

/// Bytes on the heap, at an address that is a multiple of [`ALIGN`].
pub(crate) struct Buffer {
    base: NonNull<u8>,
    layout: Layout,
}

/// A cache line, and more than any element of an array asks for.
const ALIGN: usize = 64;

impl Buffer {
    /// Zeros.
    ///
    /// # Panics
    ///
    /// As `Vec`, if it is more than there are addresses.
    pub(crate) fn zeroed(bytes: usize) -> Self {
        let layout = Layout::from_size_align(bytes, ALIGN).expect("capacity overflow");
        if bytes == 0 {
            return Self { base: layout.dangling_ptr(), layout };
        }
        // SAFETY: the layout has a size.
        let base = unsafe { alloc_zeroed(layout) };
        Self { base: NonNull::new(base).unwrap_or_else(|| handle_alloc_error(layout)), layout }
    }

    /// Where it begins. What lies there may be changed through the pointer while nobody else uses it.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(crate) fn len(&self) -> usize {
        self.layout.size()
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: so many bytes were allocated, and set to zero; they are this value's.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.layout.size()) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.layout.size()) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.layout.size() > 0 {
            // SAFETY: it was allocated with this layout, and nobody has it after its owner.
            unsafe { dealloc(self.base.as_ptr(), self.layout) };
        }
    }
}

// SAFETY: it owns its bytes, as `Box<[u8]>` does.
unsafe impl Send for Buffer {}
// SAFETY: as above; a shared one is only read, but for what its owner does through `base`.
unsafe impl Sync for Buffer {}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("bytes", &self.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_aligned_and_zero_also_an_empty_one() {
        for bytes in [0, 1, 63, 64, 100_000] {
            let mut buffer = Buffer::zeroed(bytes);
            assert_eq!((buffer.len(), buffer.as_ptr().addr() % ALIGN), (bytes, 0));
            assert!(buffer.iter().all(|&byte| byte == 0));
            buffer.fill(7);
        }
    }
}
