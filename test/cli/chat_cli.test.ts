// `diffqkv chat` as a user runs it: with lines from a pipe, and in a pseudo terminal.

import { spawn, spawnSync } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type ChatMessage, Model } from '../../lib/index';
import { writeChatModel } from '../support/chat_model';
import { temporaryDirectories } from '../support/checkpoints';
import { builtCli, builtIndex, type Outcome, type RunOptions, runNode } from '../support/children';
import { tldrDirectory } from '../support/fixtures';

const directories = temporaryDirectories();
let directory: string;
let model: Model;
beforeAll(async () => {
  directory = writeChatModel(directories.make());
  model = await Model.load(directory, { device: 'cpu' });
});
afterAll(() => {
  model.dispose();
  directories.cleanUp();
});

const command = (...args: string[]) => [builtCli, 'chat', '--model', directory, '--device', 'cpu', ...args];
const run = (args: string[], input: string, options: RunOptions = {}) =>
  runNode(command(...args), { ...options, input });

/** The answers to the messages of users, one after another. */
async function answers(messages: ChatMessage[], users: string[], maxTokens: number): Promise<string[]> {
  const chat = await model.createChat({ messages });
  const texts: string[] = [];
  for (const user of users) texts.push((await chat.send(user, { maxTokens }).result).text);
  chat.dispose();
  return texts;
}

it('answers each line, in one conversation, and obeys commands', async () => {
  const system: ChatMessage = { role: 'system', content: 'Pages.' };
  const file = join(directories.make(), 'saved.json');
  const input = `tar\n\n  ls \n/save ${file}\n/reset\n /cat\n/help\n/exit\nnever\n`;
  const { status, stdout, stderr } = await run(['--system', 'Pages.', '--max-tokens', '8'], input);
  const [a, b] = (await answers([system], ['tar', 'ls'], 8)) as [string, string];
  const [c] = await answers([system], ['/cat'], 8);
  const lines = [a, b, c].map((text) => `${text?.replace(/\n$/, '')}\n`);
  expect({ status, stdout }).toEqual({ status: 0, stdout: lines.join('') });
  expect(stderr).toContain('(cut off after 8 tokens; see --max-tokens)\n');
  expect(stderr).toMatch(/^\/save FILE {2}write/m);
  const saved = JSON.parse(readFileSync(file, 'utf8')) as ChatMessage[];
  expect(saved).toEqual([
    system,
    { role: 'user', content: 'tar' },
    { role: 'assistant', content: a },
    { role: 'user', content: 'ls' },
    { role: 'assistant', content: b },
  ]);

  const more = await run(['--messages', file, '--max-tokens', '8'], 'ssh');
  const [d] = await answers(saved, ['ssh'], 8);
  expect(more.stdout).toBe(`${d?.replace(/\n$/, '')}\n`);
});

it('says when the model no longer sees the start of the conversation', async () => {
  const { status, stderr } = await run(['--max-kv-len', '32', '--max-tokens', '8'], 'tar\nls\ncat\n');
  expect([status, stderr]).toEqual([0, expect.stringMatching(/the model no longer sees the first 2 messages/)]);
});

it('reports an error of a line, and continues', async () => {
  const missing = join(directory, 'no', 'such.json');
  const input = `/nope\n/save\n/save ${directory}\n/save ${missing}\n/reset now\n/exit now\n${'word '.repeat(60)}\ntar\n`;
  const { status, stdout, stderr } = await run(['--max-kv-len', '40', '--max-tokens', '8'], input);
  expect([status, stdout.length > 10]).toEqual([1, true]);
  expect(stderr.split('\n').filter((line) => line.startsWith('diffqkv: '))).toEqual([
    'diffqkv: unknown command /nope: /help lists the commands (ERR_INVALID_ARGUMENT)',
    'diffqkv: /save requires a file: /help lists the commands (ERR_INVALID_ARGUMENT)',
    expect.stringMatching(/^diffqkv: \/save \/.*: EISDIR.*: save to another file \(ERR_INVALID_ARGUMENT\)$/),
    expect.stringMatching(/^diffqkv: \/save .*such.json: ENOENT.*: save to another file \(ERR_INVALID_ARGUMENT\)$/),
    'diffqkv: /reset has no argument: /help lists the commands (ERR_INVALID_ARGUMENT)',
    'diffqkv: /exit has no argument: /help lists the commands (ERR_INVALID_ARGUMENT)',
    expect.stringMatching(
      /^diffqkv: the last exchange has .* --max-kv-len of .* with a larger --max-kv-len .*\(ERR_KV_CACHE_FULL\)$/,
    ),
  ]);
});

