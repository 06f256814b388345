//! `attention`, `loss` and `norm_rope` as XLA calls them, on a processor with AVX-512 BF16.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};

use crate::attention::{Operands, Saved, Shape};
use crate::bf16::able;
use crate::loss;
use crate::norm_rope::Norm;
use crate::out::Out;
use crate::xla_ffi::{CallFrame, FLOAT32, Handler, answer};
use crate::{xla_linear, xla_mlp};

const INT32: c_int = 4; // types of numbers
pub(crate) const BFLOAT16: c_int = 16;
/// Numbers of a piece of work, about.
const PIECE: usize = 1 << 16;

/// The handlers by the names of their targets that this processor has instructions for. Those of
/// products need AMX: without it they have not been seen to be faster than XLA's.
pub(crate) fn handlers() -> Vec<(&'static str, Handler)> {
    let parts: [(&str, Handler); 5] = [
        ("jaxchat_attention", attention),
        ("jaxchat_attention_gradient", attention_gradient),
        ("jaxchat_loss", loss),
        ("jaxchat_norm_rope", norm_rope),
        ("jaxchat_norm_rope_gradient", norm_rope_gradient),
    ];
    let products: [(&str, Handler); 5] = [
        ("jaxchat_linear", xla_linear::linear),
        ("jaxchat_linear_gradient", xla_linear::linear_gradient),
        ("jaxchat_mlp", xla_mlp::mlp),
        ("jaxchat_mlp_gradient", xla_mlp::mlp_gradient),
        ("jaxchat_orthogonalize", xla_linear::orthogonalize),
    ];
    let mut found = Vec::new();
    if able() {
        found.extend(parts);
    }
    if crate::amx::able() {
        found.extend(products);
    }
    found
}

/// The handler `jaxchat_attention`: q [B,T,H,K], k and v [B,T,G,K] bfloat16, window [1] int32 ->
/// y [B,T,H,K] and sums of weights [B,H,T], float32.
///
/// # Safety
/// `frame` must be one of XLA's.
pub unsafe extern "C" fn attention(frame: *mut CallFrame) -> *mut c_void {
    let takes =
        c"jaxchat_attention takes bfloat16 [B,T,H,K], twice [B,T,G,K], int32 [1], with K a \
        multiple of 32, and needs a processor with AVX-512 BF16";
    // SAFETY: the caller's promise; `Call::of` has asked the processor and seen the sizes
    unsafe {
        answer(frame, takes, |frame| {
            let Call {
                shape, x, q, sums, ..
            } = Call::of(frame, 3)?;
            let y = Out(frame.result(0, FLOAT32, &q)?);
            let total = Out(frame.result(1, FLOAT32, &sums)?);
            frame.share(shape.forward_units(), &|unit| {
                shape.forward(unit, x, y, total)
            });
            Some(())
        })
    }
}

/// The handler `jaxchat_attention_gradient`: q, k, v, y, sums of weights, the gradient of y (float32
/// as y), window -> the gradients of q, k and v, float32.
///
/// # Safety
/// As `attention`.
pub unsafe extern "C" fn attention_gradient(frame: *mut CallFrame) -> *mut c_void {
    let takes = c"jaxchat_attention_gradient takes what jaxchat_attention takes and gives, and \
        float32 [B,T,H,K]";
    // SAFETY: as in `attention`
    unsafe {
        answer(frame, takes, |frame| {
            let Call {
                shape,
                x,
                q,
                k,
                sums,
            } = Call::of(frame, 6)?;
            let of = |at, dims: &[i64]| frame.argument::<f32>(at, FLOAT32).filter(|x| x.1 == dims);
            let (y, total, dy) = (of(3, &q)?.0, of(4, &sums)?.0, of(5, &q)?.0);
            let grad = |at, dims| frame.result(at, FLOAT32, dims).map(Out);
            let grads = [grad(0, &q)?, grad(1, &k)?, grad(2, &k)?];
            let saved = Saved { y, total, dy };
            frame.share(shape.backward_units(), &|unit| {
                shape.backward(unit, x, saved, grads)
            });
            Some(())
        })
    }
}

