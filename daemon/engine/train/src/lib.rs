//! Training: the recipe, the loop, and what it is made of.
//!
//! [`run::train`] reads on a page: load, prepare the data, start or resume, step by step, save. Everything that a person
//! may see leaves as an [`justtrain_worker_api::Event`].

pub mod backward;
pub mod checkpoint;
mod classes;
pub mod continual;
mod early_stopping;
pub mod estimate;
pub mod evaluate;
mod events;
mod gradients;
mod loss_scale;
mod memory;
pub mod objectives;
pub mod optim;
mod prepare;
pub mod recipe;
pub mod regularizers;
pub mod run;
mod staged;
pub mod step;
pub mod tasks;
mod teacher;
#[cfg(test)]
mod testing;
mod trainable;
mod trainer;

pub use events::{EventSink, StopToken};
pub use prepare::{adapter_template, open_encoder};
