//! LoRA on the tables of the vocabulary: the embedding table, and the output layer. As in PEFT they are two adapters even where
//! both are one table, which that of the input then leaves alone as an output layer.

use burn::tensor::{Device, Tensor, TensorData};
use justtrain_kernels::{Weight, embedding, linear};
use justtrain_worker_api::{Problem, ProblemCode};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::in_full::is_end;
use super::lora::last_part;
use super::{LoraConfig, LoraTargets};
use crate::Decoder;
use crate::classifier::normal;
use crate::layers::Lora;
use crate::parameters::{Parameter, Parameters};

/// A low-rank adapter of an embedding table (PEFT's `lora.Embedding`): `scale · A[token]·Bᵀ` is added to a token's row, before the
/// rows are made larger where a family does so. Dropout has nothing to do here.
#[derive(Debug, Clone)]
pub struct TableLora {
    module: &'static str,
    /// `[rows, rank]`; files hold the transpose, `lora_embedding_A`.
    pub a: Tensor<2>,
    /// `[features, rank]`.
    pub b: Tensor<2>,
    pub scale: f32,
}

impl TableLora {
    /// `[rows, features]` for these rows of the table.
    pub fn forward(&self, rows: &[u32], device: &Device) -> Tensor<2> {
        linear(embedding(&self.a.clone().into(), rows, device), &self.b.clone().into(), None) * self.scale
    }

    /// `[rows, features]`: what the whole table is changed by.
    pub(crate) fn change(&self) -> Tensor<2> {
        self.a.clone().matmul(self.b.clone().transpose()) * self.scale
    }
}

impl Parameters for TableLora {
    fn parameters_mut(&mut self) -> Vec<Parameter<'_>> {
        let Self { module, a, b, scale: _ } = self;
        let a = Parameter::matrix(format!("{module}.lora_embedding_A"), a).stored_transposed(true);
        vec![a, Parameter::matrix(format!("{module}.lora_embedding_B"), b)]
    }
}

/// The tables of a decoder that can have an adapter.
pub(super) fn modules(decoder: &Decoder) -> Vec<&'static str> {
    let of_tokens = decoder.token_table().map(|table| table.module);
    of_tokens.into_iter().chain(output(decoder)).collect()
}

fn output(decoder: &Decoder) -> Option<&'static str> {
    decoder.config().names.output.filter(|_| decoder.makes_words() && decoder.classifier().is_none())
}

/// Those that have one.
pub(super) fn adapted(decoder: &Decoder) -> Vec<&'static str> {
    let of_tokens = decoder.token_table().filter(|table| table.lora.is_some()).map(|table| table.module);
    of_tokens.into_iter().chain(output(decoder).filter(|_| decoder.head_lora().is_some())).collect()
}

impl LoraConfig {
    /// Whether a table gets a pair. `all` is all linear layers inside the blocks.
    pub fn targets_table(&self, module: &str) -> bool {
        self.targets != LoraTargets::All && self.targets(module)
    }
}

/// Puts a fresh adapter on every table that is targeted. Of the embedding table A is zero and B normal, of the output layer B is
/// zero: the model's output is unchanged. `InvalidValue` where the rest of the configuration does not go with it.
pub(super) fn attach(decoder: &mut Decoder, config: &LoraConfig, seed: u64) -> Result<(), Problem> {
    let targeted: Vec<&str> = modules(decoder).into_iter().filter(|module| config.targets_table(module)).collect();
    attach_all_zeros(decoder, config, &targeted)?;
    let (device, index) = (decoder.device(), decoder.projections().count() as u64);
    for module in targeted {
        let (mut rng, is_output) = (ChaCha8Rng::seed_from_u64(seed), output(decoder) == Some(module));
        rng.set_stream(if is_output { index } else { index + 1 });
        if let Some(lora) = decoder.head_lora_mut().filter(|_| is_output) {
            let [rank, width] = lora.a.dims();
            lora.a = super::lora::kaiming(&mut rng, rank, width, &device);
        } else if let Some(lora) = decoder.token_table_mut().and_then(|table| table.lora.as_mut()) {
            let shape = lora.b.dims();
            let numbers = normal(&mut rng, shape.iter().product(), 1.0);
            lora.b = Tensor::from_data(TensorData::new(numbers, shape), &device);
        }
    }
    Ok(())
}

