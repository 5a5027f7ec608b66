//! A tiny random llama against transformers and PEFT (`scripts/golden/llama.py`): logits, loss, gradients, generation.

use std::path::PathBuf;
use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use justtrain_kernels::{Format, Numbers, Products, Targets, linear_cross_entropy};
use justtrain_model::adapters::{base_formats, load_peft, save_peft};
use justtrain_model::generate::generate;
use justtrain_model::{Decoder, Input, Mode, WeightFormat, WeightFormats, export, layers::Lora};
use justtrain_weights::Checkpoint;
use justtrain_weights::safetensors::SafetensorsFile;
use justtrain_worker_api::{GenerateOptions, GenerationEnd, Problem, ProblemCode};
use serde_json::json;

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

fn load(device: &Device, formats: WeightFormats) -> Decoder {
    Decoder::load(&Checkpoint::open(&fixture("")).unwrap(), device, formats).unwrap()
}

fn decoder(device: &Device) -> Decoder {
    load(device, WeightFormats::default())
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
        let logits = values(decoder.logits(decoder.hidden_states(&packed, None, mode), mode));
        assert_near(&logits, &expected.concat(), 1e-4, name);
        for (index, expected) in expected.iter().enumerate() {
            let ids = goldens.ids(index);
            let starts = [0, ids.len()];
            let hidden = decoder.hidden_states(&Input::packed(ids, &starts), None, mode);
            assert_near(&values(decoder.logits(hidden, mode)), expected, 1e-4, &format!("{name}.{index}"));
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
        linear_cross_entropy(hidden, &decoder.output_layer(Mode::TUNED), targets.clone()) / targets.len() as f32
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
        let Numbers::Dense(weight) = &projection.weight.numbers else { panic!("an f32 weight is dense") };
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
            let logits = values(decoder.logits(hidden.narrow(0, ids.len() - 1, 1), Mode::BASE));
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
    let exported = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(exported.config()["dtype"], "float32", "as the weights are");
    let merged = Decoder::load(&exported, &Device::flex(), WeightFormats::default()).unwrap();
    let (input, _) = goldens.batch();
    let logits = values(merged.logits(merged.hidden_states(&input, None, Mode::BASE), Mode::BASE));
    let expected = [goldens.floats("adapter_logits.0"), goldens.floats("adapter_logits.1")].concat();
    assert_near(&logits, &expected, 2e-4, "merged logits");
}

/// The fixture is PEFT's own: a file that is the same byte for byte loads there with the same logits, and a key of the
/// configuration that has PEFT's own value gives it nothing to warn about.
#[test]
fn a_saved_adapter_is_the_one_that_peft_wrote() {
    let mut decoder = decoder(&Device::flex());
    let config = load_peft(&mut decoder, &fixture("adapter")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    save_peft(&decoder, &config, "tiny-llama", folder.path()).unwrap();
    let read = |path: PathBuf| std::fs::read(path).unwrap();
    let file = "adapter_model.safetensors";
    assert!(read(folder.path().join(file)) == read(fixture("adapter").join(file)), "the weights differ");
    let json = |path| -> serde_json::Value { serde_json::from_slice(&read(path)).unwrap() };
    let (mut ours, peft) =
        (json(folder.path().join("adapter_config.json")), json(fixture("adapter/adapter_config.json")));
    ours["target_modules"].as_array_mut().unwrap().sort_by_key(|name| name.to_string());
    for (key, value) in ours.as_object().unwrap() {
        assert_eq!(value, &peft[key], "{key}");
    }
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

#[test]
fn adapters_of_other_kinds_are_refused_by_key() {
    let text = std::fs::read_to_string(fixture("adapter/adapter_config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&text).unwrap();
    for (key, value) in [
        ("peft_type", json!("LOHA")),
        ("lora_bias", json!(true)),
        ("layer_replication", json!([[0, 2]])),
        ("trainable_token_indices", json!([1, 2])),
        ("init_lora_weights", json!("pissa_niter_4")),
        ("fan_in_fan_out", json!(true)),
        ("target_modules", json!("(")),
        ("rank_pattern", json!({"q_proj": -1})),
        ("r", json!(0)),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config.clone();
        config[key] = value;
        std::fs::write(folder.path().join("adapter_config.json"), config.to_string()).unwrap();
        let problem = load_peft(&mut decoder(&Device::flex()), folder.path()).unwrap_err();
        assert_eq!((problem.code, problem.key.as_deref()), (ProblemCode::InvalidValue, Some(key)));
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("adapter_config.json"), text).unwrap();
    std::fs::write(folder.path().join("adapter_model.bin"), "").unwrap();
    let problem = load_peft(&mut decoder(&Device::flex()), folder.path()).unwrap_err();
    assert!(problem.message.en.contains("pickle"), "{problem}");
}

/// An adapter on some layers of a kind alone goes by their whole names, or PEFT would put fresh ones on the others.
#[test]
fn layers_that_have_no_adapter_stay_without_one() {
    let mut some = decoder(&Device::flex());
    let config = load_peft(&mut some, &fixture("adapter")).unwrap();
    for projection in some.projections_mut() {
        if projection.name.ends_with("q_proj") && !projection.name.contains(".1.") {
            projection.lora = None;
        }
    }
    let folder = tempfile::tempdir().unwrap();
    save_peft(&some, &config, "tiny", folder.path()).unwrap();
    let text = std::fs::read_to_string(folder.path().join("adapter_config.json")).unwrap();
    let targets = &serde_json::from_str::<serde_json::Value>(&text).unwrap()["target_modules"];
    assert_eq!(
        *targets,
        json!(["k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "model.layers.1.self_attn.q_proj"])
    );
    let mut again = decoder(&Device::flex());
    load_peft(&mut again, folder.path()).unwrap();
    assert_eq!(again.projections().filter(|projection| projection.lora.is_some()).count(), 19);
}

/// The tiny llama in a folder of its own, its `config.json` changed.
fn changed(change: impl FnOnce(&mut serde_json::Value)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(fixture("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    let mut config = serde_json::from_slice(&std::fs::read(fixture("config.json")).unwrap()).unwrap();
    change(&mut config);
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    folder
}

fn refused(folder: &std::path::Path) -> Problem {
    Decoder::load(&Checkpoint::open(folder).unwrap(), &Device::flex(), WeightFormats::default()).unwrap_err()
}

#[test]
fn what_is_called_llama_and_is_another_network_is_refused_by_file_and_key() {
    for (key, value) in [
        ("model_type", json!("mamba")),
        ("hidden_act", json!("gelu")),
        ("attention_bias", json!("some")),
        ("sliding_window", json!(4096)),
        ("quantization_config", json!({"quant_method": "gptq"})),
        ("partial_rotary_factor", json!(0.5)),
        ("num_key_value_heads", json!(4)),
        ("hidden_size", json!("many")),
    ] {
        let problem = refused(changed(|config| config[key] = value.clone()).path());
        let quoted = problem.found.unwrap().replace('"', "");
        assert_eq!((problem.key.as_deref(), quoted), (Some(key), value.to_string().replace('"', "")));
        assert!(problem.file.unwrap().ends_with("config.json"), "{key}");
    }
    for (group, kind) in [("rope_parameters", "axial"), ("rope_scaling", "mrope")] {
        let problem = refused(changed(|config| config[group] = json!({"rope_type": kind})).path());
        assert_eq!(problem.key.unwrap(), format!("{group}.rope_type"));
    }
}

#[test]
fn tensors_that_no_part_takes_are_refused_by_name() {
    // A network of fewer layers than the file has.
    let problem = refused(changed(|config| config["num_hidden_layers"] = json!(2)).path());
    assert_eq!(problem.code, ProblemCode::UnknownArchitecture);
    assert!(problem.key.unwrap().starts_with("model.layers.2."));
    assert_eq!(problem.found.as_deref(), Some("9 such tensors"));
    // And one of more.
    let problem = refused(changed(|config| config["num_hidden_layers"] = json!(4)).path());
    assert_eq!(problem.code, ProblemCode::ShapeMismatch);
    assert!(problem.message.en.contains("model.layers.3."), "{problem}");
}

const FORMATS: [Format; 4] =
    [Format::Bf16, Format::Int8, Format::Nf4 { double_quantization: false }, Format::Nf4 { double_quantization: true }];

/// Linear layers in one of the forms, tables in 16 bits.
fn packed(format: Format) -> WeightFormats {
    WeightFormats {
        linear: WeightFormat::Packed(format),
        tables: WeightFormat::Packed(Format::Bf16),
        products: Products::F32,
    }
}

/// The fixture is stored in bfloat16, so that this form loses nothing: even through the tied output layer the results
/// are transformers'.
#[test]
fn sixteen_bits_give_transformers_results() {
    let goldens = Goldens::open();
    let mut decoder = load(&Device::flex().autodiff(), packed(Format::Bf16));
    load_peft(&mut decoder, &fixture("adapter")).unwrap();
    let (input, targets) = goldens.batch();
    let hidden = decoder.hidden_states(&input, None, Mode::TUNED);
    let loss = linear_cross_entropy(hidden, &decoder.output_layer(Mode::TUNED), targets.clone()) / targets.len() as f32;
    assert_near(&values(loss), &goldens.floats("adapter_loss"), 1e-5, "adapter loss");
}

/// Quantised weights are other weights: what must be equal is the decoder that holds their decoded numbers.
#[test]
fn a_quantised_decoder_is_the_decoder_of_its_decoded_weights() {
    let goldens = Goldens::open();
    let device = Device::flex().autodiff();
    for format in FORMATS {
        let mut quantised = load(&device, packed(format));
        load_peft(&mut quantised, &fixture("adapter")).unwrap();
        for projection in quantised.projections_mut() {
            let lora = projection.lora.as_mut().unwrap();
            *lora = Lora { a: lora.a.clone().require_grad(), b: lora.b.clone().require_grad(), ..lora.clone() };
        }
        let mut decoded = quantised.clone();
        for projection in decoded.projections_mut() {
            projection.weight = projection.weight.to_tensor(&device).into();
        }
        let (input, targets) = goldens.batch();
        let run = |decoder: &Decoder| {
            let hidden = decoder.hidden_states(&input, None, Mode::TUNED);
            let loss = linear_cross_entropy(hidden, &decoder.output_layer(Mode::TUNED), targets.clone());
            let grads = loss.clone().backward();
            let loras = decoder.projections().map(|projection| projection.lora.as_ref().unwrap());
            let grads = loras.flat_map(|lora| [&lora.a, &lora.b]).map(|tensor| values(tensor.grad(&grads).unwrap()));
            (values(loss), grads.collect::<Vec<_>>())
        };
        let (ours, theirs) = (run(&quantised), run(&decoded));
        assert_near(&ours.0, &theirs.0, 1e-4, &format!("{format:?}"));
        for (ours, theirs) in ours.1.iter().zip(&theirs.1) {
            let largest = theirs.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
            assert_near(ours, theirs, 1e-4 * largest, &format!("{format:?}"));
        }
    }
}

#[test]
fn a_quantised_decoder_generates_with_its_cache_what_it_does_without() {
    let goldens = Goldens::open();
    let options = GenerateOptions { max_new_tokens: 8, ..GenerateOptions::default() };
    for format in FORMATS {
        let decoder = load(&Device::flex(), packed(format));
        let prompt = goldens.ids(0);
        let answer = &generate(&decoder, std::slice::from_ref(&prompt), &options, &[], Mode::BASE, |_, _| true)[0];
        let mut ids = prompt.clone();
        for _ in 0..8 {
            let starts = [0, ids.len()];
            let hidden = decoder.hidden_states(&Input::packed(ids.clone(), &starts), None, Mode::BASE);
            let logits = values(decoder.logits(hidden.narrow(0, ids.len() - 1, 1), Mode::BASE));
            ids.push((0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32);
        }
        assert_eq!(answer.ids, ids[prompt.len()..], "{format:?}");
    }
}

#[test]
fn an_adapter_remembers_the_form_of_its_base_model() {
    let folder = tempfile::tempdir().unwrap();
    for format in FORMATS {
        let mut decoder = load(&Device::flex(), packed(format));
        let config = load_peft(&mut decoder, &fixture("adapter")).unwrap();
        save_peft(&decoder, &config, "tiny", folder.path()).unwrap();
        let WeightFormats { linear, tables, .. } = packed(format);
        assert_eq!(base_formats(folder.path()).unwrap(), WeightFormats::new(linear, tables));
    }
    assert_eq!(base_formats(&fixture("adapter")).unwrap(), WeightFormats::default());
}

/// The blocks of a GGUF, rows of q and k put in order, are the numbers that the file decodes to.
#[test]
fn blocks_of_a_gguf_are_kept_as_they_are() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny-q8_0.gguf");
    let checkpoint = Checkpoint::open(&path).unwrap();
    let gguf = WeightFormats { linear: WeightFormat::Gguf, tables: WeightFormat::Gguf, products: Products::F32 };
    let kept = Decoder::load(&checkpoint, &Device::flex(), gguf).unwrap();
    let decoded = Decoder::load(&checkpoint, &Device::flex(), WeightFormats::default()).unwrap();
    for (kept, decoded) in kept.projections().zip(decoded.projections()) {
        assert!(matches!(kept.weight.numbers, Numbers::Packed(_)), "{}", kept.name);
        let device = Device::flex();
        assert_eq!(values(kept.weight.to_tensor(&device)), values(decoded.weight.to_tensor(&device)), "{}", kept.name);
    }
    let run = |decoder: &Decoder| {
        let hidden = decoder.hidden_states(&Input::packed(vec![3, 1, 4, 1, 5], &[0, 5]), None, Mode::BASE);
        values(decoder.logits(hidden, Mode::BASE))
    };
    assert_near(&run(&kept), &run(&decoded), 1e-4, "logits");
    let folder = Checkpoint::open(&fixture("")).unwrap();
    let problem = Decoder::load(&folder, &Device::flex(), gguf).unwrap_err();
    assert_eq!(problem.key.as_deref(), Some("quantization_type"));
}
