//! Byte-pair tokens for quantised ECGs. A [`Bpe`] is built once from a table of tokens; encoding and decoding then
//! only read it, from any number of threads. This crate knows nothing of Python: the binding is `python.rs`.
#![deny(unsafe_code)]

mod batch;
mod error;
#[cfg(feature = "python")]
mod python;
mod trie;

pub use batch::parallel;
pub use error::{Error, Result};

use std::fmt::Display;
use std::ops::Range;
use trie::Trie;

/// What a token id may be on its way in: any integer that prints itself.
pub trait Id: Copy + Display + TryInto<usize> {}
impl<T: Copy + Display + TryInto<usize>> Id for T {}

/// Tokens, and bytes of all tokens together: nodes of the trie, one for each byte at most, are numbered in 32 bits.
const MOST: usize = i32::MAX as usize;

/// What decoding copies for a short token.
const BLOCK: usize = 32;

/// A vocabulary: the symbols of the alphabet take ids `0..alphabet.len()`, the merged tokens the ids after them.
#[derive(Debug, Clone)]
pub struct Bpe {
    alphabet: Vec<u8>,
    bytes: Vec<u8>,     // every token's bytes in the order of ids, then one block of zeros
    starts: Vec<usize>, // token `id` is bytes[starts[id]..starts[id + 1]]
    trie: Trie,
}

impl Bpe {
    /// Builds the vocabulary from `(bytes, id)` entries in any order. Their ids must fill `alphabet.len()..` without
    /// gaps; tokens must be non-empty, distinct and made of symbols of the alphabet.
    pub fn new<B: AsRef<[u8]>>(alphabet: &[u8], merges: &[(B, u32)]) -> Result<Self> {
        let base = alphabet.len();
        let size = base + merges.len();
        if base == 0 {
            return Err(Error::EmptyAlphabet);
        }
        let mut known = [false; 256];
        for (at, &byte) in alphabet.iter().enumerate() {
            if std::mem::replace(&mut known[byte as usize], true) {
                return Err(Error::RepeatedSymbol { at, byte });
            }
        }
        if size > MOST {
            return Err(Error::TooLarge { what: "tokens", count: size });
        }

        let mut entry_of = vec![None; merges.len()];
        for (entry, (token, id)) in merges.iter().enumerate() {
            let token = token.as_ref();
            if token.is_empty() {
                return Err(Error::EmptyToken { entry, id: *id });
            }
            if let Some(at) = token.iter().position(|&byte| !known[byte as usize]) {
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
        if bytes.len() > MOST {
            return Err(Error::TooLarge { what: "bytes of tokens", count: bytes.len() });
        }
        let trie = Trie::new(alphabet, &bytes, &starts)?;
        bytes.resize(bytes.len() + BLOCK, 0);
        Ok(Self { alphabet: alphabet.to_vec(), bytes, starts, trie })
    }

    /// Number of tokens: ids are `0..size()`.
    pub fn size(&self) -> usize {
        self.starts.len() - 1
    }

    pub fn alphabet(&self) -> &[u8] {
        &self.alphabet
    }

    /// The bytes of one token.
    pub fn token<T: Id>(&self, id: T) -> Result<&[u8]> {
        Ok(&self.bytes[self.range(0, id)?])
    }

    /// The merged tokens in the order of their ids, as [`Bpe::new`] takes them.
    pub fn merges(&self) -> impl Iterator<Item = (&[u8], u32)> {
        (self.alphabet.len()..self.size()).map(|id| (&self.bytes[self.starts[id]..self.starts[id + 1]], id as u32))
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

    /// The bytes that `ids` stand for.
    pub fn decode<T: Id>(&self, ids: &[T]) -> Result<Vec<u8>> {
        let mut length = 0usize;
        for (at, &id) in ids.iter().enumerate() {
            length = length.saturating_add(self.range(at, id)?.len());
        }
        let mut text = Vec::new();
        let room = length.saturating_add(BLOCK);
        text.try_reserve_exact(room).map_err(|_| Error::NoMemory { tokens: ids.len(), length })?;
        text.resize(room, 0);
        // Ids from Python can be written to meanwhile, and then no longer fit.
        let end = self.write(ids, &mut text).ok_or(Error::Changed)?;
        text.truncate(end);
        Ok(text)
    }

    /// Writes the tokens one after the other and returns where they end. Most tokens are short: a block of fixed size
    /// is copied, and the next token overwrites what was too much.
    fn write<T: Id>(&self, ids: &[T], text: &mut [u8]) -> Option<usize> {
        let mut end = 0;
        for &id in ids {
            let token = self.find(id)?;
            let size = token.len();
            if size <= BLOCK {
                let block = &self.bytes[token.start..token.start + BLOCK];
                text.get_mut(end..end + BLOCK)?.copy_from_slice(block);
            } else {
                text.get_mut(end..end + size)?.copy_from_slice(&self.bytes[token]);
            }
            end += size;
        }
        Some(end)
    }

    /// The range of bytes `[start, end)` of the decoded text that each token covers.
    pub fn spans<T: Id>(&self, ids: &[T]) -> Result<Vec<[usize; 2]>> {
        let mut end = 0;
        let mut spans = Vec::with_capacity(ids.len());
        for (at, &id) in ids.iter().enumerate() {
            let start = end;
            end += self.range(at, id)?.len();
            spans.push([start, end]);
        }
        Ok(spans)
    }

    /// Where the bytes of a token are.
    fn find<T: Id>(&self, id: T) -> Option<Range<usize>> {
        let id = id.try_into().ok()?;
        let end = *self.starts.get(id.checked_add(1)?)?;
        Some(self.starts[id]..end)
    }

    /// Where the bytes of the id at position `at` are.
    fn range<T: Id>(&self, at: usize, id: T) -> Result<Range<usize>> {
        self.find(id).ok_or_else(|| Error::UnknownId { at, id: id.to_string(), size: self.size() })
    }
}

/// Two vocabularies are equal when every id stands for the same bytes.
impl PartialEq for Bpe {
    fn eq(&self, other: &Self) -> bool {
        self.alphabet == other.alphabet && self.starts == other.starts && self.bytes == other.bytes
    }
}
impl Eq for Bpe {}
