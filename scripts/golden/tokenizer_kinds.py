#!/usr/bin/env python3
"""Make `daemon/engine/data/fixtures/tokenizers/`: one small tokenizer of each kind that the families use, trained here
with the normaliser, pre-tokenizer and decoder of the published models, in every form in which such models are kept:

- `lines.json`: 2,000 mixed lines, the same for all kinds
- `KIND/tokenizer.json`, or `vocab.json` with `merges.txt`, or `tokenizer.model`, or `spiece.model`: as Hugging Face folders hold it
- `KIND/vocab.gguf`: the same vocabulary as llama.cpp's converter writes it
- `bert-cased` and `bert-uncased` as `vocab.txt`; their `marked.json` holds texts and pairs with the marks around them
- `KIND/goldens.json`: what transformers makes of the lines: for each, a hash (FNV-1a) of its ids and of their text decoded
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from pathlib import Path

import sentencepiece
from gguf import GGUFWriter, TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizer, PreTrainedTokenizerFast, T5Tokenizer
from transformers.convert_slow_tokenizer import SpmConverter
from transformers.tokenization_utils_base import generate_merges
from transformers.utils import sentencepiece_model_pb2_new as proto

OUT = Path(__file__).resolve().parents[2] / "daemon/engine/data/fixtures/tokenizers"
LINES = 2000
VOCAB = 560
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]

WORDS = """the of and a to in is you that it he was for on are with as his they at be this from I have or by one had not but what
all were when we there can an your which their said if do will each about how up out them then she many some so these would
other into has more her two like him see time could no make than first been its who now people my made over did down only way
find use may water long little very after words called just where most know""".split()
CHINESE = "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下过子说产种面而方后多定行学法所民得经十三之进着等部度家电力里如水化高自二理起小物现实加量都两体制机当使点从业本去把性好应开它合还因由其些然前外天政四日那社义事平形相全表间样与关各重新线内数正心反你明看原又么利比或但质气第向道命此变条只没结解问意建月公无系军很情者最立代想已通并提直题党程展五果料象员革位入常文总次品式活设及管特件长求老头基资边流路级少图山统接知较将组见计别她手角期根论运农指几九区强放决西被干做必战先回则任取据处队南给色光门即保治北造百规热领七海口东导器压志世金增争济阶油思术极交受联什认六共权收证改清己美再采转更单风切打白教速花带安场身车例真务具万每目至达走积示议声报斗完类八离华名确才科张信马节话米整空元况今集温传土许步群广石记需段研界拉林律叫且究观越织装影算低持音众书布复容儿须际商非验连断深难近矿千周委素技备半办青省列习响约支般史感劳便团往酸历市克何除消构府称太准精值号率族维划选标写存候毛亲快效斯院查江型眼王按格养易置派层片始却专状育厂京识适属圆包火住调满县局照参红细引听该铁价严"
CODE = [
    "def f(x: int) -> str:", "    return x ** 2  # comment", "if (a[i] != b->next && !done) {", "\tprintf(\"%d\\n\", 0xFF);",
    "let v: Vec<u8> = vec![1, 2];", "SELECT * FROM t WHERE id >= 10;", "<div class=\"a\">&nbsp;</div>", "x += 1;  y--;", "});",
    "{\"a\": [1, 2.5e-3, null], \"b\": \"\\u00e9\"}", "#include <stdio.h>", "git commit -m 'fix: it''s done'", "camelCaseName snake_case_name",
]  # fmt: skip
NUMBERS = ["1", "42", "123", "1234", "9.11", "9.9", "1,000,000", "3.14159", "2024-05-01", "1e-10", "０１２３", "½", "٣٤٥", "Ⅷ", "②"]
ODD = [
    "🙂", "🚀🚀", "👩‍👩‍👧", "🇨🇳", "👍🏽", "é", "e\u0301", "ﬁ", "Å", "Ångström", "naïve", "ß", "İi", "ſs", "Straße", "Привет", "мир", "مرحبا",
    "שלום", "हिन्दी", "ภาษาไทย", "한국어", "각", "日本語", "テスト", "ｶﾅ", "\u00a0", "\u3000", "\u200b", "\u2028", "\ufeff", "\x00", "\x7f", "\x85",
    "▁", "▁▁a", "Ġ", "<|im_start|>", "<|im_end|>", "<s>", "</s>", "\r\n", "\n\n\n", "\t\t", "     ", " \n ", "don't", "I'LL", "we've", "'S", "“quotes”",
    "…", "——", "！？", "https://a.b/c?d=e&f#g", "aaaaaaaaaaaaaaaaaaaaaaaa", "!!!???...", "$#%^&*", "ὠμέγα", "Ω", "𝔘𝔫𝔦", "𐐀𐐨", "\U0001f9d1\u200d\U0001f4bb", "ǅ",
]  # fmt: skip

# As the published `tokenizer.json` of each kind's models has them.
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?"
    r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK_V3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+"""
    r"|\s+(?!\S)|\s+"
)
CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
# Letters that have a case, in deepseek-llm's own ranges.
CASED = (
    "A-Za-z\xb5\xc0-\xd6\xd8-\xf6\xf8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386"
    "\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd"
    "\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57"
    "\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec"
    "\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b"
    "\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f"
    "\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)


def split(pattern: str):
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def byte_level(use_regex: bool = False):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


DIGITS = pre_tokenizers.Digits(individual_digits=True)
BYTE_LEVEL = {
    "gpt-2": [byte_level(True)],
    "smollm": [DIGITS, byte_level(True)],
    "llama-bpe": [split(LLAMA3), byte_level()],
    "qwen2": [split(LLAMA3.replace("{1,3}", "")), byte_level()],
    "tekken": [split(TEKKEN), byte_level()],
    "gpt-4o": [split(GPT4O), byte_level()],
    "deepseek-v3": [split(r"\p{N}{1,3}"), split("[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"), split(DEEPSEEK_V3), byte_level()],
    "deepseek-coder": [split("[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), split(CJK), DIGITS, byte_level()],
    "deepseek-llm": [
        split("[\r\n]"), split(rf"\s?[{CASED}]+"), split(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"), split(r"\s+$"), split(CJK), DIGITS, byte_level(),
    ],
}  # fmt: skip


def lines() -> list[str]:
    rng = random.Random(20)
    makers = [
        lambda: " ".join(rng.choices(WORDS, k=rng.randint(2, 9))).capitalize() + rng.choice([".", "?", "!", "", "\n"]),
        lambda: "".join(rng.choices(CHINESE, k=rng.randint(2, 14))) + rng.choice(["。", "？", "，", ""]),
        lambda: rng.choice(CODE),
        lambda: rng.choice(NUMBERS) + rng.choice(["", " ", "+", "元", "%"]),
        lambda: rng.choice(ODD),
        lambda: " " * rng.randint(1, 40),
    ]
    weights = [5, 5, 3, 3, 5, 1]
    return ["".join(make() for make in rng.choices(makers, weights, k=rng.randint(1, 4))) for _ in range(LINES)]


def fnv(data: bytes) -> int:
    value = 0x811C9DC5
    for byte in data:
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value


def write_goldens(folder: Path, tokenizer: Tokenizer, texts: list[str]) -> None:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)
    ids = [fast.encode(text, add_special_tokens=False) for text in texts]
    hashes = [
        fnv(b"".join(id.to_bytes(4, "little") for id in row) + fast.decode(row, skip_special_tokens=True).encode())
        for row in ids
    ]
    goldens = {"tokens": sum(map(len, ids)), "lines": hashes}
    (folder / "goldens.json").write_text(json.dumps(goldens, separators=(",", ":")) + "\n")


def write_gguf(folder: Path, model: str, tokens: list[str], types: list[int], architecture: str = "llama", **more) -> None:
    writer = GGUFWriter(folder / "vocab.gguf", architecture)
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_bos_token_id(tokens.index("<s>"))
    writer.add_eos_token_id(tokens.index("</s>"))
    for key, value in more.items():
        getattr(writer, f"add_{key}")(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def byte_level_kind(name: str, texts: list[str]) -> None:
    folder = OUT / name
    folder.mkdir()
    tokenizer = Tokenizer(models.BPE(ignore_merges=name in ("llama-bpe", "tekken")))
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(BYTE_LEVEL[name])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False)])
    file = json.loads(tokenizer.to_str())
    if name == "gpt-2":
        # OPT and the first GPT-2 come so.
        tokenizer.model.save(str(folder))
        decoder = {
            token["id"]: {key: token[key] for key in token if key != "id"} for token in file["added_tokens"]
        }
        config = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<s>", "eos_token": "</s>", "added_tokens_decoder": decoder}
        (folder / "tokenizer_config.json").write_text(json.dumps(config) + "\n")
    else:
        (folder / "tokenizer.json").write_text(json.dumps(file, ensure_ascii=False, separators=(",", ":")) + "\n")
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    kinds = {token: TokenType.CONTROL for token in SPECIAL} | {"<tool_call>": TokenType.USER_DEFINED}
    write_gguf(
        folder, "gpt2", [token for token, _ in vocab], [kinds.get(token, TokenType.NORMAL) for token, _ in vocab],
        tokenizer_pre=name, token_merges=[" ".join(merge) for merge in file["model"]["merges"]],
    )  # fmt: skip
    write_goldens(folder, tokenizer, texts)


def train_sentencepiece(texts: list[str], **options) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "lines.txt").write_text("\n".join(text.replace("\x00", "").replace("\n", " ") for text in texts))
        sentencepiece.SentencePieceTrainer.train(
            input=f"{folder}/lines.txt", model_prefix=f"{folder}/m", vocab_size=1100, character_coverage=0.98,
            minloglevel=2, num_threads=1, **options,
        )  # fmt: skip
        return (Path(folder) / "m.model").read_bytes()


