//! Exact byte-pair training without recounting. A text is kept as runs of equal tokens: in them the pair (a, a) occurs
//! `count - 1` times a run and (a, b) once where a run of a meets a run of b, which are the overlapping counts of the
//! plain text. A pair's places are written once, when the newer of its two tokens is made: from then on it only loses
//! places, so that what it counts in the heap is never too little.
use crate::pairs::Pairs;
use crate::runs::Runs;
use crate::{Error, Result};
use std::hint::black_box;
use std::ops::Range;
use std::time::{Duration, Instant};

/// Ids fit in 16 bits, and a pair of ids in 32.
const MOST: usize = 1 << 16;
/// What stands between sequences.
const BORDER: u32 = MOST as u32;
/// The token of a node that is no longer in the text.
const GONE: u32 = BORDER + 1;
/// How many places are looked at together.
const BLOCK: usize = 256;
/// How often progress is told.
const PACE: Duration = Duration::from_millis(20);

/// A merge as it was learned; the merge at place `i` makes the id `alphabet.len() + i`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Merge {
    pub left: u32,
    pub right: u32,
    pub count: u64,  // how often the pair was there when it was chosen; 'aaa' has two 'aa'
    pub merged: u64, // how often it was replaced, from left to right: one 'aa' of 'aaa'
}

/// How to train.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Training {
    pub merges: usize,      // how many, at most
    pub min_frequency: u64, // the least count of a pair that is merged, 1 or more
    pub join: bool,         // the sequences are one text, pairs may cross from one to the next
    pub threads: usize,     // of the preparations; 0: one for each core
}

/// Learns merges: of all pairs the most frequent one each time, of equals the smallest `(left, right)`. It stops early
/// when no pair is frequent enough. `progress` is told the number of merges about every 20 ms; with `false` it stops
/// the training as [`Error::Stopped`].
pub fn train(
    alphabet: &[u8],
    sequences: &[&[u8]],
    how: &Training,
    progress: &mut dyn FnMut(usize) -> bool,
) -> Result<Vec<Merge>> {
    if alphabet.len().saturating_add(how.merges) > MOST {
        return Err(Error::TooManyIds { alphabet: alphabet.len(), merges: how.merges, most: MOST });
    }
    if how.min_frequency == 0 {
        return Err(Error::NoFrequency);
    }
    let mut pace = Pace { progress, last: Instant::now() };
    let mut runs = Runs::new(alphabet, sequences, how, &mut || pace.tell(0))?;
    let mut merges = runs.learn(how);
    pace.tell(merges.len())?;
    if merges.len() < how.merges {
        let size = alphabet.len() + merges.len();
        let chain = runs.chain()?;
        pace.tell(merges.len())?;
        let mut text = Text::new(chain, size, how);
        pace.tell(merges.len())?;
        while merges.len() < how.merges {
            let Some(merge) = text.merge(&mut || pace.tell(merges.len()))? else { break };
            merges.push(merge);
        }
    }
    Ok(merges)
}

struct Pace<'a> {
    progress: &'a mut dyn FnMut(usize) -> bool,
    last: Instant,
}

impl Pace<'_> {
    fn tell(&mut self, done: usize) -> Result<()> {
        if self.last.elapsed() < PACE {
            return Ok(());
        }
        let go = (self.progress)(done);
        self.last = Instant::now();
        if go { Ok(()) } else { Err(Error::Stopped) }
    }
}

/// A run of equal tokens, or a border.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Node {
    pub(crate) token: u32,
    pub(crate) count: u32,
    pub(crate) prev: u32,
    pub(crate) next: u32,
}

/// Puts nodes one after the other.
pub(crate) struct Chain(Vec<Node>);

impl Chain {
    /// A first border, and room for `size` nodes after it and some that merges add.
    pub(crate) fn new(size: usize) -> Result<Self> {
        fits(size + 1)?;
        let mut chain = Self(Vec::with_capacity(size + size / 8 + 1));
        chain.border();
        Ok(chain)
    }

    pub(crate) fn border(&mut self) {
        self.push(BORDER, 0);
    }

    pub(crate) fn push(&mut self, token: u32, count: u32) {
        let at = self.0.len() as u32;
        self.0.push(Node { token, count, prev: at.saturating_sub(1), next: at + 1 });
    }
}

/// Nodes are numbered in 32 bits.
fn fits(nodes: usize) -> Result<()> {
    match u32::try_from(nodes) {
        Ok(_) => Ok(()),
        Err(_) => Err(Error::TooLong { what: "runs of equal tokens", count: nodes as u64 }),
    }
}

/// The text while merges are made in it.
struct Text {
    nodes: Vec<Node>,
    pairs: Pairs,
    size: u32,      // the next id
    made: Vec<u32>, // where the last merge put new nodes
}

impl Text {
    /// A text of tokens below `size`.
    fn new(Chain(mut nodes): Chain, size: usize, how: &Training) -> Self {
        if let Some(last) = nodes.last_mut() {
            last.next = 0;
        }
        let pairs = Pairs::new(&nodes, size, size + how.merges, how.min_frequency);
        Self { nodes, pairs, size: size as u32, made: Vec::new() }
    }

