//! `tasks`: several data sets in one run, each with a name of its own.

use justtrain_data::Mixing;
use justtrain_worker_api::{Problem, ProblemCode};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::check::check_mapping_alone;
use super::yaml::{Content, Mark, Node};
use super::{OneOrMany, Recipe, Stage, default, peers};
use crate::early_stopping::Metric;

/// One of a recipe's tasks.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskPlan {
    pub name: String,
    /// Data files, starting from the recipe's folder.
    pub dataset: Vec<String>,
    /// Its share where `task_mixing` is `fixed`.
    pub weight: f64,
    /// What its held-out rows are judged by.
    pub metric: TaskMetric,
}

/// What a task is judged by on its held-out rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TaskMetric {
    /// Mean over target tokens, natural logarithm; with pairs and judged answers the method's.
    #[default]
    Loss,
    /// Of the loss over target tokens.
    Perplexity,
    /// Share of target tokens that are the most probable one.
    TokenAccuracy,
    /// Share of rows whose greedy answer is the reference: every validation answers them.
    ExactMatch,
}

impl TaskMetric {
    const ALL: [Self; 4] = [Self::Loss, Self::Perplexity, Self::TokenAccuracy, Self::ExactMatch];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Loss => "loss",
            Self::Perplexity => "perplexity",
            Self::TokenAccuracy => "token_accuracy",
            Self::ExactMatch => "exact_match",
        }
    }

    fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|metric| metric.name() == name)
    }

    fn names() -> String {
        Self::ALL.map(Self::name).join(" | ")
    }
}

/// What the best validation is told by, as it is written.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum BestBy {
    Whole(Metric),
    /// A task's name and one of its metrics.
    OfTask(#[schemars(extend("x-values" = "TASK/METRIC"))] String),
}

impl Default for BestBy {
    fn default() -> Self {
        Self::Whole(Metric::default())
    }
}

impl BestBy {
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Whole(metric) => metric.name(),
            Self::OfTask(text) => text,
        }
    }
}

/// The same, found among the recipe's tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BestMetric {
    Whole(Metric),
    OfTask { task: usize, metric: TaskMetric },
}

impl BestMetric {
    pub(crate) fn greater_is_better(self) -> bool {
        match self {
            Self::Whole(metric) => metric.greater_is_better(),
            Self::OfTask { metric, .. } => matches!(metric, TaskMetric::TokenAccuracy | TaskMetric::ExactMatch),
        }
    }
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

/// Takes the tasks out of a file, with the place where each is written, and puts their data in the place of `dataset`, so that the rest is checked as ever.
pub(super) fn take(root: &mut Node) -> Result<Vec<(TaskPlan, Mark)>, Vec<Problem>> {
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
    let files = tasks.iter().flat_map(|(task, _)| task.dataset.iter().cloned());
    items.push(node(Content::Scalar("dataset".into())));
    items.push(node(Content::Sequence(files.map(|file| node(Content::Scalar(file.into()))).collect())));
    Ok(tasks)
}

/// A task as it is written.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct WrittenTask {
    /// What it is called. Default: `task 1`, `task 2`, …
    #[serde(default)]
    #[schemars(length(min = 1))]
    name: Option<String>,

    /// Its data file or files, starting from the recipe's folder.
    #[schemars(length(min = 1))]
    dataset: OneOrMany,

    /// Its share of the batches with `task_mixing: fixed`.
    #[serde(default = "default::weight")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    weight: f64,

    /// What its held-out rows are judged by; loss and token accuracy are shown as well. `exact_match` has every validation answer them.
    #[serde(default)]
    metric: TaskMetric,
}

/// A list of tasks.
pub(super) fn schema(generator: &mut SchemaGenerator) -> Schema {
    let item = generator.subschema_for::<WrittenTask>();
    json_schema!({ "type": "array", "items": item, "minItems": 2, "default": [] })
}

