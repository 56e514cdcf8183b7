//! What each launcher sets, and what is made of it.
//!
//! The sets of torchrun 2.15, Open MPI 5.0.11, PRRTE, MPICH 5.0.2 (Hydra, gforker) and SLURM 22.05.8 on one node are what a
//! process printed that they had started (paths, users and the like left out); that of SLURM on three nodes is made of it.

use std::collections::BTreeMap;

use leyden_comm::environment::{Environment, Launcher};
use leyden_comm::{Error, codes};

type Set = &'static [(&'static str, &'static str)];

const TORCHRUN: Set = &[
    ("GROUP_RANK", "1"),
    ("GROUP_WORLD_SIZE", "2"),
    ("LOCAL_RANK", "1"),
    ("LOCAL_WORLD_SIZE", "2"),
    ("MASTER_ADDR", "localhost"),
    ("MASTER_PORT", "40787"),
    ("OMP_NUM_THREADS", "1"),
    ("RANK", "3"),
    ("ROLE_NAME", "default"),
    ("ROLE_RANK", "3"),
    ("ROLE_WORLD_SIZE", "4"),
    ("TORCHELASTIC_ERROR_FILE", "/tmp/torchelastic_267s4zcf/attempt_0/1/error.json"),
    ("TORCHELASTIC_MAX_RESTARTS", "0"),
    ("TORCHELASTIC_RESTART_COUNT", "0"),
    ("TORCHELASTIC_RUN_ID", "2afe7481-ad09-4bc6-b90c-6b9a0745d527"),
    ("TORCHELASTIC_SIGNALS_TO_HANDLE", "SIGTERM,SIGINT,SIGHUP,SIGQUIT"),
    ("TORCHELASTIC_USE_AGENT_STORE", "True"),
    ("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1"),
    ("WORLD_SIZE", "4"),
];

const OPEN_MPI: Set = &[
    ("OMPI_ARGV", "train"),
    ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
    ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
    ("OMPI_COMM_WORLD_NODE_RANK", "1"),
    ("OMPI_COMM_WORLD_RANK", "1"),
    ("OMPI_COMM_WORLD_SIZE", "2"),
    ("OMPI_MCA_num_procs", "2"),
    ("OMPI_NUM_APP_CTX", "1"),
    ("OMPI_TOOL_NAME", "mpirun"),
    ("OMPI_UNIVERSE_SIZE", "2"),
    ("OMPI_VERSION", "5.0.11"),
    ("OMPI_WORLD_LOCAL_SIZE", "2"),
    ("OMPI_WORLD_SIZE", "2"),
    ("PMIX_NAMESPACE", "prterun-vm-20614@1"),
    ("PMIX_RANK", "1"),
    ("PMIX_SERVER_URI41", "prterun-vm-20614@0.0;tcp4://127.0.0.1:44033"),
    ("PMIX_VERSION", "5.0.11rc1"),
    ("PRTE_LAUNCHED", "1"),
];

const HYDRA: Set = &[
    ("HYDI_CONTROL_FD", "7"),
    ("MPI_LOCALNRANKS", "2"),
    ("MPI_LOCALRANKID", "1"),
    ("PMI_FD", "11"),
    ("PMI_HOSTNAME", "vm"),
    ("PMI_RANK", "1"),
    ("PMI_SIZE", "2"),
];

const GFORKER: Set = &[
    ("MPI_APPNUM", "0"),
    ("MPI_UNIVERSE_SIZE", "-1"),
    ("PMI_DEBUG", "0"),
    ("PMI_FD", "12"),
    ("PMI_RANK", "1"),
    ("PMI_SIZE", "2"),
];

const PRTERUN: Set = &[
    ("PMIX_HOSTNAME", "vm"),
    ("PMIX_NAMESPACE", "prterun-vm-11351@1"),
    ("PMIX_RANK", "1"),
    ("PMIX_SECURITY_MODE", "native"),
    ("PMIX_VERSION", "5.0.11rc1"),
    ("PRTE_LAUNCHED", "1"),
];

