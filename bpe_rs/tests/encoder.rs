//! The encoder against tiktoken's rule, said as plainly as it can be.

use std::collections::HashMap;
use std::convert::Infallible;

use bpe_rs::{Encoded, Encoder, Error, Splitter, Trainer, known_patterns};
use proptest::prelude::*;

fn pattern() -> &'static str {
    known_patterns().next().unwrap()
}

/// Small words over few letters have many tokens that share beginnings and ends.
fn trained() -> Vec<Vec<u8>> {
    let texts = [
        "abab abba baab aabb abcabc cabcab the then there other aaaa aaaaaaaa bbbb é ééé 中中",
        "in the beginning the other bathers gathered there; 12 121 2121!!! !!\n\n \n   aaabaaab",
    ];
    let mut trainer = Trainer::new(pattern(), 360, 1, 0).unwrap();
    trainer.feed(&texts).unwrap();
    trainer.finish(|_| Ok::<(), Infallible>(())).unwrap()
}

/// A vocabulary that no trainer made: pairs whose halves have the higher ranks.
fn upside_down() -> Vec<Vec<u8>> {
    let mut tokens = trained();
    tokens.reverse();
    tokens
}

fn naive(tokens: &[Vec<u8>], text: &str) -> Vec<u32> {
    let ranks: HashMap<&[u8], u32> = tokens.iter().map(Vec::as_slice).zip(0..).collect();
    let mut ids = Vec::new();
    let splitter = Splitter::new(pattern()).unwrap();
    let found = |start: usize, end: usize| {
        let word = &text.as_bytes()[start..end];
        if let Some(&id) = ranks.get(word) {
            ids.push(id);
            return;
        }
        let mut parts: Vec<&[u8]> = word.chunks(1).collect();
        let mut starts: Vec<usize> = (0..word.len()).collect();
        loop {
            let joined = |i: usize| &word[starts[i]..starts[i + 1] + parts[i + 1].len()];
            let pairs = (0..parts.len() - 1).filter_map(|i| Some((*ranks.get(joined(i))?, i)));
            let Some((_, at)) = pairs.min() else { break };
            parts[at] = joined(at);
            parts.remove(at + 1);
            starts.remove(at + 1);
        }
        ids.extend(parts.iter().map(|part| ranks[part]));
    };
    splitter.split(text, found).unwrap();
    ids
}

