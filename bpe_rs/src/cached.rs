//! Attention of one query a row to the keys of a cache, for decoding on a CPU.
//!
//! Only slots that a row sees are read: XLA reads all of them for every row. Sums have one order,
//! over lanes of 16 and then over slots, so a row gets the same to the last bit in any company, in a
//! cache of any length and on any processor. `jaxchat/model/kernels/cached.py` has the formula in JAX.
#![allow(unsafe_code)]

use crate::machine::prefetch;

/// Numbers that are computed at once; a head's size is a multiple of it.
pub const LANES: usize = 16;
/// Slots whose weights are found before their values are read.
const BLOCK: usize = 64;
/// Slots whose values are added in one pass.
const PASS: usize = 4;
/// exp() is clamped to what float32 holds without becoming subnormal.
const LARGEST: f32 = 87.0;

/// The query heads [R, K] of one row that share keys and values [S, K], of which it sees some.
pub struct Row<'a> {
    pub size: usize, // K
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
    pub visible: &'a [u8], // [S], not 0 where it sees a slot
}

/// Whether this processor has what makes `Row::attend` faster than XLA's code.
pub fn able() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    cfg!(target_arch = "aarch64")
}

impl Row<'_> {
    /// Writes softmax(q k / sqrt(K)) v [R, K]. Scores are small enough for exp(); a row that sees
    /// nothing gives NaN.
    pub fn attend(&self, y: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                // SAFETY: the processor has it
                return unsafe { x86::avx512(self, y) };
            }
            if able() {
                // SAFETY: the processor has both
                return unsafe { x86::avx2(self, y) };
            }
        }
        self.attend_plain(y);
    }

    #[inline(always)]
    fn attend_plain(&self, y: &mut [f32]) {
        let size = self.size;
        let scale = 1.0 / (size as f32).sqrt();
        let mut totals = vec![[0.0; LANES]; self.q.len() / size];
        y.fill(0.0);
        for (block, visible) in self.visible.chunks(BLOCK).enumerate() {
            let (mut seen, mut count) = ([0; BLOCK], 0);
            for (slot, visible) in visible.iter().enumerate() {
                seen[count] = BLOCK * block + slot;
                count += usize::from(*visible != 0);
            }
            let seen = &seen[..count];
            let heads = self.q.chunks_exact(size).zip(y.chunks_exact_mut(size));
            for ((q, y), total) in heads.zip(&mut totals) {
                let weights = self.weights(q, seen, scale, total);
                let (mut slots, mut weights) = (seen.chunks_exact(PASS), weights.chunks(PASS));
                for (slots, weights) in (&mut slots).zip(&mut weights) {
                    let v: [_; PASS] = std::array::from_fn(|n| row(self.v, slots[n], size));
                    add(y, std::array::from_fn(|n| weights[n]), v);
                }
                for (slot, weight) in slots.remainder().iter().zip(weights.next().unwrap_or(&[])) {
                    add(y, [*weight], [row(self.v, *slot, size)]);
                }
            }
        }
        for (y, total) in y.chunks_exact_mut(size).zip(totals) {
            let total = sum(total);
            y.iter_mut().for_each(|y| *y /= total);
        }
    }

    /// exp() of the scores of a query [K] with slots; adds them to `total`.
    #[inline(always)]
    fn weights(
        &self,
        q: &[f32],
        seen: &[usize],
        scale: f32,
        total: &mut [f32; LANES],
    ) -> [f32; BLOCK] {
        let mut weights = [f32::NEG_INFINITY; BLOCK];
        for (weight, slot) in weights.iter_mut().zip(seen) {
            for line in row(self.v, *slot, self.size).chunks(LANES) {
                prefetch(line, 0); // it is wanted right after the keys
            }
            *weight = dot(q, row(self.k, *slot, self.size)) * scale;
        }
        for lanes in weights
            .chunks_exact_mut(LANES)
            .take(seen.len().div_ceil(LANES))
        {
            for (total, weight) in total.iter_mut().zip(lanes) {
                *weight = exp(*weight);
                *total += *weight;
            }
        }
        weights
    }
}

/// Row `at` of rows of `size`.
#[inline(always)]
fn row(rows: &[f32], at: usize, size: usize) -> &[f32] {
    &rows[at * size..][..size]
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0; LANES];
    for (a, b) in a.chunks_exact(LANES).zip(b.chunks_exact(LANES)) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum = a.mul_add(*b, *sum);
        }
    }
    sum(sums)
}

#[inline(always)]
fn sum(mut lanes: [f32; LANES]) -> f32 {
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
    }
    lanes[0]
}

