//! Defaults that are not the type's own.

use super::OneOrMany;

pub(super) fn replay_buffer() -> usize {
    1000
}
pub(super) fn fisher_samples() -> usize {
    128
}
pub(super) fn lwf_temperature() -> f64 {
    2.0
}
pub(super) fn task_temperature() -> f64 {
    2.0
}
pub(super) fn task_weights_lr() -> f64 {
    0.01
}
pub(super) fn gradnorm_alpha() -> f64 {
    1.5
}

pub(super) fn pref_beta() -> f64 {
    0.1
}
pub(super) fn simpo_gamma() -> f64 {
    0.5
}
pub(super) fn weight() -> f64 {
    1.0
}
pub(super) fn kd_alpha() -> f64 {
    0.5
}
pub(super) fn lora_rank() -> usize {
    16
}
pub(super) fn pissa_iter() -> i64 {
    16
}
pub(super) fn loftq_iter() -> usize {
    1
}
pub(super) fn freeze_trainable_layers() -> i64 {
    2
}
pub(super) fn auto() -> String {
    "auto".to_owned()
}

pub(super) fn all() -> OneOrMany {
    OneOrMany::One("all".to_owned())
}
pub(super) fn cutoff_len() -> usize {
    2048
}
pub(super) fn val_size() -> f64 {
    0.1
}
pub(super) fn learning_rate() -> f64 {
    1e-4
}
pub(super) fn warmup_steps() -> f64 {
    0.03
}
pub(super) fn num_train_epochs() -> f64 {
    3.0
}
pub(super) fn max_steps() -> i64 {
    -1
}
pub(super) fn one() -> usize {
    1
}
pub(super) fn gradient_accumulation_steps() -> usize {
    8
}
pub(super) fn adam_beta1() -> f64 {
    0.9
}
pub(super) fn galore_update_interval() -> u64 {
    200
}
pub(super) fn galore_scale() -> f64 {
    2.0
}
pub(super) fn adam_epsilon() -> f64 {
    1e-8
}
pub(super) fn max_grad_norm() -> f64 {
    1.0
}
pub(super) fn max_bad_steps() -> u64 {
    5
}
pub(super) fn seed() -> u64 {
    42
}
pub(super) fn save_steps() -> u64 {
    500
}
pub(super) fn save_total_limit() -> usize {
    3
}
pub(super) fn logging_steps() -> u64 {
    10
}
