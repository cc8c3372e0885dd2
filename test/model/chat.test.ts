// Chats: which tokens of each turn are computed, what the model sees after a shift, and what the
// history has after aborts and errors.

import { Chat, type ChatMessage, type Generation, Model, type Tokenizer } from '../../lib/index';
import { titles, writeChatModel } from '../support/chat_model';
import { randomCheckpoint, temporaryDirectories } from '../support/checkpoints';
import { errorOf } from '../support/devices';
import { tldrDirectory } from '../support/fixtures';
import { type Anything, expectCode, expectMessage, invalid } from '../support/misuse';

const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

/** Drops what earlier answers begin with, as templates of reasoning models do. */
const forgetful = titles.replace(
  '{{ m.content }}{{ eos_token }}',
  "{{ m.content if loop.last else m.content.split('\n')[-1] }}{{ eos_token }}",
);

const words = ['tar', 'ls', 'git log', 'cat', 'grep', 'ssh', 'curl', 'find', 'sed', 'awk', 'make', 'ps'];
const system = 'Pages of commands.';

const directory = writeChatModel(directories.make());
let model: Model;
beforeAll(async () => {
  // In f32, so that the rounding of products of another size decides no token.
  model = await Model.load(directory, { device: 'cpu', dtype: 'f32' });
});
afterAll(() => model?.dispose());

it('computes only the new tokens of a turn, and drops old exchanges if the context is full', async () => {
  const numTurns = 50;
  const maxKvLen = 320;
  const maxTokens = 8;
  const chat = await model.createChat({ system, contextPolicy: 'shift', maxKvLen });
  const newTokens: number[] = [];
  const expectedNew: number[] = [];
  let numShifts = 0;
  for (let turn = 0; turn < numTurns; turn++) {
    const before = { cached: chat.session.kvLen, dropped: chat.numDroppedMessages, messages: chat.messages };
    const word = `${words[turn % words.length]} ${turn}`;
    const { text, usage } = await chat.send(word, { maxTokens }).result;
    expect(chat.messages).toEqual([
      ...before.messages,
      { role: 'user', content: word },
      { role: 'assistant', content: text },
    ]);
    expect(chat.session.kvLen).toBe(usage.promptTokens + usage.completionTokens);
    expect(chat.session.kvLen).toBeLessThanOrEqual(maxKvLen);
    const seen = chat.messages.filter((_, i) => i === 0 || i > chat.numDroppedMessages).slice(0, -1);
    const fresh = await model.generate(seen, { maxTokens }).result;
    expect({ turn, text, promptTokens: usage.promptTokens }).toEqual({
      turn,
      text: fresh.text,
      promptTokens: fresh.usage.promptTokens,
    });
    if (chat.numDroppedMessages > before.dropped) {
      numShifts++;
      // The system message, and the rest after the first difference.
      const shared = (await model.tokenizer?.encodeChat([{ role: 'system', content: system }]))?.length ?? 0;
      expect(usage.cachedTokens).toBeGreaterThanOrEqual(shared);
      expect(usage.cachedTokens).toBeLessThan(shared + 4);
      expect(usage.promptTokens).toBeLessThanOrEqual((3 / 4) * (maxKvLen - maxTokens));
    } else {
      newTokens.push(usage.promptTokens - usage.cachedTokens);
      // An answer that maxTokens has cut lacks its end-of-text token, which the template adds.
      expectedNew.push(usage.promptTokens - before.cached);
    }
  }
  expect(newTokens).toEqual(expectedNew);
  expect(Math.max(...newTokens.slice(1))).toBeLessThan(12);
  expect(numShifts).toBeGreaterThan(0);
  expect(numShifts).toBeLessThan(10);
  chat.dispose();
});

