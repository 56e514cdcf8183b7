//! Programs for the tests of the loader: a plain `main`, as anybody would write it, without a guard and without an
//! attribute. The first argument says what it does, the second with which workers, the third where it may write.

#[path = "../tests/it/support/kind.rs"]
#[expect(dead_code, reason = "the tests use the rest")]
mod kind;
#[path = "../tests/it/support/trouble.rs"]
#[expect(dead_code, reason = "the tests use the rest")]
mod trouble;

use std::fs;
use std::hash::Hasher as _;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use leyden_data::{BadSample, DataLoader, DataLoaderBuilder, Result};
use leyden_process::bail;
use leyden_process::signal::Listener;

use self::kind::Kind;
use self::trouble::{Act, Fnv, LONG, Trouble};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments == ["hello"] {
        println!("hello from main");
        return Ok(());
    }
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let [scenario, kind, folder, more @ ..] = &words[..] else { bail!("too few arguments: {words:?}") };
    let Some(kind) = Kind::named(kind) else { bail!("no such kind of workers: {kind}") };
    let dataset = Trouble::new(48, Path::new(folder));
    match (*scenario, more) {
        ("hold", [what]) => hold(kind, dataset, what),
        ("end", [how]) => end(kind, dataset, how),
        ("epoch", []) => epoch(kind, dataset),
        ("epochs", [count]) => epochs(kind, dataset, count.parse()?),
        ("signals", []) => signals(kind, dataset),
        ("copied", [what]) => copied(kind, dataset, what),
        ("fatal", [policy]) => fatal(kind, dataset, policy),
        ("suspended", []) => suspended(kind, dataset),
        ("limited", [resource, most]) => limited(kind, dataset, resource, most.parse()?),
        ("short", []) => short_of_descriptors(kind, dataset),
        ("take", [bytes, times]) => take(kind, dataset, bytes.parse()?, times.parse()?),
        ("large", [bytes]) => large(kind, dataset, bytes.parse()?),
        ("cycles", [count]) => cycles(kind, dataset, count.parse()?),
        ("standard", [what]) => standard(kind, dataset, what),
        _ => bail!("no such scenario: {words:?}"),
    }
}

fn loader(kind: Kind, dataset: &Trouble) -> DataLoaderBuilder<Trouble> {
    kind.of(DataLoader::builder(dataset.clone()).batch_size(4).shuffle(true).seed(11))
}

/// For whoever waits for a line: it must not stay in a buffer.
fn say(line: impl std::fmt::Display) {
    println!("{line}");
    let _ = std::io::stdout().flush();
}

/// All batches of the first epoch, as one number.
fn whole(loader: &DataLoader<Trouble>) -> Result<String> {
    let mut hasher = Fnv::default();
    for batch in loader.epoch(0) {
        hasher.add(&batch?.data);
    }
    Ok(format!("hash {:x}", hasher.finish()))
}

/// As many epochs, by a clone of the loader too; nothing is hidden by what is made ahead.
fn epochs(kind: Kind, dataset: Trouble, count: usize) -> Result<()> {
    let loader = loader(kind, &dataset).prefetch_factor(1).build()?;
    for _ in 0..count {
        whole(&loader)?;
        whole(&loader.clone())?;
    }
    Ok(())
}

/// Waits to be killed.
fn hold(kind: Kind, dataset: Trouble, what: &str) -> Result<()> {
    let dataset = match what {
        "busy" => (0..48).fold(dataset, |dataset, sample| dataset.always(sample, Act::Busy)),
        "blocked" => (0..48).fold(dataset, |dataset, sample| dataset.always(sample, Act::Block)),
        "programs" => dataset.once(3, Act::Program),
        // Each of the batches is larger than what a pipe holds.
        "queued" => Trouble { width: 100_000, ..dataset.once(31, Act::Sleep(Duration::ZERO)) },
        "idle" => dataset,
        _ => bail!("no such way to hold: {what}"),
    };
    let loader = loader(kind, &dataset).shuffle(false).prefetch_factor(8).build()?;
    let mut epoch = loader.epoch(0);
    match what {
        "busy" | "blocked" => {
            // Two workers, two batches, each at its first sample.
            dataset.mark(0);
            dataset.mark(4);
            say("ready");
            drop(epoch.next());
        }
        "queued" => _ = dataset.mark(31),
        _ => drop(epoch.by_ref().collect::<Result<Vec<_>>>()?),
    }
    say("ready");
    std::thread::sleep(LONG);
    Ok(())
}

