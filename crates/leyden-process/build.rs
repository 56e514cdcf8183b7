//! Chooses the back end: where there is no Linux, `cfg(leyden_portable)` is set, which a build for Linux gets from
//! `RUSTFLAGS="--cfg leyden_portable"`.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|system| system != "linux") {
        println!("cargo::rustc-cfg=leyden_portable");
    }
}
