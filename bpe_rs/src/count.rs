use rayon::prelude::*;
use rustc_hash::FxHashMap;

use crate::{Error, Splitter};

/// How often each distinct pre-token was seen. Memory grows with distinct pre-tokens only.
#[derive(Default)]
pub struct WordCounts {
    counts: FxHashMap<Box<str>, u64>,
    texts: usize,
}

impl WordCounts {
    /// Adds the pre-tokens of `texts`, split on the threads of the current rayon pool.
    pub fn add<T>(&mut self, texts: &[T], splitter: &Splitter) -> Result<(), Error>
    where
        T: AsRef<str> + Sync,
    {
        let first = self.texts;
        let partial =
            texts
                .par_iter()
                .enumerate()
                .try_fold(FxHashMap::default, |counts, (index, text)| {
                    count_words(counts, splitter, text.as_ref())
                        .map_err(|cause| Error::Split(first + index, cause.into()))
                });
        let partial: Vec<FxHashMap<&str, u64>> = partial.collect::<Result<_, _>>()?;
        self.texts += texts.len();
        for (word, count) in partial.into_iter().flatten() {
            self.add_word(word, count);
        }
        Ok(())
    }

    fn add_word(&mut self, word: &str, count: u64) {
        match self.counts.get_mut(word) {
            Some(total) => *total += count,
            None => {
                self.counts.insert(word.into(), count);
            }
        }
    }

    /// Every distinct pre-token with its count, in no order that matters.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.counts.iter().map(|(word, &count)| (&**word, count))
    }
}

fn count_words<'t>(
    mut counts: FxHashMap<&'t str, u64>,
    splitter: &Splitter,
    text: &'t str,
) -> Result<FxHashMap<&'t str, u64>, fancy_regex::Error> {
    for word in splitter.split(text) {
        *counts.entry(word?).or_default() += 1;
    }
    Ok(counts)
}
