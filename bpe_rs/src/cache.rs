//! A cache of the ids of recent pre-tokens.

use rustc_hash::FxHashMap;

use crate::Id;
use crate::word::ShortWord;

/// 4 MB of slots.
const SLOT_BITS: u32 = 17;
/// Most pre-tokens are one token, nearly all short ones at most three.
const SLOT_IDS: usize = 3;
const LONG_WORDS: usize = 1 << 14;
/// Longer ones hardly come twice.
const LONG_BYTES: usize = 64;

#[derive(Clone, Copy, Default)]
struct Slot {
    word: ShortWord,
    ids: [Id; SLOT_IDS],
    len: u32,
}

/// A table with one slot per hash for short pre-tokens, where the newest stays, and a map for
/// longer ones, emptied when full.
pub struct Cache {
    slots: Vec<Slot>,
    long: FxHashMap<Box<[u8]>, Box<[Id]>>,
}

impl Default for Cache {
    fn default() -> Self {
        // The empty word is no pre-token: it marks a free slot.
        Self {
            slots: vec![Slot::default(); 1 << SLOT_BITS],
            long: FxHashMap::default(),
        }
    }
}

impl Cache {
    /// Appends the ids of the pre-token `text[start..end]`; `encode` knows those of any.
    #[inline]
    pub fn encode(
        &mut self,
        text: &[u8],
        start: usize,
        end: usize,
        out: &mut Vec<Id>,
        encode: impl Fn(&[u8], &mut Vec<Id>),
    ) {
        let Some(word) = ShortWord::new(text, start, end) else {
            return self.encode_long(&text[start..end], out, encode);
        };
        let slot = &mut self.slots[(word.mixed() >> (64 - SLOT_BITS)) as usize];
        if slot.word == word {
            // All are always written, which is faster than a loop over one or two.
            out.extend_from_slice(&slot.ids);
            out.truncate(out.len() - SLOT_IDS + slot.len as usize);
            return;
        }
        let first = out.len();
        encode(&text[start..end], out);
        let ids = &out[first..];
        if ids.len() <= SLOT_IDS {
            slot.word = word;
            slot.ids = std::array::from_fn(|i| ids.get(i).copied().unwrap_or_default());
            slot.len = ids.len() as u32;
        }
    }

    fn encode_long(
        &mut self,
        word: &[u8],
        out: &mut Vec<Id>,
        encode: impl Fn(&[u8], &mut Vec<Id>),
    ) {
        if word.len() > LONG_BYTES {
            return encode(word, out);
        }
        if let Some(ids) = self.long.get(word) {
            return out.extend_from_slice(ids);
        }
        let first = out.len();
        encode(word, out);
        if self.long.len() == LONG_WORDS {
            self.long.clear();
        }
        self.long.insert(word.into(), out[first..].into());
    }
}
