//! Recipes as people write them, and what they are told.

use std::path::{Path, PathBuf};

use justtrain_worker_api::{DevicePick, FormatName, Problem, ProblemCode, RecipeSource};
use serde_json::Value;

use super::Recipe;
use crate::optim::schedule::{SchedulerType, Shape};
use justtrain_model::adapters::{LoraStart, LoraTargets};
use justtrain_model::kernels::singular::Effort;
use justtrain_model::kernels::{Format, Products, bf16};
use justtrain_model::{WeightFormat, WeightFormats};

const SHORTEST: &str = "model_name_or_path: m\ndataset: d.json\n";

fn source(text: &str) -> RecipeSource {
    RecipeSource { text: text.to_owned(), file: "r.yaml".to_owned(), base_dir: PathBuf::from("/data") }
}

fn read(text: &str) -> Recipe {
    Recipe::parse(&source(text)).unwrap_or_else(|problems| panic!("{}", lines(&problems)))
}

fn read_with(more: &str) -> Recipe {
    read(&format!("{SHORTEST}{more}"))
}

fn problems(text: &str) -> Vec<Problem> {
    Recipe::parse(&source(text)).expect_err("the recipe is wrong and was accepted")
}

fn problems_with(more: &str) -> Vec<Problem> {
    problems(&format!("{SHORTEST}{more}"))
}

fn only_problem_with(more: &str) -> Problem {
    let mut problems = problems_with(more);
    assert_eq!(problems.len(), 1, "{}", lines(&problems));
    problems.remove(0)
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(|problem| format!("{problem}\n")).collect()
}

#[test]
fn every_default_is_filled_in() {
    let recipe = read(SHORTEST);
    assert_eq!((recipe.lora_rank, recipe.lora_alpha()), (16, 32.0));
    assert_eq!(recipe.lora_target(), LoraTargets::All);
    assert_eq!((recipe.per_device_train_batch_size, recipe.gradient_accumulation_steps), (1, 8));
    assert_eq!(recipe.lr_scheduler_type, SchedulerType::Cosine);
    assert_eq!(recipe.dataset_files(), [Path::new("/data/d.json")]);
    assert_eq!((recipe.validation_rows(95), recipe.eval_steps()), (10, Some(500)));
    assert_eq!((recipe.total_steps(7), recipe.warmup_steps(21)), (21, 1));
    let summary = recipe.summary();
    assert_eq!((summary.model.as_str(), summary.device), ("m", DevicePick::Auto));
    assert_eq!((summary.finetuning_type.as_str(), summary.warnings.len()), ("lora", 0));
}

#[test]
fn a_template_is_a_name_or_a_file() {
    assert_eq!(read(SHORTEST).chat_template(), Ok(None));
    assert!(read_with("template: llama3\n").chat_template().unwrap().unwrap().contains("<|eot_id|>"));
    let problem = only_problem_with("template: no/such.jinja\n");
    assert_eq!(
        (problem.code, problem.key.as_deref(), problem.line),
        (ProblemCode::InvalidValue, Some("template"), Some(3))
    );
    assert!(problem.expected.unwrap().contains("qwen2_5"));
}

#[test]
fn written_values_replace_defaults() {
    let recipe = read(
        "# comment\nmodel_name_or_path: \"m\"\ndataset: [a.jsonl, /b.json]\ndataset_format: prompt_completion\n\
         lora_rank: 8\nlora_alpha: 4\nlora_target: q_proj, v_proj\nval_size: 30\neval_steps: 5\nlearning_rate: 2e-4\n\
         warmup_ratio: 0.5\nmax_steps: 9\nsave_steps: 3.0\npacking: True\ndevice: cpu\n",
    );
    assert_eq!(recipe.dataset_files(), [Path::new("/data/a.jsonl"), Path::new("/b.json")]);
    assert_eq!(recipe.dataset_format.name(), Some(FormatName::PromptCompletion));
    assert_eq!((recipe.lora_alpha(), recipe.learning_rate), (4.0, 2e-4));
    assert_eq!(recipe.lora_target(), LoraTargets::Named(vec!["q_proj".to_owned(), "v_proj".to_owned()]));
    assert_eq!((recipe.validation_rows(1000), recipe.validation_rows(10)), (30, 9));
    assert_eq!((recipe.eval_steps(), recipe.save_steps, recipe.packing), (Some(5), 3, true));
    assert_eq!((recipe.total_steps(1000), recipe.warmup_steps(9)), (9, 5));
}

#[test]
fn names_of_other_tools_are_read() {
    let recipe = read(
        "base_model: m\ndataset: d.json\nadapter: lora\nlora_r: 4\nlora_target_modules: [k_proj]\nsequence_len: 64\n\
         sample_packing: true\ntrain_on_inputs: true\nval_set_size: 0\nlr_scheduler: linear\nnum_epochs: 0.5\nmicro_batch_size: 2\n",
    );
    assert_eq!((recipe.lora_rank, recipe.cutoff_len, recipe.per_device_train_batch_size), (4, 64, 2));
    assert_eq!(recipe.lora_target(), LoraTargets::Named(vec!["k_proj".to_owned()]));
    assert!(recipe.packing && recipe.train_on_prompt);
    assert_eq!((recipe.validation_rows(9), recipe.eval_steps(), recipe.total_steps(3)), (0, None, 2));
}

