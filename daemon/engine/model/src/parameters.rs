//! Every tensor of the decoder by its name: what optimisers, checkpoints and freezing see. That one is a norm, a table
//! or half of an adapter is known here and nowhere beyond.

use std::collections::BTreeSet;

use burn::tensor::{Device, GradientCheckpointingStrategy, Gradients, Tensor, TensorData};
use justtrain_kernels::{Numbers, Weight};

use crate::layers::InFull;

/// Whether a tensor is of the head of a classifier or a reward model, by transformers' names. It is trained whatever else is.
pub(crate) fn is_of_head(name: &str) -> bool {
    matches!(name, "score.weight" | "classifier.weight" | "classifier.bias")
}

/// How names go on, after that of their layer, of pairs that earlier stages have left. They are never trained.
pub(crate) const EARLIER: &str = ".lora_earlier";

/// What the names of adapters' own tensors end with.
const PAIRS: [&str; 5] = [".lora_A", ".lora_B", ".lora_embedding_A", ".lora_embedding_B", ".lora_magnitude_vector"];

/// Which parameters a run trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trained<'a> {
    /// The factors of the adapters, and what is trained in full beside them.
    Adapters,
    /// The model's own weights.
    Weights,
    /// Those with these names.
    Named(&'a BTreeSet<String>),
}

impl Trained<'_> {
    pub fn includes(self, name: &str) -> bool {
        let of_pair = || PAIRS.iter().any(|end| name.ends_with(end));
        let of_adapter = || of_pair() || InFull::marks(name);
        match self {
            _ if is_of_head(name) => true,
            Self::Adapters => of_adapter(),
            Self::Weights => !of_adapter() && !name.contains(EARLIER),
            Self::Named(names) => names.contains(name),
        }
    }
}

/// A tensor of the decoder: `model.layers.0.mlp.up_proj.weight`, or `model.layers.0.mlp.up_proj.lora_A`.
#[derive(Debug)]
pub struct Parameter<'a> {
    pub name: String,
    tensor: Place<'a>,
    transposed: bool,
    /// Of more dimensions in files than here.
    stored_shape: Option<Vec<usize>>,
    /// A batch may leave it out, and then its gradient is 0.
    optional: bool,
}

