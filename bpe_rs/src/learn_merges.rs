//! Training: finds the most frequent pair of adjacent tokens and merges it, again and again.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

use rustc_hash::FxHashMap;

use crate::Id;
use crate::count::WordCounts;

/// Two adjacent tokens.
pub type Pair = (Id, Id);

/// One distinct pre-token: a stretch of `MergeLearner::ids`, and how often it was seen.
struct Word {
    start: u32,
    len: u32,
    count: u64,
}

impl Word {
    fn place(&self) -> Range<usize> {
        let start = self.start as usize;
        start..start + self.len as usize
    }
}

/// Where a pair stands: its exact count, and the words that hold it or once held it.
#[derive(Default)]
struct Place {
    count: u64,
    words: Vec<u32>,
}

/// The distinct pre-tokens as tokens, and an index of their pairs kept up to date by each merge.
///
/// The heap is lazy: the count of a pair never rises after the merge that made it, so an entry
/// is an upper bound, and one that is found out of date goes back with the exact count.
pub struct MergeLearner {
    ids: Vec<Id>,
    words: Vec<Word>,
    places: FxHashMap<Pair, Place>,
    /// The most frequent pair on top; among equals the smallest pair of ids.
    heap: BinaryHeap<(u64, Reverse<Pair>)>,
}

impl MergeLearner {
    /// Cuts the words into bytes and indexes their pairs.
    pub fn new(counts: &WordCounts) -> Self {
        let mut learner = Self {
            ids: Vec::new(),
            words: Vec::new(),
            places: FxHashMap::default(),
            heap: BinaryHeap::new(),
        };
        counts.for_each(|word, count| {
            // A word of one byte has no pair.
            if word.len() > 1 {
                learner.add_word(word, count);
            }
        });
        let entries = learner.places.iter();
        learner.heap = entries
            .map(|(&pair, place)| (place.count, Reverse(pair)))
            .collect();
        learner
    }

    fn add_word(&mut self, bytes: &[u8], count: u64) {
        let index = fit(self.words.len());
        self.words.push(Word {
            start: fit(self.ids.len()),
            len: fit(bytes.len()),
            count,
        });
        self.ids.extend(bytes.iter().map(|&byte| Id::from(byte)));
        for pair in bytes.windows(2) {
            let pair = (Id::from(pair[0]), Id::from(pair[1]));
            self.places.entry(pair).or_default().add(index, count);
        }
    }

    /// The pair to merge next: the most frequent one, and of equally frequent ones the smallest
    /// by (left id, right id). None when no pair is left. The pair leaves the index.
    pub fn pop_best(&mut self) -> Option<Best> {
        while let Some((bound, Reverse(pair))) = self.heap.pop() {
            let count = self.places[&pair].count;
            if count > 0 && count < bound {
                self.heap.push((count, Reverse(pair)));
                continue;
            }
            let place = self.places.remove(&pair)?;
            if count > 0 {
                let words = place.words;
                return Some(Best { pair, words });
            }
        }
        None
    }

    /// Replaces every `best.pair` by `new`, left to right in each word, and updates the index.
    pub fn merge(&mut self, best: Best, new: Id) {
        let mut made = Vec::new();
        for index in best.words {
            let word = &mut self.words[index as usize];
            let ids = &mut self.ids[word.place()];
            let places = &mut self.places;
            let len = merge_word(ids, best.pair, new, |change| match change {
                // The merged pair itself has left the index: nothing to count down.
                Change::Lost(pair) => {
                    if let Some(place) = places.get_mut(&pair) {
                        place.count -= word.count;
                    }
                }
                Change::Made(pair) => {
                    let place = places.entry(pair).or_insert_with(|| {
                        made.push(pair);
                        Place::default()
                    });
                    place.add(index, word.count);
                }
            });
            word.len = fit(len);
        }
        for pair in made {
            let count = self.places[&pair].count;
            self.heap.push((count, Reverse(pair)));
        }
    }
}

/// A pair chosen to be merged, and the words to look for it in.
pub struct Best {
    pub pair: Pair,
    words: Vec<u32>,
}

impl Place {
    fn add(&mut self, word: u32, count: u64) {
        self.count += count;
        // Words come one after the other, so a repeat is always the last one.
        if self.words.last() != Some(&word) {
            self.words.push(word);
        }
    }
}

enum Change {
    Lost(Pair),
    Made(Pair),
}

/// Merges `pair` into `new` within one word, in place; returns how many ids remain.
fn merge_word(ids: &mut [Id], pair: Pair, new: Id, mut report: impl FnMut(Change)) -> usize {
    let (mut read, mut write) = (0, 0);
    while read < ids.len() {
        if ids[read..].starts_with(&[pair.0, pair.1]) {
            if write > 0 {
                let before = ids[write - 1];
                report(Change::Lost((before, pair.0)));
                report(Change::Made((before, new)));
            }
            if let Some(&after) = ids.get(read + 2) {
                report(Change::Lost((pair.1, after)));
                report(Change::Made((new, after)));
            }
            ids[write] = new;
            read += 2;
        } else {
            ids[write] = ids[read];
            read += 1;
        }
        write += 1;
    }
    write
}

/// Half the size of usize, for there are many of them.
fn fit(number: usize) -> u32 {
    u32::try_from(number).expect("distinct pre-tokens have less than 4 GB")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Splitter;

    fn merged(ids: &[Id], pair: Pair) -> Vec<Id> {
        let mut ids = ids.to_vec();
        let len = merge_word(&mut ids, pair, 9, |_| ());
        ids.truncate(len);
        ids
    }

    #[test]
    fn a_pair_is_merged_from_left_to_right() {
        assert_eq!(merged(&[1, 1, 1], (1, 1)), [9, 1]);
        assert_eq!(merged(&[1, 1, 1, 1], (1, 1)), [9, 9]);
        assert_eq!(merged(&[2, 1, 2, 1, 1], (2, 1)), [9, 9, 1]);
        assert_eq!(merged(&[1, 2, 3], (3, 1)), [1, 2, 3]);
    }

    /// After every merge the index must equal a new count.
    #[test]
    fn counts_stay_exact() {
        let words = ["aaaa", "abab", "aabaab", "banana", "aaaaaaa", "b"];
        let mut counts = WordCounts::default();
        let splitter = Splitter::new(r"\w+").unwrap();
        for (word, count) in words.iter().zip(1..) {
            counts.add(&vec![word; count], &splitter).unwrap();
        }
        let mut learner = MergeLearner::new(&counts);
        let mut next = 256;
        while let Some(best) = learner.pop_best() {
            learner.merge(best, next);
            next += 1;
            let mut fresh: FxHashMap<Pair, u64> = FxHashMap::default();
            for word in &learner.words {
                for pair in learner.ids[word.place()].windows(2) {
                    *fresh.entry((pair[0], pair[1])).or_default() += word.count;
                }
            }
            let held = learner.places.iter().filter(|(_, place)| place.count > 0);
            let held: FxHashMap<Pair, u64> = held.map(|(&pair, p)| (pair, p.count)).collect();
            assert_eq!(held, fresh);
        }
        assert!(next > 260, "only {} merges were made", next - 256);
    }
}
