// Generations whose text is restricted: by a response format, and to calls of functions.

import { cpSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import workerThreads, { Worker } from 'node:worker_threads';
import Ajv from 'ajv/dist/2020';
import { defaultModelDirectory, type GenerateOptions, Model, type ToolCallDelta } from '../../lib/index';
import { randomCheckpoint, temporaryDirectories, writeCheckpoint } from '../support/checkpoints';
import { errorOf, long, onEveryDevice, reduced } from '../support/devices';
import { jsonSchemas } from '../tools/json_schemas';

const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

const prompt = '# tar\n> Archiving utility.\n';
const hot = { temperature: 1.5, maxTokens: 300 };
const person = {
  type: 'object',
  properties: { name: { type: 'string', maxLength: 8 }, age: { type: 'integer', minimum: 0, maximum: 120 } },
  required: ['name', 'age'],
  additionalProperties: false,
};
const tools = [
  { type: 'function', function: { name: 'register', parameters: { $ref: '#/$defs/person', $defs: { person } } } },
  { name: 'count', parameters: { type: 'object', properties: { to: { enum: [3, 5] } }, required: ['to'] } },
];

onEveryDevice((device) => {
  let model: Model;
  beforeAll(async () => {
    const directory = directories.make();
    cpSync(defaultModelDirectory, directory, { recursive: true });
    const template =
      '{% if tools %}<tool_call>{% endif %}{{ messages[0].content }}' +
      '{% for call in messages[0].tool_calls %}{{ call.function.arguments | tojson }}{% endfor %}';
    writeFileSync(join(directory, 'chat_template.jinja'), template);
    model = await Model.load(directory, { device: device() });
  });
  afterAll(() => model?.dispose());

  const generate = (options: GenerateOptions) => model.generate(prompt, options).result;

  it('texts are valid JSON by their schemas, in one batch with others', async () => {
    const ajv = new Ajv({ strict: false, validateFormats: false });
    const schemas = jsonSchemas(reduced ? 6 : 42, 2).filter(({ kind }) => kind !== 'number');
    const free = model.generate(prompt, { maxTokens: 10 });
    const results = await Promise.all(
      schemas.map(({ schema }, i) => generate({ ...hot, seed: i, responseFormat: { type: 'json_schema', schema } })),
    );
    schemas.forEach(({ schema }, i) => {
      const { text, finishReason } = results[i]!;
      if (finishReason === 'length' && /\d{100}/.test(text)) return; // a number without end
      expect([text, finishReason]).toEqual([text, 'stop']);
      expect([text, ajv.validate(schema, JSON.parse(text))]).toEqual([text, true]);
    });
    expect((await free.result).tokens).toEqual((await generate({ maxTokens: 10 })).tokens);
  });

  it('greedy generation and a seed choose among the allowed tokens', async () => {
    const responseFormat = { type: 'regex', pattern: '(yes|no){2}' } as const;
    const greedy = await generate({ responseFormat });
    expect(greedy.text).toMatch(/^(yes|no){2}$/);
    expect((await generate({ responseFormat })).tokens).toEqual(greedy.tokens);
    const drawn = () => generate({ responseFormat, temperature: 1.5, topK: 40, topP: 0.9, minP: 0.01, seed: 7 });
    expect((await drawn()).tokens).toEqual((await drawn()).tokens);
  });

  it('the text is complete without an end token, or ends with one', async () => {
    const exact = await generate({ responseFormat: { type: 'regex', pattern: 'tar' } });
    expect([exact.text, exact.finishReason]).toEqual(['tar', 'stop']);
    expect(exact.tokens).not.toContain(model.tokenizer!.eosTokenId);
    const { text, finishReason, tokens } = await generate({ responseFormat: { type: 'regex', pattern: 'tar|tarred' } });
    expect(['tar', 'tarred']).toContain(text);
    expect([finishReason, tokens.at(-1) === model.tokenizer!.eosTokenId]).toEqual(['stop', text === 'tar']);
  });

  long('maxTokens, stop and a signal leave the text unfinished', async () => {
    const responseFormat = { type: 'regex', pattern: '(ab){200}' } as const;
    const cut = await generate({ responseFormat, maxTokens: 5 });
    expect([cut.finishReason, cut.tokens.length]).toEqual(['length', 5]);
    expect('ab'.repeat(200).startsWith(cut.text)).toBe(true);
    const stopped = await generate({ responseFormat, stop: 'bababa' });
    expect([stopped.finishReason, stopped.text]).toEqual(['stop', 'a']);
    const controller = new AbortController();
    const generation = model.generate(prompt, { responseFormat, signal: controller.signal });
    for await (const { text } of generation) if (text !== '') controller.abort();
    expect((await generation.result).finishReason).toBe('abort');
    const before = await generate({ responseFormat, signal: AbortSignal.abort() });
    expect([before.finishReason, before.tokens]).toEqual(['abort', []]);
  });

  long('continues a session', async () => {
    const session = await model.createSession();
    const first = await generate({ session, responseFormat: { type: 'json_schema', schema: person }, seed: 1, ...hot });
    expect(JSON.parse(first.text)).toMatchObject({ age: expect.any(Number) });
    expect(session.kvLen).toBe(first.usage.promptTokens + first.tokens.length);
    const second = await generate({ session, responseFormat: { type: 'regex', pattern: '[0-9]{4}' } });
    expect(second.text).toMatch(/^\d{4}$/);
    session.dispose();
  });

  long('toolChoice makes the text an array of calls, streamed as deltas', async () => {
    for (const [toolChoice, names] of [
      ['required', ['register', 'count']],
      [{ name: 'count' }, ['count']],
    ] as const) {
      const generation = model.generate(prompt, { tools, toolChoice, seed: 3, ...hot, maxTokens: 600 });
      const deltas: ToolCallDelta[] = [];
      let text = '';
      for await (const token of generation) {
        text += token.text;
        deltas.push(...(token.toolCalls ?? []));
      }
      const { toolCalls, finishReason, ...result } = await generation.result;
      expect([text, result.text, finishReason]).toEqual(['', '', 'tool_calls']);
      expect(toolCalls.length).toBeGreaterThan(0);
      toolCalls.forEach((call, i) => {
        expect(names).toContain(call.function.name);
        const parts = deltas.filter(({ index }) => index === i);
        expect(parts.map((part) => part.function.arguments).join('')).toBe(call.function.arguments);
        expect(parts[0]).toMatchObject({ id: call.id, type: 'function', function: { name: call.function.name } });
        const args = JSON.parse(call.function.arguments);
        if (call.function.name === 'count') expect([3, 5]).toContain(args.to);
        else expect(new Ajv().validate(person, args)).toBe(true);
      });
    }
  });

  long('takes calls out of text in the format of the chat template', async () => {
    const pattern = 'I look\\.<tool_call>\\{"name": "count", "arguments": \\{"to": [35]\\}\\}</tool_call>';
    const responseFormat = { type: 'regex', pattern } as const;
    const messages = [{ role: 'user', content: prompt }];
    const { text, toolCalls, finishReason, usage } = await model.generate(messages, { tools, responseFormat }).result;
    expect([text, toolCalls, finishReason]).toEqual([
      'I look.',
      [
        {
          id: expect.any(String),
          type: 'function',
          function: { name: 'count', arguments: expect.stringMatching(/^{"to": [35]}$/) },
        },
      ],
      'tool_calls',
    ]);
    // The template shows tools.
    const chat = await model.generate(messages, { chat: { tools }, responseFormat }).result;
    expect([chat.toolCalls.length, chat.usage.promptTokens]).toEqual([1, usage.promptTokens]);
    const none = await model.generate(messages, { tools, toolChoice: 'none', responseFormat }).result;
    expect([none.text.replace(/[35]/, 'N'), none.toolCalls, none.finishReason]).toEqual([
      'I look.<tool_call>{"name": "count", "arguments": {"to": N}}</tool_call>',
      [],
      'stop',
    ]);
    const cut = await model.generate(messages, { tools, responseFormat, maxTokens: 12 }).result;
    expect([cut.toolCalls, cut.finishReason, cut.text.startsWith('I look.<')]).toEqual([[], 'length', true]);
  });

  it('a chat template sees the arguments of calls as values', async () => {
    const call = (args: unknown) => ({ type: 'function', function: { name: 'count', arguments: args } });
    const encode = (args: unknown) =>
      model.tokenizer!.encodeChat([{ role: 'assistant', content: 'a', tool_calls: [call(args)] }]);
    const text = async (args: unknown) => model.tokenizer!.decode(await encode(args));
    expect(await text('{"to": 3}')).toBe('a{"to": 3}');
    expect(await text({ to: 3 })).toBe('a{"to": 3}');
    expect(await text('to 3')).toBe('a"to 3"');
  });

  it.each<[GenerateOptions, RegExp]>([
    [{ responseFormat: null as never }, /^responseFormat must be an object, not null/],
    [{ responseFormat: { type: 'regex', pattern: '(' } }, /^responseFormat: .*unclosed group/s],
    [{ toolChoice: 'auto' }, /^toolChoice requires tools: omit toolChoice/],
    [{ tools, toolChoice: 'any' as never }, /^toolChoice must be 'auto', 'none', 'required' or { name }, not "any"/],
    [{ tools, toolChoice: { name: 'count', id: 1 } as never }, /^unknown name "id" in toolChoice/],
    [{ tools, toolChoice: { name: 5 as never } }, /^toolChoice.name must be a string, not 5/],
    [{ tools, toolChoice: [] as never }, /^toolChoice must be 'auto', 'none', 'required' or { name }/],
    [{ tools, toolChoice: { name: 'other' } }, /^toolChoice.name must be the name of a function of tools, not "other"/],
    [{ tools, toolChoice: 'required', responseFormat: { type: 'json_object' } }, /^toolChoice cannot demand a call/],
    [{ tools: {} as never }, /^tools must be an array/],
    [{ tools: [5 as never] }, /^each of tools must be an object, not 5/],
  ])('rejects %j', async (options, message) => {
    const error = await errorOf(() => generate(options));
    expect([error.code, error.message]).toEqual(['ERR_INVALID_ARGUMENT', expect.stringMatching(message)]);
  });

  it('requires a tokenizer', async () => {
    const directory = directories.make();
    writeCheckpoint(directory, randomCheckpoint({ architecture: 'llama', heads: [2, 2, 2] }));
    const bare = await Model.load(directory, { device: device() });
    const { message } = await errorOf(() => bare.generate([1], { responseFormat: { type: 'json_object' } }).result);
    expect(message).toBe('responseFormat requires a tokenizer, and the model has no tokenizer.json: omit it');
    bare.dispose();
  });

  long('disposing of the model ends generations', async () => {
    const other = await Model.load(defaultModelDirectory, { device: device() });
    const { result } = other.generate(prompt, {
      responseFormat: { type: 'regex', pattern: '(ab){400}' },
      maxTokens: 400,
    });
    const error = errorOf(() => result);
    other.dispose();
    expect((await error).code).toBe('ERR_DISPOSED');
  });

  long('no thread is started after the model was disposed of', async () => {
    let numStarted = 0;
    workerThreads.Worker = class extends Worker {
      constructor(...[script, options]: ConstructorParameters<typeof Worker>) {
        super(script, options);
        numStarted++;
      }
    };
    try {
      for (let i = 0; i < 3; i++) {
        const other = await Model.load(defaultModelDirectory, { device: device() });
        const generation = other.generate(prompt, { responseFormat: { type: 'regex', pattern: '(ab){400}' } });
        const error = errorOf(() => generation.result);
        const tokens = generation[Symbol.asyncIterator]();
        await tokens.next();
        const before = numStarted;
        expect(before).toBeGreaterThan(0);
        await new Promise((resolve) => setTimeout(resolve, i));
        other.dispose();
        expect((await error).code).toBe('ERR_DISPOSED');
        expect(numStarted).toBe(before);
      }
    } finally {
      workerThreads.Worker = Worker;
    }
  });
});
