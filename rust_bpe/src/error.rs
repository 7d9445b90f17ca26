//! What can be wrong with a table or an input; every message says what came and what was wanted.
use std::fmt;

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    EmptyAlphabet,
    RepeatedSymbol { at: usize, byte: u8 },
    EmptyToken { entry: usize, id: u32 },
    OutsideAlphabet { entry: usize, at: usize, byte: u8 },
    IdOfSymbol { entry: usize, id: u32, base: usize },
    RepeatedId { first: usize, entry: usize, id: u32 },
    RepeatedToken { first: u32, id: u32, token: Vec<u8> },
    Gap { missing: usize, base: usize, size: usize },
    TooLarge { what: &'static str, count: usize },
    UnknownSymbol { at: usize, byte: u8, alphabet: usize },
    UnknownId { at: usize, id: String, size: usize },
    NoMemory { tokens: usize, length: usize },
    Changed,
    Item { item: usize, error: Box<Error> },
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::EmptyAlphabet => write!(f, "the alphabet is empty: wanted 1 to 256 different symbols"),
            Self::RepeatedSymbol { at, byte } => {
                write!(f, "the alphabet repeats symbol {} at position {at}: wanted each symbol once", Symbol(*byte))
            }
            Self::EmptyToken { entry, id } => {
                write!(f, "merge {entry} (id {id}) is an empty token: wanted at least one symbol")
            }
            Self::OutsideAlphabet { entry, at, byte } => {
                let symbol = Symbol(*byte);
                write!(f, "merge {entry} has symbol {symbol} at position {at}: wanted symbols of the alphabet only")
            }
            Self::IdOfSymbol { entry, id, base } => {
                let last = base - 1;
                write!(f, "merge {entry} has id {id}: ids 0 to {last} are the alphabet's, wanted {base} or more")
            }
            Self::RepeatedId { first, entry, id } => {
                write!(f, "merges {first} and {entry} both have id {id}: wanted each id once")
            }
            Self::RepeatedToken { first, id, token } => {
                let token = Token(token);
                write!(f, "ids {first} and {id} are the same token {token}: wanted each token once")
            }
            Self::Gap { missing, base, size } => {
                let (count, last) = (size - base, size - 1);
                write!(f, "no merge has id {missing}: wanted the {count} merges to have ids {base} to {last}, no gaps")
            }
            Self::TooLarge { what, count } => write!(f, "the table has {count} {what}: wanted at most {}", crate::MOST),
            Self::UnknownSymbol { at, byte, alphabet } => {
                let symbol = Symbol(*byte);
                write!(f, "symbol {symbol} at position {at} is outside the alphabet of {alphabet} symbols")
            }
            Self::UnknownId { at, id, size } => {
                write!(f, "token id {id} at position {at}: wanted 0 to {}", size - 1)
            }
            Self::NoMemory { tokens, length } => {
                write!(f, "{tokens} tokens decode to {length} symbols: there is no memory for so many")
            }
            Self::Changed => write!(f, "the token ids were written to while they were decoded: wanted them left alone"),
            Self::Item { item, error } => write!(f, "item {item}: {error}"),
        }
    }
}

/// A byte as people write it: 97 ('a').
struct Symbol(u8);

impl fmt::Display for Symbol {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.0 {
            byte if byte.is_ascii_graphic() => write!(f, "{byte} ('{}')", byte as char),
            byte => write!(f, "{byte}"),
        }
    }
}

/// The first bytes of a token and, where that is not all, its length.
struct Token<'a>(&'a [u8]);

impl fmt::Display for Token<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let shown = &self.0[..self.0.len().min(16)];
        write!(f, "'{}'", shown.escape_ascii())?;
        if shown.len() < self.0.len() {
            write!(f, "... ({} symbols)", self.0.len())?;
        }
        Ok(())
    }
}
