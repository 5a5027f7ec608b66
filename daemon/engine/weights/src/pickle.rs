//! PyTorch's own weight files are pickles: reading one runs whatever program is in it, so they are refused
//! (<https://docs.python.org/3/library/pickle.html>).

use std::path::{Path, PathBuf};

use justtrain_worker_api::{Problem, ProblemCode};

pub(crate) fn is_pickle(path: &Path) -> bool {
    let endings = ["bin", "pt", "pth", "ckpt", "pkl"];
    path.extension().is_some_and(|extension| endings.iter().any(|ending| extension == *ending))
}

/// The way out for a model at `path` that has only these.
pub(crate) fn refused(path: &Path, pickles: &[PathBuf]) -> Problem {
    let names: Vec<_> = pickles.iter().filter_map(|file| file.file_name()?.to_str()).collect();
    Problem::error(
        ProblemCode::FileFormat,
        "the weights are PyTorch pickles, and reading a pickle runs whatever is in it",
        "权重是 PyTorch pickle 格式，读取这种文件会执行其中的代码",
    )
    .file(path.display())
    .found(names.join(", "))
    .expected("*.safetensors with config.json, or a .gguf file")
    .fix(
        "look for a safetensors or GGUF copy with `justtrain models search`; or, where you trust its author, convert it with transformers: AutoModelForCausalLM.from_pretrained(MODEL).save_pretrained(FOLDER), and name that folder",
        "可用 `justtrain models search` 查找 safetensors 或 GGUF 版本；若信任作者，可用 transformers 转换：AutoModelForCausalLM.from_pretrained(模型).save_pretrained(目录)，再指定该目录",
    )
}
