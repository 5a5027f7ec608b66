//! Values that depend on other keys or on the data: each is computed here and nowhere else.

use std::path::{Path, PathBuf};

use justtrain_data::chat_template::choose;
use justtrain_model::adapters::{LoraConfig, LoraStart, LoraTargets, Patterns, TrainedBias, read_peft_config};
use justtrain_model::kernels::singular::Effort;
use justtrain_model::kernels::{Format, Products, bf16};
use justtrain_model::{WeightFormat, WeightFormats};
use justtrain_worker_api::{DevicePick, FormatName, Problem};
use regex::Regex;
use serde_json::{Map, Value};

use crate::early_stopping::EarlyStopping;
use crate::optim::schedule::{Schedule, share_or_steps};
use crate::optim::{Groups, OptimizerType};
use crate::prepare::adapter_template;
use crate::trainable::Group;

use super::{
    BestMetric, Bias, DatasetFormat, FinetuningType, OneOrMany, OneOrManyNumbers, Precision, QuantizationType, Recipe,
    TaskWeighting,
};

impl Recipe {
    /// Where to train.
    pub fn device(&self) -> DevicePick {
        self.device.parse().unwrap_or_default()
    }

    pub fn lora_alpha(&self) -> f64 {
        self.lora_alpha.unwrap_or(2.0 * self.lora_rank as f64)
    }

    pub fn lora_target(&self) -> LoraTargets {
        let names = self.lora_target.names();
        if names == ["all"] { LoraTargets::All } else { LoraTargets::Named(names) }
    }

    /// The folder of the adapter to go on with.
    pub fn adapter_path(&self) -> Option<PathBuf> {
        self.adapter_name_or_path.as_ref().map(|folder| self.base_dir.join(folder))
    }

    /// The same recipe with nothing trained but pairs: every weight of the model is frozen.
    pub(crate) fn frozen(&self) -> Self {
        Self {
            finetuning_type: FinetuningType::Lora,
            adapter: None,
            modules_to_save: None,
            bias: Bias::None,
            pissa_init: false,
            loftq_init: false,
            ..self.clone()
        }
    }

    /// The same recipe, going on with the adapter that another run has left.
    pub(crate) fn going_on_with(&self, folder: &Path) -> Result<Self, Problem> {
        let adapter = Some(read_peft_config(folder)?);
        Ok(Self { adapter_name_or_path: Some(folder.display().to_string()), adapter, ..self.clone() })
    }

    /// Of the pair that a stage trains beside those of the stages before, which stay as they are.
    pub(crate) fn pair_beside(&self) -> Option<LoraConfig> {
        (self.olora_lambda.is_some() && self.stages_before > 0).then(|| self.written_lora_config())
    }

    /// λ of LwF, in a stage that has one before it.
    pub(crate) fn lwf(&self) -> Option<f64> {
        self.lwf_lambda.filter(|_| self.stages_before > 0)
    }

    /// That of the adapter to go on with, or what the recipe says.
    pub fn lora_config(&self) -> LoraConfig {
        self.adapter.clone().unwrap_or_else(|| self.written_lora_config())
    }

    /// How the pairs of a fresh adapter start, where they do not at zero.
    pub fn lora_start(&self) -> Option<LoraStart> {
        let effort = usize::try_from(self.pissa_iter).map_or(Effort::Exact, Effort::Iterations);
        let pissa = self.pissa_init.then_some(LoraStart::Pissa(effort));
        pissa.or(self.loftq_init.then_some(LoraStart::Loftq { iterations: self.loftq_iter }))
    }

    pub(super) fn written_lora_config(&self) -> LoraConfig {
        let rank = |value: &Value| value.as_u64().map(|rank| rank as usize);
        LoraConfig {
            rank: self.lora_rank,
            alpha: self.lora_alpha(),
            dropout: self.lora_dropout,
            targets: self.lora_target(),
            layers: self.layers_to_transform().map(<[usize]>::to_vec),
            rslora: self.use_rslora,
            dora: self.use_dora,
            modules_to_save: self.modules_to_save.as_ref().map(OneOrMany::names).unwrap_or_default(),
            bias: match self.bias {
                Bias::None => TrainedBias::None,
                Bias::All => TrainedBias::All,
                Bias::LoraOnly => TrainedBias::LoraOnly,
            },
            rank_pattern: patterns(&self.rank_pattern, rank).unwrap_or_default(),
            alpha_pattern: patterns(&self.alpha_pattern, Value::as_f64).unwrap_or_default(),
        }
    }

