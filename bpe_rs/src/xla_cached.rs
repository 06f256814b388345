//! `cached::Row::attend` as XLA calls it.
#![allow(unsafe_code)]

use std::ffi::c_void;

use crate::cached::{LANES, Row};
use crate::out::Out;
use crate::xla_ffi::{BOOL, CallFrame, FLOAT32, answer};

/// Numbers of keys below which sharing the work takes longer than it saves, and of a piece of it.
const PIECE: usize = 1 << 16;

/// The handler `jaxchat_cached_attention`: q [B,H,K], k and v [B,G,S,K] float32, visible [B,S] bool
/// -> y [B,H,K] float32.
///
/// # Safety
/// `frame` must be one of XLA's.
pub unsafe extern "C" fn cached_attention(frame: *mut CallFrame) -> *mut c_void {
    let takes =
        c"jaxchat_cached_attention takes float32 [B,H,K], twice [B,G,S,K], bool [B,S], with \
        K a multiple of 16";
    // SAFETY: the caller's promise
    unsafe { answer(frame, takes, |frame| attend(frame)) }
}

/// None where types or shapes are not those of `cached_attention`.
///
/// # Safety
/// As there.
unsafe fn attend(frame: &CallFrame) -> Option<()> {
    // SAFETY: the caller's promise; a bool is a byte
    let (all, (visible, visible_dims)) = unsafe {
        let all = [0, 1, 2].map(|at| frame.argument::<f32>(at, FLOAT32));
        (all, frame.argument::<u8>(3, BOOL)?)
    };
    let [(q, q_dims), (k, k_dims), (v, v_dims)] = [all[0]?, all[1]?, all[2]?];
    let (&[batch, heads, size], &[_, groups, slots, _]) = (q_dims, k_dims) else {
        return None;
    };
    let cache = [batch, groups, slots, size];
    let divided = groups > 0 && heads % groups == 0 && size > 0 && size % LANES as i64 == 0;
    if !divided || k_dims != cache || v_dims != cache || visible_dims != [batch, slots] {
        return None;
    }
    // SAFETY: the caller's promise
    let y = Out(unsafe { frame.result(0, FLOAT32, q_dims)? });
    let (size, slots, groups) = (size as usize, slots as usize, groups as usize);
    let (own, held) = (heads as usize / groups * size, slots * size); // of a row's group
    let units = batch as usize * groups;
    let piece = (PIECE / held.max(1)).max(1); // units of a piece
    let attend = |number: usize| {
        for unit in number * piece..units.min((number + 1) * piece) {
            let row = Row {
                size,
                q: &q[unit * own..][..own],
                k: &k[unit * held..][..held],
                v: &v[unit * held..][..held],
                visible: &visible[unit / groups * slots..][..slots],
            };
            // SAFETY: y has as many numbers as q, and nobody else writes to this unit's
            row.attend(unsafe { y.at(unit * own, own) });
        }
    };
    // SAFETY: the caller's promise
    unsafe { frame.share(units.div_ceil(piece), &attend) };
    Some(())
}