it('generate keeps the start that the session shares with the messages', async () => {
  const session = await model.createSession();
  const messages: ChatMessage[] = [{ role: 'user', content: 'tar' }];
  const first = await model.generate(messages, { session, maxTokens: 6 }).result;
  expect(first.usage).toEqual({ promptTokens: first.usage.promptTokens, cachedTokens: 0, completionTokens: 6 });
  messages.push({ role: 'assistant', content: first.text }, { role: 'user', content: 'ls' });
  const progress: unknown[] = [];
  const second = await model.generate(messages, {
    session,
    maxTokens: 6,
    onPrefillProgress: (done) => progress.push(done),
  }).result;
  const { promptTokens, cachedTokens } = second.usage;
  expect(cachedTokens).toBe(first.usage.promptTokens + 6);
  expect(progress).toEqual([{ doneTokens: promptTokens, totalTokens: promptTokens }]);
  expect(second.tokens).toEqual((await model.generate(messages, { maxTokens: 6 }).result).tokens);
  expect(session.kvLen).toBe(promptTokens + 6);
  // The same again: all but the last token, whose logits are needed, are in the cache.
  const again = await model.generate(messages, { session, maxTokens: 6 }).result;
  expect(again.usage.cachedTokens).toBe(promptTokens - 1);
  expect(again.tokens).toEqual(second.tokens);
  // Another conversation shares the begin-of-text token and the start of the title.
  const other = await model.generate([{ role: 'user', content: 'git' }], { session, maxTokens: 2 }).result;
  expect(other.usage.cachedTokens).toBe(2);
  expect(session.kvLen).toBe(other.usage.promptTokens + 2);
  // Tokens and text continue, as before.
  const more = await model.generate('abc', { session, maxTokens: 1 }).result;
  expect(more.usage.cachedTokens).toBe(0);
  expect(session.kvLen).toBe(other.usage.promptTokens + 2 + more.usage.promptTokens + 1);
  session.dispose();
});

it('generate leaves the session as it was if the messages do not fit', async () => {
  const session = await model.createSession({ maxKvLen: 20 });
  await session.prefill([5, 6, 7]);
  const messages = [{ role: 'user', content: 'word '.repeat(30) }];
  await expectCode(() => model.generate(messages, { session }).result, 'ERR_KV_CACHE_FULL', /maxKvLen .* 20/);
  expect(session.kvLen).toBe(3);
  const aborted = model.generate(messages, { session, signal: AbortSignal.abort() });
  expect((await aborted.result).finishReason).toBe('abort');
  expect(session.kvLen).toBe(3);
  session.dispose();
});

it('a template that rewrites earlier turns costs what it rewrites', async () => {
  using other = await Model.load(writeChatModel(directories.make(), forgetful), { device: 'cpu', dtype: 'f32' });
  const chat = await other.createChat();
  for (const word of ['tar', 'ls', 'cat']) {
    const cached = chat.session.kvLen;
    const { text, usage } = await chat.send(word, { maxTokens: 16 }).result;
    const fresh = await other.generate(chat.messages.slice(0, -1), { maxTokens: 16 }).result;
    expect(text).toBe(fresh.text);
    if (word !== 'tar') expect(usage.cachedTokens).toBeLessThan(cached);
  }
});

it('what others do with the session of a chat changes no answer', async () => {
  const answers: string[] = [];
  for (const disturb of [false, true]) {
    const chat = await model.createChat({ system });
    for (const word of ['tar', 'ls', 'cat']) {
      answers.push((await chat.send(word, { maxTokens: 8 }).result).text);
      if (!disturb) continue;
      await chat.session.truncate(chat.session.kvLen - 3);
      await chat.session.prefill([9, 9, 9, 9]);
    }
    chat.dispose();
  }
  expect(answers.slice(3)).toEqual(answers.slice(0, 3));
});

