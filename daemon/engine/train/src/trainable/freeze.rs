//! Some layers are trained and the rest is frozen, with LLaMA-Factory's names and meaning (`_setup_freeze_tuning` in its
//! `model/adapter.py`); or whatever regular expressions find, as Axolotl's `unfrozen_parameters`.

use std::collections::BTreeSet;

use justtrain_model::DecoderConfig;
use justtrain_worker_api::{Problem, ProblemCode};
use regex::Regex;

use crate::recipe::Recipe;

/// Names of the tensors that are trained.
pub(super) fn selected(recipe: &Recipe, config: &DecoderConfig) -> Result<BTreeSet<String>, Vec<Problem>> {
    let names: Vec<String> = config.tensors().into_iter().map(|(name, _)| name).collect();
    match recipe.unfrozen_parameters() {
        Some(patterns) => by_pattern(&patterns, &names),
        None => by_layer(recipe, config, &names),
    }
}

fn by_pattern(patterns: &[Regex], names: &[String]) -> Result<BTreeSet<String>, Vec<Problem>> {
    let unused = patterns.iter().filter(|pattern| !names.iter().any(|name| pattern.is_match(name)));
    let problem = |pattern: &Regex| {
        Problem::error(ProblemCode::InvalidValue, "no weight has such a name", "没有任何权重叫这样的名字")
            .key("unfrozen_parameters")
            .found(format!("\"{pattern}\""))
            .expected(format!("a part of a name such as {}", names.last().map_or("", String::as_str)))
            .fix("correct the pattern, or remove it", "请修改这个模式，或将其删除")
    };
    let problems: Vec<Problem> = unused.map(problem).collect();
    if !problems.is_empty() {
        return Err(problems);
    }
    Ok(names.iter().filter(|name| patterns.iter().any(|pattern| pattern.is_match(name))).cloned().collect())
}

