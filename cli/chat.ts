import { readFile, writeFile } from 'node:fs/promises';
import { createInterface, type Interface } from 'node:readline';
import type { Chat, ChatMessage, Model, SendOptions } from '../lib/index';
import { CliError, errorLine } from './errors';
import {
  type GenerateCommand,
  generateOptions,
  type Loaded,
  loadModel,
  promptBar,
  sessionOptions,
} from './generate';
import { INTERRUPTED, interruptible } from './interrupt';

export interface ChatCommand extends Omit<GenerateCommand, 'prompt' | 'chat' | 'json'> {
  model: string;
  system?: string;
  messages?: string;
  maxKvLen?: number;
}

const HELP = `/reset      forget the conversation, except the system prompt
/save FILE  write the conversation to FILE, as JSON; --messages FILE continues it
/exit       end the chat; so does Ctrl-D
/help       print this list
Ctrl-C stops an answer. At the prompt, two of them end the chat.
Put a space before a message that begins with /.
`;

/** Resolves to the exit status: 0, 130 after Ctrl-C, or 1 if a line failed without a terminal. */
export async function chat(command: ChatCommand): Promise<number> {
  const messages =
    command.messages === undefined ? undefined : await readMessages(command.messages);
  let loaded: Loaded | undefined;
  try {
    const status = await interruptible(async (signal) => {
      loaded = await loadModel(command, signal);
    });
    if (status !== 0 || loaded === undefined) return status;
    const { model, speculative } = loaded;
    const options = { ...generateOptions(command), speculative };
    return await converse(await createChat(model, command, messages), options);
  } finally {
    loaded?.dispose();
  }
}

async function readMessages(file: string): Promise<ChatMessage[]> {
  try {
    return JSON.parse(await readFile(file, 'utf8'));
  } catch (error) {
    throw new CliError('ERR_INVALID_ARGUMENT', `--messages ${file}: ${(error as Error).message}`);
  }
}

function createChat(
  model: Model,
  command: ChatCommand,
  messages: ChatMessage[] | undefined,
): Promise<Chat> {
  const { system, maxKvLen } = command;
  const others = sessionOptions(command);
  return model.createChat({ system, messages, maxKvLen, contextPolicy: 'shift', ...others });
}

async function converse(chat: Chat, options: SendOptions): Promise<number> {
  const isTerminal = process.stdin.isTTY === true && process.stdout.isTTY === true;
  const lines = createInterface({
    input: process.stdin,
    output: process.stdout,
    terminal: isTerminal,
  });
  const interrupts = new Interrupts(lines, isTerminal);
  let status = 0;
  if (isTerminal) {
    process.stderr.write('/help lists the commands\n');
    lines.prompt();
  }
  for await (const line of lines) {
    interrupts.forget();
    try {
      const isEnd = await perform(line, chat, options, interrupts);
      if (isEnd || interrupts.endedChat) break;
    } catch (error) {
      process.stderr.write(errorLine(error));
      if (!isTerminal) status = 1;
    }
    if (isTerminal) lines.prompt();
  }
  interrupts.end();
  return interrupts.endedChat ? INTERRUPTED : status;
}

/**
 * What Ctrl-C does. In a terminal it stops the answer that is written, and a second one at the
 * prompt ends the chat. Without a terminal, the first one does both. The next one ends the process.
 */
class Interrupts {
  /** The reason why there are no more lines. */
  endedChat = false;
  #answer: AbortController | null = null;
  #isSecond = false;
  readonly #lines: Interface;
  readonly #isTerminal: boolean;
  readonly #onInterrupt = () => this.#interrupt();

  constructor(lines: Interface, isTerminal: boolean) {
    this.#lines = lines;
    this.#isTerminal = isTerminal;
    // A terminal in the mode of readline sends no signal.
    lines.on('SIGINT', this.#onInterrupt);
    process.on('SIGINT', this.#onInterrupt);
  }

  /** Calls `work` with a signal that Ctrl-C aborts. */
  async whileAnswering(work: (signal: AbortSignal) => Promise<void>): Promise<void> {
    const answer = new AbortController();
    this.#answer = answer;
    try {
      await work(answer.signal);
    } finally {
      this.#answer = null;
    }
  }

  /** After a line, Ctrl-C is the first one again. */
  forget(): void {
    this.#isSecond = false;
  }

  end(): void {
    process.off('SIGINT', this.#onInterrupt);
  }

  #interrupt(): void {
    if (this.endedChat) process.exit(INTERRUPTED);
    this.#answer?.abort();
    if (this.#isTerminal && this.#answer !== null) return;
    if (this.#isTerminal && !this.#isSecond) {
      this.#isSecond = true;
      process.stderr.write('\nCtrl-C again, or /exit, ends the chat\n');
      this.#lines.prompt();
      return;
    }
    this.endedChat = true;
    this.#lines.close();
  }
}

/** Performs a command, or sends a message and writes the answer. Resolves to whether to end. */
async function perform(
  line: string,
  chat: Chat,
  options: SendOptions,
  interrupts: Interrupts,
): Promise<boolean> {
  if (!line.startsWith('/')) {
    const message = line.trim();
    if (message === '') return false;
    await interrupts.whileAnswering((signal) => answer(message, chat, options, signal));
    return false;
  }
  const [, name, file] = /^(\S+)\s*(.*?)\s*$/.exec(line) as unknown as [string, string, string];
  if (file !== '' && ['/exit', '/help', '/reset'].includes(name)) {
    throw new CliError('ERR_INVALID_ARGUMENT', `${name} has no argument: /help lists the commands`);
  }
  if (name === '/exit') return true;
  if (name === '/help') process.stderr.write(HELP);
  else if (name === '/reset') await chat.reset();
  else if (name === '/save' && file !== '') {
    await save(file, chat.messages);
  } else {
    const problem = name === '/save' ? '/save requires a file' : `unknown command ${name}`;
    throw new CliError('ERR_INVALID_ARGUMENT', `${problem}: /help lists the commands`);
  }
  return false;
}

async function save(file: string, messages: ChatMessage[]): Promise<void> {
  try {
    await writeFile(file, `${JSON.stringify(messages, null, 2)}\n`);
  } catch (error) {
    throw new CliError(
      'ERR_INVALID_ARGUMENT',
      `/save ${file}: ${(error as Error).message}: save to another file`,
    );
  }
}

async function answer(
  message: string,
  chat: Chat,
  options: SendOptions,
  signal: AbortSignal,
): Promise<void> {
  const { onPrefillProgress, clear } = promptBar();
  const numDropped = chat.numDroppedMessages;
  const generation = chat.send(message, { ...options, signal, onPrefillProgress });
  let last = '';
  try {
    for await (const { text } of generation) {
      if (text === '') continue;
      process.stdout.write(text);
      last = text;
    }
  } finally {
    clear();
    if (last !== '' && !last.endsWith('\n')) process.stdout.write('\n');
  }
  const { finishReason, usage } = await generation.result;
  if (finishReason === 'abort') process.stderr.write('(stopped)\n');
  if (finishReason === 'length') {
    process.stderr.write(`(cut off after ${usage.completionTokens} tokens; see --max-tokens)\n`);
  }
  if (chat.numDroppedMessages > numDropped) {
    process.stderr.write(
      `(the context was full: the model no longer sees the first ${chat.numDroppedMessages} messages)\n`,
    );
  }
}
