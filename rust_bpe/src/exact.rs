//! Byte-pair encoding by the order of merges: the pair of the earliest merge in the text is replaced, left to right,
//! until no pair is left.
//!
//! Three things make it fast on ECGs. Runs of one symbol start far ahead: a table holds the tokens of a run just before
//! the first merge that could join it to its neighbours. The pairs then wait in one bucket for each merge; a merge
//! makes pairs of later merges only, so one pass over the buckets is enough. Stretches of text that no token can join
//! are encoded one after the other, in memory that stays in the cache.
use crate::pairs::Mix;
use crate::{Error, Result, ids};
use std::collections::HashMap;
use std::fmt;
use std::hash::BuildHasherDefault;
use std::sync::Mutex;

/// Bits of a token id in a slot of [`Pairs`]: three ids share 64 bits.
const BITS: u32 = 21;
const ID: u32 = (1 << BITS) - 1;
/// Most tokens of a vocabulary: two ids more mark the edge of a stretch, and what a merge leaves behind.
const TOKENS: usize = ID as usize - 2;
/// Most tokens of a stretch: three entries for each are numbered in 32 bits.
const LONGEST: usize = 1 << 26;
/// A stretch ends at the first place after so many tokens that no token can cover.
const STRETCH: usize = 2048;
/// Memory of a finished encoding is kept for the next one up to so many tokens.
const KEEP: usize = 1 << 16;

/// The merge of a pair of ids. Every left token has a row of slots, one for each right token; the rows are pushed into
/// each other so that their pairs fall into each other's gaps. A pair that finds its slot taken goes to the next free.
#[derive(Clone)]
struct Pairs {
    places: Vec<[u32; 2]>, // for each id the start of its row as left token, and its column as right token
    slots: Vec<u64>,       // left, right and merge in 21 bits each, and MORE; NO_PAIR where free
    none: u32,             // what is found where there is no merge: the number of merges
}

/// In a slot: a pair that belongs here is further on.
const MORE: u64 = 1 << 63;
const NO_PAIR: u64 = u64::MAX >> 1;
/// How far back from the end of the slots a place is sought for a row of several pairs.
const REACH: usize = 1024;

impl Pairs {
    /// From the pairs of ids below `size`, no pair twice.
    fn new(size: usize, pairs: &[(u32, u32)]) -> Self {
        let mut places = vec![[0; 2]; size + 2];
        for &(_, right) in pairs {
            places[right as usize][1] = 1;
        }
        let mut columns = 0;
        for [_, column] in places.iter_mut().filter(|place| place[1] == 1) {
            columns += 1;
            *column = columns;
        }
        let mut order: Vec<(u32, u32, u32)> = (0..).zip(pairs).map(|(merge, pair)| (pair.0, pair.1, merge)).collect();
        order.sort_unstable();
        let mut rows: Vec<&[(u32, u32, u32)]> = order.chunk_by(|a, b| a.0 == b.0).collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.len()));

        let columns = columns as usize;
        let most = 4 * (pairs.len() + columns); // a row starts before that
        // The first slots stay free: no row starts before 0, and ids that are never left look there.
        let mut slots = vec![NO_PAIR; 2 * columns + 3];
        let (mut hole, mut end) = (columns + 1, 0usize);
        for row in rows {
            while slots.get(hole).is_some_and(|&slot| slot != NO_PAIR) {
                hole += 1;
            }
            let column = |right: u32| places[right as usize][1] as usize;
            let first = column(row[0].1);
            let from = if row.len() == 1 { hole } else { hole.max(end.saturating_sub(REACH)) } - first;
            let fits = |&start: &usize| {
                row.iter().all(|pair| slots.get(start + column(pair.1)).is_none_or(|&slot| slot == NO_PAIR))
            };
            // Where no place is left (tables made for that only) any place will do.
            let start = (from..most).find(fits).unwrap_or(columns + row[0].2 as usize);
            for &(left, right, merge) in row {
                let mut at = start + column(right);
                if at + columns + 2 > slots.len() {
                    slots.resize(at + columns + 2, NO_PAIR);
                }
                while slots[at] & NO_PAIR != NO_PAIR {
                    slots[at] |= MORE;
                    at += 1;
                    if at == slots.len() {
                        slots.push(NO_PAIR);
                    }
                }
                end = end.max(at + 1);
                slots[at] = Self::key(left, right) << BITS | merge as u64 | slots[at] & MORE;
            }
            places[row[0].0 as usize][0] = start as u32;
        }
        slots.resize(slots.len() + columns + 2, NO_PAIR);
        Self { places, slots, none: pairs.len() as u32 }
    }

    #[inline(always)]
    fn key(left: u32, right: u32) -> u64 {
        (left as u64) << BITS | right as u64
    }

    /// The merge of a pair, or `none`.
    #[inline(always)]
    fn find(&self, left: u32, right: u32) -> u32 {
        let mut at = (self.places[left as usize][0] + self.places[right as usize][1]) as usize;
        let key = Self::key(left, right);
        loop {
            let slot = self.slots[at];
            let found = if slot << 1 >> (BITS + 1) == key { slot as u32 & ID } else { self.none };
            if found != self.none || slot & MORE == 0 {
                return found;
            }
            at += 1;
        }
    }
}

