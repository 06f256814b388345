//! A cache of the ids of recent pre-tokens.

use rustc_hash::FxHashMap;

use crate::Id;
use crate::apply_merges::Merges;
use crate::machine::{huge_pages, prefetch};
use crate::word::{SHORT, ShortWord};

/// Pre-tokens that are looked up together, so that memory is waited for once.
const QUEUE: usize = 64;
/// 16 MB of slots, of which the system gives only what is used.
const SET_BITS: u32 = 17;
/// Slots of a set: two lines of a processor's cache.
const WAYS: usize = 4;
/// Integers of a slot: two with a word, then two with ids and their number.
const SLOT: usize = 4;
const SET: usize = WAYS * SLOT;
/// The most ids in a slot: nearly all short pre-tokens have at most three.
const SLOT_IDS: usize = 3;
/// Lists of more ids are in one vector of at most so many.
const MANY_IDS: usize = 1 << 20;
const LONG_WORDS: usize = 1 << 14;
/// Longer ones hardly come twice.
const LONG_BYTES: usize = 64;

/// Sets of slots for short pre-tokens, one for each hash, the latest first, and a map for longer
/// ones. What is full is emptied.
pub struct Cache {
    /// Zeros are no pre-token: they mark a free slot.
    slots: Vec<u64>,
    /// Where the first set begins: at the beginning of a line.
    first: usize,
    many: Vec<Id>,
    long: FxHashMap<Box<[u8]>, Box<[Id]>>,
    queue: [Waiting; QUEUE],
    waiting: usize,
}

/// A pre-token, without bytes if it is long, its set, and its place in the text.
#[derive(Clone, Copy, Default)]
struct Waiting {
    word: ShortWord,
    set: usize,
    start: usize,
    end: usize,
}

impl Default for Cache {
    fn default() -> Self {
        let mut slots = vec![0; SET << SET_BITS | SET];
        huge_pages(&mut slots);
        Self {
            first: slots.as_ptr().align_offset(128).min(SET),
            slots,
            many: Vec::new(),
            long: FxHashMap::default(),
            queue: [Waiting::default(); QUEUE],
            waiting: 0,
        }
    }
}

impl Cache {
    /// Appends the ids of the pre-token `text[start..end]` to `out`, at the latest in `flush`.
    #[inline]
    pub fn push(
        &mut self,
        text: &[u8],
        start: usize,
        end: usize,
        merges: &Merges,
        out: &mut Vec<Id>,
    ) {
        let word = ShortWord::new(text, start, end).unwrap_or_default();
        let set = self.first + (word.mixed() >> (64 - SET_BITS)) as usize * SET;
        prefetch(&self.slots, set);
        self.queue[self.waiting] = Waiting {
            word,
            set,
            start,
            end,
        };
        self.waiting += 1;
        if self.waiting == QUEUE {
            self.flush(text, merges, out);
        }
    }

    /// Appends the ids of all pre-tokens of `text` that wait.
    pub fn flush(&mut self, text: &[u8], merges: &Merges, out: &mut Vec<Id>) {
        let mut ids = [0; QUEUE * SLOT_IDS + 1];
        let mut n = 0;
        for i in 0..std::mem::take(&mut self.waiting) {
            let Waiting { word, set, .. } = self.queue[i];
            // One of the first two slots without a branch: which one it is cannot be foreseen.
            let slot = if self.word(set) == word {
                set
            } else {
                set + SLOT
            };
            let [low, high] = self.ids(slot);
            let len = (high >> 32) as usize;
            // A free slot is a long word's, and has no ids.
            if self.word(slot) == word && (1..=SLOT_IDS).contains(&len) {
                // All are always written, which is faster than a loop over one or two.
                ids[n..n + 4].copy_from_slice(&[low as Id, (low >> 32) as Id, high as Id, 0]);
                n += len;
            } else {
                out.extend_from_slice(&ids[..n]);
                n = 0;
                self.look_further(i, text, merges, out);
            }
        }
        out.extend_from_slice(&ids[..n]);
    }

    #[inline]
    fn word(&self, slot: usize) -> ShortWord {
        ShortWord::of_integers(*self.slots[slot..].first_chunk().expect("a slot"))
    }

    #[inline]
    fn ids(&self, slot: usize) -> [u64; 2] {
        *self.slots[slot + 2..].first_chunk().expect("a slot")
    }

    /// Appends the ids of a pre-token that is in neither of the first two slots, has many ids or is
    /// long.
    #[cold]
    fn look_further(&mut self, i: usize, text: &[u8], merges: &Merges, out: &mut Vec<Id>) {
        let Waiting {
            word,
            set,
            start,
            end,
        } = self.queue[i];
        let text = &text[start..end];
        if text.len() > SHORT {
            return self.encode_long(text, merges, out);
        }
        let slots = (0..WAYS).map(|way| set + way * SLOT);
        let Some(found) = slots.clone().find(|&slot| self.word(slot) == word) else {
            let first = out.len();
            merges.encode(text, out);
            return self.keep(set, word, &out[first..]);
        };
        let [low, high] = self.ids(found);
        match (high >> 32) as usize {
            len if len > SLOT_IDS => out.extend_from_slice(&self.many[low as usize..][..len]),
            len => out.extend_from_slice(&[low as Id, (low >> 32) as Id, high as Id][..len]),
        }
        self.slots[set..found + SLOT].rotate_right(SLOT);
    }

    fn keep(&mut self, set: usize, word: ShortWord, ids: &[Id]) {
        let id = |i: usize| u64::from(ids.get(i).copied().unwrap_or_default());
        let mut low = id(0) | id(1) << 32;
        if ids.len() > SLOT_IDS {
            if self.many.len() + ids.len() > MANY_IDS {
                self.many.clear();
                self.slots.fill(0);
            }
            low = self.many.len() as u64;
            self.many.extend_from_slice(ids);
        }
        let [a, b] = word.integers();
        let slots = &mut self.slots[set..set + SET];
        slots.copy_within(..SET - SLOT, SLOT);
        slots[..SLOT].copy_from_slice(&[a, b, low, id(2) | (ids.len() as u64) << 32]);
    }

    fn encode_long(&mut self, word: &[u8], merges: &Merges, out: &mut Vec<Id>) {
        if word.len() > LONG_BYTES {
            return merges.encode(word, out);
        }
        if let Some(ids) = self.long.get(word) {
            return out.extend_from_slice(ids);
        }
        let first = out.len();
        merges.encode(word, out);
        if self.long.len() == LONG_WORDS {
            self.long.clear();
        }
        self.long.insert(word.into(), out[first..].into());
    }
}
