//! Where what ranks above 0 print goes.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use leyden_process::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::codes::LAUNCH_LOGS;
use crate::dump;

/// A folder with a file for each rank above 0.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Logs {
    pub(super) folder: PathBuf,
    temporary: bool,
}

impl Logs {
    /// Makes the folder; by default a temporary one, which no other user can read.
    pub(super) fn make(folder: Option<&Path>) -> Result<Self> {
        if let Some(folder) = folder {
            fs::create_dir_all(folder).map_err(|error| refused(folder, &error))?;
            return Ok(Self { folder: folder.to_owned(), temporary: false });
        }
        let mut number = 0;
        loop {
            let folder = std::env::temp_dir().join(format!("leyden-{}-{number}", std::process::id()));
            match fs::DirBuilder::new().mode(0o700).create(&folder) {
                Ok(()) => return Ok(Self { folder, temporary: true }),
                // Of an earlier process of this number.
                Err(error) if error.kind() == ErrorKind::AlreadyExists && number < 1000 => number += 1,
                Err(error) => return Err(refused(&folder, &error)),
            }
        }
    }

    /// The file of a rank.
    pub(super) fn of(&self, rank: usize) -> PathBuf {
        self.folder.join(format!("rank-{rank}.log"))
    }

    /// Removes what is temporary and of no use: what was printed counts if a rank has `failed`, records of ranks if errors have
    /// `named` them. Gives what is left, in words.
    pub(super) fn put_away(&self, failed: bool, named: bool) -> Option<&'static str> {
        if !self.temporary {
            return None;
        }
        let is_record = |file: &fs::DirEntry| file.file_name().as_bytes().ends_with(dump::ENDING.as_bytes());
        let files = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let (records, logs): (Vec<_>, Vec<_>) = files.partition(is_record);
        let printed = logs.iter().any(|log| log.metadata().is_ok_and(|data| data.len() > 0));
        if failed && printed {
            Some("what the ranks printed")
        } else if named && !records.is_empty() {
            Some("a file with the records of all ranks")
        } else {
            let _ = fs::remove_dir_all(&self.folder);
            None
        }
    }
}

/// The system does not let us write there.
pub(super) fn refused(path: &Path, error: &io::Error) -> Error {
    Error::new(LAUNCH_LOGS, "there is no place for what the ranks print")
        .at("path", path.display())
        .because(error)
        .hint("give a folder that can be written to: `LaunchOptions::folder`, or the variable `TMPDIR`")
}
