//! SLURM's compressed lists: of nodes, `node[001-003,7],gpu-a[1,3-5]x`, and of tasks per node, `2(x3),1`.

use std::fmt::Write as _;
use std::ops::Range;

use super::variables::Known;
use crate::codes::{LIST_MALFORMED, LIST_TOO_LONG};
use crate::{Error, Result};

/// More nodes than any cluster has. A list of a few characters can stand for billions.
const MOST_NODES: usize = 1 << 17;

/// A name is one of the system's: at most 253 bytes where it is a domain name.
const LONGEST_NAME: usize = 255;

/// The names that the list stands for, in its order; of several brackets in a name the last changes first.
pub(super) fn expand(list: &Known<String>) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for part in split(list)? {
        let parts = parse(list, part)?;
        let count = parts.iter().try_fold(1_usize, |count, part| count.checked_mul(part.len()));
        let total = count.and_then(|count| count.checked_add(names.len()));
        if total.is_none_or(|total| total > MOST_NODES) {
            return Err(too_long(list, "nodes"));
        }
        let longest: usize = parts.iter().map(Part::longest).sum();
        if longest > LONGEST_NAME {
            return Err(malformed(list, format!("a name has {longest} bytes, {LONGEST_NAME} at most")));
        }
        let mut expanded = vec![String::new()];
        for part in &parts {
            expanded = expanded
                .iter()
                .flat_map(|prefix| part.texts().map(move |text| format!("{prefix}{text}")))
                .collect();
        }
        names.append(&mut expanded);
    }
    Ok(names)
}

/// The counts that a list like `2(x3),1` stands for.
pub(super) fn expand_counts(list: &Known<String>) -> Result<Vec<usize>> {
    let mut counts = Vec::new();
    for part in list.value.trim().split(',') {
        let (count, times) = match part.split_once("(x") {
            Some((count, times)) => (count, times.strip_suffix(')')),
            None => (part, Some("1")),
        };
        let (Ok(count), Some(Ok(times))) = (count.parse::<u32>(), times.map(str::parse::<usize>)) else {
            return Err(malformed(list, format!("`{part}` is neither `2` nor `2(x3)`")));
        };
        if times > MOST_NODES - counts.len() {
            return Err(too_long(list, "nodes"));
        }
        counts.resize(counts.len() + times, count as usize);
    }
    Ok(counts)
}

/// A list that [`expand`] makes these names of; for people, so only the last number of a name is compressed.
pub(super) fn compress(names: &[String]) -> String {
    let mut list = String::new();
    let mut rest = names;
    while let Some(first) = rest.first() {
        let comma = if list.is_empty() { "" } else { "," };
        let Some(digits) = last_number(first) else {
            let _ = write!(list, "{comma}{first}");
            rest = &rest[1..];
            continue;
        };
        let (prefix, suffix) = (&first[..digits.start], &first[digits.end..]);
        let numbers: Vec<&str> = rest
            .iter()
            .map_while(|name| {
                let digits = last_number(name)?;
                let alike = &name[..digits.start] == prefix && &name[digits.end..] == suffix;
                alike.then(|| &name[digits])
            })
            .collect();
        rest = &rest[numbers.len()..];
        let _ = match numbers.as_slice() {
            [_] => write!(list, "{comma}{first}"),
            several => write!(list, "{comma}{prefix}[{}]{suffix}", runs(several)),
        };
    }
    list
}

/// A part of a name: what stands there, or may.
enum Part<'a> {
    Fixed(&'a str),
    Numbers(Vec<Run>),
}

/// `first..=last`, written with `width` digits at least.
struct Run {
    first: u64,
    last: u64,
    width: usize,
}

impl Part<'_> {
    /// How many texts it stands for; saturates far above what is allowed.
    fn len(&self) -> usize {
        match self {
            Self::Fixed(_) => 1,
            Self::Numbers(runs) => runs.iter().fold(0_usize, |sum, run| {
                sum.saturating_add(usize::try_from(run.last - run.first).unwrap_or(usize::MAX))
                    .saturating_add(1)
            }),
        }
    }

    /// Bytes of the longest of them.
    fn longest(&self) -> usize {
        match self {
            Self::Fixed(text) => text.len(),
            Self::Numbers(runs) => {
                runs.iter().map(|run| run.width.max(run.last.to_string().len())).max().unwrap_or(0)
            }
        }
    }

    fn texts(&self) -> Box<dyn Iterator<Item = String> + '_> {
        match self {
            Self::Fixed(text) => Box::new(std::iter::once((*text).to_owned())),
            Self::Numbers(runs) => Box::new(runs.iter().flat_map(|&Run { first, last, width }| {
                (first..=last).map(move |number| format!("{number:0width$}"))
            })),
        }
    }
}

