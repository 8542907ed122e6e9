//! Which backend a command runs on: the ones compiled in, the one asked for, the one chosen.
//!
//! Everything above this file is generic over `B: AutodiffBackend`; here alone a name becomes a type.

#[cfg(feature = "gpu")]
mod kept;

use std::fmt;
use std::str::FromStr;

use burn::tensor::backend::AutodiffBackend;

/// What a backend computes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hardware {
    /// The processor, in the memory of this process.
    Processor,
    /// A card, or a software driver, behind the platform's graphics interface.
    Graphics,
    /// NVIDIA's cards.
    Cuda,
    /// AMD's cards.
    Amd,
}

/// Declares the backends. A row has the name of a backend, its feature, which is its name on the command line, what it computes on, its type
/// without autodiff, and what makes a device of a number.
macro_rules! backends {
    ($($(#[doc = $doc:literal])+ $name:ident $feature:literal on $hardware:ident: $backend:ty, $device:expr;)*) => {
        /// A backend that can be compiled in, fastest first.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum BackendName {
            $($(#[doc = $doc])+ $name,)*
        }

        impl BackendName {
            /// Every backend, fastest first: the order in which `auto` looks.
            pub const ALL: &[BackendName] = &[$(BackendName::$name),*];

            /// Its name on the command line, which is the feature that brings it.
            pub fn name(self) -> &'static str {
                match self {
                    $(BackendName::$name => $feature,)*
                }
            }

            /// Whether this binary has it.
            pub fn is_compiled_in(self) -> bool {
                match self {
                    $(BackendName::$name => cfg!(feature = $feature),)*
                }
            }

            fn hardware(self) -> Hardware {
                match self {
                    $(BackendName::$name => Hardware::$hardware,)*
                }
            }
        }

        impl Selected {
            /// Runs the task on this backend.
            ///
            /// # Errors
            /// If the backend is not compiled in.
            pub fn run<T: BackendTask>(self, task: T) -> Result<T::Output, BackendError> {
                match self.name {
                    $(
                        #[cfg(feature = $feature)]
                        BackendName::$name => Ok(task.run::<burn::backend::Autodiff<$backend>>($device(self.index))),
                        #[cfg(not(feature = $feature))]
                        BackendName::$name => Err(BackendError::NotCompiledIn(self.name)),
                    )*
                }
            }
        }
    };
}

// Fastest first, which is the order in which `auto` looks.
backends! {
    /// NVIDIA cards through CUDA.
    Cuda "cuda" on Cuda: burn_cuda::Cuda, burn_cuda::CudaDevice::new;
    /// AMD cards through ROCm.
    Rocm "rocm" on Amd: burn_rocm::Rocm, burn_rocm::RocmDevice::new;
    /// Apple cards through Metal.
    Metal "metal" on Graphics: burn_wgpu::Metal, wgpu_device;
    /// Any card through Vulkan.
    Vulkan "vulkan" on Graphics: burn_wgpu::Vulkan, wgpu_device;
    /// Any card through the platform's own graphics interface.
    Wgpu "wgpu" on Graphics: burn_wgpu::Wgpu, wgpu_device;
    /// The CPU, through Burn's flex.
    Flex "flex" on Processor: burn_flex::Flex, |_| burn_flex::FlexDevice;
    /// The CPU, through ndarray.
    Ndarray "ndarray" on Processor: burn_ndarray::NdArray<f32>, |_| burn_ndarray::NdArrayDevice::Cpu;
}

impl BackendName {
    /// Whether it computes on the processor, in the memory of this process.
    pub fn is_cpu(self) -> bool {
        self.hardware() == Hardware::Processor
    }

    /// Number of devices it finds that are worth choosing over a CPU: a software driver is not, and neither is an interface that this
    /// platform does not have.
    fn devices(self) -> usize {
        match self.hardware() {
            _ if !self.is_compiled_in() || !self.is_of_this_platform() => 0,
            #[cfg(feature = "cuda")]
            Hardware::Cuda => found(cuda_devices),
            #[cfg(feature = "rocm")]
            Hardware::Amd => found(amd_devices),
            #[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
            Hardware::Graphics => found(adapters).iter().filter(|adapter| adapter.is_card()).count(),
            _ => 1,
        }
    }

    /// Whether this platform has its interface.
    fn is_of_this_platform(self) -> bool {
        match self {
            BackendName::Metal => cfg!(target_vendor = "apple"),
            BackendName::Vulkan => !cfg!(target_vendor = "apple"),
            _ => true,
        }
    }

    /// Whether it can run at all, be it on a software driver.
    fn is_present(self) -> bool {
        match self.hardware() {
            #[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
            Hardware::Graphics => self.is_of_this_platform() && !found(adapters).is_empty(),
            _ => self.devices() > 0,
        }
    }
}

/// Drivers that are not there may end a question with a panic rather than with an answer, which is then the default.
#[cfg(feature = "gpu")]
fn found<T: Default>(question: impl FnOnce() -> T + std::panic::UnwindSafe) -> T {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let answer = std::panic::catch_unwind(question).unwrap_or_default();
    std::panic::set_hook(hook);
    answer
}

/// Gives CubeCL, which is under every GPU's backend, the settings of this program, unless someone was faster. It reads them once, when it
/// first meets a device, and would else look for a file in the working directory.
#[cfg(feature = "gpu")]
fn configure(selected: Selected, what: Telling) {
    use cubecl::config::cache::CacheConfig;
    use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig, profiling::ProfilingLogLevel};
    if selected.is_cpu() || CubeClRuntimeConfig::storage().lock().is_some() {
        return;
    }
    // The variables that CubeCL reads, for its logs, hold on.
    let mut settings = CubeClRuntimeConfig::default().override_from_env();
    // A stream has memory of its own, and every thread a stream: the loader of the batches would hold what training lacks.
    settings.streaming.max_streams = 1;
    let level = match what {
        Telling::Nothing => None,
        Telling::Launches => Some(ProfilingLogLevel::Minimal),
        Telling::Times => Some(ProfilingLogLevel::Medium),
    };
    if let Some(level) = level {
        settings.profiling.logger.level = level;
        settings.profiling.logger.log = Some(Default::default());
    }
    match (gpas_data::corpus::cache_directory(), selected.identity()) {
        (Some(cache), Some(identity)) => {
            let tuned = identity.keep(&cache, &mut settings);
            if tuned > 0 {
                log::info!(
                    "{tuned} kernels were chosen for {} before, on a card like it",
                    identity.name
                );
            }
        }
        (Some(cache), None) => settings.autotune.cache = CacheConfig::File(cache.join("cubecl")),
        (None, _) => (),
    }
    CubeClRuntimeConfig::set(settings);
}

/// Asks the driver, and not the backend, which would occupy the first card to answer.
#[cfg(feature = "cuda")]
fn cuda_devices() -> usize {
    use cudarc::driver::result;
    let count = result::init().and_then(|()| result::device::get_count());
    count.ok().and_then(|count| count.try_into().ok()).unwrap_or(0)
}

/// Asks the driver through CubeCL, which looks for its library then and opens no card.
#[cfg(feature = "rocm")]
fn amd_devices() -> usize {
    use cubecl::Runtime;
    cubecl::hip::HipRuntime::enumerate_devices(0, &()).len()
}

/// The name of a card, and its architecture and driver, in the driver's words.
#[cfg(feature = "cuda")]
fn cuda_card(index: usize) -> Option<(String, String)> {
    use cudarc::driver::{result, sys};
    result::init().ok()?;
    let card = result::device::get(i32::try_from(index).ok()?).ok()?;
    let attribute = |attribute| {
        // SAFETY: the driver has given `card`, and fills a number that the call owns.
        unsafe { result::device::get_attribute(card, attribute) }.ok()
    };
    let major = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let mut cuda = 0;
    // SAFETY: the call fills a number that outlives it.
    unsafe { sys::cuDriverGetVersion(&raw mut cuda) }.result().ok()?;
    // "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.159.03  Tue …"
    let module = std::fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    let driver = module.lines().next().unwrap_or_default().split_whitespace();
    let driver = driver.filter(|word| word.starts_with(|letter: char| letter.is_ascii_digit()) && word.contains('.'));
    let driver = driver
        .map(|version| format!("driver {version}, "))
        .next()
        .unwrap_or_default();
    let (cuda, part) = (cuda / 1000, cuda % 1000 / 10);
    let name = result::device::get_name(card).ok()?;
    Some((name, format!("sm{major}{minor}, {driver}CUDA {cuda}.{part}")))
}

/// Something that the platform's graphics interface computes on.
#[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
struct Adapter {
    /// What CubeCL calls it.
    device: burn_wgpu::WgpuDevice,
    info: wgpu::AdapterInfo,
}

#[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
impl Adapter {
    /// Whether it is more than a software driver.
    fn is_card(&self) -> bool {
        use wgpu::DeviceType::{DiscreteGpu, IntegratedGpu, VirtualGpu};
        matches!(self.info.device_type, DiscreteGpu | IntegratedGpu | VirtualGpu)
    }
}

/// All there is: discrete cards, integrated ones, virtual ones, then software drivers.
#[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
fn adapters() -> Vec<Adapter> {
    use burn_wgpu::WgpuDevice;
    use burn_wgpu::graphics::{AutoGraphicsApi, GraphicsApi};
    use wgpu::DeviceType;
    let backend = AutoGraphicsApi::backend();
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: backend.into(),
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    let adapters = cubecl::future::block_on(instance.enumerate_adapters(backend.into()));
    let infos: Vec<_> = adapters.iter().map(wgpu::Adapter::get_info).collect();
    let of = |kind: DeviceType, device: fn(usize) -> WgpuDevice| {
        let infos = infos.iter().filter(move |info| info.device_type == kind).cloned();
        let adapter = |(index, info)| Adapter {
            device: device(index),
            info,
        };
        infos.enumerate().map(adapter).collect::<Vec<_>>()
    };
    let mut all = of(DeviceType::DiscreteGpu, WgpuDevice::DiscreteGpu);
    all.extend(of(DeviceType::IntegratedGpu, WgpuDevice::IntegratedGpu));
    all.extend(of(DeviceType::VirtualGpu, WgpuDevice::VirtualGpu));
    // CubeCL knows no second one of them.
    all.extend(of(DeviceType::Cpu, |_| WgpuDevice::Cpu).into_iter().take(1));
    all
}

impl fmt::Display for BackendName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What stands after `--backend`: `auto`, or a name with the number of a device, `cuda:1`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackendChoice {
    /// The fastest that is compiled in and present.
    #[default]
    Auto,
    /// That backend on that device.
    Named(BackendName, usize),
}

/// What a GPU's runtime tells of each kernel, to whoever [listens](crate::kernels::listen).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Telling {
    /// Nothing.
    #[default]
    Nothing,
    /// That it was launched.
    Launches,
    /// How long it took, for which the device finishes it before it gets the next one.
    Times,
}