fn assert_equal(text: &str) {
    for tokens in [trained(), upside_down()] {
        let encoder = Encoder::new(&tokens, pattern()).unwrap();
        let expected = naive(&tokens, text);
        assert_eq!(encoder.encode(text).unwrap(), expected, "{text:?}");
        // Again, from the cache.
        assert_eq!(encoder.encode(text).unwrap(), expected, "{text:?} again");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn words_of_few_letters(text in "[ab]{0,20}( [abc]{0,30}){0,4}") {
        assert_equal(&text);
    }

    /// Over 48 bytes a word goes through the queue of pairs.
    #[test]
    fn long_words(text in "[ab]{40,200}|[abthe]{40,200}|a{40,200}|[aé中]{20,80}") {
        assert_equal(&text);
    }

    /// From 16 bytes on a word is looked up elsewhere.
    #[test]
    fn words_around_the_length_of_the_short_ones(text in "([abthe]{13,18} ){1,150}") {
        assert_equal(&text);
    }

    #[test]
    fn any_text(text in r"\PC{0,80}|[a-c !\n1]{0,80}") {
        assert_equal(&text);
    }
}

/// A merge may make a pair that goes before the other places of its own rank.
#[test]
fn a_new_pair_of_lower_rank_is_merged_at_once() {
    let bytes = (0..=255).map(|byte| vec![byte]);
    let tokens: Vec<Vec<u8>> = [b"aba".to_vec(), b"ab".to_vec()]
        .into_iter()
        .chain(bytes)
        .collect();
    let encoder = Encoder::new(&tokens, pattern()).unwrap();
    for text in ["ab".repeat(9), "ab".repeat(99)] {
        assert_eq!(
            encoder.encode(&text).unwrap(),
            naive(&tokens, &text),
            "{text}"
        );
    }
}

/// More distinct words of one length than the cache has places for.
#[test]
fn words_that_share_a_place_in_the_cache_keep_their_own_ids() {
    let encoder = Encoder::new(&trained(), pattern()).unwrap();
    let letters: Vec<char> = ('a'..='z').collect();
    let text: String = (0..400_000_usize)
        .flat_map(|n| {
            [
                ' ',
                letters[n % 26],
                letters[n / 26 % 26],
                letters[n / 676 % 26],
                letters[n / 17_576 % 26],
            ]
        })
        .collect();
    let ids = encoder.encode(&text).unwrap();
    let tokens = trained();
    let decoded: Vec<u8> = ids
        .iter()
        .flat_map(|&id| tokens[id as usize].clone())
        .collect();
    assert!(decoded == text.as_bytes(), "a word came back as another");
}

#[test]
fn a_batch_is_its_texts_one_by_one_on_any_threads() {
    let texts: Vec<String> = (0..3000)
        .map(|n| format!("text {n} the other {}", "ab ".repeat(n % 200)))
        .chain([String::new()])
        .collect();
    let encoder = Encoder::new(&trained(), pattern()).unwrap();
    let expected: Vec<Vec<u32>> = texts
        .iter()
        .map(|text| [vec![7], encoder.encode(text).unwrap(), vec![8, 9]].concat())
        .collect();
    for threads in [0, 1, 2, 3] {
        let units: Vec<Encoded<u32>> = encoder
            .encode_batch(&texts, &[7], &[8, 9], threads)
            .unwrap();
        assert!(
            units.len() > 2 || threads == 1,
            "all in one unit: threads have nothing to share"
        );
        let lengths = units.iter().flat_map(|unit| unit.lengths.clone());
        assert!(
            lengths.eq(expected.iter().map(Vec::len)),
            "{threads} threads"
        );
        let ids: Vec<u32> = units.into_iter().flat_map(|unit| unit.ids).collect();
        assert_eq!(ids, expected.concat(), "{threads} threads");
    }
    assert!(
        encoder
            .encode_batch::<u32, &str>(&[], &[7], &[], 2)
            .unwrap()
            .is_empty()
    );
}

/// Quadratic work would take hours here.
#[test]
fn a_million_of_anything_is_no_trouble() {
    let encoder = Encoder::new(&trained(), pattern()).unwrap();
    for piece in ["a", "ab", "abc", " ", "\n", "!", "é", "abaab"] {
        let text = piece.repeat(1_000_000);
        let ids = encoder.encode(&text).unwrap();
        let bytes: usize = ids.iter().map(|&id| trained_bytes()[id as usize]).sum();
        assert_eq!(bytes, text.len(), "{piece:?}");
    }
}

fn trained_bytes() -> &'static [usize] {
    static BYTES: std::sync::OnceLock<Vec<usize>> = std::sync::OnceLock::new();
    BYTES.get_or_init(|| trained().iter().map(Vec::len).collect())
}

#[test]
fn bad_vocabularies_are_refused() {
    let bytes: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    let refused = |tokens: &[Vec<u8>]| Encoder::new(tokens, pattern()).err().unwrap();
    assert!(matches!(refused(&bytes[1..]), Error::Byte(0)));
    assert!(matches!(
        refused(&[&bytes[..], &[vec![]]].concat()),
        Error::Token(256)
    ));
    assert!(matches!(
        refused(&[&bytes[..], &[vec![65]]].concat()),
        Error::Token(256)
    ));
}

#[test]
fn a_text_that_the_pattern_cannot_split_is_named() {
    let encoder = Encoder::new(&trained(), r"\s+(?!\S)|\S+").unwrap();
    let texts = ["fine".to_string(), " ".repeat(2_000_000)];
    let error = encoder
        .encode_batch::<u16, _>(&texts, &[], &[], 1)
        .err()
        .unwrap();
    assert!(error.to_string().contains("text 1"), "{error}");
}
