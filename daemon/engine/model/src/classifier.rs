//! What judges whole sequences: the head of a classifier, or of a reward model, which is a classifier of one class.

use burn::tensor::{Device, Int, Tensor, TensorData};
use justtrain_weights::Checkpoint;
use justtrain_worker_api::Problem;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::config::LinearShape;
use crate::layers::{InFull, Projection};
use crate::names::{ClassifierNames, Reads};
use crate::parameters::Parameter;
use crate::weights::Loader;
use crate::{DecoderConfig, Input, Mode};

/// `W·h + b` of one token's hidden state `h`, with a linear layer and tanh before where the family has them.
#[derive(Debug, Clone)]
pub struct Classifier {
    names: &'static ClassifierNames,
    pooler: Option<Pooler>,
    /// `[labels, hidden]`.
    weight: Tensor<2>,
    /// One for each label.
    bias: Option<Tensor<1>>,
    labels: Vec<String>,
}

#[derive(Debug, Clone)]
struct Pooler {
    layer: Projection,
    /// It came with no checkpoint, so that it is trained and saved whatever else is.
    new: bool,
}

impl Classifier {
    /// What the checkpoint has, where it is that of a classifier; its labels are those of its `config.json`.
    pub(crate) fn load(
        loader: &Loader<'_>,
        checkpoint: &Checkpoint,
        config: &DecoderConfig,
    ) -> Result<Option<Self>, Problem> {
        let names = &config.names.classifier;
        let Some(count) = checkpoint.shape(&names.weight()).map(|shape| shape[0]) else { return Ok(None) };
        let weight = loader.head(&names.weight(), [count, config.hidden_size])?;
        let bias = names.bias.then(|| loader.vector(&names.bias_name(), count)).transpose()?;
        let pooler = pooler(loader, config)?.map(|layer| Pooler { layer, new: false });
        Ok(Some(Self { names, pooler, weight, bias, labels: labels(checkpoint, count) }))
    }

    /// A random head, spread as transformers does (standard deviation 0.02), on the pooler that there is.
    pub(crate) fn new(
        config: &DecoderConfig,
        pooler: Option<Projection>,
        labels: Vec<String>,
        device: &Device,
        seed: u64,
    ) -> Self {
        let names = &config.names.classifier;
        let (count, width) = (labels.len(), config.hidden_size);
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(u64::MAX);
        let weight =
            Tensor::from_data(TensorData::new(normal(&mut rng, count * width, DEVIATION), [count, width]), device);
        let bias = names.bias.then(|| Tensor::zeros([count], device));
        let pooler = names.pooler.map(|name| match pooler {
            Some(layer) => Pooler { layer, new: false },
            None => Pooler { layer: new_pooler(name, width, device, &mut rng), new: true },
        });
        Self { names, pooler, weight, bias, labels }
    }

    /// The numbers of a head without a bias.
    pub(crate) fn set_weight(&mut self, numbers: Vec<f32>) {
        let (shape, device) = (self.weight.dims(), self.weight.device());
        self.weight = Tensor::from_data(TensorData::new(numbers, shape), &device);
    }

    /// The pooler of the base model, which adapters can be put on.
    pub(crate) fn pooler(&self) -> Option<&Projection> {
        self.pooler.as_ref().filter(|pooler| !pooler.new).map(|pooler| &pooler.layer)
    }

    pub(crate) fn pooler_mut(&mut self) -> Option<&mut Projection> {
        self.pooler.as_mut().filter(|pooler| !pooler.new).map(|pooler| &mut pooler.layer)
    }

    pub(crate) fn into_pooler(self) -> Option<Projection> {
        self.pooler.filter(|pooler| !pooler.new).map(|pooler| pooler.layer)
    }

    /// Has a pooler that the base model lacks trained beside adapters.
    pub(crate) fn train_new_pooler(&mut self) {
        let new = self.pooler.iter_mut().filter(|pooler| pooler.new);
        new.for_each(|pooler| pooler.layer.in_full = InFull { weight: true, bias: true });
    }

    /// By the number of their classes.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// Whether its classes are these, or have only transformers' names for classes without one.
    pub(crate) fn can_mean(&self, labels: &[String]) -> bool {
        self.labels == labels || (self.labels.len() == labels.len() && are_unnamed(&self.labels))
    }

    pub(crate) fn set_labels(&mut self, labels: Vec<String>) {
        self.labels = labels;
    }

    /// The label that has the largest of these numbers; of equal ones the first.
    pub fn label_of(&self, row: &[f32]) -> &str {
        &self.labels[largest(row)]
    }

