//! Preference tuning beside TRL (`scripts/golden/preference.py`): 20 steps of each method on the tiny llama, from the same
//! adapter.

mod goldens;

use std::sync::Arc;

use burn::tensor::Device;
use goldens::{doubles, root};
use justtrain_data::{Batch, Sample};
use justtrain_kernels::Targets;
use justtrain_model::adapters::load_peft;
use justtrain_model::parameters::Trained;
use justtrain_model::{Decoder, Input, WeightFormats};
use justtrain_train::objectives::{
    Background, Dpo, Hinge, Ipo, Judge, Kto, KtoPair, Orpo, Preference, RewardModel, SimPo,
};
use justtrain_train::optim::{AdamW, Groups};
use justtrain_train::regularizers::Regularizers;
use justtrain_train::step::{Measured, MicroBatch, Step};
use justtrain_weights::Checkpoint;
use justtrain_weights::safetensors::SafetensorsFile;

const BETA: f64 = 0.3;

struct Goldens(SafetensorsFile);

impl Goldens {
    fn open() -> Self {
        Self(SafetensorsFile::open(&root("daemon/engine/train/fixtures/preference.safetensors")).unwrap())
    }

    fn ids(&self, name: &str) -> Vec<u32> {
        let (numbers, _) = self.0.bytes(name).unwrap().as_chunks::<8>();
        numbers.iter().map(|&bytes| i64::from_le_bytes(bytes) as u32).collect()
    }

    fn sample(&self, row: usize, answer: &str, rejected: bool) -> Sample {
        let (prompt, answer) = (self.ids(&format!("prompt.{row}")), self.ids(&format!("{answer}.{row}")));
        let target = (0..prompt.len() + answer.len()).map(|at| at >= prompt.len()).collect();
        Sample { ids: [prompt, answer].concat(), target, row: row as u64 + 1, rejected, ..Sample::default() }
    }

    fn pairs(&self) -> Vec<Sample> {
        (0..6).flat_map(|row| [self.sample(row, "chosen", false), self.sample(row, "rejected", true)]).collect()
    }

    fn rated(&self) -> Vec<Sample> {
        (0..6).map(|row| self.sample(row, "chosen", self.ids(&format!("good.{row}")) == [0])).collect()
    }
}

fn decoder() -> Decoder {
    let folder = root("daemon/engine/model/fixtures/tiny-llama");
    let mut decoder =
        Decoder::load(&Checkpoint::open(&folder).unwrap(), &Device::flex(), WeightFormats::default()).unwrap();
    load_peft(&mut decoder, &folder.join("adapter")).unwrap();
    decoder
}

/// 20 steps over all samples, in batches of so many.
fn train(judge: impl Judge + 'static, chosen_loss: f64, samples: &[Sample], batch_size: usize) -> Vec<Measured> {
    let (mut decoder, mut optimizer) = (decoder(), AdamW::new(0.9, 0.999, 1e-8, 0.0));
    if judge.has_head() {
        decoder.set_score(Goldens::open().0.read_f32("score").unwrap());
    }
    let objective = Preference { judge: Box::new(judge), chosen_loss };
    let all: Vec<usize> = (0..samples.len()).collect();
    let background = Background::new(Some(&objective), &decoder, samples, &all, 64);
    let step = |number: u64| {
        let mut answers = background.answers(&objective, &decoder, samples, &all).into_iter();
        let batches = samples.chunks(batch_size).map(|samples| {
            let batch = Batch::new(samples);
            MicroBatch {
                task: 0,
                input: Input::packed(batch.ids, &batch.starts),
                targets: Arc::new(Targets { rows: batch.target_rows, tokens: batch.target_ids, weights: None }),
                answers: answers.by_ref().take(samples.len()).collect(),
                dropout_seed: None,
            }
        });
        let step = Step {
            objective: &objective,
            trained: Trained::Adapters,
            checkpointing: false,
            max_grad_norm: 1.0,
            loss_scale: None,
            number,
            learning_rate: 2e-4,
            groups: &Groups::default(),
            regularizers: &Regularizers::default(),
            seed: 0,
        };
        step.run(&mut decoder, &mut optimizer, batches.collect())
    };
    (1..=20).map(step).collect()
}

