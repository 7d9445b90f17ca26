//! The Python module `ecgnb._bpe`: reads Python's values, releases the GIL, calls the core, gives numpy arrays back.
mod bpe;
mod read;
mod write;

use crate::{Bpe as Core, Error, Range, Result, Training};
use bpe::Bpe;
use numpy::{PyArray1, PyArray2, PyArray3, PyArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use read::{Bounds, Signals, Text};
use std::borrow::Cow;
use std::time::{Duration, Instant};
use write::array_of;

/// Between two calls of a progress callback.
const PAUSE: Duration = Duration::from_millis(100);

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        PyValueError::new_err(error.to_string())
    }
}

/// Learns `merges` merges from sequences of symbols and gives (Bpe, counts, merged), uint64 (M,): how often each pair
/// stood in the text when it was chosen, and how often it was replaced. Stops early where no pair is as frequent as
/// `min_frequency`. `join`: pairs may cross from one sequence to the next. `progress(done, total)` is called about ten
/// times a second; Ctrl-C and errors in it stop the training.
#[pyfunction]
#[pyo3(signature = (sequences, merges, alphabet=None, min_frequency=2, join=false, threads=1, progress=None))]
#[allow(clippy::too_many_arguments, clippy::type_complexity)]
fn train<'py>(
    py: Python<'py>,
    sequences: &Bound<'py, PyAny>,
    #[pyo3(from_py_with = read::whole)] merges: i64,
    alphabet: Option<&Bound<'py, PyAny>>,
    #[pyo3(from_py_with = read::whole)] min_frequency: i64,
    join: bool,
    #[pyo3(from_py_with = read::whole)] threads: i64,
    progress: Option<Py<PyAny>>,
) -> PyResult<(Bpe, Bound<'py, PyArray1<u64>>, Bound<'py, PyArray1<u64>>)> {
    let alphabet = read::alphabet_of(alphabet)?;
    let total = read::count("merges", merges, "0 or more")?;
    let how = Training {
        merges: total,
        min_frequency: read::count("min_frequency", min_frequency, "1 or more")? as u64,
        join,
        threads: read::threads_of(threads)?,
    };
    let texts = read::each(sequences, Text::of)?;
    let texts = texts.iter().map(Text::bytes).collect::<PyResult<Vec<_>>>()?;
    let texts: Vec<&[u8]> = texts.iter().map(Cow::as_ref).collect();
    let symbols = texts.iter().map(|text| text.len()).sum();
    let pair = if join { symbols > 1 } else { texts.iter().any(|text| text.len() > 1) };
    if !pair {
        return Err(Error::NoPairs { sequences: texts.len(), symbols }.into());
    }
    let tell = |done: usize| match &progress {
        Some(progress) => Python::attach(|py| progress.call1(py, (done, total)).map(drop)),
        None => Ok(()),
    };
    let (mut told, mut failed) = (Instant::now(), None);
    let learnt = py.detach(|| -> Result<_> {
        let mut every = |done| {
            let mut result = Python::attach(|py| py.check_signals());
            if result.is_ok() && told.elapsed() >= PAUSE {
                result = tell(done);
                told = Instant::now();
            }
            failed = result.err();
            failed.is_none()
        };
        let learnt = crate::train(&alphabet, &texts, &how, &mut every)?;
        let pairs: Vec<_> = learnt.iter().map(|merge| (merge.left, merge.right)).collect();
        Ok((Bpe(Core::trained(&alphabet, &pairs)?), learnt))
    });
    if let Some(error) = failed {
        return Err(error);
    }
    let (bpe, learnt) = learnt?;
    tell(learnt.len())?;
    let counts = PyArray1::from_vec(py, learnt.iter().map(|merge| merge.count).collect());
    let merged = PyArray1::from_vec(py, learnt.iter().map(|merge| merge.merged).collect());
    Ok((bpe, counts, merged))
}

/// Signals float32 (B, C, T) in mV to (symbols uint8 (B, C*T), ranges float32 (B, 1, 2) or for range='lead' (B, C, 2)).
#[pyfunction]
#[pyo3(signature = (x, levels=26, first=97, range=Bounds(Range::Record), block=0))]
#[allow(clippy::type_complexity)]
fn quantise<'py>(
    py: Python<'py>,
    x: &Bound<'py, PyAny>,
    #[pyo3(from_py_with = read::whole)] levels: i64,
    #[pyo3(from_py_with = read::whole)] first: i64,
    range: Bounds,
    #[pyo3(from_py_with = read::whole)] block: i64,
) -> PyResult<(Bound<'py, PyArray2<u8>>, Bound<'py, PyArray3<f32>>)> {
    let how = read::quantiser_of(levels, first, range.0, block)?;
    let x = Signals::of(x)?;
    let (values, leads, size) = (x.values(), x.leads, x.size());
    let mut symbols = vec![0; values.len()];
    let ranges = py.detach(|| -> Result<Vec<_>> {
        let signals = values.chunks_exact(size).zip(symbols.chunks_exact_mut(size));
        let quantise = |(item, (signal, out))| {
            how.symbols_into(signal, leads, out).map_err(|error| Error::Item { item, error: Box::new(error) })
        };
        signals.enumerate().map(quantise).collect()
    })?;
    let symbols = PyArray1::from_vec(py, symbols).reshape([ranges.len(), size])?;
    Ok((symbols, array_of(py, &how, leads, ranges)?))
}

#[pymodule]
fn _bpe(module: &Bound<PyModule>) -> PyResult<()> {
    module.add_class::<Bpe>()?;
    module.add_function(wrap_pyfunction!(train, module)?)?;
    module.add_function(wrap_pyfunction!(quantise, module)?)
}
