//! What only the machine can do: all unsafe code of the tokenizer. Without it results are the same.
#![allow(unsafe_code)]

use crate::TokenId;
use crate::apply_merges::Merges;
#[cfg(target_arch = "x86_64")]
use crate::block::BLOCK;
use crate::block::Masks;
use crate::cache::Cache;
use crate::ends::Ends;
use crate::scan::Scanner;

/// `Scanner::fill` with what this processor has.
#[inline]
pub fn fill(scanner: &Scanner, text: &str, ends: &mut Ends) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512vbmi2,avx512bw,avx512f,bmi1,bmi2,lzcnt,popcnt")]
        fn with_vbmi2(scanner: &Scanner, text: &str, ends: &mut Ends) {
            let push = |ends: &mut Ends, start, bits| {
                ends.push_places(start, bits, &places_vbmi2(bits));
            };
            scanner.fill(text, ends, |bytes| masks_avx512(bytes), push);
        }
        #[target_feature(enable = "avx512bw,avx512f,bmi1,bmi2,lzcnt,popcnt")]
        fn with_avx512(scanner: &Scanner, text: &str, ends: &mut Ends) {
            scanner.fill(text, ends, |bytes| masks_avx512(bytes), Ends::push_all);
        }
        if has_avx512() {
            // SAFETY: it has them
            return match is_x86_feature_detected!("avx512vbmi2") {
                true => unsafe { with_vbmi2(scanner, text, ends) },
                false => unsafe { with_avx512(scanner, text, ends) },
            };
        }
    }
    scanner.fill(text, ends, Masks::of, Ends::push_all);
}

/// Whether this processor has AVX-512 of bytes, and what came before it.
#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("bmi2")
}

/// `Cache::append` with what this processor has.
#[inline]
pub fn append<T: TokenId>(
    cache: &mut Cache,
    text: &[u8],
    start: usize,
    ends: &[usize],
    merges: &Merges,
    out: &mut Vec<T>,
) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512bw,avx512f,bmi1,bmi2,lzcnt,popcnt")]
        fn with_avx512<T: TokenId>(
            cache: &mut Cache,
            text: &[u8],
            start: usize,
            ends: &[usize],
            merges: &Merges,
            out: &mut Vec<T>,
        ) {
            cache.append(text, start, ends, merges, out);
        }
        if has_avx512() {
            // SAFETY: it has them
            return unsafe { with_avx512(cache, text, start, ends, merges, out) };
        }
    }
    cache.append(text, start, ends, merges, out);
}

/// `masks_avx512` for tests, if the processor has it.
#[cfg(test)]
pub fn masks_of_64(bytes: &[u8; crate::block::BLOCK]) -> Option<Masks> {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512bw") {
        // SAFETY: it has it
        return Some(unsafe { masks_avx512(bytes) });
    }
    let _ = bytes;
    None
}

/// The places of bits, and then zeros.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512vbmi2,avx512f")]
#[inline]
fn places_vbmi2(bits: u64) -> [u8; BLOCK] {
    use std::arch::x86_64::*;
    const ALL: [u8; BLOCK] = {
        let mut all = [0; BLOCK];
        let mut at = 0;
        while at < BLOCK {
            all[at] = at as u8;
            at += 1;
        }
        all
    };
    let mut places = [0; BLOCK];
    // SAFETY: there are 64 bytes in each
    unsafe {
        let all = _mm512_loadu_si512(ALL.as_ptr().cast());
        let found = _mm512_maskz_compress_epi8(bits, all);
        _mm512_storeu_si512(places.as_mut_ptr().cast(), found);
    }
    places
}

/// `places_vbmi2` for tests, if the processor has it.
#[cfg(test)]
pub fn places_of_64(bits: u64) -> Option<[u8; crate::block::BLOCK]> {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512vbmi2") {
        // SAFETY: it has it
        return Some(unsafe { places_vbmi2(bits) });
    }
    let _ = bits;
    None
}

/// The kinds of bytes, all 64 at a time.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512bw,avx512f")]
#[inline]
fn masks_avx512(bytes: &[u8; BLOCK]) -> Masks {
    use std::arch::x86_64::*;
    // SAFETY: there are 64 bytes
    let bytes = unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) };
    let equal = |byte: u8| _mm512_cmpeq_epi8_mask(bytes, _mm512_set1_epi8(byte as i8));
    let within = |bytes, first: u8, last: u8| {
        let from_first = _mm512_sub_epi8(bytes, _mm512_set1_epi8(first as i8));
        _mm512_cmple_epu8_mask(from_first, _mm512_set1_epi8((last - first) as i8))
    };
    let lower = _mm512_or_si512(bytes, _mm512_set1_epi8(0x20));
    Masks {
        letters: within(lower, b'a', b'z'),
        digits: within(bytes, b'0', b'9'),
        spaces: equal(b' '),
        newlines: equal(b'\n') | equal(b'\r'),
        controls: within(bytes, b'\t', b'\r'),
        apostrophes: equal(b'\''),
        wide: _mm512_movepi8_mask(bytes),
    }
}

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
        _mm_prefetch::<_MM_HINT_T0>(items.as_ptr().wrapping_add(at).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (items, at);
}

/// Asks for huge pages for items that are read in no order: fewer addresses to translate.
pub fn huge_pages<T>(items: &mut [T]) {
    #[cfg(target_os = "linux")]
    {
        // From the first ordinary page on: where the system puts a large allocation at the start
        // of a huge page, the allocator's own few bytes are before the items.
        const PAGE: usize = 1 << 12;
        let bytes = items.as_ptr_range();
        let (first, end) = (bytes.start as usize / PAGE * PAGE, bytes.end as usize);
        if end - first >= 1 << 21 {
            // SAFETY: how large pages are changes nothing, whosever they are.
            unsafe { libc::madvise(first as *mut _, end - first, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = items;
}
