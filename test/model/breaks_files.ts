// Broken weight files, safetensors headers and tokenizers.

import { mkdirSync, rmSync, symlinkSync, truncateSync, unlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { safetensorsFile } from '../support/checkpoints';
import { type Break, file, headerBytes, kProj, norm, raw, rewrite } from './breaks';

export const files: Break[] = [
  { name: 'no directory', apply: (directory) => rmSync(directory, { recursive: true }), names: [] },
  {
    name: 'a file in place of the directory',
    apply: (directory) => {
      rmSync(directory, { recursive: true });
      writeFileSync(directory, 'x');
    },
    names: [],
  },
  { name: 'no config.json', apply: (directory) => unlinkSync(join(directory, 'config.json')), names: ['config.json'] },
  {
    name: 'a directory in place of config.json',
    apply: (directory) => {
      unlinkSync(join(directory, 'config.json'));
      mkdirSync(join(directory, 'config.json'));
    },
    names: ['config.json'],
  },
  {
    name: 'a dangling link in place of config.json',
    apply: (directory) => {
      unlinkSync(join(directory, 'config.json'));
      symlinkSync('/nowhere/at/all', join(directory, 'config.json'));
    },
    names: ['config.json'],
  },
  { name: 'no weights', apply: (directory) => unlinkSync(join(directory, file)), names: ['model.safetensors'] },
  {
    name: 'a directory in place of the weights',
    apply: (directory) => {
      unlinkSync(join(directory, file));
      mkdirSync(join(directory, file));
    },
    names: [file],
  },
  { name: 'an empty file', apply: raw(''), names: [file] },
  { name: '7 bytes', apply: raw(new Uint8Array(7)), names: [file] },
  { name: '8 zero bytes: a header of length 0', apply: raw(new Uint8Array(8)), names: [file] },
  {
    name: 'truncated in the header',
    apply: (directory) => truncateSync(join(directory, file), 100),
    names: [file, /truncated/],
  },
  {
    name: 'truncated in the data',
    apply: (directory) => truncateSync(join(directory, file), 20_000),
    names: [file, /model\./],
  },
  { name: 'one byte short', apply: rewrite((_, data) => ({ data: data.subarray(0, -1) })), names: [file, norm] },
  { name: 'one byte more', apply: rewrite((_, data) => ({ data: new Uint8Array([...data, 0]) })), names: [file] },
  { name: 'random bytes', apply: raw(Uint8Array.from({ length: 5000 }, (_, i) => (i * 7919) % 251)), names: [file] },
  {
    name: 'a text file',
    apply: raw('version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 15000000\n'),
    names: [file],
  },
];

export const headers: Break[] = [
  ...[2n ** 63n, 2n ** 64n - 1n, 2n ** 63n - 1n, 2n ** 32n, 10n ** 9n].map((headerLength) => ({
    name: `header length ${headerLength}`,
    apply: rewrite(() => ({ headerLength })),
    names: [file, String(headerLength)],
  })),
  // Sparse files. At the limit, the zeros are read.
  ...[100_000_000, 100_000_001].map((length) => ({
    name: `a header of ${length} zeros`,
    apply: (directory: string) => {
      const bytes = new DataView(new ArrayBuffer(8));
      bytes.setBigUint64(0, BigInt(length), true);
      writeFileSync(join(directory, file), bytes);
      truncateSync(join(directory, file), 8 + length);
    },
    names: [file, length > 100_000_000 ? /has 100000001 bytes; the limit is 100000000$/ : /JSON/],
  })),
  {
    name: 'header length one too long',
    apply: rewrite((header) => ({ headerLength: BigInt(JSON.stringify(header).length + 1) })),
    names: [file],
  },
  {
    name: 'header length one too short',
    apply: rewrite((header) => ({ headerLength: BigInt(JSON.stringify(header).length - 1) })),
    names: [file, /JSON/],
  },
  { name: 'not JSON', apply: headerBytes('{"a": nonsense}'), names: [file, /JSON/] },
  {
    name: 'NaN in the header',
    apply: headerBytes('{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}'),
    names: [file, /JSON/],
  },
  {
    name: 'not UTF-8',
    apply: (directory) =>
      writeFileSync(
        join(directory, file),
        safetensorsFile(Uint8Array.of(0x7b, 0x22, 0xff, 0xfe, 0x22, 0x3a, 0x31, 0x7d), new Uint8Array(0)),
      ),
    names: [file],
  },
  { name: 'an array', apply: headerBytes('[]'), names: [file] },
  { name: 'a string', apply: headerBytes('"header"'), names: [file] },
  { name: 'null', apply: headerBytes('null'), names: [file] },
  { name: 'only spaces', apply: headerBytes('          '), names: [file] },
  { name: 'empty object', apply: rewrite(() => ({ header: '{}', data: new Uint8Array(0) })), names: [file] },
  {
    name: 'arrays nested 100,000 deep',
    apply: headerBytes(`{"a":${'['.repeat(100_000)}${']'.repeat(100_000)}}`),
    names: [file],
  },
  {
    name: 'objects nested 100,000 deep',
    apply: headerBytes(`${'{"a":'.repeat(100_000)}1${'}'.repeat(100_000)}`),
    names: [file],
  },
  { name: 'open brackets, 1,000,000 of them', apply: headerBytes('['.repeat(1_000_000)), names: [file] },
  {
    name: 'a tensor twice',
    apply: rewrite((header) => ({
      header: `${JSON.stringify(header).slice(0, -1)},"${norm}":${JSON.stringify(header[norm])}}`,
    })),
    names: [file, norm],
  },
  {
    name: 'a tensor that is a number',
    apply: rewrite((header) => {
      (header as Record<string, unknown>)[kProj] = 5;
      return undefined;
    }),
    names: [file, kProj],
  },
  {
    name: 'a tensor that is null',
    apply: rewrite((header) => {
      (header as Record<string, unknown>)[kProj] = null;
      return undefined;
    }),
    names: [file, kProj],
  },
  {
    name: '__metadata__ that is a list',
    apply: rewrite((header) => {
      (header as Record<string, unknown>).__metadata__ = [1];
      return undefined;
    }),
    names: [file, '__metadata__'],
  },
  {
    name: 'text after the object',
    apply: rewrite((header) => ({ header: `${JSON.stringify(header)} {}` })),
    names: [file],
  },
];

export const tokenizers: Break[] = [
  { name: 'tokenizer.json is not JSON', apply: raw('{', 'tokenizer.json'), names: ['tokenizer.json'] },
  { name: 'tokenizer.json is a list', apply: raw('[]', 'tokenizer.json'), names: ['tokenizer.json'] },
  {
    name: 'tokenizer.json has no model',
    apply: raw('{"added_tokens":[]}', 'tokenizer.json'),
    names: ['tokenizer.json'],
  },
  {
    name: 'tokenizer_config.json is not JSON',
    apply: (directory) => {
      raw('{"model":{"type":"BPE","vocab":{"a":0},"merges":[]}}', 'tokenizer.json')(directory);
      raw('{', 'tokenizer_config.json')(directory);
    },
    names: ['tokenizer_config.json'],
  },
  {
    name: 'generation_config.json is not JSON',
    apply: raw('{', 'generation_config.json'),
    names: ['generation_config.json'],
  },
];
