//! Products of rows with up to three matrices at once, y = norm(x) W or x W, and their gradients.
//!
//! Operands are bfloat16, sums float32. Rows are normalised, rounded and multiplied while they are in a
//! core's cache. Units share nothing, whatever the number of threads.
//!
//! Axes: N rows, D width, F columns of all matrices, M rows filled up to a multiple of a unit's.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use crate::amx::{BLOCK, Blocks, TILE};
use crate::bf16::{LANES, PANEL, Rows, numbers, paired, put_pairs};
use crate::out::Out;
use crate::rows::{UNIT, put_two, scale, scaled, turned, unscaled};
use crate::scratch::{self, floats};

/// Matrices at once, at most.
pub const MOST: usize = 3;

/// The sizes of one call; D and the columns of each matrix are multiples of 32, and may be 0.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub rows: usize,
    pub width: usize,
    pub columns: [usize; MOST],
    pub epsilon: Option<f32>, // of the norm, where there is one
}

/// What the gradients of the matrices are made of, in pairs of rows: the rows as [D, M / 2], the
/// gradients of the results in panels [F / 32, M / 2, 32].
#[derive(Clone, Copy)]
pub struct Sides {
    pub x: Out<u32>,
    pub dy: Out<u32>,
}

impl Shape {
    /// How many units `forward` and `backward` have.
    pub fn units(&self) -> usize {
        self.rows.div_ceil(UNIT)
    }

    /// Rows, filled up: M.
    pub fn filled(&self) -> usize {
        self.units() * UNIT
    }

    /// How many units `pack`, `pack_columns` and `weights` have: panels of all matrices.
    pub fn panels(&self) -> usize {
        self.columns.iter().sum::<usize>() / PANEL
    }

    /// The matrix of a panel, and the panel's first column in it.
    fn place(&self, panel: usize) -> (usize, usize) {
        let mut column = panel * PANEL;
        for (matrix, columns) in self.columns.into_iter().enumerate() {
            if column < columns {
                return (matrix, column);
            }
            column -= columns;
        }
        unreachable!("there is no panel {panel}")
    }

