//! Memory that processes share: a file without a name, mapped by each of them.
//!
//! A `memfd` is in no folder, so nothing is left behind however its processes end, and the size limit of `/dev/shm`
//! does not hold for it. It is sparse: a page costs memory once it was written to. Its size is sealed, so that no
//! process can take pages away under another's feet.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

use bytemuck::Pod;

pub use crate::available::available_bytes;
pub use crate::region::Region;
use crate::{Error, Result, codes};

/// Sealed in size, mapped for reading and writing, by this process and by whoever gets the descriptor.
pub struct Memory {
    map: Map,
    fd: OwnedFd,
}

impl Memory {
    /// Makes `bytes` bytes of zeros, none of which takes memory yet. Core dumps leave them out.
    ///
    /// # Errors
    ///
    /// `P0201` if the limit on file sizes is below `bytes`; `P0203` if the address space is not there; `P0202` if the
    /// system refuses otherwise.
    pub fn new(bytes: usize) -> Result<Self> {
        let fd = create("leyden", bytes as u64)?;
        seal(fd.as_fd(), libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL)?;
        Ok(Self { map: Map::new(fd.as_fd(), bytes, Access::Write)?, fd })
    }

    /// Maps what another process made with [`new`](Memory::new).
    ///
    /// # Errors
    ///
    /// `P0207` if the descriptor is not sealed in size; `P0203` if the address space is not there.
    pub fn from_fd(fd: OwnedFd) -> Result<Self> {
        let bytes = sealed_size(fd.as_fd(), libc::F_SEAL_SHRINK | libc::F_SEAL_GROW)?;
        Ok(Self { map: Map::new(fd.as_fd(), bytes, Access::Write)?, fd })
    }

    /// Keeps it from processes that are forked from this one: they are ended by SIGSEGV where they touch it.
    pub(crate) fn keep_from_copies(&self) {
        // SAFETY: the range is the mapping; forked processes have no references to it but copies of ours, which are of no
        // use to them. A kernel that refuses leaves it shared.
        unsafe { libc::madvise(self.map.base.as_ptr().cast(), self.map.bytes, libc::MADV_DONTFORK) };
    }

    /// The size in bytes.
    pub fn bytes(&self) -> usize {
        self.map.bytes
    }

    /// The descriptor to hand to another process.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The word at `offset`, which is to be a multiple of 4: for flags, and for sleeping on by [`futex`](crate::futex).
    ///
    /// # Panics
    ///
    /// Where there is no word at that offset.
    #[inline]
    pub fn word(&self, offset: usize) -> &AtomicU32 {
        self.view(offset).expect("a word lies in the memory")
    }

    /// The long word at `offset`, which is to be a multiple of 8. None of its halves is to be used as a
    /// [`word`](Self::word).
    ///
    /// # Panics
    ///
    /// Where there is no long word at that offset.
    #[inline]
    pub fn long(&self, offset: usize) -> &AtomicU64 {
        self.view(offset).expect("a long word lies in the memory")
    }

