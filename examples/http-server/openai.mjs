// The OpenAI API in terms of model.generate: requests become prompts and options, results answers, errors statuses.

import { randomUUID } from 'node:crypto';
import { isDeepStrictEqual } from 'node:util';

/** An answer that is an error, as OpenAI's clients know it. */
export class ApiError extends Error {
  constructor(status, message, { code = null, param = null, headers = {} } = {}) {
    super(message);
    Object.assign(this, { status, code, param, headers });
  }

  get body() {
    const kind =
      this.status === 429 ? 'rate_limit_error' : this.status < 500 ? 'invalid_request_error' : 'server_error';
    return { error: { message: this.message, type: kind, param: this.param, code: this.code } };
  }
}

const LATER = { 'retry-after': '1' };
const STATUS = {
  ERR_INVALID_ARGUMENT: [400],
  ERR_UNSUPPORTED_MODEL: [400], // the model has no chat template
  ERR_KV_CACHE_FULL: [503, LATER], // of all requests together: a prompt that is too long by itself is refused before
  ERR_OUT_OF_MEMORY: [503, LATER],
  ERR_DEVICE_UNAVAILABLE: [503],
  ERR_DISPOSED: [503],
};

/** Names of the API, and what model.generate calls them; the last three are no part of OpenAI's. */
const OPTIONS = {
  temperature: 'temperature',
  top_p: 'topP',
  seed: 'seed',
  stop: 'stop',
  logit_bias: 'logitBias',
  presence_penalty: 'presencePenalty',
  frequency_penalty: 'frequencyPenalty',
  top_k: 'topK',
  min_p: 'minP',
  repetition_penalty: 'repetitionPenalty',
};

/** What would change the answer and isn't done is refused, unless it is absent, null, or says "off" as here. */
const OFF = {
  n: 1,
  best_of: 1,
  echo: false,
  suffix: '',
  logprobs: false,
  top_logprobs: 0,
  tools: [],
  functions: [],
  response_format: { type: 'text' },
};

/** `directory`: the path of the model, which clients do not need to know. */
export function toApiError(error, directory) {
  if (error instanceof ApiError) return error;
  const [status, headers] = STATUS[error?.code] ?? [];
  if (status === undefined) {
    console.error(error); // for whoever runs the server; clients have no business with it
    return new ApiError(500, 'the server failed', { code: error?.code === 'ERR_INTERNAL' ? error.code : null });
  }
  const [subject] = error.message.split(' must ');
  const [param, option] = Object.entries(OPTIONS).find(([, name]) => new RegExp(`\\b${name}\\b`).test(subject)) ?? [];
  const text = param ? error.message.replace(option, param) : error.message;
  const message = directory === undefined ? text : text.replaceAll(directory, 'the model');
  return new ApiError(status, message, { code: error.code, param, headers });
}

/**
 * The options and the form of the answer that a request asks for, and `encode`, which resolves to its tokens. `chat`: it
 * is one for chat completions.
 */
