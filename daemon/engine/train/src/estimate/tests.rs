//! Counts against numbers worked out by hand, and what is done about too little room.

use std::path::{Path, PathBuf};

use justtrain_data::Sample;
use justtrain_model::kernels::Products;
use justtrain_model::{DecoderConfig, families};
use justtrain_worker_api::{
    DevicePick, KnownModel, Moment, PastRun, ProblemCode, RecipeSource, Remedy, Room, SpeedBasis,
};
use serde_json::json;

use super::activations::{kept, output_layer};
use super::shape::Shape;
use super::teacher::Teacher;
use super::work::{BatchSize, Rows, Work};
use super::{Job, Passed, disk, remedies, speed};
use crate::recipe::Recipe;

fn source(extra: &str) -> RecipeSource {
    let text = format!("model_name_or_path: m\ndataset: d.json\nval_size: 0\n{extra}");
    RecipeSource { text, file: "r.yaml".into(), base_dir: PathBuf::new() }
}

fn recipe(extra: &str) -> Recipe {
    Recipe::parse(&source(extra)).unwrap()
}

/// SmolLM2-135M, but for the number of layers.
fn config_of(layers: usize) -> serde_json::Value {
    json!({
        "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": layers,
        "num_attention_heads": 9, "num_key_value_heads": 3, "rms_norm_eps": 1e-5, "vocab_size": 49152,
        "tie_word_embeddings": true, "max_position_embeddings": 8192,
    })
}

fn smollm2() -> DecoderConfig {
    families::from_config(&config_of(30), Path::new("config.json")).unwrap()
}

fn rows(lengths: &[usize]) -> Rows {
    let sample = |&len: &usize| Sample { ids: vec![0; len], target: vec![true; len], row: 1, ..Sample::default() };
    let train: Vec<_> = lengths.iter().map(sample).collect();
    Rows { read: train.len(), all: train.len(), train, validation: Vec::new(), file_bytes: 0, model_bytes: 0 }
}

fn job(lengths: &[usize]) -> Job {
    Job { config: smollm2(), teacher: None, rows: rows(lengths), device: DevicePick::Cpu, passed: Passed::default() }
}

fn tokens(tokens: usize) -> BatchSize {
    BatchSize { tokens, ..BatchSize::default() }
}

const NO_END: Room = Room { memory_bytes: u64::MAX, disk_bytes: u64::MAX };

/// Qwen3-30B-A3B: 30.5 billion numbers, of which a token meets 3.3.
#[test]
fn a_token_meets_some_of_the_experts() {
    let config = json!({
        "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48,
        "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128,
        "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": true, "rms_norm_eps": 1e-6,
        "vocab_size": 151936, "max_position_embeddings": 40960,
    });
    let config = families::from_config(&config, Path::new("config.json")).unwrap();
    let shape = Shape::new(&config, &recipe("lora_rank: 8\n"));
    assert_eq!(shape.parameters, 30_532_122_624);
    let met: u64 = shape.linears().map(|linear| linear.weights()).sum();
    assert_eq!(met, 18_874_368 + 128 * 2048 + 8 * 3 * 2048 * 768);
    // Pairs are on attention alone.
    assert_eq!(shape.trained.numbers(), 48 * 8 * (2 * (2048 + 4096) + 2 * (2048 + 512)));
    let full = Shape::new(&config, &recipe("finetuning_type: full\n"));
    assert_eq!(full.trained.block_weights, 48 * met);
    assert!(kept(&shape, tokens(100), false, Products::F32) > 48 * 100 * 4 * (2 * 8 * 768 + 3 * 8 * 2048));
}

