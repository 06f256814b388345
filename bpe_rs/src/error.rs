use std::fmt;

/// What can go wrong in this crate, each with a sentence for the user.
#[derive(Debug)]
pub enum Error {
    /// The vocabulary cannot hold the 256 bytes.
    VocabSize(u32),
    /// The pattern does not compile.
    Pattern(Box<fancy_regex::Error>),
    /// The pattern gave up on a text, given by its number in the order of feeding.
    Split(usize, Box<fancy_regex::Error>),
    /// The threads could not be started.
    Threads(rayon::ThreadPoolBuildError),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::VocabSize(size) => write!(
                f,
                "vocab_size is {size}, but the 256 bytes are tokens already: give at least 256"
            ),
            Error::Pattern(cause) => write!(f, "the split pattern is not valid: {cause}"),
            Error::Split(text, cause) => write!(
                f,
                "the split pattern failed on text {text} ({cause}): drop it or cut it up"
            ),
            Error::Threads(cause) => write!(f, "cannot start the trainer's threads: {cause}"),
        }
    }
}

impl std::error::Error for Error {}
