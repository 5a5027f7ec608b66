//! The invariants of ARCHITECTURE.md, over `cargo metadata`.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, PackageId};

/// What each crate of ours is built with, itself and everything below it, tests left out.
fn closures(metadata: &Metadata) -> BTreeMap<String, BTreeSet<String>> {
    let resolve = metadata.resolve.as_ref().unwrap();
    let edges: BTreeMap<&PackageId, Vec<&PackageId>> = resolve
        .nodes
        .iter()
        .map(|node| {
            let normal = node.deps.iter().filter(|dep| dep.dep_kinds.iter().any(|k| k.kind == DependencyKind::Normal));
            (&node.id, normal.map(|dep| &dep.pkg).collect())
        })
        .collect();
    let below = |package: &PackageId| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![package.clone()]);
        while let Some(id) = open.pop() {
            if seen.insert(metadata[&id].name.to_string()) {
                open.extend(edges[&id].iter().map(|&id| id.clone()));
            }
        }
        seen
    };
    metadata.workspace_packages().into_iter().map(|package| (package.name.to_string(), below(&package.id))).collect()
}

#[test]
fn arrows_never_reverse() {
    let metadata =
        MetadataCommand::new().manifest_path("../Cargo.toml").other_options(["--locked".to_owned()]).exec().unwrap();
    let closures = closures(&metadata);
    let uses = |name: &str, forbidden: &[&str]| {
        let found: Vec<_> = forbidden.iter().filter(|&&crate_name| closures[name].contains(crate_name)).collect();
        assert!(found.is_empty(), "{name} must not be built with {found:?}");
    };
    // burn itself names `tokio` for platforms that we do not build it on.
    let sockets = ["tonic", "reqwest", "hyper", "rusqlite"];
    let tensors = ["burn", "burn-flex", "gemm"];
    for engine in ["weights", "data", "kernels", "model", "train", "worker"] {
        uses(&format!("justtrain-{engine}"), &sockets);
    }
    for burn_free in ["justtraind", "justtrain", "justtrain-weights", "justtrain-data", "justtrain-bundle"] {
        uses(burn_free, &tensors);
    }
    for no_proto in ["justtrain-jobs", "justtrain-hub", "justtrain-doctor", "justtrain-worker-api"] {
        uses(no_proto, &["justtrain-proto", "tonic", "burn"]);
    }
    uses("justtrain-hub", &["justtrain-jobs"]);
    uses("justtrain-worker-api", &["tokio"]);
    let ours: Vec<_> = closures["justtrain"].iter().filter(|name| name.starts_with("justtrain")).collect();
    assert_eq!(ours, ["justtrain", "justtrain-proto"]);
}
