//! Memory for a thread's intermediate results, kept from call to call: new pages cost more than what
//! is computed in them.
#![allow(unsafe_code)]

use std::cell::RefCell;

/// A line of the cache: a vector that crosses two takes twice as long to load.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; 16]);

thread_local! {
    static LINES: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// Gives `work` pieces of these lengths, of any content, each at the start of a line.
pub fn with<const N: usize, R>(lengths: [usize; N], work: impl FnOnce([&mut [u32]; N]) -> R) -> R {
    LINES.with_borrow_mut(|lines| {
        let needed = lengths.iter().map(|length| length.div_ceil(16)).sum();
        if lines.len() < needed {
            lines.resize(needed, Line([0; 16]));
        }
        let mut rest = lines.as_mut_slice();
        work(lengths.map(|length| {
            let (piece, others) = std::mem::take(&mut rest).split_at_mut(length.div_ceil(16));
            rest = others;
            // SAFETY: a line is 16 numbers and no more
            let piece = unsafe {
                std::slice::from_raw_parts_mut(piece.as_mut_ptr().cast(), 16 * piece.len())
            };
            &mut piece[..length]
        }))
    })
}

/// The same numbers as float32.
pub fn floats(x: &mut [u32]) -> &mut [f32] {
    // SAFETY: any 32 bits are of either type
    unsafe { std::slice::from_raw_parts_mut(x.as_mut_ptr().cast(), x.len()) }
}
