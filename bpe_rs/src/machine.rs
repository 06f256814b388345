//! What only the machine can do: all unsafe code of the tokenizer. Without it results are the same.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
use crate::block::{BLOCK, Masks};

/// The kinds of bytes, 16 at a time; `Masks::portable` is its twin.
#[cfg(target_arch = "x86_64")]
#[inline]
pub fn masks(bytes: &[u8; BLOCK]) -> Masks {
    use std::arch::x86_64::*;
    let mut masks = Masks::default();
    for (i, part) in bytes.chunks_exact(16).enumerate() {
        let put = |mask: &mut u64, bits: i32| *mask |= u64::from(bits as u16) << (16 * i);
        // SAFETY: SSE2 is part of every x86_64, and a part has 16 bytes.
        unsafe {
            let bytes = _mm_loadu_si128(part.as_ptr().cast());
            let equal = |byte: u8| _mm_cmpeq_epi8(bytes, _mm_set1_epi8(byte as i8));
            // Comparisons are of signed bytes: with the last of a range moved to 127, what is
            // outside is less than the first.
            let within = |bytes, first: u8, last: u8| {
                let moved = _mm_add_epi8(bytes, _mm_set1_epi8(127 - last as i8));
                let before = _mm_set1_epi8(126 - (last - first) as i8);
                _mm_movemask_epi8(_mm_cmpgt_epi8(moved, before))
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

/// Asks for an item that is read soon.
#[inline]
pub fn prefetch<T>(items: &[T], at: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: an address is all that it takes; nothing is read.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>((&raw const items[at]).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (items, at);
}

/// Asks for huge pages for items that are read in no order: fewer addresses to translate.
pub fn huge_pages<T>(items: &mut [T]) {
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 1 << 21;
        let bytes = items.as_ptr_range();
        let first = (bytes.start as usize).next_multiple_of(PAGE);
        let end = bytes.end as usize / PAGE * PAGE;
        if first < end {
            // SAFETY: these pages are within the items, and how large they are changes nothing.
            unsafe { libc::madvise(first as *mut _, end - first, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = items;
}
