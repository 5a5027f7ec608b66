//! LoRA steps beside PyTorch + transformers + PEFT, on a tiny llama, SmolLM2-135M-Instruct and Gemma 3 270M
//! (`scripts/golden/`): logits, greedy answers, gradients, losses, norms and final weights.

mod common;
mod exports;

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use common::{COSINE, Row, adamw, assert_relative, doubles, gradients, root, tiny_rows, torch_name, train, values};
use exports::check_export;
use justtrain_data::Tokenizer;
use justtrain_model::adapters::{LoraConfig, attach_lora, load_peft};
use justtrain_model::generate::generate;
use justtrain_model::kernels::Format;
use justtrain_model::layers::Lora;
use justtrain_model::parameters::{Parameters, Trained};
use justtrain_model::{Decoder, Input, Mode, WeightFormat, WeightFormats};
use justtrain_train::optim::AdamW;
use justtrain_train::optim::schedule::Schedule;
use justtrain_weights::Checkpoint;
use justtrain_weights::safetensors::SafetensorsFile;
use justtrain_worker_api::GenerateOptions;
use serde::de::DeserializeOwned;
use serde_json::Value;

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt()
}

#[test]
fn twenty_steps_of_a_tiny_llama_equal_peft() {
    let folder = root("daemon/engine/model/fixtures/tiny-llama");
    let goldens = SafetensorsFile::open(&folder.join("goldens.safetensors")).unwrap();
    let rows = tiny_rows(&folder);
    let mut decoder =
        Decoder::load(&Checkpoint::open(&folder).unwrap(), &Device::flex(), WeightFormats::default()).unwrap();
    load_peft(&mut decoder, &folder.join("adapter")).unwrap();
    let schedule = Schedule { shape: COSINE, learning_rate: 1e-3, warmup_steps: 3, total_steps: 20 };
    let rates: Vec<f64> = (0..20).map(|step| schedule.learning_rate(step)).collect();
    for (got, want) in rates.iter().zip(doubles(&goldens, "train.learning_rate")) {
        assert!((got - want).abs() < 1e-12);
    }
    let (losses, norms) = train(&mut decoder, Trained::Adapters, &mut adamw(), &rows, &schedule);
    assert_relative(&losses, &doubles(&goldens, "train.loss"), 1e-4, "loss of step");
    assert_relative(&norms, &doubles(&goldens, "train.grad_norm"), 1e-3, "norm of step");
    for parameter in decoder.trained_mut(Trained::Adapters) {
        let expected = goldens.read_f32(&format!("final.{}", torch_name(&parameter.name))).unwrap();
        let worst = parameter.values().iter().zip(&expected).map(|(got, want)| (got - want).abs()).fold(0.0, f32::max);
        assert!(worst < 2e-4, "{} is off by {worst}", parameter.name);
    }
}

struct SmolLm2 {
    goldens: Value,
    tensors: SafetensorsFile,
    decoder: Decoder,
}

impl SmolLm2 {
    fn open(device: &Device) -> Self {
        Self::open_as(device, WeightFormats::default())
    }

    fn open_as(device: &Device, formats: WeightFormats) -> Self {
        let path = std::env::var_os("JUSTTRAIN_TEST_MODEL")
            .expect("JUSTTRAIN_TEST_MODEL names SmolLM2-135M-Instruct.Q4_1.gguf; scripts/test sets it");
        let folder = root("tests/fixtures/smollm2");
        Self {
            goldens: serde_json::from_str(&std::fs::read_to_string(folder.join("goldens.json")).unwrap()).unwrap(),
            tensors: SafetensorsFile::open(&folder.join("goldens.safetensors")).unwrap(),
            decoder: Decoder::load(&Checkpoint::open(Path::new(&path)).unwrap(), device, formats).unwrap(),
        }
    }

