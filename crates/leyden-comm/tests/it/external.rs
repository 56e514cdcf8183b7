//! Ranks that something else has started: by hand, by the real torchrun, by the real mpirun.

use std::io::Write as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The example `joined`, without what launchers have set for the test itself.
fn joined() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().unwrap().parent().unwrap().join("examples/joined");
    assert!(program.exists(), "{} is built by `cargo test -p leyden-comm`", program.display());
    program
}

/// Starts one rank of a run.
fn start(run: &str, rank: usize, size: usize, patience: &str) -> Child {
    let mut command = Command::new(joined());
    command.env("RANK", rank.to_string()).env("WORLD_SIZE", size.to_string());
    command.env("TORCHELASTIC_RUN_ID", format!("{run}-{}", std::process::id()));
    command.env("LEYDEN_JOIN_TIMEOUT", patience).env("RUST_BACKTRACE", "0");
    // Records of ranks that fail here are of use to nobody.
    command.env("LEYDEN_DUMP_DIR", env!("CARGO_TARGET_TMPDIR"));
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Runs one process for each pair of a rank and a number of ranks, of one run, and gives what became of each.
fn by_hand(run: &str, ranks: &[(usize, usize)]) -> Vec<Output> {
    let began = Instant::now();
    let children: Vec<_> = ranks.iter().map(|&(rank, size)| start(run, rank, size, "2")).collect();
    let outputs = children.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    assert!(began.elapsed() < Duration::from_secs(20));
    outputs
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn ranks_started_by_hand_find_each_other_in_any_order() {
    for (run, ranks) in [("a", [(0, 3), (1, 3), (2, 3)]), ("b", [(2, 3), (1, 3), (0, 3)])] {
        let outputs = by_hand(run, &ranks);
        assert!(outputs.iter().all(|output| output.status.success()), "{outputs:?}");
        let said: String = outputs.iter().map(|output| String::from_utf8_lossy(&output.stdout)).collect();
        assert_eq!(said, "3 ranks, sums [6, 6, 6]\n");
    }
}

#[test]
fn a_rank_that_does_not_come_is_named_on_those_that_did() {
    let outputs = by_hand("missing", &[(0, 3), (1, 3)]);
    for output in &outputs {
        let text = stderr(output);
        assert!(text.contains("D0217") && text.contains("rank 2"), "{text}");
    }
    let outputs = by_hand("headless", &[(1, 2)]);
    assert!(stderr(&outputs[0]).contains("rank 0 has not come"), "{outputs:?}");
}

#[test]
fn a_rank_with_other_numbers_is_refused_with_the_reason() {
    let outputs = by_hand("sizes", &[(0, 2), (1, 3)]);
    let refused = stderr(&outputs[1]);
    assert!(
        refused.contains("D0218") && refused.contains("counts 3 ranks, and rank 0 counts 2"),
        "{refused}"
    );
    assert!(stderr(&outputs[0]).contains("D0217"), "{outputs:?}");

    let outputs = by_hand("twice", &[(0, 2), (0, 2), (1, 2)]);
    let failed: Vec<_> = outputs.iter().filter(|output| !output.status.success()).map(stderr).collect();
    // The second one may come when the others have done and gone: then nobody comes to it.
    let alone = failed[0].contains("D0217") && failed[0].contains("missing  rank 1");
    assert!(failed.len() == 1 && (alone || failed[0].contains("another process is rank 0")), "{failed:?}");

    let outputs = by_hand("again", &[(0, 3), (1, 3), (1, 3)]);
    let failed: Vec<_> = outputs.iter().map(stderr).collect();
    assert!(failed.iter().any(|text| text.contains("another process is rank 1")), "{failed:?}");
}

#[test]
fn a_patience_that_is_no_number_is_refused() {
    let output = start("patience", 0, 2, "soon").wait_with_output().unwrap();
    let text = stderr(&output);
    assert!(text.contains("D0301") && text.contains("LEYDEN_JOIN_TIMEOUT  soon"), "{text}");
}

#[test]
fn strangers_at_the_door_hold_nobody_up() {
    let began = Instant::now();
    let mut ranks = vec![start("crowd", 0, 3, "30")];
    let run = format!("crowd-{}", std::process::id());
    let name = loop {
        let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
        if let Some(name) =
            sockets.split_whitespace().find(|word| word.starts_with('@') && word.ends_with(&run))
        {
            break name[1..].to_owned();
        }
        assert!(began.elapsed() < Duration::from_secs(20), "rank 0 does not listen");
        std::thread::sleep(Duration::from_millis(2));
    };
    let address = SocketAddr::from_abstract_name(name).unwrap();
    // More than there is room for, silent or talking nonsense.
    let strangers: Vec<UnixStream> = (0..200)
        .map(|number| {
            let mut stranger = UnixStream::connect_addr(&address).unwrap();
            if number % 3 == 1 {
                // It may have had to make room already.
                let _ = stranger.write_all(&b"nonsense ".repeat(number));
            }
            stranger
        })
        .collect();
    let met = Instant::now();
    ranks.extend([start("crowd", 1, 3, "30"), start("crowd", 2, 3, "30")]);
    for rank in ranks {
        let output = rank.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    // One after the other they would have taken more than two minutes.
    assert!(met.elapsed() < Duration::from_secs(15), "{:?}", met.elapsed());
    drop(strangers);
}

#[test]
fn ranks_of_the_real_torchrun_find_each_other() {
    let python = std::env::var("LEYDEN_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let has_torch = Command::new(&python).args(["-c", "import torch.distributed.run"]).output();
    if !has_torch.is_ok_and(|output| output.status.success()) {
        assert!(std::env::var_os("LEYDEN_REQUIRE_TORCH").is_none(), "{python} has no torch");
        eprintln!("skipped: {python} has no torch");
        return;
    }
    let mut torchrun = Command::new(python);
    torchrun.args(["-m", "torch.distributed.run", "--standalone", "--no-python", "--nproc-per-node", "3"]);
    let output = torchrun.arg(joined()).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("3 ranks, sums [6, 6, 6]"), "{output:?}");
}

#[test]
fn ranks_of_the_real_mpirun_find_each_other() {
    if Command::new("mpirun").arg("--version").output().is_err() {
        assert!(std::env::var_os("LEYDEN_REQUIRE_MPI").is_none(), "there is no mpirun");
        eprintln!("skipped: there is no mpirun (Debian: openmpi-bin)");
        return;
    }
    let mut mpirun = Command::new("mpirun");
    mpirun.args(["--allow-run-as-root", "--oversubscribe", "-n", "3"]).arg(joined());
    let output = mpirun.output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("3 ranks, sums [6, 6, 6]"), "{output:?}");
}
