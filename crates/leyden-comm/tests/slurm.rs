//! Ranks of the real `srun`, in a cluster of this one machine that the test starts and ends: munge's and SLURM's own
//! programs, with all that they write in a temporary folder. Where they are not installed, or for another user than root,
//! it says so; with `LEYDEN_REQUIRE_SLURM` it fails.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use leyden_process::guarded::Guarded;

#[test]
fn ranks_of_the_real_srun_are_one_world() {
    if let Some(why) = unavailable() {
        assert!(std::env::var_os("LEYDEN_REQUIRE_SLURM").is_none(), "{why}");
        eprintln!("skipped: {why}");
        return;
    }
    let cluster = Cluster::start();
    they_find_each_other(&cluster);
    two_steps_at_once_are_two_worlds(&cluster);
    a_wrong_number_of_ranks_is_refused(&cluster);
    a_killed_one_is_named_by_the_others(&cluster);
    scancel_reaches_all_of_them(&cluster);
}

fn they_find_each_other(cluster: &Cluster) {
    let output = cluster.srun("2", "joined").output().unwrap();
    assert_eq!(text(&output.stdout), "2 ranks, sums [3, 3]\n", "{output:?}");
    assert!(output.status.success(), "{output:?}");
    // One that is alone is a world too.
    let output = cluster.srun("1", "joined").output().unwrap();
    assert_eq!(text(&output.stdout), "1 ranks, sums [1]\n", "{output:?}");
}

fn two_steps_at_once_are_two_worlds(cluster: &Cluster) {
    let run = || cluster.srun("2", "joined").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let steps: Vec<Child> = (0..2).map(|_| run()).collect();
    for step in steps {
        let output = step.wait_with_output().unwrap();
        assert_eq!(text(&output.stdout), "2 ranks, sums [3, 3]\n", "{output:?}");
    }
}

fn a_wrong_number_of_ranks_is_refused(cluster: &Cluster) {
    let output = cluster.srun("2", "died_rank").args(["1", "sigkill"]).output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(said.matches("error[D0202]: the launcher has started another number").count(), 2, "{said}");
    assert!(said.contains("asked for  3") && said.contains("2, by SLURM (srun)"), "{said}");
}

fn a_killed_one_is_named_by_the_others(cluster: &Cluster) {
    let output = cluster.srun("3", "died_rank").args(["1", "sigkill"]).output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(said.matches("error[D0105]: rank 1 died").count(), 2, "{said}");
    assert!(said.contains("ranks 0, 2 in") && said.contains("barrier(\"epoch end\") at"), "{said}");
    assert!(said.contains("killed by SIGKILL"), "{said}");
    assert_eq!(output.status.code(), Some(128 + libc::SIGKILL), "{said}");
    cluster.wait_until_nothing_runs();
}

