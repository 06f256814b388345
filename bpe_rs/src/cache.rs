//! A cache of the ids of recent pre-tokens.

use rustc_hash::FxHashMap;

use crate::apply_merges::Merges;
use crate::ends::MOST;
use crate::ids::Ids;
pub use crate::table::Value;
use crate::table::{Table, get};
use crate::word::{SHORT, ShortWord};
use crate::{Id, TokenId};

/// The most ids in a slot: nearly all short pre-tokens have at most three.
pub const SLOT_IDS: usize = 3;
/// Lists of more ids are in one vector of at most so many.
const MANY_IDS: usize = 1 << 20;
const LONG_WORDS: usize = 1 << 14;
/// Longer ones hardly come twice.
const LONG_BYTES: usize = 64;

/// A cache, and what it needs for a few pre-tokens at a time.
pub struct Cache {
    known: Known,
    queue: [Waiting; MOST],
    ids: Ids,
}

/// A table of short pre-tokens, and a map for longer ones, which is emptied when it is full.
#[derive(Default)]
struct Known {
    table: Table,
    many: Vec<Id>,
    /// The ids that were merged last.
    made: Vec<Id>,
    long: FxHashMap<Box<[u8]>, Box<[Id]>>,
}

/// A pre-token and its line in the table.
#[derive(Clone, Copy, Default)]
struct Waiting {
    word: ShortWord,
    line: usize,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            known: Known::default(),
            queue: [Waiting::default(); MOST],
            ids: Ids::default(),
        }
    }
}

impl Cache {
    /// Appends the ids of successive pre-tokens of a text to `out`: the first begins at `start`,
    /// and they end at `ends`.
    #[inline(always)]
    pub fn append<T: TokenId>(
        &mut self,
        text: &[u8],
        start: usize,
        ends: &[usize],
        merges: &Merges,
        out: &mut Vec<T>,
    ) {
        let Self { known, queue, ids } = self;
        known.table.grow();
        let table = &known.table;
        let mut next = start;
        for (waiting, &end) in queue.iter_mut().zip(ends) {
            let word = ShortWord::of(text, next, end);
            let line = table.line(word);
            table.prefetch(line);
            *waiting = Waiting { word, line };
            next = end;
        }
        let mut lines = table.lines();
        for (i, (waiting, &end)) in queue.iter().zip(ends).enumerate() {
            let (found, value) = get(lines, waiting.line, waiting.word);
            let count = value[SLOT_IDS] as usize;
            if found & (count <= SLOT_IDS) {
                ids.push(value, count);
            } else {
                extend(out, ids.take());
                let start = if i == 0 { start } else { ends[i - 1] };
                extend(out, known.look_further(*waiting, &text[start..end], merges));
                lines = known.table.lines();
            }
        }
        extend(out, ids.take());
    }
}

/// Appends ids as they are given out.
#[inline]
pub fn extend<T: TokenId>(out: &mut Vec<T>, ids: &[Id]) {
    out.extend(ids.iter().copied().map(T::of));
}

impl Known {
    /// The ids of a pre-token that is not in its line, has many ids or is long.
    #[cold]
    #[inline(never)]
    fn look_further(&mut self, waiting: Waiting, text: &[u8], merges: &Merges) -> &[Id] {
        if text.len() > SHORT {
            return self.look_for_long(text, merges);
        }
        let Waiting { word, line } = waiting;
        let Some(value) = self.table.find(line, word) else {
            self.merge(text, merges);
            self.keep(line, word);
            return &self.made;
        };
        let count = value[SLOT_IDS] as usize;
        if count > SLOT_IDS {
            return &self.many[value[0] as usize..][..count];
        }
        self.made.clear();
        self.made.extend(&value[..count]);
        &self.made
    }

    fn merge(&mut self, word: &[u8], merges: &Merges) {
        self.made.clear();
        merges.encode(word, &mut self.made);
    }

    fn keep(&mut self, line: usize, word: ShortWord) {
        let ids = self.made.as_slice();
        let mut value = [0; SLOT_IDS + 1];
        value[SLOT_IDS] = ids.len() as Id;
        if ids.len() > SLOT_IDS {
            if self.many.len() + ids.len() > MANY_IDS {
                self.many.clear();
                self.table.clear();
            }
            value[0] = self.many.len() as Id;
            self.many.extend_from_slice(ids);
        } else {
            value[..ids.len()].copy_from_slice(ids);
        }
        self.table.keep(line, word, value);
    }

    fn look_for_long(&mut self, word: &[u8], merges: &Merges) -> &[Id] {
        if word.len() > LONG_BYTES {
            self.merge(word, merges);
            return &self.made;
        }
        if !self.long.contains_key(word) {
            self.merge(word, merges);
            if self.long.len() == LONG_WORDS {
                self.long.clear();
            }
            self.long.insert(word.into(), self.made.as_slice().into());
        }
        &self.long[word]
    }
}
