//! Values that depend on other keys or on the data: each is computed here and nowhere else.

use std::path::PathBuf;

use justtrain_data::chat_template::choose;
use justtrain_model::kernels::Format;
use justtrain_model::{WeightFormat, WeightFormats};
use justtrain_worker_api::{DevicePick, FormatName, Problem};
use regex::Regex;

use crate::optim::schedule::{Schedule, share_or_steps};
use crate::optim::{Groups, OptimizerType};

use super::{DatasetFormat, OneOrMany, Precision, QuantizationType, Recipe};

/// Linear layers that get a LoRA pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoraTarget {
    All,
    /// Last parts of module names, such as `q_proj`.
    Named(Vec<String>),
}

impl Recipe {
    /// Where to train.
    pub fn device(&self) -> DevicePick {
        self.device.parse().unwrap_or_default()
    }

    /// LoRA's update is scaled by `lora_alpha / lora_rank`.
    pub fn lora_alpha(&self) -> f64 {
        self.lora_alpha.unwrap_or(2.0 * self.lora_rank as f64)
    }

    pub fn lora_target(&self) -> LoraTarget {
        let names = self.lora_target.names();
        if names == ["all"] { LoraTarget::All } else { LoraTarget::Named(names) }
    }

    /// How the frozen weights are held. Embedding and output layer are never quantised, but for a GGUF's own blocks.
    pub fn weight_formats(&self) -> WeightFormats {
        let plain = match (self.precision, self.quantization()) {
            (Precision::Fp32, _) | (Precision::Auto, None) => WeightFormat::F32,
            (Precision::Bf16, _) | (Precision::Auto, Some(_)) => WeightFormat::Packed(Format::Bf16),
        };
        let double_quantization = self.double_quantization.unwrap_or(true);
        match self.quantization() {
            None => WeightFormats { linear: plain, tables: plain },
            Some(QuantizationType::Nf4) => {
                WeightFormats { linear: WeightFormat::Packed(Format::Nf4 { double_quantization }), tables: plain }
            }
            Some(QuantizationType::Int8) => WeightFormats { linear: WeightFormat::Packed(Format::Int8), tables: plain },
            Some(QuantizationType::Gguf) => WeightFormats { linear: WeightFormat::Gguf, tables: WeightFormat::Gguf },
        }
    }

    pub(crate) fn quantization(&self) -> Option<QuantizationType> {
        let by_bits = |bits| if bits == 4 { QuantizationType::Nf4 } else { QuantizationType::Int8 };
        self.quantization_type.or(self.quantization_bit.map(by_bits))
    }

    /// Paths of the data files, starting from the recipe's folder.
    pub fn dataset_files(&self) -> Vec<PathBuf> {
        let files = match &self.dataset {
            OneOrMany::One(file) => std::slice::from_ref(file),
            OneOrMany::Many(files) => files,
        };
        files.iter().map(|file| self.base_dir.join(file)).collect()
    }

    /// The chat template's text; None for the one that the model brings.
    pub fn chat_template(&self) -> Result<Option<String>, Problem> {
        match self.template.as_str() {
            "auto" => Ok(None),
            template => choose(template, &self.base_dir).map(Some),
        }
    }

    /// How many of `rows` are held out. A share is rounded up, as scikit-learn does; at least one row stays for training.
    pub fn validation_rows(&self, rows: usize) -> usize {
        let held_out = if self.val_size < 1.0 { (self.val_size * rows as f64).ceil() } else { self.val_size };
        (held_out as usize).min(rows.saturating_sub(1))
    }

    /// Steps between two validations while training; None where nothing is held out.
    pub fn eval_steps(&self) -> Option<u64> {
        (self.val_size > 0.0).then(|| self.eval_steps.unwrap_or(self.save_steps))
    }

    /// Optimiser steps of the whole run, at least one.
    pub fn total_steps(&self, steps_per_epoch: u64) -> u64 {
        match u64::try_from(self.max_steps) {
            Ok(max_steps) => max_steps,
            Err(_) => ((self.num_train_epochs * steps_per_epoch as f64).ceil() as u64).max(1),
        }
    }