/// `sbatch -N 3 -n 5` and in its script `srun train`, the third task.
const SRUN: Set = &[
    ("SLURMD_NODENAME", "gpu-a02"),
    ("SLURM_CLUSTER_NAME", "hall"),
    ("SLURM_CPUS_ON_NODE", "8"),
    ("SLURM_GTIDS", "2,3"),
    ("SLURM_JOBID", "184271"),
    ("SLURM_JOB_ID", "184271"),
    ("SLURM_JOB_NAME", "train"),
    ("SLURM_JOB_NODELIST", "gpu-a[01-03]"),
    ("SLURM_JOB_NUM_NODES", "3"),
    ("SLURM_LAUNCH_NODE_IPADDR", "10.1.0.1"),
    ("SLURM_LOCALID", "0"),
    ("SLURM_NNODES", "3"),
    ("SLURM_NODEID", "1"),
    ("SLURM_NODELIST", "gpu-a[01-03]"),
    ("SLURM_NPROCS", "5"),
    ("SLURM_NTASKS", "5"),
    ("SLURM_PROCID", "2"),
    ("SLURM_SRUN_COMM_HOST", "10.1.0.1"),
    ("SLURM_SRUN_COMM_PORT", "41733"),
    ("SLURM_STEPID", "0"),
    ("SLURM_STEP_ID", "0"),
    ("SLURM_STEP_NODELIST", "gpu-a[01-03]"),
    ("SLURM_STEP_NUM_NODES", "3"),
    ("SLURM_STEP_NUM_TASKS", "5"),
    ("SLURM_STEP_TASKS_PER_NODE", "2(x2),1"),
    ("SLURM_TASKS_PER_NODE", "2(x2),1"),
    ("SLURM_TASK_PID", "90211"),
];

/// In the script of `sbatch -n 5`: `srun -n 3 train`, the last task.
const SRUN_ONE_NODE: Set = &[
    ("SLURMD_NODENAME", "vm"),
    ("SLURM_CLUSTER_NAME", "hall"),
    ("SLURM_CPUS_ON_NODE", "5"),
    ("SLURM_DISTRIBUTION", "block"),
    ("SLURM_GTIDS", "0,1,2"),
    ("SLURM_JOBID", "2"),
    ("SLURM_JOB_CPUS_PER_NODE", "5"),
    ("SLURM_JOB_CPUS_PER_NODE_PACK_GROUP_0", "5"),
    ("SLURM_JOB_ID", "2"),
    ("SLURM_JOB_NAME", "job.sh"),
    ("SLURM_JOB_NODELIST", "vm"),
    ("SLURM_JOB_NUM_NODES", "1"),
    ("SLURM_JOB_PARTITION", "debug"),
    ("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1"),
    ("SLURM_LOCALID", "2"),
    ("SLURM_NNODES", "1"),
    ("SLURM_NODEID", "0"),
    ("SLURM_NODELIST", "vm"),
    ("SLURM_NPROCS", "3"),
    ("SLURM_NTASKS", "3"),
    ("SLURM_PROCID", "2"),
    ("SLURM_SRUN_COMM_HOST", "127.0.0.1"),
    ("SLURM_SRUN_COMM_PORT", "37193"),
    ("SLURM_STEPID", "1"),
    ("SLURM_STEP_ID", "1"),
    ("SLURM_STEP_LAUNCHER_PORT", "37193"),
    ("SLURM_STEP_NODELIST", "vm"),
    ("SLURM_STEP_NUM_NODES", "1"),
    ("SLURM_STEP_NUM_TASKS", "3"),
    ("SLURM_STEP_TASKS_PER_NODE", "3"),
    ("SLURM_TASKS_PER_NODE", "3"),
    ("SLURM_TASK_PID", "13033"),
];

