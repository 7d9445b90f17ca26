//! A vocabulary as text: its own JSON, and Hugging Face's `tokenizer.json` (model BPE), where the symbol of byte `b` is
//! the character U+00`b` (latin-1) and nothing is done to a text but the merges.
use crate::{Bpe, Error, Result};
use serde_json::{Map, Value};
use std::fmt::Write;

const FORMAT: &str = "ecgnb-bpe";
const VERSION: u64 = 1;

impl Bpe {
    /// `{"format": "ecgnb-bpe", "version": 1, "alphabet": [bytes], "merges": [[left, right], ...]}`.
    pub fn to_json(&self) -> Result<String> {
        let alphabet = list(self.alphabet().iter().map(u8::to_string));
        let merges = list(self.pairs()?.iter().map(|(left, right)| format!("[{left},{right}]")));
        Ok(format!(
            "{{\"format\":\"{FORMAT}\",\"version\":{VERSION},\n\"alphabet\":{alphabet},\n\"merges\":{merges}}}\n"
        ))
    }

    /// What [`Bpe::to_json`] wrote; keys that it does not know are left alone.
    pub fn from_json(text: &str) -> Result<Self> {
        let table = parse(text)?;
        let table = object(&table, "the table")?;
        let format = get(table, "", "format", &quoted(FORMAT))?;
        if format != FORMAT {
            return Err(wrong("format", format, &format!("\"{FORMAT}\"")));
        }
        let version = get(table, "", "version", "1")?;
        if version.as_u64() != Some(VERSION) {
            return Err(wrong("version", version, "1, which is the one this program reads"));
        }
        let bytes = "a list of bytes, 0 to 255";
        let byte = |(at, value): (usize, &Value)| {
            let byte = value.as_u64().and_then(|byte| u8::try_from(byte).ok());
            byte.ok_or_else(|| wrong(&format!("alphabet[{at}]"), value, "a byte, 0 to 255"))
        };
        let alphabet = array(get(table, "", "alphabet", bytes)?, "alphabet", bytes)?;
        let alphabet = alphabet.iter().enumerate().map(byte).collect::<Result<Vec<_>>>()?;
        let pair = |(at, value): (usize, &Value)| {
            let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
            match value.as_array().map(Vec::as_slice) {
                Some([left, right]) => id(left).zip(id(right)),
                _ => None,
            }
            .ok_or_else(|| wrong(&format!("merges[{at}]"), value, "a pair of two ids, [left, right]"))
        };
        let pairs = "a list of pairs of ids";
        let merges = array(get(table, "", "merges", pairs)?, "merges", pairs)?;
        let merges = merges.iter().enumerate().map(pair).collect::<Result<Vec<_>>>()?;
        Self::from_pairs(&alphabet, &merges)
    }

    /// A `tokenizer.json` that the library `tokenizers` loads and that gives the ids of [`Bpe::encode`] for the text
    /// whose characters are the symbols (in Python: `symbols.decode('latin-1')`).
    pub fn to_hf(&self) -> Result<String> {
        let token = |id: u32| self.token(id).map(|token| quoted(&latin(token)));
        let mut vocab = String::new();
        for id in 0..self.size() as u32 {
            let comma = if id == 0 { "" } else { "," };
            let _ = write!(vocab, "{comma}{}:{id}", token(id)?); // writing to a String cannot fail
        }
        let pair = |&(left, right): &(u32, u32)| Ok(format!("[{},{}]", token(left)?, token(right)?));
        let merges = list(self.pairs()?.iter().map(pair).collect::<Result<Vec<_>>>()?);
        Ok(format!(
            "{{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":[],\"normalizer\":null,\n\
             \"pre_tokenizer\":null,\"post_processor\":null,\"decoder\":{{\"type\":\"Fuse\"}},\n\
             \"model\":{{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,\"continuing_subword_prefix\":null,\n\
             \"end_of_word_suffix\":null,\"fuse_unk\":false,\"byte_fallback\":false,\"ignore_merges\":false,\n\
             \"vocab\":{{{vocab}}},\n\"merges\":{merges}}}}}\n"
        ))
    }

