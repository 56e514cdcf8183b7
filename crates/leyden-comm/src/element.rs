//! Numbers that ranks exchange, and the arithmetic of reductions.
//!
//! Sums are in rank order: `((r0 + r1) + r2) + …`, element by element, so that each rank, each run and each transport
//! gives the same bits. Half types are added in `f32` and rounded once, at the end. A mean is the sum, and then one
//! division by the number of ranks. Minimum and maximum give NaN where any rank has one (as PyTorch's do). Sums and
//! products of integers wrap around.

use bytemuck::Pod;
use half::{bf16, f16};

/// What is made of the elements of all ranks (PyTorch: `ReduceOp`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ReduceOp {
    /// Their sum.
    Sum = 1,
    /// Their sum, divided by their number; for floats alone.
    Mean,
    /// The smallest.
    Min,
    /// The largest.
    Max,
    /// Their product.
    Prod,
}

/// A number that ranks exchange.
pub trait Element: Pod + Send + Sync + PartialEq + std::fmt::Debug + sealed::Sealed {
    /// Its name, as NumPy has it.
    const NAME: &'static str;
    #[doc(hidden)]
    const NUMBER: u8;
    #[doc(hidden)]
    const IS_FLOAT: bool;
    /// What partial results are kept in.
    #[doc(hidden)]
    type Partial: Copy + Default + Send;
    #[doc(hidden)]
    fn widen(self) -> Self::Partial;
    #[doc(hidden)]
    fn combine(op: ReduceOp, partial: Self::Partial, next: Self) -> Self::Partial;
    #[doc(hidden)]
    fn finish(op: ReduceOp, partial: Self::Partial, ranks: usize) -> Self;
}

/// Places of results, each with the number of one more rank that belongs to it, wherever that lies.
pub(crate) trait Pairs<A, T> {
    fn each(self, f: impl Fn(&mut A, T));
}

/// Begins partial results with the elements of the first rank.
pub(crate) fn widen<T: Element>(pairs: impl Pairs<T::Partial, T>) {
    pairs.each(|partial, first| *partial = first.widen());
}

/// Folds the elements of one more rank into partial results.
pub(crate) fn fold<T: Element>(op: ReduceOp, pairs: impl Pairs<T::Partial, T>) {
    // One loop for each, so that the compiler makes lanes of it.
    match op {
        ReduceOp::Sum | ReduceOp::Mean => pairs.each(|a, b| *a = T::combine(ReduceOp::Sum, *a, b)),
        ReduceOp::Min => pairs.each(|a, b| *a = T::combine(ReduceOp::Min, *a, b)),
        ReduceOp::Max => pairs.each(|a, b| *a = T::combine(ReduceOp::Max, *a, b)),
        ReduceOp::Prod => pairs.each(|a, b| *a = T::combine(ReduceOp::Prod, *a, b)),
    }
}

/// Reduces the elements of two ranks, in place of one's: the same arithmetic in a single pass. `own_first`: whether that one
/// is the first of both.
pub(crate) fn reduce_two<T: Element>(op: ReduceOp, pairs: impl Pairs<T, T>, own_first: bool) {
    fn pass<T: Element>(pairs: impl Pairs<T, T>, own_first: bool, reduce: impl Fn(T, T) -> T) {
        if own_first {
            pairs.each(|own, other| *own = reduce(*own, other));
        } else {
            pairs.each(|own, other| *own = reduce(other, *own));
        }
    }
    macro_rules! with {
        ($op:expr) => {
            pass(pairs, own_first, |a: T, b| T::finish($op, T::combine($op, a.widen(), b), 2))
        };
    }
    match op {
        ReduceOp::Sum => with!(ReduceOp::Sum),
        ReduceOp::Mean => with!(ReduceOp::Mean),
        ReduceOp::Min => with!(ReduceOp::Min),
        ReduceOp::Max => with!(ReduceOp::Max),
        ReduceOp::Prod => with!(ReduceOp::Prod),
    }
}

/// Makes results of partial ones.
pub(crate) fn finish<T: Element>(op: ReduceOp, partials: &[T::Partial], results: &mut [T], ranks: usize) {
    fn each<T: Element>(partials: &[T::Partial], results: &mut [T], finish: impl Fn(T::Partial) -> T) {
        for (result, partial) in results.iter_mut().zip(partials) {
            *result = finish(*partial);
        }
    }
    match op {
        ReduceOp::Mean => each(partials, results, |partial| T::finish(ReduceOp::Mean, partial, ranks)),
        _ => each(partials, results, |partial| T::finish(ReduceOp::Sum, partial, ranks)),
    }
}

/// Both at hand.
impl<A, T: Copy> Pairs<A, T> for (&mut [A], &[T]) {
    fn each(self, f: impl Fn(&mut A, T)) {
        self.0.iter_mut().zip(self.1).for_each(|(place, number)| f(place, *number));
    }
}

