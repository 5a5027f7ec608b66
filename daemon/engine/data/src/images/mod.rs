//! PNG and JPEG files to the pixel values that a vision model reads, as transformers' `ViTImageProcessor` makes them:
//! what `preprocessor_config.json` says of size, scale and normalisation.

mod resize;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use image::{DynamicImage, ImageDecoder, ImageError, ImageReader, RgbImage};
use justtrain_worker_api::{Problem, ProblemCode};
use serde_json::Value;

use resize::Filter;

const FILE: &str = "preprocessor_config.json";

/// `preprocessor_config.json` of a vision model.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageProcessor {
    /// Height and width; None where images are taken as they are.
    size: Option<(u32, u32)>,
    filter: Filter,
    /// What a channel's levels, 0 to 255, become.
    levels: Arc<[[f32; 256]; 3]>,
    /// The file's text, which goes with a tuned model.
    source: String,
}

/// One image in the model's size, as it is kept until it is needed: a byte for each channel of each pixel.
#[derive(Debug, Clone, PartialEq)]
pub struct Pixels {
    /// Row by row, the three channels of a pixel together.
    bytes: Vec<u8>,
    pub height: usize,
    pub width: usize,
    /// What a channel's levels become.
    levels: Arc<[[f32; 256]; 3]>,
}

impl Pixels {
    /// Row by row, the three channels of a pixel together.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What the model reads: `[3, height, width]`.
    pub fn values(&self) -> Vec<f32> {
        let channel = |channel: usize| {
            let levels = self.bytes.iter().skip(channel).step_by(3);
            levels.map(move |&level| self.levels[channel][usize::from(level)])
        };
        (0..3).flat_map(channel).collect()
    }
}

impl ImageProcessor {
    /// Reads a model folder's `preprocessor_config.json`. Keys that are not there have ViTImageProcessor's defaults.
    pub fn open(folder: &Path) -> Result<Self, Problem> {
        let path = folder.join(FILE);
        let read = || -> Result<Self, Problem> {
            let text = fs::read_to_string(&path).map_err(|error| unusable("", error))?;
            let config = serde_json::from_str(&text).map_err(|error| unusable("", error))?;
            Ok(Self { source: text, ..Self::from_config(&config)? })
        };
        read().map_err(|problem| problem.file(path.display()))
    }

    fn from_config(config: &Value) -> Result<Self, Problem> {
        let flag = |key: &str, default: bool| config[key].as_bool().unwrap_or(default);
        if flag("do_center_crop", false) {
            return Err(unusable("do_center_crop", "true").expected("false, as in ViT"));
        }
        let filter = match &config["resample"] {
            Value::Null => Filter::Bilinear,
            given => match given.as_u64() {
                Some(2) => Filter::Bilinear,
                Some(3) => Filter::Bicubic,
                _ => return Err(unusable("resample", given).expected("2 (bilinear) or 3 (bicubic)")),
            },
        };
        let factor = match flag("do_rescale", true) {
            true => number(config, "rescale_factor")?.unwrap_or(1.0 / 255.0),
            false => 1.0,
        };
        let (mean, deviation) = match flag("do_normalize", true) {
            true => (by_channel(config, "image_mean", 0.5)?, by_channel(config, "image_std", 0.5)?),
            false => ([0.0; 3], [1.0; 3]),
        };
        if deviation.contains(&0.0) {
            return Err(unusable("image_std", "0").expected("numbers above 0"));
        }
        let mut levels = [[0.0; 256]; 3];
        for (channel, levels) in levels.iter_mut().enumerate() {
            for (level, value) in levels.iter_mut().enumerate() {
                // In transformers' precision: the scale in f64, the rest in f32.
                *value = ((level as f64 * factor) as f32 - mean[channel]) / deviation[channel];
            }
        }
        let size = if flag("do_resize", true) { Some(size(&config["size"])?) } else { None };
        Ok(Self { size, filter, levels: Arc::new(levels), source: String::new() })
    }

    /// Reads an image file, turned upright by its EXIF tag, in RGB: grey is spread over the channels, alpha is dropped.
    pub fn read(&self, image: &Path) -> Result<Pixels, Problem> {
        let image = read_rgb(image).map_err(|error| broken_image(image, &error))?;
        Ok(self.process(image))
    }

