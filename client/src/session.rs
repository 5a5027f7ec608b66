//! One run of the client: who it talks to and how it shows things.

use std::env;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use justtrain_proto::v1::dataset_service_client::DatasetServiceClient;
use justtrain_proto::v1::evaluation_service_client::EvaluationServiceClient;
use justtrain_proto::v1::export_service_client::ExportServiceClient;
use justtrain_proto::v1::generate_service_client::GenerateServiceClient;
use justtrain_proto::v1::job_service_client::JobServiceClient;
use justtrain_proto::v1::model_service_client::ModelServiceClient;
use justtrain_proto::v1::operation_service_client::OperationServiceClient;
use justtrain_proto::v1::system_service_client::SystemServiceClient;
use justtrain_proto::{AUTHORIZATION, DEFAULT_ADDRESS};
use serde::Deserialize;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::text::both;
use crate::ui::Ui;

/// Answers with many previewed rows or a long schema are larger than tonic's 4 MiB.
const LARGEST_MESSAGE: usize = 64 << 20;

#[derive(Debug, Clone)]
pub(crate) struct Session {
    pub ui: Ui,
    /// The data folder of the daemon on this machine.
    pub home: PathBuf,
    address: Option<String>,
    token: Option<String>,
}

/// `daemon.json`: what the running daemon says about itself.
#[derive(Debug, Deserialize)]
pub(crate) struct DaemonFile {
    pub address: String,
    pub pid: u32,
}

impl DaemonFile {
    pub(crate) fn read(home: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(home.join("daemon.json")).ok()?).ok()
    }
}

impl Session {
    /// `address` is `--addr` or `JUSTTRAIN_ADDR`.
    pub(crate) fn new(ui: Ui, address: Option<String>) -> Result<Self> {
        let variable = |name| env::var_os(name).filter(|value| !value.is_empty());
        let home = match variable("JUSTTRAIN_HOME") {
            Some(home) => absolute(Path::new(&home))?,
            None => {
                directories::BaseDirs::new().map(|folders| folders.data_dir().join("justtrain")).ok_or_else(|| {
                    Failure::usage(both!("no home folder; set JUSTTRAIN_HOME", "没有用户目录；请设置 JUSTTRAIN_HOME"))
                })?
            }
        };
        let address = address.filter(|address| !address.is_empty());
        let token = env::var("JUSTTRAIN_TOKEN").ok().filter(|token| !token.is_empty());
        Ok(Self { ui, home, address, token })
    }

    #[cfg(test)]
    pub(crate) fn at(home: &Path, address: &str) -> Self {
        let ui = Ui::plain(crate::text::Lang::En);
        Self { ui, home: home.into(), address: Some(address.into()), token: Some("secret".into()) }
    }

    /// `--addr` or `JUSTTRAIN_ADDR`, then what the running daemon wrote down, then the default.
    pub(crate) fn address(&self) -> String {
        let address = self.address.clone();
        address
            .or_else(|| DaemonFile::read(&self.home).map(|file| file.address))
            .unwrap_or_else(|| DEFAULT_ADDRESS.to_owned())
    }

    /// `--addr` or `JUSTTRAIN_ADDR`.
    pub(crate) fn given_address(&self) -> Option<&str> {
        self.address.as_deref()
    }

    /// Whether a daemon runs on this data folder. The lock is the truth: it falls with the process that held it.
    pub(crate) fn daemon_holds_lock(&self) -> bool {
        File::open(self.home.join("daemon.lock"))
            .is_ok_and(|file| matches!(file.try_lock_shared(), Err(std::fs::TryLockError::WouldBlock)))
    }