fn assert_losses(measured: &[Measured], goldens: &Goldens, name: &str) {
    let expected = doubles(&goldens.0, &format!("loss.{name}"));
    assert_eq!((measured.len(), expected.len()), (20, 20));
    for (step, (got, want)) in measured.iter().zip(expected).enumerate() {
        let got = got.loss;
        // A hinge can reach 0.
        assert!((got - want).abs() <= 1e-3 * want, "{name}, step {step}: {got}, expected {want}");
    }
}

#[test]
fn twenty_steps_of_each_method_on_pairs_equal_trl() {
    let goldens = Goldens::open();
    let pairs = goldens.pairs();
    let dpo = Dpo { beta: BETA, label_smoothing: 0.0 };
    assert_losses(&train(Dpo { label_smoothing: 0.1, ..dpo }, 0.0, &pairs, 12), &goldens, "smoothed");
    assert_losses(&train(dpo, 0.5, &pairs, 12), &goldens, "ftx");
    assert_losses(&train(Hinge { beta: BETA }, 0.0, &pairs, 12), &goldens, "hinge");
    assert_losses(&train(Ipo { beta: BETA }, 0.0, &pairs, 12), &goldens, "ipo");
    assert_losses(&train(Orpo { beta: BETA }, 0.0, &pairs, 12), &goldens, "orpo");
    assert_losses(&train(SimPo { beta: BETA, gamma: 0.5 }, 0.0, &pairs, 12), &goldens, "simpo");
    assert_losses(&train(KtoPair { beta: BETA }, 0.0, &pairs, 12), &goldens, "kto_pair");
}

#[test]
fn losses_and_rewards_of_dpo_equal_trl() {
    let goldens = Goldens::open();
    let measured = train(Dpo { beta: BETA, label_smoothing: 0.0 }, 0.0, &goldens.pairs(), 12);
    assert_losses(&measured, &goldens, "sigmoid");
    let rewards = |name: &str| doubles(&goldens.0, &format!("rewards.{name}"));
    let expected = rewards("chosen").into_iter().zip(rewards("rejected")).zip(rewards("accuracies"));
    for (got, ((chosen, rejected), accuracy)) in measured.iter().zip(expected) {
        let got = got.rewards.means().unwrap();
        for (got, want) in [(got.chosen.unwrap(), chosen), (got.rejected.unwrap(), rejected), (got.accuracy, accuracy)]
        {
            assert!((got - want).abs() <= 1e-3 * want.abs().max(0.1), "{got}, expected {want}");
        }
    }
}

#[test]
fn twenty_steps_of_kto_equal_trl() {
    let goldens = Goldens::open();
    let kto = Kto { beta: BETA, chosen_weight: 1.2, rejected_weight: 0.7 };
    assert_losses(&train(kto, 0.0, &goldens.rated(), 6), &goldens, "kto");
}

#[test]
fn twenty_steps_of_a_reward_model_equal_trl() {
    let goldens = Goldens::open();
    assert_losses(&train(RewardModel, 0.0, &goldens.pairs(), 12), &goldens, "reward_model");
}

/// What an answer is compared with is that of the whole step, so that accumulation changes nothing.
#[test]
fn accumulation_changes_no_loss() {
    let goldens = Goldens::open();
    let close = |whole: Vec<Measured>, parts: Vec<Measured>| {
        for (whole, part) in whole.iter().zip(&parts) {
            assert!((whole.loss - part.loss).abs() < 1e-4 * whole.loss, "{whole:?} {part:?}");
        }
    };
    let pairs = goldens.pairs();
    let dpo = Dpo { beta: BETA, label_smoothing: 0.0 };
    close(train(dpo, 0.1, &pairs, 12), train(dpo, 0.1, &pairs, 4));
    close(train(RewardModel, 0.0, &pairs, 12), train(RewardModel, 0.0, &pairs, 4));
    let pair = KtoPair { beta: BETA };
    close(train(pair, 0.0, &pairs, 12), train(pair, 0.0, &pairs, 2));
    let kto = Kto { beta: BETA, chosen_weight: 1.2, rejected_weight: 0.7 };
    close(train(kto, 0.0, &goldens.rated(), 6), train(kto, 0.0, &goldens.rated(), 1));
}
