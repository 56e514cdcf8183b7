//! Memory that processes share, of which each has a part of its own to compute in.

use std::fmt;
use std::ops::Range;

use bytemuck::Pod;

use crate::memory::{Map, Memory};

/// Memory of several processes, of which one range is this one's own: a slice, to read and write as any other.
///
/// Whoever shares it keeps this protocol: between two meetings of all, each process uses its own range alone, as a slice; or
/// each uses some bytes of all ranges, which nobody else uses meanwhile ([`fold`](Self::fold),
/// [`fold_both`](Self::fold_both), [`copy_own`](Self::copy_own)). A process that breaks it changes numbers under another's
/// hands. The compiler knows nothing of other processes, so that what those then compute with is old or new numbers; numbers
/// are all that can be in here.
pub struct Segment {
    map: Map,
    own: Range<usize>,
}

impl Segment {
    /// Takes a whole mapping, of which `own` is this process's; the descriptor is closed.
    ///
    /// # Panics
    ///
    /// Where the range is not in the memory, or does not begin at a multiple of 64.
    pub fn new(memory: Memory, own: Range<usize>) -> Self {
        let map = memory.into_map();
        assert!(own.start <= own.end && own.end <= map.bytes(), "the range lies in the memory");
        assert!(own.start.is_multiple_of(64), "the range begins at a cache line");
        Self { map, own }
    }

    /// The size of all ranges together.
    pub fn bytes(&self) -> usize {
        self.map.bytes()
    }

    /// This process's own range.
    pub fn own(&self) -> &[u8] {
        // SAFETY: the range lies in the mapping, which lives as long as `self` and which `new` took whole, so that nothing
        // else in this process writes there while `self` is borrowed. That other processes leave it alone meanwhile is the
        // protocol of those who share it.
        unsafe { std::slice::from_raw_parts(self.at(self.own.start, self.own.len()), self.own.len()) }
    }

    /// The same, to write.
    pub fn own_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `own`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.at(self.own.start, self.own.len()), self.own.len()) }
    }

    /// Gives each of `into` the number that lies at its place from `offset` on, in whosever range.
    ///
    /// # Panics
    ///
    /// Where there are not so many, or the offset is not a multiple of their alignment.
    pub fn fold<A, T: Pod>(&self, offset: usize, into: &mut [A], f: impl Fn(&mut A, T)) {
        self.map.fold(offset, into, f);
    }

    /// Gives each of `count` own numbers, the first of which is `place` bytes into the own range, the number at its place
    /// from `theirs` on in another's range, and puts what it becomes there too.
    ///
    /// # Panics
    ///
    /// Where there are not so many, an offset is not a multiple of their alignment, or `theirs` is in the own range.
    pub fn fold_both<T: Pod>(&mut self, place: usize, theirs: usize, count: usize, f: impl Fn(&mut T, T)) {
        let bytes = count * size_of::<T>();
        let (own_at, theirs_at) = (self.at(self.own_at(place, bytes), bytes), self.at(theirs, bytes));
        self.check_foreign(theirs, bytes);
        assert!(own_at.cast::<T>().is_aligned(), "the numbers are aligned");
        // SAFETY: the own range is borrowed exclusively with `self`; any bytes are a `T`.
        let own = unsafe { std::slice::from_raw_parts_mut(own_at.cast::<T>(), count) };
        for (block, own) in own.chunks_mut(AHEAD_BLOCK / size_of::<T>()).enumerate() {
            let begin = block * AHEAD_BLOCK;
            for line in
                (begin + AHEAD..begin + AHEAD + AHEAD_BLOCK).step_by(64).take_while(|&line| line < bytes)
            {
                soon_written(own_at.wrapping_add(line));
                soon_written(theirs_at.wrapping_add(line));
            }
            self.map.fold(theirs + begin, own, &f);
            // SAFETY: as many bytes lie in the mapping from there on, and not in the own range; this process has no reference
            // to them.
            unsafe {
                std::ptr::copy_nonoverlapping(own.as_ptr().cast(), theirs_at.add(begin), size_of_val(own));
            }
        }
    }

    /// Copies `bytes` bytes, `place` bytes into the own range, to `theirs` in another's.
    ///
    /// # Panics
    ///
    /// Where there are not so many, or `theirs` is in the own range.
    pub fn copy_own(&self, place: usize, theirs: usize, bytes: usize) {
        let own = self.own_at(place, bytes);
        self.check_foreign(theirs, bytes);
        // SAFETY: both ranges lie in the mapping, and do not overlap; this process has no reference to the second.
        unsafe { std::ptr::copy_nonoverlapping(self.at(own, bytes), self.at(theirs, bytes), bytes) };
    }

    /// Has the system find pages for a range now instead of at the first use of each, large ones if it likes; what is there
    /// stays. What the system refuses is found later.
    pub fn populate(&self, range: Range<usize>) {
        let range = range.start.min(self.map.bytes())..range.end.min(self.map.bytes());
        self.map.populate(range);
    }

    fn own_at(&self, place: usize, bytes: usize) -> usize {
        let fits = place.checked_add(bytes).is_some_and(|end| end <= self.own.len());
        assert!(fits, "the bytes lie in the own range");
        self.own.start + place
    }

    fn check_foreign(&self, offset: usize, bytes: usize) {
        let end = offset.checked_add(bytes).filter(|&end| end <= self.map.bytes());
        let end = end.expect("the bytes lie in the memory");
        assert!(end <= self.own.start || offset >= self.own.end, "the bytes lie in another's range");
    }

    fn at(&self, offset: usize, bytes: usize) -> *mut u8 {
        self.map.range(offset, bytes).expect("the bytes lie in the memory").as_ptr()
    }
}

