//! The recipe: one YAML file that says what to train, on what, and how.
//!
//! Key names are LLaMA-Factory's; Axolotl's and TRL's names for the same things are read too. The JSON Schema that is
//! derived from [`Recipe`] is the single source of names, types, ranges, defaults and aliases: [`check`] walks a file
//! along it, and `docs/reference/recipe.schema.json` is a copy. A new key is one field here, and one line in [`rules`]
//! where it does not go together with another key.
//!
//! | file | holds |
//! |---|---|
//! | `yaml.rs` | YAML text to values with line and column |
//! | `check.rs` | names, types and ranges, from the schema |
//! | `peers.rs` | keys and values that other tools know and this version does not |
//! | `rules.rs` | what two keys, or a number and its meaning, must satisfy |
//! | `adapter_rules.rs` | the same for LoRA's keys |
//! | `continual_rules.rs` | the same for what stages do against forgetting |
//! | `preference_rules.rs` | the same for `stage` and what goes with it |
//! | `distillation_rules.rs` | the same for `teacher` and what goes with it |
//! | `optimizer_rules.rs` | the same for `optim` and `learning_rates` |
//! | `schedule_rules.rs` | the same for `lr_scheduler_type` and what goes with it |
//! | `trainable_rules.rs` | the same for what chooses the weights that are trained |
//! | `validation_rules.rs` | the same for `eval_steps`, early stopping and the best model |
//! | `regularization_rules.rs` | the same for dropout, R-Drop, L2-SP and mixout |
//! | `stages.rs` | several recipes in one file, one stage after the other |
//! | `tasks.rs` | several data sets as tasks |
//! | `choices.rs` | the words that a key can have |
//! | `default.rs` | what a key is where it is not written |
//! | `resolve.rs` | values that depend on other keys or on the data |

mod adapter_rules;
mod check;
mod choices;
mod classification_rules;
mod continual_rules;
mod default;
mod distillation_rules;
mod optimizer_rules;
mod peers;
mod preference_rules;
mod regularization_rules;
mod resolve;
mod rules;
mod schedule_rules;
pub(crate) mod seq2seq_rules;
mod stages;
mod tasks;
mod trainable_rules;
mod validation_rules;
mod yaml;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

use justtrain_model::adapters::{LoraConfig, read_peft_config};
use justtrain_worker_api::{Problem, ProblemCode, RecipeSource, RecipeSummary};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::Deserialize;
use serde_json::{Map, Value, json};

pub use crate::early_stopping::Metric;
pub use crate::objectives::Direction;
use choices::{Bias, OneOrMany, OneOrManyNumbers};
pub use choices::{DatasetFormat, FinetuningType, Precision, PrefLoss, QuantizationType, Stage};
pub use stages::StagePlan;
pub(crate) use tasks::BestMetric;
pub use tasks::{BestBy, TaskMetric, TaskMixing, TaskPlan, TaskWeighting};

use crate::optim::OptimizerType;
use crate::optim::schedule::{SchedulerKwargs, SchedulerType};

