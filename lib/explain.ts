import { readdir, stat } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { DiffqkvError, type ErrorCode, unsupportedModel } from './errors';
import { withRegularFile } from './files';

/** What is at the path that should be a checkpoint directory. */
interface Place {
  path: string;
  /** 'directory', 'file', or null if nothing is there. */
  kind: 'directory' | 'file' | null;
  /** Names in the directory. */
  names: readonly string[];
  /** The first bytes of the files that a loader reads, by path. */
  heads: readonly { file: string; head: string }[];
}

/** A kind of path that is often passed by mistake. */
interface Mistake {
  code: ErrorCode;
  /** Returns the message, or null if the path is not of this kind. */
  find(place: Place): string | null | Promise<string | null>;
}

const HEAD_BYTES = 512;
const MAX_CONFIG_BYTES = 1 << 20;
const indexName = 'model.safetensors.index.json';

const hasSafetensors = ({ names }: Place) =>
  names.includes('model.safetensors') || names.includes(indexName);

// Other formats of weights. `.bin` also ends names of files that are not weights.
const pytorchWeights = /^(pytorch_model|model|consolidated).*\.(bin|pt|pth)$/;
const otherWeights = /\.(h5|msgpack|onnx|npz)$/;

/** The first mistake in the table is reported. */
const mistakes: readonly Mistake[] = [
  {
    code: 'ERR_INVALID_CHECKPOINT',
    find: ({ path, kind }) =>
      kind === null && /^(https?|hf):\/\//.test(path)
        ? `${path}: a URL is not a directory: pass the directory of the model's files, or its id on the hub, ` +
          'org/name'
        : null,
  },
  {
    // The id of a model on the Hugging Face hub without its organization, such as gpt2.
    code: 'ERR_INVALID_CHECKPOINT',
    find: ({ path, kind }) =>
      kind === null && /^[a-z0-9][\w.@-]*$/i.test(path)
        ? `${path}: no such directory. The id of a model on the Hugging Face hub has the form ` +
          'org/name, or org/name@revision'
        : null,
  },
  {
    code: 'ERR_INVALID_CHECKPOINT',
    find: ({ heads }) => {
      const found = heads.find(({ head }) =>
        head.startsWith('version https://git-lfs.github.com/spec/'),
      );
      return found
        ? `${found.file}: a Git LFS pointer, not the file itself: run \`git lfs pull\` in the clone, ` +
            'or download the file'
        : null;
    },
  },
  {
    code: 'ERR_INVALID_CHECKPOINT',
    find: ({ heads }) => {
      const found = heads.find(({ head }) =>
        /^(\xef\xbb\xbf)?\s*(<!doctype html|<html|<\?xml)\b/i.test(head),
      );
      return found
        ? `${found.file}: an HTML or XML page, not the file, perhaps the error page of a failed ` +
            'download: download the file again (a gated model needs a login)'
        : null;
    },
  },
  {
    // Eight characters of text are a header length above the limit, so the file is invalid anyway.
    code: 'ERR_INVALID_CHECKPOINT',
    find: ({ heads }) => {
      const found = heads.find(
        ({ file, head }) => file.endsWith('.safetensors') && /^[\t\r\n -~]{8}/.test(head),
      );
      return found
        ? `${found.file}: text that begins with ${JSON.stringify(found.head.slice(0, 40))}, not a ` +
            'safetensors file: download the file again'
        : null;
    },
  },
  {
    code: 'ERR_INVALID_CHECKPOINT',
    find: async ({ path, names }) => {
      if (names.includes('config.json') || !names.includes('snapshots')) return null;
      if (!names.includes('refs') && !names.includes('blobs')) return null;
      const snapshots = await readdir(join(path, 'snapshots')).catch(() => []);
      const main = (await readHead(join(path, 'refs', 'main')))?.trim() ?? '';
      const snapshot = snapshots.find((name) => name === main) ?? snapshots[0];
      return snapshot === undefined
        ? `${path}: the root of a Hugging Face cache entry without snapshots: download the model again`
        : `${path}: the root of a Hugging Face cache entry: pass its snapshot ` +
            join(path, 'snapshots', snapshot);
    },
  },
  {
    code: 'ERR_INVALID_CHECKPOINT',
    find: ({ path, names }) =>
      !names.includes('config.json') && names.some((name) => name.startsWith('models--'))
        ? `${path}: the Hugging Face cache, not a model: pass ` +
          join(path, 'models--OWNER--NAME', 'snapshots', 'HASH')
        : null,
  },
  {
    code: 'ERR_UNSUPPORTED_MODEL',
    find: async (place) => {
      if (!place.names.includes('adapter_config.json') || hasSafetensors(place)) return null;
      const { base_model_name_or_path: base } = await readJson(
        join(place.path, 'adapter_config.json'),
      );
      return (
        `${place.path}: a LoRA adapter, not a model: merge it into its base model` +
        `${typeof base === 'string' && base !== '' ? ` ${base.slice(0, 120)}` : ''} with ` +
        "merge_and_unload() of Python's peft, call save_pretrained(DIR), and pass DIR"
      );
    },
  },
  {
    code: 'ERR_UNSUPPORTED_MODEL',
    find: (place) => {
      const { path, kind, names } = place;
      if (hasSafetensors(place)) return null;
      const found =
        kind === 'file' && pytorchWeights.test(basename(path))
          ? path
          : names.find((name) => pytorchWeights.test(name));
      return found === undefined
        ? null
        : `${path}: has only PyTorch weights (${basename(found)}), which are not supported: ` +
            "convert them with Python's transformers, " +
            'AutoModelForCausalLM.from_pretrained(IN).save_pretrained(OUT), and pass OUT';
    },
  },
  {
    code: 'ERR_UNSUPPORTED_MODEL',
    find: (place) => {
      const { path, kind, names } = place;
      if (hasSafetensors(place)) return null;
      const isGguf = (name: string) => /\.gguf$/i.test(name);
      const found = kind === 'file' && isGguf(path) ? path : names.find(isGguf);
      return found === undefined
        ? null
        : `${path}: has only GGUF weights (${basename(found)}), which are not supported: pass the ` +
            'directory of the safetensors checkpoint from which they were made';
    },
  },
  {
    code: 'ERR_UNSUPPORTED_MODEL',
    find: (place) => {
      const found = hasSafetensors(place)
        ? undefined
        : place.names.find((n) => otherWeights.test(n));
      return found === undefined
        ? null
        : `${place.path}: has only ${found}, a format of weights that is not supported: pass the ` +
            'directory of a safetensors checkpoint';
    },
  },
];

