// The counter suite of bench/: the CUDA kernels on the emulated device move and multiply no more
// than the committed table says. A worse table or worse kernels are detected.

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { type CounterRow, compareCounters, measureCounters, runCounters } from '../../bench/counters';
import { kernels, listDevices, openDevice } from '../../lib/index';
import { emulation } from '../emulation/module';
import { runNode } from '../support/children';
import { reduced } from '../support/devices';
import { projectRoot } from '../support/fixtures';

const committedFile = join(projectRoot, 'bench', 'results', 'counters.json');
const committed = (JSON.parse(readFileSync(committedFile, 'utf8')) as { rows: CounterRow[] }).rows;

const wanted = process.env.DIFFQKV_TEST_DEVICES?.split(',').includes('emulated') ?? true;
const there = wanted && listDevices().some(({ id }) => id === 'emulated');

/** Runs `bench counters` in this process and captures its output. */
async function run(...args: string[]): Promise<{ status: number; out: string; told: string }> {
  let [out, told] = ['', ''];
  const spies = [
    jest.spyOn(process.stdout, 'write').mockImplementation((text) => {
      out += text;
      return true;
    }),
    jest.spyOn(process.stderr, 'write').mockImplementation((text) => {
      told += text;
      return true;
    }),
  ];
  try {
    const status = await runCounters(args);
    return { status, out, told };
  } finally {
    for (const spy of spies) spy.mockRestore();
  }
}

describe('the comparison of counters', () => {
  const row = committed[0] as CounterRow;
  const name = `${row.kernel} ${row.shape}`;
  const compare = (change: Partial<CounterRow>) => compareCounters([row], [{ ...row, ...change }]);

  it('finds the committed table neither worse nor better than itself', () => {
    expect(committed.length).toBeGreaterThan(30);
    expect(compareCounters(committed, committed)).toEqual({ worse: [], better: [] });
  });

  it.each([
    ['bytesRead', 'bytes read'],
    ['distinctBytesRead', 'distinct bytes read'],
    ['bytesWritten', 'bytes written'],
    ['sectors', 'sectors'],
  ] as const)('lets %s grow by at most half a percent', (key, words) => {
    expect(compare({ [key]: Math.floor(row[key] * 1.005) })).toEqual({ worse: [], better: [] });
    const { worse, better } = compare({ [key]: Math.ceil(row[key] * 1.006) });
    expect(better).toEqual([]);
    expect(worse).toEqual([expect.stringMatching(/ \d+ -> \d+ \(\+0\.\d\d %\)$/)]);
    expect(worse[0]).toContain(`${name}: ${words} `);
    expect(compare({ [key]: Math.floor(row[key] * 0.9) })).toMatchObject({ worse: [], better: [expect.any(String)] });
  });

  it.each(['bankConflicts', 'mmaOps'] as const)('counts one more of %s as worse and one less as better', (key) => {
    const some = { ...row, [key]: 1000 };
    const at = (value: number) => compareCounters([some], [{ ...some, [key]: value }]);
    expect(at(1001)).toMatchObject({ worse: [expect.stringContaining('1000 -> 1001 (+0.10 %)')], better: [] });
    expect(at(999)).toMatchObject({ worse: [], better: [expect.stringContaining('1000 -> 999 (-0.10 %)')] });
  });

  it('counts a change from 0 as worse, and a count that is not a number too', () => {
    const none = { ...row, bankConflicts: 0 };
    expect(compareCounters([none], [{ ...none, bankConflicts: 1 }]).worse).toHaveLength(1);
    expect(compare({ sectors: Number.NaN }).worse).toHaveLength(1);
    expect(compare({ sectors: undefined }).worse).toHaveLength(1);
  });

  it('counts a shape that only one side has as worse', () => {
    expect(compareCounters([], [row]).worse).toEqual([expect.stringContaining(`${name}: not in`)]);
    expect(compareCounters([row], []).worse).toEqual([expect.stringContaining(`${name}: in the committed table, but`)]);
  });
});