/// Has a line brought near, to be written: lines come one after the other otherwise, each when it is needed, and a second time
/// for leave to write.
#[inline(always)]
fn soon_written(line: *const u8) {
    // SAFETY: a hint, which reads and writes nothing and cannot fail, whatever the address.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) line, options(nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

/// How far ahead lines are brought near, and how many bytes of them at once: as measured.
const AHEAD: usize = 4096;
const AHEAD_BLOCK: usize = 512;

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Segment").field("bytes", &self.map.bytes()).field("own", &self.own).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> [Segment; 2] {
        let ours = Memory::new(8192).unwrap();
        let theirs = Memory::from_fd(ours.fd().try_clone_to_owned().unwrap()).unwrap();
        [Segment::new(ours, 0..4096), Segment::new(theirs, 4096..8192)]
    }

    #[test]
    fn each_computes_in_its_own_range_and_with_those_of_others() {
        let [mut ours, mut theirs] = pair();
        ours.populate(0..usize::MAX);
        bytemuck::cast_slice_mut::<_, f32>(ours.own_mut())[..3].copy_from_slice(&[1.0, 2.0, 3.0]);
        bytemuck::cast_slice_mut::<_, f32>(theirs.own_mut())[..3].copy_from_slice(&[10.0, 20.0, 30.0]);
        ours.fold_both::<f32>(4, 4096 + 4, 2, |own, theirs| *own = *own * 2.0 + theirs);
        assert_eq!(bytemuck::cast_slice::<_, f32>(ours.own())[..3], [1.0, 24.0, 36.0]);
        assert_eq!(bytemuck::cast_slice::<_, f32>(theirs.own())[..4], [10.0, 24.0, 36.0, 0.0]);
        bytemuck::cast_slice_mut::<_, f32>(theirs.own_mut())[1] = 20.0;
        ours.copy_own(4, 4096 + 8, 8);
        assert_eq!(bytemuck::cast_slice::<_, f32>(theirs.own())[..4], [10.0, 20.0, 24.0, 36.0]);
        let mut wide = [0.0_f64; 2];
        for offset in [0, 4096] {
            theirs.fold::<f64, f32>(offset, &mut wide, |wide, number| *wide += f64::from(number));
        }
        assert_eq!(wide, [11.0, 44.0]);
    }

    #[test]
    fn nothing_is_touched_outside_and_no_slice_is_borrowed_twice() {
        type Break = fn(&mut Segment);
        let breaks: [Break; 5] = [
            |it| it.fold_both::<u8>(0, 1, 8, |_, _| ()),
            |it| it.fold_both::<u8>(4090, 4096, 8, |_, _| ()),
            |it| it.fold_both::<u32>(0, 8190, 1, |_, _| ()),
            |it| it.copy_own(0, 4000, 100),
            |it| it.fold::<u32, u32>(4097, &mut [0], |_, _| ()),
        ];
        for (index, each) in breaks.into_iter().enumerate() {
            let [mut ours, _] = pair();
            let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| each(&mut ours)));
            assert!(caught.is_err(), "{index}");
        }
    }
}
