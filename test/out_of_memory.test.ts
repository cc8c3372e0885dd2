// Memory that is not there: every allocation that the native module makes fails in its turn (test/preload/
// fail_allocation.cc says whose allocations those are), and processes whose address space is limited as by `ulimit -v`. Each
// call ends well or with ERR_OUT_OF_MEMORY, what it was made on is as before, and no process dies of it.
// TRIALS_OF_ALLOCATIONS tries more of them: 24 of each way's some 100 to 1,400 by default.

import { execFileSync, spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { temporaryDirectories } from './checkpoints';
import { builtCli, runScript } from './children';
import { projectRoot, tldrDirectory } from './fixtures';

const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());
const trials = process.env.TRIALS_OF_ALLOCATIONS ?? '24';
const small = join(__dirname, 'fixtures', 'sigma-8-2-4-top5');
const linux = process.platform === 'linux' && process.arch === 'x64';
const has = (program: string): boolean => spawnSync(program, ['--version']).status === 0;

(linux && has(process.env.CXX || 'c++') ? describe : describe.skip)(
  'each allocation fails once, and all from it on',
  () => {
    const preload = (): string => {
      const file = join(directories.make(), 'fail_allocation.so');
      const source = join(__dirname, 'preload', 'fail_allocation.cc');
      execFileSync(process.env.CXX || 'c++', ['-std=c++20', '-O1', '-shared', '-fPIC', '-o', file, source, '-ldl']);
      return file;
    };
    let library: string;
    beforeAll(() => {
      library = preload();
    });

    it.each(['open', 'tensors', 'kernels', 'load', 'session', 'generate'])(
      '%s',
      async (name) => {
        const control = join(directories.make(), 'control');
        writeFileSync(control, new Uint8Array(64));
        const env = {
          LD_PRELOAD: library,
          FAIL_ALLOCATION_FILE: control,
          OMP_WAIT_POLICY: 'passive',
          DIFFQKV_MODULE: '', // the one that is shipped
        };
        type Outcome = Record<string, { allocations: number; tried: number; refused: number }>;
        const outcome = await runScript<Outcome>('out_of_memory.cjs', [name, small, trials], {
          nodeOptions: ['--expose-gc'],
          env,
          timeoutMs: 1_700_000,
        });
        expect(Object.keys(outcome)).toEqual(['once', 'from then on']);
        for (const { allocations, tried, refused } of Object.values(outcome)) {
          expect(allocations).toBeGreaterThan(50);
          expect(tried).toBeGreaterThan(10);
          expect(refused).toBeGreaterThan(tried / 2); // some failures are made up for: a thread's cache, a larger guess
        }
      },
      1_800_000,
    );
  },
);

(linux && has('prlimit') ? describe : describe.skip)('an address space that is limited', () => {
  it.each(['2', '8'])(
    'while the process runs, with %s threads: every step ends well or with ERR_OUT_OF_MEMORY',
    async (threads) => {
      const { steps, byV8 } = await runScript<{ steps: [number, ...string[]][]; byV8: number }>(
        'address_space.cjs',
        [tldrDirectory, '0', '4', '16', '24', '40', '64', '256'],
        { nodeOptions: ['--expose-gc'], env: { OMP_NUM_THREADS: threads, OMP_WAIT_POLICY: 'passive' } },
      );
      expect(steps.length).toBeGreaterThan(4);
      expect(steps.length + byV8).toBe(7);
      expect(steps.some(([, ...outcome]) => outcome.includes('ERR_OUT_OF_MEMORY'))).toBe(true);
      expect(steps.at(-1)).toEqual([256, 'ok', 'ok', 'ok', 'ok', 'ok']);
    },
    300_000,
  );

  it('from its start (ulimit -v): text, or one line with ERR_OUT_OF_MEMORY, wherever Node itself can run', () => {
    const run = (kilobytes: number, args: string[]) => {
      const script = `ulimit -v ${kilobytes} && exec "$0" "$@"`;
      const env = { ...process.env, DIFFQKV_MODULE: '', OMP_NUM_THREADS: '4' };
      return spawnSync('bash', ['-c', script, process.execPath, ...args], {
        cwd: projectRoot,
        env,
        input: '# tar',
        encoding: 'utf8',
      });
    };
    // With its pool of threads, without which libuv ends the process.
    const nodeRuns = (kilobytes: number) =>
      run(kilobytes, ['-e', 'JSON.stringify(Array(1e5).fill("x")); fs.promises.stat(".")']).status === 0;
    let kilobytes = 500_000;
    while (!nodeRuns(kilobytes)) kilobytes += 20_000;
    const outcomes: string[] = [];
    for (; kilobytes < 5_000_000 && outcomes.at(-1) !== 'text'; kilobytes += outcomes.length < 8 ? 20_000 : 200_000) {
      const { status, signal, stdout, stderr } = run(kilobytes, [
        builtCli,
        'generate',
        '--device',
        'cpu',
        '--max-tokens',
        '3',
      ]);
      if (status === 0 && stdout.length > 0) outcomes.push('text');
      else if (status === 1 && /^diffqkv: .*\(ERR_OUT_OF_MEMORY\)$/m.test(stderr)) outcomes.push('ERR_OUT_OF_MEMORY');
      else if (/FATAL ERROR|Fatal process out of memory|# Fatal error in/.test(stderr)) outcomes.push('V8');
      // Where libuv's pool gets no threads it aborts without a word; terminate and glibc say something.
      else if (signal === 'SIGABRT' && stderr === '') outcomes.push('libuv');
      else outcomes.push(`${status ?? signal}: ${stderr}`);
    }
    expect(outcomes.filter((outcome) => !['text', 'ERR_OUT_OF_MEMORY', 'V8', 'libuv'].includes(outcome))).toEqual([]);
    expect(outcomes).toContain('ERR_OUT_OF_MEMORY');
    expect(outcomes.at(-1)).toBe('text');
    console.log(`generate under ulimit -v, 20 MB more each time: ${outcomes.join(', ')}`);
  }, 120_000);
});
