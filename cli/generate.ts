import { addAbortSignal } from 'node:stream';
import { text as readAll } from 'node:stream/consumers';
import {
  type DType,
  defaultModelDirectory,
  type GenerateOptions,
  type Generation,
  Model,
  type ModelOptions,
  openDevice,
  type SessionOptions,
  type SpeculativeOptions,
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
  const { model, speculative, dispose } = await loadModel(command, signal);
  try {
    const session = await model.createSession(sessionOptions(command));
    const { onPrefillProgress, clear } = promptBar();
    const generation = model.generate(command.chat ? [{ role: 'user', content: prompt }] : prompt, {
      ...generateOptions(command),
      speculative,
      signal,
      session,
      onPrefillProgress,
    });
    return await write(generation, command.json === true).finally(clear);
  } finally {
    dispose();
  }
}

/** What a command generates with. */
export interface Loaded {
  model: Model;
  /** The option of that name for the model. It has the draft model. */
  speculative: SpeculativeOptions | undefined;
  /** Disposes of the models and their device. */
  dispose(): void;
}

/** Loads the model of a command, and its draft model, on its device. */
export async function loadModel(
  { model: source, device: id, threads, weightType, speculative }: GenerateCommand,
  signal: AbortSignal,
): Promise<Loaded> {
  const device = await openDevice(id as Parameters<typeof openDevice>[0], { threads });
  const models: Model[] = [];
  const dispose = () => {
    for (const model of models) model.dispose();
    device.dispose();
  };
  const load = async (from: string, options: ModelOptions): Promise<Model> => {
    const model = await withLoadingBars((bars) =>
      Model.load(from, { device, signal, ...options, ...bars }),
    );
    models.push(model);
    return model;
  };
  try {
    const model = await load(source ?? defaultModelDirectory, {
      weightType: weightType as ModelOptions['weightType'],
    });
    if (speculative === undefined) return { model, speculative: undefined, dispose };
    const draft = speculative === 'ngram' ? undefined : await load(speculative, {});
    return { model, speculative: { draft }, dispose };
  } catch (error) {
    dispose();
    throw error;
  }
}

/** How the command's tokens are drawn and when they end. */
export function generateOptions(command: GenerateCommand): GenerateOptions {
  const { maxTokens, temperature, topK, topP, minP, repetitionPenalty, seed, stop } = command;
  return { maxTokens, temperature, topK, topP, minP, repetitionPenalty, seed, stop };
}

/** A bar for the progress of a prompt, if it has more than one chunk. */
export function promptBar(): Required<Pick<GenerateOptions, 'onPrefillProgress'>> & {
  clear(): void;
} {
  const bar = new ProgressBar('prompt', tokens);
  return {
    onPrefillProgress: ({ doneTokens, totalTokens }) => {
      if (doneTokens < totalTokens) bar.update(doneTokens, totalTokens);
      else bar.clear();
    },
    clear: () => bar.clear(),
  };
}

export function sessionOptions({
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