/// The script of `sbatch -n 5` itself.
const BATCH_SCRIPT: Set = &[
    ("SLURMD_NODENAME", "vm"),
    ("SLURM_CLUSTER_NAME", "hall"),
    ("SLURM_CPUS_ON_NODE", "5"),
    ("SLURM_GTIDS", "0"),
    ("SLURM_JOBID", "2"),
    ("SLURM_JOB_CPUS_PER_NODE", "5"),
    ("SLURM_JOB_ID", "2"),
    ("SLURM_JOB_NAME", "job.sh"),
    ("SLURM_JOB_NODELIST", "vm"),
    ("SLURM_JOB_NUM_NODES", "1"),
    ("SLURM_JOB_PARTITION", "debug"),
    ("SLURM_LOCALID", "0"),
    ("SLURM_NNODES", "1"),
    ("SLURM_NODEID", "0"),
    ("SLURM_NODELIST", "vm"),
    ("SLURM_NPROCS", "5"),
    ("SLURM_NTASKS", "5"),
    ("SLURM_PROCID", "0"),
    ("SLURM_TASKS_PER_NODE", "5"),
    ("SLURM_TASK_PID", "12990"),
];

/// `srun --pty bash`.
const SHELL: Set = &[
    ("SLURMD_NODENAME", "vm"),
    ("SLURM_CLUSTER_NAME", "hall"),
    ("SLURM_CPUS_ON_NODE", "1"),
    ("SLURM_GTIDS", "0"),
    ("SLURM_JOBID", "3"),
    ("SLURM_JOB_CPUS_PER_NODE", "1"),
    ("SLURM_JOB_ID", "3"),
    ("SLURM_JOB_NAME", "bash"),
    ("SLURM_JOB_NODELIST", "vm"),
    ("SLURM_JOB_NUM_NODES", "1"),
    ("SLURM_JOB_PARTITION", "debug"),
    ("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1"),
    ("SLURM_LOCALID", "0"),
    ("SLURM_NNODES", "1"),
    ("SLURM_NODEID", "0"),
    ("SLURM_NODELIST", "vm"),
    ("SLURM_NPROCS", "1"),
    ("SLURM_NTASKS", "1"),
    ("SLURM_PROCID", "0"),
    ("SLURM_PTY_PORT", "35715"),
    ("SLURM_SRUN_COMM_HOST", "127.0.0.1"),
    ("SLURM_SRUN_COMM_PORT", "40905"),
    ("SLURM_STEPID", "0"),
    ("SLURM_STEP_ID", "0"),
    ("SLURM_STEP_LAUNCHER_PORT", "40905"),
    ("SLURM_STEP_NODELIST", "vm"),
    ("SLURM_STEP_NUM_NODES", "1"),
    ("SLURM_STEP_NUM_TASKS", "1"),
    ("SLURM_STEP_TASKS_PER_NODE", "1"),
    ("SLURM_TASKS_PER_NODE", "1"),
    ("SLURM_TASK_PID", "13249"),
];

/// Both sets; where both have a name, the second's value counts.
fn with(one: Set, other: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    let both: BTreeMap<_, _> = one.iter().chain(other).copied().collect();
    both.into_iter().collect()
}

fn read(set: &[(&'static str, &'static str)]) -> Environment {
    Environment::from_variables(set.iter().copied()).unwrap()
}

fn refused(set: &[(&'static str, &'static str)]) -> Error {
    Environment::from_variables(set.iter().copied()).unwrap_err()
}

