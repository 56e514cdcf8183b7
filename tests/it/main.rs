//! The whole of Leyden on Burn: one program, so that it links once.

mod cells;
mod codes;
mod digits;
mod failures;
mod founding;
mod optimizing;
mod parity;
mod peers;
#[cfg(target_os = "linux")]
mod ranks;
mod resume;
