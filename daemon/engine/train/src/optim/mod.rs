//! Optimisers, schedules and clipping.

mod adamw;
mod clip;
mod schedule;

pub use adamw::{AdamW, Moments};
pub use clip::clip_global_norm;
pub use schedule::Schedule;
