//! A data set that gets its loader into trouble.

use std::fs;
use std::hash::Hasher as _;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use leyden_data::{Array, Dataset, Result, SampleCx, WorkerInfo, default_collate};
use serde::{Deserialize, Serialize};

/// Far beyond anything that works: a hang is caught by it.
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// Random rows and their numbers, and trouble at some of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Trouble {
    pub(crate) samples: usize,
    /// Numbers in a row.
    pub(crate) width: usize,
    /// How long each sample takes.
    pub(crate) pause: Duration,
    pub(crate) acts: Vec<At>,
    /// What happens in `worker_init` of the worker with this number.
    pub(crate) init: Vec<At>,
    /// Each act leaves a mark here before it begins.
    pub(crate) folder: PathBuf,
}

/// When, what, and how often.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct At {
    pub(crate) index: usize,
    pub(crate) act: Act,
    pub(crate) times: usize,
}

/// What a data set may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Act {
    Fail,
    Panic,
    Abort,
    Segv,
    Illegal,
    /// Endless recursion.
    Overflow,
    Signal(i32),
    Exit(i32),
    /// Reads from a pipe that nobody writes to.
    Block,
    Busy,
    Sleep(Duration),
    /// Takes so much memory, and writes to it.
    Take(usize),
    /// A row of another width.
    Ragged,
    /// Reads behind the end of what it has.
    Missing,
    /// Prints a line to stdout, which panics where nobody can read it, and one to stderr.
    Print,
    /// Fails if more sockets are open.
    Sockets(usize),
    /// Runs this program with the argument `hello`, which must not take it for a worker.
    Hello(PathBuf),
    /// Starts a program that sleeps, and leaves its number as another mark.
    Program,
    /// Copies the process; both go on.
    Fork,
    /// Starts a program, and dies.
    ProgramThenAbort,
}

/// What is left of an act: who began it, and when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    pub(crate) pid: i32,
    pub(crate) at: Duration,
}

impl Trouble {
    pub(crate) fn new(samples: usize, folder: &Path) -> Self {
        let (acts, init) = (Vec::new(), Vec::new());
        Self { samples, width: 8, pause: Duration::ZERO, acts, init, folder: folder.to_owned() }
    }

    /// With this trouble at a sample, once.
    pub(crate) fn once(mut self, index: usize, act: Act) -> Self {
        self.acts.push(At { index, act, times: 1 });
        self
    }

    /// With this trouble whenever the sample is asked for.
    pub(crate) fn always(mut self, index: usize, act: Act) -> Self {
        self.acts.push(At { index, act, times: usize::MAX });
        self
    }

    /// With this trouble in a worker's `worker_init`, for the first times.
    pub(crate) fn init(mut self, worker: usize, act: Act, times: usize) -> Self {
        self.init.push(At { index: worker, act, times });
        self
    }

    /// The same without trouble.
    pub(crate) fn calm(&self) -> Self {
        Self { acts: Vec::new(), init: Vec::new(), ..self.clone() }
    }

    /// The marks of the acts at a sample, oldest first.
    pub(crate) fn marks(&self, index: usize) -> Vec<Mark> {
        marks(&self.folder, &format!("get-{index}"))
    }

    /// The marks in a worker's `worker_init`.
    pub(crate) fn init_marks(&self, worker: usize) -> Vec<Mark> {
        marks(&self.folder, &format!("init-{worker}"))
    }

    /// The process numbers of the programs that were started.
    pub(crate) fn programs(&self) -> Vec<i32> {
        marks(&self.folder, "program").into_iter().map(|mark| mark.pid).collect()
    }

    /// The marks of copies of workers.
    pub(crate) fn copies(&self) -> Vec<Mark> {
        marks(&self.folder, "copy")
    }