/// The list at its commas, but not at those in brackets.
fn split(list: &Known<String>) -> Result<Vec<&str>> {
    let (mut parts, mut start, mut inside) = (Vec::new(), 0, false);
    let text = list.value.trim();
    for (at, character) in text.char_indices() {
        match character {
            '[' if inside => return Err(malformed(list, "a bracket opens inside a bracket")),
            ']' if !inside => return Err(malformed(list, "a bracket closes that was not opened")),
            '[' => inside = true,
            ']' => inside = false,
            ',' if !inside => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    if inside {
        return Err(malformed(list, "a bracket is not closed"));
    }
    parts.push(&text[start..]);
    Ok(parts)
}

/// One name, whose brackets are balanced.
fn parse<'a>(list: &Known<String>, name: &'a str) -> Result<Vec<Part<'a>>> {
    if name.is_empty() || name.contains(char::is_whitespace) {
        return Err(malformed(list, format!("`{name}` is not a name")));
    }
    let (mut parts, mut rest) = (Vec::new(), name);
    while let Some((fixed, after)) = rest.split_once('[') {
        let Some((numbers, after)) = after.split_once(']') else {
            return Err(malformed(list, "a bracket is not closed"));
        };
        parts.push(Part::Fixed(fixed));
        let runs = numbers.split(',').map(|run| parse_run(list, run)).collect::<Result<_>>()?;
        parts.push(Part::Numbers(runs));
        rest = after;
    }
    parts.push(Part::Fixed(rest));
    Ok(parts)
}

/// `7` or `001-003`.
fn parse_run(list: &Known<String>, run: &str) -> Result<Run> {
    // 18 digits fit in 64 bits.
    let number = |digits: &str| {
        let plain = (1..=18).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| digits.parse().ok()).flatten()
    };
    let (first, last) = run.split_once('-').unwrap_or((run, run));
    match (number(first), number(last)) {
        (Some(from), Some(to)) if from <= to => Ok(Run { first: from, last: to, width: first.len() }),
        _ => Err(malformed(list, format!("`{run}` in a bracket is neither `7` nor `001-003`"))),
    }
}

/// Where the last digits of a name are, if they make a number that a bracket may have.
fn last_number(name: &str) -> Option<Range<usize>> {
    let end = name.rfind(|c: char| c.is_ascii_digit())? + 1;
    let start = name[..end]
        .rfind(|c: char| !c.is_ascii_digit())
        .map_or(0, |before| before + name[before..].chars().next().map_or(1, char::len_utf8));
    (end - start <= 18).then_some(start..end)
}

/// `001-003,7`.
fn runs(numbers: &[&str]) -> String {
    let mut list = String::new();
    let mut rest = numbers;
    while let Some(&first) = rest.first() {
        let (width, start) = (first.len(), first.parse::<u64>().unwrap_or(0));
        let length = (0..)
            .zip(rest)
            .take_while(|(step, number)| **number == format!("{:0width$}", start + step))
            .count();
        let comma = if list.is_empty() { "" } else { "," };
        let _ = match length {
            1 => write!(list, "{comma}{first}"),
            _ => write!(list, "{comma}{first}-{}", rest[length - 1]),
        };
        rest = &rest[length.max(1)..];
    }
    list
}

fn malformed(list: &Known<String>, why: impl std::fmt::Display) -> Error {
    Error::new(LIST_MALFORMED, format!("the list in {} cannot be read", list.from))
        .at(list.from.clone(), shown(list))
        .why(why)
        .hint("SLURM writes this variable itself: do not set it by hand")
}

fn too_long(list: &Known<String>, of: &str) -> Error {
    Error::new(LIST_TOO_LONG, format!("the list in {} stands for more than {MOST_NODES} {of}", list.from))
        .at(list.from.clone(), shown(list))
        .hint("SLURM writes this variable itself: do not set it by hand")
}