/// Why a backend cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages are the documentation")]
pub enum BackendError {
    #[error("unknown backend `{0}`")]
    Unknown(String),
    #[error("backend `{0}` is not part of this program")]
    NotCompiledIn(BackendName),
    #[error("backend `{backend}` finds no device {index} (it has {count})")]
    NoDevice {
        backend: BackendName,
        index: usize,
        count: usize,
    },
    #[error("no backend is part of this program")]
    None,
}

impl BackendError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            BackendError::Unknown(_) => {
                let names: Vec<&str> = BackendName::ALL.iter().map(|name| name.name()).collect();
                format!("one of auto, {}", names.join(", "))
            }
            BackendError::NotCompiledIn(name) => format!("build with `--features {name}`"),
            BackendError::NoDevice { .. } => "`--backend auto` takes what is present".into(),
            BackendError::None => "build with `--features flex`".into(),
        }
    }
}

impl FromStr for BackendChoice {
    type Err = BackendError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.eq_ignore_ascii_case("auto") {
            return Ok(BackendChoice::Auto);
        }
        let unknown = || BackendError::Unknown(text.to_string());
        let (name, index) = match text.split_once(':') {
            Some((name, index)) => (name, index.parse().map_err(|_| unknown())?),
            None => (text, 0),
        };
        let known = BackendName::ALL
            .iter()
            .find(|known| known.name().eq_ignore_ascii_case(name));
        Ok(BackendChoice::Named(*known.ok_or_else(unknown)?, index))
    }
}

