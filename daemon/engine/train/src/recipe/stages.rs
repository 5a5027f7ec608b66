//! `stages`: several trainings one after the other, each a whole recipe: the file's keys, and in their place those that the
//! stage writes itself.

use std::iter;

use justtrain_worker_api::{Problem, ProblemCode};
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value, json};

use super::check::{Written, properties, property};
use super::rules::{invalid, place};
use super::yaml::{Content, Mark, Node};
use super::{FinetuningType, Recipe, Stage};
use crate::optim::OptimizerType;

/// One of a recipe's stages.
#[derive(Debug, Clone, PartialEq)]
pub struct StagePlan {
    /// As it is written, or what the stage learns from.
    pub name: String,
    pub recipe: Recipe,
}

/// A stage's name and its own recipe as they are written.
pub(super) struct WrittenStage {
    pub(super) name: Option<String>,
    pub(super) root: Node,
    /// Where the stage begins.
    pub(super) mark: Mark,
}

/// What all stages share: they go on with one model, on one device.
const SHARED: [&str; 3] = ["model_name_or_path", "device", "stages"];

/// A list of stages. What they are made of is [`item_schema`], which needs the whole.
pub(super) fn schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "items": { "type": "object" }, "minItems": 1, "default": [] })
}

/// A stage: every key of the recipe but those that all stages share, and a name. Their schemas stand at the top.
pub(super) fn item_schema(recipe: &Value) -> Value {
    let name = json!({
        "description": "What the job calls the stage. Default: its `stage`, such as `sft`.",
        "type": "string",
        "minLength": 1,
    });
    let own = properties(recipe).map(|(key, _)| key).filter(|key| !SHARED.contains(&key.as_str()));
    let own = own.map(|key| (key.clone(), json!({ "$ref": format!("#/properties/{key}") })));
    let properties: Map<String, Value> = iter::once(("name".to_owned(), name)).chain(own).collect();
    json!({ "type": "object", "properties": properties, "additionalProperties": false })
}

/// The stages of a file, and None where it has none. A problem's key starts with the stage it stands in.
pub(super) fn split(root: &Node, schema: &Value) -> Result<Option<Vec<WrittenStage>>, Vec<Problem>> {
    let Content::Mapping(items) = &root.content else { return Ok(None) };
    let pairs = || items.as_chunks::<2>().0.iter();
    let Some([_, stages]) = pairs().find(|[key, _]| key.is("stages")) else { return Ok(None) };
    let common: Vec<&[Node; 2]> = pairs().filter(|[key, _]| !key.is("stages")).collect();
    let wrong = |node: &Node, key: String| {
        let problem = Problem::error(
            ProblemCode::WrongType,
            "stages are a list, each of them the keys that differ",
            "stages 是一个列表，每个阶段写出与其他阶段不同的键",
        );
        let problem = problem.key(key).at(node.mark.line, node.mark.column).expected("- name: sft");
        problem.fix("write each stage as \"- key: value\"", "每个阶段写成“- 键: 值”")
    };
    let listed = match &stages.content {
        Content::Sequence(listed) if !listed.is_empty() => listed,
        _ => return Err(vec![wrong(stages, "stages".to_owned())]),
    };
    let (mut found, mut problems) = (Vec::new(), Vec::new());
    for (index, stage) in (1..).zip(listed) {
        let Content::Mapping(own) = &stage.content else {
            problems.push(wrong(stage, format!("stages.{index}")));
            continue;
        };
        let (mut name, mut kept) = (None, Vec::new());
        for pair @ [key, value] in own.as_chunks::<2>().0 {
            match &value.content {
                _ if !key.is("name") => kept.push(pair),
                Content::Scalar(Value::String(text)) if !text.trim().is_empty() => name = Some(text.clone()),
                _ => {
                    let problem =
                        Problem::error(ProblemCode::WrongType, "a stage's name is a text", "阶段的名字是文本");
                    let problem = problem.key(format!("stages.{index}.name")).expected("name: sft");
                    let problem = problem.at(value.mark.line, value.mark.column);
                    problems.push(
                        problem.fix("write a word, in quotes where it is a number", "写一个词；若是数字请加引号"),
                    );
                }
            }
            if let Some(shared) = SHARED.into_iter().find(|shared| own_name(key, schema).as_deref() == Some(*shared)) {
                let problem = Problem::error(
                    ProblemCode::InvalidValue,
                    "this is the same in all stages",
                    "所有阶段的这一项都相同",
                );
                let problem = problem.key(format!("stages.{index}.{shared}")).at(key.mark.line, key.mark.column);
                problems.push(problem.fix("write it above, outside the stages", "请写在 stages 之外"));
            }
        }
        let overridden: Vec<String> = kept.iter().filter_map(|[key, _]| own_name(key, schema)).collect();
        let inherited = common
            .iter()
            .copied()
            .filter(|[key, _]| own_name(key, schema).is_none_or(|name| !overridden.contains(&name)));
        let merged = inherited.chain(kept).flat_map(|pair| pair.iter().cloned()).collect();
        let root = Node { mark: stage.mark, content: Content::Mapping(merged) };
        found.push(WrittenStage { name, root, mark: stage.mark });
    }
    if problems.is_empty() { Ok(Some(found)) } else { Err(problems) }
}