#[test]
fn every_problem_is_reported_at_once_with_its_place() {
    let found = problems(
        "model_name_or_path: m\nlern_rate: 1e-4\nlora_rank: sixteen\nlora_dropout: 1\nlr_scheduler_type: cosin\n\
         report_to: wandb\noutput_dir: out\nlora_r: 8\neval_steps: 10\nval_size: 0\nmax_steps: 0\n",
    );
    let seen: Vec<_> = found.iter().map(|p| (p.code, p.line, p.column, p.key.as_deref().unwrap_or(""))).collect();
    use ProblemCode::{InvalidValue, MissingKey, UnknownKey, WrongType};
    assert_eq!(
        seen,
        [
            (UnknownKey, Some(2), Some(1), "lern_rate"),
            (WrongType, Some(3), Some(12), "lora_rank"),
            (InvalidValue, Some(4), Some(15), "lora_dropout"),
            (InvalidValue, Some(5), Some(20), "lr_scheduler_type"),
            (UnknownKey, Some(6), Some(1), "report_to"),
            (UnknownKey, Some(7), Some(1), "output_dir"),
            (InvalidValue, Some(8), Some(1), "lora_r"),
            (InvalidValue, Some(9), Some(13), "eval_steps"),
            (InvalidValue, Some(11), Some(12), "max_steps"),
            (MissingKey, None, None, "dataset"),
        ],
        "{}",
        lines(&found)
    );
    assert!(
        found.iter().all(|p| p.file.as_deref() == Some("r.yaml") && !p.fix.zh.is_empty() && !p.message.zh.is_empty())
    );
}

#[test]
fn a_misspelt_key_gets_the_nearest_name() {
    for (written, nearest) in [
        ("learning-rate", "learning_rate"),
        ("Lora_Rank", "lora_rank"),
        ("lora_rnak", "lora_rank"),
        ("num_epoch", "num_epochs"),
        ("batch_size", ""),
    ] {
        let problem = only_problem_with(&format!("{written}: 1"));
        assert_eq!(problem.expected.as_deref().unwrap_or(""), nearest, "{problem}");
    }
}

#[test]
fn a_wrong_value_is_told_what_was_expected() {
    for (written, found, expected, fix) in [
        ("lora_rank: \"8\"", "\"8\"", "integer ≥ 1, ≤ 1024", "remove the quotes"),
        ("lora_rank: 8.5", "8.5", "integer ≥ 1, ≤ 1024", "the default is 16"),
        ("packing: yes", "\"yes\"", "true | false", "the default is false"),
        ("cutoff_len:", "nothing", "integer ≥ 2, ≤ 1048576", "the default is 2048"),
        ("learning_rate: .inf", "\".inf\"", "number > 0, ≤ 1", "the default is 0.0001"),
        ("seed: -1", "-1", "integer ≥ 0", "the default is 42"),
        (
            "dataset_format: csv",
            "\"csv\"",
            "auto | alpaca | sharegpt | messages | prompt_completion | preference | kto | text | classification",
            "the default is auto",
        ),
        ("device: gpu", "\"gpu\"", "auto | cpu | cuda:0", "the number of a GPU"),
        ("lora_target: {a: 1}", "{…}", "string | [string, …]", "the default is all"),
        (
            "lora_target: [q_proj, w1]",
            "\"w1\"",
            "all | q_proj | k_proj | v_proj | o_proj | gate_proj | up_proj | down_proj | qkv_proj | gate_up_proj | c_attn | \
             c_proj | c_fc | out_proj | fc1 | fc2 | q | k | v | o | wi | wi_0 | wi_1 | wo | query | key | value | dense \
             | embed_tokens | lm_head | wte | shared | word_embeddings",
            "names from this list",
        ),
        ("warmup_steps: 2.5", "2.5", "number < 1 | integer ≥ 1", "a whole number"),
    ] {
        let problem = only_problem_with(written);
        assert_eq!(problem.found.as_deref(), Some(found), "{problem}");
        assert_eq!(problem.expected.as_deref(), Some(expected), "{problem}");
        assert!(problem.fix.en.contains(fix), "{problem}");
    }
}

