//! A run that is resumed at any step ends with the bits of the run that never stopped: weights, optimizer, BatchNorm's
//! running values, dropout, order, schedule, accumulated gradients.

use std::fs;
use std::path::{Path, PathBuf};

use leyden::Checkpoint;
use leyden::prelude::*;

use crate::cells::{Net, Source, alone, bits, quiet};

fn trainer(folder: &Path) -> Trainer {
    quiet(folder)
        .max_epochs(2)
        .seed(3)
        .accumulate_grad_batches(3)
        .val_check_interval(ValCheck::Batches(5))
        .callback(ModelCheckpoint::new().every_n_train_steps(1).save_all())
        .build()
        .unwrap()
}

fn checkpoints(run: &Path) -> Vec<PathBuf> {
    let folder = fs::read_dir(run.join("checkpoints")).unwrap();
    let mut files: Vec<_> = folder.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn every_step_is_a_place_to_go_on_from() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let whole = trainer(folder.path()).fit_with(Net::new, &mut Source::default()).unwrap();
    let run = whole.run_dir.clone().unwrap();
    let end = Checkpoint::read(&run.join("checkpoints/last.safetensors")).unwrap();
    let files = checkpoints(&run);
    assert!(files.len() >= 6, "{files:?}");
    for file in files {
        let mut trainer = trainer(folder.path());
        let resumed = trainer.ckpt_path(&file).fit_with(Net::new, &mut Source::default()).unwrap();
        assert_eq!(bits(whole.model()), bits(resumed.model()), "from {}", file.display());
        assert_eq!(whole.metrics, resumed.metrics, "from {}", file.display());
        let last = resumed.last_checkpoint.clone().unwrap();
        assert_eq!(end.learner, Checkpoint::read(&last).unwrap().learner, "from {}", file.display());
    }
}

#[test]
fn a_model_saved_by_hand_goes_on_too() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let build = |epochs| quiet(folder.path()).max_epochs(epochs).seed(3).build().unwrap();
    let whole = build(2).fit_with(Net::new, &mut Source::default()).unwrap();
    let mut half = build(1);
    let mut fitted = half.fit_with(Net::new, &mut Source::default()).unwrap();
    let path = folder.path().join("by_hand.safetensors");
    half.save_checkpoint(&mut fitted, &path).unwrap();
    let resumed = build(2).ckpt_path(&path).fit_with(Net::new, &mut Source::default()).unwrap();
    assert_eq!(bits(whole.model()), bits(resumed.model()));
}

#[test]
fn another_optimizer_is_refused() {
    let _alone = alone();
    #[derive(Module, Debug)]
    struct Sgd {
        net: Net,
    }
    impl LeydenModule for Sgd {
        type Batch = crate::cells::Rows;
        fn training_step(&self, batch: Self::Batch, cx: &mut StepCx) -> Result<Loss> {
            self.net.training_step(batch, cx)
        }
        fn validation_step(&self, batch: Self::Batch, cx: &mut StepCx) -> Result<()> {
            self.net.validation_step(batch, cx)
        }
        fn configure_optimizers(&self) -> Result<Optimizers> {
            Ok(Optimizers::new(burn::optim::SgdConfig::new().init(), 0.1))
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let build = || quiet(folder.path()).max_epochs(1).build().unwrap();
    let fitted = build().fit_with(Net::new, &mut Source::default()).unwrap();
    let mut checkpoint = Checkpoint::read(fitted.last_checkpoint.as_ref().unwrap()).unwrap();
    let inside = |name: &str| format!("net.{name}");
    checkpoint.learner.weights.iter_mut().for_each(|tensor| tensor.name = inside(&tensor.name));
    checkpoint.learner.optimizer.iter_mut().for_each(|tensor| tensor.name = inside(&tensor.name));
    checkpoint.learner.values["counters"] = serde_json::json!({});
    let path = folder.path().join("adam.safetensors");
    checkpoint.write(&path).unwrap();
    let failed =
        build().ckpt_path(&path).fit_with(|device| Sgd { net: Net::new(device) }, &mut Source::default());
    assert_eq!(failed.unwrap_err().error.code().id, "K0109");
}