/**
 * Called with the error of a checkpoint that could not be read. If the path is one that is often
 * passed by mistake, such as a clone without Git LFS or the id of a model on a hub, resolves to an
 * error that says what it is and what to do instead. Otherwise resolves to `error`.
 */
export async function explain(path: string, error: unknown): Promise<unknown> {
  const { code } = (error ?? {}) as { code?: unknown };
  if (code !== 'ERR_INVALID_CHECKPOINT' && code !== 'ERR_UNSUPPORTED_MODEL') return error;
  return (await findMistake(await look(path))) ?? error;
}

/** Like {@link explain} for a model of which only the names of its files are known. */
export function explainNames(
  path: string,
  names: readonly string[],
): Promise<DiffqkvError | undefined> {
  return findMistake({ path, kind: 'directory', names, heads: [] });
}

async function findMistake(place: Place): Promise<DiffqkvError | undefined> {
  for (const mistake of mistakes) {
    const message = await mistake.find(place);
    if (message !== null) return new DiffqkvError(mistake.code, message);
  }
  return undefined;
}

// Without tokenizer.json, one of these files has the vocabulary.
const otherVocabularies = ['tokenizer.model', 'vocab.json', 'merges.txt', 'vocab.txt'];

/** ERR_UNSUPPORTED_MODEL if one of the names is a vocabulary in another form, else null. */
export function otherVocabulary(path: string, names: readonly string[]): DiffqkvError | null {
  const found = otherVocabularies.find((name) => names.includes(name));
  if (found === undefined) return null;
  return unsupportedModel(
    join(path, found),
    'the vocabulary is not in tokenizer.json: write that file with Python, ' +
      'transformers.AutoTokenizer.from_pretrained(directory).save_pretrained(directory)',
  );
}

async function look(path: string): Promise<Place> {
  const status = await stat(path).catch((error: NodeJS.ErrnoException) => error.code ?? '');
  if (typeof status === 'string') {
    const isAbsent = status === 'ENOENT' || status === 'ENOTDIR';
    return { path, kind: isAbsent ? null : 'file', names: [], heads: [] };
  }
  if (!status.isDirectory()) return { path, kind: 'file', names: [], heads: [] };
  const names = (await readdir(path).catch(() => [])).sort();
  const isRead = (name: string) =>
    /^(config|generation_config|tokenizer|tokenizer_config)\.json$/.test(name) ||
    name === indexName ||
    name.endsWith('.safetensors');
  const heads: { file: string; head: string }[] = [];
  for (const name of names.filter(isRead)) {
    const file = join(path, name);
    const head = await readHead(file);
    if (head !== null) heads.push({ file, head });
  }
  return { path, kind: 'directory', names, heads };
}

/** The start of a regular file, one character for each byte; null if it cannot be read. */
async function readHead(file: string, maxBytes = HEAD_BYTES): Promise<string | null> {
  try {
    return await withRegularFile(file, async (handle) => {
      const { buffer, bytesRead } = await handle.read(Buffer.alloc(maxBytes), 0, maxBytes, 0);
      return buffer.toString('latin1', 0, bytesRead);
    });
  } catch {
    return null;
  }
}

/** A JSON object of at most 1 MiB; empty if the file is something else. */
async function readJson(file: string): Promise<Record<string, unknown>> {
  const text = Buffer.from((await readHead(file, MAX_CONFIG_BYTES)) ?? '', 'latin1').toString();
  // Python's json module writes numbers that JSON does not have. A string without an end matches
  // too, so that the time to search is linear in a malformed file.
  const token = /"(?:[^"\\]+|\\[\s\S])*(?:"|\\?$)|-?\b(?:NaN|Infinity)\b/g;
  try {
    const value = JSON.parse(text.replace(token, (t) => (t.startsWith('"') ? t : 'null')));
    return typeof value === 'object' && value !== null ? value : {};
  } catch {
    return {};
  }
}
