//! `metrics.csv`: a column for each name, a line for each row.
//!
//! It keeps no rows in memory: when a new name appears the file is rewritten with a wider header, which happens as
//! often as a run has kinds of rows (training, validation, test).

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};

use leyden_process::Result;
use serde_json::Value;

use super::{
    BUFFER_BYTES, LogFile, Logger, Names, Row, closed, foreign, not_written, push_integer, push_number,
};

/// Writes `metrics.csv` with the columns `epoch`, `step` and the names in the order in which they first appear.
///
/// Numbers read back to the same bits; the others are `NaN`, `inf` and `-inf`. A name that a row does not have is an
/// empty cell. A new column rewrites the file beside itself, syncs and renames it, so that a reader or a kill meets
/// the old file or the new one. An existing file is continued (a test run in the same folder, a resumed run), without
/// a line that a killed process left half-written; a resumed run repeats the steps after its checkpoint: the last row
/// of a step counts.
#[derive(Debug, Default)]
pub struct CsvLogger {
    table: Option<Table>,
}

impl CsvLogger {
    /// A logger that is not yet writing.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Logger for CsvLogger {
    fn name(&self) -> &str {
        "csv"
    }

    fn start(&mut self, dir: &Path, _config: &Value) -> Result<()> {
        self.table = Some(Table::open(dir.join("metrics.csv"))?);
        Ok(())
    }

    fn log(&mut self, row: &Row<'_>) -> Result<()> {
        self.table.as_mut().ok_or_else(|| closed("csv"))?.log(row)
    }

    fn flush(&mut self) -> Result<()> {
        self.table.as_mut().map_or(Ok(()), |table| table.file.flush())
    }

    fn finalize(&mut self, _status: &str) -> Result<()> {
        self.table.take().map_or(Ok(()), |table| table.file.close())
    }
}

/// The open file.
#[derive(Debug)]
struct Table {
    file: LogFile,
    header_written: bool,
    /// After `epoch` and `step`.
    columns: Vec<String>,
    names: Names,
    /// For each of `columns`, its place in a row with `names`, if it has one.
    cells: Vec<Option<usize>>,
    line: String,
}

impl Table {
    fn open(path: PathBuf) -> Result<Self> {
        let header = read_header(&path)?;
        let file =
            if header.is_some() { LogFile::continue_lines(path)? } else { LogFile::start_lines(path)? };
        let header_written = header.is_some();
        let columns = header.unwrap_or_default();
        let cells = vec![None; columns.len()];
        Ok(Self { file, header_written, columns, names: Names::default(), cells, line: String::new() })
    }

    fn log(&mut self, row: &Row<'_>) -> Result<()> {
        if !self.header_written || !self.names.are_those_of(row) {
            self.follow(row)?;
        }
        self.format(row);
        self.file.write(self.line.as_bytes())
    }

    /// Finds the columns of a row whose names are not those of the row before.
    fn follow(&mut self, row: &Row<'_>) -> Result<()> {
        let names = Names::of(row, &self.file.path)?;
        let mut columns = self.columns.clone();
        columns.extend(names.0.iter().filter(|name| !self.columns.contains(name)).cloned());
        if columns.len() > self.columns.len() || !self.header_written {
            self.widen(columns)?;
        }
        let place = |column: &String| names.0.iter().position(|name| name == column);
        self.cells = self.columns.iter().map(place).collect();
        self.names = names;
        Ok(())
    }

    /// Gives the file the header `columns`, which are those it has and some more.
    fn widen(&mut self, columns: Vec<String>) -> Result<()> {
        let header = header_of(&columns);
        if self.header_written {
            self.file.flush()?;
            let rewritten = rewrite(&self.file.path, &header, columns.len() - self.columns.len());
            self.file.out = rewritten.map_err(|error| {
                let beside = temporary(&self.file.path);
                // Half a copy would only fill the disk further; if it cannot be removed, the error is told anyway.
                let _ = fs::remove_file(&beside);
                not_written(&self.file.path, &error).at("rewriting", beside.display())
            })?;
        } else {
            self.file.write(header.as_bytes())?;
        }
        self.header_written = true;
        self.cells.resize(columns.len(), None);
        self.columns = columns;
        Ok(())
    }

    fn format(&mut self, row: &Row<'_>) {
        self.line.clear();
        push_integer(&mut self.line, row.epoch);
        self.line.push(',');
        push_integer(&mut self.line, row.step);
        for cell in &self.cells {
            self.line.push(',');
            if let Some(index) = *cell {
                push_number(&mut self.line, row.scalars[index].1);
            }
        }
        self.line.push('\n');
    }
}

