//! Which parameters a run trains, from which step on, and how fast next to the others.
//!
//! | file | holds |
//! |---|---|
//! | `freeze.rs` | the layers and modules of `finetuning_type: freeze` |
//! | `unfreeze.rs` | the groups of `unfreeze_schedule` and of `lr_decay` |

mod freeze;
mod unfreeze;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use justtrain_model::parameters::{Parameters, Trained};
use justtrain_model::{Decoder, DecoderConfig};
use justtrain_worker_api::Problem;

use crate::optim::{Groups, Joining};
use crate::recipe::{FinetuningType, Recipe};

pub(crate) use unfreeze::Group;

/// The parameters that are trained; all others stay as they are to the last bit.
pub(crate) struct Trainable {
    kind: Trained<'static>,
    /// Those of the kind that are trained in the end, where not all are.
    names: Option<BTreeSet<String>>,
    /// Of an `unfreeze_schedule`, by the step from which they hold.
    stages: Vec<Stage>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stage {
    /// Steps that are done before.
    pub(crate) first_step: u64,
    /// The last group that has joined.
    pub(crate) group: Group,
    /// All that are trained in it.
    pub(crate) names: BTreeSet<String>,
}

impl Trainable {
    /// `kind` is what the recipe's method could train.
    pub(crate) fn new(
        recipe: &Recipe,
        decoder: &Decoder,
        kind: Trained<'static>,
        total_steps: u64,
    ) -> Result<Self, Vec<Problem>> {
        let config = decoder.config();
        let all = decoder.trained_sizes(kind).into_iter().map(|(name, _)| name);
        let names: Vec<String> = match recipe.finetuning_type {
            FinetuningType::Lora | FinetuningType::Full => all.collect(),
            FinetuningType::Freeze => {
                let chosen = freeze::selected(recipe, config)?;
                all.filter(|name| chosen.contains(name)).collect()
            }
        };
        let stages = unfreeze::stages(&recipe.unfreeze_schedule(total_steps), config, &names)?;
        let names = match (stages.last(), recipe.finetuning_type) {
            (Some(last), _) => Some(last.names.clone()),
            (None, FinetuningType::Freeze) => Some(names.into_iter().collect()),
            (None, FinetuningType::Lora | FinetuningType::Full) => None,
        };
        Ok(Self { kind, names, stages })
    }

    /// What is trained in the end.
    pub(crate) fn all(&self) -> Trained<'_> {
        self.names.as_ref().map_or(self.kind, Trained::Named)
    }

    /// What is trained in the step after so many.
    pub(crate) fn after(&self, steps: u64) -> Trained<'_> {
        let stage = self.stages.iter().rev().find(|stage| stage.first_step <= steps);
        stage.map_or(self.all(), |stage| Trained::Named(&stage.names))
    }

    /// The stage that begins with the step after so many, unless it is the first.
    pub(crate) fn begins(&self, steps: u64) -> Option<&Stage> {
        self.stages.iter().skip(1).find(|stage| stage.first_step == steps)
    }

    /// Adds to the rates of single modules how each parameter joins.
    pub(crate) fn joining(&self, groups: Groups, recipe: &Recipe, decoder: &Decoder) -> Groups {
        let names = decoder.trained_sizes(self.all()).into_iter().map(|(name, _)| name);
        let joining = |name: String| {
            let index = self.stages.iter().position(|stage| stage.names.contains(&name));
            let depth = match index {
                Some(index) => index,
                None => unfreeze::depth(decoder.config(), &name),
            };
            let first_step = index.map_or(0, |index| self.stages[index].first_step);
            (name, Joining { share: recipe.lr_decay().powi(-(depth as i32)), first_step })
        };
        groups.with_joining(names.map(joining).collect())
    }
}

/// Names of the base model's own weights that the recipe trains in the end.
pub(crate) fn weights(recipe: &Recipe, config: &DecoderConfig) -> Result<BTreeSet<String>, Vec<Problem>> {
    let names: BTreeSet<String> = match recipe.finetuning_type {
        FinetuningType::Lora => return Ok(BTreeSet::new()),
        FinetuningType::Full => config.tensors().into_iter().map(|(name, _)| name).collect(),
        FinetuningType::Freeze => freeze::selected(recipe, config)?,
    };
    let names_in_order: Vec<String> = names.iter().cloned().collect();
    // Only the order of the stages counts here, not their steps.
    let stages = unfreeze::stages(&recipe.unfreeze_schedule(1), config, &names_in_order)?;
    Ok(stages.into_iter().next_back().map_or(names, |last| last.names))
}
