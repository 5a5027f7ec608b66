//! A model of any family with random weights.

use std::collections::BTreeMap;
use std::path::Path;

use justtrain_weights::safetensors::{Dtype, Entry, write};

/// Writes these tensors into a model's folder; norms are ones.
pub(crate) fn write_weights(model: &Path, tensors: impl IntoIterator<Item = (String, Vec<usize>)>) {
    let entries = tensors.into_iter().map(|(name, shape)| Entry { name, shape, dtype: Dtype::F32 });
    let mut state = 1u64;
    let mut number = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state >> 40) as f32 / (1 << 24) as f32 - 0.5) * 0.4
    };
    write(&model.join("model.safetensors"), &entries.collect::<Vec<_>>(), &BTreeMap::new(), |entry| {
        let ones = ["LayerNorm.weight", "layer_norm.weight"].iter().any(|norm| entry.name.ends_with(norm));
        let count = entry.shape.iter().product();
        Ok((0..count).map(|_| if ones { 1.0 } else { number() }).collect())
    })
    .unwrap();
}
