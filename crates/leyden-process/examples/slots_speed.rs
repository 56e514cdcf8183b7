//! How fast slots are between two processes: the round trip of an empty task, and large replies.
//!
//! `cargo run --release -p leyden-process --example slots_speed`

#[cfg(not(target_os = "linux"))]
fn main() {}

#[cfg(target_os = "linux")]
fn main() -> leyden_process::Result<()> {
    linux::main()
}

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::VecDeque;
    use std::thread;
    use std::time::{Duration, Instant};

    use leyden_process::slots::{Loan, Reply, SlotId, Slots, SlotsConfig, SlotsWorker};
    use leyden_process::{Result, bail};

    pub(super) fn main() -> Result<()> {
        let slots = Slots::new(SlotsConfig { workers: 1, slots: 3, ..SlotsConfig::default() })?;
        let fd = slots.fd().try_clone_to_owned()?;
        // SAFETY: this program has one thread, so the child finds no lock held by another.
        if unsafe { libc::fork() } == 0 {
            // SAFETY: numbers only: the worker ends with its parent, and leaves without clean-up.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            let outcome = work(&SlotsWorker::open(fd, 0)?);
            // SAFETY: as above.
            unsafe { libc::_exit(i32::from(outcome.is_err())) };
        }
        round_trips(&slots, "empty task, back to back", 50_000, Duration::ZERO)?;
        round_trips(
            &slots,
            "empty task, every 200 µs (both sides asleep)",
            5_000,
            Duration::from_micros(200),
        )?;
        large(&slots, "38.5 MB replies, fresh pages", 3)?;
        large(&slots, "38.5 MB replies, recycled", 300)?;
        floor();
        Ok(())
    }

    /// The request is how many bytes to reply with.
    fn work(worker: &SlotsWorker) -> Result<()> {
        while let Some(task) = worker.claim(Instant::now() + Duration::from_secs(10)) {
            let bytes = u64::from_ne_bytes(task.request().try_into()?) as usize;
            if bytes > 0 {
                task.writer().alloc(bytes)?.1.fill(task.ticket() as u8);
            }
            task.complete(&[]).map_err(|(error, _)| error)?;
        }
        Ok(())
    }

    fn round_trips(slots: &Slots, what: &str, tasks: u64, pause: Duration) -> Result<()> {
        let mut times = Vec::new();
        for _ in 0..tasks {
            thread::sleep(pause);
            let start = Instant::now();
            let (slot, ticket) = post(slots, 0)?;
            drop(reply(slots, slot, ticket)?);
            times.push(start.elapsed());
        }
        times.sort_unstable();
        let at = |part: f64| times[(part * (times.len() - 1) as f64) as usize].as_secs_f64() * 1e6;
        println!("{what}: median {:.2} µs, 99 % {:.2} µs, longest {:.0} µs", at(0.5), at(0.99), at(1.0));
        Ok(())
    }

    fn large(slots: &Slots, what: &str, tasks: usize) -> Result<()> {
        let start = Instant::now();
        let mut under_way = VecDeque::new();
        let mut sum = 0_u64;
        for posted in 0..tasks + 2 {
            if posted < tasks {
                under_way.push_back(post(slots, BYTES)?);
            }
            if posted >= 2 {
                let Some((slot, ticket)) = under_way.pop_front() else { bail!("no task is under way") };
                let loan = reply(slots, slot, ticket)?;
                let Some(region) = loan.take_region(0) else { bail!("the reply has no region") };
                let words = region
                    .chunks_exact(8)
                    .map(|word| u64::from_ne_bytes(word.try_into().unwrap_or_default()));
                sum = sum.wrapping_add(words.fold(0, u64::wrapping_add));
            }
        }
        let each = start.elapsed().as_secs_f64() / tasks as f64;
        println!(
            "{what}: {:.2} ms each, {:.1} GB/s (written by one, read by the other; sum {sum:x})",
            each * 1e3,
            BYTES as f64 / each / 1e9
        );
        Ok(())
    }

    /// What writing and reading cost by themselves, one after the other in one process.
    fn floor() {
        let mut memory = vec![1_u8; BYTES as usize];
        let (start, rounds) = (Instant::now(), 50);
        for round in 0..rounds {
            memory.fill(round as u8);
            std::hint::black_box(&mut memory);
        }
        let (written, start) = (start.elapsed(), Instant::now());
        for _ in 0..rounds {
            std::hint::black_box(add_up(std::hint::black_box(&memory)));
        }
        println!("in one process: {:?} to write, {:?} to read", written / rounds, start.elapsed() / rounds);
    }

    fn add_up(bytes: &[u8]) -> u64 {
        let words = bytes.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap_or_default()));
        words.fold(0, u64::wrapping_add)
    }

    fn post(slots: &Slots, bytes: u64) -> Result<(SlotId, u64)> {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let ticket = NEXT.fetch_add(1, Ordering::Relaxed);
        match slots.post(ticket, &bytes.to_ne_bytes())? {
            Some(slot) => Ok((slot, ticket)),
            None => bail!("no slot is free"),
        }
    }

    fn reply(slots: &Slots, slot: SlotId, ticket: u64) -> Result<Loan> {
        slots.wait(slot, ticket, slots.kicks(), Instant::now() + Duration::from_secs(10));
        match slots.take(slot, ticket)? {
            Some(Reply::Done(loan)) => Ok(loan),
            _ => bail!("the worker did not answer"),
        }
    }

    const BYTES: u64 = 38_500_000;
}
