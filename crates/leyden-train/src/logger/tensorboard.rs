//! `events.out.tfevents.…`: the files that TensorBoard reads.
//!
//! The few protocol-buffer messages are encoded by hand: scalars, and the configuration as a text. No images,
//! histograms or graphs.

use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use leyden_process::{Error, Result};
use serde_json::Value;

use super::{LOG_NOT_WRITTEN, LogFile, Logger, Row, closed, not_written};

/// Writes `events.out.tfevents.<seconds>.<host>.<pid>.<n>`, a new file for each run; TensorBoard joins the files of a
/// folder.
///
/// One event a row, with every scalar as a `simple_value`: that is an `f32`, all that TensorBoard stores, so about 7
/// digits survive (the other loggers keep all). The step is the x-axis; the epoch has no place in an event and is not
/// written. The configuration is the text `config`, at step 0.
#[derive(Debug, Default)]
pub struct TensorBoardLogger {
    events: Option<Events>,
}

impl TensorBoardLogger {
    /// A logger that is not yet writing.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Logger for TensorBoardLogger {
    fn name(&self) -> &str {
        "tensorboard"
    }

    fn start(&mut self, dir: &Path, config: &Value) -> Result<()> {
        let file = create(dir, seconds())?;
        let mut events = Events { file, series: Vec::new(), summary: Vec::new(), record: Vec::new() };
        events.write(|event| push_bytes(event, 3, FILE_VERSION))?;
        if !config.is_null() {
            events.write_text("config", config)?;
        }
        self.events = Some(events);
        Ok(())
    }

    fn log(&mut self, row: &Row<'_>) -> Result<()> {
        self.events.as_mut().ok_or_else(|| closed("tensorboard"))?.log(row)
    }

    fn flush(&mut self) -> Result<()> {
        self.events.as_mut().map_or(Ok(()), |events| events.file.flush())
    }

    fn finalize(&mut self, _status: &str) -> Result<()> {
        self.events.take().map_or(Ok(()), |events| events.file.close())
    }
}

/// The open file.
#[derive(Debug)]
struct Events {
    file: LogFile,
    /// For each scalar of the row before: its name, and the bytes of its summary value up to the number itself.
    series: Vec<(String, Vec<u8>)>,
    summary: Vec<u8>,
    record: Vec<u8>,
}

impl Events {
    fn log(&mut self, row: &Row<'_>) -> Result<()> {
        self.series.resize_with(row.scalars.len(), Default::default);
        self.summary.clear();
        for ((known, prefix), &(name, value)) in self.series.iter_mut().zip(row.scalars) {
            if prefix.is_empty() || known != name {
                *prefix = value_prefix(name);
                name.clone_into(known);
            }
            self.summary.extend_from_slice(prefix);
            // The nearest f32; beyond its range, infinity.
            self.summary.extend_from_slice(&(value as f32).to_le_bytes());
        }
        let summary = std::mem::take(&mut self.summary);
        let written = self.write(|event| {
            push_tag(event, 2, VARINT);
            push_varint(event, row.step);
            push_bytes(event, 5, &summary);
        });
        self.summary = summary;
        written
    }

    /// `value` as a text of Markdown: indented JSON, which is shown as it is.
    fn write_text(&mut self, tag: &str, value: &Value) -> Result<()> {
        let text = format!("    {value:#}").replace('\n', "\n    ");
        let plugin = message(|plugin| push_bytes(plugin, 1, b"text"));
        let metadata = message(|metadata| push_bytes(metadata, 1, &plugin));
        let tensor = message(|tensor| {
            push_tag(tensor, 1, VARINT);
            push_varint(tensor, DT_STRING);
            push_bytes(tensor, 2, b""); // a shape of no dimensions: one string
            push_bytes(tensor, 8, text.as_bytes());
        });
        let value = message(|value| {
            push_bytes(value, 1, tag.as_bytes());
            push_bytes(value, 8, &tensor);
            push_bytes(value, 9, &metadata);
        });
        let summary = message(|summary| push_bytes(summary, 1, &value));
        self.write(|event| push_bytes(event, 5, &summary))
    }

    /// Writes an `Event` of now with what `fill` adds to it, as one record.
    fn write(&mut self, fill: impl FnOnce(&mut Vec<u8>)) -> Result<()> {
        self.record.clear();
        self.record.resize(RECORD_HEAD, 0);
        push_tag(&mut self.record, 1, FIXED64);
        self.record.extend_from_slice(&seconds().to_le_bytes());
        fill(&mut self.record);
        frame(&mut self.record);
        self.file.write(&self.record)
    }
}

