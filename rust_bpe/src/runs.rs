//! The first part of training, on runs of equal symbols: how long the runs are, and how often, is all that it needs.
use crate::train::{Chain, Merge, Training};
use crate::{Error, Result, ids, parallel, run};
use std::cmp::Reverse;
use std::collections::HashMap;

/// Runs shorter than this are looked up in a table, the few others in a map.
const SHORT: usize = 256;
/// How many pieces of work reading is cut into.
const PARTS: usize = 64;
/// Merges learned here, at most: pairs of the symbols and these are few enough for a table.
const MOST: usize = 256;
/// Stands between sequences in place of a kind.
const BORDER: u32 = u32::MAX;

/// All runs of one symbol and length, which merges change alike.
struct Kind {
    symbol: usize,
    times: u64,              // in the text
    tokens: Vec<(u32, u32)>, // what such a run is now: runs of tokens
}

/// A text as kinds of runs.
pub(crate) struct Runs {
    text: Vec<u32>, // each run's kind
    kinds: Vec<Kind>,
    bound: u64,   // how often the most frequent pair of different symbols occurs
    symbols: u64, // in the text
    size: usize,  // of the alphabet
}

impl Runs {
    /// Reads the sequences. Between parts of the work `tell` may stop it.
    pub(crate) fn new(
        alphabet: &[u8],
        sequences: &[&[u8]],
        how: &Training,
        tell: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Self> {
        let size = alphabet.len();
        let ids = ids(alphabet)?;
        let parts: Vec<_> = sequences.chunks(sequences.len().div_ceil(PARTS).max(1)).collect();
        let parts = parallel(&parts, how.threads, |part| Ok(read(part)))?;

        let mut maker = Maker::new(size);
        let mut sequence = 0;
        for (runs, ends) in parts {
            tell()?;
            let mut start = 0;
            for end in ends {
                let mut at = 0;
                for &(byte, length) in &runs[start..end] {
                    let Some(id) = ids[byte as usize] else {
                        let error = Box::new(Error::UnknownSymbol { at, byte, alphabet: size });
                        return Err(Error::Item { item: sequence, error });
                    };
                    maker.add(id.into(), length.into())?;
                    at += length as usize;
                }
                if !how.join {
                    maker.border()?;
                }
                (start, sequence) = (end, sequence + 1);
            }
        }
        maker.border()?;
        tell()?;
        let Maker { text, kinds, bounds, .. } = maker;
        let bound = bounds.into_iter().max().unwrap_or(0);
        let symbols = sequences.iter().map(|sequence| sequence.len() as u64).sum();
        Ok(Self { text, kinds, bound, symbols, size })
    }

    /// Makes the merges inside runs as long as they come before any other. A pair of tokens from two runs is at most as
    /// frequent as the pair of their symbols.
    pub(crate) fn learn(&mut self, how: &Training) -> Vec<Merge> {
        let mut groups: Vec<Vec<&mut Kind>> = (0..self.size).map(|_| Vec::new()).collect();
        for kind in &mut self.kinds {
            groups[kind.symbol].push(kind);
        }
        let mut steps = 0;
        let mut bests: Vec<_> = groups.iter().map(|group| best(group, &mut steps)).collect();
        let mut merges = Vec::new();
        // The bound on steps keeps texts with very many kinds of runs linear: the rest is for the second part.
        while merges.len() < how.merges.min(MOST) && steps <= self.symbols {
            let Some((symbol, Some((count, Reverse((left, right)))))) =
                (0..).zip(&bests).max_by_key(|(_, best)| **best)
            else {
                break;
            };
            let (symbol, count, pair): (usize, u64, _) = (symbol, *count, (*left, *right));
            if count <= self.bound || count < how.min_frequency {
                break;
            }
            let id = (self.size + merges.len()) as u32;
            let merged = groups[symbol].iter_mut().map(|kind| kind.times * replace(&mut kind.tokens, pair, id)).sum();
            merges.push(Merge { left: pair.0, right: pair.1, count, merged });
            bests[symbol] = best(&groups[symbol], &mut steps);
        }
        merges
    }

    /// The text after these merges.
    pub(crate) fn chain(self) -> Result<Chain> {
        let tokens = |&kind: &u32| self.kinds.get(kind as usize).map_or(1, |kind| kind.tokens.len());
        let mut chain = Chain::new(self.text.iter().map(tokens).sum())?;
        for kind in self.text {
            match self.kinds.get(kind as usize) {
                None => chain.border(),
                Some(kind) => kind.tokens.iter().for_each(|&(token, count)| chain.push(token, count)),
            }
        }
        Ok(chain)
    }
}

/// The runs of all sequences, and where those of each end. A run too long for 32 bits comes in pieces.
fn read(sequences: &[&[u8]]) -> (Vec<(u8, u32)>, Vec<usize>) {
    let mut runs = Vec::new();
    let mut ends = Vec::with_capacity(sequences.len());
    for mut rest in sequences.iter().copied() {
        while let Some(&byte) = rest.first() {
            let length = run(rest).min(u32::MAX as usize);
            runs.push((byte, length as u32));
            rest = &rest[length..];
        }
        ends.push(runs.len());
    }
    (runs, ends)
}

/// Makes kinds of runs.
struct Maker {
    text: Vec<u32>,
    kinds: Vec<Kind>,
    short: Vec<u32>,                  // the kind of a symbol and length, BORDER: none yet
    long: HashMap<(usize, u64), u32>, // the same for lengths from SHORT on
    bounds: Vec<u64>,                 // how often a symbol follows another one
    size: usize,
    before: Option<usize>,      // the last symbol in `text`
    last: Option<(usize, u64)>, // a run that may become longer
}

impl Maker {
    fn new(size: usize) -> Self {
        Self {
            text: Vec::new(),
            kinds: Vec::new(),
            short: vec![BORDER; size * SHORT],
            long: HashMap::new(),
            bounds: vec![0; size * size],
            size,
            before: None,
            last: None,
        }
    }

