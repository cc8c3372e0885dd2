// Downloads that do not go well: broken connections, wrong answers, a full disk, several processes.

import { createHash } from 'node:crypto';
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  type StatsFs,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import * as fs from 'node:fs/promises';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { type DownloadOptions, downloadModel, parseModelId } from '../../lib/hub/index';
import { temporaryDirectories } from '../support/checkpoints';
import { builtIndex, runNode } from '../support/children';
import { errorOf } from '../support/devices';
import { type Context, gitHash } from './fake_hub.cjs';
import { config, hubOfTests, noise, randomBytes, weightBytes } from './hub';

const tests = hubOfTests();
const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

const download = (id: string, options?: DownloadOptions) => downloadModel(parseModelId(id)!, options);
const failure = async (id: string, options?: DownloadOptions) => {
  const { code, message } = await errorOf(() => download(id, options));
  return { code, message };
};
const sha256 = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex');
const weights = (id: string) => tests.hub.models.get(`${id}@main`)!.files.get('model.safetensors')!;
const partial = (id: string) => tests.folder(id, 'blobs', `${sha256(weights(id))}.diffqkv.incomplete`);
const blob = (id: string) => tests.folder(id, 'blobs', sha256(weights(id)));
/** Requests of weights. Each begins at the hub and is redirected. */
const requests = () => tests.hub.requests.filter(({ host }) => host === 'cdn');

/** All that fake timers can replace but setTimeout. */
const realTimers = [
  ...(['Date', 'hrtime', 'nextTick', 'performance', 'queueMicrotask'] as const),
  ...(['setImmediate', 'clearImmediate', 'setInterval', 'clearInterval'] as const),
];

/** Waits until so many bytes of the weights are in the file of the part. */
async function written(id: string, bytes: number): Promise<void> {
  for (let i = 0; i < 500 && !(existsSync(partial(id)) && statSync(partial(id)).size >= bytes); i++) await delay(20);
}

/** Breaks the connections for weights, each after so many bytes, when the client has written them. */
function breakAfter(id: string, ...bytes: number[]): void {
  tests.hub.fault = async (context) => {
    const stopAfter = tests.isWeights(context) ? bytes.shift() : undefined;
    if (stopAfter === undefined) return false;
    await tests.hub.send(context, weights(id), { stopAfter, beforeStop: (end) => written(id, end) });
    return true;
  };
}

/** Answers each request for weights. */
function answerWeights(answer: (context: Context, bytes: Buffer) => unknown): void {
  tests.hub.fault = async (context) => {
    if (!tests.isWeights(context)) return false;
    const all = [...tests.hub.models.values()].flatMap(({ files }) => [...files.values()]);
    await answer(context, all.find((candidate) => context.url.includes(sha256(candidate)))!);
    return true;
  };
}

/** What must hold after a failure: nothing under a final name, no lock, no link. */
function expectNoWeights(id: string): void {
  expect(existsSync(blob(id))).toBe(false);
  for (const snapshot of tests.names(id, 'snapshots'))
    expect(tests.names(id, 'snapshots', snapshot)).not.toContain('model.safetensors');
  expect(readdirSync(join(tests.cache, '.locks', `models--${id.replace('/', '--')}`))).toEqual([]);
}

function expectWhole(id: string): void {
  expect(readFileSync(blob(id)).equals(weights(id))).toBe(true);
  expect(tests.names(id, 'blobs').filter((name) => name.includes('incomplete'))).toEqual([]);
}

