//! The Python module `jaxchat._bpe`.

use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use pyo3::buffer::{Element, PyBuffer};
use pyo3::create_exception;
use pyo3::exceptions::{PyTypeError, PyUnicodeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::{PyBytes, PyCapsule, PyIterator, PySlice, PyString};

#[cfg(target_arch = "x86_64")]
use crate::xla_bf16;
use crate::xla_ffi::{self, Handler};
use crate::{Error, TokenId, Trainer, known_patterns, xla_cached};

/// Texts are taken in chunks of this size, so that all threads have work.
const CHUNK_BYTES: usize = 32 << 20;
/// How often a merging trainer comes up for Ctrl-C and the progress callback.
const PAUSE: Duration = Duration::from_millis(100);

create_exception!(
    _bpe,
    PatternError,
    PyValueError,
    "A pattern that does not compile."
);

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        match error {
            Error::Pattern(..) => PatternError::new_err(error.to_string()),
            _ => PyValueError::new_err(error.to_string()),
        }
    }
}

/// What the trainer counted; see `jaxchat.tokenizer.TrainingReport`.
type Report = (usize, u64, u64, usize, u64, u64);

/// Learns a byte-level BPE vocabulary: the bytes of every token, in rank order, and the counts.
#[pyfunction]
#[pyo3(signature = (texts, vocab_size, pattern, progress=None, threads=0, max_words=0))]
fn train<'py>(
    py: Python<'py>,
    texts: &Bound<'py, PyAny>,
    vocab_size: u32,
    pattern: &str,
    progress: Option<&Bound<'py, PyAny>>,
    threads: usize,
    max_words: usize,
) -> PyResult<(Vec<Bound<'py, PyBytes>>, Report)> {
    let mut trainer = Trainer::new(pattern, vocab_size, threads, max_words)?;
    let mut reader = Reader::new(texts)?;
    loop {
        let chunk = reader.next_chunk()?;
        if chunk.is_empty() {
            break;
        }
        py.detach(|| trainer.feed(&chunk))?;
        py.check_signals()?;
    }
    let s = trainer.summary();
    let report = (
        s.texts,
        s.bytes,
        s.words,
        s.distinct,
        s.dropped,
        s.dropped_words,
    );
    let progress = progress.map(|callback| callback.clone().unbind());
    let tokens = py.detach(|| merge_with_pauses(trainer, progress))?;
    let tokens = tokens.iter().map(|token| PyBytes::new(py, token)).collect();
    Ok((tokens, report))
}

fn merge_with_pauses(trainer: Trainer, progress: Option<Py<PyAny>>) -> PyResult<Vec<Vec<u8>>> {
    let mut done = 0;
    let mut last = Instant::now();
    let tell = |done: u32| {
        Python::attach(|py| -> PyResult<()> {
            py.check_signals()?;
            if let Some(callback) = &progress {
                callback.call1(py, (done,))?;
            }
            Ok(())
        })
    };
    let tokens = trainer.finish(|merges| {
        done = merges;
        if last.elapsed() < PAUSE {
            return Ok(());
        }
        last = Instant::now();
        tell(merges)
    })?;
    tell(done)?;
    Ok(tokens)
}

/// Turns text into token ids; safe to share between threads.
#[pyclass(frozen)]
struct Encoder(crate::Encoder);

#[pymethods]
impl Encoder {
    /// `tokens`: the bytes of every token in rank order.
    #[new]
    fn new(py: Python<'_>, tokens: Vec<Vec<u8>>, pattern: &str) -> PyResult<Self> {
        Ok(Self(py.detach(|| crate::Encoder::new(&tokens, pattern))?))
    }

    /// The ids of one text.
    fn encode(&self, py: Python<'_>, text: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
        let text = to_text(text, || "the text".into())?;
        Ok(py.detach(|| self.0.encode(&text))?)
    }

    /// The ids of texts, each between those of `before` and `after`, in one NumPy array (uint16,
    /// or uint32 when `wide`), and where each text starts in it [texts + 1].
    fn encode_batch<'py>(
        &self,
        py: Python<'py>,
        texts: &Bound<'py, PyAny>,
        before: Vec<u32>,
        after: Vec<u32>,
        wide: bool,
        threads: usize,
    ) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
        let marks = (before.as_slice(), after.as_slice());
        match wide {
            true => self.encode_into::<u32>(py, texts, marks, "uint32", threads),
            false => self.encode_into::<u16>(py, texts, marks, "uint16", threads),
        }
    }
}

impl Encoder {
    fn encode_into<'py, I: TokenId + Element>(
        &self,
        py: Python<'py>,
        texts: &Bound<'py, PyAny>,
        (before, after): (&[u32], &[u32]),
        dtype: &str,
        threads: usize,
    ) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
        let mut reader = Reader::new(texts)?;
        let mut offsets = vec![0];
        let mut ids: Vec<Vec<I>> = Vec::new();
        loop {
            let chunk = reader.next_chunk()?;
            if chunk.is_empty() {
                break;
            }
            let first = offsets.len() - 1;
            let units = py.detach(|| self.0.encode_batch(&chunk, before, after, threads));
            for unit in units.map_err(|error| error.after(first))? {
                for length in unit.lengths {
                    offsets.push(offsets[offsets.len() - 1] + length as i64);
                }
                ids.push(unit.ids);
            }
            py.check_signals()?;
        }
        Ok((
            to_numpy(py, &ids, dtype)?,
            to_numpy(py, &[offsets], "int64")?,
        ))
    }
}

