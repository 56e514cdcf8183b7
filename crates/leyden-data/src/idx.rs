//! IDX files, the format of MNIST and its kin, and images with labels read from them.
//!
//! An IDX file is two zero bytes, the type of the elements, the number of dimensions, a big-endian `u32` size for each,
//! and the elements in C order (LeCun's MNIST page). Only unsigned bytes are read here: no published data set of
//! images uses another type. Files may be gzip-compressed, which is seen by content, not by name. Nothing is
//! downloaded.
//!
//! A file is believed byte by byte: the header's promise is compared with what follows, to the last byte, and no
//! memory is reserved for what is not there.

use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::bufread::MultiGzDecoder;
use leyden_process::{Error, Result, attach};
use serde::{Deserialize, Serialize};

use crate::array::Array;
use crate::codes::{
    IDX_ELEMENT, IDX_GZIP, IDX_MAGIC, IDX_PAIR, IDX_SIZE, IDX_TRAILING, IDX_TRUNCATED, IDX_UNREADABLE,
};
use crate::dataset::{Dataset, SampleCx, out_of_range};
use crate::files::{Report, open, path_bytes};

/// The contents of an IDX file of unsigned bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdxArray {
    /// The size of each dimension, outermost first.
    pub shape: Vec<usize>,
    /// The elements in C order: as many as the product of `shape`.
    pub data: Vec<u8>,
}

impl IdxArray {
    /// Reads a file, plain or gzip-compressed.
    ///
    /// # Errors
    /// `L0401` if it cannot be read; else as [`from_bytes`](Self::from_bytes).
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let unreadable = |error: io::Error| unreadable(&name, &error);
        let (file, metadata) = open(path).map_err(unreadable)?;
        parse(&name, BufReader::new(file), usize::try_from(metadata.len()).unwrap_or(usize::MAX))
    }

    /// Reads the bytes of a file, plain or gzip-compressed; `name` stands for the file in errors.
    ///
    /// # Errors
    /// `L0402` if the bytes end early, `L0403` if they are not IDX, `L0404` if the elements are not unsigned bytes,
    /// `L0405` if bytes follow the elements, `L0406` if the shape does not fit into memory, `L0407` if the
    /// compression is damaged.
    pub fn from_bytes(name: &str, bytes: &[u8]) -> Result<Self> {
        parse(name, bytes, bytes.len())
    }
}

/// Images and labels of a batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageBatch {
    /// Grey values divided by the data set's scale: `[batch, height, width]`.
    pub images: Array<f32>,
    /// The class of each image: `[batch]`.
    pub labels: Array<i64>,
}

/// Grey images with labels, in memory: MNIST, Fashion-MNIST, KMNIST, or files of one's own. A clone shares the data.
///
/// Worker processes share the data too: it is in memory once for all of them. Elsewhere, what was opened from files is
/// serialised as their paths, and read again on the other side; what was made of bytes, as its data. On systems other than
/// Linux that holds for worker processes as well.
#[derive(Clone, Serialize, Deserialize)]
#[serde(into = "Description", try_from = "Description")]
pub struct IdxImages {
    data: Arc<Labelled>,
    divisor: f32,
    /// Images and labels, if they came from files.
    files: Option<Arc<[PathBuf; 2]>>,
}

/// An [`IdxImages`] as it is serialised.
#[derive(Serialize, Deserialize)]
enum Description {
    Files {
        #[serde(with = "path_bytes")]
        images: PathBuf,
        #[serde(with = "path_bytes")]
        labels: PathBuf,
        divisor: f32,
    },
    Memory {
        data: Arc<Labelled>,
        divisor: f32,
    },
}

impl From<IdxImages> for Description {
    fn from(IdxImages { data, divisor, files }: IdxImages) -> Self {
        match files.as_deref() {
            Some([images, labels]) if !attach::has_room() => {
                Self::Files { images: images.clone(), labels: labels.clone(), divisor }
            }
            _ => Self::Memory { data, divisor },
        }
    }
}

impl TryFrom<Description> for IdxImages {
    type Error = Report;

