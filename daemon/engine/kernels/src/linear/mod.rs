//! A linear layer with an optional low-rank adapter: `y = x·Wᵀ + s·(dropout(x)·Aᵀ)·Bᵀ` (LoRA, Hu et al. 2021, arXiv
//! 2106.09685).
//!
//! The adapter stays factored: no dense `W + s·B·A` is ever made, and no gradient of a frozen `W` is computed.

mod adapted;
mod plain;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::ops::{Backward, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;
use burn_flex::FlexTensor;

use crate::buffer::{contiguous, elements, shape2};
use crate::device::on_cpu;
use crate::matmul::View;
use crate::matrix::Matrix;
use crate::packed::Packed;
use crate::{Dropout, Numbers, Products, Weight};
use adapted::AdaptedLinear;
use plain::{Linear, PackedLinear};

/// The two factors of an adapter and how they are applied.
#[derive(Debug, Clone)]
pub struct Factors {
    /// `[rank, inputs]`, as PEFT stores `lora_A.weight`.
    pub a: Tensor<2>,
    /// `[outputs, rank]`, as PEFT stores `lora_B.weight`.
    pub b: Tensor<2>,
    pub scale: f32,
    pub dropout: Option<Dropout>,
}

/// `x` is `[tokens, inputs]`, `weight` `[outputs, inputs]`; the result is `[tokens, outputs]`.
pub fn linear(x: Tensor<2>, weight: &Weight, adapter: Option<Factors>) -> Tensor<2> {
    assert_eq!(x.dims()[1], weight.dims()[1]);
    if !on_cpu(&x) {
        return reference(x, weight, adapter);
    }
    let x = x.into_dispatch();
    let adapter = adapter.map(|Factors { a, b, scale, dropout }| {
        assert_eq!(a.dims()[0], b.dims()[1], "both factors have the adapter's rank");
        (a.into_dispatch(), b.into_dispatch(), Applied { scale, dropout })
    });
    let products = weight.products;
    Tensor::from_dispatch(match (&weight.numbers, adapter) {
        (Numbers::Dense(weight), None) => <Dispatch as LinearOp>::linear(x, weight.clone().into_dispatch(), products),
        (Numbers::Dense(weight), Some((a, b, applied))) => {
            <Dispatch as LinearOp>::adapted_linear(x, weight.clone().into_dispatch(), a, b, applied, products)
        }
        (Numbers::Packed(weight), None) => <Dispatch as LinearOp>::packed_linear(x, weight.clone(), products),
        (Numbers::Packed(weight), Some((a, b, applied))) => {
            <Dispatch as LinearOp>::adapted_packed_linear(x, weight.clone(), a, b, applied, products)
        }
    })
}

/// The same by burn's own ops.
pub fn reference(x: Tensor<2>, weight: &Weight, adapter: Option<Factors>) -> Tensor<2> {
    let base = match &weight.numbers {
        #[cfg(feature = "gpu")]
        Numbers::Packed(packed) if !on_cpu(&x) => crate::packed::linear_on_gpu(x.clone(), packed),
        _ => x.clone().matmul(weight.to_tensor(&x.device()).transpose()),
    };
    let Some(Factors { a, b, scale, dropout }) = adapter else { return base };
    let input = match dropout {
        None => x,
        Some(dropout) => {
            let mask = dropout.mask(x.dims(), &x.device());
            x * mask
        }
    };
    base + input.matmul(a.transpose()).matmul(b.transpose()) * scale
}

/// How an adapter's factors are applied.
#[derive(Debug, Clone, Copy)]
pub struct Applied {
    pub scale: f32,
    pub dropout: Option<Dropout>,
}

#[backend_extension(Flex, Autodiff)]
pub trait LinearOp: Backend {
    fn linear(x: FloatTensor<Self>, weight: FloatTensor<Self>, products: Products) -> FloatTensor<Self>;

    fn packed_linear(x: FloatTensor<Self>, weight: Packed, products: Products) -> FloatTensor<Self>;

    fn adapted_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        applied: Applied,
        products: Products,
    ) -> FloatTensor<Self>;

