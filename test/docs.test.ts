// Every code block of README.md, docs/ and the examples' pages runs, as it stands, in a directory such as a user's.
//
// - ts: type-checked against the built package's own types, and run. A block without imports goes on from the one before
//   it on the page. A comment `// prints TEXT` is checked: these texts come out in this order.
// - js: run as CommonJS.
// - sh, and blocks that are indented: run by bash, with `diffqkv` on PATH.
// - json: parsed. text: nothing.
// - `<!-- from PATH -->` before a block: it is an excerpt of that file.
// - `<!-- not run: WHY -->`: it does not run here, and is listed as skipped; ts is still type-checked. `<!-- not run (A, B): WHY -->`:
//   of a shell block only the lines that begin with A or B.
// - `<!-- text -->`: an indented block that is no shell.
// - `<!-- declarations: NAME ... -->`: what scripts/api.mjs writes; the test compares.

import { spawnSync } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { randomCheckpoint, writeCheckpoint } from './checkpoints';
import { builtCli, builtIndex } from './children';
import { projectRoot } from './fixtures';
import { allPages, type Block, blocksOf, deadEnds, isExcerpt, pages } from './markdown';

/** Blocks that are one module. */
interface Program {
  file: string;
  blocks: Block[];
}

const blocks = pages().flatMap(blocksOf);
const at = ({ page, line, language }: Block): string => `${page}:${line} ${language}`;
const markedAs = (name: string) => (block: Block) => block.marker?.name === name;
const [isExcerpted, isText, isNotRun] = [markedAs('from'), markedAs('text'), markedAs('not run')];
const isDeclarations = markedAs('declarations');
const runnable = (language: string) => (block: Block) =>
  block.language === language && !isExcerpted(block) && !isText(block) && !isDeclarations(block);

const programs: Program[] = [];
for (const block of blocks.filter(runnable('ts'))) {
  const last = programs.at(-1);
  const goesOn = !block.lines.some((line) => line.startsWith('import '));
  if (last && goesOn && last.blocks[0]?.page === block.page) last.blocks.push(block);
  else programs.push({ file: `${block.page.replaceAll('/', '_')}_${block.line}`, blocks: [block] });
}

/** The lines of code stand in the lines that they have in the page, so that an error's line is the page's. */
function moduleText({ blocks }: Program): string {
  const lines: string[] = [];
  for (const block of blocks) {
    while (lines.length < block.line - 1) lines.push('');
    lines.push(...block.lines);
  }
  return `${lines.join('\n')}\nexport {};\n`;
}

let directory: string;

function run(command: string, args: string[]): string {
  const env = { ...process.env, NODE_OPTIONS: '', PATH: `${join(directory, 'bin')}${delimiter}${process.env.PATH}` };
  const { status, signal, stdout, stderr, error } = spawnSync(command, args, {
    cwd: directory,
    env,
    encoding: 'utf8',
    timeout: 120_000,
    input: '',
  });
  if (error) throw error;
  if (status !== 0) throw new Error(`it ended with ${status ?? signal}:\n${stdout}\n${stderr}`);
  return stdout;
}

/** The tests of a block, or a skipped one. */
function runs(name: string, notRun: Block | undefined, body: () => void): void {
  if (notRun) it.skip(`SKIPPED: ${name}: ${notRun.marker?.text}`, () => {});
  else it(name, body);
}

beforeAll(() => {
  if (!existsSync(builtIndex)) throw new Error('dist/ is missing: run `npm run build` first');
  directory = mkdtempSync(join(tmpdir(), 'diffqkv-docs-'));
  const link = (to: string, name: string) => symlinkSync(join(projectRoot, to), join(directory, name));
  mkdirSync(join(directory, 'node_modules'));
  link('.', 'node_modules/diffqkv');
  link('node_modules/openai', 'node_modules/openai');
  link('models', 'models');
  mkdirSync(join(directory, 'bin'));
  writeFileSync(join(directory, 'bin', 'diffqkv'), `#!/bin/sh\nexec ${process.execPath} ${builtCli} "$@"\n`, {
    mode: 0o755,
  });
  // A Llama to convert.
  mkdirSync(join(directory, 'LLAMA'));
  writeCheckpoint(join(directory, 'LLAMA'), randomCheckpoint({ architecture: 'llama', heads: [8, 8, 8] }));

  for (const program of programs) writeFileSync(join(directory, `${program.file}.mts`), moduleText(program));
  const compilerOptions = {
    ...{ strict: true, target: 'es2022', lib: ['es2023', 'esnext.disposable'], module: 'nodenext', skipLibCheck: true },
    ...{ types: ['node'], typeRoots: [join(projectRoot, 'node_modules', '@types')], rootDir: '.', outDir: 'compiled' },
  };
  writeFileSync(join(directory, 'tsconfig.json'), JSON.stringify({ compilerOptions, include: ['*.mts'] }));
});

