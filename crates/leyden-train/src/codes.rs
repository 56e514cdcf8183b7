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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_page() {
        let all = [
            BAD_BUILD,
            BAD_METRIC_STATE,
            BAD_SCALAR_NAME,
            BAD_SCHEDULE,
            BAD_SCHEDULE_STATE,
            CLASS_OUT_OF_RANGE,
            CLEAN_UP_FAILED,
            CLEAN_UP_STUCK,
            CONTRADICTION,
            ENDED_EARLY,
            FOREIGN_LOG,
            GARBLED,
            INDIVISIBLE_RANKS,
            INTERRUPTED,
            LOGGER_CLOSED,
            LOG_NOT_WRITTEN,
            MISSING_METRIC,
            NOT_FINITE,
            NO_CHECKPOINT,
            NO_FOLDER,
            NO_LOADER,
            NO_MONITOR,
            NO_STEP_LEVEL,
            OTHER_ARGUMENTS,
            OTHER_METRIC,
            OTHER_MODEL,
            OTHER_NAMES,
            OTHER_ON_RANKS,
            OTHER_ORDER,
            PANICKED,
            SAME_NAME,
            SAVED_ELSEWHERE,
            SCHEDULE_ENDED,
            TERMINATED,
            UNEVEN_LOADERS,
            UNEVEN_UPDATE,
            UNKNOWN_METRIC,
            UNREADABLE,
            UNREADABLE_CONFIG,
            UNUSED_PARAMETER,
            UNWRITABLE,
            WEIGHTS_ONLY,
            WRONG_VALUE,
        ];
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/errors");
        let table = std::fs::read_to_string(format!("{folder}/README.md")).unwrap();
        for code in all {
            let path = format!("{folder}/{code}.md");
            let page = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
            assert!(page.starts_with(&format!("# {code}: ")), "{path} starts with {:?}", page.lines().next());
            let row = format!("| [{code}]({code}.md) | ");
            let row = table
                .lines()
                .find(|line| line.starts_with(&row))
                .unwrap_or_else(|| panic!("{code} is not in the table"));
            assert!(row.ends_with(&format!(" | {} |", code.exit)), "{row}: the exit code is {}", code.exit);
        }
    }
}
