//! Tables of text.

use std::fmt;
use std::io::{BufReader, Read as _};
use std::marker::PhantomData;
use std::path::Path;

use csv::{ByteRecord, ErrorKind, ReaderBuilder};
use leyden_process::{Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Indexed, Reader, compressed_by, unreadable};
use crate::codes::{CSV_MALFORMED, CSV_RECORD};
use crate::collate::Collate;
use crate::dataset::{Dataset, SampleCx, out_of_range};

/// The records of a CSV file, each read as a `T`: a struct whose fields are found by the names in the first line, or a
/// tuple, by place.
///
/// When it is opened the whole file is read once, to check that all records have as many fields as the first and to note
/// where each begins (8 bytes a record); quoted fields may have line breaks. A sample is then read from its place. Text
/// is parsed each time: a table that fits into memory is faster as a [`VecDataset`](crate::VecDataset) or a
/// [`TensorDataset`](crate::TensorDataset).
///
/// ```
/// use leyden_data::{Array, Collate, CsvDataset, Dataset, SampleCx};
///
/// #[derive(Collate, serde::Deserialize)]
/// #[collate(crate = "leyden_data")]
/// struct Flower {
///     petal_length: f32,
///     #[serde(rename = "species")]
///     class: i64,
/// }
///
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("iris.csv");
/// std::fs::write(&path, "species,petal_length\n0,1.4\n2,6.0\n")?;
/// let flowers: CsvDataset<Flower> = CsvDataset::open(&path)?;
/// let items = (0..2).map(|index| flowers.get(index, &mut SampleCx::new(0, 0, index)));
/// let batch = flowers.collate(items.collect::<leyden_data::Result<_>>()?)?;
/// assert_eq!(batch.petal_length[..], [1.4, 6.0]);
/// # Ok::<(), leyden_data::Error>(())
/// ```
#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
pub struct CsvDataset<T> {
    file: Reader,
    options: CsvOptions,
    /// The names of the columns, if the file has them.
    columns: Option<Vec<String>>,
    /// Where each record begins, and the last one ends.
    places: Vec<u64>,
    record: PhantomData<fn() -> T>,
}

/// How a CSV file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CsvOptions {
    /// What stands between fields (default `b','`).
    pub delimiter: u8,
    /// Whether the first line has the columns' names (default true).
    pub header: bool,
}

impl Default for CsvOptions {
    fn default() -> Self {
        Self { delimiter: b',', header: true }
    }
}

