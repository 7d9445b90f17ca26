//! Token ids back to symbols and signals: the bytes of all tokens in one table, and copies out of it.
use crate::wide::wide;
use crate::{Back, Bpe, Error, Id, Quantiser, Result};

/// What is copied at a time. Most tokens are shorter: the next one overwrites what was too much.
const BLOCK: usize = 64;

/// Ids whose sizes are added up at a time.
const PART: usize = 1 << 16;

/// Where the bytes of a token are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    start: u32,
    size: u32,
}

/// The bytes of every token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    bytes: Vec<u8>,     // in the order of ids, then one block of zeros
    places: Vec<Place>, // of each id
}

impl Tokens {
    /// Token `id` is `bytes[starts[id]..starts[id + 1]]`; there are at most [`crate::MOST`] bytes.
    pub fn new(mut bytes: Vec<u8>, starts: &[usize]) -> Self {
        let place = |ends: &[usize]| Place { start: ends[0] as u32, size: (ends[1] - ends[0]) as u32 };
        bytes.resize(bytes.len() + BLOCK, 0);
        Self { bytes, places: starts.windows(2).map(place).collect() }
    }

    pub fn count(&self) -> usize {
        self.places.len()
    }

    /// The tokens in the order of ids.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.places.iter().map(|&place| self.at(place))
    }

    fn at(&self, place: Place) -> &[u8] {
        &self.bytes[place.start as usize..][..place.size as usize]
    }

    #[inline(always)]
    fn find<T: Id>(&self, id: T) -> Option<Place> {
        self.places.get(id.try_into().ok()?).copied()
    }
}

wide!(fn write[T: Id](tokens: &Tokens, ids: &[T], text: &mut [u8]) -> Option<usize> = write_portable);

/// Writes the tokens one after the other and returns where they end; None where an id is unknown or there is no room.
/// Ids from Python can change while they are read: whatever they are, nothing is written outside of `text`.
#[inline(always)]
fn write_portable<T: Id>(tokens: &Tokens, ids: &[T], text: &mut [u8]) -> Option<usize> {
    let room = text.len();
    let mut rest = text;
    for &id in ids {
        let place = tokens.find(id)?;
        let (start, size) = (place.start as usize, place.size as usize);
        if rest.len() < size + BLOCK {
            rest.get_mut(..size)?.copy_from_slice(tokens.at(place));
        } else {
            rest[..BLOCK].copy_from_slice(&tokens.bytes[start..][..BLOCK]);
            let mut done = BLOCK;
            while done < size {
                rest[done..][..BLOCK].copy_from_slice(&tokens.bytes[start + done..][..BLOCK]);
                done += BLOCK;
            }
        }
        rest = &mut rest[size..];
    }
    Some(room - rest.len())
}

impl Bpe {
    /// The bytes of one token.
    pub fn token<T: Id>(&self, id: T) -> Result<&[u8]> {
        Ok(self.tokens.at(self.place(0, id)?))
    }

    /// How many symbols each id stands for.
    pub fn lengths(&self) -> impl Iterator<Item = u32> {
        self.tokens.places.iter().map(|place| place.size)
    }

    /// How many bytes `ids` stand for.
    pub fn length<T: Id>(&self, ids: &[T]) -> Result<usize> {
        let mut length = 0usize;
        for part in ids.chunks(PART) {
            // Sizes have 31 bits and places 16: this cannot overflow, which is faster than to saturate every time.
            let sum = part.iter().try_fold(0u64, |sum, &id| Some(sum + u64::from(self.tokens.find(id)?.size)));
            let Some(sum) = sum else {
                return Err(self.unknown(ids));
            };
            length = length.saturating_add(usize::try_from(sum).unwrap_or(usize::MAX));
        }
        Ok(length)
    }

    /// The bytes that `ids` stand for.
    pub fn decode<T: Id>(&self, ids: &[T]) -> Result<Vec<u8>> {
        let mut text = zeros(self.length(ids)?, ids.len())?;
        self.decode_into(ids, &mut text)?;
        Ok(text)
    }

    /// Writes the bytes that `ids` stand for to `text`, which has their [`Bpe::length`].
    pub fn decode_into<T: Id>(&self, ids: &[T], text: &mut [u8]) -> Result<()> {
        // Ids from Python can be written to meanwhile, and then no longer fit.
        if write(&self.tokens, ids, text) == Some(text.len()) { Ok(()) } else { Err(Error::Changed) }
    }