/// `count` times the same token.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Block {
    token: u32,
    count: u32,
}

/// Where the tokens of a run are.
#[derive(Clone, Copy)]
struct Part {
    start: u32,
    count: u32,
}

/// What merges do to a run of one symbol as long as none joins it to a neighbour.
#[derive(Clone)]
struct Runs {
    side: Box<[u16; 256]>, // the number of a symbol that merges, from 1; NEUTRAL where none does; OUTSIDE the alphabet
    sides: usize,          // symbols that merge, and 0 for all others and for the ends of the text
    row: Vec<u32>,         // the row of a token in `before` and `after`; NO_ROW where it is not of one symbol
    before: Vec<u32>,      // [row, side]: the first merge that joins the token to one that ends in the symbol before it
    after: Vec<u32>,       // [row, side]: ... to one that starts with the symbol after it
    limit: u32,            // merges from this one on are left alone: their tokens have no row
    longest: usize,        // runs up to this length are in the tables below
    first: Vec<u32>,       // [symbol, length]: the first state in `parts`
    parts: Vec<Part>,      // a state's tokens in `tokens`
    tokens: Vec<u32>,
    left: Vec<u8>,     // [symbol, length, side]: the state when the symbol before the run can first join it
    right: Vec<u8>,    // ... the symbol after the run
    joined: Vec<bool>, // [side, side]: whether a token has the two symbols side by side
}

const NEUTRAL: u16 = 0;
const OUTSIDE: u16 = u16::MAX;
const NO_ROW: u32 = u32::MAX;
/// Most numbers in `before`, and in `left`.
const ROOM: usize = 1 << 18;
/// The longest run in the tables.
const RUN: usize = 128;
/// Most states of a run; the merges after them are left to the buckets.
const STATES: usize = 32;