/// Ends with a live loader, in the middle of an epoch, while a worker is stuck.
#[expect(clippy::disallowed_methods, reason = "the ends that are tested")]
fn end(kind: Kind, dataset: Trouble, how: &str) -> Result<()> {
    let dataset = dataset.always(40, Act::Block);
    let loader = loader(kind, &dataset).shuffle(false).build()?;
    let mut epoch = loader.epoch(0);
    for _ in 0..9 {
        epoch.next().expect("there are more")?;
    }
    dataset.mark(40);
    match how {
        "return" => Ok(()),
        "leak" => {
            let loader: &'static DataLoader<Trouble> = Box::leak(Box::new(loader.clone()));
            std::mem::forget(loader.epoch(1));
            Ok(())
        }
        "exit" => std::process::exit(7),
        "panic" => panic!("the training has failed"),
        "error" => bail!("the training has failed"),
        "abort" => std::process::abort(),
        _ => bail!("no such end: {how}"),
    }
}

/// What a program does at its top happens once, and workers inherit nothing of it.
fn epoch(kind: Kind, dataset: Trouble) -> Result<()> {
    println!("main");
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let program = std::env::current_exe()?;
    // Its own control socket; here, the listener and the sockets of the test that started this.
    // A forked worker keeps what the program had open, because its data set may need it.
    let sockets = if kind.is_process() && !matches!(kind, Kind::Fork(_)) { 1 } else { usize::MAX };
    let dataset = dataset.once(3, Act::Sockets(sockets)).once(7, Act::Hello(program));
    let loader = loader(kind, &dataset).build()?;
    say(whole(&loader)?);
    drop(listener);
    Ok(())
}

/// Goes through epochs until a signal comes, then ends as a program should.
fn signals(kind: Kind, dataset: Trouble) -> Result<()> {
    let listener = Listener::start();
    let loader = loader(kind, &Trouble { pause: Duration::from_millis(1), ..dataset }).build()?;
    let mut after = 0;
    say("ready");
    for epoch in 0..1000 {
        for batch in loader.epoch(epoch) {
            batch?;
            after += usize::from(listener.received().is_some());
            // Some more batches: the workers are not to have noticed.
            if after == 20 {
                say(format_args!("stopped by {:?}", listener.received().expect("it was there before")));
                return Ok(());
            }
        }
    }
    bail!("no signal came")
}

