//! The data set is made on rank 0 alone, with a barrier around it that the others never see.
//!
//! In Lightning this is a silent hang (its issue 20536): rank 0 waits in its barrier, and rank 1 in the first collective of
//! the training, for half an hour. Here both are told at once, with both places. `prepare_data`, which runs on rank 0
//! while the others wait, is the cure.

use leyden_comm::launch;
use leyden_process::Result;
use leyden_train::Trainer;
use leyden_train::learner::toy::ToyLearner;
use leyden_train::testing::ToyData;

fn make_dataset(path: &std::path::Path) -> Result<()> {
    let world = launch::world(2)?;
    if world.rank() == 0 {
        std::fs::write(path, "rows")?;
        world.join()?.barrier("make_dataset")?;
    }
    Ok(())
}

fn main() -> Result<()> {
    make_dataset(&std::env::temp_dir().join("leyden-founding-rows"))?;
    let mut trainer = Trainer::builder()
        .devices(2)
        .max_epochs(2)
        .enable_checkpointing(false)
        .enable_progress_bar(false)
        .enable_model_summary(false)
        .no_logger()
        .build()?;
    let report = trainer.fit_learner(&mut ToyLearner::new(3, 0.05), &mut ToyData::default())?;
    println!("{} steps", report.steps);
    Ok(())
}
