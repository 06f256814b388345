//! Hand-written splitters for the patterns that matter, exactly equal to the regular expressions.
//!
//! They read each character once or twice, never backtrack, and have no limit on a run's length.

use crate::block::{BLOCK, Masks};
use crate::ends::Ends;
use crate::machine::prefetch;
use crate::unicode::{CLASSES, Class, Classes};

/// So many bytes further on, text is asked for: the processor itself does not expect a new text.
const AHEAD: usize = 1024;

/// Asks for the beginning of a text that is cut soon.
pub fn expect(text: &str) {
    for at in (0..text.len().min(AHEAD)).step_by(BLOCK) {
        prefetch(text.as_bytes(), at);
    }
}

/// How a family of patterns cuts; the names follow the alternatives of the patterns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// GPT-4's family: any sign may lead a word, signs take the newlines after them, blank lines
    /// are pieces, and contractions are found in any case. Otherwise GPT-2's: only a space leads.
    gpt4: bool,
    /// The most digits in a piece.
    digits: usize,
    /// `\s++$` comes before blank lines: white space at the end of the text is one piece.
    whole_end: bool,
}

const GPT2: Rules = Rules {
    gpt4: false,
    digits: usize::MAX,
    whole_end: true,
};
const GPT4: Rules = Rules {
    gpt4: true,
    digits: 3,
    whole_end: false,
};

/// Spellings of the patterns; those of one family and its details mean the same.
const KNOWN: [(&str, Rules); 7] = [
    // jaxchat's and nanochat's: GPT-4's with numbers of two digits
    (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
        Rules { digits: 2, ..GPT4 },
    ),
    // GPT-4's (cl100k_base), as rustbpe, as OpenAI first, and as tiktoken today spell it
    (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
        GPT4,
    ),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        GPT4,
    ),
    (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
        Rules {
            whole_end: true,
            ..GPT4
        },
    ),
    // GPT-2's, as OpenAI first and as tiktoken later and today spell it
    (
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        GPT2,
    ),
    (
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        GPT2,
    ),
    (
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
        GPT2,
    ),
];

/// The spellings of patterns that have a scanner.
pub fn known_patterns() -> impl Iterator<Item = &'static str> {
    KNOWN.iter().map(|(spelling, _)| *spelling)
}

/// Cuts text by [`Rules`].
pub struct Scanner {
    rules: Rules,
    classes: &'static Classes,
}

impl Scanner {
    /// The scanner of a pattern, if it has one.
    pub fn of_pattern(pattern: &str) -> Option<Self> {
        let (_, rules) = KNOWN.iter().find(|(spelling, _)| *spelling == pattern)?;
        Some(Self {
            rules: *rules,
            classes: &CLASSES,
        })
    }

    /// Appends the ends of the next pieces of `text`, until there are enough.
    #[inline(always)]
    pub fn fill(
        &self,
        text: &str,
        ends: &mut Ends,
        masks: impl Fn(&[u8; BLOCK]) -> Masks,
        push: impl Fn(&mut Ends, usize, u64),
    ) {
        // In a register: each block waits for where the last one ended.
        let mut at = ends.last;
        while at < text.len() && !ends.is_full() {
            prefetch(text.as_bytes(), at + AHEAD);
            let starts = self.starts(text, at, &masks);
            if starts == 0 {
                at = self.next(text, at);
                ends.push(at);
            } else {
                push(ends, at, starts);
                at += starts.ilog2() as usize;
            }
        }
    }