    fn adapted_packed_linear(
        x: FloatTensor<Self>,
        weight: Packed,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        applied: Applied,
        products: Products,
    ) -> FloatTensor<Self>;
}

impl LinearOp for Flex {
    fn linear(x: FlexTensor, weight: FlexTensor, products: Products) -> FlexTensor {
        plain::forward(&contiguous(x), &Matrix::dense(weight, products))
    }

    fn packed_linear(x: FlexTensor, weight: Packed, products: Products) -> FlexTensor {
        plain::forward(&contiguous(x), &Matrix::packed(weight, products))
    }

    fn adapted_linear(
        x: FlexTensor,
        weight: FlexTensor,
        a: FlexTensor,
        b: FlexTensor,
        applied: Applied,
        products: Products,
    ) -> FlexTensor {
        adapted::forward(x, Matrix::dense(weight, products), a, b, applied).0
    }

    fn adapted_packed_linear(
        x: FlexTensor,
        weight: Packed,
        a: FlexTensor,
        b: FlexTensor,
        applied: Applied,
        products: Products,
    ) -> FlexTensor {
        adapted::forward(x, Matrix::packed(weight, products), a, b, applied).0
    }
}

impl<C: CheckpointStrategy> LinearOp for Autodiff<Flex, C> {
    fn linear(x: FloatTensor<Self>, weight: FloatTensor<Self>, products: Products) -> FloatTensor<Self> {
        let nodes = [x.node(), weight.node()];
        let weight = Matrix::dense(weight.into_primitive(), products);
        let output = plain::forward(&contiguous(x.primitive().clone()), &weight);
        match Linear.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let x = prep.checkpoint(&x);
                prep.finish((x, weight), output)
            }
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }

    fn packed_linear(x: FloatTensor<Self>, weight: Packed, products: Products) -> FloatTensor<Self> {
        let node = x.node();
        let weight = Matrix::packed(weight, products);
        let output = plain::forward(&contiguous(x.into_primitive()), &weight);
        match PackedLinear.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(weight, output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }

    fn adapted_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        applied: Applied,
        products: Products,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), a.node(), b.node(), weight.node()];
        let weight = Matrix::dense(weight.into_primitive(), products);
        let (a, b) = (a.into_primitive(), b.into_primitive());
        let (output, saved) = adapted::forward(x.primitive().clone(), weight, a, b, applied);
        match AdaptedLinear.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let x = prep.checkpoint(&x);
                prep.finish((x, saved), output)
            }
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }

    fn adapted_packed_linear(
        x: FloatTensor<Self>,
        weight: Packed,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        applied: Applied,
        products: Products,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), a.node(), b.node()];
        let (a, b) = (a.into_primitive(), b.into_primitive());
        let (output, saved) = adapted::forward(x.primitive().clone(), Matrix::packed(weight, products), a, b, applied);
        match AdaptedLinear.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let x = prep.checkpoint(&x);
                prep.finish((x, saved), output)
            }
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }
}

