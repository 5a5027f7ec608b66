//! What it all comes to: the largest model that each method can train here, by the same prediction that a job is let in by.

use justtrain_worker_api::{LargestModel, Problem};

use crate::{CheckResult, Status};

/// Tokens of the batch that the verdict is about.
pub const VERDICT_BATCH_TOKENS: u32 = 512;

/// The last line of the checks. `methods` comes from the training program.
pub fn verdict(methods: Result<Vec<LargestModel>, Problem>) -> CheckResult {
    let result = CheckResult::new(
        "verdict",
        ("This machine can train", "本机可以训练"),
        ("some model of the catalogue", "目录中的某个模型"),
    );
    let methods = match methods {
        Ok(methods) => methods,
        Err(problem) => return result.found(problem.message.en, problem.message.zh).status(Status::Skip, "", ""),
    };
    let line = |nothing: &str| methods.iter().map(|method| of_method(method, nothing)).collect::<Vec<_>>().join("; ");
    let result = result.found(
        format!("{} (batches of {VERDICT_BATCH_TOKENS} tokens)", line("none")),
        format!("{}（每批 {VERDICT_BATCH_TOKENS} 个词元）", line("无")),
    );
    if methods.iter().any(|method| method.model.is_some()) {
        return result;
    }
    result.status(
        Status::Warn,
        "close other programs or add memory; `justtrain train --dry-run RECIPE` shows what a recipe takes",
        "请关闭其他程序或增加内存；`justtrain train --dry-run 配方` 可查看所需资源",
    )
}

/// `LoRA: ORG/NAME, 3.1 GiB`.
fn of_method(method: &LargestModel, nothing: &str) -> String {
    let name = match method.method.as_str() {
        "lora" => "LoRA",
        "qlora" => "QLoRA",
        other => other,
    };
    let model = method.model.as_deref().unwrap_or(nothing);
    format!("{name}: {model}, {:.1} GiB", method.memory_bytes as f64 / f64::from(1u32 << 30))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn method(name: &str, model: Option<&str>) -> LargestModel {
        LargestModel { method: name.into(), model: model.map(Into::into), memory_bytes: 3 << 30 }
    }

    #[test]
    fn each_method_names_its_largest_model() {
        let result = verdict(Ok(vec![method("lora", Some("a/b")), method("full", None)]));
        assert_eq!(result.status, Status::Pass);
        assert_eq!(result.found.en, "LoRA: a/b, 3.0 GiB; full: none, 3.0 GiB (batches of 512 tokens)");
        assert!(result.found.zh.contains("full: 无"));
        assert_eq!(verdict(Ok(vec![method("lora", None)])).status, Status::Warn);
    }

    #[test]
    fn without_the_training_program_nothing_is_claimed() {
        let problem = Problem::error(justtrain_worker_api::ProblemCode::WorkerCrashed, "it crashed", "崩溃");
        let result = verdict(Err(problem));
        assert_eq!((result.status, result.found.en.as_str()), (Status::Skip, "it crashed"));
    }
}
