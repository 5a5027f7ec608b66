//! What runs on a GPU, beside the processor. Any Vulkan device will do, so that a machine without a GPU can run it with
//! Mesa's lavapipe:
//!
//!     cargo test --release -p justtrain-train --features wgpu --test gpu
#![cfg(feature = "wgpu")]

use std::path::Path;
use std::sync::Arc;

use burn::tensor::{Device, DeviceKind};
use justtrain_kernels::parity::differences;
use justtrain_kernels::{Format, Products, Targets};
use justtrain_model::adapters::load_peft;
use justtrain_model::generate::generate;
use justtrain_model::parameters::Trained;
use justtrain_model::{Decoder, Input, Mode, WeightFormat, WeightFormats};
use justtrain_train::objectives::Sft;
use justtrain_train::optim::{AdamW, Groups};
use justtrain_train::regularizers::Regularizers;
use justtrain_train::step::{MicroBatch, Step};
use justtrain_weights::Checkpoint;
use justtrain_worker_api::GenerateOptions;

fn gpu() -> Device {
    Device::wgpu(DeviceKind::DefaultDevice)
}

#[test]
fn every_op_is_the_processors() {
    for difference in differences(&gpu()) {
        assert!(difference.error < 1e-4, "{difference:?}");
    }
}

fn decoder(device: &Device, linear: Option<Format>) -> Decoder {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/fixtures/tiny-llama");
    let formats = linear.map_or_else(WeightFormats::default, |format| WeightFormats {
        products: Products::F32,
        ..WeightFormats::new(WeightFormat::Packed(format), WeightFormat::Packed(Format::Bf16))
    });
    let mut decoder = Decoder::load(&Checkpoint::open(&folder).unwrap(), device, formats).unwrap();
    load_peft(&mut decoder, &folder.join("adapter")).unwrap();
    for projection in decoder.projections_mut() {
        projection.lora.as_mut().unwrap().dropout = 0.1;
    }
    decoder
}

/// Losses and gradient norms of four steps of two batches each.
fn train(mut decoder: Decoder, trained: Trained<'_>, checkpointing: bool) -> Vec<[f64; 2]> {
    let mut optimizer = AdamW::new(0.9, 0.999, 1e-8, 0.01);
    let batch = |first: u32, dropout_seed| {
        let ids: Vec<u32> = (first..first + 60).map(|i| i * 31 % 90).collect();
        let rows: Vec<usize> = (5..59).step_by(2).collect();
        let tokens = rows.iter().map(|row| ids[row + 1]).collect();
        let targets = Arc::new(Targets { rows, tokens, weights: None });
        MicroBatch { task: 0, input: Input::packed(ids, &[0, 7, 60]), targets, answers: Vec::new(), dropout_seed }
    };
    let step = |number| {
        let step = Step {
            objective: &Sft::default(),
            trained,
            checkpointing,
            max_grad_norm: 1.0,
            loss_scale: None,
            number,
            learning_rate: 3e-3,
            groups: &Groups::default(),
            regularizers: &Regularizers::default(),
            seed: 1,
        };
        let batches = vec![batch(0, Some(number)), batch(11, Some(100 + number))];
        let measured = step.run(&mut decoder, &mut optimizer, batches);
        [measured.loss, measured.grad_norm]
    };
    (1..=4).map(step).collect()
}

fn assert_same_training(linear: Option<Format>, trained: Trained<'_>) {
    let expected = train(decoder(&Device::flex(), linear), trained, false);
    assert!(expected[3][0] < expected[0][0] - 0.01, "four steps lower the loss: {expected:?}");
    for checkpointing in [false, true] {
        let got = train(decoder(&gpu(), linear), trained, checkpointing);
        for (got, expected) in got.iter().flatten().zip(expected.iter().flatten()) {
            assert!((got / expected - 1.0).abs() < 1e-3, "{linear:?} {trained:?}: {got}, expected {expected}");
        }
    }
}

#[test]
fn steps_of_lora_have_the_processors_losses_and_norms() {
    assert_same_training(None, Trained::Adapters);
}

#[test]
fn steps_of_qlora_have_the_processors_losses_and_norms() {
    for format in [Format::Bf16, Format::Int8, Format::Nf4 { double_quantization: true }] {
        assert_same_training(Some(format), Trained::Adapters);
    }
}

#[test]
fn steps_of_full_fine_tuning_have_the_processors_losses_and_norms() {
    assert_same_training(None, Trained::Weights);
}

#[test]
fn answers_are_the_processors() {
    let options = GenerateOptions { max_new_tokens: 12, ..GenerateOptions::default() };
    let prompts = [vec![5, 6, 7, 8], vec![40]];
    for linear in [None, Some(Format::Nf4 { double_quantization: false })] {
        let [ours, theirs] = [gpu(), Device::flex()]
            .map(|device| generate(&decoder(&device, linear), &prompts, &options, &[], Mode::TUNED, |_, _| true));
        assert_eq!(ours, theirs);
    }
}
