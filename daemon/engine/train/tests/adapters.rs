//! LoRA and its kin beside PEFT, on tiny models (`scripts/golden/adapters.py`). A method joins with a line below.

mod common;
mod exports;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use common::{COSINE, Row, adamw, assert_relative, batch, doubles, gradients, root, tiny_rows, train, values};
use exports::check_export;
use justtrain_kernels::singular::Effort;
use justtrain_kernels::{Format, Products, linear_cross_entropy};
use justtrain_model::adapters::{LoraConfig, LoraStart, LoraTargets, attach_beside, attach_lora, load_peft, save_peft};
use justtrain_model::export::export_merged;
use justtrain_model::parameters::{Parameters, Trained};
use justtrain_model::{Decoder, Input, Mode, WeightFormat, WeightFormats, apply_tuned};
use justtrain_train::optim::schedule::Schedule;
use justtrain_weights::Checkpoint;
use justtrain_weights::safetensors::SafetensorsFile;
use serde_json::Value;

macro_rules! cases {
    ($($case:ident: $base:literal),* $(,)?) => {
        $(mod $case {
            use super::Case;

            #[test]
            fn logits_gradients_and_ten_steps_equal_peft() {
                Case::open(stringify!($case), $base).check_training();
            }

            #[test]
            fn what_is_saved_is_what_peft_wrote() {
                Case::open(stringify!($case), $base).check_files();
            }
        })*

        const ALL: &[(&str, &str)] = &[$((stringify!($case), $base)),*];
    };
}

cases! {
    rslora: "tiny-llama",
    dora: "tiny-llama",
    // Matrices that are stored transposed, with biases, and of a norm of another kind.
    dora_gpt2: "families/gpt2",
    saved: "tiny-llama",
    saved_head: "families/qwen2",
    saved_positions: "families/gpt2",
    bias_norms: "families/gpt2",
    bias_all: "families/llama_biased",
    bias_lora_only: "families/llama_biased",
    // Embedding table and output layer: apart, and one table for both, of which PEFT adapts each end by itself.
    tables: "families/qwen2",
    tables_tied: "tiny-llama",
    // Rows that are made larger, and logits that are bounded.
    tables_gemma2: "families/gemma2",
    tables_gpt2: "families/gpt2",
}

/// Of the pairs on embedding tables.
const RANK: usize = 4;

struct Case {
    base: PathBuf,
    adapter: PathBuf,
    goldens: SafetensorsFile,
    rows: Vec<Row>,
}

impl Case {
    fn open(name: &str, base: &str) -> Self {
        let fixtures = root("daemon/engine/model/fixtures");
        let folder = fixtures.join("adapters").join(name);
        Self {
            goldens: SafetensorsFile::open(&folder.join("goldens.safetensors")).unwrap(),
            rows: tiny_rows(&fixtures.join(base)),
            base: fixtures.join(base),
            adapter: folder.join("adapter"),
        }
    }

    fn checkpoint(&self) -> Checkpoint {
        Checkpoint::open(&self.base).unwrap()
    }

    fn tuned(&self) -> (Decoder, LoraConfig) {
        let mut decoder = load(&self.base);
        let config = load_peft(&mut decoder, &self.adapter).unwrap();
        (decoder, config)
    }

