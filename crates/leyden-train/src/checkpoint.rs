//! Checkpoints: one file, a safetensors file whose metadata holds the rest of the run as JSON.
//!
//! ```text
//! <8 bytes: header length><header: JSON with the tensors' places and `__metadata__`><tensor bytes>
//!   __metadata__.leyden   a CRC-32 over all, and as JSON what is no tensor (`RunState`, the order of the tensors)
//!   fc1.weight            a weight, by its path in the model
//!   optimizer/…  gradients/…   the optimizer's tensors; sums of an unfinished accumulation window
//! ```
//! Any safetensors reader opens it; the weights have their plain names. A file is written beside its place, synced
//! and renamed, so that a kill at any byte leaves the previous one. (On file systems that honour fsync and rename.)

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use leyden_process::{Code, Error, Result, exit};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::progress::Progress;
use crate::state::{DType, LearnerState, NamedTensor};

/// A whole run, as a checkpoint keeps it.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// The model and its optimizer.
    pub learner: LearnerState,
    /// Everything else; `None` in a file that holds only weights.
    pub run: Option<RunState>,
}

/// What is no tensor.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// Counters and position.
    pub progress: Progress,
    /// The seed of the run, which its order and randomness depend on.
    pub seed: u64,
    /// The callbacks' states by name.
    pub callbacks: Map<String, Value>,
    /// The data module's state.
    pub data: Value,
    /// The training loader's own description, to notice other data.
    pub loader: String,
    /// The unfinished epoch's logged values.
    pub logs: Value,
    /// The newest epoch-level values, as bits.
    pub metrics: Vec<(String, u64)>,
    /// A callback's request to stop: its name and reason.
    pub stop: Option<(String, String)>,
    /// A callback's request to skip the rest of the epoch.
    pub skip_epoch: bool,
}

/// The JSON of the metadata.
#[derive(Serialize, Deserialize)]
struct Manifest {
    format: u32,
    version: String,
    weights: Vec<String>,
    optimizer: Vec<String>,
    gradients: Vec<String>,
    values: Value,
    run: Option<RunState>,
}

impl Checkpoint {
    /// Writes it to `path`, atomically; missing folders are made.
    ///
    /// # Errors
    /// `K0101` if the file cannot be written: the previous file of that name is untouched.
    pub fn write(&self, path: &Path) -> Result<()> {
        let bytes = self.to_bytes().map_err(|error| error.at("file", path.display()))?;
        write_atomically(path, |file| file.write_all(&bytes))
    }

    /// Reads a checkpoint, or any safetensors file (as weights).
    ///
    /// # Errors
    /// `K0102` if there is no such file or it cannot be read, `K0103` if it is truncated, garbled or of a newer format.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).map_err(|error| unreadable(path, &error))?;
        Self::from_bytes(&bytes).map_err(|error| error.at("file", path.display()))
    }

    fn to_bytes(&self) -> Result<Vec<u8>> {
        let names = |tensors: &[NamedTensor]| tensors.iter().map(|tensor| tensor.name.clone()).collect();
        let manifest = Manifest {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            weights: names(&self.learner.weights),
            optimizer: names(&self.learner.optimizer),
            gradients: names(&self.learner.gradients),
            values: self.learner.values.clone(),
            run: self.run.clone(),
        };
        let json = serde_json::to_string(&manifest)?;
        let metadata = HashMap::from([("leyden".to_owned(), format!("{:08x} {json}", self.crc(&json)))]);
        let mut views = Vec::new();
        for (prefix, tensors) in self.sections() {
            for tensor in tensors {
                let view =
                    TensorView::new(to_safetensors(tensor.dtype), tensor.shape.clone(), &tensor.bytes)?;
                views.push((format!("{prefix}{}", tensor.name), view));
            }
        }
        Ok(safetensors::serialize(views, Some(metadata))?)
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|error| garbled(&error))?;
        let file = SafeTensors::deserialize(bytes).map_err(|error| garbled(&error))?;
        let Some(ours) = header.metadata().as_ref().and_then(|metadata| metadata.get("leyden")) else {
            return Self::foreign(&file);
        };
        let (crc, json) = ours.split_once(' ').unwrap_or_default();
        let manifest: Manifest = serde_json::from_str(json).map_err(|error| garbled(&error))?;
        if manifest.format > FORMAT {
            return Err(Error::new(GARBLED, "the checkpoint has a newer format than this build reads")
                .why(format!("format {} of Leyden {}; known is {FORMAT}", manifest.format, manifest.version))
                .hint("build with a newer Leyden"));
        }
        let take = |prefix: &str, names: &[String]| -> Result<Vec<NamedTensor>> {
            names.iter().map(|name| tensor_of(&file, &format!("{prefix}{name}"), name)).collect()
        };
        let learner = LearnerState {
            weights: take("", &manifest.weights)?,
            optimizer: take(OPTIMIZER, &manifest.optimizer)?,
            gradients: take(GRADIENTS, &manifest.gradients)?,
            values: manifest.values,
        };
        let checkpoint = Self { learner, run: manifest.run };
        let found = format!("{:08x}", checkpoint.crc(json));
        if found != crc {
            return Err(Error::new(GARBLED, "the checkpoint's bytes were changed since it was written")
                .why(format!("their CRC-32 is {found}, the file says {crc}"))
                .hint("use another checkpoint; check the disk"));
        }
        Ok(checkpoint)
    }

    /// A file that another program wrote: its tensors are weights.
    fn foreign(file: &SafeTensors<'_>) -> Result<Self> {
        let mut names = file.names();
        names.sort_unstable();
        let weights = names.into_iter().map(|name| tensor_of(file, name, name)).collect::<Result<_>>()?;
        Ok(Self { learner: LearnerState { weights, ..LearnerState::default() }, run: None })
    }

    /// Over the JSON and all tensors, in the order in which they are listed.
    fn crc(&self, json: &str) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(json.as_bytes());
        for tensor in self.sections().flat_map(|(_, tensors)| tensors) {
            hasher.update(&tensor.bytes);
        }
        hasher.finalize()
    }

    fn sections(&self) -> impl Iterator<Item = (&'static str, &[NamedTensor])> {
        let LearnerState { weights, optimizer, gradients, .. } = &self.learner;
        [("", weights.as_slice()), (OPTIMIZER, optimizer), (GRADIENTS, gradients)].into_iter()
    }
}

