//! `recipe schema|check`, and reading a recipe file. The client never looks inside: only the engine reads recipes.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use justtrain_proto::v1::{self, CreateJobRequest, GetRecipeSchemaRequest, Job};
use serde_json::{Value, json};

use super::request_id;
use crate::failure::{Failure, Result};
use crate::json;
use crate::session::{Session, absolute, absolute_text};
use crate::text::{both, say};
use crate::ui::Report;

#[derive(Debug, Subcommand)]
pub(crate) enum Recipe {
    /// Print the JSON Schema of recipes
    Schema,
    /// Report every problem of a recipe, without training
    Check {
        /// The recipe, a YAML file
        recipe: PathBuf,
    },
}

impl Recipe {
    pub(crate) async fn run(self, session: &Session) -> Result<Report> {
        match self {
            Self::Schema => schema(session).await,
            Self::Check { recipe } => check(session, &recipe).await,
        }
    }
}

async fn schema(session: &Session) -> Result<Report> {
    let answer = session.connect().await?.jobs().get_recipe_schema(GetRecipeSchemaRequest {}).await?.into_inner();
    let text = answer.json_schema;
    if !session.ui.is_json() {
        session.ui.line(text.trim_end());
    }
    let schema: Value = serde_json::from_str(&text).unwrap_or(Value::String(text));
    Ok(Report::ok(json!({"schema": schema})))
}

/// Also `train --dry-check`.
pub(super) async fn check(session: &Session, path: &Path) -> Result<Report> {
    let ui = session.ui;
    let request = CreateJobRequest { validate_only: true, ..request(path)? };
    let job = session.connect().await?.jobs().create_job(request).await?.into_inner();
    for problem in &job.problems {
        ui.problem(problem);
    }
    let (path, model) = (path.display(), &job.model);
    ui.line(say!(ui.lang, "{path} is fine; it trains {model}.", "{path} 没有问题；将训练 {model}。"));
    Ok(Report::ok(json!({"model": job.model, "problems": json::problems(&job.problems, ui.lang)})))
}

/// Queues the recipe at `path`.
pub(super) async fn create(session: &Session, path: &Path, ignore_estimate: bool) -> Result<Job> {
    let request = CreateJobRequest { ignore_estimate, ..request(path)? };
    Ok(session.connect().await?.jobs().create_job(request).await?.into_inner())
}

fn request(path: &Path) -> Result<CreateJobRequest> {
    Ok(CreateJobRequest { request_id: request_id(), recipe: Some(read(path)?), ..CreateJobRequest::default() })
}

pub(super) fn read(path: &Path) -> Result<v1::Recipe> {
    let bytes = std::fs::read(path).map_err(|error| Failure::file(path, &error))?;
    let yaml = String::from_utf8(bytes).map_err(|error| {
        let position = error.utf8_error().valid_up_to();
        let message = both!("not UTF-8 text from byte {position} on", "从第 {position} 字节起不是 UTF-8 文本");
        Failure::invalid(vec![v1::Problem {
            code: "FILE_FORMAT".into(),
            message: Some(message),
            file: path.display().to_string(),
            ..v1::Problem::default()
        }])
    })?;
    let folder = absolute(path)?.parent().map(Path::to_path_buf);
    Ok(v1::Recipe { yaml, file: path.display().to_string(), base_dir: absolute_text(folder.as_deref())? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_in_a_recipe_start_at_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.yaml");
        std::fs::write(&path, "a: 1").unwrap();
        let recipe = read(&path).unwrap();
        assert_eq!((recipe.yaml.as_str(), recipe.base_dir.as_str()), ("a: 1", folder.path().to_str().unwrap()));
    }

    #[test]
    fn a_recipe_that_is_not_there_or_not_text_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.yaml");
        assert_eq!(read(&path).unwrap_err().problems[0].code, "FILE_NOT_FOUND");
        std::fs::write(&path, [b'a', 0xff]).unwrap();
        let failure = read(&path).unwrap_err();
        assert_eq!(failure.exit as u8, 6);
        assert_eq!(failure.problems[0].file, path.display().to_string());
    }
}