impl<T: DeserializeOwned> CsvDataset<T> {
    /// Opens a file with commas and a line of names.
    ///
    /// # Errors
    /// `L0701` if it cannot be read, `L0711` if a record has another number of fields than the first line, a quote is
    /// not closed, the names are not UTF-8, or the file is compressed.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path, CsvOptions::default())
    }

    /// Opens a file that is written in another way.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(path: impl AsRef<Path>, options: CsvOptions) -> Result<Self> {
        let path = path.as_ref();
        let (file, handle) = Indexed::open(path)?;
        if let Some(program) = compressed_by(&handle).map_err(|error| unreadable(path, &error))? {
            return Err(Error::new(CSV_MALFORMED, "a CSV file is compressed")
                .at("file", path.display())
                .at("expected", "text")
                .at("found", format_args!("a file compressed by {program}"))
                .hint(
                    "unpack it: records are read from their places, which a compressed file does not have",
                ));
        }
        let mut reader = options.reader().has_headers(options.header).from_reader(BufReader::new(handle));
        let of = |error: csv::Error| malformed(path, error);
        let columns =
            if options.header { Some(names(path, reader.byte_headers().map_err(of)?)?) } else { None };
        let mut places = Vec::new();
        let mut record = ByteRecord::new();
        while reader.read_byte_record(&mut record).map_err(of)? {
            places.push(record.position().map_or(0, csv::Position::byte));
        }
        let dataset = Self { file: Reader::new(file), options, columns, places, record: PhantomData };
        dataset.with_end()
    }

    /// The names of the columns, if the file has them.
    pub fn columns(&self) -> Option<&[String]> {
        self.columns.as_deref()
    }

    /// Notes where the last record ends, which must not be inside quotes.
    fn with_end(mut self) -> Result<Self> {
        let Some(&last) = self.places.last() else { return Ok(self) };
        self.places.push(self.file.indexed().length);
        let record = self.file.bytes_at(last, self.file.indexed().length - last)?;
        if ends_in_quotes(&record, self.options.delimiter) {
            return Err(Error::new(CSV_MALFORMED, "a CSV file is malformed")
                .at("file", self.file.indexed().path().display())
                .at("line", self.line(last)?)
                .at("expected", "a closing quote")
                .at("found", "the end of the file")
                .hint("close the quote in this record; it may have begun in an earlier field, or the file is cut short"));
        }
        Ok(self)
    }

    fn read(&self, index: usize) -> Result<T> {
        let [start, end] = [self.places[index], self.places[index + 1]];
        let bytes = self.file.bytes_at(start, end.saturating_sub(start))?;
        let mut record = ByteRecord::new();
        let mut reader = self
            .options
            .reader()
            .has_headers(false)
            .buffer_capacity(bytes.len().clamp(16, 1 << 13))
            .from_reader(&bytes[..]);
        reader.read_byte_record(&mut record).map_err(|error| malformed(self.file.indexed().path(), error))?;
        let names = self.columns.as_ref().map(|names| names.iter().collect::<ByteRecord>());
        record.deserialize(names.as_ref()).map_err(|error| self.unfit(error, &record, start))
    }

    /// The error of a record that is no `T`.
    #[cold]
    fn unfit(&self, error: csv::Error, record: &ByteRecord, start: u64) -> Error {
        let field = match error.kind() {
            ErrorKind::Deserialize { err, .. } => err.field().map(|field| field as usize),
            _ => None,
        };
        let mut unfit = Error::new(CSV_RECORD, "a CSV record does not fit its type")
            .at("file", self.file.indexed().path().display());
        if let Ok(line) = self.line(start) {
            unfit = unfit.at("line", line);
        }
        if let Some(field) = field {
            let name = self.columns.as_ref().and_then(|names| names.get(field).cloned());
            unfit = unfit.at("column", name.unwrap_or_else(|| format!("{} (from 1)", field + 1)));
            let found = String::from_utf8_lossy(record.get(field).unwrap_or_default()).into_owned();
            unfit = unfit.at("found", format_args!("{:?}", found.chars().take(SHOWN).collect::<String>()));
        }
        let why = match error.kind() {
            ErrorKind::Deserialize { err, .. } => err.kind().to_string(),
            _ => error.to_string(),
        };
        unfit
            .why(why)
            .hint("correct the field, or read the column as `Option<..>` or `String`")
            .hint("a struct's fields are found by the names in the first line, a tuple's by their place")
    }

    /// The line, from 1, of the record that begins at `place`: counted when it is asked for.
    fn line(&self, place: u64) -> Result<u64> {
        let path = self.file.indexed().path();
        let of = |error: std::io::Error| unreadable(path, &error);
        let file = self.file.indexed().reopen()?;
        let mut bytes = BufReader::new(file).bytes();
        let mut line = 1;
        for byte in bytes.by_ref().take(usize::try_from(place).unwrap_or(usize::MAX)) {
            line += u64::from(byte.map_err(of)? == b'\n');
        }
        // Empty lines before a record belong to it.
        for byte in bytes {
            match byte.map_err(of)? {
                b'\n' => line += 1,
                b'\r' => {}
                _ => break,
            }
        }
        Ok(line)
    }
}

impl<T: DeserializeOwned + Collate> Dataset for CsvDataset<T> {
    type Item = T;
    type Batch = T::Batch;

    fn len(&self) -> usize {
        self.places.len().saturating_sub(1)
    }

    fn get(&self, index: usize, _: &mut SampleCx) -> Result<T> {
        if index < self.len() { self.read(index) } else { Err(out_of_range(index, self.len())) }
    }

    fn collate(&self, items: Vec<T>) -> Result<T::Batch> {
        T::collate(items)
    }

    fn origin(&self) -> Option<String> {
        Some(self.file.indexed().path().display().to_string())
    }
}

impl<T> Clone for CsvDataset<T> {
    fn clone(&self) -> Self {
        Self {
            file: self.file.clone(),
            options: self.options,
            columns: self.columns.clone(),
            places: self.places.clone(),
            record: PhantomData,
        }
    }
}

/// The file and its columns.
impl<T> fmt::Debug for CsvDataset<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CsvDataset")
            .field("file", &self.file.indexed().path())
            .field("columns", &self.columns)
            .field("records", &self.places.len().saturating_sub(1))
            .finish_non_exhaustive()
    }
}

impl CsvOptions {
    fn reader(self) -> ReaderBuilder {
        let mut builder = ReaderBuilder::new();
        builder.delimiter(self.delimiter);
        builder
    }
}

fn names(path: &Path, header: &ByteRecord) -> Result<Vec<String>> {
    let name = |(column, name): (usize, &[u8])| {
        String::from_utf8(name.to_vec()).map_err(|error| {
            Error::new(CSV_MALFORMED, "a CSV file is malformed")
                .at("file", path.display())
                .at("line", 1)
                .at("column", format_args!("{} (from 1)", column + 1))
                .at("expected", "names in UTF-8")
                .because(&error)
        })
    };
    header.iter().enumerate().map(name).collect()
}

