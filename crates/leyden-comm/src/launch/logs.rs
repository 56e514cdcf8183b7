//! Where what ranks above 0 print goes: through a pipe each to the supervisor, which writes it to files. A rank whose stdout were
//! the file itself would die of a full disk, by the panic of `println!`.

use std::fs::{self, File};
use std::io::{self, ErrorKind, PipeReader, PipeWriter, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use leyden_process::lines::say;
use leyden_process::watch::readable;
use leyden_process::{Error, Result, threads};
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

    /// The file of a rank that has printed something.
    pub(super) fn printed(&self, rank: usize) -> Option<PathBuf> {
        let file = self.of(rank);
        fs::metadata(&file).is_ok_and(|data| data.len() > 0).then_some(file)
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

/// What writes the logs: ends when all ranks have closed their pipes.
pub(super) struct Writing(Receiver<()>);

impl Writing {
    /// Makes the files of ranks from 1 on and begins to write; gives what is to be the ranks' stdout.
    pub(super) fn start(logs: &Logs, size: usize) -> Result<(Self, Vec<PipeWriter>)> {
        let open = |rank| {
            let path = logs.of(rank);
            let failed = |error: io::Error| refused(&path, &error);
            let (pipe, stdout) = io::pipe().map_err(failed)?;
            let file = Some(File::create(&path).map_err(failed)?);
            Ok((Log { rank, path, pipe, file }, stdout))
        };
        let (logs, stdouts): (Vec<Log>, Vec<PipeWriter>) =
            (1..size).map(open).collect::<Result<Vec<_>>>()?.into_iter().unzip();
        let (ends, ended) = mpsc::channel();
        threads::start("leyden-logs", move || {
            write(logs);
            drop(ends);
        })?;
        Ok((Self(ended), stdouts))
    }

    /// Waits until all has been written. What a rank has started may hold its pipe: not for ever.
    pub(super) fn finish(&self) {
        const LAST_LINES: Duration = Duration::from_secs(1);
        // It sends nothing, and hangs up when it ends.
        let _ = self.0.recv_timeout(LAST_LINES);
    }
}

struct Log {
    rank: usize,
    path: PathBuf,
    pipe: PipeReader,
    /// `None` once it cannot be written.
    file: Option<File>,
}

fn write(mut logs: Vec<Log>) {
    /// Something always wakes it.
    const LOOK: Duration = Duration::from_secs(60);
    let mut buffer = vec![0; 64 << 10];
    while !logs.is_empty() {
        let pipes: Vec<_> = logs.iter().map(|log| log.pipe.as_fd()).collect();
        let mut ready = readable(&pipes, LOOK).into_iter();
        logs.retain_mut(|log| !ready.next().unwrap_or(false) || log.take(&mut buffer));
    }
}

impl Log {
    /// Writes what has come; whether more may come.
    fn take(&mut self, buffer: &mut [u8]) -> bool {
        let count = match self.pipe.read(buffer) {
            Ok(0) => return false,
            Ok(count) => count,
            Err(error) => return error.kind() == ErrorKind::Interrupted,
        };
        if let Some(error) = self.file.as_mut().and_then(|file| file.write_all(&buffer[..count]).err()) {
            self.file = None;
            let (rank, path) = (self.rank, self.path.display());
            say(&format!("what rank {rank} prints is lost from here on: {path} cannot be written: {error}"));
        }
        true
    }
}

/// The system does not let us write there.
pub(super) fn refused(path: &Path, error: &io::Error) -> Error {
    Error::new(LAUNCH_LOGS, "there is no place for what the ranks print")
        .at("path", path.display())
        .because(error)
        .hint("give a folder that can be written to: `LaunchOptions::folder`, or the variable `TMPDIR`")
}
