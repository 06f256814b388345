//! `linear` and `orthogonal` as XLA calls them, on a processor with AVX-512 BF16.
#![allow(unsafe_code)]

use std::ffi::c_void;

use crate::bf16::able;
use crate::linear::{MOST, Shape, Sides};
use crate::orthogonal;
use crate::out::Out;
use crate::xla_bf16::{BFLOAT16, pairs};
use crate::xla_ffi::{CallFrame, FLOAT32, answer};

/// The handler `jaxchat_linear`: x [N,D] float32, epsilon [1] float32 (negative: no norm), one to three
/// matrices [D,...] bfloat16 -> as many [N,...] float32, and room for the matrices, [F,D] bfloat16.
///
/// # Safety
/// `frame` must be one of XLA's.
pub unsafe extern "C" fn linear(frame: *mut CallFrame) -> *mut c_void {
    let takes =
        c"jaxchat_linear takes float32 [N,D], [1], one to three bfloat16 [D,...], with all \
        sizes but N multiples of 32, and needs a processor with AVX-512 BF16";
    // SAFETY: the caller's promise; `Call::of` has asked the processor and seen the sizes
    unsafe {
        answer(frame, takes, |frame| {
            let call = Call::of(frame, 2, frame.arguments().checked_sub(2)?)?;
            let (shape, width) = (call.shape, call.shape.width as i64);
            let y = call.each(|at, columns| frame.result(at, FLOAT32, &[call.rows, columns]))?;
            let all = call.shape.panels() as i64 * 32;
            let packed = room(frame, call.count, [all, width])?;
            frame.share(shape.panels(), &|unit| {
                shape.pack(unit, call.matrices, packed)
            });
            let panels = &*packed.at(0, (all * width / 2) as usize);
            frame.share(shape.units(), &|unit| {
                shape.forward(unit, call.x, panels, y)
            });
            Some(())
        })
    }
}

/// The handler `jaxchat_linear_gradient`: x, epsilon, the matrices, the gradients of their results ->
/// the gradients of x and the matrices, float32, and room for the matrices, [F,D], and for rows,
/// [D,M] and [F,M] bfloat16.
///
/// # Safety
/// As `linear`.
pub unsafe extern "C" fn linear_gradient(frame: *mut CallFrame) -> *mut c_void {
    let takes =
        c"jaxchat_linear_gradient takes what jaxchat_linear takes, and after these as many \
        float32 [N,...]";
    // SAFETY: as in `linear`
    unsafe {
        answer(frame, takes, |frame| {
            let call = Call::of(frame, 2, frame.arguments().checked_sub(2)? / 2)?;
            let (shape, width) = (call.shape, call.shape.width as i64);
            let mut dy = [&[][..]; MOST];
            for (matrix, dy) in dy.iter_mut().enumerate().take(call.count) {
                let found = frame.argument::<f32>(2 + call.count + matrix, FLOAT32)?;
                if found.1 != [call.rows, shape.columns[matrix] as i64] {
                    return None;
                }
                *dy = found.0;
            }
            let dx = Out(frame.result(0, FLOAT32, &[call.rows, width])?);
            let grads =
                call.each(|at, columns| frame.result(1 + at, FLOAT32, &[width, columns]))?;
            let (all, filled) = (shape.panels() as i64 * 32, shape.filled() as i64);
            let packed = room(frame, 1 + call.count, [all, width])?;
            let sides = Sides {
                x: room(frame, 2 + call.count, [width, filled])?,
                dy: room(frame, 3 + call.count, [all, filled])?,
            };
            frame.share(shape.panels(), &|unit| {
                shape.pack_columns(unit, call.matrices, packed)
            });
            let panels = &*packed.at(0, (all * width / 2) as usize);
            frame.share(shape.units(), &|unit| {
                shape.backward(unit, call.x, dy, panels, dx, sides)
            });
            frame.share(shape.panels(), &|unit| shape.weights(unit, sides, grads));
            Some(())
        })
    }
}

