//! The child's side: a thread reads what the parent sends, and its end is this process's end.

use std::os::fd::OwnedFd;
use std::time::Duration;

use super::control::{Control, Got, Tag};
use crate::codes::CONTROL;
use crate::error::{Error, Result};
use crate::worker::{Entry, Order, Work, end_the_group, end_when_orphaned, entry_at, other_build, patience};
use crate::{exit, image, sys, threads};

/// The name of the thread that reads.
pub(crate) const WATCH: &str = "leyden-watch";

/// Ties this process's life to its parent's: from here on it dies with it, and so does its group.
pub(crate) fn arm(control: Control) -> Control {
    end_when_orphaned();
    control.let_mail_be_delivered();
    let watched = control.clone();
    let watching = threads::start(WATCH, move || {
        watched.wait_until_closed();
        end_the_group()
    });
    // Without it nothing would end this process.
    if let Err(error) = watching {
        eprintln!("a worker's thread could not be started: {error} (see `ulimit -u`)");
        sys::exit_now(exit::WORKER_DIED);
    }
    control
}

/// What a process is to run, checked and not yet read.
pub(crate) struct Assignment {
    pub(crate) name: String,
    pub(crate) handed: Vec<OwnedFd>,
    /// Always none: such an order is refused where it is given.
    pub(crate) survives: Option<Duration>,
    entry: Entry,
    argument: Vec<u8>,
}

/// Receives what to run.
pub(crate) fn take_assignment(control: &Control) -> Result<Assignment> {
    let order: Order = postcard::from_bytes(&take(control, Tag::Start)?)?;
    if order.build != image::build() {
        return Err(other_build());
    }
    let entry = entry_at(order.entry).ok_or_else(other_build)?;
    let argument = take(control, Tag::Argument)?;
    Ok(Assignment { name: order.name, handed: Vec::new(), survives: order.survives, entry, argument })
}

impl Assignment {
    /// Reads the argument.
    pub(crate) fn load(self) -> Result<Work> {
        (self.entry)(&self.argument, Vec::new())
    }
}

/// The body of the next frame, which is to be of this kind.
fn take(control: &Control, expected: Tag) -> Result<Vec<u8>> {
    match control.receive(patience()) {
        Ok(Got::Packet { tag, body }) if tag == expected => Ok(body),
        // The parent has changed its mind or is gone: nobody is there to be told.
        Ok(Got::Closed | Got::TimedOut) => sys::exit_now(exit::WORKER_DIED),
        Ok(_) => {
            Err(Error::new(CONTROL, "the order of a job was not read").why("it is not what was expected"))
        }
        Err(error) => Err(Error::new(CONTROL, "the order of a job was not read").because(&error)),
    }
}
