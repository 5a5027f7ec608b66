//! `tasks`: several data sets in one run, each with a name of its own.

use justtrain_data::Mixing;
use justtrain_worker_api::{Problem, ProblemCode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::yaml::{Content, Node};
use super::{Recipe, Stage};

/// One of a recipe's tasks.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskPlan {
    pub name: String,
    /// Data files, starting from the recipe's folder.
    pub dataset: Vec<String>,
    /// Its share where `task_mixing` is `fixed`.
    pub weight: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TaskMixing {
    /// By each task's rows.
    #[default]
    Proportional,
    /// By rows^(1/`task_temperature`).
    Temperature,
    /// By each task's `weight`.
    Fixed,
    /// One after the other.
    RoundRobin,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TaskWeighting {
    /// Every target counts alike.
    #[default]
    None,
    /// Kendall's weights, by each task's own uncertainty.
    Uncertainty,
    /// Weights that have all tasks learn at like rates.
    Gradnorm,
    /// What points against another task is taken from a gradient.
    Pcgrad,
}

/// Takes the tasks out of a file and puts their data in the place of `dataset`, so that the rest is checked as ever.
pub(super) fn take(root: &mut Node) -> Result<Vec<TaskPlan>, Vec<Problem>> {
    let Content::Mapping(items) = &mut root.content else { return Ok(Vec::new()) };
    let at = |items: &[Node], name: &str| items.as_chunks::<2>().0.iter().position(|[key, _]| key.is(name));
    let Some(place) = at(items, "tasks") else { return Ok(Vec::new()) };
    let own_data = at(items, "dataset").map(|place| items[2 * place].mark);
    let mark = items[2 * place].mark;
    let listed = items.drain(2 * place..2 * place + 2).next_back().expect("a key has a value");
    let (tasks, mut problems) = read(&listed);
    if let Some(own) = own_data {
        let problem = Problem::error(ProblemCode::InvalidValue, "each task names its own data", "每个任务各自写出数据");
        let problem = problem.key("dataset").at(own.line, own.column);
        problems.push(problem.fix("remove this line, or the tasks", "删除这一行，或删除 tasks"));
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let node = |content| Node { mark, content };
    let files = tasks.iter().flat_map(|task| task.dataset.iter().cloned());
    items.push(node(Content::Scalar("dataset".into())));
    items.push(node(Content::Sequence(files.map(|file| node(Content::Scalar(file.into()))).collect())));
    Ok(tasks)
}

fn read(listed: &Node) -> (Vec<TaskPlan>, Vec<Problem>) {
    let (mut tasks, mut problems): (Vec<TaskPlan>, _) = (Vec::new(), Vec::new());
    let mut wrong = |node: &Node, key: String, en: &str, zh: &str| {
        let problem = Problem::error(ProblemCode::WrongType, en, zh).key(key).at(node.mark.line, node.mark.column);
        let problem = problem.expected("{name: …, dataset: …, weight: 1}");
        problems.push(problem.fix(
            "write each task as \"- {name: sums, dataset: sums.json}\"",
            "每个任务写成“- {name: sums, dataset: sums.json}”",
        ));
    };
    let items = match &listed.content {
        Content::Sequence(items) if items.len() >= 2 => items.as_slice(),
        _ => {
            wrong(listed, "tasks".to_owned(), "tasks are a list of two or more", "tasks 是两项以上的列表");
            &[]
        }
    };
    for (index, item) in (1..).zip(items) {
        let Content::Mapping(own) = &item.content else {
            wrong(item, format!("tasks.{index}"), "a task has a name and data", "任务需要名字和数据");
            continue;
        };
        let mut task = TaskPlan { name: String::new(), dataset: Vec::new(), weight: 1.0 };
        for [key, value] in own.as_chunks::<2>().0 {
            let Content::Scalar(Value::String(name)) = &key.content else { continue };
            let texts: Option<Vec<String>> = match &value.content {
                Content::Scalar(Value::String(text)) => Some(vec![text.clone()]),
                Content::Sequence(items) => items.iter().map(text).collect(),
                _ => None,
            };
            match (name.as_str(), texts, &value.content) {
                ("name", Some(texts), _) if texts.len() == 1 => task.name.clone_from(&texts[0]),
                ("dataset", Some(texts), _) if !texts.is_empty() => task.dataset = texts,
                ("weight", _, Content::Scalar(Value::Number(weight)))
                    if weight.as_f64().is_some_and(|weight| weight > 0.0) =>
                {
                    task.weight = weight.as_f64().unwrap_or(1.0);
                }
                ("name" | "dataset" | "weight", ..) => {
                    wrong(value, format!("tasks.{index}.{name}"), "the value is not allowed", "值不在允许的范围内");
                }
                _ => wrong(key, format!("tasks.{index}.{name}"), "there is no such key", "没有这个键"),
            }
        }
        if task.dataset.is_empty() {
            wrong(item, format!("tasks.{index}.dataset"), "must be there and is not", "缺少必填项");
        }
        if task.name.is_empty() {
            task.name = format!("task {index}");
        }
        if tasks.iter().any(|other| other.name == task.name) {
            wrong(item, format!("tasks.{index}.name"), "another task has this name", "另一个任务已用此名");
        }
        tasks.push(task);
    }
    (tasks, problems)
}

fn text(node: &Node) -> Option<String> {
    match &node.content {
        Content::Scalar(Value::String(text)) => Some(text.clone()),
        _ => None,
    }
}

impl Recipe {
    /// How tasks of so many rows are mixed.
    pub(crate) fn mixing(&self, rows: &[usize]) -> Mixing {
        match self.task_mixing {
            // A step takes as many batches of each.
            _ if self.task_weighting != TaskWeighting::None => Mixing::RoundRobin,
            TaskMixing::Proportional => Mixing::tempered(rows, 1.0, self.task_cap),
            TaskMixing::Temperature => Mixing::tempered(rows, self.task_temperature, self.task_cap),
            TaskMixing::Fixed => Mixing::Shares(self.tasks.iter().map(|task| task.weight).collect()),
            TaskMixing::RoundRobin => Mixing::RoundRobin,
        }
    }

    /// The same with its tasks' data as one.
    pub(crate) fn as_one_task(&self) -> Self {
        Self { tasks: Vec::new(), task_weighting: TaskWeighting::None, ..self.clone() }
    }

    /// The recipes of its tasks: the same with each one's data.
    pub(crate) fn of_tasks(&self) -> Vec<Self> {
        if self.tasks.is_empty() {
            return vec![self.clone()];
        }
        let alone = |task: &TaskPlan| Self {
            dataset: super::OneOrMany::Many(task.dataset.clone()),
            tasks: Vec::new(),
            ..self.clone()
        };
        self.tasks.iter().map(alone).collect()
    }
}

/// What tasks do not go together with.
pub(super) fn errors(recipe: &Recipe) -> Vec<Problem> {
    let refused = |key: &str, en: &str, zh: &str| Problem::error(ProblemCode::InvalidValue, en, zh).key(key);
    let mut problems = Vec::new();
    if recipe.tasks.is_empty() {
        let keys = [
            ("task_mixing", recipe.task_mixing != TaskMixing::default()),
            ("task_weighting", recipe.task_weighting != TaskWeighting::default()),
            ("task_cap", recipe.task_cap.is_some()),
        ];
        for (key, _) in keys.into_iter().filter(|(_, written)| *written) {
            let problem = refused(key, "there are no tasks that this could be about", "没有 tasks，这一项没有意义");
            problems.push(problem.fix("write tasks, or remove this line", "请写 tasks，或删除这一行"));
        }
        return problems;
    }
    let weighted = recipe.task_weighting != TaskWeighting::None;
    if weighted && !matches!(recipe.stage, Stage::Pt | Stage::Sft) {
        let problem = refused(
            "task_weighting",
            "this weighs losses of tokens; with this stage whole answers are judged",
            "它加权的是词元的损失；该 stage 评判的是整个回答",
        );
        problems.push(
            problem
                .expected("stage: sft | pt")
                .fix("remove this line, or write stage: sft", "删除这一行，或写 stage: sft"),
        );
    }
    if weighted && recipe.task_mixing != TaskMixing::default() {
        let problem = refused(
            "task_mixing",
            "with task_weighting a step takes as many batches of each task",
            "使用 task_weighting 时，每步从每个任务取同样多的批次",
        );
        problems.push(problem.fix("remove this line, or task_weighting", "删除这一行，或删除 task_weighting"));
    }
    if weighted && recipe.mixout_p.is_some() {
        let problem = refused(
            "mixout_p",
            "mixout changes the weights for each batch, and the tasks' gradients would be of different weights",
            "mixout 每个批次改变权重，各任务的梯度将来自不同的权重",
        );
        problems.push(problem.fix("remove this line, or task_weighting", "删除这一行，或删除 task_weighting"));
    }
    problems
}
