//! Products of blocks of 32 rows with the panels of `bf16`: by AMX where the processor has it, of
//! which an instruction multiplies 16 rows of 16 pairs by 16 columns.
//!
//! Rust's own functions for AMX are not stable, so the loop is in assembly, as a function: whoever
//! calls a function expects it to change these registers.
#![allow(unsafe_code)]
// Where the processor has the instructions (`bf16::able`), functions that need them are safe to call.
#![allow(clippy::missing_safety_doc)]

use std::arch::naked_asm;
use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::sync::OnceLock;

use crate::bf16::{self, GROUP, LANES, PANEL, Sums, numbers, product, put, put_pairs, transposed};

/// Rows of a block.
pub const BLOCK: usize = 32;
/// Numbers of a block's product with a panel.
pub const TILE: usize = BLOCK * PANEL;

/// Whether this processor has AMX, and the system lets this process use it.
pub fn able() -> bool {
    static ABLE: OnceLock<bool> = OnceLock::new();
    *ABLE.get_or_init(|| crate::bf16::able() && present() && permitted())
}

fn present() -> bool {
    const NEEDED: u32 = 1 << 24 | 1 << 22; // AMX-TILE, AMX-BF16
    // SAFETY: every x86-64 processor has the instruction; older compilers ask for the block
    #[allow(unused_unsafe)]
    unsafe {
        __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & NEEDED == NEEDED
    }
}

/// Asks Linux to keep the registers of this process's threads.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_int = 0x1023;
    const TILE_DATA: libc::c_int = 18;
    // SAFETY: the call takes two numbers
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// A thread's means to multiply blocks; while it lives, AMX's registers are in use.
pub struct Blocks {
    amx: bool,
    thread: PhantomData<*const ()>,
}

impl Blocks {
    /// By AMX where `able`.
    pub fn new() -> Self {
        Self::of(able())
    }

    fn of(amx: bool) -> Self {
        if amx {
            // SAFETY: the processor and the system were asked
            unsafe { configure(&EIGHT) };
        }
        let thread = PhantomData;
        Self { amx, thread }
    }

    /// Writes 32 rows of `a`, `row` pairs apart, times a panel, of as many pairs: a multiple of 16.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub fn multiply(&self, a: &[u32], row: usize, b: &[u32], pairs: usize, out: &mut [f32]) {
        assert!(pairs > 0 && pairs.is_multiple_of(LANES));
        assert!(out.len() >= TILE && b.len() >= pairs * PANEL);
        assert!(a.len() >= (BLOCK - 1) * row + pairs);
        if self.amx {
            // SAFETY: within all three, as was checked; the registers are configured
            unsafe {
                block(
                    a.as_ptr(),
                    4 * row,
                    b.as_ptr(),
                    out.as_mut_ptr(),
                    pairs / LANES,
                )
            };
            return;
        }
        groups(|at| &a[at * row..], (row, 1), b, pairs, out);
    }

    /// Writes the 32 columns of `a` [pairs, 32], as rows, times a panel; at most 32 pairs.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub fn multiply_columns(&self, a: &[u32], b: &[u32], pairs: usize, out: &mut [f32]) {
        if !self.amx {
            groups(|at| &a[at..], (1, PANEL), b, pairs, out);
            return;
        }
        let mut rows = Rows([0; TILE]);
        for (place, column) in [(0, 0), (0, LANES), (LANES, 0), (LANES, LANES)] {
            if place >= pairs {
                continue;
            }
            let mut part = [_mm512_setzero_si512(); LANES];
            for (n, part) in part.iter_mut().enumerate() {
                *part = bf16::pairs(&a[(place + n) * PANEL + column..]);
            }
            for (n, part) in transposed(part).into_iter().enumerate() {
                put_pairs(part, &mut rows.0[(column + n) * PANEL + place..]);
            }
        }
        self.multiply(&rows.0, PANEL, b, pairs, out);
    }
}

/// A block's rows, each at the start of a line of the cache.
#[repr(C, align(64))]
struct Rows([u32; TILE]);

/// A block without AMX: `of` gives what lies from a row on, whose rows and pairs are `steps` apart.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn groups<'a>(
    of: impl Fn(usize) -> &'a [u32],
    steps: (usize, usize),
    b: &[u32],
    pairs: usize,
    out: &mut [f32],
) {
    let parts = out.chunks_exact_mut(GROUP * PANEL).take(BLOCK / GROUP);
    for (group, out) in parts.enumerate() {
        let sums = product(of(group * GROUP), steps.0, steps.1, b, pairs);
        for (sums, out) in sums.into_iter().zip(out.chunks_exact_mut(PANEL)) {
            put(sums[0], out);
            put(sums[1], &mut out[LANES..]);
        }
    }
}

/// The sums of 8 rows of a block's product, from a row on.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn sums(product: &[f32], row: usize) -> Sums {
    let mut sums = [[_mm512_setzero_ps(); 2]; GROUP];
    for (sums, x) in sums
        .iter_mut()
        .zip(product[row * PANEL..].chunks_exact(PANEL))
    {
        *sums = [numbers(x), numbers(&x[LANES..])];
    }
    sums
}

