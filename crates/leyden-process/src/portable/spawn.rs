//! Starting this program again, by its path, with pipes as its stdin and stdout.

use std::any::type_name;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::Arc;

use serde::Serialize;

use super::control::{Control, Tag};
use crate::codes::{ARGUMENT, NOT_HERE};
use crate::contain::contain;
use crate::entry::{self, Cookie, Kind};
use crate::error::{Error, Result};
use crate::spawn::{Child, Parent, SpawnOptions, Start, launch, own_words_lost, panicked, start_failed};
use crate::worker::{Entry, Order};
use crate::{attach, function, image, sys};

/// What a job is made of.
pub(crate) struct Source {
    entry: Entry,
    argument: Vec<u8>,
}

impl Source {
    pub(crate) fn serialise<A: Serialize>(entry: Entry, argument: &A) -> Result<Self> {
        attach::refusal();
        let (bytes, functions) = function::sending(|| contain(|| postcard::to_allocvec(argument)))?;
        let bytes = bytes.map_err(|panic| panic.explain(panicked::<A>()))?;
        let mut argument = bytes.map_err(|error| match attach::refusal() {
            Some(refusal) => refusal.at("type", type_name::<A>()),
            None => own_words_lost(
                &error,
                Error::new(ARGUMENT, "the argument of a job cannot be serialised")
                    .at("type", type_name::<A>()),
            )
            .because(&error)
            .hint("the argument's `Serialize` must not fail or skip lengths"),
        })?;
        argument.extend(functions);
        Ok(Self { entry, argument })
    }

    pub(crate) fn in_memory(_: Arc<dyn Fn(Parent) -> Result<()> + Send + Sync>) -> Result<Self> {
        Err(not_here("jobs whose argument stays in memory, because they need a fork"))
    }

    /// The length of the serialised argument.
    pub(crate) fn argument_bytes(&self) -> Option<u64> {
        Some(self.argument.len() as u64)
    }

    /// Starts this program again and sends it the job; it has not reported yet.
    pub(crate) fn begin(&self, options: &SpawnOptions<'_>) -> Result<Child> {
        if options.start != Start::Exec {
            return Err(not_here("zygotes and forks").at("process", &options.name));
        }
        if !options.fds.is_empty() {
            return Err(not_here("descriptors that are handed over").at("process", &options.name));
        }
        if options.stdout.is_some() || options.survives.is_some() {
            let what = "processes that outlive us, or whose stdout goes elsewhere";
            return Err(not_here(what).at("process", &options.name));
        }
        entry::preflight()?;
        let child = launch(Kind::Worker, options)?;
        let order = Order {
            build: image::build(),
            name: options.name.clone(),
            entry: image::offset_of(self.entry as *const () as usize),
            length: self.argument.len() as u64,
            attached: 0,
            handed: 0,
            survives: None,
        };
        let order = postcard::to_allocvec(&order)?;
        let deadline = sys::deadline(options.hello_timeout);
        let sent = child.control.send_all(&[(Tag::Start, &order), (Tag::Argument, &self.argument)], deadline);
        match sent {
            // What became of an order that nobody took is said by the hello that does not come.
            Err(error) if !matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::TimedOut) => {
                return Err(start_failed(&options.name, &error));
            }
            _ => {}
        }
        Ok(child)
    }
}

pub(crate) fn not_here(what: &str) -> Error {
    Error::new(NOT_HERE, format!("this build has no {what}"))
        .why("it starts processes in the portable way, which is all there is on systems other than Linux")
        .hint("use `Start::Exec`, and send what the process needs as the job's argument")
}

/// A process's arguments say its name.
pub(crate) fn set_arguments(command: &mut Command, _: Kind, name: &str) -> io::Result<()> {
    command.arg0(name.replace('\0', " "));
    Ok(())
}

/// The other ends of the pipes: what the process reads and what it writes.
pub(crate) struct There {
    stdin: OwnedFd,
    stdout: OwnedFd,
}

impl There {
    pub(crate) fn connect() -> io::Result<(Control, Self)> {
        let (read, stdout) = sys::blocking_pipe()?;
        let (stdin, write) = sys::blocking_pipe()?;
        Ok((Control::new(read, write)?, Self { stdin, stdout }))
    }

    /// This program, to be started again in a role.
    pub(crate) fn command(self, kind: Kind) -> io::Result<Command> {
        let cookie =
            Cookie::new(kind, self.stdin.as_fd()).ok_or_else(|| io::Error::other("a pipe has no inode"))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.env(entry::VARIABLE, cookie.to_string()).stdin(self.stdin).stdout(self.stdout);
        Ok(command)
    }
}
