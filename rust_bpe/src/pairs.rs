//! The pairs of neighbouring tokens: how often each occurs, where, and which is the most frequent.
use crate::train::Node;
use std::cmp::Reverse;
use std::collections::binary_heap::PeekMut;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::mem::{replace, take};
use std::ops::Range;

/// The spot of a pair that is too rare.
const NOWHERE: usize = usize::MAX;

/// The pairs that are frequent enough, with their places: the nodes of their left tokens.
pub(crate) struct Pairs {
    pub(crate) spots: Vec<u32>, // places of all pairs, those of each together
    pub(crate) lefts: Tally,    // tokens before the new one, lost or found
    pub(crate) rights: Tally,   // tokens after it
    queue: Queue,
    meetings: Vec<Meeting>,
}

/// A run of a new token between its neighbours.
struct Meeting {
    at: u32,
    prev: u32,
    left: u32,  // the token of `prev`
    right: u32, // the token after the run
}

impl Pairs {
    /// The pairs of tokens below `size` that occur `least` times or more, in nodes that are in order. Later tokens are
    /// below `most`.
    pub(crate) fn new(nodes: &[Node], size: usize, most: usize, least: u64) -> Self {
        let mut queue = Queue { index: HashMap::default(), heap: BinaryHeap::new(), least };
        let (mut numbers, mut twins) = (vec![0; size * size], vec![0; size]);
        let known = |token: u32| (token as usize) < size;
        let at = |left: u32, right: u32| left as usize * size + right as usize;
        let neighbours = || (0..).zip(nodes.iter().zip(&nodes[1..]));
        for (_, (node, next)) in neighbours() {
            if node.count > 1 {
                numbers[at(node.token, node.token)] += 1;
                twins[node.token as usize] += u64::from(node.count) - 1;
            }
            if known(node.token) && known(next.token) {
                numbers[at(node.token, next.token)] += 1;
            }
        }

        // From here the number of a pair is the spot of its next place.
        let mut end = 0;
        for left in 0..size as u32 {
            for right in 0..size as u32 {
                let number = &mut numbers[at(left, right)];
                let count = if left == right { twins[left as usize] } else { *number as u64 };
                *number = queue.add(left, right, count, *number, &mut end);
            }
        }
        let mut spots = vec![0; end];
        for (place, (node, next)) in neighbours() {
            if node.count > 1 {
                write(&mut spots, &mut numbers[at(node.token, node.token)], place);
            }
            if known(node.token) && known(next.token) {
                write(&mut spots, &mut numbers[at(node.token, next.token)], place);
            }
        }
        Self { spots, lefts: Tally::new(most), rights: Tally::new(most), queue, meetings: Vec::new() }
    }

    /// Takes out the most frequent pair, of equals the smallest: left, right, how often it occurs and its spots. By now
    /// the pair may have left some of these places.
    pub(crate) fn pop(&mut self) -> Option<(u32, u32, u64, Range<usize>)> {
        self.queue.pop()
    }

    /// Counts down the pairs of `left` with the tokens before it, and of `right` with those after it, as tallied.
    pub(crate) fn lose(&mut self, left: u32, right: u32) {
        self.lefts.drain().for_each(|(other, lost)| self.queue.lose(other, left, lost));
        self.rights.drain().for_each(|(other, lost)| self.queue.lose(right, other, lost));
    }

