//! Shared data on the heap: each process has its own.

use crate::Result;
use crate::memory::Buffer;

/// Bytes that are being gathered; what is behind them costs addresses alone.
pub(super) struct Store {
    buffer: Buffer,
    bytes: usize,
}

/// Bytes that nobody changes any more.
pub(super) struct Sealed(Store);

impl Store {
    pub(super) fn new() -> Result<Self> {
        Ok(Self { buffer: Buffer::zeroed(0), bytes: 0 })
    }

    /// Adds more bytes.
    pub(super) fn append(&mut self, bytes: &[u8], _after: u64) -> Result<()> {
        let after = self.bytes + bytes.len();
        if after > self.buffer.len() {
            let mut larger = Buffer::zeroed(after.max(2 * self.bytes));
            larger[..self.bytes].copy_from_slice(&self.buffer[..self.bytes]);
            self.buffer = larger;
        }
        self.buffer[self.bytes..after].copy_from_slice(bytes);
        self.bytes = after;
        Ok(())
    }

    pub(super) fn seal(self, _bytes: u64) -> Result<Sealed> {
        Ok(Sealed(self))
    }
}

impl Sealed {
    /// Nothing comes along with what is serialised.
    pub(super) fn attached(_number: u32, _bytes: usize) -> Option<Result<Self>> {
        None
    }

    /// Travels by its contents.
    pub(super) fn attach(&self) -> Option<u32> {
        None
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0.buffer[..self.0.bytes]
    }
}
