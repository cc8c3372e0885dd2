// Whole messages about wrong calls of models, sessions, generations and tokenizers. They do not depend
// on the device.

import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { CallOrder } from '../../lib/call_order';
import { chatTemplateSource, checkMessages } from '../../lib/chat';
import { type GenerateOptions, Model, type Session, Tokenizer } from '../../lib/index';
import { randomCheckpoint, temporaryDirectories } from '../support/checkpoints';
import { errorOf } from '../support/devices';
import { tldrDirectory } from '../support/fixtures';
import { type Anything, expectMessage } from '../support/misuse';

const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

const { config } = randomCheckpoint({ maxPositionEmbeddings: 64 });
let model: Model;
let text: Model;
let session: Session;
beforeAll(async () => {
  model = await Model.random(config, { device: 'cpu' });
  text = await Model.load(tldrDirectory, { device: 'cpu' });
});
beforeEach(async () => {
  session = await model.createSession({ maxKvLen: 20 });
});
afterEach(() => session.dispose());
afterAll(() => {
  model.dispose();
  text.dispose();
});

it.each<[unknown, object | undefined, string]>([
  [5, undefined, 'source must be a path or the id of a model, not 5'],
  ['', undefined, 'source must be a path or the id of a model, not ""'],
  ['x/y', null as Anything, 'options must be an object, not null'],
  ['x', { dtype: null }, "dtype must be 'f32', 'f16' or 'bf16', not null"],
  ['x', { weightType: 'i2' }, `weightType must be 'i8' or 'i4', not "i2"`],
  ['x', { weightType: 'i8', weightGroupSize: 3 }, 'weightGroupSize must be 32, 64 or 128, not 3'],
  ['x', { weightType: 'i4', quantizeLmHead: 1 }, 'quantizeLmHead must be a boolean, not 1'],
  ['x', { weightGroupSize: 32 }, "weightGroupSize is given without weightType; add weightType: 'i8' or 'i4'"],
  ['x', { quantizeLmHead: false }, "quantizeLmHead is given without weightType; add weightType: 'i8' or 'i4'"],
  ['x', { kvCacheBytes: -1 }, 'kvCacheBytes must be an integer of at least 0, not -1'],
  ['x', { prefixCacheBytes: 0.5 }, 'prefixCacheBytes must be an integer of at least 0, not 0.5'],
  ['x', { onProgress: 1 }, 'onProgress must be a function, not 1'],
  ['x', { onDownload: null }, 'onDownload must be a function, not null'],
  ['x', { signal: {} }, 'signal must be an AbortSignal, not object Object'],
])('Model.load(%j, %j)', (source, options, message) =>
  expectMessage(() => Model.load(source as string, options), message),
);

it('Model.load that is aborted before', () =>
  expectMessage(
    () => Model.load('x', { signal: AbortSignal.abort() }),
    'the signal was aborted before the call',
    'ABORT_ERR',
  ));

it('Model.random', async () => {
  const circle: Anything = {};
  circle.circle = circle;
  const wrong = await errorOf(() => Model.random('x' as Anything));
  expect(wrong.message).toMatch(/^config must be an object, or one of [\w., -]+, not "x"$/);
  await expectMessage(() => Model.random([] as Anything), 'config must be an object, not an array of 0');
  await expectMessage(() => Model.random({}, 3 as Anything), 'options must be an object, not 3');
  expect((await errorOf(() => Model.random(circle))).message).toMatch(/^config cannot be written as JSON: Converting/);
  const quantized = { weightType: 'i4', weightGroupSize: 64, quantizeLmHead: true } as const;
  (await Model.random(config, { device: 'cpu', ...quantized })).dispose();
});

