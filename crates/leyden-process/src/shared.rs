//! Data that all processes read and none writes: one copy of it for all of them.
//!
//! A [`Shared`] slice lies in a sealed file without a name, mapped for reading. Serialised between
//! [`collect`](crate::attach::collect) and [`provide`](crate::attach::provide) it travels as a descriptor, and the
//! other process maps the same pages; serialised elsewhere, into a file say, it travels by its contents. On systems
//! other than Linux it lies on the heap, and always travels by its contents: each process has a copy.
//!
//! A data set that holds its samples, labels or file names in these is sent to any number of worker processes in
//! microseconds and is in memory once. PyTorch's data sets are copied into each worker, unless they hold tensors or
//! arrays alone.

use std::ffi::OsStr;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, Index};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;

pub use bytemuck::Pod;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};

use crate::memory::available_bytes;
use crate::{Error, Result, attach, codes};

#[cfg_attr(leyden_portable, path = "shared/heap.rs")]
#[cfg_attr(not(leyden_portable), path = "shared/file.rs")]
mod store;

use store::{Sealed, Store};

/// An immutable `[T]` that any number of processes share. Clones are the same slice.
///
/// ```
/// # fn main() -> leyden_process::Result<()> {
/// let labels = leyden_process::shared::Shared::from_slice(&[3_u8, 1, 4])?;
/// assert_eq!(labels[1], 1);
/// # Ok(())
/// # }
/// ```
pub struct Shared<T: Pod> {
    sealed: Arc<Sealed>,
    items: PhantomData<T>,
}

impl<T: Pod> Shared<T> {
    /// A copy of `items`.
    ///
    /// # Errors
    ///
    /// `P0204` if that is more than the memory that is [available](crate::memory::available_bytes); `P0201`, `P0202`,
    /// `P0203` if the system or one of its limits refuses.
    pub fn from_slice(items: &[T]) -> Result<Self> {
        let mut filling = Filling::new()?;
        filling.write(bytemuck::cast_slice(items))?;
        filling.seal()
    }

    /// What an iterator gives, which is never in memory twice.
    ///
    /// # Errors
    ///
    /// As [`from_slice`](Shared::from_slice).
    pub fn collect(items: impl IntoIterator<Item = T>) -> Result<Self> {
        let mut filling = Filling::new()?;
        let mut some = Vec::with_capacity(CHUNK / size_of::<T>().max(1));
        for item in items {
            some.push(item);
            if some.len() == some.capacity() {
                filling.write(bytemuck::cast_slice(&some))?;
                some.clear();
            }
        }
        filling.write(bytemuck::cast_slice(&some))?;
        filling.seal()
    }

    /// What was sealed, here or by another process.
    fn of(sealed: Sealed) -> Result<Self> {
        let (bytes, item) = (sealed.bytes().len(), size_of::<T>());
        if item == 0 || !bytes.is_multiple_of(item) {
            return Err(Error::new(codes::FOREIGN_DESCRIPTOR, "shared data is not what it was taken for")
                .why(format!("{bytes} bytes are not items of {item} bytes")));
        }
        Ok(Self { sealed: Arc::new(sealed), items: PhantomData })
    }

    fn bytes(&self) -> &[u8] {
        self.sealed.bytes()
    }
}

impl<T: Pod> Deref for Shared<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // Its bytes begin at a page or a cache line, and their number was compared with the size of an item: this cannot fail.
        bytemuck::cast_slice(self.bytes())
    }
}

impl<T: Pod> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self { sealed: self.sealed.clone(), items: PhantomData }
    }
}

impl<T: Pod + fmt::Debug> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl<T: Pod + PartialEq> PartialEq for Shared<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

/// How a [`Shared`] travels.
#[derive(Serialize, Deserialize)]
enum Travelling<B> {
    /// The number of an attached descriptor, and how many bytes it has.
    Attached { number: u32, bytes: u64 },
    /// The bytes of the items as they are in memory.
    Contents { item_bytes: u64, bytes: B },
}

impl<T: Pod> Serialize for Shared<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self.sealed.attach() {
            Some(number) => Travelling::<Bytes<&[u8]>>::Attached { number, bytes: self.bytes().len() as u64 },
            None => Travelling::Contents { item_bytes: size_of::<T>() as u64, bytes: Bytes(self.bytes()) },
        }
        .serialize(serializer)
    }
}