/// Copies `path` with another header and `added` empty cells on each line, and puts the copy in its place.
fn rewrite(path: &Path, header: &str, added: usize) -> io::Result<BufWriter<File>> {
    let beside = temporary(path);
    let old = File::open(path)?;
    // A device has no length; what is read from it need not end.
    let len = old.metadata()?.len();
    let mut old = BufReader::with_capacity(BUFFER_BYTES, old.take(len));
    let mut new = BufWriter::with_capacity(BUFFER_BYTES, File::create(&beside)?);
    new.write_all(header.as_bytes())?;
    parse_header(&mut old)?;
    let end = ",".repeat(added) + "\n";
    let mut line = Vec::new();
    while old.read_until(b'\n', &mut line)? > 0 {
        new.write_all(line.trim_ascii_end())?;
        new.write_all(end.as_bytes())?;
        line.clear();
    }
    new.flush()?;
    new.get_ref().sync_all()?;
    fs::rename(&beside, path)?;
    Ok(new)
}

/// In the same folder, since a rename does not cross file systems; one process writes it, so one name is enough.
fn temporary(path: &Path) -> PathBuf {
    path.with_extension("csv.tmp")
}

fn header_of(columns: &[String]) -> String {
    let mut header = HEADER_START.to_owned();
    for name in columns {
        header.push(',');
        push_quoted(&mut header, name);
    }
    header.push('\n');
    header
}

/// Appends a name as RFC 4180 has it: quoted where it must be, quotes doubled.
fn push_quoted(header: &mut String, name: &str) {
    if name.contains([',', '"', '\n', '\r']) {
        header.extend(["\"", &name.replace('"', "\"\""), "\""]);
    } else {
        header.push_str(name);
    }
}

/// The names of an existing file's columns; `None` if there is no file or nothing whole in it.
fn read_header(path: &Path) -> Result<Option<Vec<String>>> {
    let Some(len) = fs::metadata(path).ok().filter(fs::Metadata::is_file).map(|metadata| metadata.len())
    else {
        return Ok(None);
    };
    let read = || parse_header(&mut BufReader::new(File::open(path)?.take(len)));
    match read().map_err(|error| not_written(path, &error))? {
        Header::Whole(mut names) if names.len() >= 2 && names[..2] == ["epoch", "step"] => {
            names.drain(..2);
            Ok(Some(names))
        }
        Header::Torn(text) if HEADER_START.starts_with(&text) || text.starts_with(HEADER_START) => Ok(None),
        Header::Whole(names) => {
            Err(foreign(path, format!("its header is `{}`, not `{HEADER_START}…`", names.join(","))))
        }
        Header::Torn(text) => {
            let begin: String = text.chars().take(40).collect();
            Err(foreign(path, format!("it begins with `{begin}`, not with `{HEADER_START}`")))
        }
    }
}

enum Header {
    Whole(Vec<String>),
    /// The file ended before the header did.
    Torn(String),
}

/// Reads up to the newline that ends the header: one inside quotes belongs to a name.
fn parse_header(text: &mut impl io::BufRead) -> io::Result<Header> {
    let mut raw = Vec::new();
    loop {
        let read = text.read_until(b'\n', &mut raw)?;
        let open_quote = raw.iter().filter(|&&byte| byte == b'"').count() % 2 == 1;
        if raw.ends_with(b"\n") && !open_quote {
            break;
        }
        if read == 0 {
            return Ok(Header::Torn(String::from_utf8_lossy(&raw).into_owned()));
        }
    }
    raw.pop();
    let header = String::from_utf8_lossy(&raw);
    Ok(Header::Whole(split_quoted(header.trim_end_matches('\r'))))
}

/// The cells of one line.
fn split_quoted(line: &str) -> Vec<String> {
    let mut cells = vec![String::new()];
    let mut quoted = false;
    let mut rest = line.chars().peekable();
    while let Some(c) = rest.next() {
        let cell = cells.last_mut().expect("there is one cell from the start");
        match c {
            '"' if quoted && rest.next_if_eq(&'"').is_some() => cell.push('"'),
            '"' => quoted = !quoted,
            ',' if !quoted => cells.push(String::new()),
            c => cell.push(c),
        }
    }
    cells
}

