//! What the keys about validation while training must satisfy.

use justtrain_worker_api::{Problem, ProblemCode};

use super::check::Written;
use super::rules::invalid;
use super::{Recipe, tasks};

/// Keys that need held-out rows.
const NEED_ROWS: [&str; 3] = ["eval_steps", "early_stopping_steps", "load_best_model_at_end"];

pub(super) fn errors(recipe: &Recipe, written: &Written) -> Vec<Problem> {
    nothing_held_out(recipe, written)
        .into_iter()
        .chain(wrong_way(recipe))
        .chain(tasks::unknown_metric(recipe))
        .collect()
}

/// Settings of the best validation, where nothing asks for it.
pub(super) fn warnings(recipe: &Recipe) -> Vec<Problem> {
    let unused = |key: &str| {
        Problem::warning(
            ProblemCode::InvalidValue,
            "only early_stopping_steps and load_best_model_at_end use this",
            "只有 early_stopping_steps 和 load_best_model_at_end 会用到这一项",
        )
        .key(key)
        .fix("remove this line, or add one of the two", "删除这一行，或加上两者之一")
    };
    let waits = recipe.early_stopping().is_some();
    let mut problems = Vec::new();
    if !waits {
        problems.extend(["metric_for_best_model", "greater_is_better"].map(unused));
    }
    if recipe.early_stopping_steps.is_none() {
        problems.push(unused("early_stopping_threshold"));
    }
    problems
}

/// The default of `val_size` is not 0, so a 0 is written; a written `val_size` that does not fit is reported already.
fn nothing_held_out(recipe: &Recipe, written: &Written) -> Vec<Problem> {
    if written.mark("val_size").is_none() || recipe.val_size != 0.0 {
        return Vec::new();
    }
    let problem = |key: &&str| {
        invalid(key, "with val_size 0 there are no rows to validate on", "val_size 为 0，没有可用于验证的数据").fix(
            format!("remove {key}, or give val_size a share such as 0.1"),
            format!("删除 {key}，或给 val_size 一个比例，例如 0.1"),
        )
    };
    let asks = |key: &&&str| match **key {
        "eval_steps" => recipe.eval_steps.is_some(),
        "early_stopping_steps" => recipe.early_stopping_steps.is_some(),
        _ => recipe.load_best_model_at_end,
    };
    NEED_ROWS.iter().filter(asks).map(problem).collect()
}

fn wrong_way(recipe: &Recipe) -> Option<Problem> {
    let (metric, right) = (&recipe.metric_for_best_model, recipe.best_by()?.greater_is_better());
    recipe.greater_is_better.filter(|said| *said != right).map(|said| {
        invalid(
            "greater_is_better",
            &format!("the worst {} would be taken for the best", metric.name()),
            &format!("这样会把最差的 {} 当作最好的", metric.name()),
        )
        .found(said)
        .expected(right)
        .fix("remove this line", "删除这一行")
    })
}
