//! What readers of files share: reading at a place, noticing that a file has changed, and paths that need not be text.

pub(crate) mod csv;
#[cfg(feature = "image")]
pub(crate) mod image_folder;
pub(crate) mod safetensors;
pub(crate) mod tar;

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use bytemuck::allocation::try_zeroed_vec;
use leyden_process::{Error, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::codes::{FILE_CHANGED, FILE_UNREADABLE};

/// A file that was indexed: its path, and its length and time of change then. It is opened anew in each process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Indexed {
    #[serde(with = "path_bytes")]
    path: PathBuf,
    pub(crate) length: u64,
    written: Written,
}

/// When a file was last written: seconds since 1970, and nanoseconds.
type Written = (i64, i64);

impl Indexed {
    /// Opens a file that is to be indexed.
    pub(crate) fn open(path: &Path) -> Result<(Self, File)> {
        let (file, metadata) = open(path).map_err(|error| unreadable(path, &error))?;
        Ok((Self { path: path.to_owned(), length: metadata.len(), written: written(&metadata) }, file))
    }

    /// Opens the file again, if it was not written since.
    pub(crate) fn reopen(&self) -> Result<File> {
        let (file, metadata) = open(self.path()).map_err(|error| unreadable(&self.path, &error))?;
        self.compare(&metadata)?;
        Ok(file)
    }

    /// Whether an open file was written since it was indexed: asked after reading, as what was read may be of both.
    ///
    /// # Errors
    /// `L0702` if it was.
    pub(crate) fn unchanged(&self, file: &File) -> Result<()> {
        let metadata = file.metadata().map_err(|error| unreadable(&self.path, &error))?;
        self.compare(&metadata)
    }

    fn compare(&self, metadata: &Metadata) -> Result<()> {
        let (length, written) = (metadata.len(), written(metadata));
        if (length, written) == (self.length, self.written) {
            return Ok(());
        }
        let state = |length: u64, (seconds, nanoseconds): Written| {
            format!("{length} bytes, written {seconds}.{nanoseconds:09} s after 1970")
        };
        Err(Error::new(FILE_CHANGED, "a file has changed since it was indexed")
            .at("file", self.path().display())
            .at("when opened", state(self.length, self.written))
            .at("now", state(length, written))
            .hint("keep the data as it is during a run; open the data set again after changing it"))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Fills `room` from `offset` of the open file on.
    pub(crate) fn read_at(&self, file: &File, room: &mut [u8], offset: u64) -> Result<()> {
        file.read_exact_at(room, offset).map_err(|error| {
            let unreadable = unreadable(&self.path, &error).at("offset", offset);
            self.unchanged(file).err().unwrap_or(unreadable)
        })
    }

    /// Memory for `length` bytes of the file.
    pub(crate) fn room(&self, length: u64) -> Result<Vec<u8>> {
        // Not more than the file had, whatever an index says.
        let length = usize::try_from(length.min(self.length)).unwrap_or(usize::MAX);
        try_zeroed_vec(length).map_err(|()| {
            unreadable(&self.path, &io::ErrorKind::OutOfMemory.into())
                .at("needed", format_args!("{length} bytes"))
        })
    }
}

/// An indexed file that is read at places, by many threads at once; opened when it is first read in a process.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Reader {
    indexed: Indexed,
    #[serde(skip)]
    file: OnceLock<File>,
}

impl Reader {
    pub(crate) fn new(indexed: Indexed) -> Self {
        Self { indexed, file: OnceLock::new() }
    }

    pub(crate) fn indexed(&self) -> &Indexed {
        &self.indexed
    }

    /// Fills `room` from `offset` on. Whoever has read asks whether it is [`unchanged`](Self::unchanged).
    pub(crate) fn read_at(&self, room: &mut [u8], offset: u64) -> Result<()> {
        self.indexed.read_at(self.file()?, room, offset)
    }

    /// The bytes from `offset` on, as they were when the file was indexed.
    pub(crate) fn bytes_at(&self, offset: u64, length: u64) -> Result<Vec<u8>> {
        let mut bytes = self.indexed.room(length)?;
        self.read_at(&mut bytes, offset)?;
        self.unchanged()?;
        Ok(bytes)
    }

    /// As [`Indexed::unchanged`].
    pub(crate) fn unchanged(&self) -> Result<()> {
        self.indexed.unchanged(self.file()?)
    }

    fn file(&self) -> Result<&File> {
        match self.file.get() {
            Some(file) => Ok(file),
            // Two threads may both open it; one of the two is closed.
            None => {
                let file = self.indexed.reopen()?;
                Ok(self.file.get_or_init(|| file))
            }
        }
    }
}

impl Clone for Reader {
    fn clone(&self) -> Self {
        Self::new(self.indexed.clone())
    }
}

/// Opens a regular file: a pipe may be waited for without end, and a device may have no end.
pub(crate) fn open(path: &Path) -> io::Result<(File, Metadata)> {
    let regular = |metadata: Metadata| match metadata.file_type() {
        kind if kind.is_file() => Ok(metadata),
        kind if kind.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is a pipe, a socket or a device, and only files can be read from any place",
        )),
    };
    // First, as to open a pipe is to wait for its other end.
    regular(fs::metadata(path)?)?;
    let file = File::open(path)?;
    let metadata = regular(file.metadata()?)?;
    Ok((file, metadata))
}

