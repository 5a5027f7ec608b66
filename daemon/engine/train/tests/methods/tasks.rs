//! Several tasks in one run: which batches are taken, what is told of each, and a resume in the middle.

use std::collections::BTreeMap;
use std::fs;

use justtrain_train::StopToken;
use justtrain_train::evaluate::evaluate;
use justtrain_train::recipe::Recipe;
use justtrain_worker_api::{EvaluateOptions, Event, ModelFiles, RecipeSource, TaskScore};

use crate::desk::Desk;

/// Two tasks of 16 and 8 rows, four of each held out.
fn two_tasks(desk: &Desk, extra: &str) -> RecipeSource {
    let write = |name: &str, rows: usize, row: fn(usize) -> String| {
        fs::write(desk.path(name), (0..rows).map(row).collect::<Vec<_>>().join("\n")).unwrap();
    };
    write("sums.jsonl", 20, |i| format!(r#"{{"prompt":"{i}+1","completion":"is {}"}}"#, i + 1));
    write("words.jsonl", 12, |i| format!(r#"{{"prompt":"say {i}","completion":"{}"}}"#, "ab".repeat(1 + i % 3)));
    let text = format!(
        "model_name_or_path: tiny\nval_size: 4\ncutoff_len: 48\nlora_rank: 4\nlearning_rate: 0.01\nmax_steps: 6\neval_steps: 3\n\
         save_steps: 2\nper_device_train_batch_size: 2\ngradient_accumulation_steps: 2\n{extra}tasks:\n- name: sums\n  dataset: sums.jsonl\n\
         - {{name: words, dataset: [words.jsonl], weight: 3}}\n"
    );
    RecipeSource { text, ..desk.recipe("") }
}

fn told(events: &[Event], of_validation: bool) -> Vec<(u64, Vec<TaskScore>)> {
    let tasks = events.iter().filter_map(|event| match event {
        Event::Tasks { step, validation, tasks } if *validation == of_validation => Some((*step, tasks.clone())),
        _ => None,
    });
    tasks.collect()
}

fn events(desk: &Desk, recipe: &RecipeSource) -> Vec<Event> {
    let mut events = Vec::new();
    desk.run(recipe, "run", false, &mut events, &StopToken::default()).unwrap();
    events
}

const METHODS: [&str; 7] = [
    "",
    "task_mixing: temperature\ntask_temperature: 3\ntask_cap: 10\n",
    "task_mixing: fixed\n",
    "task_mixing: round_robin\n",
    "task_weighting: uncertainty\n",
    "task_weighting: gradnorm\n",
    "task_weighting: pcgrad\n",
];

#[test]
fn a_resumed_run_equals_one_that_goes_through() {
    for extra in METHODS {
        let desk = Desk::new();
        let losses = desk.check_resume(&two_tasks(&desk, extra), &[1, 3, 4], "adapter/adapter_model.safetensors");
        assert!(losses[losses.len() - 1] < losses[0], "{extra}: {losses:?}");
    }
}

#[test]
fn every_step_and_validation_tells_of_each_task() {
    for extra in METHODS {
        let desk = Desk::new();
        let events = events(&desk, &two_tasks(&desk, extra));
        let steps = told(&events, false);
        assert_eq!(steps.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6], "{extra}");
        let both = extra.contains("round_robin") || extra.contains("weighting");
        for (step, tasks) in &steps {
            assert!(tasks.iter().all(|task| task.loss > 0.0 && task.token_accuracy.is_none()), "{extra} {step}");
            assert!(!both || tasks.len() == 2, "{extra} {step}: {tasks:?}");
            let weighted = extra.contains("uncertainty") || extra.contains("gradnorm");
            assert!(tasks.iter().all(|task| task.weight.is_some() == weighted), "{extra} {step}");
        }
        let validations = told(&events, true);
        assert_eq!(validations.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [3, 6], "{extra}");
        // Every held-out answer counts once, in its task and in the whole.
        for (step, tasks) in validations {
            let [sums, words] = tasks.as_slice() else { panic!("{extra} {step}") };
            let whole = events.iter().find_map(|event| match event {
                Event::Evaluation { step: of, loss, .. } if *of == step => Some(*loss),
                _ => None,
            });
            let (low, high) = (sums.loss.min(words.loss), sums.loss.max(words.loss));
            assert!((low..=high).contains(&whole.unwrap()), "{extra} {step}: {tasks:?} {whole:?}");
        }
    }
}

/// Without a weighting two tasks are trained as their rows would be in one data set: the loss is the mean over all targets.
#[test]
fn the_loss_of_a_step_is_the_mean_over_the_targets_of_its_tasks() {
    let desk = Desk::new();
    let events = events(&desk, &two_tasks(&desk, "task_mixing: round_robin\n"));
    let whole: BTreeMap<u64, f64> = events
        .iter()
        .filter_map(|event| if let Event::Step { step, loss, .. } = event { Some((*step, *loss)) } else { None })
        .collect();
    for (step, tasks) in told(&events, false) {
        let (low, high) = (tasks[0].loss.min(tasks[1].loss), tasks[0].loss.max(tasks[1].loss));
        assert!((low..=high).contains(&whole[&step]), "{step}");
    }
}

/// Sums, of which each has an answer of its own, and a word that is soon known by heart.
fn judged(desk: &Desk, extra: &str) -> RecipeSource {
    let recipe = two_tasks(desk, "");
    let rows: Vec<String> = (0..12).map(|i| format!(r#"{{"prompt":"say {i}","completion":"yes"}}"#)).collect();
    fs::write(desk.path("words.jsonl"), rows.join("\n")).unwrap();
    let text = recipe.text.replace("weight: 3", "metric: exact_match").replace("max_steps: 6", "max_steps: 24");
    let text = text.replace("learning_rate: 0.01", "learning_rate: 0.002");
    let text = text.replace("  dataset: sums.jsonl\n", "  dataset: sums.jsonl\n  metric: perplexity\n");
    RecipeSource { text: format!("{extra}finetuning_type: full\n{}", text.replace("lora_rank: 4\n", "")), ..recipe }
}

#[test]
fn each_task_is_judged_by_its_own_metric() {
    let desk = Desk::new();
    let recipe = judged(&desk, "");
    let events = events(&desk, &recipe);
    let validations = told(&events, true);
    let mut matches = Vec::new();
    for (_, tasks) in &validations {
        let [sums, words] = tasks.as_slice() else { panic!() };
        let metric = |task: &TaskScore| (task.metric.clone().unwrap(), task.value.unwrap());
        assert_eq!(metric(sums), ("perplexity".to_owned(), sums.loss.exp()));
        assert_eq!(metric(words).0, "exact_match");
        matches.push(metric(words).1);
    }
    assert!(matches[0] == 0.0 && matches[7] == 1.0, "{matches:?}");

    // What a validation of the result finds, on the same rows.
    let last = &validations.last().unwrap().1;
    let tuned = ModelFiles { name: "tiny".into(), path: desk.path("run/model"), ..ModelFiles::default() };
    let found =
        |recipe: &RecipeSource| evaluate(recipe, &tuned, None, &EvaluateOptions::default(), &mut Vec::new()).unwrap();
    let whole = found(&recipe);
    let told = events.iter().rev().find_map(|event| match event {
        Event::Evaluation { loss, .. } => Some(*loss),
        _ => None,
    });
    assert!(whole.rows == 8 && (whole.base.loss / told.unwrap() - 1.0).abs() < 1e-6, "{whole:?}");
    for (task, file) in last.iter().zip(["sums.jsonl", "words.jsonl"]) {
        let text = format!("model_name_or_path: tiny\nval_size: 4\ncutoff_len: 48\nprecision: fp32\ndataset: {file}\n");
        let report = found(&RecipeSource { text, ..desk.recipe("") }).base;
        assert!((report.loss / task.loss - 1.0).abs() < 1e-6, "{report:?} {task:?}");
        assert_eq!(Some(report.token_accuracy), task.token_accuracy);
        if file == "words.jsonl" {
            assert_eq!(Some(report.exact_match), task.value);
        }
    }
}

#[test]
fn the_best_validation_may_be_that_of_one_task() {
    let desk = Desk::new();
    let recipe = judged(&desk, "load_best_model_at_end: true\nmetric_for_best_model: words/exact_match\n");
    let events = events(&desk, &recipe);
    let values: Vec<(u64, f64)> =
        told(&events, true).iter().map(|(step, tasks)| (*step, tasks[1].value.unwrap())).collect();
    let first_of_all = values.iter().find(|(_, value)| *value == 1.0).unwrap().0;
    assert!(first_of_all < 24, "{values:?}");
    let line = format!("the best words/exact_match is 1.0000, of step {first_of_all}");
    assert!(events.iter().any(|event| matches!(event, Event::Log { text, .. } if text.en.contains(&line))), "{line}");
    // The same, where the task itself does not ask for answers and the run is stopped on the way.
    let asked = RecipeSource { text: recipe.text.replace("metric: exact_match", "metric: loss"), ..recipe };
    desk.check_resume(&asked, &[4, 20], "model/model.safetensors");
    let model = |run: &str| fs::read(desk.path(run).join("model/model.safetensors")).unwrap();
    assert!(model("whole") == model("run"));
}

/// Pairs are judged by the method, and their tokens by the answers that were chosen.
#[test]
fn tasks_of_pairs_are_judged_as_the_whole_is() {
    for stage in ["dpo", "kto", "rm"] {
        let desk = Desk::new();
        let mut recipe = two_tasks(&desk, "");
        for name in ["sums.jsonl", "words.jsonl"] {
            crate::desk::judged_rows(&desk, stage == "kto");
            fs::copy(desk.path("data.jsonl"), desk.path(name)).unwrap();
        }
        recipe.text = recipe.text.replace("weight: 3", "metric: loss") + &format!("stage: {stage}\n");
        let events = events(&desk, &recipe);
        for (step, tasks) in told(&events, true) {
            let (loss, accuracy) = events
                .iter()
                .find_map(|event| match event {
                    Event::Evaluation { step: of, loss, token_accuracy, .. } if *of == step => {
                        Some((*loss, *token_accuracy))
                    }
                    _ => None,
                })
                .unwrap();
            let mean = (tasks[0].loss + tasks[1].loss) / 2.0;
            let tolerance = if stage == "kto" { 0.05 } else { 1e-6 };
            assert!((mean / loss - 1.0).abs() < tolerance, "{stage} {step}: {tasks:?} {loss}");
            assert_eq!(tasks.iter().all(|task| task.token_accuracy.is_some()), stage != "rm");
            assert!(stage == "rm" || (0.0..=1.0).contains(&accuracy));
        }
    }
}

#[test]
fn a_task_without_held_out_rows_cannot_tell_the_best() {
    let desk = Desk::new();
    let recipe = judged(&desk, "early_stopping_steps: 2\nmetric_for_best_model: words/loss\n");
    fs::write(desk.path("words.jsonl"), r#"{"prompt":"say","completion":"yes"}"#).unwrap();
    let failure = desk.run(&recipe, "run", false, &mut Vec::new(), &StopToken::default()).unwrap_err();
    assert_eq!(failure.problems[0].key.as_deref(), Some("metric_for_best_model"), "{failure:?}");
}

#[test]
fn a_mistake_in_the_tasks_is_told_with_its_line() {
    let desk = Desk::new();
    let base = "model_name_or_path: tiny\n";
    for (text, line, key) in [
        ("tasks: sums.json\n", 2, "tasks"),
        ("tasks:\n- {name: a, dataset: a.json}\n", 3, "tasks"),
        ("tasks:\n- a.json\n- b.json\n", 3, "tasks.1"),
        ("tasks:\n- {name: a, dataset: a.json}\n- {name: b}\n", 4, "tasks.2.dataset"),
        ("tasks:\n- {name: a, dataset: a.json}\n- {name: a, dataset: b.json}\n", 4, "tasks.2.name"),
        ("tasks:\n- {name: a, dataset: a.json, weight: 0}\n- {dataset: b.json}\n", 3, "tasks.1.weight"),
        ("tasks:\n- {name: a, dataset: a.json, wait: 1}\n- {dataset: b.json}\n", 3, "tasks.1.wait"),
        ("tasks:\n- {name: a, dataset: [a.json, 7]}\n- {dataset: b.json}\n", 3, "tasks.1.dataset"),
        ("tasks:\n- {dataset: a.json}\n- {dataset: b.json, metric: accuracy}\n", 4, "tasks.2.metric"),
        ("stage: pt\ntasks:\n- {dataset: a.json}\n- {dataset: b.json, metric: exact_match}\n", 5, "tasks.2.metric"),
        ("stage: rm\ntasks:\n- {dataset: a.json, metric: perplexity}\n- {dataset: b.json}\n", 4, "tasks.1.metric"),
        (
            "stage: rm\nearly_stopping_steps: 1\nmetric_for_best_model: task 1/token_accuracy\ntasks:\n- {dataset: a.json}\n- {dataset: b.json}\n",
            4,
            "metric_for_best_model",
        ),
        ("early_stopping_steps: 1\ndataset: a.json\nmetric_for_best_model: sums/loss\n", 4, "metric_for_best_model"),
        ("early_stopping_steps: 1\ndataset: a.json\nmetric_for_best_model: loss\n", 4, "metric_for_best_model"),
        (
            "early_stopping_steps: 1\nmetric_for_best_model: a/loss\ngreater_is_better: true\ntasks:\n- {name: a, dataset: a.json}\n- {dataset: b.json}\n",
            4,
            "greater_is_better",
        ),
        ("dataset: c.json\ntasks:\n- {dataset: a.json}\n- {dataset: b.json}\n", 2, "dataset"),
        ("dataset: c.json\ntask_mixing: fixed\n", 3, "task_mixing"),
        ("task_weighting: pcgrad\nstage: dpo\ntasks:\n- {dataset: a.json}\n- {dataset: b.json}\n", 2, "task_weighting"),
        (
            "task_weighting: pcgrad\ntask_mixing: fixed\ntasks:\n- {dataset: a.json}\n- {dataset: b.json}\n",
            3,
            "task_mixing",
        ),
    ] {
        let problems = Recipe::parse(&RecipeSource { text: format!("{base}{text}"), ..desk.recipe("") }).unwrap_err();
        let problem = &problems[0];
        assert_eq!((problem.line, problem.key.as_deref()), (Some(line), Some(key)), "{text}: {problems:?}");
        assert!(!problem.message.zh.is_empty() && !problem.fix.en.is_empty(), "{text}");
    }
}