fn scancel_reaches_all_of_them(cluster: &Cluster) {
    let mut srun = cluster.srun("3", "ranks");
    srun.arg("wait-for-signal").stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut step = srun.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(step.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    let jobs = text(&cluster.command("squeue").args(["-h", "-o", "%i"]).output().unwrap().stdout);
    let cancelled = cluster.command("scancel").arg(jobs.trim()).status().unwrap();
    assert!(cancelled.success(), "{jobs:?}");
    let output = step.wait_with_output().unwrap();
    let said = text(&output.stderr);
    for rank in 0..3 {
        assert!(said.contains(&format!("rank {rank} got SIGTERM\n")), "{said}");
    }
    assert_eq!(output.status.code(), Some(143), "{said}");
    cluster.wait_until_nothing_runs();
}

/// Why there can be no cluster.
fn unavailable() -> Option<String> {
    if fs::metadata("/proc/self").is_ok_and(|own| own.uid() != 0) {
        return Some("SLURM's controller starts ranks as any user, so only root can try it".to_owned());
    }
    let missing =
        ["munged", "slurmctld", "slurmd", "srun", "scancel"].into_iter().find(|name| found(name).is_none());
    missing.map(|name| format!("there is no {name} (Debian: slurm-wlm, munge)"))
}

fn found(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders.map(|folder| folder.join(name)).find(|file| file.exists())
}

/// Waits for a condition.
fn until(what: &str, mut condition: impl FnMut() -> bool) {
    const LONG: Duration = Duration::from_secs(40);
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < LONG, "not within {LONG:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// SLURM on this machine; it ends with this, and with this process.
struct Cluster {
    /// The last one that was started is the first.
    daemons: Vec<Guarded>,
    folder: tempfile::TempDir,
    mark: String,
}

impl Cluster {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mark = format!("slurm-{}.", std::process::id());
        let mut cluster = Self { daemons: Vec::new(), folder, mark };
        cluster.configure();
        let path = |name: &str| cluster.folder.path().join(name).display().to_string();
        let option = |name: &str, file: &str| format!("--{name}={}", path(file));
        let munge = [
            "--foreground".to_owned(),
            // The folder is ours alone, which it does not like.
            "--force".to_owned(),
            option("socket", "munge.socket"),
            option("key-file", "munge.key"),
            option("log-file", "munged.log"),
            option("pid-file", "munged.pid"),
            option("seed-file", "munged.seed"),
        ];
        let slurm = ["-D".to_owned(), "-f".to_owned(), path("slurm.conf")];
        cluster.daemon("munged", &munge);
        until("munge listens", || cluster.folder.path().join("munge.socket").exists());
        cluster.daemon("slurmctld", &slurm);
        cluster.daemon("slurmd", &slurm);
        until("the node is idle", || {
            let state = cluster.command("sinfo").args(["-h", "-o", "%T"]).output().unwrap();
            text(&state.stdout).trim() == "idle"
        });
        cluster
    }

    fn configure(&self) {
        let folder = self.folder.path();
        for name in ["state", "spool", "cgroup"] {
            fs::create_dir(folder.join(name)).unwrap();
        }
        let mut key = [0; 128];
        fs::File::open("/dev/urandom").unwrap().read_exact(&mut key).unwrap();
        let mut secret = fs::File::options();
        let secret = secret.write(true).create_new(true).mode(0o400).open(folder.join("munge.key"));
        std::io::Write::write_all(&mut secret.unwrap(), &key).unwrap();
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        let host = host.trim().split('.').next().unwrap();
        // SLURM takes no socket that is bound already: somebody else may be quicker, and then nothing works.
        let ports = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [controller, node] = ports.map(|port| port.local_addr().unwrap().port());
        let folder = folder.display();
        let slurm = format!(
            "ClusterName=leyden\n\
             SlurmctldHost={host}(127.0.0.1)\n\
             SlurmctldPort={controller}\n\
             SlurmdPort={node}\n\
             SlurmUser=root\n\
             SlurmdUser=root\n\
             AuthType=auth/munge\n\
             AuthInfo=socket={folder}/munge.socket\n\
             CredType=cred/munge\n\
             StateSaveLocation={folder}/state\n\
             SlurmdSpoolDir={folder}/spool\n\
             SlurmctldPidFile={folder}/slurmctld.pid\n\
             SlurmdPidFile={folder}/slurmd.pid\n\
             SlurmctldLogFile={folder}/slurmctld.log\n\
             SlurmdLogFile={folder}/slurmd.log\n\
             ProctrackType=proctrack/linuxproc\n\
             TaskPlugin=task/none\n\
             JobAcctGatherType=jobacct_gather/none\n\
             AccountingStorageType=accounting_storage/none\n\
             SelectType=select/cons_tres\n\
             SelectTypeParameters=CR_CPU\n\
             MpiDefault=none\n\
             SlurmdParameters=config_overrides\n\
             NodeName={host} NodeAddr=127.0.0.1 CPUs=8 State=UNKNOWN\n\
             PartitionName=all Nodes={host} Default=YES MaxTime=10 State=UP\n"
        );
        fs::write(format!("{folder}/slurm.conf"), slurm).unwrap();
        // SLURM cannot do without; so it has a folder to itself that has nothing to do with the kernel's.
        let cgroup = format!("CgroupPlugin=cgroup/v1\nCgroupMountpoint={folder}/cgroup\n");
        fs::write(format!("{folder}/cgroup.conf"), cgroup).unwrap();
    }

    fn daemon(&mut self, name: &str, arguments: &[String]) {
        let mut command = self.command(name);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.daemons.insert(0, Guarded::spawn(&mut command).unwrap());
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(found(name).unwrap());
        command.env("SLURM_CONF", self.folder.path().join("slurm.conf")).env("RUST_BACKTRACE", "0");
        command
    }

    /// So many ranks of an example.
    fn srun(&self, ranks: &str, example: &str) -> Command {
        let test = std::env::current_exe().unwrap();
        let examples = test.parent().unwrap().parent().unwrap().join("examples");
        let mut command = self.command("srun");
        command.env("LEYDEN_TEST", &self.mark).args(["--immediate=30", "-n", ranks]);
        command.arg(examples.join(example)).stdin(Stdio::null());
        command
    }

    /// No process of a rank is left.
    fn wait_until_nothing_runs(&self) {
        let ours = |pid: &str| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.windows(self.mark.len()).any(|part| part == self.mark.as_bytes())
        };
        until("no rank is left", || {
            let processes = fs::read_dir("/proc").unwrap().flatten();
            !processes.filter_map(|entry| entry.file_name().into_string().ok()).any(|pid| ours(&pid))
        });
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for daemon in &mut self.daemons {
            daemon.signal(leyden_process::signal::Signal::Terminate);
            if !matches!(daemon.wait(Duration::from_secs(10)), Ok(Some(_))) {
                daemon.kill();
            }
        }
        if std::thread::panicking() {
            for log in ["munged.log", "slurmctld.log", "slurmd.log"] {
                let log = fs::read_to_string(self.folder.path().join(log)).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                eprintln!("{}", lines[lines.len().saturating_sub(20)..].join("\n"));
            }
        }
    }
}
