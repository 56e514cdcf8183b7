//! What readers of files share: reading at a place, noticing that a file has changed, and paths that need not be text.

pub(crate) mod csv;
#[cfg(feature = "image")]
pub(crate) mod image_folder;
pub(crate) mod safetensors;
pub(crate) mod tar;

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use leyden_process::{Error, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::codes::{FILE_CHANGED, FILE_UNREADABLE};

/// A file that was indexed: its path, and its length then. It is opened anew in each process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Indexed {
    #[serde(with = "path_bytes")]
    path: PathBuf,
    pub(crate) length: u64,
}

impl Indexed {
    /// Opens a file that is to be indexed.
    pub(crate) fn open(path: &Path) -> Result<(Self, File)> {
        let (file, length) = open(path)?;
        Ok((Self { path: path.to_owned(), length }, file))
    }

    /// Opens the file again, if it is as long as it was.
    pub(crate) fn reopen(&self) -> Result<File> {
        let (file, length) = open(self.path())?;
        if length == self.length {
            return Ok(file);
        }
        Err(Error::new(FILE_CHANGED, "a file has changed since it was indexed")
            .at("file", self.path().display())
            .at("when opened", format_args!("{} bytes", self.length))
            .at("now", format_args!("{length} bytes"))
            .hint("keep the data as it is during a run; open the data set again after changing it"))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Fills `room` from `offset` of the open file on.
    pub(crate) fn read_at(&self, file: &File, room: &mut [u8], offset: u64) -> Result<()> {
        file.read_exact_at(room, offset).map_err(|error| unreadable(&self.path, &error).at("offset", offset))
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

    /// Fills `room` from `offset` on.
    pub(crate) fn read_at(&self, room: &mut [u8], offset: u64) -> Result<()> {
        let file = match self.file.get() {
            Some(file) => file,
            // Two threads may both open it; one of the two is closed.
            None => {
                let file = self.indexed.reopen()?;
                self.file.get_or_init(|| file)
            }
        };
        self.indexed.read_at(file, room, offset)
    }

    /// The bytes from `offset` on.
    pub(crate) fn bytes_at(&self, offset: u64, length: u64) -> Result<Vec<u8>> {
        // Not more than the file had, whatever an index says.
        let mut bytes = vec![0; length.min(self.indexed.length) as usize];
        self.read_at(&mut bytes, offset)?;
        Ok(bytes)
    }
}

impl Clone for Reader {
    fn clone(&self) -> Self {
        Self::new(self.indexed.clone())
    }
}

fn open(path: &Path) -> Result<(File, u64)> {
    let of = |error: io::Error| unreadable(path, &error);
    let file = File::open(path).map_err(of)?;
    let metadata = file.metadata().map_err(of)?;
    if metadata.is_dir() {
        return Err(of(io::ErrorKind::IsADirectory.into()));
    }
    Ok((file, metadata.len()))
}

/// Writes a file anew. To shorten one in place makes some file systems wait for the disk.
#[cfg(test)]
pub(crate) fn rewrite(path: &Path, bytes: &[u8]) {
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, bytes).unwrap();
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
