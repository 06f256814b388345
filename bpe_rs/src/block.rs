//! The kinds of 64 bytes at a time, as bit masks: bit i is byte i.

pub const BLOCK: usize = 64;

/// Which bytes of a block are what; a byte of none of these is another ASCII character.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Masks {
    /// `[A-Za-z]`
    pub letters: u64,
    /// `[0-9]`
    pub digits: u64,
    pub spaces: u64,
    /// `[\r\n]`
    pub newlines: u64,
    /// `[\t\r\n\v\f]`
    pub controls: u64,
    pub apostrophes: u64,
    /// From 0x80 on.
    pub wide: u64,
}

impl Masks {
    #[inline]
    pub fn of(bytes: &[u8; BLOCK]) -> Self {
        #[cfg(target_arch = "x86_64")]
        return sse2(bytes);
        #[cfg(not(target_arch = "x86_64"))]
        return portable(bytes);
    }
}

/// Signed comparisons, as SSE2 has them: with the range's end moved to 127, what is below the range
/// or has the high bit set is less than its start.
const fn end_at_127(end: u8) -> i8 {
    127 - end as i8
}
const fn start_of(first: u8, last: u8) -> i8 {
    127 - (last - first) as i8
}

#[cfg_attr(target_arch = "x86_64", allow(dead_code))]
pub fn portable(bytes: &[u8; BLOCK]) -> Masks {
    let mask = |is: fn(u8) -> bool| {
        let flags = bytes.map(|byte| is(byte) as u8);
        let (words, _) = flags.as_chunks::<8>();
        let bits = words.iter().map(|word| {
            // The eight lowest bits of the bytes, one beside the other in the highest byte.
            u64::from_le_bytes(*word).wrapping_mul(0x0102_0408_1020_4080) >> 56
        });
        bits.rev().fold(0, |mask, bits| mask << 8 | bits)
    };
    Masks {
        letters: mask(|byte| byte.is_ascii_alphabetic()),
        digits: mask(|byte| byte.is_ascii_digit()),
        spaces: mask(|byte| byte == b' '),
        newlines: mask(|byte| byte == b'\n' || byte == b'\r'),
        controls: mask(|byte| (b'\t'..=b'\r').contains(&byte)),
        apostrophes: mask(|byte| byte == b'\''),
        wide: mask(|byte| byte >= 0x80),
    }
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn sse2(bytes: &[u8; BLOCK]) -> Masks {
    use std::arch::x86_64::*;
    let mut masks = Masks::default();
    for (i, part) in bytes.chunks_exact(16).enumerate() {
        let mut put = |mask: &mut u64, bits: i32| *mask |= u64::from(bits as u16) << (16 * i);
        // SAFETY: SSE2 is part of every x86_64, and a part has 16 bytes.
        unsafe {
            let bytes = _mm_loadu_si128(part.as_ptr().cast());
            let equal = |byte: u8| _mm_cmpeq_epi8(bytes, _mm_set1_epi8(byte as i8));
            let within = |bytes, first, last| {
                let moved = _mm_add_epi8(bytes, _mm_set1_epi8(end_at_127(last)));
                _mm_movemask_epi8(_mm_cmpgt_epi8(moved, _mm_set1_epi8(start_of(first, last) - 1)))
            };
            let lower = _mm_or_si128(bytes, _mm_set1_epi8(0x20));
            put(&mut masks.letters, within(lower, b'a', b'z'));
            put(&mut masks.digits, within(bytes, b'0', b'9'));
            put(&mut masks.spaces, _mm_movemask_epi8(equal(b' ')));
            let newlines = _mm_or_si128(equal(b'\n'), equal(b'\r'));
            put(&mut masks.newlines, _mm_movemask_epi8(newlines));
            put(&mut masks.controls, within(bytes, b'\t', b'\r'));
            put(&mut masks.apostrophes, _mm_movemask_epi8(equal(b'\'')));
            put(&mut masks.wide, _mm_movemask_epi8(bytes));
        }
    }
    masks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_in_every_place_has_its_kind() {
        for byte in 0..=u8::MAX {
            for at in 0..BLOCK {
                let mut bytes = [b'~'; BLOCK];
                bytes[at] = byte;
                let masks = portable(&bytes);
                assert_eq!(Masks::of(&bytes), masks, "{byte:#x} at {at}");
                let bit = |is: bool| u64::from(is) << at;
                assert_eq!(masks.letters, bit(byte.is_ascii_alphabetic()));
                assert_eq!(masks.digits, bit(byte.is_ascii_digit()));
                assert_eq!(masks.spaces, bit(byte == b' '));
                assert_eq!(masks.newlines, bit(b"\r\n".contains(&byte)));
                assert_eq!(masks.controls, bit(b"\t\r\n\x0b\x0c".contains(&byte)));
                assert_eq!(masks.apostrophes, bit(byte == b'\''));
                assert_eq!(masks.wide, bit(!byte.is_ascii()));
            }
        }
    }
}
