//! What happens in a run, as values: [`Hook`] names the moment, [`Event`] carries the facts.

use std::fmt;
use std::path::Path;

use leyden_process::Error;

use crate::learner::{LearnerView, Stage};
use crate::metrics::MetricsView;
use crate::outcome::Outcome;
use crate::plan::Plan;
use crate::progress::Progress;
use crate::scalar::Scalar;

macro_rules! hooks {
    ($($(#[$doc:meta])* $variant:ident => $method:ident),* $(,)?) => {
        /// A moment of a run. Order and meaning are Lightning's, except where `docs/from-lightning.md` says so.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Hook {
            $($(#[$doc])* $variant,)*
        }

        impl Hook {
            /// All of them, in declaration order.
            pub const ALL: &[Hook] = &[$(Hook::$variant),*];

            /// The method's name: `on_fit_start`.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => stringify!($method),)*
                }
            }
        }

        /// Something that watches a run and may ask for acts.
        ///
        /// It gets facts ([`Event`]) and asks through [`Control`](crate::Control); nobody is handed the trainer.
        /// Implement the methods you need; a recorder that wants everything overrides
        /// [`on_event`](Self::on_event). An error ends the run and is named with the callback and the hook.
        #[expect(unused_variables, reason = "the defaults do nothing; the names are documentation")]
        pub trait Callback: Send {
            /// The name for messages, and the key of its state in checkpoints: unique within a trainer.
            fn name(&self) -> String;

            /// Called for every event, and calls the method of that hook.
            fn on_event(&mut self, event: &Event<'_>, control: &mut crate::Control) -> leyden_process::Result<()> {
                match event.hook {
                    $(Hook::$variant => self.$method(event, control),)*
                }
            }

            /// Whether it reads the epoch's metrics when the training epoch ends: then it is called after the
            /// module's own hook, when they are known.
            fn monitors(&self) -> bool {
                false
            }

            /// Whether it saves checkpoints: then it comes after all others and the module, which have changed their
            /// state by then.
            fn saves(&self) -> bool {
                false
            }

            /// Whether it is called on rank 0 alone, where several train together: what talks or writes. Those that save
            /// are, unless they say otherwise.
            fn rank_zero_only(&self) -> bool {
                self.saves()
            }

            /// The best checkpoint it has saved: what `best` means.
            fn best_checkpoint(&self) -> Option<std::path::PathBuf> {
                None
            }

            /// Whether the stop that it asked for before a resume holds on, under the options of now. Without a word
            /// of the callback the resumed run goes on.
            fn still_stops(&self) -> bool {
                false
            }

            /// The newest checkpoint it has saved: what `last` means.
            fn last_checkpoint(&self) -> Option<std::path::PathBuf> {
                None
            }

            /// What it must remember over a resume.
            fn state(&self) -> serde_json::Value {
                serde_json::Value::Null
            }

            /// Takes back its [`state`](Self::state).
            fn load_state(&mut self, state: &serde_json::Value) -> leyden_process::Result<()> {
                Ok(())
            }

            $($(#[$doc])*
            fn $method(&mut self, event: &Event<'_>, control: &mut crate::Control) -> leyden_process::Result<()> {
                Ok(())
            })*
        }
    };
}

hooks! {
    /// First of all, after the data module's `setup`: the run folder and the loaders do not exist yet.
    Setup => setup,
    /// `fit` begins: the plan is made, the run folder is there, a checkpoint has been loaded.
    FitStart => on_fit_start,
    /// The sanity check begins: a few validation batches before any training.
    SanityCheckStart => on_sanity_check_start,
    /// The sanity check ended; what it logged is forgotten.
    SanityCheckEnd => on_sanity_check_end,
    /// Training begins, after the sanity check; not where a limit is met already, and nothing is to be trained.
    TrainStart => on_train_start,
    /// A training epoch begins.
    TrainEpochStart => on_train_epoch_start,
    /// A training batch is there, and not yet used.
    TrainBatchStart => on_train_batch_start,
    /// The gradients of the window are complete; the optimizer is about to step.
    BeforeOptimizerStep => on_before_optimizer_step,
    /// A training batch is done, with the optimizer's step if one was due.
    TrainBatchEnd => on_train_batch_end,
    /// A training epoch ended, its validations too.
    TrainEpochEnd => on_train_epoch_end,
    /// Training ended.
    TrainEnd => on_train_end,
    /// A validation begins.
    ValidationStart => on_validation_start,
    /// The validation's pass over the data begins.
    ValidationEpochStart => on_validation_epoch_start,
    /// A validation batch is there.
    ValidationBatchStart => on_validation_batch_start,
    /// A validation batch is done.
    ValidationBatchEnd => on_validation_batch_end,
    /// The validation's pass ended; its metrics are about to be computed.
    ValidationEpochEnd => on_validation_epoch_end,
    /// A validation ended; its metrics are known.
    ValidationEnd => on_validation_end,
    /// The test begins.
    TestStart => on_test_start,
    /// The test's pass over the data begins.
    TestEpochStart => on_test_epoch_start,
    /// A test batch is there.
    TestBatchStart => on_test_batch_start,
    /// A test batch is done.
    TestBatchEnd => on_test_batch_end,
    /// The test's pass ended; its metrics are about to be computed.
    TestEpochEnd => on_test_epoch_end,
    /// The test ended; its metrics are known.
    TestEnd => on_test_end,
    /// Prediction begins.
    PredictStart => on_predict_start,
    /// Prediction's pass over the data begins.
    PredictEpochStart => on_predict_epoch_start,
    /// A batch to predict is there.
    PredictBatchStart => on_predict_batch_start,
    /// A batch is predicted.
    PredictBatchEnd => on_predict_batch_end,
    /// Prediction's pass ended.
    PredictEpochEnd => on_predict_epoch_end,
    /// Prediction ended.
    PredictEnd => on_predict_end,
    /// `fit` is over; only `teardown` follows.
    FitEnd => on_fit_end,
    /// The run failed or was interrupted ([`Event::error`] tells); `teardown` follows.
    Exception => on_exception,
    /// The end, once for each `setup` that succeeded; [`Event::outcome`] tells how.
    Teardown => teardown,
}

/// The facts of a moment.
#[derive(Clone, Copy)]
pub struct Event<'a> {
    /// Which moment.
    pub hook: Hook,
    /// What the run is for.
    pub stage: Stage,
    /// Counters.
    pub progress: &'a Progress,
    /// The batch of an evaluation, and how many there are; training's are in `progress`.
    pub evaluation: Option<(usize, usize)>,
    /// Names and newest values of what was logged.
    pub metrics: MetricsView<'a>,
    /// The loss of this batch, in [`Hook::TrainBatchEnd`].
    pub loss: Option<&'a Scalar>,
    /// The model: names, shapes, bytes.
    pub learner: &'a dyn LearnerView,
    /// What will run.
    pub plan: &'a Plan,
    /// The run folder, once there is one.
    pub run_dir: Option<&'a Path>,
    /// Whether this happens inside the sanity check.
    pub sanity_checking: bool,
    /// What went wrong, in [`Hook::Exception`].
    pub error: Option<&'a Error>,
    /// How it ended, in [`Hook::Teardown`].
    pub outcome: Option<&'a Outcome>,
}

impl fmt::Debug for Event<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event")
            .field("hook", &self.hook)
            .field("progress", self.progress)
            .finish_non_exhaustive()
    }
}