    /// Which of the 64 bytes after `at`, where a piece starts, are starts of further pieces, up to
    /// where these bytes alone do not tell.
    #[inline(always)]
    fn starts(&self, text: &str, at: usize, masks: impl Fn(&[u8; BLOCK]) -> Masks) -> u64 {
        let rest = &text.as_bytes()[at..];
        let (mut m, mut valid) = match rest.first_chunk::<BLOCK>() {
            Some(block) => (masks(block), u64::MAX),
            None => {
                let mut block = [0; BLOCK];
                block[..rest.len()].copy_from_slice(rest);
                (masks(&block), (1 << rest.len()) - 1)
            }
        };
        // Bytes after the first of a character have its kind, too.
        let mut inner = 0;
        while m.wide != 0 {
            let first = m.wide.trailing_zeros();
            let (class, len) = self.classes.wide(text.as_bytes(), at + first as usize);
            let bytes = (0xf >> (4 - len)) << first;
            match class {
                Class::Letter => m.letters |= bytes,
                Class::Other => (),
                _ => {
                    valid &= (1 << first) - 1;
                    break;
                }
            }
            inner |= bytes & !(1 << first);
            m.wide &= !bytes;
        }
        let white = (m.spaces | m.controls) & valid;
        let others = !(m.letters | m.digits | white) & valid;
        let blanks = white & !m.newlines;
        let after_space = m.spaces << 1;
        let first = |kind: u64| kind & !(kind << 1);
        let signs = first(others) & !after_space;
        let last = white & !(white >> 1) & (valid >> 1);
        let mut starts;
        let mut unsure = white & !(valid >> 1);
        if self.rules.gpt4 {
            let after_sign = ((signs << 1).wrapping_add(inner)) & !inner;
            unsure |= blanks & (m.newlines >> 1);
            starts = first(blanks)
                | (blanks & last)
                | (m.newlines & !(white << 1) & !(others << 1))
                | (first(m.letters) & !(blanks << 1) & !after_sign)
                | signs
                | self.numbers(m.digits);
        } else {
            let words = first(m.letters) | first(m.digits) | first(others);
            starts = first(white) | last | (words & !after_space);
        }
        let mut apostrophes = signs & m.apostrophes;
        while apostrophes != 0 {
            let sign = apostrophes.trailing_zeros() as usize;
            if let Some(end) = self.contraction(text, at + sign + 1) {
                starts &= !(2 << sign);
                starts |= 1_u64.checked_shl((end - at) as u32).unwrap_or(0);
            }
            apostrophes &= apostrophes - 1;
        }
        if unsure != 0 {
            let before = first(white) & (unsure ^ (unsure - 1));
            valid &= u64::MAX >> before.leading_zeros();
        }
        starts & valid & !1
    }

    #[inline]
    fn numbers(&self, digits: u64) -> u64 {
        let mut starts = digits & !(digits << 1);
        let most = self.rules.digits as u32;
        let more = (0..=most).fold(u64::MAX, |more, i| more & digits >> i);
        let mut next = (starts & more) << most;
        while next != 0 {
            starts |= next;
            next = (next & more) << most;
        }
        starts
    }

    /// Where the piece that starts at `start` ends. `start` is before the text's end.
    #[inline]
    pub fn next(&self, text: &str, start: usize) -> usize {
        // By far the commonest piece: a space and a word.
        if text.as_bytes()[start] == b' ' {
            let end = self.letters(text, start + 1);
            if end > start + 1 {
                return end;
            }
        }
        let Some((class, len)) = self.classes.at(text, start) else {
            return start;
        };
        let after = start + len;
        match class {
            Class::Letter => self.letters(text, after),
            Class::Number => self.digits(text, after, 1),
            Class::Newline => self.spaces(text, start),
            Class::Space | Class::Other => self.sign(text, start, after, class),
        }
    }

    /// The piece starts with a sign or a space that may lead a word, a number or more signs.
    #[inline]
    fn sign(&self, text: &str, start: usize, after: usize, class: Class) -> usize {
        let first = text.as_bytes()[start];
        if first == b'\''
            && let Some(end) = self.contraction(text, after)
        {
            return end;
        }
        let next = self.classes.at(text, after);
        let leads = self.rules.gpt4 || first == b' ';
        match next {
            Some((Class::Letter, len)) if leads => self.letters(text, after + len),
            Some((Class::Number, len)) if first == b' ' && !self.rules.gpt4 => {
                self.digits(text, after + len, 1)
            }
            Some((Class::Other, len)) if first == b' ' => self.signs(text, after + len),
            _ if class == Class::Other => self.signs(text, after),
            _ => self.spaces(text, start),
        }
    }

