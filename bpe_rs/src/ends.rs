//! Where successive pieces of a text end.

/// Pieces are looked at in groups of this size, or a few more.
const ENOUGH: usize = 256;
/// A block has up to 63 ends, which are written eight at a time.
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

    /// Appends an end at each bit, counted from the last end, of which there is at least one.
    #[inline]
    pub fn push_all(&mut self, mut bits: u64) {
        let start = self.last;
        let mut place = self.len;
        self.len += bits.count_ones() as usize;
        self.last += bits.ilog2() as usize;
        // Eight at a time, for how many there are cannot be foreseen.
        while bits != 0 {
            for end in &mut self.places[place..place + 8] {
                *end = start + bits.trailing_zeros() as usize;
                bits &= bits.wrapping_sub(1);
            }
            place += 8;
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
        ends.push_all(1 << 1 | 1 << 63);
        ends.push_all(0x1ff << 1);
        let expected = [3, 4, 66, 67, 68, 69, 70, 71, 72, 73, 74, 75];
        assert_eq!(ends.as_slice(), expected);
        assert_eq!(ends.last, 75);
        while !ends.is_full() {
            ends.push_all(u64::MAX << 1);
        }
        assert!(ends.as_slice().is_sorted());
    }
}
