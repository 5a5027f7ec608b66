//! What stages do against forgetting, and what that does not go together with.

use justtrain_worker_api::Problem;

use super::check::Written;
use super::rules::{invalid, place};
use super::{Bias, Recipe};

pub(super) fn errors(recipe: &Recipe, written: &Written, in_stages: bool) -> Vec<Problem> {
    let asked = [
        ("forgetting_report", recipe.forgetting_report),
        ("replay_ratio", recipe.replay_ratio > 0.0),
        ("ewc_lambda", recipe.ewc_lambda.is_some()),
        ("lwf_lambda", recipe.lwf_lambda.is_some()),
        ("olora_lambda", recipe.olora_lambda.is_some()),
    ];
    let of_tokens = recipe.stage.learns_tokens();
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
    problems.extend(settings_alone(recipe));
    if recipe.olora_lambda.is_some() {
        problems.extend(beside_olora(recipe));
    }
    place(problems, written)
}

/// Settings of what is not asked for.
fn settings_alone(recipe: &Recipe) -> Vec<Problem> {
    let settings = [
        ("lwf_temperature", "lwf_lambda", recipe.lwf_lambda.is_none()),
        ("olora_l2", "olora_lambda", recipe.olora_lambda.is_none()),
    ];
    let problem = |(key, of, _)| {
        invalid(key, &format!("this is a setting of {of}"), &format!("这是 {of} 的设置"))
            .expected(of)
            .fix(format!("write {of}, or remove this line"), format!("写上 {of}，或删除这一行"))
    };
    settings.into_iter().filter(|(_, _, alone)| *alone).map(problem).collect()
}

/// What goes against plain pairs that stay as their stage has left them.
fn beside_olora(recipe: &Recipe) -> Vec<Problem> {
    let against = |key: &str, en: &str, zh: &str| {
        invalid(key, en, zh)
            .found(format!("{key} with olora_lambda"))
            .fix("remove this line, or olora_lambda", "删除这一行，或删除 olora_lambda")
    };
    let mut problems = Vec::new();
    if recipe.trains_weights() {
        let problem = invalid(
            "olora_lambda",
            "this is about LoRA pairs, and the model's own weights are trained",
            "这一项涉及 LoRA 矩阵对，而这里训练的是模型自身的权重",
        );
        let problem = problem.found(format!("finetuning_type: {}", recipe.finetuning_type.name()));
        problems.push(problem.expected("finetuning_type: lora").fix(
            "write finetuning_type: lora, or remove this line; lwf_lambda and ewc_lambda go with weights",
            "写 finetuning_type: lora，或删除这一行；lwf_lambda 和 ewc_lambda 可用于权重",
        ));
    }
    if recipe.use_dora {
        let (en, zh) = (
            "a magnitude is of a whole layer and would be trained in every stage",
            "大小属于整个层，每个阶段都会被训练",
        );
        problems.push(against("use_dora", en, zh));
    }
    if recipe.modules_to_save.is_some() {
        let (en, zh) = (
            "what is trained in full does not stay as a stage has left it",
            "完整训练的模块不会保持某个阶段结束时的样子",
        );
        problems.push(against("modules_to_save", en, zh));
    }
    if recipe.bias != Bias::None {
        let (en, zh) = (
            "biases that are trained do not stay as a stage has left them",
            "被训练的偏置不会保持某个阶段结束时的样子",
        );
        problems.push(against("bias", en, zh));
    }
    if recipe.keep_optimizer_state {
        let (en, zh) =
            ("what the optimiser remembers is of the pair of the stage before", "优化器的状态属于上一阶段的矩阵对");
        problems.push(against("keep_optimizer_state", en, zh));
    }
    if recipe.adapter_name_or_path.is_some() {
        let (en, zh) = (
            "the pairs of all stages are alike, and those of this adapter are its own",
            "各阶段的矩阵对形状相同，而该适配器有自己的形状",
        );
        problems.push(against("adapter_name_or_path", en, zh));
    }
    if recipe.ewc_lambda.is_some() {
        let (en, zh) = (
            "EWC pulls parameters back to what the stage before has left, and this stage's pair is a new one",
            "EWC 把参数拉回上一阶段结束时的值，而本阶段的矩阵对是新的",
        );
        problems.push(against("ewc_lambda", en, zh));
    }
    problems
}
