//! What a recipe would take: said before, close to what it then takes, and refused where it cannot fit.

use serde_json::Value;

use crate::desk::Desk;

#[test]
fn a_dry_run_says_what_the_job_then_takes() {
    let desk = Desk::furnished();
    let recipe = desk.recipe("max_steps: 4\nsave_steps: 2\nsave_total_limit: 1\n");
    let predicted = desk.json(&["train", &recipe, "--dry-run"]);
    assert_eq!((&predicted["fits"], &predicted["problems"]), (&true.into(), &Value::Array(Vec::new())));
    assert_eq!((&predicted["time"]["steps"], &predicted["time"]["basis"]), (&4.into(), &"measured".into()));
    assert!(desk.json(&["jobs", "list"])["jobs"].as_array().unwrap().is_empty(), "nothing is queued");

    let result = &desk.json(&["train", &recipe])["result"];
    let bytes = |part: &Value| part["total_bytes"].as_f64().unwrap();
    let error = bytes(&predicted["memory"]) / result["peak_memory_bytes"].as_f64().unwrap() - 1.0;
    assert!(error.abs() < 0.15, "memory: {error:+.3}, {predicted} {result}");

    // Now the machine has shown how fast it is, and only the seed differs.
    let recipe = desk.recipe("max_steps: 40\nsave_steps: 2\nsave_total_limit: 1\nseed: 7\n");
    let time = &desk.json(&["train", &recipe, "--dry-run"])["time"];
    assert_eq!(time["basis"], "past_run");
    // A quotient of the same two numbers, which may differ in its last bit.
    let speeds = [time, result].map(|of| of["tokens_per_second"].as_f64().unwrap());
    assert!((speeds[0] / speeds[1] - 1.0).abs() < 1e-9, "{speeds:?}");
}

#[test]
fn a_job_that_cannot_fit_is_refused_with_the_changes_that_make_it_fit() {
    let mut desk = Desk::furnished();
    desk.limit_memory("1.2GiB");
    let large = "max_steps: 2\ntrain_on_prompt: true\n";
    let recipe = desk.recipe(large).replace("recipe.yaml", "large.yaml");
    let text = std::fs::read_to_string(desk.path("recipe.yaml")).unwrap();
    std::fs::write(&recipe, text.replace("per_device_train_batch_size: 2", "per_device_train_batch_size: 16")).unwrap();

    let (code, predicted) = desk.refused(&["train", &recipe, "--dry-run"]);
    assert_eq!((code, &predicted["fits"]), (7, &false.into()), "{predicted}");
    let remedies = predicted["remedies"].as_array().unwrap();
    let gentle = remedies.iter().find(|remedy| remedy["fits"] == true).expect("a smaller batch fits");
    assert!(gentle["change"][0].as_str().unwrap().starts_with("per_device_train_batch_size: "), "{gentle}");

    let (code, refused) = desk.refused(&["train", &recipe]);
    let problem = &refused["error"]["problems"][0];
    assert_eq!((code, &problem["code"]), (7, &"OUT_OF_MEMORY".into()), "{refused}");
    let fix = problem["fix"].as_str().unwrap();
    assert!(fix.contains(gentle["change"][0].as_str().unwrap()) && fix.contains("--ignore-estimate"), "{fix}");
    assert!(desk.json(&["jobs", "list"])["jobs"].as_array().unwrap().is_empty(), "nothing is queued");

    // Whoever knows better starts it all the same; and what is named as a way out is one.
    let started = desk.json(&["train", &recipe, "--ignore-estimate", "--detach"]);
    desk.json(&["jobs", "cancel", started["name"].as_str().unwrap()]);
    let changes: Vec<&str> = gentle["change"].as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect();
    let kept = |line: &&str| changes.iter().all(|change| line.split(':').next() != change.split(':').next());
    let text = std::fs::read_to_string(&recipe).unwrap();
    let changed: Vec<&str> = text.lines().filter(kept).chain(changes.iter().copied()).collect();
    std::fs::write(&recipe, changed.join("\n")).unwrap();
    assert_eq!(desk.json(&["train", &recipe, "--dry-run"])["memory"]["total_bytes"], gentle["memory_bytes"]);
}