impl Runs {
    fn new(base: usize, alphabet: &[u8], pairs: &[(u32, u32)], table: &Pairs) -> Self {
        // The first and the last symbol of every token, and whether it has no other.
        let mut ends: Vec<(u32, u32, bool)> = (0..base as u32).map(|id| (id, id, true)).collect();
        let mut merges = vec![false; base];
        for &(left, right) in pairs {
            for id in [left, right] {
                if let Some(merges) = merges.get_mut(id as usize) {
                    *merges = true;
                }
            }
            let (before, after) = (ends[left as usize], ends[right as usize]);
            ends.push((before.0, after.1, before.2 && after.2 && before.0 == after.0));
        }
        let mut side_of = vec![NEUTRAL; base];
        let symbols: Vec<u32> = (0..base as u32).filter(|&id| merges[id as usize]).collect();
        for (side, &id) in (1..).zip(&symbols) {
            side_of[id as usize] = side;
        }
        let mut side = Box::new([OUTSIDE; 256]);
        for (id, &byte) in alphabet.iter().enumerate() {
            side[byte as usize] = side_of[id];
        }

        let (sides, none) = (symbols.len() + 1, pairs.len() as u32);
        let mut row = vec![NO_ROW; ends.len()];
        let (mut rows, mut limit) = (0, none);
        for (id, &(.., pure)) in ends.iter().enumerate().filter(|&(id, _)| id >= base || merges[id]) {
            if !pure {
                continue;
            }
            if rows * sides > ROOM {
                limit = limit.min(id.saturating_sub(base) as u32);
                break;
            }
            row[id] = rows as u32;
            rows += 1;
        }
        let mut before = vec![none; rows * sides];
        let mut after = before.clone();
        let mut joined = vec![false; sides * sides];
        for (merge, &(left, right)) in pairs.iter().enumerate() {
            let last = side_of[ends[left as usize].1 as usize] as usize;
            let first = side_of[ends[right as usize].0 as usize] as usize;
            joined[last * sides + first] = true;
            for (id, side, least) in [(left, first, &mut after), (right, last, &mut before)] {
                if row[id as usize] != NO_ROW {
                    let least = &mut least[row[id as usize] as usize * sides + side];
                    *least = (*least).min(merge as u32);
                }
            }
        }
        let longest = RUN.min(ROOM / (symbols.len() * sides).max(1));
        let mut runs = Self {
            side,
            sides,
            row,
            before,
            after,
            limit,
            longest,
            first: Vec::new(),
            parts: Vec::new(),
            tokens: Vec::new(),
            left: vec![0; symbols.len() * longest * sides],
            right: vec![0; symbols.len() * longest * sides],
            joined,
        };
        runs.fill(&symbols, base, pairs, table);
        runs
    }

    /// The tables of short runs.
    fn fill(&mut self, symbols: &[u32], base: usize, pairs: &[(u32, u32)], table: &Pairs) {
        let (mut blocks, mut spare) = (Vec::new(), Vec::new());
        for (symbol, &id) in symbols.iter().enumerate() {
            for count in 1..=self.longest as u32 {
                let place = (symbol * self.longest + count as usize - 1) * self.sides;
                let at = place..place + self.sides;
                self.left[at.clone()].fill(u8::MAX);
                self.right[at.clone()].fill(u8::MAX);
                self.first.push(self.parts.len() as u32);
                let mut state = 0;
                blocks.clear();
                blocks.push(Block { token: id, count });
                for step in 0..=STATES {
                    let next = self.next(&blocks, table);
                    let end = next.is_none() || step == STATES;
                    let next = next.unwrap_or(table.none);
                    let first = self.row[blocks[0].token as usize] as usize * self.sides;
                    let last = self.row[blocks[blocks.len() - 1].token as usize] as usize * self.sides;
                    let mut stops = false;
                    for side in 0..self.sides {
                        let own = side == symbol + 1;
                        let [left, right] = [&mut self.left[place + side], &mut self.right[place + side]];
                        for (state_at, due) in [(left, self.before[first + side]), (right, self.after[last + side])] {
                            if *state_at == u8::MAX && (end || (due < next && !own)) {
                                *state_at = state;
                                stops = true;
                            }
                        }
                    }
                    if stops {
                        let start = self.tokens.len() as u32;
                        for block in &blocks {
                            self.tokens.extend(std::iter::repeat_n(block.token, block.count as usize));
                        }
                        self.parts.push(Part { start, count: self.tokens.len() as u32 - start });
                        state += 1;
                    }
                    if end {
                        break;
                    }
                    merge(&mut blocks, &mut spare, pairs[next as usize], base as u32 + next);
                }
            }
        }
        self.tokens.resize(self.tokens.len() + COPY, 0);
    }

    /// The next merge inside a run.
    fn next(&self, blocks: &[Block], table: &Pairs) -> Option<u32> {
        let inside = blocks.iter().filter(|block| block.count > 1).map(|block| table.find(block.token, block.token));
        let between = blocks.windows(2).map(|two| table.find(two[0].token, two[1].token));
        inside.chain(between).min().filter(|&merge| merge < self.limit)
    }

    /// The tokens of a run between two symbols: every merge is done that comes before one that could join an end of the
    /// run to its neighbour.
    #[inline(always)]
    fn part(&self, symbol: usize, count: usize, left: usize, right: usize) -> Part {
        let run = symbol * self.longest + count - 1;
        let at = run * self.sides;
        let state = self.left[at + left].min(self.right[at + right]);
        self.parts[self.first[run] as usize + state as usize]
    }

