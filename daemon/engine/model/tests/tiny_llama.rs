//! A tiny random llama against transformers and PEFT (`scripts/golden/llama.py`): logits, loss, gradients, generation.

use std::path::PathBuf;
use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use justtrain_kernels::{Targets, Weight, linear_cross_entropy};
use justtrain_model::adapters::load_peft;
use justtrain_model::generate::generate;
use justtrain_model::{Decoder, Input, Mode, export, layers::Lora};
use justtrain_weights::Checkpoint;
use justtrain_weights::safetensors::SafetensorsFile;
use justtrain_worker_api::{GenerateOptions, GenerationEnd};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny-llama").join(name)
}

struct Goldens(SafetensorsFile);

impl Goldens {
    fn open() -> Self {
        Self(SafetensorsFile::open(&fixture("goldens.safetensors")).unwrap())
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.0.read_f32(name).unwrap()
    }

    fn ints(&self, name: &str) -> Vec<i64> {
        let (numbers, _) = self.0.bytes(name).unwrap().as_chunks::<8>();
        numbers.iter().map(|&bytes| i64::from_le_bytes(bytes)).collect()
    }

    fn ids(&self, index: usize) -> Vec<u32> {
        self.ints(&format!("ids.{index}")).into_iter().map(|id| id as u32).collect()
    }

    /// Both sequences packed, with their targets.
    fn batch(&self) -> (Input, Arc<Targets>) {
        let (mut ids, mut starts, mut targets) = (Vec::new(), vec![0], Targets::default());
        for index in 0..2 {
            let labels = self.ints(&format!("labels.{index}"));
            for (at, &label) in labels.iter().enumerate().skip(1).filter(|&(_, &label)| label >= 0) {
                targets.rows.push(ids.len() + at - 1);
                targets.tokens.push(label as u32);
            }
            ids.extend(self.ids(index));
            starts.push(ids.len());
        }
        (Input::packed(ids, &starts), Arc::new(targets))
    }
}

fn decoder(device: &Device) -> Decoder {
    Decoder::load(&Checkpoint::open(&fixture("")).unwrap(), device).unwrap()
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().unwrap()
}

fn assert_near(got: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let worst = got.iter().zip(expected).map(|(got, expected)| (got - expected).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance, "{what}: off by {worst}");
}

#[test]
fn logits_equal_transformers_packed_or_not() {
    let (goldens, mut decoder) = (Goldens::open(), decoder(&Device::flex()));
    load_peft(&mut decoder, &fixture("adapter")).unwrap();
    for (mode, name) in [(Mode::BASE, "logits"), (Mode::TUNED, "adapter_logits")] {
        let expected = [0, 1].map(|index| goldens.floats(&format!("{name}.{index}")));
        let (packed, _) = goldens.batch();
        let logits = values(decoder.logits(decoder.hidden_states(&packed, None, mode)));
        assert_near(&logits, &expected.concat(), 1e-4, name);
        for (index, expected) in expected.iter().enumerate() {
            let ids = goldens.ids(index);
            let starts = [0, ids.len()];
            let hidden = decoder.hidden_states(&Input::packed(ids, &starts), None, mode);
            assert_near(&values(decoder.logits(hidden)), expected, 1e-4, &format!("{name}.{index}"));
        }
    }
}

#[test]
fn loss_and_every_adapter_gradient_equal_peft() {
    let (goldens, mut decoder) = (Goldens::open(), decoder(&Device::flex().autodiff()));
    load_peft(&mut decoder, &fixture("adapter")).unwrap();
    for projection in decoder.projections_mut() {
        let lora = projection.lora.as_mut().unwrap();
        *lora = Lora { a: lora.a.clone().require_grad(), b: lora.b.clone().require_grad(), ..lora.clone() };
    }
    let (input, targets) = goldens.batch();
    let loss = |mode| {
        let hidden = decoder.hidden_states(&input, None, mode);
        linear_cross_entropy(hidden, decoder.output_weight(), targets.clone()) / targets.len() as f32
    };
    assert_near(&values(loss(Mode::BASE)), &goldens.floats("loss"), 1e-5, "loss");
    let tuned = loss(Mode::TUNED);
    assert_near(&values(tuned.clone()), &goldens.floats("adapter_loss"), 1e-5, "adapter loss");
    let grads = tuned.backward();
    for projection in decoder.projections() {
        let lora = projection.lora.as_ref().unwrap();
        for (factor, tensor) in [("A", &lora.a), ("B", &lora.b)] {
            let name = format!("grad.base_model.model.{}.lora_{factor}.weight", projection.name);
            let expected = goldens.floats(&name);
            let largest = expected.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
            assert_near(&values(tensor.grad(&grads).unwrap()), &expected, 1e-3 * largest, &name);
        }
        let Weight::Dense(weight) = &projection.weight else { panic!("loaded as it is") };
        assert!(weight.grad(&grads).is_none(), "frozen weights have no gradient");
    }
}

