//! What does not go together with `stage: cls`.

use justtrain_worker_api::Problem;

use super::rules::invalid;
use super::{Recipe, Stage};

pub(super) fn errors(recipe: &Recipe) -> Vec<Problem> {
    if recipe.stage != Stage::Cls {
        return Vec::new();
    }
    let of_words = [
        ("train_on_prompt", recipe.train_on_prompt),
        ("mask_history", recipe.mask_history),
        ("rdrop_alpha", recipe.rdrop_alpha.is_some()),
    ];
    let of_words = of_words.into_iter().filter(|(_, written)| *written).map(|(key, _)| {
        invalid(
            key,
            "this is about answers in words; a classifier learns the class of a text as it is",
            "这一项涉及文字回答；分类器学习的是原文的类别",
        )
        .expected("stage: sft")
        .fix("remove this line, or write stage: sft", "删除这一行，或写 stage: sft")
    });
    let tasks = (!recipe.tasks.is_empty()).then(|| {
        invalid("tasks", "a classifier has one set of labels, and so one task", "分类器只有一组标签，因此只有一个任务")
            .fix("write dataset in place of tasks, or train one job for each", "请用 dataset 代替 tasks，或分别训练")
    });
    of_words.chain(tasks).collect()
}