afterAll(() => rmSync(directory, { recursive: true, force: true }));

it.each(allPages())('%s: what it points to is there', (page) => {
  expect(deadEnds(page)).toEqual([]);
});

it('every block says what it is', () => {
  const known = ['ts', 'js', 'sh', 'json', 'text'];
  expect(blocks.filter((block) => !known.includes(block.language) && !isExcerpted(block)).map(at)).toEqual([]);
  expect(blocks.filter((block) => isNotRun(block) && !block.marker?.text).map(at)).toEqual([]); // without a reason
});

it('excerpts are what stands in their files', () => {
  const excerpts = blocks.filter(isExcerpted);
  expect(excerpts.filter((block) => !isExcerpt(block)).map((block) => `${at(block)}: ${block.marker?.text}`)).toEqual(
    [],
  );
  // The check can fail.
  const [first] = excerpts;
  if (first) expect(isExcerpt({ ...first, lines: [...first.lines, 'no such line'] })).toBe(false);
});

it('the pictures are what their script draws', () => {
  const guides = join(projectRoot, 'docs', 'guides');
  const drawn = join(directory, 'pictures');
  mkdirSync(drawn);
  run(process.execPath, [join(guides, 'pictures.mjs'), drawn]);
  const names = readdirSync(guides).filter((name) => name.endsWith('.svg'));
  expect(readdirSync(drawn).sort()).toEqual(names.sort());
  for (const name of names) {
    expect([name, readFileSync(join(drawn, name), 'utf8')]).toEqual([name, readFileSync(join(guides, name), 'utf8')]);
  }
});

it('counts of the decode kernel are those of counters.json', () => {
  const read = (path: string) => readFileSync(join(projectRoot, path), 'utf8');
  const { rows } = JSON.parse(read('bench/results/counters.json')) as {
    rows: { kernel: string; shape: string; bytesRead: number; mmaOps: number; ideal: { bytesRead: number } }[];
  };
  const page = read('docs/guides/decode-kernel.md');
  for (const heads of ['32/4/16', '32/16/16']) {
    const row = rows.find(
      ({ kernel, shape }) => kernel === 'attentionDecode' && shape === `${heads} x 64, 1024 keys, bf16`,
    );
    if (!row) throw new Error(`${heads} is not counted`);
    const [bytes, least, mma] = [row.bytesRead, row.ideal.bytesRead, row.mmaOps].map((n) => n.toLocaleString('en-US'));
    expect(page).toContain(`| ${heads} | ${bytes} | ${least} | ${(row.bytesRead / row.ideal.bytesRead).toFixed(3)} |`);
    expect(page).toContain(` = ${mma} |`);
  }
});

it('docs/api.md has the declarations of every public name, and the check finds what differs', () => {
  const page = readFileSync(join(projectRoot, 'docs', 'api.md'), 'utf8');
  const changes: [name: string, from: string, to: string, message: string][] = [
    ['signature', 'truncate(kvLen: number): Promise<void>;', 'truncate(kvLen: number): void;', 'truncate'],
    ['member', '  vType?: DType;\n', '', 'vType'],
    ['lacks', 'declarations: DiffqkvError ErrorCode', 'declarations: DiffqkvError', 'ErrorCode is exported'],
    ['twice', 'declarations: DType', 'declarations: Tensor DType', 'Tensor is declared twice'],
    ['unknown', 'declarations: DType', 'declarations: NoSuchName DType', 'NoSuchName is not exported'],
  ];
  const files = changes.map(([name, from, to]) => {
    const text = page.replace(from, to);
    expect(text).not.toBe(page);
    writeFileSync(join(directory, `${name}.md`), text);
    return join(directory, `${name}.md`);
  });
  const script = join(projectRoot, 'scripts', 'api.mjs');
  const args = [script, '--check', join(projectRoot, 'docs', 'api.md'), ...files];
  const { status, stderr } = spawnSync(process.execPath, args, { encoding: 'utf8' });
  const lines = stderr.trim().split('\n');
  expect(lines).toEqual(
    changes.map(([, , , message], i) => expect.stringMatching(new RegExp(`^${files[i]}: .*${message}`))),
  );
  expect(status).toBe(1);
});

