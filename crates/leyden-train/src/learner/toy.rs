//! A closed-form learner: linear regression by gradient descent, in plain `f32`.
//!
//! It has no engine under it, so tests of the loop build in seconds, and the loop's own cost can be measured: a
//! step of it takes some tens of nanoseconds.

use std::any::Any;

use leyden_process::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Gradient, GradientClip, GradientValues, HasGradients, Layer, Learner, LearnerView, Parameter, Stage,
    Trained, Update,
};
use crate::event::Hook;
use crate::outcome::Outcome;
use crate::schedule::{Interval, Schedule};
use crate::state::{DType, LearnerState, NamedTensor, Parts, check_same_tensors};
use crate::step::StepCx;

/// Rows of features and their targets.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ToyBatch {
    /// `rows * features` values, row by row.
    pub x: Vec<f32>,
    /// One target a row.
    pub y: Vec<f32>,
}

/// `y = w·x + b` by the mean squared error and gradient descent with momentum.
pub struct ToyLearner {
    weight: Vec<f32>,
    bias: Vec<f32>,
    momentum: [Vec<f32>; 2],
    gradients: Option<[Vec<f32>; 2]>,
    base: f64,
    rate: f64,
    schedule: Option<(Interval, Box<dyn Schedule>)>,
}

impl ToyLearner {
    /// All weights zero.
    pub fn new(features: usize, rate: f64) -> Self {
        Self {
            weight: vec![0.0; features],
            bias: vec![0.0],
            momentum: [vec![0.0; features], vec![0.0]],
            gradients: None,
            base: rate,
            rate,
            schedule: None,
        }
    }

    /// With a learning-rate schedule.
    #[must_use]
    pub fn schedule(mut self, interval: Interval, mut schedule: impl Schedule + 'static) -> Self {
        self.rate = schedule.initial(self.base);
        self.schedule = Some((interval, Box::new(schedule)));
        self
    }

    /// The weights and the bias.
    pub fn weights(&self) -> (&[f32], f32) {
        (&self.weight, self.bias[0])
    }

    /// The mean squared error, and each row's residual.
    fn residuals(&self, batch: &ToyBatch) -> (f32, Vec<f32>) {
        let rows = batch.x.chunks_exact(self.weight.len());
        let residuals: Vec<f32> = rows
            .zip(&batch.y)
            .map(|(row, y)| row.iter().zip(&self.weight).map(|(x, w)| x * w).sum::<f32>() + self.bias[0] - y)
            .collect();
        (residuals.iter().map(|r| r * r).sum::<f32>() / residuals.len() as f32, residuals)
    }

    fn tensors(&self, of: &[Vec<f32>; 2], suffix: &str) -> Vec<NamedTensor> {
        let [weight, bias] = of;
        vec![
            NamedTensor::from_f32(format!("weight{suffix}"), &[weight.len()], weight),
            NamedTensor::from_f32(format!("bias{suffix}"), &[1], bias),
        ]
    }

    fn expected(&self, suffix: &str) -> [(String, DType, Vec<usize>); 2] {
        [
            (format!("weight{suffix}"), DType::F32, vec![self.weight.len()]),
            (format!("bias{suffix}"), DType::F32, vec![1]),
        ]
    }

    fn pair(&self, what: &str, suffix: &str, tensors: &[NamedTensor]) -> Result<[Vec<f32>; 2]> {
        check_same_tensors(what, &self.expected(suffix), tensors)?;
        let values = |index: usize| tensors[index].to_f32().unwrap_or_default();
        Ok([values(0), values(1)])
    }
}

impl Learner<ToyBatch> for ToyLearner {
    fn setup(&mut self, _: Stage, _: u64) -> Result<()> {
        Ok(())
    }

    fn configure_optimizers(&mut self) -> Result<()> {
        Ok(())
    }

    fn train(&mut self, batch: ToyBatch, cx: &mut StepCx<'_>) -> Result<Trained> {
        let (loss, residuals) = self.residuals(&batch);
        let scale = 2.0 / residuals.len() as f32;
        let features = self.weight.len();
        let [weight, bias] = self.gradients.get_or_insert_with(|| [vec![0.0; features], vec![0.0]]);
        for (row, residual) in batch.x.chunks_exact(features).zip(&residuals) {
            for (sum, x) in weight.iter_mut().zip(row) {
                *sum += scale * residual * x;
            }
            bias[0] += scale * residual;
        }
        cx.log("train/loss", loss).prog_bar();
        Ok(Trained::Loss(loss.into()))
    }

    fn evaluate(&mut self, batch: ToyBatch, cx: &mut StepCx<'_>) -> Result<()> {
        let (loss, _) = self.residuals(&batch);
        cx.log(if cx.stage() == Stage::Test { "test/loss" } else { "val/loss" }, loss).prog_bar();
        Ok(())
    }

    fn predict(&mut self, batch: ToyBatch, _: &mut StepCx<'_>) -> Result<Box<dyn Any + Send>> {
        let (_, residuals) = self.residuals(&batch);
        Ok(Box::new(residuals.iter().zip(&batch.y).map(|(r, y)| r + y).collect::<Vec<f32>>()))
    }