    /// Waits for the mark of an act.
    pub(crate) fn mark(&self, index: usize) -> Mark {
        let began = Instant::now();
        loop {
            if let Some(&mark) = self.marks(index).last() {
                return mark;
            }
            assert!(began.elapsed() < LONG, "sample {index} was not reached");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn trouble(&self, kind: &str, acts: &[At], index: usize) -> Result<Option<Act>> {
        for At { act, times, .. } in acts.iter().filter(|at| at.index == index) {
            if leave_mark(&self.folder, &format!("{kind}-{index}"), std::process::id(), *times) {
                return self.perform(act).map(|()| Some(act.clone()));
            }
        }
        Ok(None)
    }

    #[expect(clippy::disallowed_methods, reason = "one of the ends that are tested")]
    fn perform(&self, act: &Act) -> Result<()> {
        match act {
            Act::Fail => leyden_process::bail!("the sample is damaged"),
            Act::Panic => panic!("torn page"),
            Act::Abort => {
                eprintln!("decoder: bad marker");
                std::process::abort()
            }
            Act::Segv => {
                eprintln!("decoder: bad marker");
                // SAFETY: none: the write is meant to kill this process.
                unsafe { std::ptr::null_mut::<u8>().write_volatile(1) };
            }
            Act::Illegal => {
                // SAFETY: none: the instruction is meant to kill this process.
                unsafe {
                    #[cfg(target_arch = "x86_64")]
                    std::arch::asm!("ud2");
                    #[cfg(target_arch = "aarch64")]
                    std::arch::asm!("udf #0");
                }
            }
            Act::Overflow => drop(deeper(0)),
            Act::Signal(number) => {
                signal(std::process::id() as i32, *number);
                std::thread::sleep(LONG);
            }
            Act::Exit(code) => std::process::exit(*code),
            Act::Block => {
                // Both ends stay open.
                let (mut read, _write) = std::io::pipe()?;
                read.read_exact(&mut [0])?;
            }
            Act::Busy => loop {
                std::hint::spin_loop();
            },
            Act::Sleep(time) => std::thread::sleep(*time),
            Act::Take(bytes) => {
                let mut memory = vec![0_u8; *bytes];
                memory.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
                std::hint::black_box(&memory);
            }
            Act::Ragged => {}
            Act::Missing => drop(std::hint::black_box([0_u8; 16])[std::hint::black_box(17)]),
            Act::Print => {
                println!("a line of a worker");
                eprintln!("a line of a worker");
            }
            Act::Sockets(most) => {
                let open: Vec<String> = (fs::read_dir("/proc/self/fd")?.flatten())
                    .filter_map(|entry| {
                        Some(fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned())
                    })
                    .collect();
                let sockets = open.iter().filter(|name| name.starts_with("socket:")).count();
                assert!(sockets <= *most, "inherited: {open:?}");
            }
            Act::Hello(program) => {
                let output = std::process::Command::new(program).arg("hello").output()?;
                assert_eq!(String::from_utf8_lossy(&output.stdout), "hello from main\n", "{output:?}");
            }
            Act::Fork => {
                // SAFETY: fork has no preconditions; what the copy may do is what is tested.
                if unsafe { libc::fork() } == 0 {
                    leave_mark(&self.folder, "copy", std::process::id(), usize::MAX);
                }
            }
            Act::Program => self.start_program()?,
            Act::ProgramThenAbort => {
                self.start_program()?;
                std::process::abort()
            }
        }
        Ok(())
    }

    fn start_program(&self) -> Result<()> {
        let program = std::process::Command::new("sleep").arg("1000").spawn()?;
        leave_mark(&self.folder, "program", program.id(), usize::MAX);
        Ok(())
    }
}

impl Dataset for Trouble {
    type Item = (Array<f32>, u64);
    type Batch = TroubleBatch;

    fn len(&self) -> usize {
        self.samples
    }

    fn get(&self, index: usize, cx: &mut SampleCx) -> Result<Self::Item> {
        if !self.pause.is_zero() {
            std::thread::sleep(self.pause);
        }
        let act = self.trouble("get", &self.acts, index)?;
        let width = self.width + usize::from(act == Some(Act::Ragged));
        let row: Vec<f32> = (0..width).map(|_| cx.rng().uniform() as f32).collect();
        Ok((row.into(), index as u64))
    }

    fn collate(&self, items: Vec<Self::Item>) -> Result<Self::Batch> {
        default_collate(items)
    }

    fn worker_init(&self, worker: &WorkerInfo) -> Result<()> {
        self.trouble("init", &self.init, worker.worker).map(drop)
    }
}

/// What [`Trouble`] makes.
pub(crate) type TroubleBatch = (Array<f32>, Array<u64>);

/// A hash of batches, bit for bit, in their order.
pub(crate) fn hash<'a>(batches: impl IntoIterator<Item = &'a TroubleBatch>) -> u64 {
    let mut hasher = Fnv::default();
    batches.into_iter().for_each(|batch| hasher.add(batch));
    hasher.finish()
}

/// FNV-1a.
pub(crate) struct Fnv(u64);

impl Fnv {
    pub(crate) fn add(&mut self, (rows, numbers): &TroubleBatch) {
        rows.iter().for_each(|value| self.write_u32(value.to_bits()));
        numbers.iter().for_each(|&number| self.write_u64(number));
    }
}

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl std::hash::Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

/// Sends a signal.
pub(crate) fn signal(pid: i32, number: i32) {
    // SAFETY: kill takes two numbers.
    unsafe { libc::kill(pid, number) };
}

/// The time by the clock that all processes share.
pub(crate) fn now() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime fills the struct.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Leaves the next mark, unless there are as many already. Several processes may try at once.
fn leave_mark(folder: &Path, name: &str, pid: u32, most: usize) -> bool {
    for number in 0..most {
        // Written beside its place, so that no reader finds half of it.
        let beside = folder.join(format!("{name}.{number}.{pid}.new"));
        let written =
            fs::File::create(&beside).and_then(|mut file| write!(file, "{pid} {}", now().as_nanos()));
        written.expect("the test's folder is there");
        let left = fs::hard_link(&beside, folder.join(format!("{name}.{number}")));
        let _ = fs::remove_file(&beside);
        if left.is_ok() {
            return true;
        }
    }
    false
}

fn marks(folder: &Path, name: &str) -> Vec<Mark> {
    let texts = (0..).map_while(|number| fs::read_to_string(folder.join(format!("{name}.{number}"))).ok());
    texts
        .map(|text| {
            let (pid, at) = text.split_once(' ').expect("a mark has two numbers");
            Mark { pid: pid.parse().unwrap(), at: Duration::from_nanos(at.parse().unwrap()) }
        })
        .collect()
}

#[expect(unconditional_recursion, reason = "the stack is meant to overflow")]
fn deeper(depth: u64) -> u64 {
    std::hint::black_box([depth; 128])[0] + deeper(depth + 1)
}
