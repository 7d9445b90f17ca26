//! Byte-pair tokens for quantised ECGs. A [`Bpe`] is built once from a table of tokens; encoding and decoding then
//! only read it, from any number of threads. This crate knows nothing of Python: the binding is `python`.
#![deny(unsafe_code)]

mod batch;
mod decode;
mod error;
mod exact;
mod json;
mod pairs;
#[cfg(feature = "python")]
mod python;
mod quantise;
mod runs;
mod train;
mod trie;
mod wide;

pub use batch::parallel;
pub use error::{Error, Result};
pub use exact::{Exact, pairs_of};
pub use quantise::{Back, Quantiser, Range};
pub use train::{Merge, Training, train};

use decode::Tokens;
use std::fmt::Display;
use std::sync::OnceLock;
use trie::Trie;

/// What a token id may be on its way in: any integer that prints itself.
pub trait Id: Copy + Display + TryInto<usize> {}
impl<T: Copy + Display + TryInto<usize>> Id for T {}

/// Most tokens: ids are numbered in 32 bits.
const MOST: usize = i32::MAX as usize;

/// Most bytes of all tokens together: a few pairs of ids can stand for any length, and the trie has a node for each.
const LONGEST: usize = 1 << 24;

/// A vocabulary: the symbols of the alphabet take ids `0..alphabet.len()`, the merged tokens the ids after them.
#[derive(Debug, Clone)]
pub struct Bpe {
    alphabet: Vec<u8>,
    tokens: Tokens,
    trie: Trie,
    known: Option<Vec<(u32, u32)>>, // the merges, where training made them
    exact: OnceLock<Result<Exact>>, // encoding by merges, made when it is first wanted
}

/// The id of each byte, `None` outside the alphabet.
fn ids(alphabet: &[u8]) -> Result<[Option<u8>; 256]> {
    if alphabet.is_empty() {
        return Err(Error::EmptyAlphabet);
    }
    let mut ids = [None; 256];
    for (at, &byte) in alphabet.iter().enumerate() {
        if ids[byte as usize].replace(at as u8).is_some() {
            return Err(Error::RepeatedSymbol { at, byte });
        }
    }
    Ok(ids)
}

/// How often the first symbol is repeated at the beginning, itself included: 8 symbols at a time.
#[inline]
fn run(text: &[u8]) -> usize {
    let Some(&byte) = text.first() else { return 0 };
    let same = u64::from_le_bytes([byte; 8]);
    let (words, rest) = text.as_chunks();
    for (at, word) in words.iter().enumerate() {
        let other = u64::from_le_bytes(*word) ^ same;
        if other != 0 {
            return 8 * at + other.trailing_zeros() as usize / 8;
        }
    }
    8 * words.len() + rest.iter().take_while(|&&other| other == byte).count()
}

impl Bpe {
    /// Builds the vocabulary from `(bytes, id)` entries in any order. Their ids must fill `alphabet.len()..` without
    /// gaps; tokens must be non-empty, distinct and made of symbols of the alphabet.
    pub fn new<B: AsRef<[u8]>>(alphabet: &[u8], merges: &[(B, u32)]) -> Result<Self> {
        let base = alphabet.len();
        let size = base + merges.len();
        let known = ids(alphabet)?;
        if size > MOST {
            return Err(Error::TooLarge { what: "tokens", count: size, most: MOST });
        }

        let mut entry_of = vec![None; merges.len()];
        for (entry, (token, id)) in merges.iter().enumerate() {
            let token = token.as_ref();
            if token.is_empty() {
                return Err(Error::EmptyToken { entry, id: *id });
            }
            if let Some(at) = token.iter().position(|&byte| known[byte as usize].is_none()) {
                return Err(Error::OutsideAlphabet { entry, at, byte: token[at] });
            }
            let Some(slot) = (*id as usize).checked_sub(base) else {
                return Err(Error::IdOfSymbol { entry, id: *id, base });
            };
            // An id past the end means that another one is missing: that one is named below.
            if let Some(slot) = entry_of.get_mut(slot)
                && let Some(first) = slot.replace(entry)
            {
                return Err(Error::RepeatedId { first, entry, id: *id });
            }
        }

        let mut bytes = alphabet.to_vec();
        let mut starts: Vec<usize> = (0..=base).collect();
        for (slot, entry) in entry_of.iter().enumerate() {
            let Some(entry) = *entry else {
                return Err(Error::Gap { missing: base + slot, base, size });
            };
            bytes.extend_from_slice(merges[entry].0.as_ref());
            starts.push(bytes.len());
        }
        if bytes.len() > LONGEST {
            return Err(Error::TooLarge { what: "bytes of tokens", count: bytes.len(), most: LONGEST });
        }
        let trie = Trie::new(alphabet, &bytes, &starts)?;
        let tokens = Tokens::new(bytes, &starts);
        Ok(Self { alphabet: alphabet.to_vec(), tokens, trie, known: None, exact: OnceLock::new() })
    }

