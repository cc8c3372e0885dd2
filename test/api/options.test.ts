// Unknown names in options are errors in every public call.

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { type Chat, kernels, Model, openDevice, type Session, type Tensor, Tokenizer } from '../../lib/index';
import { readOptions } from '../../lib/options';
import { writeChatModel } from '../support/chat_model';
import { randomCheckpoint, temporaryDirectories } from '../support/checkpoints';
import { errorOf } from '../support/devices';
import { projectRoot, tldrDirectory } from '../support/fixtures';
import { type Anything, expectMessage, invalid } from '../support/misuse';

const directories = temporaryDirectories();
let model: Model;
let chat: Chat;
let session: Session;
beforeAll(async () => {
  model = await Model.load(writeChatModel(directories.make()), { device: 'cpu' });
  chat = await model.createChat();
  session = await model.createSession();
});
afterAll(() => {
  model.dispose();
  directories.cleanUp();
});

const directory = directories.make();
const file = () => join(directory, 'session');
const tokenizer = () => model.tokenizer as Tokenizer;
const tensor = (...shape: number[]) => model.device.tensor('f32', shape);
const disposed = async (made: Promise<{ dispose(): void }>) => (await made).dispose();
const messages = [{ role: 'user', content: 'tar' }];
const { config } = randomCheckpoint({});

/** Public calls by name, and their names in messages: what they are called with, and the call. */
const calls: Record<string, [object: string, base: () => object, call: (options: Anything) => unknown][]> = {
  openDevice: [['options', () => ({ threads: 1 }), (options) => disposed(openDevice('cpu', options))]],
  load: [['options', () => ({ device: 'cpu' }), (options) => disposed(Model.load(tldrDirectory, options))]],
  random: [['options', () => ({ device: 'cpu', seed: 1 }), (options) => disposed(Model.random(config, options))]],
  createSession: [
    ['options', () => ({ maxKvLen: 8 }), (options) => disposed(model.createSession(options))],
    ['selectiveV', () => ({ topK: 8 }), (selectiveV) => disposed(model.createSession({ selectiveV }))],
  ],
  createChat: [['options', () => ({ maxKvLen: 64 }), (options) => disposed(model.createChat(options))]],
  send: [['options', () => ({ maxTokens: 1 }), (options) => chat.send('tar', options).result]],
  generate: [
    ['options', () => ({ maxTokens: 1 }), (options) => model.generate('tar', options).result],
    ['chat', () => ({ parseSpecial: true }), (given) => model.generate(messages, { chat: given, maxTokens: 1 }).result],
    ['speculative', () => ({ ngram: 2 }), (speculative) => model.generate('tar', { speculative, maxTokens: 1 }).result],
  ],
  score: [['options', () => ({ signal: new AbortController().signal }), (options) => model.score('tar', options)]],
  save: [['options', () => ({ signal: new AbortController().signal }), (options) => session.save(file(), options)]],
  loadSession: [
    [
      'options',
      () => ({ maxKvLen: 1024 }),
      async (options) => {
        await session.save(file());
        await disposed(model.loadSession(file(), options));
      },
    ],
  ],
  prefill: [['options', () => ({ signal: new AbortController().signal }), (options) => session.prefill([1], options)]],
  fromDirectory: [['options', () => ({}), (options) => Tokenizer.fromDirectory(tldrDirectory, options)]],
  encode: [['options', () => ({ parseSpecial: false }), (options) => tokenizer().encode('x', options)]],
  encodeAsync: [['options', () => ({ parseSpecial: false }), (options) => tokenizer().encodeAsync('x', options)]],
  encodeChat: [['options', () => ({ parseSpecial: true }), (options) => tokenizer().encodeChat(messages, options)]],
  decode: [['options', () => ({ skipSpecialTokens: false }), (options) => tokenizer().decode([1], options)]],
  stream: [['options', () => ({ continued: true }), (options) => tokenizer().stream(options)]],
  applyChatTemplate: [
    ['options', () => ({ addGenerationPrompt: false }), (options) => tokenizer().applyChatTemplate(messages, options)],
  ],
};
const inputs: Record<keyof typeof kernels, () => object> = {
  attentionPrefill: () => ({ q: tensor(1, 2, 1, 4), k: tensor(1, 2, 1, 4), v: tensor(1, 2, 1, 4) }),
  attentionDecode: () => ({ q: tensor(1, 1, 4), k: tensor(1, 2, 1, 4), v: tensor(1, 2, 1, 4) }),
  quantize: () => ({ x: tensor(2, 4), dtype: 'i8' }),
  quantizeWeight: () => ({ weight: tensor(2, 32), type: 'i8' }),
  augmentedQ: () => ({ x: tensor(2, 4), up: tensor(8, 4), down: tensor(4, 8) }),
  matmul: () => ({ x: tensor(2, 4), weight: tensor(3, 4) }),
  rmsNorm: () => ({ x: tensor(2, 4), weight: tensor(4), eps: 1 }),
  rope: () => ({ x: tensor(2, 1, 4), positions: model.device.tensor('i32', [2]), theta: 10 }),
  addBias: () => ({ x: tensor(2, 4), bias: tensor(4) }),
  gatedActivation: () => ({ up: tensor(2, 4) }),
  softcap: () => ({ x: tensor(2, 4), cap: 1 }),
  embed: () => ({ table: tensor(2, 4), tokens: model.device.tensor('i32', [2]) }),
};
for (const [name, base] of Object.entries(inputs)) {
  calls[name] = [['arguments', base, (args) => kernels[name as keyof typeof kernels](args) as Promise<Tensor>]];
}
calls.attentionDecode?.push([
  'selectiveV',
  () => ({ topK: 1 }),
  (selectiveV) => kernels.attentionDecode({ ...inputs.attentionDecode(), selectiveV } as Anything),
]);

