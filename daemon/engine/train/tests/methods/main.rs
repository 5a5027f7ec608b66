//! Ways of training, each in whole runs on a tiny model.

#[path = "../desk/mod.rs"]
mod desk;
mod divergence;
mod early_stopping;
mod freezing;
mod regularizers;
mod unfreezing;