describe('a broken connection', () => {
  it('is continued where it broke', async () => {
    tests.hub.add('org/broken', noise(10));
    breakAfter('org/broken', 1_000_000, 500_000);
    await download('org/broken');
    expectWhole('org/broken');
    expect(requests().map(({ headers }) => headers.range)).toEqual([undefined, 'bytes=1000000-', 'bytes=1500000-']);
    expect(tests.hub.bytesSent('cdn')).toBe(weightBytes);
  });

  it('may break more often than there are attempts, if each brings something', async () => {
    tests.hub.add('org/often', noise(11));
    breakAfter('org/often', ...Array(8).fill(300_000));
    await download('org/often');
    expectWhole('org/often');
    expect(tests.hub.bytesSent('cdn')).toBe(weightBytes);
  });

  it('ends the download after five attempts that bring nothing, and the next call continues', async () => {
    tests.hub.add('org/silent', noise(12));
    breakAfter('org/silent', 1_000_000, 0, 0, 0, 0, 0);
    const { code, message } = await failure('org/silent');
    expect([code, message]).toEqual(['ERR_NETWORK', expect.stringContaining('org/silent: cannot reach localhost:')]);
    expect(requests().length).toBe(5);
    expectNoWeights('org/silent');
    expect(statSync(partial('org/silent')).size).toBe(1_000_000);
    tests.hub.requests = [];
    const progress: number[] = [];
    await download('org/silent', { onDownload: ({ downloadedBytes }) => progress.push(downloadedBytes) });
    expectWhole('org/silent');
    expect(tests.hub.bytesSent('cdn')).toBe(weightBytes - 1_000_000);
    expect(progress[0]).toBeGreaterThanOrEqual(1_000_000);
  });

  it('that stalls is given up after HF_HUB_DOWNLOAD_TIMEOUT, and continued', async () => {
    process.env.HF_HUB_DOWNLOAD_TIMEOUT = '0.5';
    tests.hub.add('org/stall', noise(13));
    const timersLeft: number[] = [];
    let count = 0;
    answerWeights(async (context, bytes) => {
      if (++count > 1) return tests.hub.send(context, bytes);
      context.response.writeHead(200, { 'content-length': bytes.length });
      context.response.write(bytes.subarray(0, 700_000));
      await written('org/stall', 700_000);
      for (let i = 0; i < 500 && jest.getTimerCount() === 0; i++) await delay(20);
      for (const ms of [499, 1]) {
        jest.advanceTimersByTime(ms);
        timersLeft.push(jest.getTimerCount());
      }
      return undefined;
    });
    // The time of the client's timers does not pass by itself, so a busy machine changes nothing.
    jest.useFakeTimers({ doNotFake: realTimers });
    try {
      await download('org/stall');
    } finally {
      jest.useRealTimers();
    }
    expect(timersLeft).toEqual([1, 0]);
    expectWhole('org/stall');
    expect(requests()[1]?.headers.range).toBe('bytes=700000-');
  });

  it('with a server that ignores ranges begins again', async () => {
    tests.hub.add('org/ranges', noise(14));
    let count = 0;
    answerWeights((context, bytes) =>
      tests.hub.send(context, bytes, {
        ignoreRange: true,
        stopAfter: ++count === 1 ? 1_000_000 : Infinity,
        beforeStop: (end) => written('org/ranges', end),
      }),
    );
    await download('org/ranges');
    expectWhole('org/ranges');
    expect(tests.hub.bytesSent('cdn')).toBe(weightBytes + 1_000_000);
  });

  it.each([
    ['another', { 'content-range': `bytes 5-${weightBytes - 1}/${weightBytes}` }],
    ['no', {}],
  ])('with an answer to %s range is an error', async (name, headers) => {
    const id = `org/${name}-range`;
    tests.hub.add(id, noise(15));
    breakAfter(id, 1_000_000);
    const broken = tests.hub.fault;
    tests.hub.fault = async (context) => {
      if (await broken(context)) return true;
      if (!context.headers.range) return false;
      context.response.writeHead(206, headers).end('x');
      return true;
    };
    expect(await failure(id)).toEqual({
      code: 'ERR_INVALID_DOWNLOAD',
      message: expect.stringContaining('another range than the request'),
    });
    expectNoWeights(id);
  });
});

describe('an abort', () => {
  it('ends the download at once, and the next call fetches only the rest', async () => {
    tests.hub.add('org/abort', noise(20));
    const controller = new AbortController();
    answerWeights((context, bytes) => {
      context.response.writeHead(200, { 'content-length': bytes.length });
      context.response.write(bytes.subarray(0, 1_200_000)); // and nothing more
    });
    let abortedAt = 0;
    const { code, message } = await failure('org/abort', {
      signal: controller.signal,
      onDownload: ({ downloadedBytes }) => {
        if (downloadedBytes < 1_000_000) return;
        abortedAt = performance.now();
        controller.abort();
      },
    });
    expect(code).toBe('ABORT_ERR');
    expect(message).toBe('the signal was aborted while the model was downloaded');
    expect(performance.now() - abortedAt).toBeLessThan(3000);
    expectNoWeights('org/abort');
    const kept = statSync(partial('org/abort')).size;
    expect(kept).toBeGreaterThan(1_000_000);
    tests.hub.fault = () => false;
    tests.hub.requests = [];
    await download('org/abort');
    expectWhole('org/abort');
    expect(tests.hub.bytesSent('cdn')).toBe(weightBytes - kept);
  });

  it('is noticed before the download, while it waits for an answer, and while it waits to retry', async () => {
    tests.hub.add('org/wait', noise(21));
    expect((await failure('org/wait', { signal: AbortSignal.abort() })).code).toBe('ABORT_ERR');
    expect(tests.hub.requests).toEqual([]);
    tests.hub.fault = () => true; // never answers
    expect((await failure('org/wait', { signal: AbortSignal.timeout(100) })).code).toBe('ABORT_ERR');
    tests.hub.fault = (context) => {
      tests.hub.refuse(context, 503, undefined, { 'retry-after': '30' });
      return true;
    };
    const start = performance.now();
    expect((await failure('org/wait', { signal: AbortSignal.timeout(300) })).code).toBe('ABORT_ERR');
    expect(performance.now() - start).toBeLessThan(10_000);
  });

  it('an error of the callback ends the download with that error', async () => {
    tests.hub.add('org/callback', noise(22));
    const error = Object.assign(new Error('mine'), { code: 'ENOSPC' });
    const onDownload = () => {
      throw error;
    };
    expect(await errorOf(() => download('org/callback', { onDownload }))).toBe(error);
    expectNoWeights('org/callback');
  });
});