    /// Adds the pairs of a new token with itself and with older ones. All its runs are among the nodes `places`.
    pub(crate) fn find(&mut self, token: u32, places: &[u32], nodes: &[Node]) {
        let Self { spots, lefts, rights, queue, meetings } = self;
        let (mut twins, mut end) = (0, spots.len());
        meetings.clear();
        for &at in places {
            let node = nodes[at as usize];
            if node.token != token {
                continue;
            }
            let (left, right) = (nodes[node.prev as usize].token, nodes[node.next as usize].token);
            if left < token {
                lefts.add(left);
            }
            if right < token {
                rights.add(right);
            }
            meetings.push(Meeting { at, prev: node.prev, left, right });
            if node.count > 1 {
                twins += u64::from(node.count) - 1;
                spots.push(at);
            }
        }
        queue.add(token, token, twins, spots.len() - end, &mut end);

        // From here the number of a token is the spot of its next place.
        for &other in &lefts.tokens {
            let number = &mut lefts.numbers[other as usize];
            *number = queue.add(other, token, *number as u64, *number, &mut end);
        }
        for &other in &rights.tokens {
            let number = &mut rights.numbers[other as usize];
            *number = queue.add(token, other, *number as u64, *number, &mut end);
        }
        spots.resize(end, 0);
        for meeting in &*meetings {
            if meeting.left < token {
                write(spots, &mut lefts.numbers[meeting.left as usize], meeting.prev);
            }
            if meeting.right < token {
                write(spots, &mut rights.numbers[meeting.right as usize], meeting.at);
            }
        }
        lefts.drain().for_each(drop);
        rights.drain().for_each(drop);
    }
}

/// Writes a place to its spot, if it has one.
fn write(spots: &mut [u32], spot: &mut usize, place: u32) {
    if let Some(value) = spots.get_mut(*spot) {
        *value = place;
        *spot += 1;
    }
}

/// Numbers by token, and which tokens have one.
pub(crate) struct Tally {
    numbers: Vec<usize>,
    tokens: Vec<u32>,
}

impl Tally {
    fn new(size: usize) -> Self {
        Self { numbers: vec![0; size], tokens: Vec::new() }
    }

    pub(crate) fn add(&mut self, token: u32) {
        let number = &mut self.numbers[token as usize];
        if *number == 0 {
            self.tokens.push(token);
        }
        *number += 1;
    }

    /// Each token with its number, which becomes 0.
    fn drain(&mut self) -> impl Iterator<Item = (u32, usize)> {
        let Self { numbers, tokens } = self;
        tokens.drain(..).map(|token| (token, take(&mut numbers[token as usize])))
    }
}

/// What is known of a pair.
struct Pair {
    count: u64,
    size: u32, // it began with spots[start..start + size]
    start: usize,
}

/// Pairs by frequency.
struct Queue {
    index: HashMap<u32, Pair, BuildHasherDefault<Mix>>,
    heap: BinaryHeap<(u64, Reverse<u32>)>, // every pair of the index with a count that is not too low
    least: u64,
}

impl Queue {
    /// Adds a pair and moves the end of all spots behind its `size` spots. Returns the first of them, or NOWHERE for
    /// a pair that is too rare: it will not become more frequent.
    fn add(&mut self, left: u32, right: u32, count: u64, size: usize, end: &mut usize) -> usize {
        if count < self.least {
            return NOWHERE;
        }
        self.index.insert(key(left, right), Pair { count, size: size as u32, start: *end });
        self.heap.push((count, Reverse(key(left, right))));
        replace(end, *end + size)
    }

    fn lose(&mut self, left: u32, right: u32, lost: usize) {
        if let Some(pair) = self.index.get_mut(&key(left, right)) {
            pair.count -= lost as u64;
        }
    }

    fn pop(&mut self) -> Option<(u32, u32, u64, Range<usize>)> {
        loop {
            let mut top = self.heap.peek_mut()?;
            let (count, Reverse(key)) = *top;
            let pair = self.index.get(&key)?;
            if pair.count == count {
                let spots = pair.start..pair.start + pair.size as usize;
                PeekMut::pop(top);
                self.index.remove(&key);
                return Some((key >> 16, key & 0xFFFF, count, spots));
            }
            if pair.count >= self.least {
                top.0 = pair.count;
            } else {
                PeekMut::pop(top);
                self.index.remove(&key);
            }
        }
    }
}

/// Both ids in one number, in their order.
fn key(left: u32, right: u32) -> u32 {
    left << 16 | right
}

/// A quick hash of keys, which nobody chooses to collide.
#[derive(Default)]
pub(crate) struct Mix(u64);

impl Hasher for Mix {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(byte.into()));
    }

    fn write_u32(&mut self, key: u32) {
        self.write_u64(key.into());
    }

    fn write_u64(&mut self, key: u64) {
        let mixed = (self.0 ^ key).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 = mixed ^ mixed >> 32;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
