// The command line as a user runs it: dist/cli/main.js in a separate process.

import { type StdioOptions, spawn } from 'node:child_process';
import { closeSync, existsSync, openSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { randomCheckpoint, temporaryDirectories, writeCheckpoint } from '../support/checkpoints';
import { builtCli, type RunOptions, runNode } from '../support/children';
import { projectRoot, tldr, tldrDirectory } from '../support/fixtures';

const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

const cli = (args: string[], options?: RunOptions) => runNode([builtCli, ...args], options);
const [first, second] = tldr.cases as [(typeof tldr.cases)[0], (typeof tldr.cases)[0]];
const { version } = JSON.parse(readFileSync(join(projectRoot, 'package.json'), 'utf8'));

describe('generate', () => {
  it('writes the text of the embedded model to stdout and statistics to stderr', async () => {
    const { status, stdout, stderr } = await cli([
      'generate',
      '--prompt',
      first.prompt as string,
      '--max-tokens',
      String(first.greedy.length),
    ]);
    expect({ status, stdout }).toEqual({ status: 0, stdout: `${first.text}\n`.replace(/\n\n$/, '\n') });
    expect(stderr).toMatch(/^12 prompt tokens in \d+ ms, 40 tokens in \d+ ms \(\d+ tokens\/s\), length\n$/);
    expect(stderr).not.toContain('\x1b'); // no progress bar without a terminal
  });

  it('reads the prompt from standard input', async () => {
    const { status, stdout } = await cli(['generate', '--max-tokens', '40', '--device', 'cpu'], {
      input: second.prompt,
    });
    expect({ status, stdout: stdout.trimEnd() }).toEqual({ status: 0, stdout: (second.text as string).trimEnd() });
  });

  it('prints one object with --json', async () => {
    const { status, stdout, stderr } = await cli([
      'generate',
      '--model',
      tldrDirectory,
      '--prompt',
      first.prompt as string,
      '--max-tokens',
      '10',
      '--json',
    ]);
    expect([status, stderr]).toEqual([0, '']);
    expect(stdout.trim().split('\n').length).toBe(1);
    expect(JSON.parse(stdout)).toMatchObject({
      tokens: first.greedy.slice(0, 10),
      finishReason: 'length',
      usage: { promptTokens: 12, cachedTokens: 0, completionTokens: 10 },
    });
  });

  it('repeats a sampled text with --seed, and accepts every sampling option', async () => {
    const args = [
      'generate',
      '--prompt',
      '# git log\n',
      '--max-tokens',
      '30',
      '--temperature',
      '0.9',
      '--top-k',
      '50',
      '--top-p',
      '0.95',
      '--min-p',
      '0.01',
      '--repetition-penalty',
      '1.05',
      '--json',
      '--seed',
    ];
    const [a, b, c] = await Promise.all([
      cli([...args, '18446744073709551615']),
      cli([...args, '18446744073709551615']),
      cli([...args, '2']),
    ]);
    expect([a.status, b.status, c.status]).toEqual([0, 0, 0]);
    const tokens = [a, b, c].map(({ stdout }) => JSON.parse(stdout).tokens.join());
    expect(tokens[0]).toBe(tokens[1]);
    expect(tokens[2]).not.toBe(tokens[0]);
  });

  it('ends the text before a --stop string', async () => {
    const { status, stdout } = await cli([
      'generate',
      '--prompt',
      first.prompt as string,
      '--stop',
      '$',
      '--max-tokens',
      '40',
    ]);
    expect({ status, stdout }).toEqual({ status: 0, stdout: (first.text as string).split('$')[0] });
  });

  it('writes the same text with --speculative, and counts proposals', async () => {
    const args = ['generate', '--prompt', first.prompt as string, '--max-tokens', '40', '--speculative'];
    for (const how of ['ngram', tldrDirectory]) {
      const { status, stdout, stderr } = await cli([...args, how]);
      expect({ status, stdout }).toEqual({ status: 0, stdout: `${first.text}\n`.replace(/\n\n$/, '\n') });
      expect(stderr).toMatch(/ \d+ of \d+ proposals accepted, length\n$/);
    }
  });

  it.each<[string, string[], string]>([
    ['no such directory', ['generate', '--prompt', 'x', '--model', '/nowhere/at/all'], 'ERR_INVALID_CHECKPOINT'],
    ['no such device', ['generate', '--prompt', 'x', '--device', 'cuda:77'], 'ERR_DEVICE_UNAVAILABLE'],
    ['an unknown device', ['generate', '--prompt', 'x', '--device', 'tpu'], 'ERR_'],
    [
      'a temperature that is not a number',
      ['generate', '--prompt', 'x', '--temperature', 'hot'],
      'ERR_INVALID_ARGUMENT',
    ],
    ['a negative temperature', ['generate', '--prompt', 'x', '--temperature', '-1'], 'ERR_INVALID_ARGUMENT'],
    ['an empty number', ['generate', '--prompt', 'x', '--top-k', ''], 'ERR_INVALID_ARGUMENT'],
    ['no tokens', ['generate', '--prompt', 'x', '--max-tokens', '0'], 'ERR_INVALID_ARGUMENT'],
    ['a seed with a fraction', ['generate', '--prompt', 'x', '--seed', '1.5'], 'ERR_INVALID_ARGUMENT'],
    ['a seed past 64 bits', ['generate', '--prompt', 'x', '--seed', '18446744073709551616'], 'ERR_INVALID_ARGUMENT'],
    ['--chat without a template', ['generate', '--prompt', 'x', '--chat'], 'ERR_UNSUPPORTED_MODEL'],
    [
      'no such draft model',
      ['generate', '--prompt', 'x', '--speculative', '/nowhere/at/all'],
      'ERR_INVALID_CHECKPOINT',
    ],
    ['a prompt longer than the context', ['generate', '--prompt', 'word '.repeat(3000)], 'ERR_KV_CACHE_FULL'],
    ['an unknown option', ['generate', '--frobnicate'], 'ERR_INVALID_ARGUMENT'],
    ['an unknown command', ['frobnicate'], 'ERR_INVALID_ARGUMENT'],
    ['an option without its value', ['generate', '--prompt'], 'ERR_INVALID_ARGUMENT'],
    ['info on a missing directory', ['info', '--model', '/nowhere/at/all'], 'ERR_INVALID_CHECKPOINT'],
  ])('exits with status 1 and one line with the code on %s', async (_, args, code) => {
    const { status, stdout, stderr } = await cli(args);
    expect({ status, stdout }).toEqual({ status: 1, stdout: '' });
    expect(stderr).toMatch(new RegExp(`^diffqkv: [^\\n]+ \\(${code}[A-Z_]*\\)\\n$`));
  });

  it('rejects a checkpoint without a tokenizer with a clear message', async () => {
    const directory = directories.make();
    writeCheckpoint(directory, randomCheckpoint({}));
    const { status, stderr } = await cli(['generate', '--model', directory, '--prompt', 'x']);
    expect([status, stderr]).toEqual([1, expect.stringMatching(/tokenizer.*\(ERR_INVALID_ARGUMENT\)\n$/)]);
  });

  it('exits with status 130 on Ctrl-C during output, and keeps the output so far', async () => {
    const { status, signal, stdout } = await cli(
      ['generate', '--prompt', '# git log\n', '--max-tokens', '1000', '--temperature', '1.5', '--seed', '5'],
      {
        onStart: (child) => child.stdout.once('data', () => child.kill('SIGINT')),
      },
    );
    expect({ status, signal }).toEqual({ status: 130, signal: null });
    expect(stdout.length).toBeGreaterThan(0);
  });

  it('exits with status 130 on Ctrl-C while it waits for a prompt', async () => {
    const child = spawn(process.execPath, [builtCli, 'generate'], {
      cwd: projectRoot,
      stdio: ['pipe', 'ignore', 'ignore'],
    });
    const timer = setTimeout(() => child.kill('SIGINT'), 1500);
    const status = await new Promise((resolve) => child.on('close', resolve));
    clearTimeout(timer);
    expect(status).toBe(130);
  });

  it('exits quietly if the reader closes the pipe', async () => {
    const { status, stderr } = await cli(
      ['generate', '--prompt', '# git log\n', '--max-tokens', '1000', '--temperature', '1.5', '--seed', '5'],
      {
        onStart: (child) => child.stdout.once('data', () => child.stdout.destroy()),
      },
    );
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
  });
});

describe('info', () => {
  it('lists the devices with their details', async () => {
    const { status, stdout } = await cli(['info']);
    expect(status).toBe(0);
    expect(stdout).toMatch(/^cpu\s/m);
    expect(stdout).toMatch(/linear\s+\S/);
    expect(stdout).toMatch(/cuda/);
  });

  it('prints JSON with --json, and with --model the shapes, memory and KV bytes per token', async () => {
    const { status, stdout, stderr } = await cli(['info', '--model', tldrDirectory, '--json']);
    expect([status, stderr]).toEqual([0, '']);
    const { devices, model } = JSON.parse(stdout);
    expect(devices.find((device: { id: string }) => device.id === 'cpu')).toMatchObject({ kind: 'cpu', usable: true });
    for (const device of devices) if (!device.usable) expect(device.reason).toMatch(/\w/);
    // 6 layers, 2 K heads and 4 V heads of size 32, in BF16
    expect(model).toMatchObject({
      dtype: 'bf16',
      numParameters: expect.any(Number),
      config: { numQHeads: 8, numKHeads: 2, numVHeads: 4 },
      kvBytesPerToken: { k: 6 * 2 * 32 * 2, v: 6 * 4 * 32 * 2, saving: 0.25 },
    });
    expect(model.numParameters / 1e6).toBeCloseTo(7.4, 1);
    const text = await cli(['info', '--model', tldrDirectory]);
    expect(text.stdout).toMatch(/7\.\d+ M/);
    expect(text.stdout).toMatch(/K 768, V 1536/);
    expect(text.stdout).toMatch(/by part +embedding [\d.]+ MiB, attention [\d.]+ MiB, augmented Q [\d.]+ MiB, FFN /);
  });
});

describe('the program', () => {
  it('prints its version and its help', async () => {
    expect(await cli(['--version'])).toMatchObject({ status: 0, stdout: `${version}\n`, stderr: '' });
    const help = await cli(['--help']);
    expect(help.status).toBe(0);
    for (const command of ['generate', 'info', 'bench', 'build']) expect(help.stdout).toContain(command);
    expect((await cli(['generate', '--help'])).stdout).toContain('--max-tokens');
  });

  const full = '/dev/full'; // every write to it is ENOSPC
  /** Runs the command with one of its outputs on the full device. Resolves to the other one. */
  const onFullDevice = (args: string[], which: 'stdout' | 'stderr') =>
    new Promise<{ status: number | null; text: string }>((resolve, reject) => {
      const file = openSync(full, 'w');
      const stdio: StdioOptions = which === 'stdout' ? ['ignore', file, 'pipe'] : ['ignore', 'pipe', file];
      const child = spawn(process.execPath, [builtCli, ...args], { cwd: projectRoot, stdio });
      closeSync(file);
      let text = '';
      (child.stdout ?? child.stderr)?.setEncoding('utf8').on('data', (part: string) => {
        text += part;
      });
      child.on('error', reject);
      child.on('close', (status) => resolve({ status, text }));
    });
  const itOnLinux = existsSync(full) ? it : it.skip;

  itOnLinux('exits with status 1 and one line if standard output cannot be written', async () => {
    const [input, output] = [directories.make(), join(directories.make(), 'out')];
    writeCheckpoint(input, randomCheckpoint({}));
    for (const args of [
      ['info'],
      ['generate', '--prompt', 'x', '--max-tokens', '3'],
      ['generate', '--prompt', 'x', '--max-tokens', '3', '--json'],
      ['convert', input, output, '--key-heads', '1'],
      ['--help'],
    ]) {
      const { status, text } = await onFullDevice(args, 'stdout');
      expect({ args, status, text }).toEqual({
        args,
        status: 1,
        text: 'diffqkv: cannot write to standard output: ENOSPC: no space left on device, write (ENOSPC)\n',
      });
    }
  });

  itOnLinux('does not fail if the statistics cannot be written', async () => {
    const { status, text } = await onFullDevice(['generate', '--prompt', 'x', '--max-tokens', '3'], 'stderr');
    expect({ status, length: text.length > 0 }).toEqual({ status: 0, length: true });
  });

  it('escapes control characters in errors: of a file, of a path and of an argument', async () => {
    const directory = join(directories.make(), 'a\x1b[31m');
    const evil = '\x1b[2J\u009b31m\x07';
    writeCheckpoint(directory, randomCheckpoint({ config: { hidden_act: evil } }));
    writeFileSync(join(directory, 'tokenizer.json'), `{"a": ${evil}}`);
    const tokenizer = join(directories.make(), 'b');
    writeCheckpoint(tokenizer, randomCheckpoint({}));
    writeFileSync(join(tokenizer, 'tokenizer.json'), `{"a": ${evil}}`);
    for (const args of [
      ['info', '--model', directory],
      ['info', '--model', tokenizer],
      ['convert', directory, evil, '--key-heads', '1', '--value-heads', '3'],
      ['generate', '--prompt', 'x', '--device', evil],
      [evil],
    ]) {
      const { status, stderr } = await cli(args);
      expect({ args, status, isOneLine: /^diffqkv: \P{Cc}+\n$/u.test(stderr) }).toEqual({
        args,
        status: 1,
        isOneLine: true,
      });
    }
  });
});
