//! Encoding: merges the bytes of one pre-token by rank, exactly as tiktoken does.
//!
//! Again and again the adjacent pair whose joined bytes have the lowest rank becomes one token, the
//! leftmost of equals first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rustc_hash::FxHashMap;

use crate::word::ShortWord;
use crate::{Error, Id};

/// Longer pre-tokens are merged with a queue, shorter ones by looking at every pair each time.
const SCANNED: usize = 48;
const NONE: Id = Id::MAX;

/// The tokens of a vocabulary, by their bytes and by the pairs that make them.
pub struct Merges {
    short: FxHashMap<ShortWord, Id>,
    long: FxHashMap<Box<[u8]>, Id>,
    bytes: [Id; 256],
    byte_pairs: Box<[Id]>,
    pairs: FxHashMap<(Id, Id), Id>,
}

impl Merges {
    /// `tokens` by rank. All bytes must be among them, and none twice.
    pub fn new<T: AsRef<[u8]>>(tokens: &[T]) -> Result<Self, Error> {
        let mut ids: FxHashMap<&[u8], Id> =
            FxHashMap::with_capacity_and_hasher(tokens.len(), Default::default());
        for (rank, token) in (0..).zip(tokens) {
            let token = token.as_ref();
            if token.is_empty() || ids.insert(token, rank).is_some() {
                return Err(Error::Token(rank));
            }
        }
        let mut bytes = [NONE; 256];
        for (byte, id) in (0..=u8::MAX).zip(&mut bytes) {
            *id = *ids.get([byte].as_slice()).ok_or(Error::Byte(byte))?;
        }
        let mut pairs = FxHashMap::default();
        for (rank, token) in (0..).zip(tokens) {
            let token = token.as_ref();
            for cut in 1..token.len() {
                let (left, right) = token.split_at(cut);
                if let (Some(&left), Some(&right)) = (ids.get(left), ids.get(right)) {
                    pairs.insert((left, right), rank);
                }
            }
        }
        let mut byte_pairs = vec![NONE; 1 << 16].into_boxed_slice();
        let (mut short, mut long) = (FxHashMap::default(), FxHashMap::default());
        for (token, id) in ids {
            match ShortWord::new(token, 0, token.len()) {
                Some(word) => {
                    short.insert(word, id);
                }
                None => {
                    long.insert(token.into(), id);
                }
            }
            if let [left, right] = *token {
                byte_pairs[usize::from(left) << 8 | usize::from(right)] = id;
            }
        }
        Ok(Self {
            short,
            long,
            bytes,
            byte_pairs,
            pairs,
        })
    }

    /// Appends the ids of one pre-token.
    pub fn encode(&self, word: &[u8], out: &mut Vec<Id>) {
        let whole = match ShortWord::new(word, 0, word.len()) {
            Some(short) => self.short.get(&short),
            None => self.long.get(word),
        };
        match whole {
            Some(&id) => out.push(id),
            None if word.len() <= SCANNED => self.encode_short(word, out),
            None => self.encode_long(word, out),
        }
    }

    fn rank(&self, left: Id, right: Id) -> Id {
        self.pairs.get(&(left, right)).copied().unwrap_or(NONE)
    }

    /// Quadratic, and the fastest for few bytes.
    fn encode_short(&self, word: &[u8], out: &mut Vec<Id>) {
        // ids[i] and the rank of the pair (ids[i], ids[i + 1])
        let mut ids = [NONE; SCANNED];
        let mut ranks = [NONE; SCANNED];
        let mut len = word.len();
        for (id, &byte) in ids.iter_mut().zip(word) {
            *id = self.bytes[byte as usize];
        }
        for i in 1..len {
            let pair = usize::from(word[i - 1]) << 8 | usize::from(word[i]);
            ranks[i - 1] = self.byte_pairs[pair];
        }
        while let Some((at, &rank)) = ranks[..len - 1].iter().enumerate().min_by_key(|(_, r)| **r)
            && rank != NONE
        {
            ids[at] = rank;
            ids.copy_within(at + 2..len, at + 1);
            ranks.copy_within(at + 1..len, at);
            len -= 1;
            if at > 0 {
                ranks[at - 1] = self.rank(ids[at - 1], rank);
            }
            ranks[at] = if at + 1 < len {
                self.rank(rank, ids[at + 1])
            } else {
                NONE
            };
        }
        out.extend_from_slice(&ids[..len]);
    }

