"""Shares a cache between diffqkv and Python's huggingface_hub, in both directions.

    PYTHON test/tools/compare_hub_cache.py

PYTHON needs huggingface_hub; dist/ must be built. Both use the hub on loopback of
test/hub/fake_hub.cjs. What one of them has downloaded must work for the other without network.
"""

import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

root = Path(__file__).resolve().parents[2]
model = root / "models" / "sigma-tldr"
name = "org/tldr"
hub = subprocess.Popen(
    ["node", str(root / "test" / "hub" / "fake_hub.cjs"), name, str(model)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
)
endpoint = hub.stdout.readline().strip()


def run(command, cache, **variables):
    env = {
        **os.environ,
        "HF_HUB_CACHE": cache,
        "HF_HOME": str(Path(cache).parent / "home"),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    env.pop("HF_HUB_OFFLINE", None)
    env.update(variables)
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{command} failed:\n{done.stdout}\n{done.stderr}")
    return done.stdout.strip().splitlines()[-1]


def diffqkv(cache, *args, **variables):
    return run(["node", str(root / "dist" / "cli" / "main.js"), *args], cache, **variables)


def python(cache, code, **variables):
    return run([sys.executable, "-c", code], cache, **variables)


def tree(cache):
    """Each blob with its inode, and each snapshot's links."""
    folder = Path(cache) / "models--org--tldr"
    blobs = {path.name: path.stat().st_ino for path in (folder / "blobs").iterdir()}
    links = {path.name: os.readlink(path) for path in folder.glob("snapshots/*/*")}
    refs = {path.name: path.read_text() for path in (folder / "refs").iterdir()}
    return blobs, links, refs


def check(what, condition):
    print(("ok      " if condition else "FAILED  ") + what)
    if not condition:
        global failed
        failed = True


failed = False
offline = {"HF_HUB_OFFLINE": "1"}
generate = ["generate", "--model", name, "--prompt", "# tar\n", "--max-tokens", "20", "--json"]
direct = ["generate", "--model", str(model), *generate[3:]]
download = f"from huggingface_hub import snapshot_download; print(snapshot_download('{name}'))"
scan = (
    "import json; from huggingface_hub import scan_cache_dir; c = scan_cache_dir();"
    "print(json.dumps([[r.repo_id, r.size_on_disk, sorted(f.file_name for v in r.revisions for f in v.files)]"
    " for r in c.repos] + [str(w) for w in c.warnings]))"
)

with tempfile.TemporaryDirectory() as folder:
    cache = f"{folder}/python"
    python(cache, download)
    before = tree(cache)
    expected = json.loads(diffqkv(cache, *direct))["tokens"]
    tokens = json.loads(diffqkv(cache, *generate, **offline))["tokens"]
    check("diffqkv generates offline from what huggingface_hub has downloaded", tokens == expected)
    diffqkv(cache, "pull", name)
    check("diffqkv pull changes nothing in that cache", tree(cache) == before)
    models = json.loads(diffqkv(cache, "list", "--json"))["models"]
    check("diffqkv list shows it as one that loads", [(m["name"], m["problem"]) for m in models] == [(name, None)])

    cache = f"{folder}/diffqkv"
    directory = diffqkv(cache, "pull", name)
    ours = tree(cache)
    check("huggingface_hub finds the snapshot offline", python(cache, download, **offline) == directory)
    for file in ours[1]:
        code = f"from huggingface_hub import hf_hub_download; print(hf_hub_download('{name}', '{file}'))"
        check(f"huggingface_hub finds {file} offline", python(cache, code, **offline) == f"{directory}/{file}")
    listed = json.loads(python(cache, scan))
    check("scan_cache_dir has no warnings", len(listed) == 1 and listed[0][0] == name and len(listed[0][2]) == len(ours[1]))
    python(cache, download)
    blobs, links, refs = tree(cache)
    kept = all(blobs.get(blob) == inode for blob, inode in ours[0].items())
    check("huggingface_hub, online, keeps each blob and adds only other files", kept and len(blobs) > len(ours[0]))
    check("links and refs are those that diffqkv wrote", all(links[k] == v for k, v in ours[1].items()) and refs == ours[2])
    check("both caches end with the same blobs and links", (blobs.keys(), links) == (before[0].keys(), before[1]))

    cache = f"{folder}/both"
    with ThreadPoolExecutor() as pool:
        started = [pool.submit(diffqkv, cache, "pull", name), pool.submit(python, cache, download)]
        directories = [future.result() for future in started]
    check("both at once, in an empty cache, end with one snapshot", directories[0] == directories[1])
    contents = all((Path(directories[0]) / file.name).read_bytes() == file.read_bytes() for file in model.iterdir())
    check("and its files are right", contents and not list(Path(cache).glob("**/*incomplete")))

hub.stdin.close()
hub.wait()
sys.exit(1 if failed else 0)
