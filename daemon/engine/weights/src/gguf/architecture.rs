//! A GGUF file seen as a Hugging Face checkpoint: one file an architecture, listed in [`find`].

use justtrain_worker_api::{Problem, ProblemCode};
use serde_json::Value;

use super::gemma::{Gemma2, Gemma3};
use super::gpt2::Gpt2;
use super::phi3::Phi3;
use super::qwen::{Qwen2, Qwen3, Qwen3Moe};
use super::{Gguf, llama::Llama};

/// What differs from one `general.architecture` to the next. To add one: a file beside `llama.rs` and a line in `ALL`.
pub(crate) trait Architecture: Sync {
    /// The value of `general.architecture`.
    fn name(&self) -> &'static str;

    /// The keys of Hugging Face's `config.json`. The caller names the file where this fails.
    fn config(&self, gguf: &Gguf) -> Result<Value, Problem>;

    /// None for a tensor that [`config`](Self::config) has read. One that Hugging Face has no weight for keeps its own
    /// name, so that whoever builds the network sees it. [`EACH`] in a name stands for the numbers of the weights that lie in
    /// this tensor one after the other, along its first dimension.
    fn hugging_face_name(&self, gguf_name: &str) -> Option<String>;

    fn row_order(&self, _hugging_face_name: &str, _config: &Value) -> RowOrder {
        RowOrder::AsStored
    }

    /// A matrix that Hugging Face holds with rows and columns exchanged.
    fn is_transposed(&self, _hugging_face_name: &str) -> bool {
        false
    }

    /// Weights of norms are stored as `1 + w`.
    fn norms_hold_one_more(&self) -> bool {
        false
    }
}

/// See [`Architecture::hugging_face_name`].
pub(crate) const EACH: &str = "*";

/// How a stored matrix's rows must be moved to be in Hugging Face's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RowOrder {
    AsStored,
    /// Row `2i + h` of a head is row `i` of its half `h`.
    InterleavedHalves {
        heads: usize,
    },
}

const ALL: &[&dyn Architecture] = &[&Llama, &Qwen2, &Qwen3, &Qwen3Moe, &Gemma2, &Gemma3, &Phi3, &Gpt2];

pub(crate) fn find(gguf: &Gguf) -> Result<&'static dyn Architecture, Problem> {
    let name = gguf.metadata().require_str("general.architecture").map_err(|p| p.file(gguf.path().display()))?;
    ALL.iter().copied().find(|architecture| architecture.name() == name).ok_or_else(|| {
        let known: Vec<_> = ALL.iter().map(|architecture| architecture.name()).collect();
        Problem::error(
            ProblemCode::UnknownArchitecture,
            "this model's architecture is not supported",
            "暂不支持该模型的架构",
        )
        .file(gguf.path().display())
        .key("general.architecture")
        .found(name)
        .expected(known.join(", "))
        .fix("choose a model of a supported architecture", "请选择受支持架构的模型")
    })
}

/// The name of a llama-like decoder's tensor; `own` are an architecture's own parts of a block, which go first. One that
/// has no name there keeps its own.
pub(super) fn hugging_face_name(gguf_name: &str, own: &[(&str, &str)]) -> String {
    match gguf_name {
        "token_embd.weight" => "model.embed_tokens.weight".to_owned(),
        "output_norm.weight" => "model.norm.weight".to_owned(),
        "output.weight" => "lm_head.weight".to_owned(),
        name => block_part(name, own).unwrap_or_else(|| name.to_owned()),
    }
}

fn block_part(gguf_name: &str, own: &[(&str, &str)]) -> Option<String> {
    const COMMON: &[(&str, &str)] = &[
        ("attn_norm", "input_layernorm"),
        ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.o_proj"),
        ("ffn_norm", "post_attention_layernorm"),
        ("ffn_gate", "mlp.gate_proj"),
        ("ffn_up", "mlp.up_proj"),
        ("ffn_down", "mlp.down_proj"),
    ];
    let (layer, part) = gguf_name.strip_prefix("blk.")?.split_once('.')?;
    let (module, kind) = part.rsplit_once('.')?;
    let (_, module) = own.iter().chain(COMMON).find(|(gguf, _)| *gguf == module)?;
    layer.parse::<u32>().ok()?;
    Some(format!("model.layers.{layer}.{module}.{kind}"))
}

impl RowOrder {
    /// What the number of rows must be a multiple of: two halves a head.
    pub(crate) fn divisor(self) -> usize {
        match self {
            Self::AsStored => 1,
            Self::InterleavedHalves { heads } => heads.saturating_mul(2),
        }
    }

    pub(crate) fn fits(self, rows: usize) -> bool {
        let divisor = self.divisor();
        divisor > 0 && rows.is_multiple_of(divisor)
    }

    /// Moves `rows` rows, for which it [`fits`](Self::fits), into Hugging Face's order. Rows move whole, so that it does
    /// not matter whether they are numbers or encoded.
    pub(crate) fn restore<T: Copy>(self, matrix: &mut [T], rows: usize) {
        let Self::InterleavedHalves { heads } = self else { return };
        if matrix.is_empty() {
            return;
        }
        let (head_len, cols) = (matrix.len() / heads, matrix.len() / rows);
        let half = rows / heads / 2;
        for head in matrix.chunks_mut(head_len) {
            let stored = head.to_vec();
            for (at, row) in stored.chunks(cols).enumerate() {
                let destination = (at % 2) * half + at / 2;
                head[destination * cols..][..cols].copy_from_slice(row);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaved_rows_go_back_to_their_halves() {
        // Two heads of four rows; llama.cpp stores 0 2 1 3 of each.
        let mut rows: Vec<f32> = [0, 2, 1, 3, 10, 12, 11, 13].iter().flat_map(|&r| [r as f32; 3]).collect();
        RowOrder::InterleavedHalves { heads: 2 }.restore(&mut rows, 8);
        let expected: Vec<f32> = [0, 1, 2, 3, 10, 11, 12, 13].iter().flat_map(|&r| [r as f32; 3]).collect();
        assert_eq!(rows, expected);
    }

    #[test]
    fn rows_that_are_no_whole_heads_do_not_fit() {
        let fits = |heads, rows| RowOrder::InterleavedHalves { heads }.fits(rows);
        assert!(fits(2, 8));
        assert!(!fits(0, 8) && !fits(3, 8) && !fits(8, 8) && !fits(usize::MAX, 8));
    }

    #[test]
    fn names_are_mapped_and_strangers_keep_theirs() {
        let name = |gguf_name| hugging_face_name(gguf_name, &[("ffn_up", "mlp.gate_up_proj")]);
        assert_eq!(name("blk.7.ffn_down.weight"), "model.layers.7.mlp.down_proj.weight");
        assert_eq!(name("blk.0.attn_q.bias"), "model.layers.0.self_attn.q_proj.bias");
        assert_eq!(name("blk.3.ffn_up.weight"), "model.layers.3.mlp.gate_up_proj.weight");
        assert_eq!(name("rope_freqs.weight"), "rope_freqs.weight");
        assert_eq!(name("blk.x.attn_q.weight"), "blk.x.attn_q.weight");
    }
}
