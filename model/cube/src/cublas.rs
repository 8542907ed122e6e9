//! Products by cuBLASLt, NVIDIA's library, on the memory of CubeCL's tensors and in the order of CubeCL's kernels.
//!
//! The thread that launches a card's kernels also multiplies: [`Service`] lives on it, beside CubeCL's server, and is given closures in one
//! queue with that server. The first product of each kind is waited for, so that a refusal is known before anything else is done, and
//! CubeCL's kernel computes that kind from then on; later ones are only put into the queue. Should the library fail in one of those, its
//! result is filled with NaN and the error logged, since whoever asked has gone on already. The workspace is a tensor of CubeCL's, and so part
//! of what it says of its memory. An event for each side of a product costs the card's queue a few microseconds.
//!
//! **What has not run on a card.** None of this has. It was written against the sources of cudarc 0.19.10 and CubeCL 0.10 and NVIDIA's
//! reference. Without a card, these are tested: the question that the library is asked (`layout`, by a product that follows BLAS's rules),
//! the choice whether to ask it (`machine`), what its answer depends on (`library`), and, in `tests/pretended.rs`, every call of driver and
//! library with CubeCL's own server on a pretended card, which computes only what streams and events demand. Only a card can say whether the
//! library takes these formats and layouts and how exact and how fast it is, what the two events cost, and whether the driver's waits for a
//! context are as its reference says: `tests/products.rs` asks all of that on a machine with one.

mod layout;
mod library;
mod machine;

use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::ComputeClient;
use cubecl::cuda::{CudaDevice, CudaRuntime};
use cubecl::device::{Device, DeviceId, DeviceService, ServerUtilitiesHandle};
use cubecl::device_handle::DeviceHandle;
use cubecl::prelude::Runtime;
use cubecl::server::{Binding, ComputeServer, Handle};
use cubecl::stream_id::StreamId;

use crate::products::{Products, Why};
use crate::tensor::{Form, empty};
use layout::{View, by_columns};
use library::{Addresses, Failure, Format, Library, Question, WORKSPACE};
use machine::Machine;

type Tensor = CubeTensor<CudaRuntime>;
type Server = <CudaRuntime as Runtime>::Server;

/// `a·b` in the format `output`, if the library does it.
pub(crate) fn product<R: CubeRuntime>(a: &CubeTensor<R>, b: &CubeTensor<R>, output: DType) -> Option<CubeTensor<R>> {
    let form = Form::new(product_shape(a.meta.shape(), b.meta.shape())?, output);
    let strides = strides_without_gaps(&form.shape);
    let card = Card::of(a)?;
    let [on_a, on_b] = [on_cuda(a)?, on_cuda(b)?];
    let view = View {
        shape: &form.shape,
        strides: &strides,
    };
    let question = question(on_a, on_b, output, view, 0, false)?;
    if card.answers.of(&question) == Some(false) {
        return None;
    }
    let result = empty(a, form);
    let is_as_asked = result.meta.strides().iter().eq(&strides) && start_of(&result) == 0;
    let done = is_as_asked && card.multiply(question, [on_a, on_b, on_cuda(&result)?]);
    done.then_some(result)
}

/// Writes `a·b` into `d`, or adds it to the f32 sum that is there, if the library does it: it says whether it has.
pub(crate) fn product_in<R: CubeRuntime>(a: &CubeTensor<R>, b: &CubeTensor<R>, d: &CubeTensor<R>, adds: bool) -> bool {
    let written = || {
        let card = Card::of(a)?;
        let [a, b, d] = [on_cuda(a)?, on_cuda(b)?, on_cuda(d)?];
        let question = question(a, b, d.dtype, view(d), start_of(d), adds)?;
        Some(a.device == d.device && card.multiply(question, [a, b, d]))
    };
    written().unwrap_or(false)
}

/// What the library does on a device, or why it does nothing.
pub(crate) fn products(device: &dyn Any) -> Result<Products, Why> {
    let device: &CudaDevice = device.downcast_ref().ok_or(Why::NotCuda)?;
    // Before a client is made, which panics without a driver.
    Machine::here().usable()?;
    let card = Card::new(device, CudaRuntime::client(device)).ok_or_else(|| Why::Refused(NO_SERVICE.into()))?;
    let version = card.version().clone()?;
    let refused = card.answers.takes().values().filter(|takes| !**takes).count();
    let done = card.answers.done.load(Ordering::Relaxed);
    Ok(Products::CuBlasLt { version, done, refused })
}

const NO_SERVICE: &str = "the card's thread does not answer";

/// The tensor if it is on the CUDA runtime.
fn on_cuda<R: CubeRuntime>(tensor: &CubeTensor<R>) -> Option<&Tensor> {
    (tensor as &dyn Any).downcast_ref()
}

/// Shape of a product; a dimension before the last two may be 1 in one of the factors.
fn product_shape(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len();
    if rank < 2 || b.len() != rank {
        return None;
    }
    let batches = a
        .iter()
        .zip(b)
        .take(rank - 2)
        .map(|(a, b)| *if *a == 1 { b } else { a });
    Some(batches.chain([a[rank - 2], b[rank - 1]]).collect())
}

