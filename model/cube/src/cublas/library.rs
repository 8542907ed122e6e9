//! cuBLASLt on one card: how it is asked for a product, and how that product comes between two kernels of CubeCL.
//!
//! **Exactness.** Products of f32 are true f32, as in PyTorch by default: every factor has its 24 bits. CubeCL's own kernels for tensor
//! cores round the factors of such products to TF32, 11 bits, on every card since Ampere, and without autotune they are always chosen there;
//! so the library is at least as exact, and may be slower for f32 than its TF32 would be. Products of bf16 and f16 are summed in f32. Where
//! the library splits a long sum over several thread blocks, the parts are added in f32 in a step of their own, never in the format of the
//! result and never by atomic additions.
//!
//! **Order.** The library works on a stream of its own, since CubeCL's stream is private. For each product, an event holds what the card's
//! context was given so far, and the stream waits for it; a second event holds the product, and whatever the context is given from then on
//! waits for that. All of this is put into the card's queues by the one thread that also launches CubeCL's kernels, so that no launch can
//! come between. It holds for any number of CubeCL's streams, since both waits are for the whole context.
//!
//! **Memory.** When the last handle of a factor is dropped, CubeCL may give its memory to a later tensor, or back to the driver, in the
//! order of a stream of its own. Everything that it puts there after the product waits for the second event. So memory is safe as soon as
//! that wait is in the queue, which it is before the closure that multiplies returns, and until then the closure itself holds the memory.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::ptr::null_mut;

use burn::tensor::DType;
use cudarc::cublaslt::{result as blas, sys as lt};
use cudarc::driver::result::{event, stream};
use cudarc::driver::{DriverError, sys};

use super::layout::{Columns, Operand};
use super::machine::Order;

/// What NVIDIA recommends for Hopper. Other cards want less.
pub(crate) const WORKSPACE: usize = 32 << 20;

/// A format that the library multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Format {
    F32,
    F16,
    Bf16,
}

impl Format {
    pub(crate) fn of(dtype: DType) -> Option<Self> {
        match dtype {
            DType::F32 => Some(Self::F32),
            DType::F16 => Some(Self::F16),
            DType::BF16 => Some(Self::Bf16),
            _ => None,
        }
    }

    fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    fn code(self) -> lt::cudaDataType {
        match self {
            Self::F32 => lt::cudaDataType::CUDA_R_32F,
            Self::F16 => lt::cudaDataType::CUDA_R_16F,
            Self::Bf16 => lt::cudaDataType::CUDA_R_16BF,
        }
    }
}

/// All that the library's choice of a kernel depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Question {
    factors: Format,
    result: Format,
    /// The product is added to what is there.
    adds: bool,
    columns: Columns,
    /// Where the library's A, B and D begin in memory, in bytes.
    alignment: [u32; 3],
}

impl Question {
    /// A product of the library's A and B into D, which begin at these bytes of memory. None for formats that it does not combine.
    pub(crate) fn new(factors: Format, result: Format, adds: bool, columns: Columns, starts: [u64; 3]) -> Option<Self> {
        let combines = result == factors || result == Format::F32;
        // A sum is rounded once for each product that is added to it.
        let is_exact = !adds || result == Format::F32;
        (combines && is_exact).then_some(Self {
            factors,
            result,
            adds,
            columns,
            alignment: starts.map(alignment),
        })
    }

    /// The same product at these bytes of memory.
    pub(crate) fn at(&self, starts: [u64; 3]) -> Self {
        Self {
            alignment: starts.map(alignment),
            ..*self
        }
    }
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Columns { a, b, d, batches } = &self.columns;
        let inner = if b.transposed { b.columns } else { b.rows };
        let order = |operand: &Operand| if operand.transposed { "transposed " } else { "" };
        write!(
            f,
            "{batches} × {}[{} × {inner}]·{}[{inner} × {}] of {:?} in {:?}",
            order(b),
            d.columns,
            order(a),
            d.rows,
            self.factors,
            self.result
        )
    }
}

/// The largest power of two that divides an address, up to the one from which the library has no use for more.
fn alignment(address: u64) -> u32 {
    1 << address.trailing_zeros().min(8)
}

/// Addresses on the card.
#[derive(Clone, Copy)]
pub(crate) struct Addresses {
    pub(crate) a: u64,
    pub(crate) b: u64,
    pub(crate) d: u64,
    /// [`WORKSPACE`] bytes of the card's memory.
    pub(crate) workspace: u64,
}

/// What a product failed of.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The result is as it was.
    Before(String),
    /// The result may be anything.
    Within(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Before(error) | Self::Within(error)) = self;
        f.write_str(error)
    }
}

