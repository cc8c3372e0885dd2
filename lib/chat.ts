import { Template } from '@huggingface/jinja';
import { DiffqkvError, invalid, invalidArgument, invalidCheckpoint } from './errors';
import { renderLimited } from './template_limits';

/** One message of a conversation. */
export interface ChatMessage {
  /** 'system', 'user', 'assistant', or another role that the chat template supports. */
  role: string;
  /** The message as plain text. */
  content: string;
}

/** Options of {@link Tokenizer.applyChatTemplate}. */
export interface ChatTemplateOptions {
  /** End with the start of an assistant message, so that the model answers. Default true. */
  addGenerationPrompt?: boolean;
}

/** A model's chat template (Jinja), compiled when it is first used. */
export class ChatTemplate {
  readonly #path: string;
  readonly #source: string;
  readonly #variables: Record<string, string>;
  #template: Template | undefined;

  /** `path` is named in errors. `variables` are the special tokens: bos_token and so on. */
  constructor(path: string, source: string, variables: Record<string, string>) {
    this.#path = path;
    this.#source = source;
    this.#variables = variables;
  }

  /**
   * Returns the text of the conversation in the format of the model's training data, including
   * special tokens. Throws ERR_INVALID_ARGUMENT if the template rejects the messages,
   * ERR_INVALID_CHECKPOINT if the template has a syntax error or exceeds a limit.
   */
  render(messages: readonly ChatMessage[], options: ChatTemplateOptions = {}): string {
    const add_generation_prompt = options.addGenerationPrompt ?? true;
    const variables = { ...this.#variables, messages, add_generation_prompt };
    this.#template ??= this.#parse();
    try {
      return renderLimited(this.#path, this.#template, variables);
    } catch (error) {
      if (error instanceof DiffqkvError) throw error;
      throw invalidArgument(
        `the chat template of ${this.#path} rejects these messages: ${reason(error)}`,
      );
    }
  }

  #parse(): Template {
    try {
      return new Template(this.#source);
    } catch (error) {
      throw invalidCheckpoint(this.#path, `the chat template has a syntax error: ${reason(error)}`);
    }
  }
}

/**
 * The chat template of a checkpoint: chat_template.jinja if it exists, else `chat_template` of
 * tokenizer_config.json, else null.
 */
export function chatTemplateSource(
  config: Record<string, unknown>,
  jinjaFile: string | null,
): string | null {
  if (jinjaFile !== null) return jinjaFile;
  const template = config.chat_template;
  if (typeof template === 'string') return template;
  if (!Array.isArray(template)) return null;
  // A list of named templates. 'default' is the one for plain conversations.
  const named = template.find((entry) => entry?.name === 'default');
  return typeof named?.template === 'string' ? named.template : null;
}

/** Throws ERR_INVALID_ARGUMENT unless `messages` is a non-empty array of messages. */
export function checkMessages(messages: readonly ChatMessage[]): void {
  if (!Array.isArray(messages) || messages.length === 0) {
    throw invalid('messages', 'a non-empty array of { role, content }', messages);
  }
  messages.forEach((message, i) => {
    if (typeof message?.role !== 'string' || typeof message.content !== 'string') {
      throw invalid(`messages[${i}]`, '{ role: string, content: string }', message);
    }
  });
}

function reason(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
