//! The training loop, proved on the toy learner: orders, limits, resumes, failures, signals, files.
//!
//! No engine is needed here. Tests whose subject is a whole process (signals, descriptors, kills) run this binary
//! again as a child; see `support::child`.

mod errors;
mod events;
mod files;
#[cfg(target_os = "linux")]
mod founding;
mod learner;
mod lifecycle;
mod limits;
mod logging;
mod many;
#[cfg(target_os = "linux")]
mod ranks;
mod resume;
mod signals;
mod support;
