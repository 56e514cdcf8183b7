//! Lines for people, which must never end a run: a pipe that nobody reads any more, a lost terminal, is no failure of
//! the training, but the standard macros panic on it.

use std::io::Write;

/// A line on stderr, in one write: lines of other ranks come there too.
pub(crate) fn say(line: &str) {
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// Text on stdout.
pub(crate) fn print(text: &str) {
    let mut out = std::io::stdout();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