    fn try_from(description: Description) -> Result<Self, Report> {
        match description {
            Description::Files { images, labels, divisor } => {
                Self::open(images, labels).map(|images| images.scale(divisor)).map_err(Report)
            }
            Description::Memory { data, divisor } => Ok(Self { data, divisor, files: None }),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Labelled {
    /// Images, height, width.
    shape: [usize; 3],
    pixels: Array<u8>,
    labels: Array<u8>,
    classes: usize,
}

impl IdxImages {
    /// Reads a file of images, shape `[n, height, width]`, and the file of their labels, `[n]`.
    ///
    /// # Errors
    /// `L0408` if the shapes are not those, or differ in n; else as [`IdxArray::open`].
    pub fn open(images: impl AsRef<Path>, labels: impl AsRef<Path>) -> Result<Self> {
        let names = [images.as_ref().display().to_string(), labels.as_ref().display().to_string()];
        let files = [images.as_ref().to_owned(), labels.as_ref().to_owned()];
        let pair = Self::pair(names, IdxArray::open(images)?, IdxArray::open(labels)?)?;
        Ok(Self { files: Some(Arc::new(files)), ..pair })
    }

    /// Reads the bytes of two such files, such as `include_bytes!` gives.
    ///
    /// # Errors
    /// `L0408` if they do not fit together; else as [`IdxArray::from_bytes`].
    pub fn from_bytes(images: &[u8], labels: &[u8]) -> Result<Self> {
        let [images_name, labels_name] = ["images", "labels"];
        let images = IdxArray::from_bytes(images_name, images)?;
        let labels = IdxArray::from_bytes(labels_name, labels)?;
        Self::pair([images_name, labels_name].map(str::to_owned), images, labels)
    }

    /// Reads MNIST's files from the folder `dir`: the training part or the test part, under the names they are
    /// published and unpacked with (`train-images-idx3-ubyte`, `train-images.idx3-ubyte`, `t10k-…`; with `.gz` or
    /// without).
    ///
    /// # Errors
    /// `L0401` with the names looked for if there is no such file; else as [`open`](Self::open).
    pub fn mnist(dir: impl AsRef<Path>, train: bool) -> Result<Self> {
        let part = if train { "train" } else { "t10k" };
        let images = find(dir.as_ref(), &format!("{part}-images"), "idx3-ubyte")?;
        let labels = find(dir.as_ref(), &format!("{part}-labels"), "idx1-ubyte")?;
        Self::open(images, labels)
    }

    fn pair([images_name, labels_name]: [String; 2], images: IdxArray, labels: IdxArray) -> Result<Self> {
        let wrong = |what: &str| {
            Error::new(IDX_PAIR, what)
                .at("images", format_args!("{images_name}: shape {:?}", images.shape))
                .at("labels", format_args!("{labels_name}: shape {:?}", labels.shape))
        };
        let (&[n, height, width], &[labelled]) = (&images.shape[..], &labels.shape[..]) else {
            return Err(wrong("images and labels are not of shape [n, height, width] and [n]")
                .hint("are the two files, or the two arguments, swapped?"));
        };
        if n != labelled {
            return Err(wrong(&format!("there are {n} images but {labelled} labels"))
                .hint("take both files from the same part: training or test"));
        }
        let classes = labels.data.iter().max().map_or(0, |&label| usize::from(label) + 1);
        let (shape, pixels, labels) = ([n, height, width], images.data.into(), labels.data.into());
        Ok(Self { data: Arc::new(Labelled { shape, pixels, labels, classes }), divisor: 255.0, files: None })
    }

    /// Divides grey values by `divisor` (default 255, which maps bytes to [0, 1] as torchvision's `ToTensor` does).
    /// A divisor of 0 gives infinities and NaN, as division does.
    #[must_use]
    pub fn scale(mut self, divisor: f32) -> Self {
        self.divisor = divisor;
        self
    }

    /// How many images there are.
    pub fn len(&self) -> usize {
        self.data.shape[0]
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rows of an image.
    pub fn height(&self) -> usize {
        self.data.shape[1]
    }

    /// Columns of an image.
    pub fn width(&self) -> usize {
        self.data.shape[2]
    }

    /// The largest label and one: how many outputs a classifier needs.
    pub fn classes(&self) -> usize {
        self.data.classes
    }
}

/// One image, by its place: `collate` copies the pixels once, straight into the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdxItem(usize);

impl Dataset for IdxImages {
    type Item = IdxItem;
    type Batch = ImageBatch;

    fn len(&self) -> usize {
        self.len()
    }

    fn get(&self, index: usize, _: &mut SampleCx) -> Result<IdxItem> {
        if index < self.len() { Ok(IdxItem(index)) } else { Err(out_of_range(index, self.len())) }
    }

    fn collate(&self, items: Vec<IdxItem>) -> Result<ImageBatch> {
        let [_, height, width] = self.data.shape;
        let size = height * width;
        let mut images = Array::zeros(&[items.len(), height, width])?;
        for (row, &IdxItem(index)) in images.rows_mut().zip(&items) {
            let image = &self.data.pixels[index * size..][..size];
            row.iter_mut().zip(image).for_each(|(value, &grey)| *value = f32::from(grey) / self.divisor);
        }
        let labels = items.iter().map(|&IdxItem(index)| i64::from(self.data.labels[index])).collect();
        Ok(ImageBatch { images, labels })
    }
}

/// The shape and scale; not the pixels.
impl std::fmt::Debug for IdxImages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IdxImages")
            .field("shape", &self.data.shape)
            .field("classes", &self.data.classes)
            .field("scale", &self.divisor)
            .finish_non_exhaustive()
    }
}

/// The first file that exists of those that `stem` and `kind` may be published or unpacked as.
fn find(dir: &Path, stem: &str, kind: &str) -> Result<PathBuf> {
    let names: Vec<String> = ["-", "."]
        .iter()
        .flat_map(|joint| ["", ".gz"].map(|packed| format!("{stem}{joint}{kind}{packed}")))
        .collect();
    names.iter().map(|name| dir.join(name)).find(|path| path.exists()).ok_or_else(|| {
        Error::new(IDX_UNREADABLE, "a file of MNIST is missing")
            .at("folder", dir.display())
            .at("looked for", names.join(", "))
            .hint(
                "download the four files of MNIST into that folder, or name two files with `IdxImages::open`",
            )
    })
}

/// Reads an IDX file; `available` is its size as it lies there, the most that is reserved in advance.
fn parse(name: &str, mut file: impl BufRead, available: usize) -> Result<IdxArray> {
    let mut start = Vec::with_capacity(GZIP.len());
    let read = file.by_ref().take(GZIP.len() as u64).read_to_end(&mut start);
    read.map_err(|error| unreadable(name, &error))?;
    let packed = start == GZIP;
    let bytes = start.as_slice().chain(file);
    if packed {
        Source { name, bytes: MultiGzDecoder::new(bytes), packed, offset: 0 }.array(available)
    } else {
        Source { name, bytes, packed, offset: 0 }.array(available)
    }
}

/// The bytes of an IDX file, and how far they have been read.
struct Source<'a, R> {
    name: &'a str,
    bytes: R,
    packed: bool,
    offset: usize,
}

impl<R: Read> Source<'_, R> {
    fn array(mut self, available: usize) -> Result<IdxArray> {
        let [zero, zero_too, element, dimensions] = self.word("the magic number")?;
        if [zero, zero_too] != [0, 0] || !ELEMENTS.iter().any(|&(code, _)| code == element) {
            return Err(self.not_idx([zero, zero_too, element, dimensions]));
        }
        if element != UNSIGNED_BYTE {
            return Err(self.wrong_element(element));
        }
        let shape = self.shape(dimensions)?;
        let size = self.size(&shape)?;
        let data = self.elements(&shape, size, available)?;
        self.expect_end(&shape)?;
        Ok(IdxArray { shape, data })
    }