    /// A `tokenizer.json` of model BPE that does nothing but merge: merge `i` makes the id that follows the single
    /// characters and the merges before it. Merges are pairs `["a", "b"]` or texts `"a b"`.
    pub fn from_hf(text: &str) -> Result<Self> {
        let file = parse(text)?;
        let file = object(&file, "the file")?;
        for key in ["truncation", "padding", "normalizer", "pre_tokenizer", "post_processor"] {
            plain(file, "", key, Value::is_null, "null: the text goes to the merges as it is")?;
        }
        let model = object(get(file, "", "model", "an object")?, "model")?;
        let kind = get(model, "model.", "type", "\"BPE\"")?;
        if kind != "BPE" {
            return Err(wrong("model.type", kind, "\"BPE\""));
        }
        let none = |value: &Value| value.is_null() || value.as_f64() == Some(0.);
        plain(model, "model.", "dropout", none, "null: the same text always has the same tokens")?;
        plain(model, "model.", "unk_token", Value::is_null, "null: a symbol outside the alphabet is an error")?;
        for key in ["continuing_subword_prefix", "end_of_word_suffix"] {
            let none = |value: &Value| value.is_null() || value == "";
            plain(model, "model.", key, none, "null: a token is the text it stands for")?;
        }

        let vocab = object(get(model, "model.", "vocab", "an object of tokens and their ids")?, "model.vocab")?;
        let tokens = numbered(vocab)?;
        let texts = "a list of pairs [\"a\", \"b\"] or texts \"a b\"";
        let merges = array(get(model, "model.", "merges", texts)?, "model.merges", texts)?;
        let alphabet = alphabet(&tokens, merges.len())?;
        let mut pairs = Vec::with_capacity(merges.len());
        for (at, merge) in merges.iter().enumerate() {
            let place = format!("model.merges[{at}]");
            let (left, right) = parts(merge, &place, vocab)?;
            let id = |part: &str| vocab.get(part).and_then(Value::as_u64);
            let (Some(first), Some(second)) = (id(left), id(right)) else {
                return Err(wrong(&place, merge, "two tokens of the vocabulary"));
            };
            let made = alphabet.len() + at;
            if first.max(second) >= made as u64 {
                let wanted = format!("tokens with ids below {made}, which is the one it makes");
                return Err(wrong(&place, merge, &wanted));
            }
            let parts = tokens[made].strip_prefix(left).is_some_and(|rest| rest == right);
            if !parts {
                let token = quoted(tokens[made]);
                return Err(wrong(&place, merge, &format!("the two parts of token {token}, which has id {made}")));
            }
            pairs.push((first as u32, second as u32));
        }
        added(file, &tokens, &alphabet)?;
        Self::from_pairs(&alphabet, &pairs)
    }
}

fn parse(text: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        let text = error.to_string();
        let what = text.strip_suffix(&format!(" at line {line} column {column}")).unwrap_or(&text).to_string();
        Error::Syntax { line, column, what }
    })
}

/// "merges[3] is 5: wanted a pair of two ids"
fn wrong(place: &str, came: &Value, wanted: &str) -> Error {
    let text = came.to_string();
    let came = match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    };
    Error::Field { place: place.into(), came, wanted: wanted.into() }
}

fn get<'a>(map: &'a Map<String, Value>, place: &str, key: &str, wanted: &str) -> Result<&'a Value> {
    let missing = || Error::Field { place: format!("{place}{key}"), came: "missing".into(), wanted: wanted.into() };
    map.get(key).ok_or_else(missing)
}

fn object<'a>(value: &'a Value, place: &str) -> Result<&'a Map<String, Value>> {
    value.as_object().ok_or_else(|| wrong(place, value, "an object {...}"))
}

fn array<'a>(value: &'a Value, place: &str, wanted: &str) -> Result<&'a [Value]> {
    value.as_array().map(Vec::as_slice).ok_or_else(|| wrong(place, value, wanted))
}

/// A setting that may be missing, but not say more than the merges do.
fn plain(map: &Map<String, Value>, place: &str, key: &str, ok: impl Fn(&Value) -> bool, wanted: &str) -> Result<()> {
    match map.get(key) {
        Some(value) if !ok(value) => Err(wrong(&format!("{place}{key}"), value, wanted)),
        _ => Ok(()),
    }
}