    /// The adapter that `scripts/golden/README.md` gives as a formula.
    fn attach_formula(&mut self) {
        let hash = |mut x: u32| {
            x ^= x >> 16;
            x = x.wrapping_mul(0x7feb_352d);
            x ^= x >> 15;
            x = x.wrapping_mul(0x846c_a68b);
            x ^ (x >> 16)
        };
        let device = self.decoder.device();
        for (index, projection) in self.decoder.projections_mut().enumerate() {
            let [outputs, inputs] = projection.shape();
            let factor = |tensor: usize, shape: [usize; 2], bound: f64| {
                let value = |i: usize| {
                    let hashed = f64::from(hash((16_384 * tensor + i) as u32));
                    ((hashed / f64::from(1u32 << 31) - 1.0) * bound) as f32
                };
                let values: Vec<f32> = (0..shape[0] * shape[1]).map(value).collect();
                Tensor::from_data(TensorData::new(values, shape), &device)
            };
            let (a, b) = (factor(2 * index, [8, inputs], 0.04), factor(2 * index + 1, [outputs, 8], 0.03));
            projection.lora = Some(Lora::new(a, b, 2.0, 0.0, index as u64));
        }
    }

    fn rows(&self) -> Vec<Row> {
        let ints = |value: &Value| -> Vec<i64> { serde_json::from_value(value.clone()).unwrap() };
        let rows = self.goldens["rows"].as_array().unwrap().iter();
        let ids = |row: &Value| ints(&row["ids"]).into_iter().map(|id| id as u32).collect();
        rows.map(|row| Row { ids: ids(row), labels: ints(&row["labels"]), source: Vec::new() }).collect()
    }
}

#[test]
fn logits_and_greedy_answers_of_smollm2_equal_transformers() {
    let mut model = SmolLm2::open(&Device::flex());
    let prompts = model.goldens["prompts"].as_array().unwrap().clone();
    model.attach_formula();
    for prompt in &prompts {
        let name = prompt["name"].as_str().unwrap();
        let ids: Vec<u32> = serde_json::from_value(prompt["ids"].clone()).unwrap();
        let starts = [0, ids.len()];
        let decoder = &model.decoder;
        let logits = |mode| {
            values(decoder.logits(decoder.hidden_states(&Input::packed(ids.clone(), &starts), None, mode), mode))
        };
        let base = logits(Mode::BASE);
        let vocabulary = decoder.config().vocab_size;
        let top_ids = model.tensors.bytes(&format!("{name}.top_ids")).unwrap();
        let top = model.tensors.read_f32(&format!("{name}.top_logits")).unwrap();
        let width = top_ids.len() / top.len();
        for (index, (&want, id)) in top.iter().zip(top_ids.chunks(width)).enumerate() {
            let id = id.iter().rev().fold(0, |id, &byte| id << 8 | usize::from(byte));
            let got = base[index / 16 * vocabulary + id];
            assert!((got - want).abs() <= 2e-3, "{name}, position {}: {got}, expected {want}", index / 16);
        }
        if name == "en" {
            let last = model.tensors.read_f32("en.last_logits").unwrap();
            let worst =
                base[base.len() - vocabulary..].iter().zip(&last).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= 2e-3, "last logits are off by {worst}");
            let tuned = logits(Mode::TUNED);
            let mut best: Vec<f32> = tuned[tuned.len() - vocabulary..].to_vec();
            best.sort_by(|a, b| b.total_cmp(a));
            let expected = model.tensors.read_f32("en.adapter_last_top_logits").unwrap();
            for (got, want) in best.iter().zip(&expected) {
                assert!((got - want).abs() <= 2e-3, "with the adapter: {got}, expected {want}");
            }
        }
        if let Some(expected) = prompt["greedy"].as_array() {
            let expected: Vec<u32> =
                expected.iter().map(|id| id.as_u64().unwrap() as u32).filter(|&id| id != 2).collect();
            let options = GenerateOptions { max_new_tokens: 32, ..GenerateOptions::default() };
            let answers = generate(decoder, &[ids], &options, &[2], Mode::BASE, |_, _| true);
            assert_eq!(answers[0].ids, expected, "{name}");
        }
    }
}

