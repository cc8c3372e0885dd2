// The machine and the versions of a result. Every result file has them.
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';

/** The folder of package.json, from bench/ and from dist/bench/. */
export const projectRoot: string = (() => {
  let folder = __dirname;
  while (!fs.existsSync(path.join(folder, 'package.json'))) {
    const parent = path.dirname(folder);
    if (parent === folder) throw new Error(`no package.json in any folder above ${__dirname}`);
    folder = parent;
  }
  return folder;
})();

/** Bytes that can be allocated now, also within the limit of a container. */
export function availableMemory(): number {
  return Math.min(os.freemem(), process.availableMemory());
}

export interface Machine {
  cpu: string;
  cores: number;
  memoryBytes: number;
  os: string;
  /** 1-minute load average before the run. Figures of a busy machine are not reliable. */
  loadAverage: number;
}

export function describeMachine(): Machine {
  const cpus = os.cpus();
  return {
    cpu: cpus[0]?.model.trim() ?? 'unknown',
    cores: cpus.length,
    memoryBytes: os.totalmem(),
    os: `${os.type()} ${os.release()} ${os.arch()}`,
    loadAverage: os.loadavg()[0] ?? 0,
  };
}

export interface Versions {
  node: string;
  diffqkv: string;
  /** null outside a git checkout. */
  commit: string | null;
  /** Whether the checkout differs from that commit; null outside one. */
  dirty: boolean | null;
  /** A hash of the changes; null without changes. */
  changes: string | null;
}

function git(...args: string[]): string | null {
  try {
    const output = execFileSync('git', args, {
      cwd: projectRoot,
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    return output.trim();
  } catch {
    return null; // git is not installed, or this is not a checkout
  }
}

export function describeVersions(): Versions {
  const { version } = JSON.parse(fs.readFileSync(path.join(projectRoot, 'package.json'), 'utf8')) as {
    version: string;
  };
  const isCheckout = git('rev-parse', '--show-toplevel') === fs.realpathSync(projectRoot);
  // Changes of the results do not change the program.
  const status = isCheckout ? git('status', '--porcelain', '--', '.', ':!bench/results') : null;
  const diff = status ? `${status}\n${git('diff', 'HEAD', '--', '.', ':!bench/results')}` : null;
  return {
    node: process.version,
    diffqkv: version,
    commit: isCheckout ? git('rev-parse', 'HEAD') : null,
    dirty: status === null ? null : status !== '',
    changes: diff && createHash('sha256').update(diff).digest('hex').slice(0, 12),
  };
}