it('sends run one after another, and see the answers before them', async () => {
  const chat = await model.createChat();
  const first = chat.send('tar', { maxTokens: 5 });
  const message: ChatMessage = { role: 'user', content: 'ls' };
  const options = { maxTokens: 5 };
  const second = chat.send(message, options);
  message.content = 'changed';
  options.maxTokens = 1;
  const reset = chat.reset();
  const third = chat.send('cat', { maxTokens: 5 });
  expect(chat.messages).toEqual([]);
  const [a, b, , c] = await Promise.all([first.result, second.result, reset, third.result]);
  const history = [
    { role: 'user', content: 'tar' },
    { role: 'assistant', content: a.text },
    { role: 'user', content: 'ls' },
  ];
  expect(b.text).toBe((await model.generate(history, { maxTokens: 5 }).result).text);
  const last = [{ role: 'user', content: 'cat' }];
  expect(c.text).toBe((await model.generate(last, { maxTokens: 5 }).result).text);
  expect(chat.messages).toEqual([...last, { role: 'assistant', content: c.text }]);
  chat.dispose();
});

it('an aborted answer is kept as far as it was shown', async () => {
  const chat = await model.createChat({ system });
  let shown = '';
  let numTokens = 0;
  for await (const { text } of chat.send('tar', { maxTokens: 500 })) {
    shown += text;
    if (++numTokens === 5) break;
  }
  const [, question, answer] = chat.messages;
  expect(question).toEqual({ role: 'user', content: 'tar' });
  expect(answer?.content).toMatch(shown);
  expect(String(answer?.content).length).toBeLessThan(100);
  const cached = chat.session.kvLen;
  const next = await chat.send('ls', { maxTokens: 5 }).result;
  expect(next.usage.cachedTokens).toBe(cached);
  expect(next.text).toBe((await model.generate(chat.messages.slice(0, -1), { maxTokens: 5 }).result).text);
  chat.dispose();
});

it('an abort before the first text leaves the history as it was', async () => {
  const chat = await model.createChat();
  const controller = new AbortController();
  const running = chat.send('tar', { maxTokens: 8 });
  const waiting = chat.send('ls', { signal: controller.signal });
  const early = await chat.send('cat', { signal: AbortSignal.abort() }).result;
  expect(early).toMatchObject({ text: '', finishReason: 'abort' });
  controller.abort();
  expect(await waiting.result).toMatchObject({ text: '', finishReason: 'abort' });
  const { text } = await running.result;
  const history = [
    { role: 'user', content: 'tar' },
    { role: 'assistant', content: text },
  ];
  expect(chat.messages).toEqual(history);
  const within = new AbortController();
  const prompt = chat.send('x '.repeat(400), {
    signal: within.signal,
    onPrefillProgress: () => within.abort(),
  });
  expect((await prompt.result).finishReason).toBe('abort');
  expect(chat.messages.slice(0, 2)).toEqual(history);
  chat.dispose();
});

it('an error leaves the history as it was, and later sends run', async () => {
  const chat = await model.createChat({ system, maxKvLen: 64 });
  const mine = new Error('mine');
  const failing = [
    chat.send('word '.repeat(64)),
    chat.send({ role: 'never', content: '' }),
    chat.send('tar', { temperature: -1 }),
    chat.send('tar', {
      onPrefillProgress: () => {
        throw mine;
      },
    }),
  ];
  const last = chat.send('ls', { maxTokens: 3 });
  const errors = await Promise.all(failing.map(({ result }) => errorOf(() => result)));
  expect(errors.map(({ code }) => code)).toEqual(['ERR_KV_CACHE_FULL', invalid, invalid, undefined]);
  expect(errors[0]?.message).toMatch(
    /^the conversation has \d+ tokens, and maxKvLen of the chat is 64, which leaves no room for an answer: send a shorter message, or call reset, or create the chat with contextPolicy: 'shift', or create the chat with a larger maxKvLen \(the context of the model has 1024\)$/,
  );
  expect(errors[1]?.message).toContain('no such role');
  expect(errors[3]).toBe(mine);
  const { text } = await last.result;
  expect(chat.messages).toEqual([
    { role: 'system', content: system },
    { role: 'user', content: 'ls' },
    { role: 'assistant', content: text },
  ]);
  chat.dispose();
});

