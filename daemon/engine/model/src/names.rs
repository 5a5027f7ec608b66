//! Names of a family's weights in its checkpoints. What has no name is not there.

use std::borrow::Cow;

/// A decoder's tensors, without `.weight` and `.bias`.
#[derive(Debug, PartialEq, Eq)]
pub struct WeightNames {
    pub embeddings: &'static str,
    /// The table of learned positions.
    pub positions: Option<&'static str>,
    /// The table that tells the two texts of a pair apart.
    pub token_types: Option<&'static str>,
    /// Of the sum of all tables.
    pub embedding_norm: Option<&'static str>,
    /// What the names of a block start with, before its number.
    pub blocks: &'static str,
    pub block: BlockNames,
    /// Where the blocks above are an encoder's.
    pub seq2seq: Option<Seq2SeqNames>,
    /// After the last block.
    pub norm: Option<&'static str>,
    /// What makes logits of hidden states; an encoder has none.
    pub output: Option<&'static str>,
    pub classifier: ClassifierNames,
    /// What the names of tensors begin with that are for other tasks, and may be in a file.
    pub unused: &'static [&'static str],
    /// Parts of modules' names and what files have in their place.
    pub in_files: &'static [(&'static str, &'static str)],
    /// Matrices of linear layers are stored `[inputs, outputs]` (transformers' `Conv1D`).
    pub transposed: bool,
}

impl WeightNames {
    /// Of the output layer's matrix, as it stands in a file.
    pub fn output_weight(&self) -> Option<String> {
        Some(format!("{}.weight", self.output?))
    }

    /// A tensor's name in a model's files.
    pub(crate) fn in_file<'n>(&self, name: &'n str) -> Cow<'n, str> {
        let parts = self.in_files.iter().filter(|(part, _)| name.contains(part));
        parts.fold(Cow::Borrowed(name), |name, (part, in_file)| name.replace(part, in_file).into())
    }

    /// The modules of the embedding table and of the output layer.
    pub fn tables(&self) -> impl Iterator<Item = &'static str> {
        std::iter::once(self.embeddings).chain(self.output)
    }
}

/// A decoder that attends to what an encoder has made.
#[derive(Debug, PartialEq, Eq)]
pub struct Seq2SeqNames {
    /// After the encoder's last block.
    pub encoder_norm: &'static str,
    /// What the names of the decoder's blocks start with.
    pub blocks: &'static str,
    pub block: BlockNames,
    /// Of its attention to the encoder's tokens: the norm before it, queries, keys and values, and the output.
    pub cross_norm: &'static str,
    pub cross_qkv: [&'static str; 3],
    pub cross_output: &'static str,
    /// The tables of the encoder and of the decoder, where positions are told by distance.
    pub position_biases: [&'static str; 2],
}

/// What judges whole sequences, where a model is a classifier or a reward model.
#[derive(Debug, PartialEq, Eq)]
pub struct ClassifierNames {
    /// A linear layer and tanh before the output.
    pub pooler: Option<&'static str>,
    pub output: &'static str,
    pub bias: bool,
    /// Which token's hidden state stands for the sequence.
    pub reads: Reads,
    /// What the name of transformers' class ends with.
    pub class: &'static str,
    /// PEFT's name of the task, where it has one.
    pub peft_task: Option<&'static str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    FirstToken,
    LastToken,
}

/// Of every decoder: transformers' `GenericForSequenceClassification`.
pub(crate) const SCORE: ClassifierNames = ClassifierNames {
    pooler: None,
    output: "score",
    bias: false,
    reads: Reads::LastToken,
    class: "ForSequenceClassification",
    peft_task: Some("SEQ_CLS"),
};

/// A block's tensors, each after the block's own name.
#[derive(Debug, PartialEq, Eq)]
pub struct BlockNames {
    pub attention_norm: &'static str,
    pub qkv: JointNames,
    /// Norms of each head's queries and keys.
    pub qk_norms: Option<[&'static str; 2]>,
    pub attention_output: &'static str,
    /// Between attention and residual.
    pub attention_output_norm: Option<&'static str>,
    pub mlp_norm: &'static str,
    /// Gate and up, or up alone.
    pub up: JointNames,
    pub down: &'static str,
    /// Where some blocks have experts.
    pub experts: Option<ExpertNames>,
    /// Between feed-forward network and residual.
    pub mlp_output_norm: Option<&'static str>,
}

/// A mixture of experts. The parts of an expert are called as those of a feed-forward network, by their last names.
#[derive(Debug, PartialEq, Eq)]
pub struct ExpertNames {
    pub router: &'static str,
    /// Before an expert's number.
    pub experts: &'static str,
}

/// Linear layers that have the same input.
#[derive(Debug, PartialEq, Eq)]
pub enum JointNames {
    /// Each in a matrix of its own.
    Apart(&'static [&'static str]),
    /// All in one, one below the other.
    Fused(&'static str),
}

/// Llama's names, which most families share.
pub(crate) const LLAMA: WeightNames = WeightNames {
    embeddings: "model.embed_tokens",
    positions: None,
    token_types: None,
    embedding_norm: None,
    blocks: "model.layers",
    block: LLAMA_BLOCK,
    seq2seq: None,
    norm: Some("model.norm"),
    output: Some("lm_head"),
    classifier: SCORE,
    unused: &[],
    in_files: &[],
    transposed: false,
};

pub(crate) const LLAMA_BLOCK: BlockNames = BlockNames {
    attention_norm: "input_layernorm",
    qkv: JointNames::Apart(&["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    qk_norms: None,
    attention_output: "self_attn.o_proj",
    attention_output_norm: None,
    mlp_norm: "post_attention_layernorm",
    up: JointNames::Apart(&["mlp.gate_proj", "mlp.up_proj"]),
    down: "mlp.down_proj",
    experts: None,
    mlp_output_norm: None,
};
