//! Optimisers, one file each; the rates of single modules, and schedules. To add an optimiser, write a file with a type
//! that implements [`Optimizer`], give it a name and its settings in [`config`], and a line in [`new`] and in [`bytes`].

mod adafactor;
mod adamw;
mod adamw_8bit;
mod config;
mod ema;
mod galore;
mod groups;
mod lion;
mod muon;
pub mod schedule;
mod sgd;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

pub use adafactor::Adafactor;
pub use adamw::AdamW;
pub use adamw_8bit::AdamW8bit;
pub use config::OptimizerType;
pub use ema::Ema;
pub use galore::Galore;
pub use groups::{Groups, Joining};
pub use lion::Lion;
pub use muon::Muon;
pub use sgd::Sgd;

use crate::recipe::Recipe;

/// Changes parameters by their gradients, and remembers what it must of each.
pub trait Optimizer {
    fn update(&mut self, update: &Update<'_>, weights: &mut [f32], gradient: &[f32]);

    /// Gives the mean of a parameter's weights for the weights themselves, and the other way round, where a mean is kept.
    fn exchange(&mut self, _name: &str, _weights: &mut [f32]) {}

    /// All that is remembered, as `<parameter>.<part>`.
    fn state(&self) -> BTreeMap<String, StateTensor<'_>>;

    /// Takes back what [`Self::state`] gave.
    fn restore(&mut self, state: BTreeMap<String, StateTensor<'static>>);
}

/// Which parameter is updated, and how.
#[derive(Debug, Clone, Copy)]
pub struct Update<'a> {
    pub name: &'a str,
    pub shape: &'a [usize],
    /// Whether weight decay applies.
    pub decays: bool,
    /// From 1, the parameter's own: one that was frozen at first begins to count when it joins, as in PyTorch, and one whose
    /// memory comes from an earlier stage counts on.
    pub step: u64,
    pub learning_rate: f64,
}

impl Update<'_> {
    /// What weight decay leaves of a weight.
    fn decay(&self, weight_decay: f64) -> f32 {
        if self.decays { (1.0 - self.learning_rate * weight_decay) as f32 } else { 1.0 }
    }

    /// Rows and columns of a matrix inside a numbered block: no embedding table, output layer, norm or bias.
    fn hidden_matrix(&self) -> Option<[usize; 2]> {
        let in_block = self.name.split('.').any(|part| part.parse::<u32>().is_ok());
        <[usize; 2]>::try_from(self.shape).ok().filter(|_| in_block)
    }
}

/// A part of an optimiser's memory.
#[derive(Debug, Clone, PartialEq)]
pub enum StateTensor<'a> {
    F32(Cow<'a, [f32]>),
    U8(Cow<'a, [u8]>),
}

impl StateTensor<'_> {
    pub fn bytes(&self) -> u64 {
        match self {
            Self::F32(numbers) => numbers.len() as u64 * 4,
            Self::U8(codes) => codes.len() as u64,
        }
    }
}

/// One vector for each parameter, as `<parameter>.<part>`.
fn named<'a>(vectors: &'a HashMap<String, Vec<f32>>, part: &'a str) -> impl Iterator<Item = (String, StateTensor<'a>)> {
    vectors
        .iter()
        .map(move |(name, numbers)| (format!("{name}.{part}"), StateTensor::F32(Cow::Borrowed(numbers.as_slice()))))
}

/// Takes what [`named`] gave out of a state.
fn taken(state: &mut BTreeMap<String, StateTensor<'static>>, part: &str) -> HashMap<String, Vec<f32>> {
    let suffix = format!(".{part}");
    let mut vectors = HashMap::new();
    for (key, tensor) in std::mem::take(state) {
        match (key.strip_suffix(&suffix), tensor) {
            (Some(name), StateTensor::F32(numbers)) => drop(vectors.insert(name.to_owned(), numbers.into_owned())),
            (_, tensor) => drop(state.insert(key, tensor)),
        }
    }
    vectors
}

/// The optimiser that a recipe names.
pub fn new(recipe: &Recipe) -> Box<dyn Optimizer> {
    let (beta1, beta2, weight_decay) = (recipe.adam_beta1, recipe.adam_beta2(), recipe.weight_decay);
    let (momentum, nesterov) = (recipe.momentum(), recipe.nesterov());
    let adamw = AdamW::new(beta1, beta2, recipe.adam_epsilon, weight_decay);
    let optimizer: Box<dyn Optimizer> = match recipe.optim {
        OptimizerType::Adamw => Box::new(adamw),
        OptimizerType::Adamw8bit => Box::new(AdamW8bit::new(adamw)),
        OptimizerType::Adafactor => Box::new(Adafactor::new(weight_decay)),
        OptimizerType::Lion => Box::new(Lion::new(beta1, beta2, weight_decay)),
        OptimizerType::Sgd => Box::new(Sgd::new(momentum, nesterov, weight_decay)),
        OptimizerType::Muon => Box::new(Muon::new(momentum, nesterov, weight_decay, adamw)),
        OptimizerType::GaloreAdamw => {
            let (rank, interval, scale) = (recipe.galore_rank, recipe.galore_update_interval, recipe.galore_scale);
            Box::new(Galore::new(rank, interval, scale, weight_decay, adamw))
        }
    };
    match recipe.ema_decay {
        Some(decay) => Box::new(Ema::new(decay, optimizer)),
        None => optimizer,
    }
}

