//! Descriptors that are handed over, and those that are not.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};

use leyden_process::Result;
use leyden_process::spawn::{Child, Job, Parent, Received, SpawnOptions};

use crate::support::LONG;

fn message(child: &mut Child) -> String {
    match child.recv(LONG).unwrap() {
        Received::Message(message) => String::from_utf8(message).unwrap(),
        other => panic!("{other:?}: {:?}", child.ended(LONG)),
    }
}

fn list_descriptors(_: (), mut parent: Parent) -> Result<()> {
    let fds = parent.fds();
    let mut expected: Vec<i32> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
    expected.extend([0, 1, 2, parent.as_fd().as_raw_fd()]);
    let open: BTreeMap<i32, String> = fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let number = path.file_name()?.to_str()?.parse().ok()?;
            // The folder that is being read is gone by now.
            Some((number, fs::read_link(&path).ok()?.to_string_lossy().into_owned()))
        })
        .filter(|(_, target)| !target.contains("/fd"))
        .collect();
    let mut text = String::new();
    File::from(fds.into_iter().nth(1).unwrap()).read_to_string(&mut text)?;
    let unexpected: Vec<_> = open.iter().filter(|(number, _)| !expected.contains(number)).collect();
    parent.send(format!("{} {} {unexpected:?} {text}", open.len(), open[&0]).as_bytes())
}

#[test]
fn a_child_has_the_listed_descriptors_and_no_other() {
    let null = File::open("/dev/null").unwrap();
    // Open in every program that this one starts by itself: they survive an exec.
    // SAFETY: dup takes and gives numbers; these two are never closed.
    let leaked = unsafe { [libc::dup(null.as_raw_fd()), libc::dup2(null.as_raw_fd(), 200)] };
    assert!(leaked.iter().all(|&fd| fd > 2));
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"handed over").unwrap();
    std::io::Seek::rewind(&mut file).unwrap();

    let options = SpawnOptions { fds: vec![null.as_fd(), file.as_fd()], ..SpawnOptions::default() };
    let mut child = Job::new(list_descriptors, &()).unwrap().spawn(&options).unwrap();
    assert_eq!(message(&mut child), "6 /dev/null [] handed over");
}

#[test]
fn six_hundred_descriptors_can_be_handed_over() {
    fn count(_: (), mut parent: Parent) -> Result<()> {
        let count = parent.fds().len();
        parent.send(count.to_string().as_bytes())
    }
    let null = File::open("/dev/null").unwrap();
    let options = SpawnOptions { fds: vec![null.as_fd(); 600], ..SpawnOptions::default() };
    let mut child = Job::new(count, &()).unwrap().spawn(&options).unwrap();
    assert_eq!(message(&mut child), "600");
}
