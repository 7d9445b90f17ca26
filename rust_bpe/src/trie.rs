//! A trie for longest match that steps over a run of equal symbols at once (ECG symbols come in runs).
//!
//! The nodes that repeat one symbol are a chain with consecutive numbers, so `r` steps in a chain are one addition.
//! Only the edges that change the symbol are looked up, in a double array. Every node stores the longest token that
//! ends at or above it: nothing is remembered on the way down.
use crate::{Error, Result, run};

const NONE: u32 = u32::MAX;
/// How far back from the end of the double array a place is sought for a node with several edges.
const REACH: usize = 1024;

#[derive(Debug, Clone, Copy)]
struct Node {
    base: u32,   // the edge of class c is edges[base + c], if that edge is this node's
    id: u32,     // the longest token on the way to this node ...
    length: u32, // ... and its bytes
}

/// Nodes that repeat one symbol.
#[derive(Debug, Clone, Copy)]
struct Chain {
    first: u32,
    length: u32,
}

#[derive(Debug, Clone, Copy)]
struct Edge {
    from: u32, // the node that owns the edge, or NONE
    to: Chain,
}

const NOWHERE: Chain = Chain { first: NONE, length: 0 };
const FREE: Edge = Edge { from: NONE, to: NOWHERE };

impl Edge {
    fn is_free(&self) -> bool {
        self.from == NONE
    }
}

/// An edge before it has a place.
struct Link {
    from: u32,
    class: u16,
    to: Chain,
}

#[derive(Debug, Clone)]
pub struct Trie {
    first: [Chain; 256], // the chain that starts with a byte, NOWHERE outside the alphabet
    class: [u16; 256],   // the byte's number in the alphabet; alphabet.len(), which has no edges, outside it
    nodes: Vec<Node>,
    edges: Vec<Edge>,
}

/// A node while the trie grows: children are a linked list.
struct Draft {
    byte: u8,
    id: u32,
    child: u32,
    sibling: u32,
}

impl Trie {
    /// From all tokens: token `id` is `bytes[starts[id]..starts[id + 1]]`, of bytes of the alphabet.
    pub fn new(alphabet: &[u8], bytes: &[u8], starts: &[usize]) -> Result<Self> {
        let drafts = draft(bytes, starts)?;
        let mut trie = Self {
            first: [NOWHERE; 256],
            class: [alphabet.len() as u16; 256],
            nodes: Vec::with_capacity(drafts.len() - 1),
            edges: Vec::new(),
        };
        for (class, &byte) in alphabet.iter().enumerate() {
            trie.class[byte as usize] = class as u16;
        }

        // Heads of chains wait here with the node they hang from; chains near the root get the low numbers.
        let mut heads: Vec<(u32, u32)> = children(&drafts, 0).map(|head| (head, NONE)).collect();
        let mut links = Vec::new();
        let mut done = 0;
        while let Some(&(head, from)) = heads.get(done) {
            done += 1;
            let byte = drafts[head as usize].byte;
            let first = trie.nodes.len() as u32;
            let (mut id, mut length) = (NONE, 0);
            if from != NONE {
                Node { id, length, .. } = trie.nodes[from as usize];
            }
            let mut next = Some(head);
            while let Some(at) = next.take() {
                let draft = &drafts[at as usize];
                if draft.id != NONE {
                    id = draft.id;
                    length = (starts[id as usize + 1] - starts[id as usize]) as u32;
                }
                let node = trie.nodes.len() as u32;
                trie.nodes.push(Node { base: 0, id, length });
                for child in children(&drafts, at) {
                    if drafts[child as usize].byte == byte {
                        next = Some(child);
                    } else {
                        heads.push((child, node));
                    }
                }
            }
            let to = Chain { first, length: trie.nodes.len() as u32 - first };
            if from == NONE {
                trie.first[byte as usize] = to;
            } else {
                links.push(Link { from, class: trie.class[byte as usize], to });
            }
        }
        trie.place(&links, alphabet.len())?;
        Ok(trie)
    }

