//! Causal attention of bfloat16 queries, keys and values with float32 sums, and its gradients.
//!
//! A query sees its own key and `window` to its left. Scores are bounded (queries and keys are
//! normalised), so no maximum is subtracted. As in FlashAttention-2 (arXiv 2307.08691), scores are
//! computed again for the gradients, and the gradient of a score is w (dw - sum(y dy)).
//!
//! Axes: B batch, T time, H query heads, G key/value heads, K head size. Work is cut into units that
//! share nothing, whatever the number of threads. A block of queries is computed in groups of 8
//! against panels of 32 keys; what a group does not see is left out.
#![allow(unsafe_code)]

use std::arch::x86_64::*;
use std::ops::Range;

use crate::amx::{BLOCK, Blocks, TILE, sums};
use crate::bf16::{GROUP, LANES, PANEL, Rows, Sums, exp, narrow, numbers, paired, put, put_pairs};
use crate::out::Out;
use crate::scratch::{self, floats};

/// Queries of a unit of `forward`, and of a block of `backward`.
const FORWARD: usize = 128;
const BACKWARD: usize = 64;

/// The sizes of one call.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub batch: usize,
    pub time: usize,
    pub heads: usize,
    pub groups: usize, // of key/value heads, a divisor of `heads`
    pub size: usize,   // a multiple of 32
    pub window: usize,
}

/// The operands: q [B,T,H,K], k and v [B,T,G,K], in pairs.
#[derive(Clone, Copy)]
pub struct Operands<'a> {
    pub q: &'a [u32],
    pub k: &'a [u32],
    pub v: &'a [u32],
}

/// What `backward` needs of `forward`, y [B,T,H,K] and total [B,H,T], and the gradient of y.
#[derive(Clone, Copy)]
pub struct Saved<'a> {
    pub y: &'a [f32],
    pub total: &'a [f32],
    pub dy: &'a [f32],
}

impl Shape {
    /// How many units `forward` has.
    pub fn forward_units(&self) -> usize {
        self.backward_units() * self.time.div_ceil(FORWARD)
    }

    /// How many units `backward` has.
    pub fn backward_units(&self) -> usize {
        self.batch * self.groups
    }

    /// Where the row of a head lies among `heads`.
    fn place(&self, b: usize, t: usize, head: usize, heads: usize) -> usize {
        ((b * self.time + t) * heads + head) * self.size
    }

