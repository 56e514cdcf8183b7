//! The failure classes of this crate; each has a page in `docs/errors/`.
//!
//! The texts of the errors are where the errors are made.

use leyden_process::{Code, exit};

/// A launcher's variable is not a number.
pub const NOT_A_NUMBER: Code = Code::new("D0301", exit::CONFIGURATION);
/// A launcher's variable is set, and its counterpart is not.
pub const HALF_SET: Code = Code::new("D0302", exit::CONFIGURATION);
/// A rank is not below the number of ranks.
pub const RANK_RANGE: Code = Code::new("D0303", exit::CONFIGURATION);
/// Two launchers claim this process, and disagree.
pub const LAUNCHERS_DISAGREE: Code = Code::new("D0304", exit::CONFIGURATION);
/// A compressed list (of nodes, or of tasks per node) cannot be read.
pub const LIST_MALFORMED: Code = Code::new("D0305", exit::CONFIGURATION);
/// A compressed list stands for more than any cluster has.
pub const LIST_TOO_LONG: Code = Code::new("D0306", exit::CONFIGURATION);
/// The variables of one launcher contradict each other.
pub const LAUNCHER_CONTRADICTS: Code = Code::new("D0307", exit::CONFIGURATION);
/// The address of the master is not one.
pub const MASTER_ADDRESS: Code = Code::new("D0308", exit::CONFIGURATION);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_has_a_page_that_starts_with_it() {
        let all = [
            NOT_A_NUMBER,
            HALF_SET,
            RANK_RANGE,
            LAUNCHERS_DISAGREE,
            LIST_MALFORMED,
            LIST_TOO_LONG,
            LAUNCHER_CONTRADICTS,
            MASTER_ADDRESS,
        ];
        for code in all {
            let path = format!("{}/../../docs/errors/{code}.md", env!("CARGO_MANIFEST_DIR"));
            let page = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
            assert!(page.starts_with(&format!("# {code}: ")), "{path} starts with {:?}", page.lines().next());
        }
    }
}