it('a shift that cannot make room fails, and drops nothing', async () => {
  const chat = await model.createChat({ maxKvLen: 64, contextPolicy: 'shift' });
  for (const word of ['tar', 'ls']) await chat.send(word, { maxTokens: 8 }).result;
  const { messages, numDroppedMessages } = chat;
  await expectCode(
    () => chat.send('word '.repeat(64)).result,
    'ERR_KV_CACHE_FULL',
    /^the last exchange has \d+ tokens, .*: send a shorter message, or create the chat with a larger maxKvLen/,
  );
  expect([chat.messages, chat.numDroppedMessages]).toEqual([messages, numDroppedMessages]);
  // The last exchange alone leaves room for a part of maxTokens.
  const { usage, finishReason } = await chat.send('word '.repeat(30), { maxTokens: 60 }).result;
  expect([finishReason, usage.promptTokens + usage.completionTokens]).toEqual(['length', 64]);
  expect(chat.numDroppedMessages).toBe(4);
  await chat.reset();
  expect([chat.messages, chat.numDroppedMessages]).toEqual([[], 0]);
  chat.dispose();
});

it('drops the results of tools with the question that they belong to', async () => {
  const chat = await model.createChat({ maxKvLen: 96, contextPolicy: 'shift' });
  await chat.send(
    [
      { role: 'user', content: 'word '.repeat(20) },
      { role: 'tool', content: 'ls' },
    ],
    { maxTokens: 4 },
  ).result;
  await chat.send({ role: 'tool', content: 'cat' }, { maxTokens: 4 }).result;
  expect(chat.numDroppedMessages).toBe(0);
  await chat.send('word '.repeat(20), { maxTokens: 40 }).result;
  expect(chat.numDroppedMessages).toBe(5);
  chat.dispose();
});

it('keeps the calls of an answer, of tools of the chat or of one turn', async () => {
  const count = {
    name: 'count',
    parameters: { type: 'object', properties: { to: { enum: [3, 5] } }, required: ['to'] },
  };
  const tools = [{ type: 'function', function: count }];
  const template = titles.replace('{% for', '{% if tools %}{{ tools[0].function.name }}\n{% endif %}{% for');
  const shown = await Model.load(writeChatModel(directories.make(), template), { device: 'cpu', dtype: 'f32' });
  const chats = [await shown.createChat({ tools }), await shown.createChat()] as const;
  const options = { toolChoice: { name: 'count' }, maxTokens: 600, seed: 1 };
  const results = [
    await chats[0].send('seq', options).result,
    await chats[1].send('seq', { ...options, tools }).result,
  ];
  expect(results[1]?.usage).toEqual(results[0]?.usage);
  results.forEach(({ toolCalls, finishReason }, i) => {
    expect([finishReason, toolCalls.length]).toEqual(['tool_calls', 1]);
    expect(JSON.parse(toolCalls[0]?.function.arguments ?? '')).toEqual({ to: expect.any(Number) });
    expect(chats[i]?.messages.at(-1)).toEqual({ role: 'assistant', content: '', tool_calls: toolCalls });
  });
  const id = results[0]?.toolCalls[0]?.id;
  await chats[0].send({ role: 'tool', tool_call_id: id, content: '1 2 3' }, { maxTokens: 2 }).result;
  expect(chats[0].messages.map(({ role }) => role)).toEqual(['user', 'assistant', 'tool', 'assistant']);
  shown.dispose();
});

it('continues a conversation', async () => {
  const chat = await model.createChat({ system });
  await chat.send('tar', { maxTokens: 5 }).result;
  const copy = chat.messages;
  const other = await model.createChat({ messages: copy });
  copy.length = 0;
  expect(other.messages).toEqual(chat.messages);
  const [a, b] = [chat, other].map((one) => one.send('ls', { maxTokens: 5 }).result);
  expect((await b)?.text).toBe((await a)?.text);
  await other.reset();
  expect(other.messages).toEqual([{ role: 'system', content: system }]);
  for (const one of [chat, other]) one.dispose();
});

