//! The failure classes of this crate; each has a page in `docs/errors/`.
//!
//! The texts of the errors are where the errors are made.

use leyden_process::{Code, exit};

/// A world cannot have that many ranks, or a rank's place in it is taken.
pub const WORLD_SIZE: Code = Code::new("D0101", exit::CONFIGURATION);
/// A descriptor is not the memory of a world.
pub const WORLD_FOREIGN: Code = Code::new("D0102", exit::CONFIGURATION);
/// Ranks disagree on a collective.
pub const DISAGREE: Code = Code::new("D0103", exit::TRAINING_FAILED);
/// A rank has left while others wait for it.
pub const LEFT: Code = Code::new("D0104", exit::TRAINING_FAILED);
/// A rank has died.
pub const DIED: Code = Code::new("D0105", exit::WORKER_DIED);
/// Ranks wait for each other in a circle.
pub const DEADLOCK: Code = Code::new("D0106", exit::TRAINING_FAILED);
/// A rank does not arrive within its budget.
pub const STUCK: Code = Code::new("D0107", exit::TRAINING_FAILED);
/// What a collective was given does not fit.
pub const ARGUMENT: Code = Code::new("D0108", exit::TRAINING_FAILED);
/// An object cannot be sent to the other ranks.
pub const OBJECT: Code = Code::new("D0109", exit::TRAINING_FAILED);
/// Whatever watches the ranks is gone.
pub const UNWATCHED: Code = Code::new("D0110", exit::WORKER_DIED);
/// Code that rank 0 alone runs has panicked.
pub const RANK_ZERO_PANICKED: Code = Code::new("D0111", exit::TRAINING_FAILED);
/// A rank's code has panicked.
pub const RANK_PANICKED: Code = Code::new("D0112", exit::TRAINING_FAILED);
/// Ranks call the same collective from different places, which only `LEYDEN_DEBUG=detail` minds.
pub const PLACES_DIFFER: Code = Code::new("D0120", exit::TRAINING_FAILED);
/// There is not enough memory for a bucket.
pub const BUCKET_MEMORY: Code = Code::new("D0130", exit::CONFIGURATION);
/// A bucket is of another world.
pub const BUCKET_FOREIGN: Code = Code::new("D0131", exit::TRAINING_FAILED);
/// Ranks that run `main` cannot be launched from here.
pub const LAUNCH_ELSEWHERE: Code = Code::new("D0201", exit::CONFIGURATION);
/// The world has another number of ranks.
pub const LAUNCH_OTHER_SIZE: Code = Code::new("D0202", exit::CONFIGURATION);
/// A worker cannot launch ranks.
pub const LAUNCH_IN_WORKER: Code = Code::new("D0203", exit::CONFIGURATION);
/// The ranks could not be started.
pub const LAUNCH_START: Code = Code::new("D0204", exit::WORKER_DIED);
/// There is no place for what the ranks print.
pub const LAUNCH_LOGS: Code = Code::new("D0205", exit::CONFIGURATION);
/// Fewer descriptors may be open than that many ranks need.
pub const LAUNCH_DESCRIPTORS: Code = Code::new("D0206", exit::CONFIGURATION);
/// Not all ranks have come that a launcher is to have started.
pub const EXTERNAL_MISSING: Code = Code::new("D0217", exit::TRAINING_FAILED);
/// Rank 0 refuses a rank: another build, another number of ranks, a rank that another process has.
pub const EXTERNAL_REFUSED: Code = Code::new("D0218", exit::CONFIGURATION);
/// The socket at which ranks of a launcher meet cannot be had.
pub const EXTERNAL_SOCKET: Code = Code::new("D0219", exit::CONFIGURATION);
/// Ranks on several hosts have no token, or one that is too short.
pub const SESSION_TOKEN: Code = Code::new("D0220", exit::CONFIGURATION);
/// The address at which ranks of several hosts meet is not known.
pub const SESSION_MASTER: Code = Code::new("D0221", exit::CONFIGURATION);
/// Ranks say different numbers of ranks, or one has a rank that is not below it.
pub const SESSION_SIZE: Code = Code::new("D0222", exit::CONFIGURATION);
/// A rank has another token than rank 0.
pub const SESSION_OTHER_TOKEN: Code = Code::new("D0223", exit::CONFIGURATION);
/// Two processes have one rank.
pub const SESSION_DUPLICATE: Code = Code::new("D0224", exit::CONFIGURATION);
/// A rank is of another build, another version, or another configuration than rank 0.
pub const SESSION_OTHER_BUILD: Code = Code::new("D0225", exit::CONFIGURATION);
/// What answers at the master's address belongs to another run.
pub const SESSION_OTHER_RUN: Code = Code::new("D0226", exit::CONFIGURATION);
/// Not all ranks have come in time, or one has gone before all had come.
pub const SESSION_MISSING: Code = Code::new("D0227", exit::TRAINING_FAILED);
/// A rank has come when the run was complete, or had failed.
pub const SESSION_CLOSED: Code = Code::new("D0228", exit::TRAINING_FAILED);
/// Rank 0 cannot be found or reached, or does not answer.
pub const SESSION_UNREACHABLE: Code = Code::new("D0229", exit::TRAINING_FAILED);
/// Rank 0 cannot serve: no socket, thread or descriptor.
pub const SESSION_SERVE: Code = Code::new("D0230", exit::CONFIGURATION);
/// The process that serves the session is gone, or what it says makes no sense.
pub const SESSION_LOST: Code = Code::new("D0231", exit::WORKER_DIED);
/// A rank cannot be reached over the network.
pub const PEER_UNREACHABLE: Code = Code::new("D0240", exit::TRAINING_FAILED);
/// What answers for a rank is not of this run, or takes this rank for a stranger.
pub const PEER_REFUSED: Code = Code::new("D0241", exit::CONFIGURATION);
/// Not all ranks have connected to this one.
pub const PEER_ABSENT: Code = Code::new("D0242", exit::TRAINING_FAILED);
/// What a rank sent has arrived damaged.
pub const FRAME_DAMAGED: Code = Code::new("D0243", exit::TRAINING_FAILED);
/// What a rank sent makes no sense.
pub const FRAME_SENSELESS: Code = Code::new("D0244", exit::TRAINING_FAILED);
/// The transport that was asked for does not reach all ranks, or there is none of that name.
pub const TRANSPORT_UNFIT: Code = Code::new("D0245", exit::CONFIGURATION);
/// A launcher's variable is not a number.
pub const NOT_A_NUMBER: Code = Code::new("D0301", exit::CONFIGURATION);
/// A launcher's variable is set, and its counterpart is not.
pub const HALF_SET: Code = Code::new("D0302", exit::CONFIGURATION);
/// A rank is not below the number of ranks.
pub const RANK_RANGE: Code = Code::new("D0303", exit::CONFIGURATION);
/// Two launchers claim this process, and disagree.
pub const LAUNCHERS_DISAGREE: Code = Code::new("D0304", exit::CONFIGURATION);
/// A compressed list (of nodes, or of tasks per node) cannot be read.
pub const LIST_MALFORMED: Code = Code::new("D0305", exit::CONFIGURATION);
/// A compressed list stands for more than any cluster has.
pub const LIST_TOO_LONG: Code = Code::new("D0306", exit::CONFIGURATION);
/// The variables of one launcher contradict each other.
pub const LAUNCHER_CONTRADICTS: Code = Code::new("D0307", exit::CONFIGURATION);
/// The address of the master is not one.
pub const MASTER_ADDRESS: Code = Code::new("D0308", exit::CONFIGURATION);
/// The port on which the store is to listen is taken.
pub const STORE_PORT_TAKEN: Code = Code::new("D0501", exit::CONFIGURATION);
/// The store cannot listen on its address.
pub const STORE_LISTEN: Code = Code::new("D0502", exit::CONFIGURATION);
/// The store's address is not one, or its name is not known.
pub const STORE_ADDRESS: Code = Code::new("D0503", exit::CONFIGURATION);
/// No store answers at its address within the deadline.
pub const STORE_UNREACHABLE: Code = Code::new("D0504", exit::TRAINING_FAILED);
/// What answers at the store's address is no store.
pub const STORE_STRANGER: Code = Code::new("D0505", exit::CONFIGURATION);
/// A key was not set in time.
pub const STORE_TIMEOUT: Code = Code::new("D0506", exit::TRAINING_FAILED);
/// The connection to the store is lost.
pub const STORE_LOST: Code = Code::new("D0507", exit::TRAINING_FAILED);
/// A key, a value or a number of keys is larger than the store takes.
pub const STORE_LIMIT: Code = Code::new("D0508", exit::TRAINING_FAILED);
/// The store's answer makes no sense.
pub const STORE_REPLY: Code = Code::new("D0509", exit::TRAINING_FAILED);
/// The store does not answer.
pub const STORE_SILENT: Code = Code::new("D0510", exit::TRAINING_FAILED);
/// The store's thread could not be started.
pub const STORE_THREAD: Code = Code::new("D0511", exit::TRAINING_FAILED);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_has_a_page_that_starts_with_it() {
        let all = [
            WORLD_SIZE,
            WORLD_FOREIGN,
            DISAGREE,
            LEFT,
            DIED,
            DEADLOCK,
            STUCK,
            ARGUMENT,
            OBJECT,
            UNWATCHED,
            RANK_ZERO_PANICKED,
            RANK_PANICKED,
            PLACES_DIFFER,
            BUCKET_MEMORY,
            BUCKET_FOREIGN,
            LAUNCH_ELSEWHERE,
            LAUNCH_OTHER_SIZE,
            LAUNCH_IN_WORKER,
            LAUNCH_START,
            LAUNCH_LOGS,
            LAUNCH_DESCRIPTORS,
            EXTERNAL_MISSING,
            EXTERNAL_REFUSED,
            EXTERNAL_SOCKET,
            SESSION_TOKEN,
            SESSION_MASTER,
            SESSION_SIZE,
            SESSION_OTHER_TOKEN,
            SESSION_DUPLICATE,
            SESSION_OTHER_BUILD,
            SESSION_OTHER_RUN,
            SESSION_MISSING,
            SESSION_CLOSED,
            SESSION_UNREACHABLE,
            SESSION_SERVE,
            SESSION_LOST,
            PEER_UNREACHABLE,
            PEER_REFUSED,
            PEER_ABSENT,
            FRAME_DAMAGED,
            FRAME_SENSELESS,
            TRANSPORT_UNFIT,
            NOT_A_NUMBER,
            HALF_SET,
            RANK_RANGE,
            LAUNCHERS_DISAGREE,
            LIST_MALFORMED,
            LIST_TOO_LONG,
            LAUNCHER_CONTRADICTS,
            MASTER_ADDRESS,
            STORE_PORT_TAKEN,
            STORE_LISTEN,
            STORE_ADDRESS,
            STORE_UNREACHABLE,
            STORE_STRANGER,
            STORE_TIMEOUT,
            STORE_LOST,
            STORE_LIMIT,
            STORE_REPLY,
            STORE_SILENT,
            STORE_THREAD,
        ];
        for code in all {
            let path = format!("{}/../../docs/errors/{code}.md", env!("CARGO_MANIFEST_DIR"));
            let page = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
            assert!(page.starts_with(&format!("# {code}: ")), "{path} starts with {:?}", page.lines().next());
        }
    }
}