def without_paths(model):
    """Where the trainer's files were differs from run to run."""
    for spec, field in [(model.trainer_spec, "input"), (model.trainer_spec, "model_prefix"), (model.normalizer_spec, "normalization_rule_tsv")]:
        spec.ClearField(field)
    return model


def sentencepiece_kind(
    name: str, texts: list[str], build, options: dict, architecture: str = "llama", file: str = "tokenizer.json", config=None
) -> None:
    folder = OUT / name
    folder.mkdir()
    model = without_paths(proto.ModelProto.FromString(train_sentencepiece(texts, **options)))
    tokenizer = build(model)
    if file == "tokenizer.json":
        (folder / file).write_text(tokenizer.to_str() + "\n")
    else:
        (folder / file).write_bytes(model.SerializeToString())
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config) + "\n")
    spec = model.normalizer_spec
    # As llama.cpp's converter writes user-defined pieces (`_create_vocab_sentencepiece`).
    own = [piece.type == 4 for piece in model.pieces]
    tokens = [piece.piece.replace("▁", " ") if user else piece.piece for piece, user in zip(model.pieces, own, strict=True)]
    scores = [-1000.0 if user else piece.score for piece, user in zip(model.pieces, own, strict=True)]
    more = {"add_space_prefix": spec.add_dummy_prefix, "token_scores": scores}
    if spec.precompiled_charsmap:
        more |= {
            "precompiled_charsmap": spec.precompiled_charsmap,
            "remove_extra_whitespaces": spec.remove_extra_whitespaces,
        }
    kind = "t5" if model.trainer_spec.model_type == 1 else "llama"
    write_gguf(
        folder, kind, tokens, [piece.type for piece in model.pieces], architecture, **more
    )
    write_goldens(folder, tokenizer, texts)