it('sessions', async () => {
  const create = (options: unknown) => () => model.createSession(options as Anything);
  await expectMessage(create(null), 'options must be an object, not null');
  await expectMessage(create({ maxKvLen: 0 }), 'maxKvLen must be an integer from 1 to 2147483647, not 0');
  await expectMessage(create({ kType: null }), 'kType must be an element type, not null');
  await expectMessage(create({ vType: null }), 'vType must be an element type, not null');
  await expectMessage(() => session.prefill([1], null as Anything), 'options must be an object, not null');
  await expectMessage(() => session.prefill('x' as Anything), 'tokens must be an array of token ids, not "x"');
  const view = new DataView(new ArrayBuffer(4)) as Anything;
  await expectMessage(() => session.prefill(view), 'tokens must be an array of token ids, not object DataView');
  await expectMessage(() => session.prefill([]), 'tokens must be at least one token id, not an array of 0');
  await expectMessage(() => session.prefill([0, 128]), 'tokens[1] must be an integer from 0 to 127, not 128');
  await expectMessage(() => session.decode(-1), 'token must be an integer from 0 to 127, not -1');
  await expectMessage(() => session.truncate(-1), 'kvLen must be an integer from 0 to 2147483647, not -1');
  const signal = AbortSignal.abort();
  await expectMessage(() => session.prefill([1], { signal }), 'the signal was aborted before the call', 'ABORT_ERR');
});

describe('a generation', () => {
  const generate = (prompt: unknown, options?: GenerateOptions | null) => () =>
    model.generate(prompt as Anything, options as Anything).result;

  it('names the wrong argument', async () => {
    await expectMessage(generate([1], null), 'options must be an object, not null');
    for (const maxTokens of [0, 1.5, -Infinity, '5'] as number[])
      await expectMessage(
        generate([1], { maxTokens }),
        `maxTokens must be an integer of at least 1, or Infinity, not ${typeof maxTokens === 'string' ? '"5"' : maxTokens}`,
      );
    await expectMessage(generate([1], { session: {} as Anything }), 'session must be a session, not object Object');
    await expectMessage(
      generate([1], { onPrefillProgress: 1 as Anything }),
      'onPrefillProgress must be a function, not 1',
    );
    await expectMessage(
      generate([1], { stop: 'x' }),
      'stop requires a tokenizer, and the model has no tokenizer.json: omit stop',
    );
    for (const stop of ['', ['a', ''], [1] as Anything])
      await expectMessage(
        generate([1], { stop }),
        `stop must be a non-empty string or an array of them, not ${stop[0] === 1 ? '1' : '""'}`,
      );
    await expectMessage(
      generate([1], { stop: 'x'.repeat(65_537) }),
      'the stop strings have more than 65536 characters (UTF-16 units) together, the limit: use fewer or shorter ones',
    );
    await expectMessage(generate([1], { signal: 1 as Anything }), 'signal must be an AbortSignal, not 1');
    const kinds = 'a string, an array of tokens or an array of messages';
    await expectMessage(generate(5), `prompt must be ${kinds}, not 5`);
    await expectMessage(generate({}), `prompt must be ${kinds}, not object Object`);
    await expectMessage(generate([]), 'the prompt has no tokens: pass a text, tokens or messages');
    await expectMessage(generate([1], { chat: {} }), 'chat requires a prompt of messages: omit chat, or pass messages');
    await expectMessage(
      () => text.generate('x', { chat: {} }).result,
      'chat requires a prompt of messages: omit chat, or pass messages',
    );
    const noTokenizer = 'a prompt of text requires a tokenizer, and the model has no tokenizer.json: pass tokens';
    await expectMessage(generate('x'), noTokenizer);
    await expectMessage(generate([{ role: 'user', content: 'x' }]), noTokenizer);
    await expectMessage(
      () => text.generate([1], { session }).result,
      'session belongs to another model: use a session of this model',
    );
  });

  it('says what a prompt that is too long needs', async () => {
    const full = 'ERR_KV_CACHE_FULL';
    const tokens = (count: number) => Array<number>(count).fill(1);
    await expectMessage(
      generate(tokens(65)),
      'the prompt has 65 tokens, and the context of the model has 64: use a shorter prompt',
      full,
    );
    await expectMessage(
      generate(tokens(21), { session }),
      'the prompt has 21 tokens, and maxKvLen of the session is 20 (the context of the model has 64): use a shorter ' +
        'prompt, or create the session with a larger maxKvLen',
      full,
    );
    await session.prefill(tokens(5));
    await expectMessage(
      generate(tokens(16), { session }),
      'the prompt has 16 tokens, and maxKvLen of the session is 20, 5 of them in use (the context of the model has ' +
        '64): use a shorter prompt, or truncate the session, or create the session with a larger maxKvLen',
      full,
    );
    using whole = await model.createSession();
    await whole.prefill(tokens(60));
    await expectMessage(
      generate(tokens(5), { session: whole }),
      'the prompt has 5 tokens, and the context of the model has 64, 60 of them in use: use a shorter prompt, or ' +
        'truncate the session',
      full,
    );
  });

  it('has as many tokens as there is room for', async () => {
    const count = async (prompt: number, options: GenerateOptions) => {
      const { tokens, finishReason } = await model.generate(Array(prompt).fill(1), {
        ...options,
        temperature: 1,
        seed: 1,
      }).result;
      return [tokens.length, finishReason];
    };
    const endless = { maxTokens: Number.POSITIVE_INFINITY };
    // The last token needs no place in the cache, unless the session is the caller's.
    expect(await count(64, endless)).toEqual([1, 'length']);
    expect(await count(60, endless)).toEqual([5, 'length']);
    expect(await count(60, { maxTokens: 2 })).toEqual([2, 'length']);
    expect(await count(17, { ...endless, session })).toEqual([3, 'length']);
    expect(session.kvLen).toBe(20);
    await session.truncate(0);
    expect(await count(20, { ...endless, session })).toEqual([0, 'length']);
    expect(session.kvLen).toBe(20);
  });

  it('reports the prompt and the time', async () => {
    const progress: unknown[] = [];
    const { usage, timings } = await model.generate([1, 2, 3], {
      maxTokens: 4,
      onPrefillProgress: (one) => void progress.push(one),
    }).result;
    expect(usage).toEqual({ promptTokens: 3, cachedTokens: 0, completionTokens: 4 });
    expect(progress.at(-1)).toEqual({ doneTokens: 3, totalTokens: 3 });
    expect(timings.prefillMs).toBeGreaterThan(0);
    expect(timings.decodeMs).toBeGreaterThan(0);
    expect(timings.tokensPerSecond).toBeCloseTo((3 / timings.decodeMs) * 1000, 6);
    expect((await model.generate([1], { maxTokens: 1 }).result).timings.tokensPerSecond).toBe(0);
  });
});