describe('the counters of the CUDA kernels', () => {
  if (!there) {
    it.skip('SKIPPED: this module has no emulated device, or it is not to be tested', () => {});
    return;
  }
  const folder = mkdtempSync(join(tmpdir(), 'diffqkv-counters-'));
  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  it('are no worse than the committed ones', async () => {
    const { status, out, told } = await run('--check', ...(reduced ? ['--only', 'matmul'] : []));
    expect({ status, told }).toEqual({
      status: 0,
      told: expect.stringContaining('no worse than bench/results/counters.json'),
    });
    if (/^better/m.test(told)) console.log(told.slice(told.indexOf('better')));
    expect(out.split('\n').filter((line) => /^(matmul|augmentedQ) /.test(line)).length).toBeGreaterThanOrEqual(4);
  });

  it('read no more of 32k keys than a window of 1,024', async () => {
    const [row] = await measureCounters({ only: 'window 1024' });
    // Besides them it reads the sums of its splits.
    expect((row as CounterRow).bytesRead / (row as CounterRow).ideal.bytesRead).toBeLessThan(1.03);
    expect((row as CounterRow).bytesRead / (row as CounterRow).ideal.bytesRead).toBeGreaterThanOrEqual(1);
  });

  it('fail the check if they are worse, with the place and the amount', async () => {
    const file = join(folder, 'doctored.json');
    const doctored = committed.map((row) =>
      row.kernel === 'embed' ? { ...row, bytesRead: row.bytesRead / 2, sectors: row.sectors * 2 } : row,
    );
    writeFileSync(file, JSON.stringify({ rows: doctored }));
    const { status, told } = await run('--check', '--json', file, '--only', 'embed');
    expect(status).toBe(1);
    expect(told).toMatch(/^worse: embed 8 tokens, 512 x 2048: bytes read \d+ -> \d+ \(\+100\.00 %\)$/m);
    expect(told).toMatch(/^better: embed 8 tokens, 512 x 2048: sectors \d+ -> \d+ \(-50\.00 %\)$/m);
  });

  it.each(['5', '6'])('are the same in another order of threads: seed %s', async (seed) => {
    const file = join(folder, `seed-${seed}.json`);
    const script = `require('./dist/bench/counters.js').runCounters(process.argv.slice(1)).then((s) => process.exit(s))`;
    const { status, stderr } = await runNode(['-e', script, '--', '--only', 'top 100', '--json', file], {
      env: { DIFFQKV_EMULATED_SEED: seed },
    });
    expect({ status, stderr }).toMatchObject({ status: 0 });
    const { rows } = JSON.parse(readFileSync(file, 'utf8')) as { rows: CounterRow[] };
    expect(rows).toEqual(await measureCounters({ only: 'top 100' }));
  });

  it('start at 0 and count only the emulated device until they stop', async () => {
    const { counters, startCounting, stopCounting } = emulation();
    const none = { bytesRead: 0, distinctBytesRead: 0, bytesWritten: 0, sectors: 0, bankConflicts: 0, mmaOps: 0 };
    stopCounting();
    expect(counters()).toBeNull();
    startCounting();
    expect(counters()).toEqual(none);
    const values = new Float32Array(64).fill(1);
    for (const id of ['cpu', 'emulated'] as 'cpu'[]) {
      using device = await openDevice(id);
      const x = device.tensor('f32', [64], values);
      await (await kernels.gatedActivation({ gate: x, up: x })).read();
      expect(counters()).toEqual(
        id === 'cpu' ? none : expect.objectContaining({ bytesRead: 512, distinctBytesRead: 256, bytesWritten: 256 }),
      );
    }
    startCounting();
    expect(counters()).toEqual(none);
    stopCounting();
    expect(counters()).toBeNull();
  });

  it('rejects wrong arguments', async () => {
    expect(await run('--nonsense')).toMatchObject({
      status: 1,
      told: expect.stringContaining('Usage: bench counters'),
    });
    expect(await run('--only', 'nonsense')).toMatchObject({ status: 1, told: expect.stringContaining("'nonsense'") });
    const missing = join(folder, 'missing.json');
    const { status, told } = await run('--check', '--json', missing);
    expect({ status, told }).toEqual({
      status: 1,
      told: expect.stringContaining('missing.json: there is no such table'),
    });
  });
});
