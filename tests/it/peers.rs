//! Other programs read what Leyden writes: PyTorch's `safetensors` the weights, TensorBoard the events.
//!
//! They need `python3` (or LEYDEN_PYTHON) with `safetensors`, `numpy` and `tensorboard`; without them a test prints
//! why it is skipped. With LEYDEN_REQUIRE_PEERS=1, as in CI, that is a failure.

use std::process::Command;

use leyden::prelude::*;

use crate::cells::{Net, Source, alone, quiet};

/// What a Python program prints, or why it cannot run here.
fn python(program: &str, arguments: &[&str]) -> Option<String> {
    let interpreter = std::env::var("LEYDEN_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let reason = match Command::new(&interpreter).arg("-c").arg(program).args(arguments).output() {
        Ok(output) if output.status.success() => return Some(String::from_utf8(output.stdout).unwrap()),
        Ok(output) => String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or_default().to_owned(),
        Err(error) => format!("{interpreter}: {error}"),
    };
    let missing = reason.contains("ModuleNotFoundError") || reason.contains("No such file");
    assert!(missing && std::env::var_os("LEYDEN_REQUIRE_PEERS").is_none(), "{reason}");
    eprintln!("skipped: {reason}");
    None
}

#[test]
fn python_s_safetensors_reads_the_weights() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = quiet(folder.path()).max_epochs(1).build().unwrap();
    let fitted = trainer.fit_with(Net::new, &mut Source::default()).unwrap();
    let program = "
import sys, json
from safetensors.numpy import load_file
tensors = load_file(sys.argv[1])
print(json.dumps({name: [list(t.shape), t.astype('float64').ravel().tolist()] for name, t in tensors.items() if '/' not in name}))
";
    let path = fitted.last_checkpoint.clone().unwrap();
    let Some(printed) = python(program, &[path.to_str().unwrap()]) else { return };
    let read: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&printed).unwrap();
    let ours = leyden::named_tensors(fitted.model()).unwrap();
    assert_eq!(read.len(), ours.len());
    for tensor in ours {
        let shape: Vec<usize> = serde_json::from_value(read[&tensor.name][0].clone()).unwrap();
        let values: Vec<f64> = serde_json::from_value(read[&tensor.name][1].clone()).unwrap();
        let expected: Vec<f64> = tensor.to_f32().unwrap().into_iter().map(f64::from).collect();
        assert_eq!((shape, values), (tensor.shape, expected), "{}", tensor.name);
    }
}

#[test]
fn tensorboard_lists_the_scalars_of_a_run() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = quiet(folder.path()).max_epochs(2).log_every_n_steps(1).build().unwrap();
    let fitted = trainer.fit_with(Net::new, &mut Source::default()).unwrap();
    let program = "
import sys, json
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1]); events.Reload()
print(json.dumps({tag: [[e.step, e.value] for e in events.Scalars(tag)] for tag in events.Tags()['scalars']}))
";
    let run = fitted.run_dir.clone().unwrap();
    let Some(printed) = python(program, &[run.to_str().unwrap()]) else { return };
    let read: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&printed).unwrap();
    assert_eq!(read["train/loss_step"].as_array().unwrap().len(), 16);
    let (step, accuracy) = (&read["val/accuracy"][1][0], read["val/accuracy"][1][1].as_f64().unwrap());
    assert_eq!(step, 16);
    assert!((accuracy - fitted.metrics.get("val/accuracy").unwrap()).abs() < 1e-6);
}
