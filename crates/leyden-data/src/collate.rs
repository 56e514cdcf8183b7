//! Items that become a batch by stacking: numbers, arrays, and tuples, maps and structs of them.

use std::collections::BTreeMap;

use leyden_process::{Error, Result};

use crate::array::{Array, Element};
use crate::codes::{BATCH_ROWS, PAD_SCALAR, RAGGED};

/// An item that knows how several of it become a batch (PyTorch: what `default_collate` knows of a type).
///
/// | item | batch |
/// |---|---|
/// | a number | `Array` of shape `[n]` |
/// | `bool` | `Array<u8>` of shape `[n]`, of ones and zeros |
/// | `Array` of shape `[…]` | `Array` of shape `[n, …]`; all items must have the same shape |
/// | `String` | `Vec<String>` |
/// | `Vec<u8>`: the bytes of a file | `Vec<Vec<u8>>` |
/// | a tuple | a tuple of batches |
/// | `BTreeMap<K, T>` | `BTreeMap<K, T's batch>`; all items must have the same keys |
/// | a struct with `#[derive(Collate)]` | a struct of batches, named `<Struct>Batch` |
///
/// ```
/// use leyden_data::{Array, Collate, default_collate};
///
/// #[derive(Collate)]
/// #[collate(crate = "leyden_data")] // Not needed in a program that depends on `leyden`.
/// struct Sample {
///     image: Array<f32>,
///     label: i64,
/// }
///
/// let sample = |label| Ok::<_, leyden_data::Error>(Sample { image: Array::zeros(&[28, 28])?, label });
/// let batch: SampleBatch = default_collate(vec![sample(7)?, sample(3)?])?;
/// assert_eq!(batch.image.shape(), [2, 28, 28]);
/// assert_eq!(batch.label[..], [7, 3]);
/// # Ok::<(), leyden_data::Error>(())
/// ```
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

/// Makes arrays that differ in their first dimension one batch: each is filled up with `value` to the longest, and the
/// second array has the lengths they came with (PyTorch: `pad_sequence`, with `batch_first`).
///
/// The other dimensions must agree. It is meant for a data set's `collate`, or for
/// `dataset.collate_with(|items| pad_collate(items, 0))`.
///
/// ```
/// use leyden_data::{Array, pad_collate};
///
/// let (tokens, lengths) = pad_collate(vec![Array::from(vec![7, 8, 9]), Array::from(vec![5])], 0)?;
/// assert_eq!((tokens.shape(), &tokens[..]), (&[2, 3][..], &[7, 8, 9, 5, 0, 0][..]));
/// assert_eq!(lengths[..], [3, 1]);
/// # Ok::<(), leyden_data::Error>(())
/// ```
///
/// # Errors
/// `L0502` if the items differ in another dimension than the first, `L0511` if an item is a single number.
pub fn pad_collate<T: Element>(items: Vec<Array<T>>, value: T) -> Result<(Array<T>, Array<i64>)> {
    if let Some(index) = items.iter().position(|item| item.shape().is_empty()) {
        return Err(Error::new(PAD_SCALAR, "a single number has no dimension to pad")
            .at(format!("item {index}"), "shape []")
            .hint("collate numbers with `default_collate`"));
    }
    let Some(first) = items.first() else { return Ok((Array::zeros(&[0, 0])?, Array::zeros(&[0])?)) };
    let row = &first.shape()[1..];
    if let Some((index, other)) = items.iter().enumerate().find(|(_, item)| item.shape()[1..] != *row) {
        return Err(Error::new(RAGGED, "the samples of a batch differ in a dimension that is not padded")
            .at("item 0", format_args!("{:?}", first.shape()))
            .at(format!("item {index}"), format_args!("{:?}", other.shape()))
            .why("`pad_collate` fills up the first dimension only")
            .hint("make the others equal in `get`"));
    }
    let longest = items.iter().map(|item| item.shape()[0]).max().unwrap_or(0);
    let shape: Vec<usize> = [items.len(), longest].into_iter().chain(row.iter().copied()).collect();
    let mut padded = Array::zeros(&shape)?;
    for (place, item) in padded.rows_mut().zip(&items) {
        let (filled, rest) = place.split_at_mut(item.len());
        filled.copy_from_slice(item);
        rest.fill(value);
    }
    let lengths = items.iter().map(|item| item.shape()[0] as i64).collect();
    Ok((padded, lengths))
}

