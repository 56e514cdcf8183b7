//! The one error type of Leyden: what happened, where, why, and what to do.
//!
//! Each crate names its failure classes as [`Code`] constants; a code has a page in `docs/errors/`. An error is
//! built in one expression, carries the values of the moment, and renders itself as the four parts. It does not
//! implement [`std::error::Error`], so that `?` turns any foreign error into one (as `anyhow` does, and for the
//! same reason); [`Error::into_std`] gives a boxed standard error where one is needed.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::panic::Location;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

/// `Result` with Leyden's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure class: a stable identifier with a page in `docs/errors/`.
///
/// The letter tells the area: `C` configuration, `L` loading, `T` training, `K` checkpoints, `P` processes, `D` ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Code {
    /// The identifier, such as `L0102`.
    pub id: &'static str,
    /// The exit code of a program that ends with this error; see [`crate::exit`].
    pub exit: u8,
}

impl Code {
    /// Names a failure class.
    pub const fn new(id: &'static str, exit: u8) -> Self {
        Self { id, exit }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id)
    }
}

/// An error that came from the user's code or a foreign library and has no class of its own.
pub const USER: Code = Code::new("T0001", crate::exit::TRAINING_FAILED);

/// What happened, where, why, and what to do.
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone)]
struct Inner {
    code: Code,
    what: String,
    places: Vec<(String, String)>,
    why: Vec<String>,
    hints: Vec<String>,
}

impl Error {
    /// An error of class `code`; `what` is one lower-case sentence without a full stop.
    pub fn new(code: Code, what: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            code,
            what: cut(what.into(), LONGEST),
            places: Vec::new(),
            why: Vec::new(),
            hints: Vec::new(),
        }))
    }

    /// An error of one's own that needs no class: its code is `T0001`, its place the caller's. [`bail!`](crate::bail)
    /// returns one.
    #[track_caller]
    pub fn msg(what: impl fmt::Display) -> Self {
        Self::new(USER, what.to_string()).at("raised", Location::caller())
    }

    /// Adds a place: `label` says what is located (`file`, `step`, `batch`), `value` where.
    #[must_use]
    pub fn at(mut self, label: impl Into<String>, value: impl fmt::Display) -> Self {
        self.0.places.push((label.into(), cut(value.to_string(), LONGEST_PLACE)));
        self
    }

    /// Adds a place unless one with that label is known already: the innermost knows best.
    #[must_use]
    pub fn at_if_absent(self, label: &str, value: impl fmt::Display) -> Self {
        if self.0.places.iter().any(|(known, _)| known == label) { self } else { self.at(label, value) }
    }

    /// Renames places: `name` gives the new label of those that it knows.
    #[must_use]
    pub fn relabel(mut self, name: impl Fn(&str) -> Option<String>) -> Self {
        for (label, _) in &mut self.0.places {
            if let Some(better) = name(label) {
                *label = better;
            }
        }
        self
    }

    /// Adds a reason; several make a chain, outermost first.
    #[must_use]
    pub fn why(mut self, why: impl fmt::Display) -> Self {
        self.0.why.push(cut(why.to_string(), LONGEST));
        self
    }

    /// Adds a cure.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hints.push(cut(hint.into(), LONGEST));
        self
    }

    /// Adds `source` and everything below it as reasons.
    #[must_use]
    pub fn because(mut self, source: &(dyn std::error::Error + 'static)) -> Self {
        let mut next = Some(source);
        while let Some(error) = next {
            let text = cut(error.to_string(), LONGEST);
            // Many error types repeat their source in their own text.
            if !self.0.why.iter().any(|known| known.contains(&text)) {
                self.0.why.push(text);
            }
            next = error.source();
        }
        self
    }

    /// The class.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// What happened, as one sentence: the `Display` text.
    pub fn what(&self) -> &str {
        &self.0.what
    }

    /// Where: pairs of label and place, in the order they were learnt.
    pub fn places(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.places.iter().map(|(label, value)| (label.as_str(), value.as_str()))
    }

    /// The place with this label.
    pub fn place(&self, label: &str) -> Option<&str> {
        self.places().find(|(known, _)| *known == label).map(|(_, value)| value)
    }

    /// Why, outermost reason first.
    pub fn reasons(&self) -> &[String] {
        &self.0.why
    }

    /// What to do.
    pub fn hints(&self) -> &[String] {
        &self.0.hints
    }

    /// The exit code for a program that ends with this error.
    pub fn exit_code(&self) -> u8 {
        self.0.code.exit
    }

    /// This error as bytes, for another process of this program; [`from_wire`](Self::from_wire) reads them.
    pub fn to_wire(&self) -> Vec<u8> {
        let Inner { code, what, places, why, hints } = &*self.0;
        let wire = Wire {
            id: code.id.to_owned(),
            exit: code.exit,
            what: what.clone(),
            places: places.clone(),
            why: why.clone(),
            hints: hints.clone(),
        };
        postcard::to_allocvec(&wire).expect("text always serialises")
    }

    /// The error that [`to_wire`](Self::to_wire) wrote; `None` if it wrote something else.
    pub fn from_wire(bytes: &[u8]) -> Option<Self> {
        let Wire { id, exit, what, places, why, hints } = postcard::from_bytes(bytes).ok()?;
        Some(Self(Box::new(Inner { code: Code { id: interned(id), exit }, what, places, why, hints })))
    }

    /// This error as a standard one, for interfaces that want `Box<dyn std::error::Error>`.
    pub fn into_std(self) -> Box<dyn std::error::Error + Send + Sync + 'static> {
        Box::new(Standard(self))
    }
}