#[test]
fn each_launcher_s_set_is_read() {
    type Row = (Launcher, usize, usize, Option<usize>, Option<usize>, Option<usize>);
    let rows: &[(&str, Set, Row)] = &[
        ("torchrun", TORCHRUN, (Launcher::Torchrun, 3, 4, Some(1), Some(2), Some(1))),
        ("srun", SRUN, (Launcher::Slurm, 2, 5, Some(0), Some(2), Some(1))),
        ("srun, one node", SRUN_ONE_NODE, (Launcher::Slurm, 2, 3, Some(2), Some(3), Some(0))),
        ("mpirun", OPEN_MPI, (Launcher::OpenMpi, 1, 2, Some(1), Some(2), None)),
        ("hydra", HYDRA, (Launcher::Pmi, 1, 2, Some(1), Some(2), None)),
        ("gforker", GFORKER, (Launcher::Pmi, 1, 2, None, None, None)),
        ("batch script", BATCH_SCRIPT, (Launcher::None, 0, 1, Some(0), Some(1), Some(0))),
        ("srun --pty bash", SHELL, (Launcher::None, 0, 1, Some(0), Some(1), Some(0))),
        ("nobody", &[("HOME", "/root")], (Launcher::None, 0, 1, Some(0), Some(1), Some(0))),
        ("by hand", &[("RANK", "1"), ("WORLD_SIZE", "2")], (Launcher::Torchrun, 1, 2, None, None, None)),
    ];
    for (name, set, expected) in rows {
        let read = read(set);
        let found = (
            read.launcher(),
            read.rank(),
            read.world_size(),
            read.local_rank(),
            read.local_world_size(),
            read.node_rank(),
        );
        assert_eq!(found, *expected, "{name}:\n{read}");
    }
    let prterun = read(&with(PRTERUN, &[("WORLD_SIZE", "2")]));
    assert_eq!((prterun.launcher(), prterun.rank(), prterun.world_size()), (Launcher::PmiX, 1, 2));
}

#[test]
fn hosts_master_and_run_are_known_where_the_launcher_knows_them() {
    let srun = read(SRUN);
    assert_eq!(srun.nodes(), ["gpu-a01", "gpu-a02", "gpu-a03"]);
    assert_eq!(srun.master(), Some(("gpu-a01", 15_000 + 4271)));
    assert_eq!(srun.run_id(), Some("184271.0"));
    let requeued =
        read(&with(SRUN, &[("SLURM_RESTART_COUNT", "2"), ("SLURM_STEP_RESV_PORTS", "12004-12008")]));
    assert_eq!((requeued.run_id(), requeued.master()), (Some("184271.0.2"), Some(("gpu-a01", 12_004))));
    let told = read(&with(SRUN, &[("MASTER_ADDR", "10.1.0.9"), ("MASTER_PORT", "29501")]));
    assert_eq!(told.master(), Some(("10.1.0.9", 29_501)));
    assert_eq!(read(TORCHRUN).master(), Some(("localhost", 40_787)));
    assert_eq!(read(TORCHRUN).run_id(), Some("2afe7481-ad09-4bc6-b90c-6b9a0745d527"));
    let restarted = read(&with(TORCHRUN, &[("TORCHELASTIC_RESTART_COUNT", "1")]));
    assert_eq!(restarted.run_id(), Some("2afe7481-ad09-4bc6-b90c-6b9a0745d527.1"));
    assert_eq!(read(OPEN_MPI).run_id(), Some("prterun-vm-20614@1"));
    assert_eq!((read(HYDRA).master(), read(HYDRA).run_id()), (None, None));
}

#[test]
fn the_report_says_where_each_value_came_from() {
    assert_eq!(
        read(SRUN).to_string(),
        "launcher    SLURM (srun)\n\
         rank        2 of 5         SLURM_PROCID, SLURM_STEP_NUM_TASKS\n\
         local rank  0 of 2         SLURM_LOCALID, SLURM_STEP_TASKS_PER_NODE\n\
         node        1 of 3         SLURM_NODEID, SLURM_STEP_NODELIST\n\
         nodes       gpu-a[01-03]   SLURM_STEP_NODELIST\n\
         master      gpu-a01:19271  first of SLURM_STEP_NODELIST, 15000 + (SLURM_JOB_ID + SLURM_STEP_ID) % 10000\n\
         run         184271.0       SLURM_JOB_ID, SLURM_STEP_ID"
    );
    assert_eq!(
        read(BATCH_SCRIPT).to_string(),
        "launcher  none\n\
         rank      0 of 1\n\
         note      inside SLURM job 2, but not started by srun  SLURM_JOB_ID"
    );
}

