//! How much memory this process may still take before somebody is killed for it.

use std::fs;
use std::path::{Path, PathBuf};

/// The bytes that this process may still commit: the least of what the machine has available (`MemAvailable` of
/// `/proc/meminfo`) and what each memory cgroup above the process, version 1 or 2, leaves of its limit.
///
/// A cgroup's file pages count as free, since the kernel gives them up before it kills; swap does not. What cannot be
/// read limits nothing. A snapshot: others allocate too.
pub fn available_bytes() -> u64 {
    let machine = read(Path::new("/proc/meminfo")).and_then(|text| machine_available(&text));
    machine.into_iter().chain(cgroups_left()).min().unwrap_or(u64::MAX)
}

fn machine_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// What each memory cgroup above this process leaves of its limit.
fn cgroups_left() -> Vec<u64> {
    let (Some(mounts), Some(member)) = (read("/proc/self/mountinfo"), read("/proc/self/cgroup")) else {
        return Vec::new();
    };
    hierarchies(&mounts, &member)
        .into_iter()
        .flat_map(|hierarchy| {
            let folders: Vec<PathBuf> = hierarchy
                .folder
                .ancestors()
                .take_while(|folder| folder.starts_with(&hierarchy.mount))
                .map(Path::to_path_buf)
                .collect();
            folders.into_iter().filter_map(move |folder| left(&folder, hierarchy.version))
        })
        .collect()
}

/// A mounted hierarchy of cgroups that limits memory, and this process's folder in it.
#[derive(Debug, PartialEq)]
struct Hierarchy {
    mount: PathBuf,
    folder: PathBuf,
    version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Version {
    One,
    Two,
}

/// Finds the hierarchies in the texts of `/proc/self/mountinfo` and `/proc/self/cgroup`.
fn hierarchies(mounts: &str, member: &str) -> Vec<Hierarchy> {
    let mut found = Vec::new();
    for mount in mounts.lines() {
        let Some((fields, tail)) = mount.split_once(" - ") else { continue };
        let (mut fields, mut tail) = (fields.split(' ').skip(3), tail.split(' '));
        let (Some(root), Some(mount)) = (fields.next(), fields.next()) else { continue };
        let version = match (tail.next(), tail.nth(1)) {
            (Some("cgroup2"), _) => Version::Two,
            (Some("cgroup"), Some(options)) if options.split(',').any(|option| option == "memory") => {
                Version::One
            }
            _ => continue,
        };
        let path = member.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?);
            let ours = match version {
                Version::One => controllers.split(',').any(|name| name == "memory"),
                Version::Two => controllers.is_empty(),
            };
            ours.then_some(path)
        });
        let Some(path) = path else { continue };
        // A container may see its own folder as the mount's root, or paths above the mount that it cannot reach.
        let below = Path::new(path).strip_prefix(root).unwrap_or(Path::new(""));
        let below = if path.contains("..") { Path::new("") } else { below };
        let mount = PathBuf::from(mount);
        found.push(Hierarchy { folder: mount.join(below), mount, version });
    }
    found
}

/// What a cgroup leaves of its limit; nothing where it has none.
fn left(folder: &Path, version: Version) -> Option<u64> {
    let (limit, usage, prefix) = match version {
        Version::One => ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
        Version::Two => ("memory.max", "memory.current", ""),
    };
    // Version 2 says `max` and version 1 a huge number where there is no limit.
    let limit: u64 = read(folder.join(limit))?.trim().parse().ok()?;
    let usage: u64 = read(folder.join(usage))?.trim().parse().ok()?;
    let stat = read(folder.join("memory.stat")).unwrap_or_default();
    let file_pages: u64 = ["inactive_file", "active_file"]
        .iter()
        .filter_map(|name| {
            let name = format!("{prefix}{name} ");
            stat.lines().find_map(|line| line.strip_prefix(&name))?.trim().parse::<u64>().ok()
        })
        .sum();
    Some(limit.saturating_sub(usage.saturating_sub(file_pages)))
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_says_what_is_available() {
        assert_eq!(machine_available("MemTotal: 9 kB\nMemAvailable:    1024 kB\n"), Some(1 << 20));
        let available = available_bytes();
        assert!(available > 1 << 20 && available < 1 << 50, "{available}");
    }

    #[test]
    fn hierarchies_of_both_versions_are_found_and_a_containers_root_is_taken_off() {
        let mounts = "35 31 0:32 /docker/a1 /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      33 31 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw shared:4 - cgroup2 cgroup2 rw\n";
        let found = hierarchies(mounts, "4:memory:/docker/a1/run\n1:cpu:/\n0::/../outside\n");
        let folders: Vec<_> = found.iter().map(|it| (it.folder.to_str().unwrap(), it.version)).collect();
        let expected =
            [("/sys/fs/cgroup/memory/run", Version::One), ("/sys/fs/cgroup/unified/", Version::Two)];
        assert_eq!(folders, expected);
    }

    #[test]
    fn a_limit_leaves_what_is_not_used_and_file_pages_count_as_free() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("memory.max", "max\n");
        write("memory.current", "700\n");
        assert_eq!(left(folder.path(), Version::Two), None);
        write("memory.max", "1000\n");
        assert_eq!(left(folder.path(), Version::Two), Some(300));
        write("memory.stat", "inactive_file 100\nactive_file 50\ntotal_inactive_file 200\n");
        assert_eq!(left(folder.path(), Version::Two), Some(450));
        write("memory.limit_in_bytes", "1000\n");
        write("memory.usage_in_bytes", "1300\n");
        assert_eq!(left(folder.path(), Version::One), Some(0));
    }
}
