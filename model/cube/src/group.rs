//! Many tensors in one launch: which of them go together, and which cubes of the launch are whose.
//!
//! A kernel names its tensors when it is compiled, so that one over many tensors is one over a list whose length is part of it. Tensors go
//! together if their loads are equally wide and their number formats are the same; and only as many as any device binds at once.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// Storage buffers in one launch: Metal binds 31, of which one holds the sizes and scalars.
const BUFFERS: usize = 28;

/// Tensors of one shape side by side, as rows of vectors: where each keeps its numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rows<const T: usize> {
    /// Numbers in one load.
    pub(crate) vector: usize,
    /// Vectors in all.
    pub(crate) count: usize,
    /// Vectors in a row.
    pub(crate) width: usize,
    /// Vectors from the beginning of a row to that of the next one, of each tensor.
    pub(crate) strides: [usize; T],
}

impl<const T: usize> Rows<T> {
    /// The widest loads of tensors as [`in_rows`] gives them, of the same number of numbers. A flat one may stand beside a matrix.
    pub(crate) fn of<R: CubeRuntime>(tensors: [&CubeTensor<R>; T]) -> Self {
        let count = tensors[0].meta.shape().num_elements();
        let pitched = tensors.iter().find(|tensor| !tensor.is_contiguous());
        let width = pitched.map_or(count, |tensor| tensor.meta.shape()[1]);
        let strides = tensors.map(|tensor| match tensor.is_contiguous() {
            true => width,
            false => tensor.meta.strides()[0],
        });
        let widest = tensors.iter().map(|tensor| tensor.dtype.size()).max().unwrap_or(4);
        let fits = |vector: &usize| {
            width.is_multiple_of(*vector) && strides.iter().all(|stride| stride.is_multiple_of(*vector))
        };
        let vector = tensors[0]
            .client
            .io_optimized_vector_sizes(widest)
            .find(fits)
            .unwrap_or(1);
        Self {
            vector,
            count: count / vector,
            width: (width / vector).max(1),
            strides: strides.map(|stride| stride / vector),
        }
    }
}

/// The tensor with its numbers row by row; there may be gaps between the rows of a matrix.
pub(crate) fn in_rows<R: CubeRuntime>(tensor: CubeTensor<R>) -> CubeTensor<R> {
    let strides = tensor.meta.strides();
    match strides.len() == 2 && strides[1] == 1 || tensor.is_contiguous() {
        true => tensor,
        false => into_contiguous(tensor),
    }
}

/// The groups of things that are launched together: those of one vector size and the same number formats, in order, in groups of nearly
/// one size, so that few kernels are compiled. `shared` tensors of a launch belong to the whole group.
pub(crate) fn groups<R: CubeRuntime, const T: usize>(
    client: &ComputeClient<R>,
    things: &[(Rows<T>, [DType; T])],
    shared: usize,
) -> Vec<Vec<usize>> {
    let bound = client.properties().hardware.max_bindings as usize;
    let most = (bound.min(BUFFERS).saturating_sub(shared + 1) / T).max(1);
    let kind = |index: usize| (things[index].0.vector, things[index].1);
    let mut alike: Vec<Vec<usize>> = Vec::new();
    for index in 0..things.len() {
        match alike.iter_mut().find(|members| kind(members[0]) == kind(index)) {
            Some(members) => members.push(index),
            None => alike.push(vec![index]),
        }
    }
    let mut groups = Vec::new();
    for members in alike {
        let size = members.len().div_ceil(members.len().div_ceil(most));
        groups.extend(members.chunks(size).map(<[usize]>::to_vec));
    }
    groups
}

/// The first cube of each member of a launch, and the number of all of them, where each has so many.
pub(crate) fn first_cubes(counts: impl IntoIterator<Item = usize>) -> (Vec<usize>, usize) {
    let mut all = 0;
    let firsts = counts.into_iter().map(|count| {
        let first = all;
        all += count;
        first
    });
    (firsts.collect(), all)
}

/// Where a vector lies in a tensor whose rows have that width and stride.
#[cube]
pub(crate) fn place_in_rows(index: usize, width: usize, stride: usize) -> usize {
    index / width * stride + index % width
}
