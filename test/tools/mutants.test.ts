// The mutants of C++ sources.

import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { runNode } from '../support/children';
import { projectRoot } from '../support/fixtures';

interface Mutant {
  at: number;
  length: number;
  line: number;
  kind: string;
  from: string;
  to: string;
}

/** Calls functions of mutants.mjs, which Jest cannot import. */
async function call<T>(code: string, input: unknown): Promise<T> {
  const module = JSON.stringify(join(projectRoot, 'test', 'tools', 'mutants.mjs'));
  const script = `import(${module}).then(({ mutantsOf, codeOf, applyMutant, randomNumbers }) => {
    const input = JSON.parse(require('node:fs').readFileSync(0, 'utf8'));
    process.stdout.write(JSON.stringify(${code}));
  });`;
  const { status, stdout, stderr } = await runNode(['-e', script], { input: JSON.stringify(input) });
  if (status !== 0) throw new Error(stderr);
  return JSON.parse(stdout);
}

const mutantsOf = (text: string): Promise<Mutant[]> => call('mutantsOf(input)', text);
const changes = async (text: string): Promise<string[]> =>
  (await call<string[]>('mutantsOf(input).map((mutant) => applyMutant(input, mutant))', text)).sort();

it('changes comparisons, arithmetic, constants, logic and extrema', async () => {
  expect(await changes('bool b = x < y;')).toEqual(['bool b = x <= y;', 'bool b = x > y;']);
  expect(await changes('bool b = x == y && z;')).toEqual(['bool b = x != y && z;', 'bool b = x == y || z;']);
  expect(await changes('auto b = x + y / z;')).toEqual(['auto b = x + y * z;', 'auto b = x - y / z;']);
  expect(await changes('int x = 7;')).toEqual(['int x = 6;', 'int x = 8;']);
  expect(await changes('double x = 1.0;')).toEqual(['double x = 0.0;']);
  expect(await changes('auto x = std::min(a, b);')).toEqual(['auto x = std::max(a, b);']);
  expect(await changes('bool x = true;')).toEqual(['bool x = false;']);
});

it('deletes statements, without the conditions before them, and keeps declarations', async () => {
  const text = 'void f() {\n  int x;\n  if (a(b)) g(x, y);\n  for (auto z : w) {\n    h();\n  }\n  return x;\n}\n';
  const deleted = (await mutantsOf(text)).filter(({ kind }) => kind === 'deletion');
  expect(deleted.map(({ from, line }) => [from, line])).toEqual([
    ['g(x, y)', 3],
    ['h()', 5],
  ]);
});

it('keeps comments, strings, preprocessor lines, types and the texts of errors', async () => {
  for (const text of [
    '// x < 1\n',
    '/* x + 1\n  y - 2 */\n',
    'const char* text = "1 + 2 < 3 \\" && 4";\n',
    '#if X < 1 && \\\n  Y > 2\n#endif\n',
    'static_assert(a < b);\n',
    'template <typename T>\nvoid f(const T* x, int& y);\n',
    'uint32_t x = y32;\n',
    'float x = 2.5e-28f;\n',
  ]) {
    expect(await mutantsOf(text)).toEqual([]);
  }
  const error = await mutantsOf('void f() {\n  fail(code, "%d; the limit is %d",\n       x - 1, 2);\n}\n');
  expect(error.map(({ kind }) => kind)).toEqual(['deletion']);
});

it('finds text at its place in every source, and the same sample for a seed', async () => {
  const files = ['csrc', 'cuda'].flatMap((folder) =>
    readdirSync(join(projectRoot, folder), { recursive: true, encoding: 'utf8' })
      .filter((name) => /\.(cc|cu|h)$/.test(name))
      .map((name) => readFileSync(join(projectRoot, folder, name), 'utf8')),
  );
  const counts = await call<number[]>(
    `input.map((text) => {
      const code = codeOf(text);
      const wrong = mutantsOf(text).filter((m) =>
        m.from === m.to || !text.startsWith(m.from, m.at) || text.slice(0, m.at).split('\\n').length !== m.line);
      return code.length === text.length && wrong.length === 0 ? mutantsOf(text).length : -1;
    })`,
    files,
  );
  expect(Math.min(...counts)).toBeGreaterThanOrEqual(0);
  expect(Math.max(...counts)).toBeGreaterThan(500);
  const [one, same, other] = await call<number[]>('[1, 1, 2].map((seed) => randomNumbers(seed)())', null);
  expect(one).toBe(same);
  expect(one).not.toBe(other);
});
