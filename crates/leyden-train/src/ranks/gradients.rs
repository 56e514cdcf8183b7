//! Gradients of all ranks, summed: in flat buckets, in one order, so that each rank has the same bits.

use std::ops::{Deref, DerefMut};

use leyden_process::{Code, Error, Result, exit};

use super::comm;
use crate::config::{Ddp, TrainerConfig, Uneven};
use crate::learner::{Gradient, GradientValues, HasGradients};

/// What summing needs from step to step.
#[derive(Debug, Default)]
pub(crate) struct Gradients {
    ddp: Ddp,
    /// Whether sums follow a fixed tree over virtual ranks.
    tree: bool,
    /// How many virtual ranks this one stands for.
    parts: usize,
    /// The sums of each of them in this window.
    kept: Vec<Flat>,
    flat: Flat,
    /// The pairs of each round of the tree that this rank is in.
    pairs: Option<Vec<comm::Group>>,
}

/// The gradients of a whole model, one after another.
#[derive(Debug, Default)]
struct Flat {
    single: Numbers,
    double: Vec<f64>,
    /// The parameters that no gradient has reached.
    missing: Vec<String>,
    used: bool,
}

/// Numbers of this rank: in memory of its own, or in a bucket, where they are reduced without a copy.
#[derive(Debug)]
enum Numbers {
    Own(Vec<f32>),
    Bucket(comm::Bucket<f32>),
}

impl Gradients {
    pub(crate) fn new(config: &TrainerConfig, parts: usize) -> Self {
        Self { ddp: config.strategy.ddp(), tree: config.virtual_ranks.is_some(), parts, ..Self::default() }
    }

    pub(crate) fn uneven(&self) -> Uneven {
        self.ddp.uneven
    }

    /// Whether the sums of virtual ranks are apart from the learner's.
    pub(crate) fn are_kept(&self) -> bool {
        !self.kept.is_empty()
    }

    /// Takes the learner's gradients as those of virtual rank `part` of this one's, and adds them to its others of this window.
    pub(crate) fn keep(&mut self, learner: &mut dyn HasGradients, part: usize) -> Result<()> {
        if self.kept.len() <= part {
            self.kept.resize_with(part + 1, Flat::default);
        }
        let kept = &mut self.kept[part];
        let add = std::mem::replace(&mut kept.used, true);
        kept.take(learner, add)?;
        learner.clear_gradients();
        Ok(())
    }

    /// Gives the learner the sum over all virtual ranks, which this one stands for.
    pub(crate) fn finish(&mut self, learner: &mut dyn HasGradients, accumulated: u32) -> Result<u32> {
        if accumulated > 0 {
            self.sum_kept().give(learner)?;
        }
        Ok(accumulated)
    }

    /// The sum over this rank's virtual ranks, pair by pair: `(v0 + v1) + (v2 + v3)`.
    fn sum_kept(&mut self) -> &Flat {
        let sums = &mut self.kept;
        sums.resize_with(self.parts, Flat::default);
        // A virtual rank that has skipped all its batches adds zeros.
        if let Some(used) = sums.iter().position(|sum| sum.used) {
            for part in (0..sums.len()).filter(|&part| part != used) {
                if !sums[part].used {
                    sums[part] = sums[used].zeros();
                }
            }
        }
        sums.iter_mut().for_each(|sum| sum.used = false);
        let mut distance = 1;
        while distance < sums.len() {
            for first in (0..sums.len()).step_by(2 * distance) {
                let (low, high) = sums.split_at_mut(first + distance);
                low[first].add(&high[0]);
            }
            distance *= 2;
        }
        &sums[0]
    }

    /// See [`Rank::reduce_gradients`](super::Rank::reduce_gradients).
    pub(crate) fn reduce(
        &mut self,
        comm: &mut comm::Rank,
        learner: &mut dyn HasGradients,
        accumulated: u32,
    ) -> Result<u32> {
        let mut flat = std::mem::take(&mut self.flat);
        match (self.are_kept(), accumulated) {
            (true, 1..) => flat.copy(self.sum_kept()),
            _ => {
                if accumulated == 0 {
                    // What others have, this rank adds zeros to.
                    learner.zero_gradients(&|_| true);
                }
                flat.take(learner, false)?;
                if self.ddp.find_unused_parameters && !flat.missing.is_empty() {
                    let missing = flat.missing.clone();
                    learner.zero_gradients(&|_| true);
                    flat.take(learner, false)?;
                    flat.missing = missing;
                }
            }
        }
        let in_bucket = matches!(flat.single, Numbers::Bucket(_));
        let header = [i64::from(accumulated), flat.missing_hash(), i64::from(in_bucket)];
        let headers = comm.all_gather_in(comm::Group::WORLD, &header, "gradients: what each rank has")?;
        let headers = headers.as_chunks::<3>().0;
        let total: i64 = headers.iter().map(|[accumulated, ..]| accumulated).sum();
        if total > 0 {
            let mut missing =
                headers.iter().filter(|[accumulated, ..]| *accumulated > 0).map(|[_, hash, _]| *hash);
            let first = missing.next();
            let equal = missing.all(|other| Some(other) == first);
            if !equal || headers.iter().any(|[accumulated, ..]| *accumulated == 0) {
                self.settle_missing(comm, &mut flat, accumulated, equal)?;
            }
            // One rank's may have moved out, for room that a gradient needed which was missing.
            let in_buckets = headers.iter().all(|[.., in_bucket]| *in_bucket == 1);
            self.sum(comm, &mut flat, in_buckets)?;
            if !flat.missing.is_empty() {
                learner.clear_gradients();
            }
            flat.give(learner)?;
        } else {
            learner.clear_gradients();
        }
        self.flat = flat;
        Ok(u32::try_from(total).unwrap_or(u32::MAX))
    }