#[test]
fn an_allocation_is_no_launch() {
    for set in [
        with(BATCH_SCRIPT, &[]),
        with(SHELL, &[]),
        with(SHELL, &[("SLURM_PTY_PORT", ""), ("SLURM_JOB_NAME", "interactive")]),
        // A shell by `use_interactive_step`; older versions number a batch script's own step.
        with(SRUN, &[("SLURM_STEP_ID", "4294967290"), ("SLURM_STEPID", "4294967290")]),
        with(SRUN, &[("SLURM_STEP_ID", "4294967291"), ("SLURM_STEPID", "4294967291")]),
    ] {
        let read = read(&set);
        assert_eq!((read.launcher(), read.world_size()), (Launcher::None, 1), "{read}");
    }
    // From such a shell, `srun -n 2 train` is a launch all the same.
    let inside = [
        ("SLURM_STEP_ID", "1"),
        ("SLURM_PROCID", "1"),
        ("SLURM_STEP_NUM_TASKS", "2"),
        ("SLURM_STEP_TASKS_PER_NODE", "2"),
    ];
    let read = read(&with(SHELL, &inside));
    assert_eq!((read.launcher(), read.rank(), read.world_size()), (Launcher::Slurm, 1, 2), "{read}");
}

#[test]
fn the_step_s_number_of_tasks_counts_and_not_the_allocation_s() {
    let smaller = [
        ("SLURM_STEP_NUM_TASKS", "3"),
        ("SLURM_STEP_TASKS_PER_NODE", "2,1"),
        ("SLURM_STEP_NODELIST", "gpu-a[01-02]"),
    ];
    let read = read(&with(SRUN, &smaller));
    assert_eq!((read.world_size(), read.local_world_size()), (3, Some(1)));
    assert!(read.to_string().contains("the step has 3 of 5 tasks"), "{read}");
}

#[test]
fn a_launcher_inside_another_s_step_counts() {
    // One torchrun, one daemon of mpirun, one proxy of Hydra per node: the rank inherits the task's variables.
    let task = [("SLURM_STEP_NUM_TASKS", "2"), ("SLURM_PROCID", "1"), ("SLURM_STEP_TASKS_PER_NODE", "1(x2)")];
    let nodes = [("SLURM_NODEID", "1"), ("SLURM_STEP_NODELIST", "gpu-a[01-02]")];
    let outer = with(SRUN, &with(&[], &[&task[..], &nodes[..]].concat()));
    for (inner, launcher, rank) in
        [(TORCHRUN, Launcher::Torchrun, 3), (OPEN_MPI, Launcher::OpenMpi, 1), (HYDRA, Launcher::Pmi, 1)]
    {
        // Rank 0 of MPI's two, so that the two sets disagree.
        let other =
            [("OMPI_COMM_WORLD_RANK", "0"), ("PMIX_RANK", "0"), ("PMI_RANK", "0"), ("MPI_LOCALRANKID", "0")];
        let mpi = launcher != Launcher::Torchrun;
        let inner: Vec<_> = inner
            .iter()
            .map(|&(name, value)| match other.iter().find(|(changed, _)| mpi && *changed == name) {
                Some(&changed) => changed,
                None => (name, value),
            })
            .collect();
        let both: Vec<_> = outer.iter().chain(&inner).copied().collect();
        let read = read(&both);
        let rank = if mpi { 0 } else { rank };
        assert_eq!((read.launcher(), read.rank()), (launcher, rank), "{read}");
        assert!(read.to_string().contains("SLURM (srun) started the agents of"), "{read}");
    }
    // mpirun in a batch script, on the head node: there is no step to disagree with.
    let head = read(&with(BATCH_SCRIPT, OPEN_MPI));
    assert_eq!((head.launcher(), head.rank()), (Launcher::OpenMpi, 1));
}

