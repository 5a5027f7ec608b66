//! Classifiers beside transformers and PEFT, on tiny random models (`scripts/golden/classifiers.py`). A family joins with a line
//! below.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use justtrain_kernels::{Format, Products, Targets};
use justtrain_model::adapters::{load_peft, save_peft};
use justtrain_model::export::{export_merged, load_model, save_model};
use justtrain_model::parameters::{Parameters, Trained};
use justtrain_model::{Decoder, Input, Mode, WeightFormat, WeightFormats, tuned_labels};
use justtrain_train::backward::Backward;
use justtrain_train::objectives::Classification;
use justtrain_train::optim::Groups;
use justtrain_train::regularizers::Regularizers;
use justtrain_train::step::{MicroBatch, Step};
use justtrain_weights::Checkpoint;
use justtrain_weights::safetensors::SafetensorsFile;
use serde_json::Value;

use super::{assert_near, largest, layout, load, schedule};
use crate::common::{adamw, assert_relative, doubles, ints, root, values};

macro_rules! classifiers {
    ($($family:ident),* $(,)?) => {
        $(mod $family {
            use super::Fixture;

            const NAME: &str = stringify!($family);

            #[test]
            fn logits_equal_transformers_packed_or_not() {
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
        })*
    };
}

classifiers! {
    bert,
    llama,
    vit,
}

const LABELS: [&str; 3] = ["bad", "good", "so-so"];
const OBJECTIVE: Classification = Classification { smoothing: 0.0 };

/// A sequence, and of each token which of a pair's texts it is in; or an image.
struct Row {
    ids: Vec<u32>,
    types: Vec<u32>,
    pixels: Option<Vec<f32>>,
    class: u32,
}

struct Fixture {
    name: String,
    folder: PathBuf,
    goldens: SafetensorsFile,
    rows: Vec<Row>,
}

impl Fixture {
    fn open(name: &str) -> Self {
        let folder = root("daemon/engine/model/fixtures/classifiers").join(name);
        let goldens = SafetensorsFile::open(&folder.join("goldens.safetensors")).unwrap();
        let ints = |name: &str| -> Vec<u32> { ints(&goldens, name).into_iter().map(|int| int as u32).collect() };
        let of_row = |name: String| if goldens.shape(&name).is_some() { ints(&name) } else { Vec::new() };
        let classes = ints("classes").into_iter().enumerate();
        let row = |(index, class)| Row {
            ids: of_row(format!("ids.{index}")),
            types: of_row(format!("types.{index}")),
            pixels: goldens.read_f32(&format!("pixels.{index}")).ok(),
            class,
        };
        let rows = classes.map(row).collect();
        Self { name: name.to_owned(), folder, goldens, rows }
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

    fn batch(&self, decoder: &Decoder) -> MicroBatch {
        batch(&self.rows.iter().collect::<Vec<_>>(), decoder)
    }

    fn logits(&self, decoder: &Decoder, mode: Mode) -> Vec<f32> {
        values(decoder.classes(&self.batch(decoder).input, mode))
    }

    fn check_forward(&self) {
        let decoder = self.tuned(WeightFormats::default());
        assert_near(&self.logits(&decoder, Mode::TUNED), &self.floats("adapter_logits"), 1e-4, "tuned");
        // The head is the adapter's, as there is one only.
        let decoder = self.decoder();
        assert_eq!(decoder.classifier().unwrap().labels(), LABELS);
        let expected = self.floats("logits");
        assert_near(&self.logits(&decoder, Mode::BASE), &expected, 1e-4, "packed");
        for (row, expected) in self.rows.iter().zip(expected.chunks(LABELS.len())) {
            let alone = values(decoder.classes(&batch(&[row], &decoder).input, Mode::BASE));
            assert_near(&alone, expected, 1e-4, "alone");
        }
    }

    fn check_training(&self) {
        let mut decoder = self.decoder();
        let named: Vec<(String, Vec<usize>)> =
            decoder.trained_mut(Trained::Weights).iter().map(|weight| (weight.name.clone(), weight.shape())).collect();
        let base: Vec<_> = named.iter().filter(|(name, _)| !is_of_head(name)).cloned().collect();
        assert_eq!(decoder.config().tensors(), base, "what is told from the configuration alone");
        let of_base = |name: &str| self.goldens.shape(&format!("grad.{name}")).is_some();
        let gradients = self.gradients(&mut decoder, Trained::Weights, "loss");
        assert_eq!(gradients.len(), named.len());
        for (name, gradient) in &gradients {
            assert!(of_base(name), "{name}");
            self.assert_gradient(name, gradient);
        }
        let mut decoder = self.tuned(WeightFormats::default());
        let gradients = self.gradients(&mut decoder, Trained::Adapters, "adapter_loss");
        let of_adapter = self.goldens.names().filter(|name| name.starts_with("grad.base_model")).count();
        assert_eq!(gradients.len(), of_adapter);
        for (name, gradient) in &gradients {
            let name = match name.rsplit_once('.') {
                Some((module, part)) if is_of_head(name) => format!("base_model.model.{module}.modules_to_save.{part}"),
                _ => format!("base_model.model.{name}.weight"),
            };
            self.assert_gradient(&name, gradient);
        }
        let losses = self.train(&mut decoder, 10);
        assert_relative(&losses, &doubles(&self.goldens, "train.loss"), 1e-4, "loss of step");
    }

    /// The same with checkpointing and without.
    fn gradients(&self, decoder: &mut Decoder, trained: Trained<'_>, loss_name: &str) -> Vec<(String, Vec<f32>)> {
        let mut run = |checkpointing| {
            let (batch, regularizers, objective) = (self.batch(decoder), &Regularizers::default(), &OBJECTIVE);
            let divisor = batch.targets.len() as f32;
            let backward = Backward {
                objective,
                trained,
                checkpointing,
                regularizers,
                mode: Mode::TUNED,
                divisor,
                loss_scale: 1.0,
            };
            let mut gradients = Vec::new();
            let (loss, _) = backward.run(decoder, &batch, &mut |parameter, gradient| {
                gradients.push((parameter.name.clone(), gradient));
            });
            (loss / f64::from(divisor), gradients)
        };
        let (loss, gradients) = run(false);
        assert!(run(true) == (loss, gradients.clone()), "with checkpointing");
        assert_relative(&[loss], &[f64::from(self.floats(loss_name)[0])], 1e-5, loss_name);
        gradients
    }

    fn assert_gradient(&self, name: &str, gradient: &[f32]) {
        let expected = self.floats(&format!("grad.{name}"));
        assert_near(gradient, &expected, (1e-3 * largest(&expected)).max(1e-6), name);
    }

    fn train(&self, decoder: &mut Decoder, steps: u64) -> Vec<f64> {
        let (mut optimizer, schedule) = (adamw(), schedule(steps));
        let step = |index: u64| {
            let step = Step {
                objective: &OBJECTIVE,
                trained: Trained::Adapters,
                checkpointing: false,
                max_grad_norm: 1.0,
                loss_scale: None,
                number: index + 1,
                learning_rate: schedule.learning_rate(index),
                groups: &Groups::default(),
                regularizers: &Regularizers::default(),
                seed: 0,
            };
            let batch = self.batch(decoder);
            step.run(decoder, &mut optimizer, vec![batch]).loss
        };
        (0..steps).map(step).collect()
    }

    /// A model and a merged one load again, in the layout that transformers wrote; the adapter is PEFT's own file.
    fn check_files(&self) {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let decoder = self.decoder();
        let checkpoint = Checkpoint::open(&self.folder).unwrap();
        save_model(&decoder, checkpoint.config(), &path("model")).unwrap();
        self.assert_same_layout(&path("model"));
        let expected = self.logits(&decoder, Mode::BASE);
        assert_eq!(self.logits(&load(&path("model"), WeightFormats::default()), Mode::BASE), expected, "a saved model");
        let mut loaded = self.decoder();
        for mut parameter in loaded.trained_mut(Trained::Weights) {
            parameter.update(0, |numbers| numbers.fill(0.0));
        }
        load_model(&mut loaded, &path("model")).unwrap();
        assert_eq!(self.logits(&loaded, Mode::BASE), expected, "weights put back");
        assert_eq!(tuned_labels(&path("model")).unwrap().unwrap(), LABELS);

        let tuned = self.tuned(WeightFormats::default());
        export_merged(&checkpoint, &tuned, &path("merged"), |_, _| {}).unwrap();
        self.assert_same_layout(&path("merged"));
        let merged = load(&path("merged"), WeightFormats::default());
        assert_near(&self.logits(&merged, Mode::BASE), &self.floats("adapter_logits"), 2e-4, "merged");

        let adapter = self.folder.join("adapter");
        let config = load_peft(&mut self.decoder(), &adapter).unwrap();
        save_peft(&tuned, &config, &self.name, &path("adapter")).unwrap();
        assert_eq!(tuned_labels(&path("adapter")).unwrap().unwrap(), LABELS);
        let read = |folder: &Path, file: &str| std::fs::read(folder.join(file)).unwrap();
        let file = "adapter_model.safetensors";
        assert!(read(&path("adapter"), file) == read(&adapter, file), "the adapter's weights differ");
        let [ours, theirs]: [Value; 2] = [path("adapter"), adapter]
            .map(|folder| serde_json::from_slice(&read(&folder, "adapter_config.json")).unwrap());
        for key in ["task_type", "r", "lora_alpha", "bias", "fan_in_fan_out"] {
            assert_eq!(ours[key], theirs[key], "{key}");
        }
    }

    fn assert_same_layout(&self, folder: &Path) {
        assert_eq!(layout(folder), layout(&self.folder));
        let [ours, theirs]: [Value; 2] = [folder, &self.folder]
            .map(|folder| serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap());
        for key in ["architectures", "id2label", "label2id"] {
            assert_eq!(ours[key], theirs[key], "{key}");
        }
    }

    /// What must be equal is the model that holds the decoded numbers.
    fn check_quantised(&self) {
        for format in [Format::Int8, Format::Nf4 { double_quantization: true }] {
            let formats = WeightFormats::new(WeightFormat::Packed(format), WeightFormat::Packed(Format::Bf16));
            let mut quantised = self.tuned(WeightFormats { products: Products::F32, ..formats });
            let mut decoded = quantised.clone();
            let device = decoded.device();
            for projection in decoded.projections_mut() {
                projection.weight = projection.weight.to_tensor(&device).into();
            }
            assert_near(
                &self.logits(&quantised, Mode::TUNED),
                &self.logits(&decoded, Mode::TUNED),
                1e-4,
                &format!("{format:?}"),
            );
            let losses = self.train(&mut quantised, 6);
            assert!(losses[5] < losses[0], "{format:?}: {losses:?}");
        }
    }
}

fn is_of_head(name: &str) -> bool {
    name.starts_with("classifier.") || name.starts_with("score.")
}

fn batch(rows: &[&Row], decoder: &Decoder) -> MicroBatch {
    let (mut ids, mut types, mut starts, mut targets) = (Vec::new(), Vec::new(), vec![0], Targets::default());
    let patches = decoder.config().patches;
    for row in rows {
        targets.rows.push(ids.len());
        targets.tokens.push(row.class);
        match patches {
            None => ids.extend(&row.ids),
            Some(patches) => ids.extend(vec![0; patches.tokens()]),
        }
        types.extend(&row.types);
        starts.push(ids.len());
    }
    let images: Vec<Vec<f32>> = rows.iter().filter_map(|row| row.pixels.clone()).collect();
    let input = Input::packed(ids, &starts).with_types(types);
    let input = match patches {
        None => input,
        Some(patches) => input.with_images(&images, patches, &decoder.device()),
    };
    MicroBatch { task: 0, input, targets: Arc::new(targets), answers: Vec::new(), dropout_seed: None }
}
