//! What a decoder looks like, whatever its family.

use justtrain_kernels::Heads;

/// Sizes and constants of a decoder-only transformer with RMSNorm, rotary positions, grouped-query attention and SwiGLU.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub layers: usize,
    pub heads: Heads,
    pub rms_norm_eps: f32,
    /// Radians a position, one for each pair of a head: `head_dim / 2` values.
    pub inverse_frequencies: Vec<f32>,
    pub vocab_size: usize,
    /// The output layer is the embedding table.
    pub tied_embeddings: bool,
    /// The longest sequence that the model was made for, in tokens.
    pub max_positions: usize,
}

impl DecoderConfig {
    /// Inverse frequencies without scaling: `theta^(−2i / head_dim)`.
    pub fn default_frequencies(head_dim: usize, theta: f64) -> Vec<f32> {
        (0..head_dim / 2).map(|i| (1.0 / theta.powf(2.0 * i as f64 / head_dim as f64)) as f32).collect()
    }
}