it('rejects what it cannot begin with', async () => {
  const broken = join(directories.make(), 'broken.json');
  writeFileSync(broken, '[{');
  const system = join(directories.make(), 'system.json');
  writeFileSync(system, '[{"role": "system", "content": "Pages."}]');
  const outcomes = await Promise.all([
    run(['--messages', broken], ''),
    run(['--messages', join(directory, 'config.json')], ''),
    run(['--temperature', '-1'], 'tar\n'),
    runNode([builtCli, 'chat', '--model', tldrDirectory], { input: 'tar\n' }),
    runNode([builtCli, 'chat'], { input: 'tar\n' }),
    run(['--messages', system, '--system', 'Be brief.'], 'tar\n'),
    run(['--max-tokens', '0'], 'tar\n'),
  ]);
  expect(outcomes.map(({ status }) => status)).toEqual([1, 1, 1, 1, 1, 1, 1]);
  expect(outcomes.map(({ stderr }) => stderr)).toEqual([
    expect.stringMatching(/^diffqkv: --messages .*broken.json: .*JSON.* \(ERR_INVALID_ARGUMENT\)\n$/),
    expect.stringMatching(/^diffqkv: messages must be an array of messages, .* \(ERR_INVALID_ARGUMENT\)\n$/),
    expect.stringMatching(/^diffqkv: temperature must be .* \(ERR_INVALID_ARGUMENT\)\n$/),
    expect.stringMatching(/^diffqkv: .* no chat template .* \(ERR_UNSUPPORTED_MODEL\)\n$/),
    expect.stringMatching(/^diffqkv: required option '--model <model>' not specified \(ERR_INVALID_ARGUMENT\)\n$/),
    'diffqkv: messages have a system message already: omit --system (ERR_INVALID_ARGUMENT)\n',
    'diffqkv: --max-tokens must be an integer of at least 1, or Infinity, not 0 (ERR_INVALID_ARGUMENT)\n',
  ]);
});

it('ends on Ctrl-C without a terminal', async () => {
  const { status, stdout } = await run(['--max-tokens', '900'], 'tar\nls\n'.repeat(20), {
    onStart: (child) => child.stdout.once('data', () => child.kill('SIGINT')),
  });
  expect([status, stdout.length < 4000]).toEqual([130, true]);
});

it('ends at once on a second Ctrl-C without a terminal', async () => {
  // An answer that does not end when it is stopped.
  const preload = join(directories.make(), 'preload.cjs');
  writeFileSync(
    preload,
    `const { Chat } = require(${JSON.stringify(builtIndex)});
    Chat.prototype.send = () => (async function* () {
      yield { text: 'begun' };
      await new Promise((resolve) => setTimeout(resolve, 1e6));
    })();`,
  );
  const { status, stdout } = await run([], 'tar\n', {
    nodeOptions: ['--require', preload],
    onStart: (child) => {
      let timer: NodeJS.Timeout | undefined;
      child.stdout.once('data', () => {
        timer = setInterval(() => child.kill('SIGINT'), 50); // signals that come together are one
      });
      child.on('exit', () => clearInterval(timer));
    },
  });
  expect({ status, stdout }).toEqual({ status: 130, stdout: 'begun' });
}, 150_000);

it('answers the same with --speculative', async () => {
  const preload = join(directories.make(), 'preload.cjs');
  writeFileSync(
    preload,
    `const { Chat } = require(${JSON.stringify(builtIndex)});
    const { send } = Chat.prototype;
    Chat.prototype.send = function (...args) {
      const generation = send.apply(this, args);
      generation.result.then(({ speculative }) => console.error('counts', speculative?.proposedTokens));
      return generation;
    };`,
  );
  const nodeOptions = ['--require', preload];
  const input = 'tar\nls\n';
  const hows = [[], ['--speculative', 'ngram'], ['--speculative', tldrDirectory]];
  const outcomes = await Promise.all(hows.map((how) => run(['--max-tokens', '12', ...how], input, { nodeOptions })));
  const { stdout } = outcomes[0] as Outcome;
  expect(outcomes.map((outcome) => [outcome.status, outcome.stdout])).toEqual(Array(3).fill([0, stdout]));
  expect(outcomes.map((outcome) => outcome.stderr.match(/counts .*/)?.[0])).toEqual([
    'counts undefined',
    expect.stringMatching(/^counts \d+$/),
    expect.stringMatching(/^counts [1-9]\d*$/),
  ]);
  const { status, stderr } = await run(['--speculative', '/nowhere/at/all'], input);
  expect([status, stderr]).toEqual([1, expect.stringMatching(/\/nowhere\/at\/all.* \(ERR_INVALID_CHECKPOINT\)\n$/)]);
});

const hasScript =
  existsSync('/usr/bin/script') && /util-linux/.test(spawnSync('script', ['--version']).stdout.toString());
const inTerminal = hasScript ? it : it.skip;

inTerminal(
  hasScript ? 'stops an answer on Ctrl-C in a terminal' : 'SKIPPED: `script` of util-linux is not installed',
  async () => {
    const line = [process.execPath, ...command('--max-tokens', '900')].join(' ');
    const child = spawn('script', ['-qec', line, '/dev/null']);
    /** What to type after which output. Ctrl-C is \x03. */
    const steps: [after: RegExp, keys: string][] = [
      [/> [^ ]*$/, 'tar\r'],
      [/\n- [^\n]+/, '\x03'],
      [/\(stopped\).*> [^ ]*$/s, '\x03'],
      [/ends the chat.*> [^ ]*$/s, 'ls\r'],
      [/\n- [^\n]+/, '\x03'],
      [/\(stopped\).*> [^ ]*$/s, '\x03'],
      [/ends the chat.*> [^ ]*$/s, '\x03'],
    ];
    let output = '';
    let unread = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      output += text;
      unread += text;
      const [after, keys] = steps[0] ?? [];
      if (!after?.test(unread)) return;
      unread = '';
      steps.shift();
      child.stdin.write(keys as string);
    });
    const timer = setTimeout(() => child.kill('SIGKILL'), 60_000);
    const status = await new Promise((resolve) => child.on('close', resolve));
    clearTimeout(timer);
    expect({ status, steps, output }).toEqual({ status: 130, steps: [], output: expect.any(String) });
  },
);