#[test]
fn launchers_that_agree_complete_each_other() {
    let by_hand = read(&with(SRUN, &[("RANK", "2"), ("WORLD_SIZE", "5")]));
    assert_eq!((by_hand.launcher(), by_hand.local_rank()), (Launcher::Torchrun, Some(0)));
    assert_eq!((by_hand.node_rank(), by_hand.nodes().len()), (Some(1), 3));
    let pmix = read(&with(SRUN, &[("PMIX_RANK", "2"), ("PMIX_NAMESPACE", "slurm.pmix.184271.0")]));
    assert_eq!((pmix.launcher(), pmix.rank()), (Launcher::Slurm, 2));
    let pmi = read(&with(SRUN, &[("PMI_RANK", "2"), ("PMI_SIZE", "5"), ("PMI_FD", "9")]));
    assert_eq!(pmi.launcher(), Launcher::Slurm);
}

#[test]
fn half_of_torchrun_s_set_beside_a_launcher_must_be_true() {
    for half in [("WORLD_SIZE", "5"), ("RANK", "2")] {
        let read = read(&with(SRUN, &[half]));
        assert_eq!((read.launcher(), read.rank(), read.world_size()), (Launcher::Slurm, 2, 5), "{read}");
    }
    for (half, what) in [
        (("WORLD_SIZE", "8"), "WORLD_SIZE contradicts the number of ranks of SLURM (srun)"),
        (("RANK", "0"), "RANK contradicts the rank of SLURM (srun)"),
    ] {
        let error = refused(&with(SRUN, &[half]));
        assert_eq!((error.code(), error.what()), (codes::LAUNCHERS_DISAGREE, what));
        assert_eq!(error.place(half.0), Some(half.1), "{error:?}");
    }
    // Under `srun --mpi=pmix` the size is SLURM's.
    let error = refused(&with(SRUN, &[("PMIX_RANK", "2"), ("WORLD_SIZE", "8")]));
    assert_eq!(error.code(), codes::LAUNCHERS_DISAGREE, "{error:?}");
}

#[test]
fn launchers_that_disagree_are_both_named_with_their_values() {
    let error = refused(&with(SRUN, &[("RANK", "0"), ("WORLD_SIZE", "1")]));
    assert_eq!(
        format!("{error:?}"),
        "error[D0304]: two launchers disagree about which rank this process is\n  \
         torchrun      rank 0 of 1 (RANK, WORLD_SIZE)\n  \
         SLURM (srun)  rank 2 of 5 (SLURM_PROCID, SLURM_STEP_NUM_TASKS)\n  \
         why: their variables are both there, and neither can have started the other\n  \
         fix: unset the variables that are left over from elsewhere\n  \
         fix: to run one launcher inside the other, let the outer one start one process per node"
    );
    // Five tasks that each start a torchrun of its own, which knows of two.
    let error = refused(&with(SRUN, TORCHRUN));
    assert_eq!(error.code(), codes::LAUNCHERS_DISAGREE);
    assert!(
        error.reasons()[0].contains("started 5 processes, more than torchrun can have as agents (2)"),
        "{error:?}"
    );
    // Also the one of them whose rank is the same in both by chance.
    let same = [("RANK", "2"), ("WORLD_SIZE", "5"), ("GROUP_RANK", "0"), ("GROUP_WORLD_SIZE", "1")];
    let error = refused(&with(SRUN, &with(TORCHRUN, &same)));
    assert_eq!(error.code(), codes::LAUNCHERS_DISAGREE);
    // The same rank, another number of ranks.
    let error = refused(&[("RANK", "1"), ("WORLD_SIZE", "2"), ("PMI_RANK", "1"), ("PMI_SIZE", "3")]);
    assert_eq!(error.code(), codes::LAUNCHERS_DISAGREE);
    // PMIx's rank is not Open MPI's.
    let error = refused(&with(OPEN_MPI, &[("PMIX_RANK", "0")]));
    assert_eq!(error.code(), codes::LAUNCHERS_DISAGREE);
}