describe('contents', () => {
  it('of another sha256 are an error, and are not kept', async () => {
    tests.hub.add('org/hash', noise(30));
    answerWeights((context, bytes) => {
      const wrong = Buffer.from(bytes);
      wrong[2_000_000]! ^= 1;
      return tests.hub.send(context, wrong);
    });
    const { code, message } = await failure('org/hash');
    expect(code).toBe('ERR_INVALID_DOWNLOAD');
    expect(message).toMatch(/the sha256 of model\.safetensors is [0-9a-f]{64}, and the hub lists [0-9a-f]{64}\./);
    expectNoWeights('org/hash');
    expect(existsSync(partial('org/hash'))).toBe(false);
    tests.hub.fault = () => false;
    await download('org/hash');
    expectWhole('org/hash');
  });

  it('of another git hash are an error', async () => {
    tests.hub.add('org/git', noise(31));
    tests.hub.fault = async (context) => {
      if (!context.url.endsWith('/config.json')) return false;
      await tests.hub.send(context, Buffer.from(config.replace('silu', 'gelu')));
      return true;
    };
    expect(await failure('org/git')).toEqual({
      code: 'ERR_INVALID_DOWNLOAD',
      message: expect.stringMatching(/the git-sha1 of config\.json is [0-9a-f]{40}, and the hub lists/),
    });
    expect(tests.names('org/git', 'blobs')).toEqual([]);
  });

  it('that are kept, but damaged, are fetched again', async () => {
    tests.hub.add('org/damaged', noise(32));
    mkdirSync(tests.folder('org/damaged', 'blobs'), { recursive: true });
    writeFileSync(partial('org/damaged'), randomBytes(1_000_000, 99));
    await download('org/damaged');
    expectWhole('org/damaged');
    expect(requests().map(({ headers }) => headers.range)).toEqual(['bytes=1000000-', undefined]);
  });

  it('that are kept, but too long, are fetched again', async () => {
    tests.hub.add('org/long', noise(33));
    mkdirSync(tests.folder('org/long', 'blobs'), { recursive: true });
    writeFileSync(partial('org/long'), randomBytes(weightBytes + 1, 99));
    await download('org/long');
    expectWhole('org/long');
  });

  it.each([
    ['announces more', 'content-length', weightBytes + 5],
    ['announces less', 'content-length', weightBytes - 5],
    ['sends more, in chunks', 'transfer-encoding', 'chunked'],
  ])('of a server that %s than the hub lists are an error', async (_name, header, value) => {
    const id = `org/size-${header === 'content-length' ? value : 'chunked'}`;
    tests.hub.add(id, noise(34));
    answerWeights((context, bytes) => {
      context.response.writeHead(200, { [header]: value });
      context.response.end(Buffer.concat([bytes, Buffer.from('extra')]).subarray(0, weightBytes + 5));
    });
    const { code, message } = await failure(id);
    expect([code, message]).toEqual(['ERR_INVALID_DOWNLOAD', expect.stringContaining(String(weightBytes))]);
    expectNoWeights(id);
    expect(existsSync(partial(id))).toBe(false);
  });
});

