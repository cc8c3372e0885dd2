// Runs examples/http-server in a separate process, like a user, against OpenAI's client and against
// misbehaving clients.

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { type IncomingMessage, request } from 'node:http';
import { connect } from 'node:net';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { pathToFileURL } from 'node:url';
import OpenAI, { APIError } from 'openai';
import { listDevices } from '../../lib/index';
import { temporaryDirectories } from '../support/checkpoints';
import { builtIndex, runNode } from '../support/children';
import { projectRoot, tldr, tldrDirectory } from '../support/fixtures';

const directories = temporaryDirectories();
const main = join(projectRoot, 'examples', 'http-server', 'main.mjs');
const prompt = tldr.cases[0]?.prompt as string;
const greedy = tldr.cases[0]?.text as string; // 40 tokens

interface Health {
  status: string;
  running: number;
  queued: number;
  open: number;
  bufferedBytes: number;
  kvCache: { pages: number };
}

interface Server {
  child: ChildProcess;
  url: string;
  client: OpenAI;
  /** The server's output to stderr. */
  errors(): string;
  health(): Promise<Health>;
  /** Sends SIGTERM and returns the exit status. */
  stop(): Promise<number | null>;
}

const servers = new Set<Server>();
afterEach(async () => {
  for (const { child } of servers) child.kill('SIGKILL');
  servers.clear();
});
afterAll(() => directories.cleanUp());

/**
 * The embedded model under another name, with a chat template. With `ends` false it has no
 * end-of-text token and a long context.
 */
function variant(name: string, chatTemplate: string, ends: boolean): string {
  const directory = directories.make();
  for (const file of ['model.safetensors', 'tokenizer.json']) {
    symlinkSync(join(tldrDirectory, file), join(directory, file));
  }
  for (const file of ['config.json', 'tokenizer_config.json']) {
    const { eos_token_id, eos_token, ...json } = JSON.parse(readFileSync(join(tldrDirectory, file), 'utf8'));
    const changes = ends ? { eos_token_id, eos_token } : { max_position_embeddings: 32_768 };
    writeFileSync(join(directory, file), JSON.stringify({ ...json, ...changes }));
  }
  writeFileSync(join(directory, 'chat_template.jinja'), chatTemplate);
  symlinkSync(directory, join(directory, name));
  return join(directory, name);
}
let endlessDirectory: string;
beforeAll(() => {
  endlessDirectory = variant('endless', '', false);
});
const startEndless = (...args: string[]) => start(['--model', endlessDirectory, '--max-tokens', '30000', ...args]);
/** A request that needs half a minute. */
const endless = (seed = 1) => ({ model: 'endless', prompt: '# tar\n', max_tokens: 30_000, temperature: 1, seed });

async function start(args: string[] = [], env: NodeJS.ProcessEnv = {}): Promise<Server> {
  if (!existsSync(builtIndex)) throw new Error('dist/ is missing: run `npm run build` first');
  const child = spawn(process.execPath, [main, '--device', 'cpu', '--port', '0', ...args], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, ...env },
  });
  let stderr = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr += text;
  });
  const ended = once(child, 'exit');
  const first = await Promise.race([once(createInterface(child.stdout), 'line'), ended.then(() => null)]);
  if (first === null) throw new Error(`the server ended: ${stderr}`);
  const url = (first[0] as string).split(' at ')[1] as string;
  const server: Server = {
    child,
    url,
    client: new OpenAI({ baseURL: url, apiKey: 'none', maxRetries: 0 }),
    errors: () => stderr,
    health: async () => (await fetch(new URL('/health', url))).json() as Promise<Health>,
    stop: async () => {
      child.kill('SIGTERM');
      return (await ended)[0] as number | null;
    },
  };
  servers.add(server);
  return server;
}

