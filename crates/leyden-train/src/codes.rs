//! The failure classes of this crate; `docs/errors/` has a page for each.
//!
//! `C` configuration, `K` checkpoints and run folders, `T` training.

pub use crate::callback::{MISSING_METRIC, UNKNOWN_METRIC};
pub use crate::checkpoint::{GARBLED, UNREADABLE, UNWRITABLE};
pub use crate::config::{UNREADABLE_CONFIG, WRONG_VALUE};
pub use crate::logger::{BAD_SCALAR_NAME, FOREIGN_LOG, LOG_NOT_WRITTEN, LOGGER_CLOSED};
pub use crate::logs::{NO_STEP_LEVEL, OTHER_ARGUMENTS, OTHER_METRIC, OTHER_NAMES};
pub use crate::metric::{BAD_METRIC_STATE, CLASS_OUT_OF_RANGE, UNEVEN_UPDATE};
pub use crate::plan::CONTRADICTION;
pub use crate::ranks::{INDIVISIBLE_RANKS, OTHER_ON_RANKS, UNEVEN_LOADERS, UNUSED_PARAMETER};
pub use crate::run_dir::NO_FOLDER;
pub use crate::schedule::{BAD_SCHEDULE, BAD_SCHEDULE_STATE, NO_MONITOR, SCHEDULE_ENDED};
pub use crate::state::OTHER_MODEL;
pub use crate::trainer::{
    BAD_BUILD, CLEAN_UP_FAILED, CLEAN_UP_STUCK, ENDED_EARLY, INTERRUPTED, NO_CHECKPOINT, NO_LOADER,
    NOT_FINITE, OTHER_ORDER, PANICKED, SAME_NAME, SAVED_ELSEWHERE, TERMINATED, WEIGHTS_ONLY,
};
