//! Every op on another device beside the processor's: forward and gradients on the same numbers.

use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};

use justtrain_weights::gguf::TensorType;

use crate::{
    Activation, Buckets, Dropout, Factors, Format, Heads, Loss, OutputLayer, Packed, PositionBias, Products,
    RotaryTable, Scores, Segments, Softened, Targets, Weight, biased_attention, divergence, dropout, embedding, gated,
    linear, linear_cross_entropy, linear_loss, residual, rms_norm, rotary, score_targets, write_rows,
};

/// How far one op's results are apart.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    pub op: &'static str,
    /// The largest difference of a number, relative to the largest magnitude of its tensor; the worst tensor counts.
    /// Infinite where a result is not a number.
    pub error: f32,
}

/// From its inputs to its output.
type Op = Box<dyn Fn(&[Tensor<2>]) -> Tensor<2>>;

struct Case {
    op: &'static str,
    shapes: Vec<[usize; 2]>,
    /// Whether every input gets a gradient, or none.
    differentiable: bool,
    op_on: Op,
}

/// Runs every op on `device` and on the processor.
pub fn differences(device: &Device) -> Vec<Difference> {
    cases()
        .iter()
        .map(|case| {
            let pairs = results(case, device).into_iter().zip(results(case, &Device::flex()));
            Difference {
                op: case.op,
                error: pairs.map(|(got, expected)| distance(&got, &expected)).fold(0.0, f32::max),
            }
        })
        .collect()
}

const TOKENS: usize = 70;
const INPUTS: usize = 96;
const OUTPUTS: usize = 160;
const VOCABULARY: usize = 211;
/// One of them twice.
const TOKEN_IDS: [u32; 5] = [210, 0, 7, 7, 31];
const HEADS: Heads = Heads { query: 6, key_value: 2, dim: 16 };