impl<'de, T: Pod> Deserialize<'de> for Shared<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let of_error = |error: Error| de::Error::custom(attach::refuse(error));
        match Travelling::<Bytes<Vec<u8>>>::deserialize(deserializer)? {
            Travelling::Attached { number, bytes } => {
                let sealed = Sealed::attached(number, usize::try_from(bytes).map_err(de::Error::custom)?)
                    .ok_or_else(|| de::Error::custom(format!("descriptor {number} did not come along")))?;
                sealed.and_then(Self::of).map_err(of_error)
            }
            Travelling::Contents { item_bytes, bytes: Bytes(bytes) } => {
                if item_bytes != size_of::<T>() as u64 {
                    let ours = size_of::<T>();
                    return Err(de::Error::custom(format!("its items have {item_bytes} bytes, not {ours}")));
                }
                let mut filling = Filling::new().map_err(of_error)?;
                filling.write(&bytes).and_then(|()| filling.seal()).map_err(of_error)
            }
        }
    }
}

/// Bytes, which serde would take for a sequence of numbers.
struct Bytes<B>(B);

impl Serialize for Bytes<&[u8]> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes<Vec<u8>> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Found;
        impl<'de> Visitor<'de> for Found {
            type Value = Bytes<Vec<u8>>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> std::result::Result<Self::Value, E> {
                Ok(Bytes(bytes.to_vec()))
            }

            fn visit_byte_buf<E: de::Error>(self, bytes: Vec<u8>) -> std::result::Result<Self::Value, E> {
                Ok(Bytes(bytes))
            }

            fn visit_seq<A: SeqAccess<'de>>(
                self,
                mut bytes: A,
            ) -> std::result::Result<Self::Value, A::Error> {
                let mut all = Vec::new();
                while let Some(byte) = bytes.next_element()? {
                    all.push(byte);
                }
                Ok(Bytes(all))
            }
        }
        deserializer.deserialize_byte_buf(Found)
    }
}

/// Immutable strings that any number of processes share: two files for any number of strings.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct SharedStrings(Pieces);

impl SharedStrings {
    /// A copy of `strings`.
    ///
    /// # Errors
    ///
    /// As [`Shared::from_slice`].
    pub fn collect<S: AsRef<str>>(strings: impl IntoIterator<Item = S>) -> Result<Self> {
        Pieces::collect(strings, |string| string.as_ref().as_bytes()).map(Self)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.ends.is_empty()
    }

    /// The string with this number, from 0.
    pub fn get(&self, index: usize) -> Option<&str> {
        // Looked at each time: for a file name it takes nanoseconds, and whoever wrote the bytes need not be trusted.
        std::str::from_utf8(self.0.get(index)?).ok()
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> + DoubleEndedIterator {
        (0..self.len()).map(|index| &self[index])
    }
}

impl Index<usize> for SharedStrings {
    type Output = str;

    /// # Panics
    ///
    /// If there is no such string.
    fn index(&self, index: usize) -> &str {
        self.get(index).unwrap_or_else(|| panic!("string {index} of {}", self.len()))
    }
}

impl fmt::Debug for SharedStrings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries((0..self.len()).map(|index| self.get(index))).finish()
    }
}

/// Immutable paths that any number of processes share, byte for byte: also those that are not UTF-8.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct SharedPaths(Pieces);

impl SharedPaths {
    /// A copy of `paths`.
    ///
    /// # Errors
    ///
    /// As [`Shared::from_slice`].
    pub fn collect<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>) -> Result<Self> {
        Pieces::collect(paths, |path| path.as_ref().as_os_str().as_bytes()).map(Self)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.ends.is_empty()
    }

    /// The path with this number, from 0.
    pub fn get(&self, index: usize) -> Option<&Path> {
        self.0.get(index).map(|bytes| Path::new(OsStr::from_bytes(bytes)))
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Path> + DoubleEndedIterator {
        (0..self.len()).map(|index| &self[index])
    }
}

impl Index<usize> for SharedPaths {
    type Output = Path;

    /// # Panics
    ///
    /// If there is no such path.
    fn index(&self, index: usize) -> &Path {
        self.get(index).unwrap_or_else(|| panic!("path {index} of {}", self.len()))
    }
}

impl fmt::Debug for SharedPaths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries((0..self.len()).map(|index| self.get(index))).finish()
    }
}

/// Byte strings, one behind the other.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
struct Pieces {
    /// Where each piece ends.
    ends: Shared<u64>,
    bytes: Shared<u8>,
}

impl Pieces {
    fn collect<P>(pieces: impl IntoIterator<Item = P>, bytes_of: impl Fn(&P) -> &[u8]) -> Result<Self> {
        let (mut ends, mut bytes) = (Filling::new()?, Filling::new()?);
        let (mut some_ends, mut some_bytes) = (Vec::new(), Vec::new());
        let mut end = 0_u64;
        for piece in pieces {
            let piece = bytes_of(&piece);
            end += piece.len() as u64;
            some_ends.push(end);
            some_bytes.extend_from_slice(piece);
            if some_bytes.len() >= CHUNK || some_ends.len() >= CHUNK / 8 {
                ends.write(bytemuck::cast_slice(&some_ends))?;
                bytes.write(&some_bytes)?;
                some_ends.clear();
                some_bytes.clear();
            }
        }
        ends.write(bytemuck::cast_slice(&some_ends))?;
        bytes.write(&some_bytes)?;
        Ok(Self { ends: ends.seal()?, bytes: bytes.seal()? })
    }

