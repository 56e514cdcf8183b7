//! `metrics.jsonl`: one JSON object a line.
//!
//! It has no header and keeps nothing in memory; a run that goes on in the same folder appends.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use leyden_process::Result;
use serde_json::Value;

use super::{LogFile, Logger, Names, Row, closed, foreign, not_written, push_integer, push_number};
use crate::metric::exact::non_finite;

/// Writes `metrics.jsonl`: `{"epoch":0,"step":1,"train/loss":0.5}` and a newline for each row.
///
/// Numbers read back to the same bits; NaN and the infinities, which JSON lacks, are the strings `"NaN"`,
/// `"Infinity"` and `"-Infinity"`. Continuing an existing file cuts a line that a killed process left half-written.
/// A resumed run repeats the steps after its checkpoint: the last row of a step counts.
#[derive(Debug, Default)]
pub struct JsonlLogger {
    lines: Option<Lines>,
}

impl JsonlLogger {
    /// A logger that is not yet writing.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Logger for JsonlLogger {
    fn name(&self) -> &str {
        "jsonl"
    }

    fn start(&mut self, dir: &Path, _config: &Value) -> Result<()> {
        let path = dir.join("metrics.jsonl");
        check_first_byte(&path)?;
        let file = LogFile::continue_lines(path)?;
        self.lines = Some(Lines { file, names: Names::default(), keys: Vec::new(), line: String::new() });
        Ok(())
    }

    fn log(&mut self, row: &Row<'_>) -> Result<()> {
        self.lines.as_mut().ok_or_else(|| closed("jsonl"))?.log(row)
    }

    fn flush(&mut self) -> Result<()> {
        self.lines.as_mut().map_or(Ok(()), |lines| lines.file.flush())
    }

    fn finalize(&mut self, _status: &str) -> Result<()> {
        self.lines.take().map_or(Ok(()), |lines| lines.file.close())
    }
}

/// The open file.
#[derive(Debug)]
struct Lines {
    file: LogFile,
    names: Names,
    /// For each of `names`, as JSON: `,"name":`.
    keys: Vec<String>,
    line: String,
}

impl Lines {
    fn log(&mut self, row: &Row<'_>) -> Result<()> {
        if !self.names.are_those_of(row) {
            self.names = Names::of(row, &self.file.path)?;
            self.keys = row.scalars.iter().map(|(name, _)| format!(",{}:", Value::from(*name))).collect();
        }
        self.format(row);
        self.file.write(self.line.as_bytes())
    }

    fn format(&mut self, row: &Row<'_>) {
        let line = &mut self.line;
        line.clear();
        line.push_str("{\"epoch\":");
        push_integer(line, row.epoch);
        line.push_str(",\"step\":");
        push_integer(line, row.step);
        for (key, &(_, value)) in self.keys.iter().zip(row.scalars) {
            line.push_str(key);
            match non_finite(value) {
                None => push_number(line, value),
                Some(name) => line.extend(["\"", name, "\""]),
            }
        }
        line.push_str("}\n");
    }
}

/// Refuses to touch a file that is not of objects.
fn check_first_byte(path: &Path) -> Result<()> {
    let mut first = [0];
    let read = match File::open(path) {
        Ok(file) if file.metadata().is_ok_and(|metadata| metadata.is_file()) => (&file).read(&mut first),
        _ => return Ok(()),
    };
    match read {
        Ok(1) if first[0] != b'{' => {
            Err(foreign(path, format!("it begins with byte {:#04x}, a line of JSON with `{{`", first[0])))
        }
        Ok(_) => Ok(()),
        Err(error) => Err(not_written(path, &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logger::FOREIGN_LOG;

    fn log(dir: &Path, rows: &[(u64, &[(&str, f64)])]) -> String {
        let mut logger = JsonlLogger::new();
        logger.start(dir, &Value::Null).unwrap();
        for &(step, scalars) in rows {
            logger.log(&Row { epoch: 7, step, scalars }).unwrap();
        }
        logger.finalize("finished").unwrap();
        std::fs::read_to_string(dir.join("metrics.jsonl")).unwrap()
    }

    #[test]
    fn writes_one_object_a_line_that_reads_back_exactly() {
        let dir = tempfile::tempdir().unwrap();
        let text =
            log(dir.path(), &[(1, &[("train/loss", 0.1 + 0.2), ("big", 1e300)]), (2, &[("tiny", 5e-324)])]);
        assert_eq!(
            text,
            "{\"epoch\":7,\"step\":1,\"train/loss\":0.30000000000000004,\"big\":1e300}\n\
             {\"epoch\":7,\"step\":2,\"tiny\":5e-324}\n"
        );
        let first: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!(first["train/loss"].as_f64(), Some(0.1 + 0.2));
    }

    #[test]
    fn names_what_json_has_no_number_for_and_quotes_names() {
        let dir = tempfile::tempdir().unwrap();
        let (inf, nan) = (f64::INFINITY, f64::NAN);
        let text = log(dir.path(), &[(1, &[("a\"b\n", nan), ("c", inf), ("d", -inf), ("e", -0.0)])]);
        let expected = r#"{"epoch":7,"step":1,"a\"b\n":"NaN","c":"Infinity","d":"-Infinity","e":-0.0}"#;
        assert_eq!(text.trim_end(), expected);
    }

    #[test]
    fn continues_a_file_after_its_last_whole_line() {
        let dir = tempfile::tempdir().unwrap();
        let whole = log(dir.path(), &[(1, &[("a", 1.0)])]);
        std::fs::write(dir.path().join("metrics.jsonl"), whole.clone() + "{\"epoch\":7,\"st").unwrap();
        assert_eq!(log(dir.path(), &[(2, &[("a", 2.0)])]), whole + "{\"epoch\":7,\"step\":2,\"a\":2.0}\n");
    }

    #[test]
    fn leaves_another_program_s_file_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        std::fs::write(&path, "notes").unwrap();
        let error = JsonlLogger::new().start(dir.path(), &Value::Null).unwrap_err();
        assert_eq!(error.code(), FOREIGN_LOG);
        assert_eq!(error.reasons(), ["it begins with byte 0x6e, a line of JSON with `{`"]);
        assert_eq!(std::fs::read_to_string(path).unwrap(), "notes");
    }
}