export function readRequest(model, modelName, chat, body, { maxTokens, maxCharsPerToken }) {
  const refuse = (param, message, code = null, status = 400) => {
    throw new ApiError(status, `${param} ${message}`, { param, code });
  };
  if (typeof body !== 'object' || body === null || Array.isArray(body)) refuse('the body', 'must be a JSON object');
  const given = Object.fromEntries(Object.entries(body).filter(([, value]) => value !== null)); // null: not given
  if (given.model !== modelName) {
    refuse('model', `must be ${JSON.stringify(modelName)}: it is the only one here`, 'model_not_found', 404);
  }
  for (const [name, off] of Object.entries(OFF)) {
    const value = given[name];
    if (value !== undefined && value !== off && !isDeepStrictEqual(value, off)) {
      refuse(name, 'is not supported here', 'unsupported_parameter');
    }
  }
  for (const name of ['tool_choice', 'function_call']) {
    if (![undefined, 'none', 'auto'].includes(given[name])) {
      refuse(name, 'may be "none" or "auto" alone here', 'unsupported_parameter');
    }
  }
  const { stream = false, stream_options: streamOptions } = given;
  if (typeof stream !== 'boolean') refuse('stream', 'must be true or false');
  if (streamOptions !== undefined && !stream) refuse('stream_options', 'goes with stream: true alone');
  if (Array.isArray(given.stop) && given.stop.length > 4) refuse('stop', 'may have up to 4 strings');

  const lengthName = given.max_completion_tokens === undefined ? 'max_tokens' : 'max_completion_tokens';
  const length = given[lengthName] ?? (chat ? maxTokens : 16); // the defaults are OpenAI's, this one and the next
  if (!Number.isInteger(length) || length < 1 || length > maxTokens) {
    refuse(lengthName, `must be an integer from 1 to ${maxTokens}`);
  }
  const options = { maxTokens: length, temperature: 1 };
  for (const [name, option] of Object.entries(OPTIONS)) if (given[name] !== undefined) options[option] = given[name];

  const what = chat ? 'messages' : 'prompt';
  const context = model.config.maxPositionEmbeddings;
  const checkLength = (length, most, unit) => {
    if (length <= most) return;
    const message = `has ${length} ${unit}, and the context of ${context} tokens holds at most ${most}`;
    refuse(what, message, 'context_length_exceeded');
  };
  const asked = chat ? readMessages(given.messages, refuse) : readPrompt(given.prompt, refuse);
  if (chat) {
    const characters = asked.reduce((sum, { role, content }) => sum + role.length + content.length + 1, 0);
    checkLength(characters, maxCharsPerToken * context, 'characters');
  } else if (typeof asked === 'string') checkLength(asked.length, maxCharsPerToken * context, 'characters');
  else checkLength(asked.length, context, 'tokens');
  const encode = async () => {
    const tokens = await (chat ? chatTokens(model, asked) : promptTokens(model, asked));
    checkLength(tokens.length, context, 'tokens');
    return tokens;
  };
  return { encode, options, stream, includeUsage: streamOptions?.include_usage === true };
}

function readPrompt(prompt, refuse) {
  const one = Array.isArray(prompt) && prompt.length === 1 && typeof prompt[0] !== 'number' ? prompt[0] : prompt;
  if (typeof one === 'string' || (Array.isArray(one) && one.length > 0 && one.every(Number.isInteger))) return one;
  return refuse('prompt', 'must be one string, or one array of token ids');
}

function promptTokens({ tokenizer }, prompt) {
  return typeof prompt === 'string' ? tokenizer.encodeAsync(prompt) : prompt;
}

function readMessages(messages, refuse) {
  if (!Array.isArray(messages)) refuse('messages', 'must be an array');
  return messages.map((message, i) => {
    const parts = typeof message?.content === 'string' ? [{ type: 'text', text: message.content }] : message?.content;
    if (typeof message?.role !== 'string' || !Array.isArray(parts) || !parts.every(isText)) {
      refuse(`messages[${i}]`, 'must have a role, and a content of text');
    }
    return { role: message.role, content: parts.map(({ text }) => text).join('') };
  });
}

function chatTokens({ tokenizer }, messages) {
  return tokenizer.encodeChat(messages);
}

const isText = (part) => part?.type === 'text' && typeof part.text === 'string';

/** The objects that answer one request. */
export function answersFor(chat, modelName) {
  const id = `${chat ? 'chatcmpl' : 'cmpl'}-${randomUUID()}`;
  const created = Math.floor(Date.now() / 1000);
  const object = (kind, choices, usage) => ({
    id,
    object: chat ? `chat.completion${kind}` : 'text_completion',
    created,
    model: modelName,
    choices,
    ...(usage === undefined ? {} : { usage }),
  });
  const choice = (content, finish) => ({ index: 0, ...content, logprobs: null, finish_reason: finish });
  const chunk = (delta, finish, usage) =>
    object('.chunk', [choice(chat ? { delta } : { text: delta.content ?? '' }, finish)], usage);
  const usageOf = ({ usage: { promptTokens, completionTokens } }) => ({
    prompt_tokens: promptTokens,
    completion_tokens: completionTokens,
    total_tokens: promptTokens + completionTokens,
  });
  return {
    whole: (result) => {
      const content = chat
        ? { message: { role: 'assistant', content: result.text, refusal: null } }
        : { text: result.text };
      return object('', [choice(content, result.finishReason)], usageOf(result));
    },
    /** `usage`: null in all chunks but the last where it was asked for, else undefined. */
    first: (usage) => (chat ? chunk({ role: 'assistant', content: '' }, null, usage) : undefined),
    text: (text, usage) => chunk({ content: text }, null, usage),
    end: (result, usage) => chunk({}, result.finishReason, usage),
    usage: (result) => object('.chunk', [], usageOf(result)),
  };
}