#[test]
fn a_schedule_takes_its_own_settings() {
    let kwargs = |kwargs: &str| format!("lr_scheduler_type: cosine_with_restarts\nlr_scheduler_kwargs:\n  {kwargs}\n");
    assert_eq!(read_with(&kwargs("num_cycles: 3")).schedule(100).shape, Shape::CosineWithRestarts { cycles: 3.0 });
    for (written, code, place, key, expected) in [
        ("num_cycle: 3", ProblemCode::UnknownKey, (5, 3), "lr_scheduler_kwargs.num_cycle", "num_cycles"),
        ("power: 2", ProblemCode::InvalidValue, (5, 10), "lr_scheduler_kwargs.power", "num_cycles"),
        ("num_cycles: none", ProblemCode::WrongType, (5, 15), "lr_scheduler_kwargs.num_cycles", "number > 0"),
        ("num_cycles: 0", ProblemCode::InvalidValue, (5, 15), "lr_scheduler_kwargs.num_cycles", "number > 0"),
    ] {
        let problem = only_problem_with(&kwargs(written));
        let (line, column) = place;
        assert_eq!((problem.code, problem.line, problem.column), (code, Some(line), Some(column)), "{problem}");
        assert_eq!((problem.key.as_deref(), problem.expected.as_deref()), (Some(key), Some(expected)), "{problem}");
        assert!(!problem.fix.en.is_empty() && !problem.fix.zh.is_empty(), "{problem}");
    }
    let twice = only_problem_with(&kwargs("num_cycles: 3\n  num_cycles: 4"));
    assert_eq!((twice.code, twice.line), (ProblemCode::InvalidValue, Some(6)), "{twice}");
    let not_a_mapping = only_problem_with("lr_scheduler_kwargs: 3\n");
    assert_eq!(not_a_mapping.expected.as_deref(), Some("{key: value, …}"), "{not_a_mapping}");
    // Two mistakes inside, and one after it.
    assert_eq!(problems_with(&kwargs("num_cycle: 3\n  power: 2\nlora_rank: x")).len(), 3);
}

#[test]
fn a_schedule_that_cannot_be_drawn_is_refused() {
    for (written, key) in [
        ("lr_scheduler_type: cosine_with_min_lr", "lr_scheduler_type"),
        (
            "lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr: 1e-6, min_lr_rate: 0.1}",
            "lr_scheduler_kwargs.min_lr_rate",
        ),
        ("lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr: 0.1}", "lr_scheduler_kwargs.min_lr"),
        ("lr_scheduler_type: polynomial\nlr_scheduler_kwargs: {lr_end: 0.5}", "lr_scheduler_kwargs.lr_end"),
        ("lr_scheduler_type: polynomial\nlearning_rate: 1e-8", "learning_rate"),
        ("lr_scheduler_type: warmup_stable_decay", "lr_scheduler_type"),
        (
            "lr_scheduler_type: warmup_stable_decay\nlr_scheduler_kwargs: {num_decay_steps: 2.5}",
            "lr_scheduler_kwargs.num_decay_steps",
        ),
        ("lr_scheduler_type: reduce_lr_on_plateau\nval_size: 0", "lr_scheduler_type"),
        ("lr_scheduler_type: linear\nlr_scheduler_kwargs: {num_cycles: 2}", "lr_scheduler_kwargs.num_cycles"),
    ] {
        let problem = only_problem_with(written);
        assert_eq!((problem.code, problem.key.as_deref()), (ProblemCode::InvalidValue, Some(key)), "{problem}");
    }
}

#[test]
fn a_warmup_that_a_schedule_does_not_have_is_a_warning() {
    for kind in ["constant", "slanted_triangular"] {
        let recipe = read_with(&format!("lr_scheduler_type: {kind}\nwarmup_steps: 5\n"));
        assert_eq!((recipe.summary().warnings.len(), recipe.warmup_steps(100)), (1, 0), "{kind}");
    }
}

/// The names in problems and pictures are those that are read.
#[test]
fn every_schedule_is_read_by_its_name() {
    for kind in SchedulerType::ALL {
        let kwargs = match kind {
            SchedulerType::CosineWithMinLr => "{min_lr_rate: 0.1}",
            SchedulerType::WarmupStableDecay => "{num_decay_steps: 0.2}",
            _ => "{}",
        };
        let recipe = read_with(&format!("lr_scheduler_type: {}\nlr_scheduler_kwargs: {kwargs}\n", kind.name()));
        assert_eq!(recipe.lr_scheduler_type, kind);
        let schema = Recipe::schema();
        let known = super::check::mapping_schema(&schema["properties"]["lr_scheduler_kwargs"]).unwrap();
        assert!(kind.settings().iter().all(|name| known["properties"][name].is_object()), "{kind:?}");
    }
}

#[test]
fn scales_and_ranks_of_single_layers() {
    let lora = read_with("lora_rank: 16\nlora_alpha: 8\npeft_use_rslora: true\nrank_pattern: {'layers\\.0\\..*': 4}\nalpha_pattern: {up_proj: 2}\n").lora_config();
    let of = |name: &str| (lora.rank_of(name), lora.scale_of(name));
    assert_eq!(of("model.layers.1.self_attn.q_proj"), (16, 2.0));
    assert_eq!(of("model.layers.0.mlp.up_proj"), (4, 1.0));
    let problem = only_problem_with("rank_pattern: {'q_proj(': 4}\n");
    assert_eq!(problem.key.as_deref(), Some("rank_pattern.q_proj("));
    assert!(problem.found.unwrap().contains("unclosed group"));
}