fn written(metadata: &Metadata) -> Written {
    (metadata.mtime(), metadata.mtime_nsec())
}

/// Writes a file in its place, at a time that is another one also on a coarse clock.
#[cfg(test)]
pub(crate) fn overwrite(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap();
    let file = File::options().write(true).open(path).unwrap();
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(1);
    file.set_modified(later).unwrap();
}

/// Writes a file anew. To shorten one in place makes some file systems wait for the disk.
#[cfg(test)]
pub(crate) fn rewrite(path: &Path, bytes: &[u8]) {
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}

/// Damaged copies of a file: cut anywhere, or with a few bytes changed. The same each time, for one `LEYDEN_SEED`.
#[cfg(test)]
pub(crate) fn damaged(bytes: &[u8], cases: u64) -> impl Iterator<Item = Vec<u8>> {
    let seed: u64 =
        std::env::var("LEYDEN_SEED").map_or(0, |seed| seed.parse().expect("LEYDEN_SEED is a number"));
    (0..cases).map(move |case| {
        let mut rng = crate::rng::SampleRng::new(seed * cases + case);
        let mut copy = bytes.to_vec();
        if case % 3 == 0 {
            copy.truncate(rng.below(bytes.len() as u64) as usize);
        }
        let changes = if case % 3 == 0 { 0 } else { 1 + rng.below(8) };
        for _ in 0..changes {
            let place = rng.below(copy.len() as u64) as usize;
            copy[place] = rng.next_u64() as u8;
        }
        copy
    })
}

/// The error of a file or folder that the system does not let read.
pub(crate) fn unreadable(path: &Path, error: &io::Error) -> Error {
    let what = if path.is_dir() { "a folder cannot be read" } else { "a file cannot be read" };
    Error::new(FILE_UNREADABLE, what)
        .at("file", path.display())
        .because(error)
        .hint("check the path and its permissions")
}

/// Which program compressed a file that starts so, if one did.
pub(crate) fn compressed_by(file: &File) -> io::Result<Option<&'static str>> {
    let mut start = [0; 10];
    file.read_at(&mut start, 0)?;
    Ok(match start {
        [0x1f, 0x8b, ..] => Some("gzip"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some("zstd"),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some("xz"),
        // The digit is the level; the block's mark is there as three letters may well begin a table.
        [b'B', b'Z', b'h', b'1'..=b'9', b'1', b'A', b'Y', b'&', b'S', b'Y'] => Some("bzip2"),
        _ => None,
    })
}

/// An error whose text is all of it, for serde.
pub(crate) struct Report(pub(crate) Error);

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Many short byte strings in one, for indices: file names, keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Names {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Names {
    pub(crate) fn push(&mut self, name: &[u8]) {
        self.bytes.extend_from_slice(name);
        self.ends.push(self.bytes.len());
    }

    pub(crate) fn get(&self, index: usize) -> &[u8] {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start..self.ends[index]]
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }
}

/// A path as serde's data: its bytes, as a path need not be UTF-8. For `#[serde(with = "path_bytes")]` on a `PathBuf`.
pub(crate) mod path_bytes {
    use super::{Deserialize, Deserializer, OsStr, Path, PathBuf, Serialize, Serializer};
    use std::os::unix::ffi::OsStrExt as _;

    pub(crate) fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
        path.as_os_str().as_bytes().serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
        Vec::<u8>::deserialize(deserializer).map(|bytes| OsStr::from_bytes(&bytes).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    #[test]
    fn pipes_and_devices_are_refused_without_waiting_for_them() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe.jpg");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        for path in [pipe, PathBuf::from("/dev/zero")] {
            let (done, opened) = mpsc::channel();
            std::thread::spawn({
                let path = path.clone();
                move || done.send(Indexed::open(&path).map(|_| ()))
            });
            let error = opened.recv_timeout(Duration::from_secs(30)).expect("it does not wait").unwrap_err();
            assert_eq!((error.code(), error.place("file")), (FILE_UNREADABLE, path.to_str()));
            assert!(error.reasons()[0].starts_with("it is a pipe, a socket or a device"), "{error:?}");
        }
        assert_eq!(Indexed::open(dir.path()).unwrap_err().what(), "a folder cannot be read");
    }

    #[test]
    fn a_file_of_the_same_length_that_was_written_again_is_another_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        fs::write(&path, "before").unwrap();
        let reader = Reader::new(Indexed::open(&path).unwrap().0);
        assert_eq!(reader.bytes_at(0, 6).unwrap(), b"before");
        overwrite(&path, b"after!");
        // The one has the file open, the other opens it.
        for reader in [&reader, &reader.clone()] {
            let error = reader.bytes_at(0, 6).unwrap_err();
            assert_eq!(error.code(), FILE_CHANGED);
            assert!(error.place("now") != error.place("when opened"), "{error:?}");
        }
    }

    #[test]
    fn what_does_not_fit_into_memory_is_an_error() {
        let indexed = Indexed { path: "huge".into(), length: 1 << 60, written: (0, 0) };
        let error = indexed.room(1 << 61).unwrap_err();
        assert_eq!(
            (error.code(), error.place("needed")),
            (FILE_UNREADABLE, Some("1152921504606846976 bytes"))
        );
    }
}
