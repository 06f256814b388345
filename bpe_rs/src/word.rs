//! Pre-tokens of at most 15 bytes as two machine words: compared and hashed without a loop.

use std::hash::{Hash, Hasher};

/// The longest pre-token that is a [`ShortWord`].
pub const SHORT: usize = 15;

/// Which bits of two integers are the first bytes, by how many; none of a word that is too long.
const MASKS: [[u64; 2]; SHORT + 2] = {
    let mut masks = [[0; 2]; SHORT + 2];
    let mut len = 0;
    while len <= SHORT {
        let mask = (1_u128 << (8 * len)) - 1;
        masks[len] = [mask as u64, (mask >> 64) as u64];
        len += 1;
    }
    masks
};

/// The bytes of a pre-token, then zeros, then its length in the last byte.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct ShortWord([u64; 2]);

impl Hash for ShortWord {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.mixed());
    }
}

impl ShortWord {
    /// `text[start..end]`, if it is short enough.
    #[inline]
    pub fn new(text: &[u8], start: usize, end: usize) -> Option<Self> {
        (end - start <= SHORT).then(|| Self::of(text, start, end))
    }

    /// The same without a branch, and what equals no short word for a longer one.
    #[inline]
    pub fn of(text: &[u8], start: usize, end: usize) -> Self {
        let len = (end - start).min(SHORT + 1);
        // Reading 16 bytes and masking is much faster than copying `len` bytes.
        let bytes: [u8; 16] = match text[start..].first_chunk() {
            Some(bytes) => *bytes,
            None => {
                let mut bytes = [0; 16];
                bytes[..len].copy_from_slice(&text[start..start + len]);
                bytes
            }
        };
        let word = u128::from_le_bytes(bytes);
        let [low, high] = MASKS[len];
        let length = (len as u64) << 56;
        Self([word as u64 & low, (word >> 64) as u64 & high | length])
    }

    /// A hash whose high bits are good.
    #[inline]
    pub fn mixed(self) -> u64 {
        let [low, high] = self.0;
        // Odd constants from the golden ratio and from SplitMix64.
        let mixed = low.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ high.rotate_left(23);
        mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9)
    }

    pub fn len(self) -> usize {
        (self.0[1] >> 56) as usize
    }

    /// The bytes; those after `len` are not part of the word.
    pub fn bytes(self) -> [u8; 16] {
        let [low, high] = self.0;
        (u128::from(low) | u128::from(high) << 64).to_le_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_its_bytes_wherever_it_stands() {
        let text = b"the quick brown fox jumps";
        for start in 0..text.len() {
            for end in start..text.len().min(start + SHORT) + 1 {
                let word = ShortWord::new(text, start, end);
                let alone = ShortWord::new(&text[start..end], 0, end - start);
                let Some(word) = word else {
                    assert_eq!(end - start, SHORT + 1);
                    continue;
                };
                assert!(Some(word) == alone, "{start}..{end}");
                assert_eq!(word.len(), end - start);
                assert_eq!(&word.bytes()[..word.len()], &text[start..end]);
            }
        }
    }

    #[test]
    fn zeros_are_bytes_like_others() {
        assert!(ShortWord::new(b"\0", 0, 1) != ShortWord::new(b"\0\0", 0, 2));
    }
}