fn read(listed: &Node) -> (Vec<(TaskPlan, Mark)>, Vec<Problem>) {
    let (mut tasks, mut problems): (Vec<(TaskPlan, Mark)>, _) = (Vec::new(), Vec::new());
    let wrong = |node: &Node, key: String, en: &str, zh: &str| {
        let problem = Problem::error(ProblemCode::WrongType, en, zh).key(key).at(node.mark.line, node.mark.column);
        let problem = problem.expected("{name: …, dataset: …, weight: 1}");
        problem.fix(
            "write each task as \"- {name: sums, dataset: sums.json}\"",
            "每个任务写成“- {name: sums, dataset: sums.json}”",
        )
    };
    let items = match &listed.content {
        Content::Sequence(items) if items.len() >= 2 => items.as_slice(),
        _ => {
            problems.push(wrong(
                listed,
                "tasks".to_owned(),
                "tasks are a list of two or more",
                "tasks 是两项以上的列表",
            ));
            &[]
        }
    };
    let schema = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let schema = schema.into_generator().into_root_schema_for::<WrittenTask>().to_value();
    for (index, item) in (1..).zip(items) {
        let Content::Mapping(own) = &item.content else {
            let (en, zh) = ("a task has a name and data", "任务需要名字和数据");
            problems.push(wrong(item, format!("tasks.{index}"), en, zh));
            continue;
        };
        let (values, mistakes) = check_mapping_alone(own, &schema, &format!("tasks.{index}."));
        let data = format!("tasks.{index}.dataset");
        let is_named = mistakes.iter().any(|problem| problem.key.as_deref() == Some(&data));
        problems.extend(mistakes);
        if !values.contains_key("dataset") && !is_named {
            problems.push(wrong(item, data, "must be there and is not", "缺少必填项"));
        }
        // The rest has been said already.
        let Ok(task) = serde_json::from_value::<WrittenTask>(values.into()) else { continue };
        let name = task.name.unwrap_or_else(|| format!("task {index}"));
        if tasks.iter().any(|(other, _)| other.name == name) {
            let (en, zh) = ("another task has this name", "另一个任务已用此名");
            problems.push(wrong(item, format!("tasks.{index}.name"), en, zh));
        }
        let dataset = task.dataset.items().to_vec();
        tasks.push((TaskPlan { name, dataset, weight: task.weight, metric: task.metric }, item.mark));
    }
    (tasks, problems)
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

    /// What the best validation is told by; None where it names no task's metric that there is.
    pub(crate) fn best_by(&self) -> Option<BestMetric> {
        match &self.metric_for_best_model {
            BestBy::Whole(metric) => Some(BestMetric::Whole(*metric)),
            BestBy::OfTask(text) => {
                let (name, metric) = text.rsplit_once('/')?;
                let task = self.tasks.iter().position(|task| task.name == name)?;
                Some(BestMetric::OfTask { task, metric: TaskMetric::of_name(metric)? })
            }
        }
    }

    /// Whether answers to a task's held-out rows are wanted while training.
    pub(crate) fn answers_task(&self, task: usize) -> bool {
        let best = BestMetric::OfTask { task, metric: TaskMetric::ExactMatch };
        self.tasks.get(task).is_some_and(|task| task.metric == TaskMetric::ExactMatch) || self.judges_by(best)
    }

    fn judges_by(&self, metric: BestMetric) -> bool {
        self.early_stopping().is_some() && self.best_by() == Some(metric)
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
            dataset: OneOrMany::Many(task.dataset.clone()),
            tasks: Vec::new(),
            ..self.clone()
        };
        self.tasks.iter().map(alone).collect()
    }
}

/// Metrics of tasks, each written at its mark, that say nothing of what the stage learns.
pub(super) fn metrics(recipe: &Recipe, marks: &[Mark]) -> Vec<Problem> {
    let wrong = |((number, task), mark): ((usize, &TaskPlan), &Mark)| {
        let problem = metric_of_stage(recipe.stage, task.metric)?;
        Some(problem.key(format!("tasks.{number}.metric")).at(mark.line, mark.column))
    };
    (1..).zip(&recipe.tasks).zip(marks).filter_map(wrong).collect()
}

/// A metric that says nothing of what a stage learns.
fn metric_of_stage(stage: Stage, metric: TaskMetric) -> Option<Problem> {
    let (en, zh) = match (stage, metric) {
        (Stage::Rm, TaskMetric::Perplexity | TaskMetric::TokenAccuracy | TaskMetric::ExactMatch) => {
            ("a reward model gives scores, and says nothing of tokens", "奖励模型只给出分数，与词元无关")
        }
        (Stage::Pt, TaskMetric::ExactMatch) => {
            ("a plain text has no question that could be answered", "纯文本没有可以回答的问题")
        }
        _ => return None,
    };
    let expected = if stage == Stage::Rm { "loss" } else { "loss | perplexity | token_accuracy" };
    let problem = Problem::error(ProblemCode::InvalidValue, en, zh).found(metric.name()).expected(expected);
    Some(problem.fix("write one of these, or remove it", "请改为其中之一，或将其删除"))
}

/// What `metric_for_best_model` says that cannot be looked up.
pub(super) fn unknown_metric(recipe: &Recipe) -> Option<Problem> {
    const KEY: &str = "metric_for_best_model";
    let BestBy::OfTask(text) = &recipe.metric_for_best_model else { return None };
    if let Some(BestMetric::OfTask { metric, .. }) = recipe.best_by() {
        return metric_of_stage(recipe.stage, metric).map(|problem| problem.key(KEY).found(text));
    }
    let problem = Problem::error(ProblemCode::InvalidValue, "there is no such metric", "没有这个指标");
    let whole = Metric::ALL.map(Metric::name).join(" | ");
    let of_tasks = recipe.tasks.iter().map(|task| format!(" | {}/METRIC", task.name)).collect::<String>();
    let problem = problem.key(KEY).found(format!("\"{text}\"")).expected(whole + &of_tasks);
    if let Some(ours) = peers::instead(KEY, text) {
        return Some(problem.fix(format!("write {ours}"), format!("请写 {ours}")));
    }
    let metrics = TaskMetric::names();
    Some(problem.fix(
        format!("write one of these; METRIC is {metrics}, of a task of this recipe"),
        format!("请改为其中之一；METRIC 为 {metrics}，前面是本配方中任务的名字"),
    ))
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
    if weighted && !recipe.stage.learns_tokens() {
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
