//! How frozen weights are held in memory, and reading them from a checkpoint in that form.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeSet;

use burn::tensor::{Device, Tensor, TensorData};
use justtrain_kernels::{Format, Packed, Products, Weight, device::is_cpu};
use justtrain_weights::gguf::TensorType;
use justtrain_weights::{Checkpoint, SixteenBits, StoredTensor};
use justtrain_worker_api::{Problem, ProblemCode};

use crate::config::NormKind;
use crate::layers::{InFull, Norm, Projection};
use crate::names::WeightNames;
use crate::parameters::transpose;
use crate::{DecoderConfig, LinearShape};

/// The form of one kind of weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WeightFormat {
    #[default]
    F32,
    /// The same numbers, on the processor in the file's own form where that is narrower than `f32`: blocks of a GGUF, or 16 bits.
    AsStored,
    /// Rounded while it is read.
    Packed(Format),
    /// The blocks of a GGUF as they are.
    Gguf,
}

/// Norms are always `f32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WeightFormats {
    /// Of the linear layers inside the blocks.
    pub linear: WeightFormat,
    /// Of the embedding table and the output layer.
    pub tables: WeightFormat,
    pub products: Products,
}

impl WeightFormats {
    /// Whoever holds tables in fewer bits has products in 16 bits.
    pub fn new(linear: WeightFormat, tables: WeightFormat) -> Self {
        let products = match tables {
            WeightFormat::F32 | WeightFormat::AsStored => Products::F32,
            WeightFormat::Packed(Format::F16) => Products::F16,
            WeightFormat::Packed(_) | WeightFormat::Gguf => Products::Bf16,
        };
        Self { linear, tables, products }
    }
}

const NAMES: [(&str, WeightFormat); 7] = [
    ("fp32", WeightFormat::AsStored),
    ("bf16", WeightFormat::Packed(Format::Bf16)),
    ("fp16", WeightFormat::Packed(Format::F16)),
    ("int8", WeightFormat::Packed(Format::Int8)),
    ("nf4", WeightFormat::Packed(Format::Nf4 { double_quantization: false })),
    ("nf4-double", WeightFormat::Packed(Format::Nf4 { double_quantization: true })),
    ("gguf", WeightFormat::Gguf),
];

impl WeightFormat {
    /// Under which an adapter notes what it was trained on.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(_, format)| *format == self).map_or("fp32", |(name, _)| name)
    }

    pub fn from_name(name: &str) -> Option<Self> {
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, format)| *format)
    }
}

/// The form of one tensor.
enum Form {
    Dense,
    Packed(Format),
    /// Encoded as in the file.
    Blocks(TensorType, Vec<u8>),
}

impl Form {
    fn of(
        stored: &StoredTensor<'_>,
        format: WeightFormat,
        checkpoint: &Checkpoint,
        device: &Device,
    ) -> Result<Self, Problem> {
        let blocks = || stored.encoded().map(|(tensor_type, blocks)| Self::Blocks(tensor_type, blocks));
        Ok(match format {
            WeightFormat::F32 => Self::Dense,
            WeightFormat::Packed(format) => Self::Packed(format),
            WeightFormat::Gguf if checkpoint.gguf().is_none() => return Err(not_a_gguf(checkpoint)),
            // Plain floats in between.
            WeightFormat::Gguf => blocks().unwrap_or(Self::Packed(Format::Bf16)),
            // A GPU would decode them once, and they would stay in main memory besides.
            WeightFormat::AsStored if !is_cpu(device) => Self::Dense,
            WeightFormat::AsStored => match stored.sixteen_bits() {
                Some(SixteenBits::Bf16) => Self::Packed(Format::Bf16),
                Some(SixteenBits::F16) => Self::Packed(Format::F16),
                None => blocks().unwrap_or(Self::Dense),
            },
        })
    }
}

fn read_matrix(
    checkpoint: &Checkpoint,
    name: &str,
    shape: [usize; 2],
    format: WeightFormat,
    device: &Device,
) -> Result<Weight, Problem> {
    let stored = checkpoint.tensor(name, &shape)?;
    Ok(match Form::of(&stored, format, checkpoint, device)? {
        Form::Blocks(tensor_type, blocks) => Packed::gguf(tensor_type, blocks, shape).into(),
        Form::Packed(format) => Packed::from_rows(format, shape, |rows, part| stored.read_rows(rows, part)).into(),
        Form::Dense => Tensor::from_data(TensorData::new(stored.read(), shape), device).into(),
    })
}

/// Some matrix of this shape, as a decoder on the processor would hold it; None where the file has none.
pub fn some_matrix(checkpoint: &Checkpoint, shape: [usize; 2], format: WeightFormat) -> Option<Weight> {
    let name = checkpoint.names().find(|name| checkpoint.shape(name) == Some(&shape))?;
    read_matrix(checkpoint, name, shape, format, &Device::flex()).ok()
}