    /// Writes the signal (leads, samples) that `ids` stand for to `out`: [`Quantiser::signal`] of what they decode to.
    #[allow(clippy::too_many_arguments)]
    pub fn decode_signal<T: Id>(
        &self,
        ids: &[T],
        how: &Quantiser,
        back: &Back,
        ranges: &[[f32; 2]],
        leads: usize,
        partial: bool,
        out: &mut [f32],
    ) -> Result<()> {
        let mut text = zeros(out.len(), ids.len())?;
        let mut end = write(&self.tokens, ids, &mut text);
        if end != Some(text.len()) {
            let count = self.length(ids)?;
            if !partial {
                return Err(Error::Symbols { count, wanted: out.len() });
            }
            if end.is_none() {
                end = Some(self.cut(ids, &mut text));
            }
        }
        text.truncate(end.unwrap_or_default());
        how.signal(back, ranges, &text, leads, partial, out)
    }

    /// Fills `text` with the first of the bytes that `ids` stand for and returns where they end.
    fn cut<T: Id>(&self, ids: &[T], text: &mut [u8]) -> usize {
        let mut end = 0;
        for token in ids.iter().map_while(|&id| self.tokens.find(id)).map(|place| self.tokens.at(place)) {
            let size = token.len().min(text.len() - end);
            text[end..end + size].copy_from_slice(&token[..size]);
            end += size;
        }
        end
    }

    /// The range of bytes `[start, end)` of the decoded text that each token covers.
    pub fn spans<T: Id>(&self, ids: &[T]) -> Result<Vec<[usize; 2]>> {
        let mut end = 0usize;
        let mut spans = Vec::with_capacity(ids.len());
        for (at, &id) in ids.iter().enumerate() {
            let start = end;
            end = end.saturating_add(self.place(at, id)?.size as usize);
            spans.push([start, end]);
        }
        Ok(spans)
    }

    /// Names the first id that is not in the vocabulary.
    fn unknown<T: Id>(&self, ids: &[T]) -> Error {
        let wrong = ids.iter().enumerate().find_map(|(at, &id)| self.place(at, id).err());
        wrong.unwrap_or(Error::Changed)
    }

    /// Where the bytes of the id at position `at` are.
    #[inline(always)]
    fn place<T: Id>(&self, at: usize, id: T) -> Result<Place> {
        self.tokens.find(id).ok_or_else(|| Error::UnknownId { at, id: id.to_string(), size: self.size() })
    }
}

/// Room for the bytes of `tokens` ids.
fn zeros(length: usize, tokens: usize) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    text.try_reserve_exact(length).map_err(|_| Error::NoMemory { tokens, length })?;
    text.resize(length, 0);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_and_portable_write_the_same_whatever_the_room() {
        let sizes = [1, 2, 31, 63, 64, 65, 127, 128, 129, 300];
        let starts: Vec<usize> = (0..=sizes.len()).map(|id| sizes[..id].iter().sum()).collect();
        let bytes: Vec<u8> = (0..starts[sizes.len()]).map(|at| (at % 251) as u8).collect();
        let tokens = Tokens::new(bytes.clone(), &starts);
        let ids: Vec<u32> = (0..200).map(|k| k * 7 % 10).collect();
        let whole: Vec<u8> =
            ids.iter().flat_map(|&id| &bytes[starts[id as usize]..starts[id as usize + 1]]).copied().collect();
        for count in 0..ids.len() {
            let size = ids[..count].iter().map(|&id| sizes[id as usize]).sum::<usize>();
            for room in [size.saturating_sub(1), size, size + 1, size + 63, size + 64, size + 65, size + 200] {
                let (mut a, mut b) = (vec![0; room], vec![0; room]);
                let end = write(&tokens, &ids[..count], &mut a);
                assert_eq!(end, write_portable(&tokens, &ids[..count], &mut b));
                assert_eq!(end, (room >= size).then_some(size));
                if end.is_some() {
                    assert!(a[..size] == whole[..size] && b[..size] == whole[..size]);
                }
            }
        }
        assert_eq!(write(&tokens, &[0, -1], &mut [0; 99]), None);
        assert_eq!(write(&tokens, &[0u64, 10], &mut [0; 99]), None);
    }
}
