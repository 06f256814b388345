//! Muon's iterations, which bring the singular values of a matrix near 1: y <- a y + (b G + c G^2) y
//! with G = y y^T, as `optim.muon` writes them for XLA. A matrix is one thread's from the first
//! iteration to the last, and stays in its core's cache.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use crate::amx::{BLOCK, Blocks, TILE};
use crate::bf16::{LANES, PANEL, Rows, narrow, numbers, put_pairs};
use crate::rows::put_two;
use crate::scratch::{self, floats};

/// The sides of a matrix [M, K], multiples of 32.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub rows: usize,
    pub width: usize,
}

impl Shape {
    /// Iterates on y, in pairs of columns, with each of these (a, b, c). Products are of bfloat16, sums
    /// float32.
    ///
    /// # Safety
    /// The processor must be `bf16::able`.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub unsafe fn iterate(&self, y: &mut [u32], coefficients: &[[f32; 3]]) {
        let (rows, half, short) = (self.rows, self.width / 2, self.rows / 2);
        assert_eq!(y.len(), rows * half);
        let square = rows * short;
        let lengths = [y.len(), y.len(), 2 * square, square, square, square, TILE];
        scratch::with(
            lengths,
            |[columns, panels, gram, rounded, turned, poly, tile]| {
                let (blocks, tile, gram) = (Blocks::new(), floats(tile), floats(gram));
                for &[a, b, c] in coefficients {
                    let [a, b, c] = [a, b, c].map(|x| _mm512_set1_ps(x));
                    self.pairs(y, half).as_columns(columns);
                    self.pairs(y, half).as_rows(panels);
                    for (panel, columns) in columns.chunks_exact(half * PANEL).enumerate() {
                        for first in (0..rows).step_by(BLOCK) {
                            blocks.multiply(&y[first * half..], half, columns, half, tile);
                            for (row, sums) in (first..).zip(tile.chunks_exact(PANEL)) {
                                let sums = [numbers(sums), numbers(&sums[LANES..])];
                                let at = row * short + panel * LANES;
                                put_two(sums, &mut gram[2 * at..]);
                                put_pairs(narrow(sums), &mut rounded[at..]);
                            }
                        }
                    }
                    self.pairs(rounded, short).as_columns(turned);
                    for (panel, turned) in turned.chunks_exact(short * PANEL).enumerate() {
                        for first in (0..rows).step_by(BLOCK) {
                            blocks.multiply(&rounded[first * short..], short, turned, short, tile);
                            for (row, sums) in (first..).zip(tile.chunks_exact(PANEL)) {
                                let at = row * short + panel * LANES;
                                let sum = |n: usize| {
                                    let gram = _mm512_mul_ps(b, numbers(&gram[2 * at + n..]));
                                    _mm512_fmadd_ps(c, numbers(&sums[n..]), gram)
                                };
                                put_pairs(narrow([sum(0), sum(LANES)]), &mut poly[at..]);
                            }
                        }
                    }
                    for (panel, panels) in panels.chunks_exact(short * PANEL).enumerate() {
                        for first in (0..rows).step_by(BLOCK) {
                            blocks.multiply(&poly[first * short..], short, panels, short, tile);
                            for (row, sums) in (first..).zip(tile.chunks_exact(PANEL)) {
                                let y = &mut y[row * half + panel * LANES..];
                                let old = wide(y);
                                let sum = |n: usize| {
                                    _mm512_fmadd_ps(a, old[n], numbers(&sums[n * LANES..]))
                                };
                                put_pairs(narrow([sum(0), sum(1)]), y);
                            }
                        }
                    }
                }
            },
        );
    }

    /// The rows of a matrix of as many.
    fn pairs<'a>(&self, pairs: &'a [u32], width: usize) -> Rows<'a> {
        Rows {
            pairs,
            stride: width,
            count: self.rows,
            width,
        }
    }
}

/// The first 32 numbers.
#[inline]
#[target_feature(enable = "avx512f")]
fn wide(x: &[u32]) -> [__m512; 2] {
    let x = crate::bf16::pairs(x);
    [_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64::<1>(x)]
        .map(|half| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half))))
}