/// One fine-tuning job. Only `model_name_or_path` and `dataset` must be written; everything else has a default.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The base model: the name of a pulled model such as `HuggingFaceTB/SmolLM2-135M-Instruct`, a Hugging Face folder, or a GGUF file.
    #[schemars(length(min = 1), extend("x-aliases" = ["base_model"]))]
    pub model_name_or_path: String,

    /// What the model learns from: `pt` from plain texts (continued pre-training), `sft` from prompts and answers, `dpo` from pairs of a chosen and a rejected answer by `pref_loss`, `kto` from answers that are good or bad; `rm` trains a reward model on pairs, `cls` a classifier on texts with labels.
    #[serde(default)]
    pub stage: Stage,

    /// `dpo`: the method. `sigmoid` is DPO, `hinge` SLiC-HF, `ipo` IPO, `kto_pair` KTO on pairs; `orpo` and `simpo` need no reference model.
    #[serde(default)]
    pub(crate) pref_loss: PrefLoss,

    /// `dpo`, `kto`: how strongly the model is held to what it said before. `orpo`: weight of the odds ratio. `simpo`: scale of the reward, 2 to 10 in the paper.
    #[serde(default = "default::pref_beta")]
    #[schemars(extend("exclusiveMinimum" = 0, "x-aliases" = ["beta", "rl_beta"]))]
    pub(crate) pref_beta: f64,

    /// `dpo`, `kto`: how much of the chosen answer's own loss is added.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub(crate) pref_ftx: f64,

    /// `pref_loss: sigmoid`: the share of pairs that are taken to be the wrong way round.
    #[serde(default)]
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 0.5))]
    pub(crate) dpo_label_smoothing: f64,

    /// `pref_loss: simpo`: the margin between both rewards that is aimed at.
    #[serde(default = "default::simpo_gamma")]
    #[schemars(range(min = 0))]
    pub(crate) simpo_gamma: f64,

    /// `kto`: weight of good answers.
    #[serde(default = "default::weight")]
    #[schemars(range(min = 0), extend("x-aliases" = ["kto_desirable_weight", "desirable_weight"]))]
    pub(crate) kto_chosen_weight: f64,

    /// `kto`: weight of bad answers.
    #[serde(default = "default::weight")]
    #[schemars(range(min = 0), extend("x-aliases" = ["kto_undesirable_weight", "undesirable_weight"]))]
    pub(crate) kto_rejected_weight: f64,

    /// Distillation: a model with the same tokens, named as `model_name_or_path` is, whose distribution over the next token is learnt beside the data's own token. Only with `sft` and `pt`. Default: none.
    #[serde(default)]
    #[schemars(length(min = 1), extend("x-aliases" = ["kd_teacher"]))]
    pub(crate) teacher: Option<String>,

    /// `teacher`: `forward` is KL(teacher‖model), which makes all possible that the teacher may say; `reverse` is KL(model‖teacher), which avoids what it would not say.
    #[serde(default)]
    pub(crate) kd_direction: Direction,

    /// `teacher`: both distributions are softened by this, and the divergence is multiplied by its square.
    #[serde(default = "default::weight")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub(crate) kd_temperature: f64,

    /// `teacher`: its share of the loss; the rest is the data's own.
    #[serde(default = "default::kd_alpha")]
    #[schemars(range(max = 1), extend("exclusiveMinimum" = 0))]
    pub(crate) kd_alpha: f64,

    /// Which weights are trained: `lora` trains a low-rank pair beside each linear layer, `full` every weight of the model, `freeze` those of some layers.
    #[serde(default)]
    #[schemars(extend("x-aliases" = ["adapter"]))]
    pub finetuning_type: FinetuningType,

    /// Go on with a LoRA adapter that is there already, from JustTrain or PEFT: its folder, starting from the recipe's. Rank, alpha, dropout and layers are the adapter's.
    #[serde(default)]
    #[schemars(length(min = 1), extend("x-aliases" = ["lora_model_dir"]))]
    adapter_name_or_path: Option<String>,

    /// Rank of the LoRA matrices.
    #[serde(default = "default::lora_rank")]
    #[schemars(range(min = 1, max = 1024), extend("x-aliases" = ["lora_r"]))]
    pub lora_rank: usize,

    /// LoRA's update is scaled by `lora_alpha / lora_rank`, or by rsLoRA's `lora_alpha / √lora_rank`. Default: twice `lora_rank`.
    #[serde(default)]
    #[schemars(extend("exclusiveMinimum" = 0))]
    lora_alpha: Option<f64>,

    /// Probability that an input of a LoRA matrix is zeroed while training.
    #[serde(default)]
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub lora_dropout: f64,

    /// Layers that get a LoRA pair: `all` for the linear layers inside the blocks, or names as a list or separated by commas, such as `q_proj,v_proj`; among them those of the embedding table and of the output layer, such as `embed_tokens,lm_head`.
    #[serde(default = "default::all")]
    #[schemars(extend("x-aliases" = ["lora_target_modules", "target_modules"]))]
    lora_target: OneOrMany,

    /// rsLoRA: scale by `lora_alpha / √lora_rank`, so that a high rank learns as much as a low one. Default: false.
    #[serde(default)]
    #[schemars(extend("x-aliases" = ["peft_use_rslora"]))]
    pub(crate) use_rslora: bool,

    /// DoRA: the magnitude of each output's weights is trained apart from their direction, which LoRA turns. Costs time, and memory for the outputs of the adapted layers. Default: false.
    #[serde(default)]
    #[schemars(extend("x-aliases" = ["peft_use_dora"]))]
    pub(crate) use_dora: bool,

    /// PiSSA: the pairs start as the largest singular values and vectors of their layer, and the rest of it is frozen. Default: false.
    #[serde(default)]
    pub(crate) pissa_init: bool,

    /// `pissa_init`: iterations of the search for singular vectors. -1: until they stand still, as exact as `float32` is.
    #[serde(default = "default::pissa_iter")]
    #[schemars(range(min = -1, max = 1000))]
    pissa_iter: i64,

    /// LoftQ: the pairs start as what quantisation loses of their layer. Default: false.
    #[serde(default)]
    pub(crate) loftq_init: bool,

    /// `loftq_init`: how often a layer is quantised, each time without what its pair makes up for.
    #[serde(default = "default::loftq_iter")]
    #[schemars(range(min = 1, max = 100))]
    pub(crate) loftq_iter: usize,

    /// Modules that are trained in full beside the LoRA pairs, by name or its last part, as a list or separated by commas: `embed_tokens,lm_head`. They get no pair.
    #[serde(default)]
    #[schemars(extend("x-aliases" = ["additional_target", "lora_modules_to_save"]))]
    modules_to_save: Option<OneOrMany>,

    /// Which biases of the model are trained beside the LoRA pairs.
    #[serde(default)]
    bias: Bias,

    /// Ranks of single layers, by PEFT's patterns: a regular expression that a layer's name ends with, from a dot on: `{"layers\.0\..*": 4, "down_proj": 32}`. The first that matches holds.
    #[serde(default)]
    #[schemars(extend("additionalProperties" = {"type": "integer", "minimum": 1, "maximum": 1024}))]
    rank_pattern: Map<String, Value>,

    /// `lora_alpha` of single layers, in the same way.
    #[serde(default)]
    #[schemars(extend("additionalProperties" = {"type": "number", "exclusiveMinimum": 0}))]
    alpha_pattern: Map<String, Value>,

    /// Numbers of the blocks that get LoRA pairs, from 0: one, or a list. Default: all blocks.
    #[serde(default)]
    #[schemars(extend("x-values" = "0 | [0, 1, …]"))]
    layers_to_transform: Option<OneOrManyNumbers>,

    /// `freeze`: train the last N blocks, or with -N the first N. 0 trains no block, only `freeze_extra_modules`.
    #[serde(default = "default::freeze_trainable_layers")]
    #[schemars(range(min = -65536, max = 65536))]
    pub(crate) freeze_trainable_layers: i64,

    /// `freeze`: what is trained of these blocks: `all`, or names such as `mlp,self_attn` or `q_proj`.
    #[serde(default = "default::all")]
    freeze_trainable_modules: OneOrMany,

    /// `freeze`: what is trained outside the blocks, such as `embed_tokens`, `norm` or `lm_head`. Default: nothing.
    #[serde(default)]
    freeze_extra_modules: Option<OneOrMany>,

    /// `freeze`: in place of layers and modules, regular expressions that are looked for in the names of weights such as `model.layers.0.mlp.up_proj.weight`; whatever they find is trained.
    #[serde(default)]
    unfrozen_parameters: Option<OneOrMany>,

    /// Gradual unfreezing: which part is trained from when on. `head` is the last norm with the output layer, a number so many of the last blocks with it, `all` the rest; each from a step from 1 on, or from a share of all steps below 1: `{head: 0, 4: 0.3, all: 0.6}`. What has not joined is frozen. Default: all from the start.
    #[serde(default)]
    #[schemars(extend("additionalProperties" = {"type": "number", "minimum": 0}))]
    unfreeze_schedule: Map<String, Value>,

    /// Discriminative learning rates: each group of `unfreeze_schedule` learns so many times slower than the one above it. Without a schedule every block is a group. Default: 2.6 with `unfreeze_schedule`, otherwise 1.
    #[serde(default)]
    #[schemars(range(min = 1))]
    lr_decay: Option<f64>,

    /// Keep the frozen weights of the linear layers in so many bits (QLoRA): 4 or 8. Default: not quantised.
    #[serde(default)]
    #[schemars(range(min = 4, max = 8))]
    pub(crate) quantization_bit: Option<u8>,

    /// How they are quantised: `nf4` is 4 bits, `int8` is 8 bits with a scale for each row, `gguf` keeps the blocks of a GGUF file as they are, whatever their bits. Default: `nf4` for 4 bits, `int8` for 8.
    #[serde(default)]
    #[schemars(extend("x-aliases" = ["bnb_4bit_quant_type"]))]
    quantization_type: Option<QuantizationType>,

    /// `nf4`: the scales are quantised as well, to 8 bits. Default: true.
    #[serde(default)]
    #[schemars(extend("x-aliases" = ["bnb_4bit_use_double_quant", "use_bnb_nested_quant"]))]
    double_quantization: Option<bool>,

    /// Data file or files (JSON or JSONL), starting from the recipe's folder. With `tasks` each of them names its own, and a stage may.
    #[schemars(length(min = 1))]
    dataset: OneOrMany,

    /// How the rows are written; `auto` looks at them.
    #[serde(default)]
    pub dataset_format: DatasetFormat,

    /// How a conversation becomes text: `auto` is the template that the model brings. Else a template that comes with JustTrain (`chatml`, `deepseek`, `gemma`, `llama3`, `mistral`, `phi3`, `qwen2_5`, `qwen3`, `smollm2`), or a file with one (Jinja), starting from the recipe's folder.
    #[serde(default = "default::auto")]
    #[schemars(length(min = 1), extend("x-aliases" = ["chat_template"]))]
    template: String,

    /// Longest row in tokens; what is beyond is cut off.
    #[serde(default = "default::cutoff_len")]
    #[schemars(range(min = 2, max = 1048576), extend("x-aliases" = ["sequence_len", "max_length", "max_seq_length"]))]
    pub cutoff_len: usize,

    /// Fill each row of a batch with several samples, up to `cutoff_len`. No sample sees another.
    #[serde(default)]
    #[schemars(extend("x-aliases" = ["neat_packing", "sample_packing"]))]
    pub packing: bool,

    /// Count the prompt's tokens for the loss as well.
    #[serde(default)]
    #[schemars(extend("x-aliases" = ["train_on_inputs"]))]
    pub train_on_prompt: bool,

    /// Count only the last answer of a conversation for the loss.
    #[serde(default)]
    pub mask_history: bool,

    /// Rows held out for validation: a share below 1, or a number of rows from 1. 0 holds out none.
    #[serde(default = "default::val_size")]
    #[schemars(range(min = 0), extend("x-aliases" = ["val_set_size"]))]
    val_size: f64,

    /// Validate after every so many steps, and at the end. Default: `save_steps`.
    #[serde(default)]
    #[schemars(range(min = 1))]
    eval_steps: Option<u64>,

    /// Stop early: after so many validations, one after the other, of which none was better than the best before. Default: train to the end.
    #[serde(default)]
    #[schemars(range(min = 1), extend("x-aliases" = ["early_stopping_patience"]))]
    early_stopping_steps: Option<u64>,

    /// By how much a validation must be better to count for `early_stopping_steps`.
    #[serde(default)]
    #[schemars(range(min = 0))]
    early_stopping_threshold: f64,

    /// End with the weights of the best validation, not with the last ones.
    #[serde(default)]
    pub(crate) load_best_model_at_end: bool,

    /// What the best validation is told by: of all held-out rows, or of one of the `tasks`, such as `sums/exact_match`.
    #[serde(default)]
    pub(crate) metric_for_best_model: BestBy,

    /// Whether a larger `metric_for_best_model` is better; the metric itself decides, and this may say so.
    #[serde(default)]
    greater_is_better: Option<bool>,

    /// Highest learning rate of the schedule.
    #[serde(default = "default::learning_rate")]
    #[schemars(range(max = 1), extend("exclusiveMinimum" = 0))]
    pub learning_rate: f64,

    /// Shape of the learning rate over the run.
    #[serde(default)]
    #[schemars(extend("x-aliases" = ["lr_scheduler"]))]
    pub lr_scheduler_type: SchedulerType,

    /// Settings of the schedule.
    #[serde(default)]
    pub(crate) lr_scheduler_kwargs: Option<SchedulerKwargs>,

    /// Warm-up: a number of steps from 1, or a share of all steps below 1.
    #[serde(default = "default::warmup_steps")]
    #[schemars(range(min = 0))]
    warmup_steps: f64,

    /// Warm-up as a share of all steps; written in place of `warmup_steps`.
    #[serde(default)]
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    warmup_ratio: Option<f64>,

    /// Passes over the training rows; may be a fraction.
    #[serde(default = "default::num_train_epochs")]
    #[schemars(range(max = 10000), extend("exclusiveMinimum" = 0, "x-aliases" = ["num_epochs"]))]
    num_train_epochs: f64,

    /// Stop after this many steps, whatever `num_train_epochs` says. -1: no such limit.
    #[serde(default = "default::max_steps")]
    #[schemars(range(min = -1, max = 1000000000))]
    max_steps: i64,

    /// Rows that are computed at once.
    #[serde(default = "default::one")]
    #[schemars(range(min = 1, max = 65536), extend("x-aliases" = ["micro_batch_size"]))]
    pub per_device_train_batch_size: usize,

    /// Batches whose gradients are added up before one step.
    #[serde(default = "default::gradient_accumulation_steps")]
    #[schemars(range(min = 1, max = 65536))]
    pub gradient_accumulation_steps: usize,

    /// The optimiser: `adamw` remembers 8 bytes a trained weight, `adamw_8bit` 2, `lion`, and `muon` for hidden matrices, 4, `adafactor` next to nothing, `sgd` nothing or 4, `galore_adamw` what `galore_rank` leaves.
    #[serde(default)]
    #[schemars(extend("x-aliases" = ["optimizer"]))]
    pub optim: OptimizerType,

    /// AdamW, Lion: decay of the gradients' running mean.
    #[serde(default = "default::adam_beta1")]
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub adam_beta1: f64,

    /// AdamW: decay of the squared gradients' running mean. Lion: decay of what is remembered. Default: 0.999; with `lion` 0.99.
    #[serde(default)]
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    adam_beta2: Option<f64>,

    /// AdamW: added to the denominator.
    #[serde(default = "default::adam_epsilon")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub adam_epsilon: f64,

    /// `sgd`, `muon`: decay of the gradients' sum or mean. Default: 0 with `sgd`, 0.95 with `muon`.
    #[serde(default)]
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    momentum: Option<f64>,

    /// `sgd`, `muon`: Nesterov's momentum, which looks one step ahead. Default: false with `sgd`, true with `muon`.
    #[serde(default)]
    nesterov: Option<bool>,

    /// `galore_adamw`: dimensions that gradients of hidden matrices are projected onto.
    #[serde(default = "default::lora_rank")]
    #[schemars(range(min = 1, max = 65536))]
    pub(crate) galore_rank: usize,

    /// `galore_adamw`: steps between two looks at what the projection should be.
    #[serde(default = "default::galore_update_interval")]
    #[schemars(range(min = 1))]
    pub(crate) galore_update_interval: u64,

    /// `galore_adamw`: what a projected update is multiplied by.
    #[serde(default = "default::galore_scale")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub(crate) galore_scale: f64,

    /// Learning rates of single modules, by a regular expression that is looked for in parameter names such as `model.layers.0.self_attn.q_proj.lora_A` or `model.embed_tokens.weight`: `{"layers\\.0\\.": 1e-5}`. The first that is found holds; the schedule applies to all.
    #[serde(default)]
    #[schemars(extend("additionalProperties" = {"type": "number", "exclusiveMinimum": 0, "maximum": 1}))]
    learning_rates: Map<String, Value>,

    /// LoRA+: every B learns so many times as fast as its A; 16 in the paper. Default: 1.
    #[serde(default)]
    #[schemars(range(min = 1))]
    loraplus_lr_ratio: Option<f64>,

    /// Keep a running mean of the trained weights, which forgets with this decay, such as 0.999: it is what is validated and what the run ends with. Takes 4 bytes a trained weight. Default: no mean.
    #[serde(default)]
    #[schemars(extend("exclusiveMinimum" = 0, "exclusiveMaximum" = 1))]
    pub(crate) ema_decay: Option<f64>,

    /// Share of the attention's weights that is dropped while training.
    #[serde(default)]
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub(crate) attention_dropout: f64,

    /// Share that is dropped, while training, of what attention and feed-forward network add to the residual.
    #[serde(default)]
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub(crate) resid_pdrop: f64,

    /// Label smoothing: a target's loss is this share of the mean over all tokens, and the rest of its own. Validation is not smoothed.
    #[serde(default)]
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub(crate) label_smoothing_factor: f64,

    /// NEFTune: while training, noise of at most this over √(tokens × width) on the embeddings of a row; 5 in the paper. Default: no noise.
    #[serde(default)]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub(crate) neftune_noise_alpha: Option<f64>,

    /// R-Drop: each batch goes through twice with other dropout, and this much of the divergence of both predictions is added to the loss; 1 to 5 in the paper. Doubles a step's memory and time. Default: once.
    #[serde(default)]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub(crate) rdrop_alpha: Option<f64>,

    /// L2-SP: pulls trained weights back to where they started, by this much of the distance. With `full` and `freeze`; takes 4 bytes a trained weight. Default: no pull.
    #[serde(default)]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub(crate) l2sp_alpha: Option<f64>,

    /// Mixout: with this probability a weight in a block is, for one batch, the one that the run began with. With `full` and `freeze`; takes 8 bytes a trained weight. Default: none.
    #[serde(default)]
    #[schemars(extend("exclusiveMinimum" = 0, "exclusiveMaximum" = 1))]
    pub(crate) mixout_p: Option<f64>,

    /// Decoupled weight decay: each step takes `learning_rate * weight_decay` of a trained weight away.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1))]
    pub weight_decay: f64,

    /// The global norm that gradients are scaled down to. 0: no clipping.
    #[serde(default = "default::max_grad_norm")]
    #[schemars(range(min = 0))]
    pub max_grad_norm: f64,

    /// A step whose loss or gradient is no finite number changes nothing. After so many of them in a row the run goes back to the last good checkpoint and ends.
    #[serde(default = "default::max_bad_steps")]
    #[schemars(range(min = 1))]
    pub max_bad_steps: u64,

    /// Keep only what goes into each block, and compute the block again in the backward: less memory, about a third more time, the same result.
    #[serde(default)]
    pub gradient_checkpointing: bool,

    /// Number format in which weights that are not quantised are kept: `fp32` (under an adapter as the file has them, which is the same in less memory), or `bf16`, in which activations take half the memory; on a processor with AMX or a fast AVX512-BF16 that is multiplied in `bf16` too, twice as fast; or `fp16`, which has finer numbers in a smaller range, for as much memory. `auto` is `bf16` beside quantised weights, and for adapters on such a processor; otherwise `fp32`. With `finetuning_type: full`, `bf16` goes with `gradient_checkpointing: true`, and what is trained is rounded by chance; with `fp16` it stays `fp32`, and is rounded where it is multiplied.
    #[serde(default)]
    pub(crate) precision: Precision,

    /// With `precision: fp16`: the loss is scaled by 2 to this power at first, 16 unless said otherwise, so that small gradients do not vanish. A gradient that overflows skips its step and halves the scale.
    #[schemars(range(min = 0, max = 32))]
    initial_scale_power: Option<u32>,

    /// With `precision: fp16`: so many steps without an overflow double the scale, 2000 unless said otherwise.
    #[schemars(range(min = 1))]
    loss_scale_window: Option<u64>,

    /// Start of every random choice: the split, the order of rows, the weights of A, dropout.
    #[serde(default = "default::seed")]
    #[schemars(range(min = 0))]
    pub seed: u64,

    /// Save a checkpoint after every so many steps, and at the end.
    #[serde(default = "default::save_steps")]
    #[schemars(range(min = 1))]
    pub save_steps: u64,

    /// Checkpoints that are kept; older ones are deleted.
    #[serde(default = "default::save_total_limit")]
    #[schemars(range(min = 1, max = 65536))]
    pub save_total_limit: usize,

    /// Show the loss after every so many steps.
    #[serde(default = "default::logging_steps")]
    #[schemars(range(min = 1))]
    pub logging_steps: u64,

    /// Where to train; `auto` takes the first GPU where there is one, else the processor.
    #[serde(default = "default::auto")]
    #[schemars(regex(pattern = "^(auto|cpu|cuda(:[0-9]+)?)$"), extend("x-values" = "auto | cpu | cuda:0"))]
    device: String,

    /// With `stages`: after each stage, the token accuracy on the held-out rows of all of them; at the end `forgetting.json` and a picture, with what was forgotten.
    #[serde(default)]
    pub(crate) forgetting_report: bool,

    /// With `stages`: share of the batches that come from earlier stages' rows.
    #[serde(default)]
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub(crate) replay_ratio: f64,

    /// Rows of earlier stages that are kept for that, each with the same chance.
    #[serde(default = "default::replay_buffer")]
    #[schemars(range(min = 1))]
    pub(crate) replay_buffer: usize,

    /// With `stages`: strength of the pull back to what the stage before has left, where it mattered to it (EWC).
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub(crate) ewc_lambda: Option<f64>,

    /// What the importance of a parameter to still earlier stages counts, each stage further (online EWC).
    #[serde(default = "default::weight")]
    #[schemars(range(min = 0, max = 1))]
    pub(crate) ewc_gamma: f64,

    /// Rows of a stage by whose gradients that importance is measured.
    #[serde(default = "default::fisher_samples")]
    #[schemars(range(min = 1))]
    pub(crate) fisher_samples: usize,

    /// With `stages`, from the second on: weight of holding the model to what it said of the stage's own rows when the stage began (LwF); 1 in the paper. Beside an adapter that takes one more forward pass; with `full` and `freeze` also a copy of the trained weights.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub(crate) lwf_lambda: Option<f64>,

    /// `lwf_lambda`: both distributions are softened by this, and their divergence is multiplied by its square.
    #[serde(default = "default::lwf_temperature")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub(crate) lwf_temperature: f64,

    /// With `stages`: each trains a LoRA pair of its own, and those of the stages before stay as they are (O-LoRA); this is how strongly what the new pair reads is kept orthogonal to what they read; 0.5 in the paper. The adapter's rank grows with each stage.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub(crate) olora_lambda: Option<f64>,

    /// `olora_lambda`: how strongly the new pair is kept small.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub(crate) olora_l2: f64,

    /// Several data sets as tasks, in place of `dataset`: a list of `{name, dataset, weight, metric}`. Each batch is of one task, and the loss of each is shown.
    #[serde(default, deserialize_with = "no_items")]
    #[schemars(schema_with = "tasks::schema")]
    pub(crate) tasks: Vec<TaskPlan>,

    /// Which task's batch is next: `proportional` to the rows, by rows^(1/`task_temperature`), by `weight` (`fixed`), or one after the other (`round_robin`).
    #[serde(default)]
    pub(crate) task_mixing: TaskMixing,

    /// With `task_mixing: temperature`: 1 is proportional, a large number takes all tasks equally often.
    #[serde(default = "default::task_temperature")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub(crate) task_temperature: f64,

    /// Rows of a task beyond this number do not make it more frequent.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub(crate) task_cap: Option<usize>,

    /// How the tasks' gradients become one: `uncertainty` (Kendall's weights), `gradnorm`, `pcgrad`. Each step takes `gradient_accumulation_steps` batches of every task, and one gradient a task is kept.
    #[serde(default)]
    pub(crate) task_weighting: TaskWeighting,

    /// How fast `uncertainty` and `gradnorm` change the weights.
    #[serde(default = "default::task_weights_lr")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub(crate) task_weights_lr: f64,

    /// How strongly `gradnorm` favours tasks that have learnt less (α).
    #[serde(default = "default::gradnorm_alpha")]
    #[schemars(range(min = 0))]
    pub(crate) gradnorm_alpha: f64,

    /// With `stages`: the optimiser goes on with what it remembers from the stage before, and counts its steps on, for the weights that both stages train; with the same `optim` in both. Otherwise it starts anew.
    #[serde(default)]
    pub(crate) keep_optimizer_state: bool,

    /// Several trainings one after the other, each with the weights of the one before: a list, and in each item a `name` and the keys that differ from those above, any of this page but `model_name_or_path` and `device`.
    #[serde(default, deserialize_with = "no_items")]
    #[schemars(schema_with = "stages::schema")]
    stages: Vec<StagePlan>,

    /// How many stages there are before this one.
    #[serde(skip)]
    pub(crate) stages_before: usize,

    /// That of the adapter to go on with.
    #[serde(skip)]
    adapter: Option<LoraConfig>,

    /// Where relative paths start.
    #[serde(skip)]
    base_dir: PathBuf,

    /// What is allowed and yet hardly meant.
    #[serde(skip)]
    warnings: Vec<Problem>,
}