def bpe(model, user_defined: bool) -> Tokenizer:
    vocab = {piece.piece: id for id, piece in enumerate(model.pieces)}
    merged = {piece.piece: piece.score for piece in model.pieces if piece.type in (1, 4)}
    merges = [(left, right) for left, right in generate_merges(vocab, merged) if left in merged and right in merged]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    for piece in model.pieces:
        if piece.type in (2, 3) or (user_defined and piece.type == 4):
            tokenizer.add_tokens([AddedToken(piece.piece, normalized=False, special=piece.type != 4)])
    return tokenizer


def llama(model, rstrip: tuple[str, ...] = ()) -> Tokenizer:
    """Llama 2, TinyLlama, Mistral 0.1: every part of the text starts with a space."""
    tokenizer = bpe(model, True)
    if rstrip:
        plain = json.loads(tokenizer.to_str())
        for token in plain["added_tokens"]:
            token["rstrip"] = token["content"] in rstrip
        tokenizer = Tokenizer.from_str(json.dumps(plain))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def llama_first(model) -> Tokenizer:
    """Llama's class without `legacy`: only the start of the text gets a space, which GGUF files cannot say."""
    tokenizer = llama(model)
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    return tokenizer


def phi3(model) -> Tokenizer:
    return llama(model, ("</s>", "<|im_start|>", "<|im_end|>"))


