//! What benchmarks/bpe.py measures this crate against: byte-pair training and longest-match encoding in the plain way of
//! published ECG tokenizers. Training counts all pairs anew for every merge; encoding builds its trie in every call.
//!
//! `reference train TEXT MERGES PARTS OUT`: TEXT is one text, counted in PARTS parts whose counts are then added: 2 is what
//! the published trainer's parallel fold and reduce comes to on one thread, 1 the plainest way. OUT gets (left, right) of
//! each merge as u32.
//! `reference encode TABLE TEXTS LENGTH OUT`: TABLE holds length (u32) and bytes of each merged token, TEXTS are LENGTH
//! bytes each, OUT gets count (u32) and ids (u32) of each text.
//!
//! Both print one JSON object: wall seconds and, where the system tells, seconds on the processor; of every text, for
//! `encode`. The integers are little-endian.
use std::collections::HashMap;
use std::error::Error;
use std::hash::{BuildHasherDefault, Hasher};
use std::time::Instant;
use std::{env, fs};

type Pair = (u32, u32);
type Merges = Vec<(Vec<u32>, u32)>;
type Encoded = (Vec<f64>, Vec<f64>);
type Counts = HashMap<Pair, u32, BuildHasherDefault<Mix>>;

/// A fast hash of a pair of ids: std's default is made for keys that an enemy chooses.
#[derive(Default)]
struct Mix(u64);

impl Hasher for Mix {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u32(byte.into()));
    }

    fn write_u32(&mut self, id: u32) {
        self.0 = self.0.rotate_left(32) ^ u64::from(id);
    }

    fn finish(&self) -> u64 {
        let mixed = self.0.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        mixed ^ mixed >> 32
    }
}

/// How often each pair of neighbours occurs, by counting `parts` parts, each into a map of its own.
fn count(ids: &[u32], parts: usize) -> Counts {
    let size = ids.len().div_ceil(parts).max(1);
    let part = |start: usize| {
        let mut counts = Counts::default();
        for pair in ids[start..ids.len().min(start + size + 1)].windows(2) {
            *counts.entry((pair[0], pair[1])).or_insert(0) += 1;
        }
        counts
    };
    let add = |mut all: Counts, more: Counts| {
        more.into_iter().for_each(|(pair, n)| *all.entry(pair).or_insert(0) += n);
        all
    };
    (0..ids.len()).step_by(size).map(part).reduce(add).unwrap_or_default()
}

/// The pairs that `merges` rounds merge: the most frequent one of each round, of equals the smallest.
fn train(text: &[u8], merges: usize, parts: usize) -> Vec<Pair> {
    let mut ids: Vec<u32> = text.iter().map(|&byte| byte.into()).collect();
    let mut tokens: Vec<Vec<u32>> = (0..256).map(|byte| vec![byte]).collect();
    let mut pairs = Vec::with_capacity(merges);
    for id in 256..256 + merges as u32 {
        let counts = count(&ids, parts);
        let most = counts.iter().max_by(|(a, n), (b, m)| n.cmp(m).then(b.cmp(a)));
        let Some((&pair, _)) = most else { break };
        replace(&mut ids, pair, id);
        tokens.push([&tokens[pair.0 as usize][..], &tokens[pair.1 as usize]].concat());
        pairs.push(pair);
    }
    pairs
}

/// Writes `id` for every occurrence of `pair`, from left to right and in place.
fn replace(ids: &mut Vec<u32>, pair: Pair, id: u32) {
    let (mut from, mut to) = (0, 0);
    while from < ids.len() {
        let found = from + 1 < ids.len() && (ids[from], ids[from + 1]) == pair;
        ids[to] = if found { id } else { ids[from] };
        from += if found { 2 } else { 1 };
        to += 1;
    }
    ids.truncate(to);
}

#[derive(Default)]
struct Node {
    id: Option<u32>,
    children: HashMap<u32, Node>,
}

impl Node {
    fn add(&mut self, token: &[u32], id: u32) {
        let end = token.iter().fold(self, |node, &symbol| node.children.entry(symbol).or_default());
        end.id = Some(id);
    }
}

/// The ids of `text` by longest match, with a trie of `merges` that is built and dropped in the call.
fn encode(text: &[u8], merges: &[(Vec<u32>, u32)]) -> Vec<u32> {
    let mut root = Node::default();
    (0..256).for_each(|byte| root.add(&[byte], byte));
    merges.iter().for_each(|(token, id)| root.add(token, *id));
    let mut ids = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let (mut node, mut best) = (&root, (u32::from(text[at]), 1));
        for (length, &byte) in (1..).zip(&text[at..]) {
            let Some(child) = node.children.get(&byte.into()) else { break };
            node = child;
            best = node.id.map_or(best, |id| (id, length));
        }
        ids.push(best.0);
        at += best.1;
    }
    ids
}

/// The table's merged tokens with their ids, as a caller from Python hands them over.
fn table(file: &str) -> Result<Merges, Box<dyn Error>> {
    let data = fs::read(file)?;
    let (mut rest, mut merges) = (&data[..], Vec::new());
    while let Some((length, tail)) = rest.split_first_chunk() {
        let (token, tail) = tail.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or("a token is cut")?;
        merges.push((token.iter().map(|&byte| byte.into()).collect(), 256 + merges.len() as u32));
        rest = tail;
    }
    Ok(merges)
}

/// What `work` gives, with its seconds of wall time and on the processor.
fn timed<T>(work: impl FnOnce() -> T) -> (T, [f64; 2]) {
    let (start, before) = (Instant::now(), processor());
    let value = work();
    let wall = start.elapsed().as_secs_f64();
    (value, [wall, processor().zip(before).map_or(wall, |(after, before)| after - before)])
}

/// Seconds that this process, which has one thread, has been on a processor (Linux).
fn processor() -> Option<f64> {
    let text = fs::read_to_string("/proc/self/schedstat").ok()?;
    Some(text.split(' ').next()?.parse::<f64>().ok()? * 1e-9)
}

fn main() -> Result<(), Box<dyn Error>> {
    // `cargo bench` adds a flag of its own.
    let arguments: Vec<String> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["train", text, merges, parts, out] => {
            let (text, merges, parts) = (fs::read(text)?, merges.parse()?, parts.parse::<usize>()?.max(1));
            let (pairs, [wall, cpu]) = timed(|| train(&text, merges, parts));
            fs::write(
                out,
                pairs.iter().flat_map(|pair| [pair.0, pair.1]).flat_map(u32::to_le_bytes).collect::<Vec<_>>(),
            )?;
            println!("{{\"wall\": {wall}, \"cpu\": {cpu}}}");
        }
        ["encode", merges, texts, length, out] => {
            let (merges, texts, length) = (table(merges)?, fs::read(texts)?, length.parse::<usize>()?);
            let (mut all, mut times) = (Vec::new(), Vec::new());
            for text in texts.chunks(length.max(1)) {
                let (ids, seconds) = timed(|| encode(text, &merges));
                all.push(ids.len() as u32);
                all.extend(ids);
                times.push(seconds);
            }
            fs::write(out, all.into_iter().flat_map(u32::to_le_bytes).collect::<Vec<_>>())?;
            let (wall, cpu): Encoded = times.into_iter().map(|[wall, cpu]| (wall, cpu)).unzip();
            println!("{{\"wall\": {wall:?}, \"cpu\": {cpu:?}}}");
        }
        _ => println!("{{}}"), // `cargo bench` without arguments
    }
    Ok(())
}