impl<E> From<E> for Error
where
    E: std::error::Error + Send + Sync + 'static,
{
    /// A foreign error: its text is what happened, its sources are the reasons, the place is the `?`.
    #[track_caller]
    fn from(source: E) -> Self {
        let location = Location::caller();
        let source: Box<dyn std::error::Error + Send + Sync> = Box::new(source);
        match source.downcast::<Standard>() {
            Ok(ours) => ours.0,
            Err(foreign) => {
                let error = Self::new(USER, foreign.to_string()).at("raised", location);
                match foreign.source() {
                    Some(below) => error.because(below),
                    None => error,
                }
            }
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&printable(&self.0.what))
    }
}

/// The rendered error, so that a plain `fn main() -> leyden::Result<()>` prints it well.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { code, what, places, why, hints } = &*self.0;
        let mut whole = format!("error[{code}]: {}", printable(what));
        let width = places.iter().map(|(label, _)| label.len()).max().unwrap_or(0);
        for (label, value) in places {
            write!(whole, "\n  {:<width$}  {}", printable(label), indent(value))?;
        }
        for (prefix, texts) in [("why", why), ("fix", hints)] {
            for text in texts {
                write!(whole, "\n  {prefix}: {}", indent(text))?;
            }
        }
        // In one write where it goes to stderr: lines of other ranks come there too.
        f.write_str(&whole)
    }
}

/// Returns an [`Error`] made of a format string: `bail!("class {class} is unknown")`.
#[macro_export]
macro_rules! bail {
    ($($text:tt)*) => {
        return ::core::result::Result::Err($crate::Error::msg(::std::format!($($text)*)).into())
    };
}

/// The longest text of an error, in bytes: whole pages, and what a message between processes can carry.
pub(crate) const LONGEST: usize = 16 << 10;
/// The longest place: the last lines of a process's stderr fit.
const LONGEST_PLACE: usize = 48 << 10;

/// A text, or its beginning and its length.
pub(crate) fn bounded(text: &str, longest: usize) -> Cow<'_, str> {
    if text.len() <= longest {
        return text.into();
    }
    format!("{}… ({} bytes)", &text[..text.floor_char_boundary(longest)], text.len()).into()
}

/// The same of a text that need not be copied.
fn cut(text: String, longest: usize) -> String {
    if text.len() <= longest { text } else { bounded(&text, longest).into_owned() }
}

/// A text without what would command a terminal, or turn its other texts around; lines and tabs stay.
fn printable(text: &str) -> Cow<'_, str> {
    let commands = |character: char| {
        let turns = matches!(
            character,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        );
        turns || (character.is_control() && character != '\n' && character != '\t')
    };
    if !text.contains(commands) {
        return text.into();
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match commands(character) {
            true => escaped.extend(character.escape_default()),
            false => escaped.push(character),
        }
    }
    escaped.into()
}