/// The operands of attention and their dimensions.
struct Call<'a> {
    shape: Shape,
    x: Operands<'a>,
    q: [i64; 4],
    k: [i64; 4],
    sums: [i64; 3],
}

impl<'a> Call<'a> {
    /// None where the processor or an operand is not as it must be. The window is argument `window`.
    ///
    /// # Safety
    /// As `attention`.
    unsafe fn of(frame: &'a CallFrame, window: usize) -> Option<Self> {
        // SAFETY: 16 bits are 16 bits; int32 is i32
        let (all, window) = unsafe {
            let all = [0, 1, 2].map(|at| frame.argument::<u16>(at, BFLOAT16));
            (all, frame.argument::<i32>(window, INT32)?)
        };
        let [(q, q_dims), (k, k_dims), (v, v_dims)] = [all[0]?, all[1]?, all[2]?];
        let (&[batch, time, heads, size], &[_, _, groups, _]) = (q_dims, k_dims) else {
            return None;
        };
        let (k_wanted, &[window]) = ([batch, time, groups, size], window.0) else {
            return None;
        };
        let divided = groups > 0 && heads > 0 && heads % groups == 0;
        let fits = k_dims == k_wanted && v_dims == k_wanted && size > 0 && size % 32 == 0;
        if !(able() && divided && fits && window >= 0) {
            return None;
        }
        Some(Self {
            shape: Shape {
                batch: batch as usize,
                time: time as usize,
                heads: heads as usize,
                groups: groups as usize,
                size: size as usize,
                window: time.min(window.into()) as usize,
            },
            x: Operands {
                q: pairs(q)?,
                k: pairs(k)?,
                v: pairs(v)?,
            },
            q: [batch, time, heads, size],
            k: k_wanted,
            sums: [batch, heads, time],
        })
    }
}

/// Numbers in pairs; None where they do not lie as pairs must.
pub(crate) fn pairs(x: &[u16]) -> Option<&[u32]> {
    // SAFETY: any 32 bits are of either type
    let (before, pairs, after) = unsafe { x.align_to::<u32>() };
    (before.is_empty() && after.is_empty()).then_some(pairs)
}

/// The handler `jaxchat_loss`: logits [N,V] float32, targets [N] int32, factor [N] float32, cap [1]
/// float32 -> -log p(target) [N] float32 and the gradient of its product with factor [N,V] bfloat16.
///
/// # Safety
/// As `attention`.
pub unsafe extern "C" fn loss(frame: *mut CallFrame) -> *mut c_void {
    let takes =
        c"jaxchat_loss takes float32 [N,V], int32 [N], float32 [N], float32 [1], and needs a \
        processor with AVX-512 BF16";
    // SAFETY: as in `attention`
    unsafe {
        answer(frame, takes, |frame| {
            let (logits, dims) = frame.argument::<f32>(0, FLOAT32)?;
            let (targets, targets_dims) = frame.argument::<i32>(1, INT32)?;
            let (factor, factor_dims) = frame.argument::<f32>(2, FLOAT32)?;
            let &[cap] = frame.argument::<f32>(3, FLOAT32)?.0 else {
                return None;
            };
            let &[rows, width] = dims else { return None };
            if !able() || width < 1 || [targets_dims, factor_dims] != [[rows]; 2] {
                return None;
            }
            let nll = Out(frame.result(0, FLOAT32, &[rows])?);
            let grad = Out(frame.result::<u16>(1, BFLOAT16, dims)?);
            let (rows, width) = (rows as usize, width as usize);
            let piece = (PIECE / width).max(1); // rows of a piece
            frame.share(rows.div_ceil(piece), &|number| {
                for row in number * piece..rows.min((number + 1) * piece) {
                    let logits = &logits[row * width..][..width];
                    let grad = grad.at(row * width, width);
                    nll.at(row, 1)[0] = loss::row(logits, targets[row], factor[row], cap, grad);
                }
            });
            Some(())
        })
    }
}

