import { addAbortSignal } from 'node:stream';
import { text as readAll } from 'node:stream/consumers';
import {
  type DType,
  defaultModelDirectory,
  type Generation,
  Model,
  type ModelOptions,
  openDevice,
  type SessionOptions,
} from '../lib/index';
import { CliError } from './errors';
import { interruptible } from './interrupt';
import { ProgressBar, tokens, withLoadingBars } from './progress';

export interface GenerateCommand {
  model?: string;
  prompt?: string;
  chat?: boolean;
  maxTokens: number;
  temperature: number;
  topK: number;
  topP: number;
  minP: number;
  repetitionPenalty: number;
  seed?: bigint;
  stop: string[];
  kType?: string;
  vType?: string;
  selectiveV?: number;
  renormalize?: boolean;
  weightType?: string;
  speculative?: string;
  device: string;
  threads?: number;
  json?: boolean;
}

/** Resolves to the exit status: 0, or 130 after Ctrl-C. */
export function generate(command: GenerateCommand): Promise<number> {
  return interruptible(async (signal) => {
    const prompt = command.prompt ?? (await readPrompt(signal));
    process.stderr.write(await run(command, prompt, signal));
  });
}

async function readPrompt(signal: AbortSignal): Promise<string> {
  if (process.stdin.isTTY) {
    throw new CliError(
      'ERR_INVALID_ARGUMENT',
      'no prompt: pass --prompt TEXT, or pipe the prompt to standard input',
    );
  }
  // The signal destroys the stream, so that Ctrl-C also ends the wait for a prompt.
  return readAll(addAbortSignal(signal, process.stdin));
}

async function run(command: GenerateCommand, prompt: string, signal: AbortSignal): Promise<string> {
  const { threads } = command;
  const device = await openDevice(command.device as Parameters<typeof openDevice>[0], { threads });
  try {
    const model = await withLoadingBars((bars) =>
      Model.load(command.model ?? defaultModelDirectory, {
        device,
        weightType: command.weightType as ModelOptions['weightType'],
        signal,
        ...bars,
      }),
    );
    let draft: Model | undefined;
    try {
      const { maxTokens, temperature, topK, topP, minP, repetitionPenalty, seed, stop } = command;
      const session = await model.createSession(sessionOptions(command));
      const { speculative } = command;
      if (speculative !== undefined && speculative !== 'ngram') {
        draft = await withLoadingBars((bars) =>
          Model.load(speculative, { device, signal, ...bars }),
        );
      }
      const prefill = new ProgressBar('prompt', tokens);
      const generation = model.generate(
        command.chat ? [{ role: 'user', content: prompt }] : prompt,
        {
          maxTokens,
          temperature,
          topK,
          topP,
          minP,
          repetitionPenalty,
          seed,
          stop,
          speculative: speculative === undefined ? undefined : { draft },
          signal,
          session,
          onPrefillProgress: ({ doneTokens, totalTokens }) => {
            // No bar for a prompt of one chunk.
            if (doneTokens < totalTokens) prefill.update(doneTokens, totalTokens);
            else prefill.clear();
          },
        },
      );
      return await write(generation, command.json === true).finally(() => prefill.clear());
    } finally {
      draft?.dispose();
      model.dispose();
    }
  } finally {
    device.dispose();
  }
}

function sessionOptions({
  kType,
  vType,
  selectiveV,
  renormalize,
}: GenerateCommand): SessionOptions {
  if (renormalize && selectiveV === undefined) {
    throw new CliError('ERR_INVALID_ARGUMENT', '--renormalize requires --selective-v');
  }
  return {
    kType: kType as DType | undefined,
    vType: vType as DType | undefined,
    selectiveV: selectiveV === undefined ? undefined : { topK: selectiveV, renormalize },
  };
}

/** Writes the text or the JSON object to stdout. Resolves to the summary line for stderr. */
async function write(generation: Generation, json: boolean): Promise<string> {
  if (json) {
    process.stdout.write(`${JSON.stringify(await generation.result)}\n`);
    return '';
  }
  let last = '';
  for await (const { text } of generation) {
    if (text === '') continue;
    process.stdout.write(text);
    last = text;
  }
  const { usage, timings, finishReason, speculative } = await generation.result;
  if (!last.endsWith('\n')) process.stdout.write('\n');
  const rate = timings.tokensPerSecond.toFixed(0);
  const accepted =
    speculative &&
    `${speculative.acceptedTokens} of ${speculative.proposedTokens} proposals accepted, `;
  return (
    `${usage.promptTokens} prompt tokens in ${timings.prefillMs.toFixed(0)} ms, ` +
    `${usage.completionTokens} tokens in ${timings.decodeMs.toFixed(0)} ms (${rate} tokens/s), ` +
    `${accepted ?? ''}${finishReason}\n`
  );
}
