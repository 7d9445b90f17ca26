//! Values for Python: numpy arrays that take over what the core wrote.
use crate::{Quantiser, Range};
use numpy::{Element, IntoPyArray, PyArray1, PyArray3, PyArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// Ids on their way out: `array` holds them without a copy.
pub trait Out: From<u32> + Send {
    fn array<'py>(py: Python<'py>, ids: Vec<Self>) -> Bound<'py, PyAny>;
}

impl Out for u32 {
    fn array<'py>(py: Python<'py>, ids: Vec<Self>) -> Bound<'py, PyAny> {
        ids.into_pyarray(py).into_any()
    }
}

impl Out for i64 {
    fn array<'py>(py: Python<'py>, ids: Vec<Self>) -> Bound<'py, PyAny> {
        ids.into_pyarray(py).into_any()
    }
}

/// An id of a vocabulary of at most 65,536 tokens.
pub struct Short(u16);

impl From<u32> for Short {
    fn from(id: u32) -> Self {
        Self(id as u16)
    }
}

impl Out for Short {
    fn array<'py>(py: Python<'py>, ids: Vec<Self>) -> Bound<'py, PyAny> {
        let ids: Vec<u16> = ids.into_iter().map(|id| id.0).collect(); // in place
        ids.into_pyarray(py).into_any()
    }
}

/// One call for the dtype asked for, where it holds every id.
macro_rules! with_dtype {
    ($dtype:expr, $size:expr, $type:ident => $call:expr) => {
        match $dtype {
            "uint16" if $size <= 1 << 16 => {
                type $type = Short;
                $call
            }
            "uint16" => Err(PyValueError::new_err(format!("dtype is 'uint16': wanted 'uint32' for {} ids", $size))),
            "uint32" => {
                type $type = u32;
                $call
            }
            "int64" => {
                type $type = i64;
                $call
            }
            name => Err(PyValueError::new_err(format!(
                "dtype is '{name}': wanted 'uint32' or 'int64', or 'uint16' up to 65536 ids"
            ))),
        }
    };
}
pub(crate) use with_dtype;

/// The ranges of all signals as one array (B, 1, 2) or (B, C, 2).
pub fn array_of<'py, T: Element + Copy>(
    py: Python<'py>,
    how: &Quantiser,
    leads: usize,
    ranges: Vec<Vec<[T; 2]>>,
) -> PyResult<Bound<'py, PyArray3<T>>> {
    let groups = if how.range == Range::Lead { leads } else { 1 };
    let shape = [ranges.len(), groups, 2];
    PyArray1::from_vec(py, ranges.concat().into_flattened()).reshape(shape)
}

/// The bytes of an object that has just been made, to be written to before anything else sees it.
#[allow(unsafe_code)]
pub fn unshared<'a>(bytes: &'a mut Bound<'_, PyBytes>) -> &'a mut [u8] {
    let length = bytes.as_bytes().len();
    // SAFETY: the object has `length` bytes, all written by PyBytes::new_with, and lives as long as it is borrowed
    // here. The caller holds its only reference, so that no one reads it meanwhile; its hash is not known yet.
    unsafe { std::slice::from_raw_parts_mut(pyo3::ffi::PyBytes_AsString(bytes.as_ptr()).cast(), length) }
}
