//! Our exports in PEFT and transformers, by `JUSTTRAIN_PYTHON`: an interpreter with the packages of
//! `scripts/golden/requirements.txt`.

use std::path::Path;

use justtrain_model::adapters::{LoraConfig, save_peft};
use justtrain_model::export::export_merged;
use justtrain_model::{Decoder, Mode};
use justtrain_weights::Checkpoint;
use serde_json::{Value, json};

use crate::common::{Row, batch, root, values};

/// The adapter and the merged model load there without a warning, and give the logits that we do after each row.
pub(crate) fn check_export<'a>(
    base: &Path,
    decoder: &Decoder,
    config: &LoraConfig,
    rows: impl IntoIterator<Item = &'a Row>,
) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    save_peft(decoder, config, "base", &path("peft")).unwrap();
    export_merged(&Checkpoint::open(base).unwrap(), decoder, &path("merged"), |_, _| {}).unwrap();
    let prompt = |row: &Row| {
        let (Row { ids, source, .. }, (input, _)) = (row, batch(std::slice::from_ref(row)));
        let hidden = decoder.hidden_states(&input, None, Mode::TUNED).narrow(0, ids.len() - 1, 1);
        json!({"ids": ids, "source": source, "logits": values(decoder.logits(hidden, Mode::TUNED))})
    };
    let prompts: Vec<Value> = rows.into_iter().map(prompt).collect();
    std::fs::write(path("expected.json"), json!({"prompts": prompts}).to_string()).unwrap();
    let python = std::env::var_os("JUSTTRAIN_PYTHON").expect("JUSTTRAIN_PYTHON names an interpreter");
    let mut check = std::process::Command::new(python);
    check.arg(root("scripts/golden/check_export.py")).arg("--base").arg(base);
    for (option, name) in [("--expected", "expected.json"), ("--adapter", "peft"), ("--merged", "merged")] {
        check.arg(option).arg(path(name));
    }
    let output = check.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}: {}", base.display(), String::from_utf8_lossy(&said));
}
