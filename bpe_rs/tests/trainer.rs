use std::collections::HashMap;
use std::convert::Infallible;

use bpe_rs::{Error, Splitter, Summary, Trainer};

const PATTERN: &str = r" ?\p{L}+|\p{N}{1,2}|\s+|[^\s\p{L}\p{N}]+";

fn train(texts: &[&str], vocab_size: u32, threads: usize) -> Vec<Vec<u8>> {
    let mut trainer = Trainer::new(PATTERN, vocab_size, threads, 0).unwrap();
    trainer.feed(texts).unwrap();
    trainer.finish(|_| Ok::<(), Infallible>(())).unwrap()
}

/// The rule of the documentation, said as plainly as it can be: count everything, every time.
fn naive(texts: &[&str], vocab_size: usize) -> Vec<Vec<u8>> {
    let splitter = Splitter::new(PATTERN).unwrap();
    let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    let mut words: Vec<Vec<usize>> = Vec::new();
    for text in texts {
        let found = |start, end| {
            words.push(text[start..end].bytes().map(usize::from).collect());
        };
        splitter.split(text, found).unwrap();
    }
    while tokens.len() < vocab_size {
        let mut counts: HashMap<(usize, usize), i64> = HashMap::new();
        for pair in words.iter().flat_map(|word| word.windows(2)) {
            *counts.entry((pair[0], pair[1])).or_default() += 1;
        }
        let best = counts.iter().min_by_key(|&(&pair, &count)| (-count, pair));
        let Some((&(left, right), _)) = best else {
            break;
        };
        let new = tokens.len();
        tokens.push([tokens[left].clone(), tokens[right].clone()].concat());
        for word in &mut words {
            let mut i = 0;
            while i + 1 < word.len() {
                if (word[i], word[i + 1]) == (left, right) {
                    word.splice(i..i + 2, [new]);
                }
                i += 1;
            }
        }
    }
    tokens
}

/// Words over a small alphabet, so that ties and overlaps abound.
fn random_text(seed: u64, len: usize) -> String {
    let mut state = seed;
    let mut next = move || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 33) as usize
    };
    let alphabet = ['a', 'b', 'c', 'é', ' ', '1', '!'];
    (0..len)
        .map(|_| alphabet[next() % alphabet.len()])
        .collect()
}

#[test]
fn merges_equal_the_naive_trainer() {
    for seed in 0..40 {
        let texts = [random_text(seed, 300), random_text(seed + 1000, 200)];
        let texts = texts.each_ref().map(String::as_str);
        assert_eq!(train(&texts, 340, 2), naive(&texts, 340), "seed {seed}");
    }
}

#[test]
fn the_result_depends_neither_on_threads_nor_on_how_texts_are_fed() {
    let texts: Vec<String> = (0..200).map(|seed| random_text(seed, 200)).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let expected = train(&texts, 400, 1);
    assert_eq!(expected.len(), 400);
    for threads in [2, 3, 7] {
        assert_eq!(train(&texts, 400, threads), expected, "{threads} threads");
    }
    let mut trainer = Trainer::new(PATTERN, 400, 2, 0).unwrap();
    for chunk in texts.chunks(7) {
        trainer.feed(chunk).unwrap();
    }
    let tokens = trainer.finish(|_| Ok::<(), Infallible>(())).unwrap();
    assert_eq!(tokens, expected);
}

#[test]
fn of_equally_frequent_pairs_the_smallest_is_merged() {
    let tokens = train(&["zy", "zx", "ab"], 258, 1);
    assert_eq!(tokens[256..], [b"ab".to_vec(), b"zx".to_vec()]);
}

#[test]
fn training_ends_when_no_pair_is_left() {
    assert_eq!(train(&["abc"], 1000, 1).len(), 258);
    assert_eq!(train(&[], 1000, 1).len(), 256);
}

#[test]
fn progress_counts_merges_and_its_error_stops_the_training() {
    let mut trainer = Trainer::new(PATTERN, 1000, 1, 0).unwrap();
    trainer.feed(&["abcdefgh"]).unwrap();
    let mut calls = Vec::new();
    let stopped = trainer.finish(|merges| {
        calls.push(merges);
        if merges == 3 { Err("enough") } else { Ok(()) }
    });
    assert_eq!((stopped.unwrap_err(), calls), ("enough", vec![1, 2, 3]));
}

#[test]
fn bad_settings_are_refused() {
    let error = Trainer::new(PATTERN, 255, 1, 0).err().unwrap();
    assert!(matches!(error, Error::VocabSize(255)), "{error}");
    let error = Trainer::new("(", 300, 1, 0).err().unwrap();
    assert!(matches!(error, Error::Pattern(..)), "{error}");
}

#[test]
fn a_text_that_the_pattern_cannot_split_is_named() {
    let spaces = " ".repeat(2_000_000);
    let mut trainer = Trainer::new(r"\s+(?!\S)|\S+", 300, 1, 0).unwrap();
    trainer.feed(&["fine"]).unwrap();
    let error = trainer.feed(&["fine too", &spaces]).unwrap_err();
    assert!(error.to_string().contains("text 2"), "{error}");
}

fn fed(texts: &[Vec<&str>], threads: usize, max_words: usize) -> (Summary, Vec<Vec<u8>>) {
    let mut trainer = Trainer::new(PATTERN, 300, threads, max_words).unwrap();
    for chunk in texts {
        trainer.feed(chunk).unwrap();
    }
    let summary = trainer.summary();
    (
        summary,
        trainer.finish(|_| Ok::<(), Infallible>(())).unwrap(),
    )
}

#[test]
fn the_summary_has_every_count() {
    let texts = [vec!["one two two", ""], vec!["é"]];
    let (summary, _) = fed(&texts, 2, 0);
    let expected = Summary {
        texts: 3,
        bytes: 13,
        words: 4,
        distinct: 3,
        ..Summary::default()
    };
    assert_eq!(summary, expected);
}

/// Over the cap, the rarest go until at most half of it is left; the same on any threads.
#[test]
fn a_cap_drops_the_rarest_words_and_says_how_many() {
    let texts = [
        vec!["thethethe the the the in in in", "a b c", "d another e"],
        vec!["f"],
    ];
    let (summary, tokens) = fed(&texts, 1, 8);
    let expected = Summary {
        texts: 4,
        bytes: 30 + 5 + 11 + 1,
        words: 14,
        distinct: 3, // the, in, and what came after the dropping: f
        dropped: 7,
        dropped_words: 7,
    };
    assert_eq!(summary, expected);
    assert!(
        tokens.contains(&b" the".to_vec()),
        "the frequent were dropped"
    );
    assert!(!tokens.contains(&b" an".to_vec()), "the rare were merged");
    for threads in [2, 5] {
        assert_eq!(fed(&texts, threads, 8), (summary, tokens.clone()));
    }
    assert_eq!(fed(&texts, 1, 10).0.dropped, 0);
}

/// Not only down to the cap, or the next few words would be over it again.
#[test]
fn words_are_dropped_down_to_half_the_cap() {
    let texts = [vec!["x!x!x!x!", "1-1-1", "2 2", "3 3", "y", "z"]];
    let before = fed(&texts, 1, 0).0.distinct;
    let after = fed(&texts, 1, before - 1).0.distinct;
    assert!(after <= (before - 1) / 2, "{before} words, then {after}");
}
