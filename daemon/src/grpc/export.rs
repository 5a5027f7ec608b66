//! `ExportService`: tuned models for other tools.

use std::path::PathBuf;

use justtrain_jobs::{OperationKind, OperationResult};
use justtrain_proto::v1::export_service_server::ExportService;
use justtrain_proto::v1::{self, CreateExportRequest, Operation};
use justtrain_worker_api::{Command, ExportFormat, Outcome};
use tonic::{Request, Response, Status, async_trait};

use super::select::request_key;
use super::{Daemon, status};

#[async_trait]
impl ExportService for Daemon {
    async fn create_export(&self, request: Request<CreateExportRequest>) -> Result<Response<Operation>, Status> {
        let request = request.into_inner();
        let key = request_key("CreateExport", &request.request_id, &request)?;
        let (format, folder) = match request.format() {
            v1::ExportFormat::Peft => (ExportFormat::Peft, "peft"),
            v1::ExportFormat::Merged => (ExportFormat::Merged, "merged"),
            v1::ExportFormat::Unspecified => return Err(status::invalid("format", "", "PEFT or MERGED")),
        };
        let job = request.model.as_ref().map(|model| model.job.clone()).unwrap_or_default();
        let output = match (request.output_path.as_str(), job.as_str()) {
            ("", "") => return Err(status::invalid("output_path", "", "the folder to write")),
            ("", job) => self.job(job)?.run_dir.join("exports").join(folder),
            (path, _) => PathBuf::from(path),
        };
        if let Some(parent) = output.parent() {
            // The worker says what is wrong where this fails.
            let _ = std::fs::create_dir_all(parent);
        }
        let command = Command::Export { model: self.model(request.model)?, format, output };
        let operation = self.run_worker(OperationKind::Export, &key, command, |outcome| match outcome {
            Outcome::Exported { format, path, bytes } => Some(OperationResult::Export { format, path, bytes }),
            _ => None,
        });
        Ok(Response::new(operation?))
    }
}
