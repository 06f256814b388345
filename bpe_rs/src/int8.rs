//! Products of float32 rows with matrices of 8-bit integers, for decoding on a CPU.
//!
//! A row is rounded to 16-bit integers of one step, so that every product and sum is exact: the
//! result is the same to the last bit on any processor, whatever the order, and for any number of
//! rows. `jaxchat/model/kernels/int8.py` has the same formula in JAX.
//!
//! A matrix [K, C] is held in panels of 16 columns, [C / 16, K / 2, 16, 2]: what one instruction
//! multiplies by a pair of a row's integers lies together.
#![allow(unsafe_code)]

/// Columns of a panel.
pub const COLUMNS: usize = 16;
/// Largest magnitude of a row's integers: 127 * 128, so that two 8-bit numbers can hold one.
const LARGEST: f32 = 16_256.0;
/// Least magnitude of a row's largest number that counts as more than zero.
const TINY: f32 = 1e-30;
/// Pairs of products of at most 16,256 * 128 whose sum surely fits into 32 bits.
const BLOCK: usize = 512;

/// Sums of products of R rows with a panel.
type Sums<const R: usize> = [[i32; COLUMNS]; R];

/// Rows [R, K] as integers, each with the step that they count.
pub struct Rows {
    width: usize,
    values: Vec<i16>,
    steps: Vec<f32>,
}

impl Rows {
    /// Rounds rows of `width` numbers. A row that is not finite gets a step that is not either.
    pub fn round(x: &[f32], width: usize) -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has it
            return unsafe { x86::round(x, width) };
        }
        Self::round_plain(x, width)
    }

    #[inline(always)]
    fn round_plain(x: &[f32], width: usize) -> Self {
        let mut values = vec![0; x.len()];
        let mut steps = vec![0.0; x.len() / width];
        let rows = x.chunks_exact(width).zip(values.chunks_exact_mut(width));
        for ((x, values), step) in rows.zip(&mut steps) {
            // As integers, so that a NaN is the largest of all
            let most = x
                .iter()
                .fold(TINY.to_bits(), |a, b| a.max(b.abs().to_bits()));
            let inverse = LARGEST / f32::from_bits(most);
            for (value, x) in values.iter_mut().zip(x) {
                *value = (x * inverse).round_ties_even() as i32 as i16;
            }
            *step = f32::from_bits(most) * (1.0 / LARGEST);
        }
        Self {
            width,
            values,
            steps,
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.steps.len()
    }

    /// Gives `put` (row, panel, values) of the rows times each of some panels, scaled by [C].
    pub fn multiply(&self, panels: &[i8], scale: &[f32], put: impl FnMut(usize, usize, &[f32])) {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vnni") {
                return self.multiply_by(x86::Avx512, panels, scale, put);
            }
            if is_x86_feature_detected!("avx2") {
                return self.multiply_by(x86::Avx2, panels, scale, put);
            }
        }
        self.multiply_by(Plain, panels, scale, put);
    }

    fn multiply_by<S: Sum>(
        &self,
        sum: S,
        panels: &[i8],
        scale: &[f32],
        mut put: impl FnMut(usize, usize, &[f32]),
    ) {
        let panels = panels.chunks_exact(COLUMNS * self.width);
        for (number, (panel, scale)) in panels.zip(scale.chunks(COLUMNS)).enumerate() {
            let mut finish = |row: usize, sums: &[[f32; COLUMNS]]| {
                for (row, sums) in (row..).zip(sums) {
                    let mut values = [0.0; COLUMNS];
                    for ((value, sum), scale) in values.iter_mut().zip(sums).zip(scale) {
                        *value = sum * self.steps[row] * scale;
                    }
                    put(row, number, &values[..scale.len()]);
                }
            };
            let mut row = 0;
            while row < self.count() {
                row += match self.count() - row {
                    8.. => self.tile::<S, 8>(&sum, row, panel, &mut finish),
                    4.. => self.tile::<S, 4>(&sum, row, panel, &mut finish),
                    2.. => self.tile::<S, 2>(&sum, row, panel, &mut finish),
                    _ => self.tile::<S, 1>(&sum, row, panel, &mut finish),
                };
            }
        }
    }

    /// Gives `finish` the sums of R rows from `first` on with a panel, as float32; R.
    fn tile<S: Sum, const R: usize>(
        &self,
        sum: &S,
        first: usize,
        panel: &[i8],
        finish: &mut impl FnMut(usize, &[[f32; COLUMNS]]),
    ) -> usize {
        let (mut high, mut low) = ([[0; COLUMNS]; R], [[0; COLUMNS]; R]);
        let blocks = panel.chunks(2 * COLUMNS * BLOCK);
        for (number, block) in blocks.enumerate() {
            let place = 2 * BLOCK * number;
            let width = block.len() / COLUMNS;
            let x =
                std::array::from_fn(|r| &self.values[(first + r) * self.width + place..][..width]);
            let sums = sum.products::<R>(x, block);
            for r in 0..R {
                for c in 0..COLUMNS {
                    high[r][c] += sums[r][c] >> 7;
                    low[r][c] += sums[r][c] & 127;
                }
            }
        }
        let mut totals = [[0.0; COLUMNS]; R];
        for r in 0..R {
            for c in 0..COLUMNS {
                let carried = high[r][c] + (low[r][c] >> 7);
                totals[r][c] = carried as f32 * 128.0 + (low[r][c] & 127) as f32;
            }
        }
        finish(first, &totals);
        R
    }
}