/// Reads weights of a checkpoint, one after the other; of packed ones never more than a few rows are decoded at a time.
pub(crate) struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    device: &'a Device,
    formats: WeightFormats,
    names: &'static WeightNames,
    /// Names of the tensors that a part of the network has read.
    taken: RefCell<BTreeSet<String>>,
}

impl<'a> Loader<'a> {
    pub(crate) fn new(
        checkpoint: &'a Checkpoint,
        device: &'a Device,
        formats: WeightFormats,
        names: &'static WeightNames,
    ) -> Self {
        Self { checkpoint, device, formats, names, taken: RefCell::default() }
    }

    /// Notes that a part takes a tensor, and returns its name in the file.
    fn take<'n>(&self, name: &'n str) -> Cow<'n, str> {
        let stored = stored_name(self.checkpoint, self.names, name);
        self.taken.borrow_mut().insert(stored.clone().into_owned());
        stored
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.checkpoint.shape(&stored_name(self.checkpoint, self.names, name)).is_some()
    }

    pub(crate) fn vector(&self, name: &str, len: usize) -> Result<Tensor<1>, Problem> {
        let elements = self.checkpoint.read_f32(&self.take(name), &[len])?;
        Ok(Tensor::from_data(TensorData::new(elements, [len]), self.device))
    }

    /// The embedding table or the output layer.
    pub(crate) fn table(&self, name: &str, shape: [usize; 2]) -> Result<Weight, Problem> {
        Ok(self.matrix(name, shape, self.formats.tables)?.with_products(self.formats.products))
    }

    /// A table of learned positions or a router, which is always `f32`.
    pub(crate) fn in_full_precision(&self, name: &str, shape: [usize; 2]) -> Result<Weight, Problem> {
        self.matrix(name, shape, WeightFormat::F32)
    }

    /// Numbers that files hold in a shape of more dimensions; always `f32`.
    pub(crate) fn reshaped(&self, name: &str, stored: &[usize], shape: [usize; 2]) -> Result<Tensor<2>, Problem> {
        let elements = self.checkpoint.read_f32(&self.take(name), stored)?;
        Ok(Tensor::from_data(TensorData::new(elements, shape), self.device))
    }

    /// The head of a classifier, which is always `f32`.
    pub(crate) fn head(&self, name: &str, shape: [usize; 2]) -> Result<Tensor<2>, Problem> {
        let elements = self.checkpoint.read_f32(&self.take(name), &shape)?;
        Ok(Tensor::from_data(TensorData::new(elements, shape), self.device))
    }

    pub(crate) fn norm(&self, name: String, width: usize, config: &DecoderConfig) -> Result<Norm, Problem> {
        Ok(Norm {
            weight: self.vector(&format!("{name}.weight"), width)?,
            bias: match config.norm {
                NormKind::Layer => Some(self.vector(&format!("{name}.bias"), width)?),
                NormKind::Rms | NormKind::RmsOnePlus => None,
            },
            name,
            kind: config.norm,
            epsilon: config.norm_epsilon,
            in_full: InFull::default(),
        })
    }

    /// `transposed`: the checkpoint holds the matrix as `[inputs, outputs]`.
    pub(crate) fn projection(&self, name: String, shape: LinearShape, transposed: bool) -> Result<Projection, Problem> {
        let LinearShape { outputs, inputs, bias, .. } = shape;
        let weight_name = format!("{name}.weight");
        let weight = match transposed {
            false => self.matrix(&weight_name, [outputs, inputs], self.formats.linear)?,
            true => self.transposed(&weight_name, [outputs, inputs])?,
        }
        .with_products(self.formats.products);
        let bias = bias.then(|| self.vector(&format!("{name}.bias"), outputs)).transpose()?;
        Ok(Projection { weight, name, bias, transposed, in_full: InFull::default(), lora: None })
    }

    fn transposed(&self, name: &str, [outputs, inputs]: [usize; 2]) -> Result<Weight, Problem> {
        let (stored, shape) = (self.checkpoint.tensor(&self.take(name), &[inputs, outputs])?, [outputs, inputs]);
        let form = match Form::of(&stored, self.formats.linear, self.checkpoint, self.device)? {
            // A GGUF has such matrices as the network multiplies by them.
            Form::Blocks(tensor_type, blocks) => return Ok(Packed::gguf(tensor_type, blocks, shape).into()),
            Form::Packed(format) => Some(format),
            Form::Dense => None,
        };
        let values = transpose(&stored.read(), [inputs, outputs]);
        Ok(match form {
            Some(format) => Packed::from_f32(format, &values, shape).into(),
            None => Tensor::from_data(TensorData::new(values, shape), self.device).into(),
        })
    }

    fn matrix(&self, name: &str, shape: [usize; 2], format: WeightFormat) -> Result<Weight, Problem> {
        read_matrix(self.checkpoint, &self.take(name), shape, format, self.device)
    }

    /// A tensor that no part takes, such as a bias, belongs to another network: left out without a word, it would make
    /// every result wrong.
    pub(crate) fn refuse_strangers(&self, config: &DecoderConfig) -> Result<(), Problem> {
        let taken = self.taken.borrow();
        // Early llamas carry the rotary frequencies, early GPT-2s the causal mask, some tied models the table twice.
        let output = config.names.output_weight();
        let harmless = |name: &str| {
            let constant = [".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias"];
            constant.iter().any(|end| name.ends_with(end))
                || config.names.unused.iter().any(|start| name.starts_with(start))
                || (config.tied_embeddings && Some(name) == output.as_deref())
        };
        let mut strangers = self.checkpoint.names().filter(|name| !taken.contains(*name) && !harmless(name));
        let Some(first) = strangers.next() else { return Ok(()) };
        Err(Problem::error(
            ProblemCode::UnknownArchitecture,
            "the model has tensors that no part of this network takes",
            "模型中有该网络用不到的张量",
        )
        .file(self.checkpoint.path().display())
        .key(first)
        .found(format!("{} such tensors", 1 + strangers.count()))
        .expected("none")
        .fix("choose a model of a supported architecture", "请选择受支持架构的模型"))
    }
}

