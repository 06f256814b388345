//! The Python module `jaxchat._bpe`.

use std::time::{Duration, Instant};

use pyo3::exceptions::{PyTypeError, PyUnicodeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::{PyBytes, PyIterator, PyString};

use crate::{Error, Trainer};

/// Texts are handed to the trainer in chunks of this size, so that all threads have work.
const CHUNK_BYTES: usize = 8 << 20;
/// How often a merging trainer comes up for Ctrl-C and the progress callback.
const PAUSE: Duration = Duration::from_millis(100);

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        PyValueError::new_err(error.to_string())
    }
}

/// Learns a byte-level BPE vocabulary: the bytes of every token, in rank order.
#[pyfunction]
#[pyo3(signature = (texts, vocab_size, pattern, progress=None, threads=0))]
fn train<'py>(
    py: Python<'py>,
    texts: &Bound<'py, PyAny>,
    vocab_size: u32,
    pattern: &str,
    progress: Option<&Bound<'py, PyAny>>,
    threads: usize,
) -> PyResult<Vec<Bound<'py, PyBytes>>> {
    let mut trainer = Trainer::new(pattern, vocab_size, threads)?;
    let mut reader = Reader::new(texts)?;
    loop {
        let chunk = reader.next_chunk()?;
        if chunk.is_empty() {
            break;
        }
        py.detach(|| trainer.feed(&chunk))?;
        py.check_signals()?;
    }
    let progress = progress.map(|callback| callback.clone().unbind());
    let tokens = py.detach(|| merge_with_pauses(trainer, progress))?;
    Ok(tokens.iter().map(|token| PyBytes::new(py, token)).collect())
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
            let text = self.to_text(&item?)?;
            // An empty text counts too, lest an endless stream of them is never interrupted.
            bytes += text.len() + size_of::<PyBackedStr>();
            chunk.push(text);
            self.read += 1;
        }
        Ok(chunk)
    }

    fn to_text(&self, item: &Bound<'py, PyAny>) -> PyResult<PyBackedStr> {
        let number = self.read;
        let Ok(text) = item.cast::<PyString>() else {
            let found = item.get_type().name()?;
            return Err(PyTypeError::new_err(format!(
                "texts must yield str, but item {number} is {found}"
            )));
        };
        text.extract().map_err(|error: PyErr| {
            if error.is_instance_of::<PyUnicodeError>(item.py()) {
                PyValueError::new_err(format!(
                    "text {number} is not valid Unicode (lone surrogates): drop it or repair it"
                ))
            } else {
                error
            }
        })
    }
}

#[pymodule]
mod _bpe {
    #[pymodule_export]
    use super::train;
}