calls.embed?.push(['options', () => ({ pooling: 'mean' }), (options) => model.embed(['tar'], options)]);

const cases = Object.entries(calls).flatMap(([name, list]) =>
  list.map(([object, base, call]) => ({ name, object, base, call })),
);

it.each(cases)('$name accepts known names only in $object', async ({ object, base, call }) => {
  const error = await errorOf(() => call({ ...base(), notKnown: 1 }));
  expect([error.code, error.message]).toEqual([
    invalid,
    expect.stringMatching(new RegExp(`^unknown name "notKnown" in ${object}\\. The known names are \\w+(, \\w+)*$`)),
  ]);
  await call({ ...base(), notKnown: undefined, toString: undefined });
  await call(Object.assign(Object.create(null), base()));
  class Options {}
  for (const [name, value] of Object.entries(base()))
    Object.defineProperty(Options.prototype, name, { get: () => value });
  await call(new Options());
  await call(Object.freeze(base()));
});

it('every public call with options is in the list above', () => {
  const page = readFileSync(join(projectRoot, 'docs', 'api.md'), 'utf8');
  const code = page.match(/```ts\n.*?```/gs)?.join('\n') ?? '';
  const names = [...code.matchAll(/(\w+)\((?:[^;{}]*?[\s,(])?(?:options\?|args):/g)].map(([, name]) => name as string);
  expect(names.length).toBeGreaterThan(20);
  expect([...new Set(names)].sort()).toEqual(Object.keys(calls).sort());
});

describe('readOptions', () => {
  const names = { maxTokens: true, topK: true, kType: true } as const;
  const read = (options: object) => readOptions('options', options as Anything, names) as object;

  it('copies what is not undefined, own and inherited', () => {
    expect(read({ maxTokens: 5, topK: undefined, kType: null })).toEqual({ maxTokens: 5, kType: null });
    expect(read(Object.create({ topK: 1 }))).toEqual({ topK: 1 });
    expect(Object.keys(read({ topK: undefined }))).toEqual([]);
    expect(read(Object.defineProperty({ topK: 2 }, 'hidden', { value: 1 }))).toEqual({ topK: 2 });
    expect(read({ [Symbol('mine')]: 1 })).toEqual({});
  });

  it.each<[string, string]>([
    ['maxToken', ': did you mean maxTokens? The'],
    ['max_tokens', ': did you mean maxTokens? The'],
    ['MAXTOKENS', ': did you mean maxTokens? The'],
    ['topk', ': did you mean topK? The'],
    ['top', ': did you mean topK? The'],
    ['vType', ': did you mean kType? The'],
    ['tk', '. The'],
    ['', '. The'],
    ['temperature', '. The'],
    ['__proto', '. The'],
    ['toString', '. The'],
  ])('names %s and the nearest known name', async (name, hint) => {
    await expectMessage(
      () => read({ [name]: 1 }),
      `unknown name ${JSON.stringify(name)} in options${hint} known names are maxTokens, topK, kType`,
    );
  });

  it('shortens a long name, and escapes it', async () => {
    const shown = `"\\n${'x'.repeat(59)}..."`;
    await expectMessage(
      () => read({ [`\n${'x'.repeat(1e6)}`]: 1 }),
      `unknown name ${shown} in options. The known names are maxTokens, topK, kType`,
    );
  });

  it('ignores what other code adds to all objects', () => {
    (Object.prototype as Anything).polluted = 1;
    try {
      expect(read({ topK: 1 })).toEqual({ topK: 1 });
      expect(() => read({ polluted: 1 })).toThrow('unknown name "polluted"');
    } finally {
      delete (Object.prototype as Anything).polluted;
    }
  });
});