/// Makes a TFRecord of a payload that stands behind [`RECORD_HEAD`] free bytes: length, its checksum, payload, its
/// checksum.
fn frame(record: &mut Vec<u8>) {
    let len = (record.len() - RECORD_HEAD) as u64;
    record[..8].copy_from_slice(&len.to_le_bytes());
    let head = masked_crc(&record[..8]);
    record[8..RECORD_HEAD].copy_from_slice(&head.to_le_bytes());
    let payload = masked_crc(&record[RECORD_HEAD..]);
    record.extend_from_slice(&payload.to_le_bytes());
}

/// CRC-32C, rotated and shifted: the format's guard against checksums of data that hold checksums.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Opens a file that nobody has: two loggers of one process may start in the same second.
fn create(dir: &Path, now: f64) -> Result<LogFile> {
    let stem = format!("events.out.tfevents.{:010}.{}.{}", now as u64, host(), std::process::id());
    for n in 0..FILES_MAX {
        let path = dir.join(format!("{stem}.{n}"));
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(file) => return Ok(LogFile::new(path, file)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(not_written(&path, &error)),
        }
    }
    Err(Error::new(LOG_NOT_WRITTEN, "a log file cannot be created")
        .at("file", dir.join(stem).display())
        .why(format!("files of this name with the endings .0 to .{} are there", FILES_MAX - 1))
        .hint("give each run a folder of its own"))
}

/// The host's name, as far as a file name can have it. It only tells files apart: any name will do.
fn host() -> String {
    let name =
        fs::read_to_string("/proc/sys/kernel/hostname").or_else(|_| fs::read_to_string("/etc/hostname"));
    let name = name.unwrap_or_default().trim().replace(|c: char| !c.is_ascii_alphanumeric() && c != '-', "_");
    if name.is_empty() { "localhost".to_owned() } else { name }
}

/// Seconds since 1970; 0 for a clock before.
fn seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// `Summary { value: [Value { tag: name, simple_value: ? }] }` up to the four bytes of the number.
fn value_prefix(name: &str) -> Vec<u8> {
    let value = message(|value| {
        push_bytes(value, 1, name.as_bytes());
        push_tag(value, 2, FIXED32);
    });
    message(|summary| {
        push_tag(summary, 1, LENGTH_DELIMITED);
        push_varint(summary, value.len() as u64 + 4);
        summary.extend_from_slice(&value);
    })
}

fn message(fill: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    fill(&mut bytes);
    bytes
}

