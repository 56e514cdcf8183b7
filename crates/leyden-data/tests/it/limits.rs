//! Programs under limits of the system's, and in odd surroundings: an exact error, or they just work.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::leftovers::settle;
use crate::support::program::{Program, rows, words};
use crate::support::{Kind, Trouble, calm_hash};

fn expected() -> String {
    let folder = tempfile::tempdir().unwrap();
    format!("hash {:x}", calm_hash(&Trouble::new(48, folder.path()), 0))
}

/// A folder that every user may write to.
fn open_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    folder
}

// Row 20.
#[test]
fn without_descriptors_there_is_an_exact_error_and_nothing_is_left_and_later_it_works() {
    for kind in Kind::PROCESSES {
        let folder = tempfile::tempdir().unwrap();
        let lines = Program::rows("short", kind, folder.path(), &[]).ended().lines();
        let text = lines.join("\n");
        assert!(lines[0].starts_with("error[P"), "{kind:?}: {text}");
        assert!(text.contains("Too many open files"), "{kind:?}: {text}");
        assert!(text.contains("ulimit -n"), "{kind:?}: {text}");
        let works =
            lines.iter().position(|line| line.contains("it works: ")).expect("with some room it works");
        assert!(lines[works].ends_with(&expected()), "{kind:?}: {text}");
        assert!(
            lines[works + 1].contains("errors without room for a replacement: error[P0302]"),
            "{kind:?}: {text}"
        );
        assert_eq!(lines.last(), Some(&expected()), "{kind:?}: the epoch after, with room");
    }
}

// Row 22.
#[test]
fn without_room_for_threads_and_processes_there_is_an_exact_error_and_nothing_is_left() {
    if !is_root() {
        println!("skipped: only root can become a user without processes");
        return;
    }
    for kind in Kind::WORKERS {
        let mut codes = Vec::new();
        for most in 1..14 {
            let folder = open_folder();
            // Root is exempt from this limit; and nobody else has processes of this user.
            let mut command = Command::new(rows());
            command
                .args(words("limited", kind, folder.path(), &["threads", &most.to_string()]))
                .uid(61_111)
                .gid(61_111);
            let ending = Program::start(&mut command).ended();
            let lines = ending.lines();
            assert_eq!(lines.last().unwrap(), "children 0", "{kind:?}, {most}: {lines:?}");
            let first = lines[0].split(':').next().unwrap();
            let ok = lines[0] == expected();
            assert!(ok || first.starts_with("error["), "{kind:?}, {most}: {lines:?}");
            if most == 1 {
                assert!(!ok && lines.join(" ").contains("ulimit -u"), "{kind:?}: {lines:?}");
            }
            codes.push(if ok { "works" } else { first }.to_owned());
        }
        println!("row 22: {kind:?}, room for 1 to 13 threads: {}", codes.join(" "));
        assert_eq!(codes.last().unwrap(), "works", "{kind:?}");
    }
}

// The portable back end reserves nothing.
#[cfg(not(leyden_portable))]
#[test]
fn limits_on_addresses_and_files_make_the_reservation_smaller_or_are_named() {
    for kind in Kind::PROCESSES {
        for (resource, most, fits) in [
            ("addresses", 8_u64 << 30, true),
            ("addresses", 600 << 20, false),
            ("files", 2 << 30, true),
            ("files", 1 << 20, false),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let ending =
                Program::rows("limited", kind, folder.path(), &[resource, &most.to_string()]).ended();
            let lines = ending.lines();
            assert_eq!(lines.last().unwrap(), "children 0", "{kind:?}, {resource}: {lines:?}");
            if fits {
                assert_eq!(lines[0], expected(), "{kind:?}, {resource}, {most}");
            } else {
                let text = lines.join("\n");
                assert!(text.starts_with("error[P02"), "{kind:?}, {resource}: {text}");
                assert!(
                    text.contains("RLIMIT_") && text.contains(".max_batch_bytes("),
                    "{kind:?}, {resource}: {text}"
                );
            }
        }
    }
}

// Row 18.
#[test]
fn a_tiny_dev_shm_does_not_matter() {
    let tiny = "mount -t tmpfs -o size=64k tmpfs /dev/shm && exec \"$@\"";
    if !Command::new("unshare")
        .args(["-m", "sh", "-c", tiny, "sh", "true"])
        .output()
        .is_ok_and(|it| it.status.success())
    {
        println!("skipped: nothing can be mounted here");
        return;
    }
    for kind in Kind::PROCESSES {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", tiny, "sh"]).arg(rows());
        command.args(words("large", kind, folder.path(), &["8000000"]));
        let ending = Program::start(&mut command).ended();
        assert_eq!(ending.lines(), ["[4, 500000]"], "{kind:?}");
    }
}

