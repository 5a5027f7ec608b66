//! Compiles the contract with protox, so that no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files =
        ["common", "dataset", "estimate", "evaluation", "export", "generate", "job", "model", "operation", "system"]
            .map(|name| format!("justtrain/v1/{name}.proto"));
    println!("cargo:rerun-if-changed=justtrain");
    let descriptors = protox::compile(&files, ["."])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
