//! Rows of tensors in a safetensors file.

use std::fmt;
use std::marker::PhantomData;
use std::path::Path;

use leyden_process::{Code, Error, Result};
use safetensors::tensor::Metadata;
use serde::{Deserialize, Serialize};

use super::{Indexed, Reader};
use crate::array::{Array, Element};
use crate::codes::{SAFETENSORS_COLUMN, SAFETENSORS_DAMAGED};
use crate::dataset::{Dataset, SampleCx, out_of_range};
use crate::tensors::Row;

/// Tensors of a safetensors file whose first dimension counts the samples; `T` is the tuple of their types, of one to
/// four. Batches are tuples of arrays.
///
/// Only the header is read when the file is opened. `collate` reads each row from its place straight into the batch, so
/// the file may be larger than memory; what is read again comes from the system's cache.
///
/// ```no_run
/// use leyden_data::{DataLoader, SafetensorsDataset};
///
/// let digits = SafetensorsDataset::<(u8, i64)>::open("digits.safetensors", ["images", "labels"])?;
/// let loader = DataLoader::builder(digits).batch_size(64).shuffle(true).build()?;
/// for batch in loader.epoch(0) {
///     let (images, labels) = batch?.data;
///     # let _ = (images, labels);
/// }
/// # Ok::<(), leyden_data::Error>(())
/// ```
#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
pub struct SafetensorsDataset<T> {
    file: Reader,
    columns: Vec<Column>,
    samples: usize,
    elements: PhantomData<fn() -> T>,
}

/// A tensor, and where it lies.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Column {
    name: String,
    /// The shape without the first dimension.
    row: Vec<usize>,
    offset: u64,
    /// Bytes of a row.
    stride: u64,
}

impl<T: Elements> SafetensorsDataset<T> {
    /// The rows of the tensors with these names, one name for each type in `T`.
    ///
    /// # Errors
    /// `L0701` if the file cannot be read, `L0731` if its header is damaged or it is cut short, `L0732` if a tensor is
    /// missing, has other elements than `T` says, no dimension, or another number of rows than the first.
    pub fn open<'a>(path: impl AsRef<Path>, names: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let (indexed, _) = Indexed::open(path.as_ref())?;
        let file = Reader::new(indexed);
        let (metadata, data) = header(&file)?;
        let names: Vec<&str> = names.into_iter().collect();
        if names.len() != T::NAMES.len() {
            return Err(file_error(&file, SAFETENSORS_COLUMN, "there is not one tensor for each type")
                .at("tensors", names.join(", "))
                .at("types", T::NAMES.join(", ")));
        }
        let mut samples = None;
        let columns: Result<_> = names
            .iter()
            .zip(T::NAMES)
            .map(|(name, element)| column(&file, &metadata, data, name, element, &mut samples))
            .collect();
        Ok(Self { file, columns: columns?, samples: samples.unwrap_or(0), elements: PhantomData })
    }

    fn gather<E: Element>(&self, column: usize, rows: &[Row]) -> Result<Array<E>> {
        let Column { name, row, offset, stride } = &self.columns[column];
        let shape: Vec<usize> = [rows.len()].into_iter().chain(row.iter().copied()).collect();
        let mut batch = Array::zeros(&shape)?;
        for (item, (place, &Row(index))) in batch.rows_mut().zip(rows).enumerate() {
            let read = self.file.read_at(bytemuck::cast_slice_mut(place), offset + index as u64 * stride);
            read.map_err(|error| {
                error.at("tensor", name).at(format!("item {item}"), format_args!("row {index}"))
            })?;
        }
        self.file.unchanged()?;
        Ok(batch)
    }
}

impl<T: Elements> Dataset for SafetensorsDataset<T> {
    type Item = Row;
    type Batch = T::Arrays;

    fn len(&self) -> usize {
        self.samples
    }

    fn get(&self, index: usize, _: &mut SampleCx) -> Result<Row> {
        if index < self.samples { Ok(Row(index)) } else { Err(out_of_range(index, self.samples)) }
    }

    fn collate(&self, items: Vec<Row>) -> Result<T::Arrays> {
        T::gather(self, &items)
    }

    fn origin(&self) -> Option<String> {
        Some(self.file.indexed().path().display().to_string())
    }
}

impl<T> Clone for SafetensorsDataset<T> {
    fn clone(&self) -> Self {
        let Self { file, columns, samples, elements } = self;
        Self { file: file.clone(), columns: columns.clone(), samples: *samples, elements: *elements }
    }
}

/// The file and the names of the tensors.
impl<T> fmt::Debug for SafetensorsDataset<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SafetensorsDataset")
            .field("file", &self.file.indexed().path())
            .field("tensors", &self.columns.iter().map(|column| &column.name).collect::<Vec<_>>())
            .field("samples", &self.samples)
            .finish_non_exhaustive()
    }
}

