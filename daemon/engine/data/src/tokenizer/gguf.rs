//! A tokenizer out of a GGUF file's own vocabulary and merges.

use justtrain_weights::gguf::Metadata;
use justtrain_worker_api::Problem;
use tokenizers::models::bpe::BPE;
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
    let types = metadata.get_i64s("tokenizer.ggml.token_type").unwrap_or_default();
    for (token, kind) in tokens.iter().zip(types) {
        match kind {
            CONTROL => inner.add_special_tokens([AddedToken::from(token.clone(), true)]).map_err(broken)?,
            USER_DEFINED => {
                inner.add_tokens([AddedToken::from(token.clone(), false).normalized(false)]).map_err(broken)?
            }
            _ => 0,
        };
    }
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
    Ok(Tokenizer { inner, special })
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
