//! Ranks launched where a struct is made, far from the top of `main`.

use leyden_comm::{Rank, ReduceOp, Result, launch};

struct Experiment {
    rank: Rank,
    name: String,
}

impl Experiment {
    fn new(name: &str) -> Result<Self> {
        Ok(Self { rank: launch::world(3)?.join()?, name: name.to_owned() })
    }

    fn run(&mut self) -> Result<f64> {
        let mut ones = [1.0_f64];
        self.rank.all_reduce(&mut ones, ReduceOp::Sum)?;
        Ok(ones[0])
    }
}

fn main() -> Result<()> {
    let mut experiment = Experiment::new("digits")?;
    let sum = experiment.run()?;
    println!("{}: {sum} ranks", experiment.name);
    // A second one, later in the program, has the same ranks again.
    drop(experiment);
    let mut again = Experiment::new("letters")?;
    let sum = again.run()?;
    println!("{}: {sum} ranks", again.name);
    Ok(())
}
