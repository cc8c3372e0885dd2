import {
  checkBoolean,
  checkObject,
  invalid,
  invalidArgument,
  invalidCheckpoint,
  unsupportedModel,
} from './errors';
import type { OptionNames } from './options';
import { TemplateError, withoutLimit } from './template/fuel';
import { Converter } from './template/input';
import { Template } from './template/template';
import { type Part, Text } from './template/text';
import type { Value } from './template/values';

/**
 * One message of a conversation. The chat template also sees properties that are not listed here.
 * Their values are JSON values.
 */
export interface ChatMessage {
  /** 'system', 'user', 'assistant', 'tool', or another role that the chat template supports. */
  role: string;
  /**
   * The message as text, or as parts such as `{ type: 'text', text }`. Null or omitted beside
   * `tool_calls`.
   */
  content?: string | readonly object[] | null;
  /** Name of the participant or of the function, if the template supports it. */
  name?: string;
  /** Calls of functions that the assistant made. */
  tool_calls?: readonly object[] | null;
  /** The call that a message of the role 'tool' answers. */
  tool_call_id?: string;
  /** What the assistant thought before it answered. */
  reasoning_content?: string | null;
}

/** Options of {@link Tokenizer.applyChatTemplate}. */
export interface ChatTemplateOptions {
  /** Descriptions of the functions that the model may call, as JSON schemas. Default none. */
  tools?: readonly object[];
  /** Documents for the model to use. Default none. */
  documents?: readonly object[];
  /**
   * End with the start of an assistant message, so that the model answers. Default true, unless
   * `continueFinalMessage` is true.
   */
  addGenerationPrompt?: boolean;
  /**
   * End within the last message, so that the model continues it. Default false. Cannot be combined
   * with `addGenerationPrompt`.
   */
  continueFinalMessage?: boolean;
  /**
   * Further variables of the template, such as `{ enable_thinking: false }`. They have precedence
   * over the special tokens. Default none.
   */
  templateOptions?: Readonly<Record<string, unknown>>;
}

/** The names of {@link ChatTemplateOptions}. */
export const CHAT_TEMPLATE_OPTIONS: OptionNames<ChatTemplateOptions> = {
  tools: true,
  documents: true,
  addGenerationPrompt: true,
  continueFinalMessage: true,
  templateOptions: true,
};

/** The chat templates of a checkpoint by name. */
export interface ChatTemplateSources {
  default: string;
  /** The template for conversations with tools, if it is another one. */
  toolUse: string | undefined;
}

// The steps that a conversation allows a template. The templates of known models take fewer than
// 3,000 for a short conversation, and fewer than 100 for each further value.
const BASE_FUEL = 30_000;
const FUEL_PER_VALUE = 250;
const FUEL_PER_CHARACTER = 2;

/** A model's chat template (Jinja), compiled when it is first used. */
export class ChatTemplate {
  readonly #path: string;
  readonly #sources: ChatTemplateSources;
  readonly #specialTokens: Record<string, string>;
  readonly #templates = new Map<string, Template>();

  /** `path` is named in errors. `specialTokens` are the variables bos_token and so on. */
  constructor(path: string, sources: ChatTemplateSources, specialTokens: Record<string, string>) {
    this.#path = path;
    this.#sources = sources;
    this.#specialTokens = specialTokens;
  }

  /** The source of the template for conversations with tools. */
  get toolSource(): string {
    return this.#sources.toolUse ?? this.#sources.default;
  }

  /**
   * Returns the text of the conversation in the format of the model's training data, including
   * special tokens. Throws ERR_INVALID_ARGUMENT if the template rejects the messages,
   * ERR_UNSUPPORTED_MODEL if it uses a construct that is not supported, ERR_INVALID_CHECKPOINT if
   * it has a syntax error or exceeds a limit.
   */
  render(messages: readonly ChatMessage[], options: ChatTemplateOptions = {}): string {
    return this.#render(messages, options, new Date()).value;
  }

  /**
   * Like {@link ChatTemplate.render}, in parts that say which text comes from the conversation:
   * that text must not become control tokens. `now` is the time that the template sees.
   */
  renderParts(
    messages: readonly ChatMessage[],
    options: ChatTemplateOptions = {},
    now = new Date(),
  ): Part[] {
    const text = this.#render(messages, options, now);
    return withoutLimit(() => text.parts());
  }