#[test]
fn parameters_are_those_that_the_checkpoint_has() {
    let shape = Shape::new(&smollm2(), &recipe("lora_rank: 16\n"));
    // As `Decoder::parameters` and PEFT's `print_trainable_parameters` count them.
    assert_eq!((shape.parameters, shape.trained.numbers()), (134_515_008, 4_884_480));
    assert_eq!(shape.trained.tensors(), 30 * 7 * 2);
    let two = Shape::new(&smollm2(), &recipe("lora_rank: 8\nlora_target: q_proj,v_proj\n"));
    assert_eq!(two.trained.numbers(), 30 * 8 * ((576 + 576) + (576 + 192)));
    let pattern = "lora_rank: 8\nlora_target: q_proj\nrank_pattern: {'layers\\.[01]\\..*': 2}\n";
    assert_eq!(Shape::new(&smollm2(), &recipe(pattern)).trained.numbers(), (28 * 8 + 2 * 2) * (576 + 576));
    // Pairs of the table's two ends; a gradient for the lower one comes through all blocks.
    let tables = Shape::new(&smollm2(), &recipe("lora_rank: 8\nlora_target: embed_tokens,lm_head\n")).trained;
    assert_eq!((tables.numbers(), tables.tensors()), (2 * 8 * (49_152 + 576), 4));
    assert_eq!((tables.graph_layers, tables.adapted_layers, tables.table), (30, 0, false));
    let head = Shape::new(&smollm2(), &recipe("lora_rank: 8\nlora_target: lm_head\n")).trained;
    assert_eq!((head.numbers(), head.graph_layers), (8 * (49_152 + 576), 0));
    let untied = DecoderConfig { tied_embeddings: false, ..smollm2() };
    assert_eq!(Shape::new(&untied, &recipe("")).parameters, 134_515_008 + 49_152 * 576);
}

#[test]
fn activations_are_counted_op_by_op() {
    let shape = Shape::new(&smollm2(), &recipe("lora_rank: 16\n"));
    // Two norms keep 577 each; attention 2 · 576 + 2 · 192 + 9; SwiGLU 2 · 1536; seven adapters 16 each.
    let by_hand = 2 * 577 + 1545 + 3072 + 112;
    assert_eq!(kept(&shape, tokens(100), false, Products::F32), 30 * by_hand * 100 * 4);
    // With checkpointing 30 inputs, and one block at a time.
    assert_eq!(kept(&shape, tokens(100), true, Products::F32), (30 * 576 + by_hand) * 100 * 4);
    // In 16 bits what attention and SwiGLU keep takes half, but for the softmax's sums.
    let rounded = (2 * 577 + 9 + 112) * 4 + (1536 + 3072) * 2;
    assert_eq!(kept(&shape, tokens(100), false, Products::Bf16), 30 * rounded * 100);
    // 256 rows of logits fill 48 MiB, whatever the number of targets beyond; each with two rows of 576.
    let batch = BatchSize { targets: 500, ..tokens(1000) };
    assert_eq!(output_layer(&shape, batch, Products::F32), 256 * (49_152 + 2 * 576) * 4 + 3 * 1000 * 576 * 4);
    let few = BatchSize { targets: 3, ..tokens(1000) };
    assert_eq!(output_layer(&shape, few, Products::F32), 3 * (49_152 + 2 * 576) * 4 + 3 * 1000 * 576 * 4);
}

/// T5 1.1 small: eight blocks of an encoder, eight of a decoder, six heads of 64 beside a hidden state of 512.
#[test]
fn a_token_goes_through_one_of_two_stacks() {
    let config = json!({
        "model_type": "t5", "d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_heads": 6,
        "vocab_size": 32128, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": false,
    });
    let config = families::from_config(&config, Path::new("config.json")).unwrap();
    let shape = Shape::new(&config, &recipe("lora_rank: 4\nlora_target: q,v\n"));
    assert_eq!(shape.parameters, 76_961_152);
    assert_eq!(shape.trained.numbers(), (8 * 2 + 8 * 4) * 4 * (512 + 384));
    // Norms, sums of the softmax, pairs, attention, the gate and what goes through it.
    let block = |norms: usize, pairs: usize| norms * 513 + 6 + pairs * 4 + 4 * 384 + 2 * 1024;
    let (encoder, decoder) = (block(2, 2), block(3, 3) + 6 + 2 * 384);
    let batch = BatchSize { sources: 100, ..tokens(130) };
    let read = 4 + 2 * 384;
    let by_hand = 8 * (100 * encoder + 30 * 512 + 30 * decoder + 100 * (512 + read));
    assert_eq!(kept(&shape, batch, false, Products::F32), by_hand as u64 * 4);
    // The decoder's last block alone.
    let last = Shape::new(&config, &recipe("finetuning_type: freeze\nfreeze_trainable_layers: 1\n"));
    let graph: Vec<usize> = last.stacks.iter().map(|stack| stack.graph_layers).collect();
    assert_eq!(graph, [0, 1]);
}

