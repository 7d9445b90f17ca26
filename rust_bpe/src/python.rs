//! The Python module `ecgnb._bpe`: reads Python's values, releases the GIL, calls the core, gives numpy arrays back.
use crate::{Bpe as Core, Error, Id, Result, parallel};
use numpy::{Element, IntoPyArray, PyArrayDescrMethods, PyReadonlyArray1, PyUntypedArray};
use numpy::{PyUntypedArrayMethods, ndarray::Array2};
use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyList, PyString};
use std::borrow::Cow;

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        PyValueError::new_err(error.to_string())
    }
}

/// Symbols from Python: bytes, bytearray, str (its UTF-8 bytes) or a 1-D uint8 array.
enum Text<'py> {
    Bytes(Bound<'py, PyBytes>),
    Str(Bound<'py, PyString>),
    Array(PyReadonlyArray1<'py, u8>),
    Copy(Vec<u8>),
}

impl<'py> Text<'py> {
    fn of(value: &Bound<'py, PyAny>) -> PyResult<Self> {
        if let Ok(bytes) = value.cast::<PyBytes>() {
            Ok(Self::Bytes(bytes.clone()))
        } else if let Ok(text) = value.cast::<PyString>() {
            Ok(Self::Str(text.clone()))
        } else if let Ok(array) = value.extract() {
            Ok(Self::Array(array))
        } else if let Ok(bytes) = value.cast::<PyByteArray>() {
            Ok(Self::Copy(bytes.to_vec()))
        } else {
            Err(unwanted(value, "symbols are", "bytes, str or a 1-D uint8 array (12 leads: codes.reshape(-1))"))
        }
    }

    fn bytes(&self) -> PyResult<Cow<'_, [u8]>> {
        Ok(match self {
            Self::Bytes(bytes) => Cow::Borrowed(bytes.as_bytes()),
            Self::Str(text) => Cow::Borrowed(text.to_str()?.as_bytes()),
            Self::Array(array) => flat(array),
            Self::Copy(bytes) => Cow::Borrowed(bytes),
        })
    }
}

/// Token ids from Python: a 1-D integer array or a sequence of ints.
enum Ids<'py> {
    U32(PyReadonlyArray1<'py, u32>),
    I32(PyReadonlyArray1<'py, i32>),
    I64(PyReadonlyArray1<'py, i64>),
    List(Vec<i64>),
}

impl<'py> Ids<'py> {
    fn of(value: &Bound<'py, PyAny>) -> PyResult<Self> {
        let wanted = "a 1-D uint32, int32 or int64 array or a list of int";
        if let Ok(array) = value.extract() {
            Ok(Self::U32(array))
        } else if let Ok(array) = value.extract() {
            Ok(Self::I32(array))
        } else if let Ok(array) = value.extract() {
            Ok(Self::I64(array))
        } else if value.cast::<PyUntypedArray>().is_ok() {
            Err(unwanted(value, "token ids are", wanted))
        } else {
            value.extract().map(Self::List).map_err(|error| match error.is_instance_of::<PyOverflowError>(value.py()) {
                true => overflow(error),
                false => unwanted(value, "token ids are", wanted),
            })
        }
    }

    fn slice(&self) -> Slice<'_> {
        match self {
            Self::U32(array) => Slice::U32(flat(array)),
            Self::I32(array) => Slice::I32(flat(array)),
            Self::I64(array) => Slice::I64(flat(array)),
            Self::List(ids) => Slice::I64(Cow::Borrowed(ids)),
        }
    }
}

enum Slice<'a> {
    U32(Cow<'a, [u32]>),
    I32(Cow<'a, [i32]>),
    I64(Cow<'a, [i64]>),
}

/// One call for whatever integers the ids are.
macro_rules! with_ids {
    ($slice:expr, $ids:ident => $call:expr) => {
        match $slice {
            Slice::U32($ids) => $call,
            Slice::I32($ids) => $call,
            Slice::I64($ids) => $call,
        }
    };
}

/// The array's values in place, or copied where it has strides.
fn flat<'a, T: Element + Copy>(array: &'a PyReadonlyArray1<'_, T>) -> Cow<'a, [T]> {
    match array.as_slice() {
        Ok(values) => Cow::Borrowed(values),
        Err(_) => Cow::Owned(array.as_array().to_vec()),
    }
}

/// "symbols are an int64 array of shape (12, 2500): wanted ..."
fn unwanted(value: &Bound<'_, PyAny>, what: &str, wanted: &str) -> PyErr {
    match value.cast::<PyUntypedArray>() {
        Ok(array) => {
            let (dtype, shape) = (array.dtype(), array.shape());
            let message = format!("{what} a {dtype} array of shape {shape:?}: wanted {wanted}");
            // A right dtype in a wrong shape is a wrong value, the rest are wrong types.
            let integer = matches!(dtype.kind(), b'i' | b'u');
            if integer { PyValueError::new_err(message) } else { PyTypeError::new_err(message) }
        }
        Err(_) => {
            let name = value.get_type().name().map_or_else(|_| "?".into(), |name| name.to_string());
            PyTypeError::new_err(format!("{what} of type {name}: wanted {wanted}"))
        }
    }
}

/// An int beyond 64 bits is a wrong value like any other.
fn overflow(error: PyErr) -> PyErr {
    let too_large = Python::attach(|py| error.is_instance_of::<PyOverflowError>(py));
    if too_large {
        PyValueError::new_err("a token id does not fit 64 bits: wanted an id of the vocabulary")
    } else {
        error
    }
}

fn threads_of(threads: i64) -> PyResult<usize> {
    let wrong = |_| PyValueError::new_err(format!("threads is {threads}: wanted 1 or more, or 0 for one a core"));
    threads.try_into().map_err(wrong)
}

#[derive(Clone, Copy)]
enum Dtype {
    Uint32,
    Int64,
}

impl Dtype {
    fn of(name: &str) -> PyResult<Self> {
        match name {
            "uint32" => Ok(Self::Uint32),
            "int64" => Ok(Self::Int64),
            _ => Err(PyValueError::new_err(format!("dtype is '{name}': wanted 'uint32' or 'int64'"))),
        }
    }
}

/// A vocabulary built once: ids 0.. are the alphabet (all 256 bytes unless given), merges are (token, id) pairs.
#[pyclass(module = "ecgnb._bpe", frozen, eq, from_py_object)]
#[derive(PartialEq, Clone)]
struct Bpe(Core);

#[pymethods]
impl Bpe {
    #[new]
    #[pyo3(signature = (merges, alphabet=None))]
    fn new(py: Python, merges: &Bound<PyAny>, alphabet: Option<&Bound<PyAny>>) -> PyResult<Self> {
        let alphabet = match alphabet {
            Some(alphabet) => Text::of(alphabet)?.bytes()?.into_owned(),
            None => (0..=255).collect(),
        };
        let mut table = Vec::new();
        for (entry, merge) in merges.try_iter()?.enumerate() {
            table.push(merge_of(entry, &merge?)?);
        }
        Ok(Self(py.detach(|| Core::new(&alphabet, &table))?))
    }

    /// Token ids of `symbols` by greedy longest match (what published models were trained with), as a numpy array.
    #[pyo3(signature = (symbols, dtype="uint32"))]
    fn encode_longest<'py>(
        &self,
        py: Python<'py>,
        symbols: &Bound<'py, PyAny>,
        dtype: &str,
    ) -> PyResult<Bound<'py, PyAny>> {
        let text = Text::of(symbols)?;
        let text = text.bytes()?;
        Ok(match Dtype::of(dtype)? {
            Dtype::Uint32 => py.detach(|| self.0.encode_longest::<u32>(&text))?.into_pyarray(py).into_any(),
            Dtype::Int64 => py.detach(|| self.0.encode_longest::<i64>(&text))?.into_pyarray(py).into_any(),
        })
    }

    /// A list of id arrays, one for each item, over `threads` threads (0: one for each core).
    #[pyo3(signature = (items, threads=0, dtype="uint32"))]
    fn encode_longest_batch<'py>(
        &self,
        py: Python<'py>,
        items: &Bound<'py, PyAny>,
        threads: i64,
        dtype: &str,
    ) -> PyResult<Bound<'py, PyList>> {
        let threads = threads_of(threads)?;
        let texts = each(items, Text::of)?;
        let texts = texts.iter().map(Text::bytes).collect::<PyResult<Vec<_>>>()?;
        match Dtype::of(dtype)? {
            Dtype::Uint32 => self.encode_all::<u32>(py, &texts, threads),
            Dtype::Int64 => self.encode_all::<i64>(py, &texts, threads),
        }
    }

    /// The bytes that token ids stand for.
    fn decode<'py>(&self, py: Python<'py>, ids: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
        let ids = Ids::of(ids)?;
        let slice = ids.slice();
        let text = py.detach(|| with_ids!(&slice, ids => self.0.decode(ids)))?;
        Ok(PyBytes::new(py, &text))
    }

    /// A list of bytes, one for each item, over `threads` threads (0: one for each core).
    #[pyo3(signature = (items, threads=0))]
    fn decode_batch<'py>(
        &self,
        py: Python<'py>,
        items: &Bound<'py, PyAny>,
        threads: i64,
    ) -> PyResult<Bound<'py, PyList>> {
        let threads = threads_of(threads)?;
        let items = each(items, Ids::of)?;
        let slices: Vec<_> = items.iter().map(Ids::slice).collect();
        let texts = py.detach(|| parallel(&slices, threads, |slice| with_ids!(slice, ids => self.0.decode(ids))))?;
        PyList::new(py, texts.iter().map(|text| PyBytes::new(py, text)))
    }

    /// int64 (tokens, 2): the symbols [start, end) that each token covers.
    fn spans<'py>(&self, py: Python<'py>, ids: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let ids = Ids::of(ids)?;
        let slice = ids.slice();
        let spans = py.detach(|| with_ids!(&slice, ids => self.int_spans(ids)))?;
        let shape = (spans.len() / 2, 2);
        let spans = Array2::from_shape_vec(shape, spans).map_err(|error| PyValueError::new_err(error.to_string()))?;
        Ok(spans.into_pyarray(py).into_any())
    }

    /// The bytes of one token.
    fn token<'py>(&self, py: Python<'py>, id: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
        let id = id.extract::<i64>().map_err(overflow)?;
        Ok(PyBytes::new(py, self.0.token(id)?))
    }

    #[getter]
    fn alphabet<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.0.alphabet())
    }

    /// The (token, id) pairs in the order of ids, as Bpe() takes them.
    #[getter]
    fn merges<'py>(&self, py: Python<'py>) -> Vec<(Bound<'py, PyBytes>, u32)> {
        self.0.merges().map(|(token, id)| (PyBytes::new(py, token), id)).collect()
    }

    fn __len__(&self) -> usize {
        self.0.size()
    }

    fn __repr__(&self) -> String {
        let (symbols, size) = (self.0.alphabet().len(), self.0.size());
        format!("Bpe({size} tokens: {symbols} symbols, {} merges)", size - symbols)
    }

    #[allow(clippy::type_complexity)]
    fn __getnewargs__<'py>(&self, py: Python<'py>) -> (Vec<(Bound<'py, PyBytes>, u32)>, Bound<'py, PyBytes>) {
        (self.merges(py), self.alphabet(py))
    }
}