    /// Steps before the learning rate is at its highest, where the schedule does not decide that itself.
    pub fn warmup_steps(&self, total_steps: u64) -> u64 {
        if !self.lr_scheduler_type.warms_up() {
            return 0;
        }
        share_or_steps(self.warmup_ratio.unwrap_or(self.warmup_steps), total_steps).min(total_steps)
    }

    pub fn schedule(&self, total_steps: u64) -> Schedule {
        let warmup_steps = self.warmup_steps(total_steps);
        let (kind, learning_rate) = (self.lr_scheduler_type, self.learning_rate);
        let kwargs = self.lr_scheduler_kwargs.clone().unwrap_or_default();
        let shape = kwargs.shape(kind, learning_rate, warmup_steps, total_steps);
        Schedule { shape, learning_rate, warmup_steps, total_steps }
    }

    pub fn adam_beta2(&self) -> f64 {
        self.adam_beta2.unwrap_or(if self.optim == OptimizerType::Lion { 0.99 } else { 0.999 })
    }

    pub fn momentum(&self) -> f64 {
        self.momentum.unwrap_or(if self.optim == OptimizerType::Muon { 0.95 } else { 0.0 })
    }

    pub fn nesterov(&self) -> bool {
        self.nesterov.unwrap_or(self.optim == OptimizerType::Muon)
    }

    /// Patterns of `learning_rates` as they are written, each with its rate.
    pub(super) fn learning_rates(&self) -> impl Iterator<Item = (&str, f64)> {
        self.learning_rates.iter().filter_map(|(pattern, rate)| Some((pattern.as_str(), rate.as_f64()?)))
    }

    pub fn groups(&self) -> Groups {
        let group = |(pattern, rate)| Some((Regex::new(pattern).ok()?, rate / self.learning_rate));
        Groups::new(self.learning_rates().filter_map(group).collect(), self.loraplus_lr_ratio.unwrap_or(1.0))
    }

    /// Whether a token takes as long as by `other`: they differ at most in keys that have no bearing on that.
    pub(crate) fn same_speed(&self, other: &Self) -> bool {
        let aligned = Self {
            learning_rate: other.learning_rate,
            lr_scheduler_type: other.lr_scheduler_type,
            lr_scheduler_kwargs: other.lr_scheduler_kwargs.clone(),
            warmup_steps: other.warmup_steps,
            warmup_ratio: other.warmup_ratio,
            num_train_epochs: other.num_train_epochs,
            max_steps: other.max_steps,
            lora_alpha: other.lora_alpha,
            adam_beta1: other.adam_beta1,
            adam_beta2: other.adam_beta2,
            galore_scale: other.galore_scale,
            learning_rates: other.learning_rates.clone(),
            loraplus_lr_ratio: other.loraplus_lr_ratio,
            adam_epsilon: other.adam_epsilon,
            weight_decay: other.weight_decay,
            pref_beta: other.pref_beta,
            pref_ftx: other.pref_ftx,
            dpo_label_smoothing: other.dpo_label_smoothing,
            simpo_gamma: other.simpo_gamma,
            kto_chosen_weight: other.kto_chosen_weight,
            kto_rejected_weight: other.kto_rejected_weight,
            max_grad_norm: other.max_grad_norm,
            seed: other.seed,
            save_steps: other.save_steps,
            save_total_limit: other.save_total_limit,
            logging_steps: other.logging_steps,
            eval_steps: other.eval_steps,
            warnings: other.warnings.clone(),
            ..self.clone()
        };
        aligned == *other
    }
}

impl OneOrMany {
    /// Items of a list, or parts between commas.
    pub(super) fn names(&self) -> Vec<String> {
        match self {
            Self::One(text) => text.split(',').map(|name| name.trim().to_owned()).collect(),
            Self::Many(names) => names.clone(),
        }
    }
}

impl DatasetFormat {
    /// None: look at the rows.
    pub fn name(self) -> Option<FormatName> {
        match self {
            Self::Auto => None,
            Self::Alpaca => Some(FormatName::Alpaca),
            Self::Sharegpt => Some(FormatName::Sharegpt),
            Self::Messages => Some(FormatName::Messages),
            Self::PromptCompletion => Some(FormatName::PromptCompletion),
            Self::Preference => Some(FormatName::Preference),
            Self::Kto => Some(FormatName::Kto),
        }
    }
}
