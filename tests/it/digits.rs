//! The README's first command, run as a user runs it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The example's binary: `cargo test` builds it beside the tests.
fn example() -> PathBuf {
    let deps = std::env::current_exe().unwrap();
    let profile = deps.parent().and_then(Path::parent).unwrap();
    let path = profile.join("examples").join(format!("digits{}", std::env::consts::EXE_SUFFIX));
    assert!(path.is_file(), "{} is built by `cargo test --workspace`", path.display());
    path
}

fn run(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(example()).args(arguments).current_dir(folder).output().unwrap()
}

#[test]
fn learns_the_digits_and_says_where_it_wrote() {
    let folder = tempfile::tempdir().unwrap();
    let output = run(folder.path(), &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    let accuracy =
        text.lines().find_map(|line| line.strip_prefix("test/accuracy ")).expect("a line with the accuracy");
    assert!(accuracy.trim().parse::<f64>().unwrap() >= 0.97, "{text}");
    assert!(text.contains("run folder runs/digits/version_0"), "{text}");
    assert!(text.contains("trainable parameters"), "a model summary: {text}");

    let run_folder = folder.path().join("runs/digits/version_0");
    let names: Vec<String> = fs::read_dir(&run_folder)
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    for expected in ["metrics.csv", "config.json", "checkpoints"] {
        assert!(names.iter().any(|name| name == expected), "{expected} in {names:?}");
    }
    assert!(names.iter().any(|name| name.starts_with("events.out.tfevents.")), "{names:?}");
    assert!(run_folder.join("checkpoints/last.safetensors").is_file());
    let saved = fs::read_dir(run_folder.join("checkpoints")).unwrap().count();
    assert_eq!(saved, 2, "the best and the last");
}

#[test]
fn gives_the_same_numbers_for_the_same_seed() {
    let folder = tempfile::tempdir().unwrap();
    let rows = |arguments: &[&str], version: usize| {
        assert!(run(folder.path(), arguments).status.success());
        fs::read_to_string(folder.path().join(format!("runs/digits/version_{version}/metrics.csv"))).unwrap()
    };
    let first = rows(&["--seed", "5", "--epochs", "2"], 0);
    assert_eq!(first, rows(&["--seed", "5", "--epochs", "2"], 1));
    assert_ne!(first, rows(&["--seed", "6", "--epochs", "2"], 2));
}

#[test]
fn names_what_is_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let stderr = |arguments: &[&str]| String::from_utf8(run(folder.path(), arguments).stderr).unwrap();
    assert!(stderr(&["--epochs", "0"]).contains("0 is not in 1..=1000"));
    assert!(stderr(&["--epoch", "3"]).contains("'--epochs'"));
    let help = String::from_utf8(run(folder.path(), &["--help"]).stdout).unwrap();
    assert!(["--data", "--epochs", "--seed", "--help"].iter().all(|option| help.contains(option)), "{help}");

    let missing = run(folder.path(), &["--data", "/no/such/folder"]);
    let text = String::from_utf8(missing.stderr).unwrap();
    assert!(text.contains("error[L0401]") && text.contains("/no/such/folder"), "{text}");
    assert_eq!(missing.status.code(), Some(96));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing was written");
}

#[test]
fn trains_on_mnist_files() {
    let folder = tempfile::tempdir().unwrap();
    let header = |kind: u8, dims: &[u32]| {
        let mut bytes = vec![0, 0, 8, kind];
        dims.iter().for_each(|dim| bytes.extend(dim.to_be_bytes()));
        bytes
    };
    let mut images = header(3, &[120, 28, 28]);
    images.extend((0..120 * 784).map(|k: usize| if (k / 784) % 10 == k % 10 { 255 } else { 0 }));
    let mut labels = header(1, &[120]);
    labels.extend((0..120_usize).map(|k| (k % 10) as u8));
    fs::write(folder.path().join("train-images-idx3-ubyte"), images).unwrap();
    fs::write(folder.path().join("train-labels-idx1-ubyte"), labels).unwrap();
    let output = run(folder.path(), &["--data", ".", "--epochs", "1"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("test/accuracy"), "{text}");
}

#[test]
fn trains_on_where_nobody_reads_its_output() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = Command::new(example())
        .args(["--epochs", "2"])
        .current_dir(folder.path())
        .stdout(std::process::Stdio::piped())
        .stderr(std::fs::File::options().write(true).open("/dev/full").unwrap())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    child.wait().unwrap();
    // The last lines are the example's own `println!`; the training is whole.
    let metrics = fs::read_to_string(folder.path().join("runs/digits/version_0/metrics.csv")).unwrap();
    assert!(metrics.lines().any(|line| line.starts_with("1,80,")), "{metrics}");
    assert!(folder.path().join("runs/digits/version_0/checkpoints/last.safetensors").is_file());
}

#[test]
fn interrupted_it_saves_and_ends_with_the_signal_s_code() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = Command::new(example())
        .args(["--epochs", "1000"])
        .current_dir(folder.path())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let last = folder.path().join("runs/digits/version_0/checkpoints/last.safetensors");
    let begun = std::time::Instant::now();
    while !last.is_file() {
        assert!(
            begun.elapsed() < std::time::Duration::from_secs(60),
            "an epoch takes a fraction of a second"
        );
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let kill = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    let status = child.wait().unwrap();
    let mut text = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut text).unwrap();
    assert_eq!(status.code(), Some(75), "{text}");
    assert!(text.contains("saved runs/digits/version_0/checkpoints/last.safetensors"), "{text}");
    let left: Vec<_> =
        fs::read_dir(folder.path().join("runs/digits/version_0/checkpoints")).unwrap().collect();
    assert!(
        left.iter().all(|e| !e.as_ref().unwrap().file_name().to_string_lossy().ends_with(".tmp")),
        "{left:?}"
    );
}