fn strides_without_gaps(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for dimension in (1..shape.len()).rev() {
        strides[dimension - 1] = strides[dimension] * shape[dimension];
    }
    strides
}

/// Where a tensor begins in its memory, in bytes.
fn start_of<R: CubeRuntime>(tensor: &CubeTensor<R>) -> u64 {
    tensor.handle.offset_start.unwrap_or(0)
}

fn view(tensor: &Tensor) -> View<'_> {
    View {
        shape: tensor.meta.shape(),
        strides: tensor.meta.strides(),
    }
}

/// The product of two tensors as the library is asked for it.
fn question(a: &Tensor, b: &Tensor, format: DType, d: View, d_start: u64, adds: bool) -> Option<Question> {
    if a.dtype != b.dtype || a.device != b.device || a.qparams.is_some() || b.qparams.is_some() {
        return None;
    }
    let columns = by_columns(view(a), view(b), d)?;
    // The library's A is the second factor. All memory of CubeCL's begins at a multiple of more bytes than the library asks for.
    let [a_start, b_start] = [a, b].map(start_of);
    let (factors, result) = (Format::of(a.dtype)?, Format::of(format)?);
    Question::new(factors, result, adds, columns, [b_start, a_start, d_start])
}

/// A card, as a thread sees it that asks for products.
struct Card {
    service: DeviceHandle<Service>,
    answers: Arc<Answers>,
    client: ComputeClient<CudaRuntime>,
    server: DeviceHandle<Server>,
}

impl Card {
    /// The card of a tensor, if its products are the library's.
    fn of<R: CubeRuntime>(tensor: &CubeTensor<R>) -> Option<Self> {
        let tensor = on_cuda(tensor)?;
        let card = Self::new(&tensor.device, tensor.client.clone())?;
        card.version().is_ok().then_some(card)
    }

    fn new(device: &CudaDevice, client: ComputeClient<CudaRuntime>) -> Option<Self> {
        let service = DeviceHandle::<Service>::new(device.to_id());
        let answers = service.utilities().downcast::<Answers>().ok()?;
        Some(Self {
            service,
            answers,
            client,
            server: DeviceHandle::new(device.to_id()),
        })
    }

    /// Opens the library where nobody has yet.
    fn version(&self) -> &Result<usize, Why> {
        self.answers.library.get_or_init(|| {
            let (client, server) = (self.client.clone(), self.server.clone());
            let opened = self
                .service
                .submit_blocking(move |service| service.open(client, server));
            let opened = opened.unwrap_or_else(|_| Err(Why::Refused(NO_SERVICE.into())));
            if let Err(why) = &opened {
                log::warn!("matrix products are CubeCL's: {why}");
            }
            opened
        })
    }

    /// Says whether the library has done it, or will, before whatever the card is given after.
    fn multiply(&self, question: Question, [a, b, d]: [&Tensor; 3]) -> bool {
        let product = Product {
            question,
            // The library's A is the second factor.
            memory: [b, a, d].map(|tensor| tensor.handle.clone().binding()),
        };
        let done = match self.answers.of(&question) {
            Some(true) => {
                self.service.submit(move |service| service.next(&product));
                true
            }
            Some(false) => false,
            None => {
                let done = self.service.submit_blocking(move |service| service.first(&product));
                let done = done.unwrap_or_else(|_| Err(NO_SERVICE.into()));
                self.answers.keep(question, done.is_ok());
                if let Err(error) = &done {
                    log::warn!("CubeCL multiplies {question}: cuBLASLt refused ({error})");
                }
                done.is_ok()
            }
        };
        self.answers.done.fetch_add(usize::from(done), Ordering::Relaxed);
        done
    }
}

/// What is known of the library by all threads.
#[derive(Default)]
struct Answers {
    library: OnceLock<Result<usize, Why>>,
    takes: Mutex<HashMap<Question, bool>>,
    /// Products that the library was given.
    done: AtomicUsize,
}

impl Answers {
    fn takes(&self) -> MutexGuard<'_, HashMap<Question, bool>> {
        self.takes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the library takes a product; none if it was not asked yet.
    fn of(&self, question: &Question) -> Option<bool> {
        self.takes().get(question).copied()
    }

    fn keep(&self, question: Question, takes: bool) {
        self.takes().insert(question, takes);
    }
}

/// A product to be done.
struct Product {
    question: Question,
    /// The memory of the library's A, B and D. It is held until the product is in the card's queue, which is long enough: see `library`. A binding keeps
    /// memory without being a handle of its own, of which there would else be too many for CubeCL to compute in place.
    memory: [Binding; 3],
}

/// The library on the thread that launches a card's kernels.
#[derive(Default)]
struct Service {
    answers: Arc<Answers>,
    open: Option<Open>,
}

struct Open {
    library: Library,
    server: DeviceHandle<Server>,
    workspace: Handle,
}

impl DeviceService for Service {
    /// Opens nothing: other services cannot be reached from here.
    fn init(_: DeviceId) -> Self {
        Self::default()
    }

    fn utilities(&self) -> ServerUtilitiesHandle {
        self.answers.clone()
    }
}

