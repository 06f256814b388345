//! Rotation of queries or keys by their position (half with half of the channels) and RMSNorm, in one
//! pass over a head's channels, and the gradient.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use crate::bf16::{LANES, numbers, put};

/// What the rows are scaled by, beside their norm, and what is added to their mean square.
#[derive(Clone, Copy)]
pub struct Norm {
    pub factor: f32,
    pub epsilon: f32,
}

impl Norm {
    /// `factor` times x [K] rotated and divided by its root mean square; K a multiple of 32.
    ///
    /// A rotation leaves the norm as it is, so that is taken of x.
    ///
    /// # Safety
    /// The processor must have AVX-512.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn forward(self, x: &[f32], cos: &[f32], sin: &[f32], y: &mut [f32]) {
        let scale = _mm512_set1_ps(self.factor * self.inverse(x));
        let ((x1, x2), (y1, y2)) = (x.split_at(cos.len()), y.split_at_mut(cos.len()));
        for at in (0..cos.len()).step_by(LANES) {
            let (cos, sin) = (numbers(&cos[at..]), numbers(&sin[at..]));
            let (a, b) = (
                _mm512_mul_ps(numbers(&x1[at..]), scale),
                _mm512_mul_ps(numbers(&x2[at..]), scale),
            );
            put(
                _mm512_fmadd_ps(a, cos, _mm512_mul_ps(b, sin)),
                &mut y1[at..],
            );
            put(
                _mm512_fnmadd_ps(a, sin, _mm512_mul_ps(b, cos)),
                &mut y2[at..],
            );
        }
    }

    /// The gradient of x [K] from that of y: turned back to g, then with n = x / rms(x)
    /// factor / rms(x) (g - n mean(g n)).
    ///
    /// # Safety
    /// As `forward`.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn backward(self, x: &[f32], dy: &[f32], cos: &[f32], sin: &[f32], dx: &mut [f32]) {
        let ((x1, x2), (dy1, dy2)) = (x.split_at(cos.len()), dy.split_at(cos.len()));
        let (dx1, dx2) = dx.split_at_mut(cos.len());
        let mut share = _mm512_setzero_ps();
        for at in (0..cos.len()).step_by(LANES) {
            let (cos, sin) = (numbers(&cos[at..]), numbers(&sin[at..]));
            let (a, b) = (numbers(&dy1[at..]), numbers(&dy2[at..]));
            let g1 = _mm512_fnmadd_ps(b, sin, _mm512_mul_ps(a, cos));
            let g2 = _mm512_fmadd_ps(a, sin, _mm512_mul_ps(b, cos));
            share = _mm512_fmadd_ps(g1, numbers(&x1[at..]), share);
            share = _mm512_fmadd_ps(g2, numbers(&x2[at..]), share);
            put(g1, &mut dx1[at..]);
            put(g2, &mut dx2[at..]);
        }
        let inverse = self.inverse(x);
        let mean = _mm512_reduce_add_ps(share) / x.len() as f32 * inverse * inverse;
        let (scale, mean) = (_mm512_set1_ps(self.factor * inverse), _mm512_set1_ps(mean));
        for (x, dx) in x.chunks_exact(LANES).zip(dx.chunks_exact_mut(LANES)) {
            let g = _mm512_fnmadd_ps(numbers(x), mean, numbers(dx));
            put(_mm512_mul_ps(g, scale), dx);
        }
    }

    /// One over the root mean square.
    #[target_feature(enable = "avx512f")]
    fn inverse(self, x: &[f32]) -> f32 {
        let mut sum = _mm512_setzero_ps();
        for x in x.chunks_exact(LANES) {
            sum = _mm512_fmadd_ps(numbers(x), numbers(x), sum);
        }
        1.0 / (_mm512_reduce_add_ps(sum) / x.len() as f32 + self.epsilon).sqrt()
    }
}