#[test]
fn magnitudes_are_counted_with_the_outputs_that_they_keep() {
    let (plain, dora) = (Shape::new(&smollm2(), &recipe("")), Shape::new(&smollm2(), &recipe("use_dora: true\n")));
    let outputs = 576 + 192 + 192 + 576 + 1536 + 1536 + 576;
    assert_eq!(dora.trained.numbers() - plain.trained.numbers(), 30 * outputs);
    assert_eq!(dora.trained.tensors() - plain.trained.tensors(), 30 * 7);
    assert_eq!(
        kept(&dora, tokens(100), false, Products::F32) - kept(&plain, tokens(100), false, Products::F32),
        30 * outputs * 100 * 4
    );
}

#[test]
fn what_is_trained_beside_the_pairs_is_counted() {
    let trained = |more: &str| Shape::new(&smollm2(), &recipe(more)).trained;
    let plain = trained("lora_target: q_proj\n");
    let saved = trained("lora_target: q_proj\nmodules_to_save: [embed_tokens, norm, input_layernorm]\n");
    assert_eq!(saved.numbers() - plain.numbers(), 49_152 * 576 + 31 * 576);
    assert_eq!((saved.tensors() - plain.tensors(), saved.table, saved.output), (32, true, true));
    let layers = trained("modules_to_save: up_proj\n").numbers()
        - trained("lora_target: [q_proj, k_proj, v_proj, o_proj, gate_proj, down_proj]\n").numbers();
    assert_eq!(layers, 30 * 1536 * 576);
    let pairs = trained("").numbers();
    assert_eq!(trained("pissa_init: true\n").start, pairs);
    assert_eq!(trained("loftq_init: true\nloftq_iter: 2\nquantization_bit: 4\n").start, 2 * pairs);
}

#[test]
fn the_largest_batch_of_the_run_decides() {
    let work = |extra: &str| Work::plan(&recipe(extra), &rows(&[10, 20, 30, 40]));
    let two = work("per_device_train_batch_size: 2\ngradient_accumulation_steps: 1\nnum_train_epochs: 50\n");
    assert_eq!((two.steps, two.batches, two.tokens), (100, 100, 50 * 100));
    // In 50 shuffles the two longest meet. The first token of a row is never a target.
    assert_eq!(two.largest, BatchSize { targets: 68, ..tokens(70) });
    let cut = work("per_device_train_batch_size: 4\ngradient_accumulation_steps: 1\ncutoff_len: 25\nmax_steps: 1\n");
    assert_eq!((cut.steps, cut.largest.tokens), (1, 10 + 20 + 25 + 25));
    let packed = work("cutoff_len: 50\npacking: true\ngradient_accumulation_steps: 1\nnum_train_epochs: 1\n");
    assert_eq!((packed.steps, packed.largest.tokens), (2, 50));
    // A window ends with its epoch: three steps of two batches, not two and a half of three.
    let accumulated = work("gradient_accumulation_steps: 3\nnum_train_epochs: 1\n");
    assert_eq!((accumulated.steps, accumulated.batches, accumulated.tokens), (2, 4, 100));
}

