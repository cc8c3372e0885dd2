"""Compares tokens and decoded texts with Python's package `tokenizers` and prints a table of counts.

    mkdir DUMP
    DIFFQKV_TOKENIZER_DUMP=$PWD/DUMP npx jest tokenizer_reference
    python3 -m venv VENV && VENV/bin/pip install tokenizers
    VENV/bin/python test/tools/compare_tokenizers.py DUMP
"""

import json
import sys
from pathlib import Path

import tokenizers

failed = 0
print(f"tokenizers {tokenizers.__version__}")
print("| tokenizer | texts | other tokens | decoded | other text |")
print("|---|---|---|---|---|")
for path in sorted(Path(sys.argv[1]).glob("*.json")):
    dump = json.loads(path.read_text())
    reference = tokenizers.Tokenizer.from_str(json.dumps(dump["json"]))
    encodings = reference.encode_batch(dump["texts"])
    tokens = sum(a.ids != b for a, b in zip(encodings, dump["tokens"], strict=True))
    pairs = [(ids, text) for ids, text in zip(dump["lists"], dump["decoded"], strict=True) if ids]
    texts = sum(reference.decode(ids) != text for ids, text in pairs)
    failed += tokens + texts
    print(f"| {dump['name']} | {len(encodings)} | {tokens} | {len(pairs)} | {texts} |")
sys.exit(1 if failed else 0)
