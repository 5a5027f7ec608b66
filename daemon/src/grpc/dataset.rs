//! `DatasetService`: looks at data files before training on them.

use justtrain_proto::v1::dataset_service_server::DatasetService;
use justtrain_proto::v1::{
    CheckDatasetRequest, CheckDatasetResponse, GenerateDatasetRequest, GenerateDatasetResponse, PreviewDatasetRequest,
    PreviewDatasetResponse, PreviewRow, PreviewToken,
};
use justtrain_worker_api::{Command, DataLanguage, Outcome};
use tokio::sync::watch;
use tonic::{Request, Response, Status, async_trait};

use super::{Daemon, convert, status};

const CUTOFF_LEN: u32 = 2048;
const COUNT: u32 = 1000;

impl Daemon {
    /// Runs a worker on a short command.
    pub(super) async fn worker(&self, command: Command) -> Result<Outcome, Status> {
        // Dropping the call kills the worker; nothing else cancels it.
        let never = watch::Sender::new(false);
        let program = self.jobs.program();
        program.run(&command, never.subscribe(), |_| {}).await.map_err(|failure| status::of_failure(&failure))
    }
}

/// A worker that answered another question.
pub(super) fn mixed_up(outcome: &Outcome) -> Status {
    Status::internal(format!("the worker answered something else: {outcome:?}"))
}

#[async_trait]
impl DatasetService for Daemon {
    async fn check_dataset(
        &self,
        request: Request<CheckDatasetRequest>,
    ) -> Result<Response<CheckDatasetResponse>, Status> {
        let request = request.into_inner();
        let model = match &request.model {
            Some(selector) if !selector.model.is_empty() || !selector.job.is_empty() => {
                Some(self.model(request.model.clone())?)
            }
            _ => None,
        };
        let cutoff_len = if request.cutoff_len == 0 { CUTOFF_LEN } else { request.cutoff_len };
        let command = Command::DataCheck { data: convert::data_file(request.data)?, model, cutoff_len };
        match self.worker(command).await? {
            Outcome::DataChecked(report) => Ok(Response::new(CheckDatasetResponse {
                format: convert::format_name(report.format),
                rows: report.rows,
                usable_rows: report.usable_rows,
                problems: convert::problems(&report.problems),
                more_problems: report.more_problems,
                tokens: report.tokens,
                target_tokens: report.target_tokens,
                longest_row_tokens: report.longest_row_tokens,
                cut_rows: report.cut_rows,
                first_row: report.first_row.into_iter().flat_map(|row| row.turns).map(convert::turn).collect(),
            })),
            other => Err(mixed_up(&other)),
        }
    }

    async fn preview_dataset(
        &self,
        request: Request<PreviewDatasetRequest>,
    ) -> Result<Response<PreviewDatasetResponse>, Status> {
        let request = request.into_inner();
        let command = Command::DataPreview {
            data: convert::data_file(request.data)?,
            model: self.model(request.model)?,
            cutoff_len: if request.cutoff_len == 0 { CUTOFF_LEN } else { request.cutoff_len },
            offset: request.offset,
            rows: request.rows.max(1),
        };
        match self.worker(command).await? {
            Outcome::DataPreviewed { rows } => {
                let rows = rows.into_iter().map(|row| PreviewRow {
                    row: row.row,
                    chosen: row.chosen,
                    rendered: row.rendered,
                    tokens: row
                        .tokens
                        .into_iter()
                        .map(|token| PreviewToken { id: token.id, text: token.text, target: token.target })
                        .collect(),
                });
                Ok(Response::new(PreviewDatasetResponse { rows: rows.collect() }))
            }
            other => Err(mixed_up(&other)),
        }
    }

    async fn generate_dataset(
        &self,
        request: Request<GenerateDatasetRequest>,
    ) -> Result<Response<GenerateDatasetResponse>, Status> {
        let request = request.into_inner();
        let language = match request.language.as_str() {
            "en" => DataLanguage::En,
            "zh" => DataLanguage::Zh,
            other => return Err(status::invalid("language", other, "en or zh")),
        };
        let command = Command::DataGenerate {
            kind: request.kind,
            count: if request.count == 0 { COUNT } else { request.count },
            seed: request.seed,
            language,
            output: request.output_path.into(),
        };
        match self.worker(command).await? {
            Outcome::DataGenerated { path, rows } => {
                Ok(Response::new(GenerateDatasetResponse { path: path.display().to_string(), rows }))
            }
            other => Err(mixed_up(&other)),
        }
    }
}
