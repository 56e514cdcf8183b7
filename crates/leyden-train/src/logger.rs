//! Loggers: rows of scalars into files that other programs read.
//!
//! A logger does not aggregate, reduce over ranks or choose when to log; the Trainer hands it finished rows, on rank
//! 0 only. It may be used for several runs, one after the other: [`start`](Logger::start) opens,
//! [`finalize`](Logger::finalize) closes. One process writes a run folder at a time.

mod csv;
mod jsonl;
mod tensorboard;

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use leyden_process::{Code, Error, Result, exit};

pub use csv::CsvLogger;
pub use jsonl::JsonlLogger;
pub use tensorboard::TensorBoardLogger;

/// One row of scalars.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// The epoch that was running, from 0.
    pub epoch: u64,
    /// The number of optimizer steps done.
    pub step: u64,
    /// Names and values; a name at most once. A row usually has the names of the row before, in the same order:
    /// loggers are fast then and right always.
    pub scalars: &'a [(&'a str, f64)],
}

/// Writes rows somewhere. All loggers here buffer, so that a row costs well under a microsecond; a process that is
/// killed loses the rows since the last [`flush`](Logger::flush).
pub trait Logger: Send {
    /// The name in messages and configurations: `csv`, `jsonl`, `tensorboard`.
    fn name(&self) -> &str;

    /// Opens the logger's files in `dir`, which exists; called once per run before the first row. `config` is what
    /// the run was configured with.
    ///
    /// # Errors
    /// [`LOG_NOT_WRITTEN`]; [`FOREIGN_LOG`] if a file is there that this logger cannot continue.
    fn start(&mut self, dir: &Path, config: &serde_json::Value) -> Result<()>;

    /// Writes a row.
    ///
    /// # Errors
    /// [`LOGGER_CLOSED`] outside a run, [`LOG_NOT_WRITTEN`], and [`BAD_SCALAR_NAME`] where names are columns or keys.
    fn log(&mut self, row: &Row<'_>) -> Result<()>;

    /// Hands everything logged so far to the kernel: it survives the end of this process, however that comes.
    ///
    /// # Errors
    /// [`LOG_NOT_WRITTEN`].
    fn flush(&mut self) -> Result<()>;

    /// Ends the run, which is `"finished"`, `"failed"` or `"interrupted"`: flushes and closes. A later
    /// [`log`](Logger::log) is an error until the next [`start`](Logger::start).
    ///
    /// # Errors
    /// [`LOG_NOT_WRITTEN`]; the files are closed all the same.
    fn finalize(&mut self, status: &str) -> Result<()>;
}

/// A file that grows by whole records, and whose errors name it.
#[derive(Debug)]
struct LogFile {
    path: PathBuf,
    out: BufWriter<File>,
}

impl LogFile {
    fn new(path: PathBuf, file: File) -> Self {
        Self { path, out: BufWriter::with_capacity(BUFFER_BYTES, file) }
    }

    /// Opens or creates `path` for continuing it, without what follows the last newline: the record that a killed
    /// process has left half-written.
    fn continue_lines(path: PathBuf) -> Result<Self> {
        let open = || {
            let mut file = OpenOptions::new().read(true).append(true).create(true).open(&path)?;
            let len = file.metadata()?.len();
            let whole = whole_lines(&mut file, len)?;
            if whole < len {
                file.set_len(whole)?;
            }
            Ok(file)
        };
        let file = open().map_err(|error| not_written(&path, &error))?;
        Ok(Self::new(path, file))
    }

    /// Opens or creates `path` for whole lines, without what it holds.
    fn start_lines(path: PathBuf) -> Result<Self> {
        let file = File::create(&path).map_err(|error| not_written(&path, &error))?;
        Ok(Self::new(path, file))
    }

    /// Takes a record; on an error it is not taken at all as long as it fits the buffer.
    fn write(&mut self, record: &[u8]) -> Result<()> {
        self.out.write_all(record).map_err(|error| not_written(&self.path, &error))
    }

    fn flush(&mut self) -> Result<()> {
        self.out.flush().map_err(|error| not_written(&self.path, &error))
    }

