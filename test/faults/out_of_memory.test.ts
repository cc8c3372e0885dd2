// Out of memory: each allocation of the native module fails in turn
// (test/faults/fail_allocation.cc defines which allocations those are), and processes run with a
// limited address space, as with `ulimit -v`. Each call succeeds or fails with ERR_OUT_OF_MEMORY,
// its objects are unchanged, and no process crashes. By default 24 of each way's 100 to 1,400
// allocations fail. TRIALS_OF_ALLOCATIONS sets another number.

import { execFileSync, spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { temporaryDirectories } from '../support/checkpoints';
import { builtCli, runScript } from '../support/children';
import { fixturesDirectory, projectRoot, tldrDirectory } from '../support/fixtures';

const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());
const trials = process.env.TRIALS_OF_ALLOCATIONS ?? '24';
const small = join(fixturesDirectory, 'sigma-8-2-4-top5');
const linux = process.platform === 'linux' && process.arch === 'x64';
const has = (program: string): boolean => spawnSync(program, ['--version']).status === 0;

(linux && has(process.env.CXX || 'c++') ? describe : describe.skip)(
  'fails each allocation once, and then all from it on',
  () => {
    const preload = (): string => {
      const file = join(directories.make(), 'fail_allocation.so');
      const source = join(__dirname, 'fail_allocation.cc');
      execFileSync(process.env.CXX || 'c++', ['-std=c++20', '-O1', '-shared', '-fPIC', '-o', file, source, '-ldl']);
      return file;
    };
    let library: string;
    beforeAll(() => {
      library = preload();
    });

    it.each(['open', 'tensors', 'kernels', 'load', 'session', 'save', 'generate', 'verify', 'rows'])(
      '%s',
      async (name) => {
        const control = join(directories.make(), 'control');
        writeFileSync(control, new Uint8Array(64));
        const env = {
          LD_PRELOAD: library,
          FAIL_ALLOCATION_FILE: control,
          OMP_WAIT_POLICY: 'passive',
          DIFFQKV_MODULE: '', // the shipped module
        };
        type Outcome = Record<string, { allocations: number; tried: number; refused: number }>;
        const outcome = await runScript<Outcome>('faults/out_of_memory.cjs', [name, small, trials], {
          nodeOptions: ['--expose-gc'],
          env,
          timeoutMs: 1_700_000,
        });
        expect(Object.keys(outcome)).toEqual(['once', 'from then on']);
        for (const { allocations, tried, refused } of Object.values(outcome)) {
          expect(allocations).toBeGreaterThan(50);
          expect(tried).toBeGreaterThan(10);
          // Some failures have a fallback: a thread's cache, a larger guess.
          expect(refused).toBeGreaterThan(tried / 2);
        }
      },
      1_800_000,
    );
  },
);

(linux && has('prlimit') ? describe : describe.skip)('a limited address space', () => {
  it.each(['2', '8'])(
    'with %s threads: completes every step or fails with ERR_OUT_OF_MEMORY if the limit starts later',
    async (threads) => {
      const { steps, byV8 } = await runScript<{ steps: [number, ...string[]][]; byV8: number }>(
        'faults/address_space.cjs',
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

  it('from the start (ulimit -v): writes text, or one line with ERR_OUT_OF_MEMORY, if Node itself can run', () => {
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
    // Includes the thread pool, without which libuv ends the process.
    const nodeRuns = (kilobytes: number) =>
      run(kilobytes, ['-e', 'JSON.stringify(Array(1e5).fill("x")); fs.promises.stat(".")']).status === 0;
    let kilobytes = 500_000;
    while (!nodeRuns(kilobytes)) kilobytes += 20_000;
    const outcomes: string[] = [];
    for (; kilobytes < 5_000_000 && outcomes.at(-1) !== 'text'; kilobytes += outcomes.length < 8 ? 20_000 : 200_000) {
      // Without --single-threaded, a thread of V8 that gets no memory may crash instead of reporting it.
      const { status, signal, stdout, stderr } = run(kilobytes, [
        '--single-threaded',
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
      // libuv aborts silently if its pool gets no threads. std::terminate and glibc print a
      // message.
      else if (signal === 'SIGABRT' && stderr === '') outcomes.push('libuv');
      else outcomes.push(`${status ?? signal} at ${kilobytes} KB: ${stderr}`);
    }
    expect(outcomes.filter((outcome) => !['text', 'ERR_OUT_OF_MEMORY', 'V8', 'libuv'].includes(outcome))).toEqual([]);
    expect(outcomes).toContain('ERR_OUT_OF_MEMORY');
    expect(outcomes.at(-1)).toBe('text');
    console.log(`generate under ulimit -v, 20 MB more each time: ${outcomes.join(', ')}`);
  }, 120_000);
});