/// The handler `jaxchat_norm_rope`: x [B,T,H,K], cosines and sines [1 or B,T,1,K/2], factor and
/// epsilon [2] -> y as x, all float32.
///
/// # Safety
/// As `attention`.
pub unsafe extern "C" fn norm_rope(frame: *mut CallFrame) -> *mut c_void {
    let takes =
        c"jaxchat_norm_rope takes float32 [B,T,H,K], twice [1 or B,T,1,K/2], [2], with K a \
        multiple of 32, and needs a processor with AVX-512 BF16";
    // SAFETY: as in `attention`
    unsafe {
        answer(frame, takes, |frame| {
            let rows = Heads::of(frame, 1)?;
            rows.each(frame, |at, norm, cos, sin, y| {
                norm.forward(&rows.x[at..][..y.len()], cos, sin, y)
            })
        })
    }
}

/// The handler `jaxchat_norm_rope_gradient`: x, the gradient of y as x, cosines, sines, factor and
/// epsilon -> the gradient of x.
///
/// # Safety
/// As `attention`.
pub unsafe extern "C" fn norm_rope_gradient(frame: *mut CallFrame) -> *mut c_void {
    let takes =
        c"jaxchat_norm_rope_gradient takes what jaxchat_norm_rope takes, and after x another";
    // SAFETY: as in `attention`
    unsafe {
        answer(frame, takes, |frame| {
            let rows = Heads::of(frame, 2)?;
            let (dy, dims) = frame.argument::<f32>(1, FLOAT32)?;
            if dims != rows.dims {
                return None;
            }
            rows.each(frame, |at, norm, cos, sin, dx| {
                let (x, dy) = (&rows.x[at..][..dx.len()], &dy[at..][..dx.len()]);
                norm.backward(x, dy, cos, sin, dx);
            })
        })
    }
}

/// Heads' channels [B,T,H,K] with their rotations.
struct Heads<'a> {
    x: &'a [f32],
    dims: &'a [i64],
    cos: &'a [f32],
    sin: &'a [f32],
    norm: Norm,
}

impl<'a> Heads<'a> {
    /// None where the processor or an argument is not as it must be; cosines are argument `first`.
    ///
    /// # Safety
    /// As `attention`.
    unsafe fn of(frame: &'a CallFrame, first: usize) -> Option<Self> {
        // SAFETY: float32 is f32
        let of = |at| unsafe { frame.argument::<f32>(at, FLOAT32) };
        let &[factor, epsilon] = of(first + 2)?.0 else {
            return None;
        };
        let ((x, dims), (cos, turns), (sin, others)) = (of(0)?, of(first)?, of(first + 1)?);
        let &[batch, time, _, size] = dims else {
            return None;
        };
        let fits = turns == [1, time, 1, size / 2] || turns == [batch, time, 1, size / 2];
        let norm = Norm { factor, epsilon };
        (able() && fits && others == turns && size > 0 && size % 32 == 0).then_some(Self {
            x,
            dims,
            cos,
            sin,
            norm,
        })
    }

    /// Gives `work` each row's place, its rotation and its part of the result.
    ///
    /// # Safety
    /// As `attention`.
    unsafe fn each(
        &self,
        frame: &CallFrame,
        work: impl Fn(usize, Norm, &[f32], &[f32], &mut [f32]) + Sync,
    ) -> Option<()> {
        let (heads, size) = (self.dims[2] as usize, self.dims[3] as usize);
        // SAFETY: the caller's promise; each row is given once
        unsafe {
            let y = Out(frame.result(0, FLOAT32, self.dims)?);
            let (rows, piece) = (self.x.len() / size, (PIECE / size).max(1));
            frame.share(rows.div_ceil(piece), &|number| {
                for row in number * piece..rows.min((number + 1) * piece) {
                    let turn = row / heads * (size / 2) % self.cos.len();
                    let [cos, sin] = [self.cos, self.sin].map(|x| &x[turn..][..size / 2]);
                    work(row * size, self.norm, cos, sin, y.at(row * size, size));
                }
            });
        }
        Some(())
    }
}
