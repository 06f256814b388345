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
/// What a number is added to that its nearest integer, ties to even, be the last bits of the sum.
const UNIT: f32 = 12_582_912.0;
/// Least magnitude of a row's largest number that counts as more than zero.
const TINY: f32 = 1e-30;
/// Pairs of products of at most 16,256 * 128 whose sum surely fits into 32 bits.
const BLOCK: usize = 512;

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
                *value = (x * inverse + UNIT).to_bits() as i16;
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
                // SAFETY: the processor has them
                return unsafe { x86::multiply_avx512(self, panels, scale, put) };
            }
            if is_x86_feature_detected!("avx2") {
                // SAFETY: the processor has it
                return unsafe { x86::multiply_avx2(self, panels, scale, put) };
            }
        }
        self.multiply_by(&Plain, panels, scale, put);
    }

    /// Two panels at a time, so that what is loaded of a row is used twice.
    #[inline(always)]
    fn multiply_by<S: Sum>(
        &self,
        sum: &S,
        panels: &[i8],
        scale: &[f32],
        mut put: impl FnMut(usize, usize, &[f32]),
    ) {
        let mut panels = panels.chunks_exact(COLUMNS * self.width);
        let mut scales = scale.chunks(COLUMNS);
        let mut number = 0;
        while let (Some(panel), Some(scale)) = (panels.next(), scales.next()) {
            match (panels.next(), scales.next()) {
                (Some(second), Some(second_scale)) => {
                    let (panels, scales) = ([panel, second], [scale, second_scale]);
                    self.multiply_panels(sum, number, panels, scales, &mut put);
                }
                _ => self.multiply_panels(sum, number, [panel], [scale], &mut put),
            }
            number += 2;
        }
    }

    #[inline(always)]
    fn multiply_panels<S: Sum, const P: usize>(
        &self,
        sum: &S,
        number: usize,
        panels: [&[i8]; P],
        scales: [&[f32]; P],
        put: &mut impl FnMut(usize, usize, &[f32]),
    ) {
        let mut finish = |row: usize, panel: usize, sums: &[f32; COLUMNS]| {
            let mut values = [0.0; COLUMNS];
            for ((value, sum), scale) in values.iter_mut().zip(sums).zip(scales[panel]) {
                *value = sum * self.steps[row] * scale;
            }
            put(row, number + panel, &values[..scales[panel].len()]);
        };
        let mut row = 0;
        while row < self.count() {
            row += match self.count() - row {
                4.. => self.tile::<S, 4, P>(sum, row, panels, &mut finish),
                2.. => self.tile::<S, 2, P>(sum, row, panels, &mut finish),
                _ => self.tile::<S, 1, P>(sum, row, panels, &mut finish),
            };
        }
    }

    /// Gives `finish` (row, panel, sums) of R rows from `first` on with P panels; R.
    #[inline(always)]
    fn tile<S: Sum, const R: usize, const P: usize>(
        &self,
        sum: &S,
        first: usize,
        panels: [&[i8]; P],
        finish: &mut impl FnMut(usize, usize, &[f32; COLUMNS]),
    ) -> usize {
        let x = std::array::from_fn(|r| &self.values[(first + r) * self.width..][..self.width]);
        for (p, sums) in sum.products::<R, P>(x, panels).iter().enumerate() {
            for (r, sums) in sums.iter().enumerate() {
                finish(first + r, p, sums);
            }
        }
        R
    }
}

/// Sums of products of R rows with a panel.
type Sums<const R: usize> = [[f32; COLUMNS]; R];

/// A way to sum the products of rows [K] with panels [K / 2, 16, 2]: exactly, as 128 times a number
/// of 32 bits and one of 7 bits, and then as float32.
trait Sum {
    fn products<const R: usize, const P: usize>(
        &self,
        x: [&[i16]; R],
        panels: [&[i8]; P],
    ) -> [Sums<R>; P];
}

