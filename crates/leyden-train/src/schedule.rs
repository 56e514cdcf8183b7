//! Learning-rate schedules: the rate of each step as a function of what came before.
//!
//! Nothing here touches an optimizer, a tensor or momentum; a schedule says a number and the engine applies it.
//! Names, defaults and arithmetic are PyTorch's (`torch.optim.lr_scheduler`), to the bit where a test says so. A
//! schedule's state is its progress alone: the options are the program's, also after a resume.

mod decay;
mod one_cycle;
mod plateau;

use leyden_process::{Code, Error, Result, exit};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::metric::{abridged, exact};

pub use decay::{CosineAnnealing, ExponentialLr, LinearWarmup, StepLr};
pub use one_cycle::{Anneal, OneCycle};
pub use plateau::{ReduceLROnPlateau, ThresholdMode};

/// When a schedule goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interval {
    /// After each optimizer step: what [`OneCycle`] and [`LinearWarmup`] are made for.
    Step,
    /// After each epoch, as Lightning's default has it.
    #[default]
    Epoch,
}

/// A learning rate that changes: [`initial`](Schedule::initial) once, then [`next`](Schedule::next) after each
/// [`Interval`].
pub trait Schedule: Send {
    /// Starts from the beginning and gives the rate of the first step; `base` is the optimizer's configured rate.
    /// A resumed run calls [`load_state`](Schedule::load_state) after this.
    fn initial(&mut self, base: f64) -> f64;

    /// The rate after one more interval; `metrics` gives the latest value of a logged name.
    ///
    /// # Errors
    /// [`BAD_SCHEDULE`] if the options make no sense or `initial` was never called, [`NO_MONITOR`] if the monitored
    /// metric was not logged, [`SCHEDULE_ENDED`] past the last step of a schedule that has one.
    fn next(&mut self, metrics: &dyn Fn(&str) -> Option<f64>) -> Result<f64>;

    /// Refuses options that make no sense. To be called when a run is configured; [`next`](Schedule::next) refuses
    /// them too, but only after the first step.
    ///
    /// # Errors
    /// [`BAD_SCHEDULE`].
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// The metric that [`next`](Schedule::next) asks for, if it asks for one.
    fn monitor(&self) -> Option<&str> {
        None
    }

    /// The progress, as JSON that restores it to the bit.
    fn state(&self) -> Value;

    /// Goes on from `state`: the next call of [`next`](Schedule::next) gives what it would have given there.
    ///
    /// # Errors
    /// [`BAD_SCHEDULE_STATE`] if `state` is of another kind of schedule; the progress is then as before.
    fn load_state(&mut self, state: &Value) -> Result<()>;
}

/// How far a schedule has come: intervals done, and the rate it goes on from.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Progress {
    step: u64,
    #[serde(with = "exact")]
    rate: f64,
}

fn started<P>(at: Option<P>, kind: &str) -> Result<P> {
    at.ok_or_else(|| {
        Error::new(BAD_SCHEDULE, format!("`{kind}` was asked for its next rate before its first"))
            .hint("call `initial` with the optimizer's rate, or `load_state`, before `next`")
    })
}

fn require(holds: bool, kind: &str, option: &str, rule: &str, found: impl std::fmt::Display) -> Result<()> {
    if holds {
        return Ok(());
    }
    Err(Error::new(BAD_SCHEDULE, format!("`{kind}` cannot run with `{option}` {found}"))
        .at("expected", rule)
        .at("found", found)
        .hint(format!("give `{option}` a value with {rule}")))
}

/// The kind travels with the progress, because the progresses of two kinds may look alike.
fn saved<P: Serialize>(kind: &str, at: Option<P>) -> Value {
    json!({ "schedule": kind, "at": at })
}

fn restored<P: DeserializeOwned>(kind: &str, state: &Value) -> Result<Option<P>> {
    let refused = || {
        Error::new(BAD_SCHEDULE_STATE, format!("a saved state does not fit schedule `{kind}`"))
            .at("state", abridged(state))
            .hint("resume with the schedules, in their order, with which the checkpoint was saved")
    };
    match state["schedule"].as_str() {
        Some(found) if found == kind => {
            Option::deserialize(&state["at"]).map_err(|error| refused().because(&error))
        }
        found => Err(refused().at("expected", kind).at("found", found.unwrap_or("no `schedule`"))),
    }
}

