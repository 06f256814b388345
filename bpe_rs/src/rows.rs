//! What `mlp` and `linear` do with rows of float32 numbers: the norm, rounding, turning.
#![allow(unsafe_code)]
// As in `bf16`: safe to call where the processor has the instructions.
#![allow(clippy::missing_safety_doc)]

use std::arch::x86_64::*;

use crate::bf16::{LANES, PANEL, Rows, narrow, numbers, pairs, put, put_pairs, transposed};
use crate::out::Out;

/// Rows that a thread takes at once, a multiple of `amx::BLOCK`.
pub const UNIT: usize = 64;

/// What a row is multiplied by to be normalised.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn scale(x: &[f32], epsilon: f32) -> f32 {
    1.0 / (dot(x, x) / x.len() as f32 + epsilon).sqrt()
}

/// Writes the gradient of a row from that of the normalised row.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn unscaled(x: &[f32], epsilon: f32, dnormed: &[f32], dx: &mut [f32]) {
    let scale = scale(x, epsilon);
    let share = -scale * scale * scale * dot(x, dnormed) / x.len() as f32;
    let (scale, share) = (_mm512_set1_ps(scale), _mm512_set1_ps(share));
    for n in (0..x.len()).step_by(LANES) {
        let own = _mm512_mul_ps(scale, numbers(&dnormed[n..]));
        put(_mm512_fmadd_ps(share, numbers(&x[n..]), own), &mut dx[n..]);
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut sum = [_mm512_setzero_ps(); 2];
    for n in (0..x.len()).step_by(PANEL) {
        for (part, sum) in sum.iter_mut().enumerate() {
            let at = n + part * LANES;
            *sum = _mm512_fmadd_ps(numbers(&x[at..]), numbers(&y[at..]), *sum);
        }
    }
    _mm512_reduce_add_ps(_mm512_add_ps(sum[0], sum[1]))
}

/// A row times `scale`, rounded.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
pub fn scaled(x: &[f32], scale: f32, out: &mut [u32]) {
    let scale = _mm512_set1_ps(scale);
    for (x, out) in x.chunks_exact(PANEL).zip(out.chunks_exact_mut(LANES)) {
        let part = |n| _mm512_mul_ps(scale, numbers(&x[n..]));
        put_pairs(narrow([part(0), part(LANES)]), out);
    }
}

/// Writes a unit's rows, in pairs of `width` channels, as channels of pairs of rows, [D, M / 2]; the
/// unit begins at row `start` of M.
///
/// # Safety
/// As `Out::at`, for the unit's rows.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub unsafe fn turned(
    rows: &[u32],
    width: usize,
    spare: &mut [u32],
    (start, filled): (usize, usize),
    out: Out<u32>,
) {
    let rows = Rows {
        pairs: rows,
        stride: width / 2,
        count: UNIT,
        width: width / 2,
    };
    rows.as_rows(spare);
    for channel in (0..width).step_by(LANES) {
        for place in (0..UNIT / 2).step_by(LANES) {
            let panel = channel / PANEL * UNIT / 2 + place;
            let mut tile = [_mm512_setzero_si512(); LANES];
            for (n, tile) in tile.iter_mut().enumerate() {
                *tile = pairs(&spare[(panel + n) * PANEL + channel % PANEL..]);
            }
            for (n, tile) in transposed(tile).into_iter().enumerate() {
                let at = (channel + n) * filled / 2 + start / 2 + place;
                // SAFETY: the caller's promise
                put_pairs(tile, unsafe { out.at(at, LANES) });
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub fn put_two(x: [__m512; 2], out: &mut [f32]) {
    put(x[0], out);
    put(x[1], &mut out[LANES..]);
}
