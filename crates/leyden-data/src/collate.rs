//! Items that become a batch by stacking: numbers, arrays, and tuples, maps and structs of them.

use std::collections::BTreeMap;

use leyden_process::{Error, Result};

use crate::array::{Array, Element};
use crate::codes::RAGGED;

/// An item that knows how several of it become a batch (PyTorch: what `default_collate` knows of a type).
///
/// | item | batch |
/// |---|---|
/// | a number | `Array` of shape `[n]` |
/// | `Array` of shape `[…]` | `Array` of shape `[n, …]`; all items must have the same shape |
/// | `String` | `Vec<String>` |
/// | a tuple | a tuple of batches |
/// | `BTreeMap<K, T>` | `BTreeMap<K, T's batch>`; all items must have the same keys |
pub trait Collate: Sized {
    /// What several items become.
    type Batch: Send + 'static;

    /// Makes a batch of one or more items, in their order.
    ///
    /// # Errors
    /// `L0502` if the items differ in shape; the two are named as `item <n>`, which the loader turns into the numbers of
    /// the samples.
    fn collate(items: Vec<Self>) -> Result<Self::Batch>;
}

/// Stacks items to a batch; a data set's `collate` that has nothing to add is `default_collate(items)`.
///
/// # Errors
/// As [`Collate::collate`] of the item.
pub fn default_collate<T: Collate>(items: Vec<T>) -> Result<T::Batch> {
    T::collate(items)
}

macro_rules! numbers {
    ($($number:ty)*) => {
        $(
            impl Collate for $number {
                type Batch = Array<$number>;

                fn collate(items: Vec<Self>) -> Result<Array<$number>> {
                    Array::from_vec(&[items.len()], items)
                }
            }
        )*
    };
}

numbers!(u8 i8 u16 i16 u32 i32 u64 i64 half::f16 half::bf16 f32 f64);

impl<T: Element> Collate for Array<T> {
    type Batch = Array<T>;

    fn collate(items: Vec<Self>) -> Result<Array<T>> {
        let Some(first) = items.first() else { return Array::zeros(&[0]) };
        let row = first.shape();
        if let Some((index, other)) = items.iter().enumerate().find(|(_, item)| item.shape() != row) {
            return Err(Error::new(RAGGED, "the samples of a batch differ in shape")
                .at("item 0", format_args!("{row:?}"))
                .at(format!("item {index}"), format_args!("{:?}", other.shape()))
                .hint("make them equal in `get` (crop, resize, pad), or collate with `pad_collate`"));
        }
        Array::stack(row, items.iter().map(|item| &item[..]))
    }
}

impl Collate for String {
    type Batch = Vec<String>;

    fn collate(items: Vec<Self>) -> Result<Vec<String>> {
        Ok(items)
    }
}

impl<K: Ord + Clone + std::fmt::Debug + Send + 'static, T: Collate> Collate for BTreeMap<K, T> {
    type Batch = BTreeMap<K, T::Batch>;

    fn collate(items: Vec<Self>) -> Result<Self::Batch> {
        let mut columns: BTreeMap<K, Vec<T>> = BTreeMap::new();
        let count = items.len();
        for (index, item) in items.into_iter().enumerate() {
            let keys: Vec<K> = item.keys().cloned().collect();
            if index > 0 && !columns.keys().eq(keys.iter()) {
                return Err(Error::new(RAGGED, "the samples of a batch differ in their keys")
                    .at("item 0", format_args!("{:?}", columns.keys().collect::<Vec<_>>()))
                    .at(format!("item {index}"), format_args!("{keys:?}")));
            }
            for (key, value) in item {
                columns.entry(key).or_insert_with(|| Vec::with_capacity(count)).push(value);
            }
        }
        columns.into_iter().map(|(key, values)| Ok((key, T::collate(values)?))).collect()
    }
}

macro_rules! tuples {
    ($(($($part:ident $index:tt),+))*) => {
        $(
            impl<$($part: Collate),+> Collate for ($($part,)+) {
                type Batch = ($($part::Batch,)+);

                #[allow(non_snake_case, reason = "the type parameters name the columns")]
                fn collate(items: Vec<Self>) -> Result<Self::Batch> {
                    $(let mut $part = Vec::with_capacity(items.len());)+
                    for item in items {
                        $($part.push(item.$index);)+
                    }
                    Ok(($($part::collate($part)?,)+))
                }
            }
        )*
    };
}

tuples! { (A 0) (A 0, B 1) (A 0, B 1, C 2) (A 0, B 1, C 2, D 3) (A 0, B 1, C 2, D 3, E 4) (A 0, B 1, C 2, D 3, E 4, F 5) }