/// A backend that is compiled in, with a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selected {
    /// Its name.
    pub name: BackendName,
    /// Number of the device.
    pub index: usize,
}

/// Who computes the matrix products of a CUDA device, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Products {
    /// NVIDIA's library, its version and what it has done so far.
    Library(String),
    /// CubeCL's kernels, and why.
    Kernels(String),
}

impl fmt::Display for Products {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Products::Library(words) | Products::Kernels(words) => f.write_str(words),
        }
    }
}

/// Bytes of a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// In tensors that exist.
    pub in_use: u64,
    /// What the allocator has taken from the card, which it keeps for what comes: the most so far.
    pub reserved: u64,
}

impl fmt::Display for Selected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.index {
            0 => write!(f, "{}", self.name),
            index => write!(f, "{}:{index}", self.name),
        }
    }
}

impl BackendChoice {
    /// The backend to use.
    ///
    /// # Errors
    /// If it is not compiled in, or finds no such device.
    pub fn select(self) -> Result<Selected, BackendError> {
        self.select_telling(Telling::Nothing)
    }

    /// [`select`](Self::select), and from now on CubeCL tells of every kernel that it launches, to whoever
    /// [listens](crate::kernels::listen). No device may have been opened before.
    ///
    /// # Errors
    /// As [`select`](Self::select).
    pub fn select_telling(self, what: Telling) -> Result<Selected, BackendError> {
        let selected = self.find()?;
        #[cfg(feature = "gpu")]
        configure(selected, what);
        #[cfg(not(feature = "gpu"))]
        let _ = what;
        Ok(selected)
    }

