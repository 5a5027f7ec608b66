//! Optimisers, one file each, and schedules. To add an optimiser, write a file with a type that implements
//! [`Optimizer`] and give it a line in the recipe's `optim` and in [`new`].

mod adafactor;
mod adamw;
mod adamw_8bit;
mod schedule;

use std::borrow::Cow;
use std::collections::BTreeMap;

pub use adafactor::Adafactor;
pub use adamw::AdamW;
pub use adamw_8bit::AdamW8bit;
pub use schedule::Schedule;

use crate::recipe::{self, Recipe};

/// Changes parameters by their gradients, and remembers what it must of each.
pub trait Optimizer {
    fn update(&mut self, update: &Update<'_>, weights: &mut [f32], gradient: &[f32]);

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
    /// From 1.
    pub step: u64,
    pub learning_rate: f64,
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

/// The optimiser that a recipe names.
pub fn new(recipe: &Recipe) -> Box<dyn Optimizer> {
    let adamw = || AdamW::new(recipe.adam_beta1, recipe.adam_beta2, recipe.adam_epsilon, recipe.weight_decay);
    match recipe.optim {
        recipe::Optimizer::Adamw => Box::new(adamw()),
        recipe::Optimizer::Adamw8bit => Box::new(AdamW8bit::new(adamw())),
        recipe::Optimizer::Adafactor => Box::new(Adafactor::new(recipe.weight_decay)),
    }
}

/// Bytes that the recipe's optimiser remembers of matrices of these shapes, so many of each, and of so many numbers in
/// vectors.
pub(crate) fn bytes(recipe: &Recipe, matrices: &[([usize; 2], u64)], vectors: u64) -> u64 {
    let of_each: fn([usize; 2]) -> u64 = match recipe.optim {
        recipe::Optimizer::Adamw => adamw::bytes,
        recipe::Optimizer::Adamw8bit => adamw_8bit::bytes,
        recipe::Optimizer::Adafactor => adafactor::bytes,
    };
    let vectors = of_each([vectors as usize, 1]);
    vectors + matrices.iter().map(|&(shape, count)| count * of_each(shape)).sum::<u64>()
}
