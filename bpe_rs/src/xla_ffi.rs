//! The C interface of XLA's FFI, work shared by its threads, and `int8::Rows::multiply` as XLA calls it.
//!
//! The structs are those of `xla/ffi/api/c_api.h` 0.3 (jaxlib 0.10), in their order, as far as they
//! are used; 0.4 and 0.5 (jaxlib 0.11 and 0.12) only add to their ends. All `unsafe` code of the
//! call is in this file.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::{copy_nonoverlapping, null_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::int8::{COLUMNS, Rows};

/// The major version of the interface, in which nothing here can change.
const MAJOR: c_int = 0;
const METADATA: c_int = 1; // the kind of an extension
const EXECUTE: c_int = 3; // the stage
const INVALID_ARGUMENT: c_int = 3;
pub(crate) const BOOL: c_int = 1; // types of numbers
const INT8: c_int = 2;
pub(crate) const FLOAT32: c_int = 11;
/// Products below which sharing the work takes longer than it saves.
const SHARED: usize = 1 << 20;
/// Products of a piece of shared work, about.
const PIECE: usize = 1 << 17;
/// Looks at the others' last pieces before this thread lets other threads run.
const SPINS: usize = 1 << 12;

#[repr(C)]
struct Extension {
    size: usize,
    kind: c_int,
    next: *mut Extension,
}

#[repr(C)]
struct Version {
    size: usize,
    extension: *mut Extension,
    major: c_int,
    minor: c_int,
}

#[repr(C)]
struct Metadata {
    size: usize,
    version: Version,
}

#[repr(C)]
struct MetadataExtension {
    base: Extension,
    metadata: *mut Metadata,
}

#[repr(C)]
struct ErrorArgs {
    size: usize,
    extension: *mut Extension,
    message: *const c_char,
    code: c_int,
}

#[repr(C)]
struct ScheduleArgs {
    size: usize,
    extension: *mut Extension,
    context: *mut c_void,
    task: extern "C" fn(*mut c_void),
    data: *mut c_void,
}

#[repr(C)]
struct ThreadsArgs {
    size: usize,
    extension: *mut Extension,
    context: *mut c_void,
    threads: *mut i64,
}

#[repr(C)]
struct Api {
    size: usize,
    extension: *mut Extension,
    version: Version,
    internal: *const c_void,
    create_error: extern "C" fn(*mut ErrorArgs) -> *mut c_void,
    get_message: *const c_void,
    destroy_error: extern "C" fn(*mut DestroyArgs),
    others: [*const c_void; 8], // Handler_Register to DeviceMemory_Free
    schedule: extern "C" fn(*mut ScheduleArgs) -> *mut c_void,
    count_threads: extern "C" fn(*mut ThreadsArgs) -> *mut c_void,
}

#[repr(C)]
struct DestroyArgs {
    size: usize,
    extension: *mut Extension,
    error: *mut c_void,
}

#[repr(C)]
struct Buffer {
    size: usize,
    extension: *mut Extension,
    kind: c_int,
    data: *mut c_void,
    rank: i64,
    dims: *const i64,
}

/// Arguments or results.
#[repr(C)]
struct Buffers {
    size: usize,
    extension: *mut Extension,
    count: i64,
    kinds: *const c_int,
    buffers: *const *const Buffer,
}

/// What XLA gives to a handler, up to the last field that is read.
#[repr(C)]
pub struct CallFrame {
    size: usize,
    extension: *mut Extension,
    api: *const Api,
    context: *mut c_void,
    stage: c_int,
    args: Buffers,
    rets: Buffers,
}

/// A function that XLA calls.
pub(crate) type Handler = unsafe extern "C" fn(*mut CallFrame) -> *mut c_void;

/// Answers XLA: what it asks about a handler, or, where it executes one, with `run`.
///
/// `takes` says what it takes, for the error where `run` gives None.
///
/// # Safety
/// `frame` must be one of XLA's.
pub(crate) unsafe fn answer(
    frame: *mut CallFrame,
    takes: &CStr,
    run: impl FnOnce(&CallFrame) -> Option<()>,
) -> *mut c_void {
    // SAFETY: XLA's frame and what it points to live as long as the call
    unsafe {
        let (frame, api) = (&*frame, &*(*frame).api);
        let extension = frame.extension;
        if !extension.is_null() && (*extension).kind == METADATA {
            let metadata = (*extension.cast::<MetadataExtension>()).metadata;
            // any minor version: those only add what is not used here
            (*metadata).version.major = MAJOR;
            (*metadata).version.minor = api.version.minor;
            return null_mut();
        }
        if frame.stage != EXECUTE || run(frame).is_some() {
            return null_mut();
        }
        (api.create_error)(&mut ErrorArgs {
            size: size_of::<ErrorArgs>(),
            extension: null_mut(),
            message: takes.as_ptr(),
            code: INVALID_ARGUMENT,
        })
    }
}

