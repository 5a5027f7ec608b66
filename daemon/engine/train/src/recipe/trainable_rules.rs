//! What the keys that choose the trained weights must satisfy. Which modules a model has is known only with the model.

use justtrain_worker_api::Problem;
use regex::Regex;

use super::check::Written;
use super::rules::{invalid, no_regex, share_or_count};
use super::{FinetuningType, Recipe};
use crate::trainable::Group;

/// Keys of `finetuning_type: freeze` that choose by layer and module.
const BY_LAYER: [&str; 3] = ["freeze_trainable_layers", "freeze_trainable_modules", "freeze_extra_modules"];

pub(super) fn errors(recipe: &Recipe, written: &Written) -> Vec<Problem> {
    freezing(recipe, written).into_iter().chain(unfreezing(recipe)).collect()
}

/// Groups that are none, and an order that is none.
fn unfreezing(recipe: &Recipe) -> Vec<Problem> {
    let (mut problems, mut before) = (Vec::new(), None::<(Group, f64)>);
    for (name, when) in recipe.unfreeze_schedule_as_written() {
        let key = format!("unfreeze_schedule.{name}");
        let Some(group) = Group::parse(name) else {
            problems.push(
                invalid(&key, "this is no part of the network", "网络中没有这一部分")
                    .found(name)
                    .expected("head | 1, 2, … last blocks | all")
                    .fix("write head, a number of blocks, or all", "请写 head、块数或 all"),
            );
            continue;
        };
        problems.extend(share_or_count(&key, when));
        match before {
            None if when > 0.0 => problems.push(
                invalid(&key, "nothing would be trained before", "在此之前什么也不会训练")
                    .found(when)
                    .expected("0")
                    .fix("let the first group begin at 0", "请让第一组从 0 开始"),
            ),
            Some((above, earlier)) if group <= above || later_than(earlier, when) => problems.push(
                invalid(
                    &key,
                    "groups join from the top down, each later than the one before it",
                    "各组必须自上而下依次加入，每组晚于前一组",
                )
                .found(format!("{group}: {when} after {above}: {earlier}"))
                .fix("order the groups: head, numbers, all", "请按 head、块数、all 的顺序排列"),
            ),
            _ => {}
        }
        before = Some((group, when));
    }
    problems
}

/// Whether `earlier` is not before `when`. A share and a number of steps can be compared only in the run.
fn later_than(earlier: f64, when: f64) -> bool {
    let comparable = earlier == 0.0 || (earlier < 1.0) == (when < 1.0);
    comparable && earlier >= when
}

fn freezing(recipe: &Recipe, written: &Written) -> Vec<Problem> {
    if recipe.finetuning_type != FinetuningType::Freeze {
        return BY_LAYER.iter().chain(&["unfrozen_parameters"]).map(|key| without_freeze(recipe, key)).collect();
    }
    if let Some(patterns) = &recipe.unfrozen_parameters {
        let broken = patterns.items().iter().filter_map(|pattern| Some((pattern, Regex::new(pattern).err()?)));
        let broken = broken.map(|(pattern, error)| no_regex("unfrozen_parameters", pattern, &error));
        let both = BY_LAYER.iter().filter(|key| written.is_there(key)).map(|key| chosen_twice(key));
        return broken.chain(both).chain(patterns.items().is_empty().then(|| nothing("unfrozen_parameters"))).collect();
    }
    let none = recipe.freeze_trainable_layers == 0 && recipe.freeze_extra_modules().is_empty();
    none.then(|| nothing("freeze_trainable_layers")).into_iter().collect()
}

fn without_freeze(recipe: &Recipe, key: &str) -> Problem {
    let kind = recipe.finetuning_type.name();
    invalid(
        key,
        &format!("this chooses the weights of finetuning_type freeze, and finetuning_type is {kind}"),
        &format!("这一项用于 finetuning_type 为 freeze 时选择权重，而 finetuning_type 是 {kind}"),
    )
    .expected("finetuning_type: freeze")
    .fix("write finetuning_type: freeze, or remove this line", "写 finetuning_type: freeze，或删除这一行")
}

fn chosen_twice(key: &str) -> Problem {
    invalid(
        key,
        "unfrozen_parameters is there as well, and only one of the two can choose",
        "已经写了 unfrozen_parameters，两者只能用一个来选择",
    )
    .fix("keep one of the two lines", "只保留其中一行")
}

fn nothing(key: &str) -> Problem {
    invalid(key, "nothing would be trained", "这样什么也不会训练")
        .expected("freeze_trainable_layers ≠ 0 | freeze_extra_modules | unfrozen_parameters")
        .fix("name what shall be trained", "请写明要训练什么")
}
