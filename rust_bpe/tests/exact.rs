//! Encoding by merges against the definition: every merge, in order, replaces its pair from left to right.
use ecgnb_bpe::{Bpe, Error, Exact, pairs_of};
use proptest::prelude::*;
use std::collections::{BTreeMap, HashSet};

type Pairs = Vec<(u32, u32)>;

/// One merge of a text.
fn replace(ids: &[u32], pair: (u32, u32), id: u32) -> Vec<u32> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < ids.len() {
        let found = ids.get(at + 1).is_some_and(|&next| (ids[at], next) == pair);
        out.push(if found { id } else { ids[at] });
        at += 1 + found as usize;
    }
    out
}

/// Every merge, one after the other; symbol k of the text is the id k.
fn naive(size: usize, pairs: &[(u32, u32)], text: &[u8]) -> Vec<u32> {
    let start = text.iter().map(|&symbol| symbol.into()).collect();
    (size as u32..).zip(pairs).fold(start, |ids: Vec<u32>, (id, &pair)| replace(&ids, pair, id))
}

/// The most frequent pair of a text becomes a token, again and again.
fn trained(size: usize, text: &[u8], merges: usize) -> Pairs {
    let mut ids: Vec<u32> = text.iter().map(|&symbol| symbol.into()).collect();
    let mut pairs = Vec::new();
    while pairs.len() < merges {
        let mut counts = BTreeMap::new();
        ids.windows(2).for_each(|two| *counts.entry((two[0], two[1])).or_insert(0) += 1);
        let Some((&pair, _)) = counts.iter().max_by_key(|&(&pair, &count)| (count, std::cmp::Reverse(pair))) else {
            break;
        };
        ids = replace(&ids, pair, (size + pairs.len()) as u32);
        pairs.push(pair);
    }
    pairs
}

/// Pairs in any order; those that are out of place or make a token twice are left out.
fn distinct(size: usize, wanted: &[(usize, usize)]) -> Pairs {
    let mut tokens: Vec<Vec<u8>> = (0..size).map(|symbol| vec![symbol as u8]).collect();
    let mut seen: HashSet<Vec<u8>> = tokens.iter().cloned().collect();
    let mut pairs = Vec::new();
    for (left, right) in wanted {
        let (left, right) = (left % tokens.len(), right % tokens.len());
        let token = [tokens[left].as_slice(), &tokens[right]].concat();
        if token.len() < 300 && seen.insert(token.clone()) {
            tokens.push(token);
            pairs.push((left as u32, right as u32));
        }
    }
    pairs
}

/// Runs of symbols, as in a quantised ECG.
fn runs(size: usize, longest: usize, most: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec((0..size, 1..=longest), 0..=most)
        .prop_map(|runs| runs.into_iter().flat_map(|(symbol, n)| std::iter::repeat_n(symbol as u8, n)).collect())
}

/// Noise, a flat line, two symbols in turn, short and long runs.
fn text(size: usize) -> impl Strategy<Value = Vec<u8>> {
    let turns = (0..size, 0..size, 0..200usize)
        .prop_map(|(a, b, n)| (0..n).map(|k| if k % 2 == 0 { a } else { b } as u8).collect());
    prop_oneof![
        runs(size, 1, 300),
        runs(size, 600, 1),
        turns,
        runs(size.min(2), 9, 60),
        runs(size.min(4), 20, 60),
        runs(size, 300, 12)
    ]
}

