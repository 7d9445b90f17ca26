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
    TooLarge { what: &'static str, count: usize, most: usize },
    UnknownSymbol { at: usize, byte: u8, alphabet: usize },
    UnknownId { at: usize, id: String, size: usize },
    NoMemory { tokens: usize, length: usize },
    Changed,
    LaterId { merge: usize, id: u32, other: u32 },
    RepeatedPair { first: usize, merge: usize, left: u32, right: u32 },
    TooManyTokens { count: usize, most: usize },
    LongStretch { most: usize },
    TooManyIds { alphabet: usize, merges: usize, most: usize },
    NoFrequency,
    NoPairs { sequences: usize, symbols: usize },
    Levels { levels: usize },
    First { first: u8, levels: usize },
    Bounds { low: String, high: String },
    Back { offset: String, divisor: String, eps: String },
    Shape { values: usize, leads: usize },
    NotFinite { lead: usize, sample: usize, value: String },
    Ranges { count: usize, leads: usize },
    Symbols { count: usize, wanted: usize },
    NoLevel { at: usize, byte: u8, first: u8, levels: usize },
    TooLong { what: &'static str, count: u64 },
    NoPair { merge: usize, id: u32, token: Vec<u8>, parts: usize },
    Unreachable { merge: usize, left: u32, right: u32 },
    Stopped,
    Syntax { line: usize, column: usize, what: String },
    Field { place: String, came: String, wanted: String },
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
            Self::TooLarge { what, count, most } => write!(f, "the table has {count} {what}: wanted at most {most}"),
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
            Self::LaterId { merge, id, other } => {
                let last = id - 1;
                write!(f, "merge {merge} (id {id}) joins id {other}: wanted ids made before it, 0 to {last}")
            }
            Self::RepeatedPair { first, merge, left, right } => {
                write!(f, "merges {first} and {merge} both join ids {left} and {right}: wanted each pair once")
            }
            Self::TooManyTokens { count, most } => {
                write!(f, "the table has {count} tokens: wanted at most {most} to encode by merges")
            }
            Self::LongStretch { most } => {
                write!(f, "the text has a stretch that cannot be cut, of more than {most} tokens: wanted shorter texts")
            }
            Self::NoPair { merge, id, token, parts } => {
                let token = Token(token);
                write!(f, "merge {merge} (id {id}), {token}: the merges before it leave {parts} tokens of it, wanted 2")
            }
            Self::TooManyIds { alphabet, merges, most } => {
                write!(f, "{merges} merges of {alphabet} symbols: wanted at most {most} ids together")
            }
            Self::NoFrequency => write!(f, "min_frequency is 0: wanted 1 or more"),
            Self::NoPairs { sequences, symbols } => {
                let what = format!("{sequences} sequences of {symbols} symbols together");
                write!(f, "{what} have no two symbols side by side: wanted at least one sequence of two")
            }
            Self::Levels { levels } => write!(f, "levels is {levels}: wanted 2 to 256"),
            Self::First { first, levels } => {
                let most = 256 - levels;
                write!(f, "first is {first}: with {levels} levels, wanted 0 to {most}, the byte of the lowest level")
            }
            Self::Bounds { low, high } => {
                write!(
                    f,
                    "the range is from {low} to {high} mV: wanted finite values, low < high, less than 3.4e38 apart"
                )
            }
            Self::Back { offset, divisor, eps } => {
                let came = format!("offset is {offset}, divisor {divisor}, eps {eps}");
                write!(f, "{came}: wanted finite values and a divisor other than 0")
            }
            Self::Shape { values, leads } => {
                write!(f, "the signal has {values} values in {leads} leads: wanted as many in each lead, at least one")
            }
            Self::NotFinite { lead, sample, value } => {
                write!(f, "lead {lead} is {value} at sample {sample}: wanted finite values, in mV (fill gaps first)")
            }
            Self::Ranges { count, leads } => write!(f, "{count} ranges for {leads} leads: wanted one, or one a lead"),
            Self::Symbols { count, wanted } => {
                write!(f, "{count} symbols for a signal of {wanted} values: wanted as many, or partial=True")
            }
            Self::NoLevel { at, byte, first, levels } => {
                let (symbol, low) = (Symbol(*byte), Symbol(*first));
                let high = Symbol(first.wrapping_add((levels - 1) as u8));
                write!(f, "symbol {symbol} at position {at} is no level: wanted {low} to {high}, or partial=True")
            }
            Self::TooLong { what, count } => {
                write!(f, "the text has {count} {what}: wanted at most {} (train on fewer sequences)", u32::MAX)
            }
            Self::Unreachable { merge, left, right } => {
                write!(f, "merge {merge} joins ids {left} and {right}, which never meet: an earlier merge takes a part")
            }
            Self::Stopped => write!(f, "training was stopped"),
            Self::Syntax { line, column, what } => write!(f, "no JSON: {what} at line {line}, column {column}"),
            Self::Field { place, came, wanted } => write!(f, "{place} is {came}: wanted {wanted}"),
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