/// Writes `path` so that there is either the old file or the whole new one: beside it, synced, renamed.
///
/// # Errors
/// `K0101`, naming the file.
pub fn write_atomically(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> Result<()> {
    let beside = beside(path);
    let attempt = || -> io::Result<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut file = File::create(&beside)?;
        write(&mut file)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        sync_folder(path)
    };
    attempt().map_err(|error| {
        let _ = fs::remove_file(&beside);
        Error::new(UNWRITABLE, "a file of the run could not be written")
            .at("file", path.display())
            .because(&error)
            .hint("see that the folder can be written to and has space; the previous file of that name is untouched")
    })
}

/// Gives the file `from` the second name `to`, replacing what had it; a copy where links are not possible.
pub(crate) fn link_atomically(from: &Path, to: &Path) -> Result<()> {
    let beside = beside(to);
    let _ = fs::remove_file(&beside);
    if fs::hard_link(from, &beside).is_ok() && fs::rename(&beside, to).is_ok() {
        // Renaming one link of a file over another link of it does nothing, and leaves the first.
        let _ = fs::remove_file(&beside);
        return Ok(());
    }
    let bytes = fs::read(from).map_err(|error| unreadable(from, &error))?;
    write_atomically(to, |file| file.write_all(&bytes))
}

/// Removes what processes that were killed while they wrote have left beside `path`.
pub(crate) fn remove_leftovers(path: &Path) {
    let Some(entries) = path.parent().and_then(|folder| fs::read_dir(folder).ok()) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let writer = name
            .strip_prefix('.')
            .and_then(|name| name.strip_suffix(".tmp")?.rsplit('.').next()?.parse().ok());
        if writer.is_some_and(|pid: u32| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}.tmp", std::process::id()))
}

fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
        _ => Ok(()),
    }
}

fn tensor_of(file: &SafeTensors<'_>, stored: &str, name: &str) -> Result<NamedTensor> {
    let view = file.tensor(stored).map_err(|error| garbled(&error))?;
    let dtype = from_safetensors(view.dtype()).ok_or_else(|| {
        Error::new(GARBLED, format!("tensor `{stored}` has an element type that is not supported"))
            .why(format!("found {:?}", view.dtype()))
            .hint("convert it to a plain float or integer type")
    })?;
    Ok(NamedTensor {
        name: name.to_owned(),
        dtype,
        shape: view.shape().to_vec(),
        bytes: view.data().to_vec(),
    })
}

fn unreadable(path: &Path, error: &io::Error) -> Error {
    Error::new(UNREADABLE, "a checkpoint cannot be read")
        .at("file", path.display())
        .because(error)
        .hint("give the path of a `.safetensors` file, `last` or `best`")
}

