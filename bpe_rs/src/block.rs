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
        return crate::machine::masks(bytes);
        #[cfg(not(target_arch = "x86_64"))]
        return Self::portable(bytes);
    }

    /// The same on any machine, and what `machine` is tested against.
    #[cfg_attr(target_arch = "x86_64", cfg(test))]
    fn portable(bytes: &[u8; BLOCK]) -> Self {
        let mask = |is: fn(u8) -> bool| {
            let flags = bytes.map(|byte| is(byte) as u8);
            let words = flags.chunks_exact(8).map(|word| {
                let word = u64::from_le_bytes(word.try_into().expect("8 bytes"));
                // The lowest bits of the bytes, one beside the other in the highest byte.
                word.wrapping_mul(0x0102_0408_1020_4080) >> 56
            });
            words.rev().fold(0, |mask, bits| mask << 8 | bits)
        };
        Self {
            letters: mask(|byte| byte.is_ascii_alphabetic()),
            digits: mask(|byte| byte.is_ascii_digit()),
            spaces: mask(|byte| byte == b' '),
            newlines: mask(|byte| byte == b'\n' || byte == b'\r'),
            controls: mask(|byte| (b'\t'..=b'\r').contains(&byte)),
            apostrophes: mask(|byte| byte == b'\''),
            wide: mask(|byte| byte >= 0x80),
        }
    }
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
                let masks = Masks::portable(&bytes);
                assert_eq!(Masks::of(&bytes), masks, "{byte:#x} at {at}");
                let wide = crate::machine::masks_of_64(&bytes).unwrap_or(masks);
                assert_eq!(wide, masks, "{byte:#x} at {at}");
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