impl Default for Blocks {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        if self.amx {
            // SAFETY: they were configured
            unsafe { release() };
        }
    }
}

/// The shape of registers: bytes of a row, and rows, of each.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start: [u8; 15],
    bytes: [u16; 16],
    rows: [u8; 16],
}

const EIGHT: Shapes = {
    let (mut bytes, mut rows) = ([0; 16], [0; 16]);
    let mut n = 0;
    while n < 8 {
        (bytes[n], rows[n]) = (64, 16);
        n += 1;
    }
    Shapes {
        palette: 1,
        start: [0; 15],
        bytes,
        rows,
    }
};

#[unsafe(naked)]
unsafe extern "sysv64" fn configure(shapes: *const Shapes) {
    naked_asm!("ldtilecfg [rdi]", "ret")
}

#[unsafe(naked)]
unsafe extern "sysv64" fn release() {
    naked_asm!("tilerelease", "ret")
}

/// out [32, 32] = a [32 rows, `row` bytes apart] times b [16 steps, 32].
#[unsafe(naked)]
unsafe extern "sysv64" fn block(
    a: *const u32,
    row: usize,
    b: *const u32,
    out: *mut f32,
    steps: usize,
) {
    naked_asm!(
        "mov rax, rsi",
        "shl rax, 4",
        "add rax, rdi", // the second 16 rows
        "mov r9d, 128", // bytes of a panel's row, and of the result's
        "tilezero tmm0",
        "tilezero tmm1",
        "tilezero tmm2",
        "tilezero tmm3",
        "2:",
        "tileloadd tmm4, [rdi + rsi*1]",
        "tileloadd tmm6, [rdx + r9*1]",
        "tileloadd tmm7, [rdx + r9*1 + 64]",
        "tileloadd tmm5, [rax + rsi*1]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tdpbf16ps tmm1, tmm4, tmm7",
        "tdpbf16ps tmm2, tmm5, tmm6",
        "tdpbf16ps tmm3, tmm5, tmm7",
        "add rdi, 64",
        "add rax, 64",
        "add rdx, 2048",
        "dec r8",
        "jnz 2b",
        "tilestored [rcx + r9*1], tmm0",
        "tilestored [rcx + r9*1 + 64], tmm1",
        "tilestored [rcx + r9*1 + 2048], tmm2",
        "tilestored [rcx + r9*1 + 2112], tmm3",
        "ret",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of few bits, so that products and sums are exact: every way gives the same bits.
    #[test]
    fn both_ways_multiply_alike() {
        if !crate::bf16::able() {
            return;
        }
        let number = |n: usize| f32::from((n * 7 % 31) as i16 - 15) / 8.0;
        let bits = |n: usize| number(n).to_bits() >> 16;
        let pairs = |count: usize, salt: usize| -> Vec<u32> {
            let one = |n| bits(2 * n + salt) | bits(2 * n + 1 + salt) << 16;
            (0..count).map(one).collect()
        };
        for (row, width) in [(16, 16), (40, 32), (64, 48)] {
            let (a, b) = (pairs(31 * row + width, 3), pairs(width * PANEL, 11));
            for amx in [false, able()] {
                let mut got = vec![0.0; TILE];
                // SAFETY: the processor was asked
                unsafe { Blocks::of(amx).multiply(&a, row, &b, width, &mut got) };
                for (n, got) in got.into_iter().enumerate() {
                    let (m, column) = (n / PANEL, n % PANEL);
                    let want: f32 = (0..2 * width)
                        .map(|k| {
                            let right = 2 * (k / 2 * PANEL + column) + k % 2;
                            number(2 * m * row + k + 3) * number(right + 11)
                        })
                        .sum();
                    assert_eq!(got, want, "{row} {width} {m} {column} {amx}");
                }
            }
        }
    }

    #[test]
    fn columns_are_multiplied_as_rows_are() {
        if !crate::bf16::able() {
            return;
        }
        for pairs in [16, 32] {
            let number = |n: usize, salt: usize| 0x3f80 + ((n * 7 + salt) % 9) as u32;
            let one = |salt: usize| -> Vec<u32> {
                let pair = |n| number(2 * n, salt) | number(2 * n + 1, salt) << 16;
                (0..pairs * PANEL).map(pair).collect()
            };
            let (a, b) = (one(1), one(4));
            let rows: Vec<u32> = (0..a.len())
                .map(|n| a[n % pairs * PANEL + n / pairs])
                .collect();
            for amx in [false, able()] {
                let blocks = Blocks::of(amx);
                let [mut got, mut want] = [vec![0.0; TILE], vec![0.0; TILE]];
                // SAFETY: the processor was asked
                unsafe {
                    blocks.multiply_columns(&a, &b, pairs, &mut got);
                    blocks.multiply(&rows, pairs, &b, pairs, &mut want);
                }
                assert!(want.iter().all(|x| *x > 2.0 * pairs as f32));
                assert_eq!(got, want, "{pairs} {amx}");
            }
        }
    }
}