impl Service {
    fn open(&mut self, client: ComputeClient<CudaRuntime>, server: DeviceHandle<Server>) -> Result<usize, Why> {
        let (version, order) = Machine::here().usable()?;
        let workspace = client.empty(WORKSPACE);
        addresses(&server, [workspace.clone().binding()]).map_err(Why::Refused)?;
        // SAFETY: `usable` says that library and driver are there, and CubeCL has made the card's context current to find the address.
        let library = unsafe { Library::open(order) }.map_err(Why::Refused)?;
        self.open = Some(Open {
            library,
            server,
            workspace,
        });
        Ok(version)
    }

    /// A product of a kind that the library was not asked for yet. Whoever asks waits for the answer.
    fn first(&mut self, product: &Product) -> Result<(), String> {
        self.multiply(product).map_err(|failure| {
            if let Failure::Within(_) = failure {
                self.spoil(product);
            }
            failure.to_string()
        })
    }

    /// A product of a kind that the library has done before. Nobody waits.
    fn next(&mut self, product: &Product) {
        // CubeCL's thread goes on after a panic, and says it in a warning only.
        let done = catch_unwind(AssertUnwindSafe(|| self.multiply(product)));
        let done = done.unwrap_or_else(|_| Err(Failure::Within("a panic".into())));
        if let Err(failure) = done {
            log::error!("cuBLASLt failed at {}: {failure}. Its result is NaN", product.question);
            self.spoil(product);
            self.answers.keep(product.question, false);
        }
    }

    fn multiply(&mut self, product: &Product) -> Result<(), Failure> {
        let open = self.open.as_mut().ok_or(Failure::Before(NO_SERVICE.into()))?;
        let [a, b, d] = product.memory.clone();
        let memory = [a, b, d, open.workspace.clone().binding()];
        let [a, b, d, workspace] = addresses(&open.server, memory).map_err(Failure::Before)?;
        let question = product.question.at([a, b, d]);
        let addresses = Addresses { a, b, d, workspace };
        // SAFETY: this is the thread that gives the card its work, and CubeCL has made the card's context current to find the addresses. They
        // are those of tensors whose shapes, strides and formats the question was made of, and `product` holds the tensors' memory. The result
        // is a tensor of its own.
        unsafe { open.library.multiply(&question, addresses) }
    }

    /// Makes a result NaN of which nothing is known. If even this fails, the card's context is lost, and so is whatever reads the result.
    fn spoil(&self, product: &Product) {
        let Some(open) = &self.open else { return };
        let [.., d] = product.memory.clone();
        let spoiled = addresses(&open.server, [d]).and_then(|[d]| {
            // SAFETY: the address is that of the product's D, and the card's context is current after it was found.
            unsafe { Library::spoil(&product.question, d) }.map_err(|error| error.to_string())
        });
        if let Err(error) = spoiled {
            log::error!(
                "the result of {} cannot be marked as unknown: {error}",
                product.question
            );
        }
    }
}

/// Where memory of CubeCL's is on the card. Only on the card's thread, on which the card's context is current after this.
fn addresses<const N: usize>(server: &DeviceHandle<Server>, memory: [Binding; N]) -> Result<[u64; N], String> {
    let stream = StreamId::current();
    let found = server.submit_blocking(move |server| {
        let mut addresses = [0; N];
        for (address, memory) in addresses.iter_mut().zip(memory) {
            let resource = server.get_resource(memory, stream);
            *address = resource.map_err(|error| format!("{error:?}"))?.resource().ptr;
        }
        Ok(addresses)
    });
    found.unwrap_or_else(|_| Err(NO_SERVICE.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_of_products() {
        assert_eq!(product_shape(&[3, 4], &[4, 5]), Some(vec![3, 5]));
        assert_eq!(product_shape(&[2, 1, 3, 4], &[1, 7, 4, 5]), Some(vec![2, 7, 3, 5]));
        assert_eq!(product_shape(&[4], &[4, 5]), None);
        assert_eq!(product_shape(&[2, 3, 4], &[4, 5]), None);
        assert_eq!(strides_without_gaps(&[2, 3, 5]), [15, 5, 1]);
    }

    #[test]
    fn an_answer_is_kept_for_its_question() {
        let view = |shape, strides| View { shape, strides };
        let columns = by_columns(view(&[3, 4], &[4, 1]), view(&[4, 5], &[5, 1]), view(&[3, 5], &[5, 1])).unwrap();
        let ask = |format| Question::new(format, Format::F32, false, columns, [0; 3]).unwrap();
        let answers = Answers::default();
        answers.keep(ask(Format::Bf16), true);
        answers.keep(ask(Format::F16), false);
        let given = [Format::Bf16, Format::F16, Format::F32].map(|format| answers.of(&ask(format)));
        assert_eq!(given, [Some(true), Some(false), None]);
    }

    #[test]
    fn a_machine_without_a_card_says_so() {
        assert_eq!(products(&0), Err(Why::NotCuda));
        if let Err(why) = Machine::here().usable() {
            assert_eq!(products(&CudaDevice::default()), Err(why));
        }
    }
}
