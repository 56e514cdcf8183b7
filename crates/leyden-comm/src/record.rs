//! What a rank is about to do: a record for each collective, which the others compare with theirs before data moves.

use std::fmt;

use crate::element::{ReduceOp, op_name, type_name};

/// Which collective.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(crate) enum Op {
    Barrier = 1,
    Broadcast,
    AllReduce,
    Reduce,
    AllGather,
    ReduceScatter,
    Gather,
    Scatter,
    BroadcastObject,
    Agree,
    OnRankZero,
    NewGroup,
    Bucket,
    AllReduceBucket,
}

impl Op {
    fn name(number: u8) -> &'static str {
        const ALL: [(Op, &str); 14] = [
            (Op::Barrier, "barrier"),
            (Op::Broadcast, "broadcast"),
            (Op::AllReduce, "all_reduce"),
            (Op::Reduce, "reduce"),
            (Op::AllGather, "all_gather"),
            (Op::ReduceScatter, "reduce_scatter"),
            (Op::Gather, "gather"),
            (Op::Scatter, "scatter"),
            (Op::BroadcastObject, "broadcast_object"),
            (Op::Agree, "agree_any"),
            (Op::OnRankZero, "on_rank_zero"),
            (Op::NewGroup, "new_group"),
            (Op::Bucket, "bucket"),
            (Op::AllReduceBucket, "all_reduce_bucket"),
        ];
        ALL.iter().find(|(op, _)| *op as u8 == number).map_or("unknown", |(_, name)| name)
    }
}

/// What all ranks must agree on: two long words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Agreed {
    pub(crate) op: Op,
    /// An [`Element`](crate::Element)'s number; 0 where there are none.
    pub(crate) element: u8,
    pub(crate) reduce: Option<ReduceOp>,
    /// Of those that have one; of a bucket the number.
    pub(crate) root: u16,
    /// How many elements.
    pub(crate) count: u64,
}

impl Agreed {
    pub(crate) fn of(op: Op) -> Self {
        Self { op, element: 0, reduce: None, root: 0, count: 0 }
    }

    pub(crate) fn pack(&self) -> [u64; 2] {
        let reduce = self.reduce.map_or(0, |reduce| reduce as u8);
        let what = u64::from(self.op as u8)
            | u64::from(self.element) << 8
            | u64::from(reduce) << 16
            | u64::from(self.root) << 24;
        [what, self.count]
    }
}

/// A record as it is read from another rank: whatever is in the memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// The collective's number in its group, from 1.
    pub(crate) seq: u64,
    pub(crate) group: u8,
    pub(crate) agreed: [u64; 2],
    /// Where it was called, and its label.
    pub(crate) site: Site,
}

/// Where something was called.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Site {
    pub(crate) label: String,
    /// `src/train.rs:88`.
    pub(crate) place: String,
}

/// `barrier("epoch end")`, `all_reduce(1000 f32, mean)`.
impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [what, count] = self.agreed;
        let byte = |place: u32| (what >> place & 0xff) as u8;
        let (op, element, reduce, root) = (byte(0), byte(8), byte(16), what >> 24 & 0xffff);
        write!(f, "{}(", Op::name(op))?;
        let mut separate = "";
        if !self.site.label.is_empty() {
            write!(f, "{:?}", self.site.label)?;
            separate = ", ";
        }
        if element != 0 {
            write!(f, "{separate}{count} {}", type_name(element))?;
            separate = ", ";
        }
        if reduce != 0 {
            write!(f, "{separate}{}", op_name(reduce))?;
            separate = ", ";
        }
        let rooted = [Op::Broadcast, Op::Reduce, Op::Gather, Op::Scatter, Op::BroadcastObject];
        if rooted.iter().any(|rooted| *rooted as u8 == op) {
            write!(f, "{separate}root {root}")?;
        }
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_like_the_call() {
        let agreed =
            Agreed { element: 1, reduce: Some(ReduceOp::Mean), count: 1000, ..Agreed::of(Op::AllReduce) };
        let site = Site { label: "bucket 3".to_owned(), place: "src/a.rs:1".to_owned() };
        let record = Record { seq: 1, group: 0, agreed: agreed.pack(), site };
        assert_eq!(record.to_string(), r#"all_reduce("bucket 3", 1000 f32, mean)"#);
        let agreed = Agreed { root: 300, ..Agreed::of(Op::BroadcastObject) };
        let record = Record { agreed: agreed.pack(), site: Site::default(), ..record };
        assert_eq!(record.to_string(), "broadcast_object(root 300)");
    }
}
