import { randomUUID } from 'node:crypto';
import {
  copyFile,
  link,
  mkdir,
  readdir,
  readFile,
  rename,
  stat,
  symlink,
  unlink,
  writeFile,
} from 'node:fs/promises';
import { dirname, join, relative } from 'node:path';
import { DiffqkvError } from '../errors';
import type { ModelId } from './id';
import { FileLock } from './lock';
import { shardNames, weightFiles } from './select';

/** A snapshot of a model in the cache. */
export interface CachedSnapshot {
  /** `org/name`. */
  name: string;
  commit: string;
  /** Branches and tags that had this commit when they were last looked up. */
  revisions: string[];
  directory: string;
  /** Bytes of its files. Snapshots of one model may share files. */
  bytes: number;
  /** Whether it has a config and all weights. */
  complete: boolean;
}

/** ERR_CACHE for an error of the file system. */
export function cacheError(path: string, error: unknown): Error {
  const { code, errno, message } = error as NodeJS.ErrnoException;
  if (errno === undefined) return error as Error; // not of the file system
  const full = code === 'ENOSPC' || code === 'EDQUOT';
  return new DiffqkvError(
    'ERR_CACHE',
    full
      ? `${path}: the disk is full: free space, or set HF_HUB_CACHE to a directory on another ` +
          'disk. What is downloaded is kept for the next attempt'
      : `${path}: the cache of models cannot be used: ${message}`,
  );
}

/**
 * The folder of one model in the cache, in the layout of Python's huggingface_hub:
 *
 *     blobs/HASH                contents
 *     snapshots/COMMIT/PATH     relative symbolic links to blobs
 *     refs/REVISION             the commit of a branch or tag
 */
export class CachedModel {
  readonly #folder: string;
  readonly #locks: string;

  constructor(cache: string, name: string) {
    const folder = `models--${name.replace('/', '--')}`;
    this.#folder = join(cache, folder);
    this.#locks = join(cache, '.locks', folder);
  }

  snapshot(commit: string): string {
    return join(this.#folder, 'snapshots', commit);
  }

  blob(hash: string): string {
    return join(this.#folder, 'blobs', hash);
  }

  /** The commit that a revision had when it was last looked up. */
  async commitOf(revision: string): Promise<string | null> {
    if (/^[0-9a-f]{40}$/.test(revision)) return revision;
    const text = await readFile(join(this.#folder, 'refs', revision), 'utf8').catch(() => '');
    return /^[0-9a-f]{40}$/.test(text.trim()) ? text.trim() : null;
  }

  /** The snapshot of a revision, if it has a config and all weights. */
  async completeSnapshot({ revision }: ModelId): Promise<string | null> {
    const commit = await this.commitOf(revision);
    if (commit === null) return null;
    return (await isComplete(this.snapshot(commit))) ? this.snapshot(commit) : null;
  }

  async writeRef(revision: string, commit: string): Promise<void> {
    if (revision === commit || (await this.commitOf(revision)) === commit) return;
    const path = join(this.#folder, 'refs', revision);
    await mkdir(dirname(path), { recursive: true });
    await replace(path, (temporary) => writeFile(temporary, commit));
  }

  /** Makes a path of a snapshot lead to a blob. */
  async linkBlob(commit: string, path: string, hash: string): Promise<void> {
    const pointer = join(this.snapshot(commit), path);
    const blob = this.blob(hash);
    await mkdir(dirname(pointer), { recursive: true });
    await replace(pointer, async (temporary) => {
      try {
        await symlink(relative(dirname(pointer), blob), temporary);
      } catch (error) {
        // Windows lets only some users create symbolic links.
        if (!['EPERM', 'ENOSYS', 'ENOTSUP'].includes((error as { code: string }).code)) throw error;
        await link(blob, temporary).catch(() => copyFile(blob, temporary));
      }
    });
  }

  async lock(signal: AbortSignal): Promise<FileLock> {
    await mkdir(this.#locks, { recursive: true });
    return FileLock.acquire(join(this.#locks, 'diffqkv.lock'), signal);
  }
}

/** Creates something under a temporary name and moves it to `path`, so that it appears whole. */
async function replace(path: string, create: (temporary: string) => Promise<void>): Promise<void> {
  const temporary = `${path}.${randomUUID().slice(0, 8)}.tmp`;
  try {
    await create(temporary);
    await rename(temporary, path);
  } catch (error) {
    await unlink(temporary).catch(() => {});
    throw error;
  }
}

/** Whether all paths exist below the directory. Follows links. */
export async function hasFiles(directory: string, paths: readonly string[]): Promise<boolean> {
  const found = await Promise.all(
    paths.map((path) =>
      stat(join(directory, path)).then(
        (status) => status.isFile(),
        () => false,
      ),
    ),
  );
  return found.every(Boolean);
}

async function isComplete(directory: string): Promise<boolean> {
  const names = await readdir(directory).catch(() => []);
  const weights = weightFiles(names);
  if (weights === null || !(await hasFiles(directory, ['config.json', weights.first])))
    return false;
  if (!weights.isIndex) return true;
  const index = await readFile(join(directory, weights.first)).catch(() => Buffer.alloc(0));
  const shards = shardNames(index);
  return Array.isArray(shards) && hasFiles(directory, shards);
}

/** All snapshots of models in the cache, sorted by name. */
export async function listSnapshots(cache: string): Promise<CachedSnapshot[]> {
  const list: CachedSnapshot[] = [];
  for (const folder of (await namesIn(cache)).filter((name) => name.startsWith('models--'))) {
    const name = folder.slice('models--'.length).replace('--', '/');
    const refs = join(cache, folder, 'refs');
    const revisions = new Map<string, string[]>();
    for (const revision of await filesUnder(refs)) {
      const commit = (await readFile(join(refs, revision), 'utf8').catch(() => '')).trim();
      revisions.set(commit, [...(revisions.get(commit) ?? []), revision]);
    }
    for (const commit of await namesIn(join(cache, folder, 'snapshots'))) {
      const directory = join(cache, folder, 'snapshots', commit);
      const sizes = (await filesUnder(directory)).map((path) =>
        stat(join(directory, path)).then(
          ({ size }) => size,
          () => 0,
        ),
      );
      const bytes = (await Promise.all(sizes)).reduce((sum, size) => sum + size, 0);
      const complete = await isComplete(directory);
      list.push({
        name,
        commit,
        revisions: revisions.get(commit) ?? [],
        directory,
        bytes,
        complete,
      });
    }
  }
  return list;
}

async function namesIn(directory: string): Promise<string[]> {
  try {
    return (await readdir(directory)).sort();
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT' || code === 'ENOTDIR') return [];
    throw cacheError(directory, error);
  }
}

async function filesUnder(directory: string, prefix = ''): Promise<string[]> {
  const entries = await readdir(join(directory, prefix), { withFileTypes: true }).catch(() => []);
  const lists = entries.map((entry) => {
    const path = join(prefix, entry.name);
    return entry.isDirectory() ? filesUnder(directory, path) : [path];
  });
  return (await Promise.all(lists)).flat().sort();
}