/// Adds rows times their weights, one after the other.
#[inline(always)]
fn add<const N: usize>(y: &mut [f32], weights: [f32; N], rows: [&[f32]; N]) {
    for (number, y) in y.chunks_exact_mut(LANES).enumerate() {
        let mut lanes: [f32; LANES] = std::array::from_fn(|lane| y[lane]);
        for n in 0..N {
            let row = &rows[n][number * LANES..][..LANES];
            for lane in 0..LANES {
                lanes[lane] = weights[n].mul_add(row[lane], lanes[lane]);
            }
        }
        y.copy_from_slice(&lanes);
    }
}

/// e^x to 2 units in the last place, and 0 below the range: 2^n e^r with r at most half of ln 2, by its
/// Taylor series.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const HIGH: f32 = 355.0 / 512.0; // ln 2 in two parts, of which n times the first is exact
    const LOW: f32 = -2.121_944_4e-4;
    const TERMS: [f32; 6] = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0];
    let hidden = if x < -LARGEST { 0.0 } else { 1.0 };
    let x = x.clamp(-LARGEST, LARGEST);
    let n = (x * std::f32::consts::LOG2_E).round_ties_even();
    let r = n.mul_add(-LOW, n.mul_add(-HIGH, x));
    let mut value = 1.0 / 5040.0;
    for term in TERMS {
        value = f32::mul_add(value, r, term);
    }
    value = value.mul_add(r, 1.0);
    value * f32::from_bits(((n as i32 + 127) << 23) as u32) * hidden
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Row;

    #[target_feature(enable = "avx512f")]
    pub fn avx512(row: &Row<'_>, y: &mut [f32]) {
        row.attend_plain(y);
    }

    #[target_feature(enable = "avx2,fma")]
    pub fn avx2(row: &Row<'_>, y: &mut [f32]) {
        row.attend_plain(y);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(count: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        std::iter::repeat_with(next).take(count).collect()
    }

    #[test]
    fn it_is_the_plain_formula_on_every_processor() {
        for (heads, size, slots) in [(1, 16, 1), (2, 64, 64), (3, 128, 200), (1, 48, 65)] {
            let (q, k, v) = (
                noise(heads * size, 1),
                noise(slots * size, 2),
                noise(slots * size, 3),
            );
            let visible: Vec<u8> = noise(slots, 4).iter().map(|x| u8::from(*x < 0.5)).collect();
            if visible.iter().all(|x| *x == 0) {
                continue;
            }
            let row = Row {
                size,
                q: &q,
                k: &k,
                v: &v,
                visible: &visible,
            };
            let (mut fast, mut plain) = (vec![f32::NAN; q.len()], vec![f32::NAN; q.len()]);
            row.attend(&mut fast);
            row.attend_plain(&mut plain);
            assert_eq!(fast, plain);
            for head in 0..heads {
                let q = &q[head * size..][..size];
                let score = |slot: usize| -> f64 {
                    let k = &k[slot * size..][..size];
                    q.iter()
                        .zip(k)
                        .map(|(a, b)| f64::from(*a) * f64::from(*b))
                        .sum::<f64>()
                        / (size as f64).sqrt()
                };
                let seen: Vec<usize> = (0..slots).filter(|s| visible[*s] != 0).collect();
                let weights: Vec<f64> = seen.iter().map(|s| score(*s).exp()).collect();
                let total: f64 = weights.iter().sum();
                for at in 0..size {
                    let y: f64 = seen
                        .iter()
                        .zip(&weights)
                        .map(|(s, w)| w / total * f64::from(v[s * size + at]))
                        .sum();
                    assert!((y - f64::from(fast[head * size + at])).abs() < 1e-6);
                }
            }
        }
    }

    #[test]
    fn a_row_that_sees_nothing_gives_nan_and_hidden_slots_are_not_read() {
        let (q, bad) = (noise(16, 1), vec![f32::NAN; 70 * 16]);
        let mut y = [0.0; 16];
        Row {
            size: 16,
            q: &q,
            k: &bad,
            v: &bad,
            visible: &[0; 70],
        }
        .attend(&mut y);
        assert!(y.iter().all(|y| y.is_nan()));
        let mut k = bad.clone();
        k[69 * 16..].fill(1.0);
        let mut visible = [0; 70];
        visible[69] = 1;
        Row {
            size: 16,
            q: &q,
            k: &k,
            v: &k,
            visible: &visible,
        }
        .attend(&mut y);
        assert_eq!(y, [1.0; 16]);
    }

    #[test]
    fn exponentials_are_right_to_two_units() {
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        for n in -870..=870 {
            let x = n as f32 / 10.0;
            let error = f64::from(exp(x)) / f64::from(x).exp() - 1.0;
            assert!(error.abs() < 2.5e-7, "exp({x}) is off by {error}");
        }
    }
}
