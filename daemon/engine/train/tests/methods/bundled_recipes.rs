//! Every recipe of the bundle trains, apart from its model, its data and how long.

use std::fs;
use std::path::Path;

use justtrain_train::StopToken;
use justtrain_worker_api::{Event, Outcome, RecipeSource};

use crate::desk::{Desk, judged_rows};

/// What a tiny model on a few rows needs in place of what is written.
const CHANGED: [&str; 9] = [
    "model_name_or_path: tiny",
    "teacher: tiny",
    "dataset: data.jsonl",
    "val_size: 4",
    "max_steps: 4",
    "eval_steps: 2",
    "save_steps: 4",
    "logging_steps: 1",
    "unfreeze_schedule: {head: 0, 1: 1, all: 2}",
];

#[test]
fn every_bundled_recipe_trains() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../bundle/recipes");
    let files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() >= 12, "{files:?}");
    for file in files {
        let written = fs::read_to_string(&file).unwrap();
        let has = |line: &str| written.lines().any(|other| other == line);
        let desk = Desk::new();
        if ["stage: dpo", "stage: rm", "stage: kto"].into_iter().any(has) {
            judged_rows(&desk, has("stage: kto"));
        }
        if has("stage: cls") {
            let row = |i: usize| format!(r#"{{"text":"{i} is","label":"{}"}}"#, ["even", "odd"][i % 2]);
            fs::write(desk.path("data.jsonl"), (0..24).map(row).collect::<Vec<_>>().join("\n")).unwrap();
        }
        let key = |line: &str| line.split_once(':').map_or("", |(key, _)| key).to_owned();
        let kept = written.lines().filter(|line| !CHANGED.iter().any(|changed| key(changed) == key(line)));
        let changed = CHANGED.iter().copied().filter(|line| {
            let own = key(line);
            let of_tasks = own == "dataset" && has("tasks:");
            let optional = ["unfreeze_schedule", "teacher"].contains(&own.as_str());
            !of_tasks && (!optional || written.lines().any(|other| key(other) == own))
        });
        let stages = written.lines().filter(|line| line.starts_with("- name: ")).count();
        write_data(&desk);
        // What a stage says itself, without how long it trains.
        let kept = kept.filter(|line| {
            !["  max_steps:", "  num_train_epochs:", "  save_steps:"].iter().any(|key| line.starts_with(key))
        });
        let (of_stages, of_all): (Vec<&str>, Vec<&str>) =
            kept.partition(|line| ["stages:", "tasks:", "- ", "  "].iter().any(|begins| line.starts_with(begins)));
        let text = of_all.into_iter().chain(changed).chain(of_stages).collect::<Vec<_>>().join("\n");
        let recipe = RecipeSource { text, ..desk.recipe("") };
        let steps = 4 * stages.max(1) as u64;
        let mut events = Vec::new();
        let outcome = desk.run(&recipe, "run", false, &mut events, &StopToken::default());
        let outcome = outcome.unwrap_or_else(|failure| panic!("{}: {failure:?}", file.display()));
        assert!(matches!(outcome, Outcome::Trained { result, .. } if result.steps == steps), "{}", file.display());
        let losses = events.iter().filter(|event| matches!(event, Event::Step { loss, .. } if loss.is_finite()));
        assert_eq!(losses.count() as u64, steps, "{}", file.display());
        let named = |event: &Event| matches!(event, Event::Checkpoint { path, .. } if path.exists());
        assert!(events.iter().any(named), "{}", file.display());
    }
}

/// Under the names that recipes of several stages give them.
fn write_data(desk: &Desk) {
    let write = |name: &str, row: fn(usize) -> String| {
        fs::write(desk.path(name), (0..24).map(row).collect::<Vec<_>>().join("\n")).unwrap();
    };
    write("texts.jsonl", |i| format!(r#"{{"text":"{i} and {i} make {}, and so on"}}"#, 2 * i));
    write("answers.jsonl", |i| format!(r#"{{"prompt":"{i}+{i}","completion":"is {}"}}"#, 2 * i));
    write("more.jsonl", |i| format!(r#"{{"prompt":"say {i}","completion":"{i}!"}}"#));
    write("pairs.jsonl", |i| format!(r#"{{"prompt":"{i}+{i}","chosen":"is {}","rejected":"no"}}"#, 2 * i));
}