/// A tensor's name in the file: that of its family's files; that of transformers' bare model, without the head's prefix, where the file has only that;
/// and a norm's as TensorFlow called them.
fn stored_name<'n>(checkpoint: &Checkpoint, names: &WeightNames, name: &'n str) -> Cow<'n, str> {
    match names.in_file(name) {
        Cow::Borrowed(name) => of_this_name(checkpoint, name),
        Cow::Owned(in_file) => of_this_name(checkpoint, &in_file).into_owned().into(),
    }
}

fn of_this_name<'n>(checkpoint: &Checkpoint, name: &'n str) -> Cow<'n, str> {
    let bare = name.split_once('.').map_or(name, |(_, bare)| bare);
    let has = |name: &str| checkpoint.shape(name).is_some();
    let of_norm = |name: &str| {
        let (module, part) = name.rsplit_once('.').filter(|(module, _)| module.ends_with("LayerNorm"))?;
        Some(format!("{module}.{}", if part == "weight" { "gamma" } else { "beta" })).filter(|name| has(name))
    };
    match [name, bare].into_iter().find(|name| has(name)) {
        Some(stored) => stored.into(),
        None => of_norm(name).or_else(|| of_norm(bare)).map_or(name.into(), Cow::Owned),
    }
}

/// The matrix of a layer as the checkpoint has it, `[outputs, inputs]`.
pub(crate) fn original(
    checkpoint: &Checkpoint,
    names: &WeightNames,
    projection: &Projection,
    device: &Device,
) -> Result<Tensor<2>, Problem> {
    let ([outputs, inputs], name) = (projection.shape(), format!("{}.weight", projection.name));
    let name = stored_name(checkpoint, names, &name);
    let numbers = match projection.transposed {
        false => checkpoint.read_f32(&name, &[outputs, inputs])?,
        true => transpose(&checkpoint.read_f32(&name, &[inputs, outputs])?, [inputs, outputs]),
    };
    Ok(Tensor::from_data(TensorData::new(numbers, [outputs, inputs]), device))
}

/// A matrix in the form in which a decoder holds its weights. A GGUF's blocks are only ever kept as they are.
pub(crate) fn hold(matrix: Tensor<2>, format: WeightFormat) -> Result<Weight, Problem> {
    let shape = matrix.dims();
    match format {
        // Other numbers than the file's.
        WeightFormat::F32 | WeightFormat::AsStored => Ok(matrix.into()),
        WeightFormat::Packed(format) => {
            let numbers: Vec<f32> = matrix.into_data().try_into_vec().expect("it is f32");
            Ok(Packed::from_f32(format, &numbers, shape).into())
        }
        WeightFormat::Gguf => Err(no_blocks(
            "the blocks of a GGUF cannot be made anew from other numbers",
            "无法用其他数值重新生成 GGUF 的量化块",
        )),
    }
}

fn not_a_gguf(checkpoint: &Checkpoint) -> Problem {
    no_blocks(
        "this model is not a GGUF, so it has no blocks that could be kept",
        "该模型不是 GGUF，没有可以保留的量化块",
    )
    .file(checkpoint.path().display())
}

/// Why blocks cannot be kept as they are, with the way out.
fn no_blocks(en: &str, zh: &str) -> Problem {
    Problem::error(ProblemCode::InvalidValue, en, zh).key("quantization_type").found("gguf").expected("nf4 | int8").fix(
        "write quantization_bit: 4 in place of quantization_type: gguf",
        "请写 quantization_bit: 4，代替 quantization_type: gguf",
    )
}