fn push_bytes(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    push_tag(out, field, LENGTH_DELIMITED);
    push_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn push_tag(out: &mut Vec<u8>, field: u8, wire_type: u8) {
    out.push(field << 3 | wire_type);
}

fn push_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

// Wire types of protocol buffers.
const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const LENGTH_DELIMITED: u8 = 2;
const FIXED32: u8 = 5;

/// TensorFlow's `DataType` for strings.
const DT_STRING: u64 = 7;
const FILE_VERSION: &[u8] = b"brain.Event:2";
/// The length of the payload and its checksum.
const RECORD_HEAD: usize = 12;
/// Starts of one process within one second; more is a loop gone wrong.
const FILES_MAX: u32 = 10_000;

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::process::Command;

    use serde_json::json;

    use super::*;

    type Rows<'a> = &'a [(u64, &'a [(&'a str, f64)])];

    fn log(dir: &Path, config: &Value, rows: Rows<'_>) -> PathBuf {
        let mut logger = TensorBoardLogger::new();
        logger.start(dir, config).unwrap();
        for &(step, scalars) in rows {
            logger.log(&Row { epoch: 0, step, scalars }).unwrap();
        }
        let path = logger.events.as_ref().unwrap().file.path.clone();
        logger.finalize("finished").unwrap();
        path
    }

    /// RFC 3720's check value, then rotated right by 15 and increased by 0xa282ead8 by hand.
    #[test]
    fn the_checksum_is_crc32c_masked() {
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(masked_crc(b"123456789"), 0xc78a_b0e5);
    }

    #[test]
    fn an_event_has_the_bytes_of_its_messages() {
        let dir = tempfile::tempdir().unwrap();
        let path = log(dir.path(), &Value::Null, &[(300, &[("a", 1.5)])]);
        let bytes = fs::read(path).unwrap();
        // Record 1: wall_time (9 bytes), file_version (15); record 2: wall_time, step, summary.
        let (first, second) = bytes.split_at(12 + 24 + 4);
        assert_eq!(first[..8], 24_u64.to_le_bytes());
        assert_eq!(first[21..36], *b"\x1a\x0dbrain.Event:2");
        let payload = [
            0x10, 0xac, 0x02, // step = 300
            0x2a, 0x0a, // summary, 10 bytes
            0x0a, 0x08, // value, 8 bytes
            0x0a, 0x01, b'a', // tag = "a"
            0x15, 0x00, 0x00, 0xc0, 0x3f, // simple_value = 1.5
        ];
        assert_eq!(second[..8], 24_u64.to_le_bytes());
        assert_eq!(second[21..36], payload);
        assert_eq!(second[36..], masked_crc(&second[12..36]).to_le_bytes());
        assert_eq!(second[8..12], masked_crc(&second[..8]).to_le_bytes());
    }

    #[test]
    fn every_start_has_a_file_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..3 {
            log(dir.path(), &Value::Null, &[]);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn tensorboard_reads_every_tag_step_value_and_the_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let config = json!({ "max_epochs": 3, "name": "über" });
        let long_name = "x".repeat(200);
        let values = [0.1, -0.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e300, 1e-42, 16_777_217.0];
        let mut expected = serde_json::Map::new();
        let mut expect = |name: &str, step: u64, value: f64| {
            let points = expected.entry(name).or_insert_with(|| json!([]));
            points.as_array_mut().unwrap().push(json!([step, bits(value as f32)]));
        };
        let mut logger = TensorBoardLogger::new();
        logger.start(dir.path(), &config).unwrap();
        for (step, &value) in values.iter().enumerate() {
            let step = step as u64 * 1_000_003;
            let all = [("train/loss", value), ("grüße", -value), (long_name.as_str(), 1.0), ("odd", 2.0)];
            let scalars = if step.is_multiple_of(2) { &all[..3] } else { &all[1..] };
            logger.log(&Row { epoch: 1, step, scalars }).unwrap();
            scalars.iter().for_each(|&(name, value)| expect(name, step, value));
        }
        logger.finalize("finished").unwrap();
        log(dir.path(), &Value::Null, &[(9, &[("test/loss", 0.25)])]);
        expect("test/loss", 9, 0.25);

        let Some(read) = read_with_tensorboard(dir.path()) else { return };
        assert_eq!(read["scalars"], Value::Object(expected));
        let text = read["config"].as_str().unwrap();
        assert!(text.lines().all(|line| line.starts_with("    ")), "{text}");
        assert_eq!(serde_json::from_str::<Value>(text).unwrap(), config);
    }

    /// As the script below prints them; Python knows one NaN only.
    fn bits(value: f32) -> String {
        if value.is_nan() { "nan".to_owned() } else { format!("{:08x}", value.to_bits()) }
    }

    /// What TensorBoard's own reader finds in `dir`; `None`, with the reason printed, where there is no TensorBoard.
    fn read_with_tensorboard(dir: &Path) -> Option<Value> {
        let python = std::env::var_os("LEYDEN_PYTHON").unwrap_or_else(|| "python3".into());
        let reason = match Command::new(&python).arg("-c").arg(READER).arg(dir).output() {
            Ok(output) if output.status.success() => {
                return Some(serde_json::from_slice(&output.stdout).unwrap());
            }
            Ok(output) if output.status.code() == Some(NO_TENSORBOARD) => {
                String::from_utf8_lossy(&output.stderr).trim().to_owned()
            }
            Ok(output) => {
                panic!("TensorBoard refuses the files:\n{}", String::from_utf8_lossy(&output.stderr))
            }
            Err(error) => format!("{}: {error}", python.display()),
        };
        let required = std::env::var_os("LEYDEN_REQUIRE_PEERS").is_some_and(|value| value == "1");
        assert!(!required, "LEYDEN_REQUIRE_PEERS=1, but {reason}");
        println!("skipped: {reason}");
        None
    }

    const NO_TENSORBOARD: i32 = 3;
    const READER: &str = r#"
import json, math, struct, sys
try:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
except ImportError as error:
    print(error, file=sys.stderr)
    sys.exit(3)
events = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0}).Reload()
def bits(value):
    return "nan" if math.isnan(value) else struct.pack(">f", value).hex()
assert events.PluginTagToContent("text").keys() == {"config"}
(text,) = events.Tensors("config")
assert text.step == 0 and not text.tensor_proto.tensor_shape.dim
print(json.dumps({
    "scalars": {tag: [[e.step, bits(e.value)] for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]},
    "config": text.tensor_proto.string_val[0].decode(),
}))
"#;
}