fn by_layer(recipe: &Recipe, config: &DecoderConfig, names: &[String]) -> Result<BTreeSet<String>, Vec<Problem>> {
    let (modules, extra) = (recipe.freeze_trainable_modules(), recipe.freeze_extra_modules());
    let count = config.layers.len();
    let trained = (recipe.freeze_trainable_layers.unsigned_abs() as usize).min(count);
    let layers = if recipe.freeze_trainable_layers > 0 { count - trained..count } else { 0..trained };
    let has_part = |name: &str, module: &str| name.split('.').any(|part| part == module);
    let mut problems = Vec::new();
    let outside = || names.iter().filter(|name| config.place_in_block(name).is_none());
    let inside = || names.iter().filter_map(|name| Some((name, config.place_in_block(name)?)));
    for module in modules.iter().filter(|module| *module != "all") {
        if !inside().any(|(_, (_, name))| has_part(name, module)) {
            let known = inside().map(|(_, (_, name))| first_part(name));
            problems.push(unknown("freeze_trainable_modules", module, known));
        }
    }
    for module in &extra {
        if !outside().any(|name| has_part(name, module)) {
            problems.push(unknown(
                "freeze_extra_modules",
                module,
                outside().filter_map(|name| name.rsplit('.').nth(1)),
            ));
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let in_layers = inside().filter(|(_, (layer, name))| {
        layers.contains(layer) && modules.iter().any(|module| module == "all" || has_part(name, module))
    });
    let in_layers = in_layers.map(|(name, _)| name);
    Ok(in_layers.chain(outside().filter(|name| extra.iter().any(|module| has_part(name, module)))).cloned().collect())
}

fn first_part(name: &str) -> &str {
    name.split('.').next().unwrap_or_default()
}

fn unknown<'a>(key: &str, module: &str, known: impl Iterator<Item = &'a str>) -> Problem {
    let known: BTreeSet<&str> = known.collect();
    let known = known.into_iter().collect::<Vec<_>>().join(" | ");
    Problem::error(ProblemCode::InvalidValue, "this model has no such module", "该模型没有这个模块")
        .key(key)
        .found(format!("\"{module}\""))
        .expected(known)
        .fix("write a name from this list", "请写列表中的名字")
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use justtrain_model::families;
    use justtrain_worker_api::RecipeSource;

    use super::*;

    /// LLaMA-Factory's selection from the same names, written again as it stands there.
    fn as_llama_factory(names: &[String], layers: i64, modules: &[&str], extra: &[&str], count: i64) -> Vec<String> {
        let ids = if layers > 0 { (count - layers).max(0)..count } else { 0..(-layers).min(count) };
        let mut parts: Vec<String> = Vec::new();
        for module in modules {
            let module = if *module == "all" { "" } else { module };
            parts.extend(ids.clone().map(|id| format!(".{id}.{module}")));
        }
        parts.extend(extra.iter().map(|&module| module.to_owned()));
        names.iter().filter(|name| parts.iter().any(|part| name.contains(part.as_str()))).cloned().collect()
    }

    fn config(tied: bool) -> DecoderConfig {
        let config = serde_json::json!({
            "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 12,
            "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "vocab_size": 64,
            "tie_word_embeddings": tied, "max_position_embeddings": 64,
        });
        families::from_config(&config, Path::new("config.json")).unwrap()
    }

    fn recipe(more: &str) -> Recipe {
        let text = format!("model_name_or_path: m\ndataset: d.json\nfinetuning_type: freeze\n{more}\n");
        Recipe::parse(&RecipeSource { text, file: "r.yaml".to_owned(), base_dir: PathBuf::from("/") }).unwrap()
    }

    #[test]
    fn layers_and_modules_are_those_of_llama_factory() {
        let config = config(false);
        let names: Vec<String> = config.tensors().into_iter().map(|(name, _)| name).collect();
        let extra_text = |extra: &[&str]| match extra {
            [] => String::new(),
            extra => format!("freeze_extra_modules: {}\n", extra.join(",")),
        };
        for layers in [2, -1, -3, 1, 12, 40, -40] {
            for modules in [&["all"][..], &["mlp"], &["self_attn", "input_layernorm"]] {
                for extra in [&[][..], &["lm_head"], &["embed_tokens", "norm"]] {
                    let written =
                        format!("freeze_trainable_layers: {layers}\nfreeze_trainable_modules: {}\n", modules.join(","));
                    let ours = selected(&recipe(&(written + &extra_text(extra))), &config).unwrap();
                    let mut theirs = as_llama_factory(&names, layers, modules, extra, 12);
                    // There "norm" is found in the name of every norm of a block; here it is the module of this name.
                    theirs.retain(|name| !name.contains("layernorm") || ours.contains(name));
                    theirs.sort();
                    assert_eq!(ours.into_iter().collect::<Vec<_>>(), theirs, "{layers} {modules:?} {extra:?}");
                }
            }
        }
    }

    #[test]
    fn patterns_take_what_they_find() {
        let chosen =
            selected(&recipe("unfrozen_parameters: ['layers\\.(3|11)\\.mlp', '^lm_head']"), &config(false)).unwrap();
        assert_eq!(chosen.len(), 2 * 3 + 1);
        assert!(chosen.contains("model.layers.11.mlp.up_proj.weight") && chosen.contains("lm_head.weight"));
    }

    #[test]
    fn what_the_model_does_not_have_is_refused_with_what_it_has() {
        let refused = |more: &str| selected(&recipe(more), &config(true)).unwrap_err().remove(0);
        let head = refused("freeze_extra_modules: lm_head");
        assert_eq!(
            (head.key.as_deref(), head.expected.as_deref()),
            (Some("freeze_extra_modules"), Some("embed_tokens | norm"))
        );
        let module = refused("freeze_trainable_modules: [mlp, conv]");
        let known = "input_layernorm | mlp | post_attention_layernorm | self_attn";
        assert_eq!((module.found.as_deref(), module.expected.as_deref()), (Some("\"conv\""), Some(known)));
        assert_eq!(refused("unfrozen_parameters: [mlp, conv]").found.as_deref(), Some("\"conv\""));
    }
}