    /// The end of `'s`, `'t`, `'re`, `'ve`, `'m`, `'ll` or `'d`, whose apostrophe ends at `at`.
    fn contraction(&self, text: &str, at: usize) -> Option<usize> {
        let rest = &text.as_bytes()[at..];
        let lower = |i: usize| {
            let byte = *rest.get(i)?;
            Some(if self.rules.gpt4 {
                byte.to_ascii_lowercase()
            } else {
                byte
            })
        };
        match lower(0)? {
            b's' | b'd' | b'm' | b't' => Some(at + 1),
            b'l' if lower(1) == Some(b'l') => Some(at + 2),
            b'v' | b'r' if lower(1) == Some(b'e') => Some(at + 2),
            // U+017F, the long s, is an s to (?i:s).
            0xc5 if self.rules.gpt4 && rest.get(1) == Some(&0xbf) => Some(at + 2),
            _ => None,
        }
    }

    /// The end of a run of letters; those of ASCII are looked at eight at a time.
    #[inline]
    fn letters(&self, text: &str, mut at: usize) -> usize {
        loop {
            let ascii = ascii_letters(text.as_bytes(), at);
            at += ascii;
            match text.as_bytes().get(at) {
                Some(&byte) if byte >= 128 => match self.classes.at(text, at) {
                    Some((Class::Letter, len)) => at += len,
                    _ => return at,
                },
                _ if ascii < 8 => return at,
                _ => (),
            }
        }
    }

    #[inline]
    fn run(&self, text: &str, mut at: usize, goes_on: impl Fn(Class) -> bool) -> usize {
        while let Some((class, len)) = self.classes.at(text, at)
            && goes_on(class)
        {
            at += len;
        }
        at
    }

    fn digits(&self, text: &str, mut at: usize, mut count: usize) -> usize {
        while count < self.rules.digits
            && let Some((Class::Number, len)) = self.classes.at(text, at)
        {
            at += len;
            count += 1;
        }
        at
    }

    fn signs(&self, text: &str, at: usize) -> usize {
        let end = self.run(text, at, |class| class == Class::Other);
        if !self.rules.gpt4 {
            return end;
        }
        self.run(text, end, |class| class == Class::Newline)
    }

    /// White space: up to its last newline, or all but the space that leads what follows.
    fn spaces(&self, text: &str, start: usize) -> usize {
        let mut at = start;
        let mut last = start;
        let mut lines = None;
        while let Some((class, len)) = self.classes.at(text, at)
            && class.is_space()
        {
            last = at;
            at += len;
            if class == Class::Newline {
                lines = Some(at);
            }
        }
        let ends = at == text.len();
        match lines {
            _ if ends && self.rules.whole_end => at,
            Some(end) if self.rules.gpt4 => end,
            // One space alone before a word was not taken by the word: it is a piece.
            _ if ends || last == start => at,
            _ => last,
        }
    }
}

/// How many of the eight bytes from `at` on are ASCII letters, up to the first that is none.
#[inline]
fn ascii_letters(text: &[u8], at: usize) -> usize {
    let Some(bytes) = text.get(at..at + 8) else {
        let rest = text.get(at..).unwrap_or_default();
        return rest
            .iter()
            .take_while(|byte| byte.is_ascii_alphabetic())
            .count();
    };
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x80 * ONES;
    let bytes = u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
    // All eight at once: the high bit of each byte says whether the byte passed a bound.
    let lower = (bytes | (0x20 * ONES)) & !HIGH;
    let from_a = lower + (0x80 - u64::from(b'a')) * ONES;
    let over_z = lower + (0x7f - u64::from(b'z')) * ONES;
    let letters = from_a & !over_z & !bytes & HIGH;
    (!letters & HIGH).trailing_zeros() as usize / 8
}
