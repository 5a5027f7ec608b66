//! Every family beside transformers and PEFT, on a tiny random model (`scripts/golden/families.py`). A family joins with a
//! line below.

mod classifiers;
mod common;
mod exports;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor};
use common::{COSINE, Row, adamw, assert_relative, batch, doubles, gradients, ints, root, tiny_rows, train, values};
use exports::check_export;
use justtrain_kernels::{Format, Products, linear_cross_entropy};
use justtrain_model::adapters::{LoraConfig, LoraTargets, attach_lora, load_peft, save_peft};
use justtrain_model::export::{export_merged, load_model, save_model};
use justtrain_model::generate::generate;
use justtrain_model::parameters::{Parameters, Trained};
use justtrain_model::{Decoder, Input, Mode, WeightFormat, WeightFormats};
use justtrain_train::optim::schedule::Schedule;
use justtrain_weights::Checkpoint;
use justtrain_weights::safetensors::SafetensorsFile;
use justtrain_worker_api::GenerateOptions;
use serde_json::Value;

macro_rules! families {
    ($($family:ident),* $(,)?) => {
        $(mod $family {
            use super::Fixture;

            const NAME: &str = stringify!($family);

            #[test]
            fn logits_and_losses_equal_transformers_packed_or_not() {
                Fixture::open(NAME).check_forward();
            }

            #[test]
            fn every_gradient_and_ten_steps_equal_pytorch() {
                Fixture::open(NAME).check_training();
            }

            #[test]
            fn what_is_saved_is_the_same_model() {
                Fixture::open(NAME).check_files();
            }

            #[test]
            fn a_quantised_base_trains_as_its_decoded_numbers() {
                Fixture::open(NAME).check_quantised();
            }

            #[test]
            fn generation_with_a_cache_equals_generation_without() {
                Fixture::open(NAME).check_cache();
            }
        })*

        const ALL: &[&str] = &[$(stringify!($family)),*];
    };
}

families! {
    llama_biased,
    llama_dynamic,
    llama_linear,
    llama_llama3,
    llama_yarn,
    mistral,
    qwen2,
    qwen3,
    qwen3_moe,
    qwen3_moe_mixed,
    gemma2,
    gemma3_text,
    phi3,
    phi3_longrope,
    gpt2,
    opt,
    t5,
    t5_v1_1,
}

const FORMATS: [Format; 4] =
    [Format::Bf16, Format::Int8, Format::Nf4 { double_quantization: false }, Format::Nf4 { double_quantization: true }];

struct Fixture {
    name: String,
    folder: PathBuf,
    goldens: SafetensorsFile,
    rows: Vec<Row>,
}

impl Fixture {
    fn open(name: &str) -> Self {
        let folder = root("daemon/engine/model/fixtures/families").join(name);
        Self {
            name: name.to_owned(),
            goldens: SafetensorsFile::open(&folder.join("goldens.safetensors")).unwrap(),
            rows: tiny_rows(&folder),
            folder,
        }
    }

    fn checkpoint(&self) -> Checkpoint {
        Checkpoint::open(&self.folder).unwrap()
    }

    fn decoder(&self) -> Decoder {
        load(&self.folder, WeightFormats::default())
    }

    fn tuned(&self, formats: WeightFormats) -> Decoder {
        let mut decoder = load(&self.folder, formats);
        load_peft(&mut decoder, &self.folder.join("adapter")).unwrap();
        decoder
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.goldens.read_f32(name).unwrap()
    }

    fn check_forward(&self) {
        let decoder = self.tuned(WeightFormats::default());
        for (mode, logits_name, loss_name) in
            [(Mode::BASE, "logits", "loss"), (Mode::TUNED, "adapter_logits", "adapter_loss")]
        {
            let expected = [0, 1].map(|index| self.floats(&format!("{logits_name}.{index}")));
            let (packed, targets) = batch(&self.rows);
            assert_near(&logits(&decoder, &packed, mode), &expected.concat(), 1e-4, logits_name);
            let loss = |rows: &[Row]| {
                let (input, targets) = batch(rows);
                let hidden = decoder.hidden_states(&input, None, mode);
                values(linear_cross_entropy(hidden, &decoder.output_layer(Mode::TUNED), targets))[0]
            };
            let together = loss(&self.rows);
            let apart: f32 = (0..2).map(|index| loss(&self.rows[index..=index])).sum();
            assert!((together - apart).abs() <= 1e-5 * apart, "packed {together}, unpacked {apart}");
            assert_near(&[together / targets.len() as f32], &self.floats(loss_name), 1e-5, loss_name);
            for (row, expected) in self.rows.iter().zip(&expected) {
                let (input, _) = batch(std::slice::from_ref(row));
                assert_near(&logits(&decoder, &input, mode), expected, 1e-4, logits_name);
            }
        }
    }