    /// O(n log n) for any word: pairs of one rank are merged together in one pass.
    fn encode_long(&self, word: &[u8], out: &mut Vec<Id>) {
        let mut chain = Chain::new(word.iter().map(|&byte| self.bytes[byte as usize]));
        let mut queue = Queue::default();
        for at in 1..word.len() {
            let (left, right) = (chain.ids[at - 1], chain.ids[at]);
            queue.push(self.rank(left, right), at as u32 - 1);
        }
        while let Some((rank, places)) = queue.pop() {
            for (i, &at) in places.iter().enumerate() {
                // Stale when an earlier merge took one of the two.
                let Some((left, right)) = chain.pair(at) else {
                    continue;
                };
                if self.rank(left, right) != rank {
                    continue;
                }
                chain.join(at, rank);
                let mut lowest = NONE;
                for place in [chain.before[at as usize], at] {
                    if let Some((left, right)) = chain.pair(place) {
                        let made = self.rank(left, right);
                        queue.push(made, place);
                        lowest = lowest.min(made);
                    }
                }
                // Only in vocabularies that no trainer made: the new pair goes first.
                if lowest < rank {
                    places[i + 1..].iter().for_each(|&at| queue.push(rank, at));
                    break;
                }
            }
        }
        out.extend(chain.iter());
    }
}

const END: u32 = u32::MAX;

/// A linked list of tokens; a token's place is that of its first byte.
struct Chain {
    ids: Vec<Id>,
    before: Vec<u32>,
    after: Vec<u32>,
}

impl Chain {
    fn new(ids: impl Iterator<Item = Id>) -> Self {
        let ids: Vec<Id> = ids.collect();
        let len = u32::try_from(ids.len()).expect("a text has less than 4 GB");
        Self {
            before: (0..len).map(|at| at.wrapping_sub(1)).collect(),
            after: (1..len).chain([END]).collect(),
            ids,
        }
    }

    /// The token at a place and the one after it, if both are there.
    fn pair(&self, at: u32) -> Option<(Id, Id)> {
        let left = *self.ids.get(at as usize)?;
        let right = *self.ids.get(self.after[at as usize] as usize)?;
        (left != NONE).then_some((left, right))
    }

    /// Makes the token at a place and the one after it one token.
    fn join(&mut self, at: u32, id: Id) {
        let gone = self.after[at as usize] as usize;
        let next = self.after[gone];
        self.ids[at as usize] = id;
        self.ids[gone] = NONE;
        self.after[at as usize] = next;
        if let Some(before) = self.before.get_mut(next as usize) {
            *before = at;
        }
    }

    fn iter(&self) -> impl Iterator<Item = Id> {
        self.ids.iter().copied().filter(|&id| id != NONE)
    }
}

/// Places of pairs by rank, the lowest rank first, the places of a rank in order.
#[derive(Default)]
struct Queue {
    places: FxHashMap<Id, Vec<u32>>,
    ranks: BinaryHeap<Reverse<Id>>,
}

impl Queue {
    fn push(&mut self, rank: Id, at: u32) {
        if rank == NONE {
            return;
        }
        let places = self.places.entry(rank).or_insert_with(|| {
            self.ranks.push(Reverse(rank));
            Vec::new()
        });
        places.push(at);
    }

    fn pop(&mut self) -> Option<(Id, Vec<u32>)> {
        let Reverse(rank) = self.ranks.pop()?;
        let mut places = self.places.remove(&rank)?;
        places.sort(); // a few ascending runs, which this sort merges in linear time
        places.dedup();
        Some((rank, places))
    }
}