/// Symbols of an alphabet, pairs and a text.
fn case() -> impl Strategy<Value = (usize, Pairs, Vec<u8>)> {
    let size = prop_oneof![Just(1usize), Just(2), Just(3), Just(26), Just(255), Just(256), 1..=256usize];
    size.prop_flat_map(|size| {
        let few = size.min(3);
        let any_pairs = prop::collection::vec((any::<usize>(), any::<usize>()), 0..60)
            .prop_map(move |pairs| distinct(size, &pairs));
        let few_symbols = prop::collection::vec((any::<usize>(), any::<usize>()), 0..60).prop_map(move |pairs| {
            let wide = |id: u32| if (id as usize) < few { id } else { id - few as u32 + size as u32 };
            distinct(few, &pairs).into_iter().map(|(left, right)| (wide(left), wide(right))).collect()
        });
        let trained = (text(size), 0..80usize).prop_map(move |(text, merges)| trained(size, &text, merges));
        (Just(size), prop_oneof![any_pairs, few_symbols, trained], text(size))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    #[test]
    fn encode_is_every_merge_in_order((size, pairs, text) in case()) {
        let alphabet: Vec<u8> = (0..size).map(|symbol| symbol as u8).collect();
        let exact = Exact::new(&alphabet, &pairs).unwrap();
        let ids = naive(size, &pairs, &text);
        prop_assert_eq!(&exact.encode::<u32>(&text).unwrap(), &ids);
        // The memory of an encoding is used again.
        prop_assert_eq!(&exact.encode::<i64>(&text).unwrap(), &ids.iter().map(|&id| id.into()).collect::<Vec<i64>>());
    }

    #[test]
    fn pairs_are_kept_and_found_again((size, pairs, text) in case()) {
        // Symbols are bytes in another order than their ids.
        let alphabet: Vec<u8> = (0..size).map(|symbol| 255 - symbol as u8).collect();
        let text: Vec<u8> = text.iter().map(|&symbol| 255 - symbol).collect();
        let Ok(bpe) = Bpe::from_pairs(&alphabet, &pairs) else { return Ok(()) }; // a token twice
        prop_assert_eq!(bpe.pairs().unwrap(), &pairs);
        let ids = bpe.encode::<u32>(&text).unwrap();
        prop_assert_eq!(bpe.decode(&ids).unwrap(), text.clone());
        let merges: Vec<_> = bpe.merges().collect();
        let again = Bpe::new(&alphabet, &merges).unwrap();
        prop_assert!(again == bpe);
        if let Ok(found) = again.pairs() {
            // Every token is what the merges make of its bytes, so any two ways to it are the same.
            for (id, &(left, right)) in (size as u32..).zip(found) {
                prop_assert_eq!([bpe.token(left).unwrap(), bpe.token(right).unwrap()].concat(), bpe.token(id).unwrap());
                let whole = again.encode::<u32>(again.token(id).unwrap()).unwrap();
                prop_assert!(whole == [id] || found != pairs);
            }
        }
    }

    #[test]
    fn any_pairs_give_an_answer_or_an_error(
        alphabet in prop::collection::vec(0..5u8, 0..4),
        pairs in prop::collection::vec((0..7u32, 0..7u32), 0..6),
        text in prop::collection::vec(0..5u8, 0..40),
    ) {
        if let Ok(bpe) = Bpe::from_pairs(&alphabet, &pairs) {
            let _ = bpe.encode::<u32>(&text);
        }
    }
}

#[test]
fn training_gives_pairs_that_are_found_again() {
    let mut seed = 1u32;
    let text: Vec<u8> = std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        std::iter::repeat_n((seed >> 24) as u8 % 5, 1 + (seed >> 16) as usize % 9)
    })
    .take(4_000)
    .flatten()
    .collect();
    let pairs = trained(5, &text, 150);
    let alphabet = [0, 1, 2, 3, 4];
    let bpe = Bpe::from_pairs(&alphabet, &pairs).unwrap();
    let tokens: Vec<_> = bpe.merges().map(|(token, _)| token).collect();
    assert_eq!(pairs_of(&alphabet, &tokens).unwrap(), pairs);
    // Many stretches, and places that no token can cover.
    assert_eq!(bpe.encode::<u32>(&text).unwrap(), naive(5, &pairs, &text));
    let short = Exact::new(&alphabet, &pairs[..20]).unwrap();
    assert_eq!(short.encode::<u32>(&text).unwrap(), naive(5, &pairs[..20], &text));
}