#[test]
fn gradients_and_twenty_steps_of_smollm2_equal_peft() {
    let mut model = SmolLm2::open(&Device::flex());
    model.attach_formula();
    let rows = model.rows();
    let (loss, gradients) = gradients(&mut model.decoder, Trained::Adapters, &rows);
    assert_relative(&[loss], &[model.goldens["adapter_loss"].as_f64().unwrap()], 1e-3, "loss");
    let norms = model.goldens["gradient_norms"].as_object().unwrap();
    assert_eq!(norms.len(), gradients.len());
    for (name, gradient) in &gradients {
        assert_relative(&[norm(gradient)], &[norms[name].as_f64().unwrap()], 1e-3, name);
        if let Ok(expected) = model.tensors.read_f32(&format!("grad.{name}")) {
            let largest = expected.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
            let worst = gradient.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= 1e-3 * largest, "{name} is off by {worst} of {largest}");
        }
    }
    let expected = &model.goldens["train"];
    let curve = |key: &str| -> Vec<f64> { serde_json::from_value(expected[key].clone()).unwrap() };
    let schedule = Schedule { shape: COSINE, learning_rate: 2e-4, warmup_steps: 3, total_steps: 20 };
    let (losses, norms) = train(&mut model.decoder, Trained::Adapters, &mut adamw(), &rows, &schedule);
    assert_relative(&losses, &curve("loss"), 1e-3, "loss of step");
    assert_relative(&norms, &curve("grad_norm"), 1e-2, "norm of step");
}

/// On every processor; one with instructions for bfloat16 multiplies in it.
#[test]
fn twenty_steps_of_smollm2_in_16_bits_follow_pefts_curve_in_32() {
    let bf16 = WeightFormat::Packed(Format::Bf16);
    let mut model = SmolLm2::open_as(&Device::flex(), WeightFormats::new(bf16, bf16));
    model.attach_formula();
    let schedule = Schedule { shape: COSINE, learning_rate: 2e-4, warmup_steps: 3, total_steps: 20 };
    let rows = model.rows();
    let (losses, _) = train(&mut model.decoder, Trained::Adapters, &mut adamw(), &rows, &schedule);
    let expected: Vec<f64> = serde_json::from_value(model.goldens["train"]["loss"].clone()).unwrap();
    assert_relative(&losses, &expected, 1e-2, "loss of step");
}

/// `JUSTTRAIN_PYTHON` is an interpreter with the packages of `scripts/golden/requirements.txt`: PEFT and transformers
/// load our exports without a warning and give the logits that we do.
#[test]
#[ignore = "needs JUSTTRAIN_PYTHON"]
fn exports_of_smollm2_have_our_logits_in_peft_and_transformers() {
    let mut model = SmolLm2::open(&Device::flex());
    model.attach_formula();
    let base = std::env::var_os("JUSTTRAIN_TEST_MODEL").unwrap();
    let lora = LoraConfig { rank: 8, alpha: 16.0, ..LoraConfig::default() };
    let prompts = model.goldens["prompts"].as_array().unwrap();
    let ids = |prompt: &Value| serde_json::from_value(prompt["ids"].clone()).unwrap();
    let prompts: Vec<Row> =
        prompts.iter().map(|prompt| Row { ids: ids(prompt), labels: Vec::new(), source: Vec::new() }).collect();
    check_export(Path::new(&base), &model.decoder, &lora, &prompts);
}

#[test]
fn every_gradient_and_twenty_steps_of_full_fine_tuning_equal_pytorch() {
    let folder = root("daemon/engine/model/fixtures/tiny-llama");
    let (full, rows) = (SafetensorsFile::open(&folder.join("full.safetensors")).unwrap(), tiny_rows(&folder));
    let mut decoder =
        Decoder::load(&Checkpoint::open(&folder).unwrap(), &Device::flex(), WeightFormats::default()).unwrap();
    let (loss, gradients) = gradients(&mut decoder, Trained::Weights, &rows);
    assert_relative(&[loss], &[f64::from(full.read_f32("loss").unwrap()[0])], 1e-5, "loss");
    assert_eq!(gradients.len(), full.names().filter(|name| name.starts_with("grad.")).count());
    for (name, gradient) in &gradients {
        let expected = full.read_f32(&format!("grad.{name}")).unwrap();
        let largest = expected.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        let worst = gradient.iter().zip(&expected).map(|(got, want)| (got - want).abs()).fold(0.0, f32::max);
        assert!(worst <= 1e-3 * largest, "{name} is off by {worst} of {largest}");
    }
    let schedule = Schedule { shape: COSINE, learning_rate: 1e-3, warmup_steps: 3, total_steps: 20 };
    let mut adamw = AdamW::new(0.9, 0.999, 1e-8, 0.1);
    let (losses, norms) = train(&mut decoder, Trained::Weights, &mut adamw, &rows, &schedule);
    assert_relative(&losses, &doubles(&full, "train.loss"), 1e-3, "loss of step");
    assert_relative(&norms, &doubles(&full, "train.grad_norm"), 1e-2, "norm of step");
    let mut checked = 0;
    for parameter in decoder.trained_mut(Trained::Weights) {
        let Ok(expected) = full.read_f32(&format!("final.{}", parameter.name)) else { continue };
        let worst = parameter.values().iter().zip(&expected).map(|(got, want)| (got - want).abs()).fold(0.0, f32::max);
        // 20 steps of at most 1e-3 each; a norm that decayed would be off by 1e-3.
        assert!(worst < 3e-4, "{} is off by {worst}", parameter.name);
        checked += 1;
    }
    assert_eq!(checked, 11);
}