    fn check_training(&self) {
        let (mut decoder, _) = self.tuned();
        for (index, row) in self.rows.iter().enumerate() {
            let expected = self.goldens.read_f32(&format!("adapter_logits.{index}")).unwrap();
            assert_near(&logits(&decoder, &row.ids), &expected, 1e-4, "logits");
        }
        let (input, targets) = batch(&self.rows);
        let hidden = decoder.hidden_states(&input, None, Mode::TUNED);
        let loss = values(linear_cross_entropy(hidden, &decoder.output_layer(Mode::TUNED), targets.clone()))[0];
        let expected = self.goldens.read_f32("adapter_loss").unwrap();
        assert_near(&[loss / targets.len() as f32], &expected, 1e-5, "loss");

        let (_, gradients) = gradients(&mut decoder, Trained::Adapters, &self.rows);
        assert_eq!(gradients.len(), self.goldens.names().filter(|name| name.starts_with("grad.")).count());
        for (name, gradient) in &gradients {
            // PEFT wraps modules that are saved, and no biases.
            let name =
                name.replace(".modules_to_save.bias", if self.wraps(name) { ".modules_to_save.bias" } else { ".bias" });
            let mut expected = self.goldens.read_f32(&format!("grad.{name}")).unwrap();
            if name.ends_with(".lora_embedding_A") {
                // A token's numbers lie together here.
                let rows = expected.len() / RANK;
                expected = (0..expected.len()).map(|at| expected[at % RANK * rows + at / RANK]).collect();
            }
            let largest = expected.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
            assert_near(gradient, &expected, (1e-3 * largest).max(1e-6), &name);
        }
        let schedule = Schedule { shape: COSINE, learning_rate: 1e-3, warmup_steps: 2, total_steps: 10 };
        let (losses, _) = train(&mut decoder, Trained::Adapters, &mut adamw(), &self.rows, &schedule);
        assert_relative(&losses, &doubles(&self.goldens, "train.loss"), 1e-3, "loss of step");
    }

    /// Whether the module of a bias is saved as a whole.
    fn wraps(&self, bias: &str) -> bool {
        self.goldens.shape(&format!("grad.{}.weight", bias.trim_end_matches(".bias"))).is_some()
    }

    fn check_files(&self) {
        let (decoder, config) = self.tuned();
        let folder = tempfile::tempdir().unwrap();
        let base = self.base.file_name().unwrap().to_str().unwrap();
        save_peft(&decoder, &config, base, folder.path()).unwrap();
        let open = |folder: &Path| SafetensorsFile::open(&folder.join("adapter_model.safetensors")).unwrap();
        let (ours, peft) = (open(folder.path()), open(&self.adapter));
        // PEFT saves a table itself beside its pair.
        let is_own = |name: &&str| !name.ends_with(".base_layer.weight");
        let names = |file: &SafetensorsFile| file.names().filter(is_own).map(str::to_owned).collect::<BTreeSet<_>>();
        assert_eq!(names(&ours), names(&peft));
        for name in ours.names() {
            assert_eq!(ours.shape(name), peft.shape(name), "{name}");
            assert_eq!(ours.bytes(name), peft.bytes(name), "{name}");
        }
        let json = |folder: &Path| -> Value {
            let mut value: Value =
                serde_json::from_slice(&std::fs::read(folder.join("adapter_config.json")).unwrap()).unwrap();
            value["target_modules"].as_array_mut().unwrap().sort_by_key(Value::to_string);
            // PEFT takes whatever ends so; we write whole names.
            value["modules_to_save"] = value["modules_to_save"].is_array().into();
            value
        };
        let (ours, peft) = (json(folder.path()), json(&self.adapter));
        for (key, value) in ours.as_object().unwrap() {
            assert_eq!(value, &peft[key], "{key}");
        }
        // Merged, it is the same model.
        export_merged(&self.checkpoint(), &decoder, &folder.path().join("merged"), |_, _| {}).unwrap();
        let merged = load(&folder.path().join("merged"));
        for row in &self.rows {
            assert_near(&logits(&merged, &row.ids), &logits(&decoder, &row.ids), 2e-4, "merged");
        }
    }

    /// Runs `check_export.py` on both exports of the trained adapter.
    fn check_exports(&self) {
        let (mut decoder, config) = self.tuned();
        let schedule = Schedule { shape: COSINE, learning_rate: 1e-2, warmup_steps: 2, total_steps: 6 };
        train(&mut decoder, Trained::Adapters, &mut adamw(), &self.rows, &schedule);
        check_export(&self.base, &decoder, &config, &self.rows);
    }
}

const PISSA: LoraStart = LoraStart::Pissa(Effort::Exact);

fn loftq(iterations: usize) -> LoraStart {
    LoraStart::Loftq { iterations }
}

fn nf4() -> WeightFormats {
    let format = Format::Nf4 { double_quantization: false };
    WeightFormats { linear: WeightFormat::Packed(format), tables: WeightFormat::F32, products: Products::F32 }
}

