//! Arrays of numbers: what batches are made of.
//!
//! An [`Array`] is a shape and its elements in C order. Made while a worker process collates, it lies in the memory
//! that the worker shares with the trainer, and crosses to it without a copy; made anywhere else it is a `Vec`. A large one
//! that a data set holds is sent to worker processes once, and all of them map the same memory; who writes to it there gets
//! a copy. Code that makes or reads an array does not see the difference.

use std::fmt;
use std::ops::{Deref, DerefMut};

use bytemuck::Pod;
use bytemuck::allocation::try_zeroed_vec;
use half::{bf16, f16};
use leyden_process::memory::Region;
use leyden_process::shared::Shared;
use leyden_process::{Error, Result, attach};
use serde::de::{DeserializeOwned, Error as _};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::codes::ARRAY_SHAPE;
use crate::place::{self, Found, Part};

/// What an [`Array`] may hold.
pub trait Element:
    Pod + Default + PartialEq + fmt::Debug + Send + Sync + Serialize + DeserializeOwned + sealed::Sealed
{
    /// The type's name, as in NumPy and safetensors.
    const NAME: &'static str;
}

/// An n-dimensional array in C order (PyTorch: a contiguous CPU tensor).
///
/// ```
/// use leyden_data::Array;
///
/// let rows = [[1.0_f32, 2.0], [3.0, 4.0]];
/// let batch = Array::stack(&[2], rows.iter().map(|row| &row[..]))?;
/// assert_eq!(batch.shape(), [2, 2]);
/// assert_eq!(batch[..], [1.0, 2.0, 3.0, 4.0]);
/// # Ok::<(), leyden_data::Error>(())
/// ```
pub struct Array<T> {
    shape: Vec<usize>,
    data: Data<T>,
}

enum Data<T> {
    Heap(Vec<T>),
    /// In a slot that is being written.
    Writing(Part),
    /// In a slot that is being read.
    Shared(Region),
    /// Where several processes read it: the bytes of the elements.
    Sealed(Shared<u8>),
}

impl<T: Element> Array<T> {
    /// An array of zeros.
    ///
    /// # Errors
    /// `L0501` if the shape has more elements than there is memory for; in a worker process `P0204` or `P0205` if the
    /// batch does not fit into shared memory.
    pub fn zeros(shape: &[usize]) -> Result<Self> {
        let len = elements(shape)?;
        let data = match place::claim(len * size_of::<T>())? {
            None => Data::Heap(try_zeroed_vec(len).map_err(|()| no_memory::<T>(shape, len))?),
            Some(mut part) => {
                part.region.fill(0);
                Data::Writing(part)
            }
        };
        Ok(Self { shape: shape.to_vec(), data })
    }

    /// The elements of `data`, in C order of `shape`. No copy is made.
    ///
    /// # Errors
    /// `L0501` if `data` is not as long as the shape says.
    pub fn from_vec(shape: &[usize], data: Vec<T>) -> Result<Self> {
        let len = elements(shape)?;
        if data.len() != len {
            return Err(Error::new(ARRAY_SHAPE, "a shape does not fit its elements")
                .at("shape", format_args!("{shape:?}, {len} elements"))
                .at("elements", data.len()));
        }
        Ok(Self { shape: shape.to_vec(), data: Data::Heap(data) })
    }