impl CallFrame {
    /// How many arguments there are.
    pub(crate) fn arguments(&self) -> usize {
        self.args.count as usize
    }

    /// The numbers and dimensions of an argument of this type; None where it is not of it.
    ///
    /// # Safety
    /// The frame must be one of XLA's, and T be the type's.
    pub(crate) unsafe fn argument<T>(&self, at: usize, kind: c_int) -> Option<(&[T], &[i64])> {
        // SAFETY: the caller's promise
        (at < self.args.count as usize)
            .then(|| unsafe { numbers(self.args.buffers, at, kind) })
            .flatten()
    }

    /// Where a result of this type and these dimensions is; None where it is not.
    ///
    /// # Safety
    /// As `argument`.
    pub(crate) unsafe fn result<T>(&self, at: usize, kind: c_int, dims: &[i64]) -> Option<*mut T> {
        // SAFETY: the caller's promise
        let found = (at < self.rets.count as usize)
            .then(|| unsafe { numbers::<T>(self.rets.buffers, at, kind) })
            .flatten()?;
        (found.1 == dims).then(|| found.0.as_ptr().cast_mut())
    }

    /// Does all pieces of some work: see `share`.
    ///
    /// # Safety
    /// As `argument`.
    pub(crate) unsafe fn share(&self, pieces: usize, work: &(dyn Fn(usize) + Sync)) {
        // SAFETY: the caller's promise
        unsafe { share(pieces, work, &*self.api, self.context) };
    }
}

/// The handler `jaxchat_int8_matmul`: x [R, K] float32, panels [C / 16, K / 2, 16, 2] int8, scale
/// [C] float32 -> [R, C] float32.
///
/// # Safety
/// `frame` must be one of XLA's.
pub unsafe extern "C" fn int8_matmul(frame: *mut CallFrame) -> *mut c_void {
    let takes = c"jaxchat_int8_matmul takes float32 [R,K], int8 [C/16,K/2,16,2], float32 [C]";
    // SAFETY: the caller's promise
    unsafe {
        answer(frame, takes, |frame| {
            Product::of(frame)?.run(&*frame.api, frame.context);
            Some(())
        })
    }
}

/// One call: the rows, and where the matrix, its scales and the result are.
struct Product<'a> {
    rows: Rows,
    width: usize,
    panels: &'a [i8],
    scale: &'a [f32],
    y: *mut f32,
}

// SAFETY: no two threads write to the same column of y
unsafe impl Sync for Product<'_> {}

impl<'a> Product<'a> {
    /// None where types or shapes are not those of `int8_matmul`.
    ///
    /// # Safety
    /// As `int8_matmul`; the product must not outlive the call.
    unsafe fn of(frame: &'a CallFrame) -> Option<Self> {
        // SAFETY: XLA's buffers have as many numbers as their dimensions say
        unsafe {
            if (frame.args.count, frame.rets.count) != (3, 1) {
                return None;
            }
            let (x, x_dims) = numbers::<f32>(frame.args.buffers, 0, FLOAT32)?;
            let (panels, dims) = numbers::<i8>(frame.args.buffers, 1, INT8)?;
            let (scale, _) = numbers::<f32>(frame.args.buffers, 2, FLOAT32)?;
            let (y, y_dims) = numbers::<f32>(frame.rets.buffers, 0, FLOAT32)?;
            let &[rows, width] = x_dims else { return None };
            let count = scale.len().div_ceil(COLUMNS) as i64;
            let fits = dims == [count, width / 2, COLUMNS as i64, 2] && width % 2 == 0;
            (fits && width > 0 && y_dims == [rows, scale.len() as i64]).then(|| Self {
                rows: Rows::round(x, width as usize),
                width: width as usize,
                panels,
                scale,
                y: y.as_ptr().cast_mut(),
            })
        }
    }

    /// Computes y, with XLA's threads where that pays.
    ///
    /// # Safety
    /// `api` and `context` must be those of the call.
    unsafe fn run(&self, api: &Api, context: *mut c_void) {
        let (count, panel) = (self.scale.len(), COLUMNS * self.width);
        let products = self.rows.count() * self.panels.len();
        let panels = count.div_ceil(COLUMNS);
        let pieces = if products < SHARED {
            1
        } else {
            (products / PIECE).min(panels)
        };
        let piece = panels.div_ceil(pieces.max(1)).max(1); // panels of a piece
        let multiply = |number: usize| {
            let part = number * piece..panels.min((number + 1) * piece);
            let first = part.start * COLUMNS;
            let scale = &self.scale[first..count.min(part.end * COLUMNS)];
            let part = &self.panels[part.start * panel..part.end * panel];
            self.rows.multiply(part, scale, |row, panel, values| {
                let place = row * count + first + panel * COLUMNS;
                // SAFETY: row is below R, and the values' columns below C
                unsafe {
                    let to = self.y.add(place);
                    match <&[f32; COLUMNS]>::try_from(values) {
                        Ok(values) => to.cast::<[f32; COLUMNS]>().write_unaligned(*values),
                        Err(_) => copy_nonoverlapping(values.as_ptr(), to, values.len()),
                    }
                }
            });
        };
        // SAFETY: the caller's promise
        unsafe { share(panels.div_ceil(piece), &multiply, api, context) };
    }
}