#[test]
fn more_tokens_of_one_symbol_than_the_tables_hold() {
    let alphabet: Vec<u8> = (0..=255).collect();
    let mut pairs: Pairs = (0..255).map(|symbol| (symbol, symbol + 1)).collect();
    pairs.push((0, 0));
    pairs.extend((511..2_000).map(|id| (id, 0)));
    let exact = Exact::new(&alphabet, &pairs).unwrap();
    for text in [vec![0; 5_000], [vec![0; 1_201], vec![1], vec![0; 3], vec![2; 9], vec![0; 2]].concat()] {
        assert_eq!(exact.encode::<u32>(&text).unwrap(), naive(256, &pairs, &text));
    }
}

#[test]
fn pairs_that_crowd_their_table() {
    // 600 left ids with a few right ids each, far apart.
    let alphabet: Vec<u8> = (0..40).collect();
    let mut pairs: Pairs = (0..40).flat_map(|left| (0..40).map(move |right| (left, right))).collect();
    pairs.extend((0..600).flat_map(|left| [3, 700, 1_639].map(move |right| (40 + left, right - left % 3))));
    let exact = Exact::new(&alphabet, &pairs).unwrap();
    let text: Vec<u8> = (0..20_000u32).map(|k| (k.wrapping_mul(2_654_435_761) >> 20) as u8 % 40).collect();
    assert_eq!(exact.encode::<u32>(&text).unwrap(), naive(40, &pairs, &text));
}

#[test]
fn a_wrong_table_is_refused() {
    let message = |alphabet: &[u8], pairs: &[(u32, u32)]| Bpe::from_pairs(alphabet, pairs).unwrap_err().to_string();
    assert_eq!(message(b"", &[]), "the alphabet is empty: wanted 1 to 256 different symbols");
    assert_eq!(message(b"aa", &[]), "the alphabet repeats symbol 97 ('a') at position 1: wanted each symbol once");
    assert_eq!(message(b"ab", &[(0, 1), (3, 0)]), "merge 1 (id 3) joins id 3: wanted ids made before it, 0 to 2");
    assert_eq!(
        message(b"ab", &[(0, u32::MAX)]),
        "merge 0 (id 2) joins id 4294967295: wanted ids made before it, 0 to 1"
    );
    assert_eq!(
        message(b"ab", &[(0, 1), (1, 1), (0, 1)]),
        "merges 0 and 2 both join ids 0 and 1: wanted each pair once"
    );
    assert_eq!(
        message(b"a", &[(0, 0), (1, 0), (0, 1)]),
        "ids 2 and 3 are the same token 'aaa': wanted each token once"
    );
    let doubles: Pairs = (0..100).map(|id| (id, id)).collect();
    assert!(message(b"a", &doubles).contains("bytes of tokens: wanted at most"));
    let many: Pairs = (0..1 << 21).map(|id| (id, 0)).collect();
    let error = Exact::new(b"a", &many).unwrap_err();
    assert!(matches!(error, Error::TooManyTokens { count: 2_097_153, most: 2_097_149 }), "{error}");
}

#[test]
fn tokens_that_merges_cannot_make_are_named() {
    let bpe = Bpe::new(b"ab", &[("ab", 2), ("aabb", 3)]).unwrap();
    let wanted = "merge 1 (id 3), 'aabb': the merges before it leave 3 tokens of it, wanted 2";
    assert_eq!(bpe.pairs().unwrap_err().to_string(), wanted);
    assert_eq!(bpe.encode::<u32>(b"ab").unwrap_err().to_string(), wanted);
    assert_eq!(bpe.encode_longest::<u32>(b"aabb").unwrap(), [3]);
}

#[test]
fn a_symbol_outside_the_alphabet_is_named() {
    let bpe = Bpe::from_pairs(b"ab", &[(0, 0)]).unwrap();
    for at in [0, 1, 63, 64, 65, 200] {
        let mut text = vec![b'a'; 300];
        text[at] = b'c';
        let error = bpe.encode::<u32>(&text).unwrap_err();
        assert_eq!(error, Error::UnknownSymbol { at, byte: b'c', alphabet: 2 });
    }
    assert_eq!(bpe.encode::<u32>(b"aab").unwrap(), [2, 1]);
    assert!(bpe.encode::<u32>(b"").unwrap().is_empty());
}