fn garbled(error: &(dyn std::error::Error + 'static)) -> Error {
    Error::new(GARBLED, "the file is no whole checkpoint")
        .because(error)
        .hint("use another checkpoint; one that Leyden wrote is whole unless it was changed afterwards")
}

fn to_safetensors(dtype: DType) -> Dtype {
    TYPES.iter().find(|(ours, _)| *ours == dtype).expect("the table has every DType").1
}

fn from_safetensors(dtype: Dtype) -> Option<DType> {
    TYPES.iter().find(|(_, theirs)| *theirs == dtype).map(|(ours, _)| *ours)
}

const TYPES: [(DType, Dtype); 13] = [
    (DType::BF16, Dtype::BF16),
    (DType::Bool, Dtype::BOOL),
    (DType::F16, Dtype::F16),
    (DType::F32, Dtype::F32),
    (DType::F64, Dtype::F64),
    (DType::I8, Dtype::I8),
    (DType::I16, Dtype::I16),
    (DType::I32, Dtype::I32),
    (DType::I64, Dtype::I64),
    (DType::U8, Dtype::U8),
    (DType::U16, Dtype::U16),
    (DType::U32, Dtype::U32),
    (DType::U64, Dtype::U64),
];

const FORMAT: u32 = 1;
const OPTIMIZER: &str = "optimizer/";
const GRADIENTS: &str = "gradients/";

/// A file of the run cannot be written.
pub const UNWRITABLE: Code = Code::new("K0101", exit::TRAINING_FAILED);
/// A checkpoint cannot be read.
pub const UNREADABLE: Code = Code::new("K0102", exit::CONFIGURATION);
/// A checkpoint is truncated, garbled, or of a newer format.
pub const GARBLED: Code = Code::new("K0103", exit::CONFIGURATION);

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Checkpoint {
        let weights = vec![
            NamedTensor::from_f32("b.w", &[2], &[1.0, f32::NAN]),
            NamedTensor::from_f32("a", &[], &[3.0]),
        ];
        let optimizer = vec![NamedTensor::from_f32("a.m", &[1], &[0.5])];
        let values = serde_json::json!({ "lr": 0.1 });
        let learner = LearnerState { weights, optimizer, gradients: Vec::new(), values };
        Checkpoint { learner, run: Some(RunState { seed: 7, ..RunState::default() }) }
    }

    #[test]
    fn comes_back_with_order_and_bits() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/er/last.safetensors");
        sample().write(&path).unwrap();
        let read = Checkpoint::read(&path).unwrap();
        assert_eq!(read.learner.weights[0].name, "b.w");
        assert_eq!(read.learner.weights[0].bytes, sample().learner.weights[0].bytes);
        assert_eq!((read.run, read.learner.optimizer), (sample().run, sample().learner.optimizer));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn names_a_file_that_is_cut_anywhere_or_changed() {
        let bytes = sample().to_bytes().unwrap();
        for end in 0..bytes.len() {
            let error = Checkpoint::from_bytes(&bytes[..end]).unwrap_err();
            assert_eq!(error.code(), GARBLED, "cut at {end}: {error:?}");
        }
        let mut changed = bytes.clone();
        *changed.last_mut().unwrap() ^= 1;
        let error = Checkpoint::from_bytes(&changed).unwrap_err();
        assert!(error.reasons()[0].contains("CRC-32"), "{error:?}");
        let before = br#"seed\":"#;
        let place = bytes.windows(before.len()).position(|window| window == before);
        let seed = place.expect("the JSON is in the header") + before.len();
        let mut changed = bytes;
        changed[seed] = b'8';
        let error = Checkpoint::from_bytes(&changed).unwrap_err();
        assert!(error.reasons()[0].contains("CRC-32"), "{error:?}");
    }

    #[test]
    fn removes_what_a_killed_process_left_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let mut dead = std::process::Command::new("true").spawn().unwrap();
        dead.wait().unwrap();
        let [left, written, other] = [
            format!(".last.safetensors.{}.tmp", dead.id()),
            format!(".last.safetensors.{}.tmp", std::process::id()),
            "last.safetensors".to_owned(),
        ]
        .map(|name| folder.path().join(name));
        for path in [&left, &written, &other] {
            fs::write(path, "x").unwrap();
        }
        remove_leftovers(&other);
        assert!(!left.exists() && written.exists() && other.exists());
    }

    #[test]
    fn leaves_the_old_file_when_the_disk_is_full() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("last.safetensors");
        fs::write(&path, "old").unwrap();
        let error =
            write_atomically(&path, |_| File::options().write(true).open("/dev/full")?.write_all(b"new"))
                .unwrap_err();
        assert_eq!(error.code(), UNWRITABLE);
        assert!(error.reasons()[0].contains("No space left"), "{error:?}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