    /// The row of each sequence's token that is read.
    pub(crate) fn rows(&self, input: &Input) -> Vec<usize> {
        let is_read = |&row: &usize| match self.names.reads {
            Reads::FirstToken => input.positions[row] == 0,
            Reads::LastToken => input.positions.get(row + 1).is_none_or(|&position| position == 0),
        };
        (0..input.positions.len()).filter(is_read).collect()
    }

    /// `[sequences, labels]`, of the hidden states of the tokens that are read.
    pub(crate) fn logits(&self, hidden: Tensor<2>, mode: Mode) -> Tensor<2> {
        let pooled = match &self.pooler {
            None => hidden,
            Some(pooler) => pooler.layer.forward(hidden, mode).tanh(),
        };
        let logits = pooled.matmul(self.weight.clone().transpose());
        self.bias.iter().fold(logits, |logits, bias| logits + bias.clone().unsqueeze())
    }

    pub(crate) fn parameters_mut(&mut self) -> Vec<Parameter<'_>> {
        let Self { names, pooler, weight, bias, labels: _ } = self;
        let mut parameters: Vec<Parameter<'_>> =
            pooler.iter_mut().flat_map(|pooler| pooler.layer.parameters_mut()).collect();
        parameters.push(Parameter::matrix(names.weight(), weight));
        parameters.extend(bias.iter_mut().map(|bias| Parameter::vector(names.bias_name(), bias)));
        parameters
    }
}

impl ClassifierNames {
    /// Of the head's matrix among the parameters and in files.
    pub(crate) fn weight(&self) -> String {
        format!("{}.weight", self.output)
    }

    pub(crate) fn bias_name(&self) -> String {
        format!("{}.bias", self.output)
    }
}

/// The place of the largest number; of equal ones the first.
pub fn largest(row: &[f32]) -> usize {
    (0..row.len()).rev().max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap_or(0)
}

/// The rows of a tensor, in this order.
pub(crate) fn select(x: Tensor<2>, rows: &[usize]) -> Tensor<2> {
    let (indices, device): (Vec<i64>, _) = (rows.iter().map(|&row| row as i64).collect(), x.device());
    x.select(0, Tensor::<1, Int>::from_data(TensorData::new(indices, [rows.len()]), &device))
}

/// That of the checkpoint, where it has one: models that were trained on masked words alone may come without.
pub(crate) fn pooler(loader: &Loader<'_>, config: &DecoderConfig) -> Result<Option<Projection>, Problem> {
    let Some(name) = config.names.classifier.pooler.filter(|name| loader.has(&format!("{name}.weight"))) else {
        return Ok(None);
    };
    let shape = LinearShape { name, outputs: config.hidden_size, inputs: config.hidden_size, bias: true };
    loader.projection(name.to_owned(), shape, false).map(Some)
}

fn new_pooler(name: &str, width: usize, device: &Device, rng: &mut ChaCha8Rng) -> Projection {
    let weight = Tensor::<2>::from_data(TensorData::new(normal(rng, width * width, DEVIATION), [width; 2]), device);
    Projection {
        name: name.to_owned(),
        weight: weight.into(),
        bias: Some(Tensor::zeros([width], device)),
        transposed: false,
        in_full: InFull::default(),
        lora: None,
    }
}

/// Of the numbers in a new head (transformers' `initializer_range`).
const DEVIATION: f32 = 0.02;

/// Irwin–Hall: the sum of twelve uniform numbers is near enough to a normal one.
pub(crate) fn normal(rng: &mut ChaCha8Rng, count: usize, deviation: f32) -> Vec<f32> {
    let mut number = || (0..12).map(|_| rng.random_range(-0.5..0.5f32)).sum::<f32>() * deviation;
    (0..count).map(|_| number()).collect()
}

/// `id2label` of a checkpoint's `config.json`, or transformers' names for classes without one.
pub(crate) fn labels(checkpoint: &Checkpoint, count: usize) -> Vec<String> {
    let written = &checkpoint.config()["id2label"];
    let label = |class: usize| written[class.to_string()].as_str().map_or_else(|| unnamed(class), str::to_owned);
    (0..count).map(label).collect()
}

/// transformers' name of a class that has none.
pub(crate) fn unnamed(class: usize) -> String {
    format!("LABEL_{class}")
}

/// Whether no label has been given a name.
pub fn are_unnamed(labels: &[String]) -> bool {
    labels.iter().enumerate().all(|(class, label)| *label == unnamed(class))
}
