//! Gradients made block by block, with and without checkpointing, beside those of one graph over the whole network; and
//! the memory that each way takes, counted by the allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use burn::tensor::Device;
use justtrain_kernels::{Targets, linear_cross_entropy};
use justtrain_model::adapters::{LoraConfig, LoraTargets, attach_lora, load_peft};
use justtrain_model::parameters::{Parameters, Trained};
use justtrain_model::{Decoder, Input, Mode, WeightFormats};
use justtrain_train::backward::Backward;
use justtrain_train::objectives::Sft;
use justtrain_train::regularizers::Regularizers;
use justtrain_train::step::MicroBatch;
use justtrain_weights::Checkpoint;
use justtrain_weights::safetensors::{Dtype, Entry, SafetensorsFile, write_folder};

/// Counts live bytes and their peak.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
/// Tests of this file run one at a time: they share the counters.
static ALONE: Mutex<()> = Mutex::new(());

// SAFETY: every call goes to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn fixture() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/fixtures/tiny-llama")
}

fn decoder() -> Decoder {
    Decoder::load(&Checkpoint::open(&fixture()).unwrap(), &Device::flex(), WeightFormats::default()).unwrap()
}

/// `sequences` of 60 tokens each, all but the first of them targets.
fn batch(sequences: usize) -> MicroBatch {
    let ids: Vec<u32> = (0..sequences as u32 * 60).map(|i| (i * 7 + i / 11) % 160).collect();
    let starts: Vec<usize> = (0..=sequences).map(|i| i * 60).collect();
    let rows: Vec<usize> = (0..ids.len()).filter(|row| row % 60 != 59).collect();
    let tokens = rows.iter().map(|row| ids[row + 1]).collect();
    MicroBatch {
        task: 0,
        input: Input::packed(ids, &starts),
        targets: Arc::new(Targets { rows, tokens, weights: None }),
        answers: Vec::new(),
        dropout_seed: None,
    }
}

type Gradients = BTreeMap<String, Vec<f32>>;

fn block_by_block(decoder: &mut Decoder, trained: Trained<'_>, checkpointing: bool, mode: Mode) -> (f64, Gradients) {
    let batch = batch(2);
    let mut gradients = Gradients::new();
    let divisor = batch.targets.len() as f32;
    let (objective, regularizers) = (&Sft::default(), &Regularizers::default());
    let backward = Backward { objective, trained, checkpointing, regularizers, mode, divisor, loss_scale: 1.0 };
    let (loss, _) = backward.run(decoder, &batch, &mut |parameter, gradient| {
        assert!(gradients.insert(parameter.name, gradient).is_none(), "each gradient leaves once");
    });
    (loss, gradients)
}

fn in_one_graph(decoder: &Decoder, trained: Trained<'_>, mode: Mode) -> (f64, Gradients) {
    let MicroBatch { input, targets, .. } = batch(2);
    let mut tracked = decoder.tracked(trained, &decoder.device());
    let hidden = tracked.hidden_states(&input, None, mode);
    let loss = linear_cross_entropy(hidden, &tracked.output_layer(Mode::TUNED), targets.clone());
    let value = loss.clone().inner().into_scalar::<f32>();
    let mut gradients = (loss / targets.len() as f32).backward();
    (f64::from(value), tracked.take_gradients(trained, &mut gradients).into_iter().collect())
}

#[test]
fn gradients_are_those_of_one_graph_to_the_last_bit() {
    let _alone = ALONE.lock().unwrap();
    let mut decoder = decoder();
    load_peft(&mut decoder, &fixture().join("adapter")).unwrap();
    for projection in decoder.projections_mut() {
        projection.lora.as_mut().unwrap().dropout = 0.3;
    }
    let mode = Mode { adapter: true, dropout_seed: Some(5) };
    for (trained, count) in [(Trained::Adapters, 3 * 14), (Trained::Weights, 3 * 9 + 2)] {
        let (loss, expected) = in_one_graph(&decoder, trained, mode);
        assert_eq!(expected.len(), count);
        let kept = block_by_block(&mut decoder, trained, false, mode);
        assert_eq!(kept, block_by_block(&mut decoder, trained, true, mode));
        assert_eq!(kept.0, loss);
        assert!(kept.1.keys().eq(expected.keys()));
        for (name, gradient) in &kept.1 {
            if name == decoder.embeddings_name() {
                // The same numbers summed in another order.
                let largest = expected[name].iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
                let worst =
                    gradient.iter().zip(&expected[name]).map(|(got, want)| (got - want).abs()).fold(0.0, f32::max);
                assert!(worst <= 1e-6 * largest, "{name} is off by {worst} of {largest}");
            } else {
                assert_eq!(gradient, &expected[name], "{name}");
            }
        }
    }
}

