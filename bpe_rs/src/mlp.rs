//! A block's second half, y = x + relu^2(norm(x) W1) W2, and its gradients.
//!
//! As `model.gpt` writes it for XLA: operands of products are bfloat16, sums float32. What lies
//! between the products never leaves a core's cache but for what the gradients need: u = norm(x) W1,
//! and the operands of the weights' gradients, which are sums over all rows. Units share nothing,
//! whatever the number of threads.
//!
//! Axes: N rows, D width, F hidden, M rows filled up to a multiple of a unit's.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use crate::amx::{BLOCK, Blocks, TILE};
use crate::bf16::{LANES, PANEL, Rows, narrow, numbers, paired, put, put_pairs, transposed};
use crate::out::Out;
use crate::rows::{UNIT, put_two, scale, scaled, turned, unscaled};
use crate::scratch::{self, floats};

/// The sizes of one call; D and F are multiples of 32.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub rows: usize,
    pub width: usize,
    pub hidden: usize,
    pub epsilon: f32,
}

/// What the weights' gradients are made of, in pairs of rows: norm(x) and dy as [D, M / 2], the
/// gradient of u and relu^2(u) in panels [F / 32, M / 2, 32].
#[derive(Clone, Copy)]
pub struct Sides {
    pub x: Out<u32>,
    pub dy: Out<u32>,
    pub du: Out<u32>,
    pub h: Out<u32>,
}

/// Two matrices in panels.
pub type Panels<'a> = [&'a [u32]; 2];

impl Shape {
    /// How many units `forward` and `backward` have.
    pub fn units(&self) -> usize {
        self.rows.div_ceil(UNIT)
    }

    /// Rows, filled up: M.
    pub fn filled(&self) -> usize {
        self.units() * UNIT
    }

    /// How many units `weights` has, and each of `pack` and `pack_columns`.
    pub fn weight_units(&self) -> usize {
        (self.hidden / PANEL).max(1)
    }