/// Batches whose samples can be put together to one batch, in any order: what [`ConcatDataset`](crate::ConcatDataset)
/// and [`Mix`](crate::Mix) need, whose batches hold samples of several data sets.
///
/// It is implemented for what [`Collate`] makes of the types in its table, and derived with `Collate`.
#[diagnostic::on_unimplemented(
    message = "batches of type `{Self}` cannot be put together of parts",
    note = "data sets are concatenated and mixed if their batch is an `Array`, a tuple or map of such, or a \
            `#[derive(Collate)]` batch",
    note = "or implement `Interleave` for it; or collate otherwise before: `dataset.collate_with(f)`, `dataset.map_batch(f)`"
)]
pub trait Interleave: Sized {
    /// The batch whose sample `i` is sample `order[i].row` of `parts[order[i].part]`. `order` names each sample of each
    /// part once.
    ///
    /// # Errors
    /// `L0502` if the parts differ in shape or keys, `L0513` if a part has not the samples that `order` names.
    fn interleave(parts: Vec<Self>, order: &[Pick]) -> Result<Self>;
}

/// A sample of one of several batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pick {
    /// Which batch.
    pub part: usize,
    /// Which of its samples.
    pub row: usize,
}

macro_rules! numbers {
    ($($number:ty)*) => {
        $(
            impl Collate for $number {
                type Batch = Array<$number>;

                fn collate(items: Vec<Self>) -> Result<Array<$number>> {
                    let mut batch = Array::zeros(&[items.len()])?;
                    batch.copy_from_slice(&items);
                    Ok(batch)
                }
            }
        )*
    };
}

numbers!(u8 i8 u16 i16 u32 i32 u64 i64 half::f16 half::bf16 f32 f64);

impl Collate for bool {
    type Batch = Array<u8>;

    fn collate(items: Vec<Self>) -> Result<Array<u8>> {
        Ok(items.into_iter().map(u8::from).collect())
    }
}

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

impl Collate for Vec<u8> {
    type Batch = Vec<Vec<u8>>;

    fn collate(items: Vec<Self>) -> Result<Vec<Vec<u8>>> {
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

            impl<$($part: Interleave),+> Interleave for ($($part,)+) {
                #[allow(non_snake_case, reason = "the type parameters name the columns")]
                fn interleave(parts: Vec<Self>, order: &[Pick]) -> Result<Self> {
                    $(let mut $part = Vec::with_capacity(parts.len());)+
                    for part in parts {
                        $($part.push(part.$index);)+
                    }
                    Ok(($($part::interleave($part, order)?,)+))
                }
            }
        )*
    };
}

tuples! { (A 0) (A 0, B 1) (A 0, B 1, C 2) (A 0, B 1, C 2, D 3) (A 0, B 1, C 2, D 3, E 4) (A 0, B 1, C 2, D 3, E 4, F 5) }

impl<T: Element> Interleave for Array<T> {
    fn interleave(parts: Vec<Self>, order: &[Pick]) -> Result<Self> {
        let row = parts.first().and_then(|part| part.shape().get(1..)).unwrap_or_default();
        if let Some((part, other)) =
            parts.iter().enumerate().find(|(_, part)| part.shape().get(1..) != Some(row))
        {
            let item = |part| order.iter().position(|pick| pick.part == part).unwrap_or(0);
            return Err(Error::new(RAGGED, "the samples of a batch differ in shape")
                .at(format!("item {}", item(0)), format_args!("{row:?}"))
                .at(
                    format!("item {}", item(part)),
                    format_args!("{:?}", other.shape().get(1..).unwrap_or(&[])),
                )
                .why("they come from different data sets"));
        }
        let each: usize = row.iter().product();
        let rows: Option<Vec<&[T]>> = order
            .iter()
            .map(|pick| {
                let part = parts.get(pick.part).filter(|part| pick.row < part.shape()[0])?;
                Some(&part[pick.row * each..(pick.row + 1) * each])
            })
            .collect();
        let rows =
            rows.ok_or_else(|| batch_rows(order.len(), parts.iter().map(|part| part.shape()[0]).sum()))?;
        Array::stack(row, rows.into_iter())
    }
}

