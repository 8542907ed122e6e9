//! The backends that run the kernels, by feature.

use std::marker::PhantomData;

use crate::row::Row;

/// A row of the table for each backend that is compiled in.
pub(crate) static ROWS: &[Row] = &[
    #[cfg(feature = "cuda")]
    Row::new(PhantomData::<burn_cuda::Cuda>),
    #[cfg(feature = "rocm")]
    Row::new(PhantomData::<burn_rocm::Rocm>),
    #[cfg(feature = "vulkan")]
    Row::new(PhantomData::<burn_wgpu::Vulkan>),
    #[cfg(feature = "metal")]
    Row::new(PhantomData::<burn_wgpu::Metal>),
    #[cfg(feature = "wgpu")]
    Row::new(PhantomData::<burn_wgpu::Wgpu>),
];