    /// Copies `bytes` to `offset`. Whoever reads them meanwhile gets some of the old and some of the new: when they may
    /// be read is said by words beside them.
    ///
    /// # Panics
    ///
    /// Where they do not fit.
    #[inline]
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        let to = self.range(offset, bytes.len()).expect("the bytes lie in the memory");
        // SAFETY: the range lies in the mapping, and no reference to it exists in this process: what `view` gives are
        // atomics, and slots and arguments have memory of their own. Other processes' accesses are theirs; the bytes
        // may be any.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr(), bytes.len()) };
    }

    /// Copies from `offset` what is there.
    ///
    /// # Panics
    ///
    /// Where there is not so much.
    #[inline]
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        let from = self.range(offset, bytes.len()).expect("the bytes lie in the memory");
        // SAFETY: as in `write`.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), bytes.as_mut_ptr(), bytes.len()) };
    }

    /// Gives each of `into` the number that lies at its place from `offset` on: as [`read`](Self::read), without a copy.
    ///
    /// # Panics
    ///
    /// Where there are not so many, or the offset is not a multiple of their alignment.
    pub fn fold<A, T: Pod>(&self, offset: usize, into: &mut [A], f: impl Fn(&mut A, T)) {
        self.map.fold(offset, into, f);
    }

    /// The mapping alone; the descriptor is closed.
    pub(crate) fn into_map(self) -> Map {
        self.map
    }

    /// The `T` at `offset`.
    #[inline]
    pub(crate) fn view<T: Words>(&self, offset: usize) -> Option<&T> {
        let fits =
            offset.is_multiple_of(align_of::<T>()) && offset.checked_add(size_of::<T>())? <= self.bytes();
        // SAFETY: the bytes lie in the mapping, which lives as long as `self`; it begins at a page, so that the
        // offset's alignment is the address's; and a `Words` may be anything and change at any time.
        fits.then(|| unsafe { &*self.map.base.as_ptr().add(offset).cast::<T>() })
    }

    /// The address of a range inside.
    #[inline]
    pub(crate) fn range(&self, offset: usize, bytes: usize) -> Option<NonNull<u8>> {
        self.map.range(offset, bytes)
    }

    /// Gives the pages of a range back; they read as zeros afterwards. False if the system refuses.
    pub(crate) fn punch(&self, offset: usize, bytes: usize) -> bool {
        let (Ok(offset), Ok(bytes)) = (offset.try_into(), bytes.try_into()) else { return false };
        // SAFETY: nothing is read or written through our pointers; who owns the range is the caller's to know.
        unsafe {
            libc::fallocate(
                self.fd.as_raw_fd(),
                libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                offset,
                bytes,
            ) == 0
        }
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").field("bytes", &self.bytes()).finish_non_exhaustive()
    }
}

/// Structures of atomic integers: any bytes make one, and others may change them.
///
/// # Safety
///
/// The type consists of atomic integers only, with `repr(C)`.
pub(crate) unsafe trait Words {}

// SAFETY: it is one.
unsafe impl Words for AtomicU32 {}
// SAFETY: it is one.
unsafe impl Words for AtomicU64 {}

/// A mapped file.
pub(crate) struct Map {
    base: NonNull<u8>,
    bytes: usize,
}

/// How a [`Map`] may be used.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Access {
    /// Shared, for reading and writing.
    Write,
    /// For reading alone; what is mapped is sealed against writing.
    Read,
}