macro_rules! float {
    ($type:ty, $partial:ty, $name:literal, $number:literal, $widen:expr, $narrow:expr) => {
        impl sealed::Sealed for $type {}

        impl Element for $type {
            const NAME: &'static str = $name;
            const NUMBER: u8 = $number;
            const IS_FLOAT: bool = true;
            type Partial = $partial;

            #[inline]
            fn widen(self) -> $partial {
                $widen(self)
            }

            #[inline]
            fn combine(op: ReduceOp, partial: $partial, next: Self) -> $partial {
                let next: $partial = $widen(next);
                match op {
                    ReduceOp::Sum | ReduceOp::Mean => partial + next,
                    ReduceOp::Prod => partial * next,
                    // NaN wins, whichever side it is on.
                    ReduceOp::Min if next < partial || next.is_nan() => next,
                    ReduceOp::Max if next > partial || next.is_nan() => next,
                    ReduceOp::Min | ReduceOp::Max => partial,
                }
            }

            #[inline]
            fn finish(op: ReduceOp, partial: $partial, ranks: usize) -> Self {
                match op {
                    ReduceOp::Mean => $narrow(partial / ranks as $partial),
                    _ => $narrow(partial),
                }
            }
        }
    };
}

macro_rules! integer {
    ($type:ty, $name:literal, $number:literal) => {
        impl sealed::Sealed for $type {}

        impl Element for $type {
            const NAME: &'static str = $name;
            const NUMBER: u8 = $number;
            const IS_FLOAT: bool = false;
            type Partial = $type;

            #[inline]
            fn widen(self) -> $type {
                self
            }

            #[inline]
            fn combine(op: ReduceOp, partial: $type, next: Self) -> $type {
                match op {
                    ReduceOp::Sum | ReduceOp::Mean => partial.wrapping_add(next),
                    ReduceOp::Prod => partial.wrapping_mul(next),
                    ReduceOp::Min => partial.min(next),
                    ReduceOp::Max => partial.max(next),
                }
            }

            #[inline]
            fn finish(_: ReduceOp, partial: $type, _: usize) -> Self {
                partial
            }
        }
    };
}

float!(f32, f32, "f32", 1, |x| x, |x| x);
float!(f64, f64, "f64", 2, |x| x, |x| x);
float!(f16, f32, "f16", 3, f16::to_f32, f16::from_f32);
float!(bf16, f32, "bf16", 4, bf16::to_f32, bf16::from_f32);
integer!(i8, "i8", 5);
integer!(i16, "i16", 6);
integer!(i32, "i32", 7);
integer!(i64, "i64", 8);
integer!(u8, "u8", 9);

/// The name of a type with this number.
pub(crate) fn type_name(number: u8) -> &'static str {
    match number {
        f32::NUMBER => f32::NAME,
        f64::NUMBER => f64::NAME,
        f16::NUMBER => f16::NAME,
        bf16::NUMBER => bf16::NAME,
        i8::NUMBER => i8::NAME,
        i16::NUMBER => i16::NAME,
        i32::NUMBER => i32::NAME,
        i64::NUMBER => i64::NAME,
        u8::NUMBER => u8::NAME,
        _ => "",
    }
}

/// The name of a reduction with this number.
pub(crate) fn op_name(number: u8) -> &'static str {
    [ReduceOp::Sum, ReduceOp::Mean, ReduceOp::Min, ReduceOp::Max, ReduceOp::Prod]
        .into_iter()
        .find(|op| *op as u8 == number)
        .map_or("", |op| match op {
            ReduceOp::Sum => "sum",
            ReduceOp::Mean => "mean",
            ReduceOp::Min => "min",
            ReduceOp::Max => "max",
            ReduceOp::Prod => "prod",
        })
}

mod sealed {
    pub trait Sealed {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reduce<T: Element>(op: ReduceOp, ranks: &[T]) -> T {
        let mut partial = [ranks[0].widen()];
        for &next in &ranks[1..] {
            fold::<T>(op, (&mut partial[..], &[next][..]));
        }
        T::finish(op, partial[0], ranks.len())
    }

    #[test]
    fn sums_are_in_rank_order_and_a_mean_divides_once() {
        let ranks = [1e8_f32, 1.0, -1e8, 1.0];
        assert_eq!(reduce(ReduceOp::Sum, &ranks), ((1e8_f32 + 1.0) - 1e8) + 1.0);
        assert_eq!(reduce(ReduceOp::Mean, &[1.0_f32, 2.0, 4.0]), 7.0 / 3.0);
        assert_eq!(reduce(ReduceOp::Prod, &[2.0_f64, 3.0, 4.0]), 24.0);
    }

    #[test]
    fn half_types_are_added_in_full_and_rounded_once() {
        let ranks = [2048.0, 1.0, 1.0].map(f16::from_f32);
        // Rounded at each step it would stay at 2048.
        assert_eq!(reduce(ReduceOp::Sum, &ranks), f16::from_f32(2050.0));
        let ranks = [256.0, 1.0, 1.0].map(bf16::from_f32);
        assert_eq!(reduce(ReduceOp::Sum, &ranks), bf16::from_f32(258.0));
    }

    #[test]
    fn minimum_and_maximum_tell_of_a_nan_of_any_rank() {
        for ranks in [[f32::NAN, 1.0, 2.0], [1.0, f32::NAN, 2.0], [1.0, 2.0, f32::NAN]] {
            assert!(reduce(ReduceOp::Min, &ranks).is_nan() && reduce(ReduceOp::Max, &ranks).is_nan());
        }
        assert_eq!(reduce(ReduceOp::Min, &[3_i8, -4, 5]), -4);
        assert_eq!(reduce(ReduceOp::Max, &[3_u8, 200, 5]), 200);
    }

    #[test]
    fn integers_wrap_around() {
        assert_eq!(reduce(ReduceOp::Sum, &[i8::MAX, 1]), i8::MIN);
        assert_eq!(reduce(ReduceOp::Prod, &[i64::MAX, 2]), -2);
    }
}
