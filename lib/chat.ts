import { Template } from '@huggingface/jinja';
import { DiffqkvError, invalid } from './errors';
import { renderLimited } from './template_limits';

/** One turn of a conversation. */
export interface ChatMessage {
  /** 'system', 'user', 'assistant', or what else the model's chat template knows. */
  role: string;
  /** What was said, as plain text. */
  content: string;
}

/** How {@link Tokenizer.applyChatTemplate} writes out a conversation. */
export interface ChatTemplateOptions {
  /** End with the opening of the assistant's turn, so that the model answers. Default true. */
  addGenerationPrompt?: boolean;
}

/** A model's chat template (Jinja), compiled at its first use. */
export class ChatTemplate {
  readonly #file: string;
  readonly #source: string;
  readonly #variables: Record<string, string>;
  #template: Template | undefined;

  /** `file` is named in errors; `variables` are bos_token and its kin. */
  constructor(file: string, source: string, variables: Record<string, string>) {
    this.#file = file;
    this.#source = source;
    this.#variables = variables;
  }

  /**
   * The text of the conversation as the model was trained to see it, special tokens included.
   * Throws ERR_INVALID_ARGUMENT where the template refuses the messages, ERR_INVALID_CHECKPOINT where the template itself
   * does not parse, or does not come to an end.
   */
  render(messages: readonly ChatMessage[], options: ChatTemplateOptions = {}): string {
    if (this.#template === undefined) {
      try {
        this.#template = new Template(this.#source);
      } catch (error) {
        throw new DiffqkvError(
          'ERR_INVALID_CHECKPOINT',
          `${this.#file}: chat template does not parse: ${reason(error)}`,
        );
      }
    }
    try {
      const add_generation_prompt = options.addGenerationPrompt ?? true;
      const variables = { ...this.#variables, messages, add_generation_prompt };
      return renderLimited(`${this.#file}: its chat template`, this.#template, variables);
    } catch (error) {
      if (error instanceof DiffqkvError) throw error;
      throw new DiffqkvError(
        'ERR_INVALID_ARGUMENT',
        `the chat template of ${this.#file} refuses these messages: ${reason(error)}`,
      );
    }
  }
}

/** The template of a checkpoint: chat_template.jinja where there is one, else `chat_template` of tokenizer_config.json. */
export function chatTemplateSource(
  config: Record<string, unknown>,
  jinjaFile: string | null,
): string | null {
  if (jinjaFile !== null) return jinjaFile;
  const template = config.chat_template;
  if (typeof template === 'string') return template;
  if (!Array.isArray(template)) return null;
  // The list form names several; 'default' is the one for plain conversations.
  const named = template.find((entry) => entry?.name === 'default');
  return typeof named?.template === 'string' ? named.template : null;
}

/** Throws ERR_INVALID_ARGUMENT where these are not messages. */
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