#[test]
fn the_parts_of_the_peak_are_what_is_there_in_the_first_backward() {
    let recipe = recipe("precision: fp32\nlora_rank: 16\ngradient_accumulation_steps: 1\nmax_steps: 3\n");
    let memory = job(&[829]).predict(&recipe).memory.unwrap();
    assert_eq!(memory.moment, Moment::Training);
    assert_eq!(memory.weights, 134_515_008 * 4);
    assert_eq!((memory.trained_weights, memory.optimizer), (4_884_480 * 4, 4_884_480 * 8));
    let parts = memory.weights + memory.trained_weights + memory.optimizer + memory.gradients;
    let rest = memory.activations + memory.output_layer + memory.data + memory.model_file + memory.program;
    assert_eq!(memory.total(), parts + rest);
}

#[test]
fn weights_and_optimisers_are_counted_in_their_forms() {
    let linears = 30 * 3_538_944;
    let memory =
        |extra: &str| job(&[64]).predict(&recipe(&format!("gradient_accumulation_steps: 1\n{extra}"))).memory.unwrap();
    // Two bytes for each number of the table, and a little over half of one for each of the rest.
    let nf4 = memory("quantization_bit: 4\n").weights;
    let expected = 49_152 * 576 * 2 + 61 * 576 * 4 + linears / 2 + linears / 64 + linears / (64 * 256) * 4;
    assert!(nf4.abs_diff(expected) < 8 << 10, "{nf4} {expected}");
    assert_eq!(memory("precision: bf16\n").weights, 49_152 * 576 * 2 + 61 * 576 * 4 + linears * 2);
    let full = memory("finetuning_type: full\n");
    assert_eq!((full.weights, full.trained_weights, full.optimizer), (0, 134_515_008 * 4, 134_515_008 * 8));
    assert_eq!(full.gradients, 134_515_008 * 4);
    let small = memory("finetuning_type: full\noptim: adamw_8bit\nmax_grad_norm: 0\n");
    assert!(small.optimizer.abs_diff(134_515_008 * 2 + 134_515_008 / 32) < 1 << 20, "{small:?}");
    assert_eq!(small.gradients, 0);
    assert!(memory("finetuning_type: full\noptim: adafactor\n").optimizer < 4 << 20);
    let narrow = memory("finetuning_type: full\nprecision: bf16\ngradient_checkpointing: true\n");
    assert_eq!(narrow.trained_weights, 134_515_008 * 2 + 61 * 576 * 2);
}

#[test]
fn a_frozen_block_takes_its_weights_and_nothing_else() {
    const BLOCK: u64 = 3_538_944 + 2 * 576;
    let memory = |extra: &str| {
        let recipe = recipe(&format!("finetuning_type: freeze\ngradient_accumulation_steps: 1\n{extra}"));
        let prediction = job(&[512]).predict(&recipe);
        (prediction.memory.unwrap(), prediction.shape, disk::needed(&recipe, &Shape::new(&smollm2(), &recipe), 1))
    };
    let (two, shape, on_disk) = memory("freeze_trainable_layers: 2\n");
    assert_eq!((shape.trained.numbers(), shape.trained.tensors(), shape.trained.graph_layers), (2 * BLOCK, 2 * 9, 2));
    assert_eq!((two.trained_weights, two.weights), (2 * BLOCK * 4, (134_515_008 - 2 * BLOCK) * 4));
    assert_eq!(two.optimizer, 2 * BLOCK * 8);
    // The result is a whole model all the same.
    assert!(on_disk.result.abs_diff(134_515_008 * 4) < 100_000, "{on_disk:?}");
    let activations = |shape: &Shape| kept(shape, tokens(512), false, Products::F32);
    let four = memory("freeze_trainable_layers: 4\nfreeze_trainable_modules: mlp\n").1;
    assert_eq!(activations(&four), 2 * activations(&shape));
    assert_eq!(four.trained.numbers(), 4 * 3 * 576 * 1536);
    // The first blocks and a table are reached through all.
    assert_eq!(memory("freeze_trainable_layers: -2\n").1.trained.graph_layers, 30);
    let table = memory("freeze_trainable_layers: 0\nfreeze_extra_modules: embed_tokens\n").1;
    assert_eq!((table.trained.graph_layers, table.trained.table, table.trained.numbers()), (30, true, 49_152 * 576));
    let norm = memory("freeze_trainable_layers: 0\nfreeze_extra_modules: norm\n").1;
    assert_eq!((norm.trained.graph_layers, norm.trained.numbers()), (0, 576));
    let flops = |extra: &str| {
        let recipe = recipe(&format!("finetuning_type: {extra}\nmax_steps: 1\n"));
        let prediction = job(&[512]).predict(&recipe);
        speed::flops(&recipe, &prediction.shape, &prediction.work)
    };
    let adapters = recipe("lora_rank: 16\nlayers_to_transform: [27, 29]\n");
    let shape = Shape::new(&smollm2(), &adapters);
    assert_eq!(
        (shape.trained.graph_layers, shape.trained.numbers(), shape.trained.tensors()),
        (3, 4_884_480 / 15, 2 * 14)
    );
    // A third of the products in the blocks are left, and of the output layer's two.
    let share = flops("freeze\nfreeze_trainable_layers: 1") / flops("full");
    assert!((0.4..0.5).contains(&share), "{share}");
}

