//! `mlp` as XLA calls it, on a processor with AVX-512 BF16.
#![allow(unsafe_code)]

use std::ffi::c_void;

use crate::bf16::able;
use crate::mlp::{Shape, Sides};
use crate::out::Out;
use crate::xla_bf16::{BFLOAT16, pairs};
use crate::xla_ffi::{CallFrame, FLOAT32, answer};

/// The handler `jaxchat_mlp`: x [N,D] float32, W1 [D,F] and W2 [F,D] bfloat16, epsilon [1] float32 ->
/// y [N,D] and u [N,F] float32, and room for the matrices, [2,D,F] bfloat16.
///
/// # Safety
/// `frame` must be one of XLA's.
pub unsafe extern "C" fn mlp(frame: *mut CallFrame) -> *mut c_void {
    let takes =
        c"jaxchat_mlp takes float32 [N,D], bfloat16 [D,F], [F,D], float32 [1], with D and F \
        multiples of 32, and needs a processor with AVX-512 BF16";
    // SAFETY: the caller's promise; `Call::of` has asked the processor and seen the sizes
    unsafe {
        answer(frame, takes, |frame| {
            let call = Call::of(frame, 1)?;
            let (shape, [rows, width, hidden]) = (call.shape, call.dims);
            let y = Out(frame.result(0, FLOAT32, &[rows, width])?);
            let u = Out(frame.result(1, FLOAT32, &[rows, hidden])?);
            let packed = call.room(frame, 2)?;
            let [up, down] = call.matrices;
            frame.share(shape.weight_units(), &|unit| {
                shape.pack(unit, up, down, packed)
            });
            let panels = packed.each_ref().map(|part| &*part.at(0, up.len()));
            frame.share(shape.units(), &|unit| {
                shape.forward(unit, call.x, panels, y, u)
            });
            Some(())
        })
    }
}

/// The handler `jaxchat_mlp_gradient`: x, u, the gradient of y, W1, W2, epsilon -> the gradients of x
/// [N,D], W1 [D,F] and W2 [F,D] float32, and room for the matrices [2,D,F], and for rows [2,D,M] and
/// [2,F,M] bfloat16.
///
/// # Safety
/// As `mlp`.
pub unsafe extern "C" fn mlp_gradient(frame: *mut CallFrame) -> *mut c_void {
    let takes = c"jaxchat_mlp_gradient takes what jaxchat_mlp takes and gives, and after these \
        float32 [N,D]";
    // SAFETY: as in `mlp`
    unsafe {
        answer(frame, takes, |frame| {
            let call = Call::of(frame, 3)?;
            let (shape, [rows, width, hidden]) = (call.shape, call.dims);
            let of = |at, dims: &[i64]| frame.argument::<f32>(at, FLOAT32).filter(|x| x.1 == dims);
            let (u, dy) = (of(1, &[rows, hidden])?.0, of(2, &[rows, width])?.0);
            let dx = Out(frame.result(0, FLOAT32, &[rows, width])?);
            let dup = Out(frame.result(1, FLOAT32, &[width, hidden])?);
            let ddown = Out(frame.result(2, FLOAT32, &[hidden, width])?);
            let packed = call.room(frame, 3)?;
            let filled = shape.filled() as i64;
            let [x_side, dy_side] = halves(frame, 4, [2, width, filled])?;
            let [du, h] = halves(frame, 5, [2, hidden, filled])?;
            let sides = Sides {
                x: x_side,
                dy: dy_side,
                du,
                h,
            };
            let [up, down] = call.matrices;
            frame.share(shape.weight_units(), &|unit| {
                shape.pack_columns(unit, up, down, packed)
            });
            let panels = packed.each_ref().map(|part| &*part.at(0, up.len()));
            frame.share(shape.units(), &|unit| {
                shape.backward(unit, [call.x, u, dy], panels, dx, sides)
            });
            frame.share(shape.weight_units(), &|unit| {
                shape.weights(unit, sides, dup, ddown)
            });
            Some(())
        })
    }
}

/// What both take.
struct Call<'a> {
    shape: Shape,
    x: &'a [f32],
    matrices: [&'a [u32]; 2],
    dims: [i64; 3], // N, D, F
}

impl<'a> Call<'a> {
    /// None where the processor or an argument is not as it must be; W1 is argument `first`.
    ///
    /// # Safety
    /// As `mlp`.
    unsafe fn of(frame: &'a CallFrame, first: usize) -> Option<Self> {
        // SAFETY: float32 is f32; 16 bits are 16 bits
        let (x, matrices, epsilon) = unsafe {
            let matrices = [0, 1].map(|n| frame.argument::<u16>(first + n, BFLOAT16));
            let epsilon = frame.argument::<f32>(first + 2, FLOAT32)?;
            (frame.argument::<f32>(0, FLOAT32)?, matrices, epsilon.0)
        };
        let [(up, up_dims), (down, down_dims)] = [matrices[0]?, matrices[1]?];
        let (&[rows, width], &[_, hidden], &[epsilon]) = (x.1, up_dims, epsilon) else {
            return None;
        };
        let whole = |size: i64| size > 0 && size % 32 == 0;
        let fits = up_dims == [width, hidden] && down_dims == [hidden, width];
        (able() && fits && rows > 0 && whole(width) && whole(hidden)).then_some(())?;
        Some(Self {
            shape: Shape {
                rows: rows as usize,
                width: width as usize,
                hidden: hidden as usize,
                epsilon,
            },
            x: x.0,
            matrices: [pairs(up)?, pairs(down)?],
            dims: [rows, width, hidden],
        })
    }

    /// Room for the matrices in panels, result `at`.
    ///
    /// # Safety
    /// As `mlp`.
    unsafe fn room(&self, frame: &CallFrame, at: usize) -> Option<[Out<u32>; 2]> {
        let [_, width, hidden] = self.dims;
        // SAFETY: the caller's promise
        unsafe { halves(frame, at, [2, width, hidden]) }
    }
}

/// The halves of result `at` as pairs.
///
/// # Safety
/// As `mlp`.
pub(crate) unsafe fn halves(frame: &CallFrame, at: usize, dims: [i64; 3]) -> Option<[Out<u32>; 2]> {
    // SAFETY: 16 bits are 16 bits; XLA's results lie as vectors do, and D, F and M are even
    unsafe {
        let first = frame.result::<u16>(at, BFLOAT16, &dims)?.cast::<u32>();
        let size = (dims[1] * dims[2] / 2) as usize;
        first
            .is_aligned()
            .then(|| [Out(first), Out(first.add(size))])
    }
}
