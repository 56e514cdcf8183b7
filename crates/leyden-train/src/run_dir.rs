//! The run folder: `<root>/<name>/version_N`, a new N for each run.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use leyden_process::{Code, Error, Result, exit};
use serde_json::Value;

use crate::checkpoint::write_atomically;

/// Makes the next free folder. Two runs at once get two folders: making one is atomic.
///
/// # Errors
/// `K0105` if it cannot be made.
pub(crate) fn create(root: &Path, name: &str) -> Result<PathBuf> {
    let parent = root.join(name);
    let attempt = || -> io::Result<PathBuf> {
        fs::create_dir_all(&parent)?;
        let mut next = versions(&parent)?.last().map_or(0, |(newest, _)| newest + 1);
        loop {
            let folder = parent.join(format!("version_{next}"));
            match fs::create_dir(&folder) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => next += 1,
                result => return result.map(|()| folder),
            }
        }
    };
    attempt().map_err(|error| {
        Error::new(NO_FOLDER, "the run folder cannot be made")
            .at("folder", parent.display())
            .because(&error)
            .hint("choose another `root_dir`, or give this user the right to write there")
    })
}

/// Writes the resolved configuration, `config.json`.
pub(crate) fn write_config(folder: &Path, config: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(config)?;
    write_atomically(&folder.join("config.json"), |file| writeln!(file, "{text}"))
}

/// The newest `last.safetensors` of earlier runs of that name.
pub(crate) fn newest_last(root: &Path, name: &str) -> Option<PathBuf> {
    let versions = versions(&root.join(name)).ok()?;
    let files = versions.into_iter().rev().map(|(_, folder)| last_in(&folder));
    files.into_iter().find(|file| file.is_file())
}

/// Where a run keeps its newest checkpoint.
pub(crate) fn last_in(folder: &Path) -> PathBuf {
    folder.join(CHECKPOINTS).join("last.safetensors")
}

/// The run folders there are, by number.
fn versions(parent: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(parent)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if let Some(number) = name.strip_prefix("version_").and_then(|number| number.parse().ok()) {
            found.push((number, path));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Where, in a run folder, checkpoints are.
pub(crate) const CHECKPOINTS: &str = "checkpoints";

/// The run folder cannot be made.
pub const NO_FOLDER: Code = Code::new("K0105", exit::CONFIGURATION);
