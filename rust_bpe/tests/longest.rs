//! Longest match against the plainest way to write it, on tables and texts of many shapes.
use ecgnb_bpe::{Bpe, Error, parallel};
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};

type Merges = Vec<(Vec<u8>, u32)>;

/// From the longest possible token down, the first that is in the table.
fn naive(alphabet: &[u8], merges: &[(Vec<u8>, u32)], text: &[u8]) -> Vec<u32> {
    let mut table: HashMap<&[u8], u32> = merges.iter().map(|(token, id)| (token.as_slice(), *id)).collect();
    table.extend(alphabet.chunks(1).zip(0..));
    let most = table.keys().map(|token| token.len()).max().unwrap();
    let mut ids = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let length = (1..=most.min(text.len() - at)).rev().find(|n| table.contains_key(&text[at..at + n])).unwrap();
        ids.push(table[&text[at..at + length]]);
        at += length;
    }
    ids
}

/// Distinct tokens of two symbols or more, with ids that follow the alphabet's.
fn numbered(alphabet: &[u8], tokens: Vec<Vec<u8>>) -> Merges {
    let mut seen = HashSet::new();
    tokens
        .into_iter()
        .filter(|token| token.len() > 1 && seen.insert(token.clone()))
        .zip(alphabet.len() as u32..)
        .collect()
}

/// Runs of symbols, as in a quantised ECG: (symbol, how often).
fn runs(size: usize, longest: usize, most: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec((0..size, 1..=longest), 0..=most)
        .prop_map(|runs| runs.into_iter().flat_map(|(symbol, n)| std::iter::repeat_n(symbol as u8, n)).collect())
}

/// An alphabet in some order, merges in some order (byte-pair-like or arbitrary) and a text.
fn case() -> impl Strategy<Value = (Vec<u8>, Merges, Vec<u8>)> {
    prop_oneof![Just(1usize), Just(2), Just(3), Just(26), Just(255), Just(256), 1..=256usize].prop_flat_map(|size| {
        let alphabet = Just((0..=255u8).collect::<Vec<_>>()).prop_shuffle().prop_map(move |all| all[..size].to_vec());
        let pairs = prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..60);
        let strings = prop::collection::vec(runs(size.min(4), 12, 4), 0..40);
        let text = prop_oneof![runs(size, 1, 300), runs(size.min(3), 20, 60), runs(size, 40, 30)];
        (alphabet, pairs, strings, text).prop_flat_map(move |(alphabet, pairs, strings, text)| {
            let mut tokens: Vec<Vec<u8>> = alphabet.iter().map(|&byte| vec![byte]).collect();
            for (left, right) in pairs {
                let token = [left.get(&tokens).as_slice(), right.get(&tokens).as_slice()].concat();
                if token.len() < 200 {
                    tokens.push(token);
                }
            }
            let letters = |text: Vec<u8>| text.into_iter().map(|s| alphabet[s as usize]).collect::<Vec<u8>>();
            tokens.extend(strings.into_iter().map(letters));
            let merges = numbered(&alphabet, tokens);
            (Just(alphabet.clone()), Just(merges).prop_shuffle(), Just(letters(text)))
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(600) })]

    #[test]
    fn longest_is_the_naive_longest((alphabet, merges, text) in case()) {
        let bpe = Bpe::new(&alphabet, &merges).unwrap();
        let ids = bpe.encode_longest::<u32>(&text).unwrap();
        prop_assert_eq!(&ids, &naive(&alphabet, &merges, &text));
        prop_assert_eq!(bpe.decode(&ids).unwrap(), text.clone());
        let wide = bpe.encode_longest::<i64>(&text).unwrap();
        prop_assert_eq!(bpe.decode(&wide).unwrap(), text.clone());

        let spans = bpe.spans(&ids).unwrap();
        prop_assert_eq!(spans.len(), ids.len());
        for (&id, &[start, end]) in ids.iter().zip(&spans) {
            prop_assert_eq!(&text[start..end], bpe.token(id).unwrap());
        }
    }

    #[test]
    fn a_token_encodes_to_itself((alphabet, merges, _) in case()) {
        let bpe = Bpe::new(&alphabet, &merges).unwrap();
        for id in 0..bpe.size() as u32 {
            prop_assert_eq!(bpe.encode_longest::<u32>(bpe.token(id).unwrap()).unwrap(), vec![id]);
        }
        let again: Vec<_> = bpe.merges().collect();
        prop_assert!(Bpe::new(bpe.alphabet(), &again).unwrap() == bpe);
    }

    #[test]
    fn any_input_gives_an_answer_or_an_error(
        alphabet in prop::collection::vec(0..6u8, 0..4),
        merges in prop::collection::vec((prop::collection::vec(0..6u8, 0..4), 0..9u32), 0..5),
        text in prop::collection::vec(any::<u8>(), 0..9),
        ids in prop::collection::vec(any::<i64>(), 0..4),
    ) {
        if let Ok(bpe) = Bpe::new(&alphabet, &merges) {
            let _ = bpe.encode_longest::<u32>(&text);
            let _ = bpe.decode(&ids);
        }
    }

    #[test]
    fn threads_change_nothing(texts in prop::collection::vec(runs(3, 9, 20), 0..20), threads in 0..6usize) {
        let merges = numbered(&[0, 1, 2], vec![vec![0, 0], vec![0, 0, 1], vec![1, 1, 1, 1], vec![2, 0]]);
        let bpe = Bpe::new(&[0, 1, 2], &merges).unwrap();
        let one: Vec<_> = texts.iter().map(|text| bpe.encode_longest::<u32>(text).unwrap()).collect();
        prop_assert_eq!(&parallel(&texts, threads, |text| bpe.encode_longest::<u32>(text)).unwrap(), &one);
        prop_assert_eq!(parallel(&one, threads, |ids| bpe.decode(ids)).unwrap(), texts);
    }
}

