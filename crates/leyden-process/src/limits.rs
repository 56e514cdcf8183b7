//! What the system lets this process have. It changes no limit.

pub use crate::sys::{Resource, limit};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_may_open_some_descriptors_and_not_without_end() {
        let most = limit(Resource::Descriptors);
        assert!(most.is_none_or(|most| most > 2), "{most:?}");
        for resource in [Resource::Threads, Resource::FileSize, Resource::Addresses] {
            assert_ne!(limit(resource), Some(0), "{resource:?}");
        }
    }
}
