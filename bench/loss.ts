// The mean loss of a model over a text that it was not trained on, and what the programs that measure it share.
import * as fs from 'node:fs';
import * as path from 'node:path';
import { parseArgs } from 'node:util';

import { defaultModelDirectory, type Model, type SessionOptions } from '../lib/index';
import { describeMachine, describeVersions } from './machine';

const PARALLEL_SESSIONS = 8; // their JavaScript runs while the device computes

/** The first `limit` documents of a text, which blank lines separate, each as <begin of text> document <end of text>. */
export async function readDocuments(model: Model, file: string, limit: number): Promise<number[][]> {
  const { tokenizer } = model;
  const { bosTokenId, eosTokenId } = tokenizer ?? {};
  if (!tokenizer || bosTokenId == null || eosTokenId == null)
    throw new Error('the model has no tokenizer with tokens for the begin and the end of text');
  const texts = fs
    .readFileSync(file, 'utf8')
    .trimEnd()
    .split(/\n{2,}/)
    .slice(0, limit);
  return Promise.all(
    texts.map(async (text) => [
      bosTokenId,
      ...(await tokenizer.encodeAsync(`${text}\n`, { addSpecialTokens: false })),
      eosTokenId,
    ]),
  );
}

/** -log softmax(logits)[token], in float64. */
function surprise(logits: Float32Array, token: number): number {
  let max = -Infinity;
  for (const logit of logits) max = Math.max(max, logit);
  let sum = 0;
  for (const logit of logits) sum += Math.exp(logit - max);
  return max + Math.log(sum) - (logits[token] as number);
}

/** The number of tokens that `totalLoss` predicts. */
export function countTokens(documents: readonly number[][]): number {
  return documents.reduce((sum, tokens) => sum + tokens.length - 1, 0);
}

/** The sum of the losses, in nats, of all tokens but the first of each document. `name` is for the progress on a terminal. */
export async function totalLoss(
  model: Model,
  options: SessionOptions,
  documents: readonly number[][],
  name: string,
): Promise<number> {
  let total = 0;
  let next = 0;
  let doneTokens = 0;
  const maxKvLen = documents.reduce((longest, tokens) => Math.max(longest, tokens.length), 0);
  const worker = async (): Promise<void> => {
    const session = await model.createSession({ maxKvLen, ...options });
    try {
      while (next < documents.length) {
        const tokens = documents[next++] as number[];
        await session.truncate(0);
        let loss = 0;
        for (let i = 0; i + 1 < tokens.length; i++)
          loss += surprise(await session.decode(tokens[i] as number), tokens[i + 1] as number);
        total += loss;
        doneTokens += tokens.length - 1;
        if (process.stderr.isTTY) process.stderr.write(`\r${name}: ${doneTokens} tokens `);
      }
    } finally {
      session.dispose();
    }
  };
  await Promise.all(Array.from({ length: PARALLEL_SESSIONS }, worker));
  return total;
}

interface QualityArguments {
  /** The options of the command line, those of `more` too. */
  values: { model: string; device: string; json?: string; [name: string]: string | undefined };
  file: string;
  /** Of documents. */
  limit: number;
}

/** The arguments of a program: TEXT and options, and those of `more`. Null if it has printed `usage` in place of running. */
export function qualityArguments(usage: string, more: readonly string[] = []): QualityArguments | null {
  const text = { type: 'string' } as const;
  const { values, positionals } = parseArgs({
    options: {
      ...Object.fromEntries(more.map((name) => [name, text])),
      model: { ...text, default: defaultModelDirectory },
      device: { ...text, default: 'cpu' },
      documents: { ...text, default: 'Infinity' },
      json: text,
      help: { type: 'boolean', short: 'h', default: false },
    },
    allowPositionals: true,
  });
  const { help, documents, ...others } = values;
  const [file, ...rest] = positionals;
  if (help || file === undefined || rest.length > 0) {
    (help ? process.stdout : process.stderr).write(`${usage}\n`);
    process.exitCode = help ? 0 : 1;
    return null;
  }
  const limit = Number(documents);
  if (!(limit >= 1)) throw new Error(`--documents must be at least 1, not '${documents}'`);
  return { values: others as QualityArguments['values'], file, limit };
}

/** What a result file says beside its rows. */
export function aboutQuality(program: string, model: Model, file: string, documents: readonly number[][]) {
  return {
    command: [program, ...process.argv.slice(2)].join(' '),
    date: new Date().toISOString(),
    machine: describeMachine(),
    versions: describeVersions(),
    setup: {
      text: path.basename(file),
      documents: documents.length,
      tokens: countTokens(documents),
      device: model.device.info,
      dtype: model.dtype,
    },
  };
}

/** Runs a program. An error is a line on stderr and status 1. */
export function runQuality(program: string, main: () => Promise<void>): void {
  main().catch((error: Error & { code?: string }) => {
    process.stderr.write(`${program}: ${error.message}${error.code === undefined ? '' : ` (${error.code})`}\n`);
    process.exitCode = 1;
  });
}