fn message(alphabet: &[u8], merges: &[(&[u8], u32)]) -> String {
    Bpe::new(alphabet, merges).unwrap_err().to_string()
}

#[test]
fn a_wrong_table_is_refused() {
    assert_eq!(message(b"", &[]), "the alphabet is empty: wanted 1 to 256 different symbols");
    assert_eq!(message(b"aba", &[]), "the alphabet repeats symbol 97 ('a') at position 2: wanted each symbol once");
    assert_eq!(message(b"ab", &[(b"", 2)]), "merge 0 (id 2) is an empty token: wanted at least one symbol");
    assert_eq!(
        message(b"ab", &[(b"ab\n", 2)]),
        "merge 0 has symbol 10 at position 2: wanted symbols of the alphabet only"
    );
    assert_eq!(message(b"ab", &[(b"ab", 1)]), "merge 0 has id 1: ids 0 to 1 are the alphabet's, wanted 2 or more");
    assert_eq!(message(b"ab", &[(b"ab", 2), (b"ba", 2)]), "merges 0 and 1 both have id 2: wanted each id once");
    assert_eq!(
        message(b"ab", &[(b"ab", 2), (b"ba", 4)]),
        "no merge has id 3: wanted the 2 merges to have ids 2 to 3, no gaps"
    );
    assert_eq!(
        message(b"ab", &[(b"ab", 3), (b"ab", 2)]),
        "ids 2 and 3 are the same token 'ab': wanted each token once"
    );
    assert_eq!(message(b"ab", &[(b"a", 2)]), "ids 0 and 2 are the same token 'a': wanted each token once");
    assert_eq!(message(b"ab", &[(b"ab", u32::MAX)]), message(b"ab", &[(b"ab", 3)]));
}

#[test]
fn a_wrong_input_is_refused() {
    let bpe = Bpe::new(b"ab", &[(b"ab", 2)]).unwrap();
    let error = bpe.encode_longest::<u32>(b"abac").unwrap_err();
    assert_eq!(error.to_string(), "symbol 99 ('c') at position 3 is outside the alphabet of 2 symbols");
    assert_eq!(bpe.decode(&[0, 3]).unwrap_err().to_string(), "token id 3 at position 1: wanted 0 to 2");
    assert_eq!(bpe.spans(&[-1i64]).unwrap_err().to_string(), "token id -1 at position 0: wanted 0 to 2");
    assert_eq!(bpe.token(7).unwrap_err().to_string(), "token id 7 at position 0: wanted 0 to 2");

    let texts = [&b"ab"[..], b"aXb", b"Y"];
    for threads in [1, 3] {
        let error = parallel(&texts, threads, |text| bpe.encode_longest::<u32>(text)).unwrap_err();
        assert!(matches!(error, Error::Item { item: 1, .. }));
        assert_eq!(error.to_string(), "item 1: symbol 88 ('X') at position 1 is outside the alphabet of 2 symbols");
    }
}

#[test]
fn nothing_gives_nothing() {
    let bpe = Bpe::new::<&[u8]>(b"a", &[]).unwrap();
    assert!(bpe.encode_longest::<u32>(b"").unwrap().is_empty());
    assert_eq!(bpe.decode::<u32>(&[]).unwrap(), b"");
    assert!(parallel(&[] as &[&[u8]], 4, |text| bpe.encode_longest::<u32>(text)).unwrap().is_empty());
}

#[test]
fn long_runs_and_deep_tokens_are_no_special_case() {
    let flat = vec![b'm'; 5_000];
    let mut deep = flat.clone();
    deep.push(b'n');
    let bpe = Bpe::new(b"mn", &[(flat.as_slice(), 2), (deep.as_slice(), 3)]).unwrap();
    assert_eq!(bpe.encode_longest::<u32>(&flat[1..]).unwrap().len(), flat.len() - 1);
    assert_eq!(bpe.encode_longest::<u32>(&deep).unwrap(), [3]);
    assert_eq!(bpe.encode_longest::<u32>(&[flat.as_slice(), &deep].concat()).unwrap(), [2, 3]);
}