fn cases() -> Vec<Case> {
    let case = |op, shapes: &[[usize; 2]], op_on: Op| {
        let differentiable = !matches!(op, "divergence" | "score_targets" | "write_rows");
        Case { op, shapes: shapes.to_vec(), differentiable, op_on }
    };
    let (x, weight, a, b) = ([TOKENS, INPUTS], [OUTPUTS, INPUTS], [8, INPUTS], [OUTPUTS, 8]);
    let (q, k) = ([TOKENS, HEADS.query * HEADS.dim], [TOKENS, HEADS.key_value * HEADS.dim]);
    let packed =
        |format, dims: [usize; 2]| Weight::from(Packed::from_f32(format, &numbers(dims[0] * dims[1], 9), dims));
    let [bf16, int8] = [Format::Bf16, Format::Int8].map(|format| packed(format, weight));
    let [nf4, adapted_nf4] =
        [true, true].map(|double_quantization| packed(Format::Nf4 { double_quantization }, weight));
    let gguf = q8_0(weight);
    let vocabulary = [VOCABULARY, INPUTS];
    let [embeddings, head] = [(); 2].map(|()| packed(Format::Bf16, vocabulary));
    let frequencies: Vec<f32> = (0..HEADS.dim / 2).map(|i| 10_000f32.powf(-(i as f32) / 8.0)).collect();
    let table = Arc::new(RotaryTable::new(&(0..TOKENS as u32).collect::<Vec<_>>(), &frequencies));
    let packed = Arc::new(Segments::packed(&[0, 1, 23, TOKENS]));
    let (windowed, whole, both_ways) = (packed.clone(), packed.clone(), packed.clone());
    let plain = Scores::scaled(0.25);
    let dropped = Scores { dropout: Some(Dropout { probability: 0.2, seed: 4 }), ..plain };
    let to_both = Scores { causal: false, ..plain };
    let local = Scores { window: Some(9), soft_cap: Some(2.0), ..plain };
    let cached = Arc::new(Segments::cached([(0..3, 0..40), (3..4, 41..TOKENS)]));
    let targets = Arc::new(Targets {
        rows: (0..TOKENS).step_by(3).collect(),
        tokens: (0..TOKENS as u32).step_by(3).map(|row| row * 37 % VOCABULARY as u32).collect(),
        weights: Some((0..TOKENS).step_by(3).map(|row| row as f32 / 8.0 - 2.0).collect()),
    });
    let in_pairs = Arc::new(Targets {
        rows: (0..TOKENS).collect(),
        tokens: (0..TOKENS as u32).map(|row| row / 2).collect(),
        weights: None,
    });
    let (scored, of_head) = (targets.clone(), targets.clone());
    let head = OutputLayer { weight: head, soft_cap: Some(1.5), adapter: None };
    vec![
        case("rms_norm", &[x, [1, INPUTS]], Box::new(|t| rms_norm(t[0].clone(), t[1].clone().flatten(0, 1), 1e-5))),
        case("rotary", &[q], Box::new(move |t| rotary(t[0].clone(), table.clone()))),
        case("swiglu", &[x, x], Box::new(|t| gated(t[0].clone(), t[1].clone(), Activation::Silu, Products::F32))),
        case("geglu", &[x, x], Box::new(|t| gated(t[0].clone(), t[1].clone(), Activation::GeluTanh, Products::F32))),
        case("residual", &[x, x], Box::new(|t| residual(t[0].clone(), t[1].clone()))),
        case("linear", &[x, weight], Box::new(|t| linear(t[0].clone(), &t[1].clone().into(), None))),
        case(
            "linear, adapted",
            &[x, weight, a, b],
            Box::new(|t| linear(t[0].clone(), &t[1].clone().into(), Some(factors(&t[2], &t[3])))),
        ),
        case("linear, bf16 weight", &[x], Box::new(move |t| linear(t[0].clone(), &bf16, None))),
        case("linear, NF4 weight", &[x], Box::new(move |t| linear(t[0].clone(), &nf4, None))),
        case("linear, 8-bit weight", &[x], Box::new(move |t| linear(t[0].clone(), &int8, None))),
        case("linear, GGUF weight", &[x], Box::new(move |t| linear(t[0].clone(), &gguf, None))),
        case(
            "linear, NF4 weight, adapted",
            &[x, a, b],
            Box::new(move |t| linear(t[0].clone(), &adapted_nf4, Some(factors(&t[1], &t[2])))),
        ),
        case("attention, packed", &[q, k, k], Box::new(move |t| attend(t, &packed, plain))),
        case("attention, dropout", &[q, k, k], Box::new(move |t| attend(t, &whole, dropped))),
        case("dropout", &[x], Box::new(|t| dropout(t[0].clone(), Dropout { probability: 0.2, seed: 3 }))),
        case("attention, window and soft cap", &[q, k, k], Box::new(move |t| attend(t, &windowed, local))),
        case(
            "attention, position bias",
            &[q, k, k, [16, HEADS.query]],
            Box::new(move |t| attend(t, &both_ways, to_both)),
        ),
        case("attention, cached", &[[4, q[1]], k, k], Box::new(move |t| attend(t, &cached, plain))),
        case("embedding", &[vocabulary], Box::new(|t| embedding(&t[0].clone().into(), &TOKEN_IDS, &t[0].device()))),
        case(
            "embedding, bf16 table",
            &[[TOKEN_IDS.len(), INPUTS]],
            Box::new(move |t| embedding(&embeddings, &TOKEN_IDS, &t[0].device()) * t[0].clone()),
        ),
        case(
            "linear_cross_entropy",
            &[x, vocabulary],
            Box::new(move |t| linear_cross_entropy(t[0].clone(), &output(&t[1]), targets.clone()).unsqueeze()),
        ),
        case(
            "linear_cross_entropy, bf16 weight, soft cap",
            &[x],
            Box::new(move |t| linear_cross_entropy(t[0].clone(), &head, of_head.clone()).unsqueeze()),
        ),
        case(
            "linear_loss, smoothed, in pairs",
            &[x, vocabulary],
            Box::new(move |t| {
                let loss = Loss { smoothing: 0.1, consistency: Some(2.0) };
                linear_loss(t[0].clone(), &output(&t[1]), in_pairs.clone(), loss).unsqueeze()
            }),
        ),
        case(
            "score_targets",
            &[x, vocabulary],
            Box::new(move |t| score_targets(t[0].clone(), &output(&t[1]), scored.clone())),
        ),
        case(
            "divergence",
            &[[TOKENS, VOCABULARY]; 2],
            Box::new(|t| divergence(t[0].clone(), t[1].clone(), Softened { temperature: 2.0, reverse: false }).1),
        ),
        case("write_rows", &[x, [4, INPUTS]], Box::new(|t| write_rows(t[0].clone(), t[1].clone(), vec![5, 6, 60, 0]))),
    ]
}

