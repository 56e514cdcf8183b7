//! What goes over a connection: frames, each a head of fixed size and what belongs to it.
//!
//! Both parts have a checksum of their own: a length that is damaged is noticed before anybody waits for as many bytes.

use crate::world::{MOST_GROUPS, SITES, WINDOW};

/// The size of a head.
pub(super) const HEAD: usize = 56;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// An arrival, with its record, and with the bytes that are for the receiver.
    Arrival = 1,
    Site,
    State,
    Phase,
    Awaits,
    Forget,
    /// The world has failed, and of what.
    Failure,
    /// The last state has been heard.
    Heard,
    /// How do you do?
    Ask,
    /// The answer.
    Look,
    /// The process ends, and how.
    End,
}

impl Kind {
    fn of(number: u8) -> Option<Self> {
        const ALL: [Kind; 11] = [
            Kind::Arrival,
            Kind::Site,
            Kind::State,
            Kind::Phase,
            Kind::Awaits,
            Kind::Forget,
            Kind::Failure,
            Kind::Heard,
            Kind::Ask,
            Kind::Look,
            Kind::End,
        ];
        ALL.into_iter().find(|kind| *kind as u8 == number)
    }

    /// The most bytes that may belong to it.
    fn most(self) -> usize {
        match self {
            Self::Arrival => WINDOW,
            Self::Site | Self::Failure | Self::Look | Self::End => 64 << 10,
            Self::State | Self::Phase | Self::Awaits | Self::Forget | Self::Heard | Self::Ask => 0,
        }
    }
}

/// A frame but for the bytes that belong to it. What a field means is said where the frame is made; what is not used is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) kind: Kind,
    pub(super) group: u8,
    /// How many bytes belong to it.
    pub(super) length: u32,
    pub(super) tick: u32,
    pub(super) site: u32,
    /// Where the bytes go in the window.
    pub(super) offset: u32,
    pub(super) seq: u64,
    pub(super) words: [u64; 2],
    /// Of the bytes.
    pub(super) checksum: u32,
}

impl Head {
    pub(super) fn of(kind: Kind) -> Self {
        Self { kind, group: 0, length: 0, tick: 0, site: 0, offset: 0, seq: 0, words: [0; 2], checksum: 0 }
    }

    /// The head of a frame to which these bytes belong.
    pub(super) fn with(mut self, bytes: &[u8]) -> Self {
        self.length = bytes.len() as u32;
        self.checksum = checksum(bytes);
        self
    }

    pub(super) fn encode(&self) -> [u8; HEAD] {
        let mut bytes = [0; HEAD];
        bytes[4] = self.kind as u8;
        bytes[5] = self.group;
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(8, &self.length.to_le_bytes());
        put(12, &self.tick.to_le_bytes());
        put(16, &self.site.to_le_bytes());
        put(20, &self.offset.to_le_bytes());
        put(24, &self.seq.to_le_bytes());
        put(32, &self.words[0].to_le_bytes());
        put(40, &self.words[1].to_le_bytes());
        put(48, &self.checksum.to_le_bytes());
        let own = checksum(&bytes[4..]);
        bytes[..4].copy_from_slice(&own.to_le_bytes());
        bytes
    }

    /// Whatever has come, if it is a frame that can be.
    pub(super) fn decode(bytes: &[u8; HEAD]) -> Result<Self, Fault> {
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        if word(0) != checksum(&bytes[4..]) {
            return Err(Fault::Damaged);
        }
        let head = Self {
            kind: Kind::of(bytes[4]).ok_or(Fault::Senseless)?,
            group: bytes[5],
            length: word(8),
            tick: word(12),
            site: word(16),
            offset: word(20),
            seq: long(24),
            words: [long(32), long(40)],
            checksum: word(48),
        };
        let fits = usize::from(head.group) < MOST_GROUPS
            && head.length as usize <= head.kind.most()
            && (head.offset as usize).checked_add(head.length as usize).is_some_and(|end| end <= WINDOW)
            && (head.kind != Kind::Site || (1..=SITES).contains(&head.site));
        if fits { Ok(head) } else { Err(Fault::Senseless) }
    }
}

/// What is wrong with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Its checksum is another one.
    Damaged,
    /// It is whole, and no rank of this protocol sends it.
    Senseless,
}

pub(super) fn checksum(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrival() -> Head {
        let head = Head {
            group: 3,
            tick: 7,
            site: 11,
            offset: 4096,
            seq: u64::MAX - 5,
            words: [1 << 40, 2],
            ..Head::of(Kind::Arrival)
        };
        head.with(b"numbers")
    }

    #[test]
    fn a_head_comes_out_as_it_went_in() {
        assert_eq!(Head::decode(&arrival().encode()), Ok(arrival()));
        for number in 1..=11 {
            let head = Head { site: 1, ..Head::of(Kind::of(number).unwrap()) };
            assert_eq!(Head::decode(&head.encode()), Ok(head));
        }
    }

    #[test]
    fn each_bit_that_is_turned_is_noticed() {
        let good = arrival().encode();
        for bit in 0..HEAD * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Head::decode(&bad), Err(Fault::Damaged), "bit {bit}");
        }
    }

    #[test]
    fn a_whole_head_that_would_write_elsewhere_is_refused() {
        let refused =
            |head: Head| assert_eq!(Head::decode(&head.encode()), Err(Fault::Senseless), "{head:?}");
        refused(Head { group: MOST_GROUPS as u8, ..arrival() });
        refused(Head { offset: WINDOW as u32, ..arrival() });
        refused(Head { offset: u32::MAX, ..arrival() });
        refused(Head { length: WINDOW as u32 + 1, offset: 0, ..arrival() });
        refused(Head { length: 1, ..Head::of(Kind::Ask) });
        refused(Head::of(Kind::Site));
        refused(Head { site: SITES + 1, ..Head::of(Kind::Site) });
        let mut unknown = arrival().encode();
        unknown[4] = 99;
        let own = checksum(&unknown[4..]);
        unknown[..4].copy_from_slice(&own.to_le_bytes());
        assert_eq!(Head::decode(&unknown), Err(Fault::Senseless));
    }
}