/// The sums of blocks of a row with a panel, of which every one fits into 32 bits.
#[inline(always)]
fn in_blocks<const R: usize>(
    x: [&[i16]; R],
    panel: &[i8],
    sums: impl Fn([&[i16]; R], &[i8]) -> [[i32; COLUMNS]; R],
) -> Sums<R> {
    let (mut high, mut low) = ([[0; COLUMNS]; R], [[0; COLUMNS]; R]);
    for (number, block) in panel.chunks(2 * COLUMNS * BLOCK).enumerate() {
        let x = x.map(|x| &x[2 * BLOCK * number..][..block.len() / COLUMNS]);
        let sums = sums(x, block);
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
    totals
}

/// As any processor does it.
struct Plain;

impl Sum for Plain {
    fn products<const R: usize, const P: usize>(
        &self,
        x: [&[i16]; R],
        panels: [&[i8]; P],
    ) -> [Sums<R>; P] {
        panels.map(|panel| {
            in_blocks(x, panel, |x, block| {
                let mut sums = [[0; COLUMNS]; R];
                for (pair, q) in block.chunks_exact(2 * COLUMNS).enumerate() {
                    for r in 0..R {
                        let (a, b) = (i32::from(x[r][2 * pair]), i32::from(x[r][2 * pair + 1]));
                        for c in 0..COLUMNS {
                            sums[r][c] += a * i32::from(q[2 * c]) + b * i32::from(q[2 * c + 1]);
                        }
                    }
                }
                sums
            })
        })
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{BLOCK, COLUMNS, Rows, Sum, Sums, in_blocks};
    use std::arch::x86_64::*;

    /// AVX-512 with VNNI.
    pub struct Avx512;
    pub struct Avx2;

    /// Bytes of a panel for one pair.
    const PAIR: usize = 2 * COLUMNS;

    impl Sum for Avx512 {
        #[inline(always)]
        fn products<const R: usize, const P: usize>(
            &self,
            x: [&[i16]; R],
            panels: [&[i8]; P],
        ) -> [Sums<R>; P] {
            // Several sums a row, so that an instruction does not wait for the one before
            // SAFETY: `multiply` found that the processor has them
            match R {
                1 => unsafe { avx512::<R, P, 8>(x, panels) },
                2 => unsafe { avx512::<R, P, 4>(x, panels) },
                4 => unsafe { avx512::<R, P, 2>(x, panels) },
                _ => unsafe { avx512::<R, P, 1>(x, panels) },
            }
        }
    }

    /// `Rows::multiply_by` in these instructions, what comes after the sums too.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub fn multiply_avx512(
        rows: &Rows,
        panels: &[i8],
        scale: &[f32],
        put: impl FnMut(usize, usize, &[f32]),
    ) {
        rows.multiply_by(&Avx512, panels, scale, put);
    }

    #[target_feature(enable = "avx2")]
    pub fn multiply_avx2(
        rows: &Rows,
        panels: &[i8],
        scale: &[f32],
        put: impl FnMut(usize, usize, &[f32]),
    ) {
        rows.multiply_by(&Avx2, panels, scale, put);
    }

    /// `Rows::round` with instructions that round.
    #[target_feature(enable = "avx2")]
    pub fn round(x: &[f32], width: usize) -> Rows {
        Rows::round_plain(x, width)
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    #[inline]
    fn avx512<const R: usize, const P: usize, const N: usize>(
        x: [&[i16]; R],
        panels: [&[i8]; P],
    ) -> [Sums<R>; P] {
        let pairs = panels[0].len() / PAIR;
        assert!(x.iter().all(|x| x.len() == 2 * pairs));
        assert!(panels.iter().all(|panel| panel.len() == PAIR * pairs));
        let zero = _mm512_setzero_si512();
        let (mut high, mut low) = ([[zero; R]; P], [[zero; R]; P]);
        let mut pair = 0;
        while pair < pairs {
            let end = pairs.min(pair + BLOCK);
            let mut sums = [[[zero; N]; R]; P];
            let mut add = |pair: usize, n: usize| {
                let q = panels.map(|panel| {
                    // SAFETY: a panel has PAIR * pairs numbers
                    let q = unsafe { _mm256_loadu_si256(panel.as_ptr().add(PAIR * pair).cast()) };
                    _mm512_cvtepi8_epi16(q)
                });
                for r in 0..R {
                    // SAFETY: x has 2 * pairs numbers
                    let two = unsafe { x[r].as_ptr().add(2 * pair).cast::<i32>().read_unaligned() };
                    for p in 0..P {
                        sums[p][r][n] = add_products(sums[p][r][n], _mm512_set1_epi32(two), q[p]);
                    }
                }
            };
            while pair + N <= end {
                for n in 0..N {
                    add(pair + n, n);
                }
                pair += N;
            }
            while pair < end {
                add(pair, 0);
                pair += 1;
            }
            for p in 0..P {
                for r in 0..R {
                    let sums = &sums[p][r];
                    let sum = sums[1..]
                        .iter()
                        .fold(sums[0], |a, b| _mm512_add_epi32(a, *b));
                    high[p][r] = _mm512_add_epi32(high[p][r], _mm512_srai_epi32::<7>(sum));
                    low[p][r] =
                        _mm512_add_epi32(low[p][r], _mm512_and_si512(sum, _mm512_set1_epi32(127)));
                }
            }
        }
        let mut totals = [[[0.0; COLUMNS]; R]; P];
        for p in 0..P {
            for r in 0..R {
                let (high, low) = (high[p][r], low[p][r]);
                let carried = _mm512_add_epi32(high, _mm512_srai_epi32::<7>(low));
                let low = _mm512_and_si512(low, _mm512_set1_epi32(127));
                let carried = _mm512_mul_ps(_mm512_cvtepi32_ps(carried), _mm512_set1_ps(128.0));
                let total = _mm512_add_ps(carried, _mm512_cvtepi32_ps(low));
                // SAFETY: there is room for 16
                unsafe { _mm512_storeu_ps(totals[p][r].as_mut_ptr(), total) };
            }
        }
        totals
    }

    /// One instruction, `_mm512_dpwssd_epi32`, which the compiler would make two of.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    #[inline]
    fn add_products(sums: __m512i, a: __m512i, b: __m512i) -> __m512i {
        let mut sums = sums;
        // SAFETY: it only computes
        unsafe {
            std::arch::asm!("vpdpwssd {0}, {1}, {2}", inout(zmm_reg) sums, in(zmm_reg) a,
                in(zmm_reg) b, options(pure, nomem, nostack, preserves_flags));
        }
        sums
    }

    impl Sum for Avx2 {
        #[inline(always)]
        fn products<const R: usize, const P: usize>(
            &self,
            x: [&[i16]; R],
            panels: [&[i8]; P],
        ) -> [Sums<R>; P] {
            // SAFETY: `multiply` found that the processor has it
            panels.map(|panel| in_blocks(x, panel, |x, block| unsafe { avx2(x, block) }))
        }
    }

    #[target_feature(enable = "avx2")]
    #[allow(clippy::needless_range_loop)] // the half is a place in the panel, too
    fn avx2<const R: usize>(x: [&[i16]; R], panel: &[i8]) -> [[i32; COLUMNS]; R] {
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

    fn product(sum: &impl Sum, rows: &Rows, panels: &[i8], scale: &[f32]) -> Vec<Vec<u32>> {
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
            let plain = product(&Plain, &rows, &panels, &scale);
            #[cfg(target_arch = "x86_64")]
            {
                if is_x86_feature_detected!("avx2") {
                    assert_eq!(product(&x86::Avx2, &rows, &panels, &scale), plain);
                }
                if is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vnni") {
                    assert_eq!(product(&x86::Avx512, &rows, &panels, &scale), plain);
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