    /// The same for a run of any length.
    fn blocks(&self, run: Block, sides: [usize; 2], exact: &Exact) -> Vec<Block> {
        let (mut blocks, mut spare) = (vec![run], Vec::new());
        for _ in 0..STATES {
            let first = self.row[blocks[0].token as usize] as usize * self.sides;
            let last = self.row[blocks[blocks.len() - 1].token as usize] as usize * self.sides;
            let Some(next) = self.next(&blocks, &exact.table) else { break };
            if self.before[first + sides[0]] < next || self.after[last + sides[1]] < next {
                break;
            }
            merge(&mut blocks, &mut spare, exact.pairs[next as usize], exact.base + next);
        }
        blocks
    }
}

/// Replaces a pair in a list of blocks, from left to right.
fn merge(blocks: &mut Vec<Block>, spare: &mut Vec<Block>, (left, right): (u32, u32), id: u32) {
    let add = |blocks: &mut Vec<Block>, token: u32, count: u32| match blocks.last_mut() {
        Some(last) if last.token == token => last.count += count,
        _ if count > 0 => blocks.push(Block { token, count }),
        _ => {}
    };
    spare.clear();
    let mut taken = 0; // of the next block
    for (at, block) in blocks.iter().enumerate() {
        let count = block.count - std::mem::take(&mut taken);
        if left == right && block.token == left {
            add(spare, id, count / 2);
            add(spare, left, count % 2);
        } else if count > 0 && block.token == left && blocks.get(at + 1).is_some_and(|next| next.token == right) {
            add(spare, left, count - 1);
            add(spare, id, 1);
            taken = 1;
        } else {
            add(spare, block.token, count);
        }
    }
    std::mem::swap(blocks, spare);
}

/// Tokens that are copied at once; more only where a run has more.
const COPY: usize = 4;

/// A token of a stretch and its neighbours.
#[derive(Clone, Copy)]
struct Node {
    token: u32,
    before: u32,
    after: u32,
}

/// A pair that waits for its merge: its left token and the entry that waits for the same merge.
#[derive(Clone, Copy)]
struct Entry {
    at: u32,
    next: u32,
}

/// The memory of one encoding. Between stretches `heads` and `due` are empty.
struct Work {
    edge: u32,        // an id that no token has; the one after it is what a merge leaves behind
    tokens: Vec<u32>, // the stretch so far: `length` tokens after one edge
    length: usize,
    nodes: Vec<Node>,
    entries: Vec<Entry>,
    count: usize,    // of entries; entry 0 stands for none
    heads: Vec<u32>, // for each merge its last entry; one more for pairs without a merge
    due: Vec<u64>,   // a bit for each merge that has entries
    sorted: Vec<u32>,
}

impl Work {
    fn new(size: usize, merges: usize) -> Self {
        let edge = size as u32;
        Self {
            edge,
            tokens: vec![edge; STRETCH],
            length: 0,
            nodes: Vec::new(),
            entries: Vec::new(),
            count: 1,
            heads: vec![0; merges + 1],
            due: vec![0; merges / 64 + 1],
            sorted: Vec::new(),
        }
    }

    /// Lets a pair wait for its merge.
    #[inline(always)]
    fn push(&mut self, merge: u32, at: u32) {
        let head = std::mem::replace(&mut self.heads[merge as usize], self.count as u32);
        self.entries[self.count] = Entry { at, next: head };
        self.count += 1;
        self.due[merge as usize / 64] |= 1 << (merge % 64);
    }

    /// Room for `more` tokens and the edges.
    #[inline(always)]
    fn reserve(&mut self, more: usize) {
        let wanted = self.length + more + 2;
        if wanted > self.tokens.len() {
            self.tokens.resize(wanted.max(2 * self.tokens.len()), self.edge);
        }
    }

    fn repeat(&mut self, token: u32, count: usize) -> Result<()> {
        if self.length + count > LONGEST {
            return Err(Error::LongStretch { most: LONGEST });
        }
        self.reserve(count);
        self.tokens[self.length + 1..][..count].fill(token);
        self.length += count;
        Ok(())
    }
}