fn view(tensor: &FlexTensor) -> View<'_> {
    View::new(elements(tensor), shape2(tensor))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packed::testing::every_form;
    use crate::testing::{assert_close, random, track, values};
    use crate::{Activation, gated, rms_norm};
    use burn::tensor::{Device, TensorData};

    type Op = fn(Tensor<2>, &Weight, Option<Factors>) -> Tensor<2>;

    #[test]
    fn forward_and_every_gradient_equal_the_reference() {
        let shapes = [(1, 1, 1, 1), (7, 5, 9, 2), (33, 48, 20, 8)];
        let dropouts = [None, Some(Dropout { probability: 0.3, seed: 11 })];
        for ((tokens, inputs, outputs, rank), dropout) in shapes.into_iter().flat_map(|s| dropouts.map(|d| (s, d))) {
            let (x, weight) = (random([tokens, inputs], 1), random([outputs, inputs], 2));
            let (a, b) = (random([rank, inputs], 3), random([outputs, rank], 4));
            let upstream = random([tokens, outputs], 5);
            let run = |op: Op| {
                let [x, weight, a, b] = [&x, &weight, &a, &b].map(track);
                let factors = Factors { a: a.clone(), b: b.clone(), scale: 0.5, dropout };
                let output = op(x.clone(), &weight.clone().into(), Some(factors));
                let grads = (output.clone() * upstream.clone()).sum().backward();
                let mut results = vec![output.inner()];
                results.extend([x, weight, a, b].map(|leaf| leaf.grad(&grads).unwrap()));
                results
            };
            for (index, (ours, theirs)) in run(linear).into_iter().zip(run(reference)).enumerate() {
                assert_close(ours, theirs, 1e-5, &format!("result {index} of {tokens}x{inputs}x{outputs} {dropout:?}"));
            }
        }
    }

    /// The output and the gradients of x, A and B.
    fn run_frozen(op: Op, weight: &Weight, tokens: usize, rank: usize, adapted: bool) -> Vec<Tensor<2>> {
        let [outputs, inputs] = weight.dims();
        let [x, a, b] = [random([tokens, inputs], 1), random([rank, inputs], 3), random([outputs, rank], 4)];
        let [x, a, b] = [&x, &a, &b].map(track);
        let factors = adapted.then(|| Factors { a: a.clone(), b: b.clone(), scale: 0.5, dropout: None });
        let output = op(x.clone(), weight, factors);
        let grads = (output.clone() * random([tokens, outputs], 5)).sum().backward();
        let leaves = if adapted { vec![x, a, b] } else { vec![x] };
        [output.inner()].into_iter().chain(leaves.iter().map(|leaf| leaf.grad(&grads).unwrap())).collect()
    }

    #[test]
    fn every_packed_form_gives_the_results_of_its_decoded_matrix() {
        crate::simd::testing::at_every_level(|level| {
            let shapes = [(1, 1, 1, 1), (7, 5, 9, 2), (33, 130, 70, 8), (70, 256, 600, 4)];
            for (tokens, inputs, outputs, rank) in shapes {
                for (name, packed) in every_form([outputs, inputs], 2) {
                    let weight = Weight::from(packed);
                    for adapted in [false, true] {
                        let ours = run_frozen(linear, &weight, tokens, rank, adapted);
                        let theirs = run_frozen(reference, &weight, tokens, rank, adapted);
                        for (index, (ours, theirs)) in ours.into_iter().zip(theirs).enumerate() {
                            let what = format!("{level:?} {name} result {index} of {tokens}x{inputs}x{outputs}");
                            assert_close(ours, theirs, 1e-5, &what);
                        }
                    }
                }
            }
        });
    }

    #[test]
    fn products_in_16_bits_are_right_within_their_bounds() {
        let shapes = [(7, 5, 9, 2), (70, 48, 50, 8), (150, 600, 200, 16)];
        for (tokens, inputs, outputs, rank) in shapes {
            let dense = Weight::from(random([outputs, inputs], 2));
            let packed =
                every_form([outputs, inputs], 2).into_iter().map(|(name, packed)| (name, Weight::from(packed)));
            for (name, weight) in packed.chain([("dense".to_owned(), dense)]) {
                // Both factors are wrong by at most 2⁻⁹ or 2⁻¹² of themselves, and so are the adapter's inner results.
                for (products, tolerance) in [(Products::Bf16, 1.5e-2), (Products::F16, 2e-3)] {
                    for adapted in [false, true] {
                        let rounded =
                            run_frozen(linear, &weight.clone().with_products(products), tokens, rank, adapted);
                        let exact = run_frozen(reference, &weight, tokens, rank, adapted);
                        for (index, (rounded, exact)) in rounded.into_iter().zip(exact).enumerate() {
                            let what = format!("{products:?} {name} result {index} of {tokens}x{inputs}x{outputs}");
                            assert_close(rounded, exact, tolerance, &what);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_trained_weight_has_its_gradient_in_16_bits_too() {
        for (products, tolerance) in [(Products::Bf16, 1e-2), (Products::F16, 1e-3)] {
            for (rounded, exact) in gradients(products, 1.0).into_iter().zip(gradients(Products::F32, 1.0)) {
                assert_close(rounded, exact, tolerance, "gradient");
            }
        }
    }

    /// Of x and W, with an upstream gradient as large as this.
    fn gradients(products: Products, size: f32) -> [Tensor<2>; 2] {
        let (x, weight) = (track(&random([90, 40], 1)), track(&random([70, 40], 2)));
        let output = linear(x.clone(), &Weight::from(weight.clone()).with_products(products), None);
        let grads = (output * random([90, 70], 3) * size).sum().backward();
        [x.grad(&grads).unwrap(), weight.grad(&grads).unwrap()]
    }

    /// Why losses are scaled: what is below half of the smallest number is lost, and what is too large is infinite.
    #[test]
    fn half_precision_loses_small_gradients_and_overflows_with_large_ones() {
        for gradient in gradients(Products::F16, 1e-9) {
            assert_eq!(values(gradient).iter().filter(|number| **number != 0.0).count(), 0);
        }
        for gradient in gradients(Products::F16, 1e6) {
            assert!(values(gradient).iter().any(|number| !number.is_finite()));
        }
        for (exact, kept) in gradients(Products::F32, 1e-9).into_iter().zip(gradients(Products::F16, 1e-9 * 65536.0)) {
            assert_close(kept / 65536.0 * 1e9, exact * 1e9, 1e-3, "scaled up and down again");
        }
    }

    #[test]
    fn without_an_adapter_it_is_a_plain_product() {
        let (x, weight, upstream) = (random([6, 10], 1), random([4, 10], 2), random([6, 4], 3));
        let run = |op: Op| {
            let (x, weight) = (track(&x), track(&weight));
            let output = op(x.clone(), &weight.clone().into(), None);
            let grads = (output.clone() * upstream.clone()).sum().backward();
            [output.inner(), x.grad(&grads).unwrap(), weight.grad(&grads).unwrap()]
        };
        for (ours, theirs) in run(linear).into_iter().zip(run(reference)) {
            assert_close(ours, theirs, 1e-5, "plain");
        }
    }

    #[test]
    fn activations_made_a_second_time_give_the_same_gradients_to_the_last_bit() {
        let run = |device: Device, frozen_input: bool| {
            let leaf = |shape: [usize; 2], seed| {
                let values = values(random::<2>(shape, seed));
                Tensor::<2>::from_data(TensorData::new(values, shape), &device).require_grad()
            };
            let (x, a, b) = (leaf([9, 12], 1), leaf([2, 12], 2), leaf([12, 2], 3));
            let weight = leaf([12, 12], 4).detach();
            let scale = Tensor::<1>::ones([12], &device);
            // A frozen embedding is no part of the graph: what is made of it alone must be kept.
            let mut state = if frozen_input { x.clone().detach() } else { x.clone() };
            for seed in 0..3 {
                let normed = rms_norm(state.clone(), scale.clone(), 1e-5);
                let dropout = Some(Dropout { probability: 0.2, seed });
                let factors = Factors { a: a.clone(), b: b.clone(), scale: 0.5, dropout };
                let gate = linear(normed.clone(), &weight.clone().into(), Some(factors.clone()));
                let product =
                    gated(gate, linear(normed, &weight.clone().into(), None), Activation::Silu, Products::F32);
                state = state + linear(product, &weight.clone().into(), Some(factors));
            }
            let grads = state.powf_scalar(2.0).sum().backward();
            [x, a, b].map(|leaf| leaf.grad(&grads).map(values))
        };
        let device = Device::flex().autodiff();
        // Bits are those of one level: no other test may change it between the two.
        crate::simd::testing::at_every_level(|level| {
            for frozen_input in [false, true] {
                let kept = run(device.clone(), frozen_input);
                assert_eq!(kept[0].is_none(), frozen_input);
                assert_eq!(run(device.clone().gradient_checkpointing(), frozen_input), kept, "{level:?}");
            }
        });
    }

    #[test]
    fn a_frozen_weight_gets_no_gradient() {
        let weight = random([4, 10], 2).detach();
        let a = track(&random([2, 10], 3));
        let factors = Factors { a: a.clone(), b: track(&random([4, 2], 4)), scale: 1.0, dropout: None };
        let grads = linear(random([6, 10], 1), &weight.clone().into(), Some(factors)).sum().backward();
        assert!(a.grad(&grads).is_some());
        assert!(weight.grad(&grads).is_none());
    }
}
