use std::sync::Mutex;

use rayon::ThreadPoolBuilder;
use rayon::prelude::*;

use crate::Id;
use crate::apply_merges::Merges;
use crate::cache::Cache;
use crate::{Error, Splitter};

/// Texts are encoded in units of about this many bytes, one thread each.
const UNIT_BYTES: usize = 1 << 16;

/// Turns text into token ids; many threads may use one.
pub struct Encoder {
    splitter: Splitter,
    merges: Merges,
    /// Caches that no thread is using.
    caches: Mutex<Vec<Cache>>,
}

/// The ids of several texts, one after the other.
#[derive(Default)]
pub struct Encoded {
    pub ids: Vec<Id>,
    /// How many ids each text has.
    pub lengths: Vec<usize>,
}

impl Encoder {
    /// `tokens` by rank, the 256 bytes among them.
    pub fn new<T: AsRef<[u8]>>(tokens: &[T], pattern: &str) -> Result<Self, Error> {
        Ok(Self {
            splitter: Splitter::new(pattern)?,
            merges: Merges::new(tokens)?,
            caches: Mutex::default(),
        })
    }

    /// The ids of one text.
    pub fn encode(&self, text: &str) -> Result<Vec<Id>, Error> {
        let mut out = Vec::with_capacity(text.len() / 3 + SMALL);
        self.with_cache(|cache| self.append(text, cache, &mut out))
            .map_err(|cause| Error::Split(0, cause))?;
        Ok(out)
    }

    /// The ids of each text between those of `before` and `after`, in units that follow each
    /// other. `threads` 0 means one per core.
    ///
    /// The threads live for this call only: a pool that is kept would be dead in a forked process.
    pub fn encode_batch<T>(
        &self,
        texts: &[T],
        before: &[Id],
        after: &[Id],
        threads: usize,
    ) -> Result<Vec<Encoded>, Error>
    where
        T: AsRef<str> + Sync,
    {
        let encode = |(first, unit)| {
            self.with_cache(|cache| self.encode_unit(first, unit, before, after, cache))
        };
        let units = units(texts);
        if threads == 1 || units.len() <= 1 {
            return units.into_iter().map(encode).collect();
        }
        let pool = ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.map_err(Error::Threads)?;
        pool.install(|| units.into_par_iter().map(encode).collect())
    }

    fn encode_unit<T: AsRef<str>>(
        &self,
        first: usize,
        texts: &[T],
        before: &[Id],
        after: &[Id],
        cache: &mut Cache,
    ) -> Result<Encoded, Error> {
        let bytes: usize = texts.iter().map(|text| text.as_ref().len()).sum();
        let mut unit = Encoded {
            ids: Vec::with_capacity(bytes / 3 + SMALL),
            lengths: Vec::with_capacity(texts.len()),
        };
        for (index, text) in (first..).zip(texts) {
            let start = unit.ids.len();
            unit.ids.extend_from_slice(before);
            self.append(text.as_ref(), cache, &mut unit.ids)
                .map_err(|cause| Error::Split(index, cause))?;
            unit.ids.extend_from_slice(after);
            unit.lengths.push(unit.ids.len() - start);
        }
        Ok(unit)
    }

    fn append(
        &self,
        text: &str,
        cache: &mut Cache,
        out: &mut Vec<Id>,
    ) -> Result<(), Box<fancy_regex::Error>> {
        self.splitter.split(text, |start, end| {
            cache.encode(text.as_bytes(), start, end, out, |word, out| {
                self.merges.encode(word, out);
            });
        })
    }

    fn with_cache<R>(&self, work: impl FnOnce(&mut Cache) -> R) -> R {
        let free = self
            .caches
            .lock()
            .expect("no thread panics while it holds the lock")
            .pop();
        let mut cache = free.unwrap_or_default();
        let result = work(&mut cache);
        self.caches
            .lock()
            .expect("no thread panics while it holds the lock")
            .push(cache);
        result
    }
}

const SMALL: usize = 16;

/// Cuts the texts into runs of about `UNIT_BYTES`, each with the number of its first text.
fn units<T: AsRef<str>>(texts: &[T]) -> Vec<(usize, &[T])> {
    let mut units = Vec::new();
    let (mut first, mut bytes) = (0, 0);
    for (index, text) in texts.iter().enumerate() {
        bytes += text.as_ref().len();
        if bytes >= UNIT_BYTES || index + 1 == texts.len() {
            units.push((first, &texts[first..=index]));
            (first, bytes) = (index + 1, 0);
        }
    }
    units
}
