use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::Id;
use crate::count::{Summary, WordCounts};
use crate::learn_merges::MergeLearner;
use crate::{Error, Splitter};

const BYTES: u32 = 256;

/// Learns a byte-level vocabulary from texts fed to it piece by piece.
///
/// The rule: start from the 256 bytes; merge the most frequent pair of adjacent tokens inside
/// pre-tokens into a new token; repeat. Of equally frequent pairs the smallest (left id, right
/// id) wins, where an id is a token's rank. The result depends on the texts alone, neither on
/// how they were cut into calls of `feed` nor on the number of threads.
pub struct Trainer {
    splitter: Splitter,
    vocab_size: u32,
    threads: ThreadPool,
    counts: WordCounts,
}

impl Trainer {
    /// `vocab_size` counts the 256 bytes; `threads` 0 means one per core.
    /// `max_words` caps the distinct pre-tokens held, 0 for no cap.
    pub fn new(
        pattern: &str,
        vocab_size: u32,
        threads: usize,
        max_words: usize,
    ) -> Result<Self, Error> {
        if vocab_size < BYTES {
            return Err(Error::VocabSize(vocab_size));
        }
        Ok(Self {
            splitter: Splitter::new(pattern)?,
            vocab_size,
            threads: ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .map_err(Error::Threads)?,
            counts: WordCounts::with_limit(max_words),
        })
    }

    /// Counts the pre-tokens of `texts`, which need not live any longer.
    pub fn feed<T>(&mut self, texts: &[T]) -> Result<(), Error>
    where
        T: AsRef<str> + Sync,
    {
        let Self {
            splitter,
            threads,
            counts,
            ..
        } = self;
        threads.install(|| counts.add(texts, splitter))
    }

    /// What was counted so far.
    pub fn summary(&self) -> Summary {
        self.counts.summary()
    }

    /// Merges, and returns the bytes of every token in rank order: the 256 bytes, then one token
    /// per merge. There are fewer than `vocab_size` only when the texts ran out of pairs.
    ///
    /// `progress` is called after each merge, with the number done; its error stops the training.
    pub fn finish<E>(
        self,
        mut progress: impl FnMut(u32) -> Result<(), E>,
    ) -> Result<Vec<Vec<u8>>, E> {
        let mut learner = MergeLearner::new(&self.counts);
        drop(self.counts);
        let mut tokens: Vec<Vec<u8>> = (0..=u8::MAX).map(|byte| vec![byte]).collect();
        for new in BYTES..self.vocab_size {
            let Some(best) = learner.pop_best() else {
                break;
            };
            let (left, right) = best.pair;
            learner.merge(best, new);
            tokens.push([token(&tokens, left), token(&tokens, right)].concat());
            progress(new + 1 - BYTES)?;
        }
        Ok(tokens)
    }
}

fn token(tokens: &[Vec<u8>], id: Id) -> &[u8] {
    &tokens[id as usize]
}
