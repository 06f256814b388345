//! Ids that are written four at a time, whether they are wanted or not.

use crate::Id;
use crate::cache::{SLOT_IDS, Value};
use crate::ends::MOST;

/// The ids of a few pre-tokens: an array that stays in the first cache.
pub struct Ids {
    ids: [Id; MOST * SLOT_IDS + 1],
    len: usize,
}

impl Default for Ids {
    fn default() -> Self {
        Self {
            ids: [0; _],
            len: 0,
        }
    }
}

impl Ids {
    /// Appends the first `count` ids of a value. All are always written, which is faster than a
    /// loop over one or two.
    #[inline]
    pub fn push(&mut self, value: &Value, count: usize) {
        self.ids[self.len..self.len + value.len()].copy_from_slice(value);
        self.len += count;
    }

    /// Takes all of them.
    #[inline]
    pub fn take(&mut self) -> &[Id] {
        &self.ids[..std::mem::take(&mut self.len)]
    }
}
