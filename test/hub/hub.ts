// What the tests of the hub share: a hub for each file, an empty cache for each test.

import { createHash } from 'node:crypto';
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { randomCheckpoint, temporaryDirectories } from '../support/checkpoints';
import { type Context, FakeHub } from './fake_hub.cjs';

const variables = ['HF_ENDPOINT', 'HF_HUB_CACHE', 'HF_HUB_OFFLINE', 'HF_TOKEN', 'HF_HUB_DOWNLOAD_TIMEOUT'];

/** Bytes that no other seed gives, so that a test cannot use the blob of another one. */
export function randomBytes(length: number, seed: number): Buffer {
  return createHash('shake256', { outputLength: length }).update(String(seed)).digest();
}

export const config = JSON.stringify(randomCheckpoint({}).config);
export const weightBytes = 3_000_000;

/** A model whose config is accepted and whose weights, the only file at the CDN, are noise. */
export const noise = (seed: number) => ({
  'config.json': config,
  'tokenizer_config.json': `{"seed": ${seed}}`,
  'model.safetensors': randomBytes(weightBytes, seed),
});

export interface HubOfTests {
  hub: FakeHub;
  /** The cache of the current test. */
  cache: string;
  /** The folder of a model in the cache, and paths in it. */
  folder(name: string, ...paths: string[]): string;
  /** Names in a folder of the cache, without those that do not exist. */
  names(name: string, ...paths: string[]): string[];
  /** Whether an exchange is about weights at the CDN. */
  isWeights(context: Context): boolean;
}

/** Starts a hub for the tests of a file, and sets the environment for each test. */
export function hubOfTests(): HubOfTests {
  const directories = temporaryDirectories();
  const before = Object.fromEntries(variables.map((name) => [name, process.env[name]]));
  const folder = (name: string, ...paths: string[]) =>
    join(tests.cache, `models--${name.replace('/', '--')}`, ...paths);
  const tests = {
    folder,
    names(name: string, ...paths: string[]) {
      const directory = folder(name, ...paths);
      return existsSync(directory) ? readdirSync(directory).sort() : [];
    },
    isWeights: ({ host }: Context) => host === 'cdn',
  } as HubOfTests;
  beforeAll(async () => {
    tests.hub = await FakeHub.start();
  });
  beforeEach(() => {
    tests.cache = join(directories.make(), 'cache');
    tests.hub.requests = [];
    tests.hub.fault = () => false;
    for (const name of variables) delete process.env[name];
    Object.assign(process.env, { HF_ENDPOINT: tests.hub.endpoint, HF_HUB_CACHE: tests.cache });
    process.env.HF_HUB_DOWNLOAD_TIMEOUT = '600'; // a machine that is busy for long is no silent server
  });
  afterAll(async () => {
    for (const name of variables) delete process.env[name];
    for (const [name, value] of Object.entries(before)) if (value !== undefined) process.env[name] = value;
    await tests.hub.close();
    directories.cleanUp();
  });
  return tests;
}
