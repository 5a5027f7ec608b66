//! Models elsewhere: looking for them, looking at them, bringing them here.

use justtrain_proto::v1::operation::Result as OperationResult;
use justtrain_proto::v1::{
    Fit, FoundModel, GetModelRequest, LookUpModelRequest, Model, ModelFile, OfferedModel, PullModelRequest,
    SearchModelsRequest,
};
use serde_json::json;

use super::Files;
use crate::commands::request_id;
use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::pick::model_name;
use crate::session::Session;
use crate::show::{self, Table};
use crate::text::{Lang, say};
use crate::ui::{Report, Ui};
use crate::{json, operation};

pub(super) async fn search(session: &Session, query: String, limit: u32) -> Result<Report> {
    let ui = session.ui;
    let request = SearchModelsRequest { query, limit: i32::try_from(limit).unwrap_or(i32::MAX) };
    let found = session.connect().await?.models().search_models(request).await?.into_inner();
    for problem in &found.problems {
        ui.problem(problem);
    }
    if found.models.is_empty() {
        ui.line(say!(ui.lang, "Nothing found.", "没有找到。"));
    } else {
        let header = [
            say!(ui.lang, "NAME", "名称"),
            say!(ui.lang, "SIZE", "大小"),
            say!(ui.lang, "FITS", "能否放下"),
            say!(ui.lang, "DOWNLOADS", "下载量"),
            say!(ui.lang, "LICENSE", "许可证"),
            say!(ui.lang, "SOURCE", "来源"),
        ];
        let mut table = Table::new(header).right_align(&[1, 3]);
        for model in &found.models {
            table.row([
                model.display_name.clone(),
                size(model),
                fit(model, ui.lang),
                downloads(model),
                license(model, ui.lang),
                model.source.clone(),
            ]);
        }
        ui.line(table);
    }
    let models: Vec<_> = found.models.iter().map(json::found_model).collect();
    Ok(Report::ok(json!({"models": models, "problems": json::problems(&found.problems, ui.lang)})))
}

/// The stored model, or what the hubs have under this name.
pub(super) async fn show(session: &Session, model: &str, files: Files) -> Result<Report> {
    let ui = session.ui;
    let daemon = session.connect().await?;
    let stored = daemon.models().get_model(GetModelRequest { name: model_name(model) }).await.map_err(Failure::from);
    match stored {
        Ok(stored) => {
            let stored = stored.into_inner();
            show_stored(&stored, ui);
            return Ok(Report::ok(json::model(&stored)));
        }
        Err(failure) if failure.exit == Exit::NotFound => {}
        Err(failure) => return Err(failure),
    }
    let request = LookUpModelRequest { model: model.to_owned(), allow: files.allow, ignore: files.ignore };
    let offered = daemon.models().look_up_model(request).await?.into_inner();
    show_offered(&offered, ui);
    let mut object = offered.model.as_ref().map(json::found_model).unwrap_or_default();
    object["revision"] = offered.revision.clone().into();
    object["files"] = json::model_files(&offered.files);
    Ok(Report::ok(object))
}

fn show_stored(model: &Model, ui: Ui) {
    let Model { display_name, format, source, revision, license, path, .. } = model;
    let size = show::bytes(model.size_bytes);
    ui.line(say!(
        ui.lang,
        "{display_name}: {size} of {format}, from {source} at {revision}",
        "{display_name}：{size}，{format}，来源 {source}，版本 {revision}"
    ));
    if !license.is_empty() {
        ui.line(say!(ui.lang, "licence: {license}", "许可证：{license}"));
    }
    ui.line(say!(ui.lang, "in {path}", "位于 {path}"));
    let used = show::time(&model.last_use_time);
    if !used.is_empty() {
        ui.line(say!(ui.lang, "last used: {used}", "上次使用：{used}"));
    }
    list_files(&model.files, ui);
}

fn show_offered(offered: &OfferedModel, ui: Ui) {
    let model = offered.model.clone().unwrap_or_default();
    let FoundModel { display_name, source, .. } = &model;
    let (size, fit, license) = (size(&model), fit(&model, ui.lang), license(&model, ui.lang));
    let downloads = downloads(&model);
    ui.line(say!(
        ui.lang,
        "{display_name}: not here yet; {source} has it ({size}, fits: {fit}, licence: {license}, {downloads} downloads)",
        "{display_name}：尚未下载；{source} 上有（{size}，能否放下：{fit}，许可证：{license}，下载量 {downloads}）"
    ));
    ui.line(say!(ui.lang, "A pull would fetch:", "下载内容："));
    list_files(&offered.files, ui);
}

