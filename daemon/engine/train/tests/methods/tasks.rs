//! Several tasks in one run: which batches are taken, what is told of each, and a resume in the middle.

use std::collections::BTreeMap;
use std::fs;

use justtrain_train::StopToken;
use justtrain_train::recipe::Recipe;
use justtrain_worker_api::{Event, RecipeSource, TaskScore};

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
