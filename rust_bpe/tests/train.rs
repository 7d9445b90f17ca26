//! Training against the plainest way to write it, on texts of many shapes.
use ecgnb_bpe::{Error, Merge, Training, train};
use proptest::prelude::*;
use std::cmp::Reverse;
use std::collections::HashMap;

/// Counts all pairs for every merge.
fn naive(alphabet: &[u8], sequences: &[Vec<u8>], how: &Training) -> Vec<Merge> {
    let id = |byte: &u8| alphabet.iter().position(|symbol| symbol == byte).unwrap() as u32;
    let mut texts: Vec<Vec<u32>> = sequences.iter().map(|text| text.iter().map(id).collect()).collect();
    if how.join {
        texts = vec![texts.concat()];
    }
    let mut merges = Vec::new();
    while merges.len() < how.merges {
        let mut counts = HashMap::new();
        for pair in texts.iter().flat_map(|text| text.windows(2)) {
            *counts.entry((pair[0], pair[1])).or_insert(0u64) += 1;
        }
        let most = counts.into_iter().map(|(pair, count)| (count, Reverse(pair))).max();
        let Some((count, Reverse(pair))) = most.filter(|(count, _)| *count >= how.min_frequency) else { break };
        let new = (alphabet.len() + merges.len()) as u32;
        let merged = texts.iter_mut().map(|text| replace(text, pair, new)).sum();
        merges.push(Merge { left: pair.0, right: pair.1, count, merged });
    }
    merges
}

fn replace(text: &mut Vec<u32>, (left, right): (u32, u32), new: u32) -> u64 {
    let (old, mut at) = (std::mem::take(text), 0);
    while at < old.len() {
        let found = old[at..].starts_with(&[left, right]);
        text.push(if found { new } else { old[at] });
        at += if found { 2 } else { 1 };
    }
    (old.len() - text.len()) as u64
}

fn quiet(alphabet: &[u8], sequences: &[Vec<u8>], how: &Training) -> Result<Vec<Merge>, Error> {
    let sequences: Vec<&[u8]> = sequences.iter().map(Vec::as_slice).collect();
    train(alphabet, &sequences, how, &mut |_| true)
}

/// One sequence of symbols below `size`.
fn sequence(size: usize) -> impl Strategy<Value = Vec<u8>> {
    let runs = |size: usize, longest: usize, most: usize| {
        prop::collection::vec((0..size, 1..=longest), 0..=most)
            .prop_map(|runs| runs.into_iter().flat_map(|(s, n)| std::iter::repeat_n(s as u8, n)).collect::<Vec<u8>>())
    };
    let repeated = (runs(size, 3, 6), 1..40usize).prop_map(|(text, times)| text.repeat(times));
    prop_oneof![
        1 => Just(Vec::new()),
        1 => runs(size, 1, 1),
        3 => runs(size, 1, 200),       // noise
        2 => runs(1, 600, 1),          // flat
        3 => runs(size.min(3), 9, 60), // an ECG's runs
        1 => runs(size, 400, 12),
        3 => repeated,                 // alternating and other patterns
    ]
}

