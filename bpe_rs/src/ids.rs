//! Ids that are written four at a time.

use crate::Id;

/// A list that grows before it is written to: there are zeros after its end.
#[derive(Default)]
pub struct Ids {
    pub ids: Vec<Id>,
    pub len: usize,
}

impl Ids {
    pub fn clear(&mut self) {
        self.len = 0;
    }

    pub fn as_slice(&self) -> &[Id] {
        &self.ids[..self.len]
    }

    pub fn into_vec(mut self) -> Vec<Id> {
        self.ids.truncate(self.len);
        self.ids
    }

    /// Makes room for `more` ids that are given to `push`.
    #[inline]
    pub fn reserve(&mut self, more: usize) {
        let needed = self.len + more + 4;
        if self.ids.len() < needed {
            self.ids.resize(needed.max(2 * self.ids.len()), 0);
        }
    }

    pub fn extend(&mut self, ids: &[Id]) {
        self.reserve(ids.len());
        self.ids[self.len..self.len + ids.len()].copy_from_slice(ids);
        self.len += ids.len();
    }
}
