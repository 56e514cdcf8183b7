//! Lines for people, which must never end a run: a pipe that nobody reads any more, a lost terminal, is no failure of
//! the training, but the standard macros panic on it.

use std::io::Write;

/// A line on stderr.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Text on stdout.
pub(crate) fn print(text: &str) {
    let mut out = std::io::stdout();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