impl Recipe {
    /// Read and check a recipe. On failure every problem that was found, in the order of the file.
    pub fn parse(source: &RecipeSource) -> Result<Self, Vec<Problem>> {
        Self::parse_text(source).map_err(|mut problems| {
            problems.sort_by_key(|problem| (problem.line.unwrap_or(u64::MAX), problem.column));
            problems.into_iter().map(|problem| problem.file(&source.file)).collect()
        })
    }

    /// Of several stages the last one, which knows them all: what comes out of a run is its.
    fn parse_text(source: &RecipeSource) -> Result<Self, Vec<Problem>> {
        let root = yaml::parse(&source.text).map_err(|problem| vec![*problem])?;
        let Some(written) = stages::split(&root, &Self::schema())? else {
            return Self::parse_node(&root, source, false);
        };
        let (mut plans, mut problems) = (Vec::new(), Vec::new());
        for stage in &written {
            match Self::parse_node(&stage.root, source, true) {
                Ok(mut recipe) => {
                    recipe.stages_before = plans.len();
                    let name = stage.name.clone().unwrap_or_else(|| recipe.stage_name().to_owned());
                    plans.push(StagePlan { name, recipe });
                }
                Err(found) => problems.extend(found),
            }
        }
        if problems.is_empty() {
            problems = stages::check(&plans, &written.iter().map(|stage| stage.mark).collect::<Vec<_>>());
        }
        if !problems.is_empty() {
            // What stands above is found once in each stage.
            problems.dedup_by_key(|problem| (problem.line, problem.column, problem.message.en.clone()));
            return Err(problems);
        }
        let last = plans.last().expect("a list of stages has one").recipe.clone();
        let warnings = plans.iter().flat_map(|plan| plan.recipe.warnings.clone()).collect();
        Ok(Self { stages: plans, warnings, ..last })
    }

