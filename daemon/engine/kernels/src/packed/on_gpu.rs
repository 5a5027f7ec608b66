//! Packed matrices on a GPU: their bytes are kept there, and a product decodes the whole matrix by burn's own ops, uses
//! it and lets it go. So does its backward, which is why it is an op: burn would keep the decoded matrix for it.

use std::fmt::Debug;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Cube, Dispatch, backend_extension};
use burn::tensor::{DType, Device, Element, Int, Tensor, TensorData};

use super::Packed;

/// The numbers of a matrix in a GPU's memory.
pub(super) trait OnGpu: Debug + Send + Sync {
    /// Row by row.
    fn decode(&self) -> Tensor<1>;
}

/// Numbers as they are, in the tensor's own type: of forms that a GPU does not decode.
#[derive(Debug)]
pub(super) struct Plain(Tensor<1>);

impl Plain {
    pub(super) fn f32(numbers: Vec<f32>, device: &Device) -> Self {
        let len = numbers.len();
        Self(Tensor::from_data(TensorData::new(numbers, [len]), device))
    }

    /// Falls back to `f32` where the device has no such numbers.
    pub(super) fn narrow<N: Element + Into<f32>>(numbers: &[N], device: &Device) -> Self {
        if !device.supports_dtype(N::dtype()) {
            return Self::f32(numbers.iter().map(|&number| number.into()).collect(), device);
        }
        let data = TensorData::new(numbers.to_vec(), [numbers.len()]);
        Self(Tensor::from_data(data, (device, N::dtype())))
    }
}

impl OnGpu for Plain {
    fn decode(&self) -> Tensor<1> {
        self.0.clone().cast(DType::F32)
    }
}

/// Blocks of 4-bit codes of a table, each with a scale.
#[derive(Debug)]
pub(super) struct Codes {
    /// Eight codes a word: not every GPU has smaller integers.
    words: Tensor<1, Int>,
    /// How far to shift a word for each of its codes, in the order of the numbers.
    shifts: Tensor<1, Int>,
    table: Tensor<1>,
    scales: Tensor<1>,
    /// Numbers in the matrix; the last block may have more.
    len: usize,
}

impl Codes {
    /// `codes` holds two codes a byte, the earlier one in the high half.
    pub(super) fn new(
        codes: &[u8],
        table: [f32; 16],
        block: usize,
        scales: Vec<f32>,
        len: usize,
        device: &Device,
    ) -> Self {
        let ints = |words: Vec<i32>| {
            let len = words.len();
            Tensor::<1, Int>::from_data(TensorData::new(words, [len]), (device, DType::I32))
        };
        let floats = |numbers: Vec<f32>| {
            let len = numbers.len();
            Tensor::<1>::from_data(TensorData::new(numbers, [len]), device)
        };
        let mut bytes = codes.to_vec();
        bytes.resize(scales.len() * block / 2, 0);
        let words = bytes.as_chunks::<4>().0.iter().map(|&bytes| i32::from_le_bytes(bytes)).collect();
        Self {
            words: ints(words),
            shifts: ints(vec![4, 0, 12, 8, 20, 16, 28, 24]),
            table: floats(table.to_vec()),
            scales: floats(scales),
            len,
        }
    }
}

impl OnGpu for Codes {
    fn decode(&self) -> Tensor<1> {
        let [words] = self.words.dims();
        let [blocks] = self.scales.dims();
        let spread = self.words.clone().unsqueeze_dim::<2>(1).expand([words, 8]);
        let shifts = self.shifts.clone().unsqueeze_dim::<2>(0).expand([words, 8]);
        // The shift fills up with the sign; the mask takes that away.
        let codes = spread.bitwise_right_shift(shifts).bitwise_and_scalar(15).reshape([words * 8]);
        let numbers = self.table.clone().select(0, codes).reshape([blocks, words * 8 / blocks]);
        (numbers * self.scales.clone().unsqueeze_dim(1)).reshape([words * 8]).narrow(0, 0, self.len)
    }
}

/// `x · Wᵀ`; `x` is `[tokens, inputs]`.
pub(crate) fn linear(x: Tensor<2>, weight: &Packed) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as PackedLinearOp>::packed_linear_on_gpu(x.into_dispatch(), weight.clone()))
}

#[backend_extension(Cube, Autodiff)]
pub(crate) trait PackedLinearOp: Backend {
    fn packed_linear_on_gpu(x: FloatTensor<Self>, weight: Packed) -> FloatTensor<Self>;
}

impl PackedLinearOp for Cube {
    fn packed_linear_on_gpu(x: FloatTensor<Self>, weight: Packed) -> FloatTensor<Self> {
        let x = from_primitive(x);
        let weight = weight.to_tensor(&x.device());
        into_primitive(x.matmul(weight.transpose()))
    }
}

impl<C: CheckpointStrategy> PackedLinearOp for Autodiff<Cube, C> {
    fn packed_linear_on_gpu(x: FloatTensor<Self>, weight: Packed) -> FloatTensor<Self> {
        let node = x.node();
        let output = Cube::packed_linear_on_gpu(x.into_primitive(), weight.clone());
        match PackedLinear.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(weight, output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }
}

#[derive(Debug)]
struct PackedLinear;

impl Backward<Cube, 1> for PackedLinear {
    type State = Packed;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = from_primitive(grads.consume::<Cube>(&ops.node));
        if let [Some(node)] = ops.parents {
            let weight = ops.state.to_tensor(&grad.device());
            grads.register::<Cube>(node.id, into_primitive(grad.matmul(weight)));
        }
    }
}

fn from_primitive(tensor: FloatTensor<Cube>) -> Tensor<2> {
    Tensor::from_primitive::<Cube>(tensor)
}

fn into_primitive(tensor: Tensor<2>) -> FloatTensor<Cube> {
    tensor.try_into_primitive::<Cube>().expect("a product of tensors on a GPU is on the GPU")
}
