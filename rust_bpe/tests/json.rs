//! Tables as text: round trips, and every kind of wrong file refused with what and where.
use ecgnb_bpe::Bpe;
use proptest::prelude::*;

/// Merges of a table that training could have made, in an alphabet of any size: pairs that never meet are left out.
fn table() -> impl Strategy<Value = Bpe> {
    let alphabet = (1..=256usize, 0..=255u8).prop_map(|(size, turn)| {
        (0..size).map(|byte| (byte as u8).wrapping_mul(7).wrapping_add(turn)).collect::<Vec<_>>()
    });
    let draws = prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..24);
    (alphabet, draws).prop_map(|(alphabet, draws)| {
        let mut pairs = Vec::new();
        for (left, right) in draws {
            let size = alphabet.len() + pairs.len();
            let pair = (left.index(size) as u32, right.index(size) as u32);
            pairs.push(pair);
            if Bpe::from_pairs(&alphabet, &pairs).is_err() {
                pairs.pop();
            }
        }
        Bpe::from_pairs(&alphabet, &pairs).unwrap()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn both_formats_come_back(bpe in table()) {
        let own = Bpe::from_json(&bpe.to_json().unwrap()).unwrap();
        prop_assert!(own == bpe);
        prop_assert_eq!(own.pairs().unwrap(), bpe.pairs().unwrap());
        let hf = Bpe::from_hf(&bpe.to_hf().unwrap()).unwrap();
        prop_assert!(hf == bpe);
        prop_assert_eq!(hf.pairs().unwrap(), bpe.pairs().unwrap());
        // From the tokens alone the same pairs are found.
        let merges: Vec<_> = bpe.merges().collect();
        let found = Bpe::new(bpe.alphabet(), &merges).unwrap();
        prop_assert_eq!(found.pairs().unwrap(), bpe.pairs().unwrap());
    }

    #[test]
    fn a_part_of_a_file_is_an_error(bpe in table(), place in any::<prop::sample::Index>()) {
        let (own, hf) = (bpe.to_json().unwrap(), bpe.to_hf().unwrap());
        let end = own.trim_end().len();
        let cut = &own[..place.index(end)];
        let error = Bpe::from_json(cut).unwrap_err().to_string();
        prop_assert!(error.starts_with("no JSON: EOF while parsing") && error.contains("at line "), "{}", error);
        let mut at = place.index(hf.trim_end().len());
        while !hf.is_char_boundary(at) {
            at -= 1;
        }
        prop_assert!(Bpe::from_hf(&hf[..at]).unwrap_err().to_string().starts_with("no JSON: EOF while parsing"));
    }

    #[test]
    fn a_damaged_file_is_a_table_or_an_error(
        bpe in table(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), "[0-9a-z\\[\\]{}:,\" -]"), 1..4),
    ) {
        for text in [bpe.to_json().unwrap(), bpe.to_hf().unwrap()] {
            let mut symbols: Vec<char> = text.chars().collect();
            for (place, other) in &changes {
                let place = place.index(symbols.len());
                symbols[place] = other.chars().next().unwrap();
            }
            let text: String = symbols.into_iter().collect();
            for read in [Bpe::from_json(&text), Bpe::from_hf(&text)].into_iter().flatten() {
                prop_assert_eq!(read.encode::<u32>(&[read.alphabet()[0]]).unwrap(), [0]);
            }
        }
    }
}

