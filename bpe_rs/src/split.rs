use fancy_regex::{Regex, RegexBuilder};

use crate::Error;
use crate::ends::Ends;
use crate::machine::fill;
use crate::scan::Scanner;

/// Cuts texts into pre-tokens: the pieces that merges never cross.
pub enum Splitter {
    /// A hand-written scanner for a known pattern.
    Scanner(Scanner),
    /// Any other pattern.
    Regex(Box<Regex>),
}

impl Splitter {
    /// The splitter of `pattern`, in the syntax of the fancy-regex crate, which tiktoken uses too.
    pub fn new(pattern: &str) -> Result<Self, Error> {
        match Scanner::of_pattern(pattern) {
            Some(scanner) => Ok(Self::Scanner(scanner)),
            None => Self::regex(pattern),
        }
    }

    /// The regex engine, for a known pattern too.
    pub fn regex(pattern: &str) -> Result<Self, Error> {
        let regex = RegexBuilder::new(pattern)
            .build()
            .map_err(|cause| Error::Pattern(pattern.into(), Box::new(cause)))?;
        Ok(Self::Regex(Box::new(regex)))
    }

    /// Calls `found(start, end)` for the successive pre-tokens of `text`, which together are all of
    /// it: the matches, and every stretch that lies between two of them. An empty match is no
    /// pre-token, but it cuts a stretch. So does `tokenizers` where it isolates matches.
    ///
    /// The regex engine gives up where it would have to backtrack very far, for example on runs
    /// of a million spaces; the scanners never do.
    #[inline]
    pub fn split(
        &self,
        text: &str,
        mut found: impl FnMut(usize, usize),
    ) -> Result<(), Box<fancy_regex::Error>> {
        self.groups(text, |mut start, ends| {
            for &end in ends {
                found(start, end);
                start = end;
            }
        })
    }

    /// The same for groups of pre-tokens: where the first begins, and where they end.
    #[inline]
    pub fn groups(
        &self,
        text: &str,
        mut found: impl FnMut(usize, &[usize]),
    ) -> Result<(), Box<fancy_regex::Error>> {
        let mut ends = Ends::default();
        let mut start = 0;
        let mut give = |ends: &mut Ends| {
            found(start, ends.as_slice());
            start = ends.last;
            ends.clear();
        };
        match self {
            Self::Scanner(scanner) => {
                while ends.last < text.len() {
                    fill(scanner, text, &mut ends);
                    give(&mut ends);
                }
            }
            Self::Regex(regex) => {
                let mut cut = |at| {
                    if ends.last < at {
                        ends.push(at);
                    }
                    if ends.is_full() {
                        give(&mut ends);
                    }
                };
                for matched in regex.find_iter(text) {
                    let matched = matched?;
                    cut(matched.start());
                    cut(matched.end());
                }
                cut(text.len());
                give(&mut ends);
            }
        }
        Ok(())
    }
}