/// The list as one line that is not longer than people read.
fn shown(list: &Known<String>) -> String {
    const LONGEST: usize = 200;
    let text = list.value.escape_debug().to_string();
    match text.char_indices().nth(LONGEST) {
        Some((cut, _)) => format!("`{}…`", &text[..cut]),
        None => format!("`{text}`"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(list: &str) -> Vec<String> {
        expand(&Known::new(list.to_owned(), "SLURM_STEP_NODELIST")).unwrap()
    }

    fn refused(list: &str) -> Error {
        expand(&Known::new(list.to_owned(), "SLURM_STEP_NODELIST")).unwrap_err()
    }

    #[test]
    fn lists_stand_for_names_in_their_order() {
        let rows: &[(&str, &[&str])] = &[
            ("node1", &["node1"]),
            ("a,b.c.d", &["a", "b.c.d"]),
            (
                "node[001-003,7],gpu-a[1,3-5]x",
                &["node001", "node002", "node003", "node7", "gpu-a1x", "gpu-a3x", "gpu-a4x", "gpu-a5x"],
            ),
            ("r[1-2]n[08-10]", &["r1n08", "r1n09", "r1n10", "r2n08", "r2n09", "r2n10"]),
            ("n[9-11]", &["n9", "n10", "n11"]),
            ("[1-2]", &["1", "2"]),
            ("ip-10-0-0-[7,12]", &["ip-10-0-0-7", "ip-10-0-0-12"]),
            (" x[0] ", &["x0"]),
        ];
        for (list, expected) in rows {
            assert_eq!(names(list), *expected, "{list}");
        }
    }

    #[test]
    fn what_is_no_list_is_an_error_that_shows_it() {
        for list in [
            "", "a,", "a[", "a]", "a[1", "a[]", "a[2-1]", "a[1-]", "a[x]", "a[1,[2]]", "a b", "a[1-2-3]",
            "a[-1]",
        ] {
            let error = refused(list);
            assert_eq!(error.code(), LIST_MALFORMED, "{list}: {error:?}");
            assert!(error.place("SLURM_STEP_NODELIST").unwrap().contains(list), "{error:?}");
        }
        assert_eq!(
            format!("{:?}", refused("node[1-3,x]")),
            "error[D0305]: the list in SLURM_STEP_NODELIST cannot be read\n  SLURM_STEP_NODELIST  `node[1-3,x]`\n  \
             why: `x` in a bracket is neither `7` nor `001-003`\n  \
             fix: SLURM writes this variable itself: do not set it by hand"
        );
    }

    #[test]
    fn a_short_list_of_billions_of_nodes_is_refused_before_it_is_expanded() {
        for list in ["n[0-99999999999999999]", "a[0-999]b[0-999]c[0-999]", "x[0-131072]"] {
            assert_eq!(refused(list).code(), LIST_TOO_LONG, "{list}");
        }
        assert_eq!(refused(&"[1-9]".repeat(40)).code(), LIST_TOO_LONG);
        assert_eq!(names("x[1-131072]").len(), MOST_NODES);
        let long = format!("{}[1-2]", "a".repeat(300));
        let error = refused(&long);
        assert_eq!(error.code(), LIST_MALFORMED);
        assert!(error.place("SLURM_STEP_NODELIST").unwrap().len() < 300, "{error:?}");
    }

    #[test]
    fn tasks_per_node_stand_for_one_number_a_node() {
        let counts = |list: &str| expand_counts(&Known::new(list.to_owned(), "SLURM_STEP_TASKS_PER_NODE"));
        assert_eq!(counts("2(x3),1").unwrap(), [2, 2, 2, 1]);
        assert_eq!(counts("4").unwrap(), [4]);
        for list in ["", "2(x3", "2(3)", "x", "1,,1", "-1"] {
            assert_eq!(counts(list).unwrap_err().code(), LIST_MALFORMED, "{list}");
        }
        assert_eq!(counts("1(x99999999999)").unwrap_err().code(), LIST_TOO_LONG);
    }

    #[test]
    fn names_are_compressed_for_people() {
        let compressed = |list: &str| compress(&names(list));
        assert_eq!(compressed("node001,node002,node003,node007,login"), "node[001-003,007],login");
        assert_eq!(compressed("n9,n10,n11,m1"), "n[9-11],m1");
        assert_eq!(compress(&[]), "");
    }

    proptest! {
        #[test]
        fn what_was_compressed_expands_to_the_same(
            names in proptest::collection::vec("[a-c]{0,2}[0-9]{1,3}(-?[a-b]{0,1}[0-9]{0,2})?", 1..40),
        ) {
            let list = Known::new(compress(&names), "list");
            prop_assert_eq!(expand(&list).unwrap(), names, "{}", list.value);
        }

        #[test]
        fn consecutive_nodes_take_a_list_of_constant_length(
            first in 0_u64..2000, count in 2_u64..500, width in 1_usize..6,
        ) {
            let names: Vec<String> = (first..first + count).map(|n| format!("node{n:0width$}x")).collect();
            let list = Known::new(compress(&names), "list");
            prop_assert!(list.value.len() < 24, "{}", list.value);
            prop_assert_eq!(expand(&list).unwrap(), names);
        }

        #[test]
        fn no_text_makes_the_parser_panic_or_run_long(text in "[a-b0-9,\\[\\]\\-() x]{0,40}") {
            let list = Known::new(text, "list");
            let _ = expand(&list);
            let _ = expand_counts(&list);
        }
    }
}