/// The cache must change nothing: each new token is what a pass over the whole sequence gives, for prompts of
/// different lengths that end at different times.
#[test]
fn generation_with_a_cache_equals_generation_without() {
    let (goldens, decoder) = (Goldens::open(), decoder(&Device::flex()));
    let prompts: Vec<Vec<u32>> = vec![goldens.ids(0), goldens.ids(1), goldens.ids(1)[..2].to_vec()];
    let options = GenerateOptions { max_new_tokens: 12, ..GenerateOptions::default() };
    let without_cache = |prompt: &[u32], stop: Option<u32>| {
        let mut ids = prompt.to_vec();
        while ids.len() < prompt.len() + 12 {
            let starts = [0, ids.len()];
            let hidden = decoder.hidden_states(&Input::packed(ids.clone(), &starts), None, Mode::BASE);
            let logits = values(decoder.logits(hidden.narrow(0, ids.len() - 1, 1)));
            let next = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32;
            if Some(next) == stop {
                break;
            }
            ids.push(next);
        }
        ids[prompt.len()..].to_vec()
    };
    let free: Vec<Vec<u32>> = prompts.iter().map(|prompt| without_cache(prompt, None)).collect();
    // A token in the middle of the first answer becomes the stop token.
    let stop = free[0][5];
    let answers = generate(&decoder, &prompts, &options, &[stop], Mode::BASE, |_, _| true);
    for (answer, prompt) in answers.iter().zip(&prompts) {
        let expected = without_cache(prompt, Some(stop));
        assert_eq!(answer.ids, expected);
        let end = if expected.len() < 12 { GenerationEnd::Stop } else { GenerationEnd::Length };
        assert_eq!(answer.end, end);
    }
    assert!(answers[0].ids.len() <= 5);
}

#[test]
fn an_answer_stops_when_told_to_and_at_the_end_of_the_context() {
    let (goldens, decoder) = (Goldens::open(), decoder(&Device::flex()));
    let options = GenerateOptions { max_new_tokens: 500, ..GenerateOptions::default() };
    let mut seen = 0;
    let answers = generate(&decoder, &[goldens.ids(0)], &options, &[], Mode::BASE, |_, _| {
        seen += 1;
        seen < 3
    });
    assert_eq!((answers[0].ids.len(), answers[0].end), (3, GenerationEnd::Cancelled));
    let answers = generate(&decoder, &[goldens.ids(0)], &options, &[], Mode::BASE, |_, _| true);
    assert_eq!((answers[0].ids.len(), answers[0].end), (64 - 13, GenerationEnd::Length));
}

#[test]
fn a_merged_export_gives_the_adapters_logits() {
    let (goldens, mut decoder) = (Goldens::open(), decoder(&Device::flex()));
    load_peft(&mut decoder, &fixture("adapter")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(&fixture("")).unwrap();
    export::export_merged(&checkpoint, &decoder, folder.path(), |_, _| {}).unwrap();
    let merged = Decoder::load(&Checkpoint::open(folder.path()).unwrap(), &Device::flex()).unwrap();
    let (input, _) = goldens.batch();
    let logits = values(merged.logits(merged.hidden_states(&input, None, Mode::BASE)));
    let expected = [goldens.floats("adapter_logits.0"), goldens.floats("adapter_logits.1")].concat();
    assert_near(&logits, &expected, 2e-4, "merged logits");
}

#[test]
fn an_adapter_of_another_model_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut other = decoder(&Device::flex());
    load_peft(&mut other, &fixture("adapter")).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(fixture("adapter").join(file), folder.path().join(file)).unwrap();
    }
    let config = folder.path().join("adapter_config.json");
    let text = std::fs::read_to_string(&config).unwrap().replace("\"r\": 4", "\"r\": 8");
    std::fs::write(&config, text).unwrap();
    let problem = load_peft(&mut other, folder.path()).unwrap_err();
    assert!(problem.key.unwrap().contains("lora_A"));
    assert_eq!(problem.found.as_deref(), Some("[4, 48]"));
}