/// Of a key that may be written by another tool's name.
fn own_name(key: &Node, schema: &Value) -> Option<String> {
    let Content::Scalar(Value::String(name)) = &key.content else { return None };
    property(schema, name).map(|(own, _)| own)
}

impl Recipe {
    /// The stages, in their order; the recipe itself where it names none.
    pub fn stages(&self) -> Vec<StagePlan> {
        if self.stages.is_empty() {
            return vec![StagePlan { name: self.stage_name().to_owned(), recipe: self.clone() }];
        }
        self.stages.clone()
    }

    pub(crate) fn stage_name(&self) -> &'static str {
        match self.stage {
            Stage::Pt => "pt",
            Stage::Sft => "sft",
            Stage::Dpo => "dpo",
            Stage::Kto => "kto",
            Stage::Rm => "rm",
            Stage::Cls => "cls",
        }
    }
}

/// What only a stage can ask for.
pub(super) fn errors(recipe: &Recipe, written: &Written, in_stages: bool) -> Vec<Problem> {
    let problem = (recipe.keep_optimizer_state && !in_stages).then(|| {
        let problem = invalid(
            "keep_optimizer_state",
            "there is no stage before that an optimiser could have remembered anything from",
            "没有上一阶段，优化器没有可沿用的状态",
        );
        problem.fix("write stages, or remove this line", "请写 stages，或删除这一行")
    });
    place(problem, written)
}

/// Why a stage cannot go on with the optimiser of the one before.
fn another_optimizer(recipe: &Recipe, before: &Recipe) -> Option<Problem> {
    let refused = |en: &str, zh: &str| Problem::error(ProblemCode::InvalidValue, en, zh);
    let (own, theirs) = (recipe.optim, before.optim);
    if own != theirs {
        let problem = refused(
            "another optimiser cannot go on with what that of the stage before remembers",
            "不同的优化器无法沿用上一阶段优化器的状态",
        );
        let fix = format!("optim: {}", theirs.name());
        return Some(problem.found(own.name()).expected(theirs.name()).fix(
            format!("write {fix} in this stage, or keep_optimizer_state: false"),
            format!("本阶段写 {fix}，或写 keep_optimizer_state: false"),
        ));
    }
    if own == OptimizerType::GaloreAdamw && recipe.galore_rank != before.galore_rank {
        let problem = refused(
            "galore_adamw remembers what its projection leaves, and the projections have different ranks",
            "galore_adamw 记住的是投影后的状态，而两个阶段投影的秩不同",
        );
        let fix = format!("galore_rank: {}", before.galore_rank);
        return Some(problem.found(recipe.galore_rank).expected(before.galore_rank).fix(
            format!("write {fix} in this stage, or keep_optimizer_state: false"),
            format!("本阶段写 {fix}，或写 keep_optimizer_state: false"),
        ));
    }
    let ends_elsewhere =
        [("load_best_model_at_end", before.load_best_model_at_end), ("ema_decay", before.ema_decay.is_some())];
    let (key, _) = ends_elsewhere.into_iter().find(|(_, written)| *written)?;
    let problem = refused(
        "the stage before ends with other weights than those of its last step, which is what its optimiser remembers",
        "上一阶段结束时的权重不是其最后一步的权重，而优化器记住的是最后一步",
    );
    Some(problem.found(format!("{key} in the stage before")).fix(
        format!("remove {key} from the stage before, or write keep_optimizer_state: false"),
        format!("删除上一阶段的 {key}，或写 keep_optimizer_state: false"),
    ))
}