    fn check_training(&self) {
        let of_adapter = |name: &&str| name.contains(".lora_");
        let names = || self.goldens.names().filter_map(|name| name.strip_prefix("grad."));
        let mut decoder = self.decoder();
        self.check_gradients(&mut decoder, Trained::Weights, "loss", names().filter(|name| !of_adapter(name)).count());
        self.check_frozen(&mut decoder);
        let mut decoder = self.tuned(WeightFormats::default());
        self.check_gradients(&mut decoder, Trained::Adapters, "adapter_loss", names().filter(of_adapter).count());
        let (losses, _) = train(&mut decoder, Trained::Adapters, &mut adamw(), &self.rows, &schedule(10));
        assert_relative(&losses, &doubles(&self.goldens, "train.loss"), 1e-4, "loss of step");
    }

    /// With some of the weights frozen, the gradients of the others are what they are without.
    fn check_frozen(&self, decoder: &mut Decoder) {
        let named: Vec<(String, Vec<usize>)> =
            decoder.trained_mut(Trained::Weights).iter().map(|weight| (weight.name.clone(), weight.shape())).collect();
        assert_eq!(decoder.config().tensors(), named, "what is told from the configuration alone");
        let (_, all) = gradients(decoder, Trained::Weights, &self.rows);
        let count = all.len();
        for chosen in [vec![0], vec![1], vec![count - 1], vec![count / 2, count - 2], (0..count).step_by(3).collect()] {
            let names = chosen.iter().map(|&index| all[index].0.clone()).collect();
            let (_, some) = gradients(decoder, Trained::Named(&names), &self.rows);
            let expected: Vec<_> = all.iter().filter(|(name, _)| names.contains(name)).cloned().collect();
            let sorted = |mut gradients: Vec<(String, Vec<f32>)>| {
                gradients.sort_by(|a, b| a.0.cmp(&b.0));
                gradients
            };
            assert!(sorted(some) == sorted(expected), "{names:?}");
        }
    }

    fn check_gradients(&self, decoder: &mut Decoder, trained: Trained<'_>, loss_name: &str, count: usize) {
        let (loss, gradients) = gradients(decoder, trained, &self.rows);
        assert_relative(&[loss], &[f64::from(self.floats(loss_name)[0])], 1e-5, loss_name);
        assert_eq!(gradients.len(), count);
        if trained == Trained::Weights {
            // What the estimate counts from the configuration alone.
            let numbers: usize = gradients.iter().map(|(_, gradient)| gradient.len()).sum();
            assert_eq!(decoder.parameters(), numbers as u64);
        }
        for (name, gradient) in &gradients {
            let expected = self.floats(&format!("grad.{name}"));
            // Of a bias of keys it is 0, but for rounding: it moves all scores of a query together.
            assert_near(gradient, &expected, (1e-3 * largest(&expected)).max(1e-6), name);
        }
    }