it('ends what runs and waits with ERR_DISPOSED after dispose', async () => {
  const chat = await model.createChat();
  await chat.send('tar', { maxTokens: 2 }).result;
  const calls = [chat.send('ls', { maxTokens: 500 }).result, chat.send('cat').result, chat.reset()];
  for await (const _ of chat.send('never', { signal: AbortSignal.abort() }));
  chat.dispose();
  chat.dispose();
  for (const call of calls) await expectCode(() => call, 'ERR_DISPOSED');
  await expectCode(() => chat.send('ls').result, 'ERR_DISPOSED');
  expect(chat.messages.length).toBe(2);
});

describe('what is changed after the call', () => {
  const template = `{{ tools | tojson }}{{ documents | tojson }}{{ note }}${titles}`;
  let seeing: Model;
  beforeAll(async () => {
    seeing = await Model.load(writeChatModel(directories.make(), template), { device: 'cpu' });
  });
  afterAll(() => seeing?.dispose());
  const messages = () => [{ role: 'user', content: 'ls' }];
  /** Options, and how the caller changes them. */
  const changes: [name: string, options: () => Anything, change: (options: Anything) => void][] = [
    ['stop', () => ({ stop: ['never'] }), ({ stop }) => stop.push('e', 'a', '-')],
    ['a Map of logitBias', () => ({ logitBias: new Map([[5, 1]]) }), ({ logitBias }) => logitBias.set(7, 1e5)],
    [
      'an object of logitBias',
      () => ({ logitBias: { 5: 1 } }),
      ({ logitBias }) => Object.assign(logitBias, { 7: 1e5 }),
    ],
    [
      'responseFormat',
      () => ({ responseFormat: { type: 'regex', pattern: '[a-z]{9}' } }),
      ({ responseFormat }) => Object.assign(responseFormat, { pattern: '[0-9]{9}' }),
    ],
    ['tools', () => ({ tools: [{ name: 'f', parameters: { a: 1 } }] }), ({ tools }) => delete tools[0].parameters.a],
    [
      'toolChoice',
      () => ({ tools: [{ name: 'f' }, { name: 'g' }], toolChoice: { name: 'f' } }),
      ({ toolChoice }) => Object.assign(toolChoice, { name: 'g' }),
    ],
    ['speculative', () => ({ speculative: {} }), ({ speculative }) => Object.assign(speculative, { ngram: 99 })],
    [
      'maxTokens and seed',
      () => ({ temperature: 2, seed: 1 }),
      (options) => Object.assign(options, { maxTokens: 1, seed: 2 }),
    ],
  ];
  const outcome = async (generation: Generation) => {
    const { text, tokens, toolCalls, usage } = await generation.result;
    return { text, tokens, calls: toolCalls.map((call) => call.function), usage };
  };

  it.each(changes)('does not change a turn that waits, nor a generation: %s', async (_, make, change) => {
    const run = async (changed: boolean) => {
      using chat = await seeing.createChat();
      const first = chat.send('tar', { maxTokens: 4 });
      const given = { maxTokens: 16, ...make() };
      const second = chat.send('ls', given);
      const other = { maxTokens: 16, ...make() };
      const generated = seeing.generate(messages(), other);
      if (changed) for (const options of [given, other]) change(options);
      await first.result;
      return [await outcome(second), await outcome(generated)];
    };
    expect(await run(true)).toEqual(await run(false));
  });

  it('does not change a chat', async () => {
    const run = async (changed: boolean) => {
      const given = {
        tools: [{ name: 'f' }],
        documents: [{ text: 'a' }],
        templateOptions: { note: 'b' },
        selectiveV: { topK: 3 },
      };
      const creating = seeing.createChat(given);
      if (changed) given.selectiveV.topK = 0;
      using chat = await creating;
      if (changed) {
        given.tools.push({ name: 'another' });
        given.documents.push({ text: 'another' });
        given.templateOptions.note = 'another';
      }
      return await outcome(chat.send('ls', { maxTokens: 4 }));
    };
    expect(await run(true)).toEqual(await run(false));
  });

  it('must be values that can be copied', async () => {
    const call = () => 1;
    for (const name of ['tools', 'documents', 'templateOptions', 'selectiveV']) {
      await expectCode(
        () => seeing.createChat({ [name]: { call } } as Anything),
        invalid,
        `${name} must have JSON values: `,
      );
    }
    using chat = await seeing.createChat();
    for (const name of ['tools', 'responseFormat', 'logitBias', 'stop', 'toolChoice']) {
      const options = { [name]: { call } } as Anything;
      await expectCode(() => chat.send('ls', options).result, invalid, `${name} must have JSON values: `);
    }
    await expectCode(() => chat.send('ls', { tools: null } as Anything).result, invalid, 'tools must be an array');
  });
});

