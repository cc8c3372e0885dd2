// The whole messages about paths that are often passed by mistake. folder_messages.test.ts tests that
// Model.load gives them.

import { mkdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { DiffqkvError } from '../../lib/errors';
import { explain, explainNames, otherVocabulary } from '../../lib/explain';
import { temporaryDirectories } from '../support/checkpoints';

const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

const invalid = 'ERR_INVALID_CHECKPOINT';
const unsupported = 'ERR_UNSUPPORTED_MODEL';
const original = new DiffqkvError(invalid, 'what the reader says');

function write(files: Record<string, string>): string {
  const directory = directories.make();
  mkdirSync(directory, { recursive: true });
  for (const [name, text] of Object.entries(files)) {
    mkdirSync(dirname(join(directory, name)), { recursive: true });
    writeFileSync(join(directory, name), text, 'latin1');
  }
  return directory;
}

/** The code and message for a path; DIR is `directory`. */
async function explained(path: string, directory = '\0') {
  const error = (await explain(path, original)) as DiffqkvError;
  return [error.code, error.message.replaceAll(directory, 'DIR')];
}

const lfs = ': a Git LFS pointer, not the file itself: run `git lfs pull` in the clone, or download the file';
const page =
  ': an HTML or XML page, not the file, perhaps the error page of a failed download: download the file again ' +
  '(a gated model needs a login)';
const text = (start: string) =>
  `: text that begins with ${JSON.stringify(start)}, not a safetensors file: download the file again`;
const pytorch = (name: string) =>
  `: has only PyTorch weights (${name}), which are not supported: convert them with Python's transformers, ` +
  'AutoModelForCausalLM.from_pretrained(IN).save_pretrained(OUT), and pass OUT';
const gguf = (name: string) =>
  `: has only GGUF weights (${name}), which are not supported: pass the directory of the safetensors checkpoint ` +
  'from which they were made';
const other = (name: string) =>
  `: has only ${name}, a format of weights that is not supported: pass the directory of a safetensors checkpoint`;
const adapter = (base: string) =>
  `: a LoRA adapter, not a model: merge it into its base model${base} with merge_and_unload() of Python's peft, ` +
  'call save_pretrained(DIR), and pass DIR';
const pointer = 'version https://git-lfs.github.com/spec/v1\n';

it.each<[string, Record<string, string>, string, string]>([
  ['a pointer', { 'model.safetensors': pointer }, invalid, `DIR/model.safetensors${lfs}`],
  ['a pointer as config', { 'config.json': pointer }, invalid, `DIR/config.json${lfs}`],
  [
    'a pointer as generation config',
    { 'generation_config.json': pointer },
    invalid,
    `DIR/generation_config.json${lfs}`,
  ],
  ['a pointer as tokenizer config', { 'tokenizer_config.json': pointer }, invalid, `DIR/tokenizer_config.json${lfs}`],
  [
    'a pointer as index',
    { 'model.safetensors.index.json': pointer },
    invalid,
    `DIR/model.safetensors.index.json${lfs}`,
  ],
  [
    'the first of two pointers',
    { 'b.safetensors': pointer, 'a.safetensors': pointer },
    invalid,
    `DIR/a.safetensors${lfs}`,
  ],
  ['a page', { 'config.json': '<!DOCTYPE HTML>' }, invalid, `DIR/config.json${page}`],
  ['a page with a BOM and blanks', { 'config.json': '\xef\xbb\xbf \n<html>' }, invalid, `DIR/config.json${page}`],
  ['an XML page', { 'tokenizer.json': '<?xml version="1.0"?>' }, invalid, `DIR/tokenizer.json${page}`],
  ['text', { 'model.safetensors': 'Not Found' }, invalid, `DIR/model.safetensors${text('Not Found')}`],
  ['eight characters', { 'model.safetensors': '\t\r\n ~"AB' }, invalid, `DIR/model.safetensors${text('\t\r\n ~"AB')}`],
  [
    'long text',
    { 'model.safetensors': 'abcdefghij'.repeat(9) },
    invalid,
    `DIR/model.safetensors${text('abcdefghij'.repeat(4))}`,
  ],
  [
    'a cache entry',
    { 'refs/main': ' bbb\n', 'snapshots/aaa/x': '', 'snapshots/bbb/x': '' },
    invalid,
    'DIR: the root of a Hugging Face cache entry: pass its snapshot DIR/snapshots/bbb',
  ],
  [
    'a cache entry whose main is absent',
    { 'refs/main': 'ccc', 'snapshots/aaa/x': '' },
    invalid,
    'DIR: the root of a Hugging Face cache entry: pass its snapshot DIR/snapshots/aaa',
  ],
  [
    'a cache entry without snapshots',
    { 'blobs/a': '', snapshots: '' },
    invalid,
    'DIR: the root of a Hugging Face cache entry without snapshots: download the model again',
  ],
  [
    'the cache',
    { 'models--a--b/x': '', 'version.txt': '1' },
    invalid,
    'DIR: the Hugging Face cache, not a model: pass DIR/models--OWNER--NAME/snapshots/HASH',
  ],
  ['an adapter', { 'adapter_config.json': '{"base_model_name_or_path": "a/b"}' }, unsupported, `DIR${adapter(' a/b')}`],
  [
    'an adapter with numbers of Python',
    { 'adapter_config.json': '{"r": NaN, "x": [-Infinity], "s": "NaN\\"", "base_model_name_or_path": "NaN"}' },
    unsupported,
    `DIR${adapter(' NaN')}`,
  ],
  [
    'an adapter with a long base',
    { 'adapter_config.json': JSON.stringify({ base_model_name_or_path: 'x'.repeat(130) }) },
    unsupported,
    `DIR${adapter(` ${'x'.repeat(120)}`)}`,
  ],
  [
    'an adapter without a base',
    { 'adapter_config.json': '{"base_model_name_or_path": ""}' },
    unsupported,
    `DIR${adapter('')}`,
  ],
  ['an adapter of null', { 'adapter_config.json': 'null' }, unsupported, `DIR${adapter('')}`],
  ['an adapter of 7', { 'adapter_config.json': '{"base_model_name_or_path": 7}' }, unsupported, `DIR${adapter('')}`],
  ['an adapter that is no JSON', { 'adapter_config.json': '{' }, unsupported, `DIR${adapter('')}`],
  ['PyTorch', { 'pytorch_model.bin': 'PK' }, unsupported, `DIR${pytorch('pytorch_model.bin')}`],
  ['PyTorch, old', { 'consolidated.00.pth': 'PK' }, unsupported, `DIR${pytorch('consolidated.00.pth')}`],
  ['PyTorch, .pt', { 'model-1.pt': 'PK' }, unsupported, `DIR${pytorch('model-1.pt')}`],
  ['GGUF', { 'x.GGUF': '' }, unsupported, `DIR${gguf('x.GGUF')}`],
  ['HDF5', { 'tf_model.h5': '' }, unsupported, `DIR${other('tf_model.h5')}`],
  ['Flax', { 'flax_model.msgpack': '' }, unsupported, `DIR${other('flax_model.msgpack')}`],
  ['ONNX', { 'model.onnx': '' }, unsupported, `DIR${other('model.onnx')}`],
  ['NumPy', { 'w.npz': '' }, unsupported, `DIR${other('w.npz')}`],
  [
    'several, of which PyTorch is named',
    { 'model.onnx': '', 'a.gguf': '', 'pytorch_model.bin': '' },
    unsupported,
    `DIR${pytorch('pytorch_model.bin')}`,
  ],
])('%s', async (_name, files, code, message) => {
  const directory = write(files);
  expect(await explained(directory, directory)).toEqual([code, message]);
});

it.each<[string, Record<string, string>]>([
  ['nothing', {}],
  [
    'a pointer in a file that is not read',
    { 'vocab.json': pointer, 'xconfig.json': pointer, 'config.json.old': pointer },
  ],
  ['a pointer that does not begin the file', { 'config.json': ` ${pointer}` }],
  ['a page that does not begin the file', { 'config.json': 'x<html>' }],
  ['a tag that begins with html', { 'config.json': '<htmlx>' }],
  ['seven characters', { 'model.safetensors': 'abcdefg\0' }],
  ['text after a character that is none', { 'model.safetensors': '\0abcdefgh' }],
  ['text in place of config.json', { 'config.json': 'abcdefghi' }],
  ['snapshots beside config.json', { 'config.json': '{}', 'snapshots/a/x': '', 'refs/main': '' }],
  ['snapshots without refs', { 'snapshots/a/x': '' }],
  ['refs without snapshots', { 'refs/main': '', 'blobs/x': '' }],
  ['a model in the folder of a cache', { 'config.json': '{}', 'models--a--b/x': '' }],
  ['a name that ends like the cache', { 'my-models--x': '' }],
  ['an adapter beside weights', { 'adapter_config.json': '{}', 'model.safetensors': '' }],
  ['an adapter beside an index', { 'adapter_config.json': '{}', 'model.safetensors.index.json': '{}' }],
  ['PyTorch beside weights', { 'pytorch_model.bin': '', 'model.safetensors': '' }],
  ['GGUF beside an index', { 'a.gguf': '', 'model.safetensors.index.json': '{}' }],
  ['ONNX beside weights', { 'a.onnx': '', 'model.safetensors': '' }],
  ['files that are no weights', { 'training_args.bin': '', 'my_model.bin': '', 'model.bin.txt': '', 'a.onnx.txt': '' }],
  ['a name that has gguf', { 'a.gguf.md': '', gguf: '' }],
])('leaves the error as it is: %s', async (_name, files) => {
  expect(await explain(write(files), original)).toBe(original);
});

it('explains paths that are no directory', async () => {
  const url = (path: string) => [
    invalid,
    `${path}: a URL is not a directory: pass the directory of the model's files, or its id on the hub, org/name`,
  ];
  for (const path of ['https://x/y', 'http://x', 'hf://a/b']) expect(await explained(path)).toEqual(url(path));
  const id = (path: string) => [
    invalid,
    `${path}: no such directory. The id of a model on the Hugging Face hub has the form org/name, or org/name@revision`,
  ];
  for (const path of ['gpt2', 'GPT-2.x@main', '7b']) expect(await explained(path)).toEqual(id(path));
  for (const path of ['-x', './gpt2', 'a b', 'xhttps://x', 'ftp://x', '/nowhere/a.gguf'])
    expect(await explain(path, original)).toBe(original);

  const directory = write({ 'a.gguf': '', 'pytorch_model.bin': '', 'model.onnx': '', x: '' });
  const file = (name: string) => explained(join(directory, name), directory);
  expect(await file('a.gguf')).toEqual([unsupported, `DIR/a.gguf${gguf('a.gguf')}`]);
  expect(await file('pytorch_model.bin')).toEqual([
    unsupported,
    `DIR/pytorch_model.bin${pytorch('pytorch_model.bin')}`,
  ]);
  expect(await file('x')).toEqual([original.code, original.message]);
  expect(await file('x/gpt2')).toEqual([original.code, original.message]);
  expect(await explain('gpt\0', original)).toBe(original);
});

it('explains only errors of a checkpoint', async () => {
  for (const error of [new DiffqkvError('ERR_OUT_OF_MEMORY', 'x'), new Error('x'), null, undefined, 'x'])
    expect(await explain('gpt2', error)).toBe(error);
  const error = new DiffqkvError(unsupported, 'x');
  expect(await explain('gpt2', error)).toMatchObject({ code: invalid });
});

it('explains the names of files on a hub', async () => {
  expect(await explainNames('a/b', ['x.gguf'])).toMatchObject({ code: unsupported, message: `a/b${gguf('x.gguf')}` });
  expect(await explainNames('a/b', ['config.json'])).toBeUndefined();
});

it.each(['tokenizer.model', 'vocab.json', 'merges.txt', 'vocab.txt'])('names the vocabulary %s', (name) => {
  expect(otherVocabulary('a/b', ['x', name])).toMatchObject({
    code: unsupported,
    message:
      `a/b/${name}: the vocabulary is not in tokenizer.json: write that file with Python, ` +
      'transformers.AutoTokenizer.from_pretrained(directory).save_pretrained(directory)',
  });
  expect(otherVocabulary('a/b', ['x'])).toBeNull();
});