  #render(messages: readonly ChatMessage[], options: ChatTemplateOptions, now: Date): Text {
    const { continueFinalMessage = false, templateOptions = {} } = options;
    const { tools, documents, addGenerationPrompt = !continueFinalMessage } = options;
    checkBoolean('continueFinalMessage', continueFinalMessage);
    checkBoolean('addGenerationPrompt', addGenerationPrompt);
    checkList('tools', tools);
    checkList('documents', documents);
    checkObject('templateOptions', templateOptions);
    if (continueFinalMessage && addGenerationPrompt) {
      throw invalidArgument('continueFinalMessage and addGenerationPrompt cannot both be true');
    }
    const converter = new Converter();
    const variables = withoutLimit(() => {
      const map = new Map<string, Value>(
        Object.entries(this.#specialTokens).map(([name, text]) => [name, Text.plain(text)]),
      );
      map.set('messages', converter.messages(messages));
      map.set('tools', converter.convert('tools', tools ?? null));
      map.set('documents', converter.convert('documents', documents ?? null));
      map.set('add_generation_prompt', addGenerationPrompt);
      for (const [name, value] of Object.entries(templateOptions)) {
        if (value !== undefined) map.set(name, converter.convert(name, value));
      }
      return map;
    });
    const fuel =
      BASE_FUEL + converter.values * FUEL_PER_VALUE + converter.characters * FUEL_PER_CHARACTER;
    try {
      const text = this.#template(tools !== undefined).render(variables, { fuel, now });
      return continueFinalMessage ? withoutLimit(() => cut(text, messages)) : text;
    } catch (error) {
      throw error instanceof TemplateError ? this.#explain(error) : error;
    }
  }

  #template(hasTools: boolean): Template {
    const source = (hasTools ? this.#sources.toolUse : undefined) ?? this.#sources.default;
    let template = this.#templates.get(source);
    if (template === undefined) {
      template = new Template(source);
      this.#templates.set(source, template);
    }
    return template;
  }

  #explain({ failure, message }: TemplateError): Error {
    switch (failure) {
      case 'raised':
      case 'python':
        return invalidArgument(
          `the chat template of ${this.#path} rejects these messages: ${message}`,
        );
      case 'unsupported':
        return unsupportedModel(this.#path, `the chat template uses ${message}: not supported`);
      case 'syntax':
        return invalidCheckpoint(this.#path, `the chat template has a syntax error: ${message}`);
      default:
        return invalidCheckpoint(this.#path, `the chat template ${message}`);
    }
  }
}

/** The text up to the end of the last message. */
function cut(text: Text, messages: readonly ChatMessage[]): Text {
  const { content } = messages.at(-1) as ChatMessage;
  const parts = Array.isArray(content) ? (content as { text?: unknown }[]) : [{ text: content }];
  const last = parts.findLast((part) => typeof part.text === 'string')?.text;
  if (typeof last !== 'string') {
    throw invalidArgument('continueFinalMessage: the last message has no text to continue');
  }
  const trimmed = last.trim();
  const start = lastOfUser(text, trimmed);
  if (start < 0) {
    throw invalidArgument(
      'continueFinalMessage: the chat template does not write the last message as it is',
    );
  }
  const isWhole = text.value.startsWith(last, start);
  return text.slice(0, start + (isWhole ? last.length : trimmed.length));
}

/**
 * The last position of `wanted` in text of the conversation. If that text does not have it, the last
 * position in the whole text, or -1.
 */
function lastOfUser(text: Text, wanted: string): number {
  const last = text.value.lastIndexOf(wanted);
  for (let i = text.spans.length - 2; i >= 0 && wanted !== ''; i -= 2) {
    const span = text.value.slice(text.spans[i], text.spans[i + 1]);
    const at = span.lastIndexOf(wanted);
    if (at >= 0) return (text.spans[i] as number) + at;
  }
  return last;
}

function checkList(name: string, value: unknown): void {
  if (value !== undefined && !Array.isArray(value)) throw invalid(name, 'an array', value);
}

/**
 * The chat template of a checkpoint: chat_template.jinja if it exists, else `chat_template` of
 * tokenizer_config.json, else null.
 */
export function chatTemplateSource(
  config: Record<string, unknown>,
  jinjaFile: string | null,
): ChatTemplateSources | null {
  if (jinjaFile !== null) return { default: jinjaFile, toolUse: undefined };
  const template = config.chat_template;
  if (typeof template === 'string') return { default: template, toolUse: undefined };
  if (!Array.isArray(template)) return null;
  const named = (name: string): string | undefined => {
    const source = template.find((entry) => entry?.name === name)?.template;
    return typeof source === 'string' ? source : undefined;
  };
  const main = named('default');
  return main === undefined ? null : { default: main, toolUse: named('tool_use') };
}

/** Throws ERR_INVALID_ARGUMENT unless `messages` is a non-empty array of messages. */
export function checkMessages(messages: readonly ChatMessage[]): void {
  if (!Array.isArray(messages) || messages.length === 0) {
    throw invalid('messages', 'a non-empty array of { role, content }', messages);
  }
  messages.forEach((message, i) => {
    if (typeof message !== 'object' || message === null || typeof message.role !== 'string') {
      throw invalid(`messages[${i}]`, '{ role: string, content }', message);
    }
    const { content, tool_calls } = message;
    const isOmitted = content === null || (content === undefined && Array.isArray(tool_calls));
    if (typeof content !== 'string' && !Array.isArray(content) && !isOmitted) {
      throw invalid(`messages[${i}].content`, 'a string, an array of parts or null', content);
    }
  });
}