    fn process(&self, image: RgbImage) -> Pixels {
        let image = match self.size {
            Some((height, width)) => resize::resize(&image, width, height, self.filter),
            None => image,
        };
        let (width, height) = (image.width() as usize, image.height() as usize);
        Pixels { bytes: image.into_raw(), height, width, levels: Arc::clone(&self.levels) }
    }

    /// Writes `preprocessor_config.json` into a folder that is there.
    pub fn save(&self, folder: &Path) -> Result<(), Problem> {
        let path = folder.join(FILE);
        fs::write(&path, &self.source).map_err(|error| {
            Problem::error(
                ProblemCode::DiskFull,
                format!("the image settings cannot be written: {error}"),
                format!("无法写入图像设置：{error}"),
            )
            .file(path.display())
            .fix("free some disk space, or name another folder", "请释放磁盘空间，或指定其他文件夹")
        })
    }
}

fn read_rgb(path: &Path) -> Result<RgbImage, ImageError> {
    let mut decoder = ImageReader::open(path)?.with_guessed_format()?.into_decoder()?;
    let orientation = decoder.orientation()?;
    let mut image = DynamicImage::from_decoder(decoder)?;
    image.apply_orientation(orientation);
    Ok(image.into_rgb8())
}

/// Height and width: an object of both, or one number for a square as in the first files of ViT.
fn size(given: &Value) -> Result<(u32, u32), Problem> {
    let edge = |value: &Value| value.as_u64().and_then(|edge| u32::try_from(edge).ok()).filter(|&edge| edge > 0);
    match given {
        Value::Null => Some((224, 224)),
        Value::Number(_) => edge(given).map(|edge| (edge, edge)),
        _ => edge(&given["height"]).zip(edge(&given["width"])),
    }
    .ok_or_else(|| unusable("size", given).expected("{\"height\": …, \"width\": …}"))
}

fn number(config: &Value, key: &str) -> Result<Option<f64>, Problem> {
    match &config[key] {
        Value::Null => Ok(None),
        given => given.as_f64().map(Some).ok_or_else(|| unusable(key, given).expected("a number")),
    }
}

/// A list of three numbers, or one for all channels.
fn by_channel(config: &Value, key: &str, default: f32) -> Result<[f32; 3], Problem> {
    let given = &config[key];
    let as_f32 = |value: &Value| value.as_f64().map(|value| value as f32);
    match given {
        Value::Null => Some([default; 3]),
        Value::Array(list) => {
            list.iter().map(as_f32).collect::<Option<Vec<_>>>().and_then(|list| <[f32; 3]>::try_from(list).ok())
        }
        one => as_f32(one).map(|one| [one; 3]),
    }
    .ok_or_else(|| unusable(key, given).expected("three numbers, one a channel"))
}

fn unusable(key: &str, found: impl std::fmt::Display) -> Problem {
    let problem = Problem::error(
        ProblemCode::InvalidValue,
        "the model's image settings cannot be used",
        "模型的图像设置无法使用",
    )
    .found(found)
    .fix("download the model again, or choose another one", "请重新下载模型，或选择其他模型");
    if key.is_empty() { problem } else { problem.key(key) }
}

