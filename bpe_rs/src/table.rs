//! A table of short pre-tokens, each with up to three ids: a hash table of lines of memory.

use crate::machine::{huge_pages, prefetch};
use crate::word::ShortWord;

/// Integers of a slot: two with a word, then the two of its value.
const SLOT: usize = 4;
/// A line of a processor's cache: two slots.
const LINE: usize = 2 * SLOT;
/// Lines of a group: a word is in its line, or if that is full in another of the group.
const GROUP: usize = 4;
/// A table begins with 2^8 lines, 16 KB, and grows to 16 MB.
const FEWEST_BITS: u32 = 8;
const MOST_BITS: u32 = 18;
/// Integers of a huge page, where a table of that size begins.
const PAGE: usize = (1 << 21) / size_of::<u64>();

/// Words with values that are not zero. A word is in the first free slot of its line or group, and
/// where that has none in the place of its line's second: the first ones stay, the latest is kept.
pub struct Table {
    /// Zeros are no pre-token: they mark a free slot.
    integers: Vec<u64>,
    /// Where the first line begins.
    first: usize,
    bits: u32,
    /// Words kept since the table has its size.
    kept: usize,
}

pub type Value = [u64; 2];

impl Default for Table {
    fn default() -> Self {
        Self::new(FEWEST_BITS)
    }
}

impl Table {
    fn new(bits: u32) -> Self {
        let align = PAGE.min(LINE << bits);
        let mut integers = vec![0; (LINE << bits) + align];
        huge_pages(&mut integers);
        let first = integers.as_ptr().align_offset(size_of::<u64>() * align);
        Self {
            first: first.min(align),
            integers,
            bits,
            kept: 0,
        }
    }

    /// The line of a word.
    #[inline]
    pub fn line(&self, word: ShortWord) -> usize {
        (word.mixed() >> (64 - self.bits)) as usize
    }

    /// Asks for a line that is read soon.
    #[inline]
    pub fn prefetch(&self, line: usize) {
        prefetch(&self.integers, self.first + line * LINE);
    }

    /// The value of a word if it is in one of the two slots of its line, without a branch: which
    /// one it is cannot be foreseen. No word has the value of the free slot, or of some other.
    #[inline]
    pub fn get(&self, line: usize, word: ShortWord) -> (bool, Value) {
        let slots: &[u64; LINE] = self.integers[self.first + line * LINE..]
            .first_chunk()
            .expect("a line");
        let [a, b, low, high, c, d, other_low, other_high] = *slots;
        let here = ShortWord::of_integers([a, b]) == word;
        let there = ShortWord::of_integers([c, d]) == word;
        let pick = |here_value, there_value| {
            std::hint::select_unpredictable(here, here_value, there_value)
        };
        (here | there, [pick(low, other_low), pick(high, other_high)])
    }

    /// The value of a word that may be in another line of its group.
    pub fn find(&self, line: usize, word: ShortWord) -> Option<Value> {
        let place = self.place(line, word)?;
        let value = [self.integers[place + 2], self.integers[place + 3]];
        (self.word(place) == word).then_some(value)
    }

    /// Keeps the value of a word that is not there yet.
    pub fn keep(&mut self, line: usize, word: ShortWord, [low, high]: Value) {
        let second = self.first + line * LINE + SLOT;
        let place = self.place(line, word).unwrap_or(second);
        let [a, b] = word.integers();
        self.integers[place..place + SLOT].copy_from_slice(&[a, b, low, high]);
        self.kept += 1;
    }

    /// Where a word is, or the free slot where it would be: slots are taken in order and never
    /// given back. None if all are other words'.
    fn place(&self, line: usize, word: ShortWord) -> Option<usize> {
        let mut places = self.places(line);
        places.find(|&place| [word, ShortWord::default()].contains(&self.word(place)))
    }

    /// The slots of a line and of the others of its group.
    fn places(&self, line: usize) -> impl Iterator<Item = usize> + use<> {
        let first = self.first;
        (0..GROUP).flat_map(move |i| {
            let place = first + (line ^ i) * LINE;
            [place, place + SLOT]
        })
    }

    fn word(&self, place: usize) -> ShortWord {
        ShortWord::of_integers([self.integers[place], self.integers[place + 1]])
    }

    /// Makes room if the table has become full, which moves all lines.
    #[inline]
    pub fn grow(&mut self) {
        if self.kept > 1 << self.bits && self.bits < MOST_BITS {
            self.grow_now();
        }
    }

    #[cold]
    fn grow_now(&mut self) {
        let mut larger = Self::new(self.bits + 2);
        for slot in self.integers[self.first..].chunks_exact(SLOT) {
            let word = ShortWord::of_integers([slot[0], slot[1]]);
            if word != ShortWord::default() {
                larger.keep(larger.line(word), word, [slot[2], slot[3]]);
            }
        }
        *self = larger;
    }

    /// Forgets all words.
    pub fn clear(&mut self) {
        self.integers.fill(0);
        self.kept = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(n: usize) -> ShortWord {
        let text = n.to_string();
        ShortWord::new(text.as_bytes(), 0, text.len()).expect("few digits")
    }

    fn value_of(table: &Table, n: usize) -> Option<Value> {
        let line = table.line(word(n));
        match table.get(line, word(n)) {
            (true, value) => Some(value),
            (false, _) => table.find(line, word(n)),
        }
    }

    #[test]
    fn words_are_found_while_it_grows_and_never_one_for_another() {
        let mut table = Table::default();
        let most = 100_000;
        for n in 0..most {
            assert_eq!(value_of(&table, n), None);
            table.keep(table.line(word(n)), word(n), [n as u64, 1]);
            table.grow();
        }
        let found = (0..most).filter(|&n| {
            let value = value_of(&table, n);
            assert!(value.is_none_or(|value| value == [n as u64, 1]), "{n}");
            value.is_some()
        });
        // Few were replaced: it grows before it is full.
        let found = found.count();
        assert!(found > most * 95 / 100, "{found}");
        table.clear();
        assert_eq!(value_of(&table, 0), None);
    }

    #[test]
    fn a_full_table_keeps_the_latest() {
        let mut table = Table::default();
        for n in 0..10_000 {
            table.keep(table.line(word(n)), word(n), [n as u64, 1]);
            assert_eq!(value_of(&table, n), Some([n as u64, 1]));
        }
    }
}
