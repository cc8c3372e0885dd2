import { join } from 'node:path';
import { type GenerateOptions, Model } from '../../lib/index';
import { randomCheckpoint, temporaryDirectories, writeCheckpoint } from '../support/checkpoints';
import { errorOf, long, onEveryDevice, reduced } from '../support/devices';
import { tldr, tldrDirectory } from '../support/fixtures';

const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

const prompt = '# tar\n> Archiving utility.\n';
const [first] = tldr.cases as [(typeof tldr.cases)[0]];

onEveryDevice((device) => {
  let model: Model;
  beforeAll(async () => {
    model = await Model.load(tldrDirectory, { device: device() });
  });
  afterAll(() => model?.dispose());

  const iterated = async (options: GenerateOptions) => {
    const generation = model.generate(prompt, options);
    const tokens: number[] = [];
    const pieces: string[] = [];
    for await (const { token, text } of generation) {
      tokens.push(token);
      pieces.push(text);
    }
    return { tokens, pieces, text: pieces.join(''), result: await generation.result };
  };

  it('writes the expected text greedily, with equal iteration and result', async () => {
    const begin = performance.now();
    const { tokens, text, result } = await iterated({ maxTokens: first.greedy.length });
    const elapsedMs = performance.now() - begin;
    expect(text).toBe(first.text);
    expect(tokens).toEqual(first.greedy);
    expect(result).toEqual({
      text,
      toolCalls: [],
      tokens,
      finishReason: 'length',
      stopSequence: null,
      usage: { promptTokens: first.tokens.length, cachedTokens: 0, completionTokens: tokens.length },
      timings: { prefillMs: expect.any(Number), decodeMs: expect.any(Number), tokensPerSecond: expect.any(Number) },
    });
    const { prefillMs, decodeMs, tokensPerSecond } = result.timings;
    expect(prefillMs).toBeGreaterThan(0);
    expect(decodeMs).toBeGreaterThan(0);
    expect(prefillMs + decodeMs).toBeLessThanOrEqual(elapsedMs);
    expect(tokensPerSecond).toBeCloseTo(((tokens.length - 1) / decodeMs) * 1000, 3);
  });

  it('uses a prompt of tokens unchanged', async () => {
    const { tokens, usage } = await model.generate(first.tokens, { maxTokens: 10 }).result;
    expect(tokens).toEqual(first.greedy.slice(0, 10));
    expect(usage.promptTokens).toBe(first.tokens.length);
  });

  it('supports only the result, only the iteration, or two iterations', async () => {
    const generation = model.generate(prompt, { maxTokens: 5 });
    const twice: number[][] = [[], []];
    for (const list of twice) for await (const { token } of generation) list.push(token);
    expect(twice).toEqual([first.greedy.slice(0, 5), first.greedy.slice(0, 5)]);
    expect((await generation.result).tokens.length).toBe(5);
  });

  long('ends at the end-of-text token, which is in the tokens but not in the text', async () => {
    const result = await model.generate(prompt, { maxTokens: 1000, temperature: 0.8, seed: 3 }).result;
    if (result.finishReason === 'stop') {
      expect(result.tokens[result.tokens.length - 1]).toBe(4095);
      expect(result.text).not.toContain('<|end_of_text|>');
    }
    // The model ends after the end of a page, which its own greedy text provides here.
    const { tokens, finishReason } = await model.generate(prompt, { maxTokens: Number.POSITIVE_INFINITY }).result;
    if (finishReason === 'stop') expect(tokens.indexOf(4095)).toBe(tokens.length - 1);
    else expect(tokens.length).toBe(1024 - first.tokens.length + 1);
    expect(['stop', 'length']).toContain(result.finishReason);
  });

  it('ends at any eos_token_id of the config', async () => {
    const directory = directories.make();
    const checkpoint = randomCheckpoint({});
    writeCheckpoint(directory, checkpoint);
    const plain = await Model.load(directory, { device: device() });
    const { tokens } = await plain.generate([1, 2, 3], { maxTokens: 8, repetitionPenalty: 10 }).result;
    plain.dispose();
    const [, , third] = tokens as [number, number, number];
    writeCheckpoint(directory, { ...checkpoint, config: { ...checkpoint.config, eos_token_id: [127, third] } });
    const ending = await Model.load(directory, { device: device() });
    expect(ending.config.eosTokenIds).toEqual([127, third]);
    const result = await ending.generate([1, 2, 3], { maxTokens: 8, repetitionPenalty: 10 }).result;
    expect(result).toMatchObject({
      finishReason: 'stop',
      tokens: tokens.slice(0, tokens.indexOf(third) + 1),
      text: '',
    });
    ending.dispose();
  });

  describe('stop strings', () => {
    it('end the text before them, wherever the tokens break', async () => {
      const whole = first.text as string;
      const stops = ['$', ' file', 'path/to', 'directory:\n$', 'y:\n', 'chive a fi', '\n'];
      for (const stop of reduced ? stops.slice(-2) : stops) {
        const { text, pieces, result } = await iterated({ maxTokens: 40, stop });
        expect(whole).toContain(stop);
        expect(text).toBe(whole.slice(0, whole.indexOf(stop)));
        expect(result.text).toBe(text);
        expect(result.finishReason).toBe('stop');
        expect(result.tokens.length).toBeLessThan(40);
        expect(pieces.length).toBe(result.tokens.length);
      }
    });

    long('stop at the first of several to appear, and have no effect if they never appear', async () => {
      const { text, result } = await iterated({ maxTokens: 40, stop: ['tar', '$', 'zzz'] });
      expect(text).toBe((first.text as string).slice(0, (first.text as string).indexOf('$')));
      expect(result.finishReason).toBe('stop');
      const never = await iterated({ maxTokens: 40, stop: ['zzz', 'path/to/nowhere', '- Archive a file or a'] });
      expect(never.text).toBe(first.text);
      expect(never.result.finishReason).toBe('length');
    });

    long('release the withheld text at the end', async () => {
      const { greedy } = first;
      for (let maxTokens = 1; maxTokens <= 12; maxTokens++) {
        const { text } = await iterated({ maxTokens, stop: [' file or directory and more', '- Archive a filx'] });
        expect(text).toBe(model.tokenizer?.decode(greedy.slice(0, maxTokens)));
      }
    });

    it.each([[''], [['']], [5], [[5]], [null], [{}]])('reject %j', async (stop) => {
      // biome-ignore lint/suspicious/noExplicitAny: what a caller without types may pass
      expect((await errorOf(() => model.generate(prompt, { stop: stop as any }).result)).code).toBe(
        'ERR_INVALID_ARGUMENT',
      );
    });
  });

  describe('sessions', () => {
    it('contain the prompt and all tokens afterwards, so that a second call continues', async () => {
      const session = await model.createSession();
      const a = await model.generate(prompt, { session, maxTokens: 10 }).result;
      expect(session.kvLen).toBe(first.tokens.length + 10);
      // With the eleventh token as the prompt, the twelfth follows, and so on.
      const b = await model.generate([first.greedy[10] as number], { session, maxTokens: 10 }).result;
      expect([...a.tokens, first.greedy[10], ...b.tokens]).toEqual(first.greedy.slice(0, 21));
      expect(b.usage).toEqual({ promptTokens: 1, cachedTokens: 0, completionTokens: 10 });
      session.dispose();
    });

    it('adds no second begin-of-text token to a continued text', async () => {
      const session = await model.createSession();
      await model.generate('# tar\n', { session, maxTokens: 1 }).result;
      const before = session.kvLen;
      const { usage } = await model.generate('abc', { session, maxTokens: 1 }).result;
      expect(usage.promptTokens).toBe(model.tokenizer?.encode('abc', { addSpecialTokens: false }).length);
      expect(session.kvLen).toBe(before + usage.promptTokens + 1);
      session.dispose();
    });

    it('serve one generation at a time: a second one waits', async () => {
      const session = await model.createSession();
      const running = model.generate(prompt, { session, maxTokens: 10 });
      const second = model.generate([first.greedy[10] as number], { session, maxTokens: 2 });
      expect((await second.result).tokens).toEqual(first.greedy.slice(11, 13));
      expect((await running.result).tokens).toEqual(first.greedy.slice(0, 10));
      session.dispose();
    });

    it('stop a generation at the end of the cache', async () => {
      const session = await model.createSession({ maxKvLen: first.tokens.length + 5 });
      const result = await model.generate(prompt, { session, maxTokens: 100 }).result;
      expect(result).toMatchObject({ finishReason: 'length', tokens: first.greedy.slice(0, 5) });
      expect((await errorOf(() => model.generate([1], { session }).result)).code).toBe('ERR_KV_CACHE_FULL');
      session.dispose();
      const small = await model.createSession({ maxKvLen: 5 });
      expect((await errorOf(() => model.generate(prompt, { session: small }).result)).code).toBe('ERR_KV_CACHE_FULL');
      expect(small.kvLen).toBe(0);
      small.dispose();
    });

    it('reject a prompt longer than the context with ERR_KV_CACHE_FULL', async () => {
      const error = await errorOf(() => model.generate(new Array(1025).fill(5), {}).result);
      expect([error.code, error.message]).toEqual(['ERR_KV_CACHE_FULL', expect.stringContaining('1024')]);
    });

    it('must belong to the same model and device', async () => {
      const other = await Model.random(randomCheckpoint({}).config, { device: device() });
      const session = await other.createSession();
      expect((await errorOf(() => model.generate(prompt, { session, maxTokens: 1 }).result)).code).toBe(
        'ERR_INVALID_ARGUMENT',
      );
      session.dispose();
      other.dispose();
    });
  });

  it('stops and releases the session if the iteration is left early', async () => {
    const session = await model.createSession();
    const generation = model.generate(prompt, { session, maxTokens: 900 });
    for await (const { token } of generation) {
      expect(token).toBe(first.greedy[0]);
      break;
    }
    const result = await generation.result;
    expect(result.finishReason).toBe('abort');
    expect(result.tokens.length).toBeLessThan(200);
    expect(session.kvLen).toBe(first.tokens.length + result.tokens.length);
    expect((await model.generate([1], { session, maxTokens: 1 }).result).tokens.length).toBe(1);
    session.dispose();
  });

  it('ends with an error or its result if the session is disposed during the generation', async () => {
    const session = await model.createSession();
    const generation = model.generate(prompt, { session, maxTokens: 500 });
    const outcome = await (async () => {
      for await (const _ of generation) session.dispose();
      return 'done';
    })().catch((error) => error.code);
    expect(['ERR_DISPOSED', 'done']).toContain(outcome);
  });

  long('reports each chunk of the prompt', async () => {
    const seen: number[] = [];
    const tokens = new Array(1000).fill(0).map((_, i) => i);
    await model.generate(tokens, {
      maxTokens: 1,
      onPrefillProgress: ({ doneTokens, totalTokens }) => {
        expect(totalTokens).toBe(1000);
        seen.push(doneTokens);
      },
    }).result;
    expect(seen.length).toBeGreaterThan(1);
    expect(seen[seen.length - 1]).toBe(1000);
    expect([...seen].sort((a, b) => a - b)).toEqual(seen);
  });

  it.each(
    [5, null, undefined, {}, [], '' as unknown, [1.5], [-1], [4096], [Number.NaN], true, [1, 'a']].map((value) => [
      JSON.stringify(value) ?? 'undefined',
      value,
    ]),
  )('rejects the prompt %s in the result and the iteration, without an unhandled rejection', async (shown, value) => {
    // biome-ignore lint/suspicious/noExplicitAny: what a caller without types may pass
    const generation = model.generate(value as any, { maxTokens: 1 });
    if (shown === '""') {
      expect((await generation.result).usage.promptTokens).toBe(1); // the begin-of-text token
      return;
    }
    expect((await errorOf(() => generation.result)).code).toBe('ERR_INVALID_ARGUMENT');
    expect(
      (
        await errorOf(async () => {
          for await (const _ of generation);
        })
      ).code,
    ).toBe('ERR_INVALID_ARGUMENT');
  });

  it.each<[string, unknown]>([
    ['null', null],
    ['5', 5],
    ['[]', []],
    ['session null', { session: null }],
    ['session 5', { session: 5 }],
    ['session {}', { session: {} }],
    ['onPrefillProgress null', { onPrefillProgress: null }],
    ['onPrefillProgress 5', { onPrefillProgress: 5 }],
    ['temperature Symbol()', { temperature: Symbol() }],
    ['topP Symbol()', { topP: Symbol() }],
    ['repetitionPenalty Symbol()', { repetitionPenalty: Symbol() }],
    ['seed null', { seed: null }],
    ['maxTokens null', { maxTokens: null }],
    ['signal null', { signal: null }],
  ])("rejects the options %s in the generation's result", async (_, options) => {
    // biome-ignore lint/suspicious/noExplicitAny: what a caller without types may pass
    const generation = model.generate('x', options as any);
    expect((await errorOf(() => generation.result)).code).toBe('ERR_INVALID_ARGUMENT');
  });

  long.each([1, 2, 3])('rethrows an error of onPrefillProgress at chunk %i, and restores the session', async (at) => {
    const session = await model.createSession();
    await session.prefill(first.tokens);
    let calls = 0;
    const mine = new Error('mine');
    const onPrefillProgress = ({ doneTokens, totalTokens }: { doneTokens: number; totalTokens: number }): void => {
      calls++;
      if (calls === at || doneTokens === totalTokens) throw mine;
    };
    const generation = model.generate(new Array(700).fill(5), { session, maxTokens: 1, onPrefillProgress });
    expect(await errorOf(() => generation.result)).toBe(mine);
    expect(calls).toBeGreaterThan(0);
    expect(session.kvLen).toBe(first.tokens.length);
    await session.truncate(0);
    const { tokens } = await model.generate(prompt, { session, maxTokens: 3 }).result;
    expect(tokens).toEqual(first.greedy.slice(0, 3));
    session.dispose();
  });

  it('rejects messages without a chat template', async () => {
    const error = await errorOf(() => model.generate([{ role: 'user', content: 'hi' }], { maxTokens: 1 }).result);
    expect([error.code, error.message]).toEqual(['ERR_UNSUPPORTED_MODEL', expect.stringMatching(/chat template/)]);
  });

  it('formats messages with the template and one begin-of-text token', async () => {
    const { cpSync, readFileSync, writeFileSync } = await import('node:fs');
    const directory = directories.make();
    cpSync(tldrDirectory, directory, { recursive: true });
    const config = JSON.parse(readFileSync(join(directory, 'tokenizer_config.json'), 'utf8'));
    writeFileSync(
      join(directory, 'tokenizer_config.json'),
      JSON.stringify({
        ...config,
        chat_template:
          '{{ bos_token }}{% for m in messages %}# {{ m.content }}\n{% endfor %}> Archiving utility.{{ "\\n" }}',
      }),
    );
    const chat = await Model.load(directory, { device: device() });
    const result = await chat.generate([{ role: 'user', content: 'tar' }], { maxTokens: 10 }).result;
    expect(result.usage.promptTokens).toBe(first.tokens.length);
    expect(result.tokens).toEqual(first.greedy.slice(0, 10));
    chat.dispose();
  });

  it('generates from tokens without a tokenizer, and rejects text', async () => {
    const bare = await Model.random(randomCheckpoint({}).config, { device: device(), seed: 1 });
    const generation = bare.generate([1, 2], { maxTokens: 3 });
    for await (const { text } of generation) expect(text).toBe('');
    expect((await errorOf(() => bare.generate('x').result)).code).toBe('ERR_INVALID_ARGUMENT');
    expect((await errorOf(() => bare.generate([1], { stop: 'x' }).result)).code).toBe('ERR_INVALID_ARGUMENT');
    bare.dispose();
  });
});
