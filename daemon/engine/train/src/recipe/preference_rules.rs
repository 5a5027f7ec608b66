//! What `stage` and the keys of preference tuning must satisfy.

use justtrain_worker_api::{Problem, ProblemCode};

use super::rules::invalid;
use super::{PrefLoss, Recipe, Stage};

/// Keys that some stages or methods take and others do not.
const SETTINGS: [&str; 7] = [
    "pref_loss",
    "pref_beta",
    "pref_ftx",
    "dpo_label_smoothing",
    "simpo_gamma",
    "kto_chosen_weight",
    "kto_rejected_weight",
];

impl Recipe {
    /// Those of [`SETTINGS`] that have a bearing on this run.
    fn preference_settings(&self) -> &'static [&'static str] {
        match (self.stage, self.pref_loss) {
            (Stage::Pt | Stage::Sft | Stage::Rm | Stage::Cls, _) => &[],
            (Stage::Kto, _) => &["pref_beta", "pref_ftx", "kto_chosen_weight", "kto_rejected_weight"],
            (Stage::Dpo, PrefLoss::Sigmoid) => &["pref_loss", "pref_beta", "pref_ftx", "dpo_label_smoothing"],
            (Stage::Dpo, PrefLoss::Simpo) => &["pref_loss", "pref_beta", "pref_ftx", "simpo_gamma"],
            (Stage::Dpo, _) => &["pref_loss", "pref_beta", "pref_ftx"],
        }
    }
}

pub(super) fn errors(recipe: &Recipe) -> Vec<Problem> {
    [method_without_its_stage(recipe), smoothing_of_another_loss(recipe), prompt_in_preferences(recipe)]
        .into_iter()
        .flatten()
        .chain(losses_of_tokens(recipe))
        .collect()
}

/// Settings of another stage or method.
pub(super) fn warnings(recipe: &Recipe) -> Vec<Problem> {
    let refused = |key: &str| errors(recipe).iter().any(|problem| problem.key.as_deref() == Some(key));
    let foreign = SETTINGS.iter().filter(|key| !recipe.preference_settings().contains(key) && !refused(key));
    let warning = |key: &&str| {
        Problem::warning(
            ProblemCode::InvalidValue,
            "this stage and pref_loss do not take this; it is not used",
            "当前的 stage 与 pref_loss 没有这一项，它不起作用",
        )
        .key(*key)
        .fix("remove this line, or change stage or pref_loss", "删除这一行，或修改 stage 或 pref_loss")
    };
    foreign.map(warning).collect()
}

/// Whoever names a method means to use it.
fn method_without_its_stage(recipe: &Recipe) -> Option<Problem> {
    (recipe.stage != Stage::Dpo && recipe.pref_loss != PrefLoss::default()).then(|| {
        invalid(
            "pref_loss",
            "pref_loss is the method of stage dpo, and stage is another",
            "pref_loss 是 stage: dpo 的方法，而 stage 不是 dpo",
        )
        .expected("stage: dpo")
        .fix("write stage: dpo, or remove this line", "写 stage: dpo，或删除这一行")
    })
}

fn smoothing_of_another_loss(recipe: &Recipe) -> Option<Problem> {
    let other = recipe.stage == Stage::Dpo && recipe.pref_loss != PrefLoss::Sigmoid;
    (other && recipe.dpo_label_smoothing > 0.0).then(|| {
        invalid(
            "dpo_label_smoothing",
            "only pref_loss sigmoid is a probability that can be smoothed",
            "只有 pref_loss: sigmoid 是可以平滑的概率",
        )
        .found(recipe.dpo_label_smoothing)
        .expected("pref_loss: sigmoid")
        .fix("remove this line, or write pref_loss: sigmoid", "删除这一行，或写 pref_loss: sigmoid")
    })
}

/// Regularisers that change the loss of a token.
fn losses_of_tokens(recipe: &Recipe) -> Vec<Problem> {
    let written = [
        ("label_smoothing_factor", recipe.label_smoothing_factor > 0.0),
        ("rdrop_alpha", recipe.rdrop_alpha.is_some()),
    ];
    let refused = written.into_iter().filter(|(_, written)| *written && recipe.stage.judges_answers());
    let problem = |(key, _)| {
        invalid(
            key,
            "this changes the loss of single tokens; with this stage whole answers are judged",
            "这一项改变单个词元的损失；该 stage 评判的是整个回答",
        )
        .expected("stage: sft")
        .fix("remove this line, or write stage: sft", "删除这一行，或写 stage: sft")
    };
    refused.map(problem).collect()
}

fn prompt_in_preferences(recipe: &Recipe) -> Option<Problem> {
    (recipe.stage.judges_answers() && recipe.train_on_prompt).then(|| {
        invalid(
            "train_on_prompt",
            "with this stage answers are judged; a prompt is the same for each of them",
            "该 stage 评判的是回答；提问对每个回答都相同",
        )
        .expected("stage: sft")
        .fix("remove this line, or write stage: sft", "删除这一行，或写 stage: sft")
    })
}