/// The library for one card.
///
/// It lives as long as the thread that launches the card's kernels, which is as long as the process, and so is never closed.
pub(crate) struct Library {
    handle: lt::cublasLtHandle_t,
    between: Between,
    plans: HashMap<Question, Plan>,
}

// SAFETY: what its pointers stand for is tied to a context, not to a thread, and nothing but `&mut self` reaches it, one thread at a time.
unsafe impl Send for Library {}

impl Library {
    /// # Safety
    /// cuBLASLt and the driver are there, and the card's context is current.
    pub(crate) unsafe fn open(order: Order) -> Result<Self, String> {
        // SAFETY: the library is there, and a context is current.
        let between = unsafe { Between::new(order) }.map_err(|error| error.to_string())?;
        let handle = blas::create_handle().map_err(|error| error.to_string())?;
        Ok(Self {
            handle,
            between,
            plans: HashMap::new(),
        })
    }

    /// Puts a product into the card's queue.
    ///
    /// # Safety
    /// - The card's context is current on this thread, which is the one that gives it all of CubeCL's work.
    /// - The addresses are those of memory of this card that CubeCL's work up to now leaves valid, as large as the question says, aligned as
    ///   it says, and D overlaps with nothing else. They stay valid until this function returns.
    pub(crate) unsafe fn multiply(&mut self, question: &Question, addresses: Addresses) -> Result<(), Failure> {
        let plan = match self.plans.entry(*question) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let plan = Plan::new(self.handle, question);
                entry.insert(plan.map_err(|error| Failure::Before(error.to_string()))?)
            }
        };
        let handle = self.handle;
        // SAFETY: as this function demands; the plan was made for this question with this handle.
        unsafe { self.between.run(|stream| plan.run(handle, addresses, stream)) }
    }

    /// Fills a result of which nothing is known with NaN, so that nobody takes it for a number.
    ///
    /// # Safety
    /// The card's context is current, and the address is that of the question's D.
    pub(crate) unsafe fn spoil(question: &Question, d: u64) -> Result<(), DriverError> {
        let Columns {
            d: operand, batches, ..
        } = question.columns;
        let bytes = question.result.bytes();
        // SAFETY: the memory is D's own, matrix by matrix and column by column; what lies between its columns is left alone. Waiting for the
        // context before and after makes the order against all streams certain.
        unsafe {
            sys::cuCtxSynchronize().result()?;
            for batch in 0..batches {
                let start = d + (batch * operand.distance * bytes) as u64;
                let [pitch, width] = [operand.leading, operand.rows].map(|numbers| numbers * bytes);
                // All bits set are a NaN in each of the formats.
                sys::cuMemsetD2D8_v2(start, pitch, 0xFF, width, operand.columns).result()?;
            }
            sys::cuCtxSynchronize().result()
        }
    }
}

/// A stream whose work comes between what a context was given before and what it is given after.
struct Between {
    context: sys::CUcontext,
    order: Order,
    stream: sys::CUstream,
    // Both are used again for each product, which saves making them. A wait is for what the event held when the wait was asked for, so
    // that holding something else later does not touch the waits that are still in the queue.
    before: sys::CUevent,
    after: sys::CUevent,
}

impl Between {
    /// # Safety
    /// The driver is there, and a context is current.
    unsafe fn new(order: Order) -> Result<Self, DriverError> {
        let mut context = null_mut();
        // SAFETY: `context` outlives the call that writes it.
        unsafe { sys::cuCtxGetCurrent(&mut context) }.result()?;
        let timeless = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        Ok(Self {
            context,
            order,
            stream: stream::create(stream::StreamKind::NonBlocking)?,
            before: event::create(timeless)?,
            after: event::create(timeless)?,
        })
    }

    /// Lets `work` put something into the stream.
    ///
    /// # Safety
    /// The context is current on this thread, and no other thread gives it work meanwhile.
    unsafe fn run(&self, work: impl FnOnce(sys::CUstream) -> Result<(), String>) -> Result<(), Failure> {
        let before = |error: DriverError| Failure::Before(error.to_string());
        // SAFETY: context, stream and events are those of `new`, which are never destroyed; the functions are the driver's.
        unsafe {
            (self.order.record)(self.context, self.before)
                .result()
                .map_err(before)?;
            let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
            stream::wait_event(self.stream, self.before, flags).map_err(before)?;
            let done = work(self.stream);
            // Even work that failed may have begun something, and so is waited for in any case.
            let ordered = event::record(self.after, self.stream)
                .and_then(|()| (self.order.wait)(self.context, self.after).result());
            if ordered.is_err() {
                // Then this thread waits, and gives the context nothing until the work is done.
                stream::synchronize(self.stream).map_err(|error| Failure::Within(error.to_string()))?;
            }
            done.map_err(Failure::Within)
        }
    }
}