    /// Builds the vocabulary from merges: merge `i` joins two earlier ids to id `alphabet.len() + i`. Every merge must
    /// be one that encoding can come to, as those of training are, so that tokens and merges say the same.
    pub fn from_pairs(alphabet: &[u8], pairs: &[(u32, u32)]) -> Result<Self> {
        let exact = Exact::new(alphabet, pairs)?;
        let bpe = Self::trained(alphabet, pairs)?;
        for (merge, (token, id)) in bpe.merges().enumerate() {
            if exact.encode::<u32>(token)? != [id] {
                let (left, right) = pairs[merge];
                return Err(Error::Unreachable { merge, left, right });
            }
        }
        Ok(Self { exact: OnceLock::from(Ok(exact)), ..bpe })
    }

    /// The vocabulary of merges as [`train`] gives them: each joins two earlier ids, and encoding can come to it.
    fn trained(alphabet: &[u8], pairs: &[(u32, u32)]) -> Result<Self> {
        let base = alphabet.len();
        let mut lengths = vec![1usize; base];
        for &(left, right) in pairs {
            lengths.push(lengths[left as usize].saturating_add(lengths[right as usize]));
        }
        let count = lengths.iter().fold(0usize, |sum, &length| sum.saturating_add(length));
        if count > LONGEST {
            return Err(Error::TooLarge { what: "bytes of tokens", count, most: LONGEST });
        }
        let mut tokens: Vec<Vec<u8>> = alphabet.iter().map(|&byte| vec![byte]).collect();
        for &(left, right) in pairs {
            tokens.push([tokens[left as usize].as_slice(), &tokens[right as usize]].concat());
        }
        let merges: Vec<_> = tokens.iter().zip(0..).skip(base).collect();
        Ok(Self { known: Some(pairs.to_vec()), ..Self::new(alphabet, &merges)? })
    }

    /// The two ids that each merge joins: as given, or found from the tokens at the first call. An error where a token
    /// is not what the merges before it leave as two.
    pub fn pairs(&self) -> Result<&[(u32, u32)]> {
        Ok(self.exact()?.pairs())
    }

    /// Token ids by the merges in their order, as training applied them.
    pub fn encode<T: From<u32>>(&self, text: &[u8]) -> Result<Vec<T>> {
        self.exact()?.encode(text)
    }

    fn exact(&self) -> Result<&Exact> {
        let find = || {
            if let Some(pairs) = &self.known {
                return Exact::new(&self.alphabet, pairs);
            }
            let tokens: Vec<_> = self.merges().map(|(token, _)| token).collect();
            Exact::new(&self.alphabet, &pairs_of(&self.alphabet, &tokens)?)
        };
        self.exact.get_or_init(find).as_ref().map_err(Error::clone)
    }

    /// Number of tokens: ids are `0..size()`.
    pub fn size(&self) -> usize {
        self.tokens.count()
    }

    pub fn alphabet(&self) -> &[u8] {
        &self.alphabet
    }

    /// The merged tokens in the order of their ids, as [`Bpe::new`] takes them.
    pub fn merges(&self) -> impl Iterator<Item = (&[u8], u32)> {
        self.tokens.iter().zip(0..).skip(self.alphabet.len())
    }

    /// Greedy longest match from left to right: at each place the longest token that fits. This is what published
    /// ECG-Byte models were trained with; it is not the order of merges. Takes at most text x longest token steps, and
    /// close to text steps with the tables that training gives (each token's beginnings are tokens or nearly so).
    pub fn encode_longest<T: From<u32>>(&self, text: &[u8]) -> Result<Vec<T>> {
        let mut ids = Vec::with_capacity(text.len() / 8 + 8);
        let mut at = 0;
        while at < text.len() {
            let Some((id, length)) = self.trie.longest(text, at) else {
                return Err(Error::UnknownSymbol { at, byte: text[at], alphabet: self.alphabet.len() });
            };
            ids.push(T::from(id));
            at += length;
        }
        Ok(ids)
    }
}

/// Two vocabularies are equal when every id stands for the same bytes.
impl PartialEq for Bpe {
    fn eq(&self, other: &Self) -> bool {
        self.alphabet == other.alphabet && self.tokens == other.tokens
    }
}
impl Eq for Bpe {}

#[cfg(test)]
mod tests {
    #[test]
    fn run_counts_to_the_end_of_the_run_or_the_text() {
        for length in 1..40 {
            for tail in 0..20 {
                let text = [vec![9; length], vec![0; tail]].concat();
                for end in 0..=text.len() {
                    assert_eq!(crate::run(&text[..end]), length.min(end), "{length} {tail} {end}");
                }
            }
        }
    }
}