it('tokenizers', async () => {
  const tokenizer = text.tokenizer as Tokenizer;
  await expectMessage(() => Tokenizer.fromDirectory(5 as Anything), 'directory must be a path, not 5');
  await expectMessage(() => Tokenizer.fromDirectory('x', 5 as Anything), 'options must be an object, not 5');
  await expectMessage(() => tokenizer.encode(5 as Anything), 'text must be a string, not 5');
  await expectMessage(() => tokenizer.encode('', 5 as Anything), 'options must be an object, not 5');
  await expectMessage(
    () => tokenizer.encode('', { addSpecialTokens: 1 as Anything }),
    'addSpecialTokens must be a boolean, not 1',
  );
  await expectMessage(
    () => tokenizer.encode('', { parseSpecial: 1 as Anything }),
    'parseSpecial must be a boolean, not 1',
  );
  await expectMessage(
    () => tokenizer.encode('x'.repeat(8193)),
    'text has 8193 characters, and encode accepts at most 8192: use encodeAsync',
  );
  await expectMessage(() => tokenizer.decode(5 as Anything), 'tokens must be an array of token ids, not 5');
  await expectMessage(() => tokenizer.decode([-1]), 'token must be an integer of at least 0, not -1');
  await expectMessage(() => tokenizer.decode([], 5 as Anything), 'options must be an object, not 5');
  await expectMessage(
    () => tokenizer.stream({ skipSpecialTokens: 1 as Anything }),
    'skipSpecialTokens must be a boolean, not 1',
  );
  await expectMessage(() => tokenizer.stream({ continued: 1 as Anything }), 'continued must be a boolean, not 1');
});