impl Map {
    pub(crate) fn new(fd: BorrowedFd<'_>, bytes: usize, access: Access) -> Result<Self> {
        let (protection, flags) = match access {
            Access::Write => (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_NORESERVE),
            // Private, because kernels before 6.7 refuse to share what is sealed against writing; it is one copy
            // nevertheless, since nobody writes.
            Access::Read => (libc::PROT_READ, libc::MAP_PRIVATE | libc::MAP_NORESERVE),
        };
        // SAFETY: the kernel chooses a free range of addresses, so nothing that exists is touched.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, fd.as_raw_fd(), 0) };
        let Some(base) = NonNull::new(base.cast::<u8>()).filter(|_| base != libc::MAP_FAILED) else {
            return Err(not_mapped(bytes, &io::Error::last_os_error()));
        };
        // SAFETY: the range was mapped just now. It fails on nothing that matters: a core dump would be larger.
        unsafe { libc::madvise(base.as_ptr().cast(), bytes, libc::MADV_DONTDUMP) };
        Ok(Self { base, bytes })
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The address of a range inside.
    #[inline]
    pub(crate) fn range(&self, offset: usize, bytes: usize) -> Option<NonNull<u8>> {
        // SAFETY: the offset lies in the mapping.
        (offset.checked_add(bytes)? <= self.bytes).then(|| unsafe { self.base.add(offset) })
    }

    /// See [`Memory::fold`]. `into` does not overlap what is read: whoever calls it knows.
    pub(crate) fn fold<A, T: Pod>(&self, offset: usize, into: &mut [A], f: impl Fn(&mut A, T)) {
        assert!(offset.is_multiple_of(align_of::<T>()), "the numbers are aligned");
        let bytes = into.len().checked_mul(size_of::<T>());
        let from = bytes.and_then(|bytes| self.range(offset, bytes)).expect("the numbers lie in the memory");
        let from = from.as_ptr().cast_const().cast::<T>();
        for (index, into) in into.iter_mut().enumerate() {
            // SAFETY: the range was found to lie in the mapping, which begins at a page, so that the offset's alignment is
            // the address's; any bytes are a `T`. Nothing in this process refers to it but atomics, which are elsewhere by
            // their owner's layout. When other processes write there is said by words beside it; a number that one writes
            // meanwhile all the same is an old one, a new one or some bytes of both.
            f(into, unsafe { from.add(index).read() });
        }
    }

    /// Has the system find pages for a range now, large ones if it likes.
    pub(crate) fn populate(&self, range: Range<usize>) {
        /// Since Linux 5.14.
        const MADV_POPULATE_WRITE: i32 = 23;
        let Some(start) = self.range(range.start, range.len()) else { return };
        // SAFETY: the range lies in the mapping, and neither call changes what is in it. A kernel that knows neither, or
        // has no memory, leaves the pages to their first use.
        unsafe {
            libc::madvise(start.as_ptr().cast(), range.len(), libc::MADV_HUGEPAGE);
            libc::madvise(start.as_ptr().cast(), range.len(), MADV_POPULATE_WRITE);
        }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: this is the range that mmap gave; every user of it borrows the map or keeps it alive.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

// SAFETY: an address range may be used from any thread; what is in it is guarded by those who hand out references.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

/// Makes a file without a name, `bytes` long and sparse, that cannot be executed.
pub(crate) fn create(name: &str, bytes: u64) -> Result<OwnedFd> {
    check_file_size(bytes)?;
    let refused = |act: &str| {
        Error::new(codes::NO_SHARED_MEMORY, "shared memory could not be made")
            .at("bytes", bytes)
            .why(format!("{act}: {}", io::Error::last_os_error()))
    };
    let name = std::ffi::CString::new(name).expect("our own names have no zero byte");
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name is borrowed for the call. Kernels before 6.3 do not know the first flags.
    let fd = unsafe {
        match libc::memfd_create(name.as_ptr(), flags | MFD_NOEXEC_SEAL) {
            -1 => libc::memfd_create(name.as_ptr(), flags),
            fd => fd,
        }
    };
    if fd < 0 {
        return Err(refused("memfd_create")
            .hint("raise the limit on open descriptors (`ulimit -n`) if it is reached"));
    }
    // SAFETY: the descriptor was made just now and is nobody else's.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(bytes).map_err(|_| refused("ftruncate"))?;
    Ok(file.into())
}

/// Refuses files that the process may not make so long: the kernel would end it with SIGXFSZ.
pub(crate) fn check_file_size(bytes: u64) -> Result<()> {
    match limit(libc::RLIMIT_FSIZE) {
        Some(most) if bytes > most => Err(Error::new(
            codes::FILE_SIZE_LIMIT,
            "the limit on file sizes is below what shared memory needs",
        )
        .at("needed", format!("{bytes} bytes"))
        .at("limit", format!("{most} bytes (RLIMIT_FSIZE)"))
        .why("shared memory is a file without a name, and the limit holds for it as for any other")
        .hint("lift it with `ulimit -f unlimited`, or in the service's or container's configuration")),
        _ => Ok(()),
    }
}

/// Adds seals.
pub(crate) fn seal(fd: BorrowedFd<'_>, seals: i32) -> Result<()> {
    // SAFETY: the call takes numbers only.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    Err(Error::new(codes::NO_SHARED_MEMORY, "shared memory could not be sealed").why(error))
}

/// The size of a file that has these seals.
pub(crate) fn sealed_size(fd: BorrowedFd<'_>, seals: i32) -> Result<usize> {
    // SAFETY: the call takes numbers only.
    let found = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS) };
    if found < 0 || found & seals != seals {
        return Err(foreign("it is not sealed as shared memory is"));
    }
    let length =
        fd.try_clone_to_owned().and_then(|fd| File::from(fd).metadata()).map(|metadata| metadata.len());
    match length.map(usize::try_from) {
        Ok(Ok(bytes)) => Ok(bytes),
        _ => Err(foreign("its size cannot be read")),
    }
}

pub(crate) fn foreign(why: &str) -> Error {
    Error::new(codes::FOREIGN_DESCRIPTOR, "a descriptor is not the shared memory it was taken for").why(why)
}

fn not_mapped(bytes: usize, error: &io::Error) -> Error {
    let refusal = Error::new(codes::NOT_MAPPED, "shared memory could not be mapped")
        .at("needed", format!("{bytes} bytes of addresses"))
        .why(error);
    match limit(libc::RLIMIT_AS) {
        Some(most) => refusal.at("limit", format!("{most} bytes (RLIMIT_AS)")).hint(
            "lift it with `ulimit -v unlimited`, or ask for fewer or smaller slots; addresses cost no memory",
        ),
        None => refusal
            .hint("ask for fewer or smaller slots; addresses cost no memory, but there are only so many"),
    }
}

/// The soft limit on a resource, where there is one.
fn limit(resource: libc::__rlimit_resource_t) -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is writable for the call.
    let known = unsafe { libc::getrlimit(resource, &raw mut limit) } == 0;
    (known && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

/// Not executable, and sealed to stay so.
const MFD_NOEXEC_SEAL: u32 = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn two_mappings_of_one_descriptor_are_one_memory() {
        let ours = Memory::new(8192).unwrap();
        let theirs = Memory::from_fd(ours.fd().try_clone_to_owned().unwrap()).unwrap();
        ours.view::<AtomicU32>(4096).unwrap().store(7, Ordering::Release);
        assert_eq!(theirs.view::<AtomicU32>(4096).unwrap().load(Ordering::Acquire), 7);
        assert_eq!(theirs.bytes(), 8192);
        assert!(ours.punch(4096, 4096));
        assert_eq!(theirs.view::<AtomicU32>(4096).unwrap().load(Ordering::Acquire), 0);
    }

    #[test]
    fn bytes_go_in_and_come_out_again() {
        let ours = Memory::new(8192).unwrap();
        let theirs = Memory::from_fd(ours.fd().try_clone_to_owned().unwrap()).unwrap();
        ours.write(8187, b"hello");
        ours.long(8).store(u64::MAX - 1, Ordering::Release);
        let mut bytes = [0; 5];
        theirs.read(8187, &mut bytes);
        assert_eq!(&bytes, b"hello");
        assert_eq!(theirs.long(8).load(Ordering::Acquire), u64::MAX - 1);
        assert_eq!(theirs.word(0).load(Ordering::Acquire), 0);
        ours.write(4096, bytemuck::cast_slice(&[1_u16, 2, 3]));
        let mut sums = [10_u64; 2];
        theirs.fold::<_, u16>(4098, &mut sums, |sum, number| *sum += u64::from(number));
        assert_eq!(sums, [12, 13]);
    }

    #[test]
    #[should_panic(expected = "lie in the memory")]
    fn nothing_is_written_beyond_the_end() {
        Memory::new(4096).unwrap().write(4090, b"too long");
    }

    #[test]
    fn nothing_outside_of_the_memory_is_found() {
        let memory = Memory::new(4096).unwrap();
        assert!(memory.view::<AtomicU32>(4092).is_some());
        assert!(memory.view::<AtomicU32>(4093).is_none());
        assert!(memory.view::<AtomicU32>(4096).is_none());
        assert!(memory.view::<AtomicU32>(usize::MAX - 3).is_none());
        assert!(memory.range(4096, 0).is_some());
        assert!(memory.range(1, 4096).is_none());
        assert!(memory.range(2, usize::MAX).is_none());
    }

    #[test]
    fn the_size_is_sealed_and_a_file_without_the_seal_is_refused() {
        let memory = Memory::new(4096).unwrap();
        let file = File::from(memory.fd().try_clone_to_owned().unwrap());
        assert!(file.set_len(0).is_err() && file.set_len(8192).is_err());
        let other = File::open("/dev/null").unwrap();
        assert_eq!(Memory::from_fd(other.into()).unwrap_err().code(), codes::FOREIGN_DESCRIPTOR);
        let unsealed = create("test", 4096).unwrap();
        assert_eq!(Memory::from_fd(unsealed).unwrap_err().code(), codes::FOREIGN_DESCRIPTOR);
    }
}