/// `String`s and files: moved, not copied.
impl<T> Interleave for Vec<T> {
    fn interleave(parts: Vec<Self>, order: &[Pick]) -> Result<Self> {
        let available = parts.iter().map(Vec::len).sum();
        let mut parts: Vec<Vec<Option<T>>> =
            parts.into_iter().map(|part| part.into_iter().map(Some).collect()).collect();
        let taken = order.iter().map(|pick| parts.get_mut(pick.part)?.get_mut(pick.row)?.take()).collect();
        Option::ok_or_else(taken, || batch_rows(order.len(), available))
    }
}

impl<K: Ord + Clone + std::fmt::Debug, B: Interleave> Interleave for BTreeMap<K, B> {
    fn interleave(parts: Vec<Self>, order: &[Pick]) -> Result<Self> {
        let keys = |map: &Self| map.keys().cloned().collect::<Vec<K>>();
        let known = parts.first().map(keys).unwrap_or_default();
        let mut columns: BTreeMap<K, Vec<B>> = BTreeMap::new();
        for (index, part) in parts.into_iter().enumerate() {
            if !part.keys().eq(&known) {
                let item = |part| order.iter().position(|pick| pick.part == part).unwrap_or(0);
                return Err(Error::new(RAGGED, "the samples of a batch differ in their keys")
                    .at(format!("item {}", item(0)), format_args!("{known:?}"))
                    .at(format!("item {}", item(index)), format_args!("{:?}", keys(&part)))
                    .why("they come from different data sets"));
            }
            for (key, value) in part {
                columns.entry(key).or_default().push(value);
            }
        }
        columns.into_iter().map(|(key, values)| Ok((key, B::interleave(values, order)?))).collect()
    }
}

/// The error of a batch that lacks samples.
pub(crate) fn batch_rows(expected: usize, found: usize) -> Error {
    Error::new(BATCH_ROWS, "a batch has not the samples that it was made of")
        .at("samples", expected)
        .at("in the batches", found)
        .why("samples of several data sets are put in one batch, each from its place in its own data set's batch")
        .hint("let the data set's `collate` make one row of each item, in their order")
}

#[cfg(test)]
mod tests {
    use super::*;
    use leyden_macros::Collate;

    #[derive(Collate)]
    #[collate(crate = "crate", derive(PartialEq))]
    struct Sample {
        image: Array<i32>,
        inner: Inner,
    }

    #[derive(Collate)]
    #[collate(crate = "crate", derive(PartialEq))]
    struct Inner {
        items: i64,
    }

    #[test]
    fn a_derived_item_is_collated_field_by_field_and_its_parts_interleave() {
        let sample = |label| Sample { image: array(&[2], label as i32), inner: Inner { items: label } };
        let collate =
            |labels: &[i64]| default_collate(labels.iter().map(|&label| sample(label)).collect()).unwrap();
        let batch = collate(&[4, 5, 6]);
        assert_eq!((batch.image.shape(), &batch.inner.items[..]), (&[3, 2][..], &[4, 5, 6][..]));
        assert_eq!(SampleBatch::interleave(vec![collate(&[5]), collate(&[4, 6])], &ORDER).unwrap(), batch);
        let ragged = vec![sample(1), Sample { image: array(&[3], 0), inner: Inner { items: 2 } }];
        let error = Collate::collate(ragged).unwrap_err();
        assert_eq!((error.place("field"), error.place("item 1")), (Some("image"), Some("[3]")));
    }

    fn array(shape: &[usize], first: i32) -> Array<i32> {
        let len = shape.iter().product::<usize>() as i32;
        Array::from_vec(shape, (first..first + len).collect()).unwrap()
    }