#[test]
fn checkpoints_are_counted_as_they_are_kept() {
    let shape = Shape::new(&smollm2(), &recipe("lora_rank: 16\n"));
    let needed = |extra: &str, steps| disk::needed(&recipe(extra), &shape, steps);
    let once = needed("save_steps: 10\nsave_total_limit: 3\n", 5);
    // As measured: an adapter of 19,597,651 bytes, a checkpoint of 58,776,133 with it.
    assert!(once.result.abs_diff(19_597_651) < 20_000, "{once:?}");
    assert!(once.checkpoints.abs_diff(58_776_133) < 60_000, "{once:?}");
    assert_eq!(once.temporary, 0);
    let many = needed("save_steps: 10\nsave_total_limit: 3\n", 95);
    assert_eq!((many.checkpoints, many.temporary), (3 * once.checkpoints, once.checkpoints));
    // What an optimiser remembers lies beside, from one stage to the next.
    let memory = once.checkpoints - once.result;
    for (taken, hands_on, temporary) in [(0, true, memory), (memory, false, memory), (memory, true, 2 * memory)] {
        let job = Job { passed: Passed { taken, hands_on }, ..job(&[16; 8]) };
        let predicted = job.predict(&recipe("lora_rank: 16\nmax_steps: 5\n"));
        assert_eq!((predicted.disk.temporary, predicted.handed), (temporary, if hands_on { memory } else { 0 }));
    }
}

#[test]
fn what_fits_is_let_through_and_what_does_not_names_changes_that_help() {
    let recipe = recipe("per_device_train_batch_size: 8\nmax_steps: 20\n");
    let job = job(&[512; 16]);
    let predicted = job.predict(&recipe);
    assert_eq!(remedies::judge(&job, &recipe, &predicted, NO_END), (Vec::new(), Vec::new()));

    let needs = predicted.memory_bytes();
    let room = Room { memory_bytes: needs * 2 / 3, ..NO_END };
    let (problems, found) = remedies::judge(&job, &recipe, &predicted, room);
    assert_eq!(problems[0].code, ProblemCode::OutOfMemory);
    assert!(problems[0].fix.en.contains("per_device_train_batch_size: 4"), "{}", problems[0]);
    assert!(problems[0].fix.en.contains("--ignore-estimate") && problems[0].fix.zh.contains("--ignore-estimate"));
    for remedy in &found {
        let bytes = remedy.memory_bytes.unwrap();
        assert!(bytes < needs, "{remedy:?}");
        assert_eq!(remedy.fits, bytes <= room.memory_bytes, "{remedy:?}");
    }
    // The same rows a step: what fits is the same training.
    let gentle = found.iter().find(|remedy| remedy.fits).unwrap();
    assert!(gentle.change.contains(&"gradient_accumulation_steps: 16".to_owned()), "{gentle:?}");
}

