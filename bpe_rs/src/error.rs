use std::fmt;

/// What can go wrong in this crate, each with a sentence for the user.
#[derive(Debug)]
pub enum Error {
    /// The vocabulary cannot hold the 256 bytes.
    VocabSize(u32),
    /// The pattern does not compile.
    Pattern(String, Box<fancy_regex::Error>),
    /// The pattern gave up on a text, given by its number in the order of feeding.
    Split(usize, Box<fancy_regex::Error>),
    /// The token of a rank is empty or was there before.
    Token(u32),
    /// A byte is no token.
    Byte(u8),
    /// The threads could not be started.
    Threads(rayon::ThreadPoolBuildError),
}

impl Error {
    /// The same error for texts of which `count` others came before.
    #[must_use]
    pub fn after(self, count: usize) -> Self {
        match self {
            Error::Split(text, cause) => Error::Split(text + count, cause),
            other => other,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::VocabSize(size) => write!(
                f,
                "vocab_size is {size}, but the 256 bytes are tokens already: give at least 256"
            ),
            Error::Pattern(pattern, cause) => {
                write!(f, "the pattern '{pattern}' is not valid: {cause}")
            }
            Error::Split(text, cause) => write!(
                f,
                "the pattern gave up on text {text} ({cause}): drop that text or cut it up"
            ),
            Error::Token(rank) => write!(
                f,
                "the token of rank {rank} is empty or equals another; tokens must be distinct and not empty"
            ),
            Error::Byte(byte) => write!(
                f,
                "the byte {byte:#04x} is no token; each of the 256 bytes must be one"
            ),
            Error::Threads(cause) => write!(f, "cannot start the trainer's threads: {cause}"),
        }
    }
}

impl std::error::Error for Error {}