    /// A model and a merged one load again, in the layout that transformers wrote; the adapter is PEFT's own file.
    fn check_files(&self) {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let (packed, _) = batch(&self.rows);
        let decoder = self.decoder();
        save_model(&decoder, self.checkpoint().config(), &path("model")).unwrap();
        self.assert_same_layout(&path("model"));
        let saved = load(&path("model"), WeightFormats::default());
        let expected = logits(&decoder, &packed, Mode::BASE);
        assert_eq!(logits(&saved, &packed, Mode::BASE), expected, "a saved model");
        let mut loaded = self.decoder();
        for mut parameter in loaded.trained_mut(Trained::Weights) {
            parameter.update(0, |numbers| numbers.fill(0.0));
        }
        load_model(&mut loaded, &path("model")).unwrap();
        assert_eq!(logits(&loaded, &packed, Mode::BASE), expected, "weights put back");

        let tuned = self.tuned(WeightFormats::default());
        export_merged(&self.checkpoint(), &tuned, &path("merged"), |_, _| {}).unwrap();
        self.assert_same_layout(&path("merged"));
        let merged = load(&path("merged"), WeightFormats::default());
        let expected = [0, 1].map(|index| self.floats(&format!("adapter_logits.{index}"))).concat();
        assert_near(&logits(&merged, &packed, Mode::BASE), &expected, 2e-4, "merged");

        let config = load_peft(&mut self.decoder(), &self.folder.join("adapter")).unwrap();
        save_peft(&tuned, &config, &self.name, &path("adapter")).unwrap();
        let read = |folder: &Path, file: &str| std::fs::read(folder.join(file)).unwrap();
        let peft = self.folder.join("adapter");
        let file = "adapter_model.safetensors";
        assert!(read(&path("adapter"), file) == read(&peft, file), "the adapter's weights differ");
        let [ours, theirs] = [path("adapter"), peft].map(|folder| {
            let mut config: Value = serde_json::from_slice(&read(&folder, "adapter_config.json")).unwrap();
            config["target_modules"].as_array_mut().unwrap().sort_by_key(|name| name.to_string());
            config
        });
        for (key, value) in ours.as_object().unwrap() {
            assert_eq!(value, &theirs[key], "{key}");
        }
    }

    fn assert_same_layout(&self, folder: &Path) {
        assert_eq!(layout(folder), layout(&self.folder));
    }

    /// Quantised weights are other weights: what must be equal is the decoder that holds their decoded numbers.
    fn check_quantised(&self) {
        for format in FORMATS {
            let packed = WeightFormat::Packed(format);
            let mut quantised = self.tuned(WeightFormats {
                products: Products::F32,
                ..WeightFormats::new(packed, WeightFormat::Packed(Format::Bf16))
            });
            let mut decoded = quantised.clone();
            let device = decoded.device();
            for projection in decoded.projections_mut() {
                projection.weight = projection.weight.to_tensor(&device).into();
            }
            let ours = gradients(&mut quantised, Trained::Adapters, &self.rows);
            let theirs = gradients(&mut decoded, Trained::Adapters, &self.rows);
            assert_relative(&[ours.0], &[theirs.0], 1e-4, &format!("{format:?}"));
            for ((name, ours), (_, theirs)) in ours.1.iter().zip(&theirs.1) {
                assert_near(ours, theirs, 1e-4 * largest(theirs), &format!("{format:?} {name}"));
            }
            let (losses, _) = train(&mut quantised, Trained::Adapters, &mut adamw(), &self.rows, &schedule(6));
            assert!(losses[5] < losses[0], "{format:?}: {losses:?}");
        }
    }

    /// Prompts of different lengths; what is read and written together is longer than any window.
    fn check_cache(&self) {
        let decoder = self.tuned(WeightFormats::default());
        let start = decoder.config().seq2seq.map(|stacks| stacks.start);
        let prompts: Vec<Vec<u32>> = match start {
            None => [(0, 6), (1, 3)].map(|(row, length)| self.rows[row].ids[..length].to_vec()).into(),
            Some(_) => self.rows.iter().map(|row| row.source.clone()).collect(),
        };
        let options = GenerateOptions { max_new_tokens: 12, ..GenerateOptions::default() };
        let answers = generate(&decoder, &prompts, &options, &[], Mode::TUNED, |_, _| true);
        for (index, (answer, prompt)) in answers.iter().zip(&prompts).enumerate() {
            let (begun, source) = match start {
                None => (prompt.clone(), Vec::new()),
                Some(start) => (vec![start], prompt.clone()),
            };
            let mut row = Row { ids: begun.clone(), labels: Vec::new(), source };
            for _ in 0..answer.ids.len() {
                let all = logits(&decoder, &batch(std::slice::from_ref(&row)).0, Mode::TUNED);
                let (targets, width) = (row.ids.len(), decoder.config().vocab_size);
                let last = &all[(targets - 1) * width..targets * width];
                row.ids.push((0..width).max_by(|&a, &b| last[a].total_cmp(&last[b])).unwrap() as u32);
            }
            assert_eq!(answer.ids, row.ids[begun.len()..]);
            // Of a decoder with an encoder, what transformers has it say.
            let said = format!("generated.{index}");
            if start.is_some() {
                let expected: Vec<u32> = ints(&self.goldens, &said).into_iter().map(|id| id as u32).collect();
                assert!(answer.ids.len() > 3 && answer.ids == expected, "{:?} is not {expected:?}", answer.ids);
            }
        }
    }
}