    fn find(self) -> Result<Selected, BackendError> {
        match self {
            BackendChoice::Auto => BackendName::ALL
                .iter()
                .find(|name| name.devices() > 0)
                .map(|name| Selected { name: *name, index: 0 })
                .ok_or(BackendError::None),
            BackendChoice::Named(name, _) if !name.is_compiled_in() => Err(BackendError::NotCompiledIn(name)),
            // A software driver counts for nothing in `auto` and yet runs when asked for.
            BackendChoice::Named(name, 0) if name.is_present() => Ok(Selected { name, index: 0 }),
            BackendChoice::Named(backend, index) => match backend.devices() {
                count if index < count => Ok(Selected { name: backend, index }),
                count => Err(BackendError::NoDevice { backend, index, count }),
            },
        }
    }
}

/// Work that runs on whichever backend was selected.
pub trait BackendTask {
    /// What it returns.
    type Output;

    /// Runs on a device.
    fn run<B: AutodiffBackend>(self, device: B::Device) -> Self::Output;
}

impl Selected {
    /// Whether it computes on the processor, in the memory of this process.
    pub fn is_cpu(self) -> bool {
        self.name.is_cpu()
    }

    /// Whether it computes on the processor, be it through a software driver of a graphics interface.
    pub fn is_software(self) -> bool {
        match self.name.hardware() {
            Hardware::Processor => true,
            #[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
            Hardware::Graphics => {
                found(|| adapters().into_iter().nth(self.index)).is_some_and(|adapter| !adapter.is_card())
            }
            _ => false,
        }
    }

    /// The card and its driver, for what is to be kept for them; none where nothing tells.
    #[cfg(feature = "gpu")]
    #[allow(clippy::match_single_binding, reason = "without a feature, its hardware is unknown")]
    fn identity(self) -> Option<kept::Identity> {
        let card: Option<(String, String)> = match self.name.hardware() {
            #[cfg(feature = "cuda")]
            Hardware::Cuda => found(|| cuda_card(self.index)),
            #[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
            Hardware::Graphics => {
                let adapter = found(|| adapters().into_iter().nth(self.index));
                adapter.map(|Adapter { info, .. }| (info.name, format!("{} {}", info.driver, info.driver_info)))
            }
            _ => None,
        };
        let (name, driver) = card?;
        Some(kept::Identity {
            backend: self.name.name(),
            index: self.index,
            name,
            driver,
        })
    }

