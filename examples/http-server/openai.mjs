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
  functions: [],
};
/** The same of what only chat completions have. */
const OFF_IN_COMPLETIONS = { tools: [], response_format: { type: 'text' } };

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
  for (const [name, off] of Object.entries(chat ? OFF : { ...OFF, ...OFF_IN_COMPLETIONS })) {
    const value = given[name];
    if (value !== undefined && value !== off && !isDeepStrictEqual(value, off)) {
      refuse(name, 'is not supported here', 'unsupported_parameter');
    }
  }
  for (const name of chat ? ['function_call'] : ['function_call', 'tool_choice']) {
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

  if (chat) Object.assign(options, readFormat(given.response_format, refuse), readTools(given, refuse));

  const what = chat ? 'messages' : 'prompt';
  const context = model.config.maxPositionEmbeddings;
  const checkLength = (length, most, unit) => {
    if (length <= most) return;
    const message = `has ${length} ${unit}, and the context of ${context} tokens holds at most ${most}`;
    refuse(what, message, 'context_length_exceeded');
  };
  const asked = chat ? readMessages(given.messages, refuse) : readPrompt(given.prompt, refuse);
  if (chat) {
    const lengthOf = (value) => {
      try {
        return value === undefined ? 0 : JSON.stringify(value).length;
      } catch {
        return Number.POSITIVE_INFINITY; // nested too deep
      }
    };
    const characters = asked.reduce(
      (sum, { role, content, tool_calls }) => sum + role.length + (content?.length ?? 0) + lengthOf(tool_calls) + 1,
      lengthOf(options.tools),
    );
    checkLength(characters, maxCharsPerToken * context, 'characters');
  } else if (typeof asked === 'string') checkLength(asked.length, maxCharsPerToken * context, 'characters');
  else checkLength(asked.length, context, 'tokens');
  const encode = async () => {
    const tokens = await (chat ? chatTokens(model, asked, options.tools) : promptTokens(model, asked));
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
    const { role, content, tool_calls: calls, tool_call_id: id } = message ?? {};
    const parts = typeof content === 'string' ? [{ type: 'text', text: content }] : content;
    const hasCalls = Array.isArray(calls) && calls.length > 0;
    const hasText = Array.isArray(parts) && parts.every(isText);
    if (typeof role !== 'string' || !(hasText || (hasCalls && (content ?? null) === null))) {
      refuse(`messages[${i}]`, 'must have a role, and a content of text');
    }
    if (hasCalls && !calls.every(isCall)) refuse(`messages[${i}].tool_calls`, 'must be calls of functions');
    return {
      role,
      content: hasText ? parts.map(({ text }) => text).join('') : null,
      ...(hasCalls ? { tool_calls: calls } : {}),
      ...(typeof id === 'string' ? { tool_call_id: id } : {}),
    };
  });
}

const isCall = (call) =>
  call?.type === 'function' && typeof call.function?.name === 'string' && typeof call.function.arguments === 'string';

function readFormat(format, refuse) {
  switch (format?.type ?? 'text') {
    case 'text':
      return {};
    case 'json_object':
      return { responseFormat: { type: 'json_object' } };
    case 'json_schema':
      return { responseFormat: { type: 'json_schema', schema: format.json_schema?.schema } };
    default:
      return refuse('response_format', 'must have the type text, json_object or json_schema', 'unsupported_parameter');
  }
}

function readTools({ tools = [], tool_choice: choice = 'auto' }, refuse) {
  if (!Array.isArray(tools) || !tools.every((tool) => tool?.type === 'function' && isNamed(tool))) {
    refuse('tools', 'must be an array of functions', 'unsupported_parameter');
  }
  const isWord = ['none', 'auto', 'required'].includes(choice);
  if (!isWord && !(choice?.type === 'function' && isNamed(choice))) {
    refuse('tool_choice', 'must be "none", "auto", "required" or a function', 'unsupported_parameter');
  }
  if (tools.length === 0) {
    if (choice !== 'none' && choice !== 'auto') refuse('tool_choice', 'needs tools');
    return {};
  }
  return { tools, toolChoice: isWord ? choice : { name: choice.function.name } };
}

const isNamed = (tool) => typeof tool.function?.name === 'string';

function chatTokens({ tokenizer }, messages, tools) {
  return tokenizer.encodeChat(messages, { tools });
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
      const { text, toolCalls = [] } = result;
      const called = toolCalls.length > 0;
      const message = { role: 'assistant', content: called && text === '' ? null : text, refusal: null };
      const content = chat ? { message: called ? { ...message, tool_calls: toolCalls } : message } : { text };
      return object('', [choice(content, result.finishReason)], usageOf(result));
    },
    /** `usage`: null in all chunks but the last where it was asked for, else undefined. */
    first: (usage) => (chat ? chunk({ role: 'assistant', content: '' }, null, usage) : undefined),
    text: (text, usage) => chunk({ content: text }, null, usage),
    toolCalls: (parts, usage) => chunk({ tool_calls: parts }, null, usage),
    end: (result, usage) => chunk({}, result.finishReason, usage),
    usage: (result) => object('.chunk', [], usageOf(result)),
  };
}
