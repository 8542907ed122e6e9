//! Which backend a command runs on: the ones compiled in, the one asked for, the one chosen.
//!
//! Everything above this file is generic over `B: AutodiffBackend`; here alone a name becomes a type.

use std::fmt;
use std::str::FromStr;

use burn::tensor::backend::AutodiffBackend;

/// A backend that can be compiled in, fastest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendName {
    /// NVIDIA cards through CUDA.
    Cuda,
    /// Apple cards through Metal.
    Metal,
    /// Any card through Vulkan.
    Vulkan,
    /// Any card through the platform's own graphics interface.
    Wgpu,
    /// The CPU, through Burn's flex.
    Flex,
    /// The CPU, through ndarray.
    Ndarray,
}

impl BackendName {
    /// Every backend, fastest first: the order in which `auto` looks.
    pub const ALL: [BackendName; 6] = [
        BackendName::Cuda,
        BackendName::Metal,
        BackendName::Vulkan,
        BackendName::Wgpu,
        BackendName::Flex,
        BackendName::Ndarray,
    ];

    /// Whether this binary has it.
    pub fn is_compiled_in(self) -> bool {
        match self {
            BackendName::Cuda => cfg!(feature = "cuda"),
            BackendName::Metal => cfg!(feature = "metal"),
            BackendName::Vulkan => cfg!(feature = "vulkan"),
            BackendName::Wgpu => cfg!(feature = "wgpu"),
            BackendName::Flex => cfg!(feature = "flex"),
            BackendName::Ndarray => cfg!(feature = "ndarray"),
        }
    }

    /// Number of devices it finds that are worth choosing over a CPU: a software driver is not, and neither is an interface that this
    /// platform does not have.
    fn devices(self) -> usize {
        match self {
            _ if !self.is_compiled_in() || !self.is_of_this_platform() => 0,
            #[cfg(feature = "cuda")]
            BackendName::Cuda => found(cuda_devices),
            #[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
            BackendName::Metal | BackendName::Vulkan | BackendName::Wgpu => {
                found(adapters).iter().filter(|adapter| adapter.is_card()).count()
            }
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
        match self {
            #[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
            BackendName::Metal | BackendName::Vulkan | BackendName::Wgpu => {
                self.is_of_this_platform() && !found(adapters).is_empty()
            }
            _ => self.devices() > 0,
        }
    }
}

/// Drivers that are not there may end a question with a panic rather than with an answer, which is then the default.
#[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal", feature = "cuda"))]
fn found<T: Default>(question: impl FnOnce() -> T + std::panic::UnwindSafe) -> T {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let answer = std::panic::catch_unwind(question).unwrap_or_default();
    std::panic::set_hook(hook);
    answer
}

/// Gives CubeCL, which is under every GPU's backend, the settings of this program, unless someone was faster. It reads them once, when it
/// first meets a device, and would else look for a file in the working directory.
fn configure() {
    #[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal", feature = "cuda"))]
    {
        use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig, cache::CacheConfig};
        if CubeClRuntimeConfig::storage().lock().is_some() {
            return;
        }
        // The variables that CubeCL reads, for its logs, hold on.
        let mut settings = CubeClRuntimeConfig::default().override_from_env();
        // A stream has memory of its own, and every thread a stream: the loader of the batches would hold what training lacks.
        settings.streaming.max_streams = 1;
        // The compiled kernels are not kept: CubeCL files them without the card that they were compiled for.
        if let Some(directory) = gpas_data::corpus::cache_directory() {
            settings.autotune.cache = CacheConfig::File(directory.join("cubecl"));
        }
        CubeClRuntimeConfig::set(settings);
    }
}