/// A fresh adapter of rank 4 on the tiny llama. Of rank and alpha alike, as LoftQ's own.
fn started(start: LoraStart, formats: WeightFormats) -> (Decoder, LoraConfig) {
    let folder = root("daemon/engine/model/fixtures/tiny-llama");
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let mut decoder = Decoder::load(&checkpoint, &Device::flex(), formats).unwrap();
    let config = LoraConfig { rank: 4, alpha: if start == PISSA { 8.0 } else { 4.0 }, ..LoraConfig::default() };
    attach_lora(&mut decoder, &config, 0).unwrap();
    start.apply(&mut decoder, &checkpoint).unwrap();
    (decoder, config)
}

/// Signs of singular vectors are free, and AdamW does not see them: the losses of all steps are PEFT's.
#[test]
fn pissa_and_loftq_start_and_train_as_in_peft() {
    let fixtures = root("daemon/engine/model/fixtures");
    let rows = tiny_rows(&fixtures.join("tiny-llama"));
    for (name, start, formats) in
        [("pissa", PISSA, WeightFormats::default()), ("loftq", loftq(1), nf4()), ("loftq_3", loftq(3), nf4())]
    {
        let goldens = SafetensorsFile::open(&fixtures.join(format!("adapters/{name}/goldens.safetensors"))).unwrap();
        let (mut decoder, _) = started(start, formats);
        let mut compared = 0;
        for projection in decoder.projections() {
            let Ok(product) = goldens.read_f32(&format!("product.{}", projection.name)) else { continue };
            let lora = projection.lora.as_ref().unwrap();
            let ours = lora.b.clone().matmul(lora.a.clone()) * lora.scale;
            assert_near(&values(ours), &product, 1e-3, &projection.name);
            let frozen = goldens.read_f32(&format!("frozen.{}", projection.name)).unwrap();
            let ours = values(projection.weight.to_tensor(&Device::flex()));
            // What is rounded to 4 bits may fall on the other side where the product differs in its last bits.
            let off = ours.iter().zip(&frozen).filter(|(ours, theirs)| (*ours - *theirs).abs() > 1e-3).count();
            assert!(off <= frozen.len() / 500, "{name}: {off} numbers of {} are others", projection.name);
            let lengths = |matrix: &[f32], rank: usize| -> Vec<f32> {
                let mut squares = vec![0.0; rank];
                matrix.iter().enumerate().for_each(|(at, value)| squares[at % rank] += value * value);
                squares
            };
            // √(S/s) on either side.
            let expected = goldens.read_f32(&format!("values.{}", projection.name)).unwrap();
            let ours: Vec<f32> = lengths(&values(lora.b.clone()), 4).iter().map(|square| square * lora.scale).collect();
            assert_near(&ours, &expected, 1e-3 * expected[0], &projection.name);
            compared += 1;
        }
        assert_eq!(compared, 3);
        let schedule = Schedule { shape: COSINE, learning_rate: 1e-3, warmup_steps: 2, total_steps: 10 };
        let (losses, _) = train(&mut decoder, Trained::Adapters, &mut adamw(), &rows, &schedule);
        assert_relative(&losses, &doubles(&goldens, "train.loss"), 1e-3, name);
    }
}

