//! SentencePiece vocabularies (Llama 2, Mistral, Gemma, Phi-3, T5), whichever file they come from, as the `tokenizers`
//! pipeline that the models' published `tokenizer.json` has.

use justtrain_worker_api::Problem;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::precompiled::Precompiled;
use tokenizers::normalizers::prepend::Prepend;
use tokenizers::normalizers::replace::{Replace, ReplacePattern};
use tokenizers::normalizers::utils::Sequence as Normalizers;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper};

use super::broken;

/// Stands for a space.
pub(super) const SPACE: &str = "▁";

/// `ModelProto.SentencePiece.Type` in `sentencepiece_model.proto`; GGUF's `tokenizer.ggml.token_type` has the same
/// numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl Kind {
    pub(super) fn from_number(number: i64) -> Self {
        match number {
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => Self::Normal,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) score: f32,
    pub(super) kind: Kind,
    /// Found in a text, it takes the white space after it along.
    pub(super) rstrip: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    /// Neighbours are joined, best score first.
    Bpe,
    /// The most probable way to split.
    Unigram,
}

/// Where a space is put before the text, so that its first word is the same token as in the middle of a sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DummyPrefix {
    Never,
    /// At the very start only.
    First,
    /// After every special token too, as SentencePiece itself would and llama.cpp does.
    Always,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct SentencePiece {
    pub(super) algorithm: Algorithm,
    pub(super) pieces: Vec<Piece>,
    /// Compiled Unicode normalisation; empty for none.
    pub(super) charsmap: Vec<u8>,
    pub(super) dummy_prefix: DummyPrefix,
    pub(super) remove_extra_whitespaces: bool,
}

impl SentencePiece {
    pub(super) fn build(&self) -> Result<tokenizers::Tokenizer, Problem> {
        let mut inner = match self.algorithm {
            Algorithm::Bpe => tokenizers::Tokenizer::new(self.bpe()?),
            Algorithm::Unigram => tokenizers::Tokenizer::new(self.unigram()?),
        };
        inner.with_normalizer(Some(Normalizers::new(self.normalizers()?))).map_err(broken)?;
        if self.dummy_prefix == DummyPrefix::First {
            inner.with_pre_tokenizer(Some(Metaspace::new('▁', PrependScheme::First, false)));
        }
        inner.with_decoder(Some(Decoders::new(self.decoders()?)));
        self.add_tokens(&mut inner)?;
        Ok(inner)
    }

    fn bpe(&self) -> Result<BPE, Problem> {
        let vocab: Vocab = self.pieces.iter().map(|piece| piece.text.clone()).zip(0..).collect();
        let mut builder = BPE::builder().fuse_unk(true).byte_fallback(self.byte_fallback());
        if let Some(unknown) = self.unknown() {
            builder = builder.unk_token(self.pieces[unknown].text.clone());
        }
        let merges = self.merges(&vocab);
        builder.vocab_and_merges(vocab, merges).build().map_err(broken)
    }

    /// Every way to join two pieces into a third, best score first; of equal scores, as transformers orders them
    /// (`generate_merges` in `tokenization_utils_base.py`).
    fn merges(&self, vocab: &Vocab) -> Merges {
        struct Join<'a> {
            score: f32,
            left: &'a str,
            right: &'a str,
            /// Characters of both.
            lengths: (usize, usize),
        }
        let mut joins = Vec::new();
        for piece in self.pieces.iter().filter(|piece| matches!(piece.kind, Kind::Normal | Kind::UserDefined)) {
            let length = piece.text.chars().count();
            let splits = piece.text.char_indices().enumerate().skip(1).filter_map(|(chars, (at, _))| {
                let (left, right) = piece.text.split_at(at);
                let ids = (vocab.get(left)?, vocab.get(right)?);
                Some((ids, Join { score: piece.score, left, right, lengths: (chars, length - chars) }))
            });
            let mut splits: Vec<_> = splits.collect();
            splits.sort_by_key(|&(ids, _)| ids);
            joins.extend(splits.into_iter().map(|(_, join)| join));
        }
        joins.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| b.lengths.cmp(&a.lengths)));
        joins.into_iter().map(|join| (join.left.to_owned(), join.right.to_owned())).collect()
    }

    fn unigram(&self) -> Result<Unigram, Problem> {
        let vocab = self.pieces.iter().map(|piece| (piece.text.clone(), f64::from(piece.score))).collect();
        Unigram::from(vocab, self.unknown(), self.byte_fallback()).map_err(broken)
    }

    fn unknown(&self) -> Option<usize> {
        self.pieces.iter().position(|piece| piece.kind == Kind::Unknown)
    }

    /// Characters without a piece are spelt in bytes.
    fn byte_fallback(&self) -> bool {
        self.pieces.iter().any(|piece| piece.kind == Kind::Byte)
    }

    /// SentencePiece's order: characters, white space, the prefix, then the mark for a space.
    fn normalizers(&self) -> Result<Vec<NormalizerWrapper>, Problem> {
        let replace = |pattern: ReplacePattern, by: &str| Replace::new(pattern, by).map(Into::into).map_err(broken);
        let regex = |pattern: &str| ReplacePattern::Regex(pattern.to_owned());
        let mut steps = Vec::new();
        if !self.charsmap.is_empty() {
            steps.push(Precompiled::from(&self.charsmap).map_err(broken)?.into());
        }
        if self.remove_extra_whitespaces {
            steps.push(replace(regex(r"\A +| +\z"), "")?);
            steps.push(replace(regex(" {2,}"), " ")?);
        }
        if self.dummy_prefix == DummyPrefix::Always {
            steps.push(Prepend::new(SPACE.to_owned()).into());
        }
        steps.push(replace(ReplacePattern::String(" ".to_owned()), SPACE)?);
        Ok(steps)
    }

    fn decoders(&self) -> Result<Vec<DecoderWrapper>, Problem> {
        let space = Replace::new(ReplacePattern::String(SPACE.to_owned()), " ").map_err(broken)?;
        let mut steps: Vec<DecoderWrapper> = vec![space.into()];
        if self.byte_fallback() {
            steps.push(ByteFallback::new().into());
        }
        steps.push(Fuse::new().into());
        if self.dummy_prefix != DummyPrefix::Never {
            steps.push(Strip::new(' ', 1, 0).into());
        }
        Ok(steps)
    }

    /// Control and user-defined pieces are found in the text before anything else; only the former are special.
    fn add_tokens(&self, inner: &mut tokenizers::Tokenizer) -> Result<(), Problem> {
        let found = self.pieces.iter().filter_map(|piece| {
            let special = match piece.kind {
                Kind::Control | Kind::Unknown => true,
                Kind::UserDefined => false,
                Kind::Normal | Kind::Unused | Kind::Byte => return None,
            };
            Some(AddedToken::from(piece.text.clone(), special).normalized(false).rstrip(piece.rstrip))
        });
        inner.add_tokens(found).map_err(broken)?;
        Ok(())
    }
}