    /// Makes the next merge, if a pair is frequent enough. An error of `tell` leaves the text unfinished.
    fn merge(&mut self, tell: &mut dyn FnMut() -> Result<()>) -> Result<Option<Merge>> {
        let Some((left, right, count, spots)) = self.pairs.pop() else { return Ok(None) };
        fits(self.nodes.len() + spots.len())?;
        self.made.clear();
        let mut merged = 0;
        let mut live = [0; BLOCK];
        for start in spots.clone().step_by(BLOCK) {
            tell()?;
            let size = self.live(left, right, start..spots.end.min(start + BLOCK), &mut live);
            merged += match left == right {
                true => self.double(&live[..size]),
                false => self.unite(left, right, &live[..size]),
            };
        }
        self.pairs.lose(left, right);
        self.pairs.find(self.size, &self.made, &self.nodes);
        self.size += 1;
        Ok(Some(Merge { left, right, count, merged }))
    }

    /// Keeps the places where the pair still is, and returns how many. No branch depends on a node here, so that the
    /// processor waits for many nodes at a time and not for one after the other.
    fn live(&self, left: u32, right: u32, spots: Range<usize>, live: &mut [u32; BLOCK]) -> usize {
        let mut size = 0;
        for &at in &self.pairs.spots[spots] {
            live[size] = at;
            size += usize::from(self.nodes[at as usize].token == left);
        }
        let mut kept = 0;
        for place in 0..size {
            let at = live[place];
            let node = self.nodes[at as usize];
            let next = self.nodes[node.next as usize].token;
            live[kept] = at;
            kept += usize::from(next == right || (left == right && node.count > 1));
        }
        // The neighbours are read later, in branches: this brings them near.
        for &at in &live[..kept] {
            let node = self.nodes[at as usize];
            let next = self.nodes[node.next as usize].next;
            black_box((self.nodes[node.prev as usize].token, self.nodes[next as usize].token));
        }
        kept
    }

    /// Merges (token, token) and returns how often: every run of two or more becomes one of the new token, and what is
    /// left of an odd one.
    fn double(&mut self, places: &[u32]) -> u64 {
        let mut merged = 0;
        for &at in places {
            let Node { count, prev, next, .. } = self.nodes[at as usize];
            merged += u64::from(count / 2);
            self.lose_left(prev);
            if count % 2 == 0 {
                self.lose_right(next);
                self.insert(Some(at), count / 2, prev, next);
            } else {
                self.nodes[at as usize].count = 1;
                self.insert(None, count / 2, prev, at);
            }
        }
        merged
    }

    /// Merges (left, right), two different tokens, and returns how often: the last of a run of `left` with the first of
    /// a run of `right`.
    fn unite(&mut self, left: u32, right: u32, places: &[u32]) -> u64 {
        for &a in places {
            let first = self.nodes[a as usize];
            let b = first.next;
            let second = self.nodes[b as usize];
            // Between `prev` and `next` comes the new token. A run loses one of its twins or goes altogether.
            let (mut prev, mut next, mut free) = (a, b, None);
            if second.count > 1 {
                self.nodes[b as usize].count -= 1;
                self.pairs.rights.add(right);
            } else {
                self.nodes[b as usize].token = GONE;
                (next, free) = (second.next, Some(b));
                self.lose_right(next);
            }
            if first.count > 1 {
                self.nodes[a as usize].count -= 1;
                self.pairs.lefts.add(left);
            } else {
                self.nodes[a as usize].token = GONE;
                (prev, free) = (first.prev, Some(a));
                self.lose_left(prev);
            }
            // The new token may be there already, on one side or both.
            let mut count = 1;
            let after = self.nodes[next as usize];
            if after.token == self.size {
                self.nodes[next as usize].token = GONE;
                (count, next) = (count + after.count, after.next);
            }
            let before = self.nodes[prev as usize];
            if before.token == self.size {
                self.nodes[prev as usize].count += count;
                self.nodes[prev as usize].next = next;
                self.nodes[next as usize].prev = prev;
            } else {
                self.insert(free, count, prev, next);
            }
        }
        places.len() as u64
    }

    /// Puts a run of the new token between two nodes, in a node that is free or in one more.
    fn insert(&mut self, free: Option<u32>, count: u32, prev: u32, next: u32) {
        let node = Node { token: self.size, count, prev, next };
        let at = free.unwrap_or(self.nodes.len() as u32);
        match free {
            Some(at) => self.nodes[at as usize] = node,
            None => self.nodes.push(node),
        }
        self.nodes[prev as usize].next = at;
        self.nodes[next as usize].prev = at;
        self.made.push(at);
    }

    /// The token of node `prev` no longer stands before the left one of the pair that is merged.
    fn lose_left(&mut self, prev: u32) {
        let token = self.nodes[prev as usize].token;
        if token < self.size {
            self.pairs.lefts.add(token);
        }
    }

    /// The token of node `next` no longer stands after the right one of the pair that is merged.
    fn lose_right(&mut self, next: u32) {
        let token = self.nodes[next as usize].token;
        if token < self.size {
            self.pairs.rights.add(token);
        }
    }
}