    /// Nothing also where the ends contradict each other or the bytes.
    fn get(&self, index: usize) -> Option<&[u8]> {
        let end = usize::try_from(*self.ends.get(index)?).ok()?;
        let start = match index.checked_sub(1) {
            Some(before) => usize::try_from(*self.ends.get(before)?).ok()?,
            None => 0,
        };
        self.bytes.get(start..end)
    }
}

/// What is being written, before its seal.
struct Filling {
    store: Store,
    bytes: u64,
    /// Up to here there was memory when it was asked for.
    granted: u64,
}

impl Filling {
    fn new() -> Result<Self> {
        Ok(Self { store: Store::new()?, bytes: 0, granted: 0 })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        for bytes in bytes.chunks(STEP) {
            let after = self.bytes + bytes.len() as u64;
            if after > self.granted {
                let available = available_bytes();
                if bytes.len() as u64 > available {
                    return Err(Error::new(codes::OVER_BUDGET, "there is no memory for shared data")
                        .at("needed", format!("{after} bytes or more"))
                        .at("available", format!("{available} bytes, by the machine and its memory cgroups"))
                        .hint("share less: file names or offsets instead of contents; or give the program more memory"));
                }
                // Asking takes as long as writing many small pieces.
                self.granted = after.max(self.bytes + available.min(STEP as u64));
            }
            self.store.append(bytes, after)?;
            self.bytes = after;
        }
        Ok(())
    }

    fn seal<T: Pod>(self) -> Result<Shared<T>> {
        Shared::of(self.store.seal(self.bytes)?)
    }
}

/// Bytes gathered before they are written: a system call for each small item would cost more than the item.
const CHUNK: usize = 64 << 10;

/// Bytes between two questions for memory.
const STEP: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize, Deserialize, Debug, PartialEq)]
    struct DataSet {
        labels: Shared<u16>,
        again: Shared<u16>,
        names: SharedStrings,
        paths: SharedPaths,
    }

    fn data_set() -> DataSet {
        let labels = Shared::collect((0..100_000_u32).map(|label| label as u16)).unwrap();
        let odd: &OsStr = OsStr::from_bytes(b"not \xff UTF-8");
        DataSet {
            again: labels.clone(),
            labels,
            names: SharedStrings::collect(["", "one", "zwölf", ""]).unwrap(),
            paths: SharedPaths::collect([Path::new("a/b"), Path::new(odd)]).unwrap(),
        }
    }

    #[cfg(not(leyden_portable))]
    #[test]
    fn between_processes_a_data_set_travels_as_descriptors_and_is_there_once() {
        let ours = data_set();
        let (bytes, fds) = crate::attach::collect(|| postcard::to_stdvec(&ours).unwrap());
        assert!(bytes.len() < 100, "{} bytes travel", bytes.len());
        assert_eq!(fds.len(), 5, "the clone is the same file");
        let theirs: DataSet = crate::attach::provide(fds, || postcard::from_bytes(&bytes).unwrap());
        assert_eq!(theirs, ours);
        assert_eq!((theirs.labels.len(), theirs.labels[70_000]), (100_000, 70_000_u32 as u16));
        assert_ne!(theirs.labels.as_ptr(), ours.labels.as_ptr());
    }

    #[test]
    fn elsewhere_it_travels_by_its_contents() {
        let ours = data_set();
        let bytes = postcard::to_stdvec(&ours).unwrap();
        assert!(bytes.len() > 400_000);
        assert_eq!(postcard::from_bytes::<DataSet>(&bytes).unwrap(), ours);
        let wrong = postcard::to_stdvec(&Shared::from_slice(&[1_u32]).unwrap()).unwrap();
        assert!(postcard::from_bytes::<Shared<u64>>(&wrong).is_err());
    }

    #[test]
    fn strings_are_found_by_number_and_in_order() {
        let names = data_set().names;
        assert_eq!(names.iter().collect::<Vec<_>>(), ["", "one", "zwölf", ""]);
        assert_eq!((&names[2], names.get(4), names.len(), names.is_empty()), ("zwölf", None, 4, false));
        assert!(SharedStrings::collect([""; 0]).unwrap().is_empty());
        let many = SharedStrings::collect((0..50_000).map(|name| format!("folder/{name}.jpg"))).unwrap();
        assert!(many.iter().enumerate().all(|(index, name)| name == format!("folder/{index}.jpg")));
    }

    #[test]
    fn paths_come_back_byte_for_byte() {
        let paths = data_set().paths;
        assert_eq!(paths[1].as_os_str().as_bytes(), b"not \xff UTF-8");
        assert_eq!((paths.iter().count(), paths.get(2)), (2, None));
    }
}
