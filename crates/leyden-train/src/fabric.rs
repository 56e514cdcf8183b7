//! [`Fabric`]: ranks for a loop of one's own, without a trainer.

use std::path::PathBuf;
use std::time::Duration;

use leyden_process::Result;

use crate::config::{Devices, Strategy, TrainerConfig};
use crate::logger::{Logger, Row};
use crate::ranks::{LAUNCH, Rank};
use crate::run_dir;

/// What a hand-written loop needs of ranks (Lightning: `Fabric`). It is configured here, and [launched](Self::launch): what a
/// launched one can do is [`Rank`]'s, and for Burn's models that of `leyden_burn::RankExt`.
///
/// ```
/// use leyden_train::Fabric;
///
/// let mut rank = Fabric::builder().devices(1).seed(42).build()?.launch()?;
/// let lines = rank.on_rank_zero(|_| Ok(std::fs::read_to_string("Cargo.toml")?.lines().count()))?;
/// rank.print(&format!("{lines} lines"));
/// rank.barrier("all have them")?;
/// # Ok::<(), leyden_process::Error>(())
/// ```
#[derive(Debug)]
pub struct Fabric {
    config: TrainerConfig,
    logging: Logging,
}

/// Collects the settings of a [`Fabric`].
#[derive(Debug, Default)]
#[must_use = "call `build`"]
pub struct FabricBuilder {
    config: TrainerConfig,
    logging: Logging,
}

impl FabricBuilder {
    /// Sets [`TrainerConfig::devices`]: how many ranks there are.
    pub fn devices(mut self, devices: impl Into<Devices>) -> Self {
        self.config.devices = devices.into();
        self
    }

    /// Sets [`TrainerConfig::strategy`].
    pub fn strategy(mut self, strategy: impl Into<Strategy>) -> Self {
        self.config.strategy = strategy.into();
        self
    }

    /// Sets [`TrainerConfig::rank_timeout`].
    pub fn rank_timeout(mut self, limit: Duration) -> Self {
        self.config.rank_timeout = limit;
        self
    }

    /// Sets [`TrainerConfig::seed`].
    pub fn seed(mut self, seed: u64) -> Self {
        self.config.seed = seed;
        self
    }

    /// Sets [`TrainerConfig::name`], which with `root_dir` says where loggers write.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.config.name = name.into();
        self
    }

    /// Sets [`TrainerConfig::root_dir`].
    pub fn root_dir(mut self, root_dir: impl Into<PathBuf>) -> Self {
        self.config.root_dir = root_dir.into();
        self
    }

    /// Adds a logger for [`Rank::log`]; there is none by default.
    pub fn logger(mut self, logger: impl Logger + 'static) -> Self {
        self.logging.loggers.push(Box::new(logger));
        self
    }

    /// Checks the settings. Does no I/O and starts nothing.
    ///
    /// # Errors
    /// `C0101` for a value out of range.
    pub fn build(self) -> Result<Fabric> {
        self.config.check()?;
        Ok(Fabric { config: self.config, logging: self.logging })
    }
}

impl Fabric {
    /// Starts to configure one.
    pub fn builder() -> FabricBuilder {
        FabricBuilder::default()
    }

    /// Makes this program as many ranks as it was configured for: each runs the whole `main`, and goes on here. See
    /// `leyden_comm::launch::world`.
    ///
    /// # Errors
    /// Those of launching and joining.
    #[track_caller]
    pub fn launch(self) -> Result<Rank> {
        let mut rank = Rank::launch(&self.config, LAUNCH)?;
        rank.seed = self.config.seed;
        rank.logging = self.logging;
        rank.logging.folder = Some((self.config.root_dir, self.config.name));
        Ok(rank)
    }
}

/// The loggers of a [`Rank`], which begin with the first value.
#[derive(Default)]
pub(crate) struct Logging {
    loggers: Vec<Box<dyn Logger>>,
    /// Where to make a folder; nowhere once it is made.
    folder: Option<(PathBuf, String)>,
}

impl Logging {
    /// Gives the loggers a row, on rank 0.
    pub(crate) fn log(&mut self, step: u64, scalars: &[(&str, f64)]) -> Result<()> {
        if self.loggers.is_empty() {
            return Ok(());
        }
        if let Some((root, name)) = self.folder.take() {
            let folder = run_dir::create(&root, &name)?;
            self.loggers.iter_mut().try_for_each(|logger| logger.start(&folder, &serde_json::Value::Null))?;
        }
        let row = Row { epoch: 0, step, scalars };
        self.loggers.iter_mut().try_for_each(|logger| logger.log(&row))
    }
}

/// A rank that ends has its values written.
impl Drop for Logging {
    fn drop(&mut self) {
        if self.folder.is_none() {
            for logger in &mut self.loggers {
                if let Err(error) = logger.finalize("finished") {
                    crate::say::say(&format!("leyden: warning: a logger could not end its file: {error}"));
                }
            }
        }
    }
}

impl std::fmt::Debug for Logging {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.loggers.iter().map(|logger| logger.name()).collect();
        f.debug_tuple("Logging").field(&names).finish()
    }
}