/// One array of the parts' values, which are copied once.
fn to_numpy<'py, T: Element>(
    py: Python<'py>,
    parts: &[Vec<T>],
    dtype: &str,
) -> PyResult<Bound<'py, PyAny>> {
    let len = parts.iter().map(Vec::len).sum::<usize>();
    let array = py.import("numpy")?.call_method1("empty", (len, dtype))?;
    let mut at = 0;
    for part in parts {
        let end = at + part.len() as isize;
        let place = array.get_item(PySlice::new(py, at, end, 1))?;
        PyBuffer::<T>::get(&place)?.copy_from_slice(py, part)?;
        at = end;
    }
    Ok(array)
}

/// Takes texts from a Python iterable, a chunk at a time.
struct Reader<'py> {
    iterator: Bound<'py, PyIterator>,
    read: usize,
}

impl<'py> Reader<'py> {
    fn new(texts: &Bound<'py, PyAny>) -> PyResult<Self> {
        // A str is an iterable of its characters, surely not meant as documents.
        if texts.is_instance_of::<PyString>() {
            return Err(PyTypeError::new_err(
                "texts is one str, but an iterable of str is expected: give [text]",
            ));
        }
        let iterator = texts.try_iter()?;
        Ok(Self { iterator, read: 0 })
    }

    /// The next texts, about `CHUNK_BYTES` of them; empty at the end.
    fn next_chunk(&mut self) -> PyResult<Vec<PyBackedStr>> {
        let mut chunk = Vec::new();
        let mut bytes = 0;
        while bytes < CHUNK_BYTES {
            let Some(item) = self.iterator.next() else {
                break;
            };
            let text = to_text(&item?, || format!("text {}", self.read))?;
            // An empty text counts too, lest an endless stream of them is never interrupted.
            bytes += text.len() + size_of::<PyBackedStr>();
            chunk.push(text);
            self.read += 1;
        }
        Ok(chunk)
    }
}

fn to_text(item: &Bound<'_, PyAny>, name: impl Fn() -> String) -> PyResult<PyBackedStr> {
    let Ok(text) = item.cast::<PyString>() else {
        let found = item.get_type().name()?;
        return Err(PyTypeError::new_err(format!(
            "{} must be a str, but is {found}",
            name()
        )));
    };
    text.extract().map_err(|error: PyErr| {
        if !error.is_instance_of::<PyUnicodeError>(item.py()) {
            return error;
        }
        let place = error.value(item.py()).getattr("start");
        let place = place.map_or_else(
            |_| "an unknown place".into(),
            |at| format!("character {at}"),
        );
        PyValueError::new_err(format!(
            "{} is not valid Unicode (lone surrogate at {place}): drop it or repair it",
            name()
        ))
    })
}

#[pymodule]
mod _bpe {
    use super::*;

    #[pymodule_export]
    use super::{Encoder, PatternError, train};

    /// The spellings of patterns that have a hand-written scanner.
    #[pyfunction]
    fn scanned_patterns() -> Vec<&'static str> {
        known_patterns().collect()
    }

    /// The handler of `xla_ffi::int8_matmul`, for `jax.ffi.register_ffi_target`.
    #[pyfunction]
    fn int8_matmul(py: Python<'_>) -> PyResult<Bound<'_, PyCapsule>> {
        capsule(py, xla_ffi::int8_matmul)
    }

    /// The handlers of `xla_bf16`, by the names of their targets; none on other processors.
    #[pyfunction]
    fn bfloat16_kernels(py: Python<'_>) -> PyResult<HashMap<&'static str, Bound<'_, PyCapsule>>> {
        #[cfg(target_arch = "x86_64")]
        let handlers = xla_bf16::handlers();
        #[cfg(not(target_arch = "x86_64"))]
        let handlers: [(&str, Handler); 0] = [];
        let named = handlers.into_iter();
        named
            .map(|(name, handler)| Ok((name, capsule(py, handler)?)))
            .collect()
    }

    /// The handler of `xla_cached::cached_attention`; None where XLA's own code is as fast.
    #[pyfunction]
    fn cached_attention(py: Python<'_>) -> PyResult<Option<Bound<'_, PyCapsule>>> {
        crate::cached::able()
            .then(|| capsule(py, xla_cached::cached_attention))
            .transpose()
    }
}

/// A handler as `jax.ffi.register_ffi_target` takes it.
#[allow(unsafe_code)]
fn capsule(py: Python<'_>, handler: Handler) -> PyResult<Bound<'_, PyCapsule>> {
    let handler = NonNull::new(handler as *mut c_void).expect("a function has an address");
    // SAFETY: a function is never freed
    unsafe { PyCapsule::new_with_pointer(py, handler, c"xla._CUSTOM_CALL_TARGET") }
}