describe('errors of the hub', () => {
  const gated =
    'org/e: the model is gated: accept its license at HUB/org/e, and set HF_TOKEN to an access token of that account';
  const absent =
    'org/e: no such directory, and no such model at HOST. If the model is private, set HF_TOKEN to an access token';
  const lacksToken = 'set HF_TOKEN to an access token';
  const badToken = 'the access token (HF_TOKEN, or the file that `hf auth login` writes) does not allow it';
  it.each<[string, number, string | undefined, string | undefined, string, string]>([
    ['gated', 401, 'GatedRepo', undefined, 'ERR_ACCESS_DENIED', gated],
    ['gated, with a token', 403, 'GatedRepo', 'hf_secret', 'ERR_ACCESS_DENIED', gated],
    ['no such model', 404, 'RepoNotFound', undefined, 'ERR_MODEL_NOT_FOUND', absent],
    ['no such model, without a reason', 404, undefined, 'hf_secret', 'ERR_MODEL_NOT_FOUND', absent],
    ['no such model, by the reason', 401, 'RepoNotFound', 'hf_secret', 'ERR_MODEL_NOT_FOUND', absent],
    ['no such model, as the hub says it', 401, undefined, undefined, 'ERR_MODEL_NOT_FOUND', absent],
    ['no such revision', 404, 'RevisionNotFound', undefined, 'ERR_MODEL_NOT_FOUND', 'org/e: no revision main at HOST'],
    [
      ...(['no such file', 404, 'EntryNotFound', undefined, 'ERR_INVALID_DOWNLOAD'] as const),
      'org/e: the answer of HOST is invalid: a file of the listing does not exist',
    ],
    ['forbidden', 403, undefined, undefined, 'ERR_ACCESS_DENIED', `org/e: HOST answered 403: ${lacksToken}`],
    ['a bad token', 401, undefined, 'hf_secret', 'ERR_ACCESS_DENIED', `org/e: HOST answered 401: ${badToken}`],
    ['a weak token', 403, undefined, 'hf_secret', 'ERR_ACCESS_DENIED', `org/e: HOST answered 403: ${badToken}`],
    [
      ...(['another status', 418, undefined, undefined, 'ERR_NETWORK'] as const),
      'org/e: HOST answered 418. It is neither a directory nor downloaded',
    ],
  ])('%s', async (_name, status, errorCode, token, code, message) => {
    tests.hub.add('org/e', noise(40));
    if (token !== undefined) process.env.HF_TOKEN = token;
    tests.hub.fault = (context) => {
      tests.hub.refuse(context, status, errorCode);
      return true;
    };
    const error = await failure('org/e');
    const { endpoint } = tests.hub;
    expect(error).toEqual({
      code,
      message: message.replace('HUB', endpoint).replace('HOST', new URL(endpoint).host),
    });
    expect(tests.hub.requests.length).toBe(1);
    expect(existsSync(tests.cache)).toBe(false);
  });

  it('an error of the CDN says nothing about the model', async () => {
    tests.hub.add('org/cdn', noise(45));
    answerWeights((context) => tests.hub.refuse(context, 404));
    const host = new URL(tests.hub.cdn).host;
    expect(await failure('org/cdn')).toEqual({ code: 'ERR_NETWORK', message: `org/cdn: ${host} answered 404` });
  });

  it('429 and 503 are tried again, after the time that the server says', async () => {
    tests.hub.add('org/busy', noise(41));
    const times: number[] = [];
    tests.hub.fault = (context) => {
      if (times.push(performance.now()) > 2) return false;
      tests.hub.refuse(context, times.length === 1 ? 429 : 503, undefined, { 'retry-after': '1' });
      return true;
    };
    await download('org/busy');
    expectWhole('org/busy');
    expect(times[1]! - times[0]!).toBeGreaterThan(990);
    expect(times[2]! - times[1]!).toBeGreaterThan(990);
  });

  it('500 is tried five times, after waits that double', async () => {
    const times: number[] = [];
    tests.hub.fault = (context) => {
      times.push(performance.now());
      tests.hub.refuse(context, 500);
      return true;
    };
    expect(await failure('org/e')).toEqual({ code: 'ERR_NETWORK', message: expect.stringContaining('answered 500') });
    expect(tests.hub.requests.length).toBe(5);
    for (const [i, waitMs] of [500, 1000, 2000, 4000].entries())
      expect(times[i + 1]! - times[i]!).toBeGreaterThan(waitMs - 10);
  });

  it('408 and a date in the past are tried again at once', async () => {
    tests.hub.add('org/past', noise(44));
    let count = 0;
    tests.hub.fault = (context) => {
      if (++count > 2) return false;
      tests.hub.refuse(context, 408, undefined, { 'retry-after': new Date(0).toUTCString() });
      return true;
    };
    const start = performance.now();
    await download('org/past');
    expect(performance.now() - start).toBeLessThan(5000);
    expectWhole('org/past');
  });

  it('a server that asks for a wait of an hour is not waited for', async () => {
    tests.hub.fault = (context) => {
      tests.hub.refuse(context, 429, undefined, { 'retry-after': '3600' });
      return true;
    };
    const { host } = new URL(tests.hub.endpoint);
    expect((await failure('org/e')).message).toBe(
      `org/e: ${host} answered 429 (too many requests). It is neither a directory nor downloaded`,
    );
    expect(tests.hub.requests.length).toBe(1);
  });

  it('no network', async () => {
    process.env.HF_ENDPOINT = 'http://127.0.0.1:9';
    expect(await failure('org/e')).toEqual({
      code: 'ERR_NETWORK',
      message: expect.stringMatching(
        /^org\/e: cannot reach 127\.0\.0\.1:9: .*\. It is neither a directory nor downloaded$/,
      ),
    });
  });

  it.each<[string, (hub: string) => string]>([
    ['in a loop', (hub) => `${hub}/org/e/resolve/again`],
    ['to a file', () => 'file:///etc/passwd'],
    ['to no URL', () => 'http://'],
    ['to a URL with a password', () => 'http://user:password@127.0.0.1:9/'],
  ])('a redirect %s', async (_name, location) => {
    tests.hub.add('org/e', noise(42));
    tests.hub.fault = (context) => {
      if (!context.url.includes('/resolve/')) return false;
      context.response.writeHead(302, { location: location(tests.hub.endpoint) }).end();
      return true;
    };
    const { code, message } = await failure('org/e');
    expect([code, message]).toEqual([
      'ERR_NETWORK',
      expect.stringMatching(/redirects (more than 10 times|to an address)/),
    ]);
    expect(message).not.toContain('password');
    // Of config.json, the first file: the request, and ten that are redirected.
    const asked = tests.hub.requests.filter(({ url }) => url.includes('/resolve/'));
    expect(asked.length).toBe(message.includes('more than 10') ? 11 : 1);
  });

  it('a renamed model is followed', async () => {
    tests.hub.add('new/name', noise(43));
    tests.hub.fault = (context) => {
      if (!context.url.includes('org/old')) return false;
      context.response.writeHead(307, { location: context.url.replace('org/old', 'new/name') }).end();
      return true;
    };
    await download('org/old');
    expect(readFileSync(tests.folder('org/old', 'blobs', sha256(weights('new/name')))).length).toBe(weightBytes);
  });
});

