//! A table of short pre-tokens, each with up to three ids: a hash table of lines of memory.

use crate::Id;
use crate::machine::{huge_pages, prefetch};
use crate::word::ShortWord;

/// Lines of a group: a word is in its line, or if that is full in another of the group.
const GROUP: usize = 4;
/// A table begins with 2^8 lines, 16 KB, and grows to 16 MB.
const FEWEST_BITS: u32 = 8;
const MOST_BITS: u32 = 18;

/// Words with their values. A word is in the first free slot of its line or group, and where that
/// has none in the place of its line's second: the first ones stay, the latest is kept.
pub struct Table {
    lines: Vec<Line>,
    /// What leaves the bits of a line's number.
    shift: u32,
    /// Words kept since the table has its size.
    kept: usize,
}

/// A line of a processor's cache.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
pub struct Line([Slot; 2]);

/// The default is no pre-token: it marks a free slot.
#[derive(Clone, Copy, Default)]
struct Slot {
    word: ShortWord,
    value: Value,
}

/// Three ids, and how many they are.
pub type Value = [Id; 4];

impl Default for Table {
    fn default() -> Self {
        Self::new(FEWEST_BITS)
    }
}

impl Table {
    fn new(bits: u32) -> Self {
        let mut lines = Vec::with_capacity(1 << bits);
        huge_pages(lines.spare_capacity_mut());
        lines.resize(1 << bits, Line::default());
        Self {
            lines,
            shift: u64::BITS - bits,
            kept: 0,
        }
    }

    /// The line of a word.
    #[inline]
    pub fn line(&self, word: ShortWord) -> usize {
        (word.mixed() >> self.shift) as usize
    }

    /// Asks for a line that is read soon.
    #[inline]
    pub fn prefetch(&self, line: usize) {
        prefetch(&self.lines, line);
    }

    /// What `get` reads.
    #[inline]
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// The value of a word that may be in another line of its group.
    pub fn find(&mut self, line: usize, word: ShortWord) -> Option<Value> {
        let slot = self.slot(line, word)?;
        (slot.word == word).then_some(slot.value)
    }

    /// Keeps the value of a word that is not there yet.
    pub fn keep(&mut self, line: usize, word: ShortWord, value: Value) {
        let kept = Slot { word, value };
        match self.slot(line, word) {
            Some(slot) => *slot = kept,
            None => self.lines[line].0[1] = kept,
        }
        self.kept += 1;
    }

    /// Where a word is, or the free slot where it would be: slots are taken in order and never
    /// given back. None if all are other words'.
    fn slot(&mut self, line: usize, word: ShortWord) -> Option<&mut Slot> {
        let is = |slot: &Slot| [word, ShortWord::default()].contains(&slot.word);
        let at = (0..GROUP).map(|i| line ^ i);
        let at = at.flat_map(|line| [(line, 0), (line, 1)]);
        let (line, i) = at
            .into_iter()
            .find(|&(line, i)| is(&self.lines[line].0[i]))?;
        Some(&mut self.lines[line].0[i])
    }

    /// Makes room if the table has become full, which moves all lines.
    #[inline]
    pub fn grow(&mut self) {
        if self.kept > self.lines.len() && self.lines.len() < 1 << MOST_BITS {
            self.grow_now();
        }
    }

    #[cold]
    fn grow_now(&mut self) {
        let mut larger = Self::new(u64::BITS - self.shift + 2);
        for slot in self.lines.iter().flat_map(|line| &line.0) {
            if slot.word != ShortWord::default() {
                larger.keep(larger.line(slot.word), slot.word, slot.value);
            }
        }
        *self = larger;
    }

    /// Forgets all words.
    pub fn clear(&mut self) {
        self.lines.fill(Line::default());
        self.kept = 0;
    }
}

/// The value of a word if it is in one of the two slots of its line, without a branch: which one
/// it is cannot be foreseen. If it is in none, of some other.
#[inline]
pub fn get(lines: &[Line], line: usize, word: ShortWord) -> (bool, &Value) {
    let [first, second] = &lines[line].0;
    let (here, there) = (first.word == word, second.word == word);
    let slot = std::hint::select_unpredictable(there, second, first);
    (here | there, &slot.value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(n: usize) -> ShortWord {
        let text = n.to_string();
        ShortWord::new(text.as_bytes(), 0, text.len()).expect("few digits")
    }

    fn value_of(table: &mut Table, n: usize) -> Option<Value> {
        let line = table.line(word(n));
        match get(table.lines(), line, word(n)) {
            (true, value) => Some(*value),
            (false, _) => table.find(line, word(n)),
        }
    }

    #[test]
    fn words_are_found_while_it_grows_and_never_one_for_another() {
        let mut table = Table::default();
        let most = 100_000;
        for n in 0..most {
            assert_eq!(value_of(&mut table, n), None);
            table.keep(table.line(word(n)), word(n), [n as Id, 0, 0, 1]);
            table.grow();
        }
        let found = (0..most).filter(|&n| {
            let value = value_of(&mut table, n);
            assert!(value.is_none_or(|value| value == [n as Id, 0, 0, 1]), "{n}");
            value.is_some()
        });
        // Few were replaced: it grows before it is full.
        let found = found.count();
        assert!(found > most * 95 / 100, "{found}");
        table.clear();
        assert_eq!(value_of(&mut table, 0), None);
    }

    #[test]
    fn a_full_table_keeps_the_latest() {
        let mut table = Table::default();
        for n in 0..10_000 {
            table.keep(table.line(word(n)), word(n), [n as Id, 0, 0, 1]);
            assert_eq!(value_of(&mut table, n), Some([n as Id, 0, 0, 1]));
        }
    }
}