/// A kernel of the library for a question, with all that it is told besides the addresses.
struct Plan {
    operation: Operation,
    a: Layout,
    b: Layout,
    d: Layout,
    algorithm: lt::cublasLtMatmulAlgo_t,
    /// Bytes that the kernel uses.
    workspace: usize,
    /// By how much what is there is multiplied before the product is added.
    beta: f32,
}

impl Plan {
    fn new(handle: lt::cublasLtHandle_t, question: &Question) -> Result<Self, blas::CublasError> {
        let Columns { a, b, d, batches } = &question.columns;
        let operation = Operation::new(a.transposed, b.transposed)?;
        let [a, b] = [a, b].map(|operand| Layout::new(question.factors, operand, *batches));
        let (a, b, d) = (a?, b?, Layout::new(question.result, d, *batches)?);
        let preference = Preference::new(question.alignment)?;
        // SAFETY: all of them are alive, and describe a product whose sizes fit (`by_columns`). C is D: it has its layout.
        let found = unsafe { blas::get_matmul_algo_heuristic(handle, operation.0, a.0, b.0, d.0, d.0, preference.0) }?;
        Ok(Self {
            operation,
            a,
            b,
            d,
            algorithm: found.algo,
            workspace: found.workspaceSize,
            beta: if question.adds { 1.0 } else { 0.0 },
        })
    }

    /// # Safety
    /// As for [`Library::multiply`]; the handle is the one of [`Self::new`].
    unsafe fn run(
        &self,
        handle: lt::cublasLtHandle_t,
        addresses: Addresses,
        stream: sys::CUstream,
    ) -> Result<(), String> {
        let Addresses { a, b, d, workspace } = addresses;
        let (alpha, beta) = (1.0f32, self.beta);
        // SAFETY: the descriptors are alive; alpha and beta are f32, which is the scale's type, are on this side, which is the default, and
        // are read before the call returns; the addresses are as this function demands. With beta = 0, C is not read. The preference
        // limited the kernel's workspace to the memory there is. The types of the stream have two names for one thing.
        let done = unsafe {
            blas::matmul(
                handle,
                self.operation.0,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                a as *const _,
                self.a.0,
                b as *const _,
                self.b.0,
                d as *const _,
                self.d.0,
                d as *mut _,
                self.d.0,
                &raw const self.algorithm,
                workspace as *mut _,
                self.workspace,
                stream.cast(),
            )
        };
        done.map_err(|error| error.to_string())
    }
}

/// A description of what is to be computed.
struct Operation(lt::cublasLtMatmulDesc_t);

impl Operation {
    fn new(transposes_a: bool, transposes_b: bool) -> Result<Self, blas::CublasError> {
        use lt::cublasLtMatmulDescAttributes_t as Attribute;
        // Not `CUBLAS_COMPUTE_32F_FAST_TF32`: see the head of this file.
        let sums = lt::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let description = Self(blas::create_matmul_desc(sums, lt::cudaDataType::CUDA_R_32F)?);
        let transpositions = [
            (Attribute::CUBLASLT_MATMUL_DESC_TRANSA, transposes_a),
            (Attribute::CUBLASLT_MATMUL_DESC_TRANSB, transposes_b),
        ];
        for (attribute, transposes) in transpositions {
            // `CUBLAS_OP_N` and `CUBLAS_OP_T`, which are not among cudarc's names for this library.
            let value = i32::from(transposes);
            // SAFETY: the description is alive, and the attribute is an int32.
            unsafe {
                blas::set_matmul_desc_attribute(description.0, attribute, (&raw const value).cast(), size_of::<i32>())
            }?;
        }
        Ok(description)
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        // SAFETY: made in `new`, and dropped once.
        let _ = unsafe { blas::destroy_matmul_desc(self.0) };
    }
}

/// A description of how matrices lie.
struct Layout(lt::cublasLtMatrixLayout_t);