    fn add(&mut self, symbol: usize, length: u64) -> Result<()> {
        match &mut self.last {
            Some((same, count)) if *same == symbol => *count += length,
            _ => {
                self.end()?;
                self.last = Some((symbol, length));
            }
        }
        Ok(())
    }

    fn border(&mut self) -> Result<()> {
        self.end()?;
        if self.before.take().is_some() {
            self.text.push(BORDER);
        }
        Ok(())
    }

    /// Ends the last run.
    fn end(&mut self) -> Result<()> {
        let Some((symbol, length)) = self.last.take() else { return Ok(()) };
        let Ok(count) = u32::try_from(length) else {
            return Err(Error::TooLong { what: "equal symbols in a row", count: length });
        };
        let next = self.kinds.len() as u32;
        let kind = match length < SHORT as u64 {
            true => &mut self.short[symbol * SHORT + length as usize],
            false => self.long.entry((symbol, length)).or_insert(BORDER),
        };
        if *kind == BORDER {
            *kind = next;
            self.kinds.push(Kind { symbol, times: 0, tokens: vec![(symbol as u32, count)] });
        }
        self.kinds[*kind as usize].times += 1;
        self.text.push(*kind);
        if let Some(before) = self.before.replace(symbol) {
            self.bounds[before * self.size + symbol] += 1;
        }
        Ok(())
    }
}

/// The most frequent pair inside runs, of equals the smallest.
fn best(group: &[&mut Kind], steps: &mut u64) -> Option<(u64, Reverse<(u32, u32)>)> {
    let mut counts = HashMap::new();
    for kind in group {
        for (at, &(token, count)) in kind.tokens.iter().enumerate() {
            if count > 1 {
                *counts.entry((token, token)).or_insert(0) += kind.times * u64::from(count - 1);
            }
            if let Some(&(next, _)) = kind.tokens.get(at + 1) {
                *counts.entry((token, next)).or_insert(0) += kind.times;
            }
        }
        *steps += kind.tokens.len() as u64;
    }
    counts.into_iter().map(|(pair, count)| (count, Reverse(pair))).max()
}

/// Writes `id` for every `pair`, from left to right, and returns how often.
fn replace(tokens: &mut Vec<(u32, u32)>, (left, right): (u32, u32), id: u32) -> u64 {
    let mut merged = 0;
    for (token, mut count) in std::mem::take(tokens) {
        if left == right && token == left {
            merged += u64::from(count / 2);
            append(tokens, id, count / 2);
            count %= 2;
        } else if token == right
            && let Some((last, before)) = tokens.last_mut()
            && *last == left
        {
            merged += 1;
            count -= 1;
            *before -= 1;
            if *before == 0 {
                tokens.pop();
            }
            append(tokens, id, 1);
        }
        append(tokens, token, count);
    }
    merged
}

/// Adds a run, which may continue the last one.
fn append(tokens: &mut Vec<(u32, u32)>, token: u32, count: u32) {
    match tokens.last_mut() {
        _ if count == 0 => (),
        Some((last, before)) if *last == token => *before += count,
        _ => tokens.push((token, count)),
    }
}
