//! `main` binds a fixed port, then uses worker processes: the port is bound once, and no worker holds it.
//!
//! In Python a spawned worker imports the script again, and with it the line that binds: "address already in use". A worker
//! that inherits the socket instead keeps the port taken after the program has closed it.

use std::net::TcpListener;

use leyden::data::{Array, DataLoader, Dataset, SampleCx, Workers, default_collate};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Numbers;

impl Dataset for Numbers {
    type Item = i64;
    type Batch = Array<i64>;

    fn len(&self) -> usize {
        256
    }

    fn get(&self, index: usize, _: &mut SampleCx) -> leyden::Result<i64> {
        Ok(index as i64)
    }

    fn collate(&self, items: Vec<i64>) -> leyden::Result<Array<i64>> {
        default_collate(items)
    }
}

fn main() -> leyden::Result<()> {
    let port = std::env::args().nth(1).map_or(Ok(29_500), |port| port.parse())?;
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    let loader = DataLoader::builder(Numbers).batch_size(8).workers(Workers::spawn(2)).build()?;
    let mut sum = 0;
    for (number, batch) in loader.epoch(0).enumerate() {
        sum += batch?.data.iter().sum::<i64>();
        if number == 0 {
            println!("bound to {} while workers work", listener.local_addr()?);
        }
    }
    drop(listener);
    // The workers are still there, and have nothing of it.
    TcpListener::bind(("127.0.0.1", port))?;
    println!("sum {sum}; the port is free again, with the workers alive");
    Ok(())
}