    fn parse_node(root: &yaml::Node, source: &RecipeSource, in_stages: bool) -> Result<Self, Vec<Problem>> {
        let mut root = root.clone();
        let (tasks, marks): (Vec<_>, Vec<_>) = tasks::take(&mut root)?.into_iter().unzip();
        let (written, mut problems) = check::check(&root, &Self::schema());
        let mut recipe: Self = serde_json::from_value(written.complete()).map_err(|error| {
            let message = format!("the checked recipe could not be read: {error}");
            vec![Problem::error(ProblemCode::Internal, &message, format!("检查过的配方无法读取：{error}"))]
        })?;
        recipe.base_dir.clone_from(&source.base_dir);
        recipe.tasks = tasks;
        match recipe.adapter_path().map(|folder| read_peft_config(&folder)).transpose() {
            Ok(adapter) => recipe.adapter = adapter,
            Err(problem) => {
                let mark = written.mark("adapter_name_or_path").unwrap_or(yaml::Mark { line: 1, column: 1 });
                problems.push(adapter_rules::unreadable(problem).at(mark.line, mark.column));
            }
        }
        let (broken, warnings) = rules::check(&recipe, &written);
        problems.extend(broken);
        problems.extend(continual_rules::errors(&recipe, &written, in_stages));
        problems.extend(stages::errors(&recipe, &written, in_stages));
        problems.extend(tasks::metrics(&recipe, &marks));
        if !problems.is_empty() {
            return Err(problems);
        }
        recipe.warnings = warnings.into_iter().map(|warning| warning.file(&source.file)).collect();
        Ok(recipe)
    }