it('starts no tokenizer for a model that is disposed', async () => {
  const disposed = await Model.load(directory, { device: 'cpu' });
  const chat = await disposed.createChat();
  disposed.dispose();
  const tokenizer = disposed.tokenizer as Tokenizer;
  const encoders = [jest.spyOn(tokenizer, 'encodeAsync'), jest.spyOn(tokenizer, 'encodeChat')];
  const signal = AbortSignal.abort();
  const calls = [
    () => disposed.createChat(),
    () => chat.send('tar', { signal }).result,
    () => disposed.generate('tar', { signal }).result,
    () => disposed.generate([{ role: 'user', content: 'tar' }]).result,
    () => disposed.score('tar'),
    () => disposed.embed(['tar']),
  ];
  for (const call of calls) await expectCode(call, 'ERR_DISPOSED');
  for (const encoder of encoders) expect(encoder).not.toHaveBeenCalled();
});

it('rejects wrong arguments', async () => {
  const create = (options: Anything) => () => model.createChat(options);
  for (const options of [null, 5, [], { system: 5 }, { contextPolicy: 'drop' }, { maxKvLen: 0 }, { messages: {} }]) {
    await expectCode(create(options), invalid);
  }
  for (const options of [{ messages: [{}] }, { messages: [5] }, { tools: {} }, { parseSpecial: 5 }]) {
    await expectCode(create(options), invalid);
  }
  await expectMessage(
    create({ system, messages: [{ role: 'system', content: 'x' }] }),
    'messages have a system message already: omit system',
  );
  await expectMessage(
    create({ sytem: 'x' }),
    'unknown name "sytem" in options: did you mean system? The known names are system, messages, contextPolicy, ' +
      'tools, documents, templateOptions, parseSpecial, maxKvLen, kType, vType, selectiveV',
  );
  const chat = await model.createChat();
  for (const message of [5, null, undefined, [], {}, [5], { role: 'user' }, { role: 'user', content: 5 }]) {
    await expectCode(() => chat.send(message as Anything).result, invalid);
  }
  const withFunction = { role: 'user', content: 'x', at: () => 1 } as Anything;
  await expectCode(() => chat.send(withFunction).result, invalid, /^messages must have JSON values: .*cloned/);
  for (const options of [null, 5, { session: chat.session }, { chat: {} }, { maxTokens: 0 }, { signal: {} }]) {
    await expectCode(() => chat.send('tar', options as Anything).result, invalid);
  }
  expect(chat.messages).toEqual([]);
  expect(chat).toBeInstanceOf(Chat);
  chat.dispose();
  using bare = await Model.random(randomCheckpoint({}).config, { device: 'cpu' });
  await expectMessage(
    () => bare.createChat(),
    'a chat requires a tokenizer, and the model has no tokenizer.json: use model.generate',
  );
  using plain = await Model.load(tldrDirectory, { device: 'cpu' });
  await expectCode(
    () => plain.createChat(),
    'ERR_UNSUPPORTED_MODEL',
    /no chat template .*use model.generate with text, or add chat_template.jinja/,
  );
});