    /// Fits the edges into the double array: nodes with many edges first, single edges into the holes they leave.
    fn place(&mut self, links: &[Link], classes: usize) -> Result<()> {
        let mut groups: Vec<&[Link]> = links.chunk_by(|a, b| a.from == b.from).collect();
        groups.sort_by_key(|group| std::cmp::Reverse(group.len()));
        // Edges start where every class has a base of 0 or more; nodes without edges keep base 0, where nothing is.
        let mut hole = classes + 1;
        self.edges = vec![FREE; hole];
        for group in groups {
            let first = group[0].class as usize;
            let from = if group.len() == 1 { hole } else { hole.max(self.edges.len().saturating_sub(REACH)) };
            let fits = |at: &usize| {
                let free = |link: &Link| self.edges.get(at - first + link.class as usize).is_none_or(Edge::is_free);
                group.iter().all(free)
            };
            // Past the end everything is free, so a place is found; `from` is more than any class.
            let base = (from..).find(fits).unwrap_or(from) - first;
            for link in group {
                let at = base + link.class as usize;
                if at >= self.edges.len() {
                    self.edges.resize(at + 1, FREE);
                }
                self.edges[at] = Edge { from: link.from, to: link.to };
            }
            let Ok(base) = u32::try_from(base) else {
                return Err(Error::TooLarge { what: "places for edges of its trie", count: base, most: crate::MOST });
            };
            self.nodes[group[0].from as usize].base = base;
            while self.edges.get(hole).is_some_and(|edge| !edge.is_free()) {
                hole += 1;
            }
        }
        // A lookup may ask for any class, and for the one outside the alphabet, past the last edge.
        self.edges.resize(self.edges.len() + classes + 1, FREE);
        Ok(())
    }

    /// The longest token that `text[at..]` starts with and its length; None where the symbol is outside the alphabet.
    #[inline]
    pub fn longest(&self, text: &[u8], mut at: usize) -> Option<(u32, usize)> {
        let mut chain = self.first[text[at] as usize];
        if chain.first == NONE {
            return None;
        }
        loop {
            let steps = run(&text[at..text.len().min(at + chain.length as usize)]);
            at += steps;
            let node = chain.first + steps as u32 - 1;
            let Node { base, id, length } = self.nodes[node as usize];
            // Where the chain ended before the run did there is no edge either: it would be part of the chain.
            let Some(&byte) = text.get(at) else {
                return Some((id, length as usize));
            };
            let edge = self.edges[base as usize + self.class[byte as usize] as usize];
            if edge.from != node {
                return Some((id, length as usize));
            }
            chain = edge.to;
        }
    }
}

fn children(drafts: &[Draft], node: u32) -> impl Iterator<Item = u32> {
    let known = |node: u32| (node != NONE).then_some(node);
    std::iter::successors(known(drafts[node as usize].child), move |&child| known(drafts[child as usize].sibling))
}

/// All tokens as a tree of single symbols; node 0 is the root.
fn draft(bytes: &[u8], starts: &[usize]) -> Result<Vec<Draft>> {
    let token = |id: u32| &bytes[starts[id as usize]..starts[id as usize + 1]];
    let mut order: Vec<u32> = (0..starts.len() as u32 - 1).collect();
    order.sort_unstable_by(|&a, &b| token(a).cmp(token(b)));
    let mut drafts = vec![Draft { byte: 0, id: NONE, child: NONE, sibling: NONE }];
    let mut path = vec![0]; // the nodes of the previous token, root first
    let mut before: &[u8] = &[];
    for id in order {
        let now = token(id);
        let shared = now.iter().zip(before).take_while(|(a, b)| a == b).count();
        path.truncate(shared + 1);
        for &byte in &now[shared..] {
            let node = drafts.len() as u32;
            let parent = &mut drafts[path[path.len() - 1] as usize];
            let sibling = std::mem::replace(&mut parent.child, node);
            drafts.push(Draft { byte, id: NONE, child: NONE, sibling });
            path.push(node);
        }
        let end = &mut drafts[path[now.len()] as usize];
        if end.id != NONE {
            let (first, id) = (end.id.min(id), end.id.max(id));
            return Err(Error::RepeatedToken { first, id, token: now.to_vec() });
        }
        end.id = id;
        before = now;
    }
    Ok(drafts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_edge_is_found_and_no_other() {
        // All pairs of 40 symbols: every root chain has 39 edges, so places are crowded.
        let alphabet: Vec<u8> = (100..140).collect();
        let mut bytes = alphabet.clone();
        let mut starts: Vec<usize> = (0..=40).collect();
        for &a in &alphabet {
            for &b in alphabet.iter().filter(|&&b| (a ^ b) % 3 != 0) {
                bytes.extend([a, b]);
                starts.push(bytes.len());
            }
        }
        let trie = Trie::new(&alphabet, &bytes, &starts).unwrap();
        for a in 98..142 {
            for b in 98..142 {
                let pair = bytes[40..].chunks(2).position(|pair| pair == [a, b]).map(|at| (40 + at as u32, 2));
                let single = alphabet.iter().position(|&s| s == a).map(|at| (at as u32, 1));
                assert_eq!(trie.longest(&[a, b], 0), pair.or(single), "{a} {b}");
            }
        }
        assert!(trie.edges.len() < 2 * starts.len(), "{} places", trie.edges.len());
    }
}
