//! `died_rank RANK HOW`: one rank dies while the others wait for it.
#![expect(clippy::disallowed_methods, reason = "a rank is to die here, in each way")]

use std::process::Command;
use std::time::Duration;

use leyden_comm::{Result, launch};

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let mut rank = launch::world(3)?.join()?;
    rank.barrier("start")?;
    if rank.rank().to_string() == words[0] {
        eprintln!("about to {}", words[1]);
        match words[1].as_str() {
            "panic" => panic!("a bug in the program"),
            "abort" => std::process::abort(),
            _ => {
                Command::new("sh").args(["-c", "kill -9 $PPID"]).status()?;
                std::thread::sleep(Duration::from_secs(60));
            }
        }
    }
    rank.barrier("epoch end")
}