/// Bytes that the recipe's optimiser remembers of matrices of these shapes, so many of each, and of so many numbers in
/// vectors. Matrices of `vocabulary` rows are tables.
pub(crate) fn bytes(recipe: &Recipe, matrices: &[([usize; 2], u64)], vectors: u64, vocabulary: usize) -> u64 {
    let of_optimizer = |shape: [usize; 2], hidden: bool| match recipe.optim {
        OptimizerType::Adamw8bit => adamw_8bit::bytes(shape),
        OptimizerType::Adafactor => adafactor::bytes(shape),
        OptimizerType::Lion => lion::bytes(shape),
        OptimizerType::Sgd => sgd::bytes(shape, recipe.momentum()),
        OptimizerType::Muon if hidden => muon::bytes(shape),
        OptimizerType::GaloreAdamw if hidden => galore::bytes(shape, recipe.galore_rank),
        OptimizerType::Adamw | OptimizerType::Muon | OptimizerType::GaloreAdamw => adamw::bytes(shape),
    };
    let of_mean = |[rows, cols]: [usize; 2]| if recipe.ema_decay.is_some() { (rows * cols) as u64 * 4 } else { 0 };
    let of_each = |shape, hidden| of_optimizer(shape, hidden) + of_mean(shape);
    let vectors = of_each([vectors as usize, 1], false);
    let of_all = |&(shape, count): &([usize; 2], u64)| count * of_each(shape, shape[0] != vocabulary);
    vectors + matrices.iter().map(of_all).sum::<u64>()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use justtrain_worker_api::RecipeSource;

    use super::*;

    fn recipe(more: &str) -> Recipe {
        let text = format!("model_name_or_path: m\ndataset: d.json\nfinetuning_type: full\n{more}\n");
        Recipe::parse(&RecipeSource { text, file: "r.yaml".to_owned(), base_dir: PathBuf::from("/") }).unwrap()
    }

    /// What is predicted before a run is what it remembers after a step.
    #[test]
    fn predicted_bytes_are_those_of_the_state() {
        let parameters: [(&str, &[usize]); 4] =
            [("embed.weight", &[90, 64]), ("layers.0.up", &[96, 64]), ("layers.0.down", &[64, 96]), ("norm", &[64])];
        for optim in [
            "adamw",
            "adamw_8bit",
            "adafactor",
            "lion",
            "sgd",
            "sgd\nmomentum: 0.9",
            "muon",
            "galore_adamw\ngalore_rank: 8",
            "galore_adamw\ngalore_rank: 64",
            "adafactor\nema_decay: 0.9",
        ] {
            let recipe = recipe(&format!("optim: {optim}"));
            let mut optimizer = new(&recipe);
            for (name, shape) in parameters {
                let mut weights = vec![1.0; shape.iter().product()];
                let gradient: Vec<f32> = (0..weights.len()).map(|index| (index as f32).sin()).collect();
                let update = Update { name, shape, decays: false, step: 1, learning_rate: 0.1 };
                optimizer.update(&update, &mut weights, &gradient);
            }
            let remembered: u64 = optimizer.state().values().map(StateTensor::bytes).sum();
            let matrices = [([90, 64], 1), ([96, 64], 1), ([64, 96], 1)];
            assert_eq!(bytes(&recipe, &matrices, 64, 90), remembered, "{optim}");
        }
    }

    /// A table has no numbered block in its name; a matrix in a block has.
    #[test]
    fn tables_and_vectors_are_not_hidden_matrices() {
        let hidden = |name, shape| {
            let update = Update { name, shape, decays: true, step: 1, learning_rate: 0.1 };
            update.hidden_matrix()
        };
        assert_eq!(hidden("model.layers.3.mlp.up_proj.weight", &[4, 2]), Some([4, 2]));
        assert_eq!(hidden("model.layers.3.input_layernorm.weight", &[4]), None);
        assert_eq!(hidden("model.embed_tokens.weight", &[4, 2]), None);
        assert_eq!(hidden("lm_head.weight", &[4, 2]), None);
    }
}
