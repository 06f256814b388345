//! Which kind of character a pattern sees: letter, number, white space or anything else.

use std::sync::LazyLock;

use regex_syntax::hir::{Class as HirClass, HirKind};

/// The classes that split patterns tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// `\p{L}`
    Letter,
    /// `\p{N}`
    Number,
    /// `\r` or `\n`, which are `\s` too
    Newline,
    /// `\s`, but for `\r` and `\n`
    Space,
    /// `[^\s\p{L}\p{N}]`
    Other,
}

impl Class {
    pub fn is_space(self) -> bool {
        matches!(self, Class::Space | Class::Newline)
    }
}

const PAGE: usize = 256;
const PAGES: usize = 0x110000 / PAGE;

/// The class of every code point: pages of 256, equal pages stored once.
pub struct Classes {
    ascii: [Class; 128],
    page_of: Vec<u16>,
    pages: Vec<[Class; PAGE]>,
}

/// Made once, from the tables of the regex engine itself, so that both follow one Unicode version.
pub static CLASSES: LazyLock<Classes> = LazyLock::new(Classes::new);

impl Classes {
    fn new() -> Self {
        let mut flat = vec![Class::Other; PAGES * PAGE];
        for (pattern, class) in [
            (r"\s", Class::Space),
            (r"\p{L}", Class::Letter),
            (r"\p{N}", Class::Number),
            (r"[\r\n]", Class::Newline),
        ] {
            for (first, last) in ranges(pattern) {
                flat[first as usize..=last as usize].fill(class);
            }
        }
        let mut classes = Self {
            ascii: std::array::from_fn(|code| flat[code]),
            page_of: Vec::with_capacity(PAGES),
            pages: Vec::new(),
        };
        for page in flat.chunks_exact(PAGE) {
            let known = classes.pages.iter().position(|other| other == page);
            let index = known.unwrap_or_else(|| {
                classes.pages.push(page.try_into().expect("a whole page"));
                classes.pages.len() - 1
            });
            classes.page_of.push(index as u16); // at most PAGES, which fits
        }
        classes
    }

    pub fn of(&self, code: u32) -> Class {
        let code = code as usize;
        self.pages[self.page_of[code / PAGE] as usize][code % PAGE]
    }

    /// The class of the character that starts at byte `at` of UTF-8 text, and its bytes.
    /// None at the end of the text.
    #[inline]
    pub fn at(&self, text: &str, at: usize) -> Option<(Class, usize)> {
        let &byte = text.as_bytes().get(at)?;
        if byte < 128 {
            return Some((self.ascii[byte as usize], 1));
        }
        Some(self.wide(text.as_bytes(), at))
    }

    /// The same for a character that is not ASCII.
    pub fn wide(&self, bytes: &[u8], at: usize) -> (Class, usize) {
        let bits = |i: usize| u32::from(bytes[at + i] & 0x3f);
        let lead = u32::from(bytes[at]);
        if lead < 0xe0 {
            (self.of((lead & 0x1f) << 6 | bits(1)), 2)
        } else if lead < 0xf0 {
            (self.of((lead & 0x0f) << 12 | bits(1) << 6 | bits(2)), 3)
        } else {
            let code = (lead & 0x07) << 18 | bits(1) << 12 | bits(2) << 6 | bits(3);
            (self.of(code), 4)
        }
    }
}

fn ranges(pattern: &str) -> Vec<(char, char)> {
    let parsed = regex_syntax::parse(pattern).expect("the pattern is a constant");
    let HirKind::Class(HirClass::Unicode(class)) = parsed.kind() else {
        unreachable!("{pattern} is a class of characters");
    };
    class.iter().map(|r| (r.start(), r.end())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_of_one_to_four_bytes_have_their_class() {
        let text = "a1 \n!é٣\u{a0}\u{301}中\u{2028}…𝐀𝟘😀";
        let expected = [
            Class::Letter,
            Class::Number,
            Class::Space,
            Class::Newline,
            Class::Other,
            Class::Letter,
            Class::Number,
            Class::Space,
            Class::Other,
            Class::Letter,
            Class::Space,
            Class::Other,
            Class::Letter,
            Class::Number,
            Class::Other,
        ];
        for ((at, c), class) in text.char_indices().zip(expected) {
            assert_eq!(CLASSES.at(text, at), Some((class, c.len_utf8())), "{c:?}");
        }
        assert_eq!(CLASSES.at(text, text.len()), None);
    }
}
