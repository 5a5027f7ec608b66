//! `spiece.model` (T5): SentencePiece's file, whose vocabulary goes on with the marks of gaps, as transformers' `T5Tokenizer` has
//! it. Unlike SentencePiece itself that splits at white space first.

use std::path::Path;

use justtrain_worker_api::Problem;
use serde_json::Value;
use tokenizers::AddedToken;
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::precompiled::Precompiled;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;
use tokenizers::processors::template::TemplateProcessing;

use super::sentencepiece::{DummyPrefix, Kind};
use super::{broken, sentencepiece_model};

pub(super) const FILE: &str = "spiece.model";

/// By the keys of `tokenizer_config.json`.
const SPECIAL: [(&str, &str); 3] = [("pad_token", "<pad>"), ("eos_token", END), ("unk_token", "<unk>")];
const END: &str = "</s>";
/// Marks of gaps, where the settings do not say how many.
const GAPS: u64 = 100;

/// transformers' `T5Tokenizer` has these where its settings name none.
pub(super) fn default_token(key: &str) -> Option<&'static str> {
    SPECIAL.iter().find(|(known, _)| *known == key).map(|(_, token)| *token)
}

pub(super) fn read(path: &Path, config: &Value) -> Result<tokenizers::Tokenizer, Problem> {
    let at = |problem: Problem| problem.file(path.display());
    let model = sentencepiece_model::read(path, DummyPrefix::Always)?;
    let gaps = (0..config["extra_ids"].as_u64().unwrap_or(GAPS)).rev().map(|gap| format!("<extra_id_{gap}>"));
    let gaps: Vec<String> = gaps.collect();
    let unknown = model.pieces.iter().position(|piece| piece.kind == Kind::Unknown);
    let pieces = model.pieces.into_iter().map(|piece| (piece.text, f64::from(piece.score)));
    let vocabulary: Vec<(String, f64)> = pieces.chain(gaps.iter().map(|gap| (gap.clone(), 0.0))).collect();
    let end = vocabulary.iter().position(|(text, _)| text == END);
    let end = end.ok_or_else(|| at(broken(format!("there is no token {END}"))))?;
    let mut inner = tokenizers::Tokenizer::new(Unigram::from(vocabulary, unknown, false).map_err(broken).map_err(at)?);
    if !model.charsmap.is_empty() {
        inner.with_normalizer(Some(Precompiled::from(&model.charsmap).map_err(broken)?)).map_err(broken)?;
    }
    let spaces = Metaspace::new('▁', PrependScheme::Always, true);
    inner.with_pre_tokenizer(Some(Sequence::new(vec![WhitespaceSplit.into(), spaces.clone().into()])));
    inner.with_decoder(Some(spaces));
    let marks = TemplateProcessing::builder()
        .try_single(format!("$A {END}"))
        .and_then(|builder| builder.try_pair(format!("$A {END} $B {END}")))
        .map_err(broken)?
        .special_tokens(vec![(END.to_owned(), end as u32)])
        .build()
        .map_err(broken)?;
    inner.with_post_processor(Some(marks));
    let special = SPECIAL.iter().map(|(_, token)| (*token).to_owned()).chain(gaps);
    inner.add_special_tokens(special.map(|token| AddedToken::from(token, true).normalized(false))).map_err(broken)?;
    Ok(inner)
}