    /// Some rows of a head among `heads`.
    fn rows<'a>(
        &self,
        x: &'a [u32],
        b: usize,
        t: Range<usize>,
        head: usize,
        heads: usize,
    ) -> Rows<'a> {
        Rows {
            pairs: &x[self.place(b, t.start, head, heads) / 2..],
            stride: heads * self.size / 2,
            count: t.len(),
            width: self.size / 2,
        }
    }

    /// The query heads of a group.
    fn heads_of(&self, group: usize) -> Range<usize> {
        let repeats = self.heads / self.groups;
        group * repeats..(group + 1) * repeats
    }

    /// The panels of keys that some query of these sees.
    fn seen(&self, queries: Range<usize>) -> Range<usize> {
        queries.start.saturating_sub(self.window) / PANEL..queries.end.div_ceil(PANEL)
    }

    /// Scores of the queries from `query` with a panel as weights: exponentials, 0 for unseen keys.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn weigh(&self, scores: &mut Sums, query: usize, panel: usize) {
        let key = panel * PANEL;
        let whole = key + PANEL <= query + 1 && key + self.window >= query + GROUP - 1;
        for (n, row) in scores.iter_mut().enumerate() {
            for (half, x) in row.iter_mut().enumerate() {
                *x = exp(*x);
                if !whole {
                    let last = (query + n) as i64 - (key + half * LANES) as i64; // that is seen
                    let below = |bits: i64| ((1_u32 << bits.clamp(0, 16)) - 1) as u16;
                    let seen = below(last + 1) & !below(last - self.window as i64);
                    *x = _mm512_maskz_mov_ps(seen, *x);
                }
            }
        }
    }

    /// One unit of what queries attend: y [B,T,H,K], and the sums of their weights [B,H,T].
    ///
    /// # Safety
    /// The operands and results must be of these sizes, the processor `bf16::able`, `unit` below
    /// `forward_units` and given once.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub unsafe fn forward(&self, unit: usize, x: Operands, y: Out, total: Out) {
        // Later blocks see more keys, so they come first
        let (block, rest) = (unit / self.backward_units(), unit % self.backward_units());
        let (b, g) = (rest / self.groups, rest % self.groups);
        let start = (self.time.div_ceil(FORWARD) - 1 - block) * FORWARD;
        let queries = start..self.time.min(start + FORWARD);
        let keys = self.seen(queries.clone());
        let span = keys.start * PANEL..self.time.min(keys.end * PANEL);
        let (panels, half) = (keys.len(), self.size / 2);
        let held = panels * PANEL * half;
        let lengths = [
            held,
            held,
            FORWARD * half,
            FORWARD * panels * LANES,
            FORWARD * LANES,
            TILE,
        ];
        scratch::with(lengths, |[k, v, q, weights, rests, tile]| {
            let (blocks, tile, rests) = (Blocks::new(), floats(tile), floats(rests));
            self.rows(x.k, b, span.clone(), g, self.groups)
                .as_columns(k);
            self.rows(x.v, b, span, g, self.groups).as_rows(v);
            for head in self.heads_of(g) {
                copy(self.rows(x.q, b, queries.clone(), head, self.heads), q);
                rests.fill(0.0);
                for panel in 0..panels {
                    for first in (0..queries.len()).step_by(BLOCK) {
                        let query = start + first;
                        let seen = self.seen(query..query + BLOCK);
                        if !seen.contains(&(keys.start + panel)) {
                            continue;
                        }
                        let k = &k[panel * PANEL * half..];
                        blocks.multiply(&q[first * half..], half, k, half, tile);
                        for row in (0..BLOCK).step_by(GROUP) {
                            let mut scores = sums(tile, row);
                            self.weigh(&mut scores, query + row, keys.start + panel);
                            for (row, w) in (first + row..).zip(scores) {
                                let sum = &mut rests[row * LANES..];
                                put(_mm512_add_ps(numbers(sum), _mm512_add_ps(w[0], w[1])), sum);
                                put_pairs(
                                    narrow(w),
                                    &mut weights[(row * panels + panel) * LANES..],
                                );
                            }
                        }
                    }
                }
                let mut totals = [1.0; FORWARD];
                for (row, sum) in totals[..queries.len()].iter_mut().zip(rests.chunks(LANES)) {
                    *row = _mm512_reduce_add_ps(numbers(sum));
                }
                // SAFETY: these rows are this unit's
                unsafe { total.at((b * self.heads + head) * self.time + start, queries.len()) }
                    .copy_from_slice(&totals[..queries.len()]);
                for (column, v) in v.chunks_exact(panels * LANES * PANEL).enumerate() {
                    for first in (0..queries.len()).step_by(BLOCK) {
                        let seen = self.seen(start + first..start + first + BLOCK);
                        let key = (seen.start - keys.start) * LANES; // in pairs
                        let (w, v) = (&weights[first * panels * LANES + key..], &v[key * PANEL..]);
                        blocks.multiply(w, panels * LANES, v, seen.len() * LANES, tile);
                        for (row, sum) in (first..queries.len()).zip(tile.chunks_exact(PANEL)) {
                            let at = self.place(b, start + row, head, self.heads) + column * PANEL;
                            let inverse = _mm512_set1_ps(1.0 / totals[row]);
                            // SAFETY: as above
                            let y = unsafe { y.at(at, PANEL) };
                            put(_mm512_mul_ps(numbers(sum), inverse), y);
                            put(
                                _mm512_mul_ps(numbers(&sum[LANES..]), inverse),
                                &mut y[LANES..],
                            );
                        }
                    }
                }
            }
        });
    }

    /// One unit of the gradients: those of q, k and v, of a group's heads in one row of the batch.
    ///
    /// `y` and `total` are those of `forward`, `dy` [B,T,H,K] is the gradient of y.
    ///
    /// # Safety
    /// As `forward`, with `unit` below `backward_units`.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub unsafe fn backward(&self, unit: usize, x: Operands, saved: Saved, grads: [Out; 3]) {
        let (b, g) = (unit / self.groups, unit % self.groups);
        let (panels, half) = (self.time.div_ceil(PANEL), self.size / 2);
        let (held, block) = (panels * PANEL * half, BACKWARD * half);
        let [dq, dk, dv] = grads;
        let lengths = [
            held,
            held,
            held,
            4 * block,
            BACKWARD * panels * LANES,
            BACKWARD * LANES * 2,
            2 * TILE,
        ];
        scratch::with(
            lengths,
            |[k, k_rows, v, queries, by_scores, tile, products]| {
                let blocks = Blocks::new();
                let (product, other) = floats(products).split_at_mut(TILE);
                let keys = self.rows(x.k, b, 0..self.time, g, self.groups);
                keys.as_columns(k);
                keys.as_rows(k_rows);
                self.rows(x.v, b, 0..self.time, g, self.groups)
                    .as_columns(v);
                for t in 0..self.time {
                    let at = self.place(b, t, g, self.groups);
                    // SAFETY: these rows are this unit's
                    unsafe {
                        (
                            dk.at(at, self.size).fill(0.0),
                            dv.at(at, self.size).fill(0.0),
                        )
                    };
                }
                let (q, queries) = queries.split_at_mut(block);
                let (q_rows, queries) = queries.split_at_mut(block);
                let (dy, dy_rows) = queries.split_at_mut(block);
                let (weights, scores) = tile.split_at_mut(BACKWARD * LANES);
                for start in (0..self.time).step_by(BACKWARD) {
                    let span = start..self.time.min(start + BACKWARD);
                    let seen = self.seen(span.clone());
                    for head in self.heads_of(g) {
                        copy(self.rows(x.q, b, span.clone(), head, self.heads), q);
                        let delta = self.divide(&saved, b, head, span.clone(), dy);
                        let packed = |pairs| Rows {
                            pairs,
                            stride: half,
                            count: BACKWARD,
                            width: half,
                        };
                        packed(q).as_rows(q_rows);
                        packed(dy).as_rows(dy_rows);
                        for panel in seen.clone() {
                            let mut rows = (0..span.len()).step_by(BLOCK);
                            let sees = |row: &usize| {
                                let query = start + row;
                                self.seen(query..query + BLOCK).contains(&panel)
                            };
                            let Some(first) = rows.find(sees) else {
                                continue;
                            };
                            let mut end = first;
                            for block in std::iter::once(first).chain(rows.take_while(sees)) {
                                end = block + BLOCK;
                                let of = panel * PANEL * half;
                                blocks.multiply(&q[block * half..], half, &k[of..], half, product);
                                blocks.multiply(&dy[block * half..], half, &v[of..], half, other);
                                for row in (block..end).step_by(GROUP) {
                                    let mut w = sums(product, row - block);
                                    let mut dw = sums(other, row - block);
                                    self.weigh(&mut w, start + row, panel);
                                    for r in 0..GROUP {
                                        let delta = _mm512_set1_ps(delta[row + r]);
                                        for h in 0..2 {
                                            dw[r][h] = _mm512_mul_ps(
                                                w[r][h],
                                                _mm512_sub_ps(dw[r][h], delta),
                                            );
                                        }
                                        let at = ((row + r) * panels + panel) * LANES;
                                        put_pairs(narrow(dw[r]), &mut by_scores[at..]);
                                    }
                                    for r in (0..GROUP).step_by(2) {
                                        for h in 0..2 {
                                            let at = (row + r) / 2 * PANEL + h * LANES;
                                            put_pairs(
                                                paired(w[r][h], w[r + 1][h]),
                                                &mut weights[at..],
                                            );
                                            put_pairs(
                                                paired(dw[r][h], dw[r + 1][h]),
                                                &mut scores[at..],
                                            );
                                        }
                                    }
                                }
                            }
                            for (tile, rows, grad) in
                                [(&*weights, &*dy_rows, dv), (&*scores, &*q_rows, dk)]
                            {
                                // SAFETY: as above
                                unsafe {
                                    self.add(
                                        (&blocks, &mut *product),
                                        tile,
                                        rows,
                                        first..end,
                                        (b, g, panel),
                                        grad,
                                    )
                                };
                            }
                        }
                        for (column, k) in k_rows.chunks_exact(panels * LANES * PANEL).enumerate() {
                            for first in (0..span.len()).step_by(BLOCK) {
                                let seen = self.seen(start + first..start + first + BLOCK);
                                let key = seen.start * LANES;
                                let (scores, row) = (first * panels * LANES + key, panels * LANES);
                                let (scores, k) = (&by_scores[scores..], &k[key * PANEL..]);
                                blocks.multiply(scores, row, k, seen.len() * LANES, product);
                                for (row, sum) in
                                    (first..span.len()).zip(product.chunks_exact(PANEL))
                                {
                                    let at = self.place(b, start + row, head, self.heads)
                                        + column * PANEL;
                                    // SAFETY: as above
                                    let dq = unsafe { dq.at(at, PANEL) };
                                    dq.copy_from_slice(sum);
                                }
                            }
                        }
                    }
                }
            },
        );
    }

    /// Adds the products of a panel's weights, [queries / 2, 32] in pairs of queries, with rows of
    /// these queries to the gradient of its keys or values.
    ///
    /// # Safety
    /// As `Out::at`, for the panel's rows.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn add(
        &self,
        (blocks, out): (&Blocks, &mut [f32]),
        tile: &[u32],
        rows: &[u32],
        of: Range<usize>,
        at: (usize, usize, usize),
        grad: Out,
    ) {
        let (b, g, panel) = at;
        let (first, pairs) = (of.start / 2 * PANEL, of.len() / 2);
        for (column, rows) in rows.chunks_exact(BACKWARD / 2 * PANEL).enumerate() {
            blocks.multiply_columns(&tile[first..], &rows[first..], pairs, out);
            for (key, sum) in (panel * PANEL..self.time).zip(out.chunks_exact(PANEL)) {
                let at = self.place(b, key, g, self.groups) + column * PANEL;
                // SAFETY: the caller's promise
                let grad = unsafe { grad.at(at, PANEL) };
                for at in [0, LANES] {
                    let sum = _mm512_add_ps(numbers(&grad[at..]), numbers(&sum[at..]));
                    put(sum, &mut grad[at..]);
                }
            }
        }
    }

    /// Writes dy over the sums of weights, rounded, in rows of pairs filled up with zeros; gives the
    /// sums of its products with y.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn divide(
        &self,
        saved: &Saved,
        b: usize,
        head: usize,
        t: Range<usize>,
        out: &mut [u32],
    ) -> [f32; BACKWARD] {
        let mut delta = [0.0; BACKWARD];
        let half = self.size / 2;
        out[t.len() * half..].fill(0);
        for ((out, delta), t) in out.chunks_exact_mut(half).zip(&mut delta).zip(t) {
            let at = self.place(b, t, head, self.heads);
            let (y, dy) = (&saved.y[at..][..self.size], &saved.dy[at..][..self.size]);
            let inverse =
                _mm512_set1_ps(1.0 / saved.total[(b * self.heads + head) * self.time + t]);
            let mut sum = _mm512_setzero_ps();
            for at in (0..self.size).step_by(PANEL) {
                let both = [at, at + LANES].map(|at| {
                    let dy = _mm512_mul_ps(numbers(&dy[at..]), inverse);
                    (dy, _mm512_mul_ps(dy, numbers(&y[at..])))
                });
                put_pairs(narrow(both.map(|(dy, _)| dy)), &mut out[at / 2..]);
                sum = _mm512_add_ps(sum, _mm512_add_ps(both[0].1, both[1].1));
            }
            *delta = _mm512_reduce_add_ps(sum);
        }
        delta
    }
}