    #[test]
    fn truths_are_ones_and_bytes_stay_as_they_are() {
        assert_eq!(default_collate(vec![true, false, true]).unwrap()[..], [1, 0, 1]);
        let (names, files) =
            default_collate(vec![("a".to_owned(), vec![1_u8]), ("b".to_owned(), vec![])]).unwrap();
        assert_eq!((names, files), (vec!["a".to_owned(), "b".to_owned()], vec![vec![1], vec![]]));
    }

    #[test]
    fn padding_fills_up_to_the_longest_and_keeps_the_lengths() {
        let (padded, lengths) =
            pad_collate(vec![array(&[1, 2], 0), array(&[0, 2], 0), array(&[2, 2], 5)], -1).unwrap();
        assert_eq!(padded.shape(), [3, 2, 2]);
        assert_eq!(padded[..], [0, 1, -1, -1, -1, -1, -1, -1, 5, 6, 7, 8]);
        assert_eq!(lengths[..], [1, 0, 2]);
        assert_eq!(pad_collate(Vec::<Array<f32>>::new(), 0.0).unwrap().0.shape(), [0, 0]);
    }

    #[test]
    fn padding_refuses_what_one_dimension_cannot_even_out() {
        let error = pad_collate(vec![array(&[1, 2], 0), array(&[1, 3], 0)], 0).unwrap_err();
        let expected = "error[L0502]: the samples of a batch differ in a dimension that is not padded\n  \
                        item 0  [1, 2]\n  item 1  [1, 3]\n  \
                        why: `pad_collate` fills up the first dimension only\n  \
                        fix: make the others equal in `get`";
        assert_eq!(format!("{error:?}"), expected);
        let error = pad_collate(vec![array(&[1], 0), array(&[], 0)], 0).unwrap_err();
        let expected = "error[L0511]: a single number has no dimension to pad\n  item 1  shape []\n  \
                        fix: collate numbers with `default_collate`";
        assert_eq!(format!("{error:?}"), expected);
    }

    const ORDER: [Pick; 3] = [Pick { part: 1, row: 0 }, Pick { part: 0, row: 0 }, Pick { part: 1, row: 1 }];

    #[test]
    fn parts_become_one_batch_in_the_given_order() {
        let parts = vec![
            (array(&[1, 2], 0), vec!["a".to_owned()], BTreeMap::from([("x", array(&[1], 7))])),
            (
                array(&[2, 2], 10),
                vec!["b".to_owned(), "c".to_owned()],
                BTreeMap::from([("x", array(&[2], 8))]),
            ),
        ];
        let (rows, names, columns) = Interleave::interleave(parts, &ORDER).unwrap();
        assert_eq!((rows.shape(), &rows[..]), (&[3, 2][..], &[10, 11, 0, 1, 12, 13][..]));
        assert_eq!(names, ["b", "a", "c"]);
        assert_eq!(columns["x"][..], [8, 7, 9]);
    }

    #[test]
    fn parts_that_do_not_fit_are_named_by_their_samples() {
        let error = Array::interleave(vec![array(&[1, 2], 0), array(&[2, 3], 0)], &ORDER).unwrap_err();
        let expected = "error[L0502]: the samples of a batch differ in shape\n  item 1  [2]\n  item 0  [3]\n  \
                        why: they come from different data sets";
        assert_eq!(format!("{error:?}"), expected);
        let parts = vec![BTreeMap::from([("x", array(&[1], 0))]), BTreeMap::from([("y", array(&[2], 0))])];
        let error = BTreeMap::interleave(parts, &ORDER).unwrap_err();
        assert_eq!(error.place("item 0"), Some("[\"y\"]"));
        let error = Array::interleave(vec![array(&[1], 0), array(&[1], 0)], &ORDER).unwrap_err();
        assert_eq!((error.code(), error.place("in the batches")), (BATCH_ROWS, Some("2")));
        let error = Vec::interleave(vec![vec![1], vec![2]], &ORDER).unwrap_err();
        assert_eq!(error.code(), BATCH_ROWS);
    }
}