/// Puts zeros on the tables that have an adapter in a file, for its numbers to be put in their place. `has` tells of a
/// parameter's name whether it is there.
pub(super) fn attach_zeros(
    decoder: &mut Decoder,
    config: &LoraConfig,
    has: impl Fn(&str) -> bool,
) -> Result<(), Problem> {
    let in_file = |module: &&&str| has(&format!("{module}.lora_embedding_A")) || has(&format!("{module}.lora_A"));
    let modules = modules(decoder);
    let adapted: Vec<&str> = modules.iter().filter(in_file).copied().collect();
    attach_all_zeros(decoder, config, &adapted)
}

fn attach_all_zeros(decoder: &mut Decoder, config: &LoraConfig, targeted: &[&str]) -> Result<(), Problem> {
    check(decoder, config, targeted)?;
    let (device, index) = (decoder.device(), decoder.projections().count() as u64);
    let [vocabulary, width] = [decoder.config().vocab_size, decoder.config().hidden_size];
    for &module in targeted {
        let (rank, scale) = (config.rank_of(module), config.scale_of(module));
        let zeros = |rows| Tensor::zeros([rows, rank], &device);
        if output(decoder) == Some(module) {
            let a = Tensor::zeros([rank, width], &device);
            decoder.set_head_lora(Lora::new(a, zeros(vocabulary), scale, config.dropout as f32, index));
        } else if let Some(table) = decoder.token_table_mut() {
            let (module, a, b) = (table.module, zeros(vocabulary), zeros(width));
            table.lora = Some(TableLora { module, a, b, scale });
        }
    }
    Ok(())
}

fn check(decoder: &Decoder, config: &LoraConfig, targeted: &[&str]) -> Result<(), Problem> {
    let Some(module) = targeted.first() else { return Ok(()) };
    if config.dora {
        return Err(without_magnitudes(last_part(module)));
    }
    let saved = |module: &str| config.modules_to_save.iter().any(|name| is_end(name, module));
    let tied = decoder.config().tied_embeddings;
    match decoder.config().names.tables().find(|module| tied && saved(module)) {
        None => Ok(()),
        Some(saved) => Err(Problem::error(
            ProblemCode::InvalidValue,
            "this model has one table for both ends; it is trained in full or has a LoRA pair, not both",
            "该模型的输入和输出共用一张词表，要么完整训练，要么使用 LoRA，不能两者都用",
        )
        .key("modules_to_save")
        .found(last_part(saved))
        .expected(format!("nothing beside lora_target: {}", last_part(module)))
        .fix("take the table out of one of the two", "从其中一项删除词表")),
    }
}

/// Why a table and DoRA do not go together.
pub(super) fn without_magnitudes(module: &str) -> Problem {
    Problem::error(
        ProblemCode::InvalidValue,
        "DoRA is computed for linear layers inside the blocks, not for tables of the vocabulary",
        "DoRA 只用于各块内的线性层，不用于词表",
    )
    .key("use_dora")
    .found(format!("use_dora with lora_target: {module}"))
    .fix(
        format!("remove use_dora, or take {module} out of lora_target"),
        format!("删除 use_dora，或从 lora_target 删除 {module}"),
    )
}

/// Whether two tables are the same numbers, as far as 16 bits tell: PEFT saves a targeted table beside its pair, in the form in
/// which it had loaded it.
pub(super) fn is_same_table(ours: &Weight, theirs: &[f32], device: &Device) -> bool {
    let ours: Vec<f32> = ours.to_tensor(device).into_data().try_into_vec().expect("weights are f32");
    let near = |(ours, theirs): (&f32, &f32)| (ours - theirs).abs() <= f32::max(ours.abs(), theirs.abs()) / 128.0;
    ours.len() == theirs.len() && ours.iter().zip(theirs).all(near)
}