/// `T0601`: a schedule's options make no sense, or it was not started.
pub const BAD_SCHEDULE: Code = Code::new("T0601", exit::CONFIGURATION);
/// `T0602`: a schedule's monitored metric is not logged.
pub const NO_MONITOR: Code = Code::new("T0602", exit::CONFIGURATION);
/// `T0603`: a schedule of a fixed length was asked for more steps.
pub const SCHEDULE_ENDED: Code = Code::new("T0603", exit::CONFIGURATION);
/// `T0604`: a saved schedule state is of another kind of schedule.
pub const BAD_SCHEDULE_STATE: Code = Code::new("T0604", exit::CONFIGURATION);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::callback::Mode;

    /// The rates of the first `values.len() + 1` intervals at base rate 0.1, where interval *i* has logged `values[i]`.
    fn rates(schedule: &mut dyn Schedule, values: &[f64]) -> Vec<f64> {
        let mut rates = vec![schedule.initial(0.1)];
        rates.extend(values.iter().map(|&value| schedule.next(&|_| Some(value)).unwrap()));
        rates
    }

    fn rates_of(mut schedule: impl Schedule, steps: usize) -> Vec<f64> {
        rates(&mut schedule, &vec![f64::NAN; steps])
    }

    // All golden numbers are printed by torch 2.15.0 (CPU): `param_groups[0]["lr"]` of an SGD with lr=0.1 after the
    // constructor and after each `scheduler.step()`, with the options of the test and `cycle_momentum=False`.

    #[test]
    fn one_cycle_is_torch_to_the_bit() {
        let torch = [
            0.016000000000000014,
            0.20800000000000002,
            0.4,
            0.38019385280538953,
            0.3246982615799052,
            0.24450480877451572,
            0.1554967912254843,
            0.0753033384200948,
            0.019807747194610516,
            1.6e-06,
        ];
        assert_eq!(rates_of(OneCycle::new(0.4, 10), 9), torch);
    }

    #[test]
    fn one_cycle_in_three_phases_is_torch_to_the_bit() {
        let linear = OneCycle::new(0.4, 12)
            .anneal(Anneal::Linear)
            .three_phase(true)
            .pct_start(0.25)
            .div_factor(10.0)
            .final_div_factor(100.0);
        let torch = [
            0.04,
            0.22000000000000003,
            0.4,
            0.22,
            0.03999999999999998,
            0.03434285714285715,
            0.028685714285714287,
            0.02302857142857143,
            0.017371428571428572,
            0.011714285714285712,
            0.006057142857142858,
            0.0003999999999999976,
        ];
        assert_eq!(rates_of(linear, 11), torch);
        let torch = [
            0.040000000000000036,
            0.2207248951078079,
            0.6268100482990309,
            0.9524650565931612,
            0.9524650565931612,
            0.6268100482990309,
            0.22072489510780793,
            0.04,
            0.038019575420312576,
            0.032470549057570956,
            0.024451973637258376,
            0.015552026362741628,
            0.0075334509424290486,
            0.0019844245796874246,
            4e-06,
        ];
        assert_eq!(rates_of(OneCycle::new(1.0, 15).three_phase(true), 14), torch);
    }

    #[test]
    fn one_cycle_holds_its_last_rate_once_and_then_is_over() {
        let mut cycle = OneCycle::new(0.4, 3).anneal(Anneal::Linear);
        let rates = rates(&mut cycle, &[0.0; 3]);
        assert_eq!(rates[2], rates[3]);
        assert!(rates[3] > 0.0);
        // torch: "Tried to step 4 times. The specified number of total steps is 3".
        let error = cycle.next(&|_| None).unwrap_err();
        assert_eq!(error.code(), SCHEDULE_ENDED);
        assert_eq!(error.what(), "`OneCycle` of 3 steps was asked for the rate after step 4");
    }

    #[test]
    fn one_cycle_bears_phases_without_steps() {
        assert_eq!(rates_of(OneCycle::new(0.4, 10).pct_start(0.1), 10)[0], 0.4);
        for pct_start in [0.0, 0.1, 0.5, 1.0] {
            for three_phase in [false, true] {
                let rates =
                    rates_of(OneCycle::new(0.4, 10).pct_start(pct_start).three_phase(three_phase), 10);
                assert!(rates.iter().all(|rate| (0.0..=0.4).contains(rate)), "{pct_start} {rates:?}");
            }
        }
    }

    #[test]
    fn plateau_is_torch_to_the_bit() {
        let values = [1.0, 0.9, 0.9, 0.89995, 0.95, 0.95, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6];
        let mut plateau = ReduceLROnPlateau::new("val/loss").patience(1).cooldown(2).factor(0.3);
        let last = 0.0026999999999999997;
        let torch =
            [0.1, 0.1, 0.1, 0.1, 0.03, 0.03, 0.03, 0.03, 0.03, 0.009, 0.009, 0.009, 0.009, last, last];
        assert_eq!(rates(&mut plateau, &values), torch);

        let values = [0.1, 0.2, 0.25, 0.3, 0.3, f64::NAN, 0.29, 0.9, 0.9, 0.9, 0.9, 0.9];
        let mut plateau = ReduceLROnPlateau::new("val/accuracy")
            .mode(Mode::Max)
            .threshold(0.06)
            .threshold_mode(ThresholdMode::Abs)
            .patience(0)
            .factor(0.5)
            .min_lr(0.01);
        let torch = [0.1, 0.1, 0.1, 0.05, 0.05, 0.025, 0.0125, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01];
        assert_eq!(rates(&mut plateau, &values), torch);
    }

    #[test]
    fn plateau_has_torch_s_defaults() {
        let mut values = [5.0; 17];
        values[13..].fill(4.0);
        let mut torch = [0.1; 18];
        torch[12..].fill(0.010000000000000002);
        assert_eq!(rates(&mut ReduceLROnPlateau::new("val/loss"), &values), torch);
    }

    #[test]
    fn plateau_leaves_out_a_reduction_below_eps() {
        let mut plateau = ReduceLROnPlateau::new("val/loss").patience(0).factor(0.5);
        plateau.initial(3e-8);
        let rates: Vec<_> = (0..6).map(|_| plateau.next(&|_| Some(1.0)).unwrap()).collect();
        assert_eq!(rates, [3e-8, 1.5e-8, 1.5e-8, 1.5e-8, 1.5e-8, 1.5e-8]);
    }

    #[test]
    fn plateau_names_a_metric_that_is_not_logged() {
        let mut plateau = ReduceLROnPlateau::new("val/lost");
        plateau.initial(0.1);
        let error = plateau.next(&|name| (name == "val/loss").then_some(1.0)).unwrap_err();
        assert_eq!(
            format!("{error:?}"),
            "error[T0602]: `ReduceLROnPlateau` monitors `val/lost`, which is not logged\n  monitor  val/lost\n  \
             fix: log `val/lost` before the schedule goes on (a validation metric needs a validation run first), or \
             give the schedule the name that you do log"
        );
    }

    #[test]
    fn the_simple_schedules_are_torch_to_the_bit() {
        let (a, b, c) = (0.010000000000000002, 0.0010000000000000002, 0.00010000000000000003);
        assert_eq!(rates_of(StepLr::new(3, 0.1), 10), [0.1, 0.1, 0.1, a, a, a, b, b, b, c, c]);
        let torch = [0.1, 0.09000000000000001, 0.08100000000000002, 0.07290000000000002, 0.06561000000000002];
        assert_eq!(rates_of(ExponentialLr::new(0.9), 4), torch);
        // The closed form: `_get_closed_form_lr()` at each `last_epoch`.
        let torch = [
            0.1,
            0.0962320368593087,
            0.0855017856687341,
            0.06944282990207196,
            0.0505,
            0.03155717009792806,
            0.0154982143312659,
            0.004767963140691307,
            0.001,
            0.004767963140691301,
            0.01549821433126589,
        ];
        assert_eq!(rates_of(CosineAnnealing::new(8, 0.001), 10), torch);
    }

    #[test]
    fn warm_up_reaches_the_base_rate_on_its_last_step() {
        assert_eq!(rates_of(LinearWarmup::new(4), 5), [0.025, 0.05, 0.1 * 3.0 / 4.0, 0.1, 0.1, 0.1]);
        assert_eq!(rates_of(LinearWarmup::new(0), 2), [0.1; 3]);
    }

    fn every_kind() -> [Box<dyn Schedule>; 6] {
        [
            Box::new(ReduceLROnPlateau::new("val/loss").patience(1).cooldown(1).factor(0.7)),
            Box::new(OneCycle::new(0.3, 12)),
            Box::new(StepLr::new(3, 0.7)),
            Box::new(ExponentialLr::new(0.93)),
            Box::new(CosineAnnealing::new(7, 0.003)),
            Box::new(LinearWarmup::new(7)),
        ]
    }

    #[test]
    fn goes_on_bit_exactly_from_a_state_saved_at_any_step() {
        let values = [f64::NAN, 0.9, 0.8, 0.81, 0.82, 0.83, 0.84, 0.85, 0.7, 0.71, 0.72, 0.73];
        for kind in 0..every_kind().len() {
            let whole = rates(&mut *every_kind()[kind], &values);
            for saved_at in 0..=values.len() {
                let mut first = every_kind().into_iter().nth(kind).unwrap();
                rates(&mut *first, &values[..saved_at]);
                let text = first.state().to_string();
                let mut second = every_kind().into_iter().nth(kind).unwrap();
                second.initial(0.7);
                second.load_state(&serde_json::from_str(&text).unwrap()).unwrap();
                for (step, &value) in values.iter().enumerate().skip(saved_at) {
                    let rate = second.next(&|_| Some(value)).unwrap();
                    assert_eq!(rate.to_bits(), whole[step + 1].to_bits(), "kind {kind}, step {step}, {text}");
                }
            }
        }
    }

    #[test]
    fn a_state_of_another_schedule_is_refused() {
        let mut step = StepLr::new(3, 0.1);
        let before = rates(&mut step, &[0.0; 2]);
        let mut exponential = ExponentialLr::new(0.9);
        exponential.initial(1.0);
        let error = step.load_state(&exponential.state()).unwrap_err();
        assert_eq!(error.code(), BAD_SCHEDULE_STATE);
        assert_eq!((error.place("expected"), error.place("found")), (Some("StepLr"), Some("ExponentialLr")));
        let error = step.load_state(&json!({ "schedule": "StepLr", "at": { "step": -1 } })).unwrap_err();
        assert!(error.reasons()[0].contains("-1"), "{error:?}");
        assert_eq!(step.next(&|_| None).unwrap(), before[0] * 0.1);
    }

    #[test]
    fn senseless_options_are_refused_by_name() {
        let cases: [(Box<dyn Schedule>, &str); 7] = [
            (
                Box::new(ReduceLROnPlateau::new("x").factor(1.0)),
                "`ReduceLROnPlateau` cannot run with `factor` 1",
            ),
            (Box::new(OneCycle::new(0.1, 0)), "`OneCycle` cannot run with `total_steps` 0"),
            (Box::new(OneCycle::new(0.1, 9).pct_start(1.5)), "`OneCycle` cannot run with `pct_start` 1.5"),
            (Box::new(OneCycle::new(0.1, 9).div_factor(0.0)), "`OneCycle` cannot run with `div_factor` 0"),
            (
                Box::new(OneCycle::new(0.1, 9).final_div_factor(f64::NAN)),
                "`OneCycle` cannot run with `final_div_factor` NaN",
            ),
            (Box::new(StepLr::new(0, 0.1)), "`StepLr` cannot run with `step_size` 0"),
            (Box::new(CosineAnnealing::new(0, 0.0)), "`CosineAnnealing` cannot run with `t_max` 0"),
        ];
        for (mut schedule, what) in cases {
            let error = schedule.check().unwrap_err();
            assert_eq!((error.code(), error.what()), (BAD_SCHEDULE, what));
            schedule.initial(0.1);
            assert_eq!(schedule.next(&|_| Some(1.0)).unwrap_err().what(), what);
        }
    }

    #[test]
    fn the_next_rate_needs_a_first() {
        for mut schedule in every_kind() {
            let error = schedule.next(&|_| Some(1.0)).unwrap_err();
            assert_eq!(error.code(), BAD_SCHEDULE);
            assert!(error.what().ends_with("was asked for its next rate before its first"), "{error:?}");
        }
    }
}
