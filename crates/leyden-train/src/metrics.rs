//! What a run measured: names and values, printed as a table.

use std::fmt;

use crate::logs::Logs;

/// Names and values, in the order in which they were first logged.
#[derive(Clone, Debug, Default, PartialEq)]
#[must_use = "the measured values are in here"]
pub struct Metrics {
    values: Vec<(String, f64)>,
}

impl Metrics {
    /// The value of that name.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.values.iter().find(|(known, _)| known == name).map(|(_, value)| *value)
    }

    /// All names and values.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, f64)> {
        self.values.iter().map(|(name, value)| (name.as_str(), *value))
    }

    /// The number of values.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    pub(crate) fn set(&mut self, name: &str, value: f64) {
        match self.values.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => *known = value,
            None => self.values.push((name.to_owned(), value)),
        }
    }
}

impl FromIterator<(String, f64)> for Metrics {
    fn from_iter<I: IntoIterator<Item = (String, f64)>>(values: I) -> Self {
        let mut metrics = Self::default();
        for (name, value) in values {
            metrics.set(&name, value);
        }
        metrics
    }
}

/// One line a value, names aligned: `test/accuracy 0.9778`.
impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.values.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        for (index, (name, value)) in self.values.iter().enumerate() {
            let end = if index + 1 < self.values.len() { "\n" } else { "" };
            write!(f, "{name:<width$} {}{end}", Shown(*value))?;
        }
        Ok(())
    }
}

/// A value as people read it: four significant digits after leading zeros, exponents only where needed.
pub(crate) struct Shown(pub(crate) f64);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = self.0.abs();
        if size != 0.0 && !(1e-3..1e6).contains(&size) {
            write!(f, "{:.3e}", self.0)
        } else if size >= 100.0 {
            write!(f, "{:.2}", self.0)
        } else {
            write!(f, "{:.4}", self.0)
        }
    }
}

/// The values that callbacks see: the newest of each name, of this step or of an epoch.
#[derive(Clone, Copy, Debug)]
pub struct MetricsView<'a> {
    pub(crate) epoch: &'a Metrics,
    pub(crate) step: &'a Logs,
}

impl MetricsView<'_> {
    /// The newest value of that name: of a step where it is logged at the step level, else of an epoch. Where it is
    /// logged at both, `<name>` is `<name>_epoch` once there is one, and `<name>_step` before.
    pub fn get(&self, name: &str) -> Option<f64> {
        let exact = self.step.get(name).or_else(|| self.epoch.get(name));
        exact
            .or_else(|| self.epoch.get(&format!("{name}_epoch")))
            .or_else(|| self.step.get(&format!("{name}_step")))
    }

    /// The epoch-level values so far.
    pub fn epoch_values(&self) -> impl ExactSizeIterator<Item = (&str, f64)> {
        self.epoch.iter()
    }

    /// Calls `each` for the values that were logged for the progress bar.
    pub fn prog_bar(&self, each: impl FnMut(&str, f64)) {
        self.step.prog_bar(each);
    }
}