/// Rows one after the other, filled up with zeros.
fn copy(rows: Rows, out: &mut [u32]) {
    for (n, out) in out.chunks_exact_mut(rows.width).enumerate() {
        if n < rows.count {
            out.copy_from_slice(rows.row(n));
        } else {
            out.fill(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(count: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        (0..count)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (state >> 40) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

    /// Rounded to bfloat16 (towards zero, which is a bfloat16 as good as any), and as pairs.
    fn rounded(x: &mut [f32]) -> Vec<u32> {
        for x in x.iter_mut() {
            *x = f32::from_bits(x.to_bits() & 0xffff_0000);
        }
        x.chunks_exact(2)
            .map(|x| x[0].to_bits() >> 16 | x[1].to_bits() & 0xffff_0000)
            .collect()
    }

    /// y, total, and the gradients of q, k and v, in float64.
    fn plain(s: Shape, q: &[f32], k: &[f32], v: &[f32], dy: &[f32]) -> [Vec<f64>; 5] {
        let mut y = vec![0.0; q.len()];
        let mut totals = vec![0.0; s.batch * s.heads * s.time];
        let (mut dq, mut dk, mut dv) = (y.clone(), vec![0.0; k.len()], vec![0.0; k.len()]);
        let dot =
            |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
        for b in 0..s.batch {
            for head in 0..s.heads {
                let g = head / (s.heads / s.groups);
                for t in 0..s.time {
                    let own = s.place(b, t, head, s.heads)..s.place(b, t, head, s.heads) + s.size;
                    let seen: Vec<_> = (t.saturating_sub(s.window)..=t)
                        .map(|key| s.place(b, key, g, s.groups))
                        .collect();
                    let weights: Vec<f64> = seen
                        .iter()
                        .map(|&at| dot(&q[own.clone()], &k[at..at + s.size]).exp())
                        .collect();
                    let total: f64 = weights.iter().sum();
                    totals[(b * s.heads + head) * s.time + t] = total;
                    let dw: Vec<f64> = seen
                        .iter()
                        .map(|&at| dot(&dy[own.clone()], &v[at..at + s.size]))
                        .collect();
                    let mean: f64 = dw.iter().zip(&weights).map(|(dw, w)| dw * w / total).sum();
                    for ((&at, w), dw) in seen.iter().zip(&weights).zip(&dw) {
                        let (p, ds) = (w / total, w / total * (dw - mean));
                        for n in 0..s.size {
                            y[own.start + n] += p * f64::from(v[at + n]);
                            dv[at + n] += p * f64::from(dy[own.start + n]);
                            dq[own.start + n] += ds * f64::from(k[at + n]);
                            dk[at + n] += ds * f64::from(q[own.start + n]);
                        }
                    }
                }
            }
        }
        [y, totals, dq, dk, dv]
    }

    fn run(s: Shape, x: Operands, dy: &[f32]) -> [Vec<f32>; 5] {
        let count = s.batch * s.time * s.size;
        let mut y = vec![f32::NAN; count * s.heads];
        let mut total = vec![f32::NAN; s.batch * s.heads * s.time];
        let (mut dq, mut dk) = (y.clone(), vec![f32::NAN; count * s.groups]);
        let mut dv = dk.clone();
        let out = |x: &mut Vec<f32>| Out(x.as_mut_ptr());
        for unit in 0..s.forward_units() {
            // SAFETY: the sizes are right, and the processor was asked
            unsafe { s.forward(unit, x, out(&mut y), out(&mut total)) };
        }
        let grads = [out(&mut dq), out(&mut dk), out(&mut dv)];
        for unit in 0..s.backward_units() {
            let saved = Saved {
                y: &y,
                total: &total,
                dy,
            };
            // SAFETY: as above
            unsafe { s.backward(unit, x, saved, grads) };
        }
        [y, total, dq, dk, dv]
    }

    #[test]
    fn it_is_the_plain_formula_but_for_rounding() {
        if !crate::bf16::able() {
            return;
        }
        for (time, window) in [
            (1, 0),
            (7, 3),
            (63, 1000),
            (64, 1),
            (130, 64),
            (200, 50),
            (300, 129),
            (300, 300),
        ] {
            for (heads, groups, size) in [(2, 2, 32), (4, 2, 64), (3, 1, 128), (1, 1, 96)] {
                let s = Shape {
                    batch: 2,
                    time,
                    heads,
                    groups,
                    size,
                    window,
                };
                let mut q = noise(2 * time * heads * size, 1);
                let (mut k, mut v) = (
                    noise(2 * time * groups * size, 2),
                    noise(2 * time * groups * size, 3),
                );
                let dy = noise(q.len(), 4);
                q.iter_mut().for_each(|q| *q *= 0.5);
                let pairs = [&mut q, &mut k, &mut v].map(|x| rounded(x));
                let x = Operands {
                    q: &pairs[0],
                    k: &pairs[1],
                    v: &pairs[2],
                };
                let want = plain(s, &q, &k, &v, &dy);
                let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
                let scale = [0, 2, 3, 4]
                    .map(|n| norm(&want[n]))
                    .into_iter()
                    .fold(0.0, f64::max);
                for (n, (got, want)) in run(s, x, &dy).iter().zip(&want).enumerate() {
                    let error: Vec<f64> = got
                        .iter()
                        .zip(want)
                        .map(|(a, b)| f64::from(*a) - b)
                        .collect();
                    let most = if n == 1 {
                        1e-5 * norm(want)
                    } else {
                        1e-2 * scale
                    };
                    assert!(
                        norm(&error) < most,
                        "{s:?} {n}: {} of {}",
                        norm(&error),
                        norm(want)
                    );
                }
            }
        }
    }
}
