//! What stages do against forgetting, and what that does not go together with.

use justtrain_worker_api::Problem;

use super::check::Written;
use super::rules::{invalid, place};
use super::{Recipe, Stage};

pub(super) fn errors(recipe: &Recipe, written: &Written, in_stages: bool) -> Vec<Problem> {
    let asked = [
        ("forgetting_report", recipe.forgetting_report),
        ("replay_ratio", recipe.replay_ratio > 0.0),
        ("ewc_lambda", recipe.ewc_lambda.is_some()),
    ];
    let of_tokens = matches!(recipe.stage, Stage::Pt | Stage::Sft);
    let mut problems = Vec::new();
    for (key, _) in asked.into_iter().filter(|(_, asked)| *asked) {
        if !in_stages {
            let problem = invalid(key, "there is no earlier stage that could be forgotten", "没有会被遗忘的更早阶段");
            problems.push(problem.fix("write stages, or remove this line", "请写 stages，或删除这一行"));
        } else if !of_tokens {
            let problem = invalid(
                key,
                "this is about losses of tokens; with this stage whole answers are judged",
                "这一项涉及词元的损失；该 stage 评判的是整个回答",
            );
            let problem = problem.expected("stage: sft | pt in every stage");
            problems.push(problem.fix("remove this line, or the stage", "删除这一行，或删除该阶段"));
        }
    }
    if recipe.replay_ratio > 0.0 && !recipe.tasks.is_empty() {
        let problem = invalid(
            "replay_ratio",
            "tasks are mixed by shares of their own, which earlier rows have none of",
            "多个任务按各自的比例混合，而更早的数据没有比例",
        );
        problems.push(problem.fix("remove this line, or the tasks", "删除这一行，或删除 tasks"));
    }
    place(problems, written)
}
