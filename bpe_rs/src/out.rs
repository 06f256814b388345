//! Where the results of shared work go.
#![allow(unsafe_code)]

/// A result that several threads write, each its own part.
#[derive(Clone, Copy)]
pub struct Out<T = f32>(pub *mut T);

// SAFETY: no two threads use the same part (see `at`)
unsafe impl<T> Sync for Out<T> {}

impl<T> Out<T> {
    /// Numbers from `at` on.
    ///
    /// # Safety
    /// They must be within the result, and no other thread may use them.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn at(&self, at: usize, count: usize) -> &mut [T] {
        // SAFETY: the caller's promise
        unsafe { std::slice::from_raw_parts_mut(self.0.add(at), count) }
    }
}