fn output(weight: &Tensor<2>) -> OutputLayer {
    Weight::from(weight.clone()).into()
}

fn factors(a: &Tensor<2>, b: &Tensor<2>) -> Factors {
    Factors { a: a.clone(), b: b.clone(), scale: 0.5, dropout: Some(Dropout { probability: 0.2, seed: 3 }) }
}

fn attend(inputs: &[Tensor<2>], segments: &Arc<Segments>, scores: Scores) -> Tensor<2> {
    let [q, k, v] = [0, 1, 2].map(|index| inputs[index].clone());
    let buckets = Buckets { count: 16, furthest: 30, both_sides: true };
    let bias = inputs.get(3).map(|table| PositionBias { table: table.clone(), buckets });
    biased_attention(q, k, v, bias, HEADS, segments.clone(), scores)
}

/// Blocks of a scale, 1/16, and 32 signed bytes.
fn q8_0(dims: [usize; 2]) -> Weight {
    let block = |first: usize| [0x00, 0x2c].into_iter().chain((0..32).map(move |at| (first * 32 + at * 37) as u8));
    let blocks = (0..dims[0] * dims[1] / 32).flat_map(block).collect();
    Packed::gguf(TensorType::Q8_0, blocks, dims).into()
}

/// The output, and the gradients of all inputs.
fn results(case: &Case, device: &Device) -> Vec<Vec<f32>> {
    let device = if case.differentiable { device.clone().autodiff() } else { device.clone() };
    let tensor = |shape: [usize; 2], seed| {
        Tensor::<2>::from_data(TensorData::new(numbers(shape[0] * shape[1], seed), shape), &device)
    };
    let inputs: Vec<_> = (1..).zip(&case.shapes).map(|(seed, &shape)| tensor(shape, seed)).collect();
    if !case.differentiable {
        return vec![values((case.op_on)(&inputs))];
    }
    let inputs: Vec<_> = inputs.into_iter().map(Tensor::require_grad).collect();
    let output = (case.op_on)(&inputs);
    let upstream = tensor(output.dims(), 99);
    let gradients = (output.clone() * upstream).sum().backward();
    let gradients = inputs.iter().map(|input| input.grad(&gradients).expect("every input has a gradient"));
    std::iter::once(output.inner()).chain(gradients).map(values).collect()
}

fn values(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().try_into_vec().expect("results are f32")
}

/// Reproducible, in −1…1, and without a pattern that a transposed matrix would share.
fn numbers(len: usize, seed: u32) -> Vec<f32> {
    (0..len).map(|index| ((index as f32 + 1.0) * (0.731 + 0.37 * seed as f32)).sin()).collect()
}

fn distance(got: &[f32], expected: &[f32]) -> f32 {
    let largest = expected.iter().fold(f32::MIN_POSITIVE, |largest, value| largest.max(value.abs()));
    let error = |(got, expected): (&f32, &f32)| {
        let error = (got - expected).abs() / largest;
        if error.is_nan() { f32::INFINITY } else { error }
    };
    if got.len() == expected.len() { got.iter().zip(expected).map(error).fold(0.0, f32::max) } else { f32::INFINITY }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_agrees_with_itself_and_differences_are_found() {
        crate::simd::testing::at_every_level(|level| {
            for Difference { op, error } in differences(&Device::flex()) {
                assert!(error < 1e-6, "{level:?} {op}: {error}");
            }
        });
        assert_eq!(distance(&[1.0, 2.0], &[1.0, 4.0]), 0.5);
        assert_eq!(distance(&[f32::NAN], &[1.0]), f32::INFINITY);
        assert_eq!(distance(&[1.0], &[1.0, 2.0]), f32::INFINITY);
    }
}