/// An alphabet in some order and sequences of it.
fn case() -> impl Strategy<Value = (Vec<u8>, Vec<Vec<u8>>)> {
    prop_oneof![Just(1usize), Just(2), Just(3), Just(26), Just(256), 1..=256usize].prop_flat_map(|size| {
        let alphabet = Just((0..=255u8).collect::<Vec<_>>()).prop_shuffle().prop_map(move |all| all[..size].to_vec());
        let sequences = prop::collection::vec(sequence(size), 0..8);
        (alphabet, sequences).prop_map(|(alphabet, mut sequences)| {
            sequences.iter_mut().flatten().for_each(|symbol| *symbol = alphabet[*symbol as usize]);
            (alphabet, sequences)
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn merges_are_the_naive_merges(
        (alphabet, sequences) in case(),
        merges in prop_oneof![0..20usize, 0..200usize],
        min_frequency in prop_oneof![Just(1u64), Just(2), 1..30u64],
        join: bool,
        threads in 0..5usize,
    ) {
        let how = Training { merges, min_frequency, join, threads };
        prop_assert_eq!(quiet(&alphabet, &sequences, &how).unwrap(), naive(&alphabet, &sequences, &how));
    }
}

/// A repeatable text that looks like an ECG's symbols: a slow random walk.
fn walk(length: usize, seed: u64) -> Vec<u8> {
    let (mut state, mut level) = (seed, 13i32);
    let step = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let up = match state >> 60 {
            0 => -1,
            1 => 1,
            _ => 0,
        };
        level = (level + up).clamp(0, 25);
        b'a' + level as u8
    };
    (0..length).map(step).collect()
}

#[test]
fn a_longer_text_has_the_naive_merges_too() {
    let alphabet: Vec<u8> = (b'a'..=b'z').collect();
    let sequences: Vec<_> = (0..20).map(|seed| walk(2_000, seed)).collect();
    for join in [false, true] {
        let how = Training { merges: 400, min_frequency: 2, join, threads: 2 };
        let merges = quiet(&alphabet, &sequences, &how).unwrap();
        assert_eq!(merges.len(), 400);
        assert_eq!(merges, naive(&alphabet, &sequences, &how));
    }
}

#[test]
fn threads_change_nothing() {
    let alphabet: Vec<u8> = (b'a'..=b'z').collect();
    let sequences: Vec<_> = (0..300).map(|seed| walk(500, seed)).collect();
    let how = |threads| Training { merges: 600, min_frequency: 2, join: false, threads };
    let one = quiet(&alphabet, &sequences, &how(1)).unwrap();
    for threads in [0, 2, 4] {
        assert_eq!(quiet(&alphabet, &sequences, &how(threads)).unwrap(), one);
    }
}

/// What a published tokenizer's own training gives: 'aaabdaaabac' becomes X Y d X Y a c.
#[test]
fn the_textbook_example() {
    let how = Training { merges: 2, min_frequency: 1, join: true, threads: 1 };
    let merges = quiet(b"abcd", &[b"aaabdaaabac".to_vec()], &how).unwrap();
    assert_eq!(
        merges,
        [Merge { left: 0, right: 0, count: 4, merged: 2 }, Merge { left: 0, right: 1, count: 2, merged: 2 }]
    );
}

#[test]
fn counts_overlap_and_replacement_does_not() {
    let how = Training { merges: 9, min_frequency: 1, join: false, threads: 1 };
    assert_eq!(
        quiet(b"a", &[b"aaa".to_vec()], &how).unwrap(),
        [Merge { left: 0, right: 0, count: 2, merged: 1 }, Merge { left: 1, right: 0, count: 1, merged: 1 }]
    );
    // A run longer than 16 bits, in one piece and over the border of two sequences.
    let flat = vec![b'a'; 70_001];
    let doubled = quiet(b"a", &[flat.clone(), flat.clone()], &how).unwrap();
    let joined = quiet(b"a", &[flat.clone(), flat], &Training { join: true, ..how }).unwrap();
    assert_eq!(doubled[0], Merge { left: 0, right: 0, count: 140_000, merged: 70_000 });
    assert_eq!(joined[0], Merge { left: 0, right: 0, count: 140_001, merged: 70_001 });
}

#[test]
fn of_equal_pairs_the_smallest_comes_first() {
    let how = Training { merges: 2, min_frequency: 1, join: false, threads: 1 };
    let merges = quiet(b"dcba", &[b"ab".to_vec(), b"cd".to_vec(), b"da".to_vec()], &how).unwrap();
    let pairs: Vec<_> = merges.iter().map(|merge| (merge.left, merge.right)).collect();
    assert_eq!(pairs, [(0, 3), (1, 0)]);
}

#[test]
fn training_stops_when_told() {
    let how = Training { merges: 60_000, min_frequency: 1, join: true, threads: 1 };
    let text = walk(400_000, 7);
    let mut told = Vec::new();
    let stopped = train(&(b'a'..=b'z').collect::<Vec<_>>(), &[&text], &how, &mut |done| {
        told.push(done);
        told.len() < 3
    });
    assert_eq!(stopped, Err(Error::Stopped));
    assert_eq!(told.len(), 3);
    assert!(told.is_sorted() && told[2] > 0);
}

#[test]
fn wrong_input_is_refused() {
    let how = Training { merges: 5, min_frequency: 2, join: false, threads: 1 };
    let refused = |alphabet: &[u8], sequences: &[Vec<u8>], how: &Training| {
        quiet(alphabet, sequences, how).unwrap_err().to_string()
    };
    assert_eq!(refused(b"", &[], &how), "the alphabet is empty: wanted 1 to 256 different symbols");
    assert_eq!(
        refused(b"aa", &[], &how),
        "the alphabet repeats symbol 97 ('a') at position 1: wanted each symbol once"
    );
    let texts = [b"ab".to_vec(), Vec::new(), b"aabbX".to_vec()];
    for join in [false, true] {
        assert_eq!(
            refused(b"ab", &texts, &Training { join, ..how }),
            "item 2: symbol 88 ('X') at position 4 is outside the alphabet of 2 symbols"
        );
    }
    assert_eq!(
        refused(b"ab", &[], &Training { merges: 65_535, ..how }),
        "65535 merges of 2 symbols: wanted at most 65536 ids together"
    );
    assert_eq!(
        refused(b"ab", &[], &Training { merges: usize::MAX, ..how }),
        format!("{} merges of 2 symbols: wanted at most 65536 ids together", usize::MAX)
    );
    assert_eq!(refused(b"ab", &[], &Training { min_frequency: 0, ..how }), "min_frequency is 0: wanted 1 or more");
}

#[test]
fn nothing_gives_nothing() {
    let how = Training { merges: 65_534, min_frequency: 1, join: false, threads: 3 };
    assert_eq!(quiet(b"ab", &[], &how).unwrap(), []);
    assert_eq!(quiet(b"ab", &vec![b"a".to_vec(); 1_000], &how).unwrap(), []);
    assert_eq!(quiet(b"ab", &[Vec::new(), b"ab".to_vec()], &Training { merges: 0, ..how }).unwrap(), []);
}
