//! A cache of the ids of recent pre-tokens.

use rustc_hash::FxHashMap;

use crate::Id;
use crate::apply_merges::Merges;
use crate::ends::MOST;
use crate::ids::Ids;
use crate::table::Table;
use crate::word::{SHORT, ShortWord};

/// The most ids in a slot: nearly all short pre-tokens have at most three.
const SLOT_IDS: usize = 3;
/// Lists of more ids are in one vector of at most so many.
const MANY_IDS: usize = 1 << 20;
const LONG_WORDS: usize = 1 << 14;
/// Longer ones hardly come twice.
const LONG_BYTES: usize = 64;

/// A table of short pre-tokens, and a map for longer ones, which is emptied when it is full.
pub struct Cache {
    table: Table,
    many: Vec<Id>,
    /// The ids that were merged last.
    made: Vec<Id>,
    long: FxHashMap<Box<[u8]>, Box<[Id]>>,
    queue: [Waiting; MOST],
}

/// A pre-token, without bytes if it is long, and its line in the table.
#[derive(Clone, Copy, Default)]
struct Waiting {
    word: ShortWord,
    line: usize,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            table: Table::default(),
            many: Vec::new(),
            made: Vec::new(),
            long: FxHashMap::default(),
            queue: [Waiting::default(); MOST],
        }
    }
}

impl Cache {
    /// Appends the ids of successive pre-tokens of a text to `out`: the first begins at `start`,
    /// and they end at `ends`.
    pub fn append(
        &mut self,
        text: &[u8],
        start: usize,
        ends: &[usize],
        merges: &Merges,
        out: &mut Ids,
    ) {
        self.table.grow();
        let mut next = start;
        for (waiting, &end) in self.queue.iter_mut().zip(ends) {
            waiting.word = ShortWord::new(text, next, end).unwrap_or_default();
            waiting.line = self.table.line(waiting.word);
            self.table.prefetch(waiting.line);
            next = end;
        }
        out.reserve(ends.len() * SLOT_IDS);
        let mut n = out.len;
        for (i, &end) in ends.iter().enumerate() {
            let waiting = self.queue[i];
            let (found, [low, high]) = self.table.get(waiting.line, waiting.word);
            let len = (high >> 32) as usize;
            // A free slot is a long word's, and has no ids.
            if found && (1..=SLOT_IDS).contains(&len) {
                // All are always written, which is faster than a loop over one or two.
                out.ids[n..n + 4].copy_from_slice(&[low as Id, (low >> 32) as Id, high as Id, 0]);
                n += len;
            } else {
                let start = if i == 0 { start } else { ends[i - 1] };
                out.len = n;
                self.look_further(waiting, &text[start..end], merges, out);
                out.reserve((ends.len() - i) * SLOT_IDS);
                n = out.len;
            }
        }
        out.len = n;
    }

    /// Appends the ids of a pre-token that is not in its line, has many ids or is long.
    #[cold]
    fn look_further(&mut self, waiting: Waiting, text: &[u8], merges: &Merges, out: &mut Ids) {
        if text.len() > SHORT {
            return self.encode_long(text, merges, out);
        }
        let Waiting { word, line } = waiting;
        let Some([low, high]) = self.table.find(line, word) else {
            self.encode(text, merges, out);
            return self.keep(line, word);
        };
        match (high >> 32) as usize {
            len if len > SLOT_IDS => out.extend(&self.many[low as usize..][..len]),
            len => out.extend(&[low as Id, (low >> 32) as Id, high as Id][..len]),
        }
    }

    fn encode(&mut self, word: &[u8], merges: &Merges, out: &mut Ids) {
        self.made.clear();
        merges.encode(word, &mut self.made);
        out.extend(&self.made);
    }

    fn keep(&mut self, line: usize, word: ShortWord) {
        let ids = self.made.as_slice();
        let id = |i: usize| u64::from(ids.get(i).copied().unwrap_or_default());
        let mut low = id(0) | id(1) << 32;
        if ids.len() > SLOT_IDS {
            if self.many.len() + ids.len() > MANY_IDS {
                self.many.clear();
                self.table.clear();
            }
            low = self.many.len() as u64;
            self.many.extend_from_slice(ids);
        }
        self.table
            .keep(line, word, [low, id(2) | (ids.len() as u64) << 32]);
    }

    fn encode_long(&mut self, word: &[u8], merges: &Merges, out: &mut Ids) {
        if word.len() > LONG_BYTES {
            return self.encode(word, merges, out);
        }
        if let Some(ids) = self.long.get(word) {
            return out.extend(ids);
        }
        self.encode(word, merges, out);
        if self.long.len() == LONG_WORDS {
            self.long.clear();
        }
        self.long.insert(word.into(), self.made.as_slice().into());
    }
}