    /// Flushes, and closes without a second attempt at what could not be written.
    fn close(mut self) -> Result<()> {
        let flushed = self.flush();
        let (_file, _unwritten) = self.out.into_parts();
        flushed
    }
}

/// How many of the first `len` bytes are whole lines.
fn whole_lines(file: &mut File, len: u64) -> io::Result<u64> {
    let mut chunk = vec![0; BUFFER_BYTES];
    let mut end = len;
    while end > 0 {
        let begin = end.saturating_sub(BUFFER_BYTES as u64);
        let chunk = &mut chunk[..(end - begin) as usize];
        file.seek(SeekFrom::Start(begin))?;
        file.read_exact(chunk)?;
        if let Some(newline) = chunk.iter().rposition(|&byte| byte == b'\n') {
            return Ok(begin + newline as u64 + 1);
        }
        end = begin;
    }
    Ok(0)
}

/// The names of the row before, to see at a glance that this one has the same.
#[derive(Debug, Default)]
struct Names(Vec<String>);

impl Names {
    /// The names of `row`.
    ///
    /// # Errors
    /// [`BAD_SCALAR_NAME`] for a name that the file gives to something else, or that is there twice.
    fn of(row: &Row<'_>, file: &Path) -> Result<Self> {
        for (index, (name, _)) in row.scalars.iter().enumerate() {
            if RESERVED.contains(name) {
                return Err(bad_name(name, row, file, "every row has its epoch and step under these names"));
            }
            if row.scalars[..index].iter().any(|(earlier, _)| earlier == name) {
                return Err(bad_name(name, row, file, "one row has two values of this name"));
            }
        }
        Ok(Self(row.scalars.iter().map(|(name, _)| (*name).to_owned()).collect()))
    }

    fn are_those_of(&self, row: &Row<'_>) -> bool {
        self.0.len() == row.scalars.len()
            && self.0.iter().zip(row.scalars).all(|(known, (name, _))| known == name)
    }
}

/// Appends a number in the shortest form that reads back to the same bits; `NaN`, `inf`, `-inf`.
fn push_number(line: &mut String, value: f64) {
    // `Debug` has an exponent for large and small numbers; `Display` would write 1e300 in 301 digits.
    write!(line, "{value:?}").expect("a String takes every character");
}

fn push_integer(line: &mut String, value: u64) {
    write!(line, "{value}").expect("a String takes every character");
}

fn bad_name(name: &str, row: &Row<'_>, file: &Path, why: &str) -> Error {
    Error::new(BAD_SCALAR_NAME, format!("a scalar cannot be logged as `{name}`"))
        .at("file", file.display())
        .at("step", row.step)
        .why(why)
        .hint("log it under another name, such as `train/loss`")
}

fn closed(logger: &str) -> Error {
    Error::new(LOGGER_CLOSED, format!("logger `{logger}` got a row outside a run"))
        .why("a logger writes between `start` and `finalize`")
        .hint("log before the run is over, or start the logger again")
}

fn foreign(path: &Path, why: impl Into<String>) -> Error {
    Error::new(FOREIGN_LOG, "a file is in the way of a logger, and is not one that it can continue")
        .at("file", path.display())
        .why(why.into())
        .hint("move the file away, or log into another folder")
}

fn not_written(path: &Path, error: &io::Error) -> Error {
    Error::new(LOG_NOT_WRITTEN, "a log file cannot be written")
        .at("file", path.display())
        .because(error)
        .hint(cure(error.kind()))
}

fn cure(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "free space on its file system, or put the run folder on another one"
        }
        ErrorKind::PermissionDenied => {
            "give this user the right to write there, or choose another run folder"
        }
        ErrorKind::ReadOnlyFilesystem => "choose a run folder on a file system that is mounted for writing",
        ErrorKind::NotFound => "create the run folder first, and do not remove it during the run",
        ErrorKind::IsADirectory => "move the folder of that name away",
        _ => "see that the file system is mounted, reachable and writable",
    }
}

/// Some hundred rows: few enough system calls, and little to lose.
const BUFFER_BYTES: usize = 32 * 1024;

/// Names that the CSV columns and JSON keys give to the row itself.
const RESERVED: [&str; 2] = ["epoch", "step"];