fn own(alphabet: &str, merges: &str) -> String {
    format!(r#"{{"format": "ecgnb-bpe", "version": 1, "alphabet": {alphabet}, "merges": {merges}}}"#)
}

fn hf(vocab: &str, merges: &str) -> String {
    format!(r#"{{"model": {{"type": "BPE", "vocab": {vocab}, "merges": {merges}}}}}"#)
}

#[test]
fn what_others_add_is_left_alone() {
    let text =
        r#"{"contract": {"fs": 250.0}, "merges": [[0, 1]], "alphabet": [97, 98], "version": 1, "format": "ecgnb-bpe"}"#;
    let bpe = Bpe::from_json(text).unwrap();
    assert_eq!(bpe.token(2).unwrap(), b"ab");
    assert_eq!(
        bpe.to_json().unwrap().replace('\n', ""),
        own("[97,98]", "[[0,1]]").replace(": ", ":").replace(", ", ",")
    );
}

#[test]
fn hugging_face_merges_are_pairs_or_texts() {
    let vocab = r#"{"a": 0, " ": 1, "a ": 2, "a a": 3}"#;
    let pairs = Bpe::from_hf(&hf(vocab, r#"[["a", " "], ["a ", "a"]]"#)).unwrap();
    assert_eq!(Bpe::from_hf(&hf(vocab, r#"["a  ", "a  a"]"#)).unwrap(), pairs);
    let more = hf(r#"{"a": 0, "é": 1, "aé": 2}"#, r#"["a é"]"#).replace(
        r#"{"model""#,
        r#"{"added_tokens": [{"id": 3, "content": "<pad>"}], "decoder": {"type": "Fuse"}, "normalizer": null, "model""#,
    );
    assert_eq!(Bpe::from_hf(&more).unwrap().token(2).unwrap(), [b'a', 0xe9]);
}

#[test]
fn a_wrong_table_is_refused() {
    let cases = [
        ("", "no JSON: EOF while parsing a value at line 1, column 0"),
        ("{\"format\":\n nul}", "no JSON: expected ident at line 2, column 5"),
        ("{} {}", "no JSON: trailing characters at line 1, column 4"),
        ("[1]", "the table is [1]: wanted an object {...}"),
        ("{}", "format is missing: wanted \"ecgnb-bpe\""),
        (r#"{"format": "bpe", "version": 1}"#, "format is \"bpe\": wanted \"ecgnb-bpe\""),
        (r#"{"format": "ecgnb-bpe"}"#, "version is missing: wanted 1"),
        (r#"{"format": "ecgnb-bpe", "version": 2}"#, "version is 2: wanted 1, which is the one this program reads"),
        (r#"{"format": "ecgnb-bpe", "version": 1}"#, "alphabet is missing: wanted a list of bytes, 0 to 255"),
        (&own("\"ab\"", "[]"), "alphabet is \"ab\": wanted a list of bytes, 0 to 255"),
        (&own("[]", "[]"), "the alphabet is empty: wanted 1 to 256 different symbols"),
        (&own("[1, 256]", "[]"), "alphabet[1] is 256: wanted a byte, 0 to 255"),
        (&own("[1, 1]", "[]"), "the alphabet repeats symbol 1 at position 1: wanted each symbol once"),
        (&own("[1]", "{}"), "merges is {}: wanted a list of pairs of ids"),
        (&own("[1]", "[[0, 0], [0]]"), "merges[1] is [0]: wanted a pair of two ids, [left, right]"),
        (&own("[1]", "[[0, -1]]"), "merges[0] is [0,-1]: wanted a pair of two ids, [left, right]"),
        (&own("[1]", "[[0, 0.0]]"), "merges[0] is [0,0.0]: wanted a pair of two ids, [left, right]"),
        (&own("[1]", "[[0, 4294967296]]"), "merges[0] is [0,4294967296]: wanted a pair of two ids, [left, right]"),
        (&own("[1, 2]", "[[0, 2]]"), "merge 0 (id 2) joins id 2: wanted ids made before it, 0 to 1"),
        (&own("[1, 2]", "[[0, 1], [0, 1]]"), "merges 0 and 1 both join ids 0 and 1: wanted each pair once"),
        (
            &own("[1, 2, 3]", "[[0, 1], [1, 2], [0, 4]]"),
            "merge 2 joins ids 0 and 4, which never meet: an earlier merge takes a part",
        ),
    ];
    for (text, message) in cases {
        assert_eq!(Bpe::from_json(text).unwrap_err().to_string(), message, "{text}");
    }
    let deep = "[".repeat(10_000);
    assert!(Bpe::from_json(&deep).unwrap_err().to_string().starts_with("no JSON: recursion limit exceeded at line 1"));
}

#[test]
fn tokens_of_any_length_in_a_few_bytes_are_refused() {
    let merges: Vec<_> = (0..200).map(|id| format!("[{id},{id}]")).collect();
    let error = Bpe::from_json(&own("[1]", &format!("[{}]", merges.join(",")))).unwrap_err();
    assert_eq!(error.to_string(), format!("the table has {} bytes of tokens: wanted at most 16777216", usize::MAX));
}

#[test]
fn a_wrong_tokenizer_json_is_refused() {
    let ab = r#"{"a": 0, "b": 1, "ab": 2}"#;
    let good = hf(ab, r#"[["a", "b"]]"#);
    let with = |text: &str| good.replace(r#"{"model""#, &format!(r#"{{{text}, "model""#));
    let within = |text: &str| good.replace(r#""type": "BPE""#, text);
    let cases = [
        ("5", "the file is 5: wanted an object {...}"),
        ("{}", "model is missing: wanted an object"),
        (r#"{"model": []}"#, "model is []: wanted an object {...}"),
        (r#"{"model": {}}"#, "model.type is missing: wanted \"BPE\""),
        (&within(r#""type": "Unigram""#), "model.type is \"Unigram\": wanted \"BPE\""),
        (
            &within(r#""type": "BPE", "dropout": 0.1"#),
            "model.dropout is 0.1: wanted null: the same text always has the same tokens",
        ),
        (
            &within(r#""type": "BPE", "unk_token": "a""#),
            "model.unk_token is \"a\": wanted null: a symbol outside the alphabet is an error",
        ),
        (
            &within(r#""type": "BPE", "end_of_word_suffix": "</w>""#),
            "model.end_of_word_suffix is \"</w>\": wanted null: a token is the text it stands for",
        ),
        (
            &with(r#""normalizer": {"type": "NFC"}"#),
            "normalizer is {\"type\":\"NFC\"}: wanted null: the text goes to the merges as it is",
        ),
        (
            &with(r#""pre_tokenizer": {"type": "ByteLevel"}"#),
            "pre_tokenizer is {\"type\":\"ByteLevel\"}: wanted null: the text goes to the merges as it is",
        ),
        (r#"{"model": {"type": "BPE"}}"#, "model.vocab is missing: wanted an object of tokens and their ids"),
        (&hf("[]", "[]"), "model.vocab is []: wanted an object {...}"),
        (
            &hf("{}", "[]"),
            "model.merges is a list of 0 for a vocabulary of 0: wanted 1 to 256 tokens more than merges: the single characters",
        ),
        (&hf(r#"{"a": "x"}"#, "[]"), "model.vocab[\"a\"] is \"x\": wanted an id, 0 or more"),
        (&hf(r#"{"a": 0, "b": 2}"#, "[]"), "model.vocab is 2 tokens, none with id 1: wanted ids 0 to 1, no gaps"),
        (&hf(r#"{"a": 0, "b": 0}"#, "[]"), "model.vocab[\"b\"] is 0: wanted an id of its own: \"a\" has it"),
        (
            &hf(r#"{"a": 0, "Ġ": 1}"#, "[]"),
            "model.vocab[\"Ġ\"] is a token with character U+0120: wanted U+0000 to U+00FF, one for each byte",
        ),
        (&hf(ab, "5"), "model.merges is 5: wanted a list of pairs [\"a\", \"b\"] or texts \"a b\""),
        (&hf(ab, "[]"), "model.vocab[\"ab\"] is 2: wanted 3 or more: 0 merges leave ids 0 to 2 to single characters"),
        (
            &hf(r#"{"": 0}"#, "[]"),
            "model.vocab[\"\"] is 0: wanted 1 or more: 0 merges leave ids 0 to 0 to single characters",
        ),
        (&hf(ab, "[7]"), "model.merges[0] is 7: wanted a pair [\"a\", \"b\"] or a text \"a b\""),
        (
            &hf(ab, r#"[["a", "b", "c"]]"#),
            "model.merges[0] is [\"a\",\"b\",\"c\"]: wanted a pair [\"a\", \"b\"] or a text \"a b\"",
        ),
        (
            &hf(ab, r#"["ab"]"#),
            "model.merges[0] is \"ab\": wanted two tokens of the vocabulary with a space between them",
        ),
        (
            &hf(ab, r#"["a c"]"#),
            "model.merges[0] is \"a c\": wanted two tokens of the vocabulary with a space between them",
        ),
        (&hf(ab, r#"[["a", "c"]]"#), "model.merges[0] is [\"a\",\"c\"]: wanted two tokens of the vocabulary"),
        (
            &hf(ab, r#"[["a", "ab"]]"#),
            "model.merges[0] is [\"a\",\"ab\"]: wanted tokens with ids below 2, which is the one it makes",
        ),
        (
            &hf(ab, r#"[["b", "a"]]"#),
            "model.merges[0] is [\"b\",\"a\"]: wanted the two parts of token \"ab\", which has id 2",
        ),
        (
            &hf(r#"{" ": 0, "  ": 1, "   ": 2}"#, r#"["   ", "    "]"#),
            "model.merges[1] is \"    \": wanted a pair [\"a\", \"b\"]: a text with spaces can be parted in several ways",
        ),
        (&with(r#""added_tokens": {}"#), "added_tokens is {}: wanted a list of objects with id and content"),
        (
            &with(r#""added_tokens": [5]"#),
            "added_tokens[0] is 5: wanted an object with an id, 0 or more, and a text as content",
        ),
        (
            &with(r#""added_tokens": [{"id": 0, "content": "a"}]"#),
            "added_tokens[0] is {\"content\":\"a\",\"id\":0}: wanted id 3 or more: those below are the vocabulary's",
        ),
        (
            &with(r#""added_tokens": [{"id": 3, "content": "ba"}]"#),
            "added_tokens[0] is {\"content\":\"ba\",\"id\":3}: wanted a content that no text of symbols holds",
        ),
    ];
    for (text, message) in cases {
        assert_eq!(Bpe::from_hf(text).unwrap_err().to_string(), message, "{text}");
    }
    assert!(Bpe::from_hf(&good).is_ok());
}