describe('the access token', () => {
  it('goes to the hub and not to its CDN', async () => {
    tests.hub.add('org/private', noise(50), { token: 'hf_secret' });
    expect((await failure('org/private')).code).toBe('ERR_ACCESS_DENIED');
    process.env.HF_TOKEN = ' hf_secret\n';
    tests.hub.requests = [];
    await download('org/private');
    const sent = (host: string) =>
      tests.hub.requests.filter((r) => r.host === host).map((r) => r.headers.authorization);
    expect(new Set(sent('hub'))).toEqual(new Set(['Bearer hf_secret']));
    expect(sent('cdn')).toEqual([undefined]);
  });

  it('comes from the file that hf auth login writes', async () => {
    const home = directories.make();
    writeFileSync(join(home, 'token'), 'hf_of_the_file\n');
    const before = process.env.HF_HOME;
    process.env.HF_HOME = home;
    delete process.env.HF_HUB_CACHE;
    try {
      tests.hub.add('org/login', noise(51), { token: 'hf_of_the_file' });
      expect(await download('org/login')).toContain(join(home, 'hub', 'models--org--login', 'snapshots'));
    } finally {
      process.env.HF_HOME = before;
    }
  });

  it('with a character that no header has is an error that does not show it', async () => {
    process.env.HF_TOKEN = 'hf_se\ncret';
    const { code, message } = await failure('org/e');
    expect([code, message]).toEqual(['ERR_INVALID_ARGUMENT', expect.not.stringContaining('cret')]);
  });
});

it.each(['huggingface.co', 'ftp://x', 'http://user:password@x'])('HF_ENDPOINT %s is an error', async (endpoint) => {
  process.env.HF_ENDPOINT = endpoint;
  const { code, message } = await failure('org/e');
  expect([code, message]).toEqual([
    'ERR_INVALID_ARGUMENT',
    expect.stringMatching(/^HF_ENDPOINT must be (?!.*password)/),
  ]);
});