/// A way to sum the products of rows [K] with a panel [K / 2, 16, 2], K at most 2 * BLOCK.
trait Sum {
    fn products<const R: usize>(&self, x: [&[i16]; R], panel: &[i8]) -> Sums<R>;
}

/// As any processor does it.
struct Plain;

impl Sum for Plain {
    fn products<const R: usize>(&self, x: [&[i16]; R], panel: &[i8]) -> Sums<R> {
        let mut sums = [[0; COLUMNS]; R];
        for (pair, q) in panel.chunks_exact(2 * COLUMNS).enumerate() {
            for r in 0..R {
                let (a, b) = (i32::from(x[r][2 * pair]), i32::from(x[r][2 * pair + 1]));
                for c in 0..COLUMNS {
                    sums[r][c] += a * i32::from(q[2 * c]) + b * i32::from(q[2 * c + 1]);
                }
            }
        }
        sums
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{COLUMNS, Rows, Sum, Sums};
    use std::arch::x86_64::*;

    /// AVX-512 with VNNI.
    pub struct Avx512;
    pub struct Avx2;

    /// Bytes of a panel for one pair.
    const PAIR: usize = 2 * COLUMNS;

    impl Sum for Avx512 {
        fn products<const R: usize>(&self, x: [&[i16]; R], panel: &[i8]) -> Sums<R> {
            // Several sums a row, so that an instruction does not wait for the one before
            // SAFETY: `multiply` found that the processor has them
            match R {
                1 => unsafe { avx512::<R, 8>(x, panel) },
                2 => unsafe { avx512::<R, 4>(x, panel) },
                4 => unsafe { avx512::<R, 2>(x, panel) },
                _ => unsafe { avx512::<R, 1>(x, panel) },
            }
        }
    }

    /// `Rows::round` with instructions that round.
    #[target_feature(enable = "avx2")]
    pub fn round(x: &[f32], width: usize) -> Rows {
        Rows::round_plain(x, width)
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn avx512<const R: usize, const N: usize>(x: [&[i16]; R], panel: &[i8]) -> Sums<R> {
        let pairs = panel.len() / PAIR;
        assert!(x.iter().all(|x| x.len() == 2 * pairs));
        let mut sums = [[_mm512_setzero_si512(); N]; R];
        let whole = pairs - pairs % N;
        let mut add = |pair: usize, n: usize| {
            // SAFETY: x has 2 * pairs numbers and the panel PAIR * pairs
            let q = unsafe { _mm256_loadu_si256(panel.as_ptr().add(PAIR * pair).cast()) };
            let q = _mm512_cvtepi8_epi16(q);
            for r in 0..R {
                // SAFETY: as above
                let two = unsafe { x[r].as_ptr().add(2 * pair).cast::<i32>().read_unaligned() };
                sums[r][n] = _mm512_dpwssd_epi32(sums[r][n], _mm512_set1_epi32(two), q);
            }
        };
        for pair in (0..whole).step_by(N) {
            for n in 0..N {
                add(pair + n, n);
            }
        }
        for pair in whole..pairs {
            add(pair, 0);
        }
        let mut found = [[0; COLUMNS]; R];
        for r in 0..R {
            let mut total = sums[r][0];
            for sum in &sums[r][1..] {
                total = _mm512_add_epi32(total, *sum);
            }
            // SAFETY: there is room for 16
            unsafe { _mm512_storeu_si512(found[r].as_mut_ptr().cast(), total) };
        }
        found
    }

    impl Sum for Avx2 {
        fn products<const R: usize>(&self, x: [&[i16]; R], panel: &[i8]) -> Sums<R> {
            // SAFETY: `multiply` found that the processor has it
            unsafe { avx2(x, panel) }
        }
    }

    #[target_feature(enable = "avx2")]
    #[allow(clippy::needless_range_loop)] // the half is a place in the panel, too
    fn avx2<const R: usize>(x: [&[i16]; R], panel: &[i8]) -> Sums<R> {
        let pairs = panel.len() / PAIR;
        assert!(x.iter().all(|x| x.len() == 2 * pairs));
        let mut sums = [[_mm256_setzero_si256(); 2]; R];
        for pair in 0..pairs {
            for half in 0..2 {
                // SAFETY: x has 2 * pairs numbers and the panel PAIR * pairs
                let q = unsafe { panel.as_ptr().add(PAIR * pair + COLUMNS * half) };
                let q = _mm256_cvtepi8_epi16(unsafe { _mm_loadu_si128(q.cast()) });
                for r in 0..R {
                    // SAFETY: as above
                    let two = unsafe { x[r].as_ptr().add(2 * pair).cast::<i32>().read_unaligned() };
                    let products = _mm256_madd_epi16(_mm256_set1_epi32(two), q);
                    sums[r][half] = _mm256_add_epi32(sums[r][half], products);
                }
            }
        }
        let mut found = [[0; COLUMNS]; R];
        for r in 0..R {
            for half in 0..2 {
                // SAFETY: there is room for 8 and 8
                unsafe {
                    let at = found[r].as_mut_ptr().add(COLUMNS / 2 * half);
                    _mm256_storeu_si256(at.cast(), sums[r][half]);
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of no order.
    fn noise(count: usize, seed: u64) -> impl Iterator<Item = u64> {
        let mut state = seed;
        std::iter::repeat_with(move || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            state >> 33
        })
        .take(count)
    }

    fn product(sum: impl Sum, rows: &Rows, panels: &[i8], scale: &[f32]) -> Vec<Vec<u32>> {
        let mut y = vec![vec![0; scale.len()]; rows.count()];
        rows.multiply_by(sum, panels, scale, |row, panel, values| {
            for (c, value) in values.iter().enumerate() {
                y[row][panel * COLUMNS + c] = value.to_bits();
            }
        });
        y
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        for (rows, width, columns) in [
            (1usize, 2usize, 1usize),
            (3, 10, 16),
            (8, 256, 40),
            (15, 3000, 33),
        ] {
            let x: Vec<f32> = noise(rows * width, 1)
                .map(|n| n as f32 / 2e9 - 0.5)
                .collect();
            let panels: Vec<i8> = noise(columns.div_ceil(COLUMNS) * COLUMNS * width, 2)
                .map(|n| (n % 255) as i8)
                .collect();
            let scale: Vec<f32> = noise(columns, 3).map(|n| n as f32).collect();
            let rows = Rows::round(&x, width);
            let plain = product(Plain, &rows, &panels, &scale);
            #[cfg(target_arch = "x86_64")]
            {
                if is_x86_feature_detected!("avx2") {
                    assert_eq!(product(x86::Avx2, &rows, &panels, &scale), plain);
                }
                if is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vnni") {
                    assert_eq!(product(x86::Avx512, &rows, &panels, &scale), plain);
                }
            }
        }
    }

    #[test]
    fn the_largest_sums_fit() {
        let width = 4 * BLOCK;
        let rows = Rows::round(&vec![-1.0; width], width);
        let exact = 16_256.0 * 128.0 * width as f32 * (1.0 / LARGEST);
        rows.multiply(&vec![-128; width * COLUMNS], &[1.0], |_, _, values| {
            assert_eq!(values, [exact]);
        });
    }

    #[test]
    fn a_row_that_is_not_finite_gives_nothing_finite() {
        for bad in [f32::NAN, f32::INFINITY] {
            let rows = Rows::round(&[1.0, bad, 1.0, 1.0], 4);
            rows.multiply(&[1; 4 * COLUMNS], &[1.0], |_, _, values| {
                assert!(!values[0].is_finite());
            });
        }
    }
}
