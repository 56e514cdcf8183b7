//! One side of a row: a process that makes a pass whenever it is told to, so that both sides can be measured alternately
//! and each has a process of its own.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use leyden::{Code, Error, Result};
use serde_json::Value;

/// A process that answers each line on its stdin with a line of JSON.
pub(super) struct Side {
    name: String,
    process: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Side {
    /// This program, at the work of `cell`.
    pub(super) fn ours(cell: &str) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["serve", cell]);
        Self::start(format!("leyden {cell}"), command)
    }

    /// PyTorch, at the work of `cell`, with workers of that kind.
    pub(super) fn torch(cell: &str, context: &str) -> Result<Self> {
        let python = std::env::var("LEYDEN_PYTHON").unwrap_or_else(|_| "python3".to_owned());
        let mut command = Command::new(python);
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/peers/loader_torch.py")).args([cell, context]);
        Self::start(format!("torch {cell} {context}"), command)
    }

    fn start(name: String, mut command: Command) -> Result<Self> {
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (commands, answers) = (process.stdin.take(), process.stdout.take());
        let answers = BufReader::new(answers.ok_or_else(|| Error::msg("a side has no stdout"))?);
        let mut side = Self { name, process, commands, answers };
        side.answer()?;
        Ok(side)
    }

    /// Has it do `command`, and waits for its answer.
    pub(super) fn ask(&mut self, command: &str) -> Result<Value> {
        if let Some(commands) = &mut self.commands {
            writeln!(commands, "{command}")?;
        }
        self.answer()
    }

    fn answer(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        serde_json::from_str(&line).map_err(|_| {
            Error::new(Code::new("T0001", 100), format!("`{}` measured nothing", self.name))
                .at("it said", line.trim_end())
                .hint("its stderr, above, says why")
        })
    }
}

/// It leaves when its stdin ends.
impl Drop for Side {
    fn drop(&mut self) {
        self.commands = None;
        let _ = self.process.wait();
    }
}

/// Answers for a side, until stdin ends.
pub(super) fn serve(mut answer: impl FnMut(&str) -> Result<Value>) -> Result<()> {
    println!("{{}}");
    for line in std::io::stdin().lines() {
        println!("{}", answer(line?.trim())?);
    }
    Ok(())
}
