//! Real processes: this test program starts itself.

#[cfg(target_os = "linux")]
mod recursion;
