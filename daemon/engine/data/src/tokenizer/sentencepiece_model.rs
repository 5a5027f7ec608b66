//! `tokenizer.model`: SentencePiece's own file, a protobuf message (`sentencepiece_model.proto`).

use std::fs;
use std::path::Path;

use justtrain_worker_api::Problem;
use prost::Message;

use super::broken;
use super::sentencepiece::{Algorithm, DummyPrefix, Kind, Piece, SentencePiece};

#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<PieceProto>,
    #[prost(message, required, tag = "2")]
    trainer_spec: TrainerSpec,
    #[prost(message, required, tag = "3")]
    normalizer_spec: NormalizerSpec,
}

#[derive(Clone, PartialEq, Message)]
struct PieceProto {
    #[prost(string, optional, tag = "1")]
    piece: Option<String>,
    #[prost(float, optional, tag = "2")]
    score: Option<f32>,
    #[prost(int32, optional, tag = "3", default = "1")]
    kind: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct TrainerSpec {
    #[prost(int32, optional, tag = "3", default = "1")]
    model_type: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct NormalizerSpec {
    #[prost(bytes = "vec", optional, tag = "2")]
    precompiled_charsmap: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "3", default = "true")]
    add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4", default = "true")]
    remove_extra_whitespaces: Option<bool>,
}

/// `prefix` is used where the model asks for a dummy prefix at all.
pub(super) fn read(path: &Path, prefix: DummyPrefix) -> Result<SentencePiece, Problem> {
    let refused = |why: String| broken(why).file(path.display());
    let bytes = fs::read(path).map_err(|error| refused(error.to_string()))?;
    let model = ModelProto::decode(bytes.as_slice()).map_err(|error| refused(error.to_string()))?;
    let algorithm = match model.trainer_spec.model_type() {
        1 => Algorithm::Unigram,
        2 => Algorithm::Bpe,
        other => return Err(refused(format!("model_type {other}")).expected("1 (unigram) or 2 (BPE)")),
    };
    let pieces = model.pieces.into_iter().map(|piece| Piece {
        score: piece.score(),
        kind: Kind::from_number(piece.kind().into()),
        text: piece.piece.unwrap_or_default(),
        rstrip: false,
    });
    let spec = model.normalizer_spec;
    Ok(SentencePiece {
        algorithm,
        pieces: pieces.collect(),
        dummy_prefix: if spec.add_dummy_prefix() { prefix } else { DummyPrefix::Never },
        remove_extra_whitespaces: spec.remove_extra_whitespaces(),
        charsmap: spec.precompiled_charsmap.unwrap_or_default(),
    })
}