/// The tokens in the order of their ids, which have no gaps.
fn numbered(vocab: &Map<String, Value>) -> Result<Vec<&str>> {
    let mut tokens: Vec<Option<&str>> = vec![None; vocab.len()];
    for (token, value) in vocab {
        let place = || format!("model.vocab[{}]", cut(token));
        let Some(id) = value.as_u64() else {
            return Err(wrong(&place(), value, "an id, 0 or more"));
        };
        if let Some(other) = token.chars().find(|&symbol| symbol > '\u{ff}') {
            let came = format!("a token with character U+{:04X}", other as u32);
            return Err(Error::Field { place: place(), came, wanted: "U+0000 to U+00FF, one for each byte".into() });
        }
        // An id past the end means that another one is missing: that one is named below.
        let slot = usize::try_from(id).ok().and_then(|id| tokens.get_mut(id));
        if let Some(slot) = slot
            && let Some(first) = slot.replace(token)
        {
            return Err(wrong(&place(), value, &format!("an id of its own: {} has it", cut(first))));
        }
    }
    if let Some(id) = tokens.iter().position(Option::is_none) {
        let (came, last) = (format!("{} tokens, none with id {id}", vocab.len()), vocab.len() - 1);
        return Err(Error::Field { place: "model.vocab".into(), came, wanted: format!("ids 0 to {last}, no gaps") });
    }
    Ok(tokens.into_iter().flatten().collect())
}

/// The bytes of the tokens that no merge makes.
fn alphabet(tokens: &[&str], merges: usize) -> Result<Vec<u8>> {
    let base = tokens.len().saturating_sub(merges);
    if !(1..=256).contains(&base) {
        return Err(Error::Field {
            place: "model.merges".into(),
            came: format!("a list of {merges} for a vocabulary of {}", tokens.len()),
            wanted: "1 to 256 tokens more than merges: the single characters".into(),
        });
    }
    let byte = |(id, &token): (usize, &&str)| {
        let mut symbols = token.chars();
        match (symbols.next(), symbols.next()) {
            (Some(symbol), None) => u8::try_from(symbol as u32).ok(),
            _ => None,
        }
        .ok_or_else(|| Error::Field {
            place: format!("model.vocab[{}]", cut(token)),
            came: id.to_string(),
            wanted: format!("{base} or more: {merges} merges leave ids 0 to {} to single characters", base - 1),
        })
    };
    tokens[..base].iter().enumerate().map(byte).collect()
}

/// The two texts of a merge.
fn parts<'a>(merge: &'a Value, place: &str, vocab: &Map<String, Value>) -> Result<(&'a str, &'a str)> {
    if let Some([Value::String(left), Value::String(right)]) = merge.as_array().map(Vec::as_slice) {
        return Ok((left, right));
    }
    let Some(text) = merge.as_str() else {
        return Err(wrong(place, merge, "a pair [\"a\", \"b\"] or a text \"a b\""));
    };
    // A space may also be a symbol.
    let splits = text.match_indices(' ').map(|(at, _)| (&text[..at], &text[at + 1..]));
    let mut known = splits.filter(|(left, right)| vocab.contains_key(*left) && vocab.contains_key(*right));
    match (known.next(), known.next()) {
        (Some(parts), None) => Ok(parts),
        (None, _) => Err(wrong(place, merge, "two tokens of the vocabulary with a space between them")),
        _ => Err(wrong(place, merge, "a pair [\"a\", \"b\"]: a text with spaces can be parted in several ways")),
    }
}

/// Added tokens are no part of the merges: they may follow the vocabulary, if no text of symbols holds them.
fn added(file: &Map<String, Value>, tokens: &[&str], alphabet: &[u8]) -> Result<()> {
    let objects = "a list of objects with id and content";
    let items = match file.get("added_tokens") {
        None | Some(Value::Null) => return Ok(()),
        Some(value) => array(value, "added_tokens", objects)?,
    };
    for (at, item) in items.iter().enumerate() {
        let place = format!("added_tokens[{at}]");
        let (Some(id), Some(content)) = (item["id"].as_u64(), item["content"].as_str()) else {
            return Err(wrong(&place, item, "an object with an id, 0 or more, and a text as content"));
        };
        if id < tokens.len() as u64 {
            return Err(wrong(&place, item, &format!("id {} or more: those below are the vocabulary's", tokens.len())));
        }
        let symbol = |symbol: char| u8::try_from(symbol as u32).is_ok_and(|byte| alphabet.contains(&byte));
        if content.chars().all(symbol) {
            return Err(wrong(&place, item, "a content that no text of symbols holds"));
        }
    }
    Ok(())
}

fn latin(token: &[u8]) -> String {
    token.iter().map(|&byte| byte as char).collect()
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

fn cut(token: &str) -> String {
    match token.char_indices().nth(20) {
        Some((end, _)) => format!("{}...", quoted(&token[..end])),
        None => quoted(token),
    }
}

fn list(items: impl IntoIterator<Item = String>) -> String {
    format!("[{}]", items.into_iter().collect::<Vec<_>>().join(","))
}
