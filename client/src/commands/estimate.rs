//! `train --dry-run`: what a recipe would take of the daemon's machine.

use std::path::Path;

use justtrain_proto::v1::{DiskEstimate, EstimateJobRequest, JobEstimate, MemoryEstimate, Remedy, TimeEstimate};
use serde_json::{Value, json};

use super::recipe;
use crate::exit::Exit;
use crate::failure::Result;
use crate::session::Session;
use crate::show::{self, Table};
use crate::text::{Lang, say};
use crate::ui::{Report, Ui};
use crate::{json, problem};

pub(super) async fn run(session: &Session, path: &Path) -> Result<Report> {
    let request = EstimateJobRequest { recipe: Some(recipe::read(path)?) };
    let estimate = session.connect().await?.jobs().estimate_job(request).await?.into_inner();
    show(&estimate, session.ui);
    let errors: Vec<_> = estimate.problems.iter().filter(|problem| problem::is_error(problem)).cloned().collect();
    let exit = if errors.is_empty() { Exit::Ok } else { Exit::of_problems(&errors) };
    Ok(Report { exit, json: to_json(&estimate, session.ui.lang) })
}

fn show(estimate: &JobEstimate, ui: Ui) {
    let lang = ui.lang;
    let (model, rows) = (&estimate.model, show::count(estimate.rows));
    let (trained, all) = (show::count(estimate.trainable_parameters), show::count(estimate.total_parameters));
    ui.line(say!(
        lang,
        "{model}: {trained} of {all} parameters are trained, on {rows} rows",
        "{model}：训练 {all} 个参数中的 {trained} 个，共 {rows} 条数据"
    ));
    if estimate.rows_read < estimate.rows {
        let read = show::count(estimate.rows_read);
        ui.line(say!(lang, "{read} rows were tokenised and stand for all", "已分词 {read} 条，以代表全部数据"));
    }
    if estimate.memory.is_none() {
        let device = &estimate.device;
        ui.line(say!(
            lang,
            "the memory of {device} is not predicted: whether it is enough, the run will show",
            "无法预估 {device} 的显存：是否足够只有运行后才知道"
        ));
    }
    let parts = [
        estimate.memory.as_ref().map(|memory| memory_table(memory, estimate.largest_batch_tokens, lang)),
        estimate.disk.as_ref().map(|disk| disk_table(disk, lang)),
        estimate.time.as_ref().map(|time| time_table(time, lang)),
    ];
    for table in parts.into_iter().flatten() {
        ui.line("");
        ui.line(table);
    }
    if !estimate.remedies.is_empty() {
        ui.line("");
        ui.line(remedies_table(&estimate.remedies, lang));
    }
    ui.line("");
    for problem in &estimate.problems {
        ui.problem(problem);
    }
    if !estimate.problems.iter().any(problem::is_error) {
        let fits = match estimate.memory {
            Some(_) => say!(lang, "It fits.", "资源足够。"),
            None => say!(lang, "There is disk space enough.", "磁盘空间足够。"),
        };
        ui.line(ui.green(fits));
    }
}

fn memory_table(memory: &MemoryEstimate, largest_batch: u64, lang: Lang) -> Table {
    let batch = show::count(largest_batch);
    let moment = match (memory.moment.as_str(), lang) {
        ("loading", Lang::En) => "while loading".to_owned(),
        ("loading", Lang::Zh) => "加载时".to_owned(),
        ("evaluating", Lang::En) => "while validating".to_owned(),
        ("evaluating", Lang::Zh) => "验证时".to_owned(),
        ("saving", Lang::En) => "while saving".to_owned(),
        ("saving", Lang::Zh) => "保存时".to_owned(),
        _ => say!(lang, "in the largest batch, {batch} tokens", "最大批次，{batch} 个词元"),
    };
    let mut table = amounts(say!(lang, "MEMORY AT ITS PEAK", "内存峰值"), moment, memory.total_bytes);
    let parts = [
        (say!(lang, "model weights", "模型权重"), memory.weights_bytes),
        (say!(lang, "trained weights", "被训练的权重"), memory.trained_weights_bytes),
        (say!(lang, "gradients", "梯度"), memory.gradients_bytes),
        (say!(lang, "optimiser state", "优化器状态"), memory.optimizer_bytes),
        (say!(lang, "activations", "激活值"), memory.activations_bytes),
        (say!(lang, "output layer", "输出层"), memory.output_layer_bytes),
        (say!(lang, "data", "数据"), memory.data_bytes),
        (say!(lang, "model file", "模型文件"), memory.model_file_bytes),
        (say!(lang, "program and tokenizer", "程序与分词器"), memory.program_bytes),
    ];
    add_parts(&mut table, parts);
    add_room(&mut table, memory.available_bytes, memory.reserve_bytes, lang);
    table
}

