//! Products of bfloat16 numbers with float32 sums, for a processor with AVX-512 BF16.
//!
//! An instruction multiplies 16 pairs of numbers by 16 others and adds both products of a pair to a
//! float32. So numbers are held in pairs, as u32, and the right operand of a product in panels of 32
//! columns, [pairs, 32], where a pair is of two rows; the left operand stays as it lies.
#![allow(unsafe_code)]
// Where the processor has the instructions (`able`), functions that need them are safe to call.
#![allow(clippy::missing_safety_doc)]

use std::arch::x86_64::*;

/// Rows of the left operand at once.
pub const GROUP: usize = 8;
/// Columns of a panel.
pub const PANEL: usize = 32;
/// float32 numbers, or pairs, of a vector.
pub const LANES: usize = 16;
/// A group's sums with a panel.
pub type Sums = [[__m512; 2]; GROUP];

/// Whether this processor has the instructions.
pub fn able() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512bf16")
}

/// Eight rows of `a`, `row` pairs apart, times a panel; the pairs of a row are `step` apart.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub fn product(a: &[u32], row: usize, step: usize, b: &[u32], pairs: usize) -> Sums {
    assert!(pairs > 0 && b.len() >= pairs * PANEL);
    assert!(a.len() > (GROUP - 1) * row + (pairs - 1) * step);
    let mut sums = [[_mm512_setzero_ps(); 2]; GROUP];
    for pair in 0..pairs {
        // SAFETY: within both, as was checked
        unsafe {
            let a = a.as_ptr().add(pair * step);
            let b = b.as_ptr().add(pair * PANEL);
            let b = [
                number(_mm512_loadu_si512(b.cast())),
                number(_mm512_loadu_si512(b.add(LANES).cast())),
            ];
            for (r, sums) in sums.iter_mut().enumerate() {
                let a = number(_mm512_set1_epi32(*a.add(r * row) as i32));
                sums[0] = _mm512_dpbf16_ps(sums[0], a, b[0]);
                sums[1] = _mm512_dpbf16_ps(sums[1], a, b[1]);
            }
        }
    }
    sums
}

/// The exponential, to 2 units in the last place; NaN stays NaN. x is at most 88.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn exp(x: __m512) -> __m512 {
    // As in Cephes: 2^n e^r, with r = x - n ln 2 between -0.35 and 0.35, ln 2 in two parts
    let set = _mm512_set1_ps;
    let n = _mm512_roundscale_ps::<8>(_mm512_mul_ps(x, set(std::f32::consts::LOG2_E)));
    let r = _mm512_fnmadd_ps(n, set(0.693_359_4), x);
    let r = _mm512_fnmadd_ps(n, set(-2.121_944_4e-4), r);
    let mut y = set(1.987_569_1e-4);
    for term in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ] {
        y = _mm512_fmadd_ps(y, r, set(term));
    }
    let y = _mm512_fmadd_ps(y, _mm512_mul_ps(r, r), _mm512_add_ps(r, set(1.0)));
    _mm512_scalef_ps(y, n)
}

/// 32 numbers, rounded to the nearest.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
pub fn narrow(x: [__m512; 2]) -> __m512i {
    // SAFETY: any 64 bytes are of either type
    unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(x[1], x[0])) }
}

/// 16 pairs, each of a number of x and one of y.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub fn paired(x: __m512, y: __m512) -> __m512i {
    const PLACES: [i16; PANEL] = places(0, LANES);
    _mm512_permutexvar_epi16(vector(&PLACES), narrow([x, y]))
}

/// first, second, first + 1, second + 1, ...
const fn places(first: usize, second: usize) -> [i16; PANEL] {
    let mut places = [0; PANEL];
    let mut n = 0;
    while n < LANES {
        (places[2 * n], places[2 * n + 1]) = ((first + n) as i16, (second + n) as i16);
        n += 1;
    }
    places
}

#[inline]
#[target_feature(enable = "avx512f")]
fn vector(x: &[i16; PANEL]) -> __m512i {
    // SAFETY: any 64 bytes are of either type
    unsafe { std::mem::transmute(*x) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn number(x: __m512i) -> __m512bh {
    // SAFETY: any 64 bytes are of either type
    unsafe { std::mem::transmute(x) }
}

/// The first 16 pairs.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn pairs(x: &[u32]) -> __m512i {
    assert!(x.len() >= LANES);
    // SAFETY: there are 16
    unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
}

/// Stores 16 pairs.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn put_pairs(x: __m512i, out: &mut [u32]) {
    assert!(out.len() >= LANES);
    // SAFETY: there is room for 16
    unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), x) };
}

