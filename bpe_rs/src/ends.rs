//! Where successive pieces of a text end.

use crate::block::BLOCK;

/// Pieces are looked at in groups of this size, or a few more.
const ENOUGH: usize = 256;
/// A block has up to 63 ends, which are written eight or sixteen at a time.
pub const MOST: usize = ENOUGH + 72;

/// The ends of the pieces after another one.
pub struct Ends {
    places: [usize; MOST],
    len: usize,
    /// Where the last piece ends, be it of these or before them.
    pub last: usize,
}

impl Default for Ends {
    fn default() -> Self {
        Self {
            places: [0; MOST],
            len: 0,
            last: 0,
        }
    }
}

impl Ends {
    pub fn as_slice(&self) -> &[usize] {
        &self.places[..self.len]
    }

    pub fn clear(&mut self) {
        self.len = 0;
    }

    #[inline]
    pub fn is_full(&self) -> bool {
        self.len >= ENOUGH
    }

    #[inline]
    pub fn push(&mut self, end: usize) {
        self.places[self.len] = end;
        self.len += 1;
        self.last = end;
    }

    /// Appends an end at each bit, counted from `start`, of which there is at least one.
    #[inline]
    pub fn push_all(&mut self, start: usize, mut bits: u64) {
        let mut place = self.len;
        self.len += bits.count_ones() as usize;
        self.last = start + bits.ilog2() as usize;
        // Eight at a time, for how many there are cannot be foreseen.
        while bits != 0 {
            for end in &mut self.places[place..place + 8] {
                *end = start + bits.trailing_zeros() as usize;
                bits &= bits.wrapping_sub(1);
            }
            place += 8;
        }
    }

    /// The same, given the places of the bits.
    #[inline]
    pub fn push_places(&mut self, start: usize, bits: u64, places: &[u8; BLOCK]) {
        let mut place = self.len;
        self.len += bits.count_ones() as usize;
        self.last = start + bits.ilog2() as usize;
        for some in places.as_chunks::<16>().0 {
            for (end, &at) in self.places[place..place + 16].iter_mut().zip(some) {
                *end = start + usize::from(at);
            }
            place += 16;
            if place >= self.len {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_counted_from_the_last() {
        let mut ends = Ends::default();
        ends.push(3);
        ends.push_all(ends.last, 1 << 1 | 1 << 63);
        ends.push_all(ends.last, 0x1ff << 1);
        let expected = [3, 4, 66, 67, 68, 69, 70, 71, 72, 73, 74, 75];
        assert_eq!(ends.as_slice(), expected);
        assert_eq!(ends.last, 75);
        while !ends.is_full() {
            ends.push_all(ends.last, u64::MAX << 1);
        }
        assert!(ends.as_slice().is_sorted());
    }

    #[test]
    fn places_of_bits_are_those_of_the_processor() {
        let mut bits = 0x9e37_79b9_7f4a_7c15_u64;
        for round in 0..1_000 {
            // From one bit to nearly all
            let few = bits.rotate_left(round) & bits.rotate_left(7 * round);
            for bits in [few, bits, !few, 1 << (round % 64), u64::MAX] {
                let (mut ends, mut same) = (Ends::default(), Ends::default());
                let Some(places) = crate::machine::places_of_64(bits | 1) else {
                    return;
                };
                ends.push_all(100, bits | 1);
                same.push_places(100, bits | 1, &places);
                assert_eq!(ends.as_slice(), same.as_slice(), "{bits:#x}");
                assert_eq!(ends.last, same.last, "{bits:#x}");
            }
            bits = bits.wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ bits >> 31;
        }
    }
}
