//! Ranks at the top of a plain `main`, and a loader with worker processes on each of them; nothing is guarded.
//!
//! With Lightning each worker imports the script again, so that each runs the launch again: a port that is taken, and
//! processes that stay behind (its issue 20516). Here a worker leaves before `main`, and ranks need no port.

use std::io::Write as _;

use leyden_data::{DataLoader, Workers};
use leyden_process::Result;
use leyden_train::learner::toy::{ToyBatch, ToyLearner};
use leyden_train::testing::ToyRows;
use leyden_train::{DataModule, LoaderCx, Loaders, Trainer};

struct Rows;

impl DataModule for Rows {
    type Batch = ToyBatch;

    fn train_loader(&mut self, _: &LoaderCx) -> Result<Loaders<ToyBatch>> {
        let rows = ToyRows { features: 3, rows: 0..64 };
        let loader = DataLoader::builder(rows).global_batch_size(8).shuffle(true);
        Ok(loader.workers(Workers::spawn(2)).build()?.into())
    }
}

fn main() -> Result<()> {
    // Counted: a line for each process that gets here.
    writeln!(std::io::stderr(), "main runs")?;
    let mut trainer = Trainer::builder()
        .devices(2)
        .max_epochs(2)
        .enable_checkpointing(false)
        .enable_progress_bar(false)
        .enable_model_summary(false)
        .no_logger()
        .build()?;
    let report = trainer.fit_learner(&mut ToyLearner::new(3, 0.05), &mut Rows)?;
    println!("{} steps of 2 ranks with 2 workers each", report.steps);
    Ok(())
}
