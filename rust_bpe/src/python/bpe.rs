//! The Python class `Bpe`.
use super::read::{self, Bounds, Ids, Signals, Slice, Text, with_ids};
use super::write::{Out, Short, array_of, unshared, with_dtype};
use crate::{Bpe as Core, Id, Range, Result, parallel};
use numpy::{PyArray1, PyArray2, PyArray3, PyArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};
use std::sync::{Mutex, PoisonError};

type Token<'py> = (Bound<'py, PyBytes>, u32);

/// By merges in their order, or the longest token first.
#[derive(Clone, Copy)]
enum Way {
    Exact,
    Longest,
}

/// A vocabulary built once: ids 0.. are the alphabet (all 256 bytes unless given), merges are (token, id) pairs.
#[pyclass(module = "ecgnb._bpe", frozen, eq, from_py_object)]
#[derive(PartialEq, Clone)]
pub struct Bpe(pub(super) Core);

#[pymethods]
impl Bpe {
    #[new]
    #[pyo3(signature = (merges, alphabet=None))]
    fn new(py: Python, merges: &Bound<PyAny>, alphabet: Option<&Bound<PyAny>>) -> PyResult<Self> {
        let alphabet = read::alphabet_of(alphabet)?;
        let mut table = Vec::new();
        for (entry, merge) in merges.try_iter()?.enumerate() {
            table.push(read::merge_of(entry, &merge?)?);
        }
        Ok(Self(py.detach(|| Core::new(&alphabet, &table))?))
    }

    /// From the two ids that each merge joins, in order: an integer array (M, 2) or a list of (left, right).
    #[staticmethod]
    #[pyo3(signature = (pairs, alphabet=None))]
    fn from_pairs(py: Python, pairs: &Bound<PyAny>, alphabet: Option<&Bound<PyAny>>) -> PyResult<Self> {
        let (pairs, alphabet) = (read::pairs_of(pairs)?, read::alphabet_of(alphabet)?);
        Ok(Self(py.detach(|| Core::from_pairs(&alphabet, &pairs))?))
    }

    /// What to_json wrote; other keys are ignored.
    #[staticmethod]
    fn from_json(py: Python, text: &str) -> PyResult<Self> {
        Ok(Self(py.detach(|| Core::from_json(text))?))
    }

    /// {"format": "ecgnb-bpe", "version": 1, "alphabet": [ints], "merges": [[left, right], ...]} as str.
    fn to_json(&self, py: Python) -> PyResult<String> {
        Ok(py.detach(|| self.0.to_json())?)
    }

    /// A Hugging Face tokenizer.json of model BPE whose tokens are characters U+0000 to U+00FF, one for each byte.
    #[staticmethod]
    fn from_hf(py: Python, text: &str) -> PyResult<Self> {
        Ok(Self(py.detach(|| Core::from_hf(text))?))
    }

    /// A tokenizer.json as str: its ids of symbols.decode('latin-1') are those of encode(symbols).
    fn to_hf(&self, py: Python) -> PyResult<String> {
        Ok(py.detach(|| self.0.to_hf())?)
    }

    /// Token ids of `symbols` by the merges in their order, as a numpy array.
    #[pyo3(signature = (symbols, dtype="uint32"))]
    fn encode<'py>(&self, py: Python<'py>, symbols: &Bound<'py, PyAny>, dtype: &str) -> PyResult<Bound<'py, PyAny>> {
        self.one(py, symbols, dtype, Way::Exact)
    }