/// Byte-pair encoding with the pairs in the order of their merges.
pub struct Exact {
    base: u32, // ids of merged tokens start here
    pairs: Vec<(u32, u32)>,
    table: Pairs,
    grows: Vec<[bool; 2]>, // whether the token of a merge is the left, the right of a later one
    ids: Box<[u32; 256]>,  // of the symbols
    runs: Runs,
    works: Mutex<Vec<Work>>, // of encodings that have ended
}

impl Exact {
    /// Merge `k` joins `pairs[k]` to the token `alphabet.len() + k`; its two ids are smaller than that.
    pub fn new(alphabet: &[u8], pairs: &[(u32, u32)]) -> Result<Self> {
        let base = alphabet.len();
        let ids = Box::new(ids(alphabet)?.map(|id| id.map_or(0, u32::from))); // 0 for bytes outside the alphabet
        if base + pairs.len() > TOKENS {
            return Err(Error::TooManyTokens { count: base + pairs.len(), most: TOKENS });
        }
        let mut seen: HashMap<u64, usize, BuildHasherDefault<Mix>> = HashMap::default();
        for (merge, &(left, right)) in pairs.iter().enumerate() {
            let id = (base + merge) as u32;
            if let Some(&other) = [left, right].iter().find(|&&other| other >= id) {
                return Err(Error::LaterId { merge, id, other });
            }
            if let Some(first) = seen.insert(Pairs::key(left, right), merge) {
                return Err(Error::RepeatedPair { first, merge, left, right });
            }
        }
        let table = Pairs::new(base + pairs.len(), pairs);
        let mut grows = vec![[false; 2]; pairs.len()];
        for &(left, right) in pairs {
            for (id, end) in [(left, 0), (right, 1)] {
                if let Some(merge) = (id as usize).checked_sub(base) {
                    grows[merge][end] = true;
                }
            }
        }
        let runs = Runs::new(base, alphabet, pairs, &table);
        Ok(Self { base: base as u32, pairs: pairs.to_vec(), table, grows, ids, runs, works: Mutex::default() })
    }

    pub fn pairs(&self) -> &[(u32, u32)] {
        &self.pairs
    }

    /// The tokens that are left when every merge, in order, has replaced its pair from left to right.
    pub fn encode<T: From<u32>>(&self, text: &[u8]) -> Result<Vec<T>> {
        let mut work = self.works.lock().ok().and_then(|mut works| works.pop());
        let work_ref = work.get_or_insert_with(|| Work::new(self.base as usize + self.pairs.len(), self.pairs.len()));
        work_ref.length = 0;
        let mut ids = Vec::with_capacity(text.len() / 12 + 8);
        self.encode_with(text, work_ref, &mut ids)?;
        if let Some(work) = work.filter(|work| work.tokens.len() <= KEEP)
            && let Ok(mut works) = self.works.lock()
        {
            works.push(work);
        }
        Ok(ids)
    }

    fn encode_with<T: From<u32>>(&self, text: &[u8], work: &mut Work, ids: &mut Vec<T>) -> Result<()> {
        let Some(&byte) = text.first() else { return Ok(()) };
        let side_of = |at: usize| match self.runs.side[text[at] as usize] {
            OUTSIDE => {
                let alphabet = self.base as usize;
                Err(Error::UnknownSymbol { at, byte: text[at], alphabet })
            }
            side => Ok(side as usize),
        };
        let (mut left, mut side, mut start, mut byte) = (0, side_of(0)?, 0, byte);
        each_change(text, |at| {
            let right = side_of(at)?;
            self.add(work, byte, at - start, [left, side, right])?;
            if work.length >= STRETCH && !self.runs.joined[side * self.runs.sides + right] {
                self.finish(work, ids);
            }
            (left, side, start, byte) = (side, right, at, text[at]);
            Ok(())
        })?;
        self.add(work, byte, text.len() - start, [left, side, 0])?;
        self.finish(work, ids);
        Ok(())
    }

