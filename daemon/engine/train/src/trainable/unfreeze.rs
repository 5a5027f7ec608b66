//! Gradual unfreezing and discriminative learning rates (ULMFiT, Howard & Ruder 2018, arXiv 1801.06146): groups of layers
//! join from the top, and each learns `lr_decay` times slower than the one above. With the head first and then
//! everything it is linear probing, then fine-tuning (Kumar et al. 2022, arXiv 2202.10054).

use std::collections::BTreeSet;
use std::fmt;

use justtrain_model::DecoderConfig;
use justtrain_worker_api::{Problem, ProblemCode};

use super::Stage;

/// A part of the network from its top down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Group {
    /// The last norm and the output layer, even where that is the embedding table as well.
    Head,
    /// The head, and so many of the last blocks.
    Top(usize),
    /// Everything that the method trains.
    All,
}

impl Group {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text {
            "head" => Some(Self::Head),
            "all" => Some(Self::All),
            number => number.parse().ok().filter(|&blocks| blocks > 0).map(Self::Top),
        }
    }

    fn contains(self, config: &DecoderConfig, name: &str) -> bool {
        let blocks = match self {
            Self::All => return true,
            Self::Head => 0,
            Self::Top(blocks) => blocks,
        };
        match config.place_in_block(name) {
            Some((layer, _)) => layer + blocks >= config.layers.len(),
            None => in_head(config, name),
        }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Head => f.write_str("head"),
            Self::Top(blocks) => write!(f, "{blocks}"),
            Self::All => f.write_str("all"),
        }
    }
}

fn in_head(config: &DecoderConfig, name: &str) -> bool {
    let names = config.names;
    // Of one table for both ends each end has a pair of its own.
    let of_pair = name.contains(".lora_");
    let output = if config.tied_embeddings && !of_pair { Some(names.embeddings) } else { names.output };
    let module = name.rsplit_once('.').map(|(module, _)| module);
    module.is_some_and(|module| [names.norm, output, names.classifier.pooler].contains(&Some(module)))
}

/// Groups from the top when every block is one: 0 for the head, and the largest number for what lies below the blocks.
/// A table that is the output layer as well lies below them.
pub(super) fn depth(config: &DecoderConfig, name: &str) -> usize {
    let layers = config.layers.len();
    match config.place_in_block(name) {
        Some((layer, _)) => layers - layer,
        None if in_head(config, name) && !name.starts_with(config.names.embeddings) => 0,
        None => layers + 1,
    }
}

/// What of `names` is trained from which step on. A group that adds nothing is refused.
pub(super) fn stages(
    schedule: &[(Group, u64)],
    config: &DecoderConfig,
    names: &[String],
) -> Result<Vec<Stage>, Vec<Problem>> {
    let (mut stages, mut problems) = (Vec::<Stage>::new(), Vec::new());
    for &(group, first_step) in schedule {
        let of_group: BTreeSet<String> = names.iter().filter(|name| group.contains(config, name)).cloned().collect();
        let before = stages.last().map_or(0, |stage| stage.names.len());
        let beyond = matches!(group, Group::Top(blocks) if blocks > config.layers.len());
        if beyond || of_group.len() == before {
            problems.push(adds_nothing(group, config));
        }
        stages.push(Stage { first_step, group, names: of_group });
    }
    if problems.is_empty() { Ok(stages) } else { Err(problems) }
}

fn adds_nothing(group: Group, config: &DecoderConfig) -> Problem {
    Problem::error(
        ProblemCode::InvalidValue,
        "this group adds nothing that the run trains",
        "这一组没有增加任何可训练的参数",
    )
    .key(format!("unfreeze_schedule.{group}"))
    .found(group)
    .expected(format!("head | 1 to {} for the last blocks | all", config.layers.len()))
    .fix(
        "remove it, or choose a group that what is trained reaches into; an adapter has a head with lora_target: lm_head alone",
        "请删除它，或选择包含可训练参数的组；只有 lora_target 含 lm_head 的适配器才有 head",
    )
}