const ADAPTER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../model/fixtures/tiny-llama/adapter");

#[test]
fn an_adapter_to_go_on_with_brings_its_own_settings() {
    let recipe = read_with(&format!("adapter_name_or_path: {ADAPTER}\n"));
    let lora = recipe.lora_config();
    assert_eq!((lora.rank, lora.alpha), (4, 8.0));
    assert!(lora.targets("model.layers.0.mlp.up_proj") && !lora.targets("lm_head"));
    read_with(&format!("adapter_name_or_path: {ADAPTER}\nlora_rank: 4\n"));
    for (written, found, expected) in [
        ("lora_rank: 8", "8", "4"),
        ("lora_alpha: 16", "16", "8"),
        ("lora_dropout: 0.1", "0.1", "0"),
        ("use_rslora: true", "true", "false"),
        ("rank_pattern: {up_proj: 2}", "up_proj: 2", ""),
    ] {
        let problem = only_problem_with(&format!("adapter_name_or_path: {ADAPTER}\n{written}\n"));
        assert_eq!(problem.key.as_deref(), written.split_once(':').map(|(key, _)| key));
        assert_eq!((problem.found.as_deref(), problem.expected.as_deref()), (Some(found), Some(expected)));
    }
    let problem = only_problem_with(&format!("finetuning_type: full\nadapter_name_or_path: {ADAPTER}\n"));
    assert_eq!((problem.key.as_deref(), problem.line), (Some("adapter_name_or_path"), Some(4)));
    let problem = only_problem_with("adapter_name_or_path: no/such\n");
    assert_eq!((problem.code, problem.line), (ProblemCode::FileNotFound, Some(3)));
    assert!(problem.found.unwrap().starts_with("/data/no/such/adapter_config.json"));
}

#[test]
fn starts_that_make_no_sense_are_refused() {
    let adapter = format!("pissa_init: true\nadapter_name_or_path: {ADAPTER}");
    for (written, key) in [
        ("loftq_init: true", "loftq_init"),
        ("loftq_init: true\nquantization_type: gguf", "loftq_init"),
        ("pissa_init: true\nquantization_type: gguf", "pissa_init"),
        ("pissa_init: true\nuse_dora: true", "pissa_init"),
        ("pissa_init: true\nloftq_init: true\nquantization_bit: 4", "loftq_init"),
        ("pissa_iter: 4", "pissa_iter"),
        ("loftq_iter: 4\nquantization_bit: 4", "loftq_iter"),
        (adapter.as_str(), "pissa_init"),
        ("lora_target: [q_proj, v_proj]\nmodules_to_save: v_proj", "modules_to_save"),
        ("lora_target: [q_proj, wte]\npissa_init: true", "pissa_init"),
        ("lora_target: lm_head\nloftq_init: true\nquantization_bit: 4", "loftq_init"),
        ("lora_target: embed_tokens\nuse_dora: true", "use_dora"),
        ("lora_target: embed_tokens\nloraplus_lr_ratio: 16", "loraplus_lr_ratio"),
        ("lora_target: [lm_head, q_proj]\nlayers_to_transform: [0, 1]", "layers_to_transform"),
        ("lora_target: lm_head\nstage: rm", "lora_target"),
    ] {
        let problem = only_problem_with(written);
        assert_eq!(problem.key.as_deref(), Some(key), "{written}");
        assert!(problem.line.is_some() && !problem.fix.is_empty(), "{problem}");
    }
    read_with("lora_target: lm_head\nloraplus_lr_ratio: 16");
    let start = |more: &str| read_with(more).lora_start();
    assert_eq!(start(""), None);
    assert_eq!(start("pissa_init: true"), Some(LoraStart::Pissa(Effort::Iterations(16))));
    assert_eq!(start("pissa_init: true\npissa_iter: -1"), Some(LoraStart::Pissa(Effort::Exact)));
    assert_eq!(start("loftq_init: true\nquantization_bit: 8"), Some(LoraStart::Loftq { iterations: 1 }));
    assert!(only_problem_with("init_lora_weights: pissa").fix.en.contains("pissa_init: true"));
}

#[test]
fn what_comes_later_is_said_so() {
    let problem = only_problem_with("stage: ppo");
    assert_eq!(problem.message.en, "not in this version yet", "{problem}");
}

