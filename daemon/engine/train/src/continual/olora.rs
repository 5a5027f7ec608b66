//! O-LoRA (Wang et al. 2023, arXiv 2310.14152): each stage trains a pair of its own beside those of earlier stages, and the loss
//! has `λ₁·Σ |Aᵢ·Aₜᵀ| + λ₂·(‖Aₜ‖ + ‖Bₜ‖)` added for every layer. The first holds the rows of the new A orthogonal to those of the earlier
//! ones; the paper has its squares in the sum, its code the absolute values, as here (`uie_trainer_lora.py` in cmnfriend/O-LoRA). The
//! second is the code's. Both count once a step, however many batches it has.

use std::collections::BTreeMap;
use std::sync::Arc;

use justtrain_model::Decoder;
use justtrain_model::parameters::Parameter;
use rayon::prelude::*;

use crate::recipe::Recipe;

#[derive(Debug, Clone)]
pub struct OLora {
    pub lambda: f32,
    pub l2: f32,
    /// A of all earlier pairs, `[ranks, inputs]`, by the name of the new A beside them.
    earlier: Arc<BTreeMap<String, Vec<f32>>>,
}

impl OLora {
    /// None where the decoder has no earlier pairs.
    pub(crate) fn new(recipe: &Recipe, decoder: &Decoder) -> Option<Self> {
        let lambda = recipe.olora_lambda?;
        let earlier: BTreeMap<String, Vec<f32>> = decoder
            .projections()
            .filter_map(|layer| {
                let a = layer.lora.as_ref()?.earlier.as_ref()?.a.clone();
                Some((format!("{}.lora_A", layer.name), a.into_data().try_into_vec().expect("adapters are f32")))
            })
            .collect();
        let (lambda, l2) = (lambda as f32, recipe.olora_l2 as f32);
        (!earlier.is_empty()).then(|| Self { lambda, l2, earlier: Arc::new(earlier) })
    }