#[derive(Debug)]
enum Place<'a> {
    Vector(&'a mut Tensor<1>),
    Matrix(&'a mut Tensor<2>),
    Weight(&'a mut Weight),
}

impl<'a> Parameter<'a> {
    pub(crate) fn vector(name: String, tensor: &'a mut Tensor<1>) -> Self {
        Self { name, tensor: Place::Vector(tensor), transposed: false, stored_shape: None, optional: false }
    }

    pub(crate) fn matrix(name: String, tensor: &'a mut Tensor<2>) -> Self {
        Self { name, tensor: Place::Matrix(tensor), transposed: false, stored_shape: None, optional: false }
    }

    pub(crate) fn weight(name: String, weight: &'a mut Weight) -> Self {
        Self { name, tensor: Place::Weight(weight), transposed: false, stored_shape: None, optional: false }
    }

    /// Says that files hold the matrix as `[inputs, outputs]`.
    pub(crate) fn stored_transposed(self, transposed: bool) -> Self {
        Self { transposed, ..self }
    }

    /// Says that files hold the same numbers in this shape.
    pub(crate) fn stored_as(self, shape: Vec<usize>) -> Self {
        Self { stored_shape: Some(shape), ..self }
    }

    /// Says that a batch may leave the tensor out.
    pub(crate) fn not_in_every_batch(self) -> Self {
        Self { optional: true, ..self }
    }

    pub fn shape(&self) -> Vec<usize> {
        match &self.tensor {
            Place::Vector(tensor) => tensor.dims().to_vec(),
            Place::Matrix(tensor) => tensor.dims().to_vec(),
            Place::Weight(weight) => weight.dims().to_vec(),
        }
    }

    /// How many numbers there are.
    pub fn len(&self) -> usize {
        self.shape().iter().product()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether weight decay applies: to matrices, not to norms and biases.
    pub fn decays(&self) -> bool {
        !matches!(self.tensor, Place::Vector(_))
    }

    pub fn values(&self) -> Vec<f32> {
        match &self.tensor {
            Place::Vector(tensor) => values((*tensor).clone()),
            Place::Matrix(tensor) => values((*tensor).clone()),
            Place::Weight(Weight { numbers: Numbers::Dense(tensor), .. }) => values(tensor.clone()),
            Place::Weight(Weight { numbers: Numbers::Packed(packed), .. }) => packed.to_f32(),
        }
    }

    /// Shape of the tensor in the model's files.
    pub(crate) fn stored_shape(&self) -> Vec<usize> {
        let mut shape = self.stored_shape.clone().unwrap_or_else(|| self.shape());
        if self.transposed {
            shape.reverse();
        }
        shape
    }

    /// The numbers as the model's files hold them.
    pub(crate) fn stored_values(&self) -> Vec<f32> {
        let (values, shape) = (self.values(), self.shape());
        if self.transposed { transpose(&values, [shape[0], shape[1]]) } else { values }
    }

    /// Takes the numbers that a file of the model holds.
    pub(crate) fn set_stored(&mut self, stored: Vec<f32>) {
        let shape = self.stored_shape();
        let values = if self.transposed { transpose(&stored, [shape[0], shape[1]]) } else { stored };
        // Numbers that a decoder in 16 bits has saved are not rounded again, whatever the seed.
        self.update(0, |numbers| numbers.copy_from_slice(&values));
    }

    /// Changes the numbers, in place where nothing else holds them. Those that are held in 16 bits are rounded by a
    /// chance that `rounding_seed` decides.
    pub fn update(&mut self, rounding_seed: u64, change: impl FnOnce(&mut [f32])) {
        match &mut self.tensor {
            Place::Vector(tensor) => update(tensor, change),
            Place::Matrix(tensor) => update(tensor, change),
            Place::Weight(Weight { numbers: Numbers::Dense(tensor), .. }) => update(tensor, change),
            Place::Weight(Weight { numbers: Numbers::Packed(packed), .. }) => {
                let mut numbers = packed.to_f32();
                change(&mut numbers);
                packed.set_by_chance(&numbers, rounding_seed);
            }
        }
    }

    /// Puts the tensor where gradients are tracked: as a leaf of the graph, or as a constant. A leaf is in `f32`.
    fn track(&mut self, leaf: bool, device: &Device) {
        match &mut self.tensor {
            Place::Vector(tensor) => track(tensor, leaf),
            Place::Matrix(tensor) => track(tensor, leaf),
            Place::Weight(Weight { numbers: Numbers::Dense(tensor), .. }) => track(tensor, leaf),
            Place::Weight(weight) if leaf => {
                let mut tensor = weight.to_tensor(device);
                track(&mut tensor, leaf);
                weight.numbers = Numbers::Dense(tensor);
            }
            Place::Weight(Weight { numbers: Numbers::Packed(_), .. }) => {}
        }
    }

    fn take_gradient(&self, gradients: &mut Gradients) -> Option<Vec<f32>> {
        match &self.tensor {
            Place::Vector(tensor) => tensor.grad_remove(gradients).map(values),
            Place::Matrix(tensor) => tensor.grad_remove(gradients).map(values),
            Place::Weight(Weight { numbers: Numbers::Dense(tensor), .. }) => tensor.grad_remove(gradients).map(values),
            Place::Weight(Weight { numbers: Numbers::Packed(_), .. }) => None,
        }
    }
}

/// A part of the decoder, or all of it.
pub trait Parameters: Clone {
    /// Every tensor, in the order of the network.
    fn parameters_mut(&mut self) -> Vec<Parameter<'_>>;

    fn trained_mut(&mut self, trained: Trained<'_>) -> Vec<Parameter<'_>> {
        self.parameters_mut().into_iter().filter(|parameter| trained.includes(&parameter.name)).collect()
    }

    /// Name and count of numbers of each trained tensor.
    fn trained_sizes(&self, trained: Trained<'_>) -> Vec<(String, usize)> {
        let mut part = self.clone();
        part.trained_mut(trained).into_iter().map(|parameter| (parameter.name.clone(), parameter.len())).collect()
    }

    /// The same part in a gradient graph of its own, sharing the memory; trained tensors are leaves, and of those the
    /// ones that are held in 16 bits are copied.
    fn tracked(&self, trained: Trained<'_>, device: &Device) -> Self {
        let mut part = self.clone();
        for mut parameter in part.parameters_mut() {
            let leaf = trained.includes(&parameter.name);
            parameter.track(leaf, device);
        }
        part
    }

    /// The gradients of the leaves that [`Self::tracked`] made, by name.
    fn take_gradients(&mut self, trained: Trained<'_>, gradients: &mut Gradients) -> Vec<(String, Vec<f32>)> {
        let take = |parameter: Parameter<'_>| {
            let gradient = match parameter.take_gradient(gradients) {
                None if parameter.optional => vec![0.0; parameter.len()],
                gradient => gradient.expect("every trained tensor has a gradient"),
            };
            (parameter.name, gradient)
        };
        self.trained_mut(trained).into_iter().map(take).collect()
    }
}

/// A row-major matrix with rows and columns exchanged.
pub(crate) fn transpose(matrix: &[f32], [rows, cols]: [usize; 2]) -> Vec<f32> {
    (0..cols).flat_map(|col| (0..rows).map(move |row| matrix[row * cols + col])).collect()
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().expect("parameters are f32")
}

fn update<const D: usize>(tensor: &mut Tensor<D>, change: impl FnOnce(&mut [f32])) {
    let (shape, device) = (tensor.dims(), tensor.device());
    let mut numbers = values(std::mem::replace(tensor, Tensor::zeros([1; D], &device)));
    change(&mut numbers);
    *tensor = Tensor::from_data(TensorData::new(numbers, shape), &device);
}

fn track<const D: usize>(tensor: &mut Tensor<D>, leaf: bool) {
    let tracked = constant(tensor.clone());
    *tensor = if leaf { tracked.require_grad() } else { tracked };
}

/// A tensor that can meet others in a gradient graph. Cheap activations are made a second time in the backward: a
/// quarter less memory for a hundredth of the time.
pub fn constant<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    tensor.autodiff().with_gradient_checkpointing_strategy(GradientCheckpointingStrategy::Balanced)
}
