//! The rows `loader/…`: the loader beside PyTorch's, on the same bytes.
//!
//! Each side of a row is a process of its own; they make their passes alternately. First both make one whose every byte
//! is summed, and the sums are compared. In the others nobody looks at the batches.

mod checksum;
mod data;
mod ours;
mod side;

use leyden::{Error, Result};
use serde_json::Value;

pub(crate) use self::ours::serve;
use self::side::Side;
use crate::{Row, Spread};

/// A row to be measured.
pub(crate) struct Plan {
    row: &'static str,
    /// What the sides do; theirs in each of these contexts, of which the best counts.
    cell: &'static str,
    contexts: &'static [&'static str],
    /// What an expert would write for PyTorch in its place: told, not compared.
    tuned: Option<&'static str>,
    rounds: usize,
    /// How many of them PyTorch is in.
    peer_rounds: usize,
    figure: Figure,
    goal: &'static str,
}

/// What of a pass is compared.
#[derive(Clone, Copy, PartialEq)]
enum Figure {
    /// Microseconds a batch.
    Batch,
    /// Gigabytes a second.
    Bytes,
    /// Images a second.
    Images,
    /// Milliseconds from building a loader to its first batch.
    Start,
    /// Milliseconds to a place in an order, for 10⁹ samples.
    Resume,
    /// Milliseconds from a death until it is known: the 99th percentile.
    Death,
}

const ANY: &[&str] = &["fork", "spawn"];

/// All rows, in order.
pub(crate) fn plans() -> Vec<Plan> {
    let plan = |row, contexts, rounds, figure, goal| Plan {
        row,
        cell: row.strip_prefix("loader/").unwrap_or(row),
        contexts,
        tuned: None,
        rounds,
        peer_rounds: rounds,
        figure,
        goal,
    };
    vec![
        Plan {
            tuned: Some("tensors-inline-getitems"),
            ..plan("loader/tensors-inline", &["none"], 9, Figure::Batch, ">= 8x")
        },
        Plan {
            tuned: Some("tensors-2proc-getitems"),
            ..plan("loader/tensors-2proc", ANY, 7, Figure::Batch, ">= 20x")
        },
        plan("loader/dict32-1proc", ANY, 7, Figure::Batch, ">= 50x"),
        plan("loader/big-2proc", ANY, 7, Figure::Bytes, ">= 4x"),
        Plan { tuned: Some("jpeg-torchvision"), ..plan("loader/jpeg", ANY, 5, Figure::Images, ">= 2.5x") },
        Plan { peer_rounds: 5, ..plan("loader/start-2spawn", &["spawn"], 25, Figure::Start, "<= 5 ms") },
        Plan { peer_rounds: 1, ..plan("loader/ship-128mib", &["spawn"], 5, Figure::Start, ">= 50x") },
        Plan { peer_rounds: 1, ..plan("loader/resume-1e9", &["none"], 15, Figure::Resume, "<= 1 ms") },
        Plan { peer_rounds: 20, ..plan("loader/death-p99", ANY, 60, Figure::Death, "<= 20 ms") },
    ]
}

impl Plan {
    pub(crate) fn row(&self) -> &'static str {
        self.row
    }

    /// Measures it, beside PyTorch if there is one.
    pub(crate) fn measure(&self, peer: bool) -> Result<Row> {
        let mut ours = Passes::of(Side::ours(self.cell)?, "Leyden".to_owned());
        let mut peers = Vec::new();
        let mut tuned = Vec::new();
        if peer {
            for &context in self.contexts {
                peers.push(Passes::of(Side::torch(self.cell, context)?, format!("torch, {context}")));
                if let Some(cell) = self.tuned {
                    tuned.push(Passes::of(Side::torch(cell, context)?, format!("{cell}, {context}")));
                }
            }
        }
        let mut sum = ours.side.ask("verify")?;
        if self.figure == Figure::Images {
            // Decoders differ in the last bits.
            sum.as_object_mut().map(|sum| sum.remove("checksum"));
        }
        for other in peers.iter_mut().chain(&mut tuned) {
            let theirs = other.side.ask("verify")?;
            if sum != theirs {
                return Err(Error::msg("the two sides load different bytes")
                    .at("row", self.row)
                    .at("Leyden", &sum)
                    .at(&other.name, &theirs));
            }
        }
        for round in 0..self.rounds {
            ours.pass()?;
            if round < self.peer_rounds {
                peers.iter_mut().chain(&mut tuned).try_for_each(Passes::pass)?;
            }
        }
        Ok(self.compare(&ours, &peers, &tuned, &sum))
    }

    fn compare(&self, ours: &Passes, peers: &[Passes], tuned: &[Passes], sum: &Value) -> Row {
        let best = peers.iter().min_by(|a, b| a.seconds().median.total_cmp(&b.seconds().median));
        let (figure, unit) = (self.figure, self.figure.unit());
        let mut notes: Vec<String> = sum["checksum"]
            .as_str()
            .map(|text| format!("checksum {text} of {} samples on each side", sum["samples"]))
            .into_iter()
            .collect();
        for passes in std::iter::once(ours).chain(peers).chain(tuned) {
            notes.push(format!("{}: {}", passes.name, passes.describe(figure)));
        }
        let (mine, theirs) = (ours.spread(figure), best.map(|best| best.spread(figure)));
        let ratio = theirs.map(|theirs| match figure {
            Figure::Bytes | Figure::Images => figure.of(mine) / figure.of(theirs),
            _ => figure.of(theirs) / figure.of(mine),
        });
        let compared = best.map_or("torch".to_owned(), |best| best.name.clone());
        Row { row: self.row, ours: mine, peer: theirs, unit, ratio, goal: self.goal, compared, notes }
    }
}