/// `JUSTTRAIN_PYTHON` is an interpreter with the packages of `scripts/golden/requirements.txt`: PEFT and transformers
/// load what we save without a warning and give the logits that we do.
#[test]
#[ignore = "needs JUSTTRAIN_PYTHON"]
fn exports_of_every_family_have_our_logits_in_peft_and_transformers() {
    for name in ALL {
        let fixture = Fixture::open(name);
        let mut tuned = fixture.tuned(WeightFormats::default());
        let (losses, _) = train(&mut tuned, Trained::Adapters, &mut adamw(), &fixture.rows, &schedule(6));
        assert!(losses[5] < losses[0], "{name}: {losses:?}");
        let config = load_peft(&mut fixture.decoder(), &fixture.folder.join("adapter")).unwrap();
        check_export(&fixture.folder, &tuned, &config, &fixture.rows);
    }
    let (fixture, tuned, config) = t5_with_a_pair_on_its_output();
    check_export(&fixture.folder, &tuned, &config, &fixture.rows);
}

/// A pair at one end of T5's one table: a merged model has two, and logits that are scaled by the matrix.
fn t5_with_a_pair_on_its_output() -> (Fixture, Decoder, LoraConfig) {
    let fixture = Fixture::open("t5");
    let targets = LoraTargets::Named(vec!["lm_head".to_owned(), "v".to_owned()]);
    let (mut tuned, config) = (fixture.decoder(), LoraConfig { rank: 2, targets, ..LoraConfig::default() });
    attach_lora(&mut tuned, &config, 3).unwrap();
    let faster = Schedule { learning_rate: 0.05, ..schedule(6) };
    let (losses, _) = train(&mut tuned, Trained::Adapters, &mut adamw(), &fixture.rows, &faster);
    assert!(losses[5] < losses[0], "{losses:?}");
    (fixture, tuned, config)
}

#[test]
fn a_pair_on_the_output_of_t5_is_merged_with_its_scale() {
    let (fixture, tuned, _) = t5_with_a_pair_on_its_output();
    let folder = tempfile::tempdir().unwrap();
    export_merged(&fixture.checkpoint(), &tuned, folder.path(), |_, _| {}).unwrap();
    let (merged, (input, _)) = (load(folder.path(), WeightFormats::default()), batch(&fixture.rows));
    assert!(!merged.config().tied_embeddings && merged.config().output_scale == 1.0);
    assert_near(&logits(&merged, &input, Mode::BASE), &logits(&tuned, &input, Mode::TUNED), 2e-4, "merged");
}

/// Names and shapes of a model's weights.
fn layout(folder: &Path) -> BTreeMap<String, Vec<usize>> {
    let file = SafetensorsFile::open(&folder.join("model.safetensors")).unwrap();
    file.names().map(|name| (name.to_owned(), file.shape(name).unwrap().to_vec())).collect()
}

fn load(folder: &Path, formats: WeightFormats) -> Decoder {
    Decoder::load(&Checkpoint::open(folder).unwrap(), &Device::flex(), formats).unwrap()
}

/// After every token but those of sources.
fn logits(decoder: &Decoder, input: &Input, mode: Mode) -> Vec<f32> {
    let hidden = decoder.hidden_states(input, None, mode);
    let targets = input.ids.len() - input.sources.as_ref().map_or(0, |sources| sources.rows);
    let logits: Tensor<2> = decoder.logits(hidden.narrow(0, 0, targets), mode);
    values(logits)
}

/// Learning rate 1e-3, cosine, two steps of warm-up.
fn schedule(steps: u64) -> Schedule {
    Schedule { shape: COSINE, learning_rate: 1e-3, warmup_steps: 2, total_steps: steps }
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |largest, value| largest.max(value.abs()))
}

fn assert_near(got: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let worst = got.iter().zip(expected).map(|(got, expected)| (got - expected).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance, "{what}: off by {worst}, at most {tolerance} is allowed");
}
