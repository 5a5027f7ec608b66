//! Byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM, DeepSeek): a vocabulary and an ordered list of merges.

use justtrain_worker_api::Problem;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use super::broken;
use super::splitting::Splitting;

pub(super) fn build(vocab: Vocab, merges: Merges, splitting: Splitting) -> Result<tokenizers::Tokenizer, Problem> {
    let bpe = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .ignore_merges(splitting.ignore_merges)
        .build()
        .map_err(broken)?;
    let mut inner = tokenizers::Tokenizer::new(bpe);
    if splitting.nfc {
        inner.with_normalizer(Some(NFC)).map_err(broken)?;
    }
    inner.with_pre_tokenizer(Some(splitting.pre_tokenizer()?));
    inner.with_decoder(Some(ByteLevel::new(false, false, false)));
    Ok(inner)
}

/// Lines of `left right`, as GGUF files and `merges.txt` hold them.
pub(super) fn parse_merges<'a>(lines: impl Iterator<Item = &'a str>) -> Result<Merges, Problem> {
    lines
        .map(|line| {
            let (left, right) = line.split_once(' ').ok_or_else(|| broken(format!("the merge \"{line}\"")))?;
            Ok((left.to_owned(), right.to_owned()))
        })
        .collect()
}