    /// Connects; the address and the token are read anew each time, so that a restarted daemon is found.
    pub(crate) async fn connect(&self) -> Result<Daemon> {
        let address = self.address();
        let url = if address.contains("://") { address.clone() } else { format!("http://{address}") };
        let endpoint = Endpoint::from_shared(url).map_err(|error| {
            Failure::usage(both!(
                "{address} is not an address ({error}); expected HOST:PORT",
                "{address} 不是有效的地址（{error}）；应为 主机:端口"
            ))
        })?;
        let channel = endpoint
            .connect_timeout(Duration::from_secs(5))
            .http2_keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(10))
            .connect()
            .await
            .map_err(|_| Failure::unreachable(&address, &self.home))?;
        Ok(Daemon { rpc: InterceptedService::new(channel, Bearer::new(self.token()?)?) })
    }

    fn token(&self) -> Result<Option<String>> {
        if self.token.is_some() {
            return Ok(self.token.clone());
        }
        let path = self.home.join("token");
        match std::fs::read_to_string(&path) {
            Ok(token) => Ok(Some(token.trim().to_owned())),
            // Another machine's daemon, or none yet: let the daemon say whether it wants one.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => {
                let path = path.display();
                let message = both!("cannot read the token {path}: {error}", "无法读取令牌 {path}：{error}");
                Err(Failure::new(Exit::Unauthenticated, message))
            }
        }
    }
}

/// Puts the token on every call.
#[derive(Debug, Clone)]
pub(crate) struct Bearer(Option<MetadataValue<Ascii>>);

impl Bearer {
    fn new(token: Option<String>) -> Result<Self> {
        let value = token.map(|token| format!("Bearer {token}").parse()).transpose();
        value.map(Self).map_err(|_| {
            let message = both!("the token holds characters that no token has", "令牌中含有非法字符");
            Failure::new(Exit::Unauthenticated, message)
        })
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert(AUTHORIZATION, value.clone());
        }
        Ok(request)
    }
}

type Rpc = InterceptedService<Channel, Bearer>;

/// An open connection; each method is one service.
#[derive(Debug, Clone)]
pub(crate) struct Daemon {
    rpc: Rpc,
}

macro_rules! services {
    ($($name:ident: $client:ident),* $(,)?) => {
        impl Daemon {
            $(pub(crate) fn $name(&self) -> $client<Rpc> {
                $client::new(self.rpc.clone()).max_decoding_message_size(LARGEST_MESSAGE)
            })*
        }
    };
}

services! {
    datasets: DatasetServiceClient,
    evaluations: EvaluationServiceClient,
    exports: ExportServiceClient,
    generation: GenerateServiceClient,
    jobs: JobServiceClient,
    models: ModelServiceClient,
    operations: OperationServiceClient,
    system: SystemServiceClient,
}

/// `path` from the root: the daemon's working folder is not ours.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|error| Failure::file(path, &error))
}

/// [`absolute`] as the contract wants it; `None` is the empty string.
pub(crate) fn absolute_text(path: Option<&Path>) -> Result<String> {
    let Some(path) = path else { return Ok(String::new()) };
    absolute(path)?.into_os_string().into_string().map_err(|path| {
        let path = path.display();
        Failure::usage(both!("the path {path} is not UTF-8", "路径 {path} 不是 UTF-8"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_given_wins_over_the_daemon_file_and_that_over_the_default() {
        let home = tempfile::tempdir().unwrap();
        let mut session = Session::at(home.path(), "10.0.0.1:1");
        assert_eq!(session.address(), "10.0.0.1:1");
        session.address = None;
        assert_eq!(session.address(), DEFAULT_ADDRESS);
        std::fs::write(home.path().join("daemon.json"), r#"{"address":"127.0.0.1:9","pid":1,"version":"x"}"#).unwrap();
        assert_eq!(session.address(), "127.0.0.1:9");
    }

    #[test]
    fn the_lock_tells_whether_a_daemon_runs() {
        let home = tempfile::tempdir().unwrap();
        let session = Session::at(home.path(), "");
        assert!(!session.daemon_holds_lock());
        let lock = File::create(home.path().join("daemon.lock")).unwrap();
        assert!(!session.daemon_holds_lock());
        lock.lock().unwrap();
        assert!(session.daemon_holds_lock());
    }

    #[tokio::test]
    async fn a_dead_daemon_is_exit_code_3() {
        let home = tempfile::tempdir().unwrap();
        let failure = Session::at(home.path(), "127.0.0.1:1").connect().await.unwrap_err();
        assert_eq!(failure.exit, Exit::DaemonUnreachable);
    }
}