    /// A panel of the matrices [D, columns], in pairs of columns.
    fn panel<'a>(&self, panel: usize, matrices: [&'a [u32]; MOST]) -> (usize, Rows<'a>) {
        let (matrix, column) = self.place(panel);
        let rows = Rows {
            pairs: &matrices[matrix][column / 2..],
            stride: self.columns[matrix] / 2,
            count: self.width,
            width: LANES,
        };
        (matrix, rows)
    }

    /// One unit of the matrices in panels as the forward pass takes them.
    ///
    /// # Safety
    /// The operands and results must be of these sizes, the processor `bf16::able`, `unit` below
    /// the number of units and given once.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub unsafe fn pack(&self, unit: usize, matrices: [&[u32]; MOST], out: Out<u32>) {
        let held = self.width.next_multiple_of(PANEL) / 2 * PANEL;
        // SAFETY: this panel is this unit's
        let out = unsafe { out.at(unit * held, held) };
        self.panel(unit, matrices).1.as_rows(out);
    }

    /// One unit of the matrices transposed, in panels [D / 32, F / 2, 32], as the gradients take them.
    ///
    /// # Safety
    /// As `pack`.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub unsafe fn pack_columns(&self, unit: usize, matrices: [&[u32]; MOST], out: Out<u32>) {
        let (_, rows) = self.panel(unit, matrices);
        for panel in 0..self.width / PANEL {
            let rows = Rows {
                pairs: &rows.pairs[panel * PANEL * rows.stride..],
                count: PANEL,
                ..rows
            };
            let at = (panel * self.panels() + unit) * LANES * PANEL;
            // SAFETY: this part is this unit's
            rows.as_columns(unsafe { out.at(at, LANES * PANEL) });
        }
    }

    /// A row as it is multiplied.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn round(&self, x: &[f32], out: &mut [u32]) {
        let scale = self.epsilon.map_or(1.0, |epsilon| scale(x, epsilon));
        scaled(x, scale, out);
    }

    /// One unit of the results, [N, columns] of each matrix, from x [N,D] and `pack`'s panels.
    ///
    /// # Safety
    /// As `pack`.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub unsafe fn forward(&self, unit: usize, x: &[f32], panels: &[u32], y: [Out; MOST]) {
        let (width, half) = (self.width, self.width / 2);
        let rows = unit * UNIT..self.rows.min((unit + 1) * UNIT);
        scratch::with([UNIT * half, TILE], |[rounded, tile]| {
            let (blocks, tile) = (Blocks::new(), floats(tile));
            for (row, rounded) in rows.clone().zip(rounded.chunks_exact_mut(half)) {
                self.round(&x[row * width..][..width], rounded);
            }
            for (number, panel) in panels.chunks_exact(half * PANEL).enumerate() {
                let (matrix, column) = self.place(number);
                for first in (0..rows.len()).step_by(BLOCK) {
                    blocks.multiply(&rounded[first * half..], half, panel, half, tile);
                    for (row, sums) in (first..rows.len()).zip(tile.chunks_exact(PANEL)) {
                        let at = (rows.start + row) * self.columns[matrix] + column;
                        // SAFETY: these rows are this unit's
                        let y = unsafe { y[matrix].at(at, PANEL) };
                        put_two([numbers(sums), numbers(&sums[LANES..])], y);
                    }
                }
            }
        });
    }

    /// One unit of dx [N,D], and of what `weights` takes, from x, the gradients of the results, and
    /// `pack_columns`' panels.
    ///
    /// # Safety
    /// As `pack`.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub unsafe fn backward(
        &self,
        unit: usize,
        x: &[f32],
        dy: [&[f32]; MOST],
        panels: &[u32],
        dx: Out,
        sides: Sides,
    ) {
        let (width, half, deep) = (self.width, self.width / 2, self.panels() * LANES);
        let start = unit * UNIT;
        let count = UNIT.min(self.rows - start);
        let lengths = [UNIT * half, UNIT * half, UNIT * deep, UNIT * width, TILE];
        scratch::with(lengths, |[rounded, spare, grads, dnormed, tile]| {
            let (blocks, tile, dnormed) = (Blocks::new(), floats(tile), floats(dnormed));
            for (row, rounded) in rounded.chunks_exact_mut(half).enumerate() {
                if row < count {
                    self.round(&x[(start + row) * width..][..width], rounded);
                } else {
                    rounded.fill(0);
                }
            }
            for panel in 0..self.panels() {
                let (matrix, column) = self.place(panel);
                for row in (0..UNIT).step_by(2) {
                    let two = [row, row + 1].map(|row| {
                        let at = (start + row) * self.columns[matrix] + column;
                        [0, LANES].map(|n| match row < count {
                            true => numbers(&dy[matrix][at + n..]),
                            false => _mm512_setzero_ps(),
                        })
                    });
                    for (n, grad) in two.into_iter().enumerate() {
                        let at = (row + n) * deep + panel * LANES;
                        put_pairs(crate::bf16::narrow(grad), &mut grads[at..]);
                    }
                    let at = (panel * self.filled() + start + row) / 2 * PANEL;
                    // SAFETY: these rows are this unit's
                    let side = unsafe { sides.dy.at(at, PANEL) };
                    put_pairs(paired(two[0][0], two[1][0]), side);
                    put_pairs(paired(two[0][1], two[1][1]), &mut side[LANES..]);
                }
            }
            for (panel, matrix) in panels.chunks_exact(deep * PANEL).enumerate() {
                for first in (0..count).step_by(BLOCK) {
                    blocks.multiply(&grads[first * deep..], deep, matrix, deep, tile);
                    for (row, sums) in tile.chunks_exact(PANEL).enumerate() {
                        let at = (first + row) * width + panel * PANEL;
                        dnormed[at..][..PANEL].copy_from_slice(sums);
                    }
                }
            }
            for row in 0..count {
                let at = (start + row) * width;
                // SAFETY: as above
                let dx = unsafe { dx.at(at, width) };
                let dnormed = &dnormed[row * width..][..width];
                match self.epsilon {
                    Some(epsilon) => unscaled(&x[at..][..width], epsilon, dnormed, dx),
                    None => dx.copy_from_slice(dnormed),
                }
            }
            // SAFETY: as above
            unsafe { turned(rounded, width, spare, (start, self.filled()), sides.x) };
        });
    }

    /// One unit of the gradients of the matrices, from all that `backward` wrote.
    ///
    /// # Safety
    /// As `pack`.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub unsafe fn weights(&self, unit: usize, sides: Sides, grads: [Out; MOST]) {
        let (deep, held) = (self.filled() / 2, self.filled() / 2 * PANEL);
        let (matrix, column) = self.place(unit);
        // SAFETY: all of them are written, and nobody writes now
        let x: &[u32] = unsafe { sides.x.at(0, self.width * deep) };
        // SAFETY: as above
        let dy: &[u32] = unsafe { sides.dy.at(unit * held, held) };
        scratch::with([TILE], |[tile]| {
            let (blocks, tile) = (Blocks::new(), floats(tile));
            for first in (0..self.width).step_by(BLOCK) {
                blocks.multiply(&x[first * deep..], deep, dy, deep, tile);
                for (n, sums) in tile.chunks_exact(PANEL).enumerate() {
                    let at = (first + n) * self.columns[matrix] + column;
                    // SAFETY: these columns are this unit's
                    unsafe { grads[matrix].at(at, PANEL) }.copy_from_slice(sums);
                }
            }
        });
    }
}
