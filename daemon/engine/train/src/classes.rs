//! What a classifier tells apart: which labels a run has, and the head for them.

use std::path::Path;

use justtrain_data::{Conversation, Labels};
use justtrain_model::{Decoder, are_unnamed, tuned_labels};
use justtrain_worker_api::{Failure, FailureReason, Problem, ProblemCode};

use crate::recipe::{Recipe, Stage};

/// Those of the tuned model that a run goes on from, else of the model, where they cover the rows; else those of the rows.
/// None where the stage has none.
pub(crate) fn labels(
    recipe: &Recipe,
    decoder: &Decoder,
    tuned: Option<&Path>,
    rows: &[Conversation],
) -> Result<Labels, Failure> {
    if recipe.stage != Stage::Cls {
        return Ok(Labels::default());
    }
    let of_rows = Labels::of(rows);
    let names = of_rows.names();
    let tuned = tuned.map(tuned_labels).transpose().map_err(|problem| problem.because(FailureReason::ModelInvalid))?;
    let known = tuned.flatten().or_else(|| decoder.classifier().map(|classifier| classifier.labels().to_vec()));
    match known {
        Some(known) if names.iter().all(|label| known.contains(label)) => Ok(Labels::new(known)),
        // Another tool has left them without names.
        Some(known) if are_unnamed(&known) && known.len() == names.len() => Ok(of_rows),
        _ if names.len() > 1 => Ok(of_rows),
        _ => Err(one_class(names).because(FailureReason::DataInvalid)),
    }
}

/// Gives the model the head that the stage wants, or takes it away. `RecipeInvalid` where an encoder is to make words.
pub(crate) fn attach_head(recipe: &Recipe, labels: &Labels, decoder: &mut Decoder) -> Result<(), Failure> {
    match recipe.stage {
        Stage::Cls => decoder.classify(labels.names().to_vec(), recipe.seed),
        Stage::Rm => decoder.classify(vec!["LABEL_0".to_owned()], recipe.seed),
        Stage::Pt | Stage::Sft | Stage::Dpo | Stage::Kto if decoder.makes_words() => decoder.forget_classifier(),
        Stage::Pt | Stage::Sft | Stage::Dpo | Stage::Kto => {
            return Err(makes_no_words(recipe).because(FailureReason::RecipeInvalid));
        }
    }
    Ok(())
}

fn makes_no_words(recipe: &Recipe) -> Problem {
    Problem::error(
        ProblemCode::InvalidValue,
        "this model is an encoder: it makes no words, but can tell texts apart",
        "该模型是编码器：不能生成文字，但可以为文本分类",
    )
    .key("stage")
    .found(recipe.stage_name())
    .expected("cls")
    .fix(
        "write stage: cls and name data with labels, or choose another model",
        "请写 stage: cls 并使用带标签的数据，或选择其他模型",
    )
}

fn one_class(labels: &[String]) -> Problem {
    Problem::error(
        ProblemCode::InvalidValue,
        "there is nothing to tell apart: all rows have the same label",
        "没有可区分的类别：所有数据行的标签都相同",
    )
    .key("label")
    .found(labels.join(", "))
    .expected("at least two labels")
    .fix("add rows of another class", "请加入其他类别的数据行")
}
