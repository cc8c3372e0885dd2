// diffqkv convert as a process: its memory, and the files left after a kill, an interruption or a
// full disk.

import { type ChildProcess, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  closeSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { safetensorsFile, temporaryDirectories, writeConfig } from '../support/checkpoints';
import { builtCli, type Outcome, runNode } from '../support/children';
import { projectRoot } from '../support/fixtures';

const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

/**
 * K and an embedding of `rows` rows of 4,096 F32 zeros each, stored as a hole on disk. The other
 * tensors do not matter here.
 */
function writeLarge(directory: string, numHeads: number): void {
  mkdirSync(directory, { recursive: true });
  const hiddenSize = 4096;
  writeConfig(directory, {
    model_type: 'sigma',
    hidden_size: hiddenSize,
    num_hidden_layers: 1,
    num_attention_heads: numHeads,
    num_key_heads: numHeads,
    num_value_heads: 1,
    head_dim: 128,
    intermediate_size: hiddenSize,
    vocab_size: numHeads * 128,
    rms_norm_eps: 1e-6,
    rope_theta: 10000,
  });
  let bytes = 0;
  const tensor = (rows: number) => {
    const begin = bytes;
    bytes += rows * hiddenSize * 4;
    return { dtype: 'F32', shape: [rows, hiddenSize], data_offsets: [begin, bytes] };
  };
  const header = JSON.stringify({
    'model.embed_tokens.weight': tensor(numHeads * 128),
    'model.layers.0.self_attn.k_proj.weight': tensor(numHeads * 128),
    'model.layers.0.self_attn.v_proj.weight': tensor(128),
  });
  const file = openSync(join(directory, 'model.safetensors'), 'w');
  writeSync(file, safetensorsFile(header, new Uint8Array(0)));
  ftruncateSync(file, 8 + header.length + bytes);
  closeSync(file);
}

describe('memory', () => {
  it('does not grow with the tensors: 200 MB each need less than 64 MB more than 0.5 MB each', async () => {
    const parent = directories.make();
    const preload = join(parent, 'measure.cjs');
    writeFileSync(
      preload,
      `process.on('exit', () => require('node:fs').writeFileSync(process.env.PEAK, String(process.resourceUsage().maxRSS)));`,
    );
    const peak = async (name: string, numHeads: number, args: string[]): Promise<number> => {
      const from = join(parent, name);
      writeLarge(from, numHeads);
      const env = { PEAK: join(parent, 'peak') };
      const to = join(parent, `${name}-out`);
      const outcome = await runNode(['--require', preload, builtCli, 'convert', from, to, ...args], { env });
      expect([outcome.status, outcome.stderr]).toEqual([0, '']);
      return Number(readFileSync(env.PEAK, 'utf8')) / 1024;
    };
    const small = await peak('small', 2, ['--key-heads', '1']);
    const large = await peak('large', 100, ['--key-heads', '50', '--key-head-dim', 'half']);
    expect(small).toBeGreaterThan(10); // the measurement works
    expect(large - small).toBeLessThan(64);
  });
});

describe('an interrupted conversion', () => {
  /** Starts a conversion of 400 MB and sends the signal when there are partial files. */
  async function interrupted(signal: NodeJS.Signals, preloaded = ''): Promise<Outcome & { left: string[] }> {
    const parent = directories.make();
    const preload = join(directories.make(), 'preload.cjs');
    writeFileSync(preload, preloaded);
    const from = join(parent, 'in');
    writeLarge(from, 100);
    const begun = () => readdirSync(parent).some((name) => name.startsWith('out.partial-'));
    const args = ['--require', preload, builtCli, 'convert', from, join(parent, 'out'), '--key-heads', '1'];
    const outcome = await runNode(args, {
      onStart: (child) => {
        const timer = setInterval(() => {
          if (!begun()) return;
          child.kill(signal);
          clearInterval(timer);
        }, 5);
        child.on('close', () => clearInterval(timer));
      },
    });
    return { ...outcome, left: readdirSync(parent).filter((name) => name !== 'in') };
  }

  it("leaves nothing under the output's name after kill -9", async () => {
    const { signal, left } = await interrupted('SIGKILL');
    expect({ signal, left }).toEqual({
      signal: 'SIGKILL',
      left: [expect.stringMatching(/^out\.partial-[0-9a-f]{8}$/)],
    });
  });

  describe("leaves all or nothing under the output's name after kill -9 at any moment", () => {
    const whole = (directory: string): string => {
      const hash = createHash('sha256');
      for (const name of readdirSync(directory).sort())
        hash.update(`${name}\n`).update(readFileSync(join(directory, name)));
      return hash.digest('hex');
    };
    /**
     * Checks the files next to the input after a conversion in `parent`. Returns whether the output
     * is complete.
     */
    const check = (parent: string, expected: string): boolean => {
      const left = readdirSync(parent).filter((name) => name !== 'in');
      for (const name of left) expect(name).toMatch(/^out(\.partial-[0-9a-f]{8})?$/);
      if (!left.includes('out')) return false;
      expect(whole(join(parent, 'out'))).toBe(expected);
      return true;
    };

    it('before and after each call to the file system', async () => {
      const preload = join(directories.make(), 'preload.cjs');
      // Counts the calls that change files, and ends the process at call KILL_AT.
      writeFileSync(
        preload,
        `const files = require('node:fs/promises');
        let calls = 0;
        const step = () => { if (++calls === Number(process.env.KILL_AT)) process.kill(process.pid, 'SIGKILL'); };
        const wrap = (object, name, then = (result) => result) => {
          const call = object[name].bind(object);
          object[name] = async (...args) => { step(); const result = await call(...args); step(); return then(result); };
        };
        for (const name of ['mkdir', 'rename', 'rm', 'rmdir']) wrap(files, name);
        wrap(files, 'open', (handle) => {
          for (const name of ['write', 'writev', 'writeFile', 'sync', 'datasync', 'truncate', 'close']) wrap(handle, name);
          return handle;
        });
        process.on('exit', () => require('node:fs').writeFileSync(process.env.CALLS, String(calls)));`,
      );
      const convert = async (killAt: number) => {
        const parent = directories.make();
        writeLarge(join(parent, 'in'), 4);
        const calls = join(directories.make(), 'calls');
        const args = [
          '--require',
          preload,
          builtCli,
          'convert',
          join(parent, 'in'),
          join(parent, 'out'),
          '--key-heads',
          '2',
        ];
        const outcome = await runNode(args, { env: { KILL_AT: String(killAt), CALLS: calls } });
        return { parent, calls, ...outcome };
      };
      const first = await convert(0);
      expect(first.status).toBe(0);
      const expected = whole(join(first.parent, 'out'));
      const calls = Number(readFileSync(first.calls, 'utf8'));
      expect(calls).toBeGreaterThan(10);
      let complete = 0;
      for (let killAt = 1; killAt <= calls; killAt++) {
        const { signal, parent } = await convert(killAt);
        expect(signal).toBe('SIGKILL');
        if (check(parent, expected)) complete++;
      }
      expect(complete).toBeGreaterThan(0); // killed after the rename
      expect(complete).toBeLessThan(calls / 2);
      console.log(
        `kill -9 at each of ${calls} moments around file system calls: ${complete} left a complete output, the others nothing`,
      );
    });

    it('at 12 moments during the conversion', async () => {
      const from = directories.make();
      writeLarge(join(from, 'in'), 60);
      const convert = async (killAfter: number) => {
        const parent = directories.make();
        const args = [builtCli, 'convert', join(from, 'in'), join(parent, 'out'), '--key-heads', '1'];
        const begun = performance.now();
        const outcome = await runNode(args, {
          onStart: (child) => {
            const timer = setTimeout(() => child.kill('SIGKILL'), killAfter);
            child.on('close', () => clearTimeout(timer));
          },
        });
        return { parent, ms: performance.now() - begun, ...outcome };
      };
      const first = await convert(100_000);
      expect(first.status).toBe(0);
      const expected = whole(join(first.parent, 'out'));
      let killed = 0;
      for (let moment = 1; moment <= 12; moment++) {
        const { signal, parent } = await convert((first.ms * moment) / 12);
        if (signal === 'SIGKILL') killed++;
        check(parent, expected);
      }
      expect(killed).toBeGreaterThan(0);
    });
  });

  it.each([
    ['SIGINT', 130],
    ['SIGTERM', 143],
  ] as const)('exits after %s with status %i and leaves nothing', async (signal, expected) => {
    const { status, stdout, left } = await interrupted(signal);
    expect({ status, stdout, left }).toEqual({ status: expected, stdout: '', left: [] });
  });

  it('exits at once on a second Ctrl-C, even while files are being removed', async () => {
    const { status, stdout, left } = await interrupted(
      'SIGINT',
      `require('node:fs/promises').rm = () => {
        process.kill(process.pid, 'SIGINT');
        return new Promise(() => setInterval(() => {}, 1000)); // never resolves
      };`,
    );
    expect({ status, stdout, left }).toEqual({
      status: 130,
      stdout: '',
      left: [expect.stringMatching(/^out\.partial-[0-9a-f]{8}$/)],
    });
  });

  it('exits with one line and leaves nothing if the disk is full', async () => {
    const parent = directories.make();
    const from = join(parent, 'in');
    writeLarge(from, 4);
    // The shell's limit on file sizes, in KiB, simulates a full disk.
    const command = `ulimit -f 2000 && exec "$0" "$@"`;
    const args = [builtCli, 'convert', from, join(parent, 'out'), '--key-heads', '1'];
    const child: ChildProcess = spawn('bash', ['-c', command, process.execPath, ...args], { cwd: projectRoot });
    let stderr = '';
    child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      stderr += text;
    });
    const status = await new Promise((resolve) => child.on('close', resolve));
    expect([status, stderr]).toEqual([
      1,
      expect.stringMatching(
        /^diffqkv: .*out\/model\.safetensors: cannot be written: [^\n]+ \(ERR_INVALID_ARGUMENT\)\n$/,
      ),
    ]);
    expect(readdirSync(parent)).toEqual(['in']);
  });

  it('writes nothing to stderr if stderr is not a terminal', async () => {
    const parent = directories.make();
    writeLarge(join(parent, 'in'), 2);
    const { stderr, stdout } = await runNode([
      builtCli,
      'convert',
      join(parent, 'in'),
      join(parent, 'out'),
      '--key-heads',
      '1',
    ]);
    expect(stderr).toBe('');
    expect(stdout).toMatch(/^.*out: K heads 2 -> 1, V heads 1, K head size 128\n1 tensors converted, weights .*\n$/);
  });
});