fn malformed(path: &Path, error: csv::Error) -> Error {
    if let ErrorKind::Io(error) = error.kind() {
        return unreadable(path, error);
    }
    let malformed = Error::new(CSV_MALFORMED, "a CSV file is malformed").at("file", path.display());
    match error.kind() {
        ErrorKind::UnequalLengths { pos, expected_len, len } => {
            let line = pos.as_ref().map_or(0, csv::Position::line);
            malformed
                .at("line", line)
                .at("expected", format_args!("{expected_len} fields"))
                .at("found", format_args!("{len} fields"))
                .hint("put fields that contain the separator in quotes; set another separator with `CsvOptions`")
        }
        _ => malformed.because(&error),
    }
}

/// Whether a quote is still open at the end of a record.
fn ends_in_quotes(record: &[u8], delimiter: u8) -> bool {
    let (mut quoted, mut field_start) = (false, true);
    for &byte in record {
        if byte == b'"' && (quoted || field_start) {
            // A doubled quote closes and opens again.
            quoted = !quoted;
            field_start = !quoted;
        } else if !quoted {
            field_start = byte == delimiter || byte == b'\n' || byte == b'\r';
        }
    }
    quoted
}

/// How much of a field an error shows, in characters.
const SHOWN: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::DatasetExt as _;
    use crate::codes::{FILE_CHANGED, FILE_UNREADABLE, NO_BATCHES};
    use crate::files::{damaged, overwrite, rewrite};
    use crate::loader::DataLoader;

    const TABLE: &str = "name,x,y\nplain,1.5,7\n\"two\nlines, \"\"quoted\"\"\",-2,8\n\nlast,3e2,9";

    fn written(text: impl AsRef<[u8]>) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("table.csv");
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    fn get<T: DeserializeOwned + Collate>(table: &CsvDataset<T>, index: usize) -> Result<T> {
        table.get(index, &mut SampleCx::new(0, 0, index))
    }

    #[test]
    fn reads_any_record_whatever_its_quotes() {
        let (_dir, path) = written(TABLE);
        let table: CsvDataset<(String, f32, i64)> = CsvDataset::open(&path).unwrap();
        assert_eq!((table.len(), table.columns().unwrap().join(" ")), (3, "name x y".to_owned()));
        assert_eq!(get(&table, 1).unwrap(), ("two\nlines, \"quoted\"".to_owned(), -2.0, 8));
        let back: CsvDataset<(String, f32, i64)> =
            postcard::from_bytes(&postcard::to_allocvec(&table).unwrap()).unwrap();
        assert_eq!(get(&back, 2).unwrap(), ("last".to_owned(), 300.0, 9));
        let (names, x, _) = back.collate(vec![get(&back, 2).unwrap(), get(&back, 0).unwrap()]).unwrap();
        assert_eq!((names.join(" "), &x[..]), ("last plain".to_owned(), &[300.0, 1.5][..]));
        assert!(get(&table, 3).is_err());
    }

    #[test]
    fn other_separators_and_no_names_will_do() {
        let (_dir, path) = written("1;2\r\n3;4\r\n");
        let options = CsvOptions { delimiter: b';', header: false };
        let table: CsvDataset<(f32, f32)> = CsvDataset::open_with(&path, options).unwrap();
        assert_eq!(
            (table.len(), get(&table, 0).unwrap(), get(&table, 1).unwrap()),
            (2, (1.0, 2.0), (3.0, 4.0))
        );
        for empty in ["", "a;b\n"] {
            let (_dir, path) = written(empty);
            let options = CsvOptions { delimiter: b';', header: true };
            assert_eq!(CsvDataset::<(f32, f32)>::open_with(&path, options).unwrap().len(), 0, "{empty:?}");
        }
    }

    #[test]
    fn a_field_that_does_not_fit_is_named_by_line_and_column() {
        let (_dir, path) = written(TABLE.replace("3e2", "n/a"));
        let table: CsvDataset<(String, f32, i64)> = CsvDataset::open(&path).unwrap();
        let expected = format!(
            "error[L0712]: a CSV record does not fit its type\n  file    {}\n  line    6\n  column  x\n  \
             found   \"n/a\"\n  why: invalid float literal\n  \
             fix: correct the field, or read the column as `Option<..>` or `String`\n  \
             fix: a struct's fields are found by the names in the first line, a tuple's by their place",
            path.display()
        );
        assert_eq!(format!("{:?}", get(&table, 2).unwrap_err()), expected);
        assert!(get(&table, 1).is_ok());
        let table: CsvDataset<(String, f32, i64, i64)> = CsvDataset::open(&path).unwrap();
        let error = get(&table, 1).unwrap_err();
        assert_eq!((error.code(), error.place("line")), (CSV_RECORD, Some("3")));
    }

    #[test]
    fn malformed_files_are_refused_with_their_line() {
        let (_dir, path) = written("a,b\n1,2\n\"x\ny\",2\n3\n");
        let error = CsvDataset::<(String, String)>::open(&path).unwrap_err();
        let expected = format!(
            "error[L0711]: a CSV file is malformed\n  file      {}\n  line      5\n  expected  2 fields\n  \
             found     1 fields\n  fix: put fields that contain the separator in quotes; set another separator with \
             `CsvOptions`",
            path.display()
        );
        assert_eq!(format!("{error:?}"), expected);
        for open in ["a,b\n1,2\n3,\"4\n5,6\n", "a,b\n1,\"2\"\"", "a,b\n1,\""] {
            let (_dir, path) = written(open);
            let error = CsvDataset::<(String, String)>::open(&path).unwrap_err();
            assert_eq!(error.place("expected"), Some("a closing quote"), "{open:?}");
        }
        let (_dir, path) = written("a,b\n1,5\" pipe\n2,\"closed\"\"\"\n");
        assert_eq!(CsvDataset::<(String, String)>::open(&path).unwrap().len(), 2);
        let (_dir, path) = written(b"a,\xff\n1,2\n");
        let (_dir, packed) = written(b"\x1f\x8b\x08\0\0\0\0\0\0\x03");
        let error = CsvDataset::<(i64, i64)>::open(&packed).unwrap_err();
        assert_eq!((error.code(), error.place("found")), (CSV_MALFORMED, Some("a file compressed by gzip")));
        assert_eq!(
            CsvDataset::<(i64, i64)>::open(&path).unwrap_err().place("expected"),
            Some("names in UTF-8")
        );
        let error = CsvDataset::<(i64, i64)>::open(path.with_extension("absent")).unwrap_err();
        assert_eq!(error.code(), FILE_UNREADABLE);
    }

    #[test]
    fn a_file_that_changed_on_the_way_to_a_worker_is_refused() {
        let (_dir, path) = written(TABLE);
        let table: CsvDataset<(String, f32, i64)> = CsvDataset::open(&path).unwrap();
        let sent = postcard::to_allocvec(&table).unwrap();
        std::fs::write(&path, "name,x,y\n").unwrap();
        let back: CsvDataset<(String, f32, i64)> = postcard::from_bytes(&sent).unwrap();
        let error = get(&back, 0).unwrap_err();
        assert_eq!(error.code(), FILE_CHANGED);
        assert!(error.place("now").unwrap().starts_with("9 bytes, "), "{error:?}");
        // Cut under an open file: what is there no longer is an error too.
        assert_eq!(get(&table, 1).unwrap_err().code(), FILE_CHANGED);
    }

    #[test]
    fn a_loader_without_records_names_the_file() {
        let (_dir, path) = written("x,y\n");
        let table: CsvDataset<(i64, i64)> = CsvDataset::open(&path).unwrap();
        let mapped = table.map(|(x, y), _: &mut SampleCx| Ok(x + y)).take(3);
        let error = DataLoader::builder(mapped).build().unwrap_err();
        assert_eq!((error.code(), error.place("read from")), (NO_BATCHES, path.to_str()));
    }

    #[test]
    fn a_file_written_again_at_the_same_length_is_refused() {
        let (_dir, path) = written("x,y\n1,2\n3,4\n");
        let table: CsvDataset<(i64, i64)> = CsvDataset::open(&path).unwrap();
        assert_eq!(get(&table, 1).unwrap(), (3, 4));
        overwrite(&path, b"x,y\n5,6\n7,8\n");
        assert_eq!(get(&table, 1).unwrap_err().code(), FILE_CHANGED);
    }

    #[test]
    fn damage_anywhere_gives_records_or_an_error() {
        let (_dir, path) = written(TABLE);
        for copy in damaged(TABLE.as_bytes(), 1500) {
            rewrite(&path, &copy);
            match CsvDataset::<(String, f32, i64)>::open(&path) {
                Ok(table) => {
                    for index in 0..table.len() {
                        if let Err(error) = get(&table, index) {
                            assert_eq!(error.code(), CSV_RECORD, "{error:?}");
                        }
                    }
                }
                Err(error) => assert_eq!(error.code(), CSV_MALFORMED, "{error:?}"),
            }
        }
    }
}