describe('a hostile hub', () => {
  const file = (path: unknown, over: object = {}) => ({
    ...tests.hub.entry('config.json', Buffer.from('x')),
    path,
    ...over,
  });

  it.each<[string, () => unknown, RegExp]>([
    ['that is no JSON', () => '<html>', /JSON/],
    ['that is no list', () => '{"error": 1}', /./],
    ['of nulls', () => [null], /./],
    ['with a path that is no string', () => [file(7)], /the entry of 7 lacks/],
    ['with a negative size', () => [file('config.json', { size: -1 })], /the entry of config\.json lacks/],
    [
      'with a hash that leads elsewhere',
      () => [file('config.json', { oid: `../../../${'a'.repeat(31)}` })],
      /lacks a size or a hash/,
    ],
    ['with a short hash', () => [file('config.json', { oid: 'abc' })], /lacks a size or a hash/],
    ['without a file of the model', () => [file('README.md')], /config\.json is not in the listing/],
    [
      'with a config of 10 GB',
      () => [file('config.json', { size: 1e10 }), file('tokenizer_config.json'), file('model.safetensors')],
      /config\.json has 10000000000 bytes/,
    ],
    ['of 17 MB', () => `["${'x'.repeat(17 * 2 ** 20)}"]`, /more than 16777216 bytes/],
  ])('a listing %s', async (_name, listing, problem) => {
    tests.hub.add('org/hostile', noise(60), { listing: listing() });
    const { code, message } = await failure('org/hostile');
    expect([code, message]).toEqual(['ERR_INVALID_DOWNLOAD', expect.stringMatching(problem)]);
    expect(tests.names('org/hostile', 'blobs')).toEqual([]);
  });

  it('paths that leave the snapshot are not files of a model', async () => {
    const outside = ['../../evil', '/tmp/evil', 'a/../../../evil', 'C:\\evil', '..'];
    const files = { ...noise(61), ...Object.fromEntries(outside.map((path) => [path, 'evil'])) };
    const commit = tests.hub.add('org/paths', files);
    await download('org/paths');
    expect(tests.names('org/paths', 'snapshots', commit)).toEqual([
      'config.json',
      'model.safetensors',
      'tokenizer_config.json',
    ]);
    expect(tests.names('org/paths').concat(readdirSync(tests.cache)).sort()).toEqual(
      ['.locks', 'blobs', 'models--org--paths', 'refs', 'snapshots'].sort(),
    );
  });

  it.each(['../../../evil.safetensors', '/tmp/evil.safetensors', 'a/b.safetensors', 'x.bin', ''])(
    'an index with the shard %j',
    async (shard) => {
      const index = JSON.stringify({ weight_map: { a: shard } });
      tests.hub.add('org/index', { 'config.json': config, 'model.safetensors.index.json': index, [shard]: 'x' });
      const { code, message } = await failure('org/index');
      expect([code, message]).toEqual([
        'ERR_INVALID_DOWNLOAD',
        expect.stringContaining('is not the name of a safetensors file'),
      ]);
    },
  );

  it.each<[string, string]>([
    ['not valid JSON', '{'],
    ['weight_map is not an object', '[]'],
    ['0 shards', '{"weight_map": {}}'],
    ['b.safetensors is not in the listing', '{"weight_map": {"a": "b.safetensors"}}'],
  ])('an index: %s', async (problem, index) => {
    tests.hub.add('org/index', { 'config.json': config, 'model.safetensors.index.json': index });
    expect((await failure('org/index')).message).toContain(problem);
  });

  const lacks = 'the description of the model lacks its commit or its files';
  it.each<[string, object | string, string]>([
    ['no JSON', 'oops', 'JSON'],
    ['no commit', { id: 'x', siblings: [] }, lacks],
    ['a commit that is a path', { id: 'x', siblings: [], sha: '../../../../evil' }, lacks],
    ['a commit of 39 digits', { id: 'x', siblings: [], sha: 'a'.repeat(39) }, lacks],
    ['a commit of other characters', { id: 'x', siblings: [], sha: 'g'.repeat(40) }, lacks],
    ['files that are no strings', { id: 'x', siblings: [{ rfilename: 1 }], sha: 'a'.repeat(40) }, lacks],
    ['files that are no list', { id: 'x', siblings: 5, sha: 'a'.repeat(40) }, ''],
  ])('a description with %s', async (_name, description, problem) => {
    tests.hub.fault = (context) => {
      tests.hub.json(context, description);
      return true;
    };
    const { host } = new URL(tests.hub.endpoint);
    const { code, message } = await failure('org/e');
    expect([code, message]).toEqual(['ERR_INVALID_DOWNLOAD', expect.stringContaining(problem)]);
    expect(message.startsWith(`org/e: the answer of ${host} is invalid: `)).toBe(true);
    expect(existsSync(tests.cache)).toBe(false);
  });

  it('a listing without an end, or with its next page on another host', async () => {
    tests.hub.add('org/pages', noise(62));
    let link = '';
    tests.hub.fault = (context) => {
      if (!context.url.includes('/tree/')) return false;
      tests.hub.json(context, [], { link });
      return true;
    };
    link = `<${tests.hub.endpoint}/api/models/org/pages/tree/main>; rel="next"`;
    expect((await failure('org/pages')).message).toContain('more than 100 pages');
    link = `<${tests.hub.cdn}/page>; rel="next"`;
    process.env.HF_TOKEN = 'hf_secret';
    expect((await failure('org/pages')).message).toContain('a page is on another host');
    expect(requests()).toEqual([]);
  });
});

it('a link in place of the part is not followed', async () => {
  tests.hub.add('org/planted', noise(63));
  const target = join(directories.make(), 'precious');
  writeFileSync(target, 'mine');
  mkdirSync(tests.folder('org/planted', 'blobs'), { recursive: true });
  symlinkSync(target, partial('org/planted'));
  expect((await failure('org/planted')).code).toBe('ERR_CACHE');
  expect(readFileSync(target, 'utf8')).toBe('mine');
});