it.each(['tokenizer.json', 'tokenizer_config.json', 'chat_template.jinja'])('%s that is a directory', async (name) => {
  const directory = directories.make();
  mkdirSync(join(directory, name), { recursive: true });
  if (name !== 'tokenizer.json') writeFileSync(join(directory, 'tokenizer.json'), '{}');
  const file = join(directory, name);
  await expectMessage(
    () => Tokenizer.fromDirectory(directory),
    `${file}: not a regular file`,
    'ERR_INVALID_CHECKPOINT',
  );
});

it.each([
  ['tokenizer_config.json', 2 ** 23],
  ['chat_template.jinja', 2 ** 20],
])('%s that is too long', async (name, limit) => {
  const directory = directories.make();
  mkdirSync(directory, { recursive: true });
  writeFileSync(join(directory, 'tokenizer.json'), '{}');
  const file = join(directory, name);
  writeFileSync(file, 'x'.repeat(limit + 1));
  await expectMessage(
    () => Tokenizer.fromDirectory(directory),
    `${file}: has ${limit + 1} bytes; the limit is ${limit}`,
    'ERR_INVALID_CHECKPOINT',
  );
});

describe('the messages of a chat', () => {
  const content = 'a string, an array of parts or null';
  it.each<[unknown, string]>([
    [[], 'messages must be a non-empty array of { role, content }, not an array of 0'],
    ['x', 'messages must be a non-empty array of { role, content }, not "x"'],
    [[null], 'messages[0] must be { role: string, content }, not null'],
    [['x'], 'messages[0] must be { role: string, content }, not "x"'],
    [[{ role: 'user', content: '' }, { role: 1 }], 'messages[1] must be { role: string, content }, not object Object'],
    [[{ role: 'user', content: 1 }], `messages[0].content must be ${content}, not 1`],
    [[{ role: 'user' }], `messages[0].content must be ${content}, not undefined`],
    [[{ role: 'user', tool_calls: {} }], `messages[0].content must be ${content}, not undefined`],
  ])('%j are wrong', (messages, message) => expectMessage(() => checkMessages(messages as Anything), message));

  it('may have text, parts, null, or only calls of tools', () => {
    checkMessages([
      { role: 'a', content: '' },
      { role: 'a', content: [] },
      { role: 'a', content: null },
      { role: 'a', tool_calls: [] } as Anything,
    ]);
  });
});

it('the chat template is that of the file, else a text, else those named default and tool_use', () => {
  const list = [
    { name: 'x', template: 'X' },
    { name: 'tool_use', template: 'T' },
    null,
    { name: 'default', template: 'D' },
  ];
  const source = (file: string | null, template: unknown) => chatTemplateSource({ chat_template: template }, file);
  expect(source('J', 'C')).toEqual({ default: 'J', toolUse: undefined });
  expect(source(null, 'C')).toEqual({ default: 'C', toolUse: undefined });
  expect(source(null, list)).toEqual({ default: 'D', toolUse: 'T' });
  expect(source(null, list.slice(3))).toEqual({ default: 'D', toolUse: undefined });
  for (const template of [undefined, null, 5, {}, [], list.slice(0, 2), [{ name: 'default', template: 5 }]])
    expect(source(null, template)).toBeNull();
});

it('a call that waits for a generation is aborted', async () => {
  const order = new CallOrder();
  const endTurn = await order.generation(new AbortController().signal);
  const controller = new AbortController();
  const made: string[] = [];
  const make = (name: string, signal?: AbortSignal) =>
    order.call(async () => {
      made.push(name);
      return name;
    }, signal);
  const aborted = make('aborted', controller.signal);
  const second = make('second');
  const late = order.generation(controller.signal);
  controller.abort();
  await expectMessage(() => aborted, 'the signal was aborted before the call began', 'ABORT_ERR');
  (await late)();
  expect(made).toEqual([]);
  endTurn();
  expect(await second).toBe('second');
  expect(await make('third')).toBe('third');
  expect(made).toEqual(['second', 'third']);
});