#[test]
fn a_pair_that_starts_as_a_part_of_its_layer_is_saved_as_what_it_changed() {
    let fixture = root("daemon/engine/model/fixtures/tiny-llama");
    let (checkpoint, rows) = (Checkpoint::open(&fixture).unwrap(), tiny_rows(&fixture));
    let base = logits_in(&load(&fixture), &rows[0].ids, Mode::BASE);
    for (start, formats) in [(PISSA, WeightFormats::default()), (PISSA, nf4()), (loftq(1), nf4()), (loftq(3), nf4())] {
        let what = format!("{start:?} {:?}", formats.linear);
        let (mut decoder, config) = started(start, formats);
        let schedule = Schedule { shape: COSINE, learning_rate: 1e-2, warmup_steps: 2, total_steps: 6 };
        train(&mut decoder, Trained::Adapters, &mut adamw(), &rows, &schedule);
        let tuned = logits(&decoder, &rows[0].ids);
        let folder = tempfile::tempdir().unwrap();
        save_peft(&decoder, &config, "tiny", folder.path()).unwrap();
        // Taken apart again it is the same model to the last bit, and without the adapter nearly the base.
        let mut again = Decoder::load(&checkpoint, &Device::flex(), formats).unwrap();
        apply_tuned(&mut again, &checkpoint, folder.path()).unwrap();
        assert_eq!(logits(&again, &rows[0].ids), tuned, "{what}");
        let quantised = formats != WeightFormats::default();
        let without = logits_in(&again, &rows[0].ids, Mode::BASE);
        let distance = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
        let rounded =
            logits_in(&Decoder::load(&checkpoint, &Device::flex(), formats).unwrap(), &rows[0].ids, Mode::BASE);
        assert!(distance(&without, &base) < if quantised { distance(&rounded, &base) } else { 1e-2 }, "{what}");
        // As a plain adapter it goes onto the original weights.
        let mut plain = load(&fixture);
        let loaded = load_peft(&mut plain, folder.path()).unwrap();
        assert_eq!((loaded.rank, loaded.alpha), (8, 2.0 * config.alpha));
        if !quantised {
            assert_near(&logits(&plain, &rows[0].ids), &tuned, 1e-3, &what);
        }
        for (name, decoder) in [("plain", &plain), ("apart", &again)] {
            export_merged(&checkpoint, decoder, &folder.path().join(name), |_, _| {}).unwrap();
            assert_near(
                &logits(&load(&folder.path().join(name)), &rows[0].ids),
                &logits(&plain, &rows[0].ids),
                1e-3,
                &what,
            );
        }
    }
}

/// What is held in 16 and 4 bits gives what its own numbers do, and PEFT's adapter goes onto tables that were rounded.
#[test]
fn pairs_on_packed_tables_and_on_their_decoded_numbers_are_the_same() {
    for (name, base) in [("tables", "families/qwen2"), ("tables_tied", "tiny-llama")] {
        let case = Case::open(name, base);
        let formats = WeightFormats { tables: WeightFormat::Packed(Format::Bf16), ..nf4() };
        let mut packed = Decoder::load(&case.checkpoint(), &Device::flex(), formats).unwrap();
        let mut decoded = load(&case.base);
        for (packed, mut decoded) in packed.parameters_mut().into_iter().zip(decoded.parameters_mut()) {
            assert_eq!(packed.name, decoded.name);
            decoded.update(0, |numbers| numbers.copy_from_slice(&packed.values()));
        }
        for decoder in [&mut packed, &mut decoded] {
            load_peft(decoder, &case.adapter).unwrap();
        }
        for Row { ids, .. } in &case.rows {
            assert_near(&logits(&packed, ids), &logits(&decoded, ids), 1e-4, name);
        }
        let [ours, theirs] =
            [&mut packed, &mut decoded].map(|decoder| gradients(decoder, Trained::Adapters, &case.rows).1);
        for ((tensor, ours), (_, theirs)) in ours.iter().zip(&theirs) {
            assert_near(ours, theirs, 1e-4, tensor);
        }
    }
}

#[test]
fn what_does_not_go_together_with_a_pair_on_a_table_is_refused() {
    let case = Case::open("tables", "families/qwen2");
    let mut other = load(&case.base);
    let mut parameters = other.parameters_mut();
    let table = parameters.iter_mut().find(|parameter| parameter.name == "lm_head.weight").unwrap();
    table.update(0, |numbers| numbers[7] = 1.5 * numbers[7] + 0.5);
    let problem = load_peft(&mut other, &case.adapter).unwrap_err();
    assert_eq!(problem.key.as_deref(), Some("base_model.model.lm_head.base_layer.weight"), "{problem}");

    let tied = root("daemon/engine/model/fixtures/tiny-llama");
    let refused = |config: LoraConfig| attach_lora(&mut load(&tied), &config, 1).unwrap_err().key.unwrap();
    let on = |names: &[&str]| LoraConfig {
        targets: LoraTargets::Named(names.iter().map(|&name| name.to_owned()).collect()),
        ..LoraConfig::default()
    };
    assert_eq!(refused(LoraConfig { dora: true, ..on(&["embed_tokens", "q_proj"]) }), "use_dora");
    let saved = vec!["lm_head".to_owned()];
    assert_eq!(refused(LoraConfig { modules_to_save: saved, ..on(&["embed_tokens"]) }), "modules_to_save");
    assert_eq!(refused(on(&["wte"])), "lora_target");

    // One pair for both ends, as PEFT has it with this key.
    let case = Case::open("tables_tied", "tiny-llama");
    let folder = tempfile::tempdir().unwrap();
    let file = "adapter_model.safetensors";
    std::fs::copy(case.adapter.join(file), folder.path().join(file)).unwrap();
    let config = std::fs::read_to_string(case.adapter.join("adapter_config.json")).unwrap();
    let config = config.replace("\"ensure_weight_tying\": false", "\"ensure_weight_tying\": true");
    std::fs::write(folder.path().join("adapter_config.json"), config).unwrap();
    let problem = load_peft(&mut load(&tied), folder.path()).unwrap_err();
    assert_eq!(problem.key.as_deref(), Some("ensure_weight_tying"));
}

