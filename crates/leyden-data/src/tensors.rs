//! Arrays as a data set: each row of the first dimension is a sample.

use std::sync::Arc;

use leyden_process::{Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::array::{Array, Element};
use crate::codes::TENSOR_ROWS;
use crate::dataset::{Dataset, SampleCx, out_of_range};

/// Arrays in memory whose first dimension counts the samples (PyTorch: `TensorDataset`): one array, or a tuple of up to
/// four. A clone shares the data. So do worker processes: large arrays are in memory once for all of them, however many
/// there are.
///
/// Items are mere places; a batch is gathered from the arrays in one copy. To change what is in a batch use
/// [`map_batch`](crate::DatasetExt::map_batch).
///
/// ```
/// use leyden_data::{Array, DataLoader, TensorDataset};
///
/// let x = Array::from_vec(&[3, 2], vec![0.0_f32, 0.1, 1.0, 1.1, 2.0, 2.1])?;
/// let y = Array::from(vec![0_i64, 1, 2]);
/// let loader = DataLoader::builder(TensorDataset::new((x, y))?).batch_size(2).build()?;
/// let (x, y) = loader.epoch(0).next().expect("there are two batches")?.data;
/// assert_eq!((x.shape(), &x[..], &y[..]), (&[2, 2][..], &[0.0, 0.1, 1.0, 1.1][..], &[0, 1][..]));
/// # Ok::<(), leyden_data::Error>(())
/// ```
#[derive(Debug)]
pub struct TensorDataset<T> {
    data: Arc<T>,
    samples: usize,
}

impl<T: Tensors> TensorDataset<T> {
    /// The rows of `tensors`.
    ///
    /// # Errors
    /// `L0514` if the arrays differ in their first dimension, or one has none.
    pub fn new(tensors: T) -> Result<Self> {
        let shapes = tensors.shapes();
        let samples = shapes.first().and_then(|shape| shape.first()).copied();
        match samples {
            Some(samples) if shapes.iter().all(|shape| shape.first() == Some(&samples)) => {
                Ok(Self { data: Arc::new(tensors), samples })
            }
            _ => {
                let (what, hint) = if shapes.iter().any(|shape| shape.is_empty()) {
                    (
                        "an array of a tensor data set is a single number and has no rows",
                        "give it a first dimension, which counts the samples, with `reshape`",
                    )
                } else {
                    (
                        "the arrays of a tensor data set differ in their first dimension",
                        "give arrays whose first dimension counts the same samples",
                    )
                };
                let error = Error::new(TENSOR_ROWS, what).hint(hint);
                Err(shapes.iter().enumerate().fold(error, |error, (index, shape)| {
                    error.at(format!("array {index}"), format_args!("{shape:?}"))
                }))
            }
        }
    }

    /// The arrays.
    pub fn tensors(&self) -> &T {
        &self.data
    }
}

/// A sample, by its place: `collate` brings it straight into the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row(pub(crate) usize);

impl<T: Tensors> Dataset for TensorDataset<T> {
    type Item = Row;
    type Batch = T;

    fn len(&self) -> usize {
        self.samples
    }

    fn get(&self, index: usize, _: &mut SampleCx) -> Result<Row> {
        if index < self.samples { Ok(Row(index)) } else { Err(out_of_range(index, self.samples)) }
    }

    fn collate(&self, items: Vec<Row>) -> Result<T> {
        self.data.gather(&items)
    }
}

impl<T> Clone for TensorDataset<T> {
    fn clone(&self) -> Self {
        Self { data: self.data.clone(), samples: self.samples }
    }
}

impl<T: Tensors> Serialize for TensorDataset<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.data.serialize(serializer)
    }
}

impl<'de, T: Tensors> Deserialize<'de> for TensorDataset<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(T::deserialize(deserializer)?).map_err(|error| serde::de::Error::custom(error.what()))
    }
}

/// What a [`TensorDataset`] is made of: an [`Array`], or a tuple of one to four. Its batches are of the same type.
pub trait Tensors: Serialize + DeserializeOwned + Send + Sync + Sized + 'static + sealed::Sealed {
    #[doc(hidden)]
    fn shapes(&self) -> Vec<&[usize]>;
    #[doc(hidden)]
    fn gather(&self, rows: &[Row]) -> Result<Self>;
}

impl<T: Element> Tensors for Array<T> {
    fn shapes(&self) -> Vec<&[usize]> {
        vec![self.shape()]
    }

    fn gather(&self, rows: &[Row]) -> Result<Self> {
        let row = &self.shape()[1..];
        let each: usize = row.iter().product();
        Array::stack(row, rows.iter().map(|&Row(index)| &self[index * each..(index + 1) * each]))
    }
}

