//! The loss of capped logits, and its gradient as the products after it take it, in bfloat16.
//!
//! With q = 1 / (1 + e^(2 x / cap)) a capped logit cap tanh(x / cap) is cap - 2 cap q, its derivative
//! 4 q (1 - q), and the cap itself is what logsumexp subtracts. A row is read once, and what of it the
//! gradient needs stays in the cache.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use crate::bf16::{LANES, exp, numbers, put};
use crate::scratch::{self, floats};

/// Largest number whose exponential is finite, or nearly.
const LARGEST: f32 = 88.0;

/// Writes the gradient [V] of `factor` times -log p(target) of a row of logits; gives the latter.
///
/// Where `factor` is 0 the row counts for nothing, and 0 is given. A target that is none gives NaN.
///
/// # Safety
/// The processor must have AVX-512 BF16.
#[target_feature(enable = "avx512f,avx512bf16")]
pub unsafe fn row(logits: &[f32], target: i32, factor: f32, cap: f32, grad: &mut [u16]) -> f32 {
    assert_eq!(logits.len(), grad.len());
    if factor == 0.0 {
        grad.fill(0);
        return 0.0;
    }
    let Some(&hit) = usize::try_from(target).ok().and_then(|at| logits.get(at)) else {
        grad.fill(0x7fc0);
        return f32::NAN;
    };
    scratch::with([logits.len().next_multiple_of(LANES)], |[slopes]| {
        let slopes = floats(slopes);
        let mut sum = [_mm512_setzero_ps(); 2];
        for (n, (x, slope)) in logits
            .chunks(LANES)
            .zip(slopes.chunks_exact_mut(LANES))
            .enumerate()
        {
            let seen = lanes(x.len());
            // SAFETY: of x's numbers alone
            let x = capped(unsafe { _mm512_maskz_loadu_ps(seen, x.as_ptr()) }, cap);
            sum[n % 2] = _mm512_mask_add_ps(sum[n % 2], seen, sum[n % 2], x.weight);
            put(_mm512_mul_ps(x.weight, x.slope), slope);
        }
        let total = _mm512_reduce_add_ps(_mm512_add_ps(sum[0], sum[1]));
        let scale = _mm512_set1_ps(factor / total);
        for (slope, out) in slopes.chunks_exact(LANES).zip(grad.chunks_mut(LANES)) {
            let x = rounded(_mm512_mul_ps(numbers(slope), scale));
            match <&mut [u16; LANES]>::try_from(&mut *out) {
                Ok(out) => *out = x,
                Err(_) => out.copy_from_slice(&x[..out.len()]),
            }
        }
        let x = capped(_mm512_set1_ps(hit), cap);
        let [missed, weight, slope] = [x.missed, x.weight, x.slope].map(|x| _mm512_cvtss_f32(x));
        let own = (weight * (factor / total) - factor) * slope;
        grad[target as usize] = rounded(_mm512_set1_ps(own))[0];
        total.ln() + 2.0 * cap * missed
    })
}

/// Of 16 logits.
struct Capped {
    missed: __m512, // q
    weight: __m512, // exp(capped logit - cap)
    slope: __m512,  // the derivative of the capped logit
}

#[inline]
#[target_feature(enable = "avx512f")]
fn capped(x: __m512, cap: f32) -> Capped {
    let set = _mm512_set1_ps;
    // The order of the operands keeps NaN
    let odds = exp(_mm512_min_ps(
        set(LARGEST),
        _mm512_mul_ps(x, set(2.0 / cap)),
    ));
    let missed = _mm512_div_ps(set(1.0), _mm512_add_ps(set(1.0), odds));
    Capped {
        missed,
        weight: exp(_mm512_mul_ps(missed, set(-2.0 * cap))),
        slope: _mm512_mul_ps(_mm512_mul_ps(set(4.0), missed), _mm512_mul_ps(odds, missed)),
    }
}

/// The nearest bfloat16.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn rounded(x: __m512) -> [u16; LANES] {
    // SAFETY: any 32 bytes are of either type
    unsafe { std::mem::transmute(_mm512_cvtneps_pbh(x)) }
}

/// The first lanes of a vector.
fn lanes(count: usize) -> __mmask16 {
    ((1_u32 << count) - 1) as __mmask16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_plain_formula_but_for_rounding() {
        if !crate::bf16::able() {
            return;
        }
        let (cap, factor) = (15.0_f64, -0.7_f64);
        for count in [1, 5, 16, 47, 8192] {
            let logits: Vec<f32> = (0..count)
                .map(|n| ((n * 7919 + 13) % 1000) as f32 / 10.0 - 50.0)
                .collect();
            let target = count * 2 / 3;
            let mut grad = vec![0; count];
            // SAFETY: the processor was asked
            let nll = unsafe { row(&logits, target as i32, factor as f32, cap as f32, &mut grad) };
            let tanh: Vec<f64> = logits
                .iter()
                .map(|x| (f64::from(*x) / cap).tanh())
                .collect();
            let total: f64 = tanh.iter().map(|x| (cap * x).exp()).sum();
            assert!((f64::from(nll) - (total.ln() - cap * tanh[target])).abs() < 1e-5);
            for (n, (grad, tanh)) in grad.iter().zip(&tanh).enumerate() {
                let p = (cap * tanh).exp() / total - f64::from(n == target);
                let want = factor * p * (1.0 - tanh * tanh);
                let got = f64::from(f32::from_bits(u32::from(*grad) << 16));
                assert!(
                    (got - want).abs() <= 4e-3 * want.abs() + 1e-12,
                    "{count} {n}: {got} {want}"
                );
            }
        }
    }

    #[test]
    fn a_row_that_is_not_finite_is_not_hidden_and_one_without_weight_is() {
        if !crate::bf16::able() {
            return;
        }
        let mut grad = [1; 20];
        let mut logits = [1.0; 20];
        logits[3] = f32::NAN;
        // SAFETY: the processor was asked
        unsafe {
            assert!(row(&logits, 5, 1.0, 15.0, &mut grad).is_nan());
            assert!(row(&[f32::INFINITY; 20], 5, 1.0, 15.0, &mut grad).is_finite());
            assert!(row(&[0.0; 20], 20, 1.0, 15.0, &mut grad).is_nan());
            assert!(row(&[0.0; 20], -1, 1.0, 15.0, &mut grad).is_nan());
            assert_eq!(row(&logits, 5, 0.0, 15.0, &mut grad), 0.0);
        }
        assert_eq!(grad, [0; 20]);
    }
}
