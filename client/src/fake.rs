//! A daemon for tests: the given services on a free port, and a session that talks to them.

use tempfile::TempDir;
use tokio::task::JoinHandle;
use tonic::transport::server::{Router, TcpIncoming};

use crate::session::Session;

pub(crate) struct FakeDaemon {
    pub session: Session,
    pub home: TempDir,
    server: JoinHandle<()>,
}

impl FakeDaemon {
    pub(crate) fn start(services: Router) -> Self {
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = incoming.local_addr().unwrap().to_string();
        let server = tokio::spawn(async move { services.serve_with_incoming(incoming).await.unwrap() });
        let home = tempfile::tempdir().unwrap();
        let session = Session::at(home.path(), &address);
        Self { session, home, server }
    }
}

impl Drop for FakeDaemon {
    fn drop(&mut self) {
        self.server.abort();
    }
}