/// Types of the tensors of a [`SafetensorsDataset`]: a tuple of one to four [`Element`]s.
pub trait Elements: Sized + 'static + sealed::Sealed {
    /// The tuple of their arrays.
    type Arrays: Send + 'static;
    #[doc(hidden)]
    const NAMES: &'static [&'static str];
    #[doc(hidden)]
    fn gather(dataset: &SafetensorsDataset<Self>, rows: &[Row]) -> Result<Self::Arrays>;
}

macro_rules! tuples {
    ($(($($part:ident $index:literal),+))*) => {
        $(
            impl<$($part: Element),+> Elements for ($($part,)+) {
                type Arrays = ($(Array<$part>,)+);
                const NAMES: &'static [&'static str] = &[$($part::NAME),+];

                fn gather(dataset: &SafetensorsDataset<Self>, rows: &[Row]) -> Result<Self::Arrays> {
                    Ok(($(dataset.gather::<$part>($index, rows)?,)+))
                }
            }

            impl<$($part: Element),+> sealed::Sealed for ($($part,)+) {}
        )*
    };
}

tuples! { (A 0) (A 0, B 1) (A 0, B 1, C 2) (A 0, B 1, C 2, D 3) }

/// The header, and where the tensors' bytes begin.
fn header(file: &Reader) -> Result<(Metadata, u64)> {
    let length = file.indexed().length;
    let damaged = || file_error(file, SAFETENSORS_DAMAGED, "a safetensors file is damaged");
    let again = |error: Error| error.hint("make or download the file again");
    if length < PREFIX {
        return Err(again(
            damaged().at("expected", "8 bytes or more").at("found", format_args!("{length} bytes")),
        ));
    }
    let mut prefix = [0; PREFIX as usize];
    file.read_at(&mut prefix, 0)?;
    let size = u64::from_le_bytes(prefix);
    if size > length - PREFIX {
        return Err(again(
            damaged()
                .at("expected", format_args!("a header of {size} bytes"))
                .at("found", format_args!("{} bytes in all", length)),
        ));
    }
    let header = file.bytes_at(PREFIX, size)?;
    let metadata: Metadata = serde_json::from_slice(&header)
        .map_err(|error| again(damaged().at("offset", PREFIX).because(&error)))?;
    let data = PREFIX + size;
    let end = data.saturating_add(metadata.data_len() as u64);
    if end != length {
        return Err(again(
            damaged().at("expected", format_args!("{end} bytes")).at("found", format_args!("{length} bytes")),
        ));
    }
    Ok((metadata, data))
}

fn column(
    file: &Reader,
    metadata: &Metadata,
    data: u64,
    name: &str,
    element: &str,
    samples: &mut Option<usize>,
) -> Result<Column> {
    let wrong = |what| file_error(file, SAFETENSORS_COLUMN, what).at("tensor", name);
    let info = metadata.info(name).ok_or_else(|| {
        let mut names = metadata.offset_keys();
        names.sort_unstable();
        wrong("a safetensors file has no such tensor").at("it has", names.join(", "))
    })?;
    let found = format!("{:?}", info.dtype);
    // Truths are bytes of 0 and 1.
    let fits = found.eq_ignore_ascii_case(element) || (found == "BOOL" && element == "u8");
    if !fits {
        return Err(wrong("a tensor has other elements than asked for")
            .at("expected", element)
            .at("found", found)
            .hint("name the file's type in `SafetensorsDataset::<(..)>`, or convert the file"));
    }
    let Some((&rows, row)) = info.shape.split_first() else {
        return Err(wrong("a tensor is a single number and has no rows"));
    };
    let expected = *samples.get_or_insert(rows);
    if rows != expected {
        return Err(wrong("a tensor has another number of rows than the first")
            .at("expected", expected)
            .at("found", format_args!("shape {:?}", info.shape)));
    }
    let (start, end) = info.data_offsets;
    let stride = (end - start).checked_div(rows).unwrap_or(0) as u64;
    Ok(Column { name: name.to_owned(), row: row.to_vec(), offset: data + start as u64, stride })
}

fn file_error(file: &Reader, code: Code, what: &str) -> Error {
    Error::new(code, what).at("file", file.indexed().path().display())
}

/// Bytes of the header's length.
const PREFIX: u64 = 8;

#[cfg(not(target_endian = "little"))]
compile_error!("safetensors files are little-endian, and their bytes are taken as they are");

mod sealed {
    /// Rows are read by code that this crate can vouch for.
    pub trait Sealed {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codes::{FILE_CHANGED, FILE_UNREADABLE};
    use crate::files::{damaged, overwrite, rewrite};
    use safetensors::Dtype;
    use safetensors::tensor::TensorView;