/// The first 16 numbers.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn numbers(x: &[f32]) -> __m512 {
    assert!(x.len() >= LANES);
    // SAFETY: there are 16
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

/// Stores 16 numbers.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn put(x: __m512, out: &mut [f32]) {
    assert!(out.len() >= LANES);
    // SAFETY: there is room for 16
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), x) };
}

/// Rows of pairs, some apart.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    pub pairs: &'a [u32],
    pub stride: usize,
    pub count: usize,
    pub width: usize, // pairs of a row, a multiple of 16
}

impl<'a> Rows<'a> {
    /// A row.
    #[inline]
    pub fn row(&self, row: usize) -> &'a [u32] {
        &self.pairs[row * self.stride..][..self.width]
    }

    /// Panels whose columns are these rows, [rows / 32, width, 32], filled up with zeros: for a
    /// product that sums over the width.
    #[target_feature(enable = "avx512f")]
    pub fn as_columns(&self, out: &mut [u32]) {
        for first in (0..self.count.next_multiple_of(PANEL)).step_by(LANES) {
            let panel = first / PANEL * PANEL * self.width + first % PANEL;
            for place in (0..self.width).step_by(LANES) {
                let mut tile = [_mm512_setzero_si512(); LANES];
                for (n, tile) in tile.iter_mut().enumerate() {
                    if first + n < self.count {
                        *tile = pairs(&self.row(first + n)[place..]);
                    }
                }
                for (n, column) in transposed(tile).into_iter().enumerate() {
                    put_pairs(column, &mut out[panel + (place + n) * PANEL..]);
                }
            }
        }
    }

    /// Panels of these rows, [width / 16, rows / 2, 32], filled up with zeros to a multiple of 32
    /// rows: for a product that sums over the rows.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub fn as_rows(&self, out: &mut [u32]) {
        const LOW: [i16; PANEL] = places(0, PANEL);
        const HIGH: [i16; PANEL] = places(LANES, PANEL + LANES);
        let half = self.count.next_multiple_of(PANEL) / 2;
        for pair in 0..half {
            for panel in 0..self.width / LANES {
                let two = [2 * pair, 2 * pair + 1].map(|row| match row < self.count {
                    true => pairs(&self.row(row)[panel * LANES..]),
                    false => _mm512_setzero_si512(),
                });
                let out = &mut out[(panel * half + pair) * PANEL..];
                put_pairs(_mm512_permutex2var_epi16(two[0], vector(&LOW), two[1]), out);
                let out = &mut out[LANES..];
                put_pairs(
                    _mm512_permutex2var_epi16(two[0], vector(&HIGH), two[1]),
                    out,
                );
            }
        }
    }
}

/// The columns of 16 rows of 16.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn transposed(x: [__m512i; LANES]) -> [__m512i; LANES] {
    let mut y = x;
    for n in (0..LANES).step_by(2) {
        y[n] = _mm512_unpacklo_epi32(x[n], x[n + 1]);
        y[n + 1] = _mm512_unpackhi_epi32(x[n], x[n + 1]);
    }
    // z[4 q + c] has, in its lane L of 128 bits, the column 4 L + c of the rows 4 q to 4 q + 3
    let mut z = y;
    for n in (0..LANES).step_by(4) {
        z[n] = _mm512_unpacklo_epi64(y[n], y[n + 2]);
        z[n + 1] = _mm512_unpackhi_epi64(y[n], y[n + 2]);
        z[n + 2] = _mm512_unpacklo_epi64(y[n + 1], y[n + 3]);
        z[n + 3] = _mm512_unpackhi_epi64(y[n + 1], y[n + 3]);
    }
    const EVEN: i32 = 0x88;
    const ODD: i32 = 0xdd;
    for c in 0..4 {
        let even = _mm512_shuffle_i32x4::<EVEN>(z[c], z[4 + c]);
        let more = _mm512_shuffle_i32x4::<EVEN>(z[8 + c], z[12 + c]);
        y[c] = _mm512_shuffle_i32x4::<EVEN>(even, more);
        y[8 + c] = _mm512_shuffle_i32x4::<ODD>(even, more);
        let odd = _mm512_shuffle_i32x4::<ODD>(z[c], z[4 + c]);
        let more = _mm512_shuffle_i32x4::<ODD>(z[8 + c], z[12 + c]);
        y[4 + c] = _mm512_shuffle_i32x4::<EVEN>(odd, more);
        y[12 + c] = _mm512_shuffle_i32x4::<ODD>(odd, more);
    }
    y
}