    /// Adds the gradient of both terms: `λ₁·sign(Aₜ·Aᵢᵀ)·Aᵢ`, and `λ₂` times the direction of the matrix.
    pub(crate) fn pull(&self, parameter: &Parameter<'_>, gradient: &mut [f32]) {
        let earlier = self.earlier.get(&parameter.name).filter(|_| self.lambda > 0.0);
        let kept_small = self.l2 > 0.0 && [".lora_A", ".lora_B"].iter().any(|end| parameter.name.ends_with(end));
        if earlier.is_none() && !kept_small {
            return;
        }
        let numbers = parameter.values();
        if let Some(earlier) = earlier {
            let inputs = parameter.shape()[1];
            gradient.par_chunks_mut(inputs).zip(numbers.par_chunks(inputs)).for_each(|(gradient, row)| {
                for earlier in earlier.chunks(inputs) {
                    let product: f64 = row.iter().zip(earlier).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                    // `signum` of 0 is 1.
                    let by = if product == 0.0 { 0.0 } else { self.lambda * product.signum() as f32 };
                    gradient.iter_mut().zip(earlier).for_each(|(gradient, earlier)| *gradient += by * earlier);
                }
            });
        }
        let norm = numbers.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
        if kept_small && norm > 0.0 {
            let by = (f64::from(self.l2) / norm) as f32;
            gradient.iter_mut().zip(&numbers).for_each(|(gradient, value)| *gradient += by * value);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use burn::tensor::{Tensor, TensorData};
    use justtrain_model::adapters::{attach_beside, load_peft, save_peft};
    use justtrain_model::parameters::{Parameters, Trained};
    use justtrain_model::{Input, Mode};
    use justtrain_weights::safetensors::SafetensorsFile;

    use super::*;
    use crate::objectives::Sft;
    use crate::optim::{AdamW, Groups};
    use crate::regularizers::Regularizers;
    use crate::testing::{batch, decoder, doubles, fixture, ints, off_by, step};

    fn values(decoder: &mut Decoder, trained: Trained<'_>) -> BTreeMap<String, Vec<f32>> {
        decoder.trained_mut(trained).into_iter().map(|it| (it.name.clone(), it.values())).collect()
    }

    /// Beside the method's own loss on PEFT's layers (`scripts/golden/continual.py`), and what is saved beside one adapter that
    /// PEFT has made of both.
    #[test]
    fn six_steps_beside_an_earlier_pair_equal_peft() {
        let (goldens, mut decoder, mut adamw) =
            (fixture("continual.safetensors"), decoder(), AdamW::new(0.9, 0.999, 1e-8, 0.0));
        let adapter = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/fixtures/tiny-llama/adapter");
        let config = load_peft(&mut decoder, &adapter).unwrap();
        attach_beside(&mut decoder, &config, 3).unwrap();
        let device = decoder.device();
        for layer in decoder.projections_mut() {
            let lora = layer.lora.as_mut().unwrap();
            let start = goldens.read_f32(&format!("olora.start.{}", layer.name)).unwrap();
            lora.a = Tensor::from_data(TensorData::new(start, lora.a.dims()), &device);
        }
        let stages = "finetuning_type: lora\nolora_lambda: 0.02\nolora_l2: 0.05\nstages:\n- {name: a}\n- {name: b}";
        let text = format!("model_name_or_path: m\ndataset: d.json\n{stages}\n");
        let source = justtrain_worker_api::RecipeSource { text, file: "r.yaml".into(), base_dir: "/".into() };
        let recipe = Recipe::parse(&source).unwrap();
        let regularizers = &Regularizers::new(&recipe, &decoder, Trained::Adapters);
        let is_earlier = |name: &&String| name.contains("lora_earlier");
        let all = |decoder: &mut Decoder| -> BTreeMap<String, Vec<f32>> {
            decoder.parameters_mut().into_iter().map(|it| (it.name.clone(), it.values())).collect()
        };
        let before = all(&mut decoder);
        let (objective, groups) = (&Sft::default(), &Groups::default());
        let expected = doubles(&goldens, "olora.loss").into_iter().zip(doubles(&goldens, "olora.grad_norm"));
        for (number, (_, norm)) in (1..).zip(expected) {
            let step = step(objective, Trained::Adapters, number, groups, regularizers);
            let measured = step.run(&mut decoder, &mut adamw, vec![batch()]);
            assert!((measured.grad_norm / norm - 1.0).abs() < 1e-3, "{number}: {measured:?}, expected {norm}");
        }
        let after = all(&mut decoder);
        assert!(before.keys().filter(is_earlier).count() == 2 * decoder.projections().count());
        for (name, before) in &before {
            let same = after[name].iter().zip(before).all(|(after, before)| after.to_bits() == before.to_bits());
            assert_eq!(same, !Trained::Adapters.includes(name), "{name}");
        }
        let mut compared = 0;
        for (name, got) in values(&mut decoder, Trained::Adapters) {
            let Ok(expected) = goldens.read_f32(&format!("olora.final.{name}")) else { continue };
            let worst = off_by(&got, &expected);
            assert!(worst < 5e-4, "{name} is off by {worst}");
            compared += 1;
        }
        assert_eq!(compared, 14);

        let folder = tempfile::tempdir().unwrap();
        save_peft(&decoder, &config, "tiny", folder.path()).unwrap();
        let mut joined = crate::testing::decoder();
        let loaded = load_peft(&mut joined, folder.path()).unwrap();
        assert_eq!((loaded.rank, loaded.alpha), (2 * config.rank, 2.0 * config.alpha));
        let model = SafetensorsFile::open(&adapter.join("../goldens.safetensors")).unwrap();
        for index in 0..2 {
            let ids: Vec<u32> = ints(&model, &format!("ids.{index}")).into_iter().map(|id| id as u32).collect();
            let logits = |decoder: &Decoder| -> Vec<f32> {
                let input = Input::packed(ids.clone(), &[0, ids.len()]);
                let logits = decoder.logits(decoder.hidden_states(&input, None, Mode::TUNED), Mode::TUNED);
                logits.into_data().try_into_vec().unwrap()
            };
            let got = logits(&joined);
            assert_eq!(got, logits(&decoder));
            let expected = goldens.read_f32(&format!("olora.logits.{index}")).unwrap();
            let worst = off_by(&got, &expected);
            assert!(worst < 5e-3, "logits are off by {worst}");
        }
        // What was saved goes on where it was, too.
        let trained = values(&mut decoder, Trained::Adapters);
        load_peft(&mut decoder, folder.path()).unwrap();
        assert_eq!(values(&mut decoder, Trained::Adapters), trained);
        assert!(all(&mut decoder) == after);
    }
}
