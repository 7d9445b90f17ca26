//! Values from Python: read in place where they are contiguous arrays, refused with what came and what was wanted.
use crate::{Back, Quantiser, Range};
use numpy::{Element, PyArrayDescrMethods, PyReadonlyArray, PyReadonlyArray1, PyReadonlyArray2, PyReadonlyArray3};
use numpy::{PyUntypedArray, PyUntypedArrayMethods, ndarray::Dimension};
use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyString};
use std::borrow::Cow;

/// Symbols from Python: bytes, bytearray, str (its UTF-8 bytes) or a 1-D uint8 array.
pub enum Text<'py> {
    Bytes(Bound<'py, PyBytes>),
    Str(Bound<'py, PyString>),
    Array(PyReadonlyArray1<'py, u8>),
    Copy(Vec<u8>),
}

impl<'py> Text<'py> {
    pub fn of(value: &Bound<'py, PyAny>) -> PyResult<Self> {
        if let Ok(bytes) = value.cast::<PyBytes>() {
            Ok(Self::Bytes(bytes.clone()))
        } else if let Ok(text) = value.cast::<PyString>() {
            text.to_str()?;
            Ok(Self::Str(text.clone()))
        } else if let Ok(array) = tidy(value)?.extract() {
            Ok(Self::Array(array))
        } else if let Ok(bytes) = value.cast::<PyByteArray>() {
            Ok(Self::Copy(bytes.to_vec()))
        } else {
            Err(unwanted(
                value,
                Right::Integer,
                "symbols are",
                "bytes, str or a 1-D uint8 array (12 leads: codes.reshape(-1))",
            ))
        }
    }

    pub fn bytes(&self) -> PyResult<Cow<'_, [u8]>> {
        Ok(match self {
            Self::Bytes(bytes) => Cow::Borrowed(bytes.as_bytes()),
            Self::Str(text) => Cow::Borrowed(text.to_str()?.as_bytes()),
            Self::Array(array) => flat(array),
            Self::Copy(bytes) => Cow::Borrowed(bytes),
        })
    }
}

/// The symbols that have the ids below all merges: all 256 bytes unless given.
pub fn alphabet_of(alphabet: Option<&Bound<PyAny>>) -> PyResult<Vec<u8>> {
    match alphabet {
        Some(alphabet) => Ok(Text::of(alphabet)?.bytes()?.into_owned()),
        None => Ok((0..=255).collect()),
    }
}

/// Token ids from Python: a 1-D integer array or a sequence of ints.
pub enum Ids<'py> {
    U16(PyReadonlyArray1<'py, u16>),
    U32(PyReadonlyArray1<'py, u32>),
    I32(PyReadonlyArray1<'py, i32>),
    I64(PyReadonlyArray1<'py, i64>),
    List(Vec<i64>),
}

impl<'py> Ids<'py> {
    pub fn of(value: &Bound<'py, PyAny>) -> PyResult<Self> {
        let unwanted = || {
            unwanted(
                value,
                Right::Integer,
                "token ids are",
                "a 1-D uint32, int32, int64 or uint16 array or a list of int",
            )
        };
        if let Ok(array) = value.cast::<PyUntypedArray>() {
            let dtype = array.dtype();
            return match (dtype.kind(), dtype.itemsize()) {
                (b'u', 2) => tidy(value)?.extract().map(Self::U16).ok(),
                (b'u', 4) => tidy(value)?.extract().map(Self::U32).ok(),
                (b'i', 4) => tidy(value)?.extract().map(Self::I32).ok(),
                (b'i', 8) => tidy(value)?.extract().map(Self::I64).ok(),
                _ => None,
            }
            .ok_or_else(unwanted);
        }
        value.extract().map(Self::List).map_err(|error| match error.is_instance_of::<PyOverflowError>(value.py()) {
            true => overflow(error),
            false => unwanted(),
        })
    }

    pub fn slice(&self) -> Slice<'_> {
        match self {
            Self::U16(array) => Slice::U16(flat(array)),
            Self::U32(array) => Slice::U32(flat(array)),
            Self::I32(array) => Slice::I32(flat(array)),
            Self::I64(array) => Slice::I64(flat(array)),
            Self::List(ids) => Slice::I64(Cow::Borrowed(ids)),
        }
    }
}

pub enum Slice<'a> {
    U16(Cow<'a, [u16]>),
    U32(Cow<'a, [u32]>),
    I32(Cow<'a, [i32]>),
    I64(Cow<'a, [i64]>),
}

/// One call for whatever integers the ids are.
macro_rules! with_ids {
    ($slice:expr, $ids:ident => $call:expr) => {
        match $slice {
            Slice::U16($ids) => $call,
            Slice::U32($ids) => $call,
            Slice::I32($ids) => $call,
            Slice::I64($ids) => $call,
        }
    };
}
pub(crate) use with_ids;

/// The value; an array that numpy does not hold in rows without gaps, at aligned addresses, as a copy that is.
fn tidy<'py>(value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let py = value.py();
    match value.cast::<PyUntypedArray>() {
        Ok(array) if !array.is_c_contiguous() || !value.getattr("flags")?.getattr("aligned")?.is_truthy()? => {
            py.import("numpy")?.call_method1("require", (value, py.None(), ["C", "A"]))
        }
        _ => Ok(value.clone()),
    }
}

/// The values of an array that is [`tidy`], in place.
pub fn flat<'a, T: Element + Copy, D: Dimension>(array: &'a PyReadonlyArray<'_, T, D>) -> Cow<'a, [T]> {
    match array.as_slice() {
        Ok(values) => Cow::Borrowed(values),
        Err(_) => Cow::Owned(array.as_array().iter().copied().collect()),
    }
}

/// Signals from Python: float32 (B, C, T) in mV, with at least one lead and one sample.
pub struct Signals<'py> {
    array: PyReadonlyArray3<'py, f32>,
    pub leads: usize,
    pub samples: usize,
}

impl<'py> Signals<'py> {
    pub fn of(x: &Bound<'py, PyAny>) -> PyResult<Self> {
        let wanted = "a float32 array (B, C, T) in mV (one recording: x[None], torch: x.numpy())";
        let array: PyReadonlyArray3<f32> =
            tidy(x)?.extract().map_err(|_| unwanted(x, Right::Float32, "x is", wanted))?;
        let &[_, leads, samples] = array.shape() else {
            return Err(unwanted(x, Right::Float32, "x is", wanted));
        };
        // What no lead holds has no least and greatest value.
        if leads == 0 || samples == 0 {
            return Err(unwanted(x, Right::Float32, "x is", "at least one lead and one sample"));
        }
        Ok(Self { array, leads, samples })
    }

    pub fn values(&self) -> Cow<'_, [f32]> {
        flat(&self.array)
    }

    pub fn size(&self) -> usize {
        self.leads * self.samples
    }
}

/// The (low, high) of each signal in mV, (B, 1, 2) or (B, C, 2), as rows.
pub fn ranges_of(ranges: &Bound<PyAny>, items: usize, leads: usize) -> PyResult<Vec<[f32; 2]>> {
    let wanted = format!("a float32 array ({items}, 1, 2) or ({items}, {leads}, 2), low and high in mV");
    let wrong = || unwanted(ranges, Right::Float32, "ranges are", &wanted);
    let array: PyReadonlyArray3<f32> = tidy(ranges)?.extract().map_err(|_| wrong())?;
    match array.shape() {
        &[b, g, 2] if b == items && (g == 1 || g == leads) => Ok(flat(&array).as_chunks().0.to_vec()),
        _ => Err(wrong()),
    }
}

/// The range that becomes the levels: 'record', 'lead' or (low, high) in mV.
pub struct Bounds(pub Range);

impl<'py> FromPyObject<'_, 'py> for Bounds {
    type Error = PyErr;

    fn extract(range: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        match range.extract::<Cow<str>>().as_deref() {
            Ok("record") => return Ok(Self(Range::Record)),
            Ok("lead") => return Ok(Self(Range::Lead)),
            _ => {}
        }
        let wrong = |_| {
            let message = format!("range is {}: wanted 'record', 'lead' or (low, high) in mV", short(&range));
            PyValueError::new_err(message)
        };
        let (low, high) = range.extract().map_err(wrong)?;
        Ok(Self(Range::Fixed { low, high }))
    }
}

pub fn quantiser_of(levels: i64, first: i64, range: Range, block: i64) -> PyResult<Quantiser> {
    let levels = count("levels", levels, "2 to 256")?;
    let first = u8::try_from(first).map_err(|_| {
        PyValueError::new_err(format!("first is {first}: wanted the byte of the lowest level, 0 to 254"))
    })?;
    let how = Quantiser { levels, first, range, block: count("block", block, "1 or more, or 0 for lead after lead")? };
    how.check()?;
    Ok(how)
}

/// How codes become values; the divisor is the number of levels unless given.
pub fn back_of(levels: i64, offset: f32, divisor: Option<f32>, eps: f32) -> PyResult<Back> {
    let back = Back { offset, divisor: divisor.unwrap_or(levels as f32), eps };
    back.check()?;
    Ok(back)
}

/// Pairs of ids from Python: an integer array (M, 2) or a list of (left, right).
pub fn pairs_of(pairs: &Bound<PyAny>) -> PyResult<Vec<(u32, u32)>> {
    let id = |at: usize, id: i64| {
        let wrong = |_| PyValueError::new_err(format!("pair {at} has id {id}: wanted ids from 0 to {}", u32::MAX));
        u32::try_from(id).map_err(wrong)
    };
    let pair = |(at, [left, right]): (usize, [i64; 2])| Ok((id(at, left)?, id(at, right)?));
    if pairs.cast::<PyUntypedArray>().is_ok() {
        let known = rows::<u32>(pairs).or_else(|| rows::<i32>(pairs)).or_else(|| rows::<i64>(pairs));
        let known = known.or_else(|| rows::<u16>(pairs));
        let wanted = "a uint16, uint32, int32 or int64 array (merges, 2) or a list of (left, right)";
        return known
            .ok_or_else(|| unwanted(pairs, Right::Integer, "pairs are", wanted))?
            .into_iter()
            .enumerate()
            .map(pair)
            .collect();
    }
    let row = |(at, row): (usize, PyResult<Bound<PyAny>>)| {
        let row = row?;
        let wrong = |_| PyValueError::new_err(format!("pair {at} is {}: wanted two ids (left, right)", short(&row)));
        pair((at, row.extract::<[i64; 2]>().map_err(wrong)?))
    };
    pairs.try_iter()?.enumerate().map(row).collect()
}

fn rows<T: Element + Copy + Into<i64>>(pairs: &Bound<PyAny>) -> Option<Vec<[i64; 2]>> {
    let array: PyReadonlyArray2<T> = tidy(pairs).ok()?.extract().ok()?;
    (array.shape()[1] == 2).then(|| flat(&array).as_chunks().0.iter().map(|pair| pair.map(T::into)).collect())
}

/// The dtypes that are right in the right shape.
#[derive(Clone, Copy)]
enum Right {
    Integer,
    Float32,
}

/// "symbols are an int64 array of shape (12, 2500): wanted ..."
fn unwanted(value: &Bound<'_, PyAny>, right: Right, what: &str, wanted: &str) -> PyErr {
    match value.cast::<PyUntypedArray>() {
        Ok(array) => {
            let (dtype, shape) = (array.dtype(), array.shape());
            let message = format!("{what} a {dtype} array of shape {shape:?}: wanted {wanted}");
            // A right dtype in a wrong shape is a wrong value, the rest are wrong types.
            let right = match right {
                Right::Integer => matches!(dtype.kind(), b'i' | b'u'),
                Right::Float32 => (dtype.kind(), dtype.itemsize()) == (b'f', 4),
            };
            if right { PyValueError::new_err(message) } else { PyTypeError::new_err(message) }
        }
        Err(_) => {
            let name = value.get_type().name().map_or_else(|_| "?".into(), |name| name.to_string());
            PyTypeError::new_err(format!("{what} of type {name}: wanted {wanted}"))
        }
    }
}

/// An int beyond 64 bits is a wrong value like any other.
pub fn overflow(error: PyErr) -> PyErr {
    let too_large = Python::attach(|py| error.is_instance_of::<PyOverflowError>(py));
    if too_large {
        PyValueError::new_err("a token id does not fit 64 bits: wanted an id of the vocabulary")
    } else {
        error
    }
}

/// A whole number; one beyond 64 bits is the largest or the least of them, and refused or harmless like these.
pub fn whole(value: &Bound<PyAny>) -> PyResult<i64> {
    match value.extract::<i64>() {
        Err(error) if error.is_instance_of::<PyOverflowError>(value.py()) => {
            Ok(if value.lt(0)? { i64::MIN } else { i64::MAX })
        }
        known => known,
    }
}

/// Leads and samples.
pub fn shape(value: &Bound<PyAny>) -> PyResult<(i64, i64)> {
    let (leads, samples): (Bound<PyAny>, Bound<PyAny>) = value.extract()?;
    Ok((whole(&leads)?, whole(&samples)?))
}

/// A number that counts something.
pub fn count(name: &str, value: i64, wanted: &str) -> PyResult<usize> {
    usize::try_from(value).map_err(|_| PyValueError::new_err(format!("{name} is {value}: wanted {wanted}")))
}

pub fn threads_of(threads: i64) -> PyResult<usize> {
    count("threads", threads, "1 or more, or 0 for one a core")
}

/// Every item of a Python iterable, read by `of`; an error says which item it is in.
pub fn each<'py, T>(items: &Bound<'py, PyAny>, of: impl Fn(&Bound<'py, PyAny>) -> PyResult<T>) -> PyResult<Vec<T>> {
    let one = items.cast::<PyBytes>().is_ok() || items.cast::<PyString>().is_ok();
    if one {
        return Err(PyTypeError::new_err("a batch is one bytes or str: wanted a list of them"));
    }
    let read = |(item, value): (usize, PyResult<Bound<'py, PyAny>>)| {
        of(&value?).map_err(|error| {
            let message = format!("item {item}: {}", error.value(items.py()));
            match error.is_instance_of::<PyTypeError>(items.py()) {
                true => PyTypeError::new_err(message),
                false => PyValueError::new_err(message),
            }
        })
    };
    items.try_iter()?.enumerate().map(read).collect()
}

/// One (token, id) pair: the token is text or a list of its symbols as ints.
pub fn merge_of(entry: usize, merge: &Bound<'_, PyAny>) -> PyResult<(Vec<u8>, u32)> {
    let wrong = |what: String| PyValueError::new_err(format!("merge {entry} {what}"));
    let Ok((token, id)) = merge.extract::<(Bound<PyAny>, Bound<PyAny>)>() else {
        return Err(wrong(format!("is {}: wanted a pair (token, id)", short(merge))));
    };
    let Ok(id) = id.extract::<u32>() else {
        return Err(wrong(format!("has id {}: wanted an int from 0 to {}", short(&id), u32::MAX)));
    };
    if let Ok(text) = Text::of(&token) {
        return Ok((text.bytes()?.into_owned(), id));
    }
    let Ok(symbols) = token.extract::<Vec<i64>>() else {
        return Err(wrong(format!("has token {}: wanted bytes or a list of ints 0 to 255", short(&token))));
    };
    let byte = |&symbol: &i64| {
        u8::try_from(symbol).map_err(|_| wrong(format!("has symbol {symbol}: wanted bytes or a list of ints 0 to 255")))
    };
    Ok((symbols.iter().map(byte).collect::<PyResult<_>>()?, id))
}

/// A value as Python writes it, cut to one line.
pub fn short(value: &Bound<'_, PyAny>) -> String {
    let text = value.repr().map_or_else(|_| "a value without repr".into(), |text| text.to_string());
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