    /// Not all ranks have gradients of the same parameters: those that one has, all get.
    fn settle_missing(
        &self,
        comm: &mut comm::Rank,
        flat: &mut Flat,
        accumulated: u32,
        equal: bool,
    ) -> Result<()> {
        let mine = (accumulated > 0).then(|| flat.missing.clone());
        let all = comm.all_gather_object(&mine, "gradients: parameters without one")?;
        if !equal && !self.ddp.find_unused_parameters {
            return Err(unused(&all));
        }
        let missing = |name: &String| all.iter().flatten().all(|missing| missing.contains(name));
        flat.missing =
            all.iter().flatten().next().into_iter().flatten().filter(|name| missing(name)).cloned().collect();
        Ok(())
    }

    fn sum(&mut self, comm: &mut comm::Rank, flat: &mut Flat, in_buckets: bool) -> Result<()> {
        let groups = self.groups(comm)?;
        let of_all = groups == [comm::Group::WORLD];
        if of_all && !in_buckets && !flat.single.is_empty() {
            let mut bucket = comm.bucket(flat.single.len(), "gradients")?;
            bucket.copy_from_slice(&flat.single);
            flat.single = Numbers::Bucket(bucket);
        }
        let bytes = self.ddp.bucket_bytes.max(size_of::<f64>());
        let buckets = flat.single.len().div_ceil(bytes / size_of::<f32>());
        for group in groups {
            match &mut flat.single {
                Numbers::Bucket(bucket) if of_all && bucket.is_shared() => {
                    comm.all_reduce_bucket(bucket, comm::ReduceOp::Sum)?;
                }
                single => {
                    for (index, part) in single.chunks_mut(bytes / size_of::<f32>()).enumerate() {
                        let label = bucket_label(index, buckets);
                        comm.all_reduce_in(group, part, comm::ReduceOp::Sum, &label)?;
                    }
                }
            }
            for bucket in flat.double.chunks_mut(bytes / size_of::<f64>()) {
                comm.all_reduce_in(group, bucket, comm::ReduceOp::Sum, "gradients in f64")?;
            }
        }
        Ok(())
    }

    /// The groups to sum over, one after another: all ranks at once; or, so that the sum is the same for any number of ranks,
    /// the two of each pair that the tree over virtual ranks has.
    fn groups(&mut self, comm: &mut comm::Rank) -> Result<Vec<comm::Group>> {
        let size = comm.world_size();
        if !self.tree || size == 2 {
            return Ok(vec![comm::Group::WORLD]);
        }
        if let Some(pairs) = &self.pairs {
            return Ok(pairs.clone());
        }
        let mut mine = Vec::new();
        let mut distance = 1;
        while distance < size {
            for low in (0..size).filter(|rank| rank & distance == 0) {
                let group = comm.new_group(&[low, low + distance])?;
                if comm.rank() & !distance == low {
                    mine.push(group);
                }
            }
            distance *= 2;
        }
        self.pairs = Some(mine.clone());
        Ok(mine)
    }
}

/// Most models fit into one.
fn bucket_label(index: usize, buckets: usize) -> std::borrow::Cow<'static, str> {
    match buckets {
        1 => "gradients".into(),
        _ => format!("gradients, bucket {} of {buckets}", index + 1).into(),
    }
}