fn list_files(files: &[ModelFile], ui: Ui) {
    let mut table = Table::new([say!(ui.lang, "FILE", "文件"), say!(ui.lang, "SIZE", "大小"), "SHA-256".to_owned()])
        .right_align(&[1]);
    for file in files {
        table.row([file.path.clone(), show::bytes(file.size_bytes), file.sha256.chars().take(12).collect()]);
    }
    ui.line(table);
}

/// Fetches a model, or takes one of this machine. A person who is there is asked about its terms.
pub(super) async fn pull(session: &Session, mut request: PullModelRequest) -> Result<Report> {
    let ui = session.ui;
    let daemon = session.connect().await?;
    let done = loop {
        request.request_id = request_id();
        let started = daemon.models().pull_model(request.clone()).await?.into_inner();
        match operation::follow(session, started).await {
            Err(refused) if !request.accept_license && ui.is_live() && agrees(&refused, ui) => {
                request.accept_license = true;
            }
            done => break done?,
        }
    };
    if let Some(OperationResult::Pull(pull)) = &done.result {
        for attempt in &pull.attempts {
            ui.line(ui.dim(ui.lang.pick(attempt)));
        }
        let (model, size, source, path) = (&pull.model, show::bytes(pull.size_bytes), &pull.source, &pull.path);
        ui.line(say!(
            ui.lang,
            "{model}: {size} from {source}, in {path}",
            "{model}：{size}，来源 {source}，位于 {path}"
        ));
        // The licence binds whoever uses the model, so it is said without being asked for.
        let stored = daemon.models().get_model(GetModelRequest { name: pull.model.clone() }).await?.into_inner();
        if !stored.license.is_empty() {
            let license = &stored.license;
            ui.line(say!(ui.lang, "licence: {license}", "许可证：{license}"));
        }
    }
    Ok(Report::ok(json::operation(&done, ui.lang)))
}

/// Whether the pull was refused for terms that nobody has accepted, and the person accepts them now.
fn agrees(refused: &Failure, ui: Ui) -> bool {
    let Some(terms) = refused.problems.iter().find(|problem| problem.code == "LICENSE_NOT_ACCEPTED") else {
        return false;
    };
    ui.line(format!("{}\n{}", ui.lang.pick_opt(&terms.message), terms.expected));
    ui.piece(&say!(ui.lang, "Do you accept? [y/N] ", "是否接受？[y/N] "));
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).is_ok() && matches!(answer.trim(), "y" | "Y" | "yes" | "是")
}

/// Of the weights; where the hub does not tell, the number of parameters.
fn size(model: &FoundModel) -> String {
    match (model.size_bytes, model.parameters) {
        (0, 0) => "?".to_owned(),
        (0, parameters) => format!("{:.1} B", parameters as f64 / 1e9),
        (bytes, _) => show::bytes(bytes),
    }
}

/// A wheel's are not counted.
fn downloads(model: &FoundModel) -> String {
    if model.source == "wheel" { "?".to_owned() } else { show::count(model.downloads) }
}

fn fit(model: &FoundModel, lang: Lang) -> String {
    match model.fit() {
        Fit::Unspecified => "?".to_owned(),
        Fit::Yes => say!(lang, "yes", "可以"),
        Fit::DiskTooSmall => say!(lang, "no: disk", "磁盘不足"),
        Fit::MemoryTooSmall => say!(lang, "no: memory", "内存不足"),
    }
}

fn license(model: &FoundModel, lang: Lang) -> String {
    let license = if model.license.is_empty() { "?" } else { &model.license };
    match model.gated {
        true => say!(lang, "{license} (accept its terms first)", "{license}（需先同意条款）"),
        false => license.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_told_is_not_guessed() {
        let unknown = FoundModel::default();
        assert_eq!(
            (size(&unknown), fit(&unknown, Lang::En), license(&unknown, Lang::En)),
            ("?".into(), "?".into(), "?".into())
        );
        assert_eq!(downloads(&FoundModel { source: "wheel".into(), ..FoundModel::default() }), "?");
        let known = FoundModel { size_bytes: 2 << 30, license: "mit".into(), gated: true, ..FoundModel::default() };
        assert_eq!(size(&known), "2.0 GiB");
        assert_eq!(license(&known, Lang::Zh), "mit（需先同意条款）");
    }
}