/// Asks the driver, and not the backend, which would occupy the first card to answer.
#[cfg(feature = "cuda")]
fn cuda_devices() -> usize {
    use cudarc::driver::result;
    let count = result::init().and_then(|()| result::device::get_count());
    count.ok().and_then(|count| count.try_into().ok()).unwrap_or(0)
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
        f.write_str(match self {
            BackendName::Cuda => "cuda",
            BackendName::Metal => "metal",
            BackendName::Vulkan => "vulkan",
            BackendName::Wgpu => "wgpu",
            BackendName::Flex => "flex",
            BackendName::Ndarray => "ndarray",
        })
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
                let names: Vec<String> = BackendName::ALL.iter().map(ToString::to_string).collect();
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
        let name = BackendName::ALL
            .into_iter()
            .find(|known| known.to_string().eq_ignore_ascii_case(name))
            .ok_or_else(unknown)?;
        Ok(BackendChoice::Named(name, index))
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
        configure();
        match self {
            BackendChoice::Auto => BackendName::ALL
                .into_iter()
                .find(|name| name.devices() > 0)
                .map(|name| Selected { name, index: 0 })
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
        matches!(self.name, BackendName::Flex | BackendName::Ndarray)
    }

    /// Whether it computes on the processor, be it through a software driver of a graphics interface.
    pub fn is_software(self) -> bool {
        match self.name {
            BackendName::Flex | BackendName::Ndarray => true,
            #[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
            BackendName::Metal | BackendName::Vulkan | BackendName::Wgpu => {
                let adapter = found(|| adapters().into_iter().nth(self.index));
                adapter.is_some_and(|adapter| !adapter.is_card())
            }
            #[allow(unreachable_patterns, reason = "without a feature, its name has no device")]
            _ => false,
        }
    }

    /// What it computes on, as the system calls it, with the driver where there is one; none where nothing tells.
    pub fn device_name(self) -> Option<String> {
        match self.name {
            BackendName::Flex | BackendName::Ndarray => processor_name(),
            #[cfg(feature = "cuda")]
            BackendName::Cuda => found(|| {
                use cudarc::driver::result;
                result::init().ok()?;
                let card = result::device::get(i32::try_from(self.index).ok()?).ok()?;
                result::device::get_name(card).ok()
            }),
            #[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
            BackendName::Metal | BackendName::Vulkan | BackendName::Wgpu => {
                let adapter = found(|| adapters().into_iter().nth(self.index));
                adapter.map(|Adapter { info, .. }| format!("{}, {} {}", info.name, info.driver, info.driver_info))
            }
            #[allow(unreachable_patterns, reason = "without a feature, its name has no device")]
            _ => None,
        }
    }

    /// What the allocator of its device says; none where the memory is this process's, or the device does not tell.
    pub fn device_memory(self) -> Option<DeviceMemory> {
        match self.name {
            #[cfg(feature = "cuda")]
            BackendName::Cuda => memory_of::<cubecl::cuda::CudaRuntime>(&burn_cuda::CudaDevice::new(self.index)),
            #[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
            BackendName::Metal | BackendName::Vulkan | BackendName::Wgpu => {
                memory_of::<burn_wgpu::WgpuRuntime>(&wgpu_device(self.index))
            }
            _ => None,
        }
    }

    /// Runs the task on this backend.
    ///
    /// # Errors
    /// If the backend is not compiled in.
    pub fn run<T: BackendTask>(self, task: T) -> Result<T::Output, BackendError> {
        match self.name {
            #[cfg(feature = "flex")]
            BackendName::Flex => Ok(task.run::<burn::backend::Autodiff<burn_flex::Flex>>(burn_flex::FlexDevice)),
            #[cfg(feature = "ndarray")]
            BackendName::Ndarray => {
                type Ndarray = burn_ndarray::NdArray<f32>;
                Ok(task.run::<burn::backend::Autodiff<Ndarray>>(burn_ndarray::NdArrayDevice::Cpu))
            }
            #[cfg(feature = "cuda")]
            BackendName::Cuda => {
                let device = burn_cuda::CudaDevice::new(self.index);
                Ok(task.run::<burn::backend::Autodiff<burn_cuda::Cuda>>(device))
            }
            #[cfg(feature = "vulkan")]
            BackendName::Vulkan => Ok(task.run::<burn::backend::Autodiff<burn_wgpu::Vulkan>>(wgpu_device(self.index))),
            #[cfg(feature = "metal")]
            BackendName::Metal => Ok(task.run::<burn::backend::Autodiff<burn_wgpu::Metal>>(wgpu_device(self.index))),
            #[cfg(feature = "wgpu")]
            BackendName::Wgpu => Ok(task.run::<burn::backend::Autodiff<burn_wgpu::Wgpu>>(wgpu_device(self.index))),
            // Without a feature, its name has no type.
            #[allow(unreachable_patterns)]
            name => {
                drop(task);
                Err(BackendError::NotCompiledIn(name))
            }
        }
    }
}

#[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal", feature = "cuda"))]
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
        for name in BackendName::ALL {
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
        for name in BackendName::ALL.into_iter().filter(|name| !name.is_compiled_in()) {
            let error = BackendChoice::Named(name, 0).select().unwrap_err();
            assert_eq!(error, BackendError::NotCompiledIn(name));
            assert_eq!(error.hint(), format!("build with `--features {name}`"));
        }
    }

    #[cfg(feature = "flex")]
    #[test]
    fn a_cpu_has_one_device() {
        let error = BackendChoice::Named(BackendName::Flex, 1).select().unwrap_err();
        assert_eq!(error.to_string(), "backend `flex` finds no device 1 (it has 1)");
    }
}