/// `T0401`: a log file cannot be opened or written.
pub const LOG_NOT_WRITTEN: Code = Code::new("T0401", exit::TRAINING_FAILED);
/// `T0402`: a file of a log's name is there and is not one.
pub const FOREIGN_LOG: Code = Code::new("T0402", exit::CONFIGURATION);
/// `T0403`: a row was logged before a run's start or after its end.
pub const LOGGER_CLOSED: Code = Code::new("T0403", exit::TRAINING_FAILED);
/// `T0404`: a scalar's name is reserved, or is twice in one row.
pub const BAD_SCALAR_NAME: Code = Code::new("T0404", exit::CONFIGURATION);

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn all() -> [Box<dyn Logger>; 3] {
        [Box::new(CsvLogger::new()), Box::new(JsonlLogger::new()), Box::new(TensorBoardLogger::new())]
    }

    const ROW: Row<'_> = Row { epoch: 0, step: 1, scalars: &[("train/loss", 0.5)] };

    #[test]
    fn a_row_outside_a_run_is_an_error_that_names_the_logger() {
        for mut logger in all() {
            let dir = tempfile::tempdir().unwrap();
            for _ in 0..2 {
                let error = logger.log(&ROW).unwrap_err();
                assert_eq!(error.code(), LOGGER_CLOSED);
                assert_eq!(error.what(), format!("logger `{}` got a row outside a run", logger.name()));
                logger.start(dir.path(), &Value::Null).unwrap();
                logger.log(&ROW).unwrap();
                logger.finalize("finished").unwrap();
            }
        }
    }

    #[test]
    fn a_missing_run_folder_is_named_with_its_cure() {
        for mut logger in all() {
            let dir = tempfile::tempdir().unwrap();
            let error = logger.start(&dir.path().join("gone"), &Value::Null).unwrap_err();
            assert_eq!(error.code(), LOG_NOT_WRITTEN);
            assert!(error.place("file").unwrap().contains("/gone/"), "{error:?}");
            assert!(error.reasons()[0].contains("No such file or directory"), "{error:?}");
            assert!(error.hints()[0].contains("create the run folder"), "{error:?}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_named_with_its_cure_at_flush_and_during_the_run() {
        for (mut logger, file) in [
            (Box::new(CsvLogger::new()) as Box<dyn Logger>, "metrics.csv"),
            (Box::new(JsonlLogger::new()), "metrics.jsonl"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join(file);
            std::os::unix::fs::symlink("/dev/full", &path).unwrap();
            logger.start(dir.path(), &Value::Null).unwrap();
            logger.log(&ROW).unwrap();
            let expected = format!(
                "error[T0401]: a log file cannot be written\n  file  {}\n  why: No space left on device (os error \
                 28)\n  fix: free space on its file system, or put the run folder on another one",
                path.display()
            );
            assert_eq!(format!("{:?}", logger.flush().unwrap_err()), expected);
            let error = (0..BUFFER_BYTES).find_map(|_| logger.log(&ROW).err()).unwrap();
            assert_eq!(format!("{error:?}"), expected);
            assert_eq!(format!("{:?}", logger.finalize("failed").unwrap_err()), expected);
            assert_eq!(logger.log(&ROW).unwrap_err().code(), LOGGER_CLOSED);
        }
    }

    #[test]
    fn flushed_rows_are_on_disk_while_the_run_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        for (mut logger, file) in [
            (Box::new(CsvLogger::new()) as Box<dyn Logger>, "metrics.csv"),
            (Box::new(JsonlLogger::new()), "metrics.jsonl"),
        ] {
            logger.start(dir.path(), &Value::Null).unwrap();
            logger.log(&ROW).unwrap();
            let read = || std::fs::read_to_string(dir.path().join(file)).unwrap();
            assert_eq!(read(), "");
            logger.flush().unwrap();
            assert!(read().ends_with("0.5\n") || read().ends_with("0.5}\n"), "{}", read());
        }
    }

    #[test]
    fn reserved_and_doubled_names_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut loggers = all();
        for logger in &mut loggers[..2] {
            logger.start(dir.path(), &Value::Null).unwrap();
            let reserved = Row { scalars: &[("step", 1.0)], ..ROW };
            let error = logger.log(&reserved).unwrap_err();
            assert_eq!(
                (error.code(), error.what()),
                (BAD_SCALAR_NAME, "a scalar cannot be logged as `step`")
            );
            let doubled = Row { scalars: &[("a", 1.0), ("b", 1.0), ("a", 2.0)], ..ROW };
            let error = logger.log(&doubled).unwrap_err();
            assert_eq!(error.reasons(), ["one row has two values of this name"]);
            logger.log(&ROW).unwrap();
        }
    }

    /// A torn line may be longer than one read.
    #[test]
    fn finds_the_end_of_the_last_whole_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lines");
        for (whole, torn) in [("", 0), ("", 10), ("a\nb\n", 0), ("a\nb\n", 100_000), ("a\n", BUFFER_BYTES)] {
            std::fs::write(&path, whole.to_owned() + &"x".repeat(torn)).unwrap();
            LogFile::continue_lines(path.clone()).unwrap().close().unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), whole);
        }
    }
}