impl Bpe {
    fn encode_all<'py, T: Element + From<u32>>(
        &self,
        py: Python<'py>,
        texts: &[Cow<[u8]>],
        threads: usize,
    ) -> PyResult<Bound<'py, PyList>> {
        let all = py.detach(|| parallel(texts, threads, |text| self.0.encode_longest::<T>(text)))?;
        PyList::new(py, all.into_iter().map(|ids| ids.into_pyarray(py)))
    }

    fn int_spans<T: Id>(&self, ids: &[T]) -> Result<Vec<i64>> {
        Ok(self.0.spans(ids)?.as_flattened().iter().map(|&place| place as i64).collect())
    }
}

/// Every item of a Python iterable, read by `of`; an error says which item it is in.
fn each<'py, T>(items: &Bound<'py, PyAny>, of: impl Fn(&Bound<'py, PyAny>) -> PyResult<T>) -> PyResult<Vec<T>> {
    let one = items.cast::<PyBytes>().is_ok() || items.cast::<PyString>().is_ok();
    if one {
        return Err(PyTypeError::new_err("a batch is one bytes or str: wanted a list of them"));
    }
    let read = |(item, value): (usize, PyResult<Bound<'py, PyAny>>)| {
        of(&value?).map_err(|error| {
            let message = format!("item {item}: {}", error.value(items.py()));
            PyErr::from_type(error.get_type(items.py()), message)
        })
    };
    items.try_iter()?.enumerate().map(read).collect()
}

/// One (token, id) pair: the token is text or a list of its symbols as ints.
fn merge_of(entry: usize, merge: &Bound<'_, PyAny>) -> PyResult<(Vec<u8>, u32)> {
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
fn short(value: &Bound<'_, PyAny>) -> String {
    let text = value.repr().map_or_else(|_| "a value without repr".into(), |text| text.to_string());
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[pymodule]
fn _bpe(module: &Bound<PyModule>) -> PyResult<()> {
    module.add_class::<Bpe>()
}