#[test]
fn keys_that_do_not_go_together_are_refused() {
    for (written, key) in [
        ("warmup_steps: 5\nwarmup_ratio: 0.1", "warmup_ratio"),
        ("train_on_prompt: true\nmask_history: true", "mask_history"),
        ("val_size: 0\neval_steps: 5", "eval_steps"),
        ("lora_target: []", "lora_target"),
        ("quantization_bit: 5", "quantization_bit"),
        ("quantization_bit: 8\nquantization_type: nf4", "quantization_type"),
        ("quantization_bit: 4\nquantization_type: int8", "quantization_type"),
        ("quantization_type: nf4", "quantization_type"),
        ("quantization_bit: 4\nquantization_type: gguf", "quantization_bit"),
        ("quantization_bit: 8\ndouble_quantization: true", "double_quantization"),
        ("double_quantization: false", "double_quantization"),
        ("quantization_type: gguf\nprecision: bf16", "precision"),
        ("finetuning_type: full\nquantization_bit: 4", "quantization_bit"),
        ("finetuning_type: full\nquantization_type: gguf", "quantization_type"),
        ("finetuning_type: full\nprecision: bf16", "precision"),
        ("optim: galore_adamw", "optim"),
        ("optim: sgd\nnesterov: true", "nesterov"),
        ("finetuning_type: full\nprecision: bf16\ngradient_checkpointing: true\nema_decay: 0.9", "ema_decay"),
        ("learning_rates: {q_proj: 1e-4, \"a(b\": 1e-4}", "learning_rates.a(b"),
        ("learning_rates: {q_proj: 2}", "learning_rates.q_proj"),
        ("freeze_trainable_layers: 2", "freeze_trainable_layers"),
        ("finetuning_type: full\nunfrozen_parameters: [mlp]", "unfrozen_parameters"),
        ("finetuning_type: freeze\nfreeze_trainable_layers: 0", "freeze_trainable_layers"),
        ("finetuning_type: freeze\nfreeze_extra_modules: norm\nunfrozen_parameters: [mlp]", "freeze_extra_modules"),
        ("finetuning_type: freeze\nunfrozen_parameters: [mlp, \"a(b\"]", "unfrozen_parameters"),
        ("finetuning_type: freeze\nquantization_bit: 4", "quantization_bit"),
        ("val_size: 0\nearly_stopping_steps: 3", "early_stopping_steps"),
        ("val_size: 0\nload_best_model_at_end: true", "load_best_model_at_end"),
        ("load_best_model_at_end: true\ngreater_is_better: true", "greater_is_better"),
        ("layers_to_transform: []", "layers_to_transform"),
        ("layers_to_transform: [-1]", "layers_to_transform"),
        ("rdrop_alpha: 1", "rdrop_alpha"),
        ("finetuning_type: full\nrdrop_alpha: 1", "rdrop_alpha"),
        ("l2sp_alpha: 0.1", "l2sp_alpha"),
        ("mixout_p: 0.1", "mixout_p"),
        ("finetuning_type: full\ngradient_checkpointing: true\nprecision: bf16\nmixout_p: 0.1", "mixout_p"),
        ("unfreeze_schedule: {2: 5, all: 9}", "unfreeze_schedule.2"),
        ("unfreeze_schedule: {head: 0, neck: 5}", "unfreeze_schedule.neck"),
        ("unfreeze_schedule: {head: 0, 4: 0.2, 2: 0.5}", "unfreeze_schedule.2"),
        ("unfreeze_schedule: {head: 0, all: 0}", "unfreeze_schedule.all"),
        ("unfreeze_schedule: {2: 0, 4: 20, all: 10}", "unfreeze_schedule.all"),
        ("unfreeze_schedule: {2: 0, all: 2.5}", "unfreeze_schedule.all"),
        ("finetuning_type: freeze\nprecision: bf16", "precision"),
        ("loss_scale_window: 100", "loss_scale_window"),
        ("precision: bf16\ninitial_scale_power: 8", "initial_scale_power"),
        ("stage: dpo\nrdrop_alpha: 1\nlora_dropout: 0.1", "rdrop_alpha"),
        ("stage: kto\nlabel_smoothing_factor: 0.1", "label_smoothing_factor"),
        ("pref_loss: orpo", "pref_loss"),
        ("stage: kto\npref_loss: ipo", "pref_loss"),
        ("stage: dpo\npref_loss: ipo\ndpo_label_smoothing: 0.1", "dpo_label_smoothing"),
        ("stage: dpo\ndpo_label_smoothing: 0.5", "dpo_label_smoothing"),
        ("stage: kto\ntrain_on_prompt: true", "train_on_prompt"),
        ("kd_temperature: 2", "kd_temperature"),
        ("stage: dpo\nteacher: large", "teacher"),
        ("teacher: large\nkd_alpha: 1\nlabel_smoothing_factor: 0.1", "label_smoothing_factor"),
    ] {
        let problem = only_problem_with(written);
        assert_eq!((problem.code, problem.key.as_deref()), (ProblemCode::InvalidValue, Some(key)), "{problem}");
    }
}