/// The numbers of a buffer of this type, and its dimensions.
///
/// # Safety
/// There must be such a buffer of XLA's, and T be the type's.
unsafe fn numbers<'a, T>(
    buffers: *const *const Buffer,
    at: usize,
    kind: c_int,
) -> Option<(&'a [T], &'a [i64])> {
    // SAFETY: the caller's promise
    unsafe {
        let buffer = &**buffers.add(at);
        if buffer.kind != kind {
            return None;
        }
        if buffer.rank == 0 {
            return None;
        }
        let dims = std::slice::from_raw_parts(buffer.dims, buffer.rank as usize);
        let count = dims.iter().product::<i64>() as usize;
        let data = if count == 0 {
            std::ptr::dangling()
        } else {
            buffer.data.cast::<T>().cast_const()
        };
        Some((std::slice::from_raw_parts(data, count), dims))
    }
}

/// Work that threads take piece by piece.
struct Shared {
    next: AtomicUsize,
    done: AtomicUsize,
    pieces: usize,
    work: *const (dyn Fn(usize) + Sync),
}

// SAFETY: `work` is Sync, and lives while anybody uses it (see `help`)
unsafe impl Send for Shared {}
// SAFETY: as above
unsafe impl Sync for Shared {}

impl Shared {
    /// Takes pieces until none is left.
    ///
    /// # Safety
    /// `work` must live until `pieces` are done.
    unsafe fn help(&self) {
        loop {
            let piece = self.next.fetch_add(1, Ordering::Relaxed);
            if piece >= self.pieces {
                return; // and `work` may be gone
            }
            // SAFETY: who began the work waits until this piece is done
            unsafe { (*self.work)(piece) };
            self.done.fetch_add(1, Ordering::Release);
        }
    }
}

extern "C" fn help(data: *mut c_void) {
    // SAFETY: `share` made it of such an Arc, for this call alone
    unsafe { Arc::from_raw(data.cast_const().cast::<Shared>()).help() };
}

/// Does all pieces, with XLA's threads as far as these are free.
///
/// This thread takes pieces too and waits for none that nobody has begun, so XLA's threads may all
/// be here and none ever waits for another's help.
///
/// # Safety
/// `api` and `context` must be those of the call.
unsafe fn share(pieces: usize, work: &(dyn Fn(usize) + Sync), api: &Api, context: *mut c_void) {
    // SAFETY: only the lifetime changes; `work` outlives the waiting below
    let work = unsafe {
        std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(work)
    };
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let shared = Arc::new(Shared {
        next,
        done,
        pieces,
        work,
    });
    let others = if pieces > 1 {
        threads(api, context).min(pieces)
    } else {
        1
    };
    for _ in 1..others {
        let data = Arc::into_raw(shared.clone()).cast::<c_void>().cast_mut();
        let error = (api.schedule)(&mut ScheduleArgs {
            size: size_of::<ScheduleArgs>(),
            extension: null_mut(),
            context,
            task: help,
            data,
        });
        if !error.is_null() {
            destroy(api, error);
            // SAFETY: XLA did not take it
            drop(unsafe { Arc::from_raw(data.cast_const().cast::<Shared>()) });
            break;
        }
    }
    // SAFETY: `work` lives
    unsafe { shared.help() };
    let mut looks = 0;
    while shared.done.load(Ordering::Acquire) < pieces {
        looks += 1;
        if looks < SPINS {
            std::hint::spin_loop();
        } else {
            std::thread::yield_now();
        }
    }
}

/// How many threads XLA has; 1 where it does not say.
fn threads(api: &Api, context: *mut c_void) -> usize {
    let mut threads = 1;
    let error = (api.count_threads)(&mut ThreadsArgs {
        size: size_of::<ThreadsArgs>(),
        extension: null_mut(),
        context,
        threads: &mut threads,
    });
    if error.is_null() {
        threads.max(1) as usize
    } else {
        destroy(api, error);
        1
    }
}

fn destroy(api: &Api, error: *mut c_void) {
    (api.destroy_error)(&mut DestroyArgs {
        size: size_of::<DestroyArgs>(),
        extension: null_mut(),
        error,
    });
}