impl Flat {
    /// Copies the learner's gradients, or adds them; those that are missing are zeros.
    fn take(&mut self, learner: &mut dyn HasGradients, add: bool) -> Result<()> {
        let (mut single, mut double) = (0, 0);
        let missing_before = std::mem::take(&mut self.missing);
        learner.visit_gradients(&mut |Gradient { path, shape, values }| {
            let len = shape.iter().product::<usize>();
            match values {
                Some(GradientValues::F32(values)) => {
                    self.single.make_room(single + len);
                    put(&mut self.single[single..][..len], values, add, |sum, value| *sum += value);
                    single += len;
                }
                Some(GradientValues::F64(values)) => {
                    if self.double.len() < double + len {
                        self.double.resize(double + len, 0.0);
                    }
                    put(&mut self.double[double..][..len], values, add, |sum, value| *sum += value);
                    double += len;
                }
                None => {
                    // Which type it would have is not known: those that are missing have no place until all agree.
                    if !add || missing_before.iter().any(|name| name == path) {
                        self.missing.push(path.to_owned());
                    }
                    if !add {
                        self.single.make_room(single + len);
                        self.single[single..][..len].fill(0.0);
                    }
                    single += len;
                }
            }
            Ok(())
        })?;
        self.single.set_len(single);
        self.double.truncate(double);
        Ok(())
    }

    /// Gives the learner these as its gradients.
    fn give(&self, learner: &mut dyn HasGradients) -> Result<()> {
        learner.zero_gradients(&|path| !self.missing.iter().any(|name| name == path));
        let (mut single, mut double) = (0, 0);
        learner.visit_gradients(&mut |Gradient { shape, values, .. }| {
            let len = shape.iter().product::<usize>();
            match values {
                Some(GradientValues::F64(values)) => {
                    values.copy_from_slice(&self.double[double..][..len]);
                    double += len;
                }
                Some(GradientValues::F32(values)) => {
                    values.copy_from_slice(&self.single[single..][..len]);
                    single += len;
                }
                None => single += len,
            }
            Ok(())
        })
    }

    fn zeros(&self) -> Self {
        let single = Numbers::Own(vec![0.0; self.single.len()]);
        Self { single, double: vec![0.0; self.double.len()], missing: self.missing.clone(), used: self.used }
    }

    fn copy(&mut self, other: &Self) {
        self.single.set_len(other.single.len());
        self.single.copy_from_slice(&other.single);
        self.double.clone_from(&other.double);
        self.missing.clone_from(&other.missing);
    }

    fn add(&mut self, other: &Self) {
        self.single.iter_mut().zip(&*other.single).for_each(|(sum, value)| *sum += value);
        self.double.iter_mut().zip(&other.double).for_each(|(sum, value)| *sum += value);
        self.missing.retain(|name| other.missing.contains(name));
    }

    fn missing_hash(&self) -> i64 {
        let bytes = self.missing.iter().flat_map(|name| [name.as_bytes(), b"\n"]).flatten();
        bytes
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
            })
            .cast_signed()
    }
}

impl Numbers {
    fn make_room(&mut self, len: usize) {
        self.set_len(len.max(self.len()));
    }

    /// A bucket has one length: with another one, its numbers move out.
    fn set_len(&mut self, len: usize) {
        if self.len() == len {
            return;
        }
        if let Self::Bucket(bucket) = self {
            *self = Self::Own(bucket.to_vec());
        }
        if let Self::Own(numbers) = self {
            numbers.resize(len, 0.0);
        }
    }
}

impl Default for Numbers {
    fn default() -> Self {
        Self::Own(Vec::new())
    }
}

impl Deref for Numbers {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Self::Own(numbers) => numbers,
            Self::Bucket(bucket) => bucket,
        }
    }
}

impl DerefMut for Numbers {
    fn deref_mut(&mut self) -> &mut [f32] {
        match self {
            Self::Own(numbers) => numbers,
            Self::Bucket(bucket) => bucket,
        }
    }
}

/// Copies `values` to a place of their number, or adds them there.
fn put<T: Copy>(place: &mut [T], values: &[T], add: bool, plus: impl Fn(&mut T, T)) {
    match add {
        true => place.iter_mut().zip(values).for_each(|(sum, value)| plus(sum, *value)),
        false => place.copy_from_slice(values),
    }
}

/// The error of a parameter that takes part in the loss on some ranks alone.
fn unused(all: &[Option<Vec<String>>]) -> Error {
    let contributing =
        || all.iter().enumerate().filter_map(|(rank, missing)| Some((rank, missing.as_ref()?)));
    let everywhere = |name: &String| contributing().all(|(_, missing)| missing.contains(name));
    contributing()
        .map(|(rank, missing)| (rank, missing.iter().filter(|name| !everywhere(name)).cloned().collect::<Vec<_>>()))
        .filter(|(_, missing)| !missing.is_empty())
        .fold(
            Error::new(UNUSED_PARAMETER, "parameters have a gradient on some ranks alone"),
            |error, (rank, missing)| error.at(format!("without one on rank {rank}"), missing.join(", ")),
        )
        .why("the loss of that rank does not depend on them: its step took another branch")
        .hint("use every parameter in each step, add those that are not used with a factor of 0, or freeze them")
        .hint("or `Ddp::default().find_unused_parameters(true)`: a rank without a gradient then counts as zeros")
}

/// A parameter has a gradient on some ranks alone.
pub const UNUSED_PARAMETER: Code = Code::new("D0402", exit::TRAINING_FAILED);