    /// Blocks that get LoRA pairs; None for all.
    pub(crate) fn layers_to_transform(&self) -> Option<&[usize]> {
        self.layers_to_transform.as_ref().map(|layers| match layers {
            OneOrManyNumbers::One(layer) => std::slice::from_ref(layer),
            OneOrManyNumbers::Many(layers) => layers.as_slice(),
        })
    }

    pub(super) fn has_loraplus(&self) -> bool {
        self.loraplus_lr_ratio.is_some_and(|ratio| ratio != 1.0)
    }

    /// Whether the model's own weights are trained, and no adapter.
    pub(crate) fn trains_weights(&self) -> bool {
        self.finetuning_type != FinetuningType::Lora
    }

    pub(crate) fn freeze_trainable_modules(&self) -> Vec<String> {
        self.freeze_trainable_modules.names()
    }

    pub(crate) fn freeze_extra_modules(&self) -> Vec<String> {
        self.freeze_extra_modules.as_ref().map(OneOrMany::names).unwrap_or_default()
    }

    /// None where layers and modules are named. Commas belong to a pattern.
    pub(crate) fn unfrozen_parameters(&self) -> Option<Vec<Regex>> {
        let patterns = self.unfrozen_parameters.as_ref()?.items();
        Some(patterns.iter().filter_map(|pattern| Regex::new(pattern).ok()).collect())
    }

    /// Groups of `unfreeze_schedule`, each with the number of steps before its first.
    pub(crate) fn unfreeze_schedule(&self, total_steps: u64) -> Vec<(Group, u64)> {
        let stage = |(group, when): (Group, f64)| (group, share_or_steps(when, total_steps));
        self.unfreeze_schedule_as_written()
            .filter_map(|(name, when)| Some((Group::parse(name)?, when)))
            .map(stage)
            .collect()
    }

    pub(super) fn unfreeze_schedule_as_written(&self) -> impl Iterator<Item = (&str, f64)> {
        self.unfreeze_schedule.iter().filter_map(|(group, when)| Some((group.as_str(), when.as_f64()?)))
    }

    pub(crate) fn lr_decay(&self) -> f64 {
        self.lr_decay.unwrap_or(if self.unfreeze_schedule.is_empty() { 1.0 } else { 2.6 })
    }

    /// How the frozen weights are held. Embedding and output layer are never quantised, but for a GGUF's own blocks.
    pub fn weight_formats(&self) -> WeightFormats {
        // What is trained, or what an adapter starts with is taken out of, are other numbers than the file's.
        let changes = self.trains_weights() || self.pissa_init;
        let exact = if changes { WeightFormat::F32 } else { WeightFormat::AsStored };
        let plain = match self.precision {
            Precision::Fp32 => exact,
            Precision::Bf16 => WeightFormat::Packed(Format::Bf16),
            // What is trained stays in 32 bits: steps are too small for a number of 16 bits.
            Precision::Fp16 if self.trains_weights() => {
                return WeightFormats { products: Products::F16, ..WeightFormats::default() };
            }
            Precision::Fp16 => WeightFormat::Packed(Format::F16),
            // The same, unless it is asked for.
            Precision::Auto if self.quantization().is_some() || (!self.trains_weights() && bf16::available()) => {
                WeightFormat::Packed(Format::Bf16)
            }
            Precision::Auto => exact,
        };
        let double_quantization = self.double_quantization.unwrap_or(true);
        match self.quantization() {
            None => WeightFormats::new(plain, plain),
            Some(QuantizationType::Nf4) => {
                WeightFormats::new(WeightFormat::Packed(Format::Nf4 { double_quantization }), plain)
            }
            Some(QuantizationType::Int8) => WeightFormats::new(WeightFormat::Packed(Format::Int8), plain),
            Some(QuantizationType::Gguf) => WeightFormats::new(WeightFormat::Gguf, WeightFormat::Gguf),
        }
    }

    /// Whether losses are scaled, as float16 needs it.
    pub(crate) fn has_loss_scale(&self) -> bool {
        self.precision == Precision::Fp16
    }