fn disk_table(disk: &DiskEstimate, lang: Lang) -> Table {
    let mut table = amounts(say!(lang, "DISK", "磁盘"), String::new(), disk.total_bytes);
    let parts = [
        (say!(lang, "checkpoints", "检查点"), disk.checkpoints_bytes),
        (say!(lang, "result", "训练结果"), disk.result_bytes),
        (say!(lang, "temporary", "临时文件"), disk.temporary_bytes),
    ];
    add_parts(&mut table, parts);
    add_room(&mut table, disk.available_bytes, disk.reserve_bytes, lang);
    table
}

fn amounts(title: String, note: String, total: u64) -> Table {
    Table::new([title, show::bytes(total), note]).right_align(&[1])
}

fn add_parts<const N: usize>(table: &mut Table, parts: [(String, u64); N]) {
    for (name, bytes) in parts.into_iter().filter(|(_, bytes)| *bytes > 0) {
        table.row([format!("  {name}"), show::bytes(bytes), String::new()]);
    }
}

fn add_room(table: &mut Table, available: u64, reserve: u64, lang: Lang) {
    let reserve = show::bytes(reserve);
    let note = say!(lang, "{reserve} kept free besides", "另保留 {reserve}");
    table.row([say!(lang, "there is", "可用"), show::bytes(available), note]);
}

fn time_table(time: &TimeEstimate, lang: Lang) -> Table {
    let basis = match time.basis.as_str() {
        "past_run" => say!(lang, "as fast as an earlier job of the same work", "按此前同样任务的速度"),
        _ => say!(lang, "by a layer of this shape, timed just now", "按刚才实测的同形状网络层"),
    };
    let mut table = Table::new([say!(lang, "TIME", "时间"), show::duration(time.seconds, lang), basis]);
    table = table.right_align(&[1]);
    let speed = format!("{:.1}", time.tokens_per_second);
    let rows = [
        (say!(lang, "steps", "步数"), show::count(time.steps)),
        (say!(lang, "tokens", "词元"), show::count(time.tokens)),
        (say!(lang, "tokens a second", "每秒词元"), speed),
    ];
    for (name, value) in rows {
        table.row([format!("  {name}"), value, String::new()]);
    }
    table
}

fn remedies_table(remedies: &[Remedy], lang: Lang) -> Table {
    let header = [
        say!(lang, "CHANGE", "修改"),
        say!(lang, "MEMORY", "内存"),
        say!(lang, "DISK", "磁盘"),
        String::new(),
        String::new(),
    ];
    let mut table = Table::new(header).right_align(&[1, 2]);
    for remedy in remedies {
        let fits = if remedy.fits { say!(lang, "fits", "可行") } else { say!(lang, "not enough", "不够") };
        let cost = lang.pick_opt(&remedy.cost).to_owned();
        let memory = remedy.memory_bytes.map(show::bytes).unwrap_or_default();
        table.row([remedy.change.join(", "), memory, show::bytes(remedy.disk_bytes), fits, cost]);
    }
    table
}

