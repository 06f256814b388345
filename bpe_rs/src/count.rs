use rayon::prelude::*;
use rustc_hash::FxHashMap;

use crate::word::ShortWord;
use crate::{Error, Splitter};

/// What was counted, and what was given up to keep within a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub texts: usize,
    /// UTF-8 bytes of the texts.
    pub bytes: u64,
    /// Pre-tokens, each time they occur.
    pub words: u64,
    /// Distinct pre-tokens that were kept.
    pub distinct: usize,
    /// Times that a distinct pre-token was dropped for being rare; one that comes again counts
    /// again.
    pub dropped: u64,
    /// Occurrences of those.
    pub dropped_words: u64,
}

/// How often each distinct pre-token was seen. Memory grows with distinct pre-tokens only.
#[derive(Default)]
pub struct WordCounts {
    words: Words,
    summary: Summary,
    /// The most distinct pre-tokens to keep; 0 for no limit.
    limit: usize,
}

/// Counts by pre-token; nearly all pre-tokens are short.
#[derive(Default)]
struct Words {
    short: FxHashMap<ShortWord, u64>,
    long: FxHashMap<Box<str>, u64>,
}

impl WordCounts {
    pub fn with_limit(limit: usize) -> Self {
        Self {
            limit,
            ..Self::default()
        }
    }

    /// Adds the pre-tokens of `texts`, split on the threads of the current rayon pool.
    pub fn add<T>(&mut self, texts: &[T], splitter: &Splitter) -> Result<(), Error>
    where
        T: AsRef<str> + Sync,
    {
        let first = self.summary.texts;
        let partial =
            texts
                .par_iter()
                .enumerate()
                .try_fold(Words::default, |words, (index, text)| {
                    let counted = words.count(text.as_ref(), splitter);
                    counted.map_err(|cause| Error::Split(first + index, cause))
                });
        let partial: Vec<Words> = partial.collect::<Result<_, _>>()?;
        self.summary.texts += texts.len();
        self.summary.bytes += texts.iter().map(|t| t.as_ref().len() as u64).sum::<u64>();
        for words in partial {
            self.summary.words += words.counts().sum::<u64>();
            self.words.merge(words);
        }
        self.drop_rare();
        Ok(())
    }

    /// Over the limit, drops the pre-tokens seen least often, whole counts at a time, until at
    /// most half the limit is left. This happens between texts fed together, never by thread, so
    /// that what is dropped depends on the texts alone.
    fn drop_rare(&mut self) {
        let distinct = self.words.len();
        if self.limit == 0 || distinct <= self.limit {
            return;
        }
        let mut by_count: FxHashMap<u64, usize> = FxHashMap::default();
        for count in self.words.counts() {
            *by_count.entry(count).or_default() += 1;
        }
        let mut by_count: Vec<(u64, usize)> = by_count.into_iter().collect();
        by_count.sort_unstable();
        let mut left = distinct;
        for (count, words) in by_count {
            if left <= self.limit / 2 {
                break;
            }
            left -= words;
            self.summary.dropped += words as u64;
            self.summary.dropped_words += count * words as u64;
            self.words.keep_over(count);
        }
    }

    pub fn summary(&self) -> Summary {
        Summary {
            distinct: self.words.len(),
            ..self.summary
        }
    }

    /// Calls `each` with every distinct pre-token and its count, in no order that matters.
    pub fn for_each(&self, mut each: impl FnMut(&[u8], u64)) {
        for (word, &count) in &self.words.short {
            each(&word.bytes()[..word.len()], count);
        }
        for (word, &count) in &self.words.long {
            each(word.as_bytes(), count);
        }
    }
}

impl Words {
    fn count(mut self, text: &str, splitter: &Splitter) -> Result<Self, Box<fancy_regex::Error>> {
        splitter.split(text, |start, end| {
            match ShortWord::new(text.as_bytes(), start, end) {
                Some(word) => *self.short.entry(word).or_default() += 1,
                None => count_long(&mut self.long, &text[start..end]),
            }
        })?;
        Ok(self)
    }

    fn merge(&mut self, other: Self) {
        for (word, count) in other.short {
            *self.short.entry(word).or_default() += count;
        }
        for (word, count) in other.long {
            *self.long.entry(word).or_default() += count;
        }
    }

    fn keep_over(&mut self, count: u64) {
        self.short.retain(|_, seen| *seen > count);
        self.long.retain(|_, seen| *seen > count);
    }

    fn counts(&self) -> impl Iterator<Item = u64> {
        self.short.values().chain(self.long.values()).copied()
    }

    fn len(&self) -> usize {
        self.short.len() + self.long.len()
    }
}

/// Makes a key only for a pre-token that is new.
fn count_long(long: &mut FxHashMap<Box<str>, u64>, word: &str) {
    match long.get_mut(word) {
        Some(count) => *count += 1,
        None => {
            long.insert(word.into(), 1);
        }
    }
}