/// `JUSTTRAIN_TEST_GEMMA` names the GGUF of Gemma 3 270M, which is under the Gemma terms of use and in no repository.
fn gemma() -> PathBuf {
    std::env::var_os("JUSTTRAIN_TEST_GEMMA").expect("JUSTTRAIN_TEST_GEMMA names gemma-3-270m-q4_k_m.gguf").into()
}

fn gemma_goldens() -> Value {
    serde_json::from_slice(&std::fs::read(root("tests/fixtures/gemma3-270m.json")).unwrap()).unwrap()
}

fn list<T: DeserializeOwned>(value: &Value) -> Vec<T> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
#[ignore = "needs JUSTTRAIN_TEST_GEMMA"]
fn ids_logits_and_greedy_answers_of_gemma_3_equal_transformers() {
    let checkpoint = Checkpoint::open(&gemma()).unwrap();
    let tokenizer = Tokenizer::open(&checkpoint).unwrap();
    let decoder = Decoder::load(&checkpoint, &Device::flex(), WeightFormats::default()).unwrap();
    for prompt in gemma_goldens()["prompts"].as_array().unwrap() {
        let text = prompt["text"].as_str().unwrap();
        let ids: Vec<u32> = list(&prompt["ids"]);
        assert_eq!(tokenizer.encode(text).unwrap().ids, ids[1..], "{text}");
        let hidden = decoder.hidden_states(&Input::packed(ids.clone(), &[0, ids.len()]), None, Mode::BASE);
        let logits = values(decoder.logits(hidden.narrow(0, ids.len() - 1, 1), Mode::BASE));
        let top: Vec<usize> = list(&prompt["top_ids"]);
        for (&id, want) in top.iter().zip(list::<f32>(&prompt["top_logits"])) {
            assert!((logits[id] - want).abs() <= 5e-3, "{text}: token {id} has {}, expected {want}", logits[id]);
        }
        let greedy: Vec<u32> = list(&prompt["greedy"]);
        let options = GenerateOptions { max_new_tokens: greedy.len() as u32, ..GenerateOptions::default() };
        let answers = generate(&decoder, &[ids], &options, &[], Mode::BASE, |_, _| true);
        assert_eq!(answers[0].ids, greedy, "{text}");
    }
}

#[test]
#[ignore = "needs JUSTTRAIN_TEST_GEMMA"]
fn six_lora_steps_of_gemma_3_equal_peft() {
    let goldens = gemma_goldens();
    let mut decoder =
        Decoder::load(&Checkpoint::open(&gemma()).unwrap(), &Device::flex(), WeightFormats::default()).unwrap();
    let config = LoraConfig { rank: 4, ..LoraConfig::default() };
    attach_lora(&mut decoder, &config, 0).unwrap();
    let device = decoder.device();
    for projection in decoder.projections_mut() {
        let lora = projection.lora.as_mut().unwrap();
        let shape = lora.a.dims();
        // The saw tooth of the script.
        let value = |i: u64| (((i * 7919) % 1009) as f64 / 1009.0 - 0.5) * 0.08;
        let numbers: Vec<f32> = (0..(shape[0] * shape[1]) as u64).map(|i| value(i) as f32).collect();
        lora.a = Tensor::from_data(TensorData::new(numbers, shape), &device);
    }
    let ids: Vec<u32> = list(&goldens["train"]["ids"]);
    let row = Row { labels: ids.iter().map(|&id| i64::from(id)).collect(), ids, source: Vec::new() };
    let schedule = Schedule { shape: COSINE, learning_rate: 1e-3, warmup_steps: 1, total_steps: 6 };
    let (losses, _) = train(&mut decoder, Trained::Adapters, &mut adamw(), &[row], &schedule);
    assert_relative(&losses, &list::<f64>(&goldens["train"]["loss"]), 1e-3, "loss of step");
}