/// What stages cannot hand to each other.
pub(super) fn check(stages: &[StagePlan], marks: &[Mark]) -> Vec<Problem> {
    let first = &stages[0].recipe;
    let mut problems = Vec::new();
    for ((index, stage), mark) in (1..).zip(stages).zip(marks) {
        let recipe = &stage.recipe;
        let at = |key: &str, problem: Problem| problem.key(format!("stages.{index}.{key}")).at(mark.line, mark.column);
        if recipe.trains_weights() != first.trains_weights() {
            let problem = Problem::error(
                ProblemCode::InvalidValue,
                "an adapter cannot be handed to a stage that trains weights, nor weights to one that trains an adapter",
                "适配器不能交给训练权重的阶段，权重也不能交给训练适配器的阶段",
            );
            let problem = problem.found(recipe.finetuning_type.name()).expected(first.finetuning_type.name());
            problems.push(at(
                "finetuning_type",
                problem.fix("train an adapter in all stages, or weights in all", "所有阶段都训练适配器，或都训练权重"),
            ));
        } else if recipe.finetuning_type == FinetuningType::Lora && recipe.lora_config() != first.lora_config() {
            let problem = Problem::error(
                ProblemCode::InvalidValue,
                "the adapter of the stages before is handed on, so it has the same shape in all of them",
                "适配器由前面的阶段交接而来，因此各阶段的形状必须相同",
            );
            problems.push(at("lora_rank", problem.fix(
                "write lora_rank, lora_alpha, lora_dropout, lora_target and the other keys of the adapter above, outside the stages",
                "请把 lora_rank、lora_alpha、lora_dropout、lora_target 等适配器的键写在 stages 之外",
            )));
        }
        if let Some(before) = (index > 1 && recipe.keep_optimizer_state).then(|| &stages[index - 2].recipe) {
            problems.extend(another_optimizer(recipe, before).map(|problem| at("keep_optimizer_state", problem)));
        }
        let kept_before = recipe.stages_before > 0 && stages[recipe.stages_before - 1].recipe.olora_lambda.is_some();
        if kept_before && recipe.olora_lambda.is_none() {
            let problem = Problem::error(
                ProblemCode::InvalidValue,
                "the pairs that O-LoRA has kept apart would be trained on as one",
                "O-LoRA 分开保存的矩阵对会被当作一对继续训练",
            );
            problems.push(at(
                "olora_lambda",
                problem.fix("write olora_lambda above, outside the stages", "请把 olora_lambda 写在 stages 之外"),
            ));
        }
        if recipe.lora_start().is_some() {
            let problem = Problem::error(
                ProblemCode::InvalidValue,
                "an adapter that starts as part of the weights is saved with twice its rank and cannot be handed on",
                "以权重的一部分为起点的适配器保存时秩会加倍，无法交接",
            );
            problems.push(at(
                if recipe.pissa_init { "pissa_init" } else { "loftq_init" },
                problem.fix(
                    "remove pissa_init and loftq_init, or train in one stage",
                    "删除 pissa_init 和 loftq_init，或只用一个阶段训练",
                ),
            ));
        }
        if recipe.stage == Stage::Rm && index < stages.len() {
            let problem = Problem::error(
                ProblemCode::InvalidValue,
                "a reward model gives scores: nothing can follow it",
                "奖励模型只给出分数，后面不能再有其他阶段",
            );
            problems.push(at("stage", problem.fix("make it the last stage", "请把它放在最后一个阶段")));
        }
    }
    problems
}