    fn apply(&mut self, update: &Update) -> Result<()> {
        let Some(mut gradients) = self.gradients.take() else { return Ok(()) };
        let all = || gradients.iter().flatten().map(|&g| f64::from(g) / f64::from(update.accumulated));
        let shrink = match update.clip {
            Some(GradientClip::Norm(limit)) => {
                (limit / (all().map(|g| g * g).sum::<f64>().sqrt() + 1e-6)).min(1.0)
            }
            _ => 1.0,
        };
        let limit = match update.clip {
            Some(GradientClip::Value(limit)) => limit as f32,
            _ => f32::INFINITY,
        };
        let parameters = [&mut self.weight, &mut self.bias];
        for ((values, sums), momenta) in parameters.into_iter().zip(&mut gradients).zip(&mut self.momentum) {
            for ((value, sum), momentum) in values.iter_mut().zip(sums).zip(momenta) {
                let mean = *sum / update.accumulated as f32;
                let gradient = (mean * shrink as f32).clamp(-limit, limit);
                *momentum = MOMENTUM * *momentum + gradient;
                *value -= self.rate as f32 * *momentum;
            }
        }
        Ok(())
    }

    fn advance(&mut self, due: Interval, metric: &dyn Fn(&str) -> Option<f64>) -> Result<()> {
        if let Some((interval, schedule)) = &mut self.schedule
            && *interval == due
        {
            self.rate = schedule.next(metric)?;
        }
        Ok(())
    }

    fn hook(&mut self, _: Hook, _: Option<&mut StepCx<'_>>) -> Result<()> {
        Ok(())
    }

    fn state(&mut self, parts: Parts) -> Result<LearnerState> {
        let weights = self.tensors(&[self.weight.clone(), self.bias.clone()], "");
        if parts == Parts::Weights {
            return Ok(LearnerState { weights, ..LearnerState::default() });
        }
        let gradients =
            self.gradients.as_ref().map(|gradients| self.tensors(gradients, "")).unwrap_or_default();
        let schedule = self.schedule.as_ref().map_or(Value::Null, |(_, schedule)| schedule.state());
        let values = json!({ "rate": self.rate.to_bits(), "schedule": schedule });
        Ok(LearnerState { weights, optimizer: self.tensors(&self.momentum, ".momentum"), gradients, values })
    }

    fn load(&mut self, state: LearnerState, parts: Parts) -> Result<()> {
        let [weight, bias] = self.pair("weights", "", &state.weights)?;
        if parts == Parts::All {
            self.momentum = self.pair("optimizer tensors", ".momentum", &state.optimizer)?;
            self.gradients = match state.gradients.is_empty() {
                true => None,
                false => Some(self.pair("gradients", "", &state.gradients)?),
            };
            self.rate = f64::from_bits(serde_json::from_value(state.values["rate"].clone())?);
            if let Some((_, schedule)) = &mut self.schedule {
                schedule.load_state(&state.values["schedule"])?;
            }
        }
        (self.weight, self.bias) = (weight, bias);
        Ok(())
    }

    fn on_exception(&mut self, _: &Error) -> Result<()> {
        Ok(())
    }

    fn teardown(&mut self, _: &Outcome) -> Result<()> {
        Ok(())
    }
}

impl HasGradients for ToyLearner {
    fn visit_gradients(&mut self, visit: &mut dyn FnMut(Gradient<'_>) -> Result<()>) -> Result<()> {
        let shapes = [[self.weight.len()], [1]];
        match &mut self.gradients {
            Some([weight, bias]) => {
                visit(Gradient {
                    path: "weight",
                    shape: &shapes[0],
                    values: Some(GradientValues::F32(weight)),
                })?;
                visit(Gradient { path: "bias", shape: &shapes[1], values: Some(GradientValues::F32(bias)) })
            }
            None => {
                visit(Gradient { path: "weight", shape: &shapes[0], values: None })?;
                visit(Gradient { path: "bias", shape: &shapes[1], values: None })
            }
        }
    }

    fn zero_gradients(&mut self, _: &dyn Fn(&str) -> bool) {
        // It always has both or none.
        let features = self.weight.len();
        self.gradients.get_or_insert_with(|| [vec![0.0; features], vec![0.0]]);
    }

    fn clear_gradients(&mut self) {
        self.gradients = None;
    }
}

impl LearnerView for ToyLearner {
    fn parameters(&self) -> Vec<Parameter> {
        let parameter = |(path, dtype, shape)| Parameter { path, dtype, shape, trainable: true };
        self.expected("").into_iter().map(parameter).collect()
    }

    fn layers(&self) -> Vec<Layer> {
        vec![Layer { path: String::new(), kind: "ToyLearner".to_owned() }]
    }

    fn learning_rates(&self) -> Vec<(String, f64)> {
        vec![("base".to_owned(), self.rate)]
    }

    fn weight(&self, path: &str) -> Result<Option<NamedTensor>> {
        let all = self.tensors(&[self.weight.clone(), self.bias.clone()], "");
        Ok(all.into_iter().find(|tensor| tensor.name == path))
    }

    fn device(&self) -> String {
        "plain Rust".to_owned()
    }
}

const MOMENTUM: f32 = 0.9;
