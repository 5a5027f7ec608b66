//! A GGUF file or a Hugging Face folder on this machine, copied into the store.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use justtrain_worker_api::{Problem, ProblemCode, Text};

use super::{Context, Fetched, Offer, Source, SourceKind, Wanted, not_mine};
use crate::ModelName;
use crate::catalogue;
use crate::disk::{ensure_room, io_problem, rename_durably};
use crate::download::check_magic;
use crate::hash::copy_hashed;
use crate::progress::cancelled_problem;
use crate::selection::{self, Selection};
use crate::store::{Delivery, StoredFile, revision_of};

pub(super) struct Local;

impl Source for Local {
    fn kind(&self) -> SourceKind {
        SourceKind::File
    }

    fn has(&self, wanted: &Wanted) -> bool {
        matches!(wanted, Wanted::Path(_))
    }

    fn fetch<'a>(&'a self, wanted: &'a Wanted, _: Offer, context: &'a mut Context<'_, '_>) -> Fetched<'a> {
        Box::pin(async move {
            match wanted {
                Wanted::Path(path) => tokio::task::block_in_place(|| deliver(path, context)),
                Wanted::Repository { .. } | Wanted::Url(_) => Err(not_mine(SourceKind::File)),
            }
        })
    }
}

fn deliver(path: &Path, context: &mut Context<'_, '_>) -> Result<Delivery, Problem> {
    let path = fs::canonicalize(path).map_err(|error| io_problem(path, &error))?;
    let (chosen, name) = choose(&path, context.selection)?;
    let total = chosen.iter().filter_map(|file| fs::metadata(file).ok()).map(|metadata| metadata.len()).sum();
    fs::create_dir_all(context.store.root()).map_err(|error| io_problem(context.store.root(), &error))?;
    ensure_room(context.store.root(), total)?;
    context.meter.start(total);
    context.meter.status(Text::new(format!("copying {}", path.display()), format!("正在复制 {}", path.display())));

    let incoming = tempfile::Builder::new().prefix(".incoming-").tempdir_in(context.store.root());
    let incoming = incoming.map_err(|error| io_problem(context.store.root(), &error))?;
    let mut files = Vec::with_capacity(chosen.len());
    for file in &chosen {
        files.push(copy(file, incoming.path(), context)?);
    }
    // A file that the catalogue knows gets its proper name, whatever it is called here.
    let known = match &files[..] {
        [file] => catalogue::find_by_sha256(&file.sha256),
        _ => None,
    };
    let name = match (context.name, known) {
        (Some(name), _) => name.clone(),
        (None, Some(entry)) => entry.name.clone(),
        (None, None) => ModelName::from_file_name(&name)?,
    };
    let blobs = context.store.blobs(&name)?;
    for file in &files {
        rename_durably(&incoming.path().join(&file.sha256), &blobs.join(&file.sha256))
            .map_err(|error| io_problem(&blobs, &error))?;
    }
    let license = known.map(|entry| entry.license.clone());
    Ok(Delivery { name, source: SourceKind::File, revision: revision_of(&files), license, files })
}

/// The files of the model at `path`, and what it is called there.
fn choose(path: &Path, selection: &Selection) -> Result<(Vec<PathBuf>, String), Problem> {
    let called = plain_name(path);
    if path.is_file() {
        if called.ends_with(".gguf") || !has_other_ending(&called) {
            check_magic(path, b"GGUF", &path.display().to_string())?;
            return Ok((vec![path.to_owned()], called.trim_end_matches(".gguf").to_owned()));
        }
        // One file of a folder: say what is wrong with it, or that the folder is meant.
        selection::choose(&path.display().to_string(), &[&called], selection)?;
        return Err(Problem::error(
            ProblemCode::FileFormat,
            "this file is a part of a model",
            "该文件只是模型的一部分",
        )
        .file(path.display())
        .expected("a .gguf file, or the folder with config.json and *.safetensors"));
    }
    let entries = fs::read_dir(path).map_err(|error| io_problem(path, &error))?;
    let mut names: Vec<_> =
        entries.flatten().filter(|entry| entry.path().is_file()).map(|entry| plain_name(&entry.path())).collect();
    names.sort();
    let paths: Vec<_> = names.iter().map(String::as_str).collect();
    let chosen = selection::choose(&path.display().to_string(), &paths, selection)?;
    for gguf in chosen.iter().filter(|name| name.ends_with(".gguf")).map(|name| path.join(name)) {
        check_magic(&gguf, b"GGUF", &gguf.display().to_string())?;
    }
    if chosen.iter().any(|name| name.ends_with(".safetensors")) && !chosen.contains("config.json") {
        return Err(Problem::error(ProblemCode::FileFormat, "this folder does not hold a model", "该文件夹里没有模型")
            .file(path.display())
            .found("*.safetensors without config.json")
            .expected("config.json with *.safetensors, or one .gguf file"));
    }
    Ok((names.iter().filter(|name| chosen.contains(*name)).map(|name| path.join(name)).collect(), called))
}

fn plain_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn has_other_ending(name: &str) -> bool {
    [".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl"].iter().any(|ending| name.ends_with(ending))
}

fn copy(file: &Path, incoming: &Path, context: &mut Context<'_, '_>) -> Result<StoredFile, Problem> {
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let copying = incoming.join("copying");
    let source = File::open(file).map_err(|error| io_problem(file, &error))?;
    let (size, sha256) = copy_hashed(source, &copying, |done| {
        context.meter.file_has(done);
        context.cancel.check()
    })
    .map_err(|error| match context.cancel.check() {
        Err(_) => cancelled_problem(),
        Ok(()) => io_problem(file, &error),
    })?;
    context.meter.file_ended(size);
    fs::rename(&copying, incoming.join(&sha256)).map_err(|error| io_problem(incoming, &error))?;
    Ok(StoredFile { path: name, size, sha256, blob: None })
}
