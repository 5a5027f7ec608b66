#!/usr/bin/env python3
"""Real tokenizers, which are not in the repository, against transformers:

    published.py FOLDER

Each folder in FOLDER holds the files of one tokenizer (`tokenizer.json` or `tokenizer.model`, `tokenizer_config.json`), and
may hold its GGUF as `vocab.gguf`; where there is none, one is written for byte-level BPE, by the name in a file `pre`. Then

    JUSTTRAIN_TOKENIZERS=FOLDER cargo test --release -p justtrain-data --test tokenizer_kinds -- --ignored
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import sentencepiece
from gguf import GGUFWriter, TokenType
from tokenizer_kinds import OUT, fnv, write_goldens
from tokenizers import Tokenizer


def main() -> None:
    texts = json.loads((OUT / "lines.json").read_text())
    for folder in sorted(path for path in Path(sys.argv[1]).iterdir() if path.is_dir()):
        file = folder / "tokenizer.json"
        if file.exists():
            tokenizer = Tokenizer.from_file(str(file))
            write_goldens(folder, tokenizer, texts)
            if (folder / "pre").exists():
                write_gguf(folder, tokenizer, json.loads(file.read_text()))
        else:
            sentencepiece_goldens(folder, texts)
        print(folder.name)


def write_gguf(folder: Path, tokenizer: Tokenizer, file: dict) -> None:
    added = {token["id"]: token for token in file["added_tokens"]}
    size = tokenizer.get_vocab_size()
    writer = GGUFWriter(folder / "vocab.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre((folder / "pre").read_text().strip())
    writer.add_token_list([tokenizer.id_to_token(id) or f"[PAD{id}]" for id in range(size)])
    kinds = [TokenType.NORMAL if id not in added else TokenType.CONTROL if added[id]["special"] else TokenType.USER_DEFINED for id in range(size)]
    writer.add_token_types(kinds)
    merges = file["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def sentencepiece_goldens(folder: Path, texts: list[str]) -> None:
    """SentencePiece itself is the reference; it finds no special tokens in a text, so lines with one are left out."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    controls = [model.id_to_piece(id) for id in range(model.get_piece_size()) if model.is_control(id) or model.is_unknown(id)]
    texts = [text for text in texts if not any(control in text for control in controls) and "\0" not in text]
    ids = [model.encode(text) for text in texts]
    hashes = [
        fnv(b"".join(id.to_bytes(4, "little") for id in row) + model.decode(row).encode()) for row in ids
    ]
    goldens = {"tokens": sum(map(len, ids)), "lines": hashes}
    (folder / "goldens.json").write_text(json.dumps(goldens) + "\n")
    (folder / "lines.json").write_text(json.dumps(texts))


if __name__ == "__main__":
    main()
