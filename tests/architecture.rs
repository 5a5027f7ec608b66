//! The invariants of ARCHITECTURE.md, over `cargo tree`.

use std::collections::BTreeSet;
use std::process::Command;

/// What a crate of ours is built with on this platform, itself and everything below it, tests left out.
fn built_with(package: &str, features: &str) -> BTreeSet<String> {
    let mut tree = Command::new(env!("CARGO"));
    tree.args(["tree", "--locked", "--edges", "normal", "--prefix", "none", "--format", "{p}"]);
    tree.args(["--package", package, "--features", features]);
    let output = tree.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout).unwrap();
    names.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

const SOCKETS: [&str; 5] = ["tokio", "tonic", "reqwest", "hyper", "rusqlite"];

fn must_not_be_built_with(package: &str, forbidden: &[&str]) {
    let built_with = built_with(package, "");
    assert!(built_with.contains(package));
    let found: Vec<_> = forbidden.iter().filter(|&&name| built_with.contains(name)).collect();
    assert!(found.is_empty(), "{package} must not be built with {found:?}");
}

#[test]
fn arrows_never_reverse() {
    for engine in ["weights", "data", "kernels", "model", "train", "worker"] {
        must_not_be_built_with(&format!("justtrain-{engine}"), &SOCKETS);
    }
    for burn_free in ["justtraind", "justtrain", "justtrain-weights", "justtrain-data", "justtrain-bundle"] {
        must_not_be_built_with(burn_free, &["burn", "burn-flex", "gemm", "cubecl"]);
    }
    for no_proto in ["justtrain-jobs", "justtrain-hub", "justtrain-doctor", "justtrain-worker-api"] {
        must_not_be_built_with(no_proto, &["justtrain-proto", "tonic", "burn"]);
    }
    must_not_be_built_with("justtrain-hub", &["justtrain-jobs"]);
    must_not_be_built_with("justtrain-worker-api", &["tokio"]);
    let ours: Vec<_> = built_with("justtrain", "").into_iter().filter(|name| name.starts_with("justtrain")).collect();
    assert_eq!(ours, ["justtrain", "justtrain-proto"]);
}

#[test]
fn the_worker_opens_no_socket_with_cuda() {
    let worker = built_with("justtrain-worker", "cuda");
    assert!(worker.contains("cubecl-cuda"));
    assert!(SOCKETS.iter().all(|name| !worker.contains(*name)), "{worker:?}");
}