    /// Rows of shape `row`, one below the other: an array of shape `[rows, row…]`. Each element is written once.
    ///
    /// # Errors
    /// `L0501` if a row is not as long as `row` says; the error names it as `item <n>`. Also as [`zeros`](Self::zeros).
    pub fn stack<'a>(row: &[usize], rows: impl ExactSizeIterator<Item = &'a [T]>) -> Result<Self> {
        let shape: Vec<usize> = std::iter::once(rows.len()).chain(row.iter().copied()).collect();
        let (len, each) = (elements(&shape)?, elements(row)?);
        let fits = |index: usize, elements: &[T]| {
            if elements.len() == each {
                return Ok(());
            }
            Err(Error::new(ARRAY_SHAPE, "a row does not fit the shape of its array")
                .at("row shape", format_args!("{row:?}, {each} elements"))
                .at(format!("item {index}"), format_args!("{} elements", elements.len())))
        };
        let data = match place::claim(len * size_of::<T>())? {
            None => {
                let mut data = Vec::new();
                data.try_reserve_exact(len).map_err(|_| no_memory::<T>(&shape, len))?;
                for (index, elements) in rows.enumerate() {
                    fits(index, elements)?;
                    data.extend_from_slice(elements);
                }
                Data::Heap(data)
            }
            Some(mut part) => {
                let data = bytemuck::cast_slice_mut(&mut part.region);
                for (index, elements) in rows.enumerate() {
                    fits(index, elements)?;
                    data[index * each..(index + 1) * each].copy_from_slice(elements);
                }
                Data::Writing(part)
            }
        };
        Ok(Self { shape, data })
    }

    /// The size of each dimension, outermost first; empty for a single number.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements as a `Vec`: without a copy unless they lie in shared memory.
    pub fn into_vec(self) -> Vec<T> {
        self.try_into_vec().unwrap_or_else(|shared| shared.to_vec())
    }

    /// The same, but never with a copy.
    ///
    /// # Errors
    /// The array itself if it lies in shared memory, which it keeps in use as long as it exists.
    pub fn try_into_vec(self) -> std::result::Result<Vec<T>, Self> {
        match self.data {
            Data::Heap(data) => Ok(data),
            Data::Writing(_) | Data::Shared(_) | Data::Sealed(_) => Err(self),
        }
    }

    /// The elements' bytes, as this machine orders them.
    pub fn as_bytes(&self) -> &[u8] {
        bytemuck::cast_slice(self)
    }

    /// The same elements under another shape.
    ///
    /// # Errors
    /// `L0501` if it has another number of elements.
    pub fn reshape(mut self, shape: &[usize]) -> Result<Self> {
        if elements(shape)? != self.len() {
            return Err(Error::new(
                ARRAY_SHAPE,
                "an array cannot take a shape of another number of elements",
            )
            .at("from", format_args!("{:?}, {} elements", self.shape, self.len()))
            .at("to", format_args!("{shape:?}")));
        }
        self.shape = shape.to_vec();
        Ok(self)
    }

    /// The array's rows: slices along the first dimension, each of the product of the others. A single number has none.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[T]> {
        let each = self.row_len();
        (0..self.shape.first().copied().unwrap_or(0)).map(move |row| &self[row * each..(row + 1) * each])
    }

    /// The rows, to be written: how a collate function decodes each item into its place.
    pub fn rows_mut(&mut self) -> impl Iterator<Item = &mut [T]> {
        let (each, rows) = (self.row_len(), self.shape.first().copied().unwrap_or(0));
        // `chunks_exact_mut` refuses 0; rows without elements are empty slices.
        let chunk = each.max(1);
        let mut chunks = self.deref_mut().chunks_exact_mut(chunk);
        (0..rows).map(move |_| if each == 0 { &mut [] } else { chunks.next().unwrap_or_default() })
    }

    fn row_len(&self) -> usize {
        self.shape.iter().skip(1).product()
    }
}

impl<T: Element> Deref for Array<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &self.data {
            Data::Heap(data) => data,
            Data::Writing(Part { region, .. }) | Data::Shared(region) => bytemuck::cast_slice(region),
            Data::Sealed(bytes) => bytemuck::cast_slice(bytes),
        }
    }
}

/// An array that several processes read is copied to the heap when it is first written to.
impl<T: Element> DerefMut for Array<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        if let Data::Sealed(_) = self.data {
            self.data = Data::Heap(self.to_vec());
        }
        match &mut self.data {
            Data::Heap(data) => data,
            Data::Writing(Part { region, .. }) | Data::Shared(region) => bytemuck::cast_slice_mut(region),
            Data::Sealed(_) => unreachable!("it was just copied"),
        }
    }
}

impl<'a, T: Element> IntoIterator for &'a Array<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// A copy on the heap, wherever the original lies; of an array that several processes read no copy is made until it is
/// written to.
impl<T: Element> Clone for Array<T> {
    fn clone(&self) -> Self {
        let data = match &self.data {
            Data::Sealed(bytes) => Data::Sealed(bytes.clone()),
            Data::Heap(_) | Data::Writing(_) | Data::Shared(_) => Data::Heap(self.to_vec()),
        };
        Self { shape: self.shape.clone(), data }
    }
}

impl<T: Element> PartialEq for Array<T> {
    fn eq(&self, other: &Self) -> bool {
        self.shape == other.shape && self[..] == other[..]
    }
}

/// Type, shape and the first elements.
impl<T: Element> fmt::Debug for Array<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        write!(f, "{}{:?} ", T::NAME, self.shape)?;
        let mut list = f.debug_list();
        list.entries(self.iter().take(SHOWN));
        if self.len() > SHOWN {
            list.entry(&format_args!("… {} in all", self.len()));
        }
        list.finish()
    }
}

/// An array of one dimension.
impl<T: Element> From<Vec<T>> for Array<T> {
    fn from(data: Vec<T>) -> Self {
        Self { shape: vec![data.len()], data: Data::Heap(data) }
    }
}

impl<T: Element> FromIterator<T> for Array<T> {
    fn from_iter<I: IntoIterator<Item = T>>(elements: I) -> Self {
        elements.into_iter().collect::<Vec<T>>().into()
    }
}

/// Shape and elements; between a worker process and the trainer, where the elements lie. From 64 KiB on an array that is
/// sent to worker processes goes as memory that all of them map.
impl<T: Element> Serialize for Array<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (&self.shape, self.content::<S>()?).serialize(serializer)
    }
}