#[test]
fn quantisation_and_precision_decide_how_weights_are_held() {
    let (f32, exact, in_16_bits) = (WeightFormat::F32, WeightFormat::AsStored, WeightFormat::Packed(Format::Bf16));
    let half = WeightFormat::Packed(Format::F16);
    let nf4 = |double_quantization| WeightFormat::Packed(Format::Nf4 { double_quantization });
    let chosen = if bf16::available() { in_16_bits } else { exact };
    for (written, linear, tables) in [
        ("", chosen, chosen),
        ("finetuning_type: full", f32, f32),
        ("finetuning_type: freeze", f32, f32),
        ("precision: fp32", exact, exact),
        ("precision: fp32\npissa_init: true", f32, f32),
        ("precision: fp32\nfinetuning_type: full", f32, f32),
        ("precision: bf16", in_16_bits, in_16_bits),
        ("precision: fp16", half, half),
        ("quantization_bit: 4\nprecision: fp16", nf4(true), half),
        ("quantization_bit: 4", nf4(true), in_16_bits),
        ("quantization_bit: 4\nquantization_type: nf4\ndouble_quantization: false", nf4(false), in_16_bits),
        ("quantization_bit: 4\nprecision: fp32", nf4(true), exact),
        ("quantization_bit: 8", WeightFormat::Packed(Format::Int8), in_16_bits),
        ("quantization_type: gguf", WeightFormat::Gguf, WeightFormat::Gguf),
    ] {
        assert_eq!(read_with(written).weight_formats(), WeightFormats::new(linear, tables), "{written}");
    }
    let trained = read_with("finetuning_type: full\nprecision: fp16").weight_formats();
    assert_eq!(trained, WeightFormats { linear: f32, tables: f32, products: Products::F16 });
}

#[test]
fn what_others_say_differently_is_told() {
    for (written, fix) in [
        ("load_in_4bit: true", "quantization_bit: 4"),
        ("bf16: true", "precision: bf16"),
        ("fp16: true", "precision: fp16"),
        ("finetuning_type: qlora", "finetuning_type: lora, quantization_bit: 4"),
        ("optim: lion_32bit", "optim: lion"),
        ("use_galore: true", "optim: galore_adamw"),
        ("stage: orpo", "stage: dpo, pref_loss: orpo"),
    ] {
        let problem = only_problem_with(written);
        assert!(problem.fix.en.contains(fix) && problem.fix.zh.contains(fix), "{problem}");
    }
}

#[test]
fn settings_of_another_preference_method_are_a_warning() {
    for (written, key) in [
        ("pref_beta: 0.2", "pref_beta"),
        ("stage: dpo\nsimpo_gamma: 1", "simpo_gamma"),
        ("stage: dpo\nkto_chosen_weight: 2", "kto_chosen_weight"),
        ("stage: kto\ndpo_label_smoothing: 0.1", "dpo_label_smoothing"),
    ] {
        let warnings = read_with(written).summary().warnings;
        let keys: Vec<_> = warnings.iter().filter_map(|warning| warning.key.as_deref()).collect();
        assert_eq!(keys, [key], "{written}");
    }
    assert_eq!(read_with("stage: dpo\npref_loss: simpo\nbeta: 2\nsimpo_gamma: 1\n").summary().warnings, []);
}

#[test]
fn what_is_hardly_meant_is_a_warning() {
    let warnings = read_with("max_steps: 5\nwarmup_steps: 5\nnum_train_epochs: 2\n").summary().warnings;
    let seen: Vec<_> = warnings.iter().map(|p| (p.key.as_deref(), p.line, p.file.as_deref())).collect();
    assert_eq!(
        seen,
        [(Some("warmup_steps"), Some(4), Some("r.yaml")), (Some("num_train_epochs"), Some(5), Some("r.yaml"))]
    );
}

#[test]
fn lora_keys_beside_full_fine_tuning_are_a_warning() {
    let warnings = read_with("finetuning_type: full\nlora_rank: 8\nlora_dropout: 0.1\n").summary().warnings;
    let keys: Vec<_> = warnings.iter().map(|problem| (problem.key.as_deref(), problem.line)).collect();
    assert_eq!(keys, [(Some("lora_rank"), Some(4)), (Some("lora_dropout"), Some(5))]);
}

#[test]
fn optimisers_have_their_own_defaults_and_settings() {
    let settings = |more: &str| {
        let recipe = read_with(more);
        (recipe.adam_beta2(), recipe.momentum(), recipe.nesterov())
    };
    assert_eq!(settings(""), (0.999, 0.0, false));
    assert_eq!(settings("optim: lion\n"), (0.99, 0.0, false));
    assert_eq!(settings("optim: muon\nmomentum: 0.9\n"), (0.999, 0.9, true));
    let warnings = read_with("optim: adafactor\nmomentum: 0.9\ngalore_rank: 4\n").summary().warnings;
    let keys: Vec<_> = warnings.iter().map(|problem| (problem.key.as_deref(), problem.line)).collect();
    assert_eq!(keys, [(Some("momentum"), Some(4)), (Some("galore_rank"), Some(5))]);
}

