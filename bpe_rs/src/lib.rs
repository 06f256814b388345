//! Byte-level byte-pair encoding: the trainer behind jaxchat's tokenizer.
//!
//! A [`Trainer`] is fed texts, counts their distinct pre-tokens (pieces cut by a pattern), and
//! then merges the most frequent pair of adjacent tokens again and again. Nothing here knows
//! Python: the bindings are in `python.rs`, behind the feature `python`.

mod count;
mod error;
mod merge;
#[cfg(feature = "python")]
mod python;
mod split;
mod train;

pub use error::Error;
pub use split::Splitter;
pub use train::Trainer;