    /// What it computes on, as the system calls it, with the driver where there is one; none where nothing tells.
    pub fn device_name(self) -> Option<String> {
        match self.name.hardware() {
            Hardware::Processor => processor_name(),
            #[cfg(feature = "cuda")]
            Hardware::Cuda => found(|| cuda_card(self.index)).map(|(name, driver)| format!("{name}, {driver}")),
            #[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
            Hardware::Graphics => {
                let adapter = found(|| adapters().into_iter().nth(self.index));
                adapter.map(|Adapter { info, .. }| format!("{}, {} {}", info.name, info.driver, info.driver_info))
            }
            #[allow(unreachable_patterns, reason = "without a feature, its hardware is unknown")]
            _ => None,
        }
    }

    /// Who computes its matrix products, where that is not always the same: on a CUDA device, which this opens.
    pub fn products(self) -> Option<Products> {
        match self.name.hardware() {
            #[cfg(feature = "cuda")]
            Hardware::Cuda => Some(match gpas_cube::products(&burn_cuda::CudaDevice::new(self.index)) {
                library @ gpas_cube::Products::CuBlasLt { .. } => Products::Library(library.to_string()),
                kernels @ gpas_cube::Products::CubeCl { .. } => Products::Kernels(kernels.to_string()),
            }),
            _ => None,
        }
    }

    /// What the allocator of its device says; none where the memory is this process's, or the device does not tell.
    pub fn device_memory(self) -> Option<DeviceMemory> {
        match self.name.hardware() {
            #[cfg(feature = "cuda")]
            Hardware::Cuda => memory_of::<cubecl::cuda::CudaRuntime>(&burn_cuda::CudaDevice::new(self.index)),
            #[cfg(feature = "rocm")]
            Hardware::Amd => memory_of::<cubecl::hip::HipRuntime>(&burn_rocm::RocmDevice::new(self.index)),
            #[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
            Hardware::Graphics => memory_of::<burn_wgpu::WgpuRuntime>(&wgpu_device(self.index)),
            _ => None,
        }
    }
}

#[cfg(feature = "gpu")]
fn memory_of<R: cubecl::Runtime>(device: &R::Device) -> Option<DeviceMemory> {
    let usage = R::client(device).memory_usage().ok()?;
    Some(DeviceMemory {
        in_use: usage.bytes_in_use,
        reserved: usage.bytes_reserved,
    })
}

/// The processor and its cores.
fn processor_name() -> Option<String> {
    let cores = std::thread::available_parallelism().ok()?;
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    let name = line.split_once(':')?.1.trim();
    Some(format!("{cores} cores of {name}"))
}

/// The device of that number; where a driver has gone meanwhile, CubeCL's own choice, which says so.
#[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
fn wgpu_device(index: usize) -> burn_wgpu::WgpuDevice {
    let adapter = found(|| adapters().into_iter().nth(index));
    adapter.map_or(burn_wgpu::WgpuDevice::DefaultDevice, |adapter| adapter.device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        for &name in BackendName::ALL {
            assert_eq!(name.to_string().parse(), Ok(BackendChoice::Named(name, 0)));
        }
        assert_eq!("cuda:3".parse(), Ok(BackendChoice::Named(BackendName::Cuda, 3)));
        assert_eq!("auto".parse(), Ok(BackendChoice::Auto));
        for wrong in ["cudda", "cuda:", "cuda:x", ""] {
            assert_eq!(wrong.parse::<BackendChoice>(), Err(BackendError::Unknown(wrong.into())));
        }
    }

    #[test]
    fn a_backend_that_is_missing_says_which_feature_brings_it() {
        for name in BackendName::ALL.iter().copied().filter(|name| !name.is_compiled_in()) {
            let error = BackendChoice::Named(name, 0).select().unwrap_err();
            assert_eq!(error, BackendError::NotCompiledIn(name));
            assert_eq!(error.hint(), format!("build with `--features {name}`"));
        }
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn a_card_tells_its_architecture_and_driver() {
        match found(|| cuda_card(0)) {
            Some((name, driver)) => assert!(!name.is_empty() && driver.starts_with("sm") && driver.contains("CUDA 1")),
            None => println!("skipped: no NVIDIA card"),
        }
    }

    #[cfg(feature = "flex")]
    #[test]
    fn a_cpu_has_one_device() {
        let error = BackendChoice::Named(BackendName::Flex, 1).select().unwrap_err();
        assert_eq!(error.to_string(), "backend `flex` finds no device 1 (it has 1)");
    }
}