impl<T: Element> sealed::Sealed for Array<T> {}

macro_rules! tuples {
    ($(($($part:ident $index:tt),+))*) => {
        $(
            impl<$($part: Element),+> Tensors for ($(Array<$part>,)+) {
                fn shapes(&self) -> Vec<&[usize]> {
                    vec![$(self.$index.shape()),+]
                }

                fn gather(&self, rows: &[Row]) -> Result<Self> {
                    Ok(($(self.$index.gather(rows)?,)+))
                }
            }

            impl<$($part: Element),+> sealed::Sealed for ($(Array<$part>,)+) {}
        )*
    };
}

tuples! { (A 0) (A 0, B 1) (A 0, B 1, C 2) (A 0, B 1, C 2, D 3) }

mod sealed {
    /// Rows are gathered by code that this crate can vouch for.
    pub trait Sealed {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    fn rows<T: Tensors>(dataset: &TensorDataset<T>, indices: &[usize]) -> T {
        let items = indices.iter().map(|&index| dataset.get(index, &mut SampleCx::new(0, 0, index)));
        dataset.collate(items.collect::<Result<_>>().unwrap()).unwrap()
    }

    #[test]
    fn rows_are_gathered_in_the_order_asked_for() {
        let images = Array::from_vec(&[3, 1, 2], vec![0_u8, 1, 10, 11, 20, 21]).unwrap();
        let one = TensorDataset::new(images.clone()).unwrap();
        assert_eq!(rows(&one, &[2, 0, 2]), Array::from_vec(&[3, 1, 2], vec![20, 21, 0, 1, 20, 21]).unwrap());
        let labels = Array::from(vec![0.0, 0.5, 1.0].into_iter().map(bf16::from_f32).collect::<Vec<_>>());
        let pair = TensorDataset::new((images, labels)).unwrap();
        assert_eq!(rows(&pair, &[1]).1[..], [bf16::from_f32(0.5)]);
        assert!(pair.get(3, &mut SampleCx::new(0, 0, 3)).is_err());
    }

    #[test]
    fn data_sets_of_no_or_one_sample_are_data_sets() {
        let none = TensorDataset::new(Array::<f32>::zeros(&[0, 4]).unwrap()).unwrap();
        assert!(none.is_empty());
        assert_eq!(rows(&none, &[]).shape(), [0, 4]);
        let empty_rows = TensorDataset::new(Array::<f32>::zeros(&[1, 0]).unwrap()).unwrap();
        assert_eq!(rows(&empty_rows, &[0, 0]).shape(), [2, 0]);
    }

    #[test]
    fn arrays_that_differ_in_length_are_refused() {
        let array = |shape: &[usize]| Array::<u8>::zeros(shape).unwrap();
        let error = TensorDataset::new((array(&[3, 2]), array(&[2]))).unwrap_err();
        let expected = "error[L0514]: the arrays of a tensor data set differ in their first dimension\n  \
                        array 0  [3, 2]\n  array 1  [2]\n  \
                        fix: give arrays whose first dimension counts the same samples";
        assert_eq!(format!("{error:?}"), expected);
        let expected = "error[L0514]: an array of a tensor data set is a single number and has no rows\n  array 0  []\n  \
                        fix: give it a first dimension, which counts the samples, with `reshape`";
        assert_eq!(format!("{:?}", TensorDataset::new(array(&[])).unwrap_err()), expected);
    }

    #[test]
    fn survives_serialisation() {
        let data = (Array::from(vec![1.5_f32, f32::NAN, 3.0]), Array::from(vec![1_i64, -2, 3]));
        let bytes = postcard::to_allocvec(&TensorDataset::new(data).unwrap()).unwrap();
        let back: TensorDataset<(Array<f32>, Array<i64>)> = postcard::from_bytes(&bytes).unwrap();
        let (x, y) = rows(&back, &[2, 0]);
        assert_eq!((&x[..], &y[..]), (&[3.0, 1.5][..], &[3, 1][..]));
        assert!(back.tensors().0[1].is_nan());
        for end in 0..bytes.len() {
            let short = postcard::from_bytes::<TensorDataset<(Array<f32>, Array<i64>)>>(&bytes[..end]);
            assert!(short.is_err(), "{end} of {} bytes", bytes.len());
        }
        let uneven = (Array::from(vec![1.5_f32]), Array::from(vec![1_i64, 2]));
        let bytes = postcard::to_allocvec(&uneven).unwrap();
        assert!(postcard::from_bytes::<TensorDataset<(Array<f32>, Array<i64>)>>(&bytes).is_err());
    }
}
