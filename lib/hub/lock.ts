import { randomUUID } from 'node:crypto';
import { readlinkSync } from 'node:fs';
import { link, open, readFile, rename, stat, unlink, utimes } from 'node:fs/promises';
import { hostname } from 'node:os';
import { setTimeout as delay } from 'node:timers/promises';

const POLL_MS = 200;
const HEARTBEAT_MS = 2_000;
// A holder that does not touch its lock for so long is taken to be dead.
const STALE_MS = 30_000;

interface Holder {
  id: string;
  pid: number;
  /** Where `pid` is the id of a process. */
  place: string;
}

/**
 * A lock between processes: a file that one process creates. The holder touches it, so that others
 * notice if the holder has ended without releasing it. Node has no flock().
 */
export class FileLock {
  readonly #path: string;
  readonly #id: string;
  readonly #heartbeat: NodeJS.Timeout;
  #checkedAt = Date.now();

  private constructor(path: string, id: string) {
    this.#path = path;
    this.#id = id;
    const touch = () => {
      const now = new Date();
      utimes(path, now, now).catch(() => {}); // #check notices a lost lock
    };
    this.#heartbeat = setInterval(touch, HEARTBEAT_MS).unref();
  }

  /** Waits for the lock. Rejects with an AbortError, or with an error of the file system. */
  static async acquire(path: string, signal: AbortSignal): Promise<FileLock> {
    const self: Holder = { id: randomUUID(), pid: process.pid, place: place() };
    let seen = { mtimeMs: 0, since: 0 };
    while (!(await create(path, JSON.stringify(self)))) {
      const now = performance.now(); // not the clock of the file system, which may differ
      const status = await stat(path).catch(() => null);
      if (status !== null) {
        if (status.mtimeMs !== seen.mtimeMs) seen = { mtimeMs: status.mtimeMs, since: now };
        const holder = await readHolder(path);
        const isDead = holder?.place === self.place && !isRunning(holder.pid);
        if (isDead || now - seen.since > STALE_MS) await remove(path, holder?.id);
      }
      await delay(status === null ? 0 : POLL_MS, undefined, { signal });
    }
    return new FileLock(path, self.id);
  }

  /**
   * Whether this process still has the lock: it loses it if it is stopped for long. Reads the file
   * only if the last call is more than a heartbeat ago.
   */
  async isHeld(): Promise<boolean> {
    const now = Date.now();
    if (now - this.#checkedAt < HEARTBEAT_MS) return true;
    const holder = await readHolder(this.#path);
    this.#checkedAt = now;
    return holder?.id === this.#id;
  }

  async release(): Promise<void> {
    clearInterval(this.#heartbeat);
    if ((await readHolder(this.#path))?.id === this.#id) await unlink(this.#path).catch(() => {});
  }
}

/** Process ids are those of a host, and in a container of its namespace. */
function place(): string {
  try {
    return `${hostname()} ${readlinkSync('/proc/self/ns/pid')}`;
  } catch {
    return hostname();
  }
}

function isRunning(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code !== 'ESRCH';
  }
}

async function create(path: string, text: string): Promise<boolean> {
  const file = await open(path, 'wx').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'EEXIST') return null;
    throw error;
  });
  if (file === null) return false;
  try {
    await file.writeFile(text).finally(() => file.close());
    return true;
  } catch (error) {
    await unlink(path).catch(() => {});
    throw error;
  }
}

async function readHolder(path: string): Promise<Holder | null> {
  try {
    return JSON.parse(await readFile(path, 'utf8')) as Holder;
  } catch {
    return null;
  }
}

/** Removes the lock of a dead holder, unless another process has done it and taken the lock. */
async function remove(path: string, id: string | undefined): Promise<void> {
  const aside = `${path}.${randomUUID()}`;
  try {
    await rename(path, aside);
    if ((await readHolder(aside))?.id !== id) await link(aside, path);
  } catch {
    // Another process was faster.
  }
  await unlink(aside).catch(() => {});
}
