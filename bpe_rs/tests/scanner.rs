//! The hand-written scanners against the regular expressions they stand for.

use std::sync::LazyLock;

use bpe_rs::{Splitter, known_patterns};
use proptest::prelude::*;

fn pieces<'t>(splitter: &Splitter, text: &'t str) -> Vec<&'t str> {
    let mut pieces = Vec::new();
    let found = |start, end| pieces.push(&text[start..end]);
    splitter.split(text, found).unwrap();
    pieces
}

/// Every known pattern with its scanner and its regular expression.
static BOTH: LazyLock<Vec<(&str, Splitter, Splitter)>> = LazyLock::new(|| {
    known_patterns()
        .map(|p| (p, Splitter::new(p).unwrap(), Splitter::regex(p).unwrap()))
        .collect()
});

fn assert_equal(text: &str) {
    for (pattern, scanner, regex) in BOTH.iter() {
        let (scanned, matched) = (pieces(scanner, text), pieces(regex, text));
        assert_eq!(scanned, matched, "{text:?} by {pattern}");
    }
}

#[test]
fn known_patterns_have_a_scanner() {
    assert!(known_patterns().count() >= 7);
    for pattern in known_patterns() {
        let splitter = Splitter::new(pattern).unwrap();
        assert!(matches!(splitter, Splitter::Scanner(_)), "{pattern}");
    }
    assert!(matches!(Splitter::new(r"\w+").unwrap(), Splitter::Regex(_)));
}

/// Every code point alone, twice, and beside characters of every class.
#[test]
fn every_code_point_is_cut_as_by_the_regular_expression() {
    let all: Vec<char> = (0..=0x10ffff).filter_map(char::from_u32).collect();
    for some in all.chunks(1000) {
        let text: String = some
            .iter()
            .flat_map(|&c| {
                // No character of one context leads into the next but through "a\u{1}".
                [
                    'a', c, 'a', ' ', c, c, '1', c, '!', c, '\n', c, ' ', ' ', '\'', c, 'a',
                    '\u{1}',
                ]
            })
            .collect();
        // Ours, and the last spellings of GPT-4's and GPT-2's; the others differ in no class.
        for (pattern, scanner, regex) in [&BOTH[0], &BOTH[3], &BOTH[6]] {
            let (scanned, matched) = (pieces(scanner, &text), pieces(regex, &text));
            if scanned != matched {
                let differ = scanned.iter().zip(&matched).find(|(a, b)| a != b);
                panic!("{differ:?} from {:?} on by {pattern}", some[0]);
            }
        }
    }
}

#[test]
fn what_the_alternatives_are_there_for() {
    for text in [
        "",
        "I'll've 'S 'ſ x'ſa 'LL 'lL 'Re don't 'tis o'clock ''s 'é '",
        "1234567 12a 3 ٣٤٥٦ Ⅷ½",
        "  two  spaces   \n \n  and\r\n\r\nlines \t\n",
        "end \n ",
        "end \n",
        "\u{a0}x \u{3000} y\u{85}z\u{2028}",
        "a.b!?\n\n(c)\r\r\n ...\n  ,",
        "e\u{301}te\u{301} 👩‍👩‍👧 日本語、テスト。 हिन्दी",
        "-word --word \tword ^word",
    ] {
        assert_equal(text);
    }
}

/// Characters of every kind that the patterns speak of, some in each case and width.
const ALPHABET: &str = "[ab zLlSsTtMmDdVvEeRrſK'’0-9٣½ \t\r\n\u{b}\u{85}\u{a0}\u{3000}!.,\u{1}\u{301}é中\u{1F600}\u{10FFFF}]{0,40}";

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn texts_of_telling_characters(text in ALPHABET) {
        assert_equal(&text);
    }

    /// Several blocks of 64 bytes: mostly words, so that blocks are seldom given up.
    #[test]
    fn texts_of_several_blocks(
        text in "([a-zA-Zé]{0,12}[ ,.'’\"\n-]{1,2}|[a-z]{2}'(s|LL|ve|ſ)[a-z]?|[0-9]{1,9}| {1,9}|\r?\n\t*|中| ){0,60}"
    ) {
        assert_equal(&text);
    }

    #[test]
    fn any_text(text in r"\PC{0,40}") {
        assert_equal(&text);
    }
}

#[test]
fn runs_of_a_million_are_no_trouble() {
    for piece in [" ", "\n", "a", "é", "!", "1", "\n ", "'", "\u{301}"] {
        let text = piece.repeat(1_000_000);
        for pattern in known_patterns() {
            let found = pieces(&Splitter::new(pattern).unwrap(), &text);
            assert_eq!(found.concat().len(), text.len(), "{piece:?} by {pattern}");
        }
    }
}

/// What a pattern does not match is a piece of its own; a match of nothing cuts there.
#[test]
fn every_pattern_covers_the_text() {
    for (pattern, expected) in [
        (r"\w+", vec!["a", ", ", "bc", "! "]),
        (r"\w*", vec!["a", ",", " ", "bc", "!", " "]),
        (r"c", vec!["a, b", "c", "! "]),
        (r"x", vec!["a, bc! "]),
        (r"\s+", vec!["a,", " ", "bc!", " "]),
    ] {
        let splitter = Splitter::new(pattern).unwrap();
        assert_eq!(pieces(&splitter, "a, bc! "), expected, "{pattern}");
        assert_eq!(pieces(&splitter, ""), Vec::<&str>::new(), "{pattern}");
    }
}
