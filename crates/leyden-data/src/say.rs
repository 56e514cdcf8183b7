//! Lines for people, which must never end a run: `eprintln!` panics where nobody listens.

use std::io::Write as _;

/// A line on stderr.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