    fn file() -> Vec<u8> {
        let x: Vec<u8> = (0..6).flat_map(|x| (x as f32 / 2.0).to_le_bytes()).collect();
        let y: Vec<u8> = [7_i64, 8, 9].into_iter().flat_map(i64::to_le_bytes).collect();
        let views = [
            ("x", TensorView::new(Dtype::F32, vec![3, 2], &x).unwrap()),
            ("y", TensorView::new(Dtype::I64, vec![3], &y).unwrap()),
            ("keep", TensorView::new(Dtype::BOOL, vec![3], &[1, 0, 1]).unwrap()),
            ("short", TensorView::new(Dtype::U8, vec![2], &[1, 0]).unwrap()),
            ("one", TensorView::new(Dtype::U8, vec![], &[1]).unwrap()),
        ];
        safetensors::serialize(views, None).unwrap()
    }

    fn written(bytes: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.safetensors");
        std::fs::write(&path, bytes).unwrap();
        (dir, path)
    }

    #[test]
    fn rows_come_from_their_places_also_in_another_process() {
        let (_dir, path) = written(&file());
        let data = SafetensorsDataset::<(f32, i64, u8)>::open(&path, ["x", "y", "keep"]).unwrap();
        let back: SafetensorsDataset<(f32, i64, u8)> =
            postcard::from_bytes(&postcard::to_allocvec(&data).unwrap()).unwrap();
        for data in [data, back] {
            let item = |index| data.get(index, &mut SampleCx::new(0, 0, index)).unwrap();
            let (x, y, keep) = data.collate(vec![item(2), item(0)]).unwrap();
            assert_eq!((x.shape(), &x[..]), (&[2, 2][..], &[2.0, 2.5, 0.0, 0.5][..]));
            assert_eq!((&y[..], &keep[..]), (&[9, 7][..], &[1, 1][..]));
            assert!(data.get(3, &mut SampleCx::new(0, 0, 3)).is_err());
        }
    }

    #[test]
    fn tensors_that_do_not_fit_are_refused() {
        let (_dir, path) = written(&file());
        let refused = |names: [&str; 2]| SafetensorsDataset::<(f32, u8)>::open(&path, names).unwrap_err();
        let expected = format!(
            "error[L0732]: a tensor has other elements than asked for\n  file      {}\n  tensor    y\n  \
             expected  u8\n  found     I64\n  fix: name the file's type in `SafetensorsDataset::<(..)>`, or convert \
             the file",
            path.display()
        );
        assert_eq!(format!("{:?}", refused(["x", "y"])), expected);
        assert_eq!(refused(["x", "z"]).place("it has"), Some("keep, one, short, x, y"));
        assert_eq!(refused(["x", "short"]).place("found"), Some("shape [2]"));
        assert_eq!(refused(["x", "one"]).what(), "a tensor is a single number and has no rows");
        let error = SafetensorsDataset::<(f32, u8)>::open(&path, ["x"]).unwrap_err();
        assert_eq!((error.code(), error.place("types")), (SAFETENSORS_COLUMN, Some("f32, u8")));
    }

    #[test]
    fn a_file_cut_short_is_refused_wherever_it_was_cut() {
        let bytes = file();
        let (_dir, path) = written(&bytes);
        for length in 0..bytes.len() {
            rewrite(&path, &bytes[..length]);
            let error = SafetensorsDataset::<(f32,)>::open(&path, ["x"]).unwrap_err();
            assert_eq!(error.code(), SAFETENSORS_DAMAGED, "cut to {length}: {error:?}");
        }
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        let error = SafetensorsDataset::<(f32,)>::open(&path, ["x"]).unwrap_err();
        assert_eq!(error.place("expected"), Some(format!("{} bytes", bytes.len()).as_str()));
        let error = SafetensorsDataset::<(f32,)>::open(path.with_extension("absent"), ["x"]).unwrap_err();
        assert_eq!(error.code(), FILE_UNREADABLE);
    }

    #[test]
    fn a_file_written_again_during_the_run_is_refused() {
        let bytes = file();
        let (_dir, path) = written(&bytes);
        let data = SafetensorsDataset::<(f32,)>::open(&path, ["x"]).unwrap();
        let batch = || data.collate(vec![data.get(0, &mut SampleCx::new(0, 0, 0)).unwrap()]);
        assert!(batch().is_ok());
        overwrite(&path, &bytes);
        assert_eq!(batch().unwrap_err().code(), FILE_CHANGED);
    }

    #[test]
    fn damage_anywhere_gives_rows_or_an_error() {
        let bytes = file();
        let (_dir, path) = written(&bytes);
        for copy in damaged(&bytes, 2000) {
            rewrite(&path, &copy);
            match SafetensorsDataset::<(f32, i64)>::open(&path, ["x", "y"]) {
                Ok(data) => {
                    assert!(data.len() <= copy.len());
                    let items = (0..data.len()).map(|index| data.get(index, &mut SampleCx::new(0, 0, index)));
                    data.collate(items.collect::<Result<_>>().unwrap()).unwrap();
                }
                Err(error) => {
                    assert!([SAFETENSORS_DAMAGED, SAFETENSORS_COLUMN].contains(&error.code()), "{error:?}");
                }
            }
        }
    }
}
