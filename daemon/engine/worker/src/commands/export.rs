//! Writes a tuned model for other tools.

use std::fs;
use std::path::Path;

use burn::tensor::Device;
use justtrain_model::adapters::{base_formats, load_peft, save_peft};
use justtrain_model::export::{export_merged, load_model, save_model};
use justtrain_model::{Decoder, WeightFormats, is_whole_model};
use justtrain_train::{EventSink, adapter_template, open_encoder};
use justtrain_weights::Checkpoint;
use justtrain_worker_api::{
    Event, ExportFormat, Failure, FailureReason, ModelFiles, Outcome, Phase, Problem, ProblemCode,
};

/// Writes into a folder beside `output` and renames it, so that an export is there whole or not at all.
pub(super) fn run(
    model: &ModelFiles,
    format: ExportFormat,
    output: &Path,
    events: &mut dyn EventSink,
) -> Result<Outcome, Failure> {
    let invalid = |problem: Problem| problem.because(FailureReason::ModelInvalid);
    let disk = |problem: Problem| problem.because(FailureReason::DiskFull);
    let adapter = model.adapter.as_ref().ok_or_else(|| {
        invalid(
            Problem::error(ProblemCode::FileNotFound, "there is no adapter to export", "没有可导出的适配器")
                .found(&model.name)
                .expected("a job that has saved a checkpoint, or an adapter folder")
                .fix("name a job that was trained", "请指定已训练过的任务"),
        )
    })?;
    let whole_model = is_whole_model(adapter);
    if whole_model && format == ExportFormat::Peft {
        return Err(invalid(no_adapter(&model.name)));
    }
    refuse_strangers(output).map_err(invalid)?;

    events.phase(Phase::LoadingModel);
    let checkpoint = Checkpoint::open(&model.path).map_err(invalid)?;
    let (encoder, _) = open_encoder(&checkpoint, adapter_template(model.adapter.as_deref())).map_err(invalid)?;
    let formats = if whole_model { Ok(WeightFormats::default()) } else { base_formats(adapter) };
    let mut decoder = Decoder::load(&checkpoint, &Device::flex(), formats.map_err(invalid)?).map_err(invalid)?;
    let lora = match whole_model {
        true => load_model(&mut decoder, adapter).map(|()| None),
        false => load_peft(&mut decoder, adapter).map(Some),
    };
    let lora = lora.map_err(invalid)?;

    events.phase(Phase::Saving);
    let partial = output.with_extension("partial");
    let _ = fs::remove_dir_all(&partial);
    let written = match (format, lora) {
        (ExportFormat::Peft, Some(lora)) => save_peft(&decoder, &lora, &model.name, &partial),
        (_, None) => save_model(&decoder, checkpoint.config(), &partial),
        (ExportFormat::Merged, Some(_)) => export_merged(&checkpoint, &decoder, &partial, |done, total| {
            events.emit(Event::Progress { done, total });
        }),
    };
    let finished = written.and_then(|bytes| {
        encoder.save(&partial)?;
        let _ = fs::remove_dir_all(output);
        fs::rename(&partial, output).map_err(|error| {
            Problem::error(
                ProblemCode::DiskFull,
                format!("the export cannot be put in its place: {error}"),
                format!("无法放置导出结果：{error}"),
            )
            .file(output.display())
        })?;
        Ok(bytes)
    });
    match finished {
        Ok(bytes) => Ok(Outcome::Exported { format, path: output.to_owned(), bytes }),
        Err(problem) => {
            let _ = fs::remove_dir_all(&partial);
            Err(disk(problem))
        }
    }
}

fn no_adapter(model: &str) -> Problem {
    Problem::error(
        ProblemCode::InvalidValue,
        "full fine-tuning changed the model's own weights; there is no adapter to export",
        "全参数微调改变的是模型本身的权重，没有可导出的适配器",
    )
    .key("format")
    .found(format!("peft, for {model}"))
    .expected("merged")
    .fix("export with --format merged", "请使用 --format merged 导出")
}

/// An earlier export may be replaced; anything else in the folder is somebody's.
fn refuse_strangers(output: &Path) -> Result<(), Problem> {
    let ours = ["config.json", "adapter_config.json"].iter().any(|file| output.join(file).is_file());
    let empty = fs::read_dir(output).map_or(!output.exists(), |mut entries| entries.next().is_none());
    if ours || empty {
        return Ok(());
    }
    Err(Problem::error(ProblemCode::InvalidValue, "the folder holds other files", "该文件夹中有其他文件")
        .file(output.display())
        .expected("a folder that is empty, or an earlier export")
        .fix("name another folder", "请指定其他文件夹"))
}