#[test]
fn where_one_change_is_not_enough_several_are_tried_together() {
    let recipe = recipe("precision: fp32\nper_device_train_batch_size: 4\nmax_steps: 20\n");
    let job = job(&[1024; 16]);
    let predicted = job.predict(&recipe);
    let least = |extra: &str| job.predict(&self::recipe(extra)).memory_bytes();
    let all = "per_device_train_batch_size: 1\ngradient_accumulation_steps: 32\noptim: adamw_8bit\n\
               gradient_checkpointing: true\nprecision: bf16\nquantization_bit: 4\ncutoff_len: 128\nmax_steps: 20\n";
    let room = Room { memory_bytes: least(all) + 1, ..NO_END };
    let (problems, found) = remedies::judge(&job, &recipe, &predicted, room);
    assert!(found[0].fits && found[0].change.len() == 7, "{found:?}");
    assert!(found[1..].iter().all(|remedy| !remedy.fits), "{found:?}");
    assert!(problems[0].fix.en.contains("cutoff_len: 128 → "), "{}", problems[0]);
    // Less than the weights: nothing helps, and that is said.
    let (problems, found) = remedies::judge(&job, &recipe, &predicted, Room { memory_bytes: 1 << 20, ..NO_END });
    assert!(found.iter().all(|remedy| !remedy.fits));
    assert!(problems[0].fix.en.contains("choose a smaller model"), "{}", problems[0]);
}

#[test]
fn too_little_disk_is_about_checkpoints() {
    let recipe = recipe("max_steps: 50\nsave_steps: 5\nsave_total_limit: 8\n");
    let job = job(&[16; 16]);
    let predicted = job.predict(&recipe);
    let room = Room { disk_bytes: predicted.disk.total() / 2, ..NO_END };
    let (problems, found) = remedies::judge(&job, &recipe, &predicted, room);
    assert_eq!((problems.len(), problems[0].code), (1, ProblemCode::DiskFull));
    assert!(found.iter().all(|remedy| remedy.change[0].starts_with("save_total_limit")), "{found:?}");
    assert!(found.iter().any(|remedy| remedy.fits));
}

#[test]
fn operations_are_counted_in_multiply_adds() {
    let recipe = recipe("lora_rank: 16\ngradient_accumulation_steps: 1\nmax_steps: 1\n");
    let prediction = job(&[100]).predict(&recipe);
    let linears = 30.0 * 100.0 * 2.0 * (2.0 * 3_538_944.0 + 3.0 * 162_816.0);
    let attention = 30.0 * 7.0 * 100.0 * 100.0 * 576.0;
    let head = 99.0 * 4.0 * 49_152.0 * 576.0;
    assert_eq!(speed::flops(&recipe, &prediction.shape, &prediction.work), linears + attention + head);
}

#[test]
fn a_run_of_the_same_work_tells_the_speed() {
    let written = "lora_rank: 16\nmax_steps: 7\n";
    let prediction = job(&[100; 20]).predict(&recipe(written));
    let run = |extra: &str, tokens_per_second| PastRun { recipe: source(extra), tokens_per_second };
    let past = [run("lora_rank: 8\nmax_steps: 7\n", 1.0), run("lora_rank: 16\nlearning_rate: 0.01\nseed: 3\n", 50.0)];
    let time = |past: &[PastRun], device| {
        speed::time(&recipe(written), device, past, &prediction.shape, &prediction.work, None)
    };
    let gpu = DevicePick::Cuda(0);
    assert_eq!(time(&[], gpu), None);
    assert_eq!(time(&past, gpu), time(&past, DevicePick::Cpu));
    let time = time(&past, DevicePick::Cpu).unwrap();
    assert_eq!((time.basis, time.tokens_per_second), (SpeedBasis::PastRun, 50.0));
    assert_eq!(time.seconds, prediction.work.tokens as f64 / 50.0);
}