    /// The recipe's JSON Schema, draft 2020-12. `x-aliases` are other tools' names for the same key.
    pub fn schema() -> Value {
        let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
        let mut schema = settings.into_generator().into_root_schema_for::<Self>().to_value();
        schema["properties"]["stages"]["items"] = stages::item_schema(&schema);
        // Tasks and stages name data of their own.
        schema["required"] = json!(["model_name_or_path"]);
        schema["anyOf"] = ["dataset", "tasks", "stages"].map(|key| json!({ "required": [key] })).into();
        schema
    }

    /// What the daemon must know before a job can start.
    pub fn summary(&self) -> RecipeSummary {
        RecipeSummary {
            model: self.model_name_or_path.clone(),
            teachers: self.stages().into_iter().filter_map(|stage| stage.recipe.teacher).collect(),
            data: self.stages().iter().flat_map(|stage| stage.recipe.dataset_files()).collect(),
            device: self.device(),
            finetuning_type: self.finetuning_type.name().to_owned(),
            warnings: self.warnings.clone(),
        }
    }
}

/// Stages and tasks are taken out before the rest is read.
fn no_items<'de, D: serde::Deserializer<'de>, T>(deserializer: D) -> Result<Vec<T>, D::Error> {
    serde::de::IgnoredAny::deserialize(deserializer).map(|_| Vec::new())
}