    /// Adds the tokens of a run to the stretch.
    #[inline(always)]
    fn add(&self, work: &mut Work, byte: u8, count: usize, [left, side, right]: [usize; 3]) -> Result<()> {
        if side == NEUTRAL as usize || count > self.runs.longest {
            return self.add_long(work, byte, count, [left, side, right]);
        }
        let Part { start, count } = self.runs.part(side - 1, count, left, right);
        let (start, count) = (start as usize, count as usize);
        work.reserve(count + COPY);
        let room = &mut work.tokens[work.length + 1..];
        if count <= COPY {
            room[..COPY].copy_from_slice(&self.runs.tokens[start..start + COPY]);
        } else {
            room[..count].copy_from_slice(&self.runs.tokens[start..start + count]);
        }
        work.length += count;
        if work.length > LONGEST { Err(Error::LongStretch { most: LONGEST }) } else { Ok(()) }
    }

    #[cold]
    fn add_long(&self, work: &mut Work, byte: u8, count: usize, [left, side, right]: [usize; 3]) -> Result<()> {
        let token = self.ids[byte as usize];
        if side == NEUTRAL as usize {
            return work.repeat(token, count);
        }
        let Ok(count) = u32::try_from(count) else {
            return Err(Error::LongStretch { most: LONGEST });
        };
        for block in self.runs.blocks(Block { token, count }, [left, right], self) {
            work.repeat(block.token, block.count as usize)?;
        }
        Ok(())
    }

    /// Merges the stretch, adds its ids to `ids` and empties it.
    fn finish<T: From<u32>>(&self, work: &mut Work, ids: &mut Vec<T>) {
        let length = work.length;
        work.tokens[0] = work.edge;
        work.reserve(0);
        work.tokens[length + 1] = work.edge;
        work.nodes.clear();
        let numbered = (0u32..).zip(&work.tokens[..length + 2]);
        work.nodes.extend(numbered.map(|(at, &token)| Node { token, before: at.wrapping_sub(1), after: at + 1 }));
        work.count = 1;
        if work.entries.len() < 3 * length + 2 {
            work.entries.resize(3 * length + 2, Entry { at: 0, next: 0 });
        }
        for at in (1..length).rev() {
            let merge = self.table.find(work.tokens[at], work.tokens[at + 1]);
            work.push(merge, at as u32);
        }
        self.replace(work);
        let mut at = work.nodes[0].after as usize;
        while at <= length {
            let node = work.nodes[at];
            ids.push(T::from(node.token));
            at = node.after as usize;
        }
        work.length = 0;
    }

    /// Every merge in order.
    fn replace(&self, work: &mut Work) {
        let mut word = 0;
        while word < work.due.len() {
            let due = work.due[word];
            if due == 0 {
                word += 1;
                continue;
            }
            work.due[word] = due & (due - 1);
            let merge = word * 64 + due.trailing_zeros() as usize;
            let mut entry = std::mem::take(&mut work.heads[merge]);
            let Some(&(left, right)) = self.pairs.get(merge) else { break };
            let id = self.base + merge as u32;
            let grows = self.grows[merge];
            if left == right {
                // Only these overlap, so only their order matters.
                let mut sorted = std::mem::take(&mut work.sorted);
                sorted.clear();
                while entry != 0 {
                    let Entry { at, next } = work.entries[entry as usize];
                    sorted.push(at);
                    entry = next;
                }
                sorted.sort_unstable();
                for &at in &sorted {
                    self.join(work, at, (left, right), id, grows);
                }
                work.sorted = sorted;
            } else {
                while entry != 0 {
                    let Entry { at, next } = work.entries[entry as usize];
                    self.join(work, at, (left, right), id, grows);
                    entry = next;
                }
            }
        }
    }

    /// Replaces the pair at `at`, if it still is that pair.
    #[inline(always)]
    fn join(&self, work: &mut Work, at: u32, (left, right): (u32, u32), id: u32, grows: [bool; 2]) {
        let node = work.nodes[at as usize];
        if node.token != left {
            return;
        }
        let other = &mut work.nodes[node.after as usize];
        if other.token != right {
            return;
        }
        other.token = work.edge + 1;
        let Node { before, .. } = node;
        let after = other.after;
        work.nodes[at as usize] = Node { token: id, before, after };
        let next = &mut work.nodes[after as usize];
        next.before = at;
        let next = next.token;
        let [is_left, is_right] = grows;
        if is_right {
            let merge = self.table.find(work.nodes[before as usize].token, id);
            work.push(merge, before);
        }
        if is_left {
            let merge = self.table.find(id, next);
            work.push(merge, at);
        }
    }
}

