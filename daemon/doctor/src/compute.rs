//! A real calculation by the program that will train.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use justtrain_worker_api::{Command, DevicePick, Message, Outcome, ProbeReport};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use crate::{CheckResult, Status};

/// The matmul takes a fraction of a second; a machine that needs this long cannot train.
const PATIENCE: Duration = Duration::from_secs(60);
/// Largest difference from the scalar result that rounding explains.
const TOLERANCE: f64 = 1e-3;
/// The same on a GPU, whose tensor cores round the factors to 11 bits.
const GPU_TOLERANCE: f64 = 5e-2;

pub(crate) async fn matmul(worker: &Path) -> CheckResult {
    let result = CheckResult::new(
        "compute",
        ("Matrix multiplication", "矩阵乘法实测"),
        ("a right result from the training program", "训练程序计算结果正确"),
    );
    let probed = tokio::time::timeout(PATIENCE, probe(worker)).await;
    match probed.unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs()))) {
        Ok(report) if report.max_error <= if report.gpu.is_some() { GPU_TOLERANCE } else { TOLERANCE } => {
            let hardware = match (report.gpu, report.bf16) {
                (Some(gpu), _) => format!("{}, {}", gpu.name, gpu.target),
                (None, Some(bf16)) => {
                    format!("{}; bfloat16 {:.1} GFLOP/s, {}", report.simd, bf16.gflops, bf16.instructions)
                }
                (None, None) => report.simd,
            };
            result.found_as_is(format!("{:.1} GFLOP/s, {}, {hardware}", report.gflops, report.device))
        }
        Ok(report) => {
            result.found(format!("wrong by {:e}", report.max_error), format!("误差 {:e}", report.max_error)).status(
                Status::Fail,
                "the hardware calculates wrongly: test the memory and remove any overclocking",
                "硬件计算出错：请检测内存并取消超频",
            )
        }
        Err(reason) => result.found_as_is(format!("{}: {reason}", worker.display())).status(
            Status::Fail,
            "run `install` again: the training program is missing or does not run on this machine",
            "请重新运行 install：训练程序缺失，或无法在本机运行",
        ),
    }
}

/// Asks a fresh worker for its probe.
async fn probe(worker: &Path) -> Result<ProbeReport, String> {
    let mut child = tokio::process::Command::new(worker)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| error.to_string())?;
    let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err("no pipe".to_owned());
    };
    let command = Command::Probe { device: DevicePick::Auto };
    let line = serde_json::to_string(&command).map_err(|error| error.to_string())? + "\n";
    stdin.write_all(line.as_bytes()).await.map_err(|error| error.to_string())?;
    let mut lines = BufReader::new(stdout).lines();
    while let Some(line) = lines.next_line().await.map_err(|error| error.to_string())? {
        match serde_json::from_str(&line).map_err(|error| format!("{error}: {line}"))? {
            Message::Outcome(Outcome::Probed(report)) => return Ok(report),
            Message::Failed(failure) => {
                return Err(failure.problems.first().map_or_else(String::new, ToString::to_string));
            }
            Message::Event(_) | Message::Outcome(_) => {}
        }
    }
    let status = child.wait().await.map_err(|error| error.to_string())?;
    Err(format!("ended without an answer ({status})"))
}

#[cfg(all(test, unix))]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use justtrain_worker_api::Bf16Report;

    use super::*;

    /// A program that reads one line and prints `answer`.
    async fn ask(answer: &str) -> CheckResult {
        let folder = tempfile::tempdir().unwrap();
        let worker = folder.path().join("worker");
        fs::write(folder.path().join("script"), format!("read command\nprintf '%s\\n' '{answer}'\n")).unwrap();
        symlink(concat!(env!("CARGO_MANIFEST_DIR"), "/../worker-api/fixtures/scripted-worker"), &worker).unwrap();
        matmul(&worker).await
    }

    #[tokio::test]
    async fn a_right_result_passes_and_a_wrong_one_fails() {
        let report = |max_error| {
            let bf16 = Some(Bf16Report { instructions: "amx".into(), gflops: 50.0 });
            let (device, simd) = ("cpu".into(), "avx512".into());
            let report = ProbeReport { device, gpu: None, simd, gflops: 12.5, bf16, max_error };
            serde_json::to_string(&Message::Outcome(Outcome::Probed(report))).unwrap()
        };
        let right = ask(&report(1e-5)).await;
        assert_eq!(right.status, Status::Pass, "{right:?}");
        assert_eq!(right.found.en, "12.5 GFLOP/s, cpu, avx512; bfloat16 50.0 GFLOP/s, amx");
        assert_eq!(ask(&report(0.5)).await.status, Status::Fail);
    }

    #[tokio::test]
    async fn a_worker_that_dies_fails_the_check() {
        let result = ask("").await;
        assert_eq!(result.status, Status::Fail);
    }
}