    /// One unit of the two matrices in panels as the forward pass takes them: W1 [D,F], W2 [F,D].
    ///
    /// # Safety
    /// The operands and results must be of these sizes, the processor `bf16::able`, `unit` below
    /// the number of units and given once.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub unsafe fn pack(&self, unit: usize, up: &[u32], down: &[u32], out: [Out<u32>; 2]) {
        let (half, deep) = (self.width / 2, self.hidden / 2);
        let wide = |pairs, stride, count, width| Rows {
            pairs,
            stride,
            count,
            width,
        };
        // SAFETY: these panels are this unit's
        unsafe {
            wide(&up[unit * LANES..], deep, self.width, LANES)
                .as_rows(out[0].at(unit * half * PANEL, half * PANEL));
            // of W2's panels 16 pairs of rows
            let rows = wide(&down[unit * PANEL * half..], half, PANEL, half);
            for panel in 0..self.width / PANEL {
                let one = wide(&rows.pairs[panel * LANES..], half, PANEL, LANES);
                one.as_rows(out[1].at((panel * deep + unit * LANES) * PANEL, LANES * PANEL));
            }
        }
    }

    /// One unit of the two matrices transposed, in panels, as the gradients take them.
    ///
    /// # Safety
    /// As `pack`.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub unsafe fn pack_columns(&self, unit: usize, up: &[u32], down: &[u32], out: [Out<u32>; 2]) {
        let (half, deep) = (self.width / 2, self.hidden / 2);
        // SAFETY: these panels are this unit's
        unsafe {
            let rows = Rows {
                pairs: &down[unit * PANEL * half..],
                stride: half,
                count: PANEL,
                width: half,
            };
            rows.as_columns(out[1].at(unit * half * PANEL, half * PANEL));
            for panel in 0..self.width / PANEL {
                let rows = Rows {
                    pairs: &up[panel * PANEL * deep + unit * LANES..],
                    stride: deep,
                    count: PANEL,
                    width: LANES,
                };
                rows.as_columns(out[0].at((panel * deep + unit * LANES) * PANEL, LANES * PANEL));
            }
        }
    }

    /// One unit of y [N,D] and u [N,F], from x [N,D] and `pack`'s matrices.
    ///
    /// # Safety
    /// As `pack`.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub unsafe fn forward(&self, unit: usize, x: &[f32], [up, down]: Panels, y: Out, u: Out) {
        let (width, half, deep) = (self.width, self.width / 2, self.hidden / 2);
        let rows = unit * UNIT..self.rows.min((unit + 1) * UNIT);
        scratch::with([UNIT * half, UNIT * deep, TILE], |[normed, h, tile]| {
            let (blocks, tile) = (Blocks::new(), floats(tile));
            for (row, normed) in rows.clone().zip(normed.chunks_exact_mut(half)) {
                let x = &x[row * width..][..width];
                scaled(x, scale(x, self.epsilon), normed);
            }
            for (panel, up) in up.chunks_exact(half * PANEL).enumerate() {
                for first in (0..rows.len()).step_by(BLOCK) {
                    blocks.multiply(&normed[first * half..], half, up, half, tile);
                    for (row, sums) in (first..rows.len()).zip(tile.chunks_exact(PANEL)) {
                        let z = [numbers(sums), numbers(&sums[LANES..])];
                        let at = (rows.start + row) * self.hidden + panel * PANEL;
                        // SAFETY: these rows are this unit's
                        put_two(z, unsafe { u.at(at, PANEL) });
                        let squares = z.map(|z| _mm512_mul_ps(relu(z), relu(z)));
                        put_pairs(narrow(squares), &mut h[row * deep + panel * LANES..]);
                    }
                }
            }
            for (panel, down) in down.chunks_exact(deep * PANEL).enumerate() {
                for first in (0..rows.len()).step_by(BLOCK) {
                    blocks.multiply(&h[first * deep..], deep, down, deep, tile);
                    for (row, sums) in (first..rows.len()).zip(tile.chunks_exact(PANEL)) {
                        let at = (rows.start + row) * width + panel * PANEL;
                        let sum = |n| _mm512_add_ps(numbers(&x[at + n..]), numbers(&sums[n..]));
                        // SAFETY: as above
                        put_two([sum(0), sum(LANES)], unsafe { y.at(at, PANEL) });
                    }
                }
            }
        });
    }

    /// One unit of dx [N,D], and of what `weights` takes, from x, u, dy and `pack_columns`' matrices.
    ///
    /// # Safety
    /// As `pack`.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub unsafe fn backward(
        &self,
        unit: usize,
        [x, u, dy]: [&[f32]; 3],
        [up, down]: Panels,
        dx: Out,
        sides: Sides,
    ) {
        let (width, half, deep) = (self.width, self.width / 2, self.hidden / 2);
        let start = unit * UNIT;
        let count = UNIT.min(self.rows - start);
        let lengths = [UNIT * half, UNIT * half, UNIT * deep, UNIT * width, TILE];
        scratch::with(lengths, |[normed, narrow_dy, du, dnormed, tile]| {
            let (blocks, tile, dnormed) = (Blocks::new(), floats(tile), floats(dnormed));
            for row in 0..UNIT {
                let (a, b) = (
                    &mut normed[row * half..][..half],
                    &mut narrow_dy[row * half..][..half],
                );
                if row < count {
                    let (x, dy) = (&x[(start + row) * width..], &dy[(start + row) * width..]);
                    scaled(&x[..width], scale(&x[..width], self.epsilon), a);
                    scaled(&dy[..width], 1.0, b);
                } else {
                    a.fill(0);
                    b.fill(0);
                }
            }
            for (panel, down) in down.chunks_exact(half * PANEL).enumerate() {
                for first in (0..UNIT).step_by(BLOCK) {
                    blocks.multiply(&narrow_dy[first * half..], half, down, half, tile);
                    for row in (0..BLOCK).step_by(2) {
                        let two = [0, 1].map(|n| {
                            let row = first + row + n;
                            let at = (start + row) * self.hidden + panel * PANEL;
                            [0, LANES].map(|n| match row < count {
                                true => relu(numbers(&u[at + n..])),
                                false => _mm512_setzero_ps(),
                            })
                        });
                        let grad = |n: usize, part: usize| {
                            let sum = numbers(&tile[(row + n) * PANEL + part * LANES..]);
                            let relu = two[n][part];
                            _mm512_mul_ps(sum, _mm512_add_ps(relu, relu))
                        };
                        let grads = [0, 1].map(|n| [grad(n, 0), grad(n, 1)]);
                        for (n, grad) in grads.into_iter().enumerate() {
                            let at = (first + row + n) * deep + panel * LANES;
                            put_pairs(narrow(grad), &mut du[at..]);
                        }
                        let place = (panel * self.filled() + start + first + row) / 2 * PANEL;
                        // SAFETY: these rows are this unit's
                        let (side, other) =
                            unsafe { (sides.du.at(place, PANEL), sides.h.at(place, PANEL)) };
                        for part in 0..2 {
                            let square = |n: usize| _mm512_mul_ps(two[n][part], two[n][part]);
                            let at = part * LANES;
                            put_pairs(paired(grads[0][part], grads[1][part]), &mut side[at..]);
                            put_pairs(paired(square(0), square(1)), &mut other[at..]);
                        }
                    }
                }
            }
            for (panel, up) in up.chunks_exact(deep * PANEL).enumerate() {
                for first in (0..UNIT).step_by(BLOCK) {
                    blocks.multiply(&du[first * deep..], deep, up, deep, tile);
                    for (row, sums) in tile.chunks_exact(PANEL).enumerate() {
                        dnormed[(first + row) * width + panel * PANEL..][..PANEL]
                            .copy_from_slice(sums);
                    }
                }
            }
            for row in 0..count {
                let at = (start + row) * width;
                // SAFETY: as above
                let dx = unsafe { dx.at(at, width) };
                let (x, dy) = (&x[at..][..width], &dy[at..][..width]);
                unscaled(x, self.epsilon, &dnormed[row * width..][..width], dx);
                for at in (0..width).step_by(LANES) {
                    put(
                        _mm512_add_ps(numbers(&dx[at..]), numbers(&dy[at..])),
                        &mut dx[at..],
                    );
                }
            }
            // SAFETY: as above
            unsafe {
                turned(normed, width, du, (start, self.filled()), sides.x);
                turned(narrow_dy, width, du, (start, self.filled()), sides.dy);
            }
        });
    }

    /// One unit of the gradients of W1 [D,F] and W2 [F,D], from all that `backward` wrote.
    ///
    /// # Safety
    /// As `pack`.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub unsafe fn weights(&self, unit: usize, sides: Sides, dup: Out, ddown: Out) {
        let (width, deep) = (self.width, self.filled() / 2);
        // SAFETY: all of them are written, and nobody writes now
        let [x, dy] = [&sides.x, &sides.dy].map(|side| unsafe { &*side.at(0, width * deep) });
        let held = deep * PANEL;
        // SAFETY: as above
        let [du, h] = [&sides.du, &sides.h].map(|side| unsafe { &*side.at(unit * held, held) });
        scratch::with([TILE], |[tile]| {
            let (blocks, tile) = (Blocks::new(), floats(tile));
            for first in (0..width).step_by(BLOCK) {
                blocks.multiply(&x[first * deep..], deep, du, deep, tile);
                for (n, sums) in tile.chunks_exact(PANEL).enumerate() {
                    let at = (first + n) * self.hidden + unit * PANEL;
                    // SAFETY: these columns are this unit's
                    unsafe { dup.at(at, PANEL) }.copy_from_slice(sums);
                }
                blocks.multiply(&dy[first * deep..], deep, h, deep, tile);
                for (row, column) in [(0, 0), (0, LANES), (LANES, 0), (LANES, LANES)] {
                    let mut part = [_mm512_setzero_si512(); LANES];
                    for (n, part) in part.iter_mut().enumerate() {
                        let sums = numbers(&tile[(row + n) * PANEL + column..]);
                        *part = _mm512_castps_si512(sums);
                    }
                    for (n, part) in transposed(part).into_iter().enumerate() {
                        let at = (unit * PANEL + column + n) * width + first + row;
                        // SAFETY: these rows are this unit's
                        put(_mm512_castsi512_ps(part), unsafe { ddown.at(at, LANES) });
                    }
                }
            }
        });
    }
}

/// The larger of x and 0; NaN stays NaN.
#[inline]
#[target_feature(enable = "avx512f")]
fn relu(x: __m512) -> __m512 {
    _mm512_max_ps(_mm512_setzero_ps(), x)
}