#[test]
fn what_is_not_yaml_has_a_line_and_a_way_out() {
    let colon = problems("model_name_or_path: m\ndataset：d.json\nseed: 1\n").remove(0);
    assert_eq!((colon.code, colon.found.as_deref()), (ProblemCode::Syntax, Some("：")), "{colon}");
    let quote = problems("model_name_or_path: \"m\ndataset: d.json\n").remove(0);
    assert!(quote.code == ProblemCode::Syntax && quote.line.is_some() && quote.column.is_some(), "{quote}");
    let alias = problems("model_name_or_path: &m x\ndataset: *m\n").remove(0);
    assert_eq!((alias.line, alias.column), (Some(2), Some(10)), "{alias}");
    assert_eq!(problems("").remove(0).code, ProblemCode::FileEmpty);
    assert_eq!(problems("# nothing\n").remove(0).code, ProblemCode::FileEmpty);
    assert_eq!(problems("just words").remove(0).code, ProblemCode::WrongType);
    assert_eq!(problems(&"[".repeat(100_000)).remove(0).code, ProblemCode::Syntax);
    assert_eq!(problems(&format!("{SHORTEST}---\na: 1\n")).remove(0).line, Some(3));
}

/// The checker and the summary in `docs` trust the schema; this is all of JSON Schema that they read.
#[test]
fn the_schema_uses_only_what_the_checker_reads() {
    const READ: [&str; 23] = [
        "type",
        "enum",
        "const",
        "oneOf",
        "anyOf",
        "items",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "minLength",
        "minItems",
        "default",
        "description",
        "x-aliases",
        "x-values",
        "format",
        // For editors; of the one key that has it, a rule reads the text.
        "pattern",
        "title",
        "properties",
        "additionalProperties",
        "required",
        // Of a stage's keys, which are checked as those at the top.
        "$ref",
    ];
    fn visit(schema: &Value) {
        for (name, value) in schema.as_object().into_iter().flatten() {
            assert!(READ.contains(&name.as_str()), "the checker does not read {name}");
            match name.as_str() {
                "oneOf" | "anyOf" => value.as_array().into_iter().flatten().for_each(visit),
                "items" | "additionalProperties" => visit(value),
                "properties" => value.as_object().into_iter().flatten().for_each(|(_, property)| visit(property)),
                _ => {}
            }
        }
    }
    let schema = Recipe::schema();
    let properties = schema["properties"].as_object().expect("properties");
    assert!(properties.values().all(|property| property["description"].is_string()));
    properties.values().for_each(visit);
}

/// An editor completes what a stage and a task may say, and nothing else.
#[test]
fn stages_and_tasks_take_the_keys_of_their_schema() {
    let schema = Recipe::schema();
    let stage = &schema["properties"]["stages"]["items"]["properties"];
    for (key, property) in super::check::properties(&schema) {
        let taken = !["model_name_or_path", "device", "stages"].contains(&key.as_str());
        assert_eq!(stage[key]["$ref"].as_str(), taken.then(|| format!("#/properties/{key}")).as_deref(), "{key}");
        // Whatever its value, the key itself is known in a stage or refused there.
        let value = serde_json::json!(property["default"]);
        let problems = Recipe::parse(&source(&format!("{SHORTEST}stages:\n- {{{key}: {value}}}\n")));
        let problems = problems.err().unwrap_or_default();
        let named = format!("stages.1.{key}");
        let refused = problems.iter().any(|problem| {
            problem.code == ProblemCode::UnknownKey || problem.message.en.contains("the same in all stages")
        });
        assert_eq!(refused, !taken, "{named}: {}", lines(&problems));
    }
    assert!(stage["name"]["type"] == "string" && stage["name"]["description"].is_string());
    let tasks = &schema["properties"]["tasks"]["items"];
    let keys: Vec<&str> = super::check::properties(tasks).map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, ["name", "dataset", "weight", "metric"]);
    assert_eq!(tasks["required"], serde_json::json!(["dataset"]));
    assert!(super::check::properties(tasks).all(|(_, property)| property["description"].is_string()));
    // With tasks or stages that name theirs, data need not stand at the top.
    assert!(
        schema["required"] == serde_json::json!(["model_name_or_path"]) && schema["anyOf"][1]["required"][0] == "tasks"
    );
    read("model_name_or_path: m\nstages:\n- dataset: d.json\n- dataset: e.json\n");
    let problem = &problems("model_name_or_path: m\nstages:\n- dataset: d.json\n- seed: 1\n")[0];
    assert_eq!((problem.code, problem.key.as_deref()), (ProblemCode::MissingKey, Some("dataset")));
}

#[test]
fn the_bundled_recipes_are_valid() {
    for file in std::fs::read_dir(repository().join("bundle/recipes")).expect("bundle/recipes") {
        let file = file.expect("an entry").path();
        read(&std::fs::read_to_string(&file).expect("a recipe"));
    }
}

