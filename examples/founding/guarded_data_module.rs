//! `guarded_data_module HOW`: a data module that owns another program, in a training that ends well, by an `error`, a
//! `panic`, or the `kill` of a rank.
//!
//! In Lightning `teardown` runs after success only, and what the data module has started keeps the script from ending,
//! or outlives it (its issue 19594). Here `teardown` runs on every path that the process survives, and a `Guarded`
//! program ends with its rank, however that ends.

use std::process::Command;

use leyden_comm::launch;
use leyden_process::guarded::Guarded;
use leyden_process::{Error, Result, bail};
use leyden_train::learner::toy::ToyBatch;
use leyden_train::testing::{Record, RecordedLearner, ToyData};
use leyden_train::{DataModule, LoaderCx, Loaders, Outcome, Stage, Trainer};

#[derive(Default)]
struct Served {
    rows: ToyData,
    server: Option<Guarded>,
}

impl DataModule for Served {
    type Batch = ToyBatch;

    fn setup(&mut self, _: Stage) -> Result<()> {
        self.server = Some(Guarded::spawn(Command::new("sleep").arg("1000"))?);
        Ok(())
    }

    fn train_loader(&mut self, cx: &LoaderCx) -> Result<Loaders<ToyBatch>> {
        self.rows.train_loader(cx)
    }

    fn on_exception(&mut self, error: &Error) -> Result<()> {
        eprintln!("on_exception: {}", error.what());
        Ok(())
    }

    fn teardown(&mut self, outcome: &Outcome) -> Result<()> {
        self.server.take().expect("setup has started it").kill();
        eprintln!("teardown: {}", outcome.status());
        Ok(())
    }
}

fn main() -> Result<()> {
    let how = std::env::args().nth(1).unwrap_or_default();
    let rank = launch::world(2)?.rank();
    let mut learner = RecordedLearner::new(&Record::new());
    learner.in_training = Some(Box::new(move |_, cx| match &*how {
        "error" if rank == 1 && cx.global_step() == 3 => bail!("a row is torn"),
        "panic" if rank == 1 && cx.global_step() == 3 => panic!("a row is torn"),
        "kill" if rank == 1 && cx.global_step() == 3 => {
            Command::new("sh").args(["-c", "kill -9 $PPID"]).status()?;
            Ok(())
        }
        _ => Ok(()),
    }));
    let mut trainer = Trainer::builder()
        .devices(2)
        .max_epochs(2)
        .enable_checkpointing(false)
        .enable_progress_bar(false)
        .enable_model_summary(false)
        .no_logger()
        .build()?;
    let report = trainer.fit_learner(&mut learner, &mut Served::default())?;
    println!("{} steps", report.steps);
    Ok(())
}
