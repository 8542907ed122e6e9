//! What a kernel is: a function from tensors to tensors that a device runs.

use std::fmt::Debug;
use std::sync::Arc;

use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;

use crate::tensor::Form;

/// A function from tensors to tensors that a device runs.
pub(crate) trait Kernel: Clone + Debug + Send + Sync + 'static {
    /// Its name in the graph.
    const NAME: &'static str;

    /// What it returns of inputs of these forms.
    fn outputs(&self, inputs: &[Form]) -> Vec<Form>;

    /// Launches it on tensors in whichever order their numbers lie.
    fn run<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>>;
}

/// A kernel of any kind, on every runtime that is compiled in.
#[derive(Clone, Debug)]
pub(crate) struct AnyKernel(Arc<dyn OnEveryRuntime>);

impl<K: Kernel> From<K> for AnyKernel {
    fn from(kernel: K) -> Self {
        Self(Arc::new(kernel))
    }
}

impl AnyKernel {
    /// Its name in the graph.
    pub(crate) fn name(&self) -> &'static str {
        self.0.name()
    }

    /// What it returns of inputs of these forms.
    pub(crate) fn outputs(&self, inputs: &[Form]) -> Vec<Form> {
        self.0.forms(inputs)
    }

    /// Launches it.
    pub(crate) fn run<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>>
    where
        dyn OnEveryRuntime: OnRuntime<R>,
    {
        <dyn OnEveryRuntime as OnRuntime<R>>::launch(self.0.as_ref(), inputs)
    }
}

/// A kernel whose kind is forgotten, on the tensors of one runtime.
pub(crate) trait OnRuntime<R: CubeRuntime> {
    /// [`Kernel::run`].
    fn launch(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>>;
}

impl<K: Kernel, R: CubeRuntime> OnRuntime<R> for K {
    fn launch(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        self.run(inputs)
    }
}

/// A kernel whose kind is forgotten, on the tensors of every runtime.
pub(crate) trait OnEveryRuntime: OnCuda + OnGraphics + OnHip + Debug + Send + Sync {
    /// [`Kernel::NAME`].
    fn name(&self) -> &'static str;

    /// [`Kernel::outputs`].
    fn forms(&self, inputs: &[Form]) -> Vec<Form>;
}

impl<K: Kernel> OnEveryRuntime for K {
    fn name(&self) -> &'static str {
        K::NAME
    }

    fn forms(&self, inputs: &[Form]) -> Vec<Form> {
        self.outputs(inputs)
    }
}

/// Declares what it is to run on a runtime, which says nothing without the features that bring it.
macro_rules! runtimes {
    ($($(#[doc = $doc:literal])+ $name:ident: $($feature:literal)|+ => $runtime:ty;)*) => {$(
        $(#[doc = $doc])+
        #[cfg(any($(feature = $feature),+))]
        pub(crate) trait $name: OnRuntime<$runtime> {}

        $(#[doc = $doc])+
        #[cfg(not(any($(feature = $feature),+)))]
        pub(crate) trait $name {}

        impl<K: Kernel> $name for K {}
    )*};
}

runtimes! {
    /// NVIDIA's cards.
    OnCuda: "cuda" => cubecl::cuda::CudaRuntime;
    /// Any card, through the platform's graphics interface.
    OnGraphics: "vulkan" | "metal" | "wgpu" => burn_wgpu::WgpuRuntime;
    /// AMD's cards.
    OnHip: "rocm" => cubecl::hip::HipRuntime;
}
