// A peer in its own process, so that its threads and memory do not affect the figures of diffqkv.
import { type ChildProcess, fork } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';

import { projectRoot } from '../machine';

export const peersFolder = path.join(projectRoot, 'bench', 'peers');

/** The reason why a peer cannot be measured. */
export class PeerMissing extends Error {}

export class Worker {
  private readonly waiting: { resolve: (result: unknown) => void; reject: (error: Error) => void }[] = [];

  private ended: Error | null = null;

  private stderr = '';

  private constructor(
    private readonly child: ChildProcess,
    script: string,
  ) {
    child.stderr?.on('data', (chunk) => {
      this.stderr = (this.stderr + chunk).slice(-2000);
    });
    child.on('message', (message: { result?: unknown; error?: string }) => {
      const next = this.waiting.shift();
      if (message.error === undefined) next?.resolve(message.result);
      else next?.reject(new Error(message.error));
    });
    child.on('error', (error) => this.fail(error));
    child.on('exit', (status, signal) =>
      this.fail(new Error(`${script} ended (${signal ?? `status ${status}`}): ${this.stderr.trim().slice(-300)}`)),
    );
  }

  /** Starts `script` of bench/peers, which uses the package `name` in bench/peers/node_modules. */
  static open(script: string, name: string): Worker {
    if (!fs.existsSync(path.join(peersFolder, script)))
      throw new PeerMissing('an installation has no peers: use a clone of the repository');
    if (!fs.existsSync(path.join(peersFolder, 'node_modules', name)))
      throw new PeerMissing(`${name} is not installed: run \`node bench/peers/install.mjs\``);
    const child = fork(path.join(peersFolder, script), { stdio: ['ignore', 'ignore', 'pipe', 'ipc'] });
    return new Worker(child, script);
  }

  call<Result>(call: string, args: Record<string, unknown> = {}): Promise<Result> {
    return new Promise((resolve, reject) => {
      if (this.ended) {
        reject(this.ended);
        return;
      }
      this.waiting.push({ resolve: resolve as (result: unknown) => void, reject });
      this.child.send({ call, ...args });
    });
  }

  close(): void {
    this.ended ??= new Error('the process of the peer is closed');
    this.child.kill();
  }

  private fail(error: Error): void {
    this.ended ??= error;
    for (const { reject } of this.waiting.splice(0)) reject(this.ended);
  }
}