#[test]
fn what_cannot_be_is_an_error_with_a_code() {
    let rows: &[(&[(&str, &str)], leyden_process::Code)] = &[
        (&[("RANK", "zero"), ("WORLD_SIZE", "2")], codes::NOT_A_NUMBER),
        (&[("RANK", "-1"), ("WORLD_SIZE", "2")], codes::NOT_A_NUMBER),
        (&[("RANK", "0"), ("WORLD_SIZE", "99999999999999999999999")], codes::NOT_A_NUMBER),
        (&[("RANK", "0")], codes::HALF_SET),
        (&[("WORLD_SIZE", "2")], codes::HALF_SET),
        (&[("RANK", ""), ("WORLD_SIZE", "2")], codes::HALF_SET),
        (&[("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "h")], codes::HALF_SET),
        (&[("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_PORT", "1")], codes::HALF_SET),
        (&[("OMPI_COMM_WORLD_RANK", "0")], codes::HALF_SET),
        (&[("PMI_SIZE", "2")], codes::HALF_SET),
        (&[("PMIX_RANK", "1"), ("PMIX_NAMESPACE", "x")], codes::HALF_SET),
        (&[("RANK", "2"), ("WORLD_SIZE", "2")], codes::RANK_RANGE),
        (&[("RANK", "0"), ("WORLD_SIZE", "0")], codes::RANK_RANGE),
        (
            &[("RANK", "0"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "2"), ("LOCAL_WORLD_SIZE", "2")],
            codes::RANK_RANGE,
        ),
        (
            &[("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "4")],
            codes::LAUNCHER_CONTRADICTS,
        ),
        (
            &[("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "h"), ("MASTER_PORT", "65536")],
            codes::MASTER_ADDRESS,
        ),
        (
            &[("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "h:29500"), ("MASTER_PORT", "29500")],
            codes::MASTER_ADDRESS,
        ),
    ];
    for (set, code) in rows {
        let error = refused(set);
        assert_eq!(error.code(), *code, "{set:?}: {error:?}");
        assert!(!error.hints().is_empty(), "{error:?}");
    }
    let rows: &[(&str, &str, leyden_process::Code)] = &[
        ("SLURM_STEP_TASKS_PER_NODE", "2(x3)", codes::LAUNCHER_CONTRADICTS),
        ("SLURM_STEP_TASKS_PER_NODE", "two", codes::LIST_MALFORMED),
        ("SLURM_NODEID", "3", codes::LAUNCHER_CONTRADICTS),
        ("SLURM_STEP_NODELIST", "gpu-a[01", codes::LIST_MALFORMED),
        ("SLURM_STEP_NODELIST", "gpu-a[0-999999999]", codes::LIST_TOO_LONG),
        ("SLURM_PROCID", "5", codes::RANK_RANGE),
        ("SLURM_LOCALID", "2", codes::RANK_RANGE),
    ];
    for (name, value, code) in rows {
        let error = refused(&with(SRUN, &[(name, value)]));
        assert_eq!(error.code(), *code, "{name}={value}: {error:?}");
    }
}

#[test]
fn a_size_that_pmix_does_not_tell_is_asked_for() {
    assert_eq!(
        format!("{:?}", refused(PRTERUN)),
        "error[D0302]: the variable PMIX_RANK is set, but WORLD_SIZE is not\n  \
         PMIX_RANK   1\n  \
         WORLD_SIZE  not set\n  \
         why: a rank without the number of ranks (or the other way round) says nothing\n  \
         why: PMIx tells the number of ranks through its library alone, not by a variable\n  \
         fix: set both, or unset PMIX_RANK to run without a launcher\n  \
         fix: pass it: `prterun -n 4 -x WORLD_SIZE=4 program`"
    );
}

#[test]
fn this_process_s_own_variables_are_read_without_a_panic() {
    // Whatever started the tests, they are a process by themselves or a rank; not a failure.
    let detected = Environment::detect().unwrap();
    assert!(detected.rank() < detected.world_size());
}