#[test]
fn the_largest_known_model_that_fits_is_named_for_each_method() {
    let model = |name: &str, layers| KnownModel { name: name.to_owned(), config: config_of(layers) };
    let strange = KnownModel { name: "strange".into(), config: json!({"model_type": "no_such_family"}) };
    let models = [model("small", 2), model("large", 60), model("middle", 30), strange];
    let lora = |memory_bytes| super::largest_models(&models, Room { memory_bytes, ..NO_END }, 512).swap_remove(0);
    assert_eq!(lora(u64::MAX).model.as_deref(), Some("large"));
    let large = lora(u64::MAX).memory_bytes;
    assert_eq!(lora(large - 1).model.as_deref(), Some("middle"));
    let none = lora(1);
    assert!(none.model.is_none() && none.memory_bytes > 100 << 20, "{none:?}");
}

#[test]
fn a_cut_that_leaves_no_answer_is_no_way_out() {
    let recipe = recipe("max_steps: 2\ncutoff_len: 512\n");
    // Only the last token counts: any shorter row has nothing to learn from.
    let mut rows = rows(&[512; 4]);
    rows.train.iter_mut().for_each(|sample| sample.target = (0..512).map(|at| at == 511).collect());
    let job = Job { config: smollm2(), teacher: None, rows, device: DevicePick::Cpu, passed: Passed::default() };
    let predicted = job.predict(&recipe);
    let room = Room { memory_bytes: predicted.memory_bytes() - 1, ..NO_END };
    let (problems, found) = remedies::judge(&job, &recipe, &predicted, room);
    assert_eq!(problems.len(), 1);
    let shortens = |remedy: &Remedy| remedy.change.iter().any(|line| line.contains("cutoff_len"));
    assert!(!found.is_empty() && !found.iter().any(shortens), "{found:?}");
}

#[test]
fn a_job_on_a_gpu_is_refused_for_the_disk_alone() {
    let recipe = recipe("max_steps: 50\nsave_steps: 5\nsave_total_limit: 8\n");
    let job = Job { device: DevicePick::Cuda(0), ..job(&[16; 16]) };
    let predicted = job.predict(&recipe);
    assert_eq!(predicted.memory, None);
    let room = Room { memory_bytes: 0, ..NO_END };
    assert_eq!(remedies::judge(&job, &recipe, &predicted, room), (Vec::new(), Vec::new()));
    let room = Room { memory_bytes: 0, disk_bytes: predicted.disk.total() / 2 };
    let (problems, found) = remedies::judge(&job, &recipe, &predicted, room);
    assert_eq!((problems.len(), problems[0].code), (1, ProblemCode::DiskFull));
    assert!(found.iter().all(|remedy| remedy.memory_bytes.is_none()), "{found:?}");
}

#[test]
fn preferences_are_counted_with_both_answers_and_what_is_scored_without_a_gradient() {
    let plan = |lines: &str| {
        let recipe = recipe(&format!("num_train_epochs: 2\ngradient_accumulation_steps: 1\n{lines}"));
        Work::plan(&recipe, &rows(&[100, 60, 80, 70]))
    };
    let dpo = plan("stage: dpo\n");
    assert_eq!((dpo.steps, dpo.tokens, dpo.largest.tokens), (4, 620, 160));
    // The reference is scored once, however many epochs there are.
    assert_eq!((dpo.reference_tokens, dpo.baseline_tokens), (310, 0));
    let part = plan("stage: dpo\nmax_steps: 1\n");
    assert_eq!(part.reference_tokens, part.tokens);
    let orpo = plan("stage: dpo\npref_loss: orpo\n");
    assert_eq!((orpo.tokens, orpo.reference_tokens, orpo.baseline_tokens), (620, 0, 0));
    let kto = plan("stage: kto\n");
    assert_eq!((kto.steps, kto.tokens, kto.reference_tokens, kto.baseline_tokens), (8, 620, 620, 620));
    // A shorter cutoff that takes one answer takes its pair.
    assert_eq!(plan("stage: dpo\ncutoff_len: 65\n").largest.tokens, 130);
}

