//! What all ranks must agree on before the first step: the program, its configuration, the model, the amount of data.

use leyden_process::{Code, Error, exit};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::TrainerConfig;
use crate::learner::Parameter;

/// Names and values, in an order that is the same on all ranks that agree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest(Vec<(String, String)>);

impl Manifest {
    /// That of this program.
    pub(crate) fn new() -> Self {
        let build: String =
            leyden_process::entry::build_id().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Self::default().and("program", format!("build {build}"))
    }

    #[must_use]
    pub(crate) fn and(mut self, name: impl Into<String>, value: impl ToString) -> Self {
        self.0.push((name.into(), value.to_string()));
        self
    }

    /// Each setting on which the steps of a run depend; where it writes and what it shows, rank 0 alone decides.
    #[must_use]
    pub(crate) fn configuration(mut self, config: &TrainerConfig) -> Self {
        const APART: [&str; 6] = [
            "enable_model_summary",
            "enable_progress_bar",
            "name",
            "rank_timeout",
            "root_dir",
            "teardown_timeout",
        ];
        if let Ok(Value::Object(settings)) = serde_json::to_value(config) {
            for (name, value) in settings.iter().filter(|(name, _)| !APART.contains(&name.as_str())) {
                self = self.and(format!("configuration `{name}`"), value);
            }
        }
        self
    }

    #[must_use]
    pub(crate) fn parameters(mut self, parameters: &[Parameter]) -> Self {
        for Parameter { path, dtype, shape, trainable } in parameters {
            let how = if *trainable { "trained" } else { "not trained" };
            self = self.and(format!("parameter `{path}`"), format!("{dtype:?} {shape:?}, {how}"));
        }
        self
    }

    /// Equal for equal ones (FNV-1a).
    pub(crate) fn hash(&self) -> i64 {
        let bytes = self.0.iter().flat_map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes(), b"\n"]);
        let hash = bytes.flatten().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
        hash.cast_signed()
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// The error of ranks that do not agree: what differs, and who has what.
pub(crate) fn difference(all: &[Manifest]) -> Error {
    let mut error = Error::new(OTHER_ON_RANKS, "ranks do not train the same");
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in all.iter().flat_map(|manifest| &manifest.0) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let differing: Vec<_> = names
        .into_iter()
        .map(|name| (name, all.iter().map(|manifest| manifest.get(name)).collect::<Vec<_>>()))
        .filter(|(_, values)| values.iter().any(|value| *value != values[0]))
        .collect();
    for (name, values) in differing.iter().take(SHOWN) {
        error = error.at(*name, who_has_what(values));
    }
    if differing.len() > SHOWN {
        error = error.at("and more", format_args!("{} differences", differing.len() - SHOWN));
    }
    if differing.is_empty() {
        let orders: Vec<Vec<&str>> =
            all.iter().map(|manifest| manifest.0.iter().map(|(name, _)| name.as_str()).collect()).collect();
        let first =
            (0..orders[0].len()).find(|&place| orders.iter().any(|order| order[place] != orders[0][place]));
        if let Some(place) = first {
            let names: Vec<_> = orders.iter().map(|order| Some(order[place])).collect();
            error = error.at("the first to differ", who_has_what(&names));
        }
        error = error.why("the same parameters are in another order");
    }
    error
        .why("each rank runs the whole program: something there depends on the rank, on time or on chance")
        .hint("build model and data the same way on every rank; a choice that one rank makes is given to all by `on_rank_zero`")
}

/// `F32 [10, 5] on rank 0; F32 [10, 6] on ranks 1, 2`.
fn who_has_what(values: &[Option<&str>]) -> String {
    let mut kinds: Vec<(Option<&str>, Vec<String>)> = Vec::new();
    for (rank, value) in values.iter().enumerate() {
        match kinds.iter_mut().find(|(known, _)| known == value) {
            Some((_, ranks)) => ranks.push(rank.to_string()),
            None => kinds.push((*value, vec![rank.to_string()])),
        }
    }
    let words = kinds.into_iter().map(|(value, ranks)| {
        let ranks = format!("{} {}", if ranks.len() == 1 { "rank" } else { "ranks" }, ranks.join(", "));
        format!("{} on {ranks}", value.unwrap_or("missing"))
    });
    words.collect::<Vec<_>>().join("; ")
}

/// Enough to see the pattern, few enough to read.
const SHOWN: usize = 12;

/// Ranks do not train the same.
pub const OTHER_ON_RANKS: Code = Code::new("D0401", exit::CONFIGURATION);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::DType;

    fn manifest(width: usize, bias: bool) -> Manifest {
        let parameter = |path: &str, shape: &[usize]| Parameter {
            path: path.to_owned(),
            dtype: DType::F32,
            shape: shape.to_vec(),
            trainable: true,
        };
        let mut all = vec![parameter("weight", &[10, width])];
        if bias {
            all.push(parameter("bias", &[10]));
        }
        Manifest::new().parameters(&all)
    }

    #[test]
    fn what_differs_is_listed_with_who_has_what() {
        let all = [manifest(5, true), manifest(6, true), manifest(6, false)];
        assert_eq!(manifest(5, true).hash(), all[0].hash());
        assert_ne!(all[0].hash(), all[1].hash());
        let error = difference(&all);
        assert_eq!(error.code(), OTHER_ON_RANKS);
        assert_eq!(
            error.place("parameter `weight`"),
            Some("F32 [10, 5], trained on rank 0; F32 [10, 6], trained on ranks 1, 2")
        );
        assert_eq!(
            error.place("parameter `bias`"),
            Some("F32 [10], trained on ranks 0, 1; missing on rank 2")
        );
        assert_eq!(error.place("program"), None);
    }

    #[test]
    fn parameters_in_another_order_are_named() {
        let there = manifest(5, true);
        let mut other = there.clone();
        other.0.swap(1, 2);
        let error = difference(&[there, other]);
        let found = error.place("the first to differ");
        assert_eq!(found, Some("parameter `weight` on rank 0; parameter `bias` on rank 1"));
    }

    #[test]
    fn settings_that_differ_are_named_one_by_one() {
        let of = |config: &TrainerConfig| Manifest::new().configuration(config);
        let here = TrainerConfig { max_epochs: Some(3), ..TrainerConfig::default() };
        let there = TrainerConfig { max_epochs: Some(4), ..TrainerConfig::default() };
        let error = difference(&[of(&here), of(&there)]);
        assert_eq!(error.place("configuration `max_epochs`"), Some("3 on rank 0; 4 on rank 1"));
        let shown =
            TrainerConfig { enable_progress_bar: false, root_dir: "elsewhere".into(), ..here.clone() };
        assert_eq!(of(&here).hash(), of(&shown).hash());
    }
}