// Rows 4 and 19.
#[test]
fn a_worker_that_the_kernel_kills_for_its_memory_is_said_to_be_so() {
    let Some(group) = MemoryGroup::new(96 << 20) else {
        println!("skipped: no control group for memory can be made here");
        return;
    };
    for kind in Kind::PROCESSES {
        // Once: the batch is made again, by another worker.
        let folder = tempfile::tempdir().unwrap();
        let lines = group.run(&words("take", kind, folder.path(), &["200000000", "1"])).lines();
        assert_eq!(lines, ["4"; 12], "{kind:?}");

        let folder = tempfile::tempdir().unwrap();
        let text = group.run(&words("take", kind, folder.path(), &["200000000", "0"])).lines().join("\n");
        assert!(
            text.contains("error[L0905]: a batch has killed each worker that tried it"),
            "{kind:?}: {text}"
        );
        assert!(
            text.contains("killed by SIGKILL (the kernel's out-of-memory killer, most likely)"),
            "{kind:?}: {text}"
        );
        assert!(text.contains("sample    9") || text.contains("sample  9"), "{kind:?}: {text}");
        assert_eq!(text.lines().filter(|line| *line == "4").count(), 11, "{kind:?}: {text}");
    }
}

#[test]
fn a_batch_beyond_the_memory_of_its_control_group_is_an_error_and_not_a_kill() {
    let Some(group) = MemoryGroup::new(96 << 20) else {
        println!("skipped: no control group for memory can be made here");
        return;
    };
    for kind in Kind::PROCESSES {
        let folder = tempfile::tempdir().unwrap();
        let text = group.run(&words("large", kind, folder.path(), &["60000000"])).lines().join("\n");
        assert!(text.starts_with("error[P0204]: there is no memory for a reply"), "{kind:?}: {text}");
        let folder = tempfile::tempdir().unwrap();
        let text = group.run(&words("large", kind, folder.path(), &["8000000"])).lines().join("\n");
        assert_eq!(text, "[4, 500000]", "{kind:?}");
    }
}

/// A control group with so much memory.
struct MemoryGroup(PathBuf);

impl MemoryGroup {
    fn new(bytes: u64) -> Option<Self> {
        let name = format!("leyden-rows-{}-{:?}", std::process::id(), std::thread::current().id());
        let at = |root: &str, limit: &str| {
            let group = Self(Path::new(root).join(&name));
            fs::create_dir(&group.0).ok()?;
            fs::write(group.0.join(limit), bytes.to_string()).ok()?;
            Some(group)
        };
        at("/sys/fs/cgroup/memory", "memory.limit_in_bytes").or_else(|| at("/sys/fs/cgroup", "memory.max"))
    }

    fn run(&self, words: &[String]) -> crate::support::program::Ending {
        let script = format!("echo $$ > '{}' && exec \"$@\"", self.0.join("cgroup.procs").display());
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh"]).arg(rows()).args(words);
        Program::start(&mut command).ended()
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        settle(|| fs::remove_dir(&self.0).is_ok() || !self.0.exists());
    }
}

// Row 40.
#[test]
fn closed_and_broken_standard_streams_cost_at_most_the_batch_that_prints() {
    let program = rows();
    let program = program.to_str().unwrap();
    for kind in Kind::EACH {
        for (streams, what) in [
            // Closed before it starts, by the program itself, and open to somebody who is gone.
            ("exec \"$@\" <&- >&- 2>&-", "as they are"),
            ("exec \"$@\"", "close"),
            ("exec \"$@\" | true", "as they are"),
            ("exec \"$@\" 2>&1 | true", "as they are"),
            ("exec \"$@\" > /dev/full 2> /dev/full", "as they are"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let mut command = Command::new("sh");
            command.args(["-c", streams, "sh", program]).args(words(
                "standard",
                kind,
                folder.path(),
                &[what],
            ));
            let ending = Program::start(&mut command).ended();
            assert_eq!(ending.code, Some(0), "{kind:?}, {streams}: {ending:?}");
            assert!(
                settle(|| folder.path().join("result").exists()),
                "{kind:?}, {streams}, {what}: {ending:?}"
            );
            let text = fs::read_to_string(folder.path().join("result")).unwrap();
            let failed: Vec<&str> = text.lines().filter(|line| !line.starts_with('[')).collect();
            assert_eq!(text.lines().count(), 12, "{kind:?}, {streams}, {what}: {text}");
            // The sample that panics, and the one that prints where that panics.
            assert!((1..=2).contains(&failed.len()), "{kind:?}, {streams}, {what}: {text}");
            assert!(failed.contains(&"L0201: torn page"), "{kind:?}, {streams}, {what}: {text}");
            assert!(
                failed
                    .iter()
                    .all(|line| *line == "L0201: torn page"
                        || line.starts_with("L0201: failed printing to std")),
                "{kind:?}, {streams}, {what}: {text}"
            );
        }
    }
}

fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions.
    unsafe { libc::geteuid() == 0 }
}