describe('the disk', () => {
  /** Makes the writes of files fail from so many bytes on. */
  async function withFullDisk(bytes: number, work: () => Promise<void>): Promise<void> {
    const handle = await fs.open(__filename);
    const prototype = Object.getPrototypeOf(handle);
    await handle.close();
    let left = bytes;
    const { write } = prototype;
    const spy = jest.spyOn(prototype, 'write').mockImplementation(function (this: fs.FileHandle, ...args: unknown[]) {
      left -= (args[2] as number) ?? 0;
      if (left >= 0) return write.apply(this, args);
      return Promise.reject(
        Object.assign(new Error('ENOSPC: no space left on device, write'), { code: 'ENOSPC', errno: -28 }),
      );
    });
    try {
      await work();
    } finally {
      spy.mockRestore();
    }
  }

  it('is full within the download: a coded error; what is there is kept, and continued', async () => {
    tests.hub.add('org/full', noise(70));
    await withFullDisk(1_500_000, async () => {
      expect(await failure('org/full')).toEqual({
        code: 'ERR_CACHE',
        message: expect.stringMatching(/model\.safetensors.*: the disk is full: free space, or set HF_HUB_CACHE/),
      });
    });
    expectNoWeights('org/full');
    const kept = statSync(partial('org/full')).size;
    expect(kept).toBeGreaterThan(1_000_000);
    tests.hub.requests = [];
    await download('org/full');
    expectWhole('org/full');
    expect(tests.hub.bytesSent('cdn')).toBe(weightBytes - kept);
  });

  it('has too little space: known before the weights are requested', async () => {
    tests.hub.add('org/space', noise(71));
    const listing = [...tests.hub.models.get('org/space@main')!.files].map(([path, bytes]) =>
      tests.hub.entry(path, bytes),
    );
    Object.assign(listing.find(({ path }) => path === 'model.safetensors')!, { size: 2 ** 52 });
    tests.hub.models.get('org/space@main')!.listing = listing;
    expect(await failure('org/space')).toEqual({
      code: 'ERR_CACHE',
      message: expect.stringMatching(/needs 4503599627370496 more bytes, and .*blobs.* has \d+ bytes free/),
    });
    expect(requests()).toEqual([]);
    writeFileSync(partial('org/space'), Buffer.alloc(496));
    expect((await failure('org/space')).message).toContain(`needs ${2 ** 52 - 496} more bytes`);
  });

  it('that does not tell its size is used', async () => {
    const real: typeof fs = jest.requireActual('node:fs/promises');
    const none = { bavail: 0, bsize: 4096, blocks: 0 } as StatsFs;
    const spy = jest.spyOn(real, 'statfs').mockResolvedValue(none);
    try {
      tests.hub.add('org/sizeless', noise(73));
      await download('org/sizeless');
      expectWhole('org/sizeless');
      tests.hub.add('org/little', noise(74));
      spy.mockResolvedValue({ bavail: 2, bsize: 3, blocks: 1 } as StatsFs);
      expect((await failure('org/little')).message).toMatch(
        /the download needs \d+ more bytes, and .* has 6 bytes free/,
      );
    } finally {
      spy.mockRestore();
    }
  });

  it('has a file in place of the cache', async () => {
    tests.hub.add('org/file', noise(72));
    writeFileSync(tests.cache, '');
    expect(await failure('org/file')).toEqual({
      code: 'ERR_CACHE',
      message: expect.stringContaining('cannot be used'),
    });
  });
});

describe('without symbolic links', () => {
  /** Makes functions of node:fs/promises fail with these codes. */
  async function failing(codes: Record<string, string>, work: () => Promise<void>): Promise<void> {
    const real = jest.requireActual('node:fs/promises');
    const spies = Object.entries(codes).map(([name, code]) =>
      jest
        .spyOn(real, name)
        .mockImplementation(() => Promise.reject(Object.assign(new Error(code), { code, errno: -1 }))),
    );
    try {
      await work();
    } finally {
      for (const spy of spies) spy.mockRestore();
    }
  }

  it.each(['EPERM', 'ENOSYS', 'ENOTSUP'])('(%s) a snapshot has hard links', async (code) => {
    const id = `org/${code.toLowerCase()}`;
    const commit = tests.hub.add(id, noise(80));
    await failing({ symlink: code }, async () => void (await download(id)));
    const path = tests.folder(id, 'snapshots', commit, 'model.safetensors');
    expect(() => readlinkSync(path)).toThrow('EINVAL');
    expect(statSync(path).ino).toBe(statSync(blob(id)).ino);
  });

  it('and hard links a snapshot has copies', async () => {
    const commit = tests.hub.add('org/copies', noise(83));
    await failing({ symlink: 'EPERM', link: 'EXDEV' }, async () => void (await download('org/copies')));
    const path = tests.folder('org/copies', 'snapshots', commit, 'model.safetensors');
    expect(statSync(path).ino).not.toBe(statSync(blob('org/copies')).ino);
    expect(readFileSync(path).equals(weights('org/copies'))).toBe(true);
  });

  it('for another reason, the download fails', async () => {
    const commit = tests.hub.add('org/links-fail', noise(84));
    await failing({ symlink: 'EROFS' }, async () => expect((await failure('org/links-fail')).code).toBe('ERR_CACHE'));
    expect(tests.names('org/links-fail', 'snapshots', commit)).toEqual([]);
  });
});

it('files with the same contents are downloaded once', async () => {
  const shard = randomBytes(weightBytes, 81);
  const index = JSON.stringify({ weight_map: { a: 'a.safetensors', b: 'b.safetensors' } });
  const files = { 'config.json': config, 'model.safetensors.index.json': index };
  const commit = tests.hub.add('org/twins', { ...files, 'a.safetensors': shard, 'b.safetensors': shard });
  await download('org/twins');
  expect(tests.hub.bytesSent('cdn')).toBe(weightBytes);
  expect(tests.names('org/twins', 'snapshots', commit)).toContain('b.safetensors');
});