def gemma(model) -> Tokenizer:
    tokenizer = bpe(model, True)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def unigram(model) -> Tokenizer:
    tokenizer = SpmConverter.build_tokenizer_from_spm_proto(model, [(piece.piece, piece.score) for piece in model.pieces])
    for piece in model.pieces:
        if piece.type in (2, 3):
            tokenizer.add_special_tokens([AddedToken(piece.piece, normalized=False)])
    return tokenizer


def t5_kind(name: str, texts: list[str], options: dict) -> None:
    """The file alone: that its settings are T5's is told by its name."""
    folder = OUT / name
    folder.mkdir()
    marks = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    model = without_paths(proto.ModelProto.FromString(train_sentencepiece(texts, **options, **marks)))
    (folder / "spiece.model").write_bytes(model.SerializeToString())
    # What `T5Tokenizer.from_pretrained` makes of the file, which cannot read it once more in this process.
    gaps = [f"<extra_id_{index}>" for index in reversed(range(100))]
    vocabulary = [(piece.piece, piece.score) for piece in model.pieces] + [(gap, 0.0) for gap in gaps]
    charsmap = model.normalizer_spec.precompiled_charsmap
    tokenizer = T5Tokenizer(vocabulary, _spm_precompiled_charsmap=charsmap, additional_special_tokens=gaps)
    write_goldens(folder, tokenizer.backend_tokenizer, texts)


def wordpiece_kind(name: str, texts: list[str], lowercase: bool) -> None:
    folder = OUT / name
    folder.mkdir()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=900, limit_alphabet=700, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token, _ in vocab))
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": lowercase, "tokenize_chinese_chars": True, "strip_accents": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config) + "\n")
    bert = BertTokenizer.from_pretrained(folder)
    write_goldens(folder, bert.backend_tokenizer, texts)
    rng = random.Random(3)
    marked = []
    for index in range(30):
        text, pair, longest = rng.choice(texts), rng.choice([None, rng.choice(texts)]), rng.choice([512, 16, 9, 5])
        given = bert(text, pair, truncation=True, max_length=longest)
        marked.append(dict(text=text, pair=pair, longest=longest, ids=given["input_ids"], types=given["token_type_ids"]))
    (folder / "marked.json").write_text(json.dumps(marked, ensure_ascii=False, separators=(",", ":")) + "\n")


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    texts = lines()
    (OUT / "lines.json").write_text("[\n" + ",\n".join(json.dumps(text, ensure_ascii=False) for text in texts) + "\n]\n")
    for name in BYTE_LEVEL:
        byte_level_kind(name, texts)
    plain = {
        "model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True, "split_digits": True, "control_symbols": ["<|im_start|>", "<|im_end|>"],
    }  # fmt: skip
    for name, lowercase in [("bert-cased", False), ("bert-uncased", True)]:
        wordpiece_kind(name, texts, lowercase)
    sentencepiece_kind("llama-spm", texts, llama, plain, file="tokenizer.model")
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "bos_token": "<s>", "eos_token": "</s>"}
    sentencepiece_kind("llama-spm-first", texts, llama_first, plain, file="tokenizer.model", config=config)
    (OUT / "llama-spm-first/vocab.gguf").unlink()
    sentencepiece_kind("phi3", texts, phi3, plain, "phi3")
    runs = ["\n" * count for count in range(2, 6)] + ["▁" * count for count in range(2, 32)]
    sentencepiece_kind("gemma", texts, gemma, plain | {"add_dummy_prefix": False, "user_defined_symbols": [*runs, "<table>"]})
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as rules:
        # Full-width digits and a ligature, as NFKC has them; the whole of NFKC takes a quarter of a megabyte.
        pairs = [(chr(0xFF10 + digit), str(digit)) for digit in range(10)] + [("ﬁ", "fi"), ("\u3000", " ")]
        rules.write("".join(f"{ord(a):X}\t{' '.join(f'{ord(c):X}' for c in b)}\n" for a, b in pairs))
        rules.flush()
        options = {"model_type": "unigram", "normalization_rule_tsv": rules.name}
        sentencepiece_kind("unigram", texts, unigram, options | {"byte_fallback": True}, file="tokenizer.model")
        t5_kind("t5", texts, options)


if __name__ == "__main__":
    main()