fn broken_image(path: &Path, error: &ImageError) -> Problem {
    let missing = matches!(error, ImageError::IoError(error) if error.kind() == std::io::ErrorKind::NotFound);
    let (code, en, zh) = match missing {
        true => (ProblemCode::FileNotFound, "the image is not there", "图像文件不存在"),
        false => (ProblemCode::FileFormat, "the image cannot be read", "无法读取图像"),
    };
    let problem = Problem::error(code, en, zh).key("image").expected("a PNG or JPEG file");
    match missing {
        true => problem.found(path.display()).fix(
            "correct the path, which is relative to the data file, or delete the row",
            "请更正路径（相对于数据文件），或删除该行",
        ),
        false => problem.found(format!("{}: {error}", path.display())).fix(
            "save the image again as PNG or JPEG, or delete the row",
            "请将图像重新保存为 PNG 或 JPEG，或删除该行",
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use justtrain_weights::safetensors::SafetensorsFile;
    use serde_json::json;

    use super::*;

    fn fixtures() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/images")
    }

    fn read(processor: &ImageProcessor, name: &str) -> Result<Pixels, Problem> {
        processor.read(&fixtures().join(name))
    }

    /// `scripts/golden/images.py`. PNG to the last bit. Decoders of JPEG round in their own ways: no value is further off than
    /// two levels of 255, and on average they are within half of one.
    #[test]
    fn pixel_values_equal_transformers() {
        let goldens = SafetensorsFile::open(&fixtures().join("goldens.safetensors")).unwrap();
        for kind in ["bilinear", "bicubic"] {
            let processor = ImageProcessor::open(&fixtures().join(kind)).unwrap();
            for name in ["grey.png", "alpha.png", "wide.png", "photo.jpg"] {
                let golden = format!("{kind}.{name}");
                let pixels = read(&processor, name).unwrap();
                assert_eq!(goldens.shape(&golden).unwrap(), [3, pixels.height, pixels.width], "{golden}");
                let expected = goldens.read_f32(&golden).unwrap();
                let level = processor.levels[0][1] - processor.levels[0][0];
                let values = pixels.values();
                let off = values.iter().zip(&expected).map(|(ours, theirs)| (ours - theirs).abs() / level);
                let worst = off.clone().fold(0.0, f32::max);
                let mean = off.sum::<f32>() / expected.len() as f32;
                let (most, on_average) = if name.ends_with("jpg") { (2.0, 0.5) } else { (0.0, 0.0) };
                assert!(worst <= most && mean <= on_average, "{golden}: off by {worst} levels, {mean} on average");
            }
        }
    }

    #[test]
    fn a_broken_image_is_one_problem_with_its_path() {
        let processor = ImageProcessor::open(&fixtures().join("bilinear")).unwrap();
        let problem = read(&processor, "none.png").unwrap_err();
        assert_eq!(problem.code, ProblemCode::FileNotFound);
        let folder = tempfile::tempdir().unwrap();
        let whole = fs::read(fixtures().join("wide.png")).unwrap();
        for bytes in [b"GIF89a".as_slice(), b"", &whole[..whole.len() / 2]] {
            let path = folder.path().join("cat.png");
            fs::write(&path, bytes).unwrap();
            let problem = processor.read(&path).unwrap_err();
            assert_eq!((problem.code, problem.key.as_deref()), (ProblemCode::FileFormat, Some("image")));
            assert!(problem.found.unwrap().contains("cat.png") && !problem.fix.zh.is_empty());
        }
    }

    #[test]
    fn settings_have_defaults_and_are_checked() {
        let processor = ImageProcessor::from_config(&json!({"size": 16})).unwrap();
        assert_eq!(processor.size, Some((16, 16)));
        assert_eq!((processor.levels[0][0], processor.levels[2][255]), (-1.0, 1.0));
        assert_eq!(ImageProcessor::from_config(&json!({})).unwrap().size, Some((224, 224)));
        let plain = json!({"do_resize": false, "do_rescale": false, "do_normalize": false});
        let pixels = read(&ImageProcessor::from_config(&plain).unwrap(), "wide.png").unwrap();
        assert_eq!((pixels.height, pixels.width, pixels.values().len()), (13, 90, 3 * 13 * 90));
        assert!(pixels.values().iter().all(|value| value.fract() == 0.0));
        for (config, key) in [
            (json!({"size": {"shortest_edge": 4}}), "size"),
            (json!({"size": {"height": 0, "width": 4}}), "size"),
            (json!({"resample": 5}), "resample"),
            (json!({"image_mean": [0.5]}), "image_mean"),
            (json!({"image_std": [0.5, 0.0, 1.0]}), "image_std"),
            (json!({"rescale_factor": "1/255"}), "rescale_factor"),
            (json!({"do_center_crop": true}), "do_center_crop"),
        ] {
            assert_eq!(ImageProcessor::from_config(&config).unwrap_err().key.as_deref(), Some(key));
        }
    }
}
