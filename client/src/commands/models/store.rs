//! The models that are here.

use justtrain_proto::v1::{DeleteModelRequest, ListModelsRequest, VerifyModelRequest};
use serde_json::json;

use crate::exit::Exit;
use crate::failure::Result;
use crate::pick::model_name;
use crate::session::Session;
use crate::show::{self, Table};
use crate::text::say;
use crate::ui::Report;
use crate::{json, problem};

pub(super) async fn list(session: &Session) -> Result<Report> {
    let ui = session.ui;
    let daemon = session.connect().await?;
    let mut request = ListModelsRequest::default();
    let mut models = Vec::new();
    loop {
        let page = daemon.models().list_models(request.clone()).await?.into_inner();
        models.extend(page.models);
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    if models.is_empty() {
        ui.line(say!(
            ui.lang,
            "No model yet. Fetch one: justtrain models pull NAME",
            "还没有模型。获取一个：justtrain models pull 名称"
        ));
    } else {
        let header = [
            say!(ui.lang, "NAME", "名称"),
            say!(ui.lang, "SIZE", "大小"),
            say!(ui.lang, "FORMAT", "格式"),
            say!(ui.lang, "SOURCE", "来源"),
            say!(ui.lang, "LICENSE", "许可证"),
            say!(ui.lang, "LAST USED", "上次使用"),
        ];
        let mut table = Table::new(header).right_align(&[1]);
        for model in &models {
            table.row([
                model.display_name.clone(),
                show::bytes(model.size_bytes),
                model.format.clone(),
                model.source.clone(),
                model.license.clone(),
                show::time(&model.last_use_time),
            ]);
        }
        ui.line(table);
    }
    Ok(Report::ok(json!({"models": models.iter().map(json::model).collect::<Vec<_>>()})))
}

pub(super) async fn verify(session: &Session, model: &str) -> Result<Report> {
    let ui = session.ui;
    let name = model_name(model);
    let request = VerifyModelRequest { name: name.clone() };
    let mut stream = session.connect().await?.models().verify_model(request).await?.into_inner();
    let (mut files, mut damaged) = (Vec::new(), 0);
    while let Some(file) = stream.message().await? {
        let (path, size) = (&file.path, show::bytes(file.size_bytes));
        match &file.problem {
            None => ui.line(say!(ui.lang, "{path}: right, {size}", "{path}：正确，{size}")),
            Some(found) => {
                damaged += usize::from(problem::is_error(found));
                ui.problem(found);
            }
        }
        files.push(json!({
            "path": file.path,
            "size_bytes": file.size_bytes,
            "problem": file.problem.as_ref().map(|found| problem::json(found, ui.lang)),
        }));
    }
    let count = files.len();
    ui.line(match damaged {
        0 => say!(ui.lang, "{name}: {count} files, all right.", "{name}：共 {count} 个文件，全部正确。"),
        _ => say!(
            ui.lang,
            "{name}: damaged files: {damaged} of {count}.",
            "{name}：{count} 个文件中有 {damaged} 个损坏。"
        ),
    });
    let exit = if damaged > 0 { Exit::Failed } else { Exit::Ok };
    Ok(Report { exit, json: json!({"name": name, "ok": damaged == 0, "files": files}) })
}

pub(super) async fn rm(session: &Session, model: &str) -> Result<Report> {
    let ui = session.ui;
    let name = model_name(model);
    let request = DeleteModelRequest { name: name.clone() };
    let freed_bytes = session.connect().await?.models().delete_model(request).await?.into_inner().freed_bytes;
    let freed = show::bytes(freed_bytes);
    ui.line(say!(ui.lang, "Removed {name}; {freed} freed.", "已删除 {name}，释放 {freed}。"));
    Ok(Report::ok(json!({"name": name, "freed_bytes": freed_bytes})))
}