/// What is not changed is held as it is stored, up to 32 bits a number.
#[test]
fn frozen_weights_take_what_they_take_in_the_file() {
    const PARAMETERS: u64 = 134_515_008;
    let weights = |bytes_a_number, lines: &str| {
        let mut job = job(&[64; 8]);
        job.rows.model_bytes = bytes_a_number * PARAMETERS;
        job.predict(&recipe(lines)).memory.unwrap().weights as f64 / PARAMETERS as f64
    };
    for (stored, lines, held) in
        [(2, "precision: fp32\n", 2.0), (8, "precision: fp32\n", 4.0), (1, "precision: bf16\n", 2.0)]
    {
        let got = weights(stored, lines);
        assert!((got - held).abs() < 0.01, "{stored} {lines}: {got}");
    }
}

/// The same model in the same form: its weights once more, and nothing that is trained.
#[test]
fn a_teacher_is_counted_as_frozen_weights() {
    let recipe = recipe("precision: fp32\nteacher: large\nmax_steps: 2\n");
    let alone = job(&[64; 8]).predict(&recipe).memory.unwrap();
    let taught = Job { teacher: Some(Teacher { config: smollm2(), bytes: 0 }), ..job(&[64; 8]) };
    let beside = taught.predict(&recipe).memory.unwrap();
    assert_eq!(beside.weights - alone.weights, 4 * 134_515_008);
    assert!(beside.output_layer > alone.output_layer && beside.activations > alone.activations);
    assert_eq!((beside.trained_weights, beside.optimizer), (alone.trained_weights, alone.optimizer));
}

fn last_of_three_stages(extra: &str) -> Recipe {
    let recipe = recipe(&format!("precision: fp32\nmax_steps: 2\n{extra}stages:\n- name: a\n- name: b\n- name: c\n"));
    recipe.stages()[2].recipe.clone()
}

#[test]
fn what_was_before_a_stage_is_a_copy_of_what_is_trained_and_reads_along() {
    for extra in ["", "finetuning_type: full\n"] {
        let of = |more: &str| job(&[64; 8]).predict(&last_of_three_stages(&format!("{extra}{more}")));
        let (alone, held) = (of(""), of("lwf_lambda: 1\n"));
        assert_eq!(held.work.baseline_tokens, held.work.tokens);
        let (alone, memory) = (alone.memory.unwrap(), held.memory.unwrap());
        assert_eq!(memory.trained_weights, 2 * alone.trained_weights, "{extra}");
        assert_eq!((memory.weights, memory.optimizer), (alone.weights, alone.optimizer));
        assert!(memory.output_layer > alone.output_layer && memory.activations > alone.activations);
        // The first stage has none before it.
        let first =
            recipe(&format!("{extra}lwf_lambda: 1\nstages:\n- name: a\n- name: b\n")).stages()[0].recipe.clone();
        assert_eq!(first.lwf(), None);
    }
}

/// Two stages' pairs lie beside the third's, in memory and on the disk, and only the third's is trained.
#[test]
fn pairs_of_earlier_stages_are_counted() {
    let of = |more: &str| job(&[64; 8]).predict(&last_of_three_stages(more));
    let (alone, beside) = (of(""), of("olora_lambda: 0.5\n"));
    let pair = alone.shape.trained.numbers();
    assert_eq!(beside.shape.trained.numbers(), pair);
    let (alone_memory, memory) = (alone.memory.unwrap(), beside.memory.unwrap());
    assert_eq!(memory.weights - alone_memory.weights, 4 * (2 + 3) * pair);
    assert_eq!(beside.disk.result - alone.disk.result, 4 * 2 * pair);
}
