//! One rank never comes: the others do not wait for ever, and it does not stay behind.

use std::time::Duration;

use leyden_comm::{Result, launch};

fn main() -> Result<()> {
    let options = launch::LaunchOptions { grace: Duration::from_millis(500), ..Default::default() };
    let mut rank = launch::world_with(2, &options)?.join()?;
    rank.set_limits(Duration::from_millis(200), Duration::from_secs(1));
    rank.barrier("start")?;
    if rank.rank() == 1 {
        rank.phase("make_dataset");
        std::thread::sleep(Duration::from_secs(600));
    }
    rank.barrier("data set ready")
}