impl Clone for Exact {
    fn clone(&self) -> Self {
        Self {
            pairs: self.pairs.clone(),
            table: self.table.clone(),
            grows: self.grows.clone(),
            ids: self.ids.clone(),
            runs: self.runs.clone(),
            works: Mutex::default(),
            ..*self
        }
    }
}

impl fmt::Debug for Exact {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Exact({} symbols, {} merges)", self.base, self.pairs.len())
    }
}

/// Calls `work(at)` for every place where a symbol differs from the one before it: 64 places are compared at a time.
#[inline(always)]
fn each_change(text: &[u8], mut work: impl FnMut(usize) -> Result<()>) -> Result<()> {
    let mut at = 1;
    while let Some(block) = text.get(at - 1..at + 64) {
        let mut changes = 0u64;
        for part in (0..64).step_by(8) {
            changes |= differ(&block[part..part + 9]) << part;
        }
        while changes != 0 {
            work(at + changes.trailing_zeros() as usize)?;
            changes &= changes - 1;
        }
        at += 64;
    }
    (at..text.len()).filter(|&at| text[at] != text[at - 1]).try_for_each(work)
}

/// Bit k is set where symbol k + 1 differs from symbol k; `text` has 9 symbols.
#[inline(always)]
fn differ(text: &[u8]) -> u64 {
    const LOW: u64 = 0x7F7F_7F7F_7F7F_7F7F;
    let word = |at: usize| text[at..].first_chunk().map_or(0, |chunk| u64::from_le_bytes(*chunk));
    let bits = word(0) ^ word(1);
    // The top bit of each byte that is not zero, then these eight bits side by side.
    let tops = (((bits & LOW) + LOW) | bits) & !LOW;
    (tops >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56
}

/// The pairs that made the tokens (of ids `alphabet.len()..`, in order): with the earlier merges a token is two tokens.
pub fn pairs_of<B: AsRef<[u8]>>(alphabet: &[u8], tokens: &[B]) -> Result<Vec<(u32, u32)>> {
    let base = alphabet.len();
    let ids = ids(alphabet)?;
    let mut pairs = Vec::with_capacity(tokens.len());
    let mut merges: HashMap<u64, u32, BuildHasherDefault<Mix>> = HashMap::default();
    let (mut blocks, mut spare) = (Vec::new(), Vec::new());
    for (entry, token) in tokens.iter().enumerate() {
        let token = token.as_ref();
        let id = (base + entry) as u32;
        if let Some(at) = token.iter().position(|&byte| ids[byte as usize].is_none()) {
            return Err(Error::OutsideAlphabet { entry, at, byte: token[at] });
        }
        blocks.clear();
        for run in token.chunk_by(|a, b| a == b) {
            blocks.push(Block { token: ids[run[0] as usize].map_or(0, u32::from), count: run.len() as u32 });
        }
        loop {
            let find = |left: u32, right: u32| merges.get(&Pairs::key(left, right)).copied();
            let inside =
                blocks.iter().filter(|block| block.count > 1).filter_map(|block| find(block.token, block.token));
            let between = blocks.windows(2).filter_map(|two| find(two[0].token, two[1].token));
            let Some(first) = inside.chain(between).min() else { break };
            merge(&mut blocks, &mut spare, pairs[first as usize], base as u32 + first);
        }
        let pair = match blocks[..] {
            [Block { token, count: 2 }] => (token, token),
            [Block { token: left, count: 1 }, Block { token: right, count: 1 }] => (left, right),
            _ => {
                let parts = blocks.iter().map(|block| block.count as usize).sum();
                return Err(Error::NoPair { merge: entry, id, token: token.to_vec(), parts });
            }
        };
        merges.insert(Pairs::key(pair.0, pair.1), entry as u32);
        pairs.push(pair);
    }
    Ok(pairs)
}
