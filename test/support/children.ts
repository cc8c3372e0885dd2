// Runs other processes on the built package: scripts and the command line.

import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { projectRoot } from './fixtures';

export interface Outcome {
  status: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
}

export interface RunOptions {
  nodeOptions?: string[];
  env?: Record<string, string>;
  cwd?: string;
  input?: string;
  timeoutMs?: number;
  /** Called when the process runs; may send signals. */
  onStart?: (child: ChildProcessWithoutNullStreams) => void;
}

export const builtIndex = join(projectRoot, 'dist', 'lib', 'index.js');
export const builtCli = join(projectRoot, 'dist', 'cli', 'main.js');

/** Runs `node` and waits for its exit. Kills it after the timeout; its signal is then SIGKILL. */
export function runNode(args: string[], options: RunOptions = {}): Promise<Outcome> {
  if (!existsSync(builtIndex)) throw new Error('dist/ is missing: run `npm run build` first');
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [...(options.nodeOptions ?? []), ...args], {
      cwd: options.cwd ?? projectRoot,
      env: { ...process.env, NODE_OPTIONS: '', ...options.env },
    });
    let stdout = '';
    let stderr = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      stdout += text;
    });
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      stderr += text;
    });
    child.stdin.on('error', () => {}); // the process may exit without reading all of its input
    const timer = setTimeout(() => child.kill('SIGKILL'), options.timeoutMs ?? 120_000);
    child.on('error', reject);
    child.on('close', (status, signal) => {
      clearTimeout(timer);
      resolve({ status, signal, stdout, stderr });
    });
    child.stdin.end(options.input ?? '');
    options.onStart?.(child);
  });
}

/** Runs a script, a path below test/, whose last line of output is JSON, and returns that. */
export async function runScript<T>(script: string, args: string[], options: RunOptions = {}): Promise<T> {
  const outcome = await runNode([join(projectRoot, 'test', script), ...args], options);
  if (outcome.status !== 0)
    throw new Error(
      `${script} ${args.join(' ')} ended with ${outcome.status ?? outcome.signal}:\n${outcome.stdout}\n${outcome.stderr}`,
    );
  return JSON.parse(outcome.stdout.trim().split('\n').pop() as string) as T;
}
