//! Tells the crate at which optimisation level it is compiled: `fit` warns at 0, where Burn is unusably slow.

fn main() {
    let level = std::env::var("OPT_LEVEL").unwrap_or_default();
    println!("cargo::rustc-env=LEYDEN_OPT_LEVEL={level}");
    println!("cargo::rerun-if-changed=build.rs");
}
