//! Ways of training, each in whole runs on a tiny model.

mod bundled_recipes;
mod classification;
mod continual;
#[path = "../desk/mod.rs"]
mod desk;
mod distillation;
mod divergence;
mod early_stopping;
mod freezing;
mod optimizer_state;
mod precision;
mod random_model;
mod random_recipes;
mod regularizers;
mod seq2seq;
mod stages;
mod tasks;
mod unfreezing;
