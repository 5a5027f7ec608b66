//! Text to token ids and back, whatever files a model brings: a GGUF's own vocabulary, a folder's `tokenizer.json`,
//! SentencePiece's `tokenizer.model`, T5's `spiece.model`, GPT-2's `vocab.json` and `merges.txt`, or BERT's `vocab.txt`. All become one
//! `tokenizers` pipeline.

mod byte_level;
mod folder;
mod gguf;
mod save;
mod sentencepiece;
mod sentencepiece_model;
mod splitting;
mod stream;
mod t5;
mod wordpiece;

use std::path::Path;

use justtrain_weights::Checkpoint;
use justtrain_weights::gguf::Gguf;
use justtrain_worker_api::{Problem, ProblemCode};
use tokenizers::models::wordlevel::WordLevel;
use tokenizers::{PostProcessor, TruncationParams, truncate_encodings};

pub use stream::TextStream;

/// Texts of tokens that end an answer in the models we know, beside the end-of-sequence token.
const END_OF_TURN: &[&str] = &["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>"];

pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special: SpecialTokens,
    stop_ids: Vec<u32>,
}

/// The tokens that a model's files give a role.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct SpecialTokens {
    bos: Option<String>,
    eos: Option<String>,
    pad: Option<String>,
    unknown: Option<String>,
    /// Before a text, after it, and in the place of a word: of models that read to both sides.
    cls: Option<String>,
    sep: Option<String>,
    mask: Option<String>,
}

/// Ids of a text, each with the bytes of the text that it stands for.
pub struct Encoding {
    pub ids: Vec<u32>,
    pub offsets: Vec<(usize, usize)>,
}

impl Tokenizer {
    pub fn open(checkpoint: &Checkpoint) -> Result<Self, Problem> {
        match (checkpoint.gguf(), checkpoint.folder()) {
            (Some(gguf), _) => Self::open_gguf(gguf),
            (None, Some(folder)) => Self::open_folder(folder),
            (None, None) => Err(broken("the model brings no tokenizer").file(checkpoint.path().display())),
        }
    }

    /// Of a model that reads no text.
    pub fn none() -> Self {
        Self::new(tokenizers::Tokenizer::new(WordLevel::default()), SpecialTokens::default(), Vec::new())
    }

    /// The vocabulary in a GGUF file, whatever the model in it.
    pub fn open_gguf(gguf: &Gguf) -> Result<Self, Problem> {
        gguf::open(gguf.metadata()).map_err(|problem| problem.file(gguf.path().display()))
    }

    /// The tokenizer's files in a folder, with or without weights beside them.
    pub fn open_folder(folder: &Path) -> Result<Self, Problem> {
        folder::open(folder).map_err(|problem| match problem.file {
            Some(_) => problem,
            None => problem.file(folder.display()),
        })
    }

    /// `end_ids` are tokens, beside those that we know by name, at which the model's files say that an answer ends.
    fn new(inner: tokenizers::Tokenizer, special: SpecialTokens, end_ids: Vec<u32>) -> Self {
        let names = special.eos.as_deref().into_iter().chain(END_OF_TURN.iter().copied());
        let mut stop_ids = end_ids;
        stop_ids.extend(names.filter_map(|name| inner.token_to_id(name)));
        stop_ids.sort_unstable();
        stop_ids.dedup();
        Self { inner, special, stop_ids }
    }

    /// A text, or a pair of them, with the marks that the model was trained to see around them: its ids, and of a pair which
    /// text each is in. At most `longest` tokens, cut as transformers does by default (`longest_first`).
    pub fn encode_marked(
        &self,
        text: &str,
        pair: Option<&str>,
        longest: usize,
    ) -> Result<(Vec<u32>, Vec<u32>), Problem> {
        let encode = |text: &str| self.inner.encode(text, false).map_err(broken);
        let (text, pair) = (encode(text)?, pair.map(encode).transpose()?);
        let marks = self.inner.get_post_processor().map_or(0, |marks| marks.added_tokens(pair.is_some()));
        let cut = TruncationParams { max_length: longest.saturating_sub(marks), ..TruncationParams::default() };
        let (text, pair) = truncate_encodings(text, pair, &cut).map_err(broken)?;
        let is_pair = pair.is_some();
        let all = self.inner.post_process(text, pair, true).map_err(broken)?;
        let types = if is_pair { all.get_type_ids().to_vec() } else { Vec::new() };
        Ok((all.get_ids().to_vec(), types))
    }

    /// Adds no tokens of its own: what a chat template renders already has them all.
    pub fn encode(&self, text: &str) -> Result<Encoding, Problem> {
        let encoding = self.inner.encode(text, false).map_err(broken)?;
        Ok(Encoding { ids: encoding.get_ids().to_vec(), offsets: encoding.get_offsets().to_vec() })
    }

    /// The text of the ids, without special tokens.
    pub fn decode(&self, ids: &[u32]) -> Result<String, Problem> {
        self.inner.decode(ids, true).map_err(broken)
    }

    /// The text of the ids, special tokens included.
    pub fn decode_all(&self, ids: &[u32]) -> Result<String, Problem> {
        self.inner.decode(ids, false).map_err(broken)
    }

    /// The text of one token, special ones included; part of a character shows as U+FFFD.
    pub fn token_text(&self, id: u32) -> String {
        self.inner.decode(&[id], false).unwrap_or_default()
    }

    pub fn bos_token(&self) -> Option<&str> {
        self.special.bos.as_deref()
    }

    pub fn pad_token(&self) -> Option<&str> {
        self.special.pad.as_deref()
    }

    pub fn unknown_token(&self) -> Option<&str> {
        self.special.unknown.as_deref()
    }

    pub fn eos_token(&self) -> Option<&str> {
        self.special.eos.as_deref()
    }

    /// Tokens at which an answer is complete.
    pub fn stop_ids(&self) -> Vec<u32> {
        self.stop_ids.clone()
    }

    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The first of this vocabulary's tokens that the other one has not at the same id, as both have it; what the other one has
    /// beyond is no difference.
    pub fn first_difference(&self, other: &Self) -> Option<[Option<String>; 2]> {
        let both = |id| [self.inner.id_to_token(id), other.inner.id_to_token(id)];
        (0..self.vocab_size() as u32).map(both).find(|[own, of_other]| own.is_some() && own != of_other)
    }
}

#[cfg(test)]
impl Tokenizer {
    /// For tests of what needs special tokens only.
    pub(crate) fn without_vocabulary(bos: &str, eos: &str) -> Self {
        let special =
            SpecialTokens { bos: Some(bos.to_owned()), eos: Some(eos.to_owned()), ..SpecialTokens::default() };
        Self::new(tokenizers::Tokenizer::new(tokenizers::models::bpe::BPE::default()), special, Vec::new())
    }
}

fn broken(why: impl std::fmt::Display) -> Problem {
    Problem::error(ProblemCode::Tokenizer, "the model's tokenizer cannot be used", "模型的分词器无法使用")
        .found(why)
        .fix("download the model again, or choose another one", "请重新下载模型，或选择其他模型")
}