/** Waits until `condition` is true for the answer of /health. */
async function until(server: Server, condition: (health: Health) => boolean): Promise<Health> {
  for (const end = Date.now() + 20_000; ; ) {
    const health = await server.health();
    if (condition(health)) return health;
    if (Date.now() > end) throw new Error(`timeout with ${JSON.stringify(health)}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}
const idle = (server: Server) =>
  until(server, (health) => health.open + health.running + health.queued + health.kvCache.pages === 0);

async function collect<T>(stream: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const one of stream) all.push(one);
  return all;
}

async function apiError(work: () => PromiseLike<unknown>): Promise<APIError> {
  try {
    await work();
  } catch (error) {
    if (error instanceof APIError) return error;
    throw error;
  }
  throw new Error('expected an error');
}

it("implements OpenAI's API", async () => {
  const server = await start();
  const { completions, models } = server.client;
  expect((await models.list()).data.map(({ id }) => id)).toEqual(['sigma-tldr']);
  expect(await models.retrieve('sigma-tldr')).toMatchObject({ id: 'sigma-tldr', object: 'model' });

  const asked = { model: 'sigma-tldr', prompt, max_tokens: 40, temperature: 0 };
  const whole = await completions.create(asked);
  expect(whole).toMatchObject({
    object: 'text_completion',
    model: 'sigma-tldr',
    choices: [{ index: 0, text: greedy, finish_reason: 'length' }],
    usage: { prompt_tokens: 12, completion_tokens: 40, total_tokens: 52 },
  });
  const stream = await completions.create({ ...asked, stream: true, stream_options: { include_usage: true } });
  const chunks = await collect(stream);
  expect(chunks.map(({ choices }) => choices[0]?.text ?? '').join('')).toBe(greedy);
  expect(chunks.length).toBeGreaterThan(30); // token by token
  expect(new Set(chunks.map(({ id }) => id)).size).toBe(1);
  expect(chunks.at(-2)?.choices[0]?.finish_reason).toBe('length');
  expect(chunks.at(-1)).toMatchObject({ choices: [], usage: { total_tokens: 52 } });
  expect(chunks.slice(0, -1).every(({ usage }) => usage === null)).toBe(true);
  expect((await collect(await completions.create({ ...asked, stream: true }))).at(-1)).not.toHaveProperty('usage');

  // Each option reaches `generate`: with a seed the text repeats, and without the option it
  // differs.
  const text = async (options: object) => (await completions.create({ ...asked, ...options })).choices[0]?.text;
  const drawn = { temperature: 1.5, seed: 5 };
  const plain = await text(drawn);
  expect(await text(drawn)).toBe(plain);
  for (const option of [{ seed: 6 }, { temperature: 0.3 }, { top_p: 0.3 }, { top_k: 3 }, { min_p: 0.3 }]) {
    expect(await text({ ...drawn, ...option })).not.toBe(plain);
  }
  expect(await text({ repetition_penalty: 1.8 })).not.toBe(greedy);
  // Temperature defaults to 1.
  expect(await text({ temperature: null, seed: null, stop: null })).not.toBe(greedy);
  const stop = greedy.slice(10, 14);
  const stopped = await completions.create({ ...asked, stop: ['not there', stop] });
  expect(stopped.choices[0]).toMatchObject({ text: greedy.slice(0, greedy.indexOf(stop)), finish_reason: 'stop' });
  const tokens = tldr.cases[0]?.tokens as number[];
  expect(await text({ prompt: tokens })).toBe(greedy);
  expect(await text({ prompt: [prompt] })).toBe(greedy);
  expect((await completions.create({ ...asked, max_tokens: undefined })).usage?.completion_tokens).toBe(16);

  // Concurrent requests return the same as single ones.
  const many = await Promise.all(Array.from({ length: 24 }, () => text({})));
  expect(new Set(many)).toEqual(new Set([greedy]));
  await idle(server);
  expect(await server.stop()).toBe(0);
  expect(server.errors()).toBe('');
});

it('chats if the model has a template, and reports an error if it has none', async () => {
  const template =
    '{{ bos_token }}{% for m in messages %}{% if m.role == "robot" %}{{ raise_exception("no robots") }}{% endif %}{{ m.content }}{% endfor %}';
  const server = await start(['--model', variant('chatty', template, true)]);
  const { completions } = server.client.chat;
  const [first, rest] = [prompt.slice(0, 4), prompt.slice(4)];
  const asked = {
    model: 'chatty',
    messages: [
      { role: 'system' as const, content: first },
      { role: 'user' as const, content: [{ type: 'text' as const, text: rest }] },
    ],
    max_completion_tokens: 40,
    temperature: 0,
  };
  const whole = await completions.create(asked);
  expect(whole).toMatchObject({
    object: 'chat.completion',
    choices: [{ index: 0, message: { role: 'assistant', content: greedy }, finish_reason: 'length' }],
    usage: { prompt_tokens: 12, completion_tokens: 40 },
  });
  const runner = server.client.chat.completions.stream({ ...asked, stream_options: { include_usage: true } });
  const final = await runner.finalChatCompletion();
  expect(final.choices[0]?.message).toMatchObject({ role: 'assistant', content: greedy });
  expect(final.usage?.completion_tokens).toBe(40);
  // Without max_tokens the answer continues to the model's end.
  const ended = await completions.create({ model: 'chatty', messages: asked.messages, temperature: 0 });
  expect(ended.choices[0]?.finish_reason).toBe('stop');

  const refused = await apiError(() =>
    completions.create({ ...asked, messages: [{ role: 'robot' as 'user', content: 'hello' }] }),
  );
  expect(refused).toMatchObject({ status: 400, code: 'ERR_INVALID_ARGUMENT' });
  expect(refused.message).toContain('no robots');
  const image = [{ type: 'image_url' as const, image_url: { url: 'data:,' } }];
  for (const messages of [[{ role: 'user' as const, content: image }], [{} as { role: 'user'; content: string }]]) {
    expect(await apiError(() => completions.create({ ...asked, messages }))).toMatchObject({
      status: 400,
      param: 'messages[0]',
    });
  }
  const bare = await start();
  const none = await apiError(() => bare.client.chat.completions.create({ ...asked, model: 'sigma-tldr' }));
  expect(none).toMatchObject({ status: 400, code: 'ERR_UNSUPPORTED_MODEL', type: 'invalid_request_error' });
  expect(none.message).toContain('no chat template');
  expect(none.message).not.toContain(tldrDirectory);
});

it('chat completions with a response format and tools', async () => {
  const template = '{% if tools %}<tool_call>{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}';
  const server = await start(['--model', variant('tools', template, true)]);
  const { completions } = server.client.chat;
  const asked = { model: 'tools', messages: [{ role: 'user' as const, content: prompt }], temperature: 1, seed: 1 };
  const parameters = {
    type: 'object',
    properties: { level: { type: 'integer', minimum: 1, maximum: 9 }, file: { enum: ['a', 'b'] } },
    required: ['level', 'file'],
    additionalProperties: false,
  };
  const json_schema = { name: 'level', schema: parameters };
  const json = await completions.create({ ...asked, response_format: { type: 'json_schema', json_schema } });
  expect(JSON.parse(json.choices[0]!.message.content!)).toMatchObject({ level: expect.any(Number) });
  expect(json.choices[0]!.finish_reason).toBe('stop');

  const tools = [{ type: 'function' as const, function: { name: 'pack', parameters } }];
  const calls = { ...asked, tools, tool_choice: { type: 'function' as const, function: { name: 'pack' } } };
  const [whole] = (await completions.create(calls)).choices;
  expect(whole).toMatchObject({ finish_reason: 'tool_calls', message: { role: 'assistant', content: null } });
  const [call] = whole!.message.tool_calls as OpenAI.ChatCompletionMessageFunctionToolCall[];
  expect(JSON.parse(call!.function.arguments)).toMatchObject({ file: expect.stringMatching(/^[ab]$/) });
  const streamed = (await completions.stream({ ...calls, stream: true }).finalChatCompletion()).choices[0]!;
  expect(streamed.message.tool_calls).toMatchObject([{ type: 'function', function: call!.function }]);
  expect(streamed.finish_reason).toBe('tool_calls');

  const answered = [
    ...asked.messages,
    { role: 'assistant' as const, content: null, tool_calls: [call!] },
    { role: 'tool' as const, tool_call_id: call!.id, content: 'packed' },
  ];
  const { choices } = await completions.create({ ...asked, messages: answered, tools, max_tokens: 2 });
  expect(choices[0]!.message.tool_calls).toBeUndefined();

  const deep = JSON.parse(`${'{"a":'.repeat(500)}1${'}'.repeat(500)}`);
  const wrong: [object, string | null, string | null][] = [
    [{ tools: {} }, 'tools', 'unsupported_parameter'],
    [{ tools: [{ type: 'function' }] }, 'tools', 'unsupported_parameter'],
    [{ tools, tool_choice: 'any' }, 'tool_choice', 'unsupported_parameter'],
    [{ tool_choice: 'required' }, 'tool_choice', null],
    [{ response_format: { type: 'xml' } }, 'response_format', 'unsupported_parameter'],
    [{ response_format: { type: 'json_schema' } }, null, 'ERR_INVALID_ARGUMENT'],
    [{ response_format: { type: 'json_schema', json_schema: { schema: { not: {} } } } }, null, 'ERR_INVALID_ARGUMENT'],
    [{ response_format: { type: 'json_schema', json_schema: { schema: deep } } }, null, 'ERR_INVALID_ARGUMENT'],
    [
      { tools: [{ type: 'function', function: { name: 'f', parameters: deep } }], tool_choice: 'required' },
      null,
      'ERR_INVALID_ARGUMENT',
    ],
    [{ messages: [{ role: 'assistant', tool_calls: [{}] }] }, 'messages[0].tool_calls', null],
  ];
  for (const [change, param, code] of wrong) {
    const error = await apiError(() => completions.create({ ...asked, ...change } as never));
    expect([change, error.status, error.param, error.code]).toEqual([change, 400, param, code]);
  }
  const nested = `${'{"a":'.repeat(9000)}1${'}'.repeat(9000)}`;
  for (const field of [
    `"response_format": {"type": "json_schema", "json_schema": {"schema": ${nested}}}`,
    `"tools": [{"type": "function", "function": {"name": "f", "parameters": ${nested}}}]`,
    `"tool_choice": ${nested}`,
  ]) {
    const body = `{"model": "tools", "messages": [{"role": "user", "content": "a"}], ${field}}`;
    const init = { method: 'POST', headers: { 'content-type': 'application/json' }, body };
    expect((await fetch(new URL('/v1/chat/completions', server.url), init)).status).toBe(400);
  }
  expect(await server.stop()).toBe(0);
  expect(server.errors()).toBe('');
});

it('rejects invalid requests with a status, a code and the parameter', async () => {
  const server = await start(['--max-tokens', '100', '--max-body-bytes', '20000']);
  const asked = { model: 'sigma-tldr', prompt: '# ls\n', max_tokens: 3 };
  const wrong: [object, number, string | null, string | null][] = [
    [{ model: 'gpt-4' }, 404, 'model', 'model_not_found'],
    [{ prompt: undefined }, 400, 'prompt', null],
    [{ prompt: 5 }, 400, 'prompt', null],
    [{ prompt: ['a', 'b'] }, 400, 'prompt', null],
    [{ prompt: [] }, 400, 'prompt', null],
    [{ prompt: [1, 99999] }, 400, null, 'ERR_INVALID_ARGUMENT'],
    [{ prompt: 'tar '.repeat(2000) }, 400, 'prompt', 'context_length_exceeded'],
    [{ prompt: 'x'.repeat(20_000) }, 413, null, 'request_too_large'],
    [{ max_tokens: 101 }, 400, 'max_tokens', null],
    [{ max_tokens: 0 }, 400, 'max_tokens', null],
    [{ max_tokens: '3' }, 400, 'max_tokens', null],
    [{ temperature: 'hot' }, 400, 'temperature', 'ERR_INVALID_ARGUMENT'],
    [{ temperature: -1 }, 400, 'temperature', 'ERR_INVALID_ARGUMENT'],
    [{ top_p: 2 }, 400, 'top_p', 'ERR_INVALID_ARGUMENT'],
    [{ top_k: 0.5 }, 400, 'top_k', 'ERR_INVALID_ARGUMENT'],
    [{ seed: -1 }, 400, 'seed', 'ERR_INVALID_ARGUMENT'],
    [{ stop: '' }, 400, 'stop', 'ERR_INVALID_ARGUMENT'],
    [{ stop: ['a', 'b', 'c', 'd', 'e'] }, 400, 'stop', null],
    [{ stream: 'yes' }, 400, 'stream', null],
    [{ stream_options: { include_usage: true } }, 400, 'stream_options', null],
    [{ n: 2 }, 400, 'n', 'unsupported_parameter'],
    [{ logprobs: 3 }, 400, 'logprobs', 'unsupported_parameter'],
    [{ logit_bias: [5] }, 400, 'logit_bias', 'ERR_INVALID_ARGUMENT'],
    [{ logit_bias: { 4096: 1 } }, 400, 'logit_bias', 'ERR_INVALID_ARGUMENT'],
    [{ logit_bias: { 5: '1' } }, 400, 'logit_bias', 'ERR_INVALID_ARGUMENT'],
    [{ presence_penalty: 3 }, 400, 'presence_penalty', 'ERR_INVALID_ARGUMENT'],
    [{ frequency_penalty: '1' }, 400, 'frequency_penalty', 'ERR_INVALID_ARGUMENT'],
    [{ tools: [{}] }, 400, 'tools', 'unsupported_parameter'],
    [{ tool_choice: 'required' }, 400, 'tool_choice', 'unsupported_parameter'],
    [{ tool_choice: { type: 'function' } }, 400, 'tool_choice', 'unsupported_parameter'],
  ];
  for (const [change, status, param, code] of wrong) {
    for (const stream of [false, true]) {
      const body = 'stream' in change || 'stream_options' in change ? change : { stream, ...change };
      const error = await apiError(() => server.client.completions.create({ ...asked, ...body } as never));
      expect({ change, status: error.status, param: error.param, code: error.code }).toEqual({
        change,
        status,
        param,
        code,
      });
      expect(error.type).toBe('invalid_request_error');
      expect(error.message.length).toBeGreaterThan(20);
    }
  }
  expect((await server.client.completions.create({ ...asked, n: 1, logit_bias: {}, user: 'me' })).choices.length).toBe(
    1,
  );

  const raw = async (path: string, init: RequestInit) => {
    const response = await fetch(new URL(path, server.url), init);
    const { error } = (await response.json()) as { error: { code: string } };
    return [response.status, error.code, response.headers.get('allow')];
  };
  const headers = { 'content-type': 'application/json' };
  const post = (body: string | Uint8Array) => ({ method: 'POST', headers, body: body as string });
  expect(await raw('/v1/completions', post('{"model":'))).toEqual([400, 'invalid_json', null]);
  expect(await raw('/v1/completions', post(Uint8Array.of(0xff, 0xfe)))).toEqual([400, 'invalid_json', null]);
  expect(await raw('/v1/completions', post(''))).toEqual([400, 'invalid_json', null]);
  const deep = `${'['.repeat(9000)}${']'.repeat(9000)}`;
  for (const name of ['tools', 'tool_choice', 'response_format', 'n']) {
    const body = `{"model": "sigma-tldr", "prompt": "a", "${name}": ${deep}}`;
    expect(await raw('/v1/completions', post(body))).toEqual([400, 'unsupported_parameter', null]);
  }
  for (const body of ['[]', 'null', '3']) expect((await raw('/v1/completions', post(body)))[0]).toBe(400);
  expect(await raw('/v1/completions', { method: 'GET' })).toEqual([405, null, 'POST']);
  expect(await raw('/v1/models', { method: 'DELETE' })).toEqual([405, null, 'GET']);
  expect(await raw('/v1/embeddings?x=1', post('{}'))).toEqual([404, 'not_found', null]);
  expect(await raw('/constructor', { method: 'GET' })).toEqual([404, 'not_found', null]);

  // A body without a length, a body that never completes, and data that is not HTTP.
  const { port } = new URL(server.url);
  const chunked = request({ port, path: '/v1/completions', method: 'POST', headers });
  for (let i = 0; i < 30; i++) chunked.write('x'.repeat(1000));
  chunked.end();
  const [answer] = (await once(chunked, 'response')) as [IncomingMessage];
  expect(answer.statusCode).toBe(413);
  answer.resume();
  for (const text of [
    'POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n{"mod',
    '\x16\x03\x01 hello',
  ]) {
    const socket = connect(Number(port)).on('error', () => {});
    socket.write(text);
    await new Promise((resolve) => setTimeout(resolve, 20));
    socket.destroy();
  }
  expect((await idle(server)).status).toBe('ok');
  expect(await server.stop()).toBe(0);
  expect(server.errors()).toBe('');
});

/** Sends bytes on a connection of its own. Resolves to all of the answer when the server closes it. */
async function exchange({ url }: Server, text: string, ...more: string[]): Promise<string> {
  const { port, hostname } = new URL(url);
  const socket = connect(Number(port), hostname.replace(/[[\]]/g, ''));
  socket.on('error', () => {});
  socket.write(text);
  for (const part of more) {
    await new Promise((resolve) => setTimeout(resolve, 100));
    socket.write(part);
  }
  return (await socket.toArray()).join('');
}

it('rejects other Host names, which DNS rebinding uses, and other content types, which a web page can send', async () => {
  const server = await start(['--allowed-hosts', 'diffqkv.example,Other.example']);
  const get = async (path: string, host: string) =>
    (await exchange(server, `GET ${path} HTTP/1.1\r\n${host}connection: close\r\n\r\n`)).split('\r\n')[0];
  const { port } = new URL(server.url);
  for (const host of [
    'localhost',
    `LOCALHOST:${port}`,
    '127.0.0.1',
    `[::1]:${port}`,
    'diffqkv.example:1',
    'other.example',
  ])
    expect([host, await get('/v1/models', `host: ${host}\r\n`)]).toEqual([host, 'HTTP/1.1 200 OK']);
  for (const path of ['/v1/models', '/health', '/nothing'])
    for (const host of ['evil.example', 'localhost.evil.example', 'localhost:80:80', '127.0.0.2', ''])
      expect([path, host, await get(path, `host: ${host}\r\n`)]).toEqual([path, host, 'HTTP/1.1 403 Forbidden']);
  expect(await get('/v1/models', '')).toBe('HTTP/1.1 400 Bad Request');

  const body = JSON.stringify({ model: 'sigma-tldr', prompt, max_tokens: 1 });
  const post = async (type?: string) => {
    const init: RequestInit = {
      method: 'POST',
      body: Buffer.from(body),
      headers: type === undefined ? {} : { 'content-type': type },
    };
    return (await fetch(new URL('/v1/completions', server.url), init)).status;
  };
  for (const type of ['application/json', 'Application/JSON; charset=utf-8', 'application/json ;x=y'])
    expect([type, await post(type)]).toEqual([type, 200]);
  for (const type of [
    undefined,
    'text/plain',
    'application/x-www-form-urlencoded',
    'application/jsonx',
    'text/plain;application/json',
  ])
    expect([type, await post(type)]).toEqual([type, 415]);
  expect(await server.stop()).toBe(0);
  expect(server.errors()).toBe('');
});

// Only Linux has all addresses of 127.0.0.0/8.
const itOnLinux = process.platform === 'linux' ? it : it.skip;

itOnLinux('allows the host that it is bound to', async () => {
  const server = await start(['--host', '127.0.0.3']);
  expect(server.url).toContain('127.0.0.3');
  expect((await server.client.models.list()).data.length).toBe(1);
  expect((await fetch(server.url.replace('/v1', '/health'))).status).toBe(200);
});

it('closes the connection after 413, and a client that still sends reads the answer', async () => {
  const server = await start(['--max-body-bytes', '1000']);
  const head = 'POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n';
  const chunk = `${(1001).toString(16)}\r\n${'x'.repeat(1001)}\r\n`;
  const next = 'GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n';
  const began = Date.now();
  for (const answer of [
    await exchange(server, `${head}content-length: 1001\r\n\r\n`),
    await exchange(server, `${head}content-length: 2000000\r\n\r\n`, 'x'.repeat(1_000_000), 'x'.repeat(1_000_000)),
    await exchange(server, `${head}transfer-encoding: chunked\r\n\r\n${chunk}`, chunk, chunk),
    await exchange(server, `${head}transfer-encoding: chunked\r\n\r\n${chunk}0\r\n\r\n${next}`),
  ]) {
    expect(answer).toMatch(/^HTTP\/1\.1 413 /);
    expect(answer).toMatch(/^connection: close\r$/im);
    expect(answer).toContain('request_too_large');
    expect(answer.match(/HTTP\/1\.1/g)?.length).toBe(1);
  }
  expect(Date.now() - began).toBeLessThan(20_000); // not the 30 s of --stall-ms
  await idle(server);
  expect(await server.stop()).toBe(0);
  expect(server.errors()).toBe('');
});

itOnLinux('limits the connections of one address', async () => {
  const server = await start(['--max-connections-per-peer', '3']);
  const { port } = new URL(server.url);
  const alive = 'GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n';
  const open = async (localAddress: string) => {
    const socket = connect({ port: Number(port), host: '127.0.0.1', localAddress });
    socket.on('error', () => {}).on('end', () => socket.destroy(new Error('closed')));
    socket.write(alive);
    const answered = await once(socket, 'data').then(
      () => true,
      () => false,
    );
    return { socket, answered };
  };
  const all = [];
  for (let i = 0; i < 5; i++) all.push(await open('127.0.0.1'));
  expect(all.map(({ answered }) => answered)).toEqual([true, true, true, false, false]);
  const other = await open('127.0.0.5'); // another address
  expect(other.answered).toBe(true);
  // A closed connection makes room again.
  all[0]?.socket.destroy();
  for (let tries = 0; ; tries++) {
    const again = await open('127.0.0.1');
    again.socket.destroy();
    if (again.answered) break;
    if (tries > 100) throw new Error('a closed connection still counts');
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  for (const { socket } of [...all, other]) socket.destroy();
  expect(await server.stop()).toBe(0);
});

it('encodes behind the gate, rejects long prompts without encoding them, and shows no paths', async () => {
  const script = `
    import { createApp } from ${JSON.stringify(pathToFileURL(join(projectRoot, 'examples', 'http-server', 'server.mjs')).href)};
    const counts = { calls: 0, now: 0, most: 0 };
    const encode = async (text) => {
      counts.calls++;
      counts.most = Math.max(counts.most, ++counts.now);
      await new Promise((resolve) => setTimeout(resolve, 20));
      counts.now--;
      if (text === 'bad') throw Object.assign(new Error('/secret/model/tokenizer.json: bad'), { code: 'ERR_INVALID_ARGUMENT' });
      return text === 'long' ? Array(101).fill(1) : [1];
    };
    const result = { text: 'x', finishReason: 'stop', usage: { promptTokens: 1, completionTokens: 1 } };
    const model = {
      config: { maxPositionEmbeddings: 100 },
      kvCache: {},
      tokenizer: { encodeAsync: encode, encodeChat: ([{ content }]) => encode(content) },
      generate: () => ({ result: new Promise((resolve) => setTimeout(resolve, 20, result)) }),
    };
    const { server, close } = createApp(model, 'm', { maxConcurrent: 2, maxQueue: 20, directory: '/secret/model' });
    await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
    const url = 'http://127.0.0.1:' + server.address().port;
    const ask = async (body, path = '/v1/completions') => {
      const init = { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify({ model: 'm', ...body }) };
      const response = await fetch(url + path, init);
      return [response.status, (await response.json()).error?.code, counts.calls];
    };
    const many = (await Promise.all(Array.from({ length: 12 }, () => ask({ prompt: 'ok' })))).map(([status]) => status);
    const most = counts.most;
    counts.calls = 0;
    const refused = [
      await ask({ prompt: 'x'.repeat(1601) }),
      await ask({ prompt: Array(101).fill(1) }),
      await ask({ messages: [{ role: 'user', content: 'x'.repeat(800) }, { role: 'user', content: 'x'.repeat(801) }] }, '/v1/chat/completions'),
      await ask({ prompt: 'x'.repeat(1600) }),
      await ask({ prompt: 'long' }),
    ];
    const init = { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify({ model: 'm', prompt: 'bad' }) };
    const bad = await Promise.all([1, 2, 3, 4].map(async () => (await (await fetch(url + '/v1/completions', init)).json()).error.message));
    const { running, queued } = await (await fetch(url + '/health')).json();
    console.log(JSON.stringify({ many, most, refused, bad, running, queued }));
    await close();`;
  const { status, stdout, stderr } = await runNode(['--input-type=module', '-e', script]);
  expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
  const tooLong = [400, 'context_length_exceeded'];
  expect(JSON.parse(stdout)).toEqual({
    many: Array(12).fill(200),
    most: 2,
    refused: [
      [...tooLong, 0],
      [...tooLong, 0],
      [...tooLong, 0],
      [200, null, 1],
      [...tooLong, 2],
    ],
    bad: Array(4).fill('the model/tokenizer.json: bad'),
    running: 0,
    queued: 0,
  });
});

it('cancels the requests of a client that leaves: during a stream, before an answer, in the queue', async () => {
  const server = await startEndless('--max-concurrent', '2');
  const { completions } = server.client;
  const ask = (stream: boolean, seed: number, signal?: AbortSignal) =>
    completions.create({ ...endless(seed), stream } as never, { signal });
  const streams = [await ask(true, 1), await ask(true, 2)] as unknown as AsyncIterable<unknown>[];
  const controllers = [new AbortController(), new AbortController()];
  const waiting = controllers.map(({ signal }, i) => ask(i === 0, 3, signal).catch((error: Error) => error.name));
  expect((await until(server, ({ queued }) => queued === 2)).running).toBe(2);
  controllers[0]?.abort();
  await until(server, ({ queued, running }) => queued === 1 && running === 2);
  expect(await waiting[0]).toBe('Error');
  for (const stream of streams.slice(0, 1)) {
    let count = 0;
    for await (const _ of stream) if (++count === 3) break; // the client closes the connection
  }
  // The next waiting request starts, and its client leaves before the answer.
  await until(server, ({ queued, running }) => queued === 0 && running === 2);
  controllers[1]?.abort();
  await until(server, ({ running, open }) => running === 1 && open === 1);
  for await (const _ of streams[1] as AsyncIterable<unknown>) break;
  await idle(server);
  const after = await completions.create({ model: 'endless', prompt, max_tokens: 40, temperature: 0 });
  expect(after.choices[0]?.text).toBe(greedy);
  expect(await server.stop()).toBe(0);
  expect(server.errors()).toBe('');
});

it('cancels pipelined requests whose client leaves', async () => {
  const server = await startEndless('--max-concurrent', '2');
  const body = JSON.stringify(endless());
  const post = `POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`;
  const socket = connect(Number(new URL(server.url).port), '127.0.0.1');
  socket.write(post.repeat(6));
  await until(server, ({ open, running, queued }) => open === 6 && running === 2 && queued === 4);
  socket.destroy();
  await idle(server);
  const after = await server.client.completions.create({ model: 'endless', prompt, max_tokens: 40, temperature: 0 });
  expect(after.choices[0]?.text).toBe(greedy);
  expect(await server.stop()).toBe(0);
  expect(server.errors()).toBe('');
});

it('accepts requests up to its limit, answers 429 with a retry time above it, and serves waiting ones in order', async () => {
  const server = await startEndless('--max-concurrent', '1', '--max-queue', '3');
  const first = await server.client.completions.create({ ...endless(), stream: true });
  const order: number[] = [];
  const others: Promise<unknown>[] = [];
  for (let i = 0; i < 3; i++) {
    others.push(server.client.completions.create({ ...endless(), max_tokens: 5 }).then(() => order.push(i)));
    await until(server, ({ queued }) => queued === i + 1);
  }
  const error = await apiError(() => server.client.completions.create(endless()));
  expect(error).toMatchObject({ status: 429, code: 'rate_limit_exceeded', type: 'rate_limit_error' });
  expect(error.headers?.get('retry-after')).toBe('1');
  // The client retries by itself.
  const patient = server.client.withOptions({ maxRetries: 5 }).completions.create({ ...endless(), max_tokens: 2 });
  first.controller.abort();
  await Promise.all(others);
  expect(order).toEqual([0, 1, 2]);
  expect((await patient).usage?.completion_tokens).toBe(2);
  await idle(server);
});

it('ends a request that exceeds its time, with an error', async () => {
  const server = await startEndless('--timeout-ms', '3000', '--max-concurrent', '1');
  const stream = await server.client.completions.create({ ...endless(), stream: true });
  let text = '';
  const read = async () => {
    for await (const { choices } of stream) text += choices[0]?.text;
  };
  const reading = apiError(read);
  const waiting = await apiError(() => server.client.completions.create(endless(2)));
  expect(waiting).toMatchObject({ status: 504, code: 'timeout', type: 'server_error' });
  expect(await reading).toMatchObject({ code: 'timeout', type: 'server_error' });
  expect(text.length).toBeGreaterThan(0);
  await idle(server);
});

it('rejects unusable numbers at the start with one line', async () => {
  for (const [option, value] of [
    ['--timeout-ms', '2147483648'],
    ['--max-concurrent', '0'],
    ['--max-queue', 'x'],
  ] as const) {
    const { status, stderr } = await runNode([main, '--device', 'cpu', '--port', '0', option, value]);
    expect({ status, stderr }).toEqual({
      status: 1,
      stderr: expect.stringMatching(new RegExp(`^${option} must be .*, not ${value}\n$`)),
    });
  }
});

it('answers 503 if the KV cache is full, and serves the next request', async () => {
  const server = await startEndless('--kv-cache-bytes', String(4 * 64 * 2304)); // 4 pages
  const asked = { ...endless(), prompt: '# tar\n'.repeat(100), max_tokens: 3 };
  const error = await apiError(() => server.client.completions.create(asked));
  expect(error).toMatchObject({ status: 503, code: 'ERR_KV_CACHE_FULL', type: 'server_error' });
  expect(error.headers?.get('retry-after')).toBe('1');
  // During a stream the same error is an event of the stream.
  const stream = await server.client.completions.create({ ...endless(), stream: true });
  expect(await apiError(() => collect(stream))).toMatchObject({ code: 'ERR_KV_CACHE_FULL' });
  await idle(server);
  expect((await server.client.completions.create({ ...asked, prompt: '# tar\n' })).choices.length).toBe(1);
});

const emulated = listDevices().some(({ id }) => id === 'emulated');
(emulated ? it : it.skip)('answers 503 if the device is lost, in /health too (emulated)', async () => {
  const args = ['--model', endlessDirectory, '--device', 'emulated'];
  const server = await start(args, { DIFFQKV_EMULATED_FAIL_LAUNCH: '150' });
  const asked = { ...endless(), prompt: [5], max_tokens: 4 };
  for (let i = 0; i < 2; i++) {
    const error = await apiError(() => server.client.completions.create(asked));
    expect(error).toMatchObject({ status: 503, code: 'ERR_DEVICE_UNAVAILABLE', type: 'server_error' });
  }
  const response = await fetch(new URL('/health', server.url));
  expect([response.status, await response.json()]).toMatchObject([503, { status: 'device lost', running: 0 }]);
  expect(await server.stop()).toBe(0);
});

describe('a reader that does not read', () => {
  // Uses a Unix socket because its buffer is small: a loopback buffer is larger than this model's
  // longest answer.
  const slow = async (...args: string[]) => {
    const socketPath = join(directories.make(), 'socket');
    const server = await startEndless('--socket', socketPath, ...args);
    const ask = (path: string, body?: object) =>
      new Promise<IncomingMessage>((resolve, reject) => {
        const headers = { connection: 'close', 'content-type': 'application/json' };
        request({ socketPath, path, method: body ? 'POST' : 'GET', headers, agent: false }, resolve)
          .on('error', reject)
          .end(body && JSON.stringify(body));
      });
    const json = async (response: IncomingMessage) => JSON.parse((await response.toArray()).join(''));
    server.health = async () => json(await ask('/health'));
    return { server, ask, json, socketPath };
  };

  it('blocks neither other requests nor its own generation, and the buffered output is limited', async () => {
    const { server, ask, json } = await slow('--max-concurrent', '1');
    // Nobody reads the answer.
    const lazy = await ask('/v1/completions', { ...endless(), max_tokens: 1000, stream: true });
    // The generation ends and frees its place, while the server still buffers the rest of the
    // answer.
    const health = await until(server, ({ running, open }) => running === 0 && open === 1);
    expect(health.bufferedBytes).toBeGreaterThan(0);
    expect(health.bufferedBytes).toBeLessThan(lazy.readableHighWaterMark + 2000);
    const other = await json(
      await ask('/v1/completions', { model: 'endless', prompt, max_tokens: 40, temperature: 0 }),
    );
    expect(other.choices[0].text).toBe(greedy);
    expect((await server.health()).open).toBe(1);
    // A late reader still gets everything.
    const events = (await lazy.toArray()).join('').split('\n\n').filter(Boolean);
    expect(events.at(-1)).toBe('data: [DONE]');
    const text = events.slice(0, -1).map((event) => JSON.parse(event.slice(6)).choices[0].text);
    const whole = await json(await ask('/v1/completions', { ...endless(), max_tokens: 1000 }));
    expect(text.join('')).toBe(whole.choices[0].text);
    expect(whole.usage.completion_tokens).toBe(1000);
    await idle(server);
  });

  it('is disconnected after a while', async () => {
    const { server, ask, socketPath } = await slow('--stall-ms', '300');
    const lazy = await ask('/v1/completions', { ...endless(), stream: true });
    await idle(server);
    await expect(lazy.toArray()).rejects.toThrow('aborted');
    // A client that stops writing is disconnected too.
    const socket = connect(socketPath);
    socket.write(
      'POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n{"mod',
    );
    expect((await socket.toArray()).join('')).toMatch(/^HTTP\/1.1 408 /);
    expect(await server.stop()).toBe(0);
    expect(server.errors()).toBe('');
  });
});

it('shuts down in order: finishes running requests, rejects new ones, ends long ones', async () => {
  const server = await startEndless();
  const running = await server.client.completions.create({ ...endless(), max_tokens: 300, stream: true });
  server.child.kill('SIGTERM');
  const chunks = await collect(running);
  expect(chunks.at(-1)?.choices[0]?.finish_reason).toBe('length');
  if (server.child.exitCode === null) await once(server.child, 'exit');
  expect(server.child.exitCode).toBe(0);

  const hasty = await startEndless('--grace-ms', '50');
  const cut = await hasty.client.completions.create({ ...endless(), stream: true });
  hasty.child.kill('SIGTERM');
  expect(await apiError(() => collect(cut))).toMatchObject({ code: 'closing' });
  await expect(hasty.client.models.list()).rejects.toThrow();
  if (hasty.child.exitCode === null) await once(hasty.child, 'exit');
  expect(hasty.child.exitCode).toBe(0);
});

it('passes a short run of the load script', async () => {
  const script = join(projectRoot, 'examples', 'http-server', 'load.mjs');
  const args = ['--clients', '24', '--seconds', '3', '--', '--device', 'cpu'];
  const { status, stdout, stderr } = await runNode([script, ...args]);
  expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
  const figures = JSON.parse(stdout);
  expect(figures).toMatchObject({ errors: 0, kvPages: { after: 0 }, running: { max: 24, after: 0 } });
  expect(figures.aborted).toBeGreaterThan(0);
});
