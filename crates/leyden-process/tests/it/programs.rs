//! Whole programs: what happens to their processes when they are killed, interrupted, replaced, or short of something.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::support::{eventually, is_alive};

/// `examples/children.rs`, which cargo builds beside the tests.
pub(crate) fn program() -> PathBuf {
    let folder = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("examples");
    let path = folder.join("children");
    assert!(path.exists(), "{} is built by `cargo test -p leyden-process`", path.display());
    path
}

pub(crate) fn output(command: &mut Command) -> (Output, String) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    (output, String::from_utf8(text).unwrap())
}

#[test]
fn a_plain_main_runs_once_and_needs_no_guard() {
    let (output, text) = output(Command::new(program()).arg("echo"));
    assert_eq!((output.status.code(), text.as_str()), (Some(0), "main\nhello from echo\n"));
}

#[cfg(leyden_portable)]
#[test]
fn a_program_whose_file_was_replaced_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy");
    std::fs::copy(program(), &copy).unwrap();
    let (output, text) = output(Command::new(&copy).arg("replaced"));
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text.contains("error[P0103]: the program's own file has changed since the program started"),
        "{text}"
    );
}

// Without `/proc/self/exe` the path is all that leads to the program.
#[cfg(not(leyden_portable))]
#[test]
fn a_program_whose_file_was_replaced_still_starts_itself() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy");
    std::fs::copy(program(), &copy).unwrap();
    let (_, text) = output(Command::new(&copy).arg("replaced"));
    assert_eq!(text, "main\nhello from echo\n");
    assert_eq!(output(&mut Command::new(&copy)).1, "another program\n");
}

#[test]
fn a_program_started_through_the_loader_is_refused_with_the_reason() {
    let loaders = ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"];
    let Some(loader) = loaders.into_iter().find(|loader| Path::new(loader).exists()) else {
        eprintln!("skipped: no glibc loader here");
        return;
    };
    let (output, text) = output(Command::new(loader).arg(program()).arg("echo"));
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("error[P0103]: the program was started through another one"), "{text}");
    assert!(text.contains("fix: use threads: `Workers::threads`"), "{text}");
}

/// Starts the scenario, kills it when it is ready, and waits until the processes whose numbers it printed are gone.
pub(crate) fn killed(scenario: &[&str], processes: usize) {
    let mut program =
        Command::new(program()).args(scenario).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(program.stdout.take().unwrap()).lines().map(Result::unwrap);
    let pids: Vec<i32> = lines.take_while(|line| line != "ready").map(|pid| pid.parse().unwrap()).collect();
    assert_eq!(pids.len(), processes);
    assert!(pids.iter().all(|&pid| is_alive(pid)));
    program.kill().unwrap();
    let taken = eventually("the processes to die", || pids.iter().all(|&pid| !is_alive(pid)));
    println!("{scenario:?}: {processes} processes died {taken:?} after their parent was killed");
    // A second, and what a busy machine may add.
    assert!(taken < Duration::from_secs(5), "it took {taken:?}");
    program.wait().unwrap();
}

#[test]
fn children_die_with_a_program_that_is_killed_whatever_they_are_stuck_in() {
    killed(&["stuck", "busy", "reading", "sleeping"], 3);
    #[cfg(not(leyden_portable))]
    killed(&["stuck", "zygote's busy", "zygote's reading"], 2);
    #[cfg(not(leyden_portable))]
    killed(&["stuck", "forked busy", "forked reading", "forked busy"], 3);
}

#[test]
fn guarded_programs_and_theirs_die_with_a_program_that_is_killed() {
    killed(&["guarded"], 2);
}

#[cfg(not(leyden_portable))]
#[test]
fn a_program_with_one_thread_can_be_forked() {
    let (_, text) = output(Command::new(program()).arg("forked"));
    let expected = "buffered, and written once\n\n\
                    in memory false true\nin memory false true\n\
                    killed by SIGKILL\nkilled by SIGKILL\n\
                    serialised from forked\n";
    assert_eq!(text.replace('"', ""), expected);
}

#[test]
fn an_interrupt_of_the_terminal_does_not_reach_children() {
    let mut program = Command::new(program())
        .arg("interrupted")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(program.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(lines.next().as_deref(), Some("ready"));
    // SAFETY: kill takes numbers; the group is the program's own.
    unsafe { libc::kill(-(program.id() as i32), libc::SIGINT) };
    assert_eq!(lines.next().as_deref(), Some("alive"));
    program.wait().unwrap();
}

#[test]
fn a_child_that_does_not_report_is_killed_and_its_words_are_kept() {
    let (_, text) = output(Command::new(program()).arg("stalled"));
    assert!(text.contains("error[P0107]: a started process did not report"), "{text}");
    assert!(text.contains("its stderr  a constructor hangs"), "{text}");
    assert!(text.contains("why: it said nothing for 500ms, and is waiting in"), "{text}");
    assert!(text.contains("children: 0"), "{text}");
}

#[test]
fn a_program_without_descriptors_is_told_so_and_nothing_is_left_behind() {
    let (output, text) = output(Command::new(program()).arg("descriptors"));
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("error[P0106]: a process could not be started"), "{text}");
    assert!(text.contains("their limit (`ulimit -n`)  256"), "{text}");
    let open = text.lines().find_map(|line| line.trim().strip_prefix("open descriptors")).unwrap();
    assert!(open.trim().parse::<u32>().unwrap() > 200, "counted although none is left: {open}");
    assert!(text.contains(" started"), "with enough room it starts: {text}");
    assert!(text.ends_with("hello from echo\n"), "{text}");
}

#[test]
fn a_process_whose_role_nobody_took_ends_before_it_starts_another() {
    let (output, text) = output(Command::new(program()).arg("unconsumed"));
    assert_eq!(output.status.code(), Some(leyden_process::exit::CONFIGURATION.into()));
    assert_eq!(
        text,
        "main\nerror[P0104]: a process that should be a worker has reached the program's own code\n"
    );
}

#[test]
fn children_that_the_kernel_reaps_are_noticed_too() {
    let (_, text) = output(Command::new(program()).arg("sigchld-ignored"));
    assert_eq!(text, "returned\nended; its exit status was taken by another part of the program\n");
}

/// A control group for memory below this process's own, if there may be one; its folder goes with the value.
struct Group(PathBuf);

impl Group {
    fn with_memory(bytes: u64) -> Option<Self> {
        let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
        groups.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (root, limit) = match parts.next()? {
                "" => ("/sys/fs/cgroup", "memory.max"),
                "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
                _ => return None,
            };
            let path = format!("{root}{}/leyden-{}", parts.next()?, std::process::id());
            std::fs::create_dir(&path).ok()?;
            let group = Self(path.into());
            std::fs::write(group.0.join(limit), bytes.to_string()).ok().map(|()| group)
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn a_child_that_the_kernel_killed_for_memory_is_said_to_be() {
    let Some(group) = Group::with_memory(100 << 20) else {
        eprintln!("skipped: no control group for memory can be made here");
        return;
    };
    let (_, text) = output(Command::new(program()).arg("hungry").arg(&group.0));
    assert_eq!(text, "killed by SIGKILL (the kernel's out-of-memory killer, most likely)\n");
}