fn to_json(estimate: &JobEstimate, lang: Lang) -> Value {
    let disk = estimate.disk.unwrap_or_default();
    let fits = !estimate.problems.iter().any(problem::is_error);
    let remedies = estimate.remedies.iter().map(|remedy| {
        json!({
            "change": remedy.change,
            "cost": lang.pick_opt(&remedy.cost),
            "memory_bytes": remedy.memory_bytes,
            "disk_bytes": remedy.disk_bytes,
            "fits": remedy.fits,
        })
    });
    json!({
        "model": estimate.model,
        "device": estimate.device,
        "fits": fits,
        "memory": estimate.memory.as_ref().map(|memory| json!({
            "total_bytes": memory.total_bytes,
            "available_bytes": memory.available_bytes,
            "reserve_bytes": memory.reserve_bytes,
            "moment": memory.moment,
            "weights_bytes": memory.weights_bytes,
            "trained_weights_bytes": memory.trained_weights_bytes,
            "gradients_bytes": memory.gradients_bytes,
            "optimizer_bytes": memory.optimizer_bytes,
            "activations_bytes": memory.activations_bytes,
            "output_layer_bytes": memory.output_layer_bytes,
            "data_bytes": memory.data_bytes,
            "model_file_bytes": memory.model_file_bytes,
            "program_bytes": memory.program_bytes,
        })),
        "disk": {
            "total_bytes": disk.total_bytes,
            "available_bytes": disk.available_bytes,
            "reserve_bytes": disk.reserve_bytes,
            "checkpoints_bytes": disk.checkpoints_bytes,
            "result_bytes": disk.result_bytes,
            "temporary_bytes": disk.temporary_bytes,
        },
        "time": estimate.time.as_ref().map(|time| json!({
            "steps": time.steps,
            "tokens": time.tokens,
            "tokens_per_second": time.tokens_per_second,
            "seconds": time.seconds,
            "basis": time.basis,
        })),
        "trainable_parameters": estimate.trainable_parameters,
        "total_parameters": estimate.total_parameters,
        "largest_batch_tokens": estimate.largest_batch_tokens,
        "rows_read": estimate.rows_read,
        "rows": estimate.rows,
        "problems": json::problems(&estimate.problems, lang),
        "remedies": remedies.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_are_nothing_are_left_out() {
        let memory = MemoryEstimate { total_bytes: 3 << 20, weights_bytes: 3 << 20, ..MemoryEstimate::default() };
        let text = memory_table(&memory, 829, Lang::En).to_string();
        assert!(text.starts_with("MEMORY AT ITS PEAK  3.0 MiB  in the largest batch, 829 tokens\n"), "{text}");
        assert!(text.contains("  model weights     3.0 MiB") && !text.contains("gradients"), "{text}");
        assert!(memory_table(&memory, 829, Lang::Zh).to_string().contains("模型权重"));
    }

    #[test]
    fn what_does_not_fit_is_an_object_with_ways_out() {
        let problem = justtrain_proto::v1::Problem {
            code: "OUT_OF_MEMORY".into(),
            severity: justtrain_proto::v1::Severity::Error.into(),
            ..Default::default()
        };
        let remedy =
            Remedy { change: vec!["cutoff_len: 512".into()], memory_bytes: Some(7), fits: true, ..Remedy::default() };
        let estimate = JobEstimate { problems: vec![problem], remedies: vec![remedy], ..JobEstimate::default() };
        let json = to_json(&estimate, Lang::En);
        assert_eq!((&json["fits"], &json["remedies"][0]["memory_bytes"]), (&false.into(), &7.into()));
        assert_eq!(json["problems"][0]["code"], "OUT_OF_MEMORY");
    }

    #[test]
    fn what_a_gpu_leaves_open_is_null() {
        let remedy = Remedy { disk_bytes: 7, ..Remedy::default() };
        let estimate = JobEstimate { device: "cuda:0".into(), remedies: vec![remedy], ..JobEstimate::default() };
        let json = to_json(&estimate, Lang::En);
        assert_eq!((&json["device"], &json["memory"], &json["time"]), (&"cuda:0".into(), &Value::Null, &Value::Null));
        assert_eq!((&json["remedies"][0]["memory_bytes"], &json["fits"]), (&Value::Null, &true.into()));
    }
}
