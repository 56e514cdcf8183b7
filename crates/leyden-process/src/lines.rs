//! What another process prints, as lines of a bounded length: to be passed on with its name in front, each by one write, so
//! that those of several processes do not mix. It neither reads nor decides where they go.

use std::io::{self, Write};

/// Cuts a stream of bytes into lines of at most [`LONGEST`] bytes. A longer one comes in pieces, all but the last of which
/// end in `…`, so that nothing is lost, and a stream without an end of line takes no memory.
#[derive(Debug, Default)]
pub struct Lines {
    unfinished: Vec<u8>,
}

/// The longest line that comes in one piece, in bytes. With a name in front it is below the 4096 bytes that a pipe takes
/// whole.
pub const LONGEST: usize = 2048;

impl Lines {
    /// Takes the next bytes; `each` gets what is whole now, without the end of the line.
    pub fn push(&mut self, bytes: &[u8], mut each: impl FnMut(&[u8])) {
        for part in bytes.split_inclusive(|&byte| byte == b'\n') {
            let (mut text, finished) = match part.split_last() {
                Some((b'\n', text)) => (text, true),
                _ => (part, false),
            };
            while self.unfinished.len() + text.len() > LONGEST {
                text = self.fill(text);
                let keep = whole(&self.unfinished);
                let rest = self.unfinished.split_off(keep);
                self.unfinished.extend("…".as_bytes());
                each(&self.unfinished);
                self.unfinished = rest;
            }
            self.unfinished.extend(text);
            if finished {
                each(self.unfinished.strip_suffix(b"\r").unwrap_or(&self.unfinished));
                self.unfinished.clear();
            }
        }
    }

    /// What has come since the last end of a line.
    pub fn unfinished(&self) -> &[u8] {
        &self.unfinished
    }

    /// The last line of a stream that has ended, if that has no end.
    pub fn finish(&mut self) -> Option<Vec<u8>> {
        let last = std::mem::take(&mut self.unfinished);
        (!last.is_empty()).then_some(last)
    }

    /// Takes what there is room for; gives what is left of it.
    fn fill<'a>(&mut self, text: &'a [u8]) -> &'a [u8] {
        let (taken, left) = text.split_at(LONGEST.saturating_sub(self.unfinished.len()));
        self.unfinished.extend(taken);
        left
    }
}

/// How many of these bytes do not end inside of a character.
fn whole(text: &[u8]) -> usize {
    match std::str::from_utf8(text) {
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        _ => text.len(),
    }
}

/// Passes one line on by one write, with the name of who has printed it in front, or without. Of a name there is room for
/// 64 characters.
///
/// # Errors
///
/// What the system says: whoever listens may have gone.
pub fn pass_on(name: Option<&str>, line: &[u8], mut to: impl Write) -> io::Result<()> {
    let name = name.map(|name| format!("[{}] ", name.chars().take(64).collect::<String>()));
    to.write_all(&[name.unwrap_or_default().as_bytes(), line, b"\n"].concat())
}

/// Says something of Leyden's own on stderr, by one write too. Whoever listens may have gone.
pub fn say(line: &str) {
    let _ = io::stderr().write_all(format!("leyden: {line}\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(pieces: &[&[u8]]) -> (Vec<Vec<u8>>, Option<Vec<u8>>) {
        let (mut lines, mut found) = (Lines::default(), Vec::new());
        for piece in pieces {
            lines.push(piece, |line| found.push(line.to_vec()));
        }
        (found, lines.finish())
    }

    #[test]
    fn lines_are_whole_however_their_bytes_come() {
        let text = b"one\r\n\ntwo\nthree";
        let expected = (vec![b"one".to_vec(), b"".to_vec(), b"two".to_vec()], Some(b"three".to_vec()));
        assert_eq!(cut(&[text]), expected);
        let bytes: Vec<&[u8]> = text.chunks(1).collect();
        assert_eq!(cut(&bytes), expected);
    }

    #[test]
    fn a_long_line_comes_in_pieces_and_none_of_its_bytes_is_lost() {
        for length in [LONGEST - 1, LONGEST, LONGEST + 1, 2 * LONGEST, 5 * LONGEST + 7] {
            // Of two bytes each, at odd places.
            let text = format!("x{}\nnext\n", "ü".repeat(length / 2));
            for step in [1, 7, 4096] {
                let pieces: Vec<&[u8]> = text.as_bytes().chunks(step).collect();
                let (found, rest) = cut(&pieces);
                assert_eq!((found.last().unwrap().as_slice(), rest), (&b"next"[..], None));
                let pieces = found[..found.len() - 1].iter().map(|piece| {
                    assert!(piece.len() <= LONGEST + "…".len(), "{}", piece.len());
                    std::str::from_utf8(piece).unwrap().trim_end_matches('…')
                });
                assert_eq!(pieces.collect::<String>() + "\nnext\n", text);
            }
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_cut_too() {
        let (found, rest) = cut(&[&[0xff; 3 * LONGEST]]);
        let count: usize = found.iter().map(|piece| piece.len() - "…".len()).sum();
        assert_eq!(count + rest.unwrap().len(), 3 * LONGEST);
    }
}