/// Run with `JUSTTRAIN_UPDATE_DOCS=1` to write the two files anew.
#[test]
fn the_published_reference_is_this_one() {
    let schema = Recipe::schema();
    let json = serde_json::to_string_pretty(&schema).expect("schema as text") + "\n";
    for (name, ours) in [("recipe.schema.json", json), ("recipe.md", reference(&schema))] {
        let file = repository().join("docs/reference").join(name);
        if std::env::var_os("JUSTTRAIN_UPDATE_DOCS").is_some() {
            std::fs::write(&file, &ours).expect("write the reference");
        }
        let published = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(published == ours, "run this test with JUSTTRAIN_UPDATE_DOCS=1 to bring {name} up to date");
    }
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..")
}

/// Every key by its path, those inside a key's value after it.
fn with_inner(schema: &Value) -> Vec<(String, &Value)> {
    let rows = super::check::properties(schema).flat_map(|(name, property)| {
        let inner = super::check::mapping_schema(property).into_iter().flat_map(super::check::properties);
        let inner = inner.map(move |(inner, property)| (format!("{name}.{inner}"), property));
        // Keys of a stage that stand at the top are listed there.
        let of_items = super::check::properties(&property["items"]).filter(|(_, property)| property["$ref"].is_null());
        let of_items = of_items.map(move |(inner, property)| (format!("{name}[].{inner}"), property));
        std::iter::once((name.clone(), property)).chain(inner).chain(of_items)
    });
    rows.collect()
}

/// The schema as a page.
fn reference(schema: &Value) -> String {
    let is_required = |name: &str| {
        let (list, name) =
            name.split_once("[].").map_or((schema, name), |(key, name)| (&schema["properties"][key]["items"], name));
        list["required"].as_array().into_iter().flatten().any(|key| key == name)
    };
    let rows = with_inner(schema).into_iter().map(|(name, property)| {
        let default = match &property["default"] {
            _ if is_required(&name) => "**required**".to_owned(),
            _ if name == "dataset" => "**required** without `tasks` or `stages`".to_owned(),
            Value::Null => String::new(),
            Value::Array(list) if list.is_empty() => String::new(),
            default => format!("`{}`", default.as_str().map_or_else(|| default.to_string(), str::to_owned)),
        };
        let aliases: Vec<_> = super::check::aliases(property).map(|alias| format!("`{alias}`")).collect();
        let allowed = super::check::expected(property).replace('|', "\\|");
        let meaning = property["description"].as_str().unwrap_or_default();
        format!("| `{name}` | {meaning} | {allowed} | {default} | {} |\n", aliases.join(", "))
    });
    let intro = "# Recipe keys\n\n\
        A recipe is one YAML file. Names are LLaMA-Factory's; the names in the last column, which other tools use, are read as well.\n\
        Any other key is refused. This page and [recipe.schema.json](recipe.schema.json), a JSON Schema that editors can complete and check\n\
        with, are made from the program; `justtrain recipe schema` prints the schema of the version that is installed.\n\n\
        | key | meaning | values | default | also read as |\n|---|---|---|---|---|\n";
    let outro = "\n## Together\n\n\
        - `warmup_steps` and `warmup_ratio` exclude each other; `constant` and `slanted_triangular` use neither.\n\
        - `lr_scheduler_kwargs` holds settings of the chosen `lr_scheduler_type` only. `cosine_with_min_lr` needs `min_lr` or `min_lr_rate`,\n  \
          `warmup_stable_decay` needs `num_decay_steps`, `reduce_lr_on_plateau` a `val_size` above 0.\n\
        - `eval_steps` needs a `val_size` above 0.\n\
        - `mask_history` and `train_on_prompt` exclude each other.\n\
        - `quantization_bit: 4` goes with `quantization_type: nf4`, 8 with `int8`; `gguf` stands without `quantization_bit` and `precision`.\n\
        - `double_quantization` needs `nf4`.\n\
        - `galore_adamw` goes with `finetuning_type: full`; `nesterov` needs a `momentum` above 0.\n\
        - `freeze_trainable_layers`, `freeze_trainable_modules` and `freeze_extra_modules`, or in their place `unfrozen_parameters`, go with\n  \
          `finetuning_type: freeze`. `unfreeze_schedule` names groups from the top down, the first at 0.\n\
        - `early_stopping_steps` and `load_best_model_at_end` need a `val_size` above 0.\n\
        - `l2sp_alpha` and `mixout_p` go with `full` and `freeze`; `rdrop_alpha` needs some dropout or noise.\n\
        - `teacher` goes with `stage: sft` and `pt`, and the keys that begin with `kd_` with a `teacher`.\n\
        - `ema_decay` goes with weights that are trained in 32 bits.\n\
        - `max_steps`, where it is not -1, decides over `num_train_epochs`.\n\
        - `val_size` and `warmup_steps` are a share below 1 and a whole number from 1 on.\n\n\
        One step learns from `per_device_train_batch_size` × `gradient_accumulation_steps` rows. Its loss is the mean over all answer tokens of\n\
        these rows, so it does not matter how they are split into batches.\n";
    intro.to_owned() + &rows.collect::<String>() + outro
}
