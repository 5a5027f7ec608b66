//! A tokenizer out of a GGUF file's own vocabulary (`tokenizer.ggml.*`).

use justtrain_weights::gguf::{Array, Metadata};
use justtrain_worker_api::Problem;
use tokenizers::AddedToken;
use tokenizers::processors::template::TemplateProcessing;

use super::byte_level::{self, parse_merges};
use super::sentencepiece::{Algorithm, DummyPrefix, Kind, Piece, SPACE, SentencePiece};
use super::splitting::Splitting;
use super::{SpecialTokens, Tokenizer, broken};

pub(super) fn open(metadata: &Metadata) -> Result<Tokenizer, Problem> {
    let (mut inner, adds_bos) = match metadata.require_str("tokenizer.ggml.model")? {
        "gpt2" => {
            let splitting = Splitting::named(metadata.get_str("tokenizer.ggml.pre").unwrap_or("default"))?;
            (byte_level(metadata, splitting)?, splitting.adds_bos)
        }
        "llama" => (sentencepiece(metadata, Algorithm::Bpe)?, true),
        "t5" => (sentencepiece(metadata, Algorithm::Unigram)?, false),
        other => {
            let known = "gpt2 (byte-level BPE), llama (SentencePiece) or t5 (unigram)";
            return Err(broken(format!("tokenizer.ggml.model {other}")).expected(known));
        }
    };
    let tokens = metadata.require_strings("tokenizer.ggml.tokens")?;
    let id = |name: &str| metadata.get_u32(&format!("tokenizer.ggml.{name}_token_id"));
    let special = |name: &str| tokens.get(id(name)? as usize).cloned();
    let special = SpecialTokens {
        bos: special("bos"),
        eos: special("eos"),
        pad: special("padding"),
        unknown: special("unknown"),
        ..SpecialTokens::default()
    };
    surround(&mut inner, metadata, &special, adds_bos)?;
    Ok(Tokenizer::new(inner, special, ["eos", "eot", "eom"].into_iter().filter_map(id).collect()))
}

/// Tokens with their kinds; a file without kinds has normal tokens only.
fn tokens(metadata: &Metadata) -> Result<impl Iterator<Item = (&String, Kind)>, Problem> {
    let tokens = metadata.require_strings("tokenizer.ggml.tokens")?;
    let kinds = metadata.get_i64s("tokenizer.ggml.token_type").unwrap_or_default();
    let kinds = kinds.into_iter().map(Kind::from_number).chain(std::iter::repeat(Kind::Normal));
    Ok(tokens.iter().zip(kinds))
}

fn byte_level(metadata: &Metadata, splitting: Splitting) -> Result<tokenizers::Tokenizer, Problem> {
    let vocab = metadata.require_strings("tokenizer.ggml.tokens")?.iter().cloned().zip(0u32..).collect();
    let merges = metadata.require_strings("tokenizer.ggml.merges")?.iter().map(String::as_str);
    let mut inner = byte_level::build(vocab, parse_merges(merges)?, splitting)?;
    let found = tokens(metadata)?.filter(|(_, kind)| matches!(kind, Kind::Control | Kind::UserDefined));
    let found = found.map(|(token, kind)| AddedToken::from(token.clone(), kind == Kind::Control).normalized(false));
    inner.add_tokens(found).map_err(broken)?;
    Ok(inner)
}

fn sentencepiece(metadata: &Metadata, algorithm: Algorithm) -> Result<tokenizers::Tokenizer, Problem> {
    let scores = metadata.get_f32s("tokenizer.ggml.scores").unwrap_or_default();
    let scores = scores.into_iter().chain(std::iter::repeat(0.0));
    let pieces = tokens(metadata)?.zip(scores).map(|((text, kind), score)| {
        // The converter writes user-defined pieces, such as Gemma's runs of spaces, with real spaces and a low score;
        // SentencePiece's own file has the mark for a space and 0, above all others.
        let (text, score) = match kind {
            Kind::UserDefined => (text.replace(' ', SPACE), 0.0),
            _ => (text.clone(), score),
        };
        let rstrip = swallows_spaces(metadata, &text, kind);
        Piece { text, score, kind, rstrip }
    });
    let flag = |name: &str| metadata.get_bool(&format!("tokenizer.ggml.{name}"));
    let charsmap = match metadata.get("tokenizer.ggml.precompiled_charsmap").and_then(|value| value.as_array()) {
        Some(Array::U8(bytes)) => bytes.clone(),
        Some(Array::I8(bytes)) => bytes.iter().map(|&byte| byte as u8).collect(),
        _ => Vec::new(),
    };
    let sentencepiece = SentencePiece {
        algorithm,
        pieces: pieces.collect(),
        charsmap,
        dummy_prefix: if flag("add_space_prefix").unwrap_or(true) { DummyPrefix::Always } else { DummyPrefix::Never },
        remove_extra_whitespaces: flag("remove_extra_whitespaces").unwrap_or(false),
    };
    sentencepiece.build()
}

/// Phi-3's marks take the white space after them along, which a GGUF file has no key for: llama.cpp, too, knows it by
/// the model (`LLAMA_TOKEN_ATTR_RSTRIP` in `llama-vocab.cpp`).
fn swallows_spaces(metadata: &Metadata, text: &str, kind: Kind) -> bool {
    metadata.get_str("general.architecture") == Some("phi3")
        && (text == "</s>" || (kind == Kind::Control && !["<s>", "<|endoftext|>"].contains(&text)))
}

/// What a text without a chat template starts and ends with; for those who load the exported tokenizer elsewhere.
fn surround(
    inner: &mut tokenizers::Tokenizer,
    metadata: &Metadata,
    special: &SpecialTokens,
    adds_bos: bool,
) -> Result<(), Problem> {
    let adds =
        |name: &str, default: bool| metadata.get_bool(&format!("tokenizer.ggml.add_{name}_token")).unwrap_or(default);
    let bos = special.bos.as_ref().filter(|_| adds("bos", adds_bos));
    let eos = special.eos.as_ref().filter(|_| adds("eos", false));
    let tokens = |token: Option<&String>| token.and_then(|token| Some((token.clone(), inner.token_to_id(token)?)));
    let (bos, eos) = (tokens(bos), tokens(eos));
    if bos.is_none() && eos.is_none() {
        return Ok(());
    }
    let text = |text: &str| -> Vec<String> {
        let bos = bos.iter().map(|(token, _)| token.clone());
        bos.chain([text.to_owned()]).chain(eos.iter().map(|(token, _)| token.clone())).collect()
    };
    let (single, pair) = (text("$A:0"), [text("$A:0"), text("$B:1")].concat());
    let processing = TemplateProcessing::builder()
        .try_single(single)
        .and_then(|builder| builder.try_pair(pair))
        .map_err(broken)?
        .special_tokens(bos.iter().chain(&eos).cloned().collect::<Vec<_>>())
        .build()
        .map_err(broken)?;
    inner.with_post_processor(Some(processing));
    Ok(())
}