impl Layout {
    fn new(format: Format, operand: &Operand, batches: usize) -> Result<Self, blas::CublasError> {
        use lt::cublasLtMatrixLayoutAttribute_t as Attribute;
        let too_large = blas::CublasError(lt::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED);
        let batches = i32::try_from(batches).map_err(|_| too_large)?;
        let [leading, distance] = [operand.leading, operand.distance].map(|numbers| numbers as i64);
        let (rows, columns) = (operand.rows as u64, operand.columns as u64);
        let layout = Self(blas::create_matrix_layout(format.code(), rows, columns, leading)?);
        // SAFETY: the layout is alive; the count is an int32, and the distance an int64.
        unsafe {
            let count = Attribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT;
            blas::set_matrix_layout_attribute(layout.0, count, (&raw const batches).cast(), size_of::<i32>())?;
            let offset = Attribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET;
            blas::set_matrix_layout_attribute(layout.0, offset, (&raw const distance).cast(), size_of::<i64>())?;
        }
        Ok(layout)
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: made in `new`, and dropped once.
        let _ = unsafe { blas::destroy_matrix_layout(self.0) };
    }
}

/// What a kernel may use, for the library's choice.
struct Preference(lt::cublasLtMatmulPreference_t);

impl Preference {
    fn new([a, b, d]: [u32; 3]) -> Result<Self, blas::CublasError> {
        use lt::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let preference = Self(blas::create_matmul_pref()?);
        let workspace = WORKSPACE as u64;
        let most = Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        // SAFETY: the preference is alive, and the attribute is a uint64.
        unsafe {
            blas::set_matmul_pref_attribute(preference.0, most, (&raw const workspace).cast(), size_of::<u64>())
        }?;
        let split_sums = lt::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        let values = [
            (Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, split_sums),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, a),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, b),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, d),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, d),
        ];
        for (attribute, value) in values {
            // SAFETY: the preference is alive, and each of these attributes is a uint32.
            unsafe {
                blas::set_matmul_pref_attribute(preference.0, attribute, (&raw const value).cast(), size_of::<u32>())
            }?;
        }
        Ok(preference)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made in `new`, and dropped once.
        let _ = unsafe { blas::destroy_matmul_pref(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::{View, by_columns};
    use super::*;

    fn columns(m: usize, n: usize, k: usize) -> Columns {
        let view = |shape, strides| View { shape, strides };
        by_columns(view(&[m, k], &[k, 1]), view(&[k, n], &[n, 1]), view(&[m, n], &[n, 1])).unwrap()
    }

    #[test]
    fn formats_that_the_library_combines() {
        let asks = |factors, result, adds| Question::new(factors, result, adds, columns(3, 5, 4), [0; 3]).is_some();
        for format in [Format::F32, Format::F16, Format::Bf16] {
            assert!(asks(format, format, false));
            assert!(asks(format, Format::F32, false));
            assert!(asks(format, Format::F32, true), "sums are f32");
        }
        assert!(!asks(Format::F32, Format::Bf16, false));
        assert!(!asks(Format::F16, Format::Bf16, false));
        assert!(!asks(Format::Bf16, Format::Bf16, true));
        assert_eq!(Format::of(DType::F64), None);
        assert_eq!(Format::of(DType::BF16), Some(Format::Bf16));
    }

    #[test]
    fn whatever_changes_the_choice_is_another_question() {
        let ask =
            |factors, result, adds, columns, starts| Question::new(factors, result, adds, columns, starts).unwrap();
        let (bf16, f32) = (Format::Bf16, Format::F32);
        let questions = [
            ask(bf16, f32, false, columns(3, 5, 4), [0; 3]),
            ask(bf16, bf16, false, columns(3, 5, 4), [0; 3]),
            ask(Format::F16, f32, false, columns(3, 5, 4), [0; 3]),
            ask(bf16, f32, true, columns(3, 5, 4), [0; 3]),
            ask(bf16, f32, false, columns(5, 3, 4), [0; 3]),
            ask(bf16, f32, false, columns(3, 5, 4), [0, 2, 0]),
            ask(bf16, f32, false, columns(3, 5, 4), [0, 0, 8]),
        ];
        let different: std::collections::HashSet<_> = questions.iter().collect();
        assert_eq!(different.len(), questions.len());
        assert_eq!(
            questions[0].at([512, 256, 1024]),
            questions[0],
            "more than 256 bytes make no difference"
        );
        assert_eq!(questions[0].at([512, 258, 1024]), questions[5]);
    }

    #[test]
    fn alignment_of_addresses() {
        assert_eq!(
            [0, 1, 2, 12, 16, 24, 256, 512, 768].map(alignment),
            [256, 1, 2, 4, 16, 8, 256, 256, 256]
        );
    }

    #[test]
    fn a_question_reads_by_rows() {
        let question = Question::new(Format::Bf16, Format::F32, false, columns(3, 5, 4), [0; 3]).unwrap();
        assert_eq!(question.to_string(), "1 × [3 × 4]·[4 × 5] of Bf16 in F32");
    }
}