/// Keeps the lines of a multi-line value under its label.
fn indent(text: &str) -> String {
    printable(text.trim_end()).replace('\n', "\n       ")
}

/// An error on its way to another process.
#[derive(Serialize, Deserialize)]
struct Wire {
    id: String,
    exit: u8,
    what: String,
    places: Vec<(String, String)>,
    why: Vec<String>,
    hints: Vec<String>,
}

/// One leaked string for each distinct identifier. A program has a few dozen codes; what is beyond [`MOST_CODES`] can
/// only be a peer's mistake, and is not kept.
fn interned(id: String) -> &'static str {
    const MOST_CODES: usize = 1024;
    static IDS: Mutex<BTreeSet<&str>> = Mutex::new(BTreeSet::new());
    let mut ids = IDS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(known) = ids.get(id.as_str()) {
        return known;
    }
    if ids.len() == MOST_CODES {
        return USER.id;
    }
    let id = &*id.leak();
    ids.insert(id);
    id
}

/// [`Error`] where the standard trait is asked for.
struct Standard(Error);

impl fmt::Debug for Standard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Standard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl std::error::Error for Standard {}

#[cfg(test)]
mod tests {
    use super::*;

    const TORN: Code = Code::new("L0102", 100);

    #[test]
    fn renders_the_four_parts() {
        let error = Error::new(TORN, "an IDX file is truncated")
            .at("file", "train-images.gz")
            .at("offset", 16)
            .why("the header promises 7840 bytes, 100 follow")
            .hint("download the file again");
        let expected = "error[L0102]: an IDX file is truncated\n  file    train-images.gz\n  offset  16\n  \
                        why: the header promises 7840 bytes, 100 follow\n  fix: download the file again";
        assert_eq!(format!("{error:?}"), expected);
    }

    #[test]
    fn texts_are_bounded_and_do_not_command_the_terminal() {
        let error = Error::new(TORN, "é".repeat(1 << 20)).at("file", "a\u{1b}[2J\0\u{202e}b\tc\nd\u{9b}");
        assert!(error.what().len() < LONGEST + 100);
        assert!(error.what().ends_with("é… (2097152 bytes)"));
        let shown = format!("{error:?}");
        assert!(shown.ends_with("file  a\\u{1b}[2J\\u{0}\\u{202e}b\tc\n       d\\u{9b}"), "{shown:?}");
        assert_eq!(Error::new(TORN, "a\rb").to_string(), "a\\rb");
        assert_eq!(Error::from_wire(&error.to_wire()).unwrap().what(), error.what());
    }

    #[test]
    fn a_question_mark_keeps_the_foreign_text_and_the_place() {
        fn parse() -> Result<i32> {
            Ok("seven".parse::<i32>()?)
        }
        let error = parse().unwrap_err();
        assert_eq!(error.code(), USER);
        assert_eq!(error.what(), "invalid digit found in string");
        assert!(error.place("raised").unwrap().contains("error.rs:"), "{error:?}");
    }

    #[test]
    fn bail_returns_the_text_and_the_line() {
        fn refuse(class: usize) -> Result<()> {
            bail!("class {class} is unknown")
        }
        let error = refuse(7).unwrap_err();
        assert_eq!((error.code(), error.what()), (USER, "class 7 is unknown"));
        assert!(error.place("raised").unwrap().contains("error.rs:"), "{error:?}");
    }

    #[test]
    fn survives_the_trip_to_another_process() {
        let error =
            Error::new(TORN, "torn").at("file", "a").at("line", 3).why("cut").why("off").hint("again");
        let back = Error::from_wire(&error.to_wire()).unwrap();
        assert_eq!(format!("{back:?}"), format!("{error:?}"));
        assert_eq!(back.code(), TORN);
        assert!(Error::from_wire(&error.to_wire()[..9]).is_none());
    }

    #[test]
    fn survives_the_trip_through_a_standard_error() {
        fn through() -> Result<()> {
            Err(StdBox(Error::new(TORN, "torn").hint("again").into_std()))?
        }
        #[derive(Debug)]
        struct StdBox(Box<dyn std::error::Error + Send + Sync>);
        impl fmt::Display for StdBox {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        impl std::error::Error for StdBox {}
        assert!(format!("{:?}", through().unwrap_err()).contains("fix: again"));
    }
}
