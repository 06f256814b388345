//! Byte-level byte-pair encoding: the trainer and encoder behind jaxchat's tokenizer.
//!
//! A [`Trainer`] is fed texts, counts their distinct pre-tokens (pieces cut by a pattern), and
//! then merges the most frequent pair of adjacent tokens again and again. An [`Encoder`] cuts texts
//! by the same pattern and merges by rank. Nothing here knows Python: the bindings are in
//! `python.rs`, behind the feature `python`.
//!
//! Some modules have nothing to do with BPE: `int8`, products for decoding with weights of 8 bits,
//! `cached`, its attention, and `attention`, `loss` and `norm_rope`, of a training step, which XLA
//! calls through `xla_ffi`, `xla_cached` and `xla_bf16`. They are here so that one build makes all that
//! is Rust.

#![deny(unsafe_code)]

#[cfg(target_arch = "x86_64")]
pub mod amx;
mod apply_merges;
#[cfg(target_arch = "x86_64")]
pub mod attention;
#[cfg(target_arch = "x86_64")]
pub mod bf16;
mod block;
mod cache;
pub mod cached;
mod count;
mod encode;
mod ends;
mod error;
mod ids;
pub mod int8;
mod learn_merges;
#[cfg(target_arch = "x86_64")]
pub mod linear;
#[cfg(target_arch = "x86_64")]
pub mod loss;
mod machine;
#[cfg(target_arch = "x86_64")]
pub mod mlp;
#[cfg(target_arch = "x86_64")]
pub mod norm_rope;
#[cfg(target_arch = "x86_64")]
pub mod orthogonal;
pub mod out;
#[cfg(feature = "python")]
mod python;
#[cfg(target_arch = "x86_64")]
mod rows;
mod scan;
#[cfg(target_arch = "x86_64")]
mod scratch;
mod split;
mod table;
mod train;
mod unicode;
mod word;
#[cfg(all(feature = "python", target_arch = "x86_64"))]
mod xla_bf16;
#[cfg(feature = "python")]
mod xla_cached;
#[cfg(feature = "python")]
mod xla_ffi;
#[cfg(all(feature = "python", target_arch = "x86_64"))]
mod xla_linear;
#[cfg(all(feature = "python", target_arch = "x86_64"))]
mod xla_mlp;

pub use count::Summary;
pub use encode::{Encoded, Encoder, TokenId};
pub use error::Error;
pub use scan::known_patterns;
pub use split::Splitter;
pub use train::Trainer;

/// A token's place in the vocabulary: 0..=255 are the bytes.
pub(crate) type Id = u32;