it('a link that leads nowhere, and a blob that is too short, are replaced', async () => {
  const commit = tests.hub.add('org/links', noise(82));
  await download('org/links');
  await fs.truncate(blob('org/links'), 1000);
  await fs.unlink(tests.folder('org/links', 'snapshots', commit, 'model.safetensors'));
  await fs.unlink(tests.folder('org/links', 'blobs', gitHash(Buffer.from(config))));
  await download('org/links');
  expectWhole('org/links');
  expect(readFileSync(tests.folder('org/links', 'snapshots', commit, 'config.json'), 'utf8')).toBe(config);
});

describe('several processes', () => {
  const script = `
    const { downloadModel } = require(${JSON.stringify(builtIndex.replace('index.js', 'hub/index.js'))});
    downloadModel({ name: process.argv[1], revision: 'main' }).then(console.log, (error) => { console.log(error.code); });`;
  const start = (name: string, options = {}) => runNode(['-e', script, name], options);

  it('download a model once, and both get it', async () => {
    const commit = tests.hub.add('org/two', noise(90));
    answerWeights(async (context, bytes) => {
      await delay(300);
      await tests.hub.send(context, bytes);
    });
    const outcomes = await Promise.all([start('org/two'), start('org/two'), download('org/two')]);
    const directory = tests.folder('org/two', 'snapshots', commit);
    expect(outcomes.map((outcome) => (typeof outcome === 'string' ? outcome : outcome.stdout.trim()))).toEqual(
      Array(3).fill(directory),
    );
    expectWhole('org/two');
    expect(tests.hub.bytesSent('cdn')).toBe(weightBytes);
  });

  it('one that is killed leaves its lock and a part, and the next one continues', async () => {
    tests.hub.add('org/killed', noise(91));
    let kill = () => {};
    answerWeights(async (context, bytes) => {
      context.response.writeHead(200, { 'content-length': bytes.length });
      context.response.write(bytes.subarray(0, 2_000_000));
      await written('org/killed', 1_000_000);
      kill();
    });
    const killed = await start('org/killed', {
      onStart: (child: { kill(signal: string): void }) => {
        kill = () => child.kill('SIGKILL');
      },
    });
    expect(killed.signal).toBe('SIGKILL');
    expect(readdirSync(join(tests.cache, '.locks', 'models--org--killed'))).toEqual(['diffqkv.lock']);
    const kept = statSync(partial('org/killed')).size;
    tests.hub.fault = () => false;
    tests.hub.requests = [];
    const begun = performance.now();
    await download('org/killed');
    expect(performance.now() - begun).toBeLessThan(15_000); // it does not wait until the lock is old
    expectWhole('org/killed');
    expect(tests.hub.bytesSent('cdn')).toBe(weightBytes - kept);
  });

  it('one that waits for another can be aborted, and a lock of another host is waited for', async () => {
    tests.hub.add('org/host', noise(92));
    const folder = join(tests.cache, '.locks', 'models--org--host');
    mkdirSync(folder, { recursive: true });
    const lock = join(folder, 'diffqkv.lock');
    writeFileSync(lock, JSON.stringify({ id: 'x', pid: 1, place: `not ${hostname()}` }));
    expect((await failure('org/host', { signal: AbortSignal.timeout(1000) })).code).toBe('ABORT_ERR');
    expect(existsSync(lock)).toBe(true);
    // Its holder is alive as long as it touches the lock.
    const touch = setInterval(() => utimesSync(lock, new Date(), new Date()), 500);
    const waiting = download('org/host');
    await delay(1500);
    expect(requests()).toEqual([]);
    clearInterval(touch);
    await fs.unlink(lock);
    await waiting;
    expectWhole('org/host');
  });

  it('a lock that nobody touches for 30 s is taken over', async () => {
    tests.hub.add('org/stale', noise(93));
    const folder = join(tests.cache, '.locks', 'models--org--stale');
    mkdirSync(folder, { recursive: true });
    writeFileSync(join(folder, 'diffqkv.lock'), 'no JSON');
    const begun = performance.now();
    await download('org/stale');
    expect(performance.now() - begun).toBeGreaterThan(29_000);
    expectWhole('org/stale');
    expect(readdirSync(folder)).toEqual([]);
  });

  it('a process that has lost its lock does not write', async () => {
    tests.hub.add('org/lost', noise(94));
    const lock = join(tests.cache, '.locks', 'models--org--lost', 'diffqkv.lock');
    answerWeights(async (context, bytes) => {
      context.response.writeHead(200, { 'content-length': bytes.length });
      context.response.write(bytes.subarray(0, 500_000));
      await delay(2500);
      writeFileSync(lock, JSON.stringify({ id: 'another' }));
      await delay(100);
      await new Promise((resolve) => context.response.end(bytes.subarray(500_000), () => resolve(undefined)));
    });
    expect(await failure('org/lost')).toEqual({
      code: 'ERR_CACHE',
      message: expect.stringContaining('another process has taken over this download'),
    });
    expect(statSync(partial('org/lost')).size).toBe(500_000);
    expect(existsSync(lock)).toBe(true); // of the other process
  });
});