/// Is forked by its own code while it holds a batch; the copy uses what it has of the loader, or drops it.
fn copied(kind: Kind, dataset: Trouble, what: &str) -> Result<()> {
    let loader = loader(kind, &dataset).build()?;
    let before = whole(&loader)?;
    let mut epoch = loader.epoch(1);
    let kept = epoch.next().expect("there are more")?;
    // SAFETY: the copy has this thread alone, and does nothing that needs another one.
    let copy = unsafe { libc::fork() };
    if copy == 0 {
        match what {
            "drop" => {
                drop((epoch, kept));
                drop(loader);
            }
            _ => {
                for error in
                    [loader.epoch(0).next(), epoch.next()].into_iter().flatten().filter_map(Result::err)
                {
                    say(format_args!(
                        "{} in another process: {}",
                        error.code(),
                        error.place("used in").is_some()
                    ));
                }
            }
        }
        // SAFETY: it ends the copy at once.
        unsafe { libc::_exit(0) };
    }
    let began = Instant::now();
    // SAFETY: waitpid takes a number and writes to nothing.
    while unsafe { libc::waitpid(copy, std::ptr::null_mut(), libc::WNOHANG) } == 0 {
        if began.elapsed() > LONG / 2 {
            // SAFETY: kill takes two numbers; the copy is not reaped yet.
            unsafe { libc::kill(copy, libc::SIGKILL) };
            bail!("the copy hangs");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let rest = epoch.map(|batch| batch.map(|batch| batch.samples)).sum::<Result<usize>>()?;
    drop(kept);
    for _ in 0..3 {
        assert_eq!(whole(&loader)?, before);
    }
    say(format_args!("the parent is undisturbed: {rest}"));
    Ok(())
}

/// Has a sample that kills whoever loads it.
fn fatal(kind: Kind, dataset: Trouble, policy: &str) -> Result<()> {
    let policy = if policy == "skip" { BadSample::Skip } else { BadSample::Raise };
    let dataset = dataset.always(17, Act::Segv);
    let loader = loader(kind, &dataset).shuffle(false).on_bad_sample(policy).build()?;
    let mut samples = 0;
    for batch in loader.epoch(0) {
        match batch {
            Ok(batch) => samples += batch.samples,
            Err(error) => {
                let place = |label| error.place(label).unwrap_or("-").to_owned();
                let last = place("died last");
                let last = last.split_once(": ").map_or("-", |(_, last)| last);
                say(format_args!("{}: {}; {last}", error.code(), place("sample")));
            }
        }
    }
    say(format_args!("{samples} samples, {} skipped", loader.timings().skipped));
    Ok(())
}

/// Is stopped as a whole, for longer than its limits allow.
fn suspended(kind: Kind, dataset: Trouble) -> Result<()> {
    let dataset = Trouble { pause: Duration::from_millis(10), ..dataset };
    let limit = Duration::from_millis(800);
    let loader = loader(kind, &dataset).timeout(limit).warn_after(limit).restarts(0).build()?;
    let mut hasher = Fnv::default();
    for batch in loader.epoch(0) {
        let batch = batch?;
        hasher.add(&batch.data);
        if batch.index == 0 {
            say("ready");
        }
    }
    say(format_args!("hash {:x}", hasher.finish()));
    Ok(())
}

/// Runs under a limit of the system's, which did not hold when the program started.
fn limited(kind: Kind, dataset: Trouble, resource: &str, most: u64) -> Result<()> {
    let resource = match resource {
        "descriptors" => libc::RLIMIT_NOFILE,
        "threads" => libc::RLIMIT_NPROC,
        "addresses" => libc::RLIMIT_AS,
        "files" => libc::RLIMIT_FSIZE,
        _ => bail!("no such limit: {resource}"),
    };
    set_limit(resource, most);
    let result = loader(kind, &dataset).build().and_then(|loader| whole(&loader));
    say(result.unwrap_or_else(|error| format!("{error:?}")));
    settled(|| children() == 0);
    say(format_args!("children {}", children()));
    Ok(())
}

/// All descriptors are in use: when the loader is built, and when a worker is to be replaced.
fn short_of_descriptors(kind: Kind, dataset: Trouble) -> Result<()> {
    // The threads that serve all processes have started.
    drop(loader(kind, &dataset).build()?);
    settled(|| children() == 0);
    let before = descriptors();
    set_limit(libc::RLIMIT_NOFILE, 200);
    for room in 0..30 {
        let mut hoard = hoard();
        hoard.truncate(hoard.len() - room);
        let result = loader(kind, &dataset).build().and_then(|loader| whole(&loader));
        drop(hoard);
        settled(|| children() == 0 && descriptors() == before);
        if (children(), descriptors()) != (0, before) {
            bail!("{} children and {} descriptors are left, of {before}", children(), descriptors());
        }
        match result {
            Ok(text) => {
                say(format_args!("with {room} it works: {text}"));
                break;
            }
            Err(error) if room == 0 => say(format_args!("{error:?}")),
            Err(error) => say(error.code()),
        }
    }
    let dataset = dataset.once(30, Act::Abort);
    let loader = loader(kind.alone(), &dataset).build()?;
    let hoard = hoard();
    let errors: Vec<String> =
        loader.epoch(0).filter_map(|batch| Some(format!("{:?}", batch.err()?))).collect();
    drop(hoard);
    say(format_args!("{} errors without room for a replacement: {}", errors.len(), errors[0]));
    say(whole(&loader)?);
    Ok(())
}

fn hoard() -> Vec<fs::File> {
    std::iter::from_fn(|| fs::File::open("/dev/null").ok()).collect()
}

/// A sample that takes much memory.
fn take(kind: Kind, dataset: Trouble, bytes: usize, times: usize) -> Result<()> {
    let act = Act::Take(bytes);
    let dataset = if times == 1 { dataset.once(9, act) } else { dataset.always(9, act) };
    let loader = loader(kind, &dataset).build()?;
    for batch in loader.epoch(0) {
        match batch {
            Ok(batch) => say(batch.samples),
            Err(error) => say(format_args!("{error:?}")),
        }
    }
    Ok(())
}

/// A batch of about so many bytes.
fn large(kind: Kind, dataset: Trouble, bytes: usize) -> Result<()> {
    let dataset = Trouble { width: bytes / 16, ..dataset };
    let loader = loader(kind.alone(), &dataset).prefetch_factor(1).build()?;
    match loader.epoch(0).next() {
        Some(Ok(batch)) => say(format_args!("{:?}", batch.data.0.shape())),
        Some(Err(error)) => say(format_args!("{error:?}")),
        None => say("nothing"),
    }
    Ok(())
}

/// Builds, uses and drops a loader many times.
fn cycles(kind: Kind, dataset: Trouble, count: usize) -> Result<()> {
    let dataset = Trouble { samples: 8, ..dataset };
    let cycle = |number: usize| -> Result<()> {
        let loader = loader(kind, &dataset).build()?;
        // To its end, or not.
        drop(loader.epoch(0).take(1 + number % 2).collect::<Result<Vec<_>>>()?);
        Ok(())
    };
    let state = || {
        // Threads that have nothing to do any more may take a moment to end, too.
        settled(|| children() == 0 && !threads().iter().any(|name| name.starts_with("leyden data")));
        let threads = threads().len();
        let shared = mappings(|line| line.contains("leyden"));
        format!(
            "{} descriptors, {threads} threads, {} children, {shared} mappings",
            descriptors(),
            children()
        )
    };
    (0..50).try_for_each(cycle)?;
    let (before, all) = (state(), mappings(|_| true));
    (0..count).try_for_each(cycle)?;
    say(format_args!("before: {before}"));
    say(format_args!("after: {}", state()));
    say(format_args!("{}", mappings(|_| true).saturating_sub(all)));
    Ok(())
}

/// With standard streams that are closed, or that nobody reads; the result goes into a file.
fn standard(kind: Kind, dataset: Trouble, what: &str) -> Result<()> {
    let folder = dataset.folder.clone();
    let dataset = dataset.once(3, Act::Print).once(20, Act::Panic);
    if what == "close" {
        for fd in 0..3 {
            // SAFETY: nothing in this program counts on the standard streams.
            unsafe { libc::close(fd) };
        }
    }
    let loader = loader(kind, &dataset).build()?;
    let outcomes: Vec<String> = loader
        .epoch(0)
        .map(|batch| match batch {
            Ok(batch) => format!("{:?}", &batch.data.1[..]),
            Err(error) => format!("{}: {}", error.code(), error.reasons().join(", ")),
        })
        .collect();
    fs::write(folder.join("result"), outcomes.join("\n"))?;
    Ok(())
}

fn set_limit(resource: libc::__rlimit_resource_t, most: u64) {
    let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
    // SAFETY: setrlimit reads the struct.
    unsafe { libc::setrlimit(resource, &limit) };
}

/// Waits shortly for what was killed to be gone.
fn settled(condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() && began.elapsed() < LONG / 6 {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn mappings(which: impl Fn(&str) -> bool) -> usize {
    fs::read_to_string("/proc/self/maps").map_or(0, |maps| maps.lines().filter(|line| which(line)).count())
}

/// Their names.
fn threads() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok()).collect()
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

/// Dead ones too.
fn children() -> usize {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    tasks
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .map(|text| text.split_whitespace().count())
        .sum()
}
