//! A kernel as an operation of Burn's fused graph: it waits there for its turn, and what comes before and after it is fused without it.

use std::marker::PhantomData;

use burn_cubecl::fusion::FusionCubeRuntime;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use burn_fusion::FusionTensor;
use burn_fusion::stream::{Operation, OperationStreams};
use burn_ir::{BackendIr, CustomOpIr, HandleContainer, OperationIr, TensorIr};

use crate::kernel::{AnyKernel, OnEveryRuntime, OnRuntime};
use crate::tensor::Form;

/// Puts a kernel into the graph of its inputs, and returns its outputs, which are not computed yet.
pub(crate) fn run_in_graph<R: CubeRuntime, F: FloatElement, I: IntElement, M: BoolElement>(
    kernel: AnyKernel,
    inputs: Vec<FusionTensor<FusionCubeRuntime<R>>>,
) -> Vec<FusionTensor<FusionCubeRuntime<R>>>
where
    dyn OnEveryRuntime: OnRuntime<R>,
{
    let forms: Vec<Form> = inputs
        .iter()
        .map(|input| Form::new(input.shape.clone(), input.dtype))
        .collect();
    let streams = OperationStreams::with_inputs(&inputs);
    let client = inputs[0].client.clone();
    let outputs = kernel.outputs(&forms).into_iter();
    let outputs: Vec<TensorIr> = outputs
        .map(|Form { shape, dtype }| TensorIr::uninit(client.create_empty_handle(), shape, dtype))
        .collect();
    let inputs: Vec<TensorIr> = inputs.into_iter().map(FusionTensor::into_ir).collect();
    let place = CustomOpIr::new(kernel.name(), &inputs, &outputs);
    let operation = InGraph::<CubeBackend<R, F, I, M>> {
        kernel,
        place: place.clone(),
        backend: PhantomData,
    };
    client.register(streams, OperationIr::Custom(place), operation)
}

/// A kernel with its place in the graph.
#[derive(Debug)]
struct InGraph<B> {
    kernel: AnyKernel,
    place: CustomOpIr,
    backend: PhantomData<B>,
}

impl<R: CubeRuntime, F: FloatElement, I: IntElement, M: BoolElement> Operation<FusionCubeRuntime<R>>
    for InGraph<CubeBackend<R, F, I, M>>
where
    dyn OnEveryRuntime: OnRuntime<R>,
{
    fn execute(&self, handles: &mut HandleContainer<<CubeBackend<R, F, I, M> as BackendIr>::Handle>) {
        let inputs = self.place.inputs.iter();
        let inputs = inputs.map(|input| handles.get_float_tensor::<CubeBackend<R, F, I, M>>(input));
        let outputs = self.kernel.run(inputs.collect());
        for (place, output) in self.place.outputs.iter().zip(outputs) {
            handles.register_float_tensor::<CubeBackend<R, F, I, M>>(&place.id, output);
        }
    }
}
