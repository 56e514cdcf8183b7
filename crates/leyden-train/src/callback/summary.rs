//! [`ModelSummary`]: the layers, before training.

use std::fmt::Write as _;

use leyden_process::Result;

use crate::control::Control;
use crate::event::{Callback, Event};
use crate::learner::{LearnerView, Parameter};
use crate::say::print;

/// Prints the model's layers with type, parameter shapes and parameter counts when `fit` begins.
#[derive(Clone, Debug)]
pub struct ModelSummary {
    max_depth: usize,
}

impl Default for ModelSummary {
    fn default() -> Self {
        Self::new()
    }
}

impl ModelSummary {
    /// Shows the direct children of the model, as Lightning does.
    pub fn new() -> Self {
        Self { max_depth: 1 }
    }

    /// How deep it shows nested modules; `usize::MAX` shows all.
    #[must_use]
    pub fn max_depth(mut self, depth: usize) -> Self {
        self.max_depth = depth;
        self
    }

    /// The table.
    pub fn render(&self, learner: &dyn LearnerView) -> String {
        let parameters = learner.parameters();
        let layers = learner.layers();
        let shown = layers
            .iter()
            .filter(|layer| !layer.path.is_empty() && layer.path.split('.').count() <= self.max_depth);
        let rows: Vec<[String; 4]> = shown
            .map(|layer| {
                let inside = |parameter: &&Parameter| {
                    parameter.path.strip_prefix(&layer.path).is_some_and(|rest| rest.starts_with('.'))
                };
                let own: Vec<_> = parameters.iter().filter(inside).collect();
                let shapes: Vec<_> = own.iter().map(|parameter| format!("{:?}", parameter.shape)).collect();
                let shapes = if shapes.len() > MOST_SHAPES { "…".to_owned() } else { shapes.join(" ") };
                let count: usize = own.iter().map(|parameter| parameter.len()).sum();
                let kind = if layer.kind.is_empty() { "-" } else { &layer.kind };
                [layer.path.clone(), kind.to_owned(), shapes, grouped(count)]
            })
            .collect();
        table(&rows) + &totals(&parameters)
    }
}

impl Callback for ModelSummary {
    fn name(&self) -> String {
        "ModelSummary".to_owned()
    }

    fn rank_zero_only(&self) -> bool {
        true
    }

    fn on_fit_start(&mut self, event: &Event<'_>, _: &mut Control) -> Result<()> {
        print(&self.render(event.learner));
        Ok(())
    }
}

fn table(rows: &[[String; 4]]) -> String {
    let heads = ["layer", "type", "shapes", "parameters"].map(str::to_owned);
    let width =
        |column: usize| rows.iter().chain([&heads]).map(|row| row[column].chars().count()).max().unwrap_or(0);
    let [name, kind, shapes, count] = [width(0), width(1), width(2), width(3)];
    let mut text = String::new();
    for row in [&heads].into_iter().chain(rows) {
        let _ =
            writeln!(text, "{:<name$}  {:<kind$}  {:<shapes$}  {:>count$}", row[0], row[1], row[2], row[3]);
    }
    text
}

fn totals(parameters: &[Parameter]) -> String {
    let count = |trainable: bool| -> usize {
        parameters.iter().filter(|parameter| parameter.trainable == trainable).map(Parameter::len).sum()
    };
    let bytes: usize = parameters.iter().map(|parameter| parameter.len() * parameter.dtype.size()).sum();
    let [trainable, fixed] = [count(true), count(false)];
    format!(
        "{} trainable parameters, {} others, {:.2} MB\n",
        grouped(trainable),
        grouped(fixed),
        bytes as f64 / 1e6
    )
}

/// `1797` as `1,797`.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A layer with more parameters than this shows no shapes.
const MOST_SHAPES: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_thousands() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
