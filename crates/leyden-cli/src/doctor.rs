//! `leyden doctor`: what a launch would find here. It starts nothing and connects to nobody.

use leyden_comm::environment::{Environment, Launcher};
use leyden_process::limits::{Resource, limit};
use leyden_process::memory::available_bytes;
use leyden_process::{Result, exit};

/// Prints the table; gives the exit code.
///
/// # Errors
/// Those of [`Environment::detect`], after all else has been printed.
pub(crate) fn doctor() -> Result<u8> {
    let environment = Environment::detect();
    if let Ok(environment) = &environment {
        println!("{environment}\n");
    }
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let or = |value: Option<String>, name: &str, default: &str| match value {
        Some(value) => (value, name.to_owned()),
        None => (default.to_owned(), String::new()),
    };
    let several = environment.as_ref().is_ok_and(spans_hosts);
    let usual = if several { "tcp, between hosts" } else { "memory of this host" };
    let transport = or(variable("LEYDEN_TRANSPORT"), "LEYDEN_TRANSPORT", usual);
    let token = match (variable("LEYDEN_TOKEN"), several) {
        (Some(_), _) => ("set".to_owned(), "LEYDEN_TOKEN".to_owned()),
        (None, true) => ("not set, and needed: ranks are on several hosts".to_owned(), String::new()),
        (None, false) => ("not set; needed between hosts alone".to_owned(), String::new()),
    };
    let patience =
        or(variable("LEYDEN_JOIN_TIMEOUT").map(|text| format!("{text} s")), "LEYDEN_JOIN_TIMEOUT", "60 s");
    let cores =
        std::thread::available_parallelism().map_or("not known".to_owned(), |cores| cores.to_string());
    let threads = or(
        variable("RAYON_NUM_THREADS"),
        "RAYON_NUM_THREADS",
        "the cores, divided among the ranks of a host",
    );
    let most = |resource| limit(resource).map_or("none".to_owned(), |most| most.to_string());
    let rows = [
        ("transport", transport),
        ("token", token),
        ("patience", patience),
        ("cores", (cores, String::new())),
        ("threads", threads),
        (
            "open files",
            (most(Resource::Descriptors), "ulimit -n; a launch needs 12, and 6 for each rank".to_owned()),
        ),
        ("threads of the user", (most(Resource::Threads), "ulimit -u".to_owned())),
        ("file size", (most(Resource::FileSize), "ulimit -f; holds for shared memory too".to_owned())),
        ("addresses", (most(Resource::Addresses), "ulimit -v".to_owned())),
        (
            "memory",
            (
                format!("{:.1} GB", available_bytes() as f64 / 1e9),
                "what machine and control groups leave".to_owned(),
            ),
        ),
    ];
    for (what, (value, from)) in rows {
        println!("{}", format!("{what:<20}  {value:<24}  {from}").trim_end());
    }
    environment.map(|_| exit::OK)
}

/// Whether the launcher has started ranks on several hosts.
fn spans_hosts(environment: &Environment) -> bool {
    let here = environment.local_world_size();
    environment.launcher() != Launcher::None && here.is_some_and(|here| here != environment.world_size())
}
