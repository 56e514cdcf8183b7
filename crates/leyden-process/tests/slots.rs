//! Slots between real processes: replies, deaths at every point, limits, leaks.
//!
//! Without the test harness, because it forks: each scenario runs in a process of its own, which has one thread until
//! its workers are there. `cargo test --release -p leyden-process --test slots [-- NAME]`

#[cfg(not(target_os = "linux"))]
fn main() {}

#[cfg(target_os = "linux")]
fn main() {
    linux::main();
}

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::BTreeMap;
    use std::fs;
    use std::io;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::process;
    use std::thread;
    use std::time::{Duration, Instant};

    use leyden_process::futex::{self, WokenAny};
    use leyden_process::memory::{Region, available_bytes};
    use leyden_process::shared::{Shared, SharedStrings};
    use leyden_process::slots::{
        Loan, Reply, SlotId, SlotView, Slots, SlotsConfig, SlotsWorker, Task, Waited,
    };
    use leyden_process::{codes, tombstone};

    const SCENARIOS: &[(&str, fn())] = &[
        ("each_ticket_gets_its_own_reply_from_several_processes", replies),
        ("tasks_survive_workers_that_are_killed_at_any_time", chaos),
        ("a_worker_that_dies_at_each_point_loses_nothing", death_at_each_point),
        ("a_tombstone_tells_of_each_kind_of_death", kinds_of_death),
        ("a_tombstone_tells_before_a_gigabyte_is_freed", large_death),
        ("a_limit_on_file_sizes_is_an_error_and_no_signal", file_size_limit),
        ("a_limit_on_addresses_is_named", address_limit),
        ("no_descriptor_or_mapping_is_left_after_a_thousand_uses", leaks),
    ];

    pub(super) fn main() {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        let wanted = |name: &str| {
            let mut filters = arguments.iter().filter(|argument| !argument.starts_with('-')).peekable();
            filters.peek().is_none() || filters.any(|filter| name.contains(filter.as_str()))
        };
        let mut failed = 0;
        for (name, scenario) in SCENARIOS.iter().filter(|(name, _)| wanted(name)) {
            if arguments.iter().any(|argument| argument == "--list") {
                println!("{name}: test");
                continue;
            }
            let start = Instant::now();
            let outcome = Child::fork(scenario).wait(Duration::from_secs(180));
            failed += usize::from(outcome != Some(0));
            let verdict = if outcome == Some(0) { "ok".into() } else { format!("FAILED: {outcome:?}") };
            println!("test {name} ... {verdict} ({:.1} s)", start.elapsed().as_secs_f64());
        }
        process::exit(i32::from(failed > 0));
    }

    // Scenarios.

    fn replies() {
        const TASKS: u64 = 5_000;
        let slots = Slots::new(config(3, 6)).unwrap();
        let workers: Vec<Child> = (0..3).map(|worker| start(&slots, worker, answer)).collect();
        let mut answered = 0;
        drive(&slots, TASKS, |_| answered += 1);
        assert_eq!((answered, slots.loaned(), slots.quarantined()), (TASKS, 0, 0));
        slots.close();
        for worker in workers {
            assert_eq!(worker.wait(LONG), Some(0));
        }
    }

    fn chaos() {
        const TASKS: u64 = 3_000;
        const WORKERS: usize = 3;
        let slots = Slots::new(config(WORKERS, 6)).unwrap();
        let work = |worker| start(&slots, worker, answer);
        let mut workers: Vec<Child> = (0..WORKERS).map(work).collect();
        let (mut killed, mut orphans) = (0, 0);
        drive(&slots, TASKS, |ticket| {
            // A fixed order of victims at points that the scheduler chooses.
            if ticket % 40 != 0 {
                return;
            }
            let victim = (ticket / 40) as usize % WORKERS;
            workers[victim].signal(libc::SIGKILL);
            let dead = std::mem::replace(&mut workers[victim], Child(0));
            assert_eq!(dead.wait(LONG), None);
            orphans += slots.reclaim(victim).len();
            killed += 1;
            workers[victim] = work(victim);
        });
        println!("  {killed} workers killed; {orphans} had a task");
        assert!(killed > 50);
        assert_eq!((slots.loaned(), slots.quarantined()), (0, 0));
        assert!(slots.committed_bytes() <= 64 << 20);
    }

    fn death_at_each_point() {
        // What the worker does with the task, and what is found of it afterwards.
        type Point = fn(Task) -> Held;
        enum Held {
            Task { _task: Task },
            Region { _task: Task, _region: Region },
            Kept { _region: Region },
            Nothing,
        }
        let points: [(&str, Point); 5] = [
            ("claimed", |task| Held::Task { _task: task }),
            ("writing", |task| {
                let mut region = task.writer().alloc(100_000).unwrap().1;
                region[..50_000].fill(1);
                Held::Region { _task: task, _region: region }
            }),
            ("done", |task| {
                answer(task);
                Held::Nothing
            }),
            ("failed", |task| {
                task.fail(b"on purpose");
                Held::Nothing
            }),
            ("kept", |task| {
                let region = task.writer().alloc(100).unwrap().1;
                task.fail(b"on purpose");
                Held::Kept { _region: region }
            }),
        ];
        for (name, point) in points {
            for withdrawn in [false, true] {
                let slots = Slots::new(config(2, 1)).unwrap();
                let worker = start_once(&slots, 0, move |task| {
                    task.set_progress(7);
                    point(task)
                });
                let slot = slots.post(3, &3_u64.to_ne_bytes()).unwrap().unwrap();
                until(|| match name {
                    "claimed" => matches!(slots.peek(slot), SlotView::Running { progress: 7, .. }),
                    "writing" => slots.committed_bytes() >= 100_000,
                    "done" => matches!(slots.peek(slot), SlotView::Done { .. }),
                    _ => matches!(slots.peek(slot), SlotView::Failed { .. }),
                });
                if withdrawn {
                    slots.withdraw(slot, 3);
                }
                worker.signal(libc::SIGKILL);
                assert_eq!(worker.wait(LONG), None);
                let running = matches!(name, "claimed" | "writing");
                let orphans = slots.reclaim(0);
                assert_eq!(orphans.len(), usize::from(running), "{name}");
                assert!(orphans.iter().all(|orphan| (orphan.ticket, orphan.progress) == (3, 7)));
                if !withdrawn && matches!(name, "failed" | "kept") {
                    let Some(Reply::Failed(loan)) = slots.take(slot, 3).unwrap() else { panic!("{name}") };
                    assert_eq!(loan.body(), b"on purpose");
                } else if !withdrawn {
                    let other = start(&slots, 1, answer);
                    check(&done(&slots, slot, 3), 3);
                    slots.close();
                    assert_eq!(other.wait(LONG), Some(0));
                }
                assert_eq!((slots.loaned(), slots.quarantined()), (0, 0), "{name}");
                assert_eq!(slots.post(4, b"").unwrap(), Some(slot), "{name}");
            }
        }
    }

    fn kinds_of_death() {
        let slots = Slots::new(config(2, 1)).unwrap();
        let survivor = tombstoned(&slots, 1, 0);
        let crash = |worker: SlotsWorker| {
            worker.hold_tombstone().unwrap();
            let _task = worker.claim(Instant::now() + LONG);
            // SAFETY: there is none; this is how native code ends a worker.
            unsafe { std::hint::black_box(std::ptr::null_mut::<u8>()).write_volatile(1) };
        };
        let sleep = |worker: SlotsWorker| {
            worker.hold_tombstone().unwrap();
            assert!(worker.hold_tombstone().is_err());
            thread::sleep(LONG);
        };
        let leave = |worker: SlotsWorker| {
            worker.hold_tombstone().unwrap();
            let _task = worker.claim(Instant::now() + LONG);
        };
        type Work = fn(SlotsWorker);
        let deaths: [(&str, Work, i32, Option<i32>); 4] = [
            ("killed", sleep, libc::SIGKILL, None),
            ("aborted", sleep, libc::SIGABRT, None),
            ("crashed", crash, 0, None),
            ("left", leave, 0, Some(0)),
        ];
        for (name, work, signal, code) in deaths {
            let worker = start_with(&slots, 0, work);
            until_held(&slots, 0);
            let slot = slots.post(1, b"").unwrap().unwrap();
            worker.signal(signal);
            println!("  {name}: {:?}", until_dead(&slots));
            assert!(matches!(tombstone::state(slots.tombstone(1)), tombstone::State::Held(_)));
            assert_eq!(worker.wait(LONG), code, "{name}");
            slots.reclaim(0);
            slots.withdraw(slot, 1);
            assert_eq!(tombstone::state(slots.tombstone(0)), tombstone::State::NotYet);
        }
        drop(survivor);
    }

    fn large_death() {
        let bytes = (available_bytes() / 3).min(1 << 30) as usize;
        let slots = Slots::new(config(2, 1)).unwrap();
        let mut told = Vec::new();
        let mut gone = Vec::new();
        for _ in 0..5 {
            let worker = tombstoned(&slots, 0, bytes);
            let pidfd = worker.pidfd();
            let start = Instant::now();
            worker.signal(libc::SIGKILL);
            until_dead(&slots);
            told.push(start.elapsed());
            let mut poll = libc::pollfd { fd: pidfd, events: libc::POLLIN, revents: 0 };
            // SAFETY: `poll` is one entry, borrowed for the call.
            assert_eq!(unsafe { libc::poll(&raw mut poll, 1, 60_000) }, 1);
            gone.push(start.elapsed());
            assert_eq!(worker.wait(LONG), None);
            slots.reclaim(0);
        }
        told.sort_unstable();
        gone.sort_unstable();
        println!(
            "  {bytes} bytes resident: tombstone {:?} to {:?}, pidfd {:?} to {:?}",
            told[0], told[4], gone[0], gone[4]
        );
        assert!(told[2] < gone[2] && told[4] < Duration::from_secs(5), "{told:?} {gone:?}");
    }

    fn file_size_limit() {
        limit(libc::RLIMIT_FSIZE, 1 << 20);
        let error = Slots::new(config(1, 1)).unwrap_err();
        assert_eq!(error.code(), codes::FILE_SIZE_LIMIT);
        assert_eq!(error.place("limit"), Some("1048576 bytes (RLIMIT_FSIZE)"));
        let error = Shared::from_slice(&vec![1_u8; 2 << 20]).unwrap_err();
        assert_eq!(error.code(), codes::FILE_SIZE_LIMIT);
        let error = SharedStrings::collect((0..1_000_000).map(|number| number.to_string())).unwrap_err();
        assert_eq!(error.code(), codes::FILE_SIZE_LIMIT);
        assert_eq!(Shared::from_slice(&[1_u8; 100]).unwrap().len(), 100);
    }

    fn address_limit() {
        limit(libc::RLIMIT_AS, 1 << 30);
        let large = SlotsConfig { slot_bytes: 1 << 30, ..config(1, 4) };
        let error = Slots::new(large).unwrap_err();
        assert_eq!(error.code(), codes::NOT_MAPPED);
        assert_eq!(error.place("limit"), Some("1073741824 bytes (RLIMIT_AS)"));
        assert!(error.hints()[0].contains("ulimit -v unlimited"), "{error:?}");
        drop(Slots::new(config(1, 1)).unwrap());
    }

    fn leaks() {
        let cycle = || {
            let slots = Slots::new(config(1, 2)).unwrap();
            let worker = SlotsWorker::open(slots.fd().try_clone_to_owned().unwrap(), 0).unwrap();
            let slot = slots.post(1, &1_u64.to_ne_bytes()).unwrap().unwrap();
            answer(worker.claim(Instant::now() + LONG).unwrap());
            check(&done(&slots, slot, 1), 1);
            let strings = SharedStrings::collect(["a", "b"]).unwrap();
            assert_eq!(strings.clone().len(), 2);
        };
        let open = || {
            let lines = fs::read_to_string("/proc/self/maps")
                .unwrap()
                .lines()
                .filter(|line| line.contains("memfd"))
                .count();
            (fs::read_dir("/proc/self/fd").unwrap().count(), lines)
        };
        cycle();
        let before = open();
        for _ in 0..1_000 {
            cycle();
        }
        assert_eq!(open(), before);
    }

    // A worker's work, and the parent's.

    /// The reply to a ticket: region 0 has a length and bytes that follow from it, region 1 three bytes, and the body is
    /// the ticket.
    fn answer(task: Task) {
        let ticket = u64::from_ne_bytes(task.request()[..8].try_into().unwrap());
        assert_eq!(ticket, task.ticket());
        let mut region = task.writer().alloc((ticket % 50_000) as usize * 7 % 50_000).unwrap().1;
        for (index, byte) in region.iter_mut().enumerate() {
            *byte = (ticket as usize + index) as u8;
            task.set_progress(index as u64);
        }
        task.writer().alloc(3).unwrap().1.fill(ticket as u8);
        drop(region);
        task.complete(&ticket.to_ne_bytes()).map_err(|(error, _)| error).unwrap();
    }

    fn check(loan: &Loan, ticket: u64) {
        assert_eq!(loan.body(), ticket.to_ne_bytes());
        let region = loan.take_region(0).unwrap();
        assert_eq!(region.len(), (ticket % 50_000) as usize * 7 % 50_000);
        assert!(region.iter().enumerate().all(|(index, &byte)| byte == (ticket as usize + index) as u8));
        assert_eq!(loan.take_region(1).unwrap()[..], [ticket as u8; 3]);
    }

    /// Posts all tasks, takes their replies in order, and calls `between` before each.
    fn drive(slots: &Slots, tasks: u64, mut between: impl FnMut(u64)) {
        let (mut under_way, mut next) = (BTreeMap::new(), 0_u64);
        for ticket in 0..tasks {
            while next < tasks
                && let Some(slot) = slots.post(next, &next.to_ne_bytes()).unwrap()
            {
                under_way.insert(next, slot);
                next += 1;
            }
            between(ticket);
            check(&done(slots, under_way.remove(&ticket).unwrap(), ticket), ticket);
        }
    }

    fn done(slots: &Slots, slot: SlotId, ticket: u64) -> Loan {
        let waited = slots.wait(slot, ticket, slots.kicks(), Instant::now() + LONG);
        assert_eq!(waited, Waited::Ready, "{slots:?}");
        match slots.take(slot, ticket).unwrap() {
            Some(Reply::Done(loan)) => loan,
            other => panic!("ticket {ticket}: {other:?}"),
        }
    }

    fn config(workers: usize, slots: usize) -> SlotsConfig {
        SlotsConfig { workers, slots, slot_bytes: 16 << 20, budget_bytes: 64 << 20 }
    }

    // Processes.

    /// A worker that does `work` with each task until the slots are closed.
    fn start(slots: &Slots, worker: usize, work: fn(Task)) -> Child {
        start_with(slots, worker, move |worker| {
            while !worker.is_closed() {
                if let Some(task) = worker.claim(Instant::now() + LONG) {
                    work(task);
                }
            }
        })
    }

    /// A worker that does `work` with one task, keeps what that gives, and waits to be killed.
    fn start_once<R>(slots: &Slots, worker: usize, work: impl FnOnce(Task) -> R) -> Child {
        start_with(slots, worker, move |worker| {
            let _kept = work(worker.claim(Instant::now() + LONG).unwrap());
            thread::sleep(LONG);
        })
    }

    /// A worker that holds its tombstone and `bytes` bytes of memory, and waits to be killed.
    fn tombstoned(slots: &Slots, worker: usize, bytes: usize) -> Child {
        let child = start_with(slots, worker, move |worker| {
            let memory = vec![1_u8; bytes];
            worker.hold_tombstone().unwrap();
            thread::sleep(LONG);
            drop(memory);
        });
        until_held(slots, worker);
        child
    }

    fn until_held(slots: &Slots, worker: usize) {
        until(|| matches!(tombstone::state(slots.tombstone(worker)), tombstone::State::Held(_)));
    }

    fn start_with(slots: &Slots, worker: usize, work: impl FnOnce(SlotsWorker)) -> Child {
        let fd = slots.fd().try_clone_to_owned().unwrap();
        Child::fork(move || work(SlotsWorker::open(fd, worker).unwrap()))
    }

    /// Waits, by the kernel's wake-up alone, until worker 0's tombstone tells of its death while worker 1 lives.
    fn until_dead(slots: &Slots) -> Duration {
        let start = Instant::now();
        loop {
            let seen = [0, 1].map(|worker| {
                let word = slots.tombstone(worker);
                (word, word.load(std::sync::atomic::Ordering::Acquire))
            });
            if tombstone::decode(seen[0].1) == tombstone::State::Dead {
                return start.elapsed();
            }
            if futex::waitv(&seen, LONG) == WokenAny::Unsupported {
                futex::wait(seen[0].0, seen[0].1, LONG);
            }
            assert!(start.elapsed() < LONG, "the kernel did not wake us");
        }
    }

    fn until(condition: impl Fn() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < LONG, "waited in vain");
            thread::yield_now();
        }
    }

    fn limit(resource: libc::__rlimit_resource_t, bytes: u64) {
        let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
        // SAFETY: the limit is borrowed for the call.
        assert_eq!(unsafe { libc::setrlimit(resource, &raw const limit) }, 0);
    }

    /// A forked process, killed and waited for when it is dropped.
    struct Child(libc::pid_t);

    impl Child {
        /// Runs `work` in a process that ends with code 0, or 101 if it panics.
        fn fork(work: impl FnOnce()) -> Self {
            // SAFETY: whoever forks here has one thread, so that the child finds no lock held by another.
            match unsafe { libc::fork() } {
                -1 => panic!("fork: {}", io::Error::last_os_error()),
                0 => {
                    // SAFETY: numbers only. Nothing outlives a scenario that fails.
                    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
                    let outcome = catch_unwind(AssertUnwindSafe(work));
                    // SAFETY: the child leaves without its parent's clean-up.
                    unsafe { libc::_exit(if outcome.is_ok() { 0 } else { 101 }) }
                }
                pid => Self(pid),
            }
        }

        fn signal(&self, signal: i32) {
            // SAFETY: the process is our child and was not waited for, so its number is still its own.
            assert_eq!(unsafe { libc::kill(self.0, signal) }, 0);
        }

        fn pidfd(&self) -> i32 {
            // SAFETY: numbers only.
            unsafe { libc::syscall(libc::SYS_pidfd_open, self.0, 0) as i32 }
        }

        /// The exit code; nothing if a signal ended it. Kills it, and panics, if it does not end in time.
        fn wait(mut self, most: Duration) -> Option<i32> {
            let start = Instant::now();
            loop {
                let mut status = 0;
                // SAFETY: the status is writable for the call.
                let found = unsafe { libc::waitpid(self.0, &raw mut status, libc::WNOHANG) };
                if found == self.0 {
                    self.0 = 0;
                    return libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status));
                }
                assert!(start.elapsed() < most, "process {} does not end", self.0);
                thread::sleep(Duration::from_micros(200));
            }
        }
    }

    impl Drop for Child {
        fn drop(&mut self) {
            if self.0 > 0 {
                // SAFETY: as for `signal`; then it is waited for, which SIGKILL keeps short.
                unsafe {
                    libc::kill(self.0, libc::SIGKILL);
                    libc::waitpid(self.0, std::ptr::null_mut(), 0);
                }
            }
        }
    }

    const LONG: Duration = Duration::from_secs(60);
}
