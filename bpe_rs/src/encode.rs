use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::Id;
use crate::apply_merges::Merges;
use crate::cache::{Cache, extend};
use crate::machine;
use crate::scan::expect;
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

/// An id as it is given out.
pub trait TokenId: Copy + Send {
    /// Cuts off what is too much.
    fn of(id: Id) -> Self;
}

impl TokenId for u16 {
    fn of(id: Id) -> Self {
        id as Self
    }
}

impl TokenId for u32 {
    fn of(id: Id) -> Self {
        id
    }
}

/// The ids of several texts, one after the other.
pub struct Encoded<T> {
    pub ids: Vec<T>,
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
        let mut cache = self.take_cache();
        let mut out = Vec::with_capacity(text.len() / 3 + SMALL);
        let done = self.append(text, &mut cache, &mut out);
        self.put_back(cache);
        done.map_err(|cause| Error::Split(0, cause))?;
        Ok(out)
    }

    /// The ids of each text between those of `before` and `after`, in units that follow each
    /// other. `threads` 0 means one per core. Fewer are used if the system gives no more.
    ///
    /// The threads live for this call only: a pool that is kept would be dead in a forked process.
    /// Each has a cache and a list of units of its own.
    pub fn encode_batch<I, T>(
        &self,
        texts: &[T],
        before: &[Id],
        after: &[Id],
        threads: usize,
    ) -> Result<Vec<Encoded<I>>, Error>
    where
        I: TokenId,
        T: AsRef<str> + Sync,
    {
        // One thread gives one vector, which need not be put together.
        let units = units(texts, if threads == 1 { usize::MAX } else { UNIT_BYTES });
        let next = AtomicUsize::new(0);
        let work = || {
            let mut cache = self.take_cache();
            let mut done = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(unit) = units.get(number) else { break };
                let encoded = self.encode_unit(unit, before, after, &mut cache);
                done.push((number, encoded));
            }
            self.put_back(cache);
            done
        };
        let threads = match threads {
            0 => thread::available_parallelism().map_or(1, usize::from),
            given => given,
        };
        let mut done = thread::scope(|scope| {
            let start = |_| thread::Builder::new().spawn_scoped(scope, work).ok();
            let others: Vec<_> = (1..threads.min(units.len())).map_while(start).collect();
            let mut done = work();
            for other in others {
                done.extend(other.join().expect("encoding does not panic"));
            }
            done
        });
        done.sort_unstable_by_key(|(number, _)| *number);
        done.into_iter().map(|(_, encoded)| encoded).collect()
    }

    fn encode_unit<I: TokenId, T: AsRef<str>>(
        &self,
        (first, texts): &(usize, &[T]),
        before: &[Id],
        after: &[Id],
        cache: &mut Cache,
    ) -> Result<Encoded<I>, Error> {
        let bytes: usize = texts.iter().map(|text| text.as_ref().len()).sum();
        let mut ids = Vec::with_capacity(bytes / 3 + SMALL);
        let mut lengths = Vec::with_capacity(texts.len());
        for (i, text) in texts.iter().enumerate() {
            if let Some(next) = texts.get(i + 1) {
                expect(next.as_ref());
            }
            let start = ids.len();
            extend(&mut ids, before);
            self.append(text.as_ref(), cache, &mut ids)
                .map_err(|cause| Error::Split(first + i, cause))?;
            extend(&mut ids, after);
            lengths.push(ids.len() - start);
        }
        Ok(Encoded { ids, lengths })
    }

    fn append<I: TokenId>(
        &self,
        text: &str,
        cache: &mut Cache,
        out: &mut Vec<I>,
    ) -> Result<(), Box<fancy_regex::Error>> {
        let bytes = text.as_bytes();
        self.splitter.groups(text, |start, ends| {
            machine::append(cache, bytes, start, ends, &self.merges, out);
        })
    }

    fn take_cache(&self) -> Cache {
        let free = self.caches.lock().expect(NO_PANIC).pop();
        free.unwrap_or_default()
    }

    fn put_back(&self, cache: Cache) {
        self.caches.lock().expect(NO_PANIC).push(cache);
    }
}

const NO_PANIC: &str = "no thread panics while it holds the lock";
const SMALL: usize = 16;

/// Cuts the texts into runs of about `most` bytes, each with the number of its first text.
fn units<T: AsRef<str>>(texts: &[T], most: usize) -> Vec<(usize, &[T])> {
    let mut units = Vec::new();
    let (mut first, mut bytes) = (0, 0);
    for (index, text) in texts.iter().enumerate() {
        bytes += text.as_ref().len();
        if bytes >= most || index + 1 == texts.len() {
            units.push((first, &texts[first..=index]));
            (first, bytes) = (index + 1, 0);
        }
    }
    units
}