    pub(crate) fn initial_scale_power(&self) -> u32 {
        self.initial_scale_power.unwrap_or(16)
    }

    pub(crate) fn loss_scale_window(&self) -> u64 {
        self.loss_scale_window.unwrap_or(2000)
    }

    pub(crate) fn quantization(&self) -> Option<QuantizationType> {
        let by_bits = |bits| if bits == 4 { QuantizationType::Nf4 } else { QuantizationType::Int8 };
        self.quantization_type.or(self.quantization_bit.map(by_bits))
    }

    /// Paths of the data files, starting from the recipe's folder.
    pub fn dataset_files(&self) -> Vec<PathBuf> {
        self.dataset.items().iter().map(|file| self.base_dir.join(file)).collect()
    }

    /// The chat template's text; None for the one that the model brings. An adapter to go on with may bring another.
    pub fn chat_template(&self) -> Result<Option<String>, Problem> {
        match self.template.as_str() {
            "auto" => Ok(adapter_template(self.adapter_path().as_deref())),
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

    /// Whether the weights that the run began with are kept beside those that are trained.
    pub(crate) fn remembers_start(&self) -> bool {
        self.l2sp_alpha.is_some() || self.mixout_p.is_some()
    }

    /// Passes of each batch through the network in a step.
    pub(crate) fn passes(&self) -> usize {
        if self.rdrop_alpha.is_some() { 2 } else { 1 }
    }

    /// How validations are judged; None where the recipe does not ask for the best one.
    pub(crate) fn early_stopping(&self) -> Option<EarlyStopping> {
        let rule = EarlyStopping {
            greater_is_better: self.best_by().is_some_and(BestMetric::greater_is_better),
            patience: self.early_stopping_steps,
            threshold: self.early_stopping_threshold,
        };
        (rule.patience.is_some() || self.load_best_model_at_end).then_some(rule)
    }

    /// Optimiser steps of the whole run, at least one.
    pub fn total_steps(&self, steps_per_epoch: u64) -> u64 {
        match u64::try_from(self.max_steps) {
            Ok(max_steps) => max_steps,
            Err(_) => ((self.num_train_epochs * steps_per_epoch as f64).ceil() as u64).max(1),
        }
    }

    /// Batches that a step takes.
    pub(crate) fn batches_per_step(&self) -> usize {
        let each = if self.task_weighting == TaskWeighting::None { 1 } else { self.tasks.len() };
        self.gradient_accumulation_steps * each
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
            use_rslora: other.use_rslora,
            alpha_pattern: other.alpha_pattern.clone(),
            adam_beta1: other.adam_beta1,
            adam_beta2: other.adam_beta2,
            galore_scale: other.galore_scale,
            learning_rates: other.learning_rates.clone(),
            lr_decay: other.lr_decay,
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
            max_bad_steps: other.max_bad_steps,
            initial_scale_power: other.initial_scale_power,
            loss_scale_window: other.loss_scale_window,
            seed: other.seed,
            save_steps: other.save_steps,
            save_total_limit: other.save_total_limit,
            logging_steps: other.logging_steps,
            eval_steps: other.eval_steps,
            early_stopping_steps: other.early_stopping_steps,
            early_stopping_threshold: other.early_stopping_threshold,
            load_best_model_at_end: other.load_best_model_at_end,
            metric_for_best_model: other.metric_for_best_model.clone(),
            greater_is_better: other.greater_is_better,
            keep_optimizer_state: other.keep_optimizer_state,
            warnings: other.warnings.clone(),
            ..self.clone()
        };
        aligned == *other
    }
}

/// A mapping whose keys are patterns of module names. Fails with one that is no regular expression.
pub(super) fn patterns<T: Copy>(
    written: &Map<String, Value>,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<Patterns<T>, (String, regex::Error)> {
    Patterns::new(written.iter().filter_map(|(pattern, value)| Some((pattern.clone(), read(value)?))))
}

impl OneOrMany {
    pub(super) fn items(&self) -> &[String] {
        match self {
            Self::One(item) => std::slice::from_ref(item),
            Self::Many(items) => items,
        }
    }

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
            Self::Text => Some(FormatName::Text),
            Self::Classification => Some(FormatName::Classification),
        }
    }
}
