//! A tokenizer out of a GGUF file's own vocabulary and merges.

use justtrain_weights::gguf::Metadata;
use justtrain_worker_api::Problem;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior};

use super::{SpecialTokens, Tokenizer, broken};

/// `tokenizer.ggml.token_type` (`enum llama_token_type` in `llama.h`).
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// How Llama 3 splits text before merging.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// How Qwen 2 does: every digit alone.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

pub(super) fn open(metadata: &Metadata) -> Result<Tokenizer, Problem> {
    let model = metadata.require_str("tokenizer.ggml.model")?;
    if model != "gpt2" {
        return Err(broken(format!("tokenizer.ggml.model {model}")).expected("gpt2 (byte-level BPE)"));
    }
    let tokens = metadata.require_strings("tokenizer.ggml.tokens")?;
    let merges = metadata
        .require_strings("tokenizer.ggml.merges")?
        .iter()
        .map(|merge| {
            let (left, right) = merge.split_once(' ').ok_or_else(|| broken(format!("the merge \"{merge}\"")))?;
            Ok((left.to_owned(), right.to_owned()))
        })
        .collect::<Result<Vec<_>, Problem>>()?;
    let vocab: tokenizers::models::bpe::Vocab = tokens.iter().cloned().zip(0u32..).collect();
    let pre = metadata.get_str("tokenizer.ggml.pre").unwrap_or("default");
    let bpe =
        BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(pre == "llama-bpe").build().map_err(broken)?;
    let mut inner = tokenizers::Tokenizer::new(bpe);
    inner.with_pre_tokenizer(Some(pre_tokenizer(pre)?));
    inner.with_decoder(Some(ByteLevel::new(false, false, false)));
    if pre == "qwen2" {
        inner.with_normalizer(Some(NFC)).map_err(broken)?;
    }
    let types = metadata.get_i64s("tokenizer.ggml.token_type").unwrap_or_default();
    let of_kind = |kind| tokens.iter().zip(&types).filter(move |&(_, &of)| of == kind).map(|(token, _)| token.clone());
    inner.add_special_tokens(of_kind(CONTROL).map(|token| AddedToken::from(token, true))).map_err(broken)?;
    inner
        .add_tokens(of_kind(USER_DEFINED).map(|token| AddedToken::from(token, false).normalized(false)))
        .map_err(broken)?;
    let special = |key: &str| {
        let id = metadata.get_u32(&format!("tokenizer.ggml.{key}_token_id"))?;
        tokens.get(id as usize).cloned()
    };
    let special = SpecialTokens {
        bos: special("bos"),
        eos: special("eos"),
        pad: special("padding"),
        unknown: special("unknown"),
    };
    let end_ids = ["eos", "eot"].iter().filter_map(|name| metadata.get_u32(&format!("tokenizer.ggml.{name}_token_id")));
    Ok(Tokenizer::new(inner, special, end_ids.collect()))
}

/// `tokenizer.ggml.pre`, as `llama-vocab.cpp` names them.
fn pre_tokenizer(name: &str) -> Result<PreTokenizerWrapper, Problem> {
    let split = |pattern: &str| {
        let split = Split::new(SplitPattern::Regex(pattern.to_owned()), SplitDelimiterBehavior::Isolated, false);
        Ok::<_, Problem>(Sequence::new(vec![split.map_err(broken)?.into(), ByteLevel::new(false, false, false).into()]))
    };
    Ok(match name {
        "smollm" => Sequence::new(vec![Digits::new(true).into(), ByteLevel::new(false, false, true).into()]).into(),
        "gpt-2" | "default" => ByteLevel::new(false, false, true).into(),
        "llama-bpe" => split(LLAMA3)?.into(),
        "qwen2" => split(QWEN2)?.into(),
        other => {
            let known = "smollm, gpt-2, llama-bpe, qwen2 or default";
            return Err(broken(format!("tokenizer.ggml.pre {other}")).expected(known));
        }
    })
}

#[cfg(test)]
mod tests {
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    use super::*;

    fn split(name: &str, text: &str) -> Vec<String> {
        let mut pieces = PreTokenizedString::from(text);
        pre_tokenizer(name).unwrap().pre_tokenize(&mut pieces).unwrap();
        let pieces = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
        pieces.into_iter().map(|(_, (start, end), _)| text[start..end].to_owned()).collect()
    }

    /// What sets the models' ways of splitting apart: digits, capitals after an apostrophe, line breaks.
    #[test]
    fn each_model_splits_text_in_its_own_way() {
        let text = "It'S 1234!\n\nok";
        assert_eq!(split("gpt-2", text), ["It", "'", "S", " 1234", "!", "\n", "\n", "ok"]);
        assert_eq!(split("smollm", text), ["It", "'", "S", " ", "1", "2", "3", "4", "!", "\n", "\n", "ok"]);
        assert_eq!(split("llama-bpe", text), ["It", "'S", " ", "123", "4", "!\n\n", "ok"]);
        assert_eq!(split("qwen2", text), ["It", "'S", " ", "1", "2", "3", "4", "!\n\n", "ok"]);
        let problem = pre_tokenizer("tekken").unwrap_err();
        assert!(problem.found.unwrap().contains("tekken") && problem.expected.unwrap().contains("smollm"));
    }
}