it("the README's figures are those of bench/results", () => {
  type Result = { figures: { name: string; value: number; bytes?: number }[]; device: { details: { simd: string } } };
  const read = (path: string) => readFileSync(join(projectRoot, path), 'utf8');
  const result = (name: string): Result => JSON.parse(read(`bench/results/${name}.json`));
  const [peers, ket, ceet] = [result('peers'), result('ket'), result('ceet')];
  const figure = ({ figures }: Result, name: string) => {
    const found = figures.find((one) => one.name === name);
    if (!found) throw new Error(`no figure is named ${name}`);
    return found;
  };
  const count = (value: number, digits: number) =>
    value.toLocaleString('en-US', { maximumFractionDigits: digits, minimumFractionDigits: digits });
  const value = (result: Result, name: string, digits: number) => count(figure(result, name).value, digits);
  const gigabytes = (name: string) => count((figure(ket, name).bytes as number) / 1e9, 1);
  const percent = (result: Result, name: string) => {
    const saving = figure(result, name).value;
    return `${count(Math.abs(saving), 1)} % ${saving < 0 ? 'lost' : 'saved'}`;
  };
  const attention = 'decode attention 32/8/8 x 64 f16, 8192 tokens';
  const [sigma, std] = ['KET at 32k, Sigma 32/4/16', 'KET at 32k, STD 32/16/16'];
  const bytes = [sigma, std].map((name) => figure(ket, name).bytes as number) as [number, number];
  const rows = [
    [
      `${value(peers, 'decode after 128 tokens: diffqkv', 1)} tokens/s`,
      `llama.cpp F16: ${value(peers, 'decode after 128 tokens: llama.cpp F16', 1)} tokens/s`,
      `${value(peers, 'decode: tokens per second over those of llama.cpp F16', 1)} times as fast`,
    ],
    [
      `${value(peers, 'prefill after 0 tokens: diffqkv', 0)} tokens/s`,
      `llama.cpp F16: ${value(peers, 'prefill after 0 tokens: llama.cpp F16', 0)} tokens/s`,
      `${value(peers, 'prefill: tokens per second over those of llama.cpp F16', 1)} times as fast`,
    ],
    [
      `${value(peers, `${attention}: diffqkv`, 2)} ms`,
      `onnxruntime: ${value(peers, `${attention}: onnxruntime, cache in place`, 1)} ms`,
      `${value(peers, 'decode attention 32/8/8 x 64 f16: times as fast as onnxruntime (cache in place)', 1)} times as fast`,
    ],
    [
      `32/4/16: ${gigabytes(sigma)} GB`,
      `32/16/16: ${gigabytes(std)} GB`,
      `${count(100 * (1 - bytes[0] / bytes[1]), 1)} % saved`,
    ],
    [`32/4/16: ${value(ket, sigma, 0)} ms`, `32/16/16: ${value(ket, std, 0)} ms`, percent(ket, 'KET at 32k, saving')],
    [percent(ceet, 'CEET, 64k after 64k: saving, total')],
    [percent(ceet, 'CEET, 32k after 0: saving, total')],
  ];
  const page = read('README.md');
  for (const cells of rows) expect(page).toContain(`| ${cells.join(' | ')} |`);
  for (const { device } of [peers, ket, ceet]) expect(device.details.simd).toBe('avx512_bf16+amx');
});

it('json is json', () => {
  for (const block of blocks.filter(runnable('json'))) JSON.parse(block.lines.join('\n'));
});

describe('ts', () => {
  let compiler = '';
  beforeAll(() => {
    const tsc = join(projectRoot, 'node_modules', 'typescript', 'bin', 'tsc');
    const { stdout, error } = spawnSync(process.execPath, [tsc, '-p', directory], { encoding: 'utf8', cwd: directory });
    if (error) throw error;
    compiler = stdout;
  });

  // The name of a module is its page, and its lines are those of the page.
  it('all of it has the right types', () => expect(compiler).toBe(''));

  for (const { file, blocks } of programs) {
    const [first, ...rest] = blocks.map(at);
    runs(rest.length > 0 ? `${first} and ${rest.length} more` : `${first}`, blocks.find(isNotRun), () => {
      const output = run(process.execPath, [join('compiled', `${file}.mjs`)]);
      let from = 0;
      for (const line of blocks.flatMap(({ lines }) => lines)) {
        const text = /\/\/ prints (.*)$/.exec(line)?.[1];
        if (text === undefined) continue;
        const found = output.indexOf(text, from);
        if (found < 0) throw new Error(`it does not print ${text}, but:\n${output.slice(from)}`);
        from = found + text.length;
      }
    });
  }
});

describe('js', () => {
  for (const block of blocks.filter(runnable('js'))) {
    runs(at(block), isNotRun(block) ? block : undefined, () => {
      const file = join(directory, `${block.line}.cjs`);
      writeFileSync(file, block.lines.join('\n'));
      run(process.execPath, [file]);
    });
  }
});

describe('sh', () => {
  for (const block of blocks.filter(runnable('sh'))) {
    const of = isNotRun(block) ? (block.marker?.of ?? []) : [];
    const left = block.lines.filter((line) => !of.some((start) => line.startsWith(start)));
    const whole = isNotRun(block) && of.length === 0;
    if (of.length > 0) runs(`${at(block)}: ${of.join(', ')}`, block, () => {});
    runs(at(block), whole ? block : undefined, () => {
      expect(left.length).toBe(block.lines.length - of.length); // each of them is one line
      run('bash', ['--norc', '-e', '-u', '-o', 'pipefail', '-c', left.join('\n')]);
    });
  }
});