impl<T: Element> Array<T> {
    /// How the elements travel from here.
    fn content<S: Serializer>(&self) -> Result<Content<&[T]>, S::Error> {
        let bytes = self.as_bytes();
        match (&self.data, place::reply()) {
            (Data::Writing(part), Some(reply)) if part.reply == reply => Ok(Content::Shared(part.number)),
            (_, Some(_)) => {
                let part = place::claim(bytes.len()).map_err(S::Error::custom)?;
                let mut part = part.ok_or_else(|| S::Error::custom("the slot is gone"))?;
                part.region.copy_from_slice(bytes);
                Ok(Content::Shared(part.number))
            }
            (Data::Sealed(sealed), None) if attach::has_room() => Ok(Content::Sealed(sealed.clone())),
            (_, None) if bytes.len() >= SEALED_FROM && attach::has_room() => {
                let sealed = Shared::from_slice(bytes);
                sealed.map(Content::Sealed).map_err(|error| S::Error::custom(attach::refuse(error)))
            }
            (_, None) => Ok(Content::Elements(self)),
        }
    }
}

impl<'de, T: Element> Deserialize<'de> for Array<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (shape, content) = <(Vec<usize>, Content<Vec<T>>)>::deserialize(deserializer)?;
        let len = elements(&shape).map_err(D::Error::custom)?;
        let data = match content {
            Content::Elements(data) => Data::Heap(data),
            Content::Sealed(bytes) => Data::Sealed(bytes),
            Content::Shared(number) => match place::find(number) {
                None => return Err(D::Error::custom("an array's part of the batch is missing")),
                Some(Found::Shared(region)) => Data::Shared(region),
                Some(Found::Copied(region)) => {
                    let elements = bytemuck::try_cast_slice(&region).map_err(D::Error::custom)?;
                    Data::Heap(elements.to_vec())
                }
            },
        };
        let fits = match &data {
            Data::Heap(data) => data.len() == len,
            // Aligned to more than any element asks for.
            Data::Writing(Part { region, .. }) | Data::Shared(region) => region.len() == len * size_of::<T>(),
            Data::Sealed(bytes) => bytes.len() == len * size_of::<T>(),
        };
        if fits {
            Ok(Self { shape, data })
        } else {
            Err(D::Error::custom("an array's shape does not fit its elements"))
        }
    }
}

#[derive(Serialize, Deserialize)]
enum Content<E> {
    Elements(E),
    /// The part of a reply with this number.
    Shared(u32),
    /// What several processes read, as bytes.
    Sealed(Shared<u8>),
}

/// Smaller arrays cost less as they are than as a file of memory pages.
const SEALED_FROM: usize = 64 << 10;

/// How many elements a shape has.
fn elements(shape: &[usize]) -> Result<usize> {
    let len = shape.iter().try_fold(1_usize, |len, &size| len.checked_mul(size));
    len.filter(|&len| isize::try_from(len.saturating_mul(16)).is_ok()).ok_or_else(|| {
        Error::new(ARRAY_SHAPE, "a shape has more elements than memory can address")
            .at("shape", format_args!("{shape:?}"))
            .hint("check the sizes that the shape was made of: is one of them an underflow, or read from a damaged file?")
    })
}

/// The error of an array for which the system has no memory.
#[cold]
fn no_memory<T: Element>(shape: &[usize], len: usize) -> Error {
    Error::new(ARRAY_SHAPE, "there is not enough memory for an array")
        .at("shape", format_args!("{shape:?} of {}", T::NAME))
        .at("needed", format_args!("{} bytes", len * size_of::<T>()))
        .hint("check the sizes that the shape was made of; if they are meant, make batches smaller, or use fewer workers")
}

macro_rules! elements {
    ($($type:ty: $name:literal),*) => {
        $(
            impl Element for $type {
                const NAME: &'static str = $name;
            }
            impl sealed::Sealed for $type {}
        )*
    };
}

elements!(u8: "u8", i8: "i8", u16: "u16", i16: "i16", u32: "u32", i32: "i32", u64: "u64", i64: "i64",
          f16: "f16", bf16: "bf16", f32: "f32", f64: "f64");

mod sealed {
    /// Only these types cross between processes as they are.
    pub trait Sealed {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_for_which_there_is_no_memory_is_an_error_with_its_size() {
        // More than a process has addresses for, and less than a `Vec` could count.
        const HUGE: usize = 1 << 58;
        let expected = "error[L0501]: there is not enough memory for an array\n  shape   [288230376151711744] of u8\n  \
                        needed  288230376151711744 bytes\n  fix: check the sizes that the shape was made of; if they are \
                        meant, make batches smaller, or use fewer workers";
        assert_eq!(format!("{:?}", Array::<u8>::zeros(&[HUGE]).unwrap_err()), expected);
        let row = [0_u8; 4];
        let rows = (0..HUGE / 4).map(|_| &row[..]);
        assert_eq!(Array::stack(&[4], rows).unwrap_err().what(), "there is not enough memory for an array");
        assert_eq!(Array::<f64>::zeros(&[0, HUGE / 8]).unwrap().shape(), [0, HUGE / 8]);
    }
}