    /// A list of id arrays, one for each item, over `threads` threads (0: one for each core).
    #[pyo3(signature = (items, threads=0, dtype="uint32"))]
    fn encode_batch<'py>(
        &self,
        py: Python<'py>,
        items: &Bound<'py, PyAny>,
        #[pyo3(from_py_with = read::whole)] threads: i64,
        dtype: &str,
    ) -> PyResult<Bound<'py, PyList>> {
        self.many(py, items, threads, dtype, Way::Exact)
    }

    /// Token ids of `symbols` by greedy longest match (what published models were trained with), as a numpy array.
    #[pyo3(signature = (symbols, dtype="uint32"))]
    fn encode_longest<'py>(
        &self,
        py: Python<'py>,
        symbols: &Bound<'py, PyAny>,
        dtype: &str,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.one(py, symbols, dtype, Way::Longest)
    }

    /// A list of id arrays, one for each item, over `threads` threads (0: one for each core).
    #[pyo3(signature = (items, threads=0, dtype="uint32"))]
    fn encode_longest_batch<'py>(
        &self,
        py: Python<'py>,
        items: &Bound<'py, PyAny>,
        #[pyo3(from_py_with = read::whole)] threads: i64,
        dtype: &str,
    ) -> PyResult<Bound<'py, PyList>> {
        self.many(py, items, threads, dtype, Way::Longest)
    }

    /// Signals float32 (B, C, T) in mV to (list of B id arrays, ranges float32 (B, 1, 2), for range='lead' (B, C, 2)).
    #[pyo3(signature = (
        x, levels=26, first=97, range=Bounds(Range::Record), block=0, exact=false, threads=0, dtype="uint32"
    ))]
    #[allow(clippy::too_many_arguments)]
    fn encode_signals<'py>(
        &self,
        py: Python<'py>,
        x: &Bound<'py, PyAny>,
        #[pyo3(from_py_with = read::whole)] levels: i64,
        #[pyo3(from_py_with = read::whole)] first: i64,
        range: Bounds,
        #[pyo3(from_py_with = read::whole)] block: i64,
        exact: bool,
        #[pyo3(from_py_with = read::whole)] threads: i64,
        dtype: &str,
    ) -> PyResult<(Bound<'py, PyList>, Bound<'py, PyArray3<f32>>)> {
        let how = read::quantiser_of(levels, first, range.0, block)?;
        let (threads, x) = (read::threads_of(threads)?, Signals::of(x)?);
        let way = if exact { Way::Exact } else { Way::Longest };
        let (values, leads) = (x.values(), x.leads);
        let signals: Vec<&[f32]> = values.chunks_exact(x.size()).collect();
        with_dtype!(dtype, self.0.size(), T => {
            let all = py.detach(|| {
                parallel(&signals, threads, |signal| {
                    let mut text = Vec::with_capacity(signal.len());
                    let ranges = how.symbols(signal, leads, &mut text)?;
                    Ok((self.ids::<T>(&text, way)?, ranges))
                })
            })?;
            let (ids, ranges): (Vec<_>, Vec<_>) = all.into_iter().unzip();
            Ok((PyList::new(py, ids.into_iter().map(|ids| T::array(py, ids)))?, array_of(py, &how, leads, ranges)?))
        })
    }

    /// The bytes that token ids stand for.
    fn decode<'py>(&self, py: Python<'py>, ids: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
        let ids = Ids::of(ids)?;
        let slice = ids.slice();
        let length = py.detach(|| with_ids!(&slice, ids => self.0.length(ids)))?;
        PyBytes::new_with(py, length, |text| Ok(py.detach(|| with_ids!(&slice, ids => self.0.decode_into(ids, text)))?))
    }

    /// A list of bytes, one for each item, over `threads` threads (0: one for each core).
    #[pyo3(signature = (items, threads=0))]
    fn decode_batch<'py>(
        &self,
        py: Python<'py>,
        items: &Bound<'py, PyAny>,
        #[pyo3(from_py_with = read::whole)] threads: i64,
    ) -> PyResult<Bound<'py, PyList>> {
        let threads = read::threads_of(threads)?;
        let items = read::each(items, Ids::of)?;
        let slices: Vec<_> = items.iter().map(Ids::slice).collect();
        let lengths = py.detach(|| parallel(&slices, threads, |slice| with_ids!(slice, ids => self.0.length(ids))))?;
        let texts = lengths.into_iter().map(|length| PyBytes::new_with(py, length, |_| Ok(())));
        let mut texts = texts.collect::<PyResult<Vec<_>>>()?;
        let outs = texts.iter_mut().map(|text| Mutex::new(unshared(text))); // one thread has each
        let work: Vec<_> = slices.iter().zip(outs).collect();
        py.detach(|| {
            parallel(&work, threads, |(slice, out)| {
                let mut out = out.lock().unwrap_or_else(PoisonError::into_inner);
                with_ids!(slice, ids => self.0.decode_into(ids, &mut out))
            })
        })?;
        drop(work);
        PyList::new(py, texts)
    }

    /// float32 (B, C, T) in mV of B items of token ids, for shape=(C, T) and the ranges of encode_signals: code q is
    /// (q + offset) / divisor * (high - low + eps) + low, divisor `levels` unless given (ECG-Byte: offset=0,
    /// divisor=levels-1, eps=0). `partial`: NaN where tokens end early or are no levels, cut where they
    /// go on; else that is an error.
    #[pyo3(signature = (
        items, shape, ranges, levels=26, first=97, block=0, offset=0.5, divisor=None, eps=1e-6, partial=false, threads=0
    ))]
    #[allow(clippy::too_many_arguments)]
    fn decode_signals<'py>(
        &self,
        py: Python<'py>,
        items: &Bound<'py, PyAny>,
        #[pyo3(from_py_with = read::shape)] shape: (i64, i64),
        ranges: &Bound<'py, PyAny>,
        #[pyo3(from_py_with = read::whole)] levels: i64,
        #[pyo3(from_py_with = read::whole)] first: i64,
        #[pyo3(from_py_with = read::whole)] block: i64,
        offset: f32,
        divisor: Option<f32>,
        eps: f32,
        partial: bool,
        #[pyo3(from_py_with = read::whole)] threads: i64,
    ) -> PyResult<Bound<'py, PyArray3<f32>>> {
        let how = read::quantiser_of(levels, first, Range::Record, block)?;
        let (back, threads) = (read::back_of(levels, offset, divisor, eps)?, read::threads_of(threads)?);
        let items = read::each(items, Ids::of)?;
        let (leads, samples) = shape;
        let size = usize::try_from(leads).ok().zip(usize::try_from(samples).ok()).filter(|&(c, t)| c > 0 && t > 0);
        let Some((leads, samples)) = size else {
            let message = format!("shape is ({leads}, {samples}): wanted (C, T), at least one lead and one sample");
            return Err(PyValueError::new_err(message));
        };
        let ranges = read::ranges_of(ranges, items.len(), leads)?;
        let groups = ranges.len().checked_div(items.len()).unwrap_or(1); // ranges of a signal
        let total = leads.checked_mul(samples).and_then(|size| size.checked_mul(items.len()));
        let Some(total) = total.filter(|&total| Vec::<f32>::new().try_reserve_exact(total).is_ok()) else {
            let message = format!("{} signals of shape ({leads}, {samples}) do not fit the memory", items.len());
            return Err(PyValueError::new_err(message));
        };
        let mut values = vec![0f32; total]; // zeros of the system: each thread is the first to touch its own
        let slices: Vec<_> = items.iter().map(Ids::slice).collect();
        py.detach(|| {
            let outs = values.chunks_exact_mut(leads * samples).map(Mutex::new); // one thread has each
            let work: Vec<_> = slices.iter().zip(ranges.chunks(groups)).zip(outs).collect();
            parallel(&work, threads, |((slice, ranges), out)| {
                let mut out = out.lock().unwrap_or_else(PoisonError::into_inner);
                with_ids!(slice, ids => self.0.decode_signal(ids, &how, &back, ranges, leads, partial, &mut out))
            })
        })?;
        PyArray1::from_vec(py, values).reshape([items.len(), leads, samples])
    }

    /// int64 (tokens, 2): the symbols [start, end) that each token covers.
    fn spans<'py>(&self, py: Python<'py>, ids: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyArray2<i64>>> {
        let ids = Ids::of(ids)?;
        let slice = ids.slice();
        let spans = py.detach(|| with_ids!(&slice, ids => self.int_spans(ids)))?;
        let tokens = spans.len() / 2;
        PyArray1::from_vec(py, spans).reshape([tokens, 2])
    }

    /// The bytes of one token.
    fn token<'py>(&self, py: Python<'py>, id: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
        let id = id.extract::<i64>().map_err(read::overflow)?;
        Ok(PyBytes::new(py, self.0.token(id)?))
    }

    /// uint32 (V,): how many symbols each id stands for.
    #[getter]
    fn lengths<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<u32>> {
        PyArray1::from_vec(py, self.0.lengths().collect())
    }

    /// uint32 (M, 2): the two ids that each merge joins, in order.
    #[getter]
    fn pairs<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<u32>>> {
        let pairs = py.detach(|| self.0.pairs())?;
        let ids = pairs.iter().flat_map(|&(left, right)| [left, right]).collect();
        PyArray1::from_vec(py, ids).reshape([pairs.len(), 2])
    }

    #[getter]
    fn alphabet<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.0.alphabet())
    }

    /// The (token, id) pairs in the order of ids, as Bpe() takes them.
    #[getter]
    fn merges<'py>(&self, py: Python<'py>) -> Vec<Token<'py>> {
        self.0.merges().map(|(token, id)| (PyBytes::new(py, token), id)).collect()
    }

    fn __len__(&self) -> usize {
        self.0.size()
    }

    fn __repr__(&self) -> String {
        let (symbols, size) = (self.0.alphabet().len(), self.0.size());
        format!("Bpe({size} tokens: {symbols} symbols, {} merges)", size - symbols)
    }

    fn __getnewargs__<'py>(&self, py: Python<'py>) -> (Vec<Token<'py>>, Bound<'py, PyBytes>) {
        (self.merges(py), self.alphabet(py))
    }

    /// It never changes: a copy is the same object.
    fn __copy__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __deepcopy__(slf: Py<Self>, _memo: &Bound<PyDict>) -> Py<Self> {
        slf
    }
}

