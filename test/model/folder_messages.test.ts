// Paths that are often passed by mistake: the message says what the path is and what to do.

import { execFileSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { Model } from '../../lib/index';
import { randomCheckpoint, temporaryDirectories, writeCheckpoint } from '../support/checkpoints';
import { errorOf } from '../support/devices';

const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

const good = randomCheckpoint({});
const config = JSON.stringify(good.config);
const pointer = `version https://git-lfs.github.com/spec/v1\noid sha256:${'0'.repeat(64)}\nsize 4943162336\n`;
const page = `\n<!DOCTYPE html>\n<html><body>${'x'.repeat(200)}</body></html>`;

function write(directory: string, files: Record<string, string>): void {
  for (const [name, text] of Object.entries(files)) {
    mkdirSync(dirname(join(directory, name)), { recursive: true });
    writeFileSync(join(directory, name), text);
  }
}

interface Case {
  name: string;
  /** Files over those of a good checkpoint, or instead of them. */
  over?: Record<string, string>;
  instead?: Record<string, string>;
  shards?: number;
  code?: string;
  /** Parts of the message; DIR is the directory. */
  parts: string[];
}

const unsupported = 'ERR_UNSUPPORTED_MODEL';

it.each<Case>([
  {
    name: 'a Git LFS pointer in place of the weights',
    over: { 'model.safetensors': pointer },
    parts: ['DIR/model.safetensors: a Git LFS pointer', 'git lfs pull'],
  },
  {
    name: 'a Git LFS pointer in place of the second shard',
    shards: 2,
    over: { 'model-2-of-2.safetensors': pointer },
    parts: ['DIR/model-2-of-2.safetensors: a Git LFS pointer', 'git lfs pull'],
  },
  {
    name: 'a Git LFS pointer in place of the index',
    shards: 2,
    over: { 'model.safetensors.index.json': pointer },
    parts: ['DIR/model.safetensors.index.json: a Git LFS pointer', 'git lfs pull'],
  },
  {
    name: 'a Git LFS pointer in place of tokenizer.json',
    over: { 'tokenizer.json': pointer },
    parts: ['DIR/tokenizer.json: a Git LFS pointer', 'git lfs pull'],
  },
  {
    name: 'an HTML page in place of the weights',
    over: { 'model.safetensors': page },
    parts: ['DIR/model.safetensors: an HTML or XML page', 'download the file again'],
  },
  {
    name: 'an HTML page in place of config.json',
    over: { 'config.json': `\u{feff}${page}` },
    parts: ['DIR/config.json: an HTML or XML page', 'download the file again'],
  },
  {
    name: 'an XML page in place of tokenizer.json',
    over: { 'tokenizer.json': '<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>' },
    parts: ['DIR/tokenizer.json: an HTML or XML page', 'download the file again'],
  },
  {
    name: 'a JSON error in place of the weights',
    over: { 'model.safetensors': '{"error":"Repository not found"}' },
    parts: ['DIR/model.safetensors: text that begins with', 'Repository not found', 'download the file again'],
  },
  {
    name: 'the root of a hub cache entry',
    instead: { 'refs/main': 'bbb', 'snapshots/aaa/config.json': config, 'snapshots/bbb/config.json': config },
    parts: ['DIR: the root of a Hugging Face cache entry', 'DIR/snapshots/bbb'],
  },
  {
    name: 'the root of a hub cache entry without refs/main',
    instead: { 'blobs/x': 'abc', 'snapshots/aaa/config.json': config },
    parts: ['DIR: the root of a Hugging Face cache entry', 'DIR/snapshots/aaa'],
  },
  {
    name: 'the hub cache',
    instead: { 'models--a--b/refs/main': 'bbb' },
    parts: ['DIR: the Hugging Face cache', 'DIR/models--OWNER--NAME/snapshots/HASH'],
  },
  {
    name: 'a LoRA adapter',
    instead: {
      'adapter_config.json': '{"base_model_name_or_path": "meta-llama/\\u001bLlama", "r": NaN}',
      'adapter_model.safetensors': '',
    },
    code: unsupported,
    parts: ['DIR: a LoRA adapter', 'meta-llama/\\x1bLlama', 'merge_and_unload'],
  },
  {
    name: 'GGUF weights only',
    instead: { 'model-q4.gguf': 'GGUF', 'config.json': config },
    code: unsupported,
    parts: ['DIR: has only GGUF weights (model-q4.gguf)', 'safetensors'],
  },
  {
    name: 'PyTorch weights only',
    instead: { 'config.json': config, 'pytorch_model-00001-of-00002.bin': 'PK', 'training_args.bin': '' },
    code: unsupported,
    parts: ['DIR: has only PyTorch weights (pytorch_model-00001-of-00002.bin)', 'save_pretrained(OUT)'],
  },
  {
    name: 'ONNX weights only',
    instead: { 'config.json': config, 'model.onnx': 'x' },
    code: unsupported,
    parts: ['DIR: has only model.onnx', 'safetensors'],
  },
  {
    name: 'a multimodal model',
    over: {
      'config.json': JSON.stringify({
        architectures: ['LlavaForConditionalGeneration'],
        text_config: good.config,
      }),
    },
    code: unsupported,
    parts: ['DIR/config.json', 'text_config', 'multimodal model (LlavaForConditionalGeneration)', 'text model'],
  },
])('$name', async ({ over, instead, shards, code = 'ERR_INVALID_CHECKPOINT', parts }) => {
  const directory = join(directories.make(), 'model');
  if (instead === undefined) writeCheckpoint(directory, good, shards);
  write(directory, instead ?? over ?? {});
  const error = await errorOf(() => Model.load(directory, { device: 'cpu' }));
  expect(error.code).toBe(code);
  for (const part of parts) expect(error.message).toContain(part.replace('DIR', directory));
});

it('the id of a model on a hub without its organization', async () => {
  const error = await errorOf(() => Model.load('gpt2', { device: 'cpu' }));
  expect(error.code).toBe('ERR_INVALID_CHECKPOINT');
  expect(error.message).toBe(
    'gpt2: no such directory. The id of a model on the Hugging Face hub has the form org/name, or org/name@revision',
  );
});

it('a URL, a GGUF file and a PyTorch file', async () => {
  const directory = directories.make();
  write(directory, { 'a.gguf': 'GGUF', 'pytorch_model.bin': 'PK' });
  const message = async (path: string) => (await errorOf(() => Model.load(path, { device: 'cpu' }))).message;
  expect(await message('https://example.org/a/b')).toContain('a URL is not a directory: pass the directory');
  expect(await message(join(directory, 'a.gguf'))).toContain('only GGUF weights (a.gguf)');
  expect(await message(join(directory, 'pytorch_model.bin'))).toContain('only PyTorch weights (pytorch_model.bin)');
});

// A directory that is none of these keeps the message of its reader.
it.each<[string, Record<string, string>, RegExp]>([
  ['nothing', {}, /config\.json: cannot be opened/],
  [
    'broken weights beside other formats',
    { 'config.json': config, 'model.safetensors': '\0\0', 'a.gguf': '', 'pytorch_model.bin': '' },
    /model\.safetensors: 2 bytes/,
  ],
  ['a config without weights', { 'config.json': config, 'training_args.bin': '' }, /has neither model\.safetensors/],
  [
    'a text_config beside the sizes',
    { 'config.json': JSON.stringify({ ...good.config, text_config: {} }) },
    /text_config is an object: this key is unknown/,
  ],
])('%s', async (_, files, expected) => {
  const directory = directories.make();
  write(directory, files);
  expect((await errorOf(() => Model.load(directory, { device: 'cpu' }))).message).toMatch(expected);
});

it('a missing path that is no model id', async () => {
  for (const path of ['/nowhere/at/all', './nowhere', '../nowhere/x', 'a/b/c', 'a//b']) {
    const error = await errorOf(() => Model.load(path, { device: 'cpu' }));
    expect(error.message).toMatch(/cannot be opened: No such file or directory/);
  }
});

const itWithFifo = process.platform === 'win32' ? it.skip : it;
itWithFifo('a FIFO among the files does not block', async () => {
  const directory = directories.make();
  write(directory, { 'config.json': '{' });
  for (const name of ['tokenizer.json', 'model.safetensors', 'adapter_config.json'])
    execFileSync('mkfifo', [join(directory, name)]);
  expect((await errorOf(() => Model.load(directory, { device: 'cpu' }))).message).toMatch(
    /config\.json: not valid JSON/,
  );
});

it('a config.json of 1 MB with a string without an end takes linear time', async () => {
  const directory = directories.make();
  write(directory, { 'config.json': `{"NaN": "${'\\"'.repeat(520_000)}` });
  const error = await errorOf(() => Model.load(directory, { device: 'cpu' }));
  expect(error.message).toMatch(/config\.json: not valid JSON/);
});
