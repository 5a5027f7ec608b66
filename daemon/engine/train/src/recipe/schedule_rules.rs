//! What the schedule's keys must satisfy: each takes its own settings, and some need one.

use justtrain_worker_api::{Problem, ProblemCode};

use super::Recipe;
use super::check::Written;
use super::rules::{invalid, share_or_count};
use crate::optim::schedule::{SchedulerKwargs, SchedulerType};

pub(super) fn errors(recipe: &Recipe, written: &Written) -> Vec<Problem> {
    let kwargs = recipe.lr_scheduler_kwargs.clone().unwrap_or_default();
    let mut problems = foreign_settings(recipe.lr_scheduler_type, written);
    problems.extend(match recipe.lr_scheduler_type {
        SchedulerType::CosineWithMinLr => lowest_rate(recipe, &kwargs, written),
        SchedulerType::Polynomial => last_rate(recipe, &kwargs),
        SchedulerType::WarmupStableDecay => decay_steps(&kwargs, written),
        SchedulerType::ReduceLrOnPlateau => validation(recipe).into_iter().collect(),
        _ => Vec::new(),
    });
    problems
}

/// A warm-up beside a schedule that has none, or its own.
pub(super) fn warnings(recipe: &Recipe) -> Vec<Problem> {
    let kind = recipe.lr_scheduler_type;
    let unused = |key: &str| {
        Problem::warning(
            ProblemCode::InvalidValue,
            format!("{} has no warm-up of this kind; this is not used", kind.name()),
            format!("{} 没有这种预热，这一项不起作用", kind.name()),
        )
        .key(key)
        .fix(
            "remove this line; constant_with_warmup is constant after a warm-up",
            "删除这一行；constant_with_warmup 先预热再保持不变",
        )
    };
    if kind.warms_up() { Vec::new() } else { ["warmup_steps", "warmup_ratio"].map(unused).into() }
}

fn foreign_settings(kind: SchedulerType, written: &Written) -> Vec<Problem> {
    let settings = kind.settings();
    let foreign = written.inside("lr_scheduler_kwargs").filter(|name| !settings.contains(name));
    let problem = |name: &str| {
        let problem = invalid(
            &format!("lr_scheduler_kwargs.{name}"),
            &format!("{} does not take this", kind.name()),
            &format!("{} 没有这一项", kind.name()),
        );
        let others = SchedulerType::ALL.iter().filter(|other| other.settings().contains(&name));
        let others = others.map(|other| other.name()).collect::<Vec<_>>().join(", ");
        let problem = if settings.is_empty() { problem } else { problem.expected(settings.join(" | ")) };
        problem.fix(
            format!("remove it, or change lr_scheduler_type: it belongs to {others}"),
            format!("删除它，或修改 lr_scheduler_type：它属于 {others}"),
        )
    };
    foreign.map(problem).collect()
}

fn lowest_rate(recipe: &Recipe, kwargs: &SchedulerKwargs, written: &Written) -> Vec<Problem> {
    // One that is there and does not fit is reported already.
    let there = |name: &str| written.is_there(&format!("lr_scheduler_kwargs.{name}"));
    let neither = (!there("min_lr") && !there("min_lr_rate")).then(|| {
        invalid(
            "lr_scheduler_type",
            "cosine_with_min_lr needs to know the lowest rate",
            "cosine_with_min_lr 需要写明最低学习率",
        )
        .expected("lr_scheduler_kwargs: {min_lr_rate: 0.1}")
        .fix("add this line, or write min_lr for the rate itself", "加上这一行，或用 min_lr 写学习率本身")
    });
    let both = (kwargs.min_lr.is_some() && kwargs.min_lr_rate.is_some()).then(|| {
        invalid(
            "lr_scheduler_kwargs.min_lr_rate",
            "min_lr is there as well, and only one of the two can hold",
            "已经写了 min_lr，两者只能写一个",
        )
        .fix("keep one of the two", "只保留其中一项")
    });
    let too_high = kwargs.min_lr.filter(|rate| *rate > recipe.learning_rate).map(|rate| {
        invalid("lr_scheduler_kwargs.min_lr", "above the highest rate", "高于最高学习率")
            .found(rate)
            .expected(format!("≤ learning_rate {}", recipe.learning_rate))
            .fix("write a smaller number", "写一个更小的数")
    });
    [neither, both, too_high].into_iter().flatten().collect()
}

fn last_rate(recipe: &Recipe, kwargs: &SchedulerKwargs) -> Vec<Problem> {
    let (end, highest) = (kwargs.lr_end(), recipe.learning_rate);
    if end < highest {
        return Vec::new();
    }
    let key = if kwargs.lr_end.is_some() { "lr_scheduler_kwargs.lr_end" } else { "learning_rate" };
    let problem = invalid(
        key,
        "polynomial falls from learning_rate to lr_end, which must be lower",
        "polynomial 从 learning_rate 降到 lr_end，后者必须更低",
    )
    .found(format!("learning_rate {highest}, lr_end {end}"))
    .fix("write a smaller lr_end in lr_scheduler_kwargs", "在 lr_scheduler_kwargs 中写更小的 lr_end");
    vec![problem]
}

fn decay_steps(kwargs: &SchedulerKwargs, written: &Written) -> Vec<Problem> {
    let missing = (!written.is_there("lr_scheduler_kwargs.num_decay_steps")).then(|| {
        invalid(
            "lr_scheduler_type",
            "warmup_stable_decay needs to know how long the decay is",
            "warmup_stable_decay 需要写明衰减多少步",
        )
        .expected("lr_scheduler_kwargs: {num_decay_steps: 0.2}")
        .fix("add this line: a number of steps, or a share of all steps", "加上这一行：步数，或占总步数的比例")
    });
    let count = |name: &str, value: Option<f64>| share_or_count(&format!("lr_scheduler_kwargs.{name}"), value?);
    let decay = count("num_decay_steps", kwargs.num_decay_steps);
    let stable = count("num_stable_steps", kwargs.num_stable_steps);
    [missing, decay, stable].into_iter().flatten().collect()
}

fn validation(recipe: &Recipe) -> Option<Problem> {
    (recipe.val_size == 0.0).then(|| {
        invalid(
            "lr_scheduler_type",
            "reduce_lr_on_plateau looks at the validation loss, and with val_size 0 there is none",
            "reduce_lr_on_plateau 依据验证损失，而 val_size 为 0 时没有验证",
        )
        .fix("give val_size a share such as 0.1", "给 val_size 一个比例，例如 0.1")
    })
}