    fn shape(&mut self, dimensions: u8) -> Result<Vec<usize>> {
        (0..dimensions)
            .map(|axis| {
                let word = self.word(&format!("the size of dimension {axis} of {dimensions}"))?;
                let size = u32::from_be_bytes(word);
                usize::try_from(size).map_err(|_| self.too_large(&[size as usize]))
            })
            .collect()
    }

    /// The number of elements, if memory could hold them.
    fn size(&self, shape: &[usize]) -> Result<usize> {
        // An empty dimension makes the product 0 whatever the others are.
        let product = if shape.contains(&0) {
            Some(0)
        } else {
            shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size))
        };
        product.filter(|&size| size <= isize::MAX as usize).ok_or_else(|| self.too_large(shape))
    }

    fn elements(&mut self, shape: &[usize], size: usize, available: usize) -> Result<Vec<u8>> {
        let mut data = Vec::new();
        data.try_reserve_exact(size.min(available)).map_err(|_| self.too_large(shape))?;
        let read = self.bytes.by_ref().take(size as u64).read_to_end(&mut data);
        let promised = format!("shape {shape:?}: {size} bytes from offset {}", self.offset);
        let found = format!("{} of {size} bytes", data.len());
        self.offset += data.len();
        match read {
            Ok(_) if data.len() == size => {
                data.shrink_to_fit();
                Ok(data)
            }
            Ok(_) => Err(self.truncated(&promised, &found)),
            Err(error) => Err(self.failed(error, &promised, &found)),
        }
    }

    fn expect_end(&mut self, shape: &[usize]) -> Result<()> {
        let mut beyond = Vec::with_capacity(1);
        let promised = format!("shape {shape:?} and the end");
        // At the end of a gzip stream this also compares its checksum.
        let read = self.bytes.by_ref().take(1).read_to_end(&mut beyond);
        read.map_err(|error| self.failed(error, &promised, "all elements, but not the end of the file"))?;
        let Some(byte) = beyond.first() else { return Ok(()) };
        Err(self
            .error(IDX_TRAILING, "an IDX file goes on after its last element")
            .at("expected", promised)
            .at("found", format_args!("byte {byte:#04x} and perhaps more"))
            .hint("the header or the file's length is wrong: make or download the file again"))
    }

    /// The next four bytes, which hold `what`.
    fn word(&mut self, what: &str) -> Result<[u8; 4]> {
        let mut word = Vec::with_capacity(4);
        let read = self.bytes.by_ref().take(4).read_to_end(&mut word);
        let found = format!("{} of 4 bytes", word.len());
        let promised = format!("4 bytes from offset {}: {what}", self.offset);
        self.offset += word.len();
        read.map_err(|error| self.failed(error, &promised, &found))?;
        word.try_into().map_err(|_| self.truncated(&promised, &found))
    }

    fn error(&self, code: leyden_process::Code, what: &str) -> Error {
        let unit = if self.packed { " of the unpacked bytes" } else { "" };
        Error::new(code, what).at("file", self.name).at("offset", format_args!("{}{unit}", self.offset))
    }

    fn truncated(&self, expected: &str, found: &str) -> Error {
        self.error(IDX_TRUNCATED, "an IDX file is truncated")
            .at("expected", expected)
            .at("found", found)
            .hint("the copy or download was cut short: make it again")
    }

    /// Reading failed: the compressed stream is short or damaged, or the system says so.
    fn failed(&self, error: io::Error, expected: &str, found: &str) -> Error {
        match error.kind() {
            io::ErrorKind::UnexpectedEof if self.packed => {
                self.truncated(expected, found).why("the gzip stream ends early")
            }
            io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData if self.packed => self
                .error(IDX_GZIP, "the gzip stream of an IDX file is damaged")
                .at("expected", expected)
                .at("found", found)
                .because(&error)
                .hint("download or compress the file again; `gzip -t` checks it"),
            _ => unreadable(self.name, &error).at("offset", self.offset),
        }
    }

    fn not_idx(&self, found: [u8; 4]) -> Error {
        Error::new(IDX_MAGIC, "this is not an IDX file")
            .at("file", self.name)
            .at("offset", 0)
            .at("expected", "00 00, an element type (08, 09, 0b, 0c, 0d or 0e), the number of dimensions")
            .at("found", found.map(|byte| format!("{byte:02x}")).join(" "))
            .hint(
                "name an IDX file, plain or gzip-compressed; an HTML page here means that a download failed",
            )
    }

    fn wrong_element(&self, found: u8) -> Error {
        let name = |code| ELEMENTS.iter().find(|known| known.0 == code).map_or("unknown", |known| known.1);
        Error::new(IDX_ELEMENT, "the elements of an IDX file are not unsigned bytes")
            .at("file", self.name)
            .at("offset", 2)
            .at("expected", format_args!("{UNSIGNED_BYTE:#04x} ({})", name(UNSIGNED_BYTE)))
            .at("found", format_args!("{found:#04x} ({})", name(found)))
            .hint("convert the array to unsigned bytes and write the file again")
    }

    fn too_large(&self, shape: &[usize]) -> Error {
        self.error(IDX_SIZE, "the header of an IDX file promises more than memory can hold")
            .at("expected", "a shape that fits into memory")
            .at("found", format_args!("shape {shape:?}"))
            .hint("the header is damaged, or this is another format: make or download the file again")
    }
}