impl Bpe {
    fn ids<T: Out>(&self, text: &[u8], way: Way) -> Result<Vec<T>> {
        let mut ids = match way {
            Way::Exact => self.0.encode(text),
            Way::Longest => self.0.encode_longest(text),
        }?;
        ids.shrink_to_fit(); // the array keeps what is reserved
        Ok(ids)
    }

    fn one<'py>(
        &self,
        py: Python<'py>,
        symbols: &Bound<'py, PyAny>,
        dtype: &str,
        way: Way,
    ) -> PyResult<Bound<'py, PyAny>> {
        let text = Text::of(symbols)?;
        let text = text.bytes()?;
        with_dtype!(dtype, self.0.size(), T => Ok(T::array(py, py.detach(|| self.ids::<T>(&text, way))?)))
    }

    fn many<'py>(
        &self,
        py: Python<'py>,
        items: &Bound<'py, PyAny>,
        threads: i64,
        dtype: &str,
        way: Way,
    ) -> PyResult<Bound<'py, PyList>> {
        let threads = read::threads_of(threads)?;
        let texts = read::each(items, Text::of)?;
        let texts = texts.iter().map(Text::bytes).collect::<PyResult<Vec<_>>>()?;
        with_dtype!(dtype, self.0.size(), T => {
            let all = py.detach(|| parallel(&texts, threads, |text| self.ids::<T>(text, way)))?;
            PyList::new(py, all.into_iter().map(|ids| T::array(py, ids)))
        })
    }

    fn int_spans<T: Id>(&self, ids: &[T]) -> Result<Vec<i64>> {
        Ok(self.0.spans(ids)?.as_flattened().iter().map(|&place| place as i64).collect())
    }
}