/// The handler `jaxchat_orthogonalize`: y [N,M,K] bfloat16, a, b and c of each iteration [I,3] float32
/// -> y after the iterations.
///
/// # Safety
/// As `linear`.
pub unsafe extern "C" fn orthogonalize(frame: *mut CallFrame) -> *mut c_void {
    let takes =
        c"jaxchat_orthogonalize takes bfloat16 [N,M,K], with M and K multiples of 32, float32 \
        [I,3], and needs a processor with AVX-512 BF16";
    // SAFETY: as in `linear`
    unsafe {
        answer(frame, takes, |frame| {
            let (y, dims) = frame.argument::<u16>(0, BFLOAT16)?;
            let (coefficients, &[_, 3]) = frame.argument::<f32>(1, FLOAT32)? else {
                return None;
            };
            let &[count, rows, width] = dims else {
                return None;
            };
            let whole = |size: i64| size > 0 && size % 32 == 0;
            (able() && whole(rows) && whole(width)).then_some(())?;
            let out = Out(frame.result::<u16>(0, BFLOAT16, dims)?.cast::<u32>());
            let (y, (coefficients, _)) = (pairs(y)?, coefficients.as_chunks::<3>());
            let (rows, width) = (rows as usize, width as usize);
            let held = rows * width / 2;
            frame.share(count as usize, &|matrix| {
                let out = out.at(matrix * held, held);
                out.copy_from_slice(&y[matrix * held..][..held]);
                orthogonal::Shape { rows, width }.iterate(out, coefficients);
            });
            Some(())
        })
    }
}

/// What both take.
struct Call<'a> {
    shape: Shape,
    x: &'a [f32],
    matrices: [&'a [u32]; MOST],
    count: usize, // of matrices
    rows: i64,
}

impl<'a> Call<'a> {
    /// None where the processor or an argument is not as it must be; the matrices are from argument
    /// `first` on.
    ///
    /// # Safety
    /// As `linear`.
    unsafe fn of(frame: &'a CallFrame, first: usize, count: usize) -> Option<Self> {
        // SAFETY: float32 is f32
        let ((x, dims), (epsilon, _)) = unsafe {
            (
                frame.argument::<f32>(0, FLOAT32)?,
                frame.argument::<f32>(1, FLOAT32)?,
            )
        };
        let (&[rows, width], &[epsilon]) = (dims, epsilon) else {
            return None;
        };
        let (mut columns, mut matrices) = ([0; MOST], [&[][..]; MOST]);
        let whole = |size: i64| size > 0 && size % 32 == 0;
        (able() && (1..=MOST).contains(&count) && rows > 0 && whole(width)).then_some(())?;
        for matrix in 0..count {
            // SAFETY: 16 bits are 16 bits
            let (found, dims) = unsafe { frame.argument::<u16>(first + matrix, BFLOAT16)? };
            let &[height, size] = dims else { return None };
            (height == width && whole(size)).then_some(())?;
            (columns[matrix], matrices[matrix]) = (size as usize, pairs(found)?);
        }
        Some(Self {
            shape: Shape {
                rows: rows as usize,
                width: width as usize,
                columns,
                epsilon: (epsilon >= 0.0).then_some(epsilon),
            },
            x,
            matrices,
            count,
            rows,
        })
    }

    /// A result for each matrix, found by its number and columns.
    fn each(&self, find: impl Fn(usize, i64) -> Option<*mut f32>) -> Option<[Out; MOST]> {
        let mut outs = [Out(std::ptr::null_mut()); MOST];
        for (matrix, out) in outs.iter_mut().enumerate().take(self.count) {
            *out = Out(find(matrix, self.shape.columns[matrix] as i64)?);
        }
        Some(outs)
    }
}

/// Result `at`, as pairs.
///
/// # Safety
/// As `linear`.
unsafe fn room(frame: &CallFrame, at: usize, dims: [i64; 2]) -> Option<Out<u32>> {
    // SAFETY: 16 bits are 16 bits; XLA's results lie as vectors do
    let found = unsafe { frame.result::<u16>(at, BFLOAT16, &dims)?.cast::<u32>() };
    found.is_aligned().then_some(Out(found))
}
