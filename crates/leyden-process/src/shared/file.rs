//! Shared data in a sealed file without a name.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};

use crate::memory::{self, Access, Map, foreign};
use crate::{Error, Result, attach, codes};

/// A file that is being written.
pub(super) struct Store(File);

/// A file that nobody can change any more, and where it is mapped.
pub(super) struct Sealed {
    map: Map,
    fd: OwnedFd,
    bytes: usize,
}

impl Store {
    pub(super) fn new() -> Result<Self> {
        Ok(Self(memory::create("leyden-shared", 0)?.into()))
    }

    /// Writes more, so that it is `after` bytes long.
    pub(super) fn append(&mut self, bytes: &[u8], after: u64) -> Result<()> {
        memory::check_file_size(after)?;
        self.0.write_all(bytes).map_err(|error| {
            Error::new(codes::NO_SHARED_MEMORY, "shared data could not be written").why(error)
        })
    }

    pub(super) fn seal(self, bytes: u64) -> Result<Sealed> {
        // A mapping has at least one byte.
        self.0.set_len(bytes.max(1)).map_err(|error| {
            Error::new(codes::NO_SHARED_MEMORY, "shared data could not be cut").why(error)
        })?;
        let fd = OwnedFd::from(self.0);
        memory::seal(fd.as_fd(), SEALS)?;
        Sealed::open(fd, usize::try_from(bytes).map_err(|_| foreign("it is larger than the address space"))?)
    }
}

impl Sealed {
    /// Maps what another process has sealed; nothing if its descriptor did not come along.
    pub(super) fn attached(number: u32, bytes: usize) -> Option<Result<Self>> {
        Some(Self::open(attach::attached(number)?, bytes))
    }

    fn open(fd: OwnedFd, bytes: usize) -> Result<Self> {
        let size = memory::sealed_size(fd.as_fd(), SEALS)?;
        if size < bytes {
            return Err(foreign(&format!("it has {size} bytes of {bytes}")));
        }
        Ok(Self { map: Map::new(fd.as_fd(), bytes.max(1), Access::Read)?, fd, bytes })
    }

    /// Sends it along, where something is being serialised for another process; see [`attach`].
    pub(super) fn attach(&self) -> Option<u32> {
        attach::attach(self.fd.as_fd())
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: so many bytes are mapped while `self` lives, and the seals keep everybody from writing to them and from
        // cutting them off.
        unsafe { std::slice::from_raw_parts(self.map.base().as_ptr(), self.bytes) }
    }
}

/// Nobody changes the bytes or their number, or takes these seals off.
const SEALS: i32 = libc::F_SEAL_WRITE | libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::Shared;

    fn sealed(bytes: &[u8]) -> Sealed {
        let mut store = Store::new().unwrap();
        store.append(bytes, bytes.len() as u64).unwrap();
        store.seal(bytes.len() as u64).unwrap()
    }

    #[test]
    fn what_is_sealed_cannot_be_changed() {
        let sealed = sealed(&[1, 2]);
        let mut file = File::from(sealed.fd.try_clone().unwrap());
        assert!(file.write_all(b"x").is_err() && file.set_len(0).is_err());
        assert!(Map::new(file.as_fd(), 2, Access::Write).is_err());
        assert_eq!(sealed.bytes(), [1, 2]);
    }

    #[test]
    fn a_descriptor_that_is_not_sealed_or_too_short_or_missing_is_refused() {
        let open = |fd: OwnedFd, bytes| Sealed::open(fd, bytes).and_then(Shared::<u32>::of);
        let refused = |fd: OwnedFd, bytes| open(fd, bytes).unwrap_err().code();
        let unsealed = memory::create("test", 8).unwrap();
        assert_eq!(refused(unsealed, 8), codes::FOREIGN_DESCRIPTOR);
        let eight = || sealed(bytemuck::cast_slice(&[1_u32, 2])).fd;
        assert_eq!(refused(eight(), 12), codes::FOREIGN_DESCRIPTOR);
        assert_eq!(refused(eight(), 6), codes::FOREIGN_DESCRIPTOR);
        assert_eq!(open(eight(), 4).unwrap()[..], [1]);
        let shared = Shared::from_slice(&[1_u8]).unwrap();
        let (bytes, _) = attach::collect(|| postcard::to_stdvec(&shared).unwrap());
        let alone = postcard::from_bytes::<Shared<u8>>(&bytes).unwrap_err();
        assert_eq!(alone, postcard::Error::SerdeDeCustom);
    }
}
