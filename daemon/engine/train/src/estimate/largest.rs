//! Which of some known models each method can train here.

use std::path::{Path, PathBuf};

use justtrain_model::families;
use justtrain_worker_api::{DevicePick, KnownModel, LargestModel, RecipeSource, Room};

use super::work::Rows;
use super::{Job, Passed};
use crate::recipe::Recipe;

/// A method, and the lines of a recipe that ask for it.
const METHODS: &[(&str, &str)] = &[
    ("lora", "finetuning_type: lora\n"),
    ("qlora", "finetuning_type: lora\nquantization_bit: 4\ngradient_checkpointing: true\n"),
    ("full", "finetuning_type: full\noptim: adamw_8bit\ngradient_checkpointing: true\n"),
];

/// For each method the largest of `models` that can be trained on batches of so many tokens within `room`. Models of families that are not known are
/// passed over.
pub fn largest_models(models: &[KnownModel], room: Room, batch_tokens: u32) -> Vec<LargestModel> {
    let largest = |(method, lines): &(&str, &str)| largest(method, &recipe(lines), models, room, batch_tokens as usize);
    METHODS.iter().map(largest).collect()
}

fn recipe(lines: &str) -> Recipe {
    let text = format!("model_name_or_path: any\ndataset: any\ngradient_accumulation_steps: 1\n{lines}");
    let source = RecipeSource { text, file: "any".to_owned(), base_dir: PathBuf::new() };
    Recipe::parse(&source).expect("the methods' own recipes are right")
}

fn largest(method: &str, recipe: &Recipe, models: &[KnownModel], room: Room, batch_tokens: usize) -> LargestModel {
    let sizes = models.iter().filter_map(|model| {
        let config = families::from_config(&model.config, Path::new(&model.name)).ok()?;
        let job = Job {
            config,
            teacher: None,
            rows: Rows::of_one_batch(batch_tokens),
            device: DevicePick::Cpu,
            passed: Passed::default(),
        };
        let predicted = job.predict(recipe);
        Some((predicted.shape.parameters, predicted.memory_bytes(), &model.name))
    });
    let mut sizes: Vec<_> = sizes.collect();
    sizes.sort_unstable();
    let fitting = sizes.iter().rev().find(|(_, memory, _)| *memory <= room.memory_bytes);
    LargestModel {
        method: method.to_owned(),
        model: fitting.map(|(_, _, name)| (*name).clone()),
        memory_bytes: fitting.or(sizes.first()).map_or(0, |(_, memory, _)| *memory),
    }
}
