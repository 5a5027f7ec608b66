//! What is trained in full beside the pairs: whole modules (`modules_to_save`) and biases, as PEFT has them.

use std::collections::BTreeSet;

use justtrain_worker_api::{Problem, ProblemCode};

use super::LoraConfig;
use crate::Decoder;
use crate::layers::InFull;
use crate::parameters::{Parameters, Trained};

/// Which biases are trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TrainedBias {
    #[default]
    None,
    All,
    /// Of layers with a pair.
    LoraOnly,
}

impl TrainedBias {
    /// PEFT's word.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::All => "all",
            Self::LoraOnly => "lora_only",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        [Self::None, Self::All, Self::LoraOnly].into_iter().find(|bias| bias.name() == name)
    }
}

impl LoraConfig {
    /// What of a module is trained in full.
    pub fn in_full(&self, module: &str, adapted: bool) -> InFull {
        let weight = self.modules_to_save.iter().any(|name| is_end(name, module));
        let bias = match self.bias {
            TrainedBias::None => false,
            TrainedBias::All => true,
            TrainedBias::LoraOnly => adapted,
        };
        InFull { weight, bias: bias || weight }
    }
}

/// Whether a module's name is this one, or ends so from a dot on.
pub(super) fn is_end(end: &str, module: &str) -> bool {
    module.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// `InvalidValue` where a name is that of no module, or the model has no bias to train.
pub(super) fn mark(decoder: &mut Decoder, config: &LoraConfig) -> Result<(), Problem> {
    let output = decoder.config().names.output;
    let modules: BTreeSet<String> = decoder
        .parameters_mut()
        .iter()
        .filter_map(|parameter| Some(parameter.name.strip_suffix(".weight")?.to_owned()))
        .chain(output.map(str::to_owned))
        .collect();
    if let Some(unknown) = config.modules_to_save.iter().find(|name| !modules.iter().any(|module| is_end(name, module)))
    {
        let ends: BTreeSet<&str> = modules.iter().filter_map(|module| module.rsplit('.').next()).collect();
        return Err(Problem::error(ProblemCode::InvalidValue, "this model has no such module", "该模型没有这个模块")
            .key("modules_to_save")
            .found(unknown)
            .expected(format!("some of {}", ends.into_iter().collect::<Vec<_>>().join(", ")))
            .fix("correct the name", "请更正名称"));
    }
    decoder.train_in_full(|module, adapted| config.in_full(module, adapted));
    let trained = decoder.trained_sizes(Trained::Adapters);
    let is_trained = |name: &String| {
        let tensor = format!("{name}.weight");
        // A table that is the output layer as well goes by its first name.
        output.is_some_and(|output| is_end(name, output))
            || trained.iter().any(|(trained, _)| is_end(&tensor, &InFull::base_name(trained)))
    };
    if let (Some(_), Some(name)) =
        (decoder.config().experts, config.modules_to_save.iter().find(|name| !is_trained(name)))
    {
        return Err(Problem::error(
            ProblemCode::InvalidValue,
            "beside LoRA pairs, experts, their router and feed-forward networks of such a model stay as they are",
            "在 LoRA 之外，这类模型的专家、路由器和前馈网络保持不变",
        )
        .key("modules_to_save")
        .found(name)
        .expected("embed_tokens, lm_head, or some of attention and norms")
        .fix(
            "remove this name, or train whole weights: finetuning_type: freeze with unfrozen_parameters",
            "删除这个名称，或训练完整权重：finetuning_type: freeze 并写 unfrozen_parameters",
        ));
    }
    let biases = decoder.trained_sizes(Trained::Adapters).iter().any(|(name, _)| name.ends_with(".bias"));
    if config.bias != TrainedBias::None && !biases {
        return Err(Problem::error(
            ProblemCode::InvalidValue,
            "the layers of this model have no biases",
            "该模型的这些层没有偏置",
        )
        .key("bias")
        .found(config.bias.name())
        .expected(TrainedBias::None.name())
        .fix("remove this line", "删除这一行"));
    }
    Ok(())
}