const HEADER_START: &str = "epoch,step";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logger::FOREIGN_LOG;

    type Rows<'a> = &'a [(u64, &'a [(&'a str, f64)])];

    fn log(dir: &Path, rows: Rows<'_>) -> String {
        let mut logger = CsvLogger::new();
        logger.start(dir, &Value::Null).unwrap();
        for &(step, scalars) in rows {
            logger.log(&Row { epoch: 3, step, scalars }).unwrap();
        }
        logger.finalize("finished").unwrap();
        fs::read_to_string(dir.join("metrics.csv")).unwrap()
    }

    #[test]
    fn a_new_column_widens_the_rows_before() {
        let dir = tempfile::tempdir().unwrap();
        let text = log(
            dir.path(),
            &[
                (1, &[("train/loss", 0.1 + 0.2), ("lr", 1e-7)]),
                (2, &[("train/loss", f64::NAN), ("lr", f64::INFINITY)]),
                (2, &[("val/loss", -1e300)]),
                (3, &[("lr", 0.5), ("train/loss", 3.0)]),
                (3, &[]),
            ],
        );
        assert_eq!(
            text,
            "epoch,step,train/loss,lr,val/loss\n3,1,0.30000000000000004,1e-7,\n3,2,NaN,inf,\n3,2,,,-1e300\n\
             3,3,3.0,0.5,\n3,3,,,\n"
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "the temporary file is gone");
    }

    #[test]
    fn a_later_run_continues_the_file_and_its_columns() {
        let dir = tempfile::tempdir().unwrap();
        log(dir.path(), &[(1, &[("a", 1.0)])]);
        log(dir.path(), &[]);
        log(dir.path(), &[(1, &[("a", 2.0)])]);
        let text = log(dir.path(), &[(1, &[("test/a", 3.0)])]);
        assert_eq!(text, "epoch,step,a,test/a\n3,1,1.0,\n3,1,2.0,\n3,1,,3.0\n");
    }

    #[test]
    fn awkward_names_are_quoted_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let names: [(&str, f64); 3] = [("a,b", 1.0), ("say \"x\"", 2.0), ("two\nlines", 3.0)];
        let first = log(dir.path(), &[(1, &names)]);
        assert_eq!(first, "epoch,step,\"a,b\",\"say \"\"x\"\"\",\"two\nlines\"\n3,1,1.0,2.0,3.0\n");
        let second = log(dir.path(), &[(2, &[names[2], ("new", 4.0)])]);
        let header = "epoch,step,\"a,b\",\"say \"\"x\"\"\",\"two\nlines\",new\n";
        assert_eq!(second, format!("{header}3,1,1.0,2.0,3.0,\n3,2,,,3.0,4.0\n"));
    }

    /// Whatever byte a process was killed at, the next run leaves whole lines with the same number of cells.
    #[test]
    fn a_torn_file_is_well_formed_again_wherever_it_was_cut() {
        let dir = tempfile::tempdir().unwrap();
        let whole = log(dir.path(), &[(1, &[("a", 1.25), ("x,\ny", 7.0)]), (2, &[("a", 2.5)])]);
        for cut in 0..=whole.len() {
            fs::write(dir.path().join("metrics.csv"), &whole[..cut]).unwrap();
            let text = log(dir.path(), &[(3, &[("x,\ny", 9.0)])]);
            let header_len = "epoch,step,a,\"x,\ny\"\n".len();
            let last_newline = whole[..cut].rfind('\n').map_or(0, |at| at + 1);
            let expected = if cut < header_len {
                "epoch,step,\"x,\ny\"\n3,3,9.0\n".to_owned()
            } else {
                whole[..last_newline].to_owned() + "3,3,,9.0\n"
            };
            assert_eq!(text, expected, "cut at {cut}");
        }
    }

    #[test]
    fn a_failed_rewrite_names_both_files_and_later_rows_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let (path, beside) = (dir.path().join("metrics.csv"), dir.path().join("metrics.csv.tmp"));
        fs::create_dir(&beside).unwrap();
        let mut logger = CsvLogger::new();
        logger.start(dir.path(), &Value::Null).unwrap();
        let mut log = |step, scalars: &[(&str, f64)]| logger.log(&Row { epoch: 0, step, scalars });
        log(1, &[("a", 1.0)]).unwrap();
        let expected = format!(
            "error[T0401]: a log file cannot be written\n  file       {}\n  rewriting  {}\n  why: Is a directory \
             (os error 21)\n  fix: move the folder of that name away",
            path.display(),
            beside.display()
        );
        assert_eq!(format!("{:?}", log(2, &[("b", 1.0)]).unwrap_err()), expected);
        log(3, &[]).unwrap();
        log(4, &[("a", 4.0)]).unwrap();
        fs::remove_dir(&beside).unwrap();
        log(5, &[("b", 5.0)]).unwrap();
        logger.finalize("finished").unwrap();
        let text = fs::read_to_string(path).unwrap();
        assert_eq!(text, "epoch,step,a,b\n0,1,1.0,\n0,3,,\n0,4,4.0,\n0,5,,5.0\n");
    }

    #[test]
    fn leaves_another_program_s_file_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.csv");
        for (text, why) in [
            ("step,loss\n1,2\n", "its header is `step,loss`, not `epoch,step…`"),
            ("half a header", "it begins with `half a header`, not with `epoch,step`"),
        ] {
            fs::write(&path, text).unwrap();
            let error = CsvLogger::new().start(dir.path(), &Value::Null).unwrap_err();
            assert_eq!(error.code(), FOREIGN_LOG);
            assert_eq!(error.reasons(), [why]);
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }
}
