use fancy_regex::{Regex, RegexBuilder};

use crate::Error;

/// Cuts texts into pre-tokens: the pieces that merges never cross.
pub struct Splitter {
    regex: Regex,
}

impl Splitter {
    /// Compiles `pattern`, in the syntax of the fancy-regex crate, which tiktoken uses too.
    pub fn new(pattern: &str) -> Result<Self, Error> {
        let regex = RegexBuilder::new(pattern)
            .build()
            .map_err(|cause| Error::Pattern(Box::new(cause)))?;
        Ok(Self { regex })
    }

    /// The successive matches in `text`; what the pattern does not match belongs to none.
    ///
    /// The engine gives up where it would have to backtrack very far, for example on runs of a
    /// million spaces.
    pub fn split<'t>(
        &self,
        text: &'t str,
    ) -> impl Iterator<Item = Result<&'t str, fancy_regex::Error>> {
        let found = self.regex.find_iter(text);
        found.map(|piece| piece.map(|piece| piece.as_str()))
    }
}