fn unreadable(name: &str, error: &io::Error) -> Error {
    Error::new(IDX_UNREADABLE, "an IDX file cannot be read")
        .at("file", name)
        .because(error)
        .hint("check the path and its permissions")
}

/// How a gzip stream begins (RFC 1952). An IDX file begins with two zeros, so the two cannot be confused.
const GZIP: [u8; 2] = [0x1f, 0x8b];
const UNSIGNED_BYTE: u8 = 0x08;
/// The element types of the format.
const ELEMENTS: [(u8, &str); 6] = [
    (UNSIGNED_BYTE, "unsigned byte"),
    (0x09, "signed byte"),
    (0x0b, "16-bit integer"),
    (0x0c, "32-bit integer"),
    (0x0d, "32-bit float"),
    (0x0e, "64-bit float"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// Two images of 2 × 3.
    const IMAGES: &[u8] =
        &[0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 3, 0, 51, 102, 153, 204, 255, 1, 2, 3, 4, 5, 6];
    const LABELS: &[u8] = &[0, 0, 8, 1, 0, 0, 0, 2, 7, 3];

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn refused(bytes: &[u8]) -> Error {
        IdxArray::from_bytes("some.idx", bytes).unwrap_err()
    }

    #[test]
    fn reads_plain_and_packed_files_whatever_they_are_called() {
        let dir = tempfile::tempdir().unwrap();
        let expected = IdxArray { shape: vec![2, 2, 3], data: IMAGES[16..].to_vec() };
        let halves = [gzip(&IMAGES[..9]), gzip(&IMAGES[9..])].concat();
        for (name, bytes) in
            [("plain.gz", IMAGES.to_vec()), ("packed", gzip(IMAGES)), ("two gzip members", halves)]
        {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(IdxArray::open(&path).unwrap(), expected, "{name}");
        }
    }

    #[test]
    fn reads_an_array_without_elements() {
        let bytes = [0, 0, 8, 3, 0, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255];
        let array = IdxArray::from_bytes("empty", &bytes).unwrap();
        assert_eq!((array.shape, array.data), (vec![0, 0xFFFF_FFFF, 0xFFFF_FFFF], vec![]));
    }

    #[test]
    fn names_a_missing_file_and_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        for (path, why) in
            [(dir.path().join("absent"), "os error"), (dir.path().to_owned(), "is a directory")]
        {
            let error = IdxArray::open(&path).unwrap_err();
            assert_eq!((error.code(), error.what()), (IDX_UNREADABLE, "an IDX file cannot be read"));
            assert_eq!(error.place("file"), Some(path.display().to_string().as_str()));
            assert!(error.reasons()[0].contains(why), "{error:?}");
        }
    }

    #[test]
    fn reports_a_file_cut_at_any_byte() {
        for len in 0..IMAGES.len() {
            let error = refused(&IMAGES[..len]);
            assert_eq!(error.code(), IDX_TRUNCATED, "cut to {len}: {error:?}");
            assert_eq!(error.place("offset"), Some(len.to_string().as_str()), "cut to {len}: {error:?}");
        }
        let expected = "error[L0402]: an IDX file is truncated\n  file      some.idx\n  offset    20\n  \
                        expected  shape [2, 2, 3]: 12 bytes from offset 16\n  found     4 of 12 bytes\n  \
                        fix: the copy or download was cut short: make it again";
        assert_eq!(format!("{:?}", refused(&IMAGES[..20])), expected);
        let error = refused(&IMAGES[..10]);
        assert_eq!(error.place("expected"), Some("4 bytes from offset 8: the size of dimension 1 of 3"));
        assert_eq!(error.place("found"), Some("2 of 4 bytes"));
    }

    #[test]
    fn reports_a_packed_file_cut_at_any_byte() {
        let packed = gzip(IMAGES);
        for len in 0..packed.len() {
            let error = refused(&packed[..len]);
            assert_eq!(error.code(), IDX_TRUNCATED, "cut to {len}: {error:?}");
        }
        let error = refused(&packed[..packed.len() - 1]);
        assert_eq!(error.place("offset"), Some("28 of the unpacked bytes"), "{error:?}");
        assert_eq!(error.reasons(), ["the gzip stream ends early"]);
    }

    #[test]
    fn a_flipped_bit_in_a_packed_file_is_never_taken_for_data() {
        let packed = gzip(IMAGES);
        // From 10 on: the header's time stamp and flags say nothing about the data.
        for (byte, bit) in (10..packed.len()).flat_map(|byte| (0..8).map(move |bit| (byte, bit))) {
            let mut damaged = packed.clone();
            damaged[byte] ^= 1 << bit;
            if let Ok(array) = IdxArray::from_bytes("flipped", &damaged) {
                assert_eq!(array.data, IMAGES[16..], "byte {byte}, bit {bit}");
            }
        }
        let mut damaged = packed.clone();
        *damaged.iter_mut().nth_back(7).unwrap() ^= 1; // The checksum.
        let error = refused(&damaged);
        assert_eq!(error.code(), IDX_GZIP);
        assert!(error.reasons()[0].contains("checksum"), "{error:?}");
    }

    #[test]
    fn reports_bytes_after_the_end() {
        for bytes in [[IMAGES, &[0x2a, 0x2b]].concat(), gzip(&[IMAGES, &[0x2a]].concat())] {
            let error = refused(&bytes);
            assert_eq!(error.code(), IDX_TRAILING);
            assert_eq!(error.place("found"), Some("byte 0x2a and perhaps more"));
            assert!(error.place("offset").unwrap().starts_with("28"), "{error:?}");
        }
        assert_eq!(refused(&[&gzip(IMAGES)[..], b"and something else"].concat()).code(), IDX_GZIP);
    }

    #[test]
    fn reports_what_is_not_idx() {
        let error = refused(b"<!DOCTYPE html>");
        let expected = "error[L0403]: this is not an IDX file\n  file      some.idx\n  offset    0\n  \
             expected  00 00, an element type (08, 09, 0b, 0c, 0d or 0e), the number of dimensions\n  \
             found     3c 21 44 4f\n  fix: name an IDX file, plain or gzip-compressed; an HTML page here means \
             that a download failed";
        assert_eq!(format!("{error:?}"), expected);
        for at in [0, 1, 2] {
            let mut garbled = IMAGES.to_vec();
            garbled[at] ^= 0x40;
            assert_eq!(refused(&garbled).code(), IDX_MAGIC, "byte {at}");
        }
    }

    #[test]
    fn reports_elements_of_another_type() {
        let mut floats = IMAGES.to_vec();
        floats[2] = 0x0d;
        let error = refused(&floats);
        assert_eq!(error.code(), IDX_ELEMENT);
        assert_eq!(error.place("expected"), Some("0x08 (unsigned byte)"));
        assert_eq!(error.place("found"), Some("0x0d (32-bit float)"));
    }

    #[test]
    fn reserves_nothing_for_what_a_header_only_promises() {
        let huge = |sizes: &[u32]| -> Vec<u8> {
            let bytes = sizes.iter().flat_map(|size| size.to_be_bytes());
            [0, 0, 8, sizes.len() as u8].into_iter().chain(bytes).chain([1, 2]).collect()
        };
        let error = refused(&huge(&[u32::MAX; 3]));
        assert_eq!(error.code(), IDX_SIZE);
        assert_eq!(error.place("found"), Some("shape [4294967295, 4294967295, 4294967295]"));
        // Fits an address space, but no machine.
        for bytes in [huge(&[1 << 31, 1 << 31]), gzip(&huge(&[1 << 31, 1 << 31]))] {
            let error = refused(&bytes);
            assert_eq!(error.code(), IDX_TRUNCATED);
            assert_eq!(error.place("found"), Some("2 of 4611686018427387904 bytes"));
        }
    }

    #[test]
    fn makes_batches_of_scaled_pixels_and_labels() {
        let images = IdxImages::from_bytes(IMAGES, LABELS).unwrap();
        let size = (images.len(), images.height(), images.width(), images.classes());
        assert_eq!(size, (2, 2, 3, 8));
        let batch = images.collate(vec![IdxItem(1), IdxItem(0)]).unwrap();
        assert_eq!((batch.images.shape(), &batch.labels[..]), (&[2, 2, 3][..], &[3, 7][..]));
        let expected = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.0, 51.0, 102.0, 153.0, 204.0, 255.0];
        assert_eq!(batch.images[..], expected.map(|grey: f32| grey / 255.0));
        assert_eq!(images.scale(1.0).collate(vec![IdxItem(0)]).unwrap().images[..], expected[6..]);
    }

    #[test]
    fn refuses_an_index_that_is_no_image() {
        let images = IdxImages::from_bytes(IMAGES, LABELS).unwrap();
        let error = images.get(2, &mut SampleCx::new(0, 0, 2)).unwrap_err();
        assert_eq!(error.what(), "index 2 is outside a data set of 2 samples");
    }

    #[test]
    fn refuses_images_and_labels_that_do_not_fit() {
        let error = IdxImages::from_bytes(LABELS, IMAGES).unwrap_err();
        assert_eq!(error.code(), IDX_PAIR);
        assert_eq!(error.place("images"), Some("images: shape [2]"));
        let three = [0, 0, 8, 1, 0, 0, 0, 3, 7, 3, 1];
        let error = IdxImages::from_bytes(IMAGES, &three).unwrap_err();
        let expected = "error[L0408]: there are 2 images but 3 labels\n  images  images: shape [2, 2, 3]\n  \
                        labels  labels: shape [3]\n  \
                        fix: take both files from the same part: training or test";
        assert_eq!(format!("{error:?}"), expected);
    }

    #[test]
    fn finds_the_files_of_mnist_and_says_what_it_looked_for() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
        write("train-images-idx3-ubyte.gz", &gzip(IMAGES));
        write("train-labels.idx1-ubyte", LABELS);
        write("t10k-images.idx3-ubyte.gz", &gzip(IMAGES));
        assert_eq!(IdxImages::mnist(dir.path(), true).unwrap().len(), 2);

        let error = IdxImages::mnist(dir.path(), false).unwrap_err();
        assert_eq!(error.code(), IDX_UNREADABLE);
        let looked = "t10k-labels-idx1-ubyte, t10k-labels-idx1-ubyte.gz, t10k-labels.idx1-ubyte, \
                      t10k-labels.idx1-ubyte.gz";
        assert_eq!(error.place("looked for"), Some(looked));
        assert_eq!(error.place("folder"), Some(dir.path().display().to_string().as_str()));
    }

    #[test]
    fn travels_as_its_paths_or_as_its_data() {
        use std::os::unix::ffi::OsStrExt as _;
        let dir = tempfile::tempdir().unwrap();
        let images = dir.path().join(std::ffi::OsStr::from_bytes(b"not-utf-8-\xff"));
        let labels = dir.path().join("labels");
        std::fs::write(&images, IMAGES).unwrap();
        std::fs::write(&labels, LABELS).unwrap();
        let from_files = IdxImages::open(&images, &labels).unwrap().scale(2.0);
        let from_memory = IdxImages::from_bytes(IMAGES, LABELS).unwrap().scale(2.0);
        let send = |images: &IdxImages| postcard::to_allocvec(images).unwrap();
        for sent in [send(&from_files), send(&from_memory)] {
            let back: IdxImages = postcard::from_bytes(&sent).unwrap();
            let batch = |images: &IdxImages| images.collate(vec![IdxItem(1), IdxItem(0)]).unwrap();
            assert_eq!(batch(&back), batch(&from_memory));
        }
        std::fs::remove_file(&labels).unwrap();
        let text = serde_json::to_string(&from_files).unwrap();
        let error = serde_json::from_str::<IdxImages>(&text).unwrap_err().to_string();
        assert!(error.starts_with("error[L0401]: an IDX file cannot be read\n  file  "), "{error}");
    }
}