impl Figure {
    fn unit(self) -> &'static str {
        match self {
            Self::Batch => "us/batch",
            Self::Bytes => "GB/s",
            Self::Images => "images/s",
            Self::Start | Self::Resume | Self::Death => "ms",
        }
    }

    /// The number that is compared.
    fn of(self, spread: Spread) -> f64 {
        if self == Self::Death { spread.p99 } else { spread.median }
    }

    /// The figure of one pass.
    fn read(self, pass: &Value) -> f64 {
        let number = |name: &str| pass[name].as_f64().unwrap_or(f64::NAN);
        match self {
            Self::Batch => number("seconds") / number("batches") * 1e6,
            Self::Bytes => number("batches") * BIG_BATCH_BYTES / number("seconds") / 1e9,
            Self::Images => number("batches") * IMAGES_A_BATCH / number("seconds"),
            Self::Start | Self::Death => number("seconds") * 1e3,
            // PyTorch's order is a list: ten times the samples take ten times as long.
            Self::Resume if number("samples") < 1e9 => number("seconds") * 1e3 * 1e9 / number("samples"),
            Self::Resume => number("seconds") * 1e3,
        }
    }
}

/// A side and what it has measured.
struct Passes {
    name: String,
    side: Side,
    passes: Vec<Value>,
}

impl Passes {
    fn of(side: Side, name: String) -> Self {
        Self { name, side, passes: Vec::new() }
    }

    fn pass(&mut self) -> Result<()> {
        self.passes.push(self.side.ask("round")?);
        Ok(())
    }

    fn seconds(&self) -> Spread {
        Spread::of(self.numbers("seconds"))
    }

    fn spread(&self, figure: Figure) -> Spread {
        Spread::of(self.passes.iter().map(|pass| figure.read(pass)).collect())
    }

    fn numbers(&self, name: &str) -> Vec<f64> {
        self.passes.iter().filter_map(|pass| pass[name].as_f64()).collect()
    }

    /// Its figures in words, with what else it has measured.
    fn describe(&self, figure: Figure) -> String {
        let Spread { median, min, max, p99 } = self.spread(figure);
        let mut text = format!("{median:.3} {} [{min:.3} to {max:.3}]", figure.unit());
        let mut say = |words: String| text += &format!(", {words}");
        let median = |name: &str| Spread::of(self.numbers(name)).median;
        match figure {
            Figure::Batch => {
                say(format!("parent {:.2} us of processor a batch", median("cpu") / median("batches") * 1e6))
            }
            Figure::Bytes => {
                let gigabytes = median("batches") * BIG_BATCH_BYTES / 1e9;
                say(format!("parent {:.2} ms of processor a GB", median("cpu") / gigabytes * 1e3));
            }
            Figure::Images => {}
            Figure::Start => {
                for (name, words) in [("data", "of which data set"), ("build", "building")] {
                    if !self.numbers(name).is_empty() {
                        say(format!("{words} {:.3} ms", median(name) * 1e3));
                    }
                }
                say(format!("workers' memory {:.1} MB", median("pss") / 1e6));
            }
            Figure::Resume => {
                say(format!("order {} bytes, measured with {} samples", median("bytes"), median("samples")))
            }
            Figure::Death => say(format!("p99 {p99:.3} of {}", self.passes.len())),
        }
        text
    }
}

const IMAGES_A_BATCH: f64 = 32.0;
const BIG_BATCH_BYTES: f64 = 64.0 * 3.0 * 224.0 * 224.0 * 4.0;