/// A fresh pair changes nothing, whichever end it is on.
#[test]
fn fresh_pairs_on_tables_leave_the_model_as_it_is() {
    for base in ["families/qwen2", "tiny-llama"] {
        let folder = root("daemon/engine/model/fixtures").join(base);
        let rows = tiny_rows(&folder);
        let mut decoder = load(&folder);
        let before = logits(&decoder, &rows[0].ids);
        let targets = LoraTargets::Named(["embed_tokens", "lm_head"].map(str::to_owned).to_vec());
        let config = LoraConfig { targets, dropout: 0.5, ..LoraConfig::default() };
        attach_lora(&mut decoder, &config, 1).unwrap();
        assert_eq!(logits(&decoder, &rows[0].ids), before);
        train(
            &mut decoder,
            Trained::Adapters,
            &mut adamw(),
            &rows,
            &Schedule { shape: COSINE, learning_rate: 1e-2, warmup_steps: 2, total_steps: 6 },
        );
        assert_ne!(logits(&decoder, &rows[0].ids), before);
        assert_eq!(logits_in(&decoder, &rows[0].ids, Mode::BASE), before);
    }
}

/// `JUSTTRAIN_PYTHON` is an interpreter with the packages of `scripts/golden/requirements.txt`: PEFT and transformers
/// load our exports without a warning and give the logits that we do.
#[test]
#[ignore = "needs JUSTTRAIN_PYTHON"]
fn exports_have_our_logits_in_peft_and_transformers() {
    for (name, base) in ALL {
        Case::open(name, base).check_exports();
    }
    let fixture = root("daemon/engine/model/fixtures/tiny-llama");
    let rows = tiny_rows(&fixture);
    let (mut decoder, config) = started(PISSA, WeightFormats::default());
    let schedule = Schedule { shape: COSINE, learning_rate: 1e-2, warmup_steps: 2, total_steps: 6 };
    train(&mut decoder, Trained::Adapters, &mut adamw(), &rows, &schedule);
    check_export(&fixture, &decoder, &config, &rows);
    // A second pair beside the first, of which not every layer has the same rank.
    let (mut decoder, config) = Case::open("rslora", "tiny-llama").tuned();
    attach_beside(&mut decoder, &config, 5).unwrap();
    train(&mut decoder, Trained::Adapters, &mut adamw(), &rows, &schedule);
    check_export(&fixture, &decoder, &config, &rows);
}

fn load(folder: &Path) -> Decoder {
    Decoder::load(&Checkpoint::open(folder).unwrap(), &Device::flex(), WeightFormats::default()).unwrap()
}

fn logits(decoder: &Decoder, ids: &[u32]) -> Vec<f32> {
    logits_in(decoder, ids, Mode::TUNED)
}

fn logits_in(decoder: &Decoder, ids: &[u32], mode: Mode) -> Vec<f32> {
    let input = Input::packed(ids.to_vec(), &[0, ids.len()]);
    values(decoder.logits(decoder.hidden_states(&input, None, mode), mode))
}

fn assert_near(got: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let worst = got.iter().zip(expected).map(|(got, expected)| (got - expected).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance, "{what}: off by {worst}");
}
