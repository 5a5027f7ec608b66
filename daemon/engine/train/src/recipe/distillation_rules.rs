//! What `teacher` and the keys of distillation must satisfy.

use justtrain_worker_api::Problem;

use super::Recipe;
use super::rules::invalid;

const SETTINGS: [&str; 3] = ["kd_direction", "kd_temperature", "kd_alpha"];

pub(super) fn errors(recipe: &Recipe) -> Vec<Problem> {
    match recipe.teacher {
        None => SETTINGS.into_iter().map(without_teacher).collect(),
        Some(_) => teacher_of_answers(recipe).into_iter().chain(data_has_no_part(recipe)).collect(),
    }
}

fn without_teacher(key: &str) -> Problem {
    invalid(key, "this is a setting of teacher, and none is named", "这是 teacher 的设置，而没有写 teacher")
        .expected("teacher")
        .fix("name a teacher, or remove this line", "写上 teacher，或删除这一行")
}

/// A teacher says how probable tokens are.
fn teacher_of_answers(recipe: &Recipe) -> Option<Problem> {
    (!recipe.stage.learns_tokens()).then(|| {
        invalid(
            "teacher",
            "a teacher tells of single tokens; with this stage whole answers are judged",
            "教师模型给出单个词元的分布；该 stage 评判的是整个回答",
        )
        .found(format!("teacher with stage: {}", recipe.stage_name()))
        .expected("stage: sft | pt")
        .fix("remove this line, or write stage: sft", "删除这一行，或写 stage: sft")
    })
}

/// Regularisers of a loss that does not count.
fn data_has_no_part(recipe: &Recipe) -> Vec<Problem> {
    let written = [
        ("label_smoothing_factor", recipe.label_smoothing_factor > 0.0),
        ("rdrop_alpha", recipe.rdrop_alpha.is_some()),
    ];
    let unused = written.into_iter().filter(|(_, written)| *written && recipe.kd_alpha == 1.0);
    let problem = |(key, _)| {
        invalid(
            key,
            "this is part of the data's own loss, and with kd_alpha: 1 only the teacher's counts",
            "这是数据自身损失的一部分，而 kd_alpha: 1 只计教师的损失",
        )
        .expected("kd_alpha < 1")
        .fix("remove this line, or lower kd_alpha", "删除这一行，或调低 kd_alpha")
    };
    unused.map(problem).collect()
}