/// Layers below the lowest adapter take no part in the backward.
#[test]
fn frozen_layers_below_the_lowest_adapter_change_nothing() {
    let _alone = ALONE.lock().unwrap();
    let mut decoder = decoder();
    let targets = LoraTargets::All;
    attach_lora(&mut decoder, &LoraConfig { rank: 4, targets, ..LoraConfig::default() }, 1).unwrap();
    for projection in decoder.projections_mut().filter(|projection| !projection.name.contains("layers.2")) {
        projection.lora = None;
    }
    let (_, expected) = in_one_graph(&decoder, Trained::Adapters, Mode::TUNED);
    for checkpointing in [false, true] {
        let (_, gradients) = block_by_block(&mut decoder, Trained::Adapters, checkpointing, Mode::TUNED);
        assert_eq!(gradients, expected);
    }
}

/// The weights in `file` without the blocks above the first `layers`.
fn first_blocks(file: &Path, layers: usize, folder: &Path) {
    let file = SafetensorsFile::open(file).unwrap();
    let layer = |name: &str| name.strip_prefix("model.layers.")?.split('.').next()?.parse().ok();
    let kept = file.names().filter(|name| layer(name).is_none_or(|layer: usize| layer < layers));
    let entries: Vec<Entry> = kept
        .map(|name| Entry { name: name.to_owned(), shape: file.shape(name).unwrap().to_vec(), dtype: Dtype::F32 })
        .collect();
    write_folder(folder, &entries, u64::MAX, |entry| file.read_f32(&entry.name)).unwrap();
}

/// The peak of a backward through the first `layers` blocks of the tiny model, in bytes. Without a kind of parameters the
/// weights of the last block are trained.
fn peak_by_layers(layers: usize, trained: Option<Trained<'_>>, checkpointing: bool) -> usize {
    let folder = tempfile::tempdir().unwrap();
    let config = fs::read_to_string(fixture().join("config.json")).unwrap();
    let config = config.replace("\"num_hidden_layers\": 3", &format!("\"num_hidden_layers\": {layers}"));
    fs::write(folder.path().join("config.json"), config).unwrap();
    first_blocks(&fixture().join("model.safetensors"), layers, folder.path());
    let mut decoder =
        Decoder::load(&Checkpoint::open(folder.path()).unwrap(), &Device::flex(), WeightFormats::default()).unwrap();
    assert_eq!(decoder.blocks().len(), layers);
    let targets = LoraTargets::All;
    attach_lora(&mut decoder, &LoraConfig { rank: 4, targets, ..LoraConfig::default() }, 1).unwrap();
    let batch = batch(64);
    let of_last = decoder.blocks()[layers - 1].trained_sizes(Trained::Weights);
    let of_last = of_last.into_iter().map(|(name, _)| name).collect();
    let trained = trained.unwrap_or(Trained::Named(&of_last));
    let (objective, regularizers) = (&Sft::default(), &Regularizers::default());
    let backward =
        Backward { objective, trained, checkpointing, regularizers, mode: Mode::TUNED, divisor: 1.0, loss_scale: 1.0 };
    // On one thread: a second one may come to its first work, and its buffers, in the run that is measured.
    let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    one_thread.install(|| {
        // The first run fills what stays: thread-local buffers and tables.
        backward.run(&mut decoder, &batch, &mut |_, _| {});
        let before = LIVE.load(Ordering::Relaxed);
        PEAK.store(before, Ordering::Relaxed);
        backward.run(&mut decoder, &batch, &mut |_, _| {});
        PEAK.load(Ordering::Relaxed) - before
    })
}

#[test]
fn with_checkpointing_a_further_block_adds_its_input_alone() {
    let _alone = ALONE.lock().unwrap();
    let input = 64 * 60 * 48 * 4;
    for trained in [Trained::Adapters, Trained::Weights] {
        let added = |checkpointing| {
            // From two on: the lowest block is a special case, as nothing may be trained below it.
            let [two, three] = [2, 3].map(|layers| peak_by_layers(layers, Some(trained), checkpointing));
            three - two
        };
        let (with, without) = (added(true), added(false));
        // A quarter of an input is room for what threads happen to hold at the time.
        assert!(with.abs_diff(input) < input / 4, "{trained:?}: {with} bytes a block, its input has {input}");
        assert!(without > 5 * input, "{trained:?}: {without} bytes a block");
    }
}

/// The graph ends at the lowest block that is trained: a frozen one below keeps nothing.
#[test]
fn a_frozen_block_below_adds_nothing() {
    let _alone = ALONE.lock().unwrap();
    let input = 64 * 60 * 48 * 4;
    for checkpointing in [false, true] {
        let [two, three] = [2, 3].map(|layers| peak_by_layers(layers, None, checkpointing));
        assert!(three.abs_diff(two) < input / 4, "{two} and {three} bytes, an input has {input}");
    }
}
